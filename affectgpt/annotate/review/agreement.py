"""How far annotators agree on sets of labels: Krippendorff's alpha with a distance between sets.

Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability"; the distance between sets is Jaccard's, or MASI of
Passonneau (2006), "Measuring Agreement on Set-valued Items". With one label each, both give the nominal alpha.

The package `krippendorff` (0.9.0) takes such distances and gives the same numbers, but its coincidence counts are an
array [clips, distinct sets, distinct sets]: 1,000 clips with 1,000 distinct label sets would take 8 GB. Here memory
grows with the distinct sets only.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

LabelSet = AbstractSet[str]
Distance = Callable[[LabelSet, LabelSet], float]

MAX_PAIRS = 500_000
"""Pairs of distinct label sets; with more, the expected disagreement is estimated from this many random pairs."""


def jaccard_distance(a: LabelSet, b: LabelSet) -> float:
    """1 - |A ∩ B| / |A ∪ B|; 0 for two empty sets.

    >>> jaccard_distance({"sad", "tired"}, {"sad"}), jaccard_distance(set(), set())
    (0.5, 0.0)
    """
    return 1 - len(a & b) / len(a | b) if a or b else 0.0


def masi_distance(a: LabelSet, b: LabelSet) -> float:
    """1 - J x M with M = 1 (equal), 2/3 (one contains the other), 1/3 (they overlap), 0 (disjoint).

    >>> round(masi_distance({"sad", "tired"}, {"sad"}), 4), round(masi_distance({"a", "b"}, {"b", "c"}), 4)
    (0.6667, 0.8889)
    """
    if a == b:
        return 0.0
    monotone = 2 / 3 if a <= b or b <= a else 1 / 3 if a & b else 0.0
    return 1 - (1 - jaccard_distance(a, b)) * monotone


def alpha(units: Iterable[Sequence[LabelSet]], distance: Distance = jaccard_distance, *, seed: int = 0) -> float | None:
    """Krippendorff's alpha: 1 - observed / expected disagreement; 1 = full agreement, 0 = as by chance.

    Args:
        units: for each clip the label sets of its annotators; clips with fewer than two are left out.
        seed: for the random pairs where there are too many distinct sets to compare all.

    Returns:
        None where alpha is undefined: no clip with two label sets, or all label sets are equal.

    >>> alpha([[{"a"}, {"a"}], [{"b"}, {"b"}], [{"a"}, {"b"}]])
    0.4444444444444444
    """
    counts: Counter[frozenset[str]] = Counter()
    observed = 0.0
    for unit in units:
        if len(unit) < 2:
            continue
        counts.update(map(frozenset, unit))
        # Each unordered pair counts as two ordered ones, and the values of the unit have the weight 1 / (m - 1).
        observed += 2 * sum(distance(a, b) for a, b in itertools.combinations(unit, 2)) / (len(unit) - 1)
    n = counts.total()
    if n < 2:
        return None
    expected = _expected_disagreement(counts, distance, random.Random(seed))
    return None if expected == 0 else 1 - (observed / n) / expected


def _expected_disagreement(counts: Counter[frozenset[str]], distance: Distance, rng: random.Random) -> float:
    """Mean distance of two different values drawn from all clips."""
    kinds, n = list(counts), counts.total()
    if len(kinds) * (len(kinds) - 1) / 2 <= MAX_PAIRS:
        total = sum(2 * counts[a] * counts[b] * distance(a, b) for a, b in itertools.combinations(kinds, 2))
        return total / (n * (n - 1))
    values = list(counts.elements())
    return sum(distance(*rng.sample(values, 2)) for _ in range(MAX_PAIRS)) / MAX_PAIRS


@dataclass(frozen=True)
class LabelAgreement:
    """Agreement on label sets.

    Attributes:
        n_clips: clips with label sets of at least two annotators; `n_sets`: these sets.
        alpha_jaccard, alpha_masi: Krippendorff's alpha; None = undefined.
        overlap: Jaccard similarity of two annotators of a clip, averaged over pairs, then over clips.
        by_annotator: the same between one annotator and the others.
    """

    n_clips: int
    n_sets: int
    alpha_jaccard: float | None
    alpha_masi: float | None
    overlap: float | None
    by_annotator: Mapping[str, float]

    def line(self) -> str:
        """The figures in one line."""
        if not self.n_clips:
            return "agreement: no clip has labels of two annotators"
        figures = [
            f"{name} {value:.3f}" if value is not None else f"{name} not defined"
            for name, value in (("alpha (Jaccard)", self.alpha_jaccard), ("alpha (MASI)", self.alpha_masi))
        ]
        return f"agreement on labels: {', '.join(figures)}, overlap {self.overlap:.3f}; {self.n_clips} clips"


def label_agreement(clips: Iterable[Mapping[str, Iterable[str]]]) -> LabelAgreement:
    """Agreement of annotators, given for each clip as annotator -> labels; case and outer spaces are ignored."""
    units: list[list[frozenset[str]]] = []
    overlaps: list[float] = []
    with_others: dict[str, list[float]] = {}
    for clip in clips:
        sets = {name: frozenset(label.strip().lower() for label in labels) for name, labels in clip.items()}
        if len(sets) < 2:
            continue
        units.append(list(sets.values()))
        pairs = {(a, b): 1 - jaccard_distance(sets[a], sets[b]) for a, b in itertools.combinations(sets, 2)}
        overlaps.append(sum(pairs.values()) / len(pairs))
        for name in sets:
            own = [value for pair, value in pairs.items() if name in pair]
            with_others.setdefault(name, []).append(sum(own) / len(own))
    return LabelAgreement(
        n_clips=len(units),
        n_sets=sum(map(len, units)),
        alpha_jaccard=alpha(units, jaccard_distance),
        alpha_masi=alpha(units, masi_distance),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        by_annotator={name: sum(values) / len(values) for name, values in sorted(with_others.items())},
    )
