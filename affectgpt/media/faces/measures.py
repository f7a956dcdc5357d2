"""Movements of a face, measured from its points: relative to the clip's own rest, in units of the eye distance.

These are distances, no trained action units: a movement has the name of what was measured. Points are turned upright
with the depth that the mesh estimates, so that turning the head changes them little; beyond `MAX_TURN_DEG` they are not
used. An expression that stays the same throughout a clip is its rest and gives no movement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from affectgpt.media.faces.tracks import EYES, MESH_POINTS, FaceTracks, Person
from affectgpt.runtime import InputError

VERSION = "face-measures 1"
MAX_TURN_DEG = 35.0
"""Frames in which the head is turned or nods further than this, against facing the camera, are left out."""

EYE_DISTANCE, EYE_WIDTH, DEGREES, SHARE = "eye distances", "eye widths", "degrees", "of its rest"


@dataclass(frozen=True)
class Measure:
    """How a movement is found.

    Attributes:
        unit: of its values.
        threshold: the deviation from rest at which the movement starts; it ends at `_END` of it.
        rest: percentile of the clip's values that is its rest. 10 = the movement makes the value larger, and most of
            the clip may be moved; 50 = it may go both ways.
        is_expression: counts for the peak frame.
    """

    unit: str
    threshold: float
    rest: float
    is_expression: bool = True


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "inner_brows_raised": Measure(EYE_DISTANCE, 0.05, 50),
        "outer_brows_raised": Measure(EYE_DISTANCE, 0.05, 50),
        "eyes_narrowed": Measure(SHARE, 0.30, 25),
        "mouth_corners_raised": Measure(EYE_DISTANCE, 0.05, 15),
        "mouth_widened": Measure(EYE_DISTANCE, 0.08, 15),
        "lips_apart": Measure(EYE_DISTANCE, 0.06, 10),
        "lips_pressed": Measure(EYE_DISTANCE, 0.04, 15),
        "jaw_lowered": Measure(EYE_DISTANCE, 0.10, 15),
        "gaze_right": Measure(EYE_WIDTH, 0.10, 50, is_expression=False),
        "gaze_down": Measure(EYE_WIDTH, 0.08, 50, is_expression=False),
        "head_right": Measure(DEGREES, 10.0, 50, is_expression=False),
        "head_down": Measure(DEGREES, 8.0, 50, is_expression=False),
        "head_tilted_right": Measure(DEGREES, 8.0, 50, is_expression=False),
    }
)
"""Right and left are those of the picture. Opposite movements of two-sided measures have negative values."""

EYES_CLOSED, EYES_CLOSED_SHARE = 0.13, 0.45
"""Eyes count as closed if the gap of their lids is less than this in eye widths (open eyes: 0.2 to 0.4), or less than
this share of the gap when they are open (80th percentile of the clip)."""
MAX_BLINK_S = 0.5
_END = 0.6
_BROWS_PER_DEGREE = 0.005
"""Brows seem to rise when the head nods down, as the mesh's depth is too small; seen where no brow was raised."""
_LIPS_CLOSED = 0.06  # lips can only be pressed while the gap between them is smaller, in eye distances
_MIN_S, _MERGE_S = 0.2, 0.2
_NOISE = 4.0  # a movement exceeds the median change between frames this many times

_OPPOSITE = {
    "inner_brows_raised": "inner_brows_lowered",
    "outer_brows_raised": "outer_brows_lowered",
    "gaze_right": "gaze_left",
    "gaze_down": "gaze_up",
    "head_right": "head_left",
    "head_down": "head_up",
    "head_tilted_right": "head_tilted_left",
}

# Mesh points: pairs and triples of (right, left) of the person.
_INNER_BROWS, _OUTER_BROWS = ((107, 55), (336, 285)), ((70, 46, 63), (300, 276, 293))
_LIDS = (((160, 144), (159, 145), (158, 153)), ((387, 373), (386, 374), (385, 380)))
_NASION, _NOSE_BASE, _CHIN = 168, 2, 152
_CORNERS, _INNER_LIPS, _OUTER_LIPS = (61, 291), (13, 14), (0, 17)


@dataclass(frozen=True)
class Movement:
    """One movement.

    Attributes:
        name: a key of `MEASURES`, the opposite of one (`inner_brows_lowered`), `blink` or `eyes_closed`.
        value: the largest deviation from rest, positive, in `unit`.
    """

    name: str
    start_s: float
    end_s: float
    peak_s: float
    value: float
    unit: str


@dataclass(frozen=True)
class FaceMeasures:
    """What was measured on one person. n frames.

    Attributes:
        times_s: float64 [n], those in which the person is seen and faces the camera.
        values: float64 [n] by name of the measure, minus its rest.
        rest: value at rest, by name.
        eye_openness: float64 [n], gap of the lids / width of the eye, both eyes averaged.
        movements: in the order of their start.
        peak_s: the frame in which the expression is farthest from rest; None = no expression moved.
        n_left_out: frames with the person's head turned too far.
        version: for records.
    """

    times_s: np.ndarray
    values: Mapping[str, np.ndarray]
    rest: Mapping[str, float]
    eye_openness: np.ndarray
    movements: tuple[Movement, ...]
    peak_s: float | None
    n_left_out: int
    version: str = VERSION


def measure_face(tracks: FaceTracks, person: int | None = None) -> FaceMeasures | None:
    """The movements of a person, by default the main one; None if nobody is seen.

    Raises:
        InputError: no such person, or the detector gives no mesh points.
    """
    number = tracks.main if person is None else person
    if number is None:
        return None
    if not 0 <= number < len(tracks.persons):
        raise InputError(f"person {number} of {len(tracks.persons)}; see FaceTracks.choose")
    one = tracks.persons[number]
    if one.points.shape[1] != MESH_POINTS:
        raise InputError(f"movements are measured on {MESH_POINTS} mesh points, found {one.points.shape[1]}")
    raw, openness = _raw(one)
    facing = (np.abs(raw["head_right"]) <= MAX_TURN_DEG) & (np.abs(raw["head_down"]) <= MAX_TURN_DEG)
    times_s, openness = tracks.times_s[one.rows][facing], openness[facing]
    raw = {name: values[facing] for name, values in raw.items()}
    if not len(times_s):
        return FaceMeasures(times_s, raw, {}, openness, (), None, len(one))
    limit = max(EYES_CLOSED, EYES_CLOSED_SHARE * float(np.percentile(openness, 80)))
    is_open = openness >= limit
    looks = openness >= 1.3 * limit
    rest, values = {}, {}
    for name, found in raw.items():
        # Closed eyes have no gaze, and the rest of the lids is that of open eyes.
        usable = found[looks] if name in ("gaze_right", "gaze_down", "eyes_narrowed") and looks.any() else found
        rest[name] = float(np.percentile(usable, MEASURES[name].rest))
        values[name] = found - rest[name]
        if name.startswith("gaze"):
            values[name] = np.where(looks, values[name], 0.0)
        elif name == "lips_pressed":
            values[name] = np.where(raw["lips_apart"] < _LIPS_CLOSED, values[name], 0.0)
    # 1 - openness / openness at rest: 0 at rest, 1 closed.
    values["eyes_narrowed"] = 1 - raw["eyes_narrowed"] / min(rest["eyes_narrowed"], -1e-6)
    movements = _closings(times_s, openness, limit)
    for name, deviation in values.items():
        movements += _movements(name, times_s, _smooth(deviation), closed=~is_open)
    movements.sort(key=lambda each: (each.start_s, each.name))
    return FaceMeasures(
        times_s, values, rest, openness, tuple(movements), _peak_s(times_s, values, movements), len(one) - len(times_s)
    )


def upright(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [n,478,3] -> the same seen from the front, in eye distances from the point between the eyes; turns [n,3].

    The axes of the head: from eye to eye, and from between the eyes to the base of the nose, which do not move with the
    expression. Turns in degrees: to the right of the picture, down, tilted clockwise. How far the head nods includes a
    constant of each face, -5 and -17 in two clips.
    """
    points = np.asarray(points, np.float64)
    one, other = (points[:, list(corners)].mean(axis=1) for corners in EYES)
    right = other - one
    size = np.linalg.norm(right, axis=1)
    x = right / size[:, None]
    down = points[:, _NOSE_BASE] - points[:, _NASION]
    down -= (down * x).sum(axis=1, keepdims=True) * x
    y = down / np.linalg.norm(down, axis=1, keepdims=True)
    z = np.cross(x, y)  # away from the camera
    axes = np.stack([x, y, z], axis=1)  # [n,3 axes,3]
    front = np.einsum("nij,npj->npi", axes, points - ((one + other) / 2)[:, None]) / size[:, None, None]
    turn = np.degrees(np.arctan2(-z[:, 0], z[:, 2]))
    nod = np.degrees(np.arcsin(np.clip(-z[:, 1], -1, 1)))
    tilt = np.degrees(np.arctan2(x[:, 1], x[:, 0]))
    return front, np.stack([turn, nod, tilt], axis=1)


def _raw(person: Person) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Absolute values of all measures, and the openness of the eyes."""
    front, turns = upright(person.points)

    def height(*numbers: int) -> np.ndarray:
        """Mean height above the eyes."""
        return -front[:, list(numbers), 1].mean(axis=1)

    def apart(one: int, other: int) -> np.ndarray:
        return np.linalg.norm(front[:, one] - front[:, other], axis=1)

    def flat(one: int, other: int) -> np.ndarray:
        """In the picture, so that the depth, which is an estimate, plays no part."""
        return np.linalg.norm(person.points[:, one, :2] - person.points[:, other, :2], axis=1)

    gaps = [np.mean([flat(*pair) for pair in lids], axis=0) for lids in _LIDS]
    widths = [flat(*corners) for corners in EYES]
    openness = np.mean([gap / width for gap, width in zip(gaps, widths, strict=True)], axis=0)
    irises = [front[:, 468 + 5 * eye, :2] - front[:, list(EYES[eye]), :2].mean(axis=1) for eye in (0, 1)]
    gaze = np.mean([iris / apart(*EYES[eye])[:, None] for eye, iris in enumerate(irises)], axis=0)  # [n,2]
    lips = apart(_OUTER_LIPS[0], _INNER_LIPS[0]) + apart(_INNER_LIPS[1], _OUTER_LIPS[1])
    nod = _BROWS_PER_DEGREE * turns[:, 1]
    inner, outer = ([number for side in brows for number in side] for brows in (_INNER_BROWS, _OUTER_BROWS))
    return {
        "inner_brows_raised": height(*inner) - nod,
        "outer_brows_raised": height(*outer) - nod,
        "eyes_narrowed": -openness,
        "mouth_corners_raised": height(*_CORNERS) - height(*_INNER_LIPS),
        "mouth_widened": apart(*_CORNERS),
        "lips_apart": apart(*_INNER_LIPS),
        "lips_pressed": -lips,
        "jaw_lowered": apart(_NOSE_BASE, _CHIN),
        "gaze_right": gaze[:, 0],
        "gaze_down": gaze[:, 1],
        "head_right": turns[:, 0],
        "head_down": turns[:, 1],
        "head_tilted_right": turns[:, 2],
    }, openness


def _smooth(values: np.ndarray) -> np.ndarray:
    """Median of three."""
    if len(values) < 3:
        return values
    return np.concatenate([values[:1], np.median([values[:-2], values[1:-1], values[2:]], axis=0), values[-1:]])


def _runs(moved: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of each run of True."""
    edges = np.diff(np.concatenate([[0], moved.astype(int), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))


def _joined(runs: list[tuple[int, int]], times_s: np.ndarray) -> list[tuple[int, int]]:
    """Runs with what is between them, where that is short."""
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        if joined and times_s[first] - times_s[joined[-1][1]] <= _MERGE_S:
            first = joined.pop()[0]
        joined.append((first, last))
    return joined


def _movements(name: str, times_s: np.ndarray, deviation: np.ndarray, closed: np.ndarray) -> list[Movement]:
    measure = MEASURES[name]
    noise = float(np.median(np.abs(np.diff(deviation)))) if len(deviation) > 1 else 0.0
    threshold = max(measure.threshold, _NOISE * noise)
    signs = [1.0] if name not in _OPPOSITE else [1.0, -1.0]
    found = []
    for sign in signs:
        signed = sign * deviation
        if name == "eyes_narrowed":
            signed = np.where(closed, 0.0, signed)  # closings are movements of their own
        for first, last in _joined(_runs(signed > _END * threshold), times_s):
            peak = first + int(np.argmax(signed[first : last + 1]))
            if signed[peak] >= threshold and times_s[last] - times_s[first] >= _MIN_S:
                label = name if sign > 0 else _OPPOSITE[name]
                times = (float(times_s[first]), float(times_s[last]), float(times_s[peak]))
                found.append(Movement(label, *times, round(float(signed[peak]), 3), measure.unit))
    return found


def _closings(times_s: np.ndarray, openness: np.ndarray, limit: float) -> list[Movement]:
    """Blinks, and eyes that are closed for longer."""
    found = []
    for first, last in _joined(_runs(openness < limit), times_s):
        lasts_s = times_s[last] - times_s[first]
        name = "blink" if lasts_s <= MAX_BLINK_S else "eyes_closed"
        peak = first + int(np.argmin(openness[first : last + 1]))
        times = (float(times_s[first]), float(times_s[last]), float(times_s[peak]))
        found.append(Movement(name, *times, round(float(openness[peak]), 3), EYE_WIDTH))
    return found


def _peak_s(times_s: np.ndarray, values: Mapping[str, np.ndarray], movements: list[Movement]) -> float | None:
    """Where the sum of the expression's deviations, each in its threshold, is largest."""
    moved = {_name_of(each.name) for each in movements}
    names = [name for name, measure in MEASURES.items() if measure.is_expression and name in moved]
    if not names:
        return None
    total = np.sum([np.abs(_smooth(values[name])) / MEASURES[name].threshold for name in names], axis=0)
    return float(times_s[int(np.argmax(total))])


def _name_of(movement: str) -> str:
    return next((name for name, opposite in _OPPOSITE.items() if opposite == movement), movement)
