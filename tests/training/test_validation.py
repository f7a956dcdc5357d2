"""What held-out samples are asked, and the score by which the best checkpoint is chosen."""

import json
from dataclasses import replace

import pytest

from affectgpt.config import QuestionConfig
from affectgpt.data.mixture import Source
from affectgpt.runs import RunRecord
from affectgpt.runtime import UserError
from affectgpt.schema import Prediction, Sample, read_samples, write_jsonl
from affectgpt.training.samples import hold_out_validation, question_of
from affectgpt.training.stages import run_stage
from affectgpt.training.validation import combined_scores, metric_of
from tests.conftest import make_train_config

CANDIDATES = ("happy", "sad", "angry")


def samples(*labels):
    return [Sample(id=str(number), label=label) for number, label in enumerate(labels)]


def answers(*texts):
    return [Prediction(id=str(n), text=text, labels=(text,) if text else None) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("tasks", "asked", "metric"),
    [
        ({"both": 0.7, "labels": 0.3}, "both", "F_S"),
        ({"labels": 0.5, "description": 0.5}, "labels", "F_S"),
        ({"description": 1.0}, "labels", "F_S"),
        ({"fixed": 0.5, "description": 0.5}, "fixed", "weighted F1"),
    ],
)
def test_held_out_samples_are_asked_what_the_training_asks(tasks, asked, metric):
    source = Source(samples("happy"), tasks=tasks, candidates=CANDIDATES, langs={"en": 0.2, "zh": 0.8})
    question = question_of(source)
    assert (question.task, question.lang) == (asked, "zh")
    assert question.candidates == (list(CANDIDATES) if asked == "fixed" else [])
    assert metric_of([source]) == metric


def test_task_fixed_is_scored_by_weighted_f1_on_the_candidates():
    question = QuestionConfig(task="fixed", candidates=list(CANDIDATES))
    found = combined_scores([(question, samples("happy", "happy", "sad"), answers("Happy", "sad", "sad"))])
    # happy: precision 1, recall 1/2; sad: precision 1/2, recall 1; F1 2/3 each
    assert found == {"score": pytest.approx(2 / 3), "weighted_f1": pytest.approx(2 / 3), "n_fixed": 3, "unparsed": 0}
    none = combined_scores([(question, samples("happy"), answers("cheerful"))])
    assert (none["score"], none["unparsed"]) == (0, 1)  # a synonym is not one of the candidates


def test_with_open_questions_too_the_score_is_the_mean_over_all_samples():
    fixed = QuestionConfig(task="fixed", candidates=list(CANDIDATES))
    english, other = QuestionConfig(task="labels"), QuestionConfig(task="both")
    found = combined_scores(
        [
            (fixed, samples("happy", "sad"), answers("happy", "sad")),
            (english, samples("angry", "sad"), answers("angry", "happy")),
            (other, samples("happy"), answers("sad")),  # about a clip of the same id
        ]
    )
    assert (found["weighted_f1"], found["n_fixed"], found["n"]) == (1.0, 2, 3)
    assert found["f_s"] == pytest.approx(1 / 3)
    assert found["score"] == pytest.approx((2 * 1.0 + 3 * 1 / 3) / 5)
    assert metric_of([Source((), tasks={"fixed": 1.0}), Source(())]) == "F_S and weighted F1"


def test_samples_without_labels_are_trained_and_not_held_out():
    unlabelled = [Sample(id=f"caption {n}", description="A dog.") for n in range(8)]
    captions = Source(unlabelled, tasks={"description": 1.0})
    emotions = Source(samples(*["happy"] * 6), tasks={"fixed": 1.0}, candidates=CANDIDATES)
    training, held = hold_out_validation([captions, emotions], 2, seed=0)
    assert [len(source.samples) for source in training] == [8, 4]
    assert [len(source.samples) for source in held] == [2]
    assert held[0].candidates == CANDIDATES
    with pytest.raises(UserError, match=r"stage\.n_validation=2 would hold out all of 0 usable training"):
        hold_out_validation([captions], 2, seed=0)
    assert hold_out_validation([captions], 0, seed=0) == ([captions], [])


def test_n_samples_are_held_out_of_however_many_sources(caplog):
    many = [Source([Sample(id=f"{part}-{n}", labels=("sad",)) for n in range(20)]) for part in range(50)]
    assert sum(len(source.samples) for source in hold_out_validation(many, 4, seed=0)[1]) == 4
    assert not caplog.text
    single = [Source([Sample(id=str(part), labels=("sad",))]) for part in range(3)]
    assert hold_out_validation(single, 2, seed=0)[1] == []  # a source without samples could not be drawn from
    assert "0 samples are held out for validation, not stage.n_validation=2: every source keeps one" in caplog.text


def test_a_run_on_task_fixed_chooses_its_best_checkpoint_by_weighted_f1(base_models, manifest, tmp_path):
    rows = [replace(sample, label=sample.labels[0]) for sample in read_samples(manifest)[0]]
    path = manifest.with_name("one-label.jsonl")
    write_jsonl(path, rows)
    config = make_train_config(base_models, path, tmp_path, tasks={"fixed": 0.5, "description": 0.5})
    run = run_stage(config).run
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [row for row in log if "eval_score" in row]
    assert [row["eval_weighted_f1"] for row in scores] == [row["eval_score"] for row in scores]
    assert all(row["eval_n_fixed"] == 2 and "eval_f_s" not in row for row in scores)
    record = RunRecord.read(run).values
    assert record["validation_metric"] == "weighted F1"
    assert record["best_validation_score"] == max(row["eval_score"] for row in scores)
    answered = [json.loads(line) for line in (run / "generations" / "step-000006.jsonl").read_text().splitlines()]
    assert {row["task"] for row in answered} == {"fixed"}
