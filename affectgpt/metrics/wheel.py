"""Groupings of emotion words by the emotion wheels: M1, M2, and M3 for five wheels at two levels.

The rules of the OV-MER paper (section 4.2), as implemented by its authors:

- M1: the alphabetically first synonym key of the form of the word;
- M2: the alphabetically first wheel word of that key;
- M3-Wk-Lj: the level-j cluster, on wheel k, of the alphabetically first wheel word of all keys that is on that wheel.

Words without a group are left out of truth and prediction alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.metrics.lexicon import Lexicon
from affectgpt.metrics.sets import harmonic_mean, sample_score
from affectgpt.metrics.stats import percentile_interval, resampled_means
from affectgpt.runtime import InputError

LEVEL1 = tuple(f"M3-W{wheel}-L1" for wheel in range(1, 6))
LEVEL2 = tuple(f"M3-W{wheel}-L2" for wheel in range(1, 6))
GROUPINGS = ("M1", "M2", *(f"M3-W{wheel}-L{level}" for wheel in range(1, 6) for level in (1, 2)))
"""The twelve groupings that M-avg averages."""


class WheelGrouping:
    """The groups of words under a lexicon; each word is looked up once.

    >>> from affectgpt.metrics.lexicon import load_lexicon
    >>> groups = WheelGrouping(load_lexicon("builtin")).groups("Furious")
    >>> groups["M2"], groups["M3-W1-L1"], groups["M3-W4-L2"]
    ('furious', 'mad', 'mad')
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._groups: dict[str, dict[str, str]] = {}

    def groups(self, word: str) -> dict[str, str]:
        """Grouping -> group of `word`, for the groupings that have one."""
        if word not in self._groups:
            self._groups[word] = self._look_up(word)
        return self._groups[word]

    def _look_up(self, word: str) -> dict[str, str]:
        keys = self.lexicon.synonym_keys(word)
        if not keys:
            return {}
        wheel_words = self.lexicon.wheel_words
        found = {"M1": keys[0], "M2": wheel_words[keys[0]][0]}
        candidates = sorted({wheel_word for key in keys for wheel_word in wheel_words[key]})
        for number, wheel in enumerate(self.lexicon.wheels, 1):
            for candidate in candidates:
                if candidate in wheel.level1:
                    found[f"M3-W{number}-L1"] = wheel.level1[candidate]
                    found[f"M3-W{number}-L2"] = wheel.level2[candidate]
                    break
        return found

    def map(self, labels: Iterable[str], grouping: str) -> frozenset[str]:
        """The set of groups of `labels` under one grouping; words without a group are left out."""
        if grouping not in GROUPINGS:
            raise InputError(f"unknown grouping {grouping!r}; expected one of {list(GROUPINGS)}")
        return frozenset(group for label in labels if (group := self.groups(label).get(grouping)) is not None)


def score_samples(
    truths: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], grouping: WheelGrouping, names: Sequence[str]
) -> np.ndarray:
    """Precision and recall of every sample under every grouping of `names`: [n_samples, n_groupings, 2].

    NaN if the truth has no group (the sample is not scored); 0 if only the prediction has none.
    """
    cache: dict[tuple[frozenset[str], frozenset[str]], np.ndarray] = {}
    rows = np.empty((len(truths), len(names), 2))
    for row, truth, prediction in zip(rows, truths, predictions, strict=True):
        key = (frozenset(truth), frozenset(prediction))
        if key not in cache:  # label sets recur: short lists from a few hundred words
            sets = (_groups_by_grouping(words, grouping, names) for words in key)
            cache[key] = np.array([sample_score(*pair) or (np.nan, np.nan) for pair in zip(*sets, strict=True)])
        row[:] = cache[key]
    return rows


def _groups_by_grouping(words: Iterable[str], grouping: WheelGrouping, names: Sequence[str]) -> list[set[str]]:
    sets: dict[str, set[str]] = {name: set() for name in names}
    for word in words:
        for name, group in grouping.groups(word).items():
            if name in sets:
                sets[name].add(group)
    return list(sets.values())


def mean_f(scores: Iterable[tuple[float, float]]) -> float:
    """Mean of the F_S of several groupings, each given as its averaged (precision, recall)."""
    values = [harmonic_mean(float(precision), float(recall)) for precision, recall in scores]
    return sum(values) / len(values)


@dataclass(frozen=True)
class LabelShares:
    """Shares of the sectors of a wheel among all labels that are on it.

    Attributes:
        sectors: those with a label, by name.
        shares: [n_sectors, 2]: of the true and of the predicted labels.
        intervals: [n_sectors, 2, 2]: low and high of the 95 % intervals over clips; None without resamples.
    """

    sectors: tuple[str, ...]
    shares: np.ndarray
    intervals: np.ndarray | None

    def side(self, side: int) -> dict[str, float]:
        """Sector -> share of the true (0) or the predicted (1) labels, where there are some."""
        return {
            sector: float(share) for sector, share in zip(self.sectors, self.shares[:, side], strict=True) if share > 0
        }

    def ranges(self) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]] | None:
        """The intervals of both sides by sector, as `plots.draw_wheel` takes them."""
        if self.intervals is None:
            return None
        true, predicted = (
            {sector: (low, high) for sector, (low, high) in zip(self.sectors, self.intervals[:, side], strict=True)}
            for side in (0, 1)
        )
        return true, predicted


def label_shares(
    truths: Sequence[Iterable[str]],
    answers: Sequence[Iterable[str]],
    grouping: WheelGrouping,
    wheel: int = 1,
    *,
    n_bootstrap: int = 1000,
    seed: int = 42,
) -> LabelShares:
    """Count the labels of each clip by level-1 sector of a wheel; every label counts, not only the clip's own sector.

    Args:
        truths, answers: labels of the clips, in the same order.
    """
    if not 1 <= wheel <= len(LEVEL1):
        raise InputError(f"wheel {wheel!r}: expected the number of a wheel, 1 to {len(LEVEL1)}")
    name = LEVEL1[wheel - 1]
    sides = []  # of the true and of the predicted labels: for each clip sector -> number of its labels
    for side in (truths, answers):
        groups = ([grouping.groups(word).get(name) for word in words] for words in side)
        sides.append([Counter(group for group in clip if group) for clip in groups])
    sectors = tuple(sorted({sector for side in sides for clip in side for sector in clip}))
    counts = np.array([[[clip[sector] for sector in sectors] for clip in side] for side in sides], dtype=float)
    per_clip = np.moveaxis(counts, 0, -1)  # [n_clips, n_sectors, 2]

    def of(means: np.ndarray) -> np.ndarray:
        total = means.sum(axis=-2, keepdims=True)
        return np.divide(means, total, out=np.zeros_like(means), where=total > 0)

    shares = of(per_clip.sum(axis=0))
    if n_bootstrap < 1 or not per_clip.size:
        return LabelShares(sectors, shares, None)
    resampled = of(resampled_means(per_clip, n_bootstrap=n_bootstrap, seed=seed))  # [K, n_sectors, 2]
    found = [
        [percentile_interval(resampled[:, sector, side], seed) for side in (0, 1)] for sector in range(len(sectors))
    ]
    ends = np.array([[(interval.low, interval.high) for interval in row] for row in found])
    return LabelShares(sectors, shares, ends)
