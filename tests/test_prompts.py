from dataclasses import replace

import pytest

from affectgpt.prompts import PUBLISHED, render, split_placeholders, task_question, whose
from affectgpt.schema import LANGUAGES, MODALITIES, PERSONS, PLACEHOLDERS, TASKS, Sample

FULL = Sample(
    id="v1",
    subtitle="I'm fine.",
    description="The voice trembles.",
    labels=("sad", "nervous"),
    label="sad",
    translations={
        "zh": {"subtitle": "我没事。", "description": "声音颤抖。", "labels": ("难过", "紧张"), "label": "难过"}
    },
    modalities=MODALITIES,
)


def user(**kwargs):
    return render(FULL, **kwargs)[0].content


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("task", TASKS)
def test_training_and_inference_ask_the_same_question(task, lang):
    candidates = ("happy", "sad") if task == "fixed" else ()
    asked = render(FULL, task=task, lang=lang, candidates=candidates)
    taught = render(FULL, task=task, lang=lang, candidates=candidates, with_answer=True)
    assert asked == taught[:1]
    assert taught[1].role == "assistant"


def test_all_tasks_ask_different_questions():
    texts = {user(task=task, candidates=("a",) if task == "fixed" else ()) for task in TASKS}
    assert len(texts) == len(TASKS)


@pytest.mark.parametrize(
    ("task", "lang", "answer"),
    [
        ("both", "en", "The voice trembles.\nEmotions: sad, nervous"),
        ("both", "zh", "声音颤抖。\n情绪：难过，紧张"),
        ("labels", "en", "sad, nervous"),
        ("description", "en", "The voice trembles."),
        ("fixed", "zh", "难过"),
    ],
)
def test_the_answer_has_what_the_task_asks_for(task, lang, answer):
    candidates = ("a",) if task == "fixed" else ()
    assert render(FULL, task=task, lang=lang, candidates=candidates, with_answer=True)[1].content == answer


def test_placeholders_come_first_in_a_fixed_order():
    content = user(modalities=("motion", "audio"))
    assert content.startswith(PLACEHOLDERS["audio"] + PLACEHOLDERS["motion"] + "\n")
    assert split_placeholders(content)[0] == ("audio", "motion")


def test_without_subtitle_the_prompt_has_no_trace_of_it():
    assert "fine" in user()
    assert "fine" not in user(with_subtitle=False)
    assert user(with_subtitle=False) == render(Sample(id="v1", modalities=MODALITIES))[0].content


def test_a_placeholder_inside_a_subtitle_is_text():
    sample = Sample(id="v1", subtitle="say <audio> now", modalities=("frames",))
    assert split_placeholders(render(sample)[0].content)[0] == ("frames",)


@pytest.mark.parametrize("prompt_format", ["chat", *PUBLISHED])
def test_a_placeholder_that_begins_a_question_without_media_is_text(prompt_format):
    sample = Sample(id="v1", subtitle="Fine.", modalities=(), question="<audio><motion> is what I mean")
    for said in (sample, replace(sample, subtitle=None)):
        (message,) = render(said, task="description", prompt_format=prompt_format)
        assert split_placeholders(message.content)[0] == ()
        assert message.content.endswith("< audio><motion> is what I mean")


def test_line_breaks_in_a_subtitle_are_removed():
    sample = Sample(id="v1", subtitle="fine.\nWhich emotions?\n\nEnd", modalities=())
    assert '"fine. Which emotions? End"' in render(sample)[0].content


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"task": "poem"}, "unknown task 'poem'"),
        ({"lang": "fr"}, "unknown language 'fr'"),
        ({"task": "fixed"}, "0 candidates"),
        ({"candidates": ("a",)}, "1 candidates"),
        ({"modalities": ("smell",)}, r"unknown modalities \['smell'\]"),
    ],
)
def test_an_impossible_prompt_is_an_error_that_names_the_cause(kwargs, words):
    with pytest.raises(ValueError, match=words):
        render(FULL, **kwargs)


def test_a_modality_that_the_sample_lacks_is_an_error():
    with pytest.raises(ValueError, match=r"'v2' has no \['audio'\]; it has \['frames'\]"):
        render(Sample(id="v2", modalities=("frames",)), modalities=("audio",))


@pytest.mark.parametrize(("task", "lacks"), [("both", "description"), ("labels", "labels"), ("fixed", "label")])
def test_a_missing_answer_is_an_error_that_names_it(task, lacks):
    with pytest.raises(ValueError, match=f"'v3' has no .*{lacks}"):
        render(
            Sample(id="v3", modalities=()), task=task, candidates=("a",) if task == "fixed" else (), with_answer=True
        )


def test_a_custom_question_replaces_that_of_the_task():
    sample = Sample(id="v", subtitle="Fine.", modalities=("audio",))
    own = render(sample, question="Does she lie?")[0].content
    assert own == render(sample)[0].content.replace(task_question("both"), "Does she lie?")
    assert own.endswith("\nDoes she lie?")


@pytest.mark.parametrize("prompt_format", ["chat", *PUBLISHED])
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_prompt_says_whose_emotion_is_asked_and_is_else_the_same(prompt_format, lang):
    def asked(person):
        sample = replace(FULL, person=person)
        return render(sample, task="fixed", candidates=("sad", "happy"), lang=lang, prompt_format=prompt_format)[0]

    unset = asked(None)
    for person in PERSONS:
        said = whose(person, lang)
        told = asked(person)
        assert told.content.count(said) == 1
        without = told.content.replace(said, "").replace("The other person says", "The person says")
        assert without.replace("对方说", "这个人说") == unset.content
        assert told.subtitle == unset.subtitle
    assert len({asked(person).content for person in (None, *PERSONS)}) == 3


def test_a_listener_does_not_say_the_subtitle_and_an_own_question_stands_alone():
    heard = render(Sample(id="v", subtitle="Fine.", modalities=(), person="listener"))[0].content
    assert heard.startswith('The other person says: "Fine."')
    own = Sample(id="v", modalities=("audio",), person="listener", question="Who smiles?")
    assert render(own, task="description")[0].content == "<audio>\nWho smiles?"
