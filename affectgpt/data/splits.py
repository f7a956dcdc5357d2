"""Seeded choices by id: which samples are held out. Nothing depends on the order of rows."""

from __future__ import annotations

from collections.abc import Sequence

from affectgpt.runtime import InputError
from affectgpt.schema import Sample, held_out


def hold_out(samples: Sequence[Sample], *, n: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split into (rest, held out): the `n` samples with the smallest seeded hash of their id, both in file order."""
    if not 0 <= n < len(samples):
        raise InputError(f"cannot hold out {n} of {len(samples)} samples")
    chosen = held_out((sample.id for sample in samples), n=n, seed=seed)
    return [item for item in samples if item.id not in chosen], [item for item in samples if item.id in chosen]
