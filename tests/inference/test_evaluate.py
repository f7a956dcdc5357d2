"""eval.py as a user runs it: on a checkpoint of a tiny run, and on predictions files."""

import json
import subprocess
import sys

import pytest

from affectgpt import config as conf
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.runtime import UserError


def test_evaluating_a_checkpoint_equals_scoring_its_predictions_file(trained, tmp_path, capsys):
    config = conf.EvalConfig(checkpoint=str(trained[1]), device="cpu", n_bootstrap=50, data=trained[0].data)
    config.generate = conf.GenerateConfig(max_new_tokens=6)
    config.paths = trained[0].paths
    config.out = str(tmp_path / "eval")
    assert run_evaluation(config) == 0
    assert "level 1" in capsys.readouterr().out
    first = json.loads((tmp_path / "eval" / "report.json").read_text())
    again = conf.EvalConfig(
        predictions=str(tmp_path / "eval" / "predictions.jsonl"), n_bootstrap=50, data=trained[0].data
    )
    again.out = str(tmp_path / "again")
    run_evaluation(again)
    assert json.loads((tmp_path / "again" / "report.json").read_text()) == first
    assert first["counts"]["references"] == 3


def test_any_predictions_file_is_scored_against_a_csv(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(
        '{"id": "a", "text": "The emotional state is happy."}\n{"id": "b", "text": "?"}\n'
    )
    (tmp_path / "r.csv").write_text("name,openset\na,\"['joyful']\"\nb,[sad]\nc,[angry]\n")
    config = conf.EvalConfig(predictions=str(tmp_path / "p.jsonl"), references=str(tmp_path / "r.csv"), n_bootstrap=20)
    run_evaluation(config)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["counts"]["missing"], report["counts"]["unparsed"]) == (1, 1)
    assert report["primary"]["precision"] > 0


def test_checkpoint_and_predictions_together_are_refused():
    with pytest.raises(UserError, match="not both"):
        run_evaluation(conf.EvalConfig(predictions="p.jsonl", checkpoint="x"))


def test_scoring_a_predictions_file_loads_no_torch(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "a", "text": "The emotional state is happy."}\n')
    (tmp_path / "r.csv").write_text("name,openset\na,['joyful']\n")
    code = f"""
import sys
from affectgpt.config import EvalConfig
from affectgpt.inference.evaluate import run_evaluation
run_evaluation(EvalConfig(predictions={str(tmp_path / "p.jsonl")!r}, references={str(tmp_path / "r.csv")!r}))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
