"""Scores of label sets: precision, recall, F_S, Avg, Jaccard.

A pair is (truth, prediction): the two sets of group ids of one sample. Sources: EMER and AffectGPT papers (Accuracy_S =
precision, Recall_S, Avg), OV-MER paper section 4 and MER2024 (F_S).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

Pair = tuple[Set[str], Set[str]]


@dataclass(frozen=True)
class SetScore:
    """Sample-averaged precision and recall over `n` samples, as fractions of 1; n = 0 scores 0."""

    precision: float
    recall: float
    n: int

    @property
    def f_score(self) -> float:
        """F_S, the harmonic mean of the *averaged* precision and recall; 0 if both are 0.

        >>> round(100 * SetScore(0.4942, 0.3104, 332).f_score, 2)
        38.13
        """
        return harmonic_mean(self.precision, self.recall)

    @property
    def avg(self) -> float:
        """Avg of the EMER and AffectGPT papers: (precision + recall) / 2.

        >>> round(100 * SetScore(0.4942, 0.3104, 332).avg, 2)
        40.23
        """
        return (self.precision + self.recall) / 2


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 if a + b is 0 (the published implementation returns NaN)."""
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def sample_score(truth: Set[str], prediction: Set[str]) -> tuple[float, float] | None:
    """Precision and recall of one sample; None for an empty truth (not scored), (0, 0) for an empty prediction.

    >>> sample_score({"sad", "tired"}, {"sad"}), sample_score({"angry"}, set()), sample_score(set(), {"angry"})
    ((1.0, 0.5), (0.0, 0.0), None)
    """
    if not truth:
        return None
    if not prediction:
        return 0.0, 0.0
    n_shared = len(truth & prediction)
    return n_shared / len(prediction), n_shared / len(truth)


def set_score(pairs: Iterable[Pair]) -> SetScore:
    """Averages over samples; an empty truth is left out, an empty prediction scores 0.

    >>> set_score([({"sad", "tired"}, {"sad"}), ({"angry"}, set()), (set(), {"calm"})])
    SetScore(precision=0.5, recall=0.25, n=2)
    """
    scores = [score for truth, prediction in pairs if (score := sample_score(truth, prediction)) is not None]
    if not scores:
        return SetScore(0.0, 0.0, 0)
    return SetScore(sum(p for p, _ in scores) / len(scores), sum(r for _, r in scores) / len(scores), len(scores))


def jaccard(pairs: Iterable[Pair]) -> tuple[float, int]:
    """|A ∩ B| / |A ∪ B| averaged over samples, and the number of samples; pairs of two empty sets are left out.

    Symmetric: for two label sets neither of which is the reference, as in the language study of the EMER paper.

    >>> jaccard([({"a", "b"}, {"b", "c"}), ({"a"}, {"a"}), (set(), set())])
    (0.6666666666666666, 2)
    """
    values = [len(a & b) / len(a | b) for a, b in pairs if a | b]
    return (sum(values) / len(values) if values else 0.0), len(values)
