"""wandb and TensorBoard show the numbers of every command, and an offline run holds all of its media."""

import json
import time

import numpy as np
import pytest

from affectgpt import config as conf
from affectgpt.cli import run as run_command
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.runs.boards import TensorBoard, WandbBoard, boards, start_wandb, tensorboard_writer
from affectgpt.runtime import UserError
from tests.annotate.toy import record, write_records

pytest.importorskip("tensorboard")
EVIL = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def logged(run, expected=b"test/level 1 mean/F_S", timeout_s=60):
    """The bytes of an offline run once they hold `expected`: a process of wandb writes them after the run has ended."""
    path, deadline = next(run.glob("*.wandb")), time.monotonic() + timeout_s
    while expected not in (data := path.read_bytes()):
        assert time.monotonic() < deadline, data[-200:]
        time.sleep(0.05)
    return data


def evaluation(folder, **logging):
    rows = [{"id": "a", "text": "Emotions: happy"}, {"id": EVIL[:8], "text": "Emotions: sad"}]
    for name in ("one", "two"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows[0]["text"] = "Emotions: angry"
    truth = [{"id": "a", "video": "a.mp4", "labels": ["joyful"]}, {"id": EVIL[:8], "video": "b.mp4", "labels": ["sad"]}]
    (folder / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truth))
    config = conf.EvalConfig(
        predictions=str(folder / "one.jsonl"), references=str(folder / "truth.jsonl"), n_bootstrap=40
    )
    config.out = str(folder / "eval")
    config.logging = conf.LoggingConfig(**logging)
    return config


def test_an_evaluation_is_shown_on_both_boards(tmp_path):
    run_evaluation(evaluation(tmp_path, wandb="offline", tensorboard=True, tags=["mine"], group="exp 7"))
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    shown = scalars(tmp_path / "eval" / "tensorboard" / "eval")
    assert shown["test/level 1 mean/F_S"] == pytest.approx(report["primary"]["f_score"])
    assert shown["test/level 1 mean/low"] == pytest.approx(report["primary"]["interval"]["low"])
    assert shown["test/missing"] == 0
    (run,) = (tmp_path / "eval" / "wandb").glob("offline-run-*")
    data = logged(run)
    assert all(text in data for text in (b"mine", b"exp 7", b"seed 42"))
    (table,) = (run / "files" / "media" / "html").rglob("*.html")
    assert "&lt;script" in table.read_text()
    assert "<script" not in table.read_text()


def test_a_comparison_shows_its_tests(tmp_path):
    config = evaluation(tmp_path, tensorboard=True)
    config.predictions = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    run_evaluation(config)
    shown = scalars(tmp_path / "eval" / "tensorboard" / "compare")
    test = json.loads((tmp_path / "eval" / "comparison.json").read_text())["tests"][0]
    assert shown["compare/one - two/difference"] == pytest.approx(test["difference"])
    assert shown["compare/one - two/p"] == pytest.approx(test["p_value"])


def test_all_media_of_an_offline_run_are_files_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "elsewhere"))
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    about = {"job": "train fine", "group": "fine", "tags": ["fine"], "config": {"api_key": "s3cret"}}
    board = WandbBoard(start_wandb(conf.LoggingConfig(wandb="offline"), tmp_path, **about))
    (tmp_path / "clip.mp4").write_bytes(b"video")
    board.rows("generations", ["id"], [["a"]], 3)
    board.pictures("generations/frames", {"a": picture}, 3)
    board.videos("generations/videos", {"a": str(tmp_path / "clip.mp4"), "b": "gone.mp4", "c": "c.avi"}, 3)
    board.figures({"train/loss": 1.0}, 3)
    board.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    media = sorted(path.suffix for path in (run / "files" / "media").rglob("*") if path.is_file())
    assert media == [".html", ".mp4", ".png"]
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]
    data = logged(run, b"train/loss")
    assert b"artifacts/staging" not in data
    assert b"s3cret" not in data


def test_tensorboard_shows_texts_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tensorboard_writer()(str(tmp_path)))
    board.rows("generations", ["id", "text"], [["a", EVIL]], 5)
    board.pictures("generations/frames", {"a": np.zeros((8, 8, 3), dtype=np.uint8)}, 5)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == ["generations/frames/a"]
    text = events.Tensors("generations/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "&lt;script&gt;" in text


def test_an_unknown_mode_is_named_and_nothing_is_shown_by_default(tmp_path):
    about = {"job": "eval", "group": "g", "config": {}}
    with (
        pytest.raises(UserError, match=r"logging\.wandb=of: expected one of"),
        boards(conf.LoggingConfig(wandb="of"), tmp_path, **about),
    ):
        pass
    with boards(conf.LoggingConfig(), tmp_path, **about) as shown:
        assert shown == []
    assert not list(tmp_path.iterdir())


def test_an_annotation_report_is_shown_with_its_plots(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pytest.importorskip("matplotlib")
    folder = write_records(tmp_path / "emer", [record("a"), record("b", labels=("confused",))])
    assert run_command("annotate", ["report", str(folder), "logging.tensorboard=true"]) == 0
    shown = scalars(folder / "report" / "tensorboard" / "annotate")
    assert (shown["annotate/records"], shown["annotate/verdict/keep"]) == (2, 2)
    events = EventAccumulator(str(folder / "report" / "tensorboard" / "annotate"))
    events.Reload()
    assert "annotate/labels" in events.Tags()["images"]


def test_the_table_of_a_study_is_shown(tmp_path):
    score = {"avg": 0.5, "precision": 0.6, "recall": 0.4, "f_score": 0.48, "interval": None, "n": 9}
    for number, (variant, stage2) in enumerate((("random", True), ("pretrained", False))):
        cell = {"cell": f"c{number}", "variant": variant, "stage1_epochs": 2, "stage2": stage2, "score": score}
        folder = tmp_path / "table4" / "cells" / f"c{number}"
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(cell))
    assert run_command("study", [str(tmp_path / "table4"), "logging.tensorboard=true"]) == 0
    shown = scalars(tmp_path / "table4" / "tensorboard" / "study")
    assert shown["study/random, stage 1 2 epochs, stage 2 best/f_score"] == pytest.approx(0.48)
    assert "study/pretrained, stage 1 2 epochs, stage 2 best/f_score" not in shown  # not trained yet
