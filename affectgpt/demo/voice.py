"""Synthesize the voice of a `Performance`: a time-varying glottal source and formant filters (Fant 1960).

Speech is not intelligible: vowels and consonant classes follow the text, everything else follows the feeling.
"""

from __future__ import annotations

import numpy as np

from affectgpt.demo.performance import VOWELS, Performance, Syllable, sample_curve, syllables

RMS_AT_0_DB = 0.1
"""Root mean square of speech at 0 dB; full scale is 1."""

_CONTROL_S = 0.004  # step of pitch and amplitude
_WINDOW = 512  # samples of one filter frame
_HOP = 128
_FORMANTS = ((1.0, 90.0), (0.63, 120.0), (0.32, 180.0), (0.16, 300.0))  # amplitude, half width in Hz
_FOURTH_FORMANT_HZ = 3500.0


def render_voice(performance: Performance, *, rate_hz: int = 16000) -> np.ndarray | None:
    """The waveform of a clip -> float32 [S] in -1..1, S = duration_s * rate_hz; None without a voice.

    Deterministic. A text without syllables gives silence.
    """
    voice = performance.voice
    if voice is None:
        return None
    n_samples = max(1, round(performance.duration_s * rate_hz))
    spoken = syllables(performance)
    if not spoken:
        return np.zeros(n_samples, np.float32)
    rng = performance.identity.rng("voice")
    times = np.arange(n_samples) / rate_hz  # [S]
    steps = np.arange(0.0, performance.duration_s + 2 * _CONTROL_S, _CONTROL_S)  # [C]

    # Tremor modulates pitch and loudness at 5 to 8 Hz.
    shake = voice.tremor * np.sin(2 * np.pi * rng.uniform(5.5, 7.5) * steps + rng.uniform(0, 2 * np.pi))
    jitter = 0.004 * np.convolve(rng.standard_normal(len(steps)), np.ones(4) / 2, "same")
    pitch_hz = performance.identity.base_pitch_hz * sample_curve(voice.pitch_ratio, steps) * (1 + 0.06 * shake + jitter)
    voiced, noisy = _amplitudes(spoken, steps)
    voiced *= 1 + 0.45 * shake

    pulses = _glottal_source(np.interp(times, steps, pitch_hz.clip(40.0, 1000.0)), rate_hz)  # [S]
    hum = pulses * np.interp(times, steps, voiced)
    source = np.stack([hum * (1 - 0.6 * voice.breathiness), rng.standard_normal(n_samples)])  # [2, S]
    centres = np.arange(n_samples // _HOP + _WINDOW // _HOP + 1) * _HOP / rate_hz - _WINDOW / 2 / rate_hz  # [F]
    tract = _formant_gains(spoken, centres, performance.identity.formant_scale, voice.brightness, rate_hz)  # [F, B]
    hiss = np.linspace(0, 1, tract.shape[1]) ** 2  # [B] consonants live above 2 kHz
    breath = (0.03 + 0.9 * voice.breathiness**1.5) * np.interp(centres, steps, voiced)  # [F]
    noise = breath[:, None] * tract + 0.5 * np.interp(centres, steps, noisy)[:, None] * hiss
    sound = _filter(source, np.stack([tract, noise]))

    speaking_s = sum(syllable.stop_s - syllable.start_s for syllable in spoken)
    sound *= RMS_AT_0_DB * np.sqrt(speaking_s * rate_hz / np.sum(sound**2))
    sound *= 10 ** (np.interp(times, steps, sample_curve(voice.loudness_db, steps)) / 20)
    for start_s, stop_s in voice.breaks:
        sound[max(0, round(start_s * rate_hz)) : max(0, round(stop_s * rate_hz))] = 0
    return _limit(sound).astype(np.float32)


def _amplitudes(spoken: tuple[Syllable, ...], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of voicing and of consonant noise at `times` -> two float64 [C]."""
    voiced, noisy = [(-1.0, 0.0)], [(-1.0, 0.0)]
    for start_s, stop_s, _, onset in spoken:
        length_s = stop_s - start_s
        vowel_s = start_s + (min(0.06, 0.3 * length_s) if onset else 0.0)
        if start_s - voiced[-1][0] > 0.03:  # after a pause
            voiced += [(voiced[-1][0] + 0.015, 0.0), (start_s - 0.01, 0.0)]
        low = 0.0 if onset == "stop" else 0.1 if onset else 0.25
        rise_s, fall_s = min(0.03, 0.2 * length_s), min(0.05, 0.25 * length_s)
        voiced += [(start_s, low), (vowel_s, low), (vowel_s + rise_s, 1.0), (stop_s - fall_s, 0.9), (stop_s, 0.25)]
        if onset == "stop":  # silence and a burst
            noisy += [(vowel_s - 0.03, 0.0), (vowel_s - 0.012, 1.0), (vowel_s + 0.015, 0.0)]
        elif onset == "fricative":
            noisy += [(start_s, 0.0), ((start_s + vowel_s) / 2, 1.0), (vowel_s + 0.015, 0.0)]
    voiced.append((voiced[-1][0] + 0.015, 0.0))
    return sample_curve(tuple(voiced), times), sample_curve(tuple(noisy), times)


def _glottal_source(pitch_hz: np.ndarray, rate_hz: int) -> np.ndarray:
    """A pulse train with this pitch, [S] -> [S]; harmonics fall by 6 dB per octave (glottis and lip radiation)."""
    n_harmonics = max(4, int(0.45 * rate_hz / pitch_hz.max()))
    order = np.arange(1, n_harmonics + 1)
    spectrum = np.zeros(2049, complex)
    # Schroeder phases (1970) spread each pulse over its period: same spectrum, lower crest factor.
    spectrum[1 : n_harmonics + 1] = np.exp(-1j * np.pi * order * (order - 1) / n_harmonics) / order
    period = np.fft.irfft(spectrum)  # [4096]
    phase = np.cumsum(pitch_hz) / rate_hz
    return period[(phase % 1 * len(period)).astype(np.int64)] / period.std()


def _formant_gains(
    spoken: tuple[Syllable, ...], times: np.ndarray, scale: float, brightness: float, rate_hz: int
) -> np.ndarray:
    """Gain of the vocal tract at `times`, for each frequency of a filter frame -> [F, B]."""
    # Formants are constant for 40 % of a syllable and then move to those of the next.
    knots = np.array(
        [(s.start_s + share * (s.stop_s - s.start_s), *VOWELS[s.vowel]) for s in spoken for share in (0.3, 0.7)]
    )  # [2 * syllables, 4]
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / rate_hz)  # [B]
    gains = np.full((len(times), len(frequencies)), 0.02)
    for number, (amplitude, half_width_hz) in enumerate(_FORMANTS):
        if number < 3:
            centre_hz = scale * np.interp(times, knots[:, 0], knots[:, number + 1])[:, None]  # [F, 1]
        else:
            centre_hz = np.array([[scale * _FOURTH_FORMANT_HZ]])
        gains += amplitude / (1 + ((frequencies - centre_hz) / half_width_hz) ** 2)
    # Brightness changes the spectral tilt by up to 5 dB per octave.
    return gains * (frequencies.clip(100) / 500) ** (0.83 * brightness)


def _filter(sources: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Filter each source by its gains (overlap-add of short-time spectra) and sum.  [N, S], [N, F, B] -> [S]"""
    n_samples, n_frames = sources.shape[1], gains.shape[1]
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW))
    padded = np.pad(sources, ((0, 0), (_WINDOW, n_frames * _HOP)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, : n_frames * _HOP : _HOP]  # [N, F, W]
    spectra = np.fft.rfft(frames * window)  # [N, F, B]
    filtered = np.fft.irfft((spectra * gains).sum(axis=0), _WINDOW) * window  # [F, W]
    sound = np.zeros((n_frames + _WINDOW // _HOP, _HOP))
    for part in range(_WINDOW // _HOP):
        sound[part : part + n_frames] += filtered[:, part * _HOP : (part + 1) * _HOP]
    return sound.reshape(-1)[_WINDOW : _WINDOW + n_samples]


def _limit(sound: np.ndarray, knee: float = 0.7) -> np.ndarray:
    """Soft-clip samples above `knee` below full scale; other samples are unchanged."""
    excess = np.abs(sound) - knee
    return np.where(excess > 0, np.sign(sound) * (knee + (0.99 - knee) * np.tanh(excess / (0.99 - knee))), sound)
