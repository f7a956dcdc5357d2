"""Facts of a face that was followed through a clip: how long it is seen, its movements relative to rest, the peak."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from affectgpt.annotate.record import Fact
from affectgpt.media.faces import FaceMeasures, FaceTracks, Movement, measure_face

MOVEMENTS = {
    "inner_brows_raised": ("inner brows raised", "眉毛内侧上扬"),
    "inner_brows_lowered": ("inner brows lowered", "眉毛内侧下压"),
    "outer_brows_raised": ("outer brows raised", "眉毛外侧上扬"),
    "outer_brows_lowered": ("outer brows lowered", "眉毛外侧下压"),
    "eyes_narrowed": ("eyes narrowed", "眼睛眯起"),
    "eyes_closed": ("eyes closed", "眼睛闭合"),
    "mouth_corners_raised": ("mouth corners raised", "嘴角上扬"),
    "mouth_widened": ("mouth widened", "嘴向两侧拉宽"),
    "lips_apart": ("lips apart", "嘴唇张开"),
    "lips_pressed": ("lips pressed together", "双唇紧压"),
    "jaw_lowered": ("jaw lowered", "下颌下垂"),
    "gaze_right": ("gaze to the right of the picture", "目光移向画面右侧"),
    "gaze_left": ("gaze to the left of the picture", "目光移向画面左侧"),
    "gaze_down": ("gaze lowered", "目光下移"),
    "gaze_up": ("gaze raised", "目光上移"),
    "head_right": ("head turned to the right of the picture", "头转向画面右侧"),
    "head_left": ("head turned to the left of the picture", "头转向画面左侧"),
    "head_down": ("head lowered", "头低下"),
    "head_up": ("head raised", "头抬起"),
    "head_tilted_right": ("head tilted to the right of the picture", "头歪向画面右侧"),
    "head_tilted_left": ("head tilted to the left of the picture", "头歪向画面左侧"),
}
"""Names of `affectgpt.media.faces.Movement`, in English and Chinese; no names of emotions."""

NOT_TOLD = {
    "no_speech_for_speaker": "听不到有人说话，因此无法确定谁是说话人",
    "no_speech_for_listener": "听不到有人说话，因此无法确定谁是听者",
    "no_moving_mouth": "能听到有人说话，但没有看到嘴随之动，因此无法确定谁是说话人",
    "nobody_else": "除说话人外看不到其他人",
    "too_few_persons": "看到的人数少于 faces.person 指定的编号",
}
"""Facts that say why faces are seen and none of them is the main person, in Chinese; in English, see `ABSENT`."""

_AMOUNTS = {
    "eye distances": (" by {value:.2f} of the eye distance", "（两眼间距的 {value:.2f}）"),
    "eye widths": (" by {value:.2f} of the eye's width", "（眼宽的 {value:.2f}）"),
    "degrees": (" by {value:.0f} degrees", " {value:.0f} 度"),
    "of its rest": (" by {value:.0%}", " {value:.0%}"),
}


def track_facts(tracks: FaceTracks) -> tuple[list[Fact], dict[str, Any]]:
    """(facts of the main person, how they were measured: names, versions, what was left out).

    The share of the looked-at frames in which it is seen, the number of persons if there are several, the time of the
    peak, the largest movement of each kind (of closed eyes the longest), and the number of blinks. Without a face: the
    share 0. With faces of which none is the main person: their number, and a fact of `NOT_TOLD` with the value 0.
    """
    how: dict[str, Any] = {"faces": tracks.detector, "frames": tracks.n_frames}
    if tracks.main is None and tracks.persons:
        persons = Fact("persons", "visual", len(tracks.persons), "count")
        return [persons, Fact(tracks.absent, "visual", 0, "persons")], how
    if tracks.main is None:
        return [Fact("face_tracked_share", "visual", 0.0, "of frames")], how
    facts = [Fact("face_tracked_share", "visual", round(tracks.share_of(tracks.main), 3), "of frames")]
    if len(tracks.persons) > 1:
        facts.append(Fact("persons", "visual", len(tracks.persons), "count"))
    measures = measure_face(tracks) if tracks.persons[tracks.main].points.shape[1] else None
    if measures is None:
        return facts, how
    how |= {"movements": measures.version}
    if measures.n_left_out:
        how["turned_away_frames"] = measures.n_left_out
    return facts + movement_facts(measures), how


def movement_facts(measures: FaceMeasures) -> list[Fact]:
    """The peak, the largest movement of each kind (of closed eyes the longest), and the number of blinks."""
    facts = [] if measures.peak_s is None else [Fact("peak_s", "visual", round(measures.peak_s, 3), "s")]
    largest: dict[str, Movement] = {}
    for movement in measures.movements:
        before = largest.get(movement.name)
        if movement.name != "blink" and (before is None or _size(movement) >= _size(before)):
            largest[movement.name] = movement
    for one in sorted(largest.values(), key=lambda each: each.start_s):
        span = round(one.start_s, 3), round(one.end_s, 3)
        facts.append(Fact(one.name, "visual", round(one.value, 3), one.unit, *span))
    n_blinks = sum(movement.name == "blink" for movement in measures.movements)
    return [*facts, Fact("blinks", "visual", n_blinks, "count")]


def _size(movement: Movement) -> float:
    """By what movements of one kind are compared. The value of closed eyes is a gap, so their duration counts."""
    return movement.end_s - movement.start_s if movement.name == "eyes_closed" else movement.value


def movement_phrase(fact: Fact, zh: bool) -> str:
    """ "mouth corners raised by 0.14 of the eye distance (0.7-2.4 s)" """
    words = MOVEMENTS[fact.name][zh]
    if fact.name != "eyes_closed" and fact.unit in _AMOUNTS:
        words += _AMOUNTS[fact.unit][zh].format(value=fact.value)
    if fact.start_s is None or fact.end_s is None:
        return words
    return words + (
        f"（{fact.start_s:.1f}–{fact.end_s:.1f} 秒）" if zh else f" ({fact.start_s:.1f}-{fact.end_s:.1f} s)"
    )


def three_times(tracks: FaceTracks, peak_s: float | None) -> list[float] | None:
    """Start, peak and end of the main person's track in order; None without a face.

    Without a peak, or with one at the start or the end, the middle takes its place.
    """
    if tracks.main is None:
        return None
    times = tracks.times_of(tracks.main)
    start, end = float(times[0]), float(times[-1])
    edge = 0.05 * (end - start)
    middle = peak_s if peak_s is not None and start + edge < peak_s < end - edge else (start + end) / 2
    return [round(start, 3), round(middle, 3), round(end, 3)]


def as_many(times_s: Sequence[float], n: int | None) -> list[float]:
    """These times as exactly `n`, for models that take one number of pictures; None = as they are.

    More times are thinned out evenly. To fewer, the middle of the longest gap is added until there are enough, so that
    all are shown; one time alone is repeated.

    >>> as_many([0.0, 1.0, 4.0], 4), as_many([2.0], 3), as_many([0.0, 1.0, 4.0], 1)
    ([0.0, 1.0, 2.5, 4.0], [2.0, 2.0, 2.0], [1.0])
    """
    times = list(times_s)
    if n is None or not times:
        return times
    if len(times) > n:
        return [times[(2 * place + 1) * len(times) // (2 * n)] for place in range(n)]
    while len(times) < n:
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        place = gaps.index(max(gaps)) if gaps else 0
        times.insert(place + 1, (times[place] + times[min(place + 1, len(times) - 1)]) / 2)
    return times


def evenly(tracks: FaceTracks, n_frames: int) -> list[float]:
    """The middle of each of n equal parts of a video: seconds [n]."""
    return [(2 * place + 1) / (2 * n_frames) * tracks.duration_s for place in range(n_frames)]


@dataclass(frozen=True)
class Shown:
    """The pictures of a clip that steps will show to models; a `Choose` of affectgpt.media.faces.

    Attributes:
        of_face: the start, the peak and the end of the main person's track.
        counts: numbers of evenly spaced frames.
        exactly: numbers of frames of the face for models that take one number only, see `as_many`.
    """

    of_face: bool = False
    counts: tuple[int, ...] = ()
    exactly: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.of_face or bool(self.counts) or bool(self.exactly)

    def __call__(self, tracks: FaceTracks) -> list[float]:
        """Seconds, as `three_times`, the fact `peak_s` and `evenly` give them."""
        times_s = [time_s for n_frames in self.counts for time_s in evenly(tracks, n_frames)]
        if self.of_face or self.exactly:
            peak_s = next((fact.value for fact in track_facts(tracks)[0] if fact.name == "peak_s"), None)
            of_face, peak = three_times(tracks, peak_s) or [], [] if peak_s is None else [peak_s]
            for n in (*self.exactly, *([None] if self.of_face else [])):
                times_s += as_many(of_face, n) + as_many(peak, n)
        return times_s
