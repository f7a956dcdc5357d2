"""Aligned face crops that other tools have saved beside a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from affectgpt.media.container import EmptyMedia, MediaError, MissingMedia, PathLike
from affectgpt.media.video import uniform_indices


def read_faces(path: PathLike, n_frames: int | None = None) -> np.ndarray:
    """Face crops of a `.npy` file (uint8 [n,112,112,3], BGR as OpenFace pipelines save them) as RGB.

    Args:
        n_frames: how many, spread evenly; None = all.

    Returns:
        uint8 [T,112,112,3] RGB.

    Raises:
        MissingMedia, EmptyMedia: no file, or no crop in it.
        MediaError: another array, or no array; pickled objects are never loaded.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingMedia(f"{path}: no such file; check the folder of the face crops")
    try:
        crops = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise MediaError(f"{path}: not a .npy array of face crops ({error}); save it with numpy.save") from error
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (112, 112, 3):
        found = f"{crops.dtype} {list(crops.shape)}" if isinstance(crops, np.ndarray) else "a .npz archive"
        raise MediaError(f"{path}: expected face crops uint8 [n, 112, 112, 3], found {found}")
    if not len(crops):
        raise EmptyMedia(f"{path}: holds no face crop; run the face detector again, or leave it out")
    chosen = slice(None) if n_frames is None else uniform_indices(len(crops), n_frames)
    return np.ascontiguousarray(crops[chosen][..., ::-1])  # BGR -> RGB
