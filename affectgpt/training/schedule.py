"""Learning-rate schedule (AffectGPT's recipe: linear warm-up, then a half cosine)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from affectgpt.config import StageConfig
from affectgpt.runtime import InputError


@dataclass(frozen=True)
class Schedule:
    """Linear from `start` to `peak` over `warmup_steps`, then a half cosine to `floor` at the last step.

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
                f"stage.warmup_steps={self.warmup_steps} must be smaller than the {self.total_steps} steps of the run"
            )
        if not 0 <= self.start <= self.peak or not 0 <= self.floor <= self.peak or self.peak == 0:
            raise InputError(
                f"stage.warmup_learning_rate={self.start} and min_learning_rate={self.floor} must be between 0 and "
                f"learning_rate={self.peak}"
            )

    def at(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        left = self.total_steps - 1 - self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / left) if left else 1.0
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def schedule_of(stage: StageConfig) -> Schedule:
    """The schedule of a stage; raises InputError naming the setting that cannot be."""
    n_steps = stage.epochs * stage.iterations_per_epoch
    rates = stage.warmup_learning_rate, stage.learning_rate, stage.min_learning_rate
    return Schedule(n_steps, stage.warmup_steps, *rates)
