"""Draw the face of a `Performance`: a portrait whose every part moves by action units, gaze and head pose.

All shapes are polygons in *head units*: x to the right and y upwards in the picture, z towards the viewer, the origin
between the eyes and the mouth, the crown at y = 1 and the chin at y = -1. Points lie on an ellipsoid, turn with the head
and are projected in parallel. Coordinates are numbers or float64 [T], one value per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from affectgpt.demo.performance import ACTION_UNITS, Identity, Performance, sample_curve, speaking_mouth

Colour = tuple[int, int, int]
Number = float | np.ndarray
Point = tuple[Number, ...]  # (x, y) on the face or (x, y, z)

_HEAD_SCALE = 0.36  # head units -> widths of the picture
_CENTRE_Y = 0.475
_NECK = (0.0, -0.75, -0.25)  # the head turns around this point


def render_face(performance: Performance, *, size_px: int = 112, rate_hz: float = 12.5) -> np.ndarray:
    """The pictures of a clip -> uint8 [T, size_px, size_px, 3], T = duration_s * rate_hz.

    The same performance always gives the same pixels.
    """
    times = np.arange(max(1, round(performance.duration_s * rate_hz))) / rate_hz  # [T]
    zeros = np.zeros(len(times))
    units = {
        name: sample_curve(performance.action_units[name], times).clip(0, 1) if name in performance.action_units else zeros
        for name in ACTION_UNITS
    }
    gaze = tuple(sample_curve(curve, times).clip(-1, 1) for curve in performance.gaze)
    yaw, pitch, roll = (np.radians(sample_curve(curve, times)) for curve in performance.head)
    opening, rounding = speaking_mouth(performance, times)
    if performance.voice is not None:  # loud speech opens the mouth wider
        opening = opening * (1 + sample_curve(performance.voice.loudness_db, times) / 20).clip(0.5, 1.5)

    oversampling = 3 if size_px <= 160 else 2  # smooth edges
    looks = Looks.of(performance.identity)
    sketch = _Sketch(len(times), size_px * oversampling, (yaw, pitch, roll))
    jaw = 0.2 * units["AU26"] + 0.1 * opening  # how far the chin goes down
    _draw_back_hair(sketch, looks)
    _draw_body(sketch, looks, jaw)
    _draw_head(sketch, looks, jaw)
    _draw_cheeks(sketch, looks, units)
    _draw_nose(sketch, looks, units)
    for side in (-1, 1):
        _draw_eye(sketch, looks, units, gaze, side)
    _draw_mouth(sketch, looks, units, opening, rounding)
    _draw_forehead(sketch, looks, units)
    _draw_front_hair(sketch, looks)
    for side in (-1, 1):
        _draw_brow(sketch, looks, units, side)
    if looks.glasses:
        _draw_glasses(sketch)
    return sketch.paint(looks.background, oversampling)


# ---- identity --------------------------------------------------------------------------------------------------------

_SKINS: tuple[Colour, ...] = (
    (250, 218, 196), (244, 203, 172), (236, 188, 150), (222, 170, 128), (200, 146, 104), (172, 120, 84), (140, 96, 68),
)  # fmt: skip
_HAIRS: tuple[Colour, ...] = (
    (34, 28, 30), (58, 38, 28), (92, 58, 36), (132, 76, 42), (186, 142, 82), (146, 142, 140), (120, 48, 30),
)  # fmt: skip
_IRISES: tuple[Colour, ...] = ((84, 52, 30), (58, 38, 26), (70, 110, 150), (80, 120, 84), (110, 90, 50))
_CLOTHES: tuple[Colour, ...] = (
    (52, 73, 94), (112, 52, 60), (46, 92, 80), (108, 92, 128), (196, 164, 96), (76, 76, 84), (206, 208, 212), (60, 98, 142),
)  # fmt: skip
_BACKGROUNDS: tuple[Colour, ...] = (
    (198, 214, 226), (226, 216, 200), (204, 220, 204), (216, 206, 222), (230, 226, 222), (180, 196, 200), (224, 206, 200),
)  # fmt: skip
_STYLES = ("short", "parted", "buzz", "curly", "fringe", "long", "bun")


@dataclass(frozen=True)
class Looks:
    """What distinguishes one drawn person from another."""

    skin: Colour
    hair: Colour
    style: str
    iris: Colour
    clothes: Colour
    background: Colour
    width: float  # of the head, 1 = average
    jaw: float
    eye: float
    eye_distance: float
    brow: float  # thickness
    nose: float
    lips: float
    part_side: int
    glasses: bool
    beard: bool

    @classmethod
    def of(cls, identity: Identity) -> Looks:
        rng = identity.rng("looks")

        def pick(options):
            return options[rng.integers(len(options))]

        skin = pick(_SKINS)
        dark_skin = skin in _SKINS[4:]
        looks = {
            "skin": skin,
            "hair": pick(_HAIRS[:3] if dark_skin else _HAIRS),
            "style": pick(_STYLES),
            "iris": pick(_IRISES[:2] if dark_skin else _IRISES),
            "clothes": pick(_CLOTHES),
            "background": pick(_BACKGROUNDS),
            "width": rng.uniform(0.93, 1.05),
            "jaw": rng.uniform(0.86, 1.08),
            "eye": rng.uniform(0.93, 1.08),
            "eye_distance": rng.uniform(0.305, 0.335),
            "brow": rng.uniform(0.85, 1.3),
            "nose": rng.uniform(0.85, 1.2),
            "lips": rng.uniform(0.85, 1.25),
            "part_side": int(rng.choice((-1, 1))),
            "glasses": bool(rng.random() < 0.15),
        }
        return cls(**looks, beard=bool(rng.random() < 0.5 and identity.base_pitch_hz < 150 and looks["style"] in _STYLES[:3]))

    @property
    def shade(self) -> Colour:
        """Skin in the shadow."""
        return _mix(self.skin, (120, 50, 40), 0.3)

    @property
    def line(self) -> Colour:
        """Folds and wrinkles."""
        return _mix(self.skin, (70, 25, 20), 0.62)

    @property
    def brow_colour(self) -> Colour:
        return _mix(self.hair, (30, 20, 18), 0.55)

    @property
    def lip_colour(self) -> Colour:
        return _mix(self.skin, (176, 50, 62), 0.55)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


# ---- drawing ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _spline(n_points: int, closed: bool, steps: int) -> np.ndarray:
    """Catmull-Rom interpolation as a matrix from control points to the curve, [N, K]."""
    share = np.arange(steps) / steps
    basis = 0.5 * np.stack(
        [
            -share + 2 * share**2 - share**3,
            2 - 5 * share**2 + 3 * share**3,
            share + 4 * share**2 - 3 * share**3,
            -(share**2) + share**3,
        ],
        axis=1,
    )  # [steps, 4]
    segments = n_points if closed else n_points - 1
    matrix = np.zeros((segments * steps + (not closed), n_points))
    for segment in range(segments):
        for column, neighbour in enumerate(range(segment - 1, segment + 3)):
            point = neighbour % n_points if closed else min(max(neighbour, 0), n_points - 1)
            matrix[segment * steps : (segment + 1) * steps, point] += basis[:, column]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


class _Sketch:
    """Collects the shapes of all frames, from back to front, and paints them."""

    def __init__(self, n_frames: int, size_px: int, pose: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        self.n_frames, self.size_px = n_frames, size_px
        self._turns = [(np.cos(angle)[:, None], np.sin(angle)[:, None]) for angle in pose]
        self._shapes: list[tuple[np.ndarray, Colour, np.ndarray | None]] = []  # [T, 2N], colour, alpha 0..255 [T]

    def project(self, points: tuple[Point, ...] | np.ndarray, still: bool = False) -> np.ndarray:
        """Points in head units -> pixels [T, K, 2]; `still` points do not move with the head."""
        if isinstance(points, np.ndarray):
            x, y = points[..., 0], points[..., 1]  # [T, K]
            z = np.full_like(x, np.nan)
        else:
            columns = np.empty((3, len(points), self.n_frames))
            for index, point in enumerate(points):
                for axis in range(3):
                    columns[axis, index] = point[axis] if axis < len(point) else np.nan
            x, y, z = columns.transpose(0, 2, 1)  # [T, K] each
        if not still:
            on_face = 0.68 * np.sqrt((1 - (x / 0.82) ** 2 - (y / 1.2) ** 2).clip(0.02))
            (cos_yaw, sin_yaw), (cos_pitch, sin_pitch), (cos_roll, sin_roll) = self._turns
            # Points with a depth of their own mostly belong to the silhouette, which a turning ball keeps.
            free = np.isnan(z)
            x, y, z = x - _NECK[0], y - _NECK[1], np.where(free, on_face, z) - _NECK[2]
            x, z = x * np.where(free, cos_yaw, 1.0) + z * sin_yaw, z * cos_yaw - x * sin_yaw
            y = y * np.where(free, cos_pitch, 1.0) + z * sin_pitch
            x, y = x * cos_roll + y * sin_roll + _NECK[0], y * cos_roll - x * sin_roll + _NECK[1]
        scale = _HEAD_SCALE * self.size_px
        return np.stack([0.5 * self.size_px + scale * x, _CENTRE_Y * self.size_px - scale * y], axis=-1)

    def fill(self, points, colour: Colour, alpha: Number = 1.0, *, still: bool = False, steps: int = 4) -> None:
        """A closed shape through `points` ([T, K, 2] or tuples); steps=1 keeps the corners."""
        shape = self.project(points, still)
        if steps > 1:
            shape = _spline(shape.shape[1], True, steps) @ shape
        self._add(shape, colour, alpha)

    def stroke(self, points, width: float, colour: Colour, alpha: Number = 1.0, *, taper: float = 1.0, steps: int = 4) -> None:
        """A line through `points`, `width` head units thick in the middle; taper=0 keeps it thick up to the ends."""
        line = self.project(points)
        if steps > 1:
            line = _spline(line.shape[1], False, steps) @ line
        along = np.gradient(line, axis=1)  # [T, N, 2]
        along /= np.hypot(along[..., :1], along[..., 1:]).clip(1e-6)
        profile = 1 - taper * np.abs(np.linspace(-1, 1, line.shape[1])) ** 3
        across = 0.5 * (width * _HEAD_SCALE * self.size_px * profile).clip(1.0)[:, None] * along[..., ::-1] * (-1, 1)
        self._add(np.concatenate([line + across, (line - across)[:, ::-1]], axis=1), colour, alpha)

    def _add(self, shape: np.ndarray, colour: Colour, alpha: Number) -> None:
        opaque = isinstance(alpha, float) and alpha == 1
        levels = None if opaque else np.broadcast_to(np.round(255 * np.clip(alpha, 0, 1)).astype(int), self.n_frames)
        self._shapes.append((shape.reshape(self.n_frames, -1), colour, levels))

    def paint(self, background: Colour, oversampling: int) -> np.ndarray:
        """-> uint8 [T, H, W, 3], reduced by `oversampling`."""
        light = np.linspace(1.06, 0.86, self.size_px)[:, None, None]  # a wall that is lit from above
        wall = np.broadcast_to(light * background, (self.size_px, self.size_px, 3)).clip(0, 255).astype(np.uint8)
        canvas = Image.fromarray(wall)
        shapes = [
            (points.tolist(), colour, None if levels is None else levels.tolist())
            for points, colour, levels in self._shapes
        ]
        frames = []
        for index in range(self.n_frames):
            image = canvas.copy()
            solid, glaze = ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA")
            for points, colour, levels in shapes:
                if levels is None or levels[index] == 255:
                    solid.polygon(points[index], fill=colour)
                elif levels[index] > 0:
                    glaze.polygon(points[index], fill=(*colour, levels[index]))
            frames.append(np.asarray(image.reduce(oversampling)))
        return np.stack(frames)


def _between(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The area between two curves that run the same way, [T, N, 2] each -> [T, 2N, 2]."""
    return np.concatenate([upper, lower[:, ::-1]], axis=1)


def _curve(x: Number, y: Number, n_frames: int, n_points: int) -> np.ndarray:
    """[T, N, 2] from x and y of shapes [T, N], [T, 1] or [N]."""
    return np.stack([np.broadcast_to(x, (n_frames, n_points)), np.broadcast_to(y, (n_frames, n_points))], axis=-1)


# ---- parts of the portrait -------------------------------------------------------------------------------------------


def _outline(looks: Looks, jaw: Number) -> list[Point]:
    """The head from the crown over the right of the picture to the chin, half of it."""
    w, j = looks.width, looks.jaw * looks.width
    return [
        (0.0, 1.0, 0.0),
        (0.42 * w, 0.89, 0.0),
        (0.69 * w, 0.6, 0.0),
        (0.74 * w, 0.15, 0.0),
        (0.69 * w, -0.3, 0.03),
        (0.56 * j, -0.68 - 0.6 * jaw, 0.1),
        (0.28 * j, -0.94 - jaw, 0.25),
        (0.0, -1.0 - jaw, 0.3),
    ]


def _mirror(half: list[Point]) -> list[Point]:
    """Close a half shape that begins and ends on the axis of the face."""
    return half + [(-x, *rest) for x, *rest in half[-2:0:-1]]


def _draw_body(sketch: _Sketch, looks: Looks, jaw: Number) -> None:
    shirt, collar = looks.clothes, _mix(looks.clothes, (0, 0, 0), 0.25)
    sketch.fill(
        _mirror([(0.0, -1.08), (0.36, -1.02), (0.75, -1.14), (1.15, -1.24), (1.36, -1.5), (1.4, -1.9), (0.0, -1.9)]),
        shirt, still=True,
    )  # fmt: skip
    sketch.fill(_mirror([(0.0, -1.36), (0.3, -1.2), (0.43, -1.0), (0.0, -0.96)]), collar, still=True)
    sketch.fill([(-0.35, -0.4), (0.35, -0.4), (0.34, -0.95), (0.38, -1.06), (0.2, -1.24), (0.0, -1.29), (-0.2, -1.24), (-0.38, -1.06), (-0.34, -0.95)], _mix(looks.skin, looks.shade, 0.35), still=True)  # fmt: skip
    # The chin throws its shadow on the neck.
    sketch.fill([(-0.34, -0.6), (0.34, -0.6), (0.335, -0.9), (0.2, -1.08 - 0.5 * jaw), (0.0, -1.13 - 0.5 * jaw), (-0.2, -1.08 - 0.5 * jaw), (-0.335, -0.9)], looks.shade, 0.75, still=True)  # fmt: skip


def _draw_head(sketch: _Sketch, looks: Looks, jaw: Number) -> None:
    for side in (-1, 1) if looks.style not in ("long", "fringe") else ():
        ear = 0.75 * looks.width * side
        sketch.fill(
            [(ear - 0.05 * side, 0.17, -0.1), (ear + 0.1 * side, 0.19, -0.12), (ear + 0.1 * side, 0.0, -0.12), (ear + 0.03 * side, -0.16, -0.1), (ear - 0.07 * side, -0.12, -0.1)],
            _mix(looks.skin, looks.shade, 0.3),
        )  # fmt: skip
        sketch.stroke([(ear + 0.01 * side, 0.11, -0.1), (ear + 0.06 * side, 0.08, -0.1), (ear + 0.03 * side, -0.07, -0.1)], 0.02, looks.line, 0.5)  # fmt: skip
    half = _outline(looks, jaw)
    sketch.fill(_mirror(half), looks.skin, steps=6)
    # Light from the upper left: the right rim of the face lies in the shadow.
    rim = [(0.8 * x, y, *z) for x, y, *z in half[2:-1]]
    sketch.fill([*half[2:], *rim[::-1]], looks.shade, 0.28)
    if looks.beard:
        inner = [(0.66 * looks.width, 0.0, 0.1), (0.56 * looks.width, -0.3, 0.2), (0.42, -0.5), (0.34, -0.72), (0.16, -0.8), (0.0, -0.81)]
        outer = [(0.735 * looks.width, 0.05, 0.0), *half[4:]]
        left = [(-x, *rest) for x, *rest in outer[-2::-1]] + [(-x, *rest) for x, *rest in inner]
        sketch.fill([*outer, *left, *inner[-2::-1]], looks.hair, 0.25)


def _draw_cheeks(sketch: _Sketch, looks: Looks, units: dict[str, np.ndarray]) -> None:
    raised, smile = units["AU06"], units["AU12"]
    nose = np.maximum(units["AU09"], 0.85 * units["AU10"])
    blush, light = _mix(looks.skin, (226, 84, 80), 0.45), _mix(looks.skin, (255, 246, 236), 0.5)
    for side in (-1, 1):
        x, y = 0.42 * side, -0.24 + 0.09 * raised + 0.03 * smile
        ring = [(x + 0.155 * np.cos(a), y + (0.105 + 0.025 * raised) * np.sin(a)) for a in np.arange(8) * np.pi / 4]
        sketch.fill(ring, blush, 0.22 + 0.4 * raised + 0.12 * smile)
        sketch.fill([(x + 0.06 * np.cos(a) - 0.03, y + 0.05 + 0.03 * np.sin(a)) for a in np.arange(6) * np.pi / 3], light, 0.3 + 0.4 * raised)  # fmt: skip
        # The raised cheek folds the skin under the eye and at its outer corner.
        sketch.stroke([(0.2 * side, -0.06), (0.33 * side, -0.115 + 0.03 * raised), (0.5 * side, -0.04 + 0.02 * raised)], 0.026, looks.line, 0.75 * raised)  # fmt: skip
        for tilt in (-0.07, 0.0, 0.07):
            sketch.stroke([(0.545 * side, 0.05 + 0.6 * tilt), (0.58 * side, 0.05 + tilt), (0.635 * side, 0.05 + 1.7 * tilt)], 0.02, looks.line, 0.8 * raised)  # fmt: skip
        # The fold from the nose to the corner of the mouth.
        depth = np.maximum(np.maximum(smile, nose), np.maximum(0.45 * raised, 0.35 * units["AU15"]))
        bulge = 0.05 * smile + 0.02 * nose
        sketch.stroke(
            [(0.15 * side, -0.19 + 0.05 * nose), ((0.27 + 1.3 * bulge) * side, -0.29 + 0.02 * nose), ((0.36 + 1.3 * bulge) * side, -0.46 + 0.04 * smile)],
            0.026, looks.line, 0.06 + 0.5 * depth - 0.15 * smile * depth,
        )  # fmt: skip


def _draw_nose(sketch: _Sketch, looks: Looks, units: dict[str, np.ndarray]) -> None:
    wrinkle, n = units["AU09"], looks.nose
    lift = 0.055 * wrinkle + 0.02 * units["AU10"]
    wide = 1 + 0.14 * wrinkle
    tip = (0.0, -0.2 + 0.5 * lift, 0.88)
    sketch.fill([(0.045, 0.2, 0.76), (0.06, 0.0, 0.8), (0.1 * n, -0.17 + lift, 0.8), (0.06, -0.24 + lift, 0.86), (0.015, -0.16, 0.88), (0.02, 0.05, 0.82)], looks.shade, 0.45)  # fmt: skip
    sketch.stroke(
        [(-0.13 * n * wide, -0.19 + lift, 0.76), (-0.1 * n * wide, -0.255 + lift, 0.78), (-0.03, -0.25 + 0.6 * lift, 0.86), (0.0, -0.275 + 0.6 * lift, 0.88), (0.03, -0.25 + 0.6 * lift, 0.86), (0.1 * n * wide, -0.255 + lift, 0.78), (0.13 * n * wide, -0.19 + lift, 0.76)],
        0.026, looks.line, 0.7,
    )  # fmt: skip
    for side in (-1, 1):
        sketch.stroke([(0.035 * side, -0.237 + lift, 0.84), (0.085 * n * wide * side, -0.232 + lift, 0.8)], 0.03, looks.line, 0.9)  # fmt: skip
        # Wrinkles run from the bridge down along its sides.
        for y in (0.13, 0.06, -0.01):
            sketch.stroke([(0.015 * side, y + 0.01, 0.8), (0.07 * side, y, 0.78), (0.125 * side, y - 0.05, 0.74)], 0.026, looks.line, 0.9 * wrinkle)  # fmt: skip
    sketch.fill([(tip[0] - 0.02 + 0.035 * np.cos(a), tip[1] + 0.01 + 0.03 * np.sin(a), 0.88) for a in np.arange(6) * np.pi / 3], (255, 250, 244), 0.4)  # fmt: skip


def _draw_eye(sketch: _Sketch, looks: Looks, units: dict[str, np.ndarray], gaze: tuple[np.ndarray, ...], side: int) -> None:
    n = sketch.n_frames
    width, x0, y0 = 0.185 * looks.eye, looks.eye_distance * side, 0.09
    shut = np.maximum(units["AU43"], units["AU45"])
    tight = np.maximum(units["AU07"], 0.5 * units["AU09"])
    up = 0.104 * looks.eye * (1 + 0.65 * units["AU05"] - 0.35 * tight - 0.1 * units["AU04"] - 0.1 * units["AU06"])
    low = 0.085 * looks.eye * (1 + 0.12 * units["AU05"] - 0.75 * tight - 0.5 * units["AU06"])
    # The upper lid follows the gaze; closing lids meet below the middle of the eye.
    up = up + 0.025 * gaze[1]
    up, low = up * (1 - shut) - 0.045 * shut, low * (1 - shut) + 0.05 * shut
    up, low = up[:, None], low[:, None]  # [T, 1]

    def lid(u: np.ndarray, height: np.ndarray, power: float) -> np.ndarray:
        """Height of a lid at u = -1 (inner corner) .. 1 (outer corner)."""
        return y0 + 0.012 * u + height * (1 - np.abs(u).clip(0, 1) ** power)

    def upper(u: np.ndarray) -> np.ndarray:
        return lid(u, up, 2.3)

    def lower(u: np.ndarray) -> np.ndarray:
        return np.minimum(lid(u, -low, 2.0), upper(u))

    u = np.linspace(-1, 1, 15)
    x = x0 + side * width * u
    top, bottom = _curve(x, upper(u), n, 15), _curve(x, lower(u), n, 15)
    # The lid between its fold and its edge grows as the eye closes.
    fold = _curve(x, lid(u, (0.13 * looks.eye + 0.05 * units["AU05"] - 0.035 * tight)[:, None], 2.0) + 0.01, n, 15)  # fmt: skip
    sketch.fill(_between(np.maximum(fold, top), top), _mix(looks.skin, looks.shade, 0.55), steps=1)
    sketch.fill(_between(top, bottom), (250, 248, 244), steps=1)

    def disc(radius: float, dx: Number, dy: Number, n_points: int) -> np.ndarray:
        """A disc on the eyeball, cut off by the lids."""
        angle = np.arange(n_points) * 2 * np.pi / n_points
        across = x0 + np.reshape(dx, (-1, 1)) + radius * np.cos(angle)  # [T or 1, N]
        position = (across - x0) / (side * width)
        height = y0 + np.reshape(dy, (-1, 1)) + radius * np.sin(angle)
        return _curve(across, np.minimum(np.maximum(height, lower(position)), upper(position)), n, n_points)

    dx, dy = 0.082 * gaze[0], 0.012 + 0.06 * gaze[1]
    radius = 0.094 * looks.eye
    sketch.fill(disc(radius, dx, dy, 20), _mix(looks.iris, (0, 0, 0), 0.35), steps=1)
    sketch.fill(disc(0.8 * radius, dx, dy, 20), looks.iris, steps=1)
    sketch.fill(disc(0.48 * radius, dx, dy, 14), (16, 12, 12), steps=1)
    shadow = _curve(x, np.maximum(upper(u) - 0.035, lower(u)), n, 15)
    sketch.fill(_between(top, shadow), (60, 50, 70), 0.3, steps=1)
    sketch.fill(disc(0.3 * radius, dx - 0.035, dy + 0.035, 10), (255, 255, 255), np.where(up[:, 0] > 0, 0.95, 0.0), steps=1)
    lash, soft = _mix(looks.hair, (20, 14, 14), 0.8), _mix(looks.line, looks.skin, 0.2)
    sketch.stroke(bottom, 0.016, soft, 0.8, steps=1)
    sketch.stroke(top, 0.042, lash, taper=0.6, steps=1)
    sketch.stroke(fold[:, 1:], 0.014, looks.line, 0.55, steps=1)
    # Tight lids bag the skin below the eye.
    bag = _curve(x0 + side * width * 0.85 * u, y0 - 0.105 + 0.03 * (np.abs(u) ** 2), n, 15)
    sketch.stroke(bag, 0.022, looks.line, 0.7 * tight, steps=1)


def _draw_brow(sketch: _Sketch, looks: Looks, units: dict[str, np.ndarray], side: int) -> None:
    inner, outer, down = units["AU01"], units["AU02"], units["AU04"]
    nose, lids = units["AU09"], units["AU05"]
    x = looks.eye_distance
    y = 0.365 + 0.015 * lids
    sketch_points = [
        (side * (x - 0.205 - 0.055 * down), y - 0.03 + 0.17 * inner - 0.125 * down - 0.05 * nose),
        (side * (x - 0.09 - 0.03 * down), y + 0.005 + 0.11 * inner + 0.03 * outer - 0.12 * down - 0.04 * nose),
        (side * (x + 0.07), y + 0.035 + 0.02 * inner + 0.12 * outer - 0.085 * down - 0.01 * nose),
        (side * (x + 0.22), y - 0.035 - 0.01 * inner + 0.14 * outer - 0.03 * down),
    ]
    sketch.stroke(sketch_points, 0.068 * looks.brow, looks.brow_colour, taper=0.75)


def _draw_forehead(sketch: _Sketch, looks: Looks, units: dict[str, np.ndarray]) -> None:
    inner, outer, down = units["AU01"], units["AU02"], units["AU04"]
    for y in (0.6, 0.68):
        sketch.stroke([(-0.2, y - 0.02), (0.0, y + 0.02), (0.2, y - 0.02)], 0.022, looks.line, 0.6 * inner * (1 - 0.4 * down))
        for side in (-1, 1):
            sketch.stroke([(0.22 * side, y - 0.02), (0.36 * side, y), (0.5 * side, y - 0.06)], 0.022, looks.line, 0.6 * outer)
    for side in (-1, 1):
        sketch.stroke([(0.055 * side, 0.38), (0.04 * side, 0.3), (0.055 * side, 0.2)], 0.03, looks.line, 0.95 * down)


def _draw_mouth(
    sketch: _Sketch, looks: Looks, units: dict[str, np.ndarray], opening: np.ndarray, rounding: np.ndarray
) -> None:
    n = sketch.n_frames
    raiser, smile, dimple, frown = units["AU10"], units["AU12"], units["AU14"], units["AU15"]
    chin, stretch, tight, press = units["AU17"], units["AU20"], units["AU23"], units["AU24"]
    part, drop = units["AU25"], units["AU26"]
    speech = opening * (1 - 0.5 * press)

    gap = 0.075 * part + 0.2 * drop + 0.13 * speech
    half = 0.25 + 0.1 * smile + 0.1 * stretch - 0.07 * tight - 0.02 * press + 0.035 * dimple - 0.08 * rounding - 0.04 * drop
    corner = -0.522 + 0.115 * smile - 0.115 * frown - 0.015 * stretch + 0.03 * dimple - 0.35 * gap * (1 - smile)
    middle = -0.53 - 0.035 * smile + 0.045 * frown + 0.075 * chin + 0.02 * press
    up = 0.25 * gap * (1 - drop) + 0.05 * drop + 0.08 * raiser  # of the inner edges from the middle
    low = gap - 0.25 * gap * (1 - drop) - 0.05 * drop + 0.02 * raiser
    thin = (1 - 0.5 * tight) * (1 - 0.8 * press) * (1 - 0.3 * stretch) * (1 - 0.25 * smile)
    upper_thick = 0.062 * looks.lips * thin * (1 - 0.25 * chin) * (1 + 0.3 * raiser) + 0.012
    lower_thick = 0.085 * looks.lips * thin * (1 + 0.35 * chin) + 0.012

    u = np.linspace(-1, 1, 21)
    bend = np.abs(u) ** 2
    x = half[:, None] * u  # [T, 21]
    line = middle[:, None] * (1 - bend) + corner[:, None] * bend
    arch = 1 - np.abs(u) ** 2.4
    bow = (1 - np.abs(u) ** 1.6) * (1 - 0.22 * np.exp(-((u / 0.16) ** 2)))
    inner_top = line + up[:, None] * arch
    inner_low = line - low[:, None] * (1 - np.abs(u) ** 3)
    outer_top = inner_top + upper_thick[:, None] * bow + 0.05 * raiser[:, None] * np.exp(-((u / 0.5) ** 4))
    outer_low = inner_low - lower_thick[:, None] * arch

    def edge(y: np.ndarray, narrower: float = 1.0) -> np.ndarray:
        return _curve(narrower * x, y, n, 21)

    # The chin: its crease below the lip, and the bumps of a raised chin.
    chin_y = middle - low - 0.19 + 0.02 * chin
    sketch.stroke([(-0.14, chin_y - 0.01), (0.0, chin_y + 0.025 + 0.02 * chin), (0.14, chin_y - 0.01)], 0.035, looks.line, 0.16 + 0.6 * chin)  # fmt: skip
    for dx, dy in ((-0.1, -0.09), (0.0, -0.075), (0.1, -0.09), (-0.055, -0.15), (0.055, -0.15)):
        sketch.stroke([(dx - 0.025, chin_y + dy), (dx, chin_y + dy + 0.02), (dx + 0.025, chin_y + dy)], 0.026, looks.line, 0.75 * chin)  # fmt: skip

    lip = looks.lip_colour
    sketch.fill(_between(edge(outer_top), edge(outer_low)), lip, steps=1)
    sketch.fill(_between(edge(outer_top), edge(inner_top)), _mix(lip, (70, 10, 20), 0.22), steps=1)
    sketch.fill(_between(edge(inner_top), edge(inner_low)), (66, 18, 24), steps=1)
    tongue_top = np.maximum(inner_low, np.minimum(inner_low + 0.075 * arch, inner_top - 0.06))
    sketch.fill(_between(edge(np.minimum(tongue_top, inner_top), 0.7), edge(inner_low, 0.7)), (196, 92, 92), (gap > 0.1).astype(float), steps=1)  # fmt: skip
    teeth_low = np.maximum(inner_low, inner_top - (0.065 + 0.03 * smile + 0.05 * raiser)[:, None] * arch)
    sketch.fill(_between(edge(inner_top, 0.9), edge(teeth_low, 0.9)), (248, 246, 240), steps=1)
    low_teeth = np.minimum(inner_low + 0.035 * arch, teeth_low)
    sketch.fill(_between(edge(low_teeth, 0.8), edge(inner_low, 0.8)), (236, 232, 224), stretch * part, steps=1)
    sketch.stroke(edge(inner_top), 0.022, _mix(lip, (40, 0, 10), 0.6), 0.9, taper=0.7, steps=1)
    sketch.stroke(edge(outer_low - 0.012, 0.7), 0.016, looks.line, 0.35, steps=1)
    shine = edge(inner_low - 0.42 * lower_thick[:, None] * arch)[:, 7:13]
    sketch.stroke(shine, 0.022, (255, 226, 222), 0.55 * thin, steps=1)

    for side in (-1, 1):
        x_corner = side * half
        # Dimples are deep and short, the pull of a smile is longer, a frown drags a line down to the jaw.
        sketch.stroke([(x_corner + 0.015 * side, corner + 0.07), (x_corner + 0.065 * side, corner + 0.01), (x_corner + 0.02 * side, corner - 0.07)], 0.045, looks.line, 0.95 * dimple)  # fmt: skip
        sketch.stroke([(x_corner + 0.005 * side, corner - 0.03), (x_corner + 0.025 * side, corner + 0.005), (x_corner + 0.015 * side, corner + 0.045)], 0.03, looks.line, 0.75 * smile)  # fmt: skip
        sketch.stroke([(x_corner - 0.01 * side, corner), (x_corner + 0.035 * side, corner - 0.05), (x_corner + 0.045 * side, corner - 0.13)], 0.03, looks.line, 0.8 * frown)  # fmt: skip
        sketch.stroke([(x_corner + 0.05 * side, corner + 0.09), (x_corner + 0.075 * side, corner), (x_corner + 0.06 * side, corner - 0.1)], 0.026, looks.line, 0.8 * stretch)  # fmt: skip
        # Tightened lips pucker.
        for dx in (0.05, 0.11):
            sketch.stroke([(dx * side, middle + 0.1), (0.9 * dx * side, middle + 0.055)], 0.02, looks.line, 0.5 * tight)
            sketch.stroke([(dx * side, middle - 0.115), (0.9 * dx * side, middle - 0.07)], 0.02, looks.line, 0.5 * tight)
    # Pressed lips swell above and below the line.
    sketch.stroke(edge(outer_top + 0.035, 0.65), 0.026, looks.line, 0.5 * press, steps=1)
    sketch.stroke(edge(outer_low - 0.04, 0.75), 0.03, looks.line, 0.6 * press, steps=1)


def _draw_glasses(sketch: _Sketch) -> None:
    frame = (44, 40, 44)
    for side in (-1, 1):
        ring = [(0.33 * side + 0.245 * np.cos(a), 0.07 + 0.2 * np.sin(a), 0.78) for a in np.linspace(0, 2 * np.pi, 13)]
        sketch.stroke(ring, 0.024, frame, taper=0.0)
        sketch.stroke([(0.57 * side, 0.1, 0.75), (0.75 * side, 0.12, 0.0)], 0.024, frame, taper=0.0)
    sketch.stroke([(-0.09, 0.1, 0.82), (0.0, 0.13, 0.84), (0.09, 0.1, 0.82)], 0.024, frame, taper=0.0)


# ---- hair ------------------------------------------------------------------------------------------------------------


def _draw_back_hair(sketch: _Sketch, looks: Looks) -> None:
    dark, w = _mix(looks.hair, (0, 0, 0), 0.3), looks.width
    if looks.style == "long":
        sketch.fill(_mirror([(0.0, 1.1, -0.2), (0.6 * w, 0.95, -0.2), (0.9 * w, 0.3, -0.2), (0.96 * w, -0.5, -0.25), (1.0, -1.2, -0.3), (0.6, -1.45, -0.3), (0.0, -1.4, -0.3)]), dark)  # fmt: skip
    elif looks.style == "fringe":
        sketch.fill(_mirror([(0.0, 1.1, -0.2), (0.62 * w, 0.95, -0.2), (0.92 * w, 0.35, -0.2), (0.95 * w, -0.4, -0.2), (0.78, -0.8, -0.2), (0.0, -0.7, -0.2)]), dark)  # fmt: skip
    elif looks.style == "bun":
        sketch.fill([(0.32 * np.cos(a), 1.12 + 0.24 * np.sin(a), -0.15) for a in np.arange(8) * np.pi / 4], looks.hair)
        sketch.stroke([(-0.18, 1.2, -0.1), (0.0, 1.27, -0.1), (0.18, 1.2, -0.1)], 0.03, _mix(looks.hair, (255, 230, 200), 0.3), 0.6)  # fmt: skip
    elif looks.style == "curly":
        for a in np.linspace(-0.22, 1.22, 13) * np.pi:
            x, y = 0.78 * w * np.cos(a), 0.35 + 0.72 * np.sin(a)
            sketch.fill([(x + 0.24 * np.cos(b), y + 0.24 * np.sin(b), -0.15) for b in np.arange(6) * np.pi / 3], dark)


def _draw_front_hair(sketch: _Sketch, looks: Looks) -> None:
    w, s = looks.width, looks.part_side
    top = 1.04 if looks.style == "buzz" else 1.16
    # The outer edge from the left temple over the crown to the right temple.
    arc = [(-0.76 * w, 0.2, 0.0), (-0.75 * w, 0.58, 0.0), (-0.46 * w, 0.9 * top, 0.0), (0.0, top, 0.0), (0.46 * w, 0.9 * top, 0.0), (0.75 * w, 0.58, 0.0), (0.76 * w, 0.2, 0.0)]  # fmt: skip
    # The hairline from the right temple back to the left.
    hairline = {
        "short": [(0.69, 0.42, 0.1), (0.6, 0.68, 0.2), (0.32, 0.75), (0.1, 0.79), (-0.12, 0.74), (-0.36, 0.77), (-0.6, 0.66, 0.2), (-0.69, 0.42, 0.1)],
        "parted": [(0.69, 0.4, 0.1), (0.62, 0.56, 0.2), (0.38, 0.66), (0.08, 0.76), (-0.3, 0.88), (-0.5, 0.74), (-0.66, 0.58, 0.15), (-0.69, 0.4, 0.1)],
        "fringe": [(0.7, 0.1, 0.1), (0.65, 0.52, 0.2), (0.4, 0.62), (0.14, 0.66), (-0.14, 0.63), (-0.4, 0.64), (-0.65, 0.52, 0.2), (-0.7, 0.1, 0.1)],
        "long": [(0.71, -0.1, 0.1), (0.66, 0.35, 0.15), (0.45, 0.66, 0.4), (0.05, 0.87), (0.0, 0.9), (-0.05, 0.87), (-0.45, 0.66, 0.4), (-0.66, 0.35, 0.15), (-0.71, -0.1, 0.1)],
        "bun": [(0.71, 0.25, 0.1), (0.63, 0.58, 0.2), (0.35, 0.76), (0.0, 0.83), (-0.35, 0.76), (-0.63, 0.58, 0.2), (-0.71, 0.25, 0.1)],
        "curly": [(0.69, 0.3, 0.1), (0.62, 0.6, 0.2), (0.45, 0.66), (0.26, 0.76), (0.1, 0.7), (-0.12, 0.77), (-0.3, 0.69), (-0.5, 0.7), (-0.64, 0.56, 0.2), (-0.69, 0.3, 0.1)],
        "buzz": [(0.69, 0.35, 0.1), (0.6, 0.64, 0.2), (0.3, 0.79), (0.0, 0.77), (-0.3, 0.79), (-0.6, 0.64, 0.2), (-0.69, 0.35, 0.1)],
    }[looks.style]  # fmt: skip
    line = [(x * w, *rest) for x, *rest in hairline]
    if looks.style == "parted" and s < 0:
        line = [(-x, *rest) for x, *rest in line[::-1]]
    sketch.fill([(x, y - 0.05, *z) for x, y, *z in line] + line[::-1], looks.shade, 0.3)
    sketch.fill(arc + line, looks.hair, 0.82 if looks.style == "buzz" else 1.0)
    if looks.style != "buzz":
        shine, deep = _mix(looks.hair, (255, 232, 200), 0.28), _mix(looks.hair, (0, 0, 0), 0.35)
        sketch.stroke([(-0.52 * w, 0.8, 0.2), (-0.24 * w, 0.96, 0.3), (0.1 * w, 1.01, 0.3)], 0.07, shine, 0.55)
        sketch.stroke([(0.2 * w, 1.0, 0.25), (0.5 * w, 0.84, 0.2), (0.66 * w, 0.56, 0.1)], 0.03, deep, 0.45)
    if looks.style == "curly":
        for a in np.linspace(0.12, 0.88, 8) * np.pi:
            x, y = 0.66 * w * np.cos(a), 0.4 + 0.62 * np.sin(a)
            sketch.fill([(x + 0.17 * np.cos(b), y + 0.15 * np.sin(b), 0.1) for b in np.arange(6) * np.pi / 3], looks.hair)
