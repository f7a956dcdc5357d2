"""What descriptions contain: questions are asked once for each text, and answers of the wrong form are counted."""

import pytest

from affectgpt.metrics import contents, load_lexicon
from affectgpt.schema import Clause
from tests.chat.asked import Asked

TEXTS = {"a": "Her brows rise.", "b": "He smiles.", "c": "  "}


@pytest.fixture
def lexicon():
    return load_lexicon()


def test_a_ranking_is_read_in_the_classes_of_the_truth(lexicon):
    client = Asked({"brows": '["surprised", "worried", "joyful"]', "smiles": "I cannot tell."})
    assert contents.rank_emotions(TEXTS, client, lexicon) == {
        "a": ("surprise", "worried", "happy"),
        "b": None,
        "c": None,
    }
    assert len(client.asked) == 2  # an empty description is not asked about
    assert "happy, angry, worried, sad, surprise, neutral" in client.asked[0]


def test_valences_and_clues_are_read_or_none():
    assert contents.estimate_valence(TEXTS, Asked({"brows": "-1.25", "smiles": "2 or 3"})) == {
        "a": -1.25,
        "b": None,
        "c": None,
    }
    for unreadable in ("[1]", "[" + "9" * 5000 + "]"):
        client = Asked({"brows": 'Here: ["raised brows"]', "smiles": unreadable})
        assert contents.list_visual_clues(TEXTS, client) == {"a": ("raised brows",), "b": None, "c": None}


def test_each_text_is_written_from_its_own_modality_only():
    descriptions = {
        "a": 'Her brows rise. In the audio, the voice trembles. In the text, she says "Go".',
        "b": "In the video, he smiles.",
    }
    client = Asked({"Voice: ": "from voice", "Words: ": "from words"})
    texts = contents.single_modality_texts(descriptions, {"a": "Go"}, client, "en")
    assert texts == {
        "CLUE-Text": {"a": "from words", "b": ""},  # nothing is said in b
        "CLUE-Audio": {"a": "from voice", "b": ""},
        "CLUE-Video": {"a": "Her brows rise.", "b": "In the video, he smiles."},
        "CLUE-Multi": descriptions,
    }
    words, voice = client.asked
    assert "trembles" not in words
    assert "brows" not in words + voice
    assert "trembles" in voice
    assert '"Go"' in voice


def test_chinese_descriptions_are_divided_at_their_sections():
    text = "在视频中，他皱眉。；在音频中，声音颤抖。；在文本中，字幕内容：“走吧。”这句话表示不满。；"
    client = Asked({"声音：": "声音与话语", "话语：": "话语"})
    texts = contents.single_modality_texts({"a": text}, {"a": "走吧。"}, client, "zh")
    assert texts["CLUE-Video"] == {"a": "在视频中，他皱眉。；"}
    assert "在音频中，声音颤抖。" in client.asked[1]


def test_clauses_that_are_known_are_taken_as_they_are():
    clauses = (Clause("The picture speaks.", "visual"), Clause("She frowns.", "acoustic"), Clause("Sad.", "inference"))
    texts = contents.single_modality_texts({"a": clauses}, {}, Asked({"Voice: She frowns.": "heard"}), "en")
    assert (texts["CLUE-Video"]["a"], texts["CLUE-Audio"]["a"]) == ("The picture speaks.", "heard")
    assert texts["CLUE-Multi"]["a"] == "The picture speaks. She frowns. Sad."
