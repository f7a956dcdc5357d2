"""Where somebody speaks: segments found by Silero VAD, whose weights are in its wheel (extra `speech`, MIT licence).

Music, noise and silence give no segments. Nothing is downloaded; torch is imported at the first call.
"""

from __future__ import annotations

import functools
import importlib.metadata
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.media.audio import Waveform
from affectgpt.runtime import InputError, MissingLibrary

RATE_HZ = 16000
"""The rate that the detector takes."""

THRESHOLD = 0.5
"""Probability of speech above which a segment starts."""

MIN_SPEECH_S = 0.25
"""Shorter segments are left out."""

DETECTORS = ("silero", "none")
"""Values of settings that name a detector; with "none", no speech is looked for."""

_lock = threading.Lock()  # the detector is recurrent: its state belongs to one clip at a time


@dataclass(frozen=True)
class Speech:
    """The speech of one clip.

    Attributes:
        segments_s: (start, end) of each segment, in order, without overlap.
        duration_s: of the clip.
        detector: name and version, for records.
    """

    segments_s: tuple[tuple[float, float], ...]
    duration_s: float
    detector: str

    @property
    def speech_s(self) -> float:
        return sum(end - start for start, end in self.segments_s)

    @property
    def share(self) -> float:
        """Of the clip, 0 to 1."""
        return self.speech_s / self.duration_s if self.duration_s else 0.0

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """Whether somebody speaks at these times: [N] seconds -> bool [N]."""
        found = np.zeros(len(times_s), dtype=bool)
        for start, end in self.segments_s:
            found |= (times_s >= start) & (times_s < end)
        return found


def find_speech(waveform: Waveform, *, threshold: float = THRESHOLD, min_speech_s: float = MIN_SPEECH_S) -> Speech:
    """The segments of `waveform` (at 16 kHz) in which somebody speaks.

    Args:
        threshold: probability above which a segment starts; it ends 0.15 below (the detector's own rule).
        min_speech_s: shorter segments are left out.

    Raises:
        InputError: another sampling rate.
        MissingLibrary: silero-vad is not installed.
    """
    if waveform.rate_hz != RATE_HZ:
        raise InputError(
            f"speech is found at {RATE_HZ} Hz, found {waveform.rate_hz} Hz; read the audio at {RATE_HZ} Hz"
        )
    torch, silero, model = _detector()
    with _lock:
        found = silero.get_speech_timestamps(
            torch.from_numpy(np.ascontiguousarray(waveform.samples, dtype=np.float32)),
            model,
            threshold=threshold,
            sampling_rate=RATE_HZ,
            min_speech_duration_ms=round(1000 * min_speech_s),
        )
    segments = tuple((row["start"] / RATE_HZ, row["end"] / RATE_HZ) for row in found)
    return Speech(segments, waveform.duration_s, detector_name("silero"))


def detector_name(detector: str) -> str:
    """Name and version, for records; the version is left out where the library is not installed."""
    try:
        return f"silero-vad {importlib.metadata.version('silero-vad')}" if detector == "silero" else detector
    except importlib.metadata.PackageNotFoundError:
        return "silero-vad"


@functools.cache
def _detector() -> tuple[Any, Any, Any]:
    """(torch, silero_vad, the model)"""
    import torch

    n_threads = torch.get_num_threads()
    try:
        import silero_vad
    except ImportError as error:
        raise MissingLibrary(f"finding speech needs silero-vad ({error}): pip install 'affectgpt[speech]'") from error
    finally:
        torch.set_num_threads(n_threads)  # importing silero_vad sets it to 1 for the whole process
    return torch, silero_vad, silero_vad.load_silero_vad()
