"""Choices between two descriptions: the published scores, and Bradley-Terry strengths of models."""

import numpy as np
import pytest

from affectgpt.metrics.classification import weighted_f1_interval
from affectgpt.metrics.preference import (
    bradley_terry,
    check_rows,
    rank_models,
    read_answers,
    score_choices,
    true_choices,
)
from affectgpt.runtime import InputError


def test_every_model_wins_as_often_as_its_strength_says():
    """The condition of the maximum: W_i = sum_j n_ij s_i / (s_i + s_j)."""
    wins = np.random.default_rng(0).integers(1, 30, size=(5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    strengths = bradley_terry(wins)
    share = strengths[:, None] / (strengths[:, None] + strengths[None])
    np.testing.assert_allclose(((wins + wins.T) * share).sum(axis=1), wins.sum(axis=1), rtol=1e-6)
    assert strengths.sum() == pytest.approx(1)
    many = bradley_terry(np.stack([wins, 3 * wins, wins.T]))
    np.testing.assert_allclose(many[:2], [strengths, strengths], atol=1e-7)  # only ratios of wins count
    assert (np.argsort(many[2]) != np.argsort(strengths)).any()


def test_strengths_are_recovered_from_expected_wins():
    true = np.array([0.5, 0.3, 0.15, 0.05])
    wins = 100 * true[:, None] / (true[:, None] + true[None]) * (1 - np.eye(4))
    np.testing.assert_allclose(bradley_terry(wins), true, atol=1e-7)


def test_ties_are_left_out_or_half_a_win_and_counted():
    pairs = [("x", "y", "a1"), ("y", "x", "a1"), ("x", "y", "same"), ("x", "y", "same")]
    without, half = rank_models(pairs, n_bootstrap=0), rank_models(pairs, ties=True, n_bootstrap=0)
    assert (without.comparisons, half.comparisons) == ({"x": 2, "y": 2}, {"x": 4, "y": 4})
    assert without.strengths == half.strengths == {"x": 0.5, "y": 0.5}
    assert without.ties == half.ties == 2


def test_what_no_chain_of_wins_decides_is_named():
    found = rank_models([("x", "y", "a1"), ("y", "z", "a1")], n_bootstrap=0)
    assert list(found.strengths) == ["x", "y", "z"]
    assert found.undetermined is not None
    around = rank_models([("x", "y", "a1"), ("y", "z", "a1"), ("z", "x", "a1")], n_bootstrap=0)
    assert around.undetermined is None
    assert around.strengths == pytest.approx(dict.fromkeys("xyz", 1 / 3))


def test_intervals_surround_the_strengths_and_narrow_with_more_comparisons():
    pairs = [("x", "y", "a1")] * 12 + [("x", "y", "a2")] * 6
    few, many = rank_models(pairs, n_bootstrap=200), rank_models(pairs * 20, n_bootstrap=200)
    for found in (few, many):
        assert found.strengths["x"] == pytest.approx(2 / 3)
        assert found.intervals["x"][0] < 2 / 3 < found.intervals["x"][1]
    width = {name: found.intervals["x"][1] - found.intervals["x"][0] for name, found in (("few", few), ("many", many))}
    assert width["many"] < width["few"] / 3


def test_wrong_comparisons_are_named():
    with pytest.raises(InputError, match="comparison 1: 'x' and 'x', preferred 'a1'; expected two different models"):
        rank_models([("x", "x", "a1")])
    with pytest.raises(InputError, match=r"comparison 2: .*preferred 'b'"):
        rank_models([("x", "y", "a1"), ("x", "y", "b")])
    with pytest.raises(InputError, match="1 comparisons, none of which counts"):
        rank_models([("x", "y", "same")])


TRUTHS = ["a1", "a2", "a2", "same", "a1", "a2"]


def test_the_two_class_score_leaves_same_out_and_counts_a_predicted_same_as_a1():
    """Equal to the definition, written out: per class F1, weighted by how often people chose it."""
    answers = ["a1", "a2", "same", "a2", "A2 I think", "none of them: neither"]
    found = score_choices(TRUTHS, answers)
    chosen = ["a1", "a2", "a1", "a2", "a1"]  # of the five judged rows, in the order of TRUTHS without same
    judged = ["a1", "a2", "a2", "a1", "a2"]
    f1 = {}
    for name in ("a1", "a2"):
        hits = sum(a == b == name for a, b in zip(chosen, judged, strict=True))
        f1[name] = 2 * hits / (chosen.count(name) + judged.count(name))
    assert found.two.weighted_f1 == pytest.approx((2 * f1["a1"] + 3 * f1["a2"]) / 5)
    assert (found.two.n, found.n_same, found.three.n) == (5, 1, 6)
    assert found.three.accuracy == pytest.approx(2 / 6)
    assert found.strict.unparsed == 2  # "same", and an answer without a choice
    assert found.read == {"exact": 4, "beginning": 1, "first": 0, "none": 1}


def test_right_answers_score_one_and_the_interval_surrounds_the_score():
    assert score_choices(TRUTHS, TRUTHS).two.weighted_f1 == score_choices(TRUTHS, TRUTHS).three.weighted_f1 == 1
    scored = score_choices(TRUTHS * 20, ["a1", "a2", "a1", "same", "a1", "a2"] * 20).two
    interval = weighted_f1_interval(scored, n_bootstrap=200, seed=0)
    assert interval.low < scored.weighted_f1 < interval.high < 1
    assert weighted_f1_interval(scored, n_bootstrap=0, seed=0) is None


def test_wrong_rows_are_named(tmp_path):
    with pytest.raises(InputError, match="1 true choices and 2 answers"):
        score_choices(["a1"], ["a1", "a2"])
    with pytest.raises(InputError, match="people prefer neither in all 2 pairs"):
        score_choices(["same", "same"], ["a1", "a2"])
    path = tmp_path / "t.csv"
    path.write_text("name,a1,a2,preference\nv,X,Y,a1\nw,X,Y,tie\n", encoding="utf-8")
    rows = read_answers(path)
    assert true_choices(rows) == ["a1", "same"]
    check_rows(rows, [("v", "Y", "X"), ("w", None, None)], "the list", exchanged=True)
    for wanted, words in (
        ([("w", "X", "Y"), ("v", "X", "Y")], "row 1 is of 'v', and not row 1 of the list, 'w' .another clip"),
        ([("v", "X", "Z")], "row 1 is of 'v'.*other descriptions"),
        ([("v", "X", "Y")], "more rows than the 1 of the list"),
        ([("v", "X", "Y"), ("w", "X", "Y"), ("w", "X", "Y")], "2 rows, but 3 of the list"),
    ):
        with pytest.raises(InputError, match=words):
            check_rows(rows, wanted, "the list")
    path.write_text("name,a1,a2,preference\nv,X,Y,both\n", encoding="utf-8")
    with pytest.raises(InputError, match="preference is 'both'"):
        true_choices(read_answers(path))
