"""What a run has written so far, to watch it while it trains: curves, answers to validation clips, rollouts.

All functions read files that another process may be writing: an incomplete last line is left out.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from affectgpt.journal import read_journal
from affectgpt.runtime import InputError, NotFound
from affectgpt.schema import Prediction, prediction_from_row

METRICS = "metrics.jsonl"
GENERATIONS = "generations"
ROLLOUTS = "rollouts.jsonl"
_STEP = re.compile(r"step-(\d+)\.jsonl")
_TAIL_BYTES = 256


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
        names: which ones, such as ("loss", "learning_rate", "eval_score"); None = all.

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


class Rollouts:
    """The rollouts.jsonl of a run, which reward runs write; each call reads only what was appended since the last one.

    A resumed run writes the file anew without the steps after its checkpoint: it is then read from its start.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / ROLLOUTS
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._read_to, self._tail, self._inode = (
            0,
            b"",
            0,
        )  # the last bytes that were read tell a new file from a longer
        self._places: dict[int, dict[str, list[int]]] = {}  # step -> id -> where its rows start

    def steps(self) -> list[int]:
        """The steps with rollouts; [] without the file.

        Raises:
            InputError: a line is no object with an id and a whole step.
        """
        with self._opened():
            return sorted(self._places)

    def clips(
        self, step: int, offset: int = 0, limit: int | None = None
    ) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        """The number of clips of a step, and the rows of some of them by id, in the order of the file."""
        with self._opened() as file:
            places = self._places.get(step, {})
            chosen = itertools.islice(places.items(), offset, None if limit is None else offset + limit)
            return len(places), {name: [self._row(file, start) for start in starts] for name, starts in chosen}

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        with self._lock, contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self._path.open("rb"))
            except FileNotFoundError:
                self._forget()
                yield io.BytesIO()
                return
            self._follow(file)
            yield file

    def _follow(self, file: BinaryIO) -> None:
        inode = os.fstat(file.fileno()).st_ino
        file.seek(max(0, self._read_to - len(self._tail)))
        if inode != self._inode or file.read(len(self._tail)) != self._tail:
            self._forget()
            file.seek(0)
        self._inode, start = inode, self._read_to
        for line in file:
            if not line.endswith(b"\n"):
                break  # it is being written
            if b"\0" not in line:  # which a power failure leaves
                row = self._parsed(line, start)
                self._places.setdefault(row["step"], {}).setdefault(row["id"], []).append(start)
            start += len(line)
            self._read_to, self._tail = start, line[-_TAIL_BYTES:]

    def _row(self, file: BinaryIO, start: int) -> dict[str, Any]:
        file.seek(start)
        return self._parsed(file.readline(), start)

    def _parsed(self, line: bytes, start: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("id"), str):
            return row
        raise InputError(f"{self._path}, byte {start}: expected an object with a step and an id")
