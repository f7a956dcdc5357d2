"""Groupings under a toy lexicon, and scores under them."""

import numpy as np
import pytest

from affectgpt.metrics.lexicon import Lexicon, Wheel, load_lexicon
from affectgpt.metrics.sets import set_score
from affectgpt.metrics.wheel import GROUPINGS, WheelGrouping, score_samples

WHEEL = Wheel.from_rows(
    [("sad", "tired", "numb"), ("sad", "hurt", "lonely"), ("happy", "proud", "brave"), ("happy", "calm", "safe")]
)
OTHER = Wheel.from_rows([("sad", "bored", "sad")])  # "sad" is at level 1 and again at level 3


def toy() -> Lexicon:
    wheel_words = {"weary": ("numb", "tired"), "bold": ("brave",), "alone": ("lonely",), "sad": ("sad",)}
    keys = {"wearily": ("weary",), "weary": ("bold", "weary"), "bold": ("bold",), "alone": ("alone",), "sad": ("sad",)}
    return Lexicon("toy", "1", "0" * 64, (WHEEL, OTHER, OTHER, OTHER, OTHER), wheel_words, keys)


def test_m1_takes_the_first_key_and_m2_its_first_wheel_word():
    groups = WheelGrouping(toy()).groups("weary")
    assert (groups["M1"], groups["M2"]) == ("bold", "brave")


def test_m3_takes_the_first_wheel_word_of_all_keys_that_is_on_the_wheel():
    grouping = WheelGrouping(toy())
    assert grouping.groups("weary")["M3-W1-L1"] == "happy"  # brave < numb < tired, although "wearily" is sad
    assert grouping.groups("wearily")["M3-W1-L1"] == "sad"
    assert grouping.groups("wearily")["M3-W1-L2"] == "tired"


def test_a_wheel_without_the_word_gives_no_group():
    assert "M3-W2-L1" not in WheelGrouping(toy()).groups("bold")


def test_a_level_1_word_is_in_its_first_child_and_the_last_position_counts():
    grouping = WheelGrouping(toy())
    assert grouping.groups("sad")["M3-W1-L2"] == "hurt"
    assert grouping.groups("sad")["M3-W2-L2"] == "bored"


def test_unknown_words_are_left_out():
    grouping = WheelGrouping(toy())
    assert grouping.map(["bold", "frobnicated", "ALONE "], "M3-W1-L1") == {"happy", "sad"}


def test_unknown_grouping_is_an_error_that_lists_the_groupings():
    with pytest.raises(ValueError, match=r"unknown grouping 'M4'; expected one of .*'M1'"):
        WheelGrouping(toy()).map(["bold"], "M4")


def test_score_samples_equals_mapping_each_grouping_by_hand():
    lexicon = load_lexicon("builtin")
    grouping = WheelGrouping(lexicon)
    rng = np.random.default_rng(0)
    words = [*sorted(lexicon.forms)[::97], "frobnicated", "neutral"]
    draw = [[words[i] for i in rng.integers(len(words), size=rng.integers(0, 4))] for _ in range(120)]
    truths, predictions = draw[:60], draw[60:]
    scores = score_samples(truths, predictions, grouping, GROUPINGS)
    for column, name in enumerate(GROUPINGS):
        pairs = [(grouping.map(t, name), grouping.map(p, name)) for t, p in zip(truths, predictions, strict=True)]
        expected = set_score(pairs)
        scored = scores[~np.isnan(scores[:, column, 0]), column]
        assert len(scored) == expected.n
        np.testing.assert_allclose(scored.mean(axis=0), [expected.precision, expected.recall], atol=1e-12)
