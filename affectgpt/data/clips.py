"""Decode what a model needs of one sample: frames, motion frames and sound, with the facts that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from affectgpt.config import SamplingConfig
from affectgpt.media import audio_windows, probe_faces, read_audio, read_faces, read_frame_sets
from affectgpt.schema import Sample


@dataclass(frozen=True)
class Clip:
    """Decoded media of one sample.

    Attributes:
        arrays: "frames", "motion", "face" and "face_motion" uint8 [T,H,W,3] RGB; "audio" the whole sound as a
            `Waveform`.
        facts: JSON-like: frame times, seconds heard out of seconds there are.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]


def load_clip(sample: Sample, modalities: Sequence[str], sampling: SamplingConfig, *, backend: str = "pyav") -> Clip:
    """Decode `modalities` of `sample`; raises MediaError with the file's name if any of them cannot be had whole."""
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    counts = {"frames": sampling.n_frames, "motion": sampling.n_motion_frames}
    if wanted := {name: counts[name] for name in ("frames", "motion") if name in modalities}:
        assert sample.video is not None, f"sample {sample.id!r} lists pictures without a video"
        for name, frames in read_frame_sets(sample.video, wanted, backend=backend).items():
            arrays[name] = frames.images
            facts[name] = {"times_s": [round(float(time), 3) for time in frames.times_s]}
    for name, count in (("face", sampling.n_faces), ("face_motion", sampling.n_motion_faces)):
        if name in modalities:
            assert sample.face is not None, f"sample {sample.id!r} lists face crops without a file"
            arrays[name] = read_faces(sample.face, count, order=sample.face_order)
            facts[name] = {"n_crops": probe_faces(sample.face)[0]}
    if "audio" in modalities:
        sound = read_audio(sample.audio or sample.video, sampling.rate_hz)
        arrays["audio"] = sound
        heard_s, duration_s = _heard_s(len(sound.samples), sampling), len(sound.samples) / sampling.rate_hz
        facts["audio"] = {"heard_s": round(heard_s, 3), "duration_s": round(duration_s, 3)}
    return Clip(arrays, facts)


def _heard_s(n_samples: int, sampling: SamplingConfig) -> float:
    """Seconds of the sound that lie in at least one window."""
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
