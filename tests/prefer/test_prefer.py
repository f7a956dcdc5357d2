"""The four strategies on a made EmoPrefer folder: rows in order, resumed after a kill, and nothing lost uncounted."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from affectgpt.cli import run as cli
from affectgpt.config import PreferConfig
from affectgpt.metrics.preference import EXCHANGED
from affectgpt.prefer.run import run
from affectgpt.runtime import UserError
from tests.chat.chat_server import ChatServer
from tests.models import tiny

ROWS = [("v", "He is glad.", "He is sad."), ("w", "She is calm.", "She is glad."), ("v", "He is sad.", "He is calm.")]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def mer(manifest, tmp_path_factory) -> Path:
    """A folder as MER2026's: three rows about two clips, of which one has sound."""
    folder = tmp_path_factory.mktemp("mer")
    (folder / "video").mkdir()
    for name, clip in (("v", "clip9"), ("w", "clip11")):
        shutil.copy(manifest.parent / f"{clip}.mp4", folder / "video" / f"{name}.mp4")
    with (folder / "track3_candidate.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "a1", "a2"), *ROWS])
    with (folder / "track3_emoprefer.csv").open("w", newline="") as file:
        judged = [(*row, choice) for row, choice in zip(ROWS, ("a1", "a2", "same"), strict=True)]
        csv.writer(file).writerows([("name", "a1", "a2", "preference"), *judged])
    (folder / "subtitle_chieng.csv").write_text("name,chinese,english\nv,我没事,I am fine.\n", encoding="utf-8")
    return folder


def prompt_of(body: dict) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def likes_glad(body: dict) -> str:
    """Prefers the description that says glad; describes and reasons where it is asked for that."""
    text = prompt_of(body)
    if "a1:" not in text:
        return "The person smiles.\nEmotions: glad"
    if "step by step" in text and len(body["messages"]) == 1:
        return "a1 and a2 differ."
    first, second = text.partition("a1:")[2].split("a2:")[:2]
    return "a1" if "glad" in first else "Option A2." if "glad" in second else "Neither."


def settings(mer, tmp_path, **changes) -> PreferConfig:
    return PreferConfig(**{"folder": str(mer), "out": str(tmp_path / "out.csv"), "device": "cpu", **changes})


def read(path) -> list[dict]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("strategy", ["s1", "s2", "s3", "s4"])
def test_every_strategy_writes_the_rows_in_order_and_submit_takes_them(mer, tmp_path, strategy, capsys):
    with ChatServer(likes_glad) as server:
        config = settings(mer, tmp_path, strategy=strategy, model="m", base_url=server.url)
        if strategy in ("s3", "s4"):
            config.judge, config.judge_base_url = "j", server.url
        assert run(config) == 0
        asked = [body["model"] for body in server.requests]
        turns = [len(body["messages"]) for body in server.requests]
    rows = read(config.out)
    assert [(row["name"], row["a1"], row["a2"]) for row in rows] == ROWS
    assert [row["preference"] for row in rows] == ["a1", "a2", "same"]
    assert [row["how"] for row in rows] == ["exact", "first", "none"]
    assert "1 choices read from longer answers, 1 answers without a choice and 0 rows not" in capsys.readouterr().out
    # Two clips are described once each, whatever the number of their rows.
    expected = {"s1": ["m"] * 3, "s2": ["m"] * 5, "s3": ["m"] * 2 + ["j"] * 3, "s4": ["m"] * 2 + ["j"] * 6}
    assert sorted(asked) == sorted(expected[strategy])
    assert turns.count(3) == (3 if strategy == "s4" else 0)
    table = mer / "track3_candidate.csv"
    assert cli("submit", ["track=3", config.out, str(tmp_path / "a.zip"), f"candidates={table}"]) == 0
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        lines = archive.read("answer.csv").decode().splitlines()
    answered = [",".join((*row, choice)) for row, choice in zip(ROWS, ("a1", "a2", "same"), strict=True)]
    assert lines == ["name,a1,a2,preference", *answered]


def test_the_model_sees_clip_subtitle_and_both_descriptions_in_s1_and_no_clip_after_describing(mer, tmp_path):
    with ChatServer(likes_glad) as server:
        run(settings(mer, tmp_path, strategy="s1", model="m", base_url=server.url))
        seen = [body for body in server.requests if "He is glad." in prompt_of(body)]
        run(settings(mer, tmp_path, strategy="s2", model="m", base_url=server.url, out=str(tmp_path / "s2.csv")))
        told = [body for body in server.requests if "cannot see the clip" in prompt_of(body)]
    assert {part["type"] for part in seen[0]["messages"][0]["content"]} == {"image_url", "text"}
    assert "I am fine." in prompt_of(seen[0])
    assert len(told) == 3
    assert all(isinstance(body["messages"][0]["content"], str) for body in told)
    assert "Description: The person smiles." in prompt_of(told[0])


def test_a_killed_run_asks_only_for_the_rest(mer, tmp_path):
    with ChatServer(likes_glad) as server:
        config = settings(mer, tmp_path, strategy="s2", model="m", base_url=server.url)
        run(config)
        whole, steps = Path(config.out).read_text(), tmp_path / "out.csv.steps"
        lines = (steps / "choices.jsonl").read_text().splitlines()
        (steps / "choices.jsonl").write_text(lines[0] + "\n" + lines[1][:9])
        Path(config.out).unlink()
        n = server.n_answered
        run(config)
        assert server.n_answered == n  # what was answered is stored
        assert Path(config.out).read_text() == whole
        with pytest.raises(UserError, match=r"made with other settings \(lang\)"):
            run(settings(mer, tmp_path, strategy="s2", model="m", base_url=server.url, lang="zh"))


def test_a_row_that_the_server_refuses_is_counted_and_not_silently_same(mer, tmp_path, capsys):
    refused = {"status": 400, "value": {"error": {"message": "no"}}}
    with ChatServer(likes_glad, lambda body: refused if "He is glad." in prompt_of(body) else None) as server:
        config = settings(mer, tmp_path, strategy="s1", model="m", base_url=server.url)
        with pytest.raises(UserError, match="1 of 3 requests"):
            run(config)
        assert not Path(config.out).exists()
        assert run(settings(mer, tmp_path, strategy="s1", model="m", base_url=server.url, on_bad="skip")) == 3
    assert [row["how"] for row in read(config.out)] == ["not answered", "first", "none"]
    assert "1 rows not answered" in capsys.readouterr().out
    assert "HTTP 400" in (tmp_path / "out.csv.steps" / "bad_samples.jsonl").read_text()


def test_reversed_answers_are_scored_for_swap_consistency(mer, tmp_path, capsys):
    with ChatServer(likes_glad) as server:
        shared = {"strategy": "s1", "model": "m", "base_url": server.url, "file": "track3_emoprefer.csv"}
        plain, swapped = tmp_path / "plain.csv", tmp_path / "swapped.csv"
        run(settings(mer, tmp_path, **shared, out=str(plain)))
        run(settings(mer, tmp_path, **shared, out=str(swapped), reversed=True))
    pairs = list(zip(read(plain), read(swapped), strict=True))
    assert all((one["a1"], one["a2"]) == (other["a2"], other["a1"]) for one, other in pairs)
    assert all(other["preference"] == EXCHANGED[one["preference"]] for one, other in pairs)
    references, out = mer / "track3_emoprefer.csv", tmp_path / "scores.json"
    words = ["score", str(plain), f"references={references}", f"reversed={swapped}", f"out={out}"]
    assert cli("prefer", words) == 0
    shown = capsys.readouterr().out
    assert "swap consistency: 100.00 %" in shown
    assert "3 of 3 rows, 1 of them same, or without a choice, in both orders" in shown
    scores = json.loads(out.read_text())["plain"]
    assert scores["two-class"]["weighted_f1"] == scores["three-class"]["accuracy"] == 1
    assert (scores["two-class"]["n"], scores["three-class"]["n"], scores["true_same"]) == (2, 3, 1)
    assert scores["read"] == {"exact": 1, "beginning": 0, "first": 1, "none": 1}
    models = tmp_path / "models.csv"
    models.write_text("name,a1,a2\nv,M,N\nw,N,M\nv,N,M\n", "utf-8")
    assert cli("prefer", ["score", str(plain), f"references={references}", f"names={models}", f"out={out}"]) == 0
    ranking = json.loads(out.read_text())["ranking"]
    assert ranking["people"]["strengths"] == ranking["plain"]["strengths"] == {"M": 1.0, "N": 0.0}
    assert "by people, no chain of wins leads from N to M" in capsys.readouterr().out
    assert cli("prefer", ["score", str(plain), f"reversed={plain}"]) == 2
    assert "after exchanging a1 and a2" in capsys.readouterr().err


def test_given_descriptions_need_no_clip_and_one_that_lacks_is_named(mer, tmp_path):
    given, alone = tmp_path / "p.jsonl", tmp_path / "alone"
    given.write_text("".join(json.dumps({"id": name, "text": "glad"}) + "\n" for name in "vw"))
    alone.mkdir()
    shutil.copy(mer / "track3_candidate.csv", alone)
    with ChatServer(likes_glad) as server:
        judge = {"strategy": "s3", "judge": "j", "judge_base_url": server.url, "descriptions": str(given)}
        assert run(settings(alone, tmp_path, **judge)) == 0
        assert [row["preference"] for row in read(tmp_path / "out.csv")] == ["a1", "a2", "same"]
        given.write_text(json.dumps({"id": "v", "text": "glad"}) + "\n")
        with pytest.raises(UserError, match=r"row 2: no description of 'w' \(1 of 3 rows\)"):
            run(settings(alone, tmp_path, **judge, out=str(tmp_path / "x.csv")))
    for name, status in (("out", "finished"), ("x", "failed")):
        assert json.loads((tmp_path / f"{name}.csv.steps" / "run.json").read_text())["status"] == status


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "give model= or checkpoint="),
        ({"strategy": "s5"}, "strategy is 's5'"),
        ({"model": "m", "checkpoint": "c"}, "not both"),
        ({"model": "m", "strategy": "s3"}, "needs judge="),
        ({"model": "m", "judge": "j"}, "takes no judge="),
        ({"model": "m", "descriptions": "p.jsonl"}, "descriptions= is for s2 to s4"),
        ({"model": "m", "out": None}, "out= is missing"),
        ({"model": "answers.jsonl"}, "descriptions=answers.jsonl"),
    ],
)
def test_contradicting_settings_are_named(mer, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        run(settings(mer, tmp_path, **changes))


def test_a_model_of_ours_answers_s1_and_s2_and_describes_for_a_judge(mer, tmp_path, checkpoint):
    for strategy in ("s1", "s2"):
        config = settings(
            mer, tmp_path, strategy=strategy, checkpoint=str(checkpoint), max_new_tokens=4,
            max_answer_tokens=3, out=str(tmp_path / f"{strategy}.csv"),
        )  # fmt: skip
        assert run(config) == 0
        assert [(row["name"], row["a1"], row["a2"]) for row in read(config.out)] == ROWS
        steps = Path(f"{config.out}.steps")
        rows = [json.loads(line) for line in (steps / "choices.jsonl").read_text().splitlines()]
        assert [row["id"] for row in rows] == ["1", "2", "3"]
        assert ("frames" in rows[0].get("modalities", ())) == (strategy == "s1")
        assert (steps / "descriptions.jsonl").exists() == (strategy == "s2")
    with ChatServer(likes_glad) as server:
        judge = {"strategy": "s3", "judge": "j", "judge_base_url": server.url, "max_new_tokens": 4}
        assert run(settings(mer, tmp_path, **judge, checkpoint=str(checkpoint))) == 0
    assert [row["preference"] for row in read(tmp_path / "out.csv")] == ["a1", "a2", "same"]


@pytest.fixture(scope="module")
def checkpoint(base_models, tmp_path_factory) -> Path:
    """An untrained tiny model in the form of a trained one."""
    from affectgpt.models import build, save_trained

    folder = tmp_path_factory.mktemp("own") / "checkpoint"
    save_trained(*build(tiny.tiny_spec(base_models)), folder)
    return folder
