"""Heuristic baselines of the papers: Empty ("unable to judge") and Random (one basic emotion)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from affectgpt.runtime import InputError

MER2023_EMOTIONS = ("worried", "happy", "neutral", "angry", "surprised", "sad")
"""The candidate labels of the Random baseline (EMER paper, section 4)."""


def empty(ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """No labels for any id: the lower bound of every set score."""
    return dict.fromkeys(ids, ())


def random_labels(
    ids: Iterable[str], vocabulary: Sequence[str] = MER2023_EMOTIONS, *, n_labels: int = 1, seed: int = 42
) -> dict[str, tuple[str, ...]]:
    """`n_labels` labels for each id, drawn uniformly without replacement, in sorted order of the ids.

    Args:
        vocabulary: labels to draw from; repeat a label to draw it more often.
    """
    names = list(vocabulary)
    if not 1 <= n_labels <= len(names):
        raise InputError(f"n_labels is {n_labels}; expected 1 to {len(names)}, the size of the vocabulary")
    rng = np.random.default_rng(seed)
    return {
        sample_id: tuple(dict.fromkeys(names[i] for i in rng.choice(len(names), size=n_labels, replace=False)))
        for sample_id in sorted(ids)
    }
