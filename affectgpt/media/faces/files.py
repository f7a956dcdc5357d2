"""Aligned face crops that other tools have saved next to a video."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from affectgpt.media.container import PathLike
from affectgpt.media.errors import EmptyMedia, MediaError, MissingMedia
from affectgpt.media.video import uniform_indices
from affectgpt.runtime import InputError


def probe_faces(path: PathLike) -> tuple[int, int, int]:
    """(n, height, width) of the face crops in a `.npy` file, from its header; see `read_faces` for the errors."""
    n, height, width, _ = _open(path).shape
    return n, height, width


def read_faces(path: PathLike, n_frames: int | None = None, *, order: str = "bgr") -> np.ndarray:
    """Face crops of a `.npy` file (uint8 [n,h,w,3]) as RGB; only the selected ones are read from disk.

    Args:
        n_frames: how many, at floor(i * n / n_frames); None = all.
        order: channel order in the file: "bgr", as OpenFace pipelines save it, or "rgb".

    Returns:
        uint8 [T,h,w,3] RGB.

    Raises:
        MissingMedia, EmptyMedia: no file, or no crop in it.
        MediaError: any other file or array; pickled objects are never loaded.
    """
    if order not in ("bgr", "rgb"):
        raise InputError(f"the channel order of face crops must be bgr or rgb, found {order!r}")
    crops = _open(path)
    chosen = crops if n_frames is None else crops[uniform_indices(len(crops), n_frames)]
    return np.ascontiguousarray(chosen[..., ::-1] if order == "bgr" else chosen)


def _open(path: PathLike) -> np.ndarray:
    """The checked array, memory-mapped."""
    file = Path(path)
    try:
        if not file.is_file():
            raise MissingMedia(f"{path}: no such file; check the folder of the face crops")
        crops = np.load(file, mmap_mode="r", allow_pickle=False)
    except MissingMedia:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise MediaError(f"{path}: not a .npy array of face crops ({error}); save it with numpy.save") from error
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[3] != 3:
        found = f"{crops.dtype} {list(crops.shape)}" if isinstance(crops, np.ndarray) else "a .npz archive"
        raise MediaError(f"{path}: expected face crops uint8 [n, height, width, 3], found {found}")
    if not len(crops):
        raise EmptyMedia(f"{path}: has no face crops; run the face detector again, or leave it out")
    return crops
