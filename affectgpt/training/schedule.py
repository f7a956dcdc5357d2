"""The learning rate of a run, step by step (AffectGPT's recipe: linear warm-up, then half a cosine)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from affectgpt.runtime import InputError


@dataclass(frozen=True)
class Schedule:
    """Linear from `start` to `peak` over `warmup_steps`, then a half cosine down to `floor` at the last step.

    >>> schedule = Schedule(total_steps=11, warmup_steps=2, start=1e-6, peak=3e-5, floor=1e-5)
    >>> [f"{schedule.at(step):.1e}" for step in (0, 1, 2, 6, 10)]
    ['1.0e-06', '1.6e-05', '3.0e-05', '2.0e-05', '1.0e-05']
    """

    total_steps: int
    warmup_steps: int
    start: float
    peak: float
    floor: float

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.total_steps:
            raise InputError(
                f"warmup_steps is {self.warmup_steps}, but the run has {self.total_steps} steps; it must be smaller"
            )
        if not 0 <= self.start <= self.peak or not 0 <= self.floor <= self.peak or self.peak == 0:
            raise InputError(
                f"learning rates start {self.start}, peak {self.peak}, floor {self.floor}: the peak must be the largest"
            )

    def at(self, step: int) -> float:
        """Learning rate of the update number `step` (0 is the first)."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        left = self.total_steps - 1 - self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / left) if left else 1.0
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
