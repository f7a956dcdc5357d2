"""Measurements of the sound of a clip: where somebody speaks, how, and what else is heard.

Facts of the voice come from speech alone. Music, noise and silence give none, and a fact that cannot be trusted with
so much other sound is left out: `RELIABLE_DB` has the limits, docs/sound.md the errors from which they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.annotate.record import Fact
from affectgpt.media import Waveform
from affectgpt.media.pitch import STEP_S, track_pitch
from affectgpt.media.speech import MIN_SPEECH_S, THRESHOLD, Speech
from affectgpt.media.tones import STEP_S as TONES_STEP_S
from affectgpt.media.tones import sustained_tones

RELIABLE_DB = {
    "loudness_dbfs": 5.0,
    "pitch_hz": 12.0,
    "syllable_rate_hz": 12.0,
    "loudness_slope_db_s": 12.0,
    "pitch_range_st": 15.0,
    "pitch_slope_st_s": 15.0,
    "breaks": 15.0,
    "loudness_range_db": 18.0,
    "tremor_st": 20.0,
    "tremor_hz": 20.0,
}
"""Speech must be louder than the other sound by this much, or the fact is left out."""

PAUSE_S = 0.25  # shorter silences belong to consonants (Goldman-Eisler 1968)
BREAK_S = 0.12  # closures of stops are shorter than that
TREMOR_HZ = (4.0, 12.0)
_SILENCE_DB = 30.0  # this far below the 95th percentile of speech, a frame is silent
_FLOOR_DBFS = -60.0  # below this level, a frame is always silent
_NUCLEUS_DIP_DB = 2.0  # de Jong and Wempe 2009
_CLEAR_DB = 3.0  # a frame of speech must be louder than the other sound by this much to have a pitch
_SHORTEST_VOICED_S = 0.04  # shorter runs of pitch are chance
_NUCLEUS_DB = 20.0  # this far below the 95th percentile of speech, a peak is no syllable
_MIN_RATE_S = 1.0  # with less speech, one syllable more or less decides
_MIN_VOICED_S = 0.3  # with less voice, no pitch is reported
_TREMOR_ST = 0.2
_TREMOR_SHARE = 0.5
_MARGIN_S = 0.1  # around speech: its detected edges are that inexact
_MIN_OUTSIDE_S = 0.3  # of sound outside speech, to measure its level
_MIN_TONES_S = 0.5
_MOST_SNR_DB = 40.0  # larger values say nothing more


@dataclass(frozen=True)
class Prosody:
    """Pitch and loudness of speech, one value every `STEP_S`.

    Attributes:
        times_s: [F] centres of the frames.
        pitch_hz: [F], NaN where unvoiced and outside speech.
        level_dbfs: [F] root mean square of 20 ms, full scale = 0.
        in_speech: bool [F], within a segment with speech.
        speaking: bool [F], of these, louder than silence.
        snr_db: level of speech less that of the other sound, at most 40; None without speech.
    """

    times_s: np.ndarray
    pitch_hz: np.ndarray
    level_dbfs: np.ndarray
    in_speech: np.ndarray
    speaking: np.ndarray
    snr_db: float | None


def prosody(sound: Waveform, speech: Speech) -> Prosody:
    """Pitch and loudness of the speech of a clip."""
    power = _power(sound)
    times = (np.arange(len(power)) + 0.5) * STEP_S
    in_speech = speech.at(times)
    level = 10 * np.log10(power + 1e-12)
    if not in_speech.any():
        nothing = np.zeros(len(times), dtype=bool)
        return Prosody(times, np.full(len(times), np.nan), level, in_speech, nothing, None)
    other, snr_db = _other_level(power, in_speech)
    loudest = np.percentile(level[in_speech], 95)
    speaking = in_speech & (level > max(loudest - _SILENCE_DB, _FLOOR_DBFS))
    # Where speech is hardly louder than the other sound, the pitch is that of the other sound.
    clear = speaking & (level > 10 * np.log10(other + 1e-12) + _CLEAR_DB)
    pitch = np.where(clear, track_pitch(sound.samples, sound.rate_hz).hz, np.nan)
    for start, stop in runs(~np.isnan(pitch)):
        if stop - start < _SHORTEST_VOICED_S / STEP_S:
            pitch[start:stop] = np.nan
    return Prosody(times, _without_jumps(pitch), level, in_speech, speaking, snr_db)


def _power(sound: Waveform) -> np.ndarray:
    """Mean square of the 20 ms around each frame's centre.  -> float64 [F]"""
    hop = round(STEP_S * sound.rate_hz)
    n = max(1, len(sound.samples) // hop)
    padded = np.pad(sound.samples.astype(np.float64) ** 2, (hop // 2, 2 * hop))
    sums = np.concatenate([[0.0], np.cumsum(padded)])
    at = np.arange(n) * hop
    return (sums[at + 2 * hop] - sums[at]) / (2 * hop)


def _other_level(power: np.ndarray, in_speech: np.ndarray) -> tuple[float, float]:
    """(mean power of the other sound, level of speech above it in dB).

    The level of the other sound is that outside speech or that of the quietest moments (2nd percentile), the higher of
    both. Where other sound is only under speech, and changes as music does, its level is underestimated.
    """
    padded = np.pad(power, 2, mode="edge")
    other = float(np.percentile(np.convolve(padded, np.ones(5) / 5, "valid"), 2))
    outside = ~_widened(in_speech, _MARGIN_S)
    if outside.sum() * STEP_S >= _MIN_OUTSIDE_S:
        other = max(other, float(power[outside].mean()))
    speech = max(float(power[in_speech].mean()) - other, 1e-12)
    return other, float(np.clip(10 * np.log10(speech / max(other, 1e-12)), -_MOST_SNR_DB, _MOST_SNR_DB))


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


def _widened(mask: np.ndarray, margin_s: float) -> np.ndarray:
    n = round(margin_s / STEP_S)
    return np.convolve(mask, np.ones(2 * n + 1), "same")[: len(mask)] > 0.5


def measure_sound(sound: Waveform, speech: Speech) -> tuple[list[Fact], list[str]]:
    """(facts, names of the facts that are left out because they are not reliable with so much other sound).

    Speech and its share, other sound, and of speech: pitch, loudness, rate, pauses, breaks and tremor. Without speech:
    `speech_s` = 0, the level of the sound, and whether it is like music.
    """
    curves = prosody(sound, speech)
    facts = [
        _fact("speech_s", speech.speech_s, "s"),
        _fact("speech_share", speech.share, "of the clip"),
        *_other_sound(sound, curves),
    ]
    if curves.snr_db is None:
        return facts, []
    measured = _of_speech(curves)
    unreliable = [fact.name for fact in measured if curves.snr_db < RELIABLE_DB.get(fact.name, -np.inf)]
    return facts + [fact for fact in measured if fact.name not in unreliable], unreliable


def method(speech: Speech) -> dict[str, Any]:
    """How the sound was measured: names, versions and thresholds, for records."""
    return {
        "speech": speech.detector,
        "threshold": THRESHOLD,
        "min_speech_s": MIN_SPEECH_S,
        "pitch": "autocorrelation, Boersma 1993",
        "reliable_db": RELIABLE_DB,
    }


def _fact(name: str, value: float, unit: str, start_s: float | None = None, end_s: float | None = None) -> Fact:
    digits = 3 if unit == "s" else 2
    span = [None if edge is None else round(float(edge), 3) for edge in (start_s, end_s)]
    return Fact(name, "acoustic", round(float(value), digits), unit, *span)


def _other_sound(sound: Waveform, curves: Prosody) -> list[Fact]:
    """The level of what is not speech, and the share of it that is carried by sustained tones."""
    outside = ~_widened(curves.in_speech, _MARGIN_S)
    facts = []
    if curves.snr_db is not None:
        facts.append(_fact("speech_over_other_db", curves.snr_db, "dB"))
    if outside.sum() * STEP_S >= _MIN_OUTSIDE_S:
        power = float(np.mean(10 ** (curves.level_dbfs[outside] / 10)))
        facts.append(_fact("other_sound_dbfs", max(10 * np.log10(power + 1e-12), -120.0), "dBFS"))
    tones = sustained_tones(sound.samples, sound.rate_hz)
    at = np.minimum(((np.arange(len(tones)) + 0.5) * TONES_STEP_S / STEP_S).astype(int), len(outside) - 1)
    if outside[at].sum() * TONES_STEP_S >= _MIN_TONES_S:
        facts.append(_fact("music_like_share", float(tones[outside[at]].mean()), "of the sound outside speech"))
    return facts


def _of_speech(curves: Prosody) -> list[Fact]:
    times, voiced = curves.times_s, ~np.isnan(curves.pitch_hz)
    voice_s = float(voiced.sum() * STEP_S)
    facts = [_fact("voice_s", voice_s, "s")]
    if not curves.speaking.any():
        return facts
    if voice_s >= _MIN_VOICED_S:
        pitch = curves.pitch_hz[voiced]
        median = float(np.median(pitch))
        semitones = 12 * np.log2(pitch / median)
        low, high = np.percentile(semitones, [5, 95])
        facts += [_fact("pitch_hz", median, "Hz"), _fact("pitch_range_st", high - low, "semitones")]
        if times[voiced][-1] - times[voiced][0] >= 1.0:
            facts.append(_fact("pitch_slope_st_s", _slope(times[voiced], semitones), "semitones/s"))
        if tremor := _tremor(curves):
            facts += [_fact("tremor_st", tremor[0], "semitones"), _fact("tremor_hz", tremor[1], "Hz")]
    loud = curves.level_dbfs[curves.speaking]
    low, high = np.percentile(loud, [10, 95])
    facts += [_fact("loudness_dbfs", 10 * np.log10(np.mean(10 ** (loud / 10))), "dBFS")]
    facts += [_fact("loudness_range_db", high - low, "dB")]
    span = times[curves.speaking]
    if span[-1] - span[0] >= 1.0:
        facts.append(_fact("loudness_slope_db_s", _slope(span, loud), "dB/s"))
    silences = _silences(curves)
    pauses = [edges for edges in silences if edges[1] - edges[0] >= PAUSE_S]
    speaking_s = span[-1] - span[0] + STEP_S - sum(end - start for start, end in pauses)
    if voice_s >= _MIN_VOICED_S and speaking_s >= _MIN_RATE_S:
        facts.append(_fact("syllable_rate_hz", len(_nuclei(curves)) / speaking_s, "syllables/s"))
    facts.append(_fact("pauses", len(pauses), "count"))
    if pauses:
        start, end = max(pauses, key=lambda edges: edges[1] - edges[0])
        facts.append(_fact("longest_pause_s", end - start, "s", start, end))
    facts.append(_fact("breaks", len(silences) - len(pauses), "count"))
    return facts


def _slope(times_s: np.ndarray, values: np.ndarray) -> float:
    return float(np.polyfit(times_s - times_s.mean(), values, 1)[0])


def runs(mask: np.ndarray) -> np.ndarray:
    """(start, stop) of each run of True in a bool [F] -> int [R, 2]"""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def _silences(curves: Prosody) -> list[tuple[float, float]]:
    """Silences of at least `BREAK_S` between the first and the last speech, as (start, end) in seconds."""
    silent = runs(~curves.speaking) * STEP_S
    last_s = len(curves.speaking) * STEP_S
    return [(float(a), float(b)) for a, b in silent if a > 0 and b < last_s - STEP_S / 2 and b - a >= BREAK_S - 1e-9]


def _nuclei(curves: Prosody) -> list[int]:
    """Voiced loudness peaks that rise `_NUCLEUS_DIP_DB` above the dips on both sides (de Jong and Wempe 2009)."""
    kernel = np.hanning(7)[1:-1]
    level = np.convolve(np.pad(curves.level_dbfs, 2, mode="edge"), kernel / kernel.sum(), "valid")
    voiced = np.convolve(~np.isnan(curves.pitch_hz), np.ones(5), "same") > 0
    lowest = np.percentile(curves.level_dbfs[curves.in_speech], 95) - _NUCLEUS_DB
    can_be = voiced & curves.speaking & (level > lowest)
    peaks: list[int] = []
    low = -np.inf  # the lowest level since the last peak
    for place in range(1, len(level) - 1):
        low = min(low, level[place])
        if not (level[place - 1] <= level[place] > level[place + 1] and can_be[place]):
            continue
        if not peaks or (level[place] - low >= _NUCLEUS_DIP_DB and level[peaks[-1]] - low >= _NUCLEUS_DIP_DB):
            peaks.append(place)
        elif level[place] > level[peaks[-1]]:
            peaks[-1] = place
        else:
            continue
        low = level[place]
    return peaks


def _tremor(curves: Prosody) -> tuple[float, float] | None:
    """(depth in semitones, rate in Hz) of a vocal tremor, or None.

    Intonation modulates the pitch, too, but over many rates. It is a tremor if most of the modulation power between 2
    and 15 Hz is within 1 Hz of one peak between 4 and 12 Hz, and if that is at least `_TREMOR_ST` deep.
    """
    voiced = ~np.isnan(curves.pitch_hz)
    bridged = voiced.copy()
    for start, stop in runs(~voiced):
        if start > 0 and stop < len(voiced) and stop - start <= 0.12 / STEP_S:
            bridged[start:stop] = True
    semitones = 12 * np.log2(np.interp(curves.times_s, curves.times_s[voiced], curves.pitch_hz[voiced]))
    size, length, power = 512, 0, np.zeros(257)
    for start, stop in runs(bridged):
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
