"""The faces of one video: who is seen when and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from affectgpt.runtime import InputError

MESH_POINTS = 478
"""Points of MediaPipe's face mesh: 468, then 5 of each iris (centre first), the right eye of the person first."""

EYES = ((33, 133), (362, 263))
"""Corners of the eyes (right one of the person, which is left in the picture, then the other), from left to right."""
NOSE_TIP, MOUTH = 1, (61, 291)
LIPS, EYE_LIDS = (13, 14), ((159, 145), (386, 374))
"""(upper, lower)"""

HEARD = ("speaker", "listener")
"""Who is told by the speech."""
CHOICES = ("main", "largest", "central", *HEARD)
"""Values of `faces.person` that are not numbers."""

ABSENT = {
    "no_face": "no face is seen",
    "no_speech_for_speaker": "no speech is heard, so the speaker cannot be told",
    "no_speech_for_listener": "no speech is heard, so the listener cannot be told",
    "no_moving_mouth": "speech is heard, but no mouth is seen to move with it, so the speaker cannot be told",
    "nobody_else": "nobody but the speaker is seen",
    "too_few_persons": "fewer persons are seen than the number in faces.person",
}
"""Why a video has no person of the kind that is asked for; all but the first say that faces are seen."""


@dataclass(frozen=True)
class Person:
    """One face, followed through a video. n rows, one for each looked-at frame in which it is seen.

    Attributes:
        rows: int64 [n], rows of `FaceTracks.times_s`.
        boxes: float32 [n,4] left, top, right, bottom, in pixels of the upright frame with square pixels.
        points: float32 [n,478,3] x, y in pixels and depth in about the same unit (negative = nearer); [n,0,3] if the
            detector gives none.
        confidence: float32 [n], 0 to 1.
        blendshapes: float32 [n,52] in the order of `FaceTracks.blendshape_names`; None if the detector gives none.
    """

    rows: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    confidence: np.ndarray
    blendshapes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def five(self) -> np.ndarray:
        """float32 [n,5,2]: eye centres, tip of the nose, corners of the mouth; each pair from left to right."""
        return five_points(self.points)

    @property
    def heights_px(self) -> np.ndarray:
        """float32 [n]"""
        return self.boxes[:, 3] - self.boxes[:, 1]

    @property
    def mouth_open(self) -> np.ndarray:
        """Gap between the lips / distance of the eyes, float64 [n]; empty without points."""
        if not self.points.shape[1]:
            return np.zeros(0)
        five = self.five
        upper, lower = (self.points[:, point, :2] for point in LIPS)
        return np.linalg.norm(lower - upper, axis=1) / np.linalg.norm(five[:, 1] - five[:, 0], axis=1)


@dataclass(frozen=True)
class FaceTracks:
    """The faces of one video.

    Attributes:
        times_s: float64 [T], of the frames that were looked at, since the first frame of the video.
        indices: int64 [T], their positions in the source.
        persons: all persons, the earliest first; () = no face was found.
        main: the number of the main person, see `choose`; None = nobody, because of `absent`.
        width, height: of a frame in pixels, upright and with square pixels.
        duration_s: time of the last frame of the video.
        detector: names and versions of the detector, the landmark model and the rules, for records.
        absent: a name in `ABSENT` if there is no main person.
    """

    times_s: np.ndarray
    indices: np.ndarray
    persons: tuple[Person, ...]
    main: int | None
    width: int
    height: int
    duration_s: float
    detector: str
    blendshape_names: tuple[str, ...] = field(default=())
    absent: str = ""

    @property
    def n_frames(self) -> int:
        """Number of frames that were looked at."""
        return len(self.times_s)

    def times_of(self, person: int) -> np.ndarray:
        """float64 [n], the times at which a person is seen."""
        return self.times_s[self.persons[person].rows]

    def share_of(self, person: int) -> float:
        """The share of the looked-at frames in which a person is seen, 0 to 1."""
        return len(self.persons[person]) / self.n_frames

    def choose(self, which: str = "main", speech_s: Sequence[tuple[float, float]] = ()) -> int | None:
        """The number of a person; None if there is no face, or nobody of that kind. See `choose_or_say`."""
        return self.choose_or_say(which, speech_s)[0]

    def choose_or_say(
        self, which: str = "main", speech_s: Sequence[tuple[float, float]] = ()
    ) -> tuple[int | None, str]:
        """(number of a person, ""), or (None, why there is none: a name in `ABSENT`).

        Args:
            which: "main" = the largest product of height, share of the frames and closeness to the centre, where moving
                the mouth while speech is heard counts up to twice; "largest", "central"; "speaker" = who moves the
                mouth most while speech is heard; "listener" = the main person among the others; or a number.
            speech_s: (start, end) of the speech. Without speech, there is neither a speaker nor a listener.

        Raises:
            InputError: another word.
        """
        check_person(which)
        if not self.persons:
            return None, "no_face"
        if which.isdecimal():
            return (int(which), "") if int(which) < len(self.persons) else (None, "too_few_persons")
        if which in HEARD and not speech_s:
            return None, f"no_speech_for_{which}"
        size = np.array([np.median(person.heights_px) / self.height for person in self.persons])
        share = np.array([self.share_of(number) for number in range(len(self.persons))])
        central = np.array([self._centrality(person) for person in self.persons])
        speaks = np.array([self._speaks(person, speech_s) for person in self.persons])
        spoken = speaks / speaks.max() if speaks.max() > 0 else speaks
        main = size * share * central * (1 + spoken)
        if which in HEARD:
            if not speaks.max() > 0:
                return None, "no_moving_mouth"
            speaker = int(np.argmax(speaks * np.sqrt(share)))
            if which == "speaker":
                return speaker, ""
            main[speaker] = -1
            return (int(np.argmax(main)), "") if len(main) > 1 else (None, "nobody_else")
        return int(np.argmax({"main": main, "largest": size * share, "central": central * share}[which])), ""

    def _centrality(self, person: Person) -> float:
        """1 in the middle of the picture, 0.5 at its edge."""
        middle = (person.boxes[:, 0] + person.boxes[:, 2]) / 2
        return float(1 - 0.5 * np.mean(np.minimum(np.abs(middle / self.width - 0.5) * 2, 1)))

    def _speaks(self, person: Person, speech_s: Sequence[tuple[float, float]]) -> float:
        """Mean change of the mouth's opening between frames in speech, in eye distances a second."""
        opening, times = person.mouth_open, self.times_s[person.rows]
        inside = np.zeros(len(times), dtype=bool)
        for start, end in speech_s:
            inside |= (times >= start) & (times < end)
        if len(opening) < 2:
            return 0.0
        follows = inside[1:] & (np.diff(person.rows) == 1)
        return float(np.mean(np.abs(np.diff(opening))[follows] / np.diff(times)[follows])) if follows.any() else 0.0


def five_points(points: np.ndarray) -> np.ndarray:
    """Mesh points [n,478,3] -> float32 [n,5,2], see `Person.five`; [n,0,2] without points."""
    if not points.shape[1]:
        return np.zeros((len(points), 0, 2), np.float32)
    eyes = [points[:, list(corners), :2].mean(axis=1) for corners in EYES]
    return np.stack([*eyes, points[:, NOSE_TIP, :2], *(points[:, corner, :2] for corner in MOUTH)], axis=1)


def check_person(which: str) -> None:
    """Raise InputError unless `which` is a number or one of `CHOICES`."""
    if not which.isdecimal() and which not in CHOICES:
        raise InputError(f"faces.person is {which!r}; expected one of {list(CHOICES)}, or a number from 0")
