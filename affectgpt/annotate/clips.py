"""The clips of a run, and the media of one clip, decoded when a step first asks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from affectgpt.annotate.face import Shown, evenly
from affectgpt.annotate.record import Fact
from affectgpt.annotate.sound import measure_sound
from affectgpt.config import AnnotateConfig, FacesConfig
from affectgpt.data.faces import settings_for
from affectgpt.data.sources import samples_from_paths
from affectgpt.journal import Journal, SeenIdsOnDisk
from affectgpt.media import Frames, MediaError, MissingMedia, Waveform, read_audio, read_faces, read_frames
from affectgpt.media.audio import read_audio_at, resampled
from affectgpt.media.container import PathLike
from affectgpt.media.faces import FaceTracks, track_and_keep
from affectgpt.media.isolated import isolatable
from affectgpt.media.openface import ActionUnits, read_openface
from affectgpt.media.speech import RATE_HZ, Speech, find_speech
from affectgpt.runtime import UserError, sha256_of_file, stable_hash
from affectgpt.schema import MANIFEST_HELP, BadSample, Sample, stream_samples
from affectgpt.tables import is_table

PEAK_FRAMES = 64
"""Number of frames from which the one nearest to the peak is taken."""


class Clips:
    """The samples of a run, not probed yet, and the rows of its manifest that cannot be used.

    Each iteration reads the manifest again, so it is never held in memory; of folders and media files the names are.

    Attributes:
        n: number of samples and unusable rows.
    """

    def __init__(self, config: AnnotateConfig) -> None:
        self._config = config
        self._manifest = next(iter(manifests(config)), None)
        if self._manifest and len(config.input) > 1:
            raise UserError(f"give one manifest, or media files and folders, not both; found {config.input}")
        found = [] if self._manifest else samples_from_paths(config.input)
        self._samples = [replace(sample, lang=config.lang) for sample in found]  # files do not say what is spoken
        n_good = 0
        self.n = 0
        for item in self:
            self.n += 1
            n_good += isinstance(item, Sample)
        if not n_good:
            of_split = f" of split {config.split!r}" if config.split else ""
            raise UserError(
                f"{self._manifest}: no usable sample{of_split} ({self.n} rows cannot be used); {MANIFEST_HELP}"
            )

    def __iter__(self) -> Iterator[Sample | BadSample]:
        config, n_good = self._config, 0
        rows = (
            stream_samples(self._manifest, SeenIdsOnDisk(), config.columns) if self._manifest else iter(self._samples)
        )
        for item in rows:
            if isinstance(item, Sample):
                if config.split is not None and item.split != config.split:
                    continue
                if config.limit is not None and n_good == config.limit:
                    return
                n_good += 1
            yield item


def manifests(config: AnnotateConfig) -> list[str]:
    """The manifests among the inputs of a run."""
    return [path for path in config.input if is_table(path)]


@dataclass
class ClipMedia:
    """One probed sample; decoded media are kept for as long as the clip is being annotated.

    Attributes:
        sha256: of its media file, or of the hashes of all its files if there are several.
        openface: OpenFace's csv file, if there is one.
        backend: video decoder.
        detector: who finds speech: "silero" or "none".
        faces: how faces are found; detector "none" = not at all.
        shown: the pictures that steps will show; those of followed faces are kept while the faces are found.
        any_rate: keep the sound at its own rate, too, for models in this process, which may ask for other rates.
    """

    sample: Sample
    sha256: str
    openface: Path | None = None
    backend: str = "pyav"
    detector: str = "silero"
    faces: FacesConfig = field(default_factory=lambda: FacesConfig(detector="none"))
    shown: Shown = field(default_factory=Shown)
    any_rate: bool = False
    _decoded: dict[Any, Any] = field(default_factory=dict)
    _lock: RLock = field(default_factory=RLock)

    @property
    def sees(self) -> frozenset[str]:
        """What a model can be shown of it: "images", "sound"."""
        has = self.sample.modalities or ()
        return frozenset(["images"] * ("frames" in has) + ["sound"] * ("audio" in has))

    def frames(self, n_frames: int, at_s: float | Sequence[float] | None = None, crop: bool = False) -> Frames:
        """The middle frame of each of n equal parts of the clip; with `at_s`, the frames nearest to these times.

        Once faces were followed, they are the nearest of the frames that were looked at. Those of `shown` are at hand;
        the video is decoded again for others.

        Args:
            crop: cut out the main person, where a face was followed.
        """
        found = self._kept(n_frames, at_s)
        if found is None and at_s is None:
            every = self._once(("frames", n_frames), lambda: self._read(read_frames, 2 * n_frames))
            found = Frames(every.images[1::2], every.times_s[1::2], every.indices[1::2], every.n_source_frames)
        elif found is None:
            times_s = tuple(np.atleast_1d(at_s).tolist())
            found = self._once(("frames", times_s), lambda: self._read(read_nearest, times_s))
        tracks = self.tracks() if crop else None
        return found if tracks is None or tracks.main is None else cropped(found, tracks)

    def _kept(self, n_frames: int, at_s: float | Sequence[float] | None) -> Frames | None:
        """Pictures that were kept while faces were followed; None if one of them was not."""
        if "faces" not in self._decoded:
            return None
        tracks, kept = self._decoded["faces"]
        times_s = evenly(tracks, n_frames) if at_s is None else np.atleast_1d(at_s).tolist()
        if any(time_s not in kept for time_s in times_s):
            return None
        found = [kept[time_s] for time_s in times_s]
        joined = [np.concatenate([getattr(one, name) for one in found]) for name in ("images", "times_s", "indices")]
        return Frames(*joined, n_source_frames=found[0].n_source_frames)

    def sound(self, rate_hz: int = RATE_HZ) -> Waveform:
        """The sound at a rate, from one pass for `RATE_HZ` and, with `any_rate`, for all others."""
        path = self.sample.audio or self.sample.video or ""
        if rate_hz != RATE_HZ and not self.any_rate:
            return self._once(("sound", rate_hz), lambda: read_audio(path, rate_hz))
        rates_hz = (RATE_HZ, None) if self.any_rate else (RATE_HZ,)
        sounds = self._once("sounds", lambda: read_audio_at(path, rates_hz))
        if rate_hz == RATE_HZ:
            return sounds[RATE_HZ]
        return self._once(("sound", rate_hz), lambda: resampled(sounds[None], rate_hz))

    def speech(self) -> Speech | None:
        """Where somebody speaks; None = not looked for."""
        return None if self.detector == "none" else self._once("speech", lambda: find_speech(self.sound()))

    def voice(self) -> tuple[list[Fact], list[str]] | None:
        """What `measure_sound` says; None = speech is not looked for."""
        speech = self.speech()
        return None if speech is None else self._once("voice", lambda: measure_sound(self.sound(), speech))

    def heard(self) -> dict[Any, Any]:
        """What was decoded and measured of the sound, for `hear` of another object of this clip."""
        return {name: self._decoded[name] for name in ("sounds", "speech", "voice") if name in self._decoded}

    def hear(self, heard: Mapping[Any, Any]) -> None:
        self._decoded |= heard

    def tracks(self) -> FaceTracks | None:
        """The faces of the clip, followed; None = not looked for (no picture, or a table of OpenFace is given)."""
        if self.faces.detector == "none" or "images" not in self.sees or self.openface is not None:
            return None
        return self._once("faces", self._follow)[0]

    def _follow(self) -> Any:
        speech = self.speech() if "sound" in self.sees else None
        choose = self.shown if self.shown else None
        faces = settings_for(self.faces, self.sample.person)
        return track_and_keep(self.sample.video or "", faces, speech.segments_s if speech else (), choose)

    def action_units(self) -> ActionUnits | None:
        return None if self.openface is None else self._once("openface", lambda: read_openface(self.openface or ""))

    def face_crops(self) -> np.ndarray | None:
        """uint8 [n,h,w,3] RGB"""
        return None if self.sample.face is None else self._once("face", lambda: read_faces(self.sample.face or ""))

    def _read(self, read: Callable[..., Frames], which: Any) -> Frames:
        assert self.sample.video is not None
        return read(self.sample.video, which, backend=self.backend)

    def _once(self, name: Any, decode: Any) -> Any:
        with self._lock:  # reentrant: speech is found in the sound, which is decoded within
            if name not in self._decoded:
                self._decoded[name] = decode()
            return self._decoded[name]


@isolatable
def read_nearest(path: PathLike, times_s: Sequence[float], *, backend: str = "pyav") -> Frames:
    """Of `PEAK_FRAMES` evenly spaced frames, those nearest to these times."""
    every = read_frames(path, PEAK_FRAMES, backend=backend)
    chosen = [int(np.argmin(np.abs(every.times_s - time_s))) for time_s in times_s]
    return Frames(every.images[chosen], every.times_s[chosen], every.indices[chosen], every.n_source_frames)


def cropped(frames: Frames, tracks: FaceTracks) -> Frames:
    """Head and shoulders of the main person: three face heights high and wide, the same cut for all frames."""
    assert tracks.main is not None
    left, top, right, bottom = np.median(tracks.persons[tracks.main].boxes, axis=0)
    height, width = frames.images.shape[1:3]
    scale = width / tracks.width
    side = 3 * (bottom - top) * scale
    x, y = (left + right) / 2 * scale, (top + bottom) / 2 * scale
    rows = slice(max(0, round(y - 0.4 * side)), min(height, round(y + 0.6 * side)))
    columns = slice(max(0, round(x - side / 2)), min(width, round(x + side / 2)))
    return replace(frames, images=frames.images[:, rows, columns])


def openface_of(sample: Sample, folder: str | None) -> Path | None:
    """OpenFace's csv file of a clip, if the folder has one."""
    path = Path(folder or "") / f"{sample.id}.csv"
    return path if folder and path.is_file() else None


def files_of(sample: Sample, openface: Path | None) -> Iterator[Path]:
    """All media files of a clip."""
    for path in (sample.video, sample.audio, sample.face, openface):
        if path is not None:
            yield Path(path)


def media_sha256(files: Sequence[Path], hashes: Journal) -> str:
    """Hash of the files' bytes; a file whose size and modification time are unchanged is not read again.

    Raises:
        MediaError: a file is missing or cannot be read.
    """
    digests = []
    for path in files:
        try:
            status = os.stat(path)
            key = stable_hash([str(path.resolve()), status.st_size, status.st_mtime_ns])
            row = hashes.get(key)
            sha256 = row["sha256"] if row else sha256_of_file(path)
        except FileNotFoundError as error:
            raise MissingMedia(f"{path}: no such file; check the path in the manifest") from error
        except OSError as error:
            raise MediaError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        if row is None:
            hashes.append({"key": key, "path": str(path), "sha256": sha256})
        digests.append(sha256)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
