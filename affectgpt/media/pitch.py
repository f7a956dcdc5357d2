"""Pitch of a voice: autocorrelation of windowed frames, and the best path through their peaks (Boersma 1993).

The path prevents octave errors: a frame's strongest peak may be at half or twice the pitch, but a voice does not jump
by an octave within 10 ms. The range is that of the speaker: a first pass in 60 to 500 Hz finds the quartiles, and the
second one searches between 0.75 times the lower and 2.5 times the upper (De Looze and Hirst 2008, for expressive
speech). Noise is not removed; how far pitch can be trusted in it was measured: see docs/sound.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP_S = 0.01
"""Hop between two values."""

PITCH_RANGE_HZ = (60.0, 500.0)
"""Of the first pass."""

_PERIODS = 3  # of the lowest pitch in one window
_CANDIDATES = 8  # peaks of each frame
_VOICING = 0.45  # strength of "unvoiced" against peaks of the autocorrelation
_SILENCE = 0.03  # of the loudest peak; quieter frames are more and more likely unvoiced
_OCTAVE = 0.01  # advantage of higher candidates, per octave
_OCTAVE_JUMP = 0.35  # cost per octave between two frames
_VOICED_UNVOICED = 0.14  # cost of each start and end of voicing
_NARROWER = (0.75, 2.5)  # of the quartiles
_HIGHEST_FLOOR_HZ = 150.0  # windows of less than 20 ms are noisy
_BLOCK = 1000  # frames; ten minutes of sound at once would take gigabytes


@dataclass(frozen=True)
class Pitch:
    """Pitch of a sound, one value every `STEP_S`.

    Attributes:
        times_s: [F] centres of the frames.
        hz: [F], NaN where unvoiced.
        strength: [F], the normalized autocorrelation at the period, 0 to 1; 0 where unvoiced.
    """

    times_s: np.ndarray
    hz: np.ndarray
    strength: np.ndarray


def track_pitch(samples: np.ndarray, rate_hz: int) -> Pitch:
    """Pitch of mono sound.  float [S] -> [F], F = S / (rate_hz * STEP_S)"""
    found = _track(samples, rate_hz, *PITCH_RANGE_HZ)
    voiced = ~np.isnan(found.hz)
    if voiced.sum() < 10:
        return found
    lower, upper = np.percentile(found.hz[voiced], [25, 75])
    low_hz = float(np.clip(_NARROWER[0] * lower, PITCH_RANGE_HZ[0], _HIGHEST_FLOOR_HZ))
    return _track(samples, rate_hz, low_hz, min(PITCH_RANGE_HZ[1], _NARROWER[1] * float(upper)))


def _track(samples: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> Pitch:
    hop, window = round(STEP_S * rate_hz), round(_PERIODS * rate_hz / low_hz)
    n = max(1, len(samples) // hop)
    padded = np.pad(np.asarray(samples, np.float64), (window // 2 - hop // 2, window + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:n]  # [F, window]
    # The loudest sample of the clip would depend on one click; a percentile does not.
    loudest = max(float(np.percentile(np.abs(samples), 99.5)) if len(samples) else 0.0, 1e-6)
    parts = [
        _candidates(frames[start : start + _BLOCK], rate_hz, low_hz, high_hz, loudest) for start in range(0, n, _BLOCK)
    ]
    hz, strength, unvoiced = (np.concatenate(items) for items in zip(*parts, strict=True))
    chosen = _best_path(hz, strength, unvoiced)
    rows, voiced = np.arange(n), chosen >= 0
    found = np.where(voiced, hz[rows, chosen], np.nan)
    found_strength = np.where(voiced, strength[rows, chosen].clip(0, 1), 0.0)
    return Pitch((rows + 0.5) * STEP_S, found, found_strength)


def _candidates(
    frames: np.ndarray, rate_hz: int, low_hz: float, high_hz: float, loudest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitches and strengths of the highest peaks, and the strength of "unvoiced".  [F, W] -> [F, K], [F, K], [F]

    Missing peaks have the strength -inf.
    """
    length = frames.shape[1]
    window = np.hanning(length + 2)[1:-1]
    size = 1 << int(np.ceil(np.log2(2 * length)))
    longest = min(int(np.ceil(rate_hz / low_hz)) + 1, length - 2)
    shortest = max(2, int(rate_hz / high_hz))

    def autocorrelation(signals: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(signals, size)
        return np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[..., : longest + 1]

    centred = frames - frames.mean(axis=1, keepdims=True)
    own, of_window = autocorrelation(centred * window), autocorrelation(window)
    # Divided by the window's own, a periodic signal has 1 at its period (Boersma 1993, equation 9).
    normal = own / np.maximum(own[:, :1], 1e-12) / (of_window / of_window[0])  # [F, longest + 1]
    inner = normal[:, shortest:longest]
    peaks = (inner > normal[:, shortest - 1 : longest - 1]) & (inner >= normal[:, shortest + 1 : longest + 1])
    lags = np.arange(shortest, longest)
    merit = np.where(peaks & (inner > 0), inner - _OCTAVE * np.log2(low_hz * lags / rate_hz), -np.inf)
    k = min(_CANDIDATES, merit.shape[1])
    places = np.argpartition(-merit, k - 1, axis=1)[:, :k]  # [F, K]
    rows = np.arange(len(frames))[:, None]
    left, middle, right = (normal[rows, places + shortest + side] for side in (-1, 0, 1))
    curve = left - 2 * middle + right
    bent = curve < -1e-9
    shift = np.where(bent, 0.5 * (left - right) / np.where(bent, curve, -1.0), 0.0).clip(-0.5, 0.5)
    height = middle - 0.25 * (left - right) * shift
    exact = lags[places] + shift
    is_peak = np.isfinite(merit[rows, places])
    strength = np.where(is_peak, height - _OCTAVE * np.log2(low_hz * exact / rate_hz), -np.inf)
    quiet = np.abs(centred).max(axis=1) / loudest / (_SILENCE / (1 + _VOICING))
    return rate_hz / exact, strength, _VOICING + np.maximum(0.0, 2 - quiet)


def _best_path(hz: np.ndarray, strength: np.ndarray, unvoiced: np.ndarray) -> np.ndarray:
    """The candidate of each frame on the path of the highest total strength less the costs of changes; -1 = unvoiced.

    [F, K], [F, K], [F] -> int [F]
    """
    n, k = hz.shape
    octaves = np.log2(hz)
    came_from = np.empty((n, k + 1), np.int64)  # the last state is "unvoiced"
    total = np.concatenate([strength[0], unvoiced[:1]])
    cost = np.full((k + 1, k + 1), _VOICED_UNVOICED)
    cost[k, k] = 0.0
    columns = np.arange(k + 1)
    for place in range(1, n):
        cost[:k, :k] = _OCTAVE_JUMP * np.abs(octaves[place - 1][:, None] - octaves[place])
        reached = total[:, None] - cost  # from, to
        best = reached.argmax(axis=0)
        came_from[place] = best
        total = reached[best, columns]
        total[:k] += strength[place]
        total[k] += unvoiced[place]
    path = np.empty(n, np.int64)
    path[-1] = int(total.argmax())
    for place in range(n - 1, 0, -1):
        path[place - 1] = came_from[place, path[place]]
    return np.where(path == k, -1, path)
