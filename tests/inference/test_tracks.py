"""MER2026 from the tables as they come to the files that are sent: one command a step, on a made folder."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from affectgpt.cli import run
from affectgpt.models import build, save_trained
from tests.models import tiny

SIX = "candidates=[neutral,angry,happy,sad,worried,surprise]"
TRAINED = dict(zip("abcdefghij", ["sad", "happy"] * 5, strict=True))


@pytest.fixture(scope="module")
def mer(manifest, tmp_path_factory) -> Path:
    """A folder as MER2026's, with two candidates and ten labelled clips (links to small files)."""
    folder = tmp_path_factory.mktemp("mer2026")
    (folder / "video").mkdir()
    shutil.copy(manifest.parent / "clip9.mp4", folder / "video" / "v.mp4")
    shutil.copy(manifest.parent / "clip11.mp4", folder / "video" / "w.mp4")
    for name in TRAINED:
        (folder / "video" / f"{name}.mp4").symlink_to(folder / "video" / "v.mp4")
    (folder / "track1_track2_candidate.csv").write_text("name\nw\nv\n", "utf-8")
    (folder / "subtitle_chieng.csv").write_text("name,chinese,english\nv,我没事,I am fine.\n", "utf-8")
    with (folder / "track1_train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "discrete"), *TRAINED.items()])
    return folder


@pytest.fixture(scope="module")
def checkpoint(base_models, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("own") / "checkpoint"
    save_trained(*build(tiny.tiny_spec(base_models)), folder)
    return str(folder)


def infer(mer, checkpoint, out, *words) -> list[dict]:
    given = [f"folder={mer}", f"checkpoint={checkpoint}", f"out={out}", "device=cpu", "generate.max_new_tokens=24"]
    assert run("infer", [*given, *words]) == 0
    return [json.loads(line) for line in Path(out).read_text("utf-8").splitlines()]


CANDIDATES = ("format=candidates", "options.names=track1_track2_candidate.csv")


def test_track_1_predicts_the_listener_of_each_candidate(mer, checkpoint, tmp_path):
    out, sent = tmp_path / "p.jsonl", tmp_path / "track1.csv"
    words = (*CANDIDATES, "person=listener", "task=fixed", SIX, "generate.constrain=true")
    rows = infer(mer, checkpoint, out, *words)
    assert {row["person"] for row in rows} == {"listener"}
    assert json.loads((tmp_path / "p.jsonl.settings.json").read_text())["person"] == "listener"
    table = mer / "track1_track2_candidate.csv"
    assert run("submit", ["track=1", str(out), str(sent), f"candidates={table}"]) == 0
    with sent.open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["w", "v"]
    assert run("submit", ["track=1", str(sent), f"candidates={table}"]) == 0


def test_track_1_is_scored_on_the_split_that_training_leaves_out(mer, checkpoint, tmp_path):
    out = tmp_path / "val.jsonl"
    words = ("format=mer_onehot", "options.test_share=0.3", "split=test", "person=speaker", "task=fixed", SIX)
    rows = infer(mer, checkpoint, out, *words, "generate.constrain=true")
    assert len(rows) == 3
    score = ["benchmark=mer2026_cross", f"benchmark.folder={mer}", "benchmark.n_test=3", f"predictions={out}"]
    assert run("eval", score) == 0
    result = json.loads((tmp_path / "benchmark-mer2026_cross.json").read_text())
    assert (result["metric"], result["n"], result["details"]["missing"]) == ("weighted F1", 3, 0)
    right = sum(row["text"] == TRAINED[row["id"]] for row in rows)
    assert result["details"]["WAR"] == pytest.approx(right / 3)


def test_track_2_goes_from_the_list_of_candidates_to_the_zip(mer, checkpoint, tmp_path):
    out, sent = tmp_path / "p.jsonl", tmp_path / "answer.zip"
    rows = {row["id"]: row for row in infer(mer, checkpoint, out, *CANDIDATES, "task=labels")}
    assert rows["v"]["subtitle"] == "I am fine."
    table = mer / "track1_track2_candidate.csv"
    assert run("submit", ["track=2", str(out), str(sent), f"candidates={table}"]) == 0
    with zipfile.ZipFile(sent) as archive:
        lines = archive.read("answer.csv").decode().splitlines()
    assert [line.split(",")[0] for line in lines] == ["name", "w", "v"]
    assert run("submit", ["track=2", str(sent), f"candidates={table}"]) == 0


def test_a_format_takes_the_place_of_the_input(mer, capsys):
    assert run("infer", ["clip.mp4", "format=candidates", f"folder={mer}"]) == 2
    assert "format=candidates reads a data set; leave out" in capsys.readouterr().err
