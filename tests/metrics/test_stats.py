"""Intervals and tests: seeded, and right on cases with a known answer."""

import numpy as np
import pytest

from affectgpt.metrics.stats import (
    bootstrap_interval,
    bootstrap_p_value,
    mean_f_statistic,
    paired_test,
    percentile_interval,
    resampled_means,
    weighted_means,
)


def draws(n, p, seed=0):
    """n samples, one grouping; each sample is right (1, 1) with probability p."""
    hits = (np.random.default_rng(seed).random(n) < p).astype(float)
    return np.repeat(hits[:, None, None], 2, axis=2)


def test_means_leave_unscored_samples_out():
    scores = np.array([[[1.0, 0.5]], [[np.nan, np.nan]], [[0.0, 0.0]]])
    np.testing.assert_allclose(weighted_means(scores, np.ones((1, 3)))[0], [[0.5, 0.25]])
    np.testing.assert_allclose(weighted_means(scores, np.array([[0.0, 1.0, 0.0]]))[0], [[0.0, 0.0]])


def test_f_of_nothing_is_zero_not_nan():
    assert mean_f_statistic(np.zeros((1, 2))) == 0.0


def test_interval_has_about_the_binomial_width():
    interval = bootstrap_interval(draws(400, 0.5), n_bootstrap=2000, seed=1)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)


def test_interval_is_narrower_with_more_samples_and_a_point_without_variance():
    small, large = (bootstrap_interval(draws(n, 0.5), n_bootstrap=500) for n in (50, 2000))
    assert large.high - large.low < small.high - small.low
    assert bootstrap_interval(np.ones((9, 2, 2)), n_bootstrap=50).low == 1.0


def test_no_samples_or_no_resamples_give_no_interval():
    assert bootstrap_interval(np.empty((0, 1, 2))) is None
    assert bootstrap_interval(draws(5, 0.5), n_bootstrap=0) is None


def test_resampling_only_depends_on_the_seed():
    scores = draws(30, 0.4)
    one, same, other = (resampled_means(scores, n_bootstrap=200, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_resampled_corpus_f_equals_recomputing_it_on_the_drawn_samples():
    rng = np.random.default_rng(0)
    scores = rng.random((20, 3, 2))
    scores[3, 1] = np.nan
    drawn = np.random.default_rng(9).integers(20, size=(4, 20))
    expected = [mean_f_statistic(np.nanmean(scores[rows], axis=0)) for rows in drawn]
    ours = mean_f_statistic(resampled_means(scores, n_bootstrap=4, seed=9))
    np.testing.assert_allclose(ours, expected)


def test_a_system_against_itself_is_no_difference():
    scores = draws(60, 0.5)
    result = paired_test(scores, scores, n_resamples=200)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert (result.interval.low, result.interval.high) == (0.0, 0.0)


def test_a_clear_difference_is_found_and_its_sign_flips_with_the_order():
    better, worse = draws(200, 0.8, seed=1), draws(200, 0.4, seed=2)
    result, flipped = paired_test(better, worse, n_resamples=500), paired_test(worse, better, n_resamples=500)
    assert result.p_value < 0.01
    assert result.interval.low > 0
    assert flipped.difference == pytest.approx(-result.difference)


def test_p_values_under_no_difference_are_not_small_too_often():
    p_values = [
        paired_test(draws(40, 0.5, seed=2 * i), draws(40, 0.5, seed=2 * i + 1), n_resamples=99).p_value
        for i in range(60)
    ]
    assert np.mean(np.array(p_values) <= 0.1) < 0.25


def test_p_is_below_0_05_exactly_where_the_interval_excludes_zero():
    rng = np.random.default_rng(0)
    significant = 0
    for trial in range(300):
        n = int(rng.integers(5, 60))
        a, b = draws(n, rng.uniform(0.1, 0.9), seed=trial), draws(n, rng.uniform(0.1, 0.9), seed=1000 + trial)
        for result in (paired_test(a, b, n_resamples=int(rng.integers(40, 300))), paired_test(b, a, n_resamples=80)):
            excludes = result.interval.low > 0 or result.interval.high < 0
            assert (result.p_value < 0.05) == excludes, (trial, result)
            significant += excludes
    assert 100 < significant < 500  # both cases occur


@pytest.mark.parametrize("n_at_zero", [0, 1, 5])
@pytest.mark.parametrize("shift", np.linspace(-1, 1, 21))
def test_p_inverts_the_interval_at_every_level_and_does_not_depend_on_the_sign(shift, n_at_zero):
    values = np.random.default_rng(1).normal(shift, 0.5, 101)
    values[:n_at_zero] = 0.0
    p_value = bootstrap_p_value(values)
    assert p_value == pytest.approx(bootstrap_p_value(-values))
    if 2 / 102 < p_value < 0.99:
        for level, excluded in ((1 - p_value - 1e-6, True), (1 - p_value + 1e-6, False)):
            interval = percentile_interval(values, seed=0, level=level)
            assert (interval.low > 0 or interval.high < 0) is excluded


def test_a_test_with_too_few_resamples_or_without_samples_is_an_error():
    with pytest.raises(ValueError, match="n_bootstrap=40 or more, found 39"):
        paired_test(draws(5, 0.5), draws(5, 0.4), n_resamples=39)
    with pytest.raises(ValueError, match="needs samples"):
        paired_test(np.empty((0, 1, 2)), np.empty((0, 1, 2)))


def test_comparing_different_samples_is_an_error():
    with pytest.raises(ValueError, match="must cover the same samples"):
        paired_test(draws(4, 0.5), draws(5, 0.5))
