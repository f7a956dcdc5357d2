"""The label parser on a corpus of model outputs, and on properties that hold for any text."""

import random

import pytest

from affectgpt.metrics.extract import READINGS, read_labels
from affectgpt.metrics.lexicon import load_lexicon
from affectgpt.prompts import LABEL_LINE, LABEL_SEPARATOR
from affectgpt.schema import parse_label_list
from tests.metrics.extract_cases import CASES


def test_the_corpus_is_large_and_covers_every_reading():
    assert len(CASES) >= 340
    assert len({text for text, _, _ in CASES}) == len(CASES)
    assert {how for _, _, how in CASES} == set(READINGS)


@pytest.mark.parametrize(("text", "labels", "how"), CASES, ids=[repr(text[:40]) for text, _, _ in CASES])
def test_corpus(text, labels, how):
    reading = read_labels(text)
    assert (list(reading.labels), reading.how) == (labels.split("|") if labels else [], how)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_answer_format_of_the_prompts_reads_back_exactly(lang):
    words = {"en": ["happy", "in my feelings", "don't care"], "zh": ["开心", "松了一口气", "有成就感"]}[lang]
    text = "She smiles, or so it seems.\n" + LABEL_LINE[lang] + LABEL_SEPARATOR[lang].join(words)
    assert read_labels(text).labels == tuple(words)
    assert read_labels(LABEL_SEPARATOR[lang].join(words)).labels == tuple(words)


def test_a_printed_list_reads_back_exactly():
    for words in (["sad", "don't know"], ["o'clock"], ["out of control"], ["x"]):
        assert read_labels(str(words)).labels == parse_label_list(str(words)) == tuple(words)


EN, ZH = [], []
for form in load_lexicon("builtin").forms:
    (EN if form.isascii() else ZH).append(form)


@pytest.mark.parametrize(
    ("words", "separator", "template"),
    [
        *[(EN, ", ", each) for each in ("{}", "{}.", "Emotions: {}", "[{}]", "<answer>{}</answer>", "Final: [{}].")],
        *[(EN, ", ", each) for each in ("The emotional state is {}.", "He feels calmness, {}.")],
        *[(ZH, "，", each) for each in ("{}", "{}。", "情绪：{}", "【{}】", "她的情绪是{}。")],
        *[(ZH, "、", each) for each in ("{}", "情绪：{}")],
    ],
)
def test_a_list_of_words_of_the_lexicon_comes_back_complete(words, separator, template):
    phrases = [word for word in words if not word.isalpha()]
    order = random.Random(0).sample(phrases + random.Random(1).sample(words, min(len(words), 1000)), k=len(phrases))
    lists = [order[start : start + 5] for start in range(0, len(order), 5)]
    first = ["calmness"] if "calmness" in template else []
    for found in lists:
        expected = list(dict.fromkeys(first + found))
        assert list(read_labels(template.format(separator.join(found))).labels) == expected


@pytest.mark.parametrize("template", ["{}", "The emotional state is {}."])
def test_every_phrase_of_the_lexicon_alone_comes_back(template):
    for word in EN:
        if not word.isalpha():
            assert read_labels(template.format(word)).labels == (word,)


def test_exactly_the_readings_without_labels_give_none():
    for text, _, _ in CASES:
        reading = read_labels(text)
        assert (not reading.labels) == (reading.how in ("empty", "refusal", "nothing"))
        assert all(label == label.lower().strip() and label for label in reading.labels)
        assert len(set(reading.labels)) == len(reading.labels)


MARKUP = set('[]{}<>|"`*#$\\^~=@«»“”【】「」《》()（）\n\t\0\ufeff\u202e😊')


def test_no_label_of_the_corpus_contains_markup():
    for text, labels, _ in CASES:
        assert not set("".join(read_labels(text).labels)) & MARKUP, text
        assert not set(labels.replace("|", "")) & MARKUP


def test_no_label_contains_markup_and_random_text_is_read_without_an_error():
    rng = random.Random(0)
    pieces = [
        "Emotions:",
        "[",
        "]",
        "'",
        '"',
        "\n",
        "- ",
        "1. ",
        "情绪：",
        "，",
        "the emotional state is ",
        "sad",
        "**",
        "(",
        "\\",
        "是",
        "<answer>",
        "</answer>",
        "</think>",
        "<b",
        ">",
        "\\boxed{",
        "}",
        '{"emotion": ',
        "|",
        "---",
        "【",
        "」",
        "`",
        "(0.9)",
        "#",
        "$",
        "«",
        "😊",
        "\u202e",
        "[x] ",
        "](u)",
        "->",
        "null",
        "@",
        "^2",
        "=",
        "~",
    ]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        assert not any(set(label) & MARKUP for label in read_labels(text).labels), text


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "[" * 100_000,
        "{" * 100_000,
        "9" * 5000,
        "<" * 100_000,
        "1. " * 30_000,
        "[ ] " * 20_000,
        "=" * 99_999,
        "*" * 99_999,
        "*" * 20_000 + "emotion",
        "**- " * 20_000,
        "\nthe " * 20_000,
        "i'm sorry " * 10_000,
    ],
)
def test_hostile_text_is_read_fast(text):
    import time

    start = time.process_time()
    assert read_labels(text).labels == ()
    assert time.process_time() - start < 2.0


def test_long_text_is_read_fast():
    import time

    text = "The man speaks to the woman and she listens to him with her head bowed. " * 200 + "\nEmotions: sad"
    start = time.process_time()
    assert read_labels(text).labels == ("sad",)
    assert read_labels(text[:-14]).how == "nothing"
    assert time.process_time() - start < 1.0
