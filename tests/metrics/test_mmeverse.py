"""MMEVerse-Bench: 18 sets with tables of their own columns, sets of labels, and sentiment without neutral."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from affectgpt.config import BenchmarkConfig
from affectgpt.metrics.benchmarks import run_benchmark
from affectgpt.metrics.classification import score_sets
from affectgpt.runtime import InputError

CONF = Path(__file__).resolve().parents[2] / "conf" / "benchmark"
TRUTHS = [{"sad", "angry"}, {"sad"}, {"happy"}, {"angry", "fear"}]
FOUND = [{"sad"}, {"sad", "bored"}, set(), {"angry", "fear", "happy"}]


def test_sets_of_labels_have_the_scores_of_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(0)
    classes = list("abcdefg")
    truths = [{"a", *rng.sample(classes, rng.randint(0, 3))} for _ in range(300)] + [set(classes)]
    answers = [set(rng.sample(classes, rng.randint(0, 4))) for _ in truths]
    true, found = ([[int(name in row) for name in classes] for row in rows] for rows in (truths, answers))
    scored = score_sets(truths, answers)
    for name, average in (("micro_f1", "micro"), ("sample_f1", "samples")):
        expected = sklearn_metrics.f1_score(true, found, average=average, zero_division=0)
        assert getattr(scored, name) == pytest.approx(expected, abs=1e-12)
    precision = sklearn_metrics.average_precision_score(true, [[float(x) for x in row] for row in found])
    assert scored.mean_ap == pytest.approx(precision, abs=1e-12)


def test_sets_of_labels_scored_by_hand():
    scored = score_sets(TRUTHS, FOUND)
    assert (scored.micro_f1, scored.sample_f1) == pytest.approx((2 * 4 / (6 + 5), (2 / 3 + 1 + 0 + 4 / 5) / 4))
    # angry, fear, happy, sad: recall x precision + (1 - recall) x share
    assert scored.mean_ap == pytest.approx((1 / 2 + 1 / 2 * 1 / 2 + 1 + 0 + 1 * 1 / 4 + 1) / 4)
    assert scored.jaccard == pytest.approx((1 / 2 + 1 + 0 + 2 / 3) / 4, abs=1e-6)
    assert (scored.unknown, scored.micro_f1_strict) == (1, pytest.approx(2 * 4 / (6 + 5 + 1)))


def composed(name, folder):
    """Without the rest of the configuration, which takes longer; tests/metrics/test_benchmarks.py composes each."""
    return BenchmarkConfig(**yaml.safe_load((CONF / f"{name}.yaml").read_text()), folder=str(folder))


def of(name, folder, table):
    config = composed(name, folder)
    path = folder / config.references
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(table, encoding="utf-8")
    return config


def test_a_table_with_several_labels(tmp_path):
    config = of(
        "mmeverse_mafw_multi", tmp_path,
        'video_id,single_label,multi_label,mode\na,anger,"anger,disgust",test\nb,fear,fear,test\nc,fear,fear,train\n',
    )  # fmt: skip
    result = run_benchmark(config, {"a": "Anger; disgust", "b": "sadness"})
    assert (result.metric, result.n) == ("micro F1", 2)
    assert result.value == pytest.approx(2 * 2 / (3 + 2))  # sadness is no label of the truth, so it is ignored
    assert result.details["micro F1, other words count as wrong"] == pytest.approx(2 * 2 / (3 + 3))


def test_sentiment_without_neutral(tmp_path):
    rows = "a,Positive,test\nb,Negative,test\nc,Neutral,test\nd,Negative,valid\n"
    config = of("mmeverse_cmu_mosi", tmp_path, f"video_id,sentiment_label,mode\n{rows}")
    result = run_benchmark(config, {"a": "positive", "b": "Neutral", "c": "positive"})
    assert (result.n, result.details["dropped"]) == (2, 1)
    assert result.value == pytest.approx(0.5)  # F1 of positive 1, of negative 0
    assert result.details["weighted F1, exact answers (code of Emotion-LLaMA v2)"] == pytest.approx(0.5)
    (tmp_path / config.references).write_text("video_id,sentiment_label,mode\nc,Neutral,test\n")
    with pytest.raises(InputError, match="all 1 true labels are among"):
        run_benchmark(config, {"c": "positive"})


def test_the_card_has_18_sets_and_each_scores_a_table_of_its_layout(tmp_path):
    members = composed("mmeverse", tmp_path).members
    assert len(set(members)) == 18
    tables: dict[str, dict[str, str]] = {}
    own = {name: composed(name, tmp_path) for name in members if name.startswith("mmeverse_")}
    answers = {}
    for name, config in own.items():
        answers[name] = "fear, sadness" if config.kind == "multilabel" else config.classes[0].capitalize()
        row = {"video_id": "a", config.columns["label"]: answers[name]} | (
            {"mode": config.split} if config.split else {}
        )
        tables.setdefault(config.references, {}).update(row)  # several members share a table
    for path, row in tables.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n", encoding="utf-8")
    assert {name: run_benchmark(config, {"a": answers[name]}).value for name, config in own.items()} == dict.fromkeys(
        own, 1.0
    )
