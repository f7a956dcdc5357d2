"""Audio as mono samples at one rate, and how it is split into windows."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
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
        start_s: the time of the first sample in the file, where another stream may start earlier or later.
    """

    samples: np.ndarray
    rate_hz: int
    duration_s: float
    source_rate_hz: int
    n_channels: int
    start_s: float = 0.0


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
    return read_audio_at(path, (rate_hz,))[rate_hz]


@isolatable
def read_audio_at(path: PathLike, rates_hz: Collection[int | None]) -> dict[int | None, Waveform]:
    """`read_audio` at several sampling rates from one pass over the file; None = the rate of the file.

    Each waveform is, bit for bit, that of a pass of its own.
    """
    with open_media(path) as container:
        streams = [stream.index for stream in audio_streams(container)]
        playable = [stream.index for stream in audio_streams(container) if stream.codec_context is not None]
        if not streams:
            raise NoAudioStream(f"{path}: no audio stream, found {stream_kinds(container)}; use it without audio")
        check_bytes(path, container)
    chosen = _decode_mono(path, streams[0], rates_hz)
    if silent := [rate_hz for rate_hz, mono in chosen.items() if mono.loudest < _SILENCE]:
        for index in playable[1:]:
            others = _decode_mono(path, index, silent)
            chosen |= {rate_hz: mono for rate_hz, mono in others.items() if mono.loudest >= _SILENCE}
            if not (silent := [rate_hz for rate_hz in silent if chosen[rate_hz].loudest < _SILENCE]):
                break
    for rate_hz, mono in chosen.items():
        if mono.cancels:
            channel = int(np.argmax(mono.energies))
            log.warning("%s: its audio channels have opposite phase and cancel; channel %d is used", path, channel + 1)
            chosen[rate_hz] = _decode_mono(path, mono.stream, (rate_hz,), channel=channel)[rate_hz]
    return {rate_hz: mono.waveform for rate_hz, mono in chosen.items()}


def resampled(waveform: Waveform, rate_hz: int) -> Waveform:
    """`waveform` at another sampling rate."""
    if rate_hz == waveform.rate_hz:
        return waveform
    frame = av.AudioFrame.from_ndarray(waveform.samples[None], format="flt", layout="mono")
    frame.sample_rate = waveform.rate_hz
    resampler = av.AudioResampler("flt", "mono", rate_hz)
    parts = [_channels(part)[0] for given in (frame, None) for part in resampler.resample(given)]
    samples = np.concatenate([*parts, np.zeros(0, np.float32)])
    return replace(waveform, samples=samples, rate_hz=rate_hz, duration_s=len(samples) / rate_hz)


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


class _Mixer:
    """Decoded frames of one stream -> mono samples at one rate (None = the stream's), or one channel of it."""

    def __init__(self, rate_hz: int | None, channel: int | None) -> None:
        self.rate_hz = rate_hz
        self._channel = channel
        self._resampler: Any = None
        self.chunks: list[np.ndarray] = []
        self.energies = np.zeros(MAX_CHANNELS)
        self.loudest, self.n_samples = 0.0, 0

    def add(self, path: PathLike, frame: Any, *, is_new: bool) -> None:
        """A frame; `is_new`: the first one, or the first one of another format."""
        if is_new:
            self.flush(path)
            self.rate_hz = self.rate_hz or frame.sample_rate
            # Packed: with 8 or more planes PyAV reads pointers behind the last one.
            self._resampler = av.AudioResampler("flt", frame.layout, self.rate_hz)
        self._mix(path, self._resampler.resample(frame))

    def flush(self, path: PathLike) -> None:
        """After the last frame of a format: add what the resampler still holds."""
        if self._resampler is not None:
            self._mix(path, self._resampler.resample(None))

    def _mix(self, path: PathLike, frames: list[Any]) -> None:
        assert self.rate_hz is not None
        for frame in frames:
            channels = _channels(frame)
            self.loudest = max(self.loudest, float(np.abs(channels).max(initial=0)))
            self.energies[: len(channels)] += np.square(channels, dtype=np.float64).sum(axis=1)
            one = self._channel
            chosen = channels.mean(axis=0) if one is None else channels[min(one, len(channels) - 1)].copy()
            if not np.isfinite(chosen).all():  # float wav may hold anything
                raise DamagedMedia(f"{path}: its audio has samples that are NaN or infinite; export it again")
            self.chunks.append(chosen)  # [C,S] -> [S]
            self.n_samples += len(chosen)
        if self.n_samples > MAX_AUDIO_S * self.rate_hz:
            raise MediaError(f"{path}: its audio is longer than the limit of {MAX_AUDIO_S // 3600} hours; split it")


def _decode_mono(
    path: PathLike, index: int, rates_hz: Collection[int | None], *, channel: int | None = None
) -> dict[int | None, _Mono]:
    """Decode the stream at `index` and average its channels, or select one, at each of these rates."""
    mixers = {rate_hz: _Mixer(rate_hz, channel) for rate_hz in rates_hz}
    source: tuple[str, str, int] | None = None
    source_rate_hz = n_channels = 0
    first_s = end_s = decoded_s = 0.0
    with open_media(path) as container:
        stream = container.streams[index]
        for frame in decode(container, stream, path):
            _check_claims(path, frame)
            time_s = float(frame.pts * stream.time_base) if frame.pts is not None else end_s
            first_s = time_s if source is None else first_s
            end_s = time_s + frame.samples / frame.sample_rate
            decoded_s += frame.samples / frame.sample_rate
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            is_new = kind != source  # the first frame, or the format changes mid-stream
            if is_new:
                source, source_rate_hz, n_channels = kind, frame.sample_rate, frame.layout.nb_channels
            frame.pts = None  # the resampler raises an error when timestamps jump
            for mixer in mixers.values():
                mixer.add(path, frame, is_new=is_new)
        if source is not None:
            for mixer in mixers.values():
                mixer.flush(path)
            check_end(path, stream, first_s, end_s)
            missing_s = 0.0
            if container.format.name == "flac":
                with open(path, "rb") as file:
                    missing_s = end_s - decoded_s - (0 if flac_starts_at_zero(file) else first_s)
            if missing_s > 0.05:
                raise DamagedMedia(f"{path}: {missing_s:.2f} s of its audio are missing in between; copy it again")
    if not all(mixer.n_samples for mixer in mixers.values()):
        raise EmptyMedia(f"{path}: its audio stream has no samples; copy or download it again, or leave it out")
    monos: dict[int | None, _Mono] = {}
    for asked_hz, mixer in mixers.items():
        rate_hz = mixer.rate_hz or source_rate_hz
        samples = np.concatenate(mixer.chunks)
        waveform = Waveform(samples, rate_hz, mixer.n_samples / rate_hz, source_rate_hz, n_channels, first_s)
        monos[asked_hz] = _Mono(waveform, index, mixer.energies[:n_channels], mixer.loudest)
    return monos


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
