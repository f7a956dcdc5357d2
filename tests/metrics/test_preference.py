"""Bradley-Terry strengths: a maximum of the likelihood, the order of wins, and what comparisons leave open."""

import numpy as np
import pytest

from affectgpt.metrics.preference import bradley_terry, rank_models
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
