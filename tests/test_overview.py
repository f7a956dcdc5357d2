"""The list of runs and what a run has written so far, from folders as training and scoring leave them."""

import json
import os
import subprocess
import sys

import pytest

from affectgpt.cli import run as run_command
from affectgpt.journal import append_rows
from affectgpt.journal.locks import held
from affectgpt.runs import RunRecord
from affectgpt.runs.overview import list_runs, table
from affectgpt.runs.watch import (
    Rollouts,
    curves,
    generation_steps,
    generations_over_steps,
    read_generations,
)
from affectgpt.runtime import InputError, NotFound
from affectgpt.schema import Prediction, write_jsonl

CONFIG = {"stage": {"epochs": 2, "iterations_per_epoch": 5}, "model": {"name": "demo"}, "data": {"name": "emer"}}


@pytest.fixture
def runs(tmp_path):
    """A finished run with two evaluations, a run that was killed, and a damaged record."""
    RunRecord.start(tmp_path / "b-coarse", kind="train coarse", config=CONFIG).finish(
        "finished", best_validation_score=0.5, steps=10
    )
    for name, score in (("eval-best", 0.4), ("eval-last", 0.3)):
        folder = tmp_path / "b-coarse" / name
        config = {"checkpoint": "b-coarse/best", "references": "data/test.csv"}
        RunRecord.start(folder, kind="eval", config=config).finish("finished", f_s=score, n=7)
    RunRecord.start(tmp_path / "实验", kind="train fine", config=CONFIG)
    append_rows(tmp_path / "实验" / "metrics.jsonl", [{"step": 2, "loss": 2.0}, {"step": 4, "eval_score": 0.25}])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text("{")
    checkpoint = tmp_path / "b-coarse" / "checkpoint-10"
    RunRecord.start(checkpoint, kind="train coarse", config={})  # part of a run, not a run
    return tmp_path


def test_every_run_is_listed_with_its_evaluations_after_it(runs):
    found = {run.name: run for run in list_runs(runs)}
    assert list(found)[-4:] == ["b-coarse", "b-coarse/eval-best", "b-coarse/eval-last", "实验"]
    assert len(found) == 5
    coarse, test, killed = found["b-coarse"], found["b-coarse/eval-best"], found["实验"]
    assert (coarse.stage, coarse.data, coarse.model) == ("coarse", "emer", "demo")
    assert (coarse.score, coarse.score_of, coarse.steps, coarse.planned_steps) == (0.5, "validation", 10, 10)
    assert (test.score, test.score_of, test.n, test.data) == (0.4, "test", 7, "test.csv")
    assert (killed.status, killed.score, killed.steps, killed.planned_steps) == ("unfinished", 0.25, 4, 10)
    assert found["odd"].status == "unreadable"
    assert "not a run record" in table(list_runs(runs))


def test_a_run_that_a_process_holds_is_running(runs):
    with held(runs / "实验" / ".lock", what="实验 is being trained"):
        assert {run.name: run.status for run in list_runs(runs)}["实验"] == "running"


def test_the_command_prints_a_table_or_json_and_loads_no_torch(runs):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "affectgpt.runs", str(runs), "--json"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert [row["name"] for row in json.loads(result.stdout)].count("实验") == 1
    assert "torch" not in {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}


def test_runs_of_a_status_and_mistakes_in_settings(runs, capsys):
    assert run_command("runs", [str(runs), "status=finished"]) == 0
    shown = capsys.readouterr().out
    assert "eval-best" in shown
    assert "实验" not in shown
    assert run_command("runs", [str(runs), "status=odd"]) == 2
    assert "'unfinished'" in capsys.readouterr().err
    assert run_command("runs", [str(runs / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_curves_are_finite_and_the_last_value_of_a_step_counts(tmp_path):
    append_rows(
        tmp_path / "metrics.jsonl",
        [
            {"step": 2, "loss": 3.0},
            {"step": 2, "loss": 2.0, "name": "x"},
            {"step": 4, "loss": float("nan")},
            {"step": 1, "loss": 5},
        ],
    )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # being written
    found = curves(tmp_path)
    assert list(found) == ["loss"]
    assert (found["loss"].steps, found["loss"].values) == ((1, 2), (5.0, 2.0))
    assert curves(tmp_path, ["eval_score"]) == {}
    assert curves(tmp_path / "new") == {}


def test_answers_of_a_clip_over_steps(tmp_path):
    for step in (20, 100):
        rows = [Prediction("a", f"at {step}"), Prediction("b", "other")]
        write_jsonl(tmp_path / "generations" / f"step-{step:06d}.jsonl", rows)
    assert generation_steps(tmp_path) == [20, 100]
    assert [row.id for row in read_generations(tmp_path, 20)] == ["a", "b"]
    assert {step: row.text for step, row in generations_over_steps(tmp_path, "a").items()} == {
        20: "at 20",
        100: "at 100",
    }
    with pytest.raises(NotFound, match=r"step 30; it has those of \[20, 100\]"):
        read_generations(tmp_path, 30)


def test_only_rollouts_that_were_appended_are_read_and_a_file_written_anew_from_its_start(tmp_path, monkeypatch):
    log, file = Rollouts(tmp_path), tmp_path / "rollouts.jsonl"
    parsed = []
    monkeypatch.setattr(
        Rollouts, "_parsed", lambda *given, real=Rollouts._parsed: parsed.append(given[1]) or real(*given)
    )
    assert (log.steps(), log.clips(1)) == ([], (0, {}))
    first = [{"step": 1, "id": name, "answer": n} for name in "abc" for n in (0, 1)]
    append_rows(file, first)
    assert log.steps() == [1]
    assert log.clips(1, offset=1, limit=1) == (3, {"b": first[2:4]})
    parsed.clear()
    append_rows(file, [{"step": 2, "id": "a"}])
    with file.open("ab") as still:  # another process is writing this line
        still.write(b'{"step": 3, "id"')
    assert log.steps() == [1, 2]
    assert len(parsed) == 1
    file.unlink()
    append_rows(file, [{"step": 1, "id": "z"}, *first])
    assert log.steps() == [1]
    assert list(log.clips(1)[1]) == ["z", "a", "b", "c"]
    append_rows(file, ["odd"])
    for _ in range(2):
        with pytest.raises(InputError, match=r"rollouts.jsonl, byte \d+: expected an object with a step and an id"):
            log.steps()
