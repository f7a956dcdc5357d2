"""Faces of a video file, in one pass over it together with its evenly spaced frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from affectgpt.config import FacesConfig
from affectgpt.media.audio import Waveform, read_audio_at
from affectgpt.media.container import PathLike
from affectgpt.media.errors import NoAudioStream
from affectgpt.media.faces.follow import Crops, Cutter, Follower
from affectgpt.media.faces.tracks import FaceTracks
from affectgpt.media.isolated import isolatable
from affectgpt.media.speech import RATE_HZ, find_speech
from affectgpt.media.video import Frames, read_frame_sets, uniform_indices


def track(
    video: PathLike, settings: FacesConfig | None = None, *, speech_s: Sequence[tuple[float, float]] = ()
) -> FaceTracks:
    """The faces of a video, with 478 points of each in `settings.rate_hz` frames a second.

    Args:
        speech_s: (start, end) of the speech, for the choice of the main person, see `FaceTracks.choose`.

    Returns:
        tracks without persons if there is no face: a fact about the video, as that it has no sound.

    Raises:
        NoVideoStream, TruncatedMedia, DamagedMedia, EmptyMedia, MissingMedia: all are MediaError.
        InputError: a setting.
        MissingLibrary: the detector's library is not installed.
    """
    return track_and_keep(video, settings or FacesConfig(), speech_s)[0]


Choose = Callable[[FaceTracks], Iterable[float]]
"""Which pictures of a video to keep: seconds since its first frame. It is pickled, so it has a name in a module."""


@isolatable
def track_and_keep(
    video: PathLike, settings: FacesConfig, speech_s: Sequence[tuple[float, float]] = (), choose: Choose | None = None
) -> tuple[FaceTracks, dict[float, Frames]]:
    """`track`, and pictures from the same pass: for each time that `choose` gives, the nearest looked-at frame (T = 1).

    Only these pictures leave the process that decodes. While decoding, those of a short video are all in memory; of
    more than `follow.KEPT_BYTES`, every second, fourth ... looked-at frame is.
    """
    follower = Follower(settings, keep=choose is not None)
    read_frame_sets(video, {}, watcher=follower)
    found = follower.finish()[0]
    main, absent = found.choose_or_say(settings.person, speech_s)
    found = replace(found, main=main, absent=absent)
    times_s = () if choose is None else choose(found)
    return found, {time_s: follower.nearest(time_s) for time_s in times_s}


@dataclass(frozen=True)
class Reading:
    """What one pass over a video gives: its frame sets, its faces, and candidates for crops of each person."""

    sets: dict[str, Frames]
    tracks: FaceTracks
    crops: list[Crops]

    def crops_of(self, which: str, speech_s: Sequence[tuple[float, float]] = ()) -> Crops:
        """The candidates of a person, see `FaceTracks.choose_or_say`; without a person, none, and why."""
        number, absent = self.tracks.choose_or_say(which, speech_s)
        return Crops(0, absent=absent) if number is None else self.crops[number]


@isolatable
def read_with_faces(
    path: PathLike, counts: Mapping[str, int], settings: FacesConfig, *, irises: bool = False
) -> Reading:
    """`read_frame_sets` and face crops of all persons in one pass, by PyAV; the errors are those of both.

    Args:
        irises: see `Follower`.
    """
    follower = Follower(settings, size_px=settings.size_px, irises=irises)
    sets = read_frame_sets(path, counts, watcher=follower)
    tracks, candidates = follower.finish()
    return Reading(sets, tracks, candidates)


@isolatable
def read_with_crops(
    path: PathLike, counts: Mapping[str, int], crops: Crops, chosen: Sequence[int], size_px: int
) -> tuple[dict[str, Frames], np.ndarray]:
    """`read_frame_sets` and known crops in one pass, by PyAV: the sets, and uint8 [len(chosen),size,size,3] RGB.

    Args:
        chosen: which of the candidates, see `choose_crops`.
    """
    cutter = Cutter(crops, chosen, size_px)
    sets = read_frame_sets(path, counts, watcher=cutter)
    return sets, np.stack([cutter.images[crops.indices[place]] for place in chosen])


def choose_crops(crops: Crops, n: int) -> np.ndarray:
    """`n` of the candidates, evenly spaced over the frames in which the person is seen: int64 [n]."""
    return uniform_indices(len(crops.indices), n)


def speech_in(path: PathLike, rate_hz: int | None = None) -> tuple[tuple[tuple[float, float], ...], Waveform | None]:
    """((start, end) of the speech in a file's sound, its sound at `rate_hz`) from one pass; without sound (), None.

    Args:
        rate_hz: None = the sound is not needed.
    """
    try:
        sounds = read_audio_at(path, {RATE_HZ, rate_hz or RATE_HZ})
    except NoAudioStream:
        return (), None
    return find_speech(sounds[RATE_HZ]).segments_s, sounds[rate_hz] if rate_hz else None
