"""The built-in lexicon: large enough, consistent, and right about words that other lexicons get wrong."""

import pytest

from affectgpt.metrics.lexicon import build, builtin, load_lexicon
from affectgpt.metrics.lexicon.tables import is_negated
from affectgpt.metrics.wheel import GROUPINGS, WheelGrouping

LEXICON = load_lexicon("builtin")
GROUPING = WheelGrouping(LEXICON)


def level1(word):
    return {name: group for name, group in GROUPING.groups(word).items() if name.endswith("L1")}


def test_is_at_least_as_large_as_the_published_lexicon():
    on_wheels = set().union(*(wheel.level1 for wheel in LEXICON.wheels))
    assert len(on_wheels) == 253
    assert len(LEXICON.wheel_words) >= 1255
    assert len(LEXICON.forms) >= 7356


def test_generated_file_is_up_to_date_with_its_sources():
    assert (builtin.FOLDER / "builtin.tsv").read_text(encoding="utf-8") == build.lexicon_text()


def test_an_edited_file_is_an_error(tmp_path, monkeypatch):
    for name in ("wheels.txt", "builtin.tsv"):
        (tmp_path / name).write_text((builtin.FOLDER / name).read_text(encoding="utf-8"), encoding="utf-8")
    with (tmp_path / "builtin.tsv").open("a", encoding="utf-8") as file:
        file.write("glum2\tsad\tglum2\n")
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"does not match its checksum .* run `python -m"):
        builtin.load_builtin.__wrapped__()


def test_wheel_sizes_are_those_of_the_published_wheels():
    assert [len(set(wheel.level1.values())) for wheel in LEXICON.wheels] == [6, 7, 6, 6, 6]
    assert [len(set(wheel.level2.values())) for wheel in LEXICON.wheels] == [36, 41, 36, 48, 36]


def test_every_wheel_word_keeps_its_cluster_on_every_wheel():
    for number, wheel in enumerate(LEXICON.wheels, 1):
        for word in wheel.level1:
            groups = GROUPING.groups(word)
            assert groups[f"M3-W{number}-L1"] == wheel.level1[word], (word, number)
            assert groups[f"M3-W{number}-L2"] == wheel.level2[word], (word, number)


@pytest.mark.parametrize(
    ("word", "same_as"),
    [
        *[("happiness", "happy"), ("unhappy", "sad"), ("angrily", "angry"), ("worries", "worried")],
        *[("Very sad", "sad"), ("a sense of loss", "loss"), ("slightly nervous", "nervous"), ("joyfulness", "joyful")],
        *[("humoured", "humored"), ("judgemental", "judgmental"), ("traumatised", "traumatized")],
        *[("Don’t care", "don't care"), ("grossed-out", "grossed out")],
        *[("开心", "happy"), ("有点难过的", "sad"), ("愤怒", "outraged"), ("害怕", "scared"), ("不开心", "unhappy")],
    ],
)  # fmt: skip
def test_forms_phrases_spellings_and_chinese_have_the_same_groups(word, same_as):
    assert LEXICON.kind(word) == "known"
    assert level1(word) == level1(same_as)


def test_fearless_is_not_fear_and_threatening_is_not_threatened():
    assert not set(LEXICON.synonym_keys("fearless")) & set(LEXICON.synonym_keys("fear"))
    assert level1("fearless")["M3-W2-L1"] == "happy"
    assert "fearless" not in LEXICON.synonym_keys("fear")
    assert level1("threatening")["M3-W1-L1"] == "mad"
    assert level1("threatened")["M3-W1-L1"] == "scared"


@pytest.mark.parametrize("word", ["neutral", "Neutral.", "no obvious emotion", "中性", "无明显情绪"])
def test_neutral_is_recognised_and_has_no_group(word):
    assert LEXICON.kind(word) == "neutral"
    assert GROUPING.groups(word) == {}


@pytest.mark.parametrize("word", ["not happy at all", "not angry", "without fear", "no joy", "不害怕", "没有生气"])
def test_a_negated_emotion_is_never_counted_as_the_emotion(word):
    assert is_negated(word.lower())
    assert LEXICON.kind(word) == "negated"


COMMON_CHINESE = (
    "开心", "高兴", "快乐", "幸福", "兴奋", "激动", "惊喜", "满意", "满足", "自豪",
    "骄傲", "感动", "感激", "期待", "希望", "平静", "放松", "好奇", "惊讶", "震惊",
    "疑惑", "困惑", "担心", "担忧", "焦虑", "紧张", "害怕", "恐惧", "不安", "难过",
    "悲伤", "伤心", "委屈", "失望", "沮丧", "无奈", "绝望", "痛苦", "孤独", "愤怒",
    "生气", "不满", "厌恶", "讨厌", "嫉妒", "轻蔑", "愧疚", "后悔", "尴尬", "害羞",
)  # fmt: skip


def test_knows_the_common_chinese_emotion_words():
    assert len(COMMON_CHINESE) >= 40
    assert [word for word in COMMON_CHINESE if LEXICON.kind(word) != "known"] == []


def test_a_known_word_has_a_group_under_every_grouping():
    assert set(GROUPING.groups("sad")) == set(GROUPINGS)


def test_an_unknown_lexicon_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match="'nowhere' is neither 'builtin' nor an existing folder"):
        load_lexicon("nowhere")
