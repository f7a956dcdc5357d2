"""The study: a grid of models scored in both languages; a new candidate costs only its own calls."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from affectgpt import cli
from affectgpt.annotate import study
from affectgpt.cli import compose, composed
from affectgpt.runtime import UserError
from tests.annotate.conftest import served, settings, write_clips
from tests.chat.chat_server import ChatServer

N = 3
WORDS = {"good": "happy", "bad": "angry"}
CHINESE = {"happy": "高兴", "angry": "愤怒"}


def answer(body: dict) -> str:
    """The name of a model decides its answer: its clue contains the emotion, and the reader repeats it."""
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    content = body["messages"][0]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    if "labels" in fields:
        heard = [word for word in (*CHINESE, *CHINESE.values()) if word in text]
        return json.dumps({"labels": heard[:1], "confidence": 0.5})
    word = next((word for word in CHINESE if word in text), WORDS.get(body["model"].split("-")[0], "happy"))
    values = {"translation": f"她很{CHINESE[word]}"}
    made = {key: values.get(key, f"She sounds {word}.") for key in fields if key != "evidence"}
    return json.dumps({**made, **({"evidence": []} if "evidence" in fields else {})})


def asked_for(bodies: list[dict]) -> Counter:
    """Calls by model and step."""
    return Counter((body["model"], body["response_format"]["json_schema"]["name"]) for body in bodies)


@pytest.fixture
def clips(tmp_path) -> Path:
    """Three audio clips, all labelled happy."""
    manifest = write_clips(tmp_path / "clips", N)
    (tmp_path / "references.csv").write_text("id,labels\n" + "".join(f"clip{n:05d},happy\n" for n in range(N)))
    return manifest


def run(clips: Path, url: str, *columns: str) -> tuple[int, list[dict]]:
    """python -m affectgpt.annotate study ...; exit code and rows of study.csv"""
    out = clips.parent.parent / "study"
    common = settings(clips, out, *served(url))
    chosen = ["video=[none]", f"references={clips.parent.parent / 'references.csv'}", *columns]
    code = cli.run("annotate", ["study", *common, *chosen])
    return code, list(csv.DictReader((out / "study.csv").open())) if (out / "study.csv").is_file() else []


def test_the_table_scores_every_choice_of_models_in_both_languages(clips, capsys):
    with ChatServer(answer) as server:
        code, rows = run(
            clips, server.url, "audio=[openai:good-ear,openai:bad-ear]", "merge=[openai:m]", "translate=[openai:t]"
        )
        assert code == 0
    by_ear = {row["audio"]: row for row in rows}
    for lang in ("en", "zh"):
        assert float(by_ear["openai:good-ear"][f"Avg_{lang}"]) == 100
        assert float(by_ear["openai:bad-ear"][f"Avg_{lang}"]) < 50
        assert float(by_ear["openai:good-ear"][f"F_S_{lang}"]) == 100
    assert {row["missing"] for row in rows} == {"0"}
    assert asked_for(server.requests) == {
        ("good-ear", "acoustic"): N,
        ("bad-ear", "acoustic"): N,
        ("m", "disambiguate"): 2 * N,
        ("m", "merge"): 2 * N,
        ("t", "translate"): 2 * N,
        ("toy", "labels"): 4 * N,
    }
    said = capsys.readouterr().out
    assert re.search(r"\nopenai:good-ear +none +openai:m +openai:t +100.00 ", said)
    assert f"calls {len(server.requests)};" in said
    text = (clips.parent.parent / "study" / "study.md").read_text()
    assert text.count("\n| openai:") == 2
    assert "Percent, one run; mean of the five wheels at level 1" in text


def test_a_new_candidate_costs_only_its_own_calls(clips):
    with ChatServer(answer) as server:
        first = ("audio=[openai:good-ear]", "merge=[openai:m]")
        run(clips, server.url, *first, "translate=[openai:t]")
        n_first = len(server.requests)
        assert n_first == N * (1 + 2 + 1 + 2)
        run(clips, server.url, *first, "translate=[openai:t]")
        assert len(server.requests) == n_first
        _, rows = run(clips, server.url, *first, "translate=[openai:t,openai:other]")
        new = Counter(
            (body["model"], body["response_format"]["json_schema"]["name"]) for body in server.requests[n_first:]
        )
    # The other translation is the same, so the reader's question about it has a stored answer.
    assert new == {("other", "translate"): N}
    assert [row["translate"] for row in rows] == ["openai:t", "openai:other"]
    assert [row["calls"] for row in rows] == ["0", str(N)]


def test_repeats_ask_again_and_give_a_deviation(clips):
    def moody(body: dict) -> str:
        model = "bad" if body.get("seed") == 1 else body["model"]
        return answer({**body, "model": model})

    with ChatServer(moody) as server:
        _, rows = run(
            clips, server.url, "audio=[openai:good-ear]", "merge=[openai:m]", "translate=[openai:t]", "repeats=2"
        )
        assert len(server.requests) == 2 * N * 6
    (row,) = rows
    assert 50 <= float(row["Avg_en"]) < 100
    assert float(row["Avg_en_std"]) > 0
    assert "±" in (clips.parent.parent / "study" / "study.md").read_text()


def test_a_study_runs_without_any_model(clips, capsys):
    with ChatServer(answer) as server:
        code = cli.run(
            "annotate",
            [
                "study",
                *settings(clips, clips.parent.parent / "study"),
                *("audio=[local,none]", "video=[local]", "merge=[local]", "translate=[local]"),
                f"references={clips.parent.parent / 'references.csv'}",
            ],
        )
        assert not server.requests
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("local  local  local  local")
    assert lines[2].startswith("none   local  local  local")
    nothing_left = lines[2].split()
    assert nothing_left[-3:] == ["3", "3", "0"]  # audio clips: without sound, no labels


def test_the_grid_leaves_out_choices_without_clues_and_reports_missing_columns(clips):
    one = {"x": None}
    cells = study.grid(
        {"audio": {"a": None, "none": None}, "video": {"v": None, "none": None}, "merge": one, "translate": one}
    )
    assert [(cell.chosen["audio"], cell.chosen["video"]) for cell in cells] == [
        ("a", "v"),
        ("a", "none"),
        ("none", "v"),
    ]
    assert len({cell.folder for cell in cells}) == 3
    with pytest.raises(UserError, match="merge= is missing"):
        study.grid({"audio": one, "video": one, "merge": {}, "translate": one})
    none = {"none": None}
    with pytest.raises(UserError, match="nothing is left to annotate with; name a model"):
        study.grid({"audio": none, "video": none, "merge": one, "translate": one})
    with pytest.raises(UserError, match="only audio and video can be left out"):
        study.grid({"audio": one, "video": one, "merge": {"none": None}, "translate": one})


def test_references_of_other_clips_are_an_error(clips, capsys):
    (clips.parent.parent / "references.csv").write_text("id,labels\nother,happy\n")
    code, _ = run(clips, "http://localhost:1/v1", "audio=[openai:a]", "merge=[openai:m]", "translate=[openai:t]")
    assert code == 2
    assert "has labels for none of the 3 clips, such as 'clip00000'" in capsys.readouterr().err


def test_a_candidate_names_kind_model_and_server():
    common = ["annotator=openai", "annotator.model=reader", "annotator.concurrency=3"]
    heard = composed.candidate("vllm:Qwen/Qwen2-Audio@http://a:8000/v1", "audio", common)
    assert (heard.kind, heard.model, heard.base_url) == ("openai", "Qwen/Qwen2-Audio", "http://a:8000/v1")
    assert (heard.sees, heard.concurrency) == (["sound"], 3)
    assert composed.candidate("local", "video", common).kind == "local"
    assert composed.candidate("none", "video", common) is None


def test_a_pipeline_is_reduced_to_the_steps_that_labels_need():
    given = compose("annotate", ["pipeline=ov_merd"]).pipeline.steps
    english = study.study_steps(given, ["visual"], translated=False)
    assert [step.name for step in english] == ["transcribe", "measure", "acoustic", "disambiguate", "merge", "labels"]
    assert all("visual" not in step.needs for step in english)
    assert english[1].options == {"without": ["visual"]}
    chinese = study.study_steps(given, [], translated=True)
    assert [step.name for step in chinese][-3:] == ["merge", "translate", "labels"]
    assert [step.annotator for step in chinese][-3:] == ["text", "translator", "reader"]
    with pytest.raises(UserError, match="merge and labels"):
        study.study_steps(compose("annotate", ["pipeline=s0"]).pipeline.steps, [], translated=False)
