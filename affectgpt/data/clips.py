"""Decode the media of one sample that a model needs: frames, motion frames, face crops and audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.config import SAMPLED, SamplingConfig
from affectgpt.media import audio_windows, probe_faces, read_audio, read_faces, read_frame_sets, uniform_indices
from affectgpt.schema import Sample


@dataclass(frozen=True)
class Clip:
    """Decoded media of one sample.

    Attributes:
        arrays: "frames", "motion", "face" and "face_motion" as uint8 [T, H, W, 3] RGB; "audio" as a `Waveform`.
        facts: for reports, as JSON-like values: frame times, seconds of audio used and in total.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]


def load_clip(sample: Sample, modalities: Sequence[str], sampling: SamplingConfig, *, backend: str = "pyav") -> Clip:
    """Decode `modalities` of `sample`; raises MediaError with the file's name if one cannot be decoded completely."""
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    counts = {name: getattr(sampling, SAMPLED[name][0]) for name in modalities if name != "audio"}
    if wanted := {name: counts[name] for name in ("frames", "motion") if name in counts}:
        assert sample.video is not None, f"sample {sample.id!r} lists frames without a video"
        for name, frames in read_frame_sets(sample.video, wanted, backend=backend).items():
            order = _order(frames.n_source_frames, len(frames.indices), sampling)
            arrays[name] = frames.images[order]
            facts[name] = {"times_s": [round(float(time), 3) for time in frames.times_s[order]]}
    for name in ("face", "face_motion"):
        if name in counts:
            assert sample.face is not None, f"sample {sample.id!r} lists face crops without a file"
            crops = read_faces(sample.face, counts[name], order=sample.face_order)
            n_crops = probe_faces(sample.face)[0]
            arrays[name] = crops[_order(n_crops, len(crops), sampling)]
            facts[name] = {"n_crops": n_crops}
    if "audio" in modalities:
        arrays["audio"] = waveform = read_audio(sample.audio or sample.video, sampling.rate_hz)
        heard_s, duration_s = _heard_s(len(waveform.samples), sampling), len(waveform.samples) / sampling.rate_hz
        facts["audio"] = {"heard_s": round(heard_s, 3), "duration_s": round(duration_s, 3)}
    return Clip(arrays, facts)


def _order(n_source: int, n: int, sampling: SamplingConfig) -> Any:
    """The order of `n` evenly sampled images: as they are, or each once and the last one for all that are lacking."""
    if n_source >= n or sampling.short_clips == "even":
        return slice(None)
    return np.searchsorted(uniform_indices(n_source, n), np.minimum(np.arange(n), n_source - 1))


def _heard_s(n_samples: int, sampling: SamplingConfig) -> float:
    """Seconds of the audio that are in at least one window."""
    windows = audio_windows(
        n_samples,
        sampling.rate_hz,
        window_s=sampling.window_s,
        max_windows=sampling.max_windows,
        mode=sampling.window_mode,
    )
    heard, reached = 0, 0
    for start, stop in windows:  # in order of their start
        stop = min(stop, n_samples)
        heard += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return heard / sampling.rate_hz
