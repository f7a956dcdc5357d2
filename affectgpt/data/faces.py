"""Face crops of raw videos: what a model needs of them, where they are, and what was decoded on the way.

A video is decoded once to find its faces; where they are is then a fact about the file, stored by `MediaFacts`, and
later passes only cut the crops out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from affectgpt.config import SAMPLED, FacesConfig, SamplingConfig
from affectgpt.media.audio import Waveform
from affectgpt.media.faces.follow import Crops, key_of
from affectgpt.media.faces.mesh import Region
from affectgpt.media.faces.reading import choose_crops, read_with_crops, read_with_faces, speech_in
from affectgpt.media.faces.tracks import CHOICES, HEARD
from affectgpt.media.video import Frames
from affectgpt.runtime import stable_hash

FACE_MODALITIES = ("face", "face_motion")


@dataclass(frozen=True)
class FaceNeeds:
    """What a model with face branches needs of a video.

    Attributes:
        counts: number of evenly spaced frames of "frames" and "motion" that are read in the same pass.
        rate_hz: of the sound that the model takes, for persons who are told by the speech; None = it takes none.
    """

    settings: FacesConfig
    counts: Mapping[str, int] = field(default_factory=dict)
    rate_hz: int | None = None

    @property
    def by_speech(self) -> bool:
        """Whether the sound decides whose face is cut out."""
        return self.settings.person in HEARD

    def of(self, person: str | None) -> FaceNeeds:
        """The needs for a sample about this person (`Sample.person`); settings other than `person: main` stay."""
        return replace(self, settings=settings_for(self.settings, person))

    @property
    def key(self) -> str:
        """Hash of everything that decides the crops, apart from the video and their number."""
        return stable_hash(key_of(self.settings))[:16]

    @property
    def fact(self) -> str:
        """The name under which `MediaFacts` stores where the crops are, or why there are none."""
        is_always_told = self.settings.person in set(CHOICES) - set(HEARD)
        return f"{'faces' if is_always_told else 'person'} {self.key}"


def settings_for(settings: FacesConfig, person: str | None) -> FacesConfig:
    """The settings for a sample about this person (`Sample.person`); settings other than `person: main` stay."""
    return settings if person is None or settings.person != "main" else replace(settings, person=person)


def face_needs(modalities: Iterable[str], sampling: SamplingConfig, *, backend: str = "pyav") -> FaceNeeds | None:
    """The needs of a model with these modalities; None if it takes no faces."""
    modalities = tuple(modalities)
    if not set(FACE_MODALITIES) & set(modalities):
        return None
    shared = ("frames", "motion") if backend == "pyav" else ()  # other decoders need a pass of their own
    counts = {name: getattr(sampling, SAMPLED[name][0]) for name in shared if name in modalities}
    return FaceNeeds(sampling.faces, counts, sampling.rate_hz if "audio" in modalities else None)


@dataclass(frozen=True)
class FaceReading:
    """The candidates for face crops of a video, and what was decoded with them, if anything.

    Attributes:
        sets: frames.
        sound: the sound that tells the person, at the rate of the model.
    """

    crops: Crops
    sets: dict[str, Frames] | None = None
    sound: Waveform | None = None

    def to_fact(self) -> list[Any]:
        """JSON-like: [frames with the person, shrunk by, [[frame, x, y, side, angle], ...], why there are none]."""
        places = zip(self.crops.indices, self.crops.regions, strict=True)
        rows = [[index, where.x, where.y, where.side, where.angle] for index, where in places]
        return [self.crops.n, self.crops.shrunk, rows, *([self.crops.absent] if self.crops.absent else [])]

    @classmethod
    def from_fact(cls, fact: list[Any]) -> FaceReading:
        n, shrunk, rows, *why = fact
        absent = "" if n else next(iter(why), "no_face")
        indices, regions = tuple(row[0] for row in rows), tuple(Region(*row[1:]) for row in rows)
        return cls(Crops(n, indices, regions, shrunk, absent=absent))

    @property
    def n_bytes(self) -> int:
        """Memory of what was decoded."""
        arrays = [frames.images for frames in (self.sets or {}).values()]
        arrays += [] if self.crops.images is None else [self.crops.images]
        arrays += [] if self.sound is None else [self.sound.samples]
        return sum(array.nbytes for array in arrays)

    def read(self, path: str, counts: Mapping[str, int], n: Mapping[str, int], size_px: int) -> _Pictures:
        """Frame sets and crops by modality, from memory or in one pass over the video.

        Args:
            counts: number of frames of each frame set.
            n: number of crops of each face modality.
        """
        chosen = {name: choose_crops(self.crops, number) for name, number in n.items()}
        if self.sets is not None and (self.crops.images is not None or not n) and not set(counts) - set(self.sets):
            sets = {name: self.sets[name] for name in counts}
            return sets, {} if self.crops.images is None else {
                name: self.crops.images[rows] for name, rows in chosen.items()
            }
        needed = sorted({int(row) for rows in chosen.values() for row in rows})
        sets, cut = read_with_crops(path, counts, self.crops, needed, size_px)
        return sets, {name: cut[np.searchsorted(needed, rows)] for name, rows in chosen.items()}


_Pictures = tuple[dict[str, Frames], dict[str, np.ndarray]]


def read_faces_of(path: str, needs: FaceNeeds, sound: str | None = None) -> FaceReading:
    """Find the faces of a video, and read its frame sets in the same pass; and the sound if it tells the person.

    Args:
        sound: the file with the sound; None = the video.
    """
    speech_s, heard = speech_in(sound or path, needs.rate_hz) if needs.by_speech else ((), None)
    reading = read_with_faces(path, needs.counts, needs.settings)
    return FaceReading(reading.crops_of(needs.settings.person, speech_s), reading.sets, heard)
