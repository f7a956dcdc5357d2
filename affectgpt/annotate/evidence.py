"""Facts of the face, and the phrases of all facts. Facts of the sound are measured in affectgpt.annotate.sound.

A phrase states a measurement and nothing more: for the face, movements and muscles, never emotions.
"""

from __future__ import annotations

import numpy as np

from affectgpt.annotate.face import MOVEMENTS, NOT_TOLD, movement_phrase
from affectgpt.annotate.record import Fact
from affectgpt.annotate.sound import runs
from affectgpt.media.faces.tracks import ABSENT
from affectgpt.media.openface import ActionUnits

EVIDENCE_VERSION = "evidence-4"
"""Changes with every change of a fact; part of every record's key."""

MIN_INTENSITY = 1.0  # OpenFace's scale 0 to 5; 1 = trace
MIN_CONFIDENCE = 0.8
SKIP_FIRST = 2  # peaks in the first two frames are artefacts of the tracker


# ---- the face --------------------------------------------------------------------------------------------------------

UNITS = {
    "AU01": ("inner brows raised", "眉毛内侧上扬"),
    "AU02": ("outer brows raised", "眉毛外侧上扬"),
    "AU04": ("brows lowered and drawn together", "眉毛下压并靠拢"),
    "AU05": ("upper eyelids raised", "上眼睑抬起"),
    "AU06": ("cheeks raised", "脸颊上提"),
    "AU07": ("eyelids tightened", "眼睑收紧"),
    "AU09": ("nose wrinkled", "鼻子皱起"),
    "AU10": ("upper lip raised", "上唇抬起"),
    "AU12": ("lip corners pulled up", "嘴角上拉"),
    "AU14": ("lip corners tightened into dimples", "嘴角收紧形成酒窝"),
    "AU15": ("lip corners pulled down", "嘴角下拉"),
    "AU17": ("chin raised", "下巴上抬"),
    "AU20": ("lips stretched sideways", "嘴唇向两侧拉伸"),
    "AU23": ("lips tightened", "嘴唇收紧"),
    "AU24": ("lips pressed together", "双唇紧压"),
    "AU25": ("lips parted", "嘴唇张开"),
    "AU26": ("jaw dropped", "下颌下垂"),
    "AU28": ("lips sucked in", "嘴唇内收"),
    "AU43": ("eyes closed", "眼睛闭合"),
    "AU45": ("blinking", "眨眼"),
}
"""The movements, in the terms of the Facial Action Coding System; no names of emotions."""


def face_facts(units: ActionUnits) -> list[Fact]:
    """The share of frames with a tracked face, the peak frame, and the action units that are active there.

    The peak is the tracked frame with the largest sum of intensities, without blinks and the first two frames. A unit
    is active from intensity 1; its interval is the run of active frames around the peak. Units that OpenFace detects
    without an intensity (AU28) have the value 1.
    """
    share = float(np.mean(units.success & (units.confidence >= MIN_CONFIDENCE)))
    facts = [Fact("face_tracked_share", "visual", round(share, 3), "of frames")]
    tracked = units.tracked(min_confidence=MIN_CONFIDENCE, skip_first=SKIP_FIRST)
    if not len(tracked):
        return facts
    peak = tracked.peak()
    times = tracked.timestamp_s
    facts.append(Fact("peak_s", "visual", round(float(times[peak]), 3), "s"))
    for name in sorted(set(tracked.intensity) | set(tracked.presence)):
        if name == "AU45" or name not in UNITS:
            continue
        if name in tracked.intensity:
            active, value = tracked.intensity[name] >= MIN_INTENSITY, float(tracked.intensity[name][peak])
        else:
            active, value = tracked.presence[name], 1.0
        if not active[peak]:
            continue
        start, stop = next((a, b) for a, b in runs(active) if a <= peak < b)
        span = (round(float(times[start]), 3), round(float(times[stop - 1]), 3))
        facts.append(Fact(name, "visual", round(value, 2), "of 5" if name in tracked.intensity else "present", *span))
    return facts


def crop_facts(crops: np.ndarray) -> list[Fact]:
    """The number of face crops [n,h,w,3]: a face was found."""
    return [Fact("face_crops", "visual", len(crops), "count")]


# ---- phrases ---------------------------------------------------------------------------------------------------------


def phrase(fact: Fact, lang: str = "en") -> str | None:
    """A fact as a phrase; None = it has none (a count of zero, an unremarkable value)."""
    value, zh = fact.value, lang == "zh"
    if fact.name in UNITS:
        words = UNITS[fact.name][1 if zh else 0]
        if fact.start_s is None or fact.end_s is None or fact.unit == "present":
            return words
        span = f"（{fact.start_s:.1f}–{fact.end_s:.1f} 秒）" if zh else f" ({fact.start_s:.1f}-{fact.end_s:.1f} s)"
        return f"{words}{span}"
    if fact.name in MOVEMENTS:
        return movement_phrase(fact, zh)
    if fact.name in NOT_TOLD:
        return NOT_TOLD[fact.name] if zh else ABSENT[fact.name]
    for low, high, english, chinese in _PHRASES.get(fact.name, ()):
        if low <= value < high:
            template = chinese if zh else english
            return template.format(value=value, size=abs(value), start=fact.start_s or 0.0, end=fact.end_s or 0.0)
    return None


_INF = float("inf")
_PHRASES: dict[str, tuple[tuple[float, float, str, str], ...]] = {
    "speech_s": ((-_INF, 0.005, "no speech is heard", "听不到有人说话"),),
    "speech_share": ((0.005, 0.5, "speech in {value:.0%} of the clip", "{value:.0%} 的时间里有人说话"),),
    "speech_over_other_db": (
        (-_INF, 5, "other sound is about as loud as the speech", "其他声音与说话声差不多响"),
        (5, 15, "other sound under the speech, {value:.0f} dB quieter", "说话时有其他声音，轻 {value:.0f} 分贝"),
    ),
    "other_sound_dbfs": ((-_INF, -60, "no other sound is heard", "没有其他声音"),),
    "music_like_share": ((0.5, _INF, "music-like sound (sustained tones)", "有类似音乐的声音（持续的乐音）"),),
    "voice_s": ((-_INF, 0.005, "no voiced speech is heard", "听不到浊音"),),
    "pitch_hz": ((0, _INF, "median pitch {value:.0f} Hz", "音高中位数 {value:.0f} Hz"),),
    "pitch_range_st": (
        (0, 3, "the pitch hardly moves ({value:.1f} semitones)", "音高几乎不变（{value:.1f} 个半音）"),
        (3, 8, "the pitch moves over {value:.1f} semitones", "音高变化 {value:.1f} 个半音"),
        (8, _INF, "the pitch moves widely ({value:.1f} semitones)", "音高起伏很大（{value:.1f} 个半音）"),
    ),
    "pitch_slope_st_s": (
        (-_INF, -1, "the pitch falls by {size:.1f} semitones a second", "音高每秒下降 {size:.1f} 个半音"),
        (1, _INF, "the pitch rises by {size:.1f} semitones a second", "音高每秒上升 {size:.1f} 个半音"),
    ),
    "tremor_st": ((0, _INF, "the pitch trembles by {value:.1f} semitones", "声音颤抖，幅度 {value:.1f} 个半音"),),
    "loudness_range_db": (
        (0, 8, "the loudness stays even", "音量平稳"),
        (20, _INF, "the loudness varies strongly ({value:.0f} dB)", "音量变化很大（{value:.0f} 分贝）"),
    ),
    "loudness_slope_db_s": (
        (-_INF, -2, "the voice gets quieter", "声音越来越轻"),
        (2, _INF, "the voice gets louder", "声音越来越响"),
    ),
    "syllable_rate_hz": (
        (0.01, 3.3, "slow speech ({value:.1f} syllables a second)", "语速慢（每秒 {value:.1f} 个音节）"),
        (3.3, 5.5, "{value:.1f} syllables a second", "每秒 {value:.1f} 个音节"),
        (5.5, _INF, "fast speech ({value:.1f} syllables a second)", "语速快（每秒 {value:.1f} 个音节）"),
    ),
    "word_rate_hz": ((0.01, _INF, "{value:.1f} words a second", "每秒 {value:.1f} 个词"),),
    "character_rate_hz": ((0.01, _INF, "{value:.1f} characters a second", "每秒 {value:.1f} 个字"),),
    "word_pauses": (
        (1, 2, "one pause between words", "词间有一次停顿"),
        (2, _INF, "{value:.0f} pauses between words", "词间有 {value:.0f} 次停顿"),
    ),
    "pauses": (
        (1, 2, "one pause", "有一次停顿"),
        (2, _INF, "{value:.0f} pauses", "有 {value:.0f} 次停顿"),
    ),
    "longest_pause_s": ((0, _INF, "silence from {start:.1f} to {end:.1f} s", "{start:.1f} 到 {end:.1f} 秒之间沉默"),),
    "breaks": (
        (1, 2, "the voice breaks off once", "声音中断一次"),
        (2, _INF, "the voice breaks off {value:.0f} times", "声音中断 {value:.0f} 次"),
    ),
    "pitch_vs_speaker_st": (
        (-_INF, -2, "{size:.1f} semitones lower than usual for this speaker", "比此人平时低 {size:.1f} 个半音"),
        (2, _INF, "{size:.1f} semitones higher than usual for this speaker", "比此人平时高 {size:.1f} 个半音"),
    ),
    "loudness_vs_speaker_db": (
        (-_INF, -3, "quieter than usual for this speaker by {size:.0f} dB", "比此人平时轻 {size:.0f} 分贝"),
        (3, _INF, "louder than usual for this speaker by {size:.0f} dB", "比此人平时响 {size:.0f} 分贝"),
    ),
    "rate_vs_speaker": (
        (0, 0.8, "slower than usual for this speaker", "比此人平时慢"),
        (1.25, _INF, "faster than usual for this speaker", "比此人平时快"),
    ),
    "face_tracked_share": (
        (-_INF, 0.005, "no face is seen", "画面中没有人脸"),
        (0.005, _INF, "a face is tracked in {value:.0%} of the frames", "{value:.0%} 的画面中追踪到人脸"),
    ),
    "persons": (
        (1, 2, "one person is seen", "画面中有一个人"),
        (2, _INF, "{value:.0f} persons are seen", "画面中有 {value:.0f} 个人"),
    ),
    "blinks": (
        (1, 2, "one blink", "眨眼一次"),
        (2, _INF, "{value:.0f} blinks", "眨眼 {value:.0f} 次"),
    ),
    "face_crops": ((1, _INF, "a face is in the picture", "画面中有一张脸"),),
}
"""Fact -> (from, below, English, Chinese). The bounds are rough values for read speech, not norms."""
