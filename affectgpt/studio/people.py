"""Faces for a page: boxes in the frames that are shown, and the movements of the main face over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config import FacesConfig
from affectgpt.media.faces import FaceTracks, measure_face, track

RATE_HZ = 8.0  # frames a second that are looked at: a blink may be missed, an expression is not
MAX_GAP_S = 0.4  # between a frame that is shown and the nearest one that was looked at


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
