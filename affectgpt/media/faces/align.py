"""Aligned face crops: a similarity transform (shift, scale, turn) that puts eyes, nose and outline at fixed places."""

from __future__ import annotations

import numpy as np

from affectgpt.media.faces.mesh import Region

ALIGNMENT = "openface-like 1"
"""Version of the template and of the points that are aligned to it; part of the keys of crops."""

# Mesh point -> its place in the crop, 0 to 1. OpenFace 2 aligns 24 points that hardly move with the expression (outline
# of the lower face, nose, eyes) to its mean shape, at 0.7 pixels per unit of that shape in 112 pixels. Its mean shape
# was estimated from a table that it wrote, by undoing its pose (columns p_scale to p_ty) in 100 frames of one head, and
# made symmetric; the mesh points are those nearest to the 24.
_TEMPLATE = {
    234: (0.061, 0.436), 93: (0.075, 0.543), 58: (0.097, 0.647), 172: (0.135, 0.740),
    397: (0.865, 0.740), 288: (0.903, 0.647), 323: (0.925, 0.543), 454: (0.939, 0.436),
    168: (0.500, 0.230), 197: (0.500, 0.301), 195: (0.500, 0.370),
    98: (0.412, 0.532), 97: (0.455, 0.543), 2: (0.500, 0.551), 326: (0.545, 0.543), 327: (0.588, 0.532),
    33: (0.214, 0.264), 133: (0.377, 0.271), 153: (0.322, 0.288), 144: (0.259, 0.289),
    362: (0.623, 0.271), 263: (0.786, 0.264), 373: (0.741, 0.289), 380: (0.678, 0.288),
}  # fmt: skip
_POINTS = list(_TEMPLATE)
_PLACES = np.array(list(_TEMPLATE.values()))


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, float, np.ndarray]:
    """(scale, angle, shift [2]) that map points [n,2] to others [n,2] with the least squared error.

    >>> scale, angle, shift = similarity(np.array([[0, 0], [1, 0.0]]), np.array([[1, 1], [1, 3.0]]))
    >>> scale, round(float(angle), 3), shift.tolist()
    (2.0, 1.571, [1.0, 1.0])
    """
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    size = float((a**2).sum())
    along, across = float((a * b).sum()) / size, float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / size
    turn = np.array([[along, -across], [across, along]])
    return float(np.hypot(along, across)), float(np.arctan2(across, along)), target.mean(0) - turn @ source.mean(0)


def crop_region(points: np.ndarray) -> Region:
    """The square of a picture that becomes the crop of a face with these mesh points [n,3].

    It is rounded to 1/100 pixel, so that crops that are cut out again are the same.
    """
    scale, angle, shift = similarity(_PLACES, np.asarray(points[_POINTS, :2], np.float64))
    cos, sin = scale * np.cos(angle) / 2, scale * np.sin(angle) / 2
    x, y = float(shift[0] + cos - sin), float(shift[1] + sin + cos)
    return Region(round(x, 2), round(y, 2), round(scale, 2), round(angle, 4))
