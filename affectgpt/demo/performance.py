"""The numeric description of a clip: curves of action units, gaze, head pose and voice.

The face and voice renderers share the syllable timing defined here, so that lips and speech are synchronous.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Curve = tuple[tuple[float, float], ...]
"""(time_s, value) knots in temporal order: linear in between, constant outside."""

ACTION_UNITS = {
    "AU01": "inner brow raiser",
    "AU02": "outer brow raiser",
    "AU04": "brow lowerer",
    "AU05": "upper lid raiser",
    "AU06": "cheek raiser",
    "AU07": "lid tightener",
    "AU09": "nose wrinkler",
    "AU10": "upper lip raiser",
    "AU12": "lip corner puller",
    "AU14": "dimpler",
    "AU15": "lip corner depressor",
    "AU17": "chin raiser",
    "AU20": "lip stretcher",
    "AU23": "lip tightener",
    "AU24": "lip pressor",
    "AU25": "lips part",
    "AU26": "jaw drop",
    "AU43": "eyes closed",
    "AU45": "blink",
}
"""The action units of the face, with their names in the Facial Action Coding System."""


@dataclass(frozen=True)
class Identity:
    """A person; the seed determines looks and voice."""

    seed: int

    def rng(self, topic: str) -> np.random.Generator:
        """A generator per topic ("voice", "looks"), so that a new trait in one does not change the other."""
        return np.random.default_rng([self.seed, *topic.encode()])

    @property
    def base_pitch_hz(self) -> float:
        """90 to 240 Hz, uniform in octaves."""
        return float(90 * (240 / 90) ** self.rng("pitch").random())

    @property
    def formant_scale(self) -> float:
        """Formants relative to an adult man's; higher voices have shorter vocal tracts."""
        height = math.log(self.base_pitch_hz / 90) / math.log(240 / 90)
        return 0.98 + 0.18 * height + float(self.rng("tract").uniform(-0.03, 0.03))


@dataclass(frozen=True)
class Voice:
    """How the line is spoken."""

    pitch_ratio: Curve = ((0.0, 1.0),)  # 1 = the person's base pitch
    loudness_db: Curve = ((0.0, 0.0),)  # 0 = normal
    syllable_rate_hz: float = 4.2
    tremor: float = 0.0  # 0..1
    breathiness: float = 0.1  # 0..1
    breaks: tuple[tuple[float, float], ...] = ()  # (start_s, stop_s) of silences
    brightness: float = 0.0  # -1..1, spectral tilt


@dataclass(frozen=True)
class Performance:
    """One clip: action units in 0..1, gaze (x, y) in -1..1, head (yaw, pitch, roll) in degrees.

    Positive gaze x and yaw point to the right of the image, gaze y and pitch upwards; positive roll is clockwise.
    """

    duration_s: float
    identity: Identity
    action_units: Mapping[str, Curve] = field(default_factory=dict)
    gaze: tuple[Curve, Curve] = (((0.0, 0.0),), ((0.0, 0.0),))
    head: tuple[Curve, Curve, Curve] = (((0.0, 0.0),), ((0.0, 0.0),), ((0.0, 0.0),))
    voice: Voice | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if not self.duration_s > 0:
            raise ValueError(f"duration_s is {self.duration_s}; it must be positive")
        if unknown := sorted(set(self.action_units) - set(ACTION_UNITS)):
            raise ValueError(f"unknown action units {unknown}; expected some of {', '.join(ACTION_UNITS)}")
        if self.voice is not None and not self.voice.syllable_rate_hz > 0:
            raise ValueError(f"syllable_rate_hz is {self.voice.syllable_rate_hz}; it must be positive, or voice=None")


def sample_curve(curve: Curve, times: np.ndarray) -> np.ndarray:
    """Values of `curve` at `times` (s) -> float64 [T]."""
    if not curve:
        raise ValueError("a curve has no knots; use ((0.0, value),) for a constant")
    knots = np.asarray(curve, dtype=np.float64)  # [K, 2]
    if np.any(np.diff(knots[:, 0]) < 0):
        raise ValueError(f"the knots of a curve are not in temporal order: {knots[:, 0].tolist()}")
    return np.interp(times, knots[:, 0], knots[:, 1])


# ---- speech ----------------------------------------------------------------------------------------------------------

VOWELS = {
    "a": (730.0, 1090.0, 2440.0),
    "e": (530.0, 1840.0, 2480.0),
    "i": (270.0, 2290.0, 3010.0),
    "o": (570.0, 840.0, 2410.0),
    "u": (300.0, 870.0, 2240.0),
}
"""First three formants of men's vowels in Hz (Peterson and Barney 1952, table II)."""

_MOUTH = {"a": (1.0, 0.0), "e": (0.7, 0.0), "i": (0.45, 0.0), "o": (0.75, 0.8), "u": (0.4, 1.0)}  # opening, rounding
_VOWEL_OF_LETTER = {**{vowel: vowel for vowel in VOWELS}, "y": "i"}
_ONSETS = {**dict.fromkeys("pbtdkgqc", "stop"), **dict.fromkeys("fvszhxj", "fricative")}
_EDGE_S = 0.12  # silence at the start and end of a clip


class Syllable(NamedTuple):
    start_s: float
    stop_s: float
    vowel: str  # one of VOWELS
    onset: str  # "stop", "fricative" or "" (nasals, glides or no consonant)


def spoken_syllables(text: str) -> list[tuple[str, str]]:
    """(vowel, onset) of each syllable of `text`: by vowel letters in Latin script, one per character in other scripts.

    >>> spoken_syllables("Take the bus.")
    [('a', 'stop'), ('e', ''), ('u', 'stop')]
    """
    found: list[tuple[str, str]] = []
    for word in re.findall(r"\w+", text.lower()):
        if not word.isascii() or word.isdigit():
            found += [(tuple(VOWELS)[ord(char) % 5], ("stop", "fricative", "")[ord(char) // 5 % 3]) for char in word]
            continue
        parts = re.findall(r"([^aeiouy]*)([aeiouy]+)", word)
        if len(parts) > 1 and word.endswith("e") and parts[-1][1] == "e":
            parts.pop()  # the silent e of "take"
        # "th" has no audible onset; otherwise the consonant before the vowel determines it.
        found += [
            (_VOWEL_OF_LETTER[vowels[0]], "" if before.endswith("th") else _ONSETS.get(before[-1:], ""))
            for before, vowels in parts
        ]
    return found


def syllables(performance: Performance) -> tuple[Syllable, ...]:
    """Timing of each syllable. The line is repeated until the clip ends; breaks delay what follows.

    Empty without a voice or without syllables in the text.
    """
    voice, line = performance.voice, spoken_syllables(performance.text)
    if voice is None or not line:
        return ()
    length_s, end_s = 1 / voice.syllable_rate_hz, performance.duration_s - _EDGE_S
    # A syllable with less than half its length before a break is spoken after the break.
    breaks = sorted(voice.breaks)
    timed: list[Syllable] = []
    now_s = min(_EDGE_S, performance.duration_s / 4)
    while now_s + length_s / 2 < end_s:
        vowel, onset = line[len(timed) % len(line)]
        stop_s = min(now_s + length_s, end_s)
        for start_s, resume_s in breaks:
            if start_s < stop_s and resume_s > now_s:
                stop_s = start_s
                break
        if stop_s - now_s < length_s / 2:
            now_s = resume_s
            continue
        timed.append(Syllable(now_s, stop_s, vowel, onset))
        now_s = stop_s
    return tuple(timed)


def speaking_mouth(performance: Performance, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Opening and rounding of the lips by speech at `times` -> two float64 [T] in 0..1."""
    opening, rounding = np.zeros(len(times)), np.zeros(len(times))
    for syllable in syllables(performance):
        progress = (times - syllable.start_s) / (syllable.stop_s - syllable.start_s)
        bump = np.where((progress > 0) & (progress < 1), np.sin(np.pi * progress.clip(0, 1)), 0.0)
        wide, round_ = _MOUTH[syllable.vowel]
        opening += wide * bump
        rounding += round_ * bump
    return opening, rounding
