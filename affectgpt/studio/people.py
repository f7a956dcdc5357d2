"""Faces for a page: boxes in the frames that are shown, and the movements of the main face over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.annotate.evidence import MIN_CONFIDENCE, UNITS
from affectgpt.config import FacesConfig
from affectgpt.media import read_openface
from affectgpt.media.faces import FaceTracks, measure_face, track

RATE_HZ = 8.0  # frames a second that are looked at: a blink may be missed, an expression is not
MAX_GAP_S = 0.4  # between a frame that is shown and the nearest one that was looked at
N_POINTS = 200  # of a curve at most


def faces_of(path: Path, times_s: Sequence[float]) -> dict[str, Any]:
    """Boxes for each of the times, and the movements of the main person.

    Returns:
        "faces": for each time [{"box": left, top, width, height in shares of the frame, "main"}];
        "movements": [{"name", "start_s", "end_s", "peak_s", "value", "unit"}], if a face is seen; "detector".
    """
    tracks = track(str(path), FacesConfig(rate_hz=RATE_HZ))
    found: dict[str, Any] = {"faces": [_boxes(tracks, time) for time in times_s], "detector": tracks.detector}
    measures = measure_face(tracks)
    if measures is None:
        return found
    found["movements"] = [
        {
            "name": one.name, "start_s": round(one.start_s, 2), "end_s": round(one.end_s, 2),
            "peak_s": round(one.peak_s, 2), "value": round(one.value, 3), "unit": one.unit,
        }
        for one in measures.movements
    ]  # fmt: skip
    return found


def units_of(table: Path) -> dict[str, Any]:
    """The curves of a table of action units, for a page.

    Returns:
        "of": "intensity" (0 to 5) or "probability" (0 to 1); "most": its largest possible value; "curves": for each
        unit {"name", "words": by language, "points": [[seconds, value]]}, the largest value of each of N_POINTS parts,
        None = no face was tracked there.

    Raises:
        MediaError: the table cannot be read.
    """
    found = read_openface(table)
    of, most = ("intensity", 5) if found.intensity else ("probability", 1)
    tracked = found.success & (found.confidence >= MIN_CONFIDENCE)
    parts = np.array_split(np.arange(len(found)), min(N_POINTS, len(found)))
    curves = []
    for unit, values in sorted((found.intensity or found.probability).items()):
        shown = [(part[0], values[part][tracked[part]]) for part in parts]
        points = [
            [round(float(found.timestamp_s[first]), 3), round(float(seen.max()), 2) if len(seen) else None]
            for first, seen in shown
        ]
        words = dict(zip(("en", "zh"), UNITS.get(unit, (unit, unit)), strict=True))
        curves.append({"name": unit, "words": words, "points": points})
    return {"of": of, "most": most, "curves": curves}


def _boxes(tracks: FaceTracks, time_s: float) -> list[dict[str, Any]]:
    row = int(np.abs(tracks.times_s - time_s).argmin()) if len(tracks.times_s) else -1
    if row < 0 or abs(tracks.times_s[row] - time_s) > MAX_GAP_S:
        return []
    boxes = []
    for number, person in enumerate(tracks.persons):
        for place in np.flatnonzero(person.rows == row):
            left, top, right, bottom = (float(edge) for edge in person.boxes[place])
            box = [
                left / tracks.width,
                top / tracks.height,
                (right - left) / tracks.width,
                (bottom - top) / tracks.height,
            ]
            boxes.append({"box": [round(share, 4) for share in box], "main": number == tracks.main})
    return boxes
