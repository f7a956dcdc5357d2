"""How far annotators agree on sets of labels: Krippendorff's alpha with a distance between sets.

Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability"; the distance between sets is Jaccard's, or MASI of
Passonneau (2006), "Measuring Agreement on Set-valued Items". With one label each, both are the nominal alpha.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

Labels = AbstractSet[str]
Distance = Callable[[Labels, Labels], float]

MAX_PAIRS = 500_000
"""Of distinct label sets; above it the expected disagreement is estimated from that many drawn pairs."""


def jaccard(a: Labels, b: Labels) -> float:
    """1 - |A ∩ B| / |A ∪ B|; 0 for two empty sets.

    >>> jaccard({"sad", "tired"}, {"sad"}), jaccard(set(), set())
    (0.5, 0.0)
    """
    return 1 - len(a & b) / len(a | b) if a or b else 0.0


def masi(a: Labels, b: Labels) -> float:
    """1 - J x M with M = 1 (equal), 2/3 (one holds the other), 1/3 (they overlap), 0 (nothing shared).

    >>> round(masi({"sad", "tired"}, {"sad"}), 4), round(masi({"a", "b"}, {"b", "c"}), 4)
    (0.6667, 0.8889)
    """
    if a == b:
        return 0.0
    monotone = 2 / 3 if a <= b or b <= a else 1 / 3 if a & b else 0.0
    return 1 - (1 - jaccard(a, b)) * monotone


def alpha(units: Iterable[Sequence[Labels]], distance: Distance = jaccard, *, seed: int = 0) -> float | None:
    """Krippendorff's alpha: 1 - observed / expected disagreement; 1 = full agreement, 0 = as by chance.

    Args:
        units: for each clip the label sets that annotators gave; clips with fewer than two are left out.
        seed: for drawing pairs where there are too many distinct sets to compare all.

    Returns:
        None where alpha is not defined: no clip with two label sets, or all label sets are the same.

    >>> alpha([[{"a"}, {"a"}], [{"b"}, {"b"}], [{"a"}, {"b"}]])
    0.4444444444444444
    """
    counts: Counter[frozenset[str]] = Counter()
    observed = 0.0
    for unit in units:
        if len(unit) < 2:
            continue
        counts.update(map(frozenset, unit))
        # Each unordered pair stands for two ordered ones; the unit's values weigh 1 / (m - 1).
        observed += 2 * sum(distance(a, b) for a, b in itertools.combinations(unit, 2)) / (len(unit) - 1)
    n = counts.total()
    if n < 2:
        return None
    expected = _expected(counts, distance, random.Random(seed))
    return None if expected == 0 else 1 - (observed / n) / expected


def _expected(counts: Counter[frozenset[str]], distance: Distance, rng: random.Random) -> float:
    """Mean distance of two different values drawn from all clips."""
    kinds, n = list(counts), counts.total()
    if len(kinds) * (len(kinds) - 1) / 2 <= MAX_PAIRS:
        whole = sum(2 * counts[a] * counts[b] * distance(a, b) for a, b in itertools.combinations(kinds, 2))
        return whole / (n * (n - 1))
    values = list(counts.elements())
    return sum(distance(*rng.sample(values, 2)) for _ in range(MAX_PAIRS)) / MAX_PAIRS


@dataclass(frozen=True)
class Agreement:
    """Agreement on label sets.

    Attributes:
        n_clips: clips with label sets of at least two annotators; `n_sets`: these sets.
        alpha_jaccard, alpha_masi: Krippendorff's alpha; None = not defined.
        overlap: Jaccard similarity of two annotators of a clip, averaged over pairs, then over clips.
        by_annotator: the same between one annotator and the others.
    """

    n_clips: int
    n_sets: int
    alpha_jaccard: float | None
    alpha_masi: float | None
    overlap: float | None
    by_annotator: Mapping[str, float]

    def told(self) -> str:
        """One line."""
        if not self.n_clips:
            return "agreement: no clip has labels of two annotators"
        figures = [
            f"{name} {value:.3f}" if value is not None else f"{name} not defined"
            for name, value in (("alpha (Jaccard)", self.alpha_jaccard), ("alpha (MASI)", self.alpha_masi))
        ]
        return f"agreement on labels: {', '.join(figures)}, overlap {self.overlap:.3f}; {self.n_clips} clips"


def agreement(clips: Iterable[Mapping[str, Iterable[str]]]) -> Agreement:
    """Agreement of annotators, given for each clip as annotator -> labels; case and outer spaces do not matter."""
    units: list[list[frozenset[str]]] = []
    overlaps: list[float] = []
    with_others: dict[str, list[float]] = {}
    for clip in clips:
        sets = {name: frozenset(label.strip().lower() for label in labels) for name, labels in clip.items()}
        if len(sets) < 2:
            continue
        units.append(list(sets.values()))
        pairs = {(a, b): 1 - jaccard(sets[a], sets[b]) for a, b in itertools.combinations(sets, 2)}
        overlaps.append(sum(pairs.values()) / len(pairs))
        for name in sets:
            own = [value for pair, value in pairs.items() if name in pair]
            with_others.setdefault(name, []).append(sum(own) / len(own))
    return Agreement(
        n_clips=len(units),
        n_sets=sum(map(len, units)),
        alpha_jaccard=alpha(units, jaccard),
        alpha_masi=alpha(units, masi),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        by_annotator={name: sum(values) / len(values) for name, values in sorted(with_others.items())},
    )
