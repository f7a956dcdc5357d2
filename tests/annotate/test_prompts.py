"""Prompts in two languages, and answers of the right and the wrong form."""

from __future__ import annotations

import json
import re

import pytest

from affectgpt.annotate.prompts import PROMPTS, RANKED, BadAnswer, answer_schema, parse_answer, render_question, repair
from affectgpt.annotate.record import Fact

ABOUT = {
    "evidence": [
        Fact("pitch_hz", "acoustic", 200.0, "Hz"),
        Fact("loudness_dbfs", "acoustic", -20.0, "dBFS"),
        Fact("AU12", "visual", 2.0, "of 5", 0.4, 0.8),
    ],
    "clues": [{"modality": "visual", "text": "Her lips are parted."}, {"modality": "acoustic", "text": "A low voice."}],
    "transcript": "Fine,\n thanks.",
    "description": {"en": "She is at ease."},
}


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_renders_completely_in_both_languages(name, lang):
    text = render_question(name, lang, ABOUT)
    assert not re.search(r"\{[a-z_]+\}", text)
    assert bool(re.search("[\u4e00-\u9fff]", text)) == (lang == "zh")
    shown = json.loads(text[text.rindex("\n{") :])
    assert set(shown) == set(answer_schema(name, ABOUT, lang)["properties"])
    assert "JSON" not in render_question(name, lang, ABOUT, structured=False)
    enforced = render_question(name, lang, ABOUT, enforced=True)
    assert "{" not in enforced
    assert enforced.splitlines()[-1].rstrip(".。").endswith(", ".join(shown))


def test_a_schema_within_limits_accepts_only_what_the_answer_is_checked_for():
    plain, limited = (answer_schema("labels", ABOUT, within_limits=limits) for limits in (False, True))
    assert plain["properties"]["confidence"] == {"type": "number"}
    assert limited["properties"]["confidence"] == {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01}
    assert limited["properties"]["labels"]["maxItems"] == 16
    assert "pattern" in answer_schema("merge", ABOUT, within_limits=True)["properties"]["description"]
    assert "pattern" not in answer_schema("visual", ABOUT, within_limits=True)["properties"]["end"]  # may be empty
    assert "pattern" not in answer_schema("merge", ABOUT)["properties"]["description"]


def test_facts_are_only_in_the_question_about_their_modality():
    assert "- AU12: lip corners pulled up (0.4-0.8 s)" in render_question("visual", "en", ABOUT)
    assert "pitch_hz" not in render_question("visual", "en", ABOUT)
    heard = render_question("acoustic", "en", ABOUT)
    assert "- pitch_hz: median pitch 200 Hz" in heard
    assert "- loudness_dbfs: -20 dBFS" in heard
    assert "evidence" not in answer_schema("acoustic", {})["properties"]  # no facts, so no field for them


def test_clues_and_transcript_are_in_the_text_questions_one_line_each():
    text = render_question("disambiguate", "en", ABOUT)
    assert "Seen:\nHer lips are parted." in text
    assert "What the person says:\nFine, thanks." in text
    assert "Description:\nShe is at ease." in render_question("translate", "zh", ABOUT).replace(
        "描述：", "Description:"
    )


def test_a_good_answer_is_parsed_also_in_a_fence_or_between_words():
    fields = {"clue": " A low voice. ", "evidence": ["pitch_hz", "pitch_hz"]}
    expected = {"clue": "A low voice.", "evidence": ["pitch_hz"]}
    for text in (json.dumps(fields), f"Sure!\n```json\n{json.dumps(fields)}\n```"):
        assert parse_answer("acoustic", text, ABOUT) == expected


@pytest.mark.parametrize(
    ("name", "answer", "problem"),
    [
        ("acoustic", "I cannot hear it.", "no JSON object in it"),
        ("acoustic", '{"clue": "low"', "no JSON object in it"),
        ("acoustic", '{"clue": "low",}', "not JSON"),
        ("acoustic", '{"clue":' * 100_000 + "}" * 100_000, "nested too deeply"),
        ("acoustic", '{"clue": ' + "9" * 5000 + "}", "a number of thousands of digits"),
        ("acoustic", {"clue": "low"}, "evidence must be a list of words, found None"),
        ("acoustic", {"clue": "", "evidence": []}, "are empty"),
        ("acoustic", {"clue": 3, "evidence": []}, "clue must be a text, found 3"),
        ("acoustic", {"clue": "low", "evidence": ["AU12"]}, r"\['AU12'\] are no measured facts"),
        ("acoustic", {"clue": "low", "evidence": [], "more": 1}, r"\['more'\] were not asked for"),
        ("acoustic", {"clue": "low \ud83d", "evidence": []}, "clue is not Unicode text: half of a surrogate pair"),
        ("labels", {"labels": ["sad \ud83d"], "confidence": 1}, "labels is not Unicode text: half of a surrogate pair"),
        ("labels", {"labels": "sad", "confidence": 1}, "labels must be a list of words"),
        ("labels", {"labels": ["sad"], "confidence": 3}, "confidence must be a number from 0 to 1, found 3"),
        ("valence", {"valence": -6}, "valence must be a number from -5 to 5, found -6"),
        ("valence", {"valence": True}, "valence must be a number"),
        ("ranking", {"ranking": ["joyful"]}, r"\['joyful'\] are none of"),
    ],
)
def test_an_answer_of_the_wrong_form_is_an_error_with_the_reason(name, answer, problem):
    text = answer if isinstance(answer, str) else json.dumps(answer)
    with pytest.raises(BadAnswer, match=problem) as caught:
        parse_answer(name, text, ABOUT)
    assert str(caught.value) in repair(caught.value, "en")


def test_parts_of_the_visual_clue_may_be_empty():
    fields = {"beginning": "", "middle": "Brows lowered.", "end": "", "evidence": []}
    assert parse_answer("visual", json.dumps(fields), ABOUT)["middle"] == "Brows lowered."


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("acoustic", " A low voice. ", {"clue": "A low voice."}),
        ("labels", "sad, tired；难过。", {"labels": ["sad", "tired", "难过"]}),
        ("valence", "I would say -2.5 of 5.", {"valence": -2.5}),
        ("merge", "She is tired.", {"description": "She is tired."}),
    ],
)
def test_plain_text_is_parsed_for_models_without_json(name, text, expected):
    assert parse_answer(name, text, ABOUT, structured=False) == expected


def test_plain_text_without_the_requested_field_is_an_error():
    with pytest.raises(BadAnswer, match="valence must be a number"):
        parse_answer("valence", "rather pleasant", ABOUT, structured=False)
    with pytest.raises(BadAnswer, match="are empty"):
        parse_answer("merge", "  ", ABOUT, structured=False)


def test_the_schema_is_strict_and_lists_the_values_of_closed_sets():
    form = answer_schema("ranking", ABOUT, "zh")
    assert form["additionalProperties"] is False
    assert form["required"] == ["ranking"]
    assert form["properties"]["ranking"]["items"]["enum"] == list(RANKED["zh"])
    assert answer_schema("visual", ABOUT)["properties"]["evidence"]["items"]["enum"] == ["AU12"]
