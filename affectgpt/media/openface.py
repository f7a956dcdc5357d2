"""Read action units from the `<name>.csv` of OpenFace 2: one row per frame (and face)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affectgpt.media.container import PathLike
from affectgpt.media.errors import EmptyMedia, MediaError, MissingMedia
from affectgpt.runtime import InputError

BLINK = ("AU45",)
"""Blinks: their intensity says nothing about the peak of an expression."""


@dataclass(frozen=True)
class ActionUnits:
    """Action units of one clip; n rows.

    Attributes:
        frame: int64 [n], as numbered by OpenFace (from 1; from 0 for single images).
        timestamp_s: float64 [n].
        confidence: float64 [n] in 0..1, from the face tracker.
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
        """The rows selected by a boolean or index array [n]."""
        return ActionUnits(
            self.frame[chosen],
            self.timestamp_s[chosen],
            self.confidence[chosen],
            self.success[chosen],
            {unit: values[chosen] for unit, values in self.intensity.items()},
            {unit: values[chosen] for unit, values in self.presence.items()},
        )

    def tracked(self, *, min_confidence: float = 0.8, skip_first: int = 0) -> ActionUnits:
        """Rows with a tracked face and at least `min_confidence`, without the first `skip_first` frames.

        The tracker needs a few frames to converge, and its measurements there are often artefacts.
        """
        converged = np.arange(len(self)) >= skip_first
        return self.rows(self.success & (self.confidence >= min_confidence) & converged)

    def peak(self, *, without: Sequence[str] = BLINK) -> int:
        """The (first) row with the largest sum of intensities, ignoring the units in `without`."""
        if not len(self):
            raise InputError("no rows to take the peak of; lower min_confidence, or leave the clip out")
        summed = sum(values for unit, values in self.intensity.items() if unit not in without)
        return int(np.argmax(np.broadcast_to(summed, len(self))))


def read_openface(path: PathLike) -> ActionUnits:
    """Read a csv file of OpenFace's FeatureExtraction; its header has spaces after the commas.

    Raises:
        MissingMedia, EmptyMedia: no file, or no rows in it.
        MediaError: the file cannot be read, lacks columns, has non-numeric cells, or has several faces.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise MissingMedia(f"{path}: no such file; check the folder of OpenFace's output")
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
    except MissingMedia:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MediaError(f"{path}: cannot be read ({error}); run OpenFace again, or leave it out") from error
    columns = [name.strip() for name in header]
    units = [name for name in columns if name.startswith("AU") and name[-2:] in ("_r", "_c")]
    if (missing := sorted({"frame", "timestamp", "confidence", "success"} - set(columns))) or not units:
        raise MediaError(
            f"{path}: no columns {missing or ['AU01_r ...']}, found {columns[:8]}; run OpenFace's FeatureExtraction"
        )
    if not rows:
        raise EmptyMedia(f"{path}: has no frames; run OpenFace again, or leave it out")
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise MediaError(f"{path}:{number}: expected {len(columns)} cells, found {len(row)}; is it truncated?")
    try:
        table = dict(zip(columns, np.array(rows, dtype=np.float64).T, strict=True))
    except ValueError as error:
        raise MediaError(f"{path}: a cell is not a number ({error})") from error
    if (n_faces := len(set(table.get("face_id", ())))) > 1:
        raise MediaError(f"{path}: has {n_faces} faces, expected one; run FeatureExtraction, which tracks one face")
    return ActionUnits(
        table["frame"].astype(np.int64),
        table["timestamp"],
        table["confidence"],
        table["success"] == 1,
        {name[:-2]: table[name] for name in units if name.endswith("_r")},
        {name[:-2]: table[name] == 1 for name in units if name.endswith("_c")},
    )
