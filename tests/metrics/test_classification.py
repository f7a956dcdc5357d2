"""One-label scores against naive definitions, and the special cases that decide published results."""

import math
import random

import numpy as np
import pytest

from affectgpt.metrics.classification import (
    classify,
    hit_rate,
    pearson,
    score_sentiment,
    sentiment_of,
    to_class,
    top_k_accuracy,
)
from affectgpt.metrics.lexicon import load_lexicon

LEXICON = load_lexicon("builtin")
MER2023_CLASSES = ("worried", "happy", "neutral", "angry", "surprise", "sad")
DFEW_CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")


def naive_f1(truths, predictions, name):
    tp = sum(t == p == name for t, p in zip(truths, predictions, strict=True))
    fp = sum(p == name != t for t, p in zip(truths, predictions, strict=True))
    fn = sum(t == name != p for t, p in zip(truths, predictions, strict=True))
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def test_scores_equal_their_definitions_on_random_labels():
    rng = random.Random(1)
    classes = list("abcd")
    truths = rng.choices(classes, k=200)
    predictions = rng.choices([*classes, "?", None], k=200)
    result = classify(truths, predictions, classes)
    f1 = {name: naive_f1(truths, predictions, name) for name in classes}
    recall = {n: np.mean([p == n for t, p in zip(truths, predictions, strict=True) if t == n]) for n in classes}
    assert (
        result.accuracy
        == result.war
        == pytest.approx(np.mean([t == p for t, p in zip(truths, predictions, strict=True)]))
    )
    assert result.weighted_f1 == pytest.approx(sum(f1[n] * truths.count(n) for n in classes) / 200)
    assert result.macro_f1 == pytest.approx(np.mean(list(f1.values())))
    assert result.uar == pytest.approx(np.mean(list(recall.values())))
    assert result.unparsed == sum(p in ("?", None) for p in predictions) == result.confusion[:, -1].sum()
    assert result.confusion.sum() == result.n == 200


def test_a_class_without_true_samples_is_left_out_of_the_means():
    with_absent = classify(["a", "b"], ["a", "b"], ["a", "b", "never"])
    assert (with_absent.uar, with_absent.macro_f1, with_absent.weighted_f1) == (1.0, 1.0, 1.0)


def test_unparsed_is_wrong_and_never_neutral():
    result = classify(["neutral", "neutral"], [None, "gibberish"], MER2023_CLASSES)
    assert (result.accuracy, result.unparsed) == (0.0, 2)


def test_invalid_input_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"true labels \['x'\] are not among the classes \['a'\]"):
        classify(["x"], ["a"], ["a"])
    with pytest.raises(ValueError, match="1 truths and 0 predictions"):
        classify(["a"], [], ["a"])


def test_hit_rate_skips_unknown_truths_and_counts_a_missing_prediction_as_a_miss():
    result = hit_rate({"a": "happy", "b": "angry", "c": "neutral"}, {"a": ["glad", "sad"]}, LEXICON)
    assert result.rate == 0.5
    assert set(result.n.values()) == {2}
    assert result.rate_of_all == pytest.approx(1 / 3)


def test_sentiment_drops_zero_scores_and_reports_the_published_variant_separately():
    truths = {"a": 2.0, "b": -1.0, "c": 0.0, "d": -0.2, "e": 0.4}
    predictions = {"a": "positive", "b": "neutral", "c": "positive", "d": None, "e": "negative"}
    result = score_sentiment(truths, predictions)
    assert result.dropped_zero == 1
    assert (result.published.n, result.published.accuracy) == (4, 0.75)  # neutral and unreadable count as negative
    assert (result.strict.accuracy, result.strict.unparsed) == (0.25, 2)
    assert (result.neutral, result.unreadable) == (1, 1)
    with pytest.raises(ValueError, match=r"unknown sentiments \['great'\]; expected some of"):
        score_sentiment(truths, {"a": "great"})


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["positive"], "positive"),
        (["消极"], "negative"),
        (["joyful", "calm"], "positive"),
        (["furious"], "negative"),
        (["happy", "sad", "hurt"], "negative"),
        (["happy", "sad"], None),
        (["neutral"], "neutral"),
        (["frobnicated"], None),
        ([], None),
    ],
)
def test_sentiment_of_labels(labels, expected):
    assert sentiment_of(labels, LEXICON) == expected


@pytest.mark.parametrize(
    ("word", "classes", "expected"),
    [
        ("Worried", MER2023_CLASSES, "worried"),
        ("anxious", MER2023_CLASSES, "worried"),
        ("shocked", MER2023_CLASSES, "surprise"),
        ("mad", DFEW_CLASSES, "angry"),
        ("lonely", DFEW_CLASSES, "sad"),
        ("no obvious emotion", DFEW_CLASSES, "neutral"),
        ("frobnicated", DFEW_CLASSES, None),
    ],
)
def test_free_labels_to_classes(word, classes, expected):
    assert to_class([word], classes, LEXICON) == expected


def test_the_first_label_that_means_a_class_decides():
    assert to_class(["frobnicated", "furious", "happy"], DFEW_CLASSES, LEXICON) == "angry"


def test_pearson_equals_numpy_and_is_nan_for_a_constant():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=30), rng.normal(size=30)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert math.isnan(pearson([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ValueError, match="two or more pairs"):
        pearson([1], [1])


def test_top_k_grows_with_k():
    truths, rankings = ["a", "b", "c"], [["b", "a"], ["b"], []]
    values = [top_k_accuracy(truths, rankings, k) for k in (1, 2, 3)]
    assert values == sorted(values)
    assert values[1] == pytest.approx(2 / 3)
