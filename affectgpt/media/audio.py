"""Audio as mono samples at one rate, and how it is split into windows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from affectgpt.media.container import PathLike, audio_streams, check_bytes, check_end, decode, open_media, stream_kinds
from affectgpt.media.errors import DamagedMedia, EmptyMedia, MediaError, NoAudioStream
from affectgpt.media.isolated import isolatable
from affectgpt.media.structure import flac_starts_at_zero
from affectgpt.runtime import InputError

log = logging.getLogger("affectgpt")

RATES_HZ = (2_000, 768_000)
MAX_CHANNELS = 64
MAX_AUDIO_S = 4 * 3600
"""Limits of what is decoded; damaged headers claim more."""

_SILENCE = 1e-3
"""A stream with a peak below this, -60 dB of full scale, is silent."""


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


@isolatable
def read_audio(path: PathLike, rate_hz: int = 16000) -> Waveform:
    """Decode the audio of a video or audio file, resample it to `rate_hz` and average its channels to mono.

    Of several streams with a decoder, the one that a player would choose is used; if it is silent, the first that is
    not. Channels that cancel when averaged (opposite phase) are replaced by the loudest of them, with a warning.

    FFmpeg's downmix of floating-point audio is 3 dB hot (it adds 0.707 of each channel without normalising), so the
    channels are averaged here instead. Timestamps are ignored: no silence is inserted for a late start or a gap.

    Raises:
        NoAudioStream, TruncatedMedia, DamagedMedia, EmptyMedia, MissingMedia: all are MediaError.
    """
    with open_media(path) as container:
        streams = [stream.index for stream in audio_streams(container)]
        playable = [stream.index for stream in audio_streams(container) if stream.codec_context is not None]
        if not streams:
            raise NoAudioStream(f"{path}: no audio stream, found {stream_kinds(container)}; use it without audio")
        check_bytes(path, container)
    first = _decode_mono(path, streams[0], rate_hz)
    if first.loudest < _SILENCE:
        others = (_decode_mono(path, index, rate_hz) for index in playable[1:])
        first = next((other for other in others if other.loudest >= _SILENCE), first)
    if not first.cancels:
        return first.waveform
    channel = int(np.argmax(first.energies))
    log.warning("%s: its audio channels have opposite phase and cancel; channel %d is used", path, channel + 1)
    return _decode_mono(path, first.stream, rate_hz, channel=channel).waveform


@dataclass(frozen=True)
class _Mono:
    """A decoded stream; `energies` [C] is the sum of squares of each channel, `loudest` the peak of all channels."""

    waveform: Waveform
    stream: int
    energies: np.ndarray
    loudest: float

    @property
    def cancels(self) -> bool:
        """Whether the average is 20 dB weaker than that of uncorrelated channels of these energies."""
        n, energy = len(self.energies), float(np.square(self.waveform.samples, dtype=np.float64).sum())
        return n > 1 and self.loudest >= _SILENCE and energy < 0.01 * self.energies.sum() / n**2


def _decode_mono(path: PathLike, index: int, rate_hz: int, *, channel: int | None = None) -> _Mono:
    """Decode the stream at `index` and average its channels, or select one."""
    chunks: list[np.ndarray] = []
    resampler = None
    source: tuple[str, str, int] | None = None
    source_rate_hz = n_channels = n_samples = 0
    energies = np.zeros(MAX_CHANNELS)
    loudest = first_s = end_s = decoded_s = 0.0

    def mono(frames: list[Any]) -> None:
        nonlocal loudest, n_samples
        for frame in frames:
            channels = _channels(frame)
            loudest = max(loudest, float(np.abs(channels).max(initial=0)))
            energies[: len(channels)] += np.square(channels, dtype=np.float64).sum(axis=1)
            chosen = channels.mean(axis=0) if channel is None else channels[min(channel, len(channels) - 1)].copy()
            chunks.append(chosen)  # [C,S] -> [S]
            n_samples += len(chosen)
        if n_samples > MAX_AUDIO_S * rate_hz:
            raise MediaError(f"{path}: its audio is longer than the limit of {MAX_AUDIO_S // 3600} hours; split it")

    with open_media(path) as container:
        stream = container.streams[index]
        for frame in decode(container, stream, path):
            _check_claims(path, frame)
            time_s = float(frame.pts * stream.time_base) if frame.pts is not None else end_s
            first_s = time_s if source is None else first_s
            end_s = time_s + frame.samples / frame.sample_rate
            decoded_s += frame.samples / frame.sample_rate
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind != source:  # the first frame, or the format changes mid-stream
                if resampler is not None:
                    mono(resampler.resample(None))
                # Packed: with 8 or more planes PyAV reads pointers behind the last one.
                resampler = av.AudioResampler("flt", frame.layout, rate_hz)
                source, source_rate_hz, n_channels = kind, frame.sample_rate, frame.layout.nb_channels
            frame.pts = None  # the resampler raises an error when timestamps jump
            assert resampler is not None
            mono(resampler.resample(frame))
        if resampler is not None:
            mono(resampler.resample(None))
            check_end(path, stream, first_s, end_s)
            missing_s = 0.0
            if container.format.name == "flac":
                with open(path, "rb") as file:
                    missing_s = end_s - decoded_s - (0 if flac_starts_at_zero(file) else first_s)
            if missing_s > 0.05:
                raise DamagedMedia(f"{path}: {missing_s:.2f} s of its audio are missing in between; copy it again")
    if not n_samples:
        raise EmptyMedia(f"{path}: its audio stream has no samples; copy or download it again, or leave it out")
    waveform = Waveform(np.concatenate(chunks), rate_hz, n_samples / rate_hz, source_rate_hz, n_channels)
    return _Mono(waveform, index, energies[:n_channels], loudest)


def _channels(frame: Any) -> np.ndarray:
    """The samples of a packed float frame, float32 [C,S]."""
    n = frame.layout.nb_channels
    return np.ascontiguousarray(frame.to_ndarray().reshape(-1, n).T)


def _check_claims(path: PathLike, frame: Any) -> None:
    """Raise DamagedMedia for an implausible rate or channel count, before memory is allocated for it."""
    low, high = RATES_HZ
    if not low <= frame.sample_rate <= high:
        raise DamagedMedia(f"{path}: claims audio of {frame.sample_rate} Hz; expected {low} to {high} Hz")
    if not 1 <= frame.layout.nb_channels <= MAX_CHANNELS:
        raise DamagedMedia(f"{path}: claims {frame.layout.nb_channels} audio channels; expected 1 to {MAX_CHANNELS}")


def audio_windows(
    n_samples: int, rate_hz: int, *, window_s: float, max_windows: int, mode: str = "cover"
) -> list[tuple[int, int]]:
    """Split audio into at most `max_windows` windows of at most `window_s`: (start, stop) sample ranges.

    "cover": audio up to `window_s` is one window; longer audio gives min(max_windows, ceil(duration / window_s))
    windows spaced evenly from start to end, or the middle if there is only one.
    "fixed": always `max_windows` windows of `window_s`, starting at i * (duration - window_s) / max_windows; in shorter
    audio all start at 0 and `stop` exceeds the length: the caller pads with zeros.
    "published": as "fixed", with the starts of the published AffectGPT code, which takes the duration as a float of
    seconds: a quarter of the clips have windows that start one sample earlier.

    >>> audio_windows(50, 10, window_s=2.0, max_windows=3)
    [(0, 20), (15, 35), (30, 50)]
    """
    window = round(window_s * rate_hz)
    if n_samples < 1 or window < 1 or max_windows < 1:
        raise InputError(
            f"cannot split {n_samples} samples into {max_windows} windows of {window} samples; all must be at least 1"
        )
    spare = max(n_samples - window, 0)
    if mode == "published":
        spare_s = Fraction(max(n_samples / rate_hz - window_s, 0))  # exact from here on
        starts = [int(spare_s / max_windows * i * rate_hz) for i in range(max_windows)]
        return [(start, start + window) for start in starts]
    if mode == "fixed":
        starts = [i * spare // max_windows for i in range(max_windows)]
        return [(start, start + window) for start in starts]
    if mode != "cover":
        raise InputError(f"unknown window mode {mode!r}; expected 'cover', 'fixed' or 'published'")
    n = min(max_windows, -(-n_samples // window))
    starts = [spare // 2] if n == 1 else [i * spare // (n - 1) for i in range(n)]
    return [(start, min(start + window, n_samples)) for start in starts]
