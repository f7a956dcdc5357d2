"""Measured evidence against voices and action units with known true values."""

from __future__ import annotations

import re

import numpy as np
import pytest

from affectgpt.annotate.evidence import UNITS, crop_facts, face_facts, phrase, prosody, sound_facts, speaker_facts
from affectgpt.annotate.record import Fact
from affectgpt.demo.performance import Identity, Performance, Voice, syllables
from affectgpt.demo.voice import render_voice
from affectgpt.media.openface import ActionUnits

LINE = "I can not believe that you really told him about it yesterday evening"
RATE_HZ = 16000


def spoken(seed=0, **voice) -> Performance:
    return Performance(3.0, Identity(seed), voice=Voice(**voice), text=LINE)


def facts_of(performance: Performance) -> dict[str, Fact]:
    return {fact.name: fact for fact in sound_facts(render_voice(performance), RATE_HZ)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("breathiness", [0.0, 0.6])
def test_pitch_is_within_one_percent_of_the_pitch_that_was_spoken(seed, breathiness):
    performance = spoken(seed, breathiness=breathiness)
    facts = facts_of(performance)
    assert facts["pitch_hz"].value == pytest.approx(performance.identity.base_pitch_hz, rel=0.01)
    assert facts["pitch_range_st"].value < 0.5


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


def test_silence_and_noise_have_no_pitch():
    assert [fact.name for fact in sound_facts(np.zeros(RATE_HZ, np.float32), RATE_HZ)] == ["voice_s"]
    assert [fact.name for fact in sound_facts(np.zeros(3, np.float32), RATE_HZ)] == ["voice_s"]
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32)
    assert "pitch_hz" not in {fact.name for fact in sound_facts(noise, RATE_HZ)}


def test_long_sound_measured_in_blocks_gives_the_curves_of_its_parts():
    sound = render_voice(spoken())
    long = np.concatenate([sound] * 5)
    once, many = prosody(sound, RATE_HZ).pitch_hz, prosody(long, RATE_HZ).pitch_hz
    inner = slice(20, 280)  # away from the seams
    np.testing.assert_allclose(many[1200:1500][inner], once[inner])


def table(n=10, *, confidence=None, success=None, **units) -> ActionUnits:
    ones = np.ones(n)
    return ActionUnits(
        frame=np.arange(1, n + 1),
        timestamp_s=np.arange(n) / 10,
        confidence=ones if confidence is None else np.array(confidence),
        success=ones.astype(bool) if success is None else np.array(success, bool),
        intensity={name: np.asarray(values, float) for name, values in units.items()},
        presence={},
    )


def test_the_peak_is_not_a_blink_a_lost_track_or_a_first_frame():
    smile = np.array([5, 5, 0, 0, 2, 3, 0, 5, 0, 4.0])
    blink = np.array([0, 0, 0, 5, 0, 0, 5, 0, 0, 0.0])
    confidence = np.array([1, 1, 1, 1, 1, 1, 1, 0.5, 1, 1])
    success = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    facts = {
        fact.name: fact for fact in face_facts(table(AU12=smile, AU45=blink, confidence=confidence, success=success))
    }
    assert facts["peak_s"].value == 0.5
    assert facts["AU12"].value == 3
    assert (facts["AU12"].start_s, facts["AU12"].end_s) == (0.4, 0.5)
    assert facts["face_tracked_share"].value == 0.8
    assert "AU45" not in facts


def test_units_below_trace_and_clips_without_a_tracked_face_give_no_unit():
    assert {fact.name for fact in face_facts(table(AU12=np.full(10, 0.9)))} == {"face_tracked_share", "peak_s"}
    lost = face_facts(table(AU12=np.full(10, 3.0), success=np.zeros(10)))
    assert [(fact.name, fact.value) for fact in lost] == [("face_tracked_share", 0.0)]
    assert phrase(lost[0]) == "no face could be tracked"
    assert phrase(crop_facts(np.zeros((8, 4, 4, 3), np.uint8))[0]) == "a face is in the picture"


def test_phrases_of_action_units_name_no_emotion():
    feelings = re.compile(r"happ|smil|sad|ang|fear|surpris|disgust|joy|worr|sorrow|contempt|喜|怒|哀|惧|惊|笑|悲|愁")
    for english, chinese in UNITS.values():
        assert not feelings.search(english), english
        assert not feelings.search(chinese), chinese


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
