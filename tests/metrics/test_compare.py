"""Comparisons are paired and symmetric, and name the systems."""

import json
from pathlib import Path

import numpy as np
import pytest

from affectgpt.metrics import evaluate, random_labels
from affectgpt.metrics.compare import compare, mean_std, named_after_files, named_after_folders, over_seeds
from affectgpt.metrics.evaluate import evaluate_samples, mean_sample_f, neutral_aware, strict_extras

REFERENCES = {
    f"s{i}": (word,) for i, word in enumerate(["happy", "sad", "angry", "scared", "surprised", "neutral"] * 8)
}
RIGHT = dict(REFERENCES)
GUESS = random_labels(REFERENCES, seed=1)


def test_a_better_system_wins_and_the_table_shows_it(tmp_path):
    result = compare({"right": RIGHT, "guess": GUESS}, REFERENCES, n_bootstrap=200)
    test = result.tests["right", "guess"]
    assert test.difference > 0.5
    assert test.p_value < 0.01
    assert test.difference == pytest.approx(
        result.reports["right"].primary.f_score - result.reports["guess"].primary.f_score
    )
    assert "right - guess: +" in result.table()
    result.write(tmp_path / "comparison.json")
    saved = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert saved["tests"][0]["first"] == "right"


def test_every_pair_is_tested_once_and_each_report_is_the_single_report():
    result = compare({"a": RIGHT, "b": GUESS, "c": {}}, REFERENCES, n_bootstrap=20)
    assert list(result.tests) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert result.reports["b"].to_dict() == evaluate(GUESS, REFERENCES, n_bootstrap=20).to_dict()
    assert "multiply p by that" in result.table()


def test_a_comparison_of_one_system_is_an_error():
    with pytest.raises(ValueError, match=r"two systems or more, found \['a'\]"):
        compare({"a": RIGHT}, REFERENCES)


def test_several_seeds_give_mean_and_standard_deviation():
    reports = [evaluate(random_labels(REFERENCES, seed=seed), REFERENCES, n_bootstrap=0) for seed in range(4)]
    values = [report.primary.f_score for report in reports]
    result = over_seeds(reports)["level 1 mean"]
    assert (result.mean, result.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert str(mean_std([0.5])) == "50.00 ± 0.00 (1 runs)"
    with pytest.raises(ValueError, match="no reports"):
        over_seeds([])


def test_neutral_aware_scores_count_neutral_truths_and_wrong_neutral_predictions():
    plain = evaluate({"a": ["neutral", "happy"]}, {"a": ["happy"], "b": ["neutral"]}, n_bootstrap=0).scores["M3-W1-L1"]
    strict = neutral_aware({"a": ["neutral", "happy"]}, {"a": ["happy"], "b": ["neutral"]})["M3-W1-L1"]
    assert (plain.precision, plain.n) == (1.0, 1)
    assert (strict.precision, strict.recall, strict.n) == (0.25, 0.5, 2)


def test_sample_f_of_perfect_and_of_empty_predictions():
    _, perfect = evaluate_samples(RIGHT, REFERENCES, n_bootstrap=0)
    _, empty = evaluate_samples(dict.fromkeys(REFERENCES, ()), REFERENCES, n_bootstrap=0)
    assert (mean_sample_f(perfect), mean_sample_f(empty)) == (1.0, 0.0)
    _, mixed = evaluate_samples({"a": ["happy", "sad"], "b": ["angry"]}, {"a": ["happy"], "b": ["mad"]}, n_bootstrap=0)
    assert mean_sample_f(mixed[:, 2:3]) == pytest.approx((2 / 3 + 1) / 2)


def test_files_of_the_same_name_are_different_systems():
    files = ["runs/a/predictions.jsonl", "runs/b/predictions.jsonl", "other/a/predictions.jsonl"]
    assert list(named_after_files(files)) == ["runs/a/predictions", "runs/b/predictions", "other/a/predictions"]
    assert list(named_after_files(["x/a.jsonl", "x/b.csv"])) == ["a", "b"]


def test_folders_keep_the_dots_of_their_names_and_are_named_once(tmp_path):
    x, y, z = (tmp_path / name for name in ("x/fine-1.5", "y/fine-1.5", "y/fine-2.5"))
    assert named_after_folders([x, y, x]) == {"x/fine-1.5": x, "y/fine-1.5": y}
    assert named_after_folders([y, z]) == {"fine-1.5": y, "fine-2.5": z}
    assert list(named_after_folders(["."])) == [Path.cwd().name]
    assert named_after_folders([]) == {}


def test_one_file_given_twice_is_an_error():
    with pytest.raises(ValueError, match="given twice"):
        named_after_files(["a.jsonl", "a.jsonl"])


def test_strict_scores_of_perfect_predictions_are_one_and_include_neutral_truths():
    truth = {"a": ["happy"], "b": ["neutral"]}
    assert strict_extras(truth, truth) == {"neutral_aware_f_s": 1.0, "sample_mean_f": 1.0}
    missed = strict_extras({"a": ["happy"], "b": ["sad"]}, truth)
    assert missed["sample_mean_f"] == 1.0  # the neutral truth is skipped
    assert missed["neutral_aware_f_s"] == 0.5
