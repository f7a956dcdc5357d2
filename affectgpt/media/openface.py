"""Read action units from the CSV file of OpenFace 2, LibreFace or py-feat: one row per frame (and face)."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        frame: int64 [n], as numbered by the tool (OpenFace: from 1; from 0 for single images).
        timestamp_s: float64 [n].
        confidence: float64 [n] in 0..1, from the face tracker.
        success: bool [n], whether a face was tracked.
        intensity: "AU01" -> float64 [n] in 0..5 (columns AU01_r ...).
        presence: "AU01" -> bool [n] (columns AU01_c ...).
        probability: "AU01" -> float64 [n] in 0..1, of py-feat, which gives no intensities.
    """

    frame: np.ndarray
    timestamp_s: np.ndarray
    confidence: np.ndarray
    success: np.ndarray
    intensity: dict[str, np.ndarray]
    presence: dict[str, np.ndarray]
    probability: dict[str, np.ndarray] = field(default_factory=dict)

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
            {unit: values[chosen] for unit, values in self.probability.items()},
        )

    def tracked(self, *, min_confidence: float = 0.8, skip_first: int = 0) -> ActionUnits:
        """Rows with a tracked face and at least `min_confidence`, without the first `skip_first` frames.

        The tracker needs a few frames to converge, and its measurements there are often artefacts.
        """
        converged = np.arange(len(self)) >= skip_first
        return self.rows(self.success & (self.confidence >= min_confidence) & converged)

    def peak(self, *, without: Sequence[str] = BLINK) -> int:
        """The (first) row with the largest sum of intensities, else of probabilities, of units not in `without`."""
        if not len(self):
            raise InputError("no rows to take the peak of; lower min_confidence, or leave the clip out")
        measured = self.intensity or self.probability
        summed = sum(values for unit, values in measured.items() if unit not in without)
        return int(np.argmax(np.broadcast_to(summed, len(self))))


def read_openface(path: PathLike) -> ActionUnits:
    """Read a csv file of OpenFace's FeatureExtraction (its header has spaces after the commas), LibreFace or py-feat.

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
    if {"action_units", "face_detection"} <= set(columns):
        raise MediaError(
            f"{path}: a table of OpenFace 3, which gives eight numbers without saying which action units they are, and "
            "the time of the computation instead of that in the video; use OpenFace 2, LibreFace, py-feat or none: "
            "movements of the face are then measured on the video"
        )
    if "au_1_intensity" in columns:
        return _libreface(path, columns, rows)
    if {"FaceScore", "AU01", "AU12"} <= set(columns):
        return _pyfeat(path, columns, rows)
    units = [name for name in columns if name.startswith("AU") and name[-2:] in ("_r", "_c")]
    if (missing := sorted({"frame", "timestamp", "confidence", "success"} - set(columns))) or not units:
        raise MediaError(
            f"{path}: no columns {missing or ['AU01_r ...']}, found {columns[:8]}; run OpenFace's FeatureExtraction"
        )
    table = _numbers(path, columns, rows, columns)
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


def _libreface(path: PathLike, columns: list[str], rows: list[list[str]]) -> ActionUnits:
    """Columns au_12_intensity (0..5) and au_12 (0 or 1) of frames in which a face was found, times in milliseconds."""
    units = {name: f"AU{int(name.split('_')[1]):02d}" for name in columns if re.fullmatch(r"au_\d+(_intensity)?", name)}
    if missing := sorted({"frame_idx", "frame_time_in_ms"} - set(columns)):
        raise MediaError(
            f"{path}: LibreFace's table has no columns {missing}; run LibreFace on the video, not on a picture"
        )
    table = _numbers(path, columns, rows, [*units, "frame_idx", "frame_time_in_ms"])
    return ActionUnits(
        table["frame_idx"].astype(np.int64),
        table["frame_time_in_ms"] / 1000,
        np.ones(len(rows)),  # it gives no confidence
        np.ones(len(rows), dtype=bool),
        {unit: table[name] for name, unit in units.items() if name.endswith("_intensity")},
        {unit: table[name] > 0.5 for name, unit in units.items() if not name.endswith("_intensity")},
    )


def _pyfeat(path: PathLike, columns: list[str], rows: list[list[str]]) -> ActionUnits:
    """Columns AU12 (a probability) and FaceScore, which is empty in frames without a face; and `timestamp`."""
    if missing := sorted({"frame", "timestamp"} - set(columns)):
        raise MediaError(
            f"{path}: py-feat's table has no columns {missing}; add timestamp = frame / frames per second of the video"
        )
    units = [name for name in columns if re.fullmatch(r"AU\d\d", name)]
    table = _numbers(path, columns, rows, [*units, "FaceScore", "frame", "timestamp"])
    if len(set(table["frame"])) < len(rows):
        raise MediaError(f"{path}: several faces in a frame, expected one; keep the rows of one person")
    is_found = ~np.isnan(table["FaceScore"])
    probability = {unit: np.where(is_found, table[unit], 0.0) for unit in units}
    return ActionUnits(
        table["frame"].astype(np.int64),
        table["timestamp"],
        np.where(is_found, table["FaceScore"], 0.0),
        is_found,
        {},
        {unit: values >= 0.5 for unit, values in probability.items()},
        probability,
    )


def _numbers(path: PathLike, columns: list[str], rows: list[list[str]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns as float64 [n]; an empty cell is NaN, except in a table that is all numbers."""
    if not rows:
        raise EmptyMedia(f"{path}: has no frames; run OpenFace again, or leave it out")
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise MediaError(f"{path}:{number}: expected {len(columns)} cells, found {len(row)}; is it truncated?")
    empty = "" if list(names) == columns else "nan"
    try:
        places = [columns.index(name) for name in names]
        values = [[row[place].strip() or empty for place in places] for row in rows]
        return dict(zip(names, np.array(values, dtype=np.float64).T, strict=True))
    except ValueError as error:
        raise MediaError(f"{path}: a cell is not a number ({error})") from error
