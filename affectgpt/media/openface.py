"""Action units that OpenFace 2 has measured: its `<name>.csv`, one row a frame (and face)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affectgpt.media.container import EmptyMedia, MediaError, MissingMedia, PathLike
from affectgpt.runtime import InputError

NO_EXPRESSION = ("AU45",)
"""Blinks, which are no peak of an expression."""


@dataclass(frozen=True)
class ActionUnits:
    """Action units of one clip; n rows.

    Attributes:
        frame: int64 [n], as OpenFace counts (from 1; from 0 in single-picture output).
        timestamp_s: float64 [n].
        confidence: float64 [n] in 0..1, of the face tracker.
        success: bool [n], whether a face was tracked.
        intensity: "AU01" -> float64 [n] in 0..5 (columns AU01_r ...).
        presence: "AU01" -> bool [n] (columns AU01_c ...).
    """

    frame: np.ndarray
    timestamp_s: np.ndarray
    confidence: np.ndarray
    success: np.ndarray
    intensity: dict[str, np.ndarray]
    presence: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, chosen: np.ndarray) -> ActionUnits:
        """The rows that a bool or index array [n] chooses."""
        return ActionUnits(
            self.frame[chosen],
            self.timestamp_s[chosen],
            self.confidence[chosen],
            self.success[chosen],
            {unit: values[chosen] for unit, values in self.intensity.items()},
            {unit: values[chosen] for unit, values in self.presence.items()},
        )

    def tracked(self, *, min_confidence: float = 0.8, skip_first: int = 0) -> ActionUnits:
        """Rows whose face was tracked, with at least `min_confidence`, without the first `skip_first` frames.

        A tracker settles in its first frames, and what it measures there is often no expression but an artefact.
        """
        settled = np.arange(len(self)) >= skip_first
        return self.rows(self.success & (self.confidence >= min_confidence) & settled)

    def peak(self, *, without: Sequence[str] = NO_EXPRESSION) -> int:
        """The row with the largest sum of intensities (the first of equals), leaving out the units in `without`."""
        if not len(self):
            raise InputError("no row is left to take the peak of; lower min_confidence, or leave the clip out")
        summed = sum(values for unit, values in self.intensity.items() if unit not in without)
        return int(np.argmax(np.broadcast_to(summed, len(self))))


def read_openface(path: PathLike) -> ActionUnits:
    """Read a csv file of OpenFace's FeatureExtraction; its header has spaces behind the commas.

    Raises:
        MissingMedia, EmptyMedia: no file, or no row in it.
        MediaError: columns are missing, a cell is no number, or the frames hold several faces.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingMedia(f"{path}: no such file; check the folder of OpenFace's output")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        columns = [name.strip() for name in next(reader, [])]
        wanted = {"frame", "timestamp", "confidence", "success"}
        units = [name for name in columns if name.startswith("AU") and name[-2:] in ("_r", "_c")]
        if (missing := sorted(wanted - set(columns))) or not units:
            lacking = missing or ["AU01_r ..."]
            raise MediaError(f"{path}: no columns {lacking}, found {columns[:8]}; run OpenFace's FeatureExtraction")
        rows: list[list[str]] = []
        for row in reader:
            if len(row) != len(columns):
                raise MediaError(f"{path}:{reader.line_num}: {len(row)} cells under {len(columns)} columns; cut off?")
            rows.append(row)
    if not rows:
        raise EmptyMedia(f"{path}: holds no frame; run OpenFace again, or leave it out")
    try:
        table = {name: np.array([float(row[number]) for row in rows]) for number, name in enumerate(columns)}
    except ValueError as error:
        raise MediaError(f"{path}: a cell is no number ({error})") from error
    if "face_id" in table and len(set(table["face_id"])) > 1:
        raise MediaError(f"{path}: holds {len(set(table['face_id']))} faces; choose one (FeatureExtraction tracks one)")
    return ActionUnits(
        table["frame"].astype(np.int64),
        table["timestamp"],
        table["confidence"],
        table["success"] == 1,
        {name[:-2]: table[name] for name in units if name.endswith("_r")},
        {name[:-2]: table[name] == 1 for name in units if name.endswith("_c")},
    )
