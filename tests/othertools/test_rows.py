"""Rows for ms-swift and LLaMA-Factory, by their documented formats; where the tools are installed, by their loaders."""

from __future__ import annotations

import json
import re
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from affectgpt.cli import run
from affectgpt.metrics.rewards import Scorer
from affectgpt.othertools import rewards
from affectgpt.runtime import InputError, MissingLibrary
from affectgpt.schema import Sample, write_jsonl
from tests.annotate.conftest import write_sound
from tests.data.conftest import write_clip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """A clip with sound in a file of its own, a silent one whose subtitle holds a tag, and one without a file."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a.mp4", seed=0)
    write_clip(folder / "b.mp4", seed=1, sound=False)
    write_sound(folder / "a.wav", np.zeros(1600))
    both = "The corners of the mouth are raised. The voice is bright. The person seems happy."
    other = "The brows are lowered. The voice is loud. The person seems angry."
    write_jsonl(
        folder / "m.jsonl",
        [
            Sample("a", "a.mp4", "a.wav", subtitle="I see.", description=both, labels=("happy",), rejected="Odd."),
            Sample("b", "b.mp4", subtitle="A <video> tag", description=other, labels=("angry", "cross")),
            Sample("gone", "gone.mp4", description=other, labels=("angry",)),
        ],
    )
    return folder / "m.jsonl"


def export(manifest: Path, out: Path, *settings: str) -> list[dict]:
    """The rows that the command writes; one clip is missing, so its exit code is 1."""
    assert run("data", ["export", str(manifest), f"out={out}", *settings]) == 1
    return [json.loads(line) for line in (out / "affectgpt.jsonl").read_text().splitlines()]


def test_a_row_has_one_tag_for_each_file_and_the_target_of_a_training_stage(manifest, tmp_path, capsys):
    first, second = export(manifest, tmp_path, "to=ms-swift")
    assert first["videos"] == [str(manifest.parent / "a.mp4")]
    assert first["audios"] == [str(manifest.parent / "a.wav")]
    assert second["audios"] == []
    for row in (first, second):
        texts = "".join(message["content"] for message in row["messages"])
        assert texts.count("<video>") == len(row["videos"])
        assert texts.count("<audio>") == len(row["audios"])
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert 'The person says: "I see."' in first["messages"][0]["content"]
    assert "< video> tag" in second["messages"][0]["content"]
    assert first["messages"][1]["content"].endswith("The person seems happy.\nEmotions: happy")
    assert "voice" not in second["messages"][1]["content"], "its clip has no sound"
    assert "left out 'gone'" in capsys.readouterr().err


def test_a_model_that_hears_nothing_gets_no_sound_and_no_statement_about_it(manifest, tmp_path):
    first, _ = export(manifest, tmp_path, "to=ms-swift", "sound=false")
    assert first["audios"] == []
    assert "voice" not in first["messages"][1]["content"]
    assert (
        "voice"
        in export(manifest, tmp_path, "to=ms-swift", "sound=false", "targets=complete")[0]["messages"][1]["content"]
    )


def test_llamafactory_gets_the_same_messages_and_an_entry_that_names_the_columns(manifest, tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    rows = export(manifest, tmp_path, "to=llamafactory")
    swift = export(manifest, tmp_path / "swift", "to=ms-swift")
    assert [row["messages"] for row in rows] == [row["messages"] for row in swift]
    index = json.loads((tmp_path / "dataset_info.json").read_text())
    assert index["mine"] == {"file_name": "mine.json"}
    assert index["affectgpt"]["columns"] == {name: name for name in ("messages", "videos", "audios")}
    assert "ranking" not in index["affectgpt"]


@pytest.mark.parametrize(("text", "reason"), [('{"mine": {', "not JSON"), ("[]", "expected an object, found list")])
def test_a_damaged_index_is_named_before_anything_is_written(manifest, tmp_path, capsys, text, reason):
    (tmp_path / "dataset_info.json").write_text(text)
    assert run("data", ["export", str(manifest), f"out={tmp_path}", "to=llamafactory"]) == 2
    assert f"{tmp_path / 'dataset_info.json'}: {reason}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_info.json"]
    assert (tmp_path / "dataset_info.json").read_text() == text


def test_pairs_are_those_of_people_and_those_made_from_clues(manifest, tmp_path):
    settings = ("task=description", "pairs=[judged,deleted]")
    judged, made = export(manifest, tmp_path / "swift", "to=ms-swift", *settings)
    assert judged["rejected_response"] == "Odd."
    assert made["rejected_response"] != made["messages"][1]["content"]
    rows = export(manifest, tmp_path, "to=llamafactory", *settings)
    assert [row["rejected"]["content"] for row in rows] == [judged["rejected_response"], made["rejected_response"]]
    assert [row["chosen"] for row in rows] == [judged["messages"][1], made["messages"][1]]
    assert [len(row["messages"]) for row in rows] == [1, 1]
    assert json.loads((tmp_path / "dataset_info.json").read_text())["affectgpt"]["ranking"] is True
    assert [row["id"] for row in export(manifest, tmp_path, "to=ms-swift", "task=description", "pairs=[deleted]")] == [
        "b"
    ]


def test_a_manifest_beside_data_is_refused(manifest, tmp_path, capsys):
    assert run("data", ["export", str(manifest), "to=ms-swift", f"out={tmp_path}", "data=ovmerd"]) == 2
    assert "or data=, not both; found data=ovmerd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["to=trl"], r"to is 'trl'; expected one of \['ms-swift', 'llamafactory', 'lmms-eval'"),
        (["to=ms-swift", "targets=all"], "targets is 'all'; expected one of"),
        (["to=ms-swift", "pairs=[best]"], r"pairs has \['best'\]; expected some of"),
        (["to=ms-swift", "task=fixed"], "nothing to write: no clip has a text for task fixed in 'en'"),
        (["to=ms-swift", "data=ovmerd", "use=coarse"], r"use is 'coarse'; data=ovmerd has \['fine', 'test'\]"),
    ],
)
def test_what_cannot_be_written_is_refused(manifest, tmp_path, capsys, settings, message):
    given = settings if any(each.startswith("data=") for each in settings) else [str(manifest), *settings]
    assert run("data", ["export", f"out={tmp_path}", *given]) == 2
    assert re.search(message, capsys.readouterr().err)


# ---- rewards ---------------------------------------------------------------------------------------------------------


class FakeOrm:
    """The base class of rewards as ms-swift 4.6 has it."""

    def __init__(self, args=None, **kwargs):
        self.args = args


@pytest.fixture
def orms(monkeypatch) -> dict[str, type]:
    module = types.SimpleNamespace(ORM=FakeOrm, orms={"format": FakeOrm})
    monkeypatch.setitem(sys.modules, "swift", types.SimpleNamespace(rewards=module))
    monkeypatch.setitem(sys.modules, "swift.rewards", module)
    return module.orms


def test_registered_rewards_give_what_our_reward_stage_gives(manifest, tmp_path, orms):
    columns = {"affectgpt": [row["affectgpt"] for row in export(manifest, tmp_path, "to=ms-swift")]}
    runpy.run_path(str(tmp_path / "rewards.py"))
    assert set(orms) == {"format", *(f"affectgpt_{name}" for name in rewards.NAMES)}
    answers = ["The mouth smiles.\nEmotions: happy", "The voice is loud.\nEmotions: angry, sad"]
    attempts = [rewards.attempt_of(facts, text) for facts, text in zip(columns["affectgpt"], answers, strict=True)]
    assert [each.truth for each in attempts] == [("happy",), ("angry", "cross")]
    assert attempts[1].shown == {"visual", "lexical"}
    for name in rewards.NAMES:
        reward = orms[f"affectgpt_{name}"](args=None)
        given = reward(answers, trainer_state=None, **columns)
        assert given == Scorer().reward(name, attempts), name
        assert type(reward).__name__ == f"affectgpt_{name}"
    assert orms["affectgpt_wheel"]()(answers, **columns)[0] == 1
    assert orms["affectgpt_format"]()(answers, is_truncated=[True, False], **columns) == [0, 1]


def test_rows_without_our_column_and_a_missing_tool_are_named(orms, monkeypatch):
    rewards.register()
    with pytest.raises(InputError, match="have no column 'affectgpt', only \\['solution'\\]; write them with"):
        orms["affectgpt_wheel"]()(["happy"], solution=["happy"])
    monkeypatch.setitem(sys.modules, "swift.rewards", None)
    with pytest.raises(MissingLibrary, match="pip install ms-swift"):
        rewards.register()
