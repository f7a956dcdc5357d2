"""Audio as mono samples at one rate, and how it is split into windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from affectgpt.media.container import (
    EmptyMedia,
    NoAudioStream,
    PathLike,
    audio_stream,
    check_end,
    decode,
    open_media,
    stream_kinds,
)
from affectgpt.runtime import InputError


@dataclass(frozen=True)
class Waveform:
    """The decoded audio of one clip.

    Attributes:
        samples: float32 [S] mono, full scale = 1 (lossy codecs may exceed it slightly).
        rate_hz: sampling rate of `samples`.
        duration_s: S / rate_hz, the decoded length.
        source_rate_hz, n_channels: of the file.
    """

    samples: np.ndarray
    rate_hz: int
    duration_s: float
    source_rate_hz: int
    n_channels: int


def read_audio(path: PathLike, rate_hz: int = 16000) -> Waveform:
    """Decode the audio of a video or audio file, resample it to `rate_hz` and average its channels to mono.

    FFmpeg's downmix of floating-point audio is 3 dB hot (it adds 0.707 of each channel without normalising), so the
    channels are averaged here instead. Timestamps are ignored: no silence is inserted for a late start or a gap.

    Raises:
        NoAudioStream, TruncatedMedia, DamagedMedia, EmptyMedia, MissingMedia: all are MediaError.
    """
    chunks: list[np.ndarray] = []
    resampler = None
    source: tuple[str, str, int] | None = None
    source_rate_hz = n_channels = 0
    first_s = end_s = 0.0

    def mono(frames: list[Any]) -> None:
        chunks.extend(frame.to_ndarray().mean(axis=0) for frame in frames)  # [C,S] -> [S]

    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None:
            raise NoAudioStream(f"{path}: no audio stream, found {stream_kinds(container)}; use it without audio")
        for frame in decode(container, stream, path):
            time_s = float(frame.pts * stream.time_base) if frame.pts is not None else end_s
            first_s = time_s if source is None else first_s
            end_s = time_s + frame.samples / frame.sample_rate
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind != source:  # the first frame, or the format changes mid-stream
                if resampler is not None:
                    mono(resampler.resample(None))
                resampler = av.AudioResampler("fltp", frame.layout, rate_hz)
                source, source_rate_hz, n_channels = kind, frame.sample_rate, frame.layout.nb_channels
            frame.pts = None  # the resampler raises an error when timestamps jump
            assert resampler is not None
            mono(resampler.resample(frame))
        if resampler is not None:
            mono(resampler.resample(None))
            check_end(path, stream, end_s - first_s)
    if not any(len(chunk) for chunk in chunks):
        raise EmptyMedia(f"{path}: its audio stream has no samples; copy or download it again, or leave it out")
    samples = np.concatenate(chunks)
    return Waveform(samples, rate_hz, len(samples) / rate_hz, source_rate_hz, n_channels)


def audio_windows(
    n_samples: int, rate_hz: int, *, window_s: float, max_windows: int, mode: str = "cover"
) -> list[tuple[int, int]]:
    """Split audio into at most `max_windows` windows of at most `window_s`: (start, stop) sample ranges.

    "cover": audio up to `window_s` is one window; longer audio gives min(max_windows, ceil(duration / window_s))
    windows spaced evenly from start to end, or the middle if there is only one.
    "fixed": always `max_windows` windows of `window_s`, starting at i * (duration - window_s) / max_windows; in shorter
    audio all start at 0 and `stop` exceeds the length: the caller pads with zeros.

    >>> audio_windows(50, 10, window_s=2.0, max_windows=3)
    [(0, 20), (15, 35), (30, 50)]
    """
    window = round(window_s * rate_hz)
    if n_samples < 1 or window < 1 or max_windows < 1:
        raise InputError(
            f"cannot split {n_samples} samples into {max_windows} windows of {window} samples; all must be at least 1"
        )
    spare = max(n_samples - window, 0)
    if mode == "fixed":
        starts = [i * spare // max_windows for i in range(max_windows)]
        return [(start, start + window) for start in starts]
    if mode != "cover":
        raise InputError(f"unknown window mode {mode!r}; expected 'cover' or 'fixed'")
    n = min(max_windows, -(-n_samples // window))
    starts = [spare // 2] if n == 1 else [i * spare // (n - 1) for i in range(n)]
    return [(start, min(start + window, n_samples)) for start in starts]
