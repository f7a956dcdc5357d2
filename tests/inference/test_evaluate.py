"""eval.py as a user runs it: on a checkpoint of a tiny run, and on predictions files."""

import json
import subprocess
import sys

import pytest

from affectgpt import config as conf
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.metrics.clip_scores import read_scores
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


def test_a_benchmark_asks_its_own_questions_and_scores_the_answers(trained, manifest, tmp_path, capsys):
    row = {"problem": "Is she sad?", "problem_type": "judge", "solution": "<answer>Yes</answer>", "path": "clip9.mp4"}
    (tmp_path / "qa.json").write_text(json.dumps([row, {**row, "problem": "Is she glad?"}]))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip9.mp4").write_bytes((manifest.parent / "clip9.mp4").read_bytes())
    source = conf.SourceConfig(format="intent_bench", options={"video": "videos"})
    config = conf.EvalConfig(checkpoint=str(trained[1]), device="cpu", n_bootstrap=0, out=str(tmp_path / "eval"))
    config.data = conf.DataConfig(name="intent_bench", folder=str(tmp_path), test=[source])
    config.benchmark = conf.BenchmarkConfig("intent_bench", "T", str(tmp_path), "qa.json", "intent_bench")
    config.generate, config.paths = conf.GenerateConfig(max_new_tokens=3), trained[0].paths
    with pytest.raises(UserError, match="questions of its own, which task=description asks; found both"):
        run_evaluation(config)
    config.task = "description"
    assert run_evaluation(config) == 0
    assert "T: mean accuracy" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "eval" / "answers-intent_bench.jsonl").read_text().splitlines()]
    assert [(row["id"], row["truth"]) for row in rows] == [("00000", "Yes"), ("00001", "Yes")]
    assert json.loads((tmp_path / "eval" / "benchmark-intent_bench.json").read_text())["n"] == 2


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


def explained(tmp_path):
    """Predictions of pictures alone, one of which tells of a voice, and their references with descriptions."""
    texts = {
        "a": "The brows rise. She seems afraid.\nEmotions: scared",
        "b": "The lips smile. The voice is soft. He seems happy.\nEmotions: happy",
    }
    rows = [{"id": key, "text": text, "modalities": ["frames"]} for key, text in texts.items()]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    truths = [
        {"id": "a", "video": "a.mp4", "labels": ["scared"], "description": "The brows rise and the eyes widen."},
        {"id": "b", "video": "b.mp4", "labels": ["happy"], "description": "The lips smile. The voice is soft."},
    ]
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truths))
    return conf.EvalConfig(predictions=str(tmp_path / "mine.jsonl"), references=str(tmp_path / "truth.jsonl"))


def test_every_clip_has_its_scores_next_to_the_report(tmp_path):
    run_evaluation(explained(tmp_path))
    rows = read_scores(tmp_path / "scores.jsonl")
    assert [(row.id, row.f, row.modalities) for row in rows] == [("a", 1, ("frames",)), ("b", 1, ("frames",))]
    assert [row.faithfulness.absent for row in rows] == [(), ("acoustic",)]
    assert rows[0].faithfulness.clue_recall == 1 / 2


def test_the_report_scores_explanations_next_to_labels(tmp_path, capsys):
    run_evaluation(explained(tmp_path))
    shown = capsys.readouterr().out
    assert "about a modality that was not shown: acoustic 50.00 %" in shown
    assert "clues, precision / recall: visual 100.00 % / 66.67 %" in shown
    found = json.loads((tmp_path / "report.json").read_text())["extras"]["faithfulness"]
    assert (found["absent_modality"]["lexical"]["count"], found["absent_modality"]["lexical"]["n"]) == (0, 2)
    assert found["clues_matched_by"] == "words"


def test_scores_of_explanations_can_be_left_out(tmp_path):
    config = explained(tmp_path)
    config.faithfulness = False
    run_evaluation(config)
    assert "faithfulness" not in json.loads((tmp_path / "report.json").read_text())["extras"]


def test_clues_matched_by_a_chat_model_need_one(tmp_path):
    config = explained(tmp_path)
    config.llm.clues = True
    with pytest.raises(UserError, match=r"llm\.clues=true needs a chat model: llm\.model=\.\.\."):
        run_evaluation(config)


def test_a_missing_chat_model_is_named_before_a_checkpoint_predicts(tmp_path, monkeypatch):
    monkeypatch.setattr("affectgpt.inference.evaluate._predict", lambda config: pytest.fail("predicted"))
    config = explained(tmp_path)
    config.predictions, config.checkpoint, config.llm.clues = None, "best", True
    with pytest.raises(UserError, match=r"llm\.clues=true needs a chat model"):
        run_evaluation(config)


@pytest.mark.parametrize("benchmark", ["", "toy"])
def test_an_evaluation_that_fails_says_so_in_its_record(tmp_path, benchmark):
    config = explained(tmp_path)
    config.llm.groups = "no/such.zip"
    config.benchmark = conf.BenchmarkConfig(benchmark, "T", str(tmp_path), "truth.jsonl")
    with pytest.raises(UserError, match=r"no/such\.zip: no such folder"):
        run_evaluation(config)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["kind"], record["status"]) == ("benchmark" if benchmark else "eval", "failed")
