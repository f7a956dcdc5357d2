"""Scores of explanations and probes against cases made by hand, in English and Chinese."""

import numpy as np
import pytest

from affectgpt.metrics.lexicon import load_lexicon
from affectgpt.metrics.reasoning import (
    explanation_scores,
    graded_clues,
    hallucination,
    pair_accuracy,
    parse_yes_no,
    probe_scores,
    score_explanations,
    supported_share,
    wheel_agreement,
)
from affectgpt.metrics.stats import Rate
from affectgpt.schema import Prediction

#            truth    prediction  explanation   EEA EPC FCR
CASES = {
    "right": ("sad", "sad", "Sad"),          #  1   1   1
    "lucky": ("sad", "sad", "happy"),        #  0   0   0   right label, wrong reasons
    "misread": ("sad", "happy", "sad"),      #  1   0   0   right reasons, wrong label
    "consistent": ("sad", "happy", "happy"), #  0   1   0   both wrong, but together
    "silent": ("sad", "sad", None),          #  0   0   0
}  # fmt: skip


def columns(*places):
    return [{name: case[place] for name, case in CASES.items()} for place in places]


def test_eea_epc_and_fcr_are_shares_of_all_clips_with_a_truth():
    scores = explanation_scores(*columns(0, 1, 2))
    assert (scores.eea, scores.epc, scores.fcr, scores.accuracy) == (Rate(2, 5), Rate(2, 5), Rate(1, 5), Rate(3, 5))
    assert scores.without_emotion == 1
    more = explanation_scores({**columns(0)[0], "unknown": None, "empty": []}, *columns(1, 2))
    assert more == scores


def test_fcr_is_at_most_eea_and_at_most_accuracy():
    rng = np.random.default_rng(0)
    words = ["sad", "happy", "angry", "neutral"]
    for _ in range(20):
        truths, predictions, explained = ({n: rng.choice(words) for n in map(str, range(12))} for _ in range(3))
        scores = explanation_scores(truths, predictions, explained)
        assert scores.fcr.count <= min(scores.eea.count, scores.accuracy.count)
    assert explanation_scores(truths, truths, truths).fcr.value == 1.0


def test_open_labels_agree_by_the_categories_of_the_wheels_in_both_languages():
    agree = wheel_agreement(load_lexicon())
    truths = {"a": ["angry", "hurt"], "b": ["开心"], "c": ["frobnicated"]}
    explained = {"a": ["furious"], "b": ["joyful", "难过"], "c": ["Frobnicated"]}
    scores = explanation_scores(truths, {"a": ["mad"], "b": ["伤心"], "c": []}, explained, agree=agree)
    assert (scores.eea, scores.epc, scores.fcr) == (Rate(3, 3), Rate(2, 3), Rate(1, 3))
    assert explanation_scores(truths, {}, explained).eea == Rate(1, 3)  # without the wheels: words


def test_explanations_of_answers_are_scored_by_their_emotion_words_in_english_and_chinese():
    texts = {
        "right": ("He shouts. The person seems furious.\nEmotions: angry", "en", "both"),
        "lucky": ("She laughs, which indicates joy.\nEmotions: angry", "en", "both"),
        "zh": ("他大声喊叫。这个人显得很生气。\n情绪：生气", "zh", "both"),
        "silent": ("A man stands in a room.\nEmotions: angry", "en", "both"),
        "neutral": ("He seems furious.\nEmotions: angry", "en", "both"),
        "labels": ("Emotions: angry", "en", "labels"),
    }
    rows = [Prediction(name, text, lang=lang, task=task) for name, (text, lang, task) in texts.items()]
    references = {**dict.fromkeys(texts, ("mad",)), "neutral": ("neutral",)}
    labels = {name: ("angry",) if name != "zh" else ("生气",) for name in texts}
    scores = score_explanations(rows, references, labels, load_lexicon())
    assert (scores.eea, scores.epc, scores.fcr, scores.accuracy) == (Rate(2, 4), Rate(2, 4), Rate(2, 4), Rate(4, 4))
    assert scores.without_emotion == 1
    assert score_explanations(rows[4:], references, labels, load_lexicon()) is None


def test_no_truth_is_an_error():
    with pytest.raises(ValueError, match="no clip has a true emotion"):
        explanation_scores({"a": None}, {}, {})


@pytest.mark.parametrize(
    ("sentences", "truth", "share"),
    [
        ([{"sad"}, {"sad", "angry"}, {"happy"}], "sad", 2 / 3),
        ([{"neutral"}, set(), {"sad"}], "sad", 1.0),  # neutral sentences do not count
        ([{"neutral"}, set(), {"sad"}], "neutral", 2 / 3),  # unless the truth is neutral
        ([{"neutral"}, set()], "sad", None),
        ([], "neutral", None),
    ],
)
def test_the_share_of_sentences_that_support_the_truth(sentences, truth, share):
    assert supported_share(sentences, truth) == (pytest.approx(share) if share is not None else None)


def test_mentions_of_what_is_not_in_the_clip_are_counted_by_mention_and_by_answer():
    mentioned = {"a": ["tears", "Tears", "frown"], "b": ["颤抖的声音"], "c": []}
    present = {"a": ["tears"], "b": ["颤抖的声音", "停顿"], "c": ["smile"], "d": []}
    result = hallucination(mentioned, present)
    assert (result.mentions, result.answers, result.without_mention) == (Rate(1, 3), Rate(1, 2), 1)
    assert result.most_frequent == {"frown": 1}
    with pytest.raises(ValueError, match="1 answers have no reference of what is in the clip, the first is 'x'"):
        hallucination({"x": ["a"]}, present)


def test_a_model_that_always_agrees_has_recall_1_a_yes_bias_and_no_correct_pair():
    truths = {"a": True, "a2": False, "b": True, "b2": False}
    pairs = [("a", "a2"), ("b", "b2")]
    agreeing = probe_scores(truths, dict.fromkeys(truths, "Yes, it is."))
    assert (agreeing.accuracy, agreeing.precision, agreeing.recall) == (Rate(2, 4), 0.5, 1.0)
    assert (agreeing.yes_bias, agreeing.unreadable) == (0.5, 0)
    assert pair_accuracy(pairs, truths, dict.fromkeys(truths, "yes")) == Rate(0, 2)
    assert pair_accuracy(pairs, truths, truths) == Rate(2, 2)


def test_an_unreadable_or_missing_probe_is_wrong_and_neither_yes_nor_no():
    scores = probe_scores({"a": True, "b": False, "c": False}, {"a": "I cannot tell.", "b": "no"})
    assert (scores.accuracy, scores.unreadable, scores.precision, scores.yes_bias) == (Rate(1, 3), 2, None, -1 / 3)
    nothing = probe_scores({"a": False}, {})
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.yes_bias) == (None, None, None, None)
    with pytest.raises(ValueError, match="no yes/no questions"):
        probe_scores({}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[
            (text, True)
            for text in ("yes", "Yes.", "'Yes'", "True", "The answer is yes.", "是", "有，他在哭", "答案：对")
        ],
        *[
            (text, False)
            for text in ("no", "No, she smiles.", "Not at all", "false", "不是", "没有", "否", "回答：不会")
        ],
        *[
            (text, None)
            for text in (
                "",
                "Nobody cries",
                "yesterday",
                "Trueish",
                "maybe",
                "也许",
                "Not sure.",
                "No idea",
                "对不起",
                "不确定",
                "没办法判断",
                "是否如此？",
            )
        ],
    ],
)
def test_yes_and_no_are_read_at_the_start_only(text, expected):
    assert parse_yes_no(text) is expected


def test_graded_clues_are_0_below_the_threshold_and_average_over_modalities():
    assert graded_clues({"visual": np.array([[1.0, 0.5], [0.2, 0.4]])}) == 0.5
    both = {"visual": np.array([[1.0]]), "acoustic": np.array([[0.3]]), "lexical": np.zeros((1, 0))}
    assert graded_clues(both) == 0.5
    assert graded_clues({"visual": np.zeros((0, 2))}) == 0.0  # clues, but no sentence
    assert graded_clues({"visual": np.zeros((3, 0))}) is None
