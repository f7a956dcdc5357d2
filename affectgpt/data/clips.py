"""Decode what a model needs of one sample: frames, motion frames and sound windows, with the facts that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.media import audio_windows, read_audio, read_frame_sets
from affectgpt.schema import Sample


@dataclass(frozen=True)
class Sampling:
    """How a clip is sampled; part of every cache key and checkpoint.

    Attributes:
        n_frames: frames for the image encoder, at floor(i * n / n_frames).
        n_motion_frames: frames for the motion encoder, spread likewise.
        rate_hz: sampling rate of the sound.
        window_s, max_windows: sound up to `window_s` is one window; longer sound gives up to `max_windows` windows.
        spacing: "cover" spreads windows from start to end; "fixed" always gives `max_windows` (padded with zeros).
    """

    n_frames: int = 8
    n_motion_frames: int = 16
    rate_hz: int = 16000
    window_s: float = 10.0
    max_windows: int = 3
    spacing: str = "cover"


@dataclass(frozen=True)
class Clip:
    """Decoded media of one sample.

    Attributes:
        arrays: "frames" and "motion" uint8 [T,H,W,3]; "audio" a list of float32 [S] windows.
        facts: JSON-like: frame times, seconds heard out of seconds there are.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]


def load_clip(sample: Sample, modalities: Sequence[str], sampling: Sampling, *, backend: str = "pyav") -> Clip:
    """Decode `modalities` of `sample`; raises MediaError with the file's name if any of them cannot be had whole."""
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    counts = {"frames": sampling.n_frames, "motion": sampling.n_motion_frames}
    if wanted := {name: counts[name] for name in ("frames", "motion") if name in modalities}:
        assert sample.video is not None, f"sample {sample.id!r} lists pictures without a video"
        for name, frames in read_frame_sets(sample.video, wanted, backend=backend).items():
            arrays[name] = frames.images
            facts[name] = {"times_s": [round(float(time), 3) for time in frames.times_s]}
    if "audio" in modalities:
        sound = read_audio(sample.audio or sample.video, sampling.rate_hz)
        arrays["audio"], facts["audio"] = cut_windows(sound.samples, sampling)
    return Clip(arrays, facts)


def cut_windows(samples: np.ndarray, sampling: Sampling) -> tuple[list[np.ndarray], dict[str, float]]:
    """Cut sound [S] into the windows of `sampling`; also how many seconds of how many are heard (overlap counted once)."""
    ranges = audio_windows(
        len(samples),
        sampling.rate_hz,
        window_s=sampling.window_s,
        max_windows=sampling.max_windows,
        mode=sampling.spacing,
    )
    windows = []
    heard = np.zeros(len(samples), dtype=bool)
    for start, stop in ranges:
        heard[start:stop] = True
        window = samples[start:stop]
        if missing := (stop - start) - len(window):
            window = np.pad(window, (0, missing))
        windows.append(window)
    return windows, {
        "heard_s": round(float(heard.sum()) / sampling.rate_hz, 3),
        "duration_s": round(len(samples) / sampling.rate_hz, 3),
    }
