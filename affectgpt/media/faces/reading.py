"""Faces of a video file, in one pass over it together with its evenly spaced frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from affectgpt.config import FacesConfig
from affectgpt.media.container import PathLike
from affectgpt.media.faces.follow import Crops, Follower
from affectgpt.media.faces.tracks import FaceTracks
from affectgpt.media.isolated import isolatable
from affectgpt.media.video import Frames, read_frame_sets


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
    found = read_with_faces(video, {}, settings or FacesConfig(), crops=False, irises=True).tracks
    return replace(found, main=found.choose("main", speech_s)) if speech_s else found


@dataclass(frozen=True)
class Reading:
    """What one pass over a video gives: its frame sets, its faces, and candidates for crops of each person."""

    sets: dict[str, Frames]
    tracks: FaceTracks
    crops: list[Crops]


@isolatable
def read_with_faces(
    path: PathLike, counts: Mapping[str, int], settings: FacesConfig, *, crops: bool = True, irises: bool = False
) -> Reading:
    """`read_frame_sets` and faces in one pass, by PyAV; the errors are those of both.

    Args:
        crops: cut out crops of all persons.
        irises: see `Follower`.
    """
    follower = Follower(settings, size_px=settings.size_px if crops else None, irises=irises)
    sets = read_frame_sets(path, counts, watcher=follower)
    tracks, candidates = follower.finish()
    return Reading(sets, tracks, candidates)
