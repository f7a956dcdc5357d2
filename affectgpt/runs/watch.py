"""What a run has written so far, to watch it while it trains: curves, answers to validation clips, rollouts.

All functions read files that another process may be writing: an incomplete last line is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.journal import read_journal
from affectgpt.runtime import InputError, NotFound
from affectgpt.schema import Prediction, prediction_from_row

METRICS = "metrics.jsonl"
GENERATIONS = "generations"
ROLLOUTS = "rollouts.jsonl"
_STEP = re.compile(r"step-(\d+)\.jsonl")


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a run; values are finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each with a whole `step`; other lines are no events of a run and are left out."""
    rows = read_journal(run / METRICS)
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def curves(run: Path, names: Iterable[str] | None = None) -> dict[str, Curve]:
    """The quantities of metrics.jsonl by name, in the order of their first appearance.

    Args:
        names: which ones, such as ("loss", "learning_rate", "eval_f_s"); None = all.

    Values that are no finite numbers are left out. A step that is logged twice has its last value.
    """
    wanted = None if names is None else set(names)
    found: dict[str, dict[int, float]] = {}
    for row in read_metrics(run):
        for name, value in row.items():
            if name == "step" or (wanted is not None and name not in wanted):
                continue
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(name, {})[row["step"]] = float(value)
    return {
        name: Curve(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
        for name, points in found.items()
    }


def generation_steps(run: Path) -> list[int]:
    """The steps with answers to the validation clips."""
    files = (run / GENERATIONS).glob("step-*.jsonl")
    return sorted(int(match[1]) for path in files if (match := _STEP.fullmatch(path.name)))


def read_generations(run: Path, step: int) -> list[Prediction]:
    """The answers of one step, in the order of the validation clips.

    Raises:
        NotFound: the run has none of this step.
    """
    path = run / GENERATIONS / f"step-{step:06d}.jsonl"
    if not path.is_file():
        raise NotFound(f"{run} has no generations of step {step}; it has those of {generation_steps(run)}")
    return [prediction_from_row(row) for row in read_journal(path)]


def generations_over_steps(run: Path, sample_id: str) -> dict[int, Prediction]:
    """Step -> the answer to one validation clip."""
    found = {}
    for step in generation_steps(run):
        for row in read_generations(run, step):
            if row.id == sample_id:
                found[step] = row
    return found


def read_rollouts(run: Path, step: int | None = None) -> list[dict[str, Any]]:
    """The rows of rollouts.jsonl, which reward runs write; [] without the file.

    Args:
        step: only rows of this step; None = all.

    Raises:
        InputError: a row is no object with a whole `step`.
    """
    rows = read_journal(run / ROLLOUTS)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise InputError(f"{run / ROLLOUTS}, row {number}: expected an object with a step")
    return rows if step is None else [row for row in rows if row["step"] == step]


def rollout_steps(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps of rows of rollouts."""
    return sorted({row["step"] for row in rows})
