"""Limits of what is decoded; damaged headers claim more. A process for reading may have lower ones."""

from __future__ import annotations

MAX_PIXELS = 8192 * 4320
"""Largest picture."""

MAX_GROWTH = 4
ALWAYS_PIXELS = 4096 * 2304
"""Midway, a picture may become this many times as large as the first, or this large: calls are recorded in changing
sizes."""

PICTURE_BYTES = 1 << 28
"""Of the pictures that decoding threads hold at a time, roughly."""

MAX_AUDIO_FRAME = 1 << 22
"""Samples of one frame of audio."""
