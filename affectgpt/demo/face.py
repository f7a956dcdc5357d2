"""Render the face of a `Performance`: a portrait controlled by action units, gaze and head pose.

All shapes are polygons in *head units*: x to the right, y up, z towards the viewer, origin between eyes and mouth,
crown at y = 1, chin at y = -1. Points lie on an ellipsoid, rotate with the head and are projected orthographically.
Coordinates are numbers or float64 [T], one value per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from affectgpt.demo.performance import ACTION_UNITS, Identity, Performance, sample_curve, speaking_mouth

Colour = tuple[int, int, int]
Number = Any  # float or float64 [T]
Point = tuple[Number, ...]  # (x, y) on the face or (x, y, z)
Shape = Sequence[Point] | np.ndarray  # [T, K, 2] as an array
Units = dict[str, np.ndarray]  # action unit -> [T]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)

_HEAD_SCALE = 0.36  # head units -> image widths
_CENTRE_Y = 0.475
_NECK = (0.0, -0.75, -0.25)  # the head rotates around this point


def render_face(performance: Performance, *, size_px: int = 112, rate_hz: float = 12.5) -> np.ndarray:
    """The frames of a clip -> uint8 [T, size_px, size_px, 3], T = duration_s * rate_hz.  Deterministic."""
    times = np.arange(max(1, round(performance.duration_s * rate_hz))) / rate_hz  # [T]
    units = dict.fromkeys(ACTION_UNITS, np.zeros(len(times)))
    units |= {name: sample_curve(curve, times).clip(0, 1) for name, curve in performance.action_units.items()}
    gaze = tuple(sample_curve(curve, times).clip(-1, 1) for curve in performance.gaze)
    pose = tuple(np.radians(sample_curve(curve, times)) for curve in performance.head)
    opening, rounding = speaking_mouth(performance, times)
    if performance.voice is not None:  # loud speech opens the mouth wider
        opening *= (1 + sample_curve(performance.voice.loudness_db, times) / 20).clip(0.5, 1.5)
    jaw = 0.2 * units["AU26"] + 0.1 * opening  # downward shift of the chin

    oversampling = 3 if size_px <= 160 else 2  # anti-aliasing
    looks = Looks.of(performance.identity)
    sketch = _Sketch(len(times), size_px * oversampling, pose, fold_colour=looks.line)
    _draw_back_hair(sketch, looks)
    _draw_body(sketch, looks, jaw)
    _draw_head(sketch, looks, jaw)
    _draw_cheeks(sketch, looks, units)
    _draw_nose(sketch, looks, units)
    for side in (-1, 1):
        _draw_eye(sketch, looks, units, gaze, side)
    _draw_mouth(sketch, looks, units, opening, rounding)
    _draw_forehead(sketch, units)
    _draw_front_hair(sketch, looks)
    _draw_brows(sketch, looks, units)
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
    (52, 73, 94), (112, 52, 60), (46, 92, 80), (108, 92, 128), (196, 164, 96), (76, 76, 84), (206, 208, 212),
)  # fmt: skip
_BACKGROUNDS: tuple[Colour, ...] = (
    (198, 214, 226), (226, 216, 200), (204, 220, 204), (216, 206, 222), (230, 226, 222), (180, 196, 200),
)  # fmt: skip
_STYLES = ("short", "parted", "buzz", "curly", "fringe", "long", "bun")


@dataclass(frozen=True)
class Looks:
    """Appearance of a person; sizes are relative to the average."""

    skin: Colour
    hair: Colour
    style: str
    iris: Colour
    clothes: Colour
    background: Colour
    width: float
    jaw: float
    eye: float
    eye_distance: float  # from the centre line, in head units
    brow: float
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

        skin, style = pick(_SKINS), pick(_STYLES)
        dark_skin = skin in _SKINS[4:]
        return cls(
            skin=skin,
            hair=pick(_HAIRS[:3] if dark_skin else _HAIRS),
            style=style,
            iris=pick(_IRISES[:2] if dark_skin else _IRISES),
            clothes=pick(_CLOTHES),
            background=pick(_BACKGROUNDS),
            width=rng.uniform(0.93, 1.05),
            jaw=rng.uniform(0.86, 1.08),
            eye=rng.uniform(0.93, 1.08),
            eye_distance=rng.uniform(0.305, 0.335),
            brow=rng.uniform(0.85, 1.3),
            nose=rng.uniform(0.85, 1.2),
            lips=rng.uniform(0.85, 1.25),
            part_side=int(rng.choice((-1, 1))),
            glasses=bool(rng.random() < 0.15),
            beard=bool(rng.random() < 0.5 and identity.base_pitch_hz < 150 and style in _STYLES[:3]),
        )

    @property
    def shade(self) -> Colour:
        """Skin in shadow."""
        return _mix(self.skin, (120, 50, 40), 0.3)

    @property
    def line(self) -> Colour:
        """Folds and wrinkles."""
        return _mix(self.skin, (70, 25, 20), 0.62)

    @property
    def lip_colour(self) -> Colour:
        return _mix(self.skin, (176, 50, 62), 0.55)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


# ---- drawing ---------------------------------------------------------------------------------------------------------


class _Sketch:
    """Collects the shapes of all frames from back to front and renders them.

    A shape is a list of points or an array [T, K, 2]; `pair` adds its mirror image on the other side of the face.
    """

    def __init__(self, n_frames: int, size_px: int, pose: tuple[np.ndarray, ...], fold_colour: Colour) -> None:
        self.n_frames, self.size_px, self.fold_colour = n_frames, size_px, fold_colour
        self._turns = [(np.cos(angle)[:, None], np.sin(angle)[:, None]) for angle in pose]
        self._shapes: list[tuple[np.ndarray, Colour, np.ndarray | None]] = []  # [T, 2N], colour, alpha 0..255 [T]

    def fill(
        self,
        shape: Shape,
        colour: Colour,
        alpha: Number = 1.0,
        *,
        pair: bool = False,
        still: bool = False,
        steps: int = 4,
    ) -> None:
        """A filled area, smoothed unless steps=1; with `still` it does not move with the head."""
        for points in _sides(shape, pair):
            outline = self._project(points, still)
            self._add(outline if steps == 1 else _spline(outline.shape[1], True, steps) @ outline, colour, alpha)

    def stroke(
        self,
        shape: Shape,
        width: float,
        colour: Colour,
        alpha: Number = 1.0,
        *,
        taper: float = 1.0,
        pair: bool = False,
        steps: int = 4,
    ) -> None:
        """A line, `width` head units wide in the middle; taper=0 gives a constant width."""
        for points in _sides(shape, pair):
            line = self._project(points, still=False)
            if steps > 1:
                line = _spline(line.shape[1], False, steps) @ line
            along = np.gradient(line, axis=1)  # [T, N, 2]
            along /= np.hypot(along[..., :1], along[..., 1:]).clip(1e-6)
            thinning = 1 - taper * np.abs(np.linspace(-1, 1, line.shape[1])) ** 3
            thickness = (width * _HEAD_SCALE * self.size_px * thinning).clip(1.0)  # [N]
            across = 0.5 * thickness[:, None] * along[..., ::-1] * (-1, 1)
            self._add(_between(line + across, line - across), colour, alpha)

    def fold(self, shape: Shape, width: float, depth: Number, *, pair: bool = False, steps: int = 4) -> None:
        """A skin fold; depth 0 = invisible."""
        self.stroke(shape, width, self.fold_colour, depth, pair=pair, steps=steps)

    def paint(self, background: Colour, oversampling: int) -> np.ndarray:
        """-> uint8 [T, H, W, 3], downsampled by `oversampling`."""
        light = np.linspace(1.06, 0.86, self.size_px)[:, None, None]  # a wall lit from above
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

    def _project(self, points: Shape, still: bool) -> np.ndarray:
        """Head units -> pixels [T, K, 2]."""
        if isinstance(points, np.ndarray):
            x, y, z = points[..., 0], points[..., 1], np.full(points.shape[:2], np.nan)  # [T, K] each
        else:
            axes = np.full((3, len(points), self.n_frames), np.nan)
            for index, point in enumerate(points):
                for axis, value in enumerate(point):
                    axes[axis, index] = value
            x, y, z = axes.transpose(0, 2, 1)
        if not still:
            (cos_yaw, sin_yaw), (cos_pitch, sin_pitch), (cos_roll, sin_roll) = self._turns
            # Points with explicit depth mostly belong to the silhouette, which does not change when a ball rotates.
            free = np.isnan(z)
            z = np.where(free, 0.68 * np.sqrt((1 - (x / 0.82) ** 2 - (y / 1.2) ** 2).clip(0.02)), z)
            x, y, z = x - _NECK[0], y - _NECK[1], z - _NECK[2]
            x, z = x * np.where(free, cos_yaw, 1.0) + z * sin_yaw, z * cos_yaw - x * sin_yaw
            y = y * np.where(free, cos_pitch, 1.0) + z * sin_pitch
            x, y = x * cos_roll + y * sin_roll + _NECK[0], y * cos_roll - x * sin_roll + _NECK[1]
        scale = _HEAD_SCALE * self.size_px
        return np.stack([0.5 * self.size_px + scale * x, _CENTRE_Y * self.size_px - scale * y], axis=-1)

    def _add(self, shape: np.ndarray, colour: Colour, alpha: Number) -> None:
        opaque = isinstance(alpha, float) and alpha == 1
        levels = None if opaque else np.broadcast_to(np.round(255 * np.clip(alpha, 0, 1)).astype(int), self.n_frames)
        self._shapes.append((shape.reshape(self.n_frames, -1), colour, levels))


@lru_cache(maxsize=64)
def _spline(n_points: int, closed: bool, steps: int) -> np.ndarray:
    """Catmull-Rom interpolation as a matrix from control points to curve points, [N, K]."""
    t = np.arange(steps) / steps
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1
    )  # [steps, 4]
    n_segments = n_points if closed else n_points - 1
    matrix = np.zeros((n_segments * steps + (not closed), n_points))
    for segment in range(n_segments):
        for column, neighbour in enumerate(range(segment - 1, segment + 3)):
            point = neighbour % n_points if closed else min(max(neighbour, 0), n_points - 1)
            matrix[segment * steps : (segment + 1) * steps, point] += weights[:, column]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def _sides(shape: Shape, pair: bool) -> list[Shape]:
    if not pair:
        return [shape]
    if isinstance(shape, np.ndarray):
        return [shape, shape * (-1, 1)]
    return [shape, [(-x, *rest) for x, *rest in shape]]


def _mirrored(half: Sequence[Point]) -> list[Point]:
    """Mirror the right half of a shape that begins and ends on the axis of the face."""
    return [*half, *((-x, *rest) for x, *rest in half[-2:0:-1])]


def _at_depth(z: float, points: Sequence[Point]) -> list[Point]:
    return [(x, y, z) for x, y in points]


def _ring(x: Number, y: Number, radius_x: Number, radius_y: Number, n_points: int = 8) -> list[Point]:
    angles = np.arange(n_points) * 2 * np.pi / n_points
    return [(x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)) for angle in angles]


def _between(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The area between two curves of the same direction, [T, N, 2] each -> [T, 2N, 2]."""
    return np.concatenate([upper, lower[:, ::-1]], axis=1)


def _curve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x [T, N] or [N] and y [T, N] -> [T, N, 2]"""
    return np.stack([np.broadcast_to(x, y.shape), y], axis=-1)


# ---- parts of the portrait -------------------------------------------------------------------------------------------


def _draw_body(sketch: _Sketch, looks: Looks, jaw: Number) -> None:
    shirt = [(0.0, -1.08), (0.36, -1.02), (0.75, -1.14), (1.15, -1.24), (1.36, -1.5), (1.4, -1.9), (0.0, -1.9)]
    collar = [(0.0, -1.36), (0.3, -1.2), (0.43, -1.0), (0.0, -0.96)]
    neck = [(0.0, -0.3), (0.35, -0.4), (0.34, -0.95), (0.38, -1.06), (0.2, -1.24), (0.0, -1.29)]
    chin_shadow = [(0.0, -0.5), (0.34, -0.6), (0.335, -0.9), (0.2, -1.08 - 0.5 * jaw), (0.0, -1.13 - 0.5 * jaw)]
    sketch.fill(_mirrored(shirt), looks.clothes, still=True)
    sketch.fill(_mirrored(collar), _mix(looks.clothes, BLACK, 0.25), still=True)
    sketch.fill(_mirrored(neck), _mix(looks.skin, looks.shade, 0.35), still=True)
    sketch.fill(_mirrored(chin_shadow), looks.shade, 0.75, still=True)


def _draw_head(sketch: _Sketch, looks: Looks, jaw: Number) -> None:
    w, j = looks.width, looks.jaw * looks.width
    if looks.style not in ("long", "fringe"):
        e = 0.75 * w
        lobe = [(e - 0.05, 0.17), (e + 0.1, 0.19), (e + 0.1, 0.0), (e + 0.03, -0.16), (e - 0.07, -0.12)]
        sketch.fill(_at_depth(-0.1, lobe), _mix(looks.skin, looks.shade, 0.3), pair=True)
        sketch.fold(_at_depth(-0.1, [(e + 0.01, 0.11), (e + 0.06, 0.08), (e + 0.03, -0.07)]), 0.02, 0.5, pair=True)
    half = [(0.0, 1.0, 0.0), (0.42 * w, 0.89, 0.0), (0.69 * w, 0.6, 0.0), (0.74 * w, 0.15, 0.0), (0.69 * w, -0.3, 0.03),
            (0.56 * j, -0.68 - 0.6 * jaw, 0.1), (0.28 * j, -0.94 - jaw, 0.25), (0.0, -1.0 - jaw, 0.3)]  # fmt: skip
    sketch.fill(_mirrored(half), looks.skin, steps=6)
    # Light from the upper left: shade the right side of the face.
    rim = [(0.8 * x, y, z) for x, y, z in half[2:-1]]
    sketch.fill([*half[2:], *rim[::-1]], looks.shade, 0.28)
    if looks.beard:
        inner = [(0.66 * w, 0.0, 0.1), (0.56 * w, -0.3, 0.2), (0.42, -0.5), (0.34, -0.72), (0.16, -0.8), (0.0, -0.81)]
        left = [(-x, *rest) for x, *rest in inner]
        cheek_to_cheek = _mirrored([(0.0, 0.0), (0.735 * w, 0.05, 0.0), *half[4:]])[1:]
        sketch.fill([*cheek_to_cheek, *left, *inner[-2::-1]], looks.hair, 0.25)


def _draw_cheeks(sketch: _Sketch, looks: Looks, units: Units) -> None:
    raised, smile = units["AU06"], units["AU12"]
    nose = np.maximum(units["AU09"], 0.85 * units["AU10"])
    y = -0.24 + 0.09 * raised + 0.03 * smile
    blush, light = _mix(looks.skin, (226, 84, 80), 0.45), _mix(looks.skin, (255, 246, 236), 0.5)
    sketch.fill(_ring(0.42, y, 0.155, 0.105 + 0.025 * raised), blush, 0.22 + 0.4 * raised + 0.12 * smile, pair=True)
    sketch.fill(_ring(0.41, y + 0.05, 0.06, 0.03), light, 0.3 + 0.4 * raised, pair=True)
    # Raised cheeks fold the skin under the eye and at its outer corner.
    pouch = [(0.2, -0.06), (0.33, -0.115 + 0.03 * raised), (0.5, -0.04 + 0.02 * raised)]
    sketch.fold(pouch, 0.026, 0.75 * raised, pair=True)
    for tilt in (-0.07, 0.0, 0.07):
        crow = [(0.545, 0.05 + 0.6 * tilt), (0.58, 0.05 + tilt), (0.635, 0.05 + 1.7 * tilt)]
        sketch.fold(crow, 0.02, 0.8 * raised, pair=True)
    # The fold from the wing of the nose to the corner of the mouth.
    depth = np.maximum.reduce([smile, nose, 0.45 * raised, 0.35 * units["AU15"]])
    bulge = 0.065 * smile + 0.026 * nose
    fold = [(0.15, -0.19 + 0.05 * nose), (0.27 + bulge, -0.29 + 0.02 * nose), (0.36 + bulge, -0.46 + 0.04 * smile)]
    sketch.fold(fold, 0.026, 0.06 + (0.5 - 0.15 * smile) * depth, pair=True)


def _draw_nose(sketch: _Sketch, looks: Looks, units: Units) -> None:
    wrinkle = units["AU09"]
    lift = 0.055 * wrinkle + 0.02 * units["AU10"]
    w = looks.nose * (1 + 0.14 * wrinkle)
    flank: list[Point] = [
        (0.045, 0.2, 0.76), (0.06, 0.0, 0.8), (0.1 * looks.nose, -0.17 + lift, 0.8), (0.06, -0.24 + lift, 0.86),
        (0.015, -0.16, 0.88), (0.02, 0.05, 0.82),
    ]  # fmt: skip
    wing: list[Point] = [
        (0.13 * w, -0.19 + lift, 0.76), (0.1 * w, -0.255 + lift, 0.78), (0.03, -0.25 + 0.6 * lift, 0.86),
        (0.0, -0.275 + 0.6 * lift, 0.88),
    ]  # fmt: skip
    sketch.fill(flank, looks.shade, 0.45)
    sketch.fold([*wing, *[(-x, *rest) for x, *rest in wing[-2::-1]]], 0.026, 0.7)
    sketch.fold([(0.035, -0.237 + lift, 0.84), (0.085 * w, -0.232 + lift, 0.8)], 0.03, 0.9, pair=True)
    for y in (0.13, 0.06, -0.01):  # from the bridge down along its sides
        sketch.fold([(0.015, y + 0.01, 0.8), (0.07, y, 0.78), (0.125, y - 0.05, 0.74)], 0.026, 0.9 * wrinkle, pair=True)
    sketch.fill(_at_depth(0.88, _ring(-0.02, -0.19 + 0.5 * lift, 0.035, 0.03)), (255, 250, 244), 0.4)


def _draw_eye(sketch: _Sketch, looks: Looks, units: Units, gaze: tuple[np.ndarray, ...], side: int) -> None:
    size, x0, y0 = looks.eye, looks.eye_distance * side, 0.09
    width = 0.185 * size * side
    shut = np.maximum(units["AU43"], units["AU45"])
    tight = np.maximum(units["AU07"], 0.5 * units["AU09"])
    up = 0.104 * size * (1 + 0.65 * units["AU05"] - 0.35 * tight - 0.1 * units["AU04"] - 0.1 * units["AU06"])
    low = 0.085 * size * (1 + 0.12 * units["AU05"] - 0.75 * tight - 0.5 * units["AU06"])
    # The upper lid follows the gaze; closed lids meet below the centre of the eye.
    up = (up + 0.025 * gaze[1]) * (1 - shut) - 0.045 * shut
    low = low * (1 - shut) + 0.05 * shut

    def lid(u: np.ndarray, height: np.ndarray, power: float) -> np.ndarray:
        """y of a lid at u = -1 (inner corner) .. 1 (outer corner), [T, N]"""
        return y0 + 0.012 * u + height[:, None] * (1 - np.abs(u).clip(0, 1) ** power)

    def upper(u: np.ndarray) -> np.ndarray:
        return lid(u, up, 2.3)

    def lower(u: np.ndarray) -> np.ndarray:
        return np.minimum(lid(u, -low, 2.0), upper(u))

    def disc(radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """A disc on the eyeball, clipped by the lids."""
        angle = np.arange(18) * np.pi / 9
        across, height = x0 + x[:, None] + radius * np.cos(angle), y0 + y[:, None] + radius * np.sin(angle)
        u = (across - x0) / width
        return _curve(across, height.clip(lower(u), upper(u)))

    u = np.linspace(-1, 1, 15)
    x = x0 + width * u
    top, bottom = _curve(x, upper(u)), _curve(x, lower(u))
    # The visible lid grows as the eye closes.
    fold = _curve(x, 0.01 + lid(u, 0.13 * size + 0.05 * units["AU05"] - 0.035 * tight, 2.0))
    sketch.fill(_between(np.maximum(fold, top), top), _mix(looks.skin, looks.shade, 0.55), steps=1)
    sketch.fill(_between(top, bottom), (250, 248, 244), steps=1)
    look_x, look_y, radius = 0.082 * gaze[0], 0.012 + 0.06 * gaze[1], 0.094 * size
    sketch.fill(disc(radius, look_x, look_y), _mix(looks.iris, BLACK, 0.35), steps=1)
    sketch.fill(disc(0.8 * radius, look_x, look_y), looks.iris, steps=1)
    sketch.fill(disc(0.48 * radius, look_x, look_y), (16, 12, 12), steps=1)
    sketch.fill(_between(top, _curve(x, np.maximum(upper(u) - 0.035, lower(u)))), (60, 50, 70), 0.3, steps=1)
    sketch.fill(disc(0.3 * radius, look_x - 0.035, look_y + 0.035), WHITE, np.where(up > 0, 0.95, 0.0), steps=1)
    sketch.stroke(bottom, 0.016, _mix(looks.line, looks.skin, 0.2), 0.8, steps=1)
    sketch.stroke(top, 0.042, _mix(looks.hair, (20, 14, 14), 0.8), taper=0.6, steps=1)
    sketch.fold(fold[:, 1:], 0.014, 0.55, steps=1)
    bag = np.broadcast_to(y0 - 0.105 + 0.03 * u**2, (sketch.n_frames, 15))
    sketch.fold(_curve(x0 + 0.85 * width * u, bag), 0.022, 0.7 * tight, steps=1)


def _draw_forehead(sketch: _Sketch, units: Units) -> None:
    inner, outer, down = units["AU01"], units["AU02"], units["AU04"]
    for y in (0.6, 0.68):
        sketch.fold([(-0.2, y - 0.02), (0.0, y + 0.02), (0.2, y - 0.02)], 0.022, 0.6 * inner * (1 - 0.4 * down))
        sketch.fold([(0.22, y - 0.02), (0.36, y), (0.5, y - 0.06)], 0.022, 0.6 * outer, pair=True)
    sketch.fold([(0.055, 0.38), (0.04, 0.3), (0.055, 0.2)], 0.03, 0.95 * down, pair=True)


def _draw_brows(sketch: _Sketch, looks: Looks, units: Units) -> None:
    inner, outer, down, nose = units["AU01"], units["AU02"], units["AU04"], units["AU09"]
    x, y = looks.eye_distance, 0.365 + 0.015 * units["AU05"]
    brow = [
        (x - 0.205 - 0.055 * down, y - 0.03 + 0.17 * inner - 0.125 * down - 0.05 * nose),
        (x - 0.09 - 0.03 * down, y + 0.005 + 0.11 * inner + 0.03 * outer - 0.12 * down - 0.04 * nose),
        (x + 0.07, y + 0.035 + 0.02 * inner + 0.12 * outer - 0.085 * down - 0.01 * nose),
        (x + 0.22, y - 0.035 - 0.01 * inner + 0.14 * outer - 0.03 * down),
    ]
    sketch.stroke(brow, 0.068 * looks.brow, _mix(looks.hair, (30, 20, 18), 0.55), taper=0.75, pair=True)


def _draw_mouth(sketch: _Sketch, looks: Looks, units: Units, opening: np.ndarray, rounding: np.ndarray) -> None:
    raiser, smile, dimple, frown = units["AU10"], units["AU12"], units["AU14"], units["AU15"]
    chin, stretch, tight, press = units["AU17"], units["AU20"], units["AU23"], units["AU24"]
    part, drop = units["AU25"], units["AU26"]

    gap = 0.075 * part + 0.2 * drop + 0.13 * opening * (1 - 0.5 * press)
    half = 0.25 + 0.1 * (smile + stretch) + 0.035 * dimple - 0.07 * tight - 0.02 * press - 0.08 * rounding - 0.04 * drop
    corner = -0.522 + 0.115 * (smile - frown) - 0.015 * stretch + 0.03 * dimple - 0.35 * gap * (1 - smile)
    middle = -0.53 - 0.035 * smile + 0.045 * frown + 0.075 * chin + 0.02 * press
    up = 0.25 * gap * (1 - drop) + 0.05 * drop + 0.08 * raiser  # distance of the inner edges from the middle
    low = gap - 0.25 * gap * (1 - drop) - 0.05 * drop + 0.02 * raiser
    thin = (1 - 0.5 * tight) * (1 - 0.8 * press) * (1 - 0.3 * stretch) * (1 - 0.25 * smile)
    upper_lip = 0.062 * looks.lips * thin * (1 - 0.25 * chin) * (1 + 0.3 * raiser) + 0.012
    lower_lip = 0.085 * looks.lips * thin * (1 + 0.35 * chin) + 0.012

    u = np.linspace(-1, 1, 21)
    x = half[:, None] * u  # [T, 21], like all edges below
    arch = 1 - np.abs(u) ** 2.4
    bow = (1 - np.abs(u) ** 1.6) * (1 - 0.22 * np.exp(-((u / 0.16) ** 2)))
    line = middle[:, None] * (1 - u**2) + corner[:, None] * u**2
    inner_top = line + up[:, None] * arch
    inner_low = line - low[:, None] * (1 - u**4)
    outer_top = inner_top + upper_lip[:, None] * bow + 0.05 * raiser[:, None] * np.exp(-((u / 0.5) ** 4))
    outer_low = inner_low - lower_lip[:, None] * arch
    teeth_low = np.maximum(inner_low, inner_top - (0.065 + 0.03 * smile + 0.05 * raiser)[:, None] * arch)
    low_teeth = np.minimum(inner_low + 0.035 * arch, teeth_low)
    tongue = np.minimum(np.maximum(inner_low, np.minimum(inner_low + 0.075 * arch, inner_top - 0.06)), inner_top)

    def band(upper: np.ndarray, lower: np.ndarray, colour: Colour, alpha: Number = 1.0, width: float = 1.0) -> None:
        sketch.fill(_between(_curve(width * x, upper), _curve(width * x, lower)), colour, alpha, steps=1)

    # The crease between lip and chin, and the bumps of a raised chin.
    y = middle - low - 0.19 + 0.02 * chin
    sketch.fold([(-0.14, y - 0.01), (0.0, y + 0.025 + 0.02 * chin), (0.14, y - 0.01)], 0.035, 0.16 + 0.6 * chin)
    for dx, dy in ((-0.1, -0.09), (0.0, -0.075), (0.1, -0.09), (-0.055, -0.15), (0.055, -0.15)):
        sketch.fold([(dx - 0.025, y + dy), (dx, y + dy + 0.02), (dx + 0.025, y + dy)], 0.026, 0.75 * chin)

    lip = looks.lip_colour
    band(outer_top, outer_low, lip)
    band(outer_top, inner_top, _mix(lip, (70, 10, 20), 0.22))
    band(inner_top, inner_low, (66, 18, 24))
    band(tongue, inner_low, (196, 92, 92), np.where(gap > 0.1, 1.0, 0.0), width=0.7)
    band(inner_top, teeth_low, (248, 246, 240), width=0.9)
    band(low_teeth, inner_low, (236, 232, 224), stretch * part, width=0.8)
    sketch.stroke(_curve(x, inner_top), 0.022, _mix(lip, (40, 0, 10), 0.6), 0.9, taper=0.7, steps=1)
    sketch.fold(_curve(0.7 * x, outer_low - 0.012), 0.016, 0.35, steps=1)
    shine = _curve(x, inner_low - 0.42 * lower_lip[:, None] * arch)[:, 7:13]
    sketch.stroke(shine, 0.022, (255, 226, 222), 0.55 * thin, steps=1)

    # Folds: short and deep for a dimple, soft for a smile, towards the jaw for a frown, vertical next to stretched
    # lips.
    x_, y = half, corner
    sketch.fold(
        [(x_ + 0.015, y + 0.07), (x_ + 0.065, y + 0.01), (x_ + 0.02, y - 0.07)], 0.045, 0.95 * dimple, pair=True
    )
    sketch.fold([(x_ + 0.005, y - 0.03), (x_ + 0.025, y), (x_ + 0.015, y + 0.045)], 0.03, 0.75 * smile, pair=True)
    sketch.fold([(x_ - 0.01, y), (x_ + 0.035, y - 0.05), (x_ + 0.045, y - 0.13)], 0.03, 0.8 * frown, pair=True)
    sketch.fold([(x_ + 0.05, y + 0.09), (x_ + 0.075, y), (x_ + 0.06, y - 0.1)], 0.026, 0.8 * stretch, pair=True)
    for dx in (0.05, 0.11):  # wrinkles of tightened lips
        sketch.fold([(dx, middle + 0.1), (0.9 * dx, middle + 0.055)], 0.02, 0.5 * tight, pair=True)
        sketch.fold([(dx, middle - 0.115), (0.9 * dx, middle - 0.07)], 0.02, 0.5 * tight, pair=True)
    sketch.fold(_curve(0.65 * x, outer_top + 0.035), 0.026, 0.5 * press, steps=1)  # bulges of pressed lips
    sketch.fold(_curve(0.75 * x, outer_low - 0.04), 0.03, 0.6 * press, steps=1)


def _draw_glasses(sketch: _Sketch) -> None:
    ring = _ring(0.33, 0.07, 0.235, 0.2, 12)
    bridge: list[Point] = [(0.1, 0.1), (0.0, 0.13)]
    arm: list[Point] = [(0.56, 0.1), (0.66, 0.11, 0.3), (0.75, 0.12, 0.0)]
    for shape in ([*ring, ring[0]], bridge, arm):
        sketch.stroke(shape, 0.024, (44, 40, 44), taper=0.0, pair=True)


# ---- hair ------------------------------------------------------------------------------------------------------------

# From the right temple to the left one.
_HAIRLINES: dict[str, list[Point]] = {
    "short": [(0.69, 0.42, 0.1), (0.6, 0.68, 0.2), (0.32, 0.75), (0.1, 0.79), (-0.12, 0.74), (-0.36, 0.77),
              (-0.6, 0.66, 0.2), (-0.69, 0.42, 0.1)],
    "parted": [(0.69, 0.4, 0.1), (0.62, 0.56, 0.2), (0.38, 0.66), (0.08, 0.76), (-0.3, 0.88), (-0.5, 0.74),
               (-0.66, 0.58, 0.15), (-0.69, 0.4, 0.1)],
    "buzz": [(0.69, 0.35, 0.1), (0.6, 0.64, 0.2), (0.3, 0.79), (0.0, 0.77), (-0.3, 0.79), (-0.6, 0.64, 0.2),
             (-0.69, 0.35, 0.1)],
    "curly": [(0.69, 0.3, 0.1), (0.62, 0.6, 0.2), (0.45, 0.66), (0.26, 0.76), (0.1, 0.7), (-0.12, 0.77), (-0.3, 0.69),
              (-0.5, 0.7), (-0.64, 0.56, 0.2), (-0.69, 0.3, 0.1)],
    "fringe": [(0.7, 0.1, 0.1), (0.65, 0.52, 0.2), (0.4, 0.62), (0.14, 0.66), (-0.14, 0.63), (-0.4, 0.64),
               (-0.65, 0.52, 0.2), (-0.7, 0.1, 0.1)],
    "long": [(0.71, -0.1, 0.1), (0.66, 0.35, 0.15), (0.45, 0.66, 0.4), (0.05, 0.87), (0.0, 0.9), (-0.05, 0.87),
             (-0.45, 0.66, 0.4), (-0.66, 0.35, 0.15), (-0.71, -0.1, 0.1)],
    "bun": [(0.71, 0.25, 0.1), (0.63, 0.58, 0.2), (0.35, 0.76), (0.0, 0.83), (-0.35, 0.76), (-0.63, 0.58, 0.2),
            (-0.71, 0.25, 0.1)],
}  # fmt: skip


def _draw_back_hair(sketch: _Sketch, looks: Looks) -> None:
    dark, w = _mix(looks.hair, BLACK, 0.3), looks.width
    if looks.style == "long":
        half = [(0.0, 1.1), (0.6 * w, 0.95), (0.9 * w, 0.3), (0.96 * w, -0.5), (1.0, -1.2), (0.6, -1.45), (0.0, -1.4)]
        sketch.fill(_at_depth(-0.25, _mirrored(half)), dark)
    elif looks.style == "fringe":
        half = [(0.0, 1.1), (0.62 * w, 0.95), (0.92 * w, 0.35), (0.95 * w, -0.4), (0.78, -0.8), (0.0, -0.7)]
        sketch.fill(_at_depth(-0.2, _mirrored(half)), dark)
    elif looks.style == "bun":
        sketch.fill(_at_depth(-0.15, _ring(0.0, 1.12, 0.32, 0.24)), looks.hair)
    elif looks.style == "curly":
        for angle in np.linspace(-0.22, 1.22, 13) * np.pi:
            curl = _ring(0.78 * w * np.cos(angle), 0.35 + 0.72 * np.sin(angle), 0.24, 0.24, 6)
            sketch.fill(_at_depth(-0.15, curl), dark)


def _draw_front_hair(sketch: _Sketch, looks: Looks) -> None:
    w, buzz = looks.width, looks.style == "buzz"
    top = 1.04 if buzz else 1.16
    # The outer edge runs from the left temple over the crown; the hairline closes the shape.
    right = [(0.76 * w, 0.2), (0.75 * w, 0.58), (0.46 * w, 0.9 * top), (0.0, top)]
    outer = _at_depth(0.0, [*[(-x, y) for x, y in right], *right[-2::-1]])
    line: list[Point] = [(x * w * looks.part_side, *rest) for x, *rest in _HAIRLINES[looks.style]][:: looks.part_side]
    sketch.fill([(x, y - 0.05, *z) for x, y, *z in line] + line[::-1], looks.shade, 0.3)
    sketch.fill(outer + line, looks.hair, 0.82 if buzz else 1.0)
    if looks.style == "curly":
        for angle in np.linspace(0.12, 0.88, 8) * np.pi:
            curl = _ring(0.66 * w * np.cos(angle), 0.4 + 0.62 * np.sin(angle), 0.17, 0.15, 6)
            sketch.fill(_at_depth(0.1, curl), looks.hair)
    elif not buzz:
        shine, deep = _mix(looks.hair, (255, 232, 200), 0.28), _mix(looks.hair, BLACK, 0.35)
        sketch.stroke([(-0.52 * w, 0.8, 0.2), (-0.24 * w, 0.96, 0.3), (0.1 * w, 1.01, 0.3)], 0.07, shine, 0.55)
        sketch.stroke([(0.2 * w, 1.0, 0.25), (0.5 * w, 0.84, 0.2), (0.66 * w, 0.56, 0.1)], 0.03, deep, 0.45)
