"""Facts of the sound against voices with known true values, and with other sound; real clips where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from affectgpt.annotate.evidence import phrase
from affectgpt.annotate.record import Fact
from affectgpt.annotate.sound import measure_sound, prosody, speaker_facts
from affectgpt.demo.performance import Identity, Performance, Voice, syllables
from affectgpt.demo.voice import render_voice
from affectgpt.media import Waveform, read_audio
from affectgpt.media.speech import RATE_HZ, Speech, find_speech

pytest.importorskip("silero_vad", reason="silero-vad is not installed (extra speech)")

LINE = "I can not believe that you really told him about it yesterday evening"
REAL = os.environ.get("AFFECTGPT_REAL_CLIPS", "")
needs_real = pytest.mark.skipif(
    not Path(REAL, "no_face.mp4").is_file(), reason="AFFECTGPT_REAL_CLIPS names no folder with no_face.mp4"
)
VOICE_FACTS = {"voice_s", "pitch_hz", "pitch_range_st", "syllable_rate_hz", "tremor_st", "pauses", "loudness_dbfs"}


def spoken(seed=0, **voice) -> Performance:
    return Performance(3.0, Identity(seed), voice=Voice(**voice), text=LINE)


def waveform(samples) -> Waveform:
    return Waveform(np.asarray(samples, np.float32), RATE_HZ, len(samples) / RATE_HZ, RATE_HZ, 1)


def facts_in(samples) -> dict[str, Fact]:
    sound = waveform(samples)
    return {fact.name: fact for fact in measure_sound(sound, find_speech(sound))[0]}


def facts_of(performance: Performance) -> dict[str, Fact]:
    return facts_in(render_voice(performance))


def with_noise(samples, snr_db, seed=0):
    noise = np.random.default_rng(seed).standard_normal(len(samples))
    return samples + noise * np.sqrt(np.mean(samples**2)) * 10 ** (-snr_db / 20)


def music(seconds, rate_hz=RATE_HZ):
    """Chords of three decaying notes with three harmonics each, half a second long."""
    times = np.arange(rate_hz // 2) / rate_hz
    chords = [(220, 277, 330), (247, 311, 370), (196, 247, 294), (175, 220, 262)]
    notes = [
        sum(np.sin(2 * np.pi * n * hz * times) / n for hz in chord for n in (1, 2, 3)) * np.exp(-2 * times)
        for chord in chords
    ]
    return 0.05 * np.resize(np.concatenate(notes), round(seconds * rate_hz))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("breathiness", [0.0, 0.6])
def test_pitch_is_within_one_percent_of_the_pitch_that_was_spoken(seed, breathiness):
    performance = spoken(seed, breathiness=breathiness)
    facts = facts_of(performance)
    assert facts["pitch_hz"].value == pytest.approx(performance.identity.base_pitch_hz, rel=0.01)
    assert facts["pitch_range_st"].value < 0.7


@pytest.mark.parametrize("seed", range(3))
def test_no_frame_of_speech_in_light_noise_is_an_octave_off(seed):
    performance = spoken(seed)
    sound = waveform(with_noise(render_voice(performance), 15))
    pitch = prosody(sound, Speech(((0.0, 3.0),), 3.0, "all of it")).pitch_hz
    octaves = np.log2(pitch[~np.isnan(pitch)] / performance.identity.base_pitch_hz)
    assert len(octaves) > 100
    assert np.abs(octaves).max() < 0.25


@pytest.mark.parametrize("rate_hz", [2.8, 4.2, 5.5, 7.0])
def test_the_speaking_rate_is_within_fifteen_percent_of_the_syllables_that_were_spoken(rate_hz):
    for seed in range(3):
        performance = spoken(seed, syllable_rate_hz=rate_hz)
        true_hz = len(syllables(performance)) / (3.0 - 2 * 0.12)
        assert facts_of(performance)["syllable_rate_hz"].value == pytest.approx(true_hz, rel=0.15)


def test_a_rising_voice_has_the_true_slope_and_range():
    facts = facts_of(spoken(pitch_ratio=((0.0, 0.8), (3.0, 1.25)), loudness_db=((0.0, -6.0), (3.0, 6.0))))
    assert facts["pitch_slope_st_s"].value == pytest.approx(12 * np.log2(1.25 / 0.8) / 3, rel=0.1)
    assert facts["loudness_slope_db_s"].value == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("seed", range(4))
def test_tremor_is_found_where_there_is_one_and_not_in_intonation(seed):
    shaking = facts_of(spoken(seed, tremor=0.6))
    assert 5.0 <= shaking["tremor_hz"].value <= 8.0  # the generator's range
    assert shaking["tremor_st"].value == pytest.approx(12 * np.log2(1 + 0.06 * 0.6), rel=0.25)
    melody = tuple((t / 10, 1 + 0.26 * np.sin(6 * t / 10)) for t in range(31))
    for voice in ({}, {"pitch_ratio": melody}, {"syllable_rate_hz": 7.0}, {"breathiness": 0.6}):
        assert "tremor_st" not in facts_of(spoken(seed, **voice))


def test_a_long_silence_is_a_pause_with_its_interval_and_a_short_one_a_break():
    facts = facts_of(spoken(breaks=((0.8, 1.15), (2.0, 2.2))))
    assert (facts["pauses"].value, facts["breaks"].value) == (1, 1)
    pause = facts["longest_pause_s"]
    assert (pause.start_s, pause.end_s) == pytest.approx((0.8, 1.15), abs=0.05)
    assert facts_of(spoken())["pauses"].value == 0


def test_music_noise_and_silence_give_no_fact_of_a_voice():
    rng = np.random.default_rng(0)
    sounds = {"music": music(3), "noise": 0.1 * rng.standard_normal(3 * RATE_HZ), "silence": np.zeros(3 * RATE_HZ)}
    for name, samples in {**sounds, "three samples": np.zeros(3)}.items():
        facts = facts_in(samples)
        assert facts["speech_s"].value == 0, name
        assert not set(facts) & VOICE_FACTS, name
        said = [phrase(fact) for fact in facts.values()]
        assert "no speech is heard" in said, name
        assert ("music-like sound (sustained tones)" in said) == (name == "music"), name
        assert ("no other sound is heard" in said) == (name == "silence"), name


def test_a_hum_and_a_test_tone_are_not_music():
    times = np.arange(3 * RATE_HZ) / RATE_HZ
    for harmonics in ((1,), range(1, 20)):
        hum = sum(0.1 / n * np.sin(2 * np.pi * 100 * n * times) for n in harmonics)
        assert facts_in(hum)["music_like_share"].value == 0


def test_what_is_not_reliable_with_the_other_sound_is_left_out_and_named():
    voice = render_voice(spoken())
    quiet, loud = (waveform(with_noise(voice, snr_db)) for snr_db in (30, 3))
    everything, nothing_out = measure_sound(quiet, Speech(((0.1, 2.9),), 3.0, "given"))
    rest, out = measure_sound(loud, Speech(((0.1, 2.9),), 3.0, "given"))
    assert {"pitch_hz", "pitch_range_st", "syllable_rate_hz"} <= {fact.name for fact in everything} - set(nothing_out)
    assert {"pitch_hz", "pitch_range_st", "syllable_rate_hz"} <= set(out)
    assert not {fact.name for fact in rest} & set(out)
    assert "other sound is about as loud as the speech" in [phrase(fact) for fact in rest]


def test_music_after_speech_changes_no_fact_of_the_voice():
    performance = spoken()
    alone = facts_of(performance)
    both = facts_in(np.concatenate([render_voice(performance), 0.1 * music(3)]))
    assert both["pitch_hz"].value == pytest.approx(alone["pitch_hz"].value, rel=0.01)
    assert both["pitch_range_st"].value == pytest.approx(alone["pitch_range_st"].value, abs=0.3)
    assert both["music_like_share"].value > 0.5
    assert both["speech_share"].value == pytest.approx(alone["speech_share"].value / 2, abs=0.05)


def test_long_sound_measured_in_blocks_gives_the_curves_of_its_parts():
    sound = render_voice(spoken())
    long = waveform(np.concatenate([sound] * 5))
    everywhere = Speech(((0.0, 15.0),), 15.0, "given")
    once, many = prosody(waveform(sound), everywhere).pitch_hz, prosody(long, everywhere).pitch_hz
    inner = slice(20, 280)  # away from the seams
    np.testing.assert_allclose(many[1200:1500][inner], once[inner], rtol=1e-3)


def test_speaker_facts_are_relative_to_the_usual_values_of_the_speaker():
    facts = facts_of(spoken())
    usual = {"pitch_hz": facts["pitch_hz"].value / 2, "loudness_dbfs": facts["loudness_dbfs"].value - 6}
    relative = {fact.name: fact.value for fact in speaker_facts(list(facts.values()), usual)}
    assert relative == {"pitch_vs_speaker_st": 12.0, "loudness_vs_speaker_db": 6.0}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_fact_has_a_complete_phrase_or_none(lang):
    for performance in (spoken(), spoken(tremor=0.9, breaks=((0.8, 1.2),)), spoken(syllable_rate_hz=7.0)):
        texts = [phrase(fact, lang) for fact in facts_of(performance).values()]
        assert any(texts)
        assert all(text is None or "{" not in text for text in texts)


@needs_real
@pytest.mark.parametrize("name", ["no_face.mp4", "face_noface.mov", "single_face.mp4", "WolfgangLanger_Pexels.mp4"])
def test_real_clips_without_speech_have_no_voice(name):
    facts = facts_in(read_audio(Path(REAL, name), RATE_HZ).samples)
    said = [phrase(fact) for fact in facts.values()]
    assert "no speech is heard" in said
    assert not set(facts) & VOICE_FACTS
    assert ("music-like sound (sustained tones)" in said) == (name in ("no_face.mp4", "face_noface.mov"))
