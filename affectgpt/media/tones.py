"""Sustained tones: spectral peaks that keep their frequency, as the notes of music do and a voice does not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

STEP_S = 0.064
"""Hop between two values."""

_WINDOW_S = 0.256  # 4 Hz between two bins: half a semitone at 65 Hz
_BAND_HZ = (65.0, 4000.0)
_ABOVE_DB = 15.0  # of a peak over the median of the half octave around it
_HELD_S = 0.38  # a voice glides further than a bin within that time
_TONAL_SHARE = 0.3  # of the frame's energy in the band
_FLOOR_DBFS = -60.0  # quieter frames hold no tone
_STEADY_SHARE = 0.9  # a tone that lasts for this share of the clip is hum or a test tone
_MIN_NOTES = 3


def sustained_tones(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Whether changing, sustained tones carry a frame.  float [S] -> bool [F], F = S / (rate_hz * STEP_S)

    Tones that last for the complete clip (mains hum, a test tone) do not count, nor do fewer than three frequencies.
    Singing and an instrument with strong vibrato are missed; a beeping machine with three pitches is taken for music.
    """
    window, hop = round(_WINDOW_S * rate_hz), round(STEP_S * rate_hz)
    n = max(1, len(samples) // hop)
    padded = np.pad(np.asarray(samples, np.float32), (window // 2 - hop // 2, window + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:n]
    power = np.concatenate(
        [np.abs(np.fft.rfft(frames[at : at + 500] * np.hanning(window))) ** 2 for at in range(0, n, 500)]
    )  # [F, B], in blocks as ten minutes of sound would take a gigabyte
    low, high = (round(edge * _WINDOW_S) for edge in _BAND_HZ)
    power = power[:, low:high]
    level_dbfs = 10 * np.log10(power.sum(axis=1) * 8 / 3 * 2 / window**2 + 1e-12)
    held = _held(_peaks(power, low), round(_HELD_S / STEP_S))
    steady = held.mean(axis=0) > _STEADY_SHARE
    held &= ~(steady | np.roll(steady, 1) | np.roll(steady, -1))
    used = np.asarray(held.any(axis=0))
    if np.count_nonzero(used[1:] & ~used[:-1]) < _MIN_NOTES:
        return np.zeros(n, dtype=bool)
    wide = held | np.roll(held, 1, axis=1) | np.roll(held, -1, axis=1)  # a peak of the window is three bins wide
    share = np.where(wide, power, 0).sum(axis=1) / np.maximum(power.sum(axis=1), 1e-12)
    return (share >= _TONAL_SHARE) & (level_dbfs > _FLOOR_DBFS)


def _peaks(power: np.ndarray, low: int) -> np.ndarray:
    """Local maxima that rise above their surroundings.  [F, B] -> bool [F, B]; `low` is the number of the first bin"""
    level = 10 * np.log10(power + 1e-12)
    inner = (level[:, 1:-1] > level[:, :-2]) & (level[:, 1:-1] >= level[:, 2:])
    peaks = np.pad(inner, ((0, 0), (1, 1)))
    # The median of half-octave bands, interpolated: the surroundings of each bin.
    edges = np.unique(np.round(np.geomspace(1, power.shape[1] + low, 13)).astype(int).clip(low) - low)
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    medians = np.stack([np.median(level[:, a:b], axis=1) for a, b in pairwise(edges)])  # [bands, F]
    bins = np.arange(power.shape[1])
    around = np.stack([np.interp(bins, centres, column) for column in medians.T])
    return peaks & (level > around + _ABOVE_DB)


def _held(peaks: np.ndarray, n_frames: int) -> np.ndarray:
    """Peaks that stay within one bin for at least `n_frames` in a row.  bool [F, B] -> bool [F, B]"""
    wide = peaks | np.pad(peaks[:, 1:], ((0, 0), (0, 1))) | np.pad(peaks[:, :-1], ((0, 0), (1, 0)))
    n, n_bins = wide.shape
    if n < n_frames:
        return np.zeros_like(peaks)
    sums = np.cumsum(np.pad(wide.astype(np.int32), ((1, 0), (0, 0))), axis=0)
    full = sums[n_frames:] - sums[:-n_frames] == n_frames  # [F - n_frames + 1, B]
    covered = np.zeros((n + 1, n_bins), np.int32)
    covered[: len(full)] += full
    covered[n_frames : n_frames + len(full)] -= full
    return (np.cumsum(covered[:n], axis=0) > 0) & peaks
