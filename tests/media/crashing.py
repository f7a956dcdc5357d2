"""A decoder that crashes on one file, for tests of commands that isolate decoding."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection

from affectgpt.media import Waveform, isolatable, read_audio
from affectgpt.media.audio import read_audio_at


@isolatable
def read_audio_or_crash(path: str, rate_hz: int = 16000) -> Waveform:
    """`read_audio`, but the process ends with SIGSEGV at files whose name has a 1."""
    _crash_at(path)
    return read_audio(path, rate_hz)


@isolatable
def read_audio_at_or_crash(path: str, rates_hz: Collection[int | None]) -> dict[int | None, Waveform]:
    """`read_audio_at`, with the same crash."""
    _crash_at(path)
    return read_audio_at(path, rates_hz)


def _crash_at(path: str) -> None:
    if "1" in os.path.basename(path):
        os.kill(os.getpid(), signal.SIGSEGV)
