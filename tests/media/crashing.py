"""A decoder that crashes on one file, for tests of commands that isolate decoding."""

from __future__ import annotations

import os
import signal

from affectgpt.media import Waveform, isolatable, read_audio


@isolatable
def read_audio_or_crash(path: str, rate_hz: int = 16000) -> Waveform:
    """`read_audio`, but the process ends with SIGSEGV at files whose name has a 1."""
    if "1" in os.path.basename(path):
        os.kill(os.getpid(), signal.SIGSEGV)
    return read_audio(path, rate_hz)
