"""Decode the media of one sample that a model needs: frames, motion frames, face crops and audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from affectgpt.config import SAMPLED, SamplingConfig
from affectgpt.data.faces import FACE_MODALITIES, FaceNeeds
from affectgpt.data.facts import MediaFacts
from affectgpt.media import (
    Frames,
    Waveform,
    audio_windows,
    probe_faces,
    read_audio,
    read_faces,
    read_frame_sets,
    short_clip_order,
)
from affectgpt.media.faces.tracks import ABSENT
from affectgpt.runtime import InputError
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


def load_clip(
    sample: Sample,
    modalities: Sequence[str],
    sampling: SamplingConfig,
    *,
    backend: str = "pyav",
    facts: MediaFacts | None = None,
) -> Clip:
    """Decode `modalities` of `sample`; raises MediaError with the file's name if one cannot be decoded completely.

    Face crops come from the sample's file of crops, or without one from its video.

    Args:
        facts: knows where the faces of videos are; None = they are looked for.
    """
    arrays: dict[str, Any] = {}
    infos: dict[str, Any] = {}
    counts = {name: getattr(sampling, SAMPLED[name][0]) for name in modalities if name != "audio"}
    wanted = {name: counts[name] for name in ("frames", "motion") if name in counts}
    faces = {name: counts[name] for name in FACE_MODALITIES if name in counts}
    sets: dict[str, Frames] = {}
    sound: Waveform | None = None
    if sample.face is None and sample.video is not None and modalities:
        facts = facts or MediaFacts()
        rate_hz = sampling.rate_hz if "audio" in modalities else None
        needs = FaceNeeds(sampling.faces, wanted if backend == "pyav" else {}, rate_hz).of(sample.person)
        look = facts.faces_in if faces else facts.read_ahead
        reading = look(sample.video, needs, sound=sample.audio)
        sound = None if reading is None else reading.sound
        if reading is not None and (faces or not set(wanted) - set(reading.sets or ())):
            if faces and not reading.crops.n:
                why = ABSENT[reading.crops.absent]
                raise InputError(f"{sample.video}: {why} (faces.person={needs.settings.person})")
            sets, crops = reading.read(sample.video, needs.counts, faces, sampling.faces.size_px)
            for name, images in crops.items():
                arrays[name] = images[short_clip_order(len(reading.crops.indices), len(images), sampling.short_clips)]
                infos[name] = {"n_frames_with_face": reading.crops.n, "detector": sampling.faces.detector}
    if wanted:
        assert sample.video is not None, f"sample {sample.id!r} lists frames without a video"
        sets = sets or read_frame_sets(sample.video, wanted, backend=backend)
        for name in wanted:
            order = short_clip_order(sets[name].n_source_frames, len(sets[name].indices), sampling.short_clips)
            arrays[name] = sets[name].images[order]
            infos[name] = {"times_s": [round(float(time), 3) for time in sets[name].times_s[order]]}
    if sample.face is not None:
        for name, n in faces.items():
            saved = read_faces(sample.face, n, order=sample.face_order)
            n_crops = probe_faces(sample.face)[0]
            arrays[name] = saved[short_clip_order(n_crops, len(saved), sampling.short_clips)]
            infos[name] = {"n_crops": n_crops}
    if "audio" in modalities:
        is_read = sound is not None and sound.rate_hz == sampling.rate_hz
        waveform = sound if is_read else read_audio(sample.audio or sample.video, sampling.rate_hz)
        arrays["audio"] = waveform
        heard_s, duration_s = _heard_s(len(waveform.samples), sampling), len(waveform.samples) / sampling.rate_hz
        infos["audio"] = {"heard_s": round(heard_s, 3), "duration_s": round(duration_s, 3)}
    return Clip(arrays, infos)


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
