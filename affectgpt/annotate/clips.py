"""The media of one clip as the steps see them, decoded when a step first asks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from affectgpt.journal import Log
from affectgpt.media import Frames, Waveform, read_audio, read_faces, read_frames
from affectgpt.media.openface import ActionUnits, read_openface
from affectgpt.runtime import sha256_of_file, stable_hash
from affectgpt.schema import Sample

PEAK_FRAMES = 64
"""Frames among which the one nearest to the peak is chosen."""


@dataclass
class Clip:
    """One sample with probed modalities; whatever is decoded is kept as long as the clip is worked on.

    Attributes:
        sha256: of its media file, or of the hashes of all its files if there are several.
        openface: OpenFace's csv file, if there is one.
    """

    sample: Sample
    sha256: str
    openface: Path | None = None
    backend: str = "pyav"
    _kept: dict[Any, Any] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @property
    def sees(self) -> frozenset[str]:
        """What can be shown of it: "images", "sound"."""
        has = self.sample.modalities or ()
        return frozenset(["images"] * ("frames" in has) + ["sound"] * ("audio" in has))

    def frames(self, n_frames: int, at_s: float | None = None) -> Frames:
        """Frames from the middle of n equal parts of the clip; or, with `at_s`, the one nearest to that time."""
        assert self.sample.video is not None
        if at_s is None:
            every = self._once(("frames", 2 * n_frames), lambda: self._read_frames(2 * n_frames))
            chosen: Any = slice(1, None, 2)
        else:
            every = self._once(("frames", PEAK_FRAMES), lambda: self._read_frames(PEAK_FRAMES))
            nearest = int(np.argmin(np.abs(every.times_s - at_s)))
            chosen = slice(nearest, nearest + 1)
        return Frames(every.images[chosen], every.times_s[chosen], every.indices[chosen], every.n_source_frames)

    def sound(self, rate_hz: int = 16000) -> Waveform:
        return self._once(("sound", rate_hz), lambda: read_audio(self.sample.audio or self.sample.video or "", rate_hz))

    def action_units(self) -> ActionUnits | None:
        return None if self.openface is None else self._once("openface", lambda: read_openface(self.openface or ""))

    def face_crops(self) -> np.ndarray | None:
        """uint8 [n,h,w,3] RGB"""
        return None if self.sample.face is None else self._once("face", lambda: read_faces(self.sample.face or ""))

    def _read_frames(self, n_frames: int) -> Frames:
        return read_frames(self.sample.video or "", n_frames, backend=self.backend)

    def _once(self, name: Any, make: Any) -> Any:
        with self._lock:
            if name not in self._kept:
                self._kept[name] = make()
            return self._kept[name]


def files_of(sample: Sample, openface: Path | None) -> Iterator[Path]:
    for path in (sample.video, sample.audio, sample.face, openface):
        if path is not None:
            yield Path(path)


def media_sha256(files: Sequence[Path], hashes: Log) -> str:
    """Hash of the files' bytes; a file whose size and time have not changed since is not read again.

    Raises:
        FileNotFoundError: there is no such file.
    """
    digests = []
    for path in files:
        status = os.stat(path)
        key = stable_hash([str(path.resolve()), status.st_size, status.st_mtime_ns])
        row = hashes.get(key)
        if row is None:
            row = {"key": key, "path": str(path), "sha256": sha256_of_file(path)}
            hashes.append(row)
        digests.append(row["sha256"])
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
