"""Confidence intervals and significance tests: seeded bootstrap over samples, paired for two systems.

F_S is a corpus-level score, not a mean over samples, so every resample recomputes it from its own averaged precision
and recall, and with its own n (samples without a known truth are left out, as in the score itself).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.runtime import InputError

Statistic = Callable[[np.ndarray], np.ndarray]
"""Averaged precision and recall [..., n_groupings, 2] -> a score [...]."""

_CHUNK = 64  # resamples drawn at a time, which limits the memory to _CHUNK x n_samples counts

_NO_DIFFERENCE = 1e-12  # sums of equal scores in another order differ by rounding only


@dataclass(frozen=True)
class Interval:
    """A percentile interval; `low` and `high` as fractions of 1."""

    low: float
    high: float
    level: float
    n_bootstrap: int
    seed: int


_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Rate:
    """A share of `n` with its 95 % Wilson interval; `value` is None for n = 0."""

    count: int
    n: int

    @property
    def value(self) -> float | None:
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson (1927), which also covers shares of 0 and 1.

        >>> Rate(0, 10).interval, [round(x, 3) for x in Rate(5, 10).interval]
        ((0.0, 0.2775327998628892), [0.237, 0.763])
        """
        if not self.n:
            return None
        share, spread = self.count / self.n, _Z**2 / self.n
        centre = (share + spread / 2) / (1 + spread)
        half = _Z * math.sqrt(share * (1 - share) / self.n + spread / (4 * self.n)) / (1 + spread)
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_dict(self) -> dict[str, float | int | None]:
        low, high = self.interval or (None, None)
        return {"value": self.value, "count": self.count, "n": self.n, "low": low, "high": high}


def mean_f_statistic(means: np.ndarray) -> np.ndarray:
    """F_S of every grouping, averaged over groupings: [..., n_groupings, 2] -> [...]; 0 if P + R = 0."""
    total = means.sum(axis=-1)
    f_scores = np.divide(2 * means[..., 0] * means[..., 1], total, out=np.zeros_like(total), where=total > 0)
    return f_scores.mean(axis=-1)


def mean_precision_statistic(means: np.ndarray) -> np.ndarray:
    """Precision averaged over groupings: [..., n_groupings, 2] -> [...]"""
    return means[..., 0].mean(axis=-1)


def mean_recall_statistic(means: np.ndarray) -> np.ndarray:
    """Recall averaged over groupings: [..., n_groupings, 2] -> [...]"""
    return means[..., 1].mean(axis=-1)


def weighted_means(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over samples, ignoring NaN; 0 without samples.  [N, G, 2], [K, N] -> [K, G, 2]"""
    n_samples, n_groupings, _ = scores.shape
    known = ~np.isnan(scores[:, :, 0])  # [N, G]
    sums = weights @ np.nan_to_num(scores).reshape(n_samples, -1)  # [K, G*2]
    counts = weights @ known.astype(float)  # [K, G]
    sums = sums.reshape(-1, n_groupings, 2)  # [K, G, 2]
    return np.divide(sums, counts[..., None], out=np.zeros_like(sums), where=counts[..., None] > 0)


def resampled_means(scores: np.ndarray, *, n_bootstrap: int, seed: int) -> np.ndarray:
    """Means over `n_bootstrap` resamples of the samples, with replacement.  [N, G, 2] -> [n_bootstrap, G, 2]"""
    drawn = resampling_weights(len(scores), n_bootstrap=n_bootstrap, seed=seed)
    return np.concatenate([weighted_means(scores, weights) for weights in drawn])


def resampling_weights(n_samples: int, *, n_bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """How often each sample is in each resample, drawn with replacement, some resamples at a time.  [<=_CHUNK, N]"""
    rng = np.random.default_rng(seed)
    for start in range(0, n_bootstrap, _CHUNK):
        n_rows = min(_CHUNK, n_bootstrap - start)
        drawn = rng.integers(n_samples, size=(n_rows, n_samples)) + n_samples * np.arange(n_rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=n_rows * n_samples).reshape(n_rows, n_samples)
        yield weights.astype(float)


def bootstrap_interval(
    scores: np.ndarray, statistic: Statistic = mean_f_statistic, *, n_bootstrap: int = 1000, seed: int = 42,
    level: float = 0.95,
) -> Interval | None:  # fmt: skip
    """Percentile bootstrap interval over samples; None without samples or resamples.

    Args:
        scores: precision and recall per sample and grouping, [N, G, 2]; NaN = not scored.
    """
    if n_bootstrap < 1 or len(scores) == 0:
        return None
    return percentile_interval(statistic(resampled_means(scores, n_bootstrap=n_bootstrap, seed=seed)), seed, level)


def percentile_interval(values: np.ndarray, seed: int, level: float = 0.95) -> Interval:
    """The interval of the middle `level` of the resampled scores.  [n_bootstrap]"""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(values), seed)


MIN_RESAMPLES = 40
"""Resamples of a paired test at least: with fewer, no p-value could be below 0.05."""


@dataclass(frozen=True)
class PairedTest:
    """The difference A - B on the same samples, with its paired bootstrap interval.

    `p_value` is two-sided and inverts the interval: it is 1 - the level of the widest interval that excludes 0. Hence
    `p_value` < 0.05 exactly where the 95 % interval excludes 0.
    """

    difference: float
    p_value: float
    interval: Interval


def paired_test(
    a: np.ndarray, b: np.ndarray, statistic: Statistic = mean_f_statistic, *, n_resamples: int = 1000, seed: int = 42
) -> PairedTest:
    """Compare two systems on the same samples.

    Args:
        a, b: [N, G, 2] in the same order of samples, with NaN at the same positions (the truth decides what is scored).

    Raises:
        InputError: the shapes or the scored samples differ, no samples, or fewer than `MIN_RESAMPLES` resamples.
    """
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        raise InputError(f"paired scores must cover the same samples; found shapes {a.shape} and {b.shape}")
    if len(a) == 0:
        raise InputError("a paired test needs samples that both systems were scored on; found none")
    if n_resamples < MIN_RESAMPLES:
        raise InputError(f"a paired test needs n_bootstrap={MIN_RESAMPLES} or more, found {n_resamples}")
    weights = np.ones((1, len(a)))
    difference = float((statistic(weighted_means(a, weights)) - statistic(weighted_means(b, weights)))[0])
    means_a, means_b = (resampled_means(scores, n_bootstrap=n_resamples, seed=seed) for scores in (a, b))
    differences = statistic(means_a) - statistic(means_b)
    differences[np.abs(differences) < _NO_DIFFERENCE] = 0.0
    return PairedTest(difference, bootstrap_p_value(differences), percentile_interval(differences, seed))


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of "no difference": 1 - the level of the widest percentile interval that excludes 0.

    At least 2 / (n + 1), because n resamples cannot show that something is rarer.  [n_bootstrap]

    >>> bootstrap_p_value(np.arange(-2.0, 99.0))  # 0 is the quantile 0.02 of these 101 values
    0.04
    """
    values = np.sort(differences)
    p_value = 2 * min(_share_up_to_zero(values), _share_up_to_zero(-values[::-1]))
    return float(min(1.0, max(p_value, 2 / (len(values) + 1))))


def _share_up_to_zero(values: np.ndarray) -> float:
    """The largest q whose quantile of the sorted `values` is at most 0, interpolated as by np.quantile; else 0."""
    n_below = int(np.searchsorted(values, 0.0, side="right"))  # values <= 0
    if n_below in (0, len(values)):
        return float(n_below > 0)
    last, following = values[n_below - 1], values[n_below]
    return (n_below - 1 - last / (following - last)) / (len(values) - 1)


def weighted_mean_interval(
    strata: Sequence[tuple[float, Sequence[float]]], *, n_bootstrap: int, seed: int, level: float = 0.95
) -> Interval | None:
    """Percentile bootstrap interval of sum(weight * mean of values); each stratum is resampled by itself.

    None without resamples, or with an empty stratum.

    >>> found = weighted_mean_interval([(1.0, [1.0, 1.0])], n_bootstrap=10, seed=0)
    >>> found.low, found.high
    (1.0, 1.0)
    """
    if n_bootstrap < 1 or not strata or not all(len(values) for _, values in strata):
        return None
    rng = np.random.default_rng(seed)
    total = np.zeros(n_bootstrap)
    for weight, found in strata:
        values = np.asarray(found, dtype=float)
        for start in range(0, n_bootstrap, _CHUNK):
            n_rows = min(_CHUNK, n_bootstrap - start)
            drawn = rng.integers(len(values), size=(n_rows, len(values)))
            total[start : start + n_rows] += weight * values[drawn].mean(axis=1)
    return percentile_interval(total, seed, level)
