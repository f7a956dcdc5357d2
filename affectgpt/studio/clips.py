"""What is in a clip: frames with their times, the sound's waveform, speech, pauses and pitch."""

from __future__ import annotations

import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from affectgpt.annotate.sound import PAUSE_S, prosody
from affectgpt.media import why_not_played, write_playable
from affectgpt.media.audio import read_audio
from affectgpt.media.container import probe
from affectgpt.media.video import read_frames
from affectgpt.runtime import MissingLibrary, stable_hash

N_FRAMES = 8
FRAME_WIDTH_PX = 320
N_PEAKS = 600  # of the waveform
N_PITCH = 400  # values of pitch at most
RATE_HZ = 16_000
_N_KEPT_CLIPS = 256  # about 100 kB each, mostly pictures

Value = TypeVar("Value")


@dataclass(frozen=True)
class ClipEvidence:
    """What a page shows of a clip.

    Attributes:
        values: for JSON: duration, times of frames, waveform, speech, pauses, pitch, and what could not be found.
        pictures: the frames as JPEG.
    """

    values: Mapping[str, Any]
    pictures: Sequence[bytes] = field(repr=False, default=())


def evidence_of(path: Path, *, backend: str = "pyav", n_frames: int = N_FRAMES) -> ClipEvidence:
    """Decode a clip; its frames are those that a model with `n_frames` sees.

    Raises:
        MediaError: it cannot be decoded.
    """
    info = probe(str(path))
    values: dict[str, Any] = {"frames": [], "notes": []}
    pictures: list[bytes] = []
    if info.has_video:
        frames = read_frames(str(path), n_frames, backend=backend)
        values["frames"] = [round(float(time), 3) for time in frames.times_s]
        pictures = [_jpeg(image) for image in frames.images]
    if info.has_audio:
        values |= _sound(path, values["notes"])
    values["duration_s"] = max(info.duration_s or 0.0, values.get("sound_s", 0.0), *values["frames"], 0.0)
    return ClipEvidence(values, tuple(pictures))


def thumbnail_of(path: Path, *, backend: str = "pyav") -> bytes | None:
    """The frame in the middle of a clip as JPEG; None = it has no pictures.

    Raises:
        MediaError: it cannot be decoded.
    """
    if not probe(str(path)).has_video:
        return None
    return _jpeg(read_frames(str(path), 1, backend=backend).images[0])


def _jpeg(image: np.ndarray) -> bytes:
    """uint8 [H,W,3] -> JPEG of at most FRAME_WIDTH_PX"""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((FRAME_WIDTH_PX, FRAME_WIDTH_PX))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=82)
    return out.getvalue()


def _sound(path: Path, notes: list[str]) -> dict[str, Any]:
    """Peaks of the waveform (0 to 1 of full scale), pitch, speech and pauses."""
    waveform = read_audio(str(path), RATE_HZ)
    samples = waveform.samples
    found: dict[str, Any] = {
        "sound_s": round(waveform.duration_s, 3),
        "wave": _peaks(samples),
        "pitch": [],  # known only where somebody speaks
    }
    try:
        from affectgpt.media.speech import find_speech

        speech = find_speech(waveform)
        segments = [(round(start, 3), round(end, 3)) for start, end in speech.segments_s]
        found["speech_by"] = speech.detector
    except MissingLibrary as error:
        notes.append(str(error))
        return found
    curves = prosody(waveform, speech)
    found["pitch"] = _pitch(curves.times_s, curves.pitch_hz)
    found["speech"] = segments
    found["pauses"] = [(end, start) for (_, end), (start, _) in itertools.pairwise(segments) if start - end >= PAUSE_S]
    return found


def _peaks(samples: np.ndarray) -> list[float]:
    """Largest absolute value in each of N_PEAKS parts.  float [S] -> [N_PEAKS]"""
    if not len(samples):
        return []
    edges = np.linspace(0, len(samples), min(N_PEAKS, len(samples)) + 1).astype(int)[:-1]
    return [round(float(peak), 3) for peak in np.maximum.reduceat(np.abs(samples), edges)]


def _pitch(times_s: np.ndarray, pitch_hz: np.ndarray) -> list[list[float | None]]:
    """[seconds, Hz or None] at most N_PITCH times."""
    step = max(1, -(-len(times_s) // N_PITCH))
    return [
        [round(float(time), 3), None if np.isnan(hz) else round(float(hz), 1)]
        for time, hz in zip(times_s[::step], pitch_hz[::step], strict=True)
    ]


class Kept:
    """Results by key, the oldest dropped first; of several threads that ask for one key at once, one computes it, and
    all get its result or its exception, which is not kept."""

    def __init__(self, n: int = _N_KEPT_CLIPS) -> None:
        self._n = n
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._making: dict[Any, Future[Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            made = self._making.get(key)
            is_ours = made is None
            if made is None:
                made = self._making[key] = Future()
        if is_ours:
            try:
                made.set_result(make())
            except BaseException as error:  # noqa: BLE001, all who wait get it
                made.set_exception(error)
            with self._lock:
                del self._making[key]
                if made.exception() is None:
                    self._values[key] = made.result()
                    while len(self._values) > self._n:
                        self._values.popitem(last=False)
        return made.result()


def version_of(path: Path) -> tuple[str, int, int]:
    """Changes with the file."""
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def playable(path: Path, copies: Path) -> Path:
    """`path`, or a copy in `copies` if browsers do not play it.

    Raises:
        MediaError: it cannot be decoded.
    """
    if why_not_played(str(path)) is None:
        return path
    copy = copies / f"{stable_hash(version_of(path))[:16]}.mp4"
    if not copy.is_file():
        write_playable(str(path), copy)
    return copy
