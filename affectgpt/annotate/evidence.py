"""Measurements on a clip that need no trained model: prosody of the voice, and action units of the face.

The voice is measured from the waveform. The face would need a detector, so visual facts come from OpenFace's table or
from stored face crops; without them there are none.

A phrase states a measurement and nothing more: for the face, movements and muscles, never emotions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.annotate.record import Fact
from affectgpt.media.openface import ActionUnits

EVIDENCE_VERSION = "evidence-1"
"""Changes with every change of a fact; part of every record's key."""

STEP_S = 0.01
"""Hop between two values of pitch and loudness."""

PITCH_RANGE_HZ = (60.0, 500.0)
_YIN_WINDOW_S = 0.025
_YIN_THRESHOLD = 0.2  # the first dip below it is the period (de Cheveigne and Kawahara 2002, step 4)
_VOICED_BELOW = 0.4  # aperiodicity below which a frame is voiced; breathy voices have 0.2 to 0.4
_SILENCE_DB = 30.0  # this far below the 95th percentile, a frame is silent
_FLOOR_DBFS = -60.0  # below this level, a frame is always silent
PAUSE_S = 0.25  # shorter silences belong to consonants (Goldman-Eisler 1968)
BREAK_S = 0.12  # closures of stops are shorter than that
_NUCLEUS_DIP_DB = 2.0  # de Jong and Wempe 2009
_MIN_VOICED_S = 0.3  # with less voice, no pitch is reported
TREMOR_HZ = (4.0, 12.0)
_TREMOR_ST = 0.2
_TREMOR_SHARE = 0.5
MIN_INTENSITY = 1.0  # OpenFace's scale 0 to 5; 1 = trace
MIN_CONFIDENCE = 0.8
SKIP_FIRST = 2  # peaks in the first two frames are artefacts of the tracker


@dataclass(frozen=True)
class ProsodyCurves:
    """Pitch and loudness of a voice, one value every `STEP_S`.

    Attributes:
        times_s: [F] centres of the frames.
        pitch_hz: [F], NaN where unvoiced.
        level_dbfs: [F] root mean square, full scale = 0.
        speaking: bool [F], louder than silence.
    """

    times_s: np.ndarray
    pitch_hz: np.ndarray
    level_dbfs: np.ndarray
    speaking: np.ndarray


def prosody(samples: np.ndarray, rate_hz: int) -> ProsodyCurves:
    """Pitch (YIN) and loudness of mono sound.  float [S] -> [F] each, F = S / (rate_hz * STEP_S)"""
    longest = int(np.ceil(rate_hz / PITCH_RANGE_HZ[0]))
    window = round(_YIN_WINDOW_S * rate_hz)
    hop = round(STEP_S * rate_hz)
    length = window + longest
    n = max(1, len(samples) // hop)
    padded = np.pad(samples.astype(np.float64), (length // 2, length + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop][:n]  # [F, window + longest]
    pitch, level = np.empty(n), np.empty(n)
    for start in range(0, n, 1000):  # in blocks: ten minutes of sound would take a gigabyte
        block = frames[start : start + 1000]
        aperiodicity, lags = _yin(block, window, longest, max(2, int(rate_hz / PITCH_RANGE_HZ[1])))
        pitch[start : start + 1000] = np.where(aperiodicity < _VOICED_BELOW, rate_hz / lags, np.nan)
        centre = block[:, (length - 2 * hop) // 2 : (length + 2 * hop) // 2]
        level[start : start + 1000] = 10 * np.log10(np.mean(centre**2, axis=1) + 1e-12)
    speaking = level > max(np.percentile(level, 95) - _SILENCE_DB, _FLOOR_DBFS)
    pitch[~speaking] = np.nan
    return ProsodyCurves((np.arange(n) + 0.5) * STEP_S, _without_jumps(pitch), level, speaking)


def _yin(frames: np.ndarray, window: int, longest: int, shortest: int) -> tuple[np.ndarray, np.ndarray]:
    """Aperiodicity (0 = periodic) and period in samples of each frame.  [F, window + longest] -> [F], [F]"""
    size = 1 << int(np.ceil(np.log2(frames.shape[1] + window)))
    head = np.fft.rfft(frames[:, :window], size)
    product = np.fft.irfft(np.conj(head) * np.fft.rfft(frames, size), size)[:, : longest + 1]  # [F, lag]
    energy = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    lagged = energy[:, window : window + longest + 1] - energy[:, : longest + 1]
    difference = np.maximum(lagged[:, :1] + lagged - 2 * product, 0)
    difference[:, 0] = 0
    lags = np.arange(longest + 1)
    normal = np.ones_like(difference)
    normal[:, 1:] = difference[:, 1:] * lags[1:] / np.maximum(np.cumsum(difference[:, 1:], axis=1), 1e-12)
    normal[:, :shortest] = 10.0  # excludes shorter periods
    inner = normal[:, 1:-1]
    dips = (inner <= normal[:, :-2]) & (inner <= normal[:, 2:])
    deepest = np.where(dips, inner, 10.0).min(axis=1, keepdims=True)
    # The first dip below the threshold or close to the deepest: multiples of the period give dips, too.
    best = np.argmax(dips & (inner <= np.maximum(deepest + 0.1, _YIN_THRESHOLD)), axis=1) + 1
    rows = np.arange(len(frames))
    left, middle, right = (normal[rows, best + side] for side in (-1, 0, 1))
    curve = left - 2 * middle + right
    shift = np.where(curve > 1e-9, 0.5 * (left - right) / np.where(curve > 1e-9, curve, 1), 0.0)
    return middle, best + np.clip(shift, -0.5, 0.5)


def _without_jumps(pitch_hz: np.ndarray) -> np.ndarray:
    """Set frames to NaN that are over 8 semitones from the median of the 0.3 s around them: octave errors."""
    reach = round(0.15 / STEP_S)
    padded = np.pad(pitch_hz, reach, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)  # [F, 31]
    kept = pitch_hz.copy()
    voiced = ~np.isnan(pitch_hz)
    if voiced.any():
        medians = np.nanmedian(around[voiced], axis=1)
        kept[np.flatnonzero(voiced)[np.abs(12 * np.log2(pitch_hz[voiced] / medians)) > 8]] = np.nan
    return kept


def sound_facts(samples: np.ndarray, rate_hz: int) -> list[Fact]:
    """Level, range and slope of pitch; loudness; speaking rate; pauses, breaks and tremor.

    A silent clip gives one fact, `voice_s` = 0.
    """
    curves = prosody(samples, rate_hz)
    times, voiced = curves.times_s, ~np.isnan(curves.pitch_hz)
    voice_s = float(voiced.sum() * STEP_S)

    def fact(name: str, value: float, unit: str, start_s: float | None = None, end_s: float | None = None) -> Fact:
        digits = 3 if unit == "s" else 2
        span = [None if edge is None else round(float(edge), 3) for edge in (start_s, end_s)]
        return Fact(name, "acoustic", round(float(value), digits), unit, *span)

    facts = [fact("voice_s", voice_s, "s")]
    if not curves.speaking.any():
        return facts
    if voice_s >= _MIN_VOICED_S:
        pitch = curves.pitch_hz[voiced]
        median = float(np.median(pitch))
        semitones = 12 * np.log2(pitch / median)
        low, high = np.percentile(semitones, [5, 95])
        facts += [fact("pitch_hz", median, "Hz"), fact("pitch_range_st", high - low, "semitones")]
        if times[voiced][-1] - times[voiced][0] >= 1.0:
            facts.append(fact("pitch_slope_st_s", _slope(times[voiced], semitones), "semitones/s"))
        if tremor := _tremor(curves):
            facts += [fact("tremor_st", tremor[0], "semitones"), fact("tremor_hz", tremor[1], "Hz")]
    loud = curves.level_dbfs[curves.speaking]
    low, high = np.percentile(loud, [10, 95])
    facts += [fact("loudness_dbfs", 10 * np.log10(np.mean(10 ** (loud / 10))), "dBFS")]
    facts += [fact("loudness_range_db", high - low, "dB")]
    span = times[curves.speaking]
    if span[-1] - span[0] >= 1.0:
        facts.append(fact("loudness_slope_db_s", _slope(span, loud), "dB/s"))
    silences = _silences(curves)
    pauses = [edges for edges in silences if edges[1] - edges[0] >= PAUSE_S]
    speaking_s = span[-1] - span[0] + STEP_S - sum(end - start for start, end in pauses)
    if voice_s >= _MIN_VOICED_S:
        facts.append(fact("syllable_rate_hz", len(_nuclei(curves)) / max(speaking_s, STEP_S), "syllables/s"))
    facts.append(fact("pauses", len(pauses), "count"))
    if pauses:
        start, end = max(pauses, key=lambda edges: edges[1] - edges[0])
        facts.append(fact("longest_pause_s", end - start, "s", start, end))
    facts.append(fact("breaks", len(silences) - len(pauses), "count"))
    return facts


def _slope(times_s: np.ndarray, values: np.ndarray) -> float:
    return float(np.polyfit(times_s - times_s.mean(), values, 1)[0])


def _runs(mask: np.ndarray) -> np.ndarray:
    """(start, stop) of each run of True in a bool [F] -> int [R, 2]"""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def _silences(curves: ProsodyCurves) -> list[tuple[float, float]]:
    """Silences of at least `BREAK_S` within speech, as (start, end) in seconds."""
    runs = _runs(~curves.speaking) * STEP_S
    last_s = len(curves.speaking) * STEP_S
    return [(float(a), float(b)) for a, b in runs if a > 0 and b < last_s - STEP_S / 2 and b - a >= BREAK_S - 1e-9]


def _nuclei(curves: ProsodyCurves) -> list[int]:
    """Voiced loudness peaks that rise `_NUCLEUS_DIP_DB` above the dips on both sides (de Jong and Wempe 2009)."""
    kernel = np.hanning(7)[1:-1]
    level = np.convolve(np.pad(curves.level_dbfs, 2, mode="edge"), kernel / kernel.sum(), "valid")
    voiced = np.convolve(~np.isnan(curves.pitch_hz), np.ones(5), "same") > 0
    peaks: list[int] = []
    low = -np.inf  # the lowest level since the last peak
    for place in range(1, len(level) - 1):
        low = min(low, level[place])
        if not (level[place - 1] <= level[place] > level[place + 1] and voiced[place] and curves.speaking[place]):
            continue
        if not peaks or (level[place] - low >= _NUCLEUS_DIP_DB and level[peaks[-1]] - low >= _NUCLEUS_DIP_DB):
            peaks.append(place)
        elif level[place] > level[peaks[-1]]:
            peaks[-1] = place
        else:
            continue
        low = level[place]
    return peaks


def _tremor(curves: ProsodyCurves) -> tuple[float, float] | None:
    """(depth in semitones, rate in Hz) of a vocal tremor, or None.

    Intonation modulates the pitch, too, but over many rates. It is a tremor if most of the modulation power between 2
    and 15 Hz is within 1 Hz of one peak between 4 and 12 Hz, and if that is at least `_TREMOR_ST` deep.
    """
    voiced = ~np.isnan(curves.pitch_hz)
    bridged = voiced.copy()
    for start, stop in _runs(~voiced):
        if start > 0 and stop < len(voiced) and stop - start <= 0.12 / STEP_S:
            bridged[start:stop] = True
    semitones = 12 * np.log2(np.interp(curves.times_s, curves.times_s[voiced], curves.pitch_hz[voiced]))
    size, length, power = 512, 0, np.zeros(257)
    for start, stop in _runs(bridged):
        for first in range(start, stop, size):
            part = semitones[first : min(first + size, stop)]
            if len(part) < 0.5 / STEP_S:
                continue
            melody = np.convolve(np.pad(part, 15, mode="reflect"), np.ones(31) / 31, "valid")
            window = np.hanning(len(part))
            spectrum = np.abs(np.fft.rfft((part - melody) * window, size)) ** 2
            power += len(part) * spectrum * 2 / (size * np.sum(window**2))  # sums to the mean square, times length
            length += len(part)
    if not length:
        return None
    rates = np.fft.rfftfreq(size, STEP_S)
    peak = int(np.argmax(np.where((rates >= TREMOR_HZ[0]) & (rates <= TREMOR_HZ[1]), power, 0)))
    near, around = power[np.abs(rates - rates[peak]) <= 1.0].sum(), power[(rates >= 2) & (rates <= 15)].sum()
    depth_st = float(np.sqrt(2 * near / length))  # a sine of amplitude a has the mean square a^2 / 2
    if depth_st < _TREMOR_ST or near < _TREMOR_SHARE * around:
        return None
    return depth_st, float(rates[peak])


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
        start, stop = next((a, b) for a, b in _runs(active) if a <= peak < b)
        span = (round(float(times[start]), 3), round(float(times[stop - 1]), 3))
        facts.append(Fact(name, "visual", round(value, 2), "of 5" if name in tracked.intensity else "present", *span))
    return facts


def crop_facts(crops: np.ndarray) -> list[Fact]:
    """The number of face crops [n,h,w,3]: a face was found."""
    return [Fact("face_crops", "visual", len(crops), "count")]


# ---- relative to the speaker -----------------------------------------------------------------------------------------

RELATIVE = {
    "pitch_hz": ("pitch_vs_speaker_st", "semitones"),
    "loudness_dbfs": ("loudness_vs_speaker_db", "dB"),
    "syllable_rate_hz": ("rate_vs_speaker", "ratio"),
}


def speaker_facts(facts: Sequence[Fact], usual: Mapping[str, float]) -> list[Fact]:
    """Pitch, loudness and rate relative to the speaker's usual values (the medians over all their clips)."""
    found = []
    for fact in facts:
        if fact.name in RELATIVE and usual.get(fact.name):
            name, unit = RELATIVE[fact.name]
            base = usual[fact.name]
            value = fact.value - base if unit == "dB" else fact.value / base
            value = 12 * float(np.log2(value)) if unit == "semitones" else value
            found.append(Fact(name, fact.modality, round(value, 2), unit))
    return found


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
    for low, high, english, chinese in _PHRASES.get(fact.name, ()):
        if low <= value < high:
            template = chinese if zh else english
            return template.format(value=value, size=abs(value), start=fact.start_s or 0.0, end=fact.end_s or 0.0)
    return None


_INF = float("inf")
_PHRASES: dict[str, tuple[tuple[float, float, str, str], ...]] = {
    "voice_s": ((-_INF, 0.005, "no voice is heard", "听不到说话声"),),
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
        (-_INF, 0.005, "no face could be tracked", "未能追踪到人脸"),
        (0.005, _INF, "a face is tracked in {value:.0%} of the frames", "{value:.0%} 的画面中追踪到人脸"),
    ),
    "face_crops": ((1, _INF, "a face is in the picture", "画面中有一张脸"),),
}
"""Fact -> (from, below, English, Chinese). The bounds are rough values for read speech, not norms."""
