import re

import numpy as np
import pytest

from affectgpt.demo import text
from affectgpt.demo.emotions import CHINESE, EXPRESSIONS, FEELINGS, GESTURES, PROSODIES, Scene, draw_scene
from affectgpt.demo.text import LINES, N_LINES, automatic_clues, checked_clues, describe, hide, subtitle_of

IRONY = Scene("irony", "clear", "thanks", 0, opening=False, person=1, take=1)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [draw_scene(rng, person=n, n_lines=N_LINES) for n in range(1500)]


def test_every_situation_has_as_many_lines_in_both_languages_and_none_twice():
    assert set(LINES) == {situation for feeling in FEELINGS.values() for situation in feeling.when}
    assert {len(lines) for lines in LINES.values()} == {N_LINES}
    for lang in (0, 1):
        lines = [pair[lang] for pairs in LINES.values() for pair in pairs]
        assert len(set(lines)) == len(lines)


def test_no_subtitle_names_a_feeling():
    for pairs in LINES.values():
        for english, chinese in pairs:
            assert not set(re.findall(r"\w+", english.lower())) & set(CHINESE)
            assert not any(name in chinese for name in CHINESE.values())


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_description_names_every_true_label_and_no_other(scenes, lang):
    rng = np.random.default_rng(0)
    for scene in scenes[:300]:
        clues = checked_clues(scene)
        conclusion = re.split(r"[.。]", describe(clues, lang, rng).rstrip(".。"))[-1]
        names = clues.labels if lang == "en" else text.labels_in_chinese(clues.labels)
        assert all(name in conclusion for name in names)
        if lang == "en":
            words = re.findall(r"[a-z-]+", conclusion.lower())
            assert {word for word in words if word in CHINESE} == set(names)


def test_a_description_has_visual_acoustic_and_lexical_clues_and_the_clash():
    english = describe(checked_clues(IRONY), "en", np.random.default_rng(0))
    assert "mouth" in english or "lip corners" in english
    assert "flat, even and toneless" in english
    assert "favour" in english
    assert "does not fit the flat voice" in english
    chinese = describe(checked_clues(IRONY), "zh", np.random.default_rng(0))
    assert all(words in chinese for words in ("嘴角", "平淡", "好意", "反话", "讽刺"))


def test_hidden_modalities_leave_no_trace_in_the_description(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes[:100]:
        clues = checked_clues(scene)
        assert "voice" not in describe(hide(clues, audio=True), "en", rng)
        assert "The words" not in describe(hide(clues, subtitle=True), "en", rng)
        assert not re.search(r"lips|brows|gaze|head", describe(hide(clues, video=True), "en", rng))


def test_wordings_vary(scenes):
    rng = np.random.default_rng(0)
    clues = checked_clues(scenes[0])
    assert len({describe(clues, "en", rng) for _ in range(40)}) > 10


def test_checked_clues_have_no_errors(scenes):
    for scene in scenes[:100]:
        clues = checked_clues(scene)
        assert not clues.errors
        assert clues.labels == scene.labels


def test_the_automatic_labeller_is_deterministic(scenes):
    assert [automatic_clues(scene) for scene in scenes[:50]] == [automatic_clues(scene) for scene in scenes[:50]]


def test_the_automatic_labeller_errs_at_the_documented_rates(scenes):
    observed = [(scene, automatic_clues(scene)) for scene in scenes]

    def share(name, among):
        return np.mean([any(error.startswith(name) for error in clues.errors) for _, clues in among])

    for confusions, name in ((text.EXPRESSION_CONFUSIONS, "expression"), (text.PROSODY_CONFUSIONS, "prosody")):
        for true, (_, rate) in confusions.items():
            among = [pair for pair in observed if getattr(FEELINGS[pair[0].feeling], name) == true]
            assert share(f"{name}: ", among) == pytest.approx(rate, abs=0.17)
    assert share("intensity", observed) == pytest.approx(text.INTENSITY_MISTAKEN, abs=0.05)
    opened = [pair for pair in observed if pair[0].opening]
    assert share("opening", opened) == pytest.approx(text.OPENING_MISSED, abs=0.12)
    # An invented clue that happens to be true is no error, hence a little below the rate.
    assert share("gesture invented", observed) == pytest.approx(text.GESTURE_INVENTED, abs=0.04)
    assert share("attribute invented", observed) == pytest.approx(text.ATTRIBUTE_INVENTED, abs=0.04)
    assert share("label invented", observed) == pytest.approx(text.LABEL_INVENTED, abs=0.04)


def test_recorded_errors_explain_every_difference(scenes):
    for scene in scenes[:300]:
        clues, true = automatic_clues(scene), checked_clues(scene)
        if not clues.errors:
            assert (clues.labels, clues.gestures, clues.attributes) == (true.labels, true.gestures, true.attributes)
        if not any(error.startswith("feeling") for error in clues.errors):
            assert clues.feeling.name == scene.feeling


def test_wrong_clues_lead_to_the_labels_that_they_imply(scenes):
    wrong = [automatic_clues(scene) for scene in scenes]
    wrong = [clues for clues in wrong if any(error.startswith("feeling") for error in clues.errors)]
    assert 0.2 < len(wrong) / len(scenes) < 0.6
    for clues in wrong:
        invented = [error.split(": ")[1] for error in clues.errors if error.startswith("label invented")]
        kept = [label for label in clues.labels if label not in invented]
        feeling = clues.feeling
        assert set(kept) <= {*feeling.labels, feeling.mild, feeling.strong, *feeling.when.values(), "surprised"}


def test_confusions_name_existing_patterns():
    assert set(text.EXPRESSION_CONFUSIONS) == set(EXPRESSIONS)
    assert {other for other, _ in text.EXPRESSION_CONFUSIONS.values()} <= set(EXPRESSIONS)
    assert set(text.PROSODY_CONFUSIONS) == set(PROSODIES)
    assert {other for other, _ in text.PROSODY_CONFUSIONS.values()} <= set(PROSODIES)
    assert set(text._GESTURES) == set(GESTURES)
    assert {word for prosody in PROSODIES.values() for word in prosody.attributes} == set(text._ATTRIBUTES)
    assert set(text._CLASHES) == {name for name, feeling in FEELINGS.items() if feeling.clash}


def test_subtitles_come_in_both_languages():
    assert subtitle_of(IRONY) == "You really did all this for me."
    assert subtitle_of(IRONY, "zh") == "这些真的都是你为我做的。"
