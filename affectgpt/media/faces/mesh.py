"""MediaPipe's face detector, face mesh and iris model: pictures to boxes and 478 points.

The networks are those of MediaPipe 0.10 (BlazeFace full range, Face Mesh, Iris; Apache 2.0), in `weights/`; what
happens before and after them follows its published graphs (`mediapipe/modules/face_landmark`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from affectgpt.media.faces.network import network
from affectgpt.media.faces.tracks import EYES, MESH_POINTS

VERSION = "blazeface-full-range 0.10"
MESH_VERSION = "facemesh-iris 0.10"

MIN_SCORE = 0.6
MIN_PRESENCE = 0.5
_SAME_FACE = 0.3  # overlap of two boxes of one face in one frame
_ROI_SCALE = 1.5
_EYE_ROI_SCALE = 2.3

# The 16 first points of the iris model, the outline of the eye, in the mesh: along the lower lid, then the upper one.
_RIGHT_EYE = [33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173]
_LEFT_EYE = [263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398]


@dataclass(frozen=True)
class Region:
    """A square in a picture: centre and side in pixels, and the direction of its upper edge in radians (y down)."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def corners(self, points: np.ndarray) -> np.ndarray:
        """Points of the square in 0..1 [..., 2] -> pixels of the picture [..., 2]."""
        u, v = (points[..., 0] - 0.5) * self.side, (points[..., 1] - 0.5) * self.side
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([self.x + u * cos - v * sin, self.y + u * sin + v * cos], axis=-1)

    def toward(self, other: Region, weight: float) -> Region:
        """`weight` 0 = this region, 1 = the other."""
        turn = (other.angle - self.angle + np.pi) % (2 * np.pi) - np.pi

        def between(a: float, b: float) -> float:
            return a + (b - a) * weight

        x, y = between(self.x, other.x), between(self.y, other.y)
        return Region(x, y, between(self.side, other.side), self.angle + turn * weight)


@dataclass(frozen=True)
class Found:
    """One face in one picture.

    Attributes:
        box: [4] in pixels.
        region: for the mesh.
        score: 0 to 1.
        points, blendshapes: [478,3] and [52], of detectors that give them.
    """

    box: np.ndarray
    region: Region
    score: float
    points: np.ndarray | None = None
    blendshapes: np.ndarray | None = None


def cut(image: Image.Image, region: Region, size: int) -> np.ndarray:
    """The region of a picture as uint8 [size,size,3], black outside of the picture.

    Large regions are averaged first, so that nothing is skipped when they are made smaller.
    """
    factor = int(region.side // size)
    if factor > 1:
        left, top = (max(int(c - region.side), 0) for c in (region.x, region.y))
        right = min(int(region.x + region.side) + 1, image.width)
        lower = min(int(region.y + region.side) + 1, image.height)
        if right - left < factor or lower - top < factor:
            return np.zeros((size, size, 3), np.uint8)
        image = image.crop((left, top, right, lower)).reduce(factor)
        # `reduce` averages blocks: pixel i covers [i * factor, (i + 1) * factor).
        region = Region((region.x - left) / factor, (region.y - top) / factor, region.side / factor, region.angle)
    step = region.side / size
    cos, sin = np.cos(region.angle) * step, np.sin(region.angle) * step
    half = size / 2
    matrix = (cos, -sin, region.x - (cos - sin) * half, sin, cos, region.y - (sin + cos) * half)
    made = image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(made)


def detect(images: list[Image.Image], min_score: float = MIN_SCORE) -> list[list[Found]]:
    """The faces in each picture, the surest first.

    A picture in which nothing is found is looked at again from farther away, for faces that fill it, and if it is long
    in two squares, where faces are larger.
    """
    found = _detect([(image, _letterbox(image)) for image in images], min_score)
    again = [
        (number, region)
        for number, faces in enumerate(found)
        if not faces
        for region in (_letterbox(images[number], margin=1.7), *_halves(images[number]))
    ]
    looked = _detect([(images[number], region) for number, region in again], min_score) if again else []
    for number in {number for number, _ in again}:
        found[number] = _merge(
            [face for (of, _), faces in zip(again, looked, strict=True) if of == number for face in faces]
        )
    return found


def _letterbox(image: Image.Image, margin: float = 1.0) -> Region:
    return Region(image.width / 2, image.height / 2, margin * max(image.size))


def _halves(image: Image.Image) -> list[Region]:
    """Two squares at the ends of a long picture, of at least 60 % of its length, so that they overlap; else none."""
    if max(image.size) < 1.3 * min(image.size):
        return []
    side = max(min(image.size), 0.6 * max(image.size))
    wide = image.width >= image.height
    ends = (side / 2, max(image.size) - side / 2)
    return [Region(end, image.height / 2, side) if wide else Region(image.width / 2, end, side) for end in ends]


def _detect(looked: list[tuple[Image.Image, Region]], min_score: float) -> list[list[Found]]:
    net = network("detector")
    found: list[list[Found]] = []
    for first in range(0, len(looked), 8):
        chunk = looked[first : first + 8]
        pictures = np.stack([cut(image, region, net.size) for image, region in chunk])
        boxes, scores = net(pictures.astype(np.float32) / 127.5 - 1)
        for (_, region), values, logits in zip(chunk, boxes, scores, strict=True):
            found.append(_decode(values.reshape(-1, 16), logits, region, net.size, min_score))
    return found


def _decode(values: np.ndarray, logits: np.ndarray, region: Region, size: int, min_score: float) -> list[Found]:
    """Raw outputs [2304,16] and [2304] of the detector -> faces; one anchor at the centre of each of 48 x 48 cells."""
    scores = 1 / (1 + np.exp(-np.clip(logits, -100, 100)))
    chosen = np.flatnonzero(scores >= min_score)
    if not len(chosen):
        return []
    cells = round(len(logits) ** 0.5)
    anchors = (np.stack([chosen % cells, chosen // cells], axis=1) + 0.5) / cells  # [n,2]
    values = values[chosen] / size
    centres, sizes = anchors + values[:, :2], values[:, 2:4]
    eyes = anchors[:, None] + values[:, 4:8].reshape(-1, 2, 2)
    order = np.argsort(-scores[chosen], kind="stable")
    faces = []
    for number in order:
        left_top = region.corners(centres[number] - sizes[number] / 2)
        right_bottom = region.corners(centres[number] + sizes[number] / 2)
        box = np.concatenate([left_top, right_bottom])
        one, other = region.corners(eyes[number])
        angle = float(np.arctan2(other[1] - one[1], other[0] - one[0]))
        faces.append(Found(box, region_of(box, angle), float(scores[chosen][number])))
    return _merge(faces)


def region_of(box: np.ndarray, angle: float = 0.0) -> Region:
    """The region for the mesh around a face's box [4]."""
    left, top, right, bottom = (float(value) for value in box)
    return Region((left + right) / 2, (top + bottom) / 2, _ROI_SCALE * max(right - left, bottom - top), angle)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection / union of two boxes [4]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def _merge(faces: list[Found]) -> list[Found]:
    """Average the boxes of one face, weighted by score; the score is the highest."""
    left = sorted(faces, key=lambda face: -face.score)
    merged = []
    while left:
        same = [face for face in left if overlap(face.box, left[0].box) > _SAME_FACE]
        rest = [face for face in left if overlap(face.box, left[0].box) <= _SAME_FACE]
        weights = np.array([face.score for face in same])
        box = np.average([face.box for face in same], axis=0, weights=weights)
        merged.append(Found(box, region_of(box, left[0].region.angle), left[0].score))
        left = rest
    return merged


def mesh(looked: list[tuple[Image.Image, Region]]) -> tuple[np.ndarray, np.ndarray]:
    """Regions of pictures -> points float32 [N,468,3] in pixels of the picture, and presence [N] of a face, 0 to 1."""
    net = network("mesh")
    points, presence = [], []
    for first in range(0, len(looked), 16):
        chunk = looked[first : first + 16]
        pictures = np.stack([cut(image, region, net.size) for image, region in chunk])
        values, flags = net(pictures.astype(np.float32) / 255)
        presence += (1 / (1 + np.exp(-flags[:, 0]))).tolist()
        for (_, region), found in zip(chunk, values.reshape(len(chunk), -1, 3) / net.size, strict=True):
            points.append(np.concatenate([region.corners(found), found[:, 2:] * region.side], axis=1))
    return np.array(points, np.float32).reshape(-1, 468, 3), np.array(presence, np.float32)


def eye_pictures(image: Image.Image, points: np.ndarray) -> tuple[np.ndarray, list[Region]]:
    """What the iris model takes of a face [468,3]: uint8 [2,64,64,3] and the regions. The second eye is mirrored."""
    regions = []
    for inner, outer in EYES:
        one, other = points[inner, :2], points[outer, :2]
        middle, along = (one + other) / 2, other - one
        side = _EYE_ROI_SCALE * float(np.linalg.norm(along))
        angle = float(np.arctan2(along[1], along[0]))
        regions.append(Region(float(middle[0]), float(middle[1]), max(side, 1.0), angle))
    pictures = [cut(image, region, network("iris").size) for region in regions]
    return np.stack([pictures[0], pictures[1][:, ::-1]]), regions


def with_irises(points: np.ndarray, pictures: np.ndarray, regions: list[list[Region]]) -> np.ndarray:
    """Mesh points float32 [n,468,3], `eye_pictures` [n,2,64,64,3] -> [n,478,3], with refined outlines of the eyes."""
    net = network("iris")
    made = np.concatenate([points, np.zeros((len(points), MESH_POINTS - 468, 3), np.float32)], axis=1)
    flat = pictures.reshape(-1, net.size, net.size, 3)
    for first in range(0, len(flat), 16):
        outlines, irises = net(flat[first : first + 16].astype(np.float32) / 255)
        for place, (outline, iris) in enumerate(zip(outlines, irises, strict=True), first):
            face, eye = divmod(place, 2)
            region, is_mirrored = regions[face][eye], eye == 1
            depth = float(np.mean(points[face, EYES[eye], 2]))
            for numbers, values in (
                (_LEFT_EYE if is_mirrored else _RIGHT_EYE, outline.reshape(-1, 3)[:16]),
                (range(468 + 5 * eye, 473 + 5 * eye), iris.reshape(-1, 3)),
            ):
                found = values / net.size
                if is_mirrored:
                    found = found * [-1, 1, 1] + [1, 0, 0]
                made[face, list(numbers), :2] = region.corners(found)
                if values.shape[0] == 5:
                    made[face, list(numbers), 2] = depth
    return made
