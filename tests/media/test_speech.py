import importlib.util
import sys

import numpy as np
import pytest

from affectgpt.media import Waveform
from affectgpt.media.speech import RATE_HZ, Speech, find_speech
from affectgpt.runtime import InputError, MissingLibrary

VOWELS_HZ = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240), "e": (530, 1840, 2480)}
"""The first three formants (Peterson and Barney 1952)."""

needs_detector = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="silero-vad is not installed (extra speech)"
)


def waveform(samples):
    return Waveform(np.asarray(samples, np.float32), RATE_HZ, len(samples) / RATE_HZ, RATE_HZ, 1)


def vowel(name, pitch_hz, duration_s):
    """Harmonics of a voice, weighted by the resonances of a vowel, float [S]."""
    times = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.04 * np.sin(2 * np.pi * 4 * times))) / RATE_HZ
    tone = np.zeros(len(times))
    for harmonic in range(1, int(3800 / pitch_hz)):
        at = harmonic * pitch_hz
        gain = sum(1 / (1 + ((at - formant) / (50 + formant * 0.05)) ** 2) for formant in VOWELS_HZ[name])
        tone += gain / harmonic * np.sin(harmonic * phase)
    fade = np.minimum(1, np.minimum(np.arange(len(times)), np.arange(len(times))[::-1]) / (0.03 * RATE_HZ))
    return 0.5 * tone / np.abs(tone).max() * fade


def talk(duration_s):
    """Syllables: a hiss, then a vowel."""
    rng = np.random.default_rng(0)
    parts = []
    while sum(map(len, parts)) < duration_s * RATE_HZ:
        hiss = np.diff(rng.normal(size=1440), prepend=0) * 0.08 * np.hanning(1440)
        parts += [hiss, vowel(rng.choice(list(VOWELS_HZ)), 120 * rng.uniform(0.9, 1.15), rng.uniform(0.1, 0.18))]
    return np.concatenate(parts)[: round(duration_s * RATE_HZ)]


@needs_detector
def test_synthetic_speech_is_found_where_it_is_with_added_noise_too():
    pause = np.zeros(RATE_HZ)
    samples = np.concatenate([pause, talk(3.0), pause])
    for noise in (0.0, 0.005):
        found = find_speech(waveform(samples + noise * np.random.default_rng(1).normal(size=len(samples))))
        assert found.segments_s[0][0] == pytest.approx(1.0, abs=0.3)
        assert found.segments_s[-1][1] == pytest.approx(4.0, abs=0.3)
        assert found.share == pytest.approx(0.6, abs=0.1)
        assert found.detector.startswith("silero-vad ")


@needs_detector
@pytest.mark.parametrize("what", ["silence", "noise", "sine", "chords"])
def test_music_noise_and_silence_hold_no_speech(what):
    times = np.arange(3 * RATE_HZ) / RATE_HZ
    chords = sum(np.sin(2 * np.pi * hz * times) * np.exp(-3 * (2 * times % 1)) for hz in (220, 277, 330))
    samples = {
        "silence": np.zeros(len(times)),
        "noise": 0.1 * np.random.default_rng(0).normal(size=len(times)),
        "sine": 0.5 * np.sin(2 * np.pi * 440 * times),
        "chords": 0.2 * chords,
    }[what]
    assert find_speech(waveform(samples)).segments_s == ()


@needs_detector
def test_the_detector_leaves_the_number_of_threads_and_no_state_of_an_earlier_clip():
    import torch

    n_threads = torch.get_num_threads()
    first = find_speech(waveform(talk(1.0)))
    find_speech(waveform(talk(2.0)))
    assert find_speech(waveform(talk(1.0))) == first
    assert torch.get_num_threads() == n_threads


def test_segments_tell_share_and_times():
    speech = Speech(((0.5, 1.0), (2.0, 3.5)), 4.0, "x 1")
    assert (speech.speech_s, speech.share) == (2.0, 0.5)
    assert speech.at(np.array([0.4, 0.5, 0.99, 1.0, 3.0])).tolist() == [False, True, True, False, True]


def test_another_sampling_rate_is_an_error():
    with pytest.raises(InputError, match="speech is found at 16000 Hz, found 44100 Hz"):
        find_speech(Waveform(np.zeros(10, np.float32), 44100, 10 / 44100, 44100, 1))


def test_a_missing_detector_names_the_extra(monkeypatch):
    from affectgpt.media import speech

    speech._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'affectgpt\[speech\]'"):
        find_speech(waveform(np.zeros(1600)))
