"""Frames of a video, spread evenly, in one sequential decode whatever the number of sets asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from affectgpt.media.container import (
    DamagedMedia,
    EmptyMedia,
    MediaError,
    NoVideoStream,
    PathLike,
    check_end,
    decode,
    open_media,
    stream_kinds,
    video_stream,
)
from affectgpt.runtime import InputError


@dataclass(frozen=True)
class Frames:
    """Pictures of one clip.

    Attributes:
        images: uint8 [T,H,W,3] RGB, turned upright.
        times_s: float64 [T], seconds since the first frame of the video, never decreasing.
        indices: int64 [T], which frames of the source they are.
        n_source_frames: frames in the source, counted while decoding.
    """

    images: np.ndarray
    times_s: np.ndarray
    indices: np.ndarray
    n_source_frames: int


@dataclass
class _Decoded:
    """What a backend gives: the wanted frames by index, and the true number of frames."""

    n_source: int
    images: dict[int, np.ndarray] = field(default_factory=dict)
    times_s: dict[int, float] = field(default_factory=dict)


_Choose = Callable[[int], "set[int]"]
"""The indices wanted of a video with so many frames."""


def uniform_indices(n_source: int, n: int) -> np.ndarray:
    """floor(i * n_source / n) for i < n, as int64 [n]; with fewer than `n` source frames some repeat.

    >>> uniform_indices(100, 8).tolist()
    [0, 12, 25, 37, 50, 62, 75, 87]
    """
    if n_source < 1 or n < 1:
        raise InputError(f"cannot choose {n} of {n_source} frames; both numbers must be at least 1")
    return np.arange(n, dtype=np.int64) * n_source // n


def read_frames(path: PathLike, n_frames: int, *, backend: str = "pyav", size_px: int | None = None) -> Frames:
    """`n_frames` frames spread evenly over the video; see `read_frame_sets`."""
    return read_frame_sets(path, {"frames": n_frames}, backend=backend, size_px=size_px)["frames"]


def read_frame_sets(
    path: PathLike, counts: Mapping[str, int], *, backend: str = "pyav", size_px: int | None = None
) -> dict[str, Frames]:
    """Several sets of evenly spread frames, e.g. `{"frames": 8, "motion": 16}`, from one pass over the video.

    Only wanted frames are kept, so memory does not grow with the video's length.

    Args:
        counts: frames in each set.
        backend: "pyav" (always there), "decord" or "torchcodec".
        size_px: stretch each picture to this height and width (bicubic, antialiased); None = as stored. A video whose
            size changes midway is stretched to the size of its first wanted frame.

    Raises:
        NoVideoStream, TruncatedMedia, DamagedMedia, EmptyMedia, MissingMedia: see there; all are MediaError.
        ValueError: unknown backend, or a count below 1.
        ImportError: the backend is not installed.
    """
    if backend not in _BACKENDS:
        raise InputError(f"unknown video backend {backend!r}; choose one of {sorted(_BACKENDS)}")

    def choose(n_source: int) -> set[int]:
        return {int(index) for n in counts.values() for index in uniform_indices(n_source, n)}

    choose(1)  # a count below 1 shows up before anything is decoded
    decoded = _BACKENDS[backend](path, choose)
    shape = (size_px, size_px) if size_px else decoded.images[0].shape[:2]
    images = {index: _resize(image, *shape) for index, image in decoded.images.items()}
    sets = {}
    for name, n in counts.items():
        indices = uniform_indices(decoded.n_source, n)
        sets[name] = Frames(
            images=np.stack([images[index] for index in indices.tolist()]),  # [T,H,W,3]
            times_s=np.array([decoded.times_s[index] for index in indices.tolist()]),
            indices=indices,
            n_source_frames=decoded.n_source,
        )
    return sets


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H,W,3] -> [height,width,3]"""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _decode_pyav(path: PathLike, choose: _Choose) -> _Decoded:
    """Decode every frame in order and keep the wanted ones.

    Which ones are wanted depends on the number of frames, and headers lie about it (webm states none, avi often a wrong
    one). Counting packets costs about 1 % of decoding and is nearly always right; where it is not, decode once more.
    """
    n_expected = _count_packets(path)
    for _ in range(2):
        decoded = _decode_wanted(path, choose(max(n_expected, 1)))
        if decoded.n_source == n_expected > 0:
            return decoded
        n_expected = decoded.n_source
        if n_expected == 0:
            raise EmptyMedia(f"{path}: its video stream holds no picture; copy or download it again, or leave it out")
    raise DamagedMedia(f"{path}: decodes to a different number of frames each time; convert it (ffmpeg -i IN OUT.mp4)")


def _count_packets(path: PathLike) -> int:
    """Packets that should each give a frame; an edit list discards some."""
    with open_media(path) as container:
        stream = _video_stream(container, path)
        return sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))


def _video_stream(container: Any, path: PathLike) -> Any:
    stream = video_stream(container)
    if stream is None:
        raise NoVideoStream(
            f"{path}: no video stream, found {stream_kinds(container)}; use it as audio, or give the video file"
        )
    return stream


def _decode_wanted(path: PathLike, wanted: set[int]) -> _Decoded:
    decoded = _Decoded(n_source=0)
    first_s = last_s = end_s = 0.0
    with open_media(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        rate_hz = float(stream.average_rate or stream.guessed_rate or 25)
        for index, frame in enumerate(decode(container, stream, path)):
            # Frames without a time stamp (some avi files) follow each other at the nominal rate.
            time_s = float(frame.pts * stream.time_base) if frame.pts is not None else first_s + index / rate_hz
            if index == 0:
                first_s = last_s = time_s
            last_s = max(last_s, time_s)
            end_s = last_s + float((frame.duration or 0) * stream.time_base)
            if index in wanted:
                decoded.images[index] = _upright(frame)
                decoded.times_s[index] = last_s - first_s
            decoded.n_source = index + 1
        if decoded.n_source:
            check_end(path, stream, end_s - first_s)
    return decoded


def _upright(frame: Any) -> np.ndarray:
    """RGB picture [H,W,3], turned and mirrored as the display matrix says, to the nearest right angle."""
    image = frame.to_ndarray(format="rgb24")
    # Of a small copy: frame and side data refer to each other, so that the frame, and with it its decoder's threads,
    # would live until the next search for such cycles.
    matrix = frame.reformat(width=16, height=16, interpolation="POINT").side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # Rows (a b u), (c d v), (x y w) of 32-bit fixed point map a point to (a x + c y, b x + d y); libavutil/display.h.
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), dtype=np.int32)[:5])
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.transpose(1, 0, 2), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _decode_decord(path: PathLike, choose: _Choose) -> _Decoded:
    decord = _import("decord", "pip install 'affectgpt[decord]'")
    _check_video(path)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        wanted = sorted(choose(len(reader)))
        images = reader.get_batch(wanted).asnumpy()  # [T,H,W,3]
        times_s = reader.get_frame_timestamp([0, *wanted])[:, 0].astype(np.float64)
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(f"{path}: decord cannot decode it ({_first_line(error)}); try backend pyav") from error
    return _gather(len(reader), wanted, images, times_s)


def _decode_torchcodec(path: PathLike, choose: _Choose) -> _Decoded:
    decoders = _import("torchcodec.decoders", "pip install torchcodec, and system ffmpeg libraries that it can load")
    _check_video(path)
    try:
        decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
        n_source = decoder.metadata.num_frames
        wanted = sorted(choose(n_source))
        batch = decoder.get_frames_at([0, *wanted])
    except (RuntimeError, ValueError, IndexError) as error:
        raise MediaError(f"{path}: torchcodec cannot decode it ({_first_line(error)}); try backend pyav") from error
    return _gather(n_source, wanted, batch.data[1:].numpy(), batch.pts_seconds.double().numpy())


def _gather(n_source: int, wanted: list[int], images: np.ndarray, times_s: np.ndarray) -> _Decoded:
    """`times_s` [1 + T] begins with the time of the video's first frame."""
    since_first = np.maximum.accumulate(times_s - times_s[0])[1:]
    return _Decoded(
        n_source,
        dict(zip(wanted, images, strict=True)),
        dict(zip(wanted, since_first.tolist(), strict=True)),
    )


def _check_video(path: PathLike) -> None:
    """The errors of the default backend, for backends that would crash or be vague."""
    with open_media(path) as container:
        _video_stream(container, path)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _import(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"video backend {package!r} cannot be imported ({_first_line(error)}); "
            f"install it ({install}) or use backend pyav"
        ) from error


_BACKENDS: Mapping[str, Callable[[PathLike, _Choose], _Decoded]] = {
    "pyav": _decode_pyav,
    "decord": _decode_decord,
    "torchcodec": _decode_torchcodec,
}
