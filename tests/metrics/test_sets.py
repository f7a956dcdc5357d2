"""Set scores against their definitions and published results."""

import itertools
import math
import random

import pytest

from affectgpt.metrics.sets import SetScore, harmonic_mean, jaccard, sample_score, set_score


def test_perfect_prediction_scores_one_and_disjoint_prediction_zero():
    assert set_score([({"a", "b"}, {"a", "b"})]) == SetScore(1.0, 1.0, 1)
    assert set_score([({"a"}, {"b"})]).f_score == 0.0


def test_empty_truth_is_left_out_and_empty_prediction_counts_as_zero():
    assert set_score([(set(), {"a"}), ({"a"}, set()), ({"a"}, {"a"})]) == SetScore(0.5, 0.5, 2)


def test_no_samples_score_zero_with_n_zero():
    assert set_score([]) == set_score([(set(), {"a"})]) == SetScore(0.0, 0.0, 0)


def test_f_is_the_harmonic_mean_of_averages_and_not_the_mean_of_sample_f():
    pairs = [({"a", "b", "c", "d"}, {"a"}), ({"a"}, {"a", "b", "c", "d"})]
    score = set_score(pairs)
    sample_f = [harmonic_mean(*sample_score(*pair)) for pair in pairs]
    assert score.f_score == 0.625
    assert sum(sample_f) / 2 == pytest.approx(0.4)


def test_swapping_truth_and_prediction_swaps_precision_and_recall():
    rng = random.Random(0)
    pairs = [
        (set(rng.sample("abcdef", rng.randint(1, 4))), set(rng.sample("abcdef", rng.randint(1, 4)))) for _ in range(50)
    ]
    one, other = set_score(pairs), set_score([(b, a) for a, b in pairs])
    assert (one.precision, one.recall) == (other.recall, other.precision)
    assert one.f_score == pytest.approx(other.f_score)


# Published rows (F_S, precision, recall) in percent; each is rounded to two digits, so F_S agrees to about 0.01.
PUBLISHED = {
    "Random": (17.42, 24.85, 13.42), "Chat-UniVi": (53.08, 53.68, 52.50), "GPT-4V": (55.51, 48.52, 64.86),
    "CLUE-Text": (46.00, 54.41, 39.84), "CLUE-Video": (60.55, 63.29, 58.05), "CLUE-Audio": (65.35, 67.54, 63.30),
    "CLUE-Multi": (80.05, 80.03, 80.07), "one-hot": (65.71, 92.17, 51.05),
}  # fmt: skip


@pytest.mark.parametrize("row", PUBLISHED)
def test_f_score_formula_gives_the_published_rows(row):
    f_score, precision, recall = PUBLISHED[row]
    assert 100 * SetScore(precision / 100, recall / 100, 332).f_score == pytest.approx(f_score, abs=0.015)


def test_avg_is_the_plain_mean():
    assert SetScore(0.4942, 0.3104, 332).avg == pytest.approx(0.4023)


def test_jaccard_is_symmetric_bounded_and_one_only_for_equal_sets():
    for a, b in itertools.product([{"x"}, {"x", "y"}, {"z"}], repeat=2):
        value, n = jaccard([(a, b)])
        assert value == jaccard([(b, a)])[0]
        assert 0 <= value <= 1
        assert (value == 1) == (a == b)
        assert n == 1
    assert jaccard([(set(), set())]) == (0.0, 0)


def test_zero_precision_and_recall_give_zero_not_nan():
    assert not math.isnan(harmonic_mean(0.0, 0.0))
