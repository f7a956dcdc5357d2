"""Evenly spaced video frames, decoded in one sequential pass for any number of frame sets."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from affectgpt.media.container import (
    PathLike,
    check_bytes,
    check_end,
    decode,
    open_media,
    packets_of,
    stream_kinds,
    video_stream,
)
from affectgpt.media.errors import DamagedMedia, EmptyMedia, MediaError, NoVideoStream
from affectgpt.media.isolated import isolatable
from affectgpt.runtime import InputError, MissingLibrary


@dataclass(frozen=True)
class Frames:
    """Decoded frames of one clip.

    Attributes:
        images: uint8 [T,H,W,3] RGB, upright, with square pixels.
        times_s: float64 [T], seconds since the first frame of the video, never decreasing.
        indices: int64 [T], their positions in the source.
        n_source_frames: number of frames in the source, counted while decoding.
    """

    images: np.ndarray
    times_s: np.ndarray
    indices: np.ndarray
    n_source_frames: int


@dataclass
class _Decoded:
    """Output of a backend: the selected frames by index, and the true number of frames."""

    n_source: int
    images: dict[int, np.ndarray] = field(default_factory=dict)
    times_s: dict[int, float] = field(default_factory=dict)


class Watcher(Protocol):
    """Looks at frames while they are decoded, in order."""

    def restart(self) -> None:
        """The next frame is the first one of the video; what was seen before does not count."""

    def wants(self, index: int, time_s: float) -> bool:
        """Whether to see the frame at this position and time, in seconds since the first frame."""

    def see(self, index: int, time_s: float, image: np.ndarray) -> None:
        """A frame: its position in the source, its time, uint8 [H,W,3] RGB, upright, with square pixels."""

    def end(self, time_s: float) -> None:
        """The time of the last frame."""


_Select = Callable[[int], "set[int]"]
"""Number of frames in a video -> the indices to keep."""


def uniform_indices(n_source: int, n: int) -> np.ndarray:
    """floor(i * n_source / n) for i < n, as int64 [n]; with fewer than `n` source frames, some are repeated.

    >>> uniform_indices(100, 8).tolist()
    [0, 12, 25, 37, 50, 62, 75, 87]
    """
    if n_source < 1 or n < 1:
        raise InputError(f"cannot select {n} of {n_source} frames; both numbers must be at least 1")
    return np.arange(n, dtype=np.int64) * n_source // n


def short_clip_order(n_source: int, n: int, short_clips: str = "even") -> Any:
    """The order of `n` evenly spaced images: with "last" and fewer source images than `n`, each once and then the last.

    >>> uniform_indices(2, 4)[short_clip_order(2, 4, "last")].tolist()
    [0, 1, 1, 1]
    """
    if n_source >= n or short_clips == "even":
        return slice(None)
    return np.searchsorted(uniform_indices(n_source, n), np.minimum(np.arange(n), n_source - 1))


def read_frames(path: PathLike, n_frames: int, *, backend: str = "pyav", size_px: int | None = None) -> Frames:
    """`n_frames` evenly spaced frames of the video; see `read_frame_sets`."""
    return read_frame_sets(path, {"frames": n_frames}, backend=backend, size_px=size_px)["frames"]


@isolatable
def read_frame_sets(
    path: PathLike,
    counts: Mapping[str, int],
    *,
    backend: str = "pyav",
    size_px: int | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Frames]:
    """Several sets of evenly spaced frames, e.g. `{"frames": 8, "motion": 16}`, from one pass over the video.

    Only the selected frames are kept, so memory does not grow with the length of the video.

    Args:
        counts: number of frames in each set.
        backend: "pyav" (always available), "decord" or "torchcodec".
        size_px: resize to this height and width (bicubic, antialiased, aspect ratio not kept); None = as stored,
            stretched to square pixels. If the frame size changes mid-stream, all frames are resized to the size of the
            first one.
        watcher: is shown the frames that it wants, of the size of the first one; only with the backend pyav. It shall
            not be in another process, so call this function within an isolatable one.

    Raises:
        NoVideoStream, TruncatedMedia, DamagedMedia, EmptyMedia, MissingMedia: all are MediaError.
        InputError: unknown backend, or a count below 1.
        MissingLibrary: the backend is not installed.
    """
    if backend not in _BACKENDS:
        raise InputError(f"unknown video backend {backend!r}; expected one of {sorted(_BACKENDS)}")

    def select(n_source: int) -> set[int]:
        return {int(index) for n in counts.values() for index in uniform_indices(n_source, n)}

    select(1)  # raises an error for a count below 1 before anything is decoded
    if watcher is None:
        decoded = _BACKENDS[backend](path, select)
    else:
        assert backend == "pyav", backend
        decoded = _decode_pyav(path, select, watcher)
    if not counts:
        return {}
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


def _pixel_aspect(stream: Any) -> float:
    """Width / height of a pixel; 1.0 if it is not stated, within 1 % of 1, or implausible (below 1/8 or above 8)."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / 8 <= aspect <= 8 and abs(aspect - 1) > 0.01 else 1.0


def _square_pixels(image: np.ndarray, aspect: float) -> np.ndarray:
    """Enlarge [H,W,3] to W * aspect, or to H / aspect if the pixels are taller than wide."""
    height, width = image.shape[:2]
    return _resize(image, round(height / min(aspect, 1)), round(width * max(aspect, 1)))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H,W,3] -> [height,width,3]"""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _decode_pyav(path: PathLike, select: _Select, watcher: Watcher | None = None) -> _Decoded:
    """Decode every frame in order and keep the selected ones.

    The selection depends on the number of frames, which headers often misstate (webm has no count, many avi files a
    wrong one). Counting packets costs about 1 % of decoding and is nearly always right; if not, decode a second time.
    """
    n_expected = _count_packets(path)
    for _ in range(2):
        if watcher is not None:
            watcher.restart()
        decoded = _decode_selected(path, select(max(n_expected, 1)), watcher)
        if decoded.n_source == n_expected > 0:
            return decoded
        n_expected = decoded.n_source
        if n_expected == 0:
            raise _empty(path)
        if not select(n_expected):
            return decoded  # nothing depends on the number of frames
    raise DamagedMedia(f"{path}: decodes to a different number of frames each time; convert it (ffmpeg -i IN OUT.mp4)")


def _empty(path: PathLike) -> EmptyMedia:
    return EmptyMedia(f"{path}: its video stream has no frames; copy or download it again, or leave it out")


def _count_packets(path: PathLike) -> int:
    """The number of packets that should each give a frame; edit lists discard some packets."""
    with open_media(path) as container:
        stream = _video_stream(container, path)
        check_bytes(path, container)
        return sum(packet.size > 0 and not packet.is_discard for packet in packets_of(container, stream))


def _video_stream(container: Any, path: PathLike) -> Any:
    stream = video_stream(container)
    if stream is None:
        raise NoVideoStream(
            f"{path}: no video stream, found {stream_kinds(container)}; pass it as audio, or pass the video file"
        )
    return stream


def _decode_selected(path: PathLike, selected: set[int], watcher: Watcher | None = None) -> _Decoded:
    decoded = _Decoded(n_source=0)
    first_s = last_s = end_s = 0.0
    shape: tuple[int, ...] = ()
    with open_media(path) as container:
        stream = _video_stream(container, path)
        rate_hz = float(stream.average_rate or stream.guessed_rate or 25)
        for index, frame in enumerate(decode(container, stream, path)):
            # Frames without a timestamp (in some avi files) are spaced at the nominal rate.
            time_s = float(frame.pts * stream.time_base) if frame.pts is not None else first_s + index / rate_hz
            if index == 0:
                first_s = last_s = time_s
            last_s = max(last_s, time_s)
            end_s = last_s + float((frame.duration or 0) * stream.time_base)
            watched = watcher is not None and watcher.wants(index, last_s - first_s)
            if index in selected or watched:
                image = upright_frame(frame, stream)
                # A size that grows mid-stream costs no memory: every frame is kept in the size of the first.
                shape = shape or image.shape[:2]
                image = _resize(image, *shape)
                if index in selected:
                    decoded.images[index] = image
                    decoded.times_s[index] = last_s - first_s
                if watched and watcher is not None:
                    watcher.see(index, last_s - first_s, image)
            decoded.n_source = index + 1
        if decoded.n_source:
            if watcher is not None:
                watcher.end(last_s - first_s)
            check_end(path, stream, first_s, end_s)
    return decoded


def upright_frame(frame: Any, stream: Any) -> np.ndarray:
    """A decoded frame of `stream` as a viewer sees it: RGB [H,W,3], upright and with square pixels."""
    return _upright(frame, _pixel_aspect(stream))


def _upright(frame: Any, aspect: float = 1.0) -> np.ndarray:
    """RGB image [H,W,3] with square pixels, rotated and mirrored by its display matrix to the nearest right angle."""
    image = _square_pixels(frame.to_ndarray(format="rgb24"), aspect)
    # Read the matrix from a small copy: frame and side data refer to each other, so reading it from the frame would
    # keep the frame, and with it the threads of its decoder, alive until the next garbage collection.
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


def _decode_decord(path: PathLike, select: _Select) -> _Decoded:
    decord = _import("decord", "pip install 'affectgpt[decord]'")
    square = _check_video(path)
    errors = (decord.DECORDError, RuntimeError)
    with _media_errors(path, "decord", errors):
        reader = decord.VideoReader(str(path), num_threads=1)
    indices = _indices(path, select, len(reader))
    with _media_errors(path, "decord", errors):
        images = reader.get_batch(indices).asnumpy()  # [T,H,W,3]
        times_s = reader.get_frame_timestamp([0, *indices])[:, 0]
    return _from_batch(len(reader), indices, [square(image) for image in images], times_s.astype(np.float64))


def _decode_torchcodec(path: PathLike, select: _Select) -> _Decoded:
    decoders = _import("torchcodec.decoders", "pip install torchcodec, and system ffmpeg libraries that it can load")
    square = _check_video(path)
    errors = (RuntimeError, ValueError, IndexError)
    with _media_errors(path, "torchcodec", errors):
        decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
    n_source = decoder.metadata.num_frames
    indices = _indices(path, select, n_source)
    with _media_errors(path, "torchcodec", errors):
        batch = decoder.get_frames_at([0, *indices])
    images = [square(image) for image in batch.data[1:].numpy()]
    return _from_batch(n_source, indices, images, batch.pts_seconds.double().numpy())


@contextmanager
def _media_errors(path: PathLike, backend: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn the `errors` of a decoder library into MediaError; wrap calls of the library only."""
    try:
        yield
    except errors as error:
        raise MediaError(f"{path}: {backend} cannot decode it ({_first_line(error)}); try backend pyav") from error


def _indices(path: PathLike, select: _Select, n_source: int) -> list[int]:
    if not n_source:
        raise _empty(path)
    return sorted(select(n_source))


def _from_batch(n_source: int, indices: list[int], images: list[np.ndarray], times_s: np.ndarray) -> _Decoded:
    """`times_s` [1 + T] starts with the time of the first frame of the video."""
    since_first = np.maximum.accumulate(times_s - times_s[0])[1:]
    return _Decoded(
        n_source, dict(zip(indices, images, strict=True)), dict(zip(indices, since_first.tolist(), strict=True))
    )


def _check_video(path: PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """Raise the errors of the default backend first; other backends crash or give vague messages.

    Returns a function that stretches an image of this video to square pixels.
    """
    with open_media(path) as container:
        stream = _video_stream(container, path)
        check_bytes(path, container)
        aspect = _pixel_aspect(stream)
        height = stream.codec_context.height if stream.codec_context else None
    # An image of another height has been turned by a quarter.
    return lambda image: _square_pixels(image, aspect if image.shape[0] == height else 1 / aspect)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _import(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        package = name.partition(".")[0]
        raise MissingLibrary(
            f"video backend {package!r} cannot be imported ({_first_line(error)}); "
            f"install it ({install}) or use backend pyav"
        ) from error


_BACKENDS: Mapping[str, Callable[[PathLike, _Select], _Decoded]] = {
    "pyav": _decode_pyav,
    "decord": _decode_decord,
    "torchcodec": _decode_torchcodec,
}
