import numpy as np
import pytest

from affectgpt.demo.performance import Identity, Performance, Voice, syllables
from affectgpt.demo.voice import RMS_AT_0_DB, render_voice

RATE_HZ = 16000
TEXT = "They told me this morning."


def spoken(seed: int = 1, *, duration_s: float = 3.0, text: str = TEXT, **voice) -> np.ndarray:
    sound = render_voice(Performance(duration_s, Identity(seed), voice=Voice(**voice), text=text), rate_hz=RATE_HZ)
    assert sound is not None
    return sound


def constant(value: float):
    return ((0.0, value),)


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))


def pitch_track(sound: np.ndarray, window: int = 1024, hop: int = 160) -> np.ndarray:
    """Pitch in Hz of each window of speech, by the first high peak of its normalised autocorrelation."""
    shifts = np.arange(RATE_HZ // 550, RATE_HZ // 55)
    found = []
    for start in range(0, len(sound) - window, hop):
        piece = sound[start : start + window].astype(np.float64)
        if rms(piece) < 0.3 * rms(sound):
            continue
        power = np.fft.irfft(np.abs(np.fft.rfft(piece, 2 * window)) ** 2)
        likeness = power[shifts] / (1 - shifts / window) / power[0]
        best = np.flatnonzero(likeness > 0.85 * likeness.max())[0]
        while best + 1 < len(likeness) and likeness[best + 1] > likeness[best]:
            best += 1
        found.append(RATE_HZ / shifts[best])
    return np.array(found)


def centroid_hz(sound: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float((power * np.fft.rfftfreq(len(sound), 1 / RATE_HZ)).sum() / power.sum())


def test_no_voice_gives_no_audio_and_a_text_without_syllables_gives_silence():
    assert render_voice(Performance(1.0, Identity(1), text=TEXT)) is None
    silence = spoken(text="...")
    assert silence.shape == (48000,)
    assert not silence.any()


@pytest.mark.parametrize("seed", range(6))
def test_the_waveform_is_float32_as_long_as_the_clip_loud_enough_and_never_clips(seed):
    for loudness_db in (0.0, 12.0):
        sound = spoken(seed, duration_s=2.5, loudness_db=constant(loudness_db), brightness=1.0)
        assert sound.dtype == np.float32
        assert sound.shape == (40000,)
        assert np.abs(sound).max() < 1
    assert rms(spoken(seed)) == pytest.approx(RMS_AT_0_DB, rel=0.08)


def test_the_same_performance_gives_the_same_samples_and_another_person_sounds_different():
    np.testing.assert_array_equal(spoken(2), spoken(2))
    assert not np.allclose(spoken(2), spoken(3), atol=0.01)


@pytest.mark.parametrize("seed", [0, 1, 5])
@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.5])
def test_pitch_is_the_persons_base_pitch_times_the_ratio(seed, ratio):
    pitch_hz = np.median(pitch_track(spoken(seed, pitch_ratio=constant(ratio))))
    assert pitch_hz == pytest.approx(ratio * Identity(seed).base_pitch_hz, rel=0.03)


def test_pitch_follows_its_curve_over_time():
    sound = spoken(pitch_ratio=((0.5, 0.8), (2.5, 1.4)))
    first, last = np.median(pitch_track(sound[: RATE_HZ // 2])), np.median(pitch_track(sound[-RATE_HZ // 2 :]))
    assert last / first == pytest.approx(1.4 / 0.8, rel=0.08)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_six_decibels_more_double_the_rms(seed):
    louder = spoken(seed, loudness_db=constant(20 * np.log10(2)))
    assert rms(louder) / rms(spoken(seed)) == pytest.approx(2, rel=0.02)


def test_loudness_follows_its_curve_over_time():
    sound = spoken(loudness_db=((1.4, 0.0), (1.6, -12.0)))
    even = spoken()
    gain = rms(sound[32000:]) / rms(even[32000:])
    assert gain == pytest.approx(10 ** (-12 / 20), rel=0.02)


def test_breaks_are_silent_and_the_rest_is_not():
    sound = spoken(breaks=((0.8, 1.1), (1.9, 2.2)))
    for start_s, stop_s in ((0.8, 1.1), (1.9, 2.2)):
        assert not sound[round(start_s * RATE_HZ) : round(stop_s * RATE_HZ)].any()
    assert rms(sound[round(1.2 * RATE_HZ) : round(1.8 * RATE_HZ)]) > 0.05


def test_tremor_modulates_the_pitch_at_five_to_eight_hertz():
    # One long vowel, so that the pitch can be measured without gaps.
    calm, trembling = (pitch_track(spoken(text="a", syllable_rate_hz=0.35, tremor=tremor)) for tremor in (0.0, 1.0))
    calm, trembling = calm[20:-20], trembling[20:-20]
    assert trembling.std() / trembling.mean() > 0.025 > 4 * calm.std() / calm.mean()
    spectrum = np.abs(np.fft.rfft(trembling - trembling.mean(), 4096))
    rate_hz = np.fft.rfftfreq(4096, 160 / RATE_HZ)[spectrum.argmax()]
    assert 5 <= rate_hz <= 8


def test_breathiness_adds_noise_between_the_harmonics():
    def noise_share(breathiness: float) -> float:
        sound = spoken(text="a", breathiness=breathiness, syllable_rate_hz=0.4)[16000:32000].astype(np.float64)
        power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2  # 1 Hz bins
        frequencies = np.arange(len(power))[:3000]
        phase = (frequencies / Identity(1).base_pitch_hz) % 1
        return power[:3000][(phase > 0.3) & (phase < 0.7)].sum() / power[:3000].sum()

    clear, airy, whisper = (noise_share(level) for level in (0.0, 0.4, 0.9))
    assert clear < 0.01 < 0.04 < airy < whisper


def test_brightness_tilts_the_spectrum_without_changing_the_level():
    dark, neutral, bright = (spoken(brightness=level) for level in (-0.8, 0.0, 0.8))
    assert centroid_hz(dark) < 0.8 * centroid_hz(neutral) < 0.8 * 0.8 * centroid_hz(bright)
    assert rms(dark) == pytest.approx(rms(bright), rel=0.02)


def test_syllables_are_audible_when_the_mouth_opens():
    performance = Performance(3.0, Identity(1), voice=Voice(syllable_rate_hz=4.0), text="papa")
    sound = render_voice(performance, rate_hz=RATE_HZ)
    for syllable in syllables(performance):
        start, stop = round(syllable.start_s * RATE_HZ), round(syllable.stop_s * RATE_HZ)
        onset, vowel = sound[start : start + 400], sound[(start + stop) // 2 : (start + stop) // 2 + 800]
        assert rms(vowel) > 4 * rms(onset)  # p is a silence before a burst


def test_vowels_differ_in_their_formants():
    def peak_hz(vowel: str) -> float:
        """Centre of gravity above 800 Hz, where the second formant of i is far above that of u."""
        power = np.abs(np.fft.rfft(spoken(text=vowel))) ** 2
        frequencies = np.fft.rfftfreq(48000, 1 / RATE_HZ)
        high = (frequencies > 800) & (frequencies < 3500)
        return float((power * frequencies)[high].sum() / power[high].sum())

    assert peak_hz("i") > peak_hz("e") > peak_hz("a") > 900
    assert peak_hz("u") < peak_hz("e")
