"""The questions of zero-shot runs name what is shown and said, and nothing else."""

import itertools

import pytest

from affectgpt.metrics.extract import read_labels
from affectgpt.prompts import LABEL_LINE
from affectgpt.schema import LANGUAGES
from affectgpt.zeroshot import prompts

SHOWN = [("images",), ("sound",), ("images", "sound")]


@pytest.mark.parametrize(("lang", "shown"), itertools.product(LANGUAGES, SHOWN))
def test_a_question_has_the_subtitle_only_if_it_is_given(lang, shown):
    without = prompts.question("whole", shown, lang=lang)
    told = prompts.question("whole", shown, lang=lang, subtitle="Oh,\n great.")
    assert "great" not in without
    assert "Oh, great." in told
    assert LABEL_LINE[lang].strip() in without


@pytest.mark.parametrize("lang", LANGUAGES)
def test_clues_leave_the_naming_of_labels_to_the_merger(lang):
    notes = {"audio": "A sigh {x}.", "video": "A smile."}
    for kind, shown in (("audio", ["sound"]), ("video", ["images"])):
        assert LABEL_LINE[lang].strip() not in prompts.question(kind, shown, lang=lang)
    merged = prompts.merge(notes, lang=lang, subtitle="Great.")
    assert all(text in merged for text in (*notes.values(), "Great.", LABEL_LINE[lang].strip()))
    assert "Great." not in prompts.merge(notes, lang=lang)


def test_questions_differ_by_what_is_shown_and_by_language():
    made = {prompts.question("whole", shown, lang=lang) for lang in LANGUAGES for shown in SHOWN}
    assert len(made) == 6


def test_an_answer_in_the_requested_form_is_parsed():
    assert read_labels("She smiles.\nEmotions: happy, proud").labels == ("happy", "proud")


def test_a_question_about_nothing_is_an_error():
    with pytest.raises(ValueError, match="neither media nor a subtitle"):
        prompts.question("whole", [])
    with pytest.raises(ValueError, match="unknown kind of question 'smell'"):
        prompts.question("smell", ["images"])
    with pytest.raises(ValueError, match=r"unknown notes \['smell'\]"):
        prompts.merge({"smell": "x"})


def test_whom_a_question_is_about_is_told_once_and_a_listener_does_not_speak():
    plain = prompts.question("whole", ["images"], subtitle="Fine.")
    for person in ("speaker", "listener"):
        told = prompts.question("whole", ["images"], subtitle="Fine.", person=person)
        about = f"The question is about the person who {'speaks' if person == 'speaker' else 'listens'}"
        rest = [line for line in told.splitlines() if not line.startswith(about)]
        assert len(rest) == len(told.splitlines()) - 1
        assert "\n".join(rest).replace("The other person says", "The person says") == plain
    merged = prompts.merge({"whole": "She smiles."}, subtitle="Fine.", person="listener")
    assert "What the other person says:\nFine." in merged
