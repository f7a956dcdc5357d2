"""Media of requests: format, size and duration are checked before decoding."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.config import ServeConfig
from affectgpt.serve.errors import APIError
from affectgpt.serve.request import MediaPart

if TYPE_CHECKING:
    import numpy as np

_CONTAINERS = "mov,matroska,avi,wav,mp3,flac,ogg,aac,mpegts,flv,asf"
"""The demuxers of ffmpeg that requests may use. Others (concat, hls, dash ...) open the files that a file names."""


class MediaFiles:
    """The media of one request as files, checked against the limits; bytes are written to `folder`."""

    def __init__(self, folder: Path, config: ServeConfig) -> None:
        self._folder = folder
        self._config = config
        self._named: dict[str, str] = {}

    def path(self, medium: MediaPart | None) -> str | None:
        """The file of a video or of sound."""
        if medium is None:
            return None
        path = medium.path
        if path is None:
            assert medium.data is not None
            path = self._folder / str(len(self._named))
            path.write_bytes(medium.data)
        self._named[str(path)] = medium.where
        check_media(path, medium, self._config)
        return str(path)

    def scrubbed(self, message: str) -> str:
        """`message` with paths of the request instead of paths of this machine."""
        for path, where in self._named.items():
            message = message.replace(path, where)
        return message


def check_media(path: Path, medium: MediaPart, config: ServeConfig) -> None:
    """Raise APIError unless `path` holds media in the stated format, within the limits of size and duration."""
    from affectgpt.media import MediaError, measure

    try:
        found, sizes, longest_s = measure(str(path), formats=_CONTAINERS, max_s=config.max_media_s)
    except MediaError as error:
        message = str(error).replace(str(path), medium.where)
        raise APIError(400, message, param=medium.where) from None
    for width, height in sizes:
        _check_pixels(width, height, medium.where, config)
    if medium.kind and found != medium.kind:
        raise APIError(400, f"{medium.where}: format is {medium.kind}, found {found}", param=medium.where)
    if longest_s > config.max_media_s:
        raise APIError(
            400, f"{medium.where}: longer than {config.max_media_s:g} s (max_media_s); cut it", param=medium.where
        )


def _check_pixels(width: int, height: int, where: str, config: ServeConfig) -> None:
    if width * height > config.max_megapixels * 1e6:
        most = f"{config.max_megapixels:g} megapixels (max_megapixels)"
        raise APIError(400, f"{where}: {width} x {height} pixels; expected at most {most}: shrink it", param=where)


def read_images(
    images: Sequence[MediaPart], n: int | None, config: ServeConfig, short_clips: str = "even"
) -> tuple[np.ndarray, list[int]]:
    """`n` of the images, evenly spaced like frames of a video (None = all).

    Args:
        short_clips: with fewer than `n` images, "even" repeats them all and "last" the last one.

    Returns:
        uint8 [T,H,W,3] RGB, and their T indices.

    Raises:
        APIError: an image cannot be read or is too large, or sizes differ.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from affectgpt.media import short_clip_order, uniform_indices

    arrays = []
    for medium in images:
        assert medium.data is not None
        try:
            image = Image.open(io.BytesIO(medium.data), formats=("JPEG", "PNG", "WEBP"))
            _check_pixels(*image.size, medium.where, config)
            arrays.append(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).partition(" <")[0]
            raise APIError(
                400,
                f"{medium.where}: the image cannot be read ({reason}); expected JPEG, PNG or WebP",
                param=medium.where,
            ) from None
    if len(sizes := {array.shape for array in arrays}) > 1:
        found = sorted(f"{width} x {height}" for height, width, _ in sizes)
        raise APIError(400, f"images of {', '.join(found)} pixels; expected frames of one clip, all of one size")
    n = n or len(arrays)
    indices = uniform_indices(len(arrays), n)[short_clip_order(len(arrays), n, short_clips)].tolist()
    return np.stack([arrays[index] for index in indices]), indices
