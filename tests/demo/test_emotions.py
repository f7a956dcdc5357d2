from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from affectgpt.demo.emotions import (
    CHINESE,
    EXPRESSIONS,
    FEELINGS,
    GESTURES,
    INTENSITIES,
    PROSODIES,
    Scene,
    draw_scene,
    infer_feeling,
    labels_of,
    perform,
)
from affectgpt.demo.performance import ACTION_UNITS, sample_curve
from affectgpt.demo.text import LINES, N_LINES

SCENE = Scene("irony", "strong", "thanks", 0, opening=False, person=3, take=4)


def all_label_sets():
    for feeling in FEELINGS.values():
        for situation in feeling.when:
            for intensity in INTENSITIES:
                for opening in (False, True):
                    yield labels_of(feeling, intensity, situation, opening)


def test_there_are_far_more_than_forty_labels_each_with_its_own_chinese_translation():
    labels = {label for labels in all_label_sets() for label in labels}
    assert len(labels) >= 40
    assert labels == set(CHINESE)
    assert len(set(CHINESE.values())) == len(CHINESE)


def test_a_clip_has_one_to_nine_labels_mostly_two_to_four():
    counts = Counter(len(labels) for labels in all_label_sets())
    assert min(counts) >= 1
    assert max(counts) <= 9
    assert counts[2] + counts[3] + counts[4] > 0.7 * sum(counts.values())
    assert all(len(set(labels)) == len(labels) for labels in all_label_sets())


def test_no_single_modality_determines_the_feeling_but_face_and_voice_together_do():
    by_face, by_voice, by_words = defaultdict(list), defaultdict(list), defaultdict(list)
    for feeling in FEELINGS.values():
        by_face[feeling.expression].append(feeling.name)
        by_voice[feeling.prosody].append(feeling.name)
        for situation in feeling.when:
            by_words[situation].append(feeling.name)
    assert set(by_face) == set(EXPRESSIONS)
    assert set(by_voice) == set(PROSODIES)
    assert set(by_words) == set(LINES)
    assert min(map(len, by_face.values())) >= 3
    assert min(map(len, by_voice.values())) >= 3
    assert min(map(len, by_words.values())) >= 8
    pairs = Counter((feeling.expression, feeling.prosody) for feeling in FEELINGS.values())
    assert max(pairs.values()) == 1


def test_contradicting_modalities_give_labels_that_neither_gives_alone():
    irony, joy, flat = FEELINGS["irony"], FEELINGS["contentment"], FEELINGS["indifference"]
    assert irony.clash
    assert "sarcastic" in irony.labels
    assert "sarcastic" not in joy.labels + flat.labels
    assert sum(feeling.clash for feeling in FEELINGS.values()) >= 8


@pytest.mark.parametrize("feeling", FEELINGS.values(), ids=str)
def test_an_observer_of_true_clues_infers_the_true_feeling(feeling):
    for situation in feeling.when:
        assert infer_feeling(feeling.expression, feeling.prosody, situation) is feeling


def test_an_observer_of_the_face_alone_infers_a_feeling_with_that_expression():
    assert infer_feeling("grief", None, None).expression == "grief"


def test_gestures_use_action_units_that_the_face_can_show():
    assert {unit for gesture in GESTURES.values() for unit in gesture.units} <= set(ACTION_UNITS)
    assert {name for gestures in EXPRESSIONS.values() for name in gestures} <= set(GESTURES)


def test_the_same_scene_gives_the_same_performance_and_another_take_another():
    assert perform(SCENE, "Fine.") == perform(SCENE, "Fine.")
    assert perform(SCENE, "Fine.") != perform(replace(SCENE, take=5), "Fine.")


def test_a_strong_feeling_moves_the_face_more_than_a_mild_one():
    def peak(intensity):
        curve = perform(replace(SCENE, intensity=intensity), "Fine.").action_units["AU12"]
        return max(value for _, value in curve)

    assert peak("strong") > peak("clear") > peak("mild") > 0.3


def test_surprise_at_the_start_is_brief():
    units = perform(replace(SCENE, opening=True), "Fine.").action_units
    raised = sample_curve(units["AU02"], np.array([0.4, 2.0]))
    assert raised[0] > 0.7
    assert raised[1] < 0.1


def test_prosody_reaches_the_voice():
    def voice(feeling):
        return perform(Scene(feeling, "strong", "news", 0, False, 1, 1), "Fine.").voice

    assert voice("helplessness").tremor > 0.7
    assert len(voice("heartbreak").breaks) == 3
    assert voice("excitement").syllable_rate_hz > voice("sadness").syllable_rate_hz + 2
    loudness = [np.mean([value for _, value in voice(name).loudness_db]) for name in ("anger", "sadness")]
    assert loudness[0] > loudness[1] + 10
    assert np.std([value for _, value in voice("irony").pitch_ratio]) < 0.02


def test_an_unvoiced_scene_has_no_voice():
    assert perform(replace(SCENE, voiced=False), "Fine.").voice is None


def test_drawn_scenes_use_every_feeling_and_only_situations_it_occurs_in():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, person=n, n_lines=N_LINES) for n in range(1500)]
    assert {scene.feeling for scene in scenes} == set(FEELINGS)
    assert all(scene.situation in FEELINGS[scene.feeling].when for scene in scenes)
    assert all(-5 <= scene.valence <= 5 for scene in scenes)
