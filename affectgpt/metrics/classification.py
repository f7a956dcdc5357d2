"""Scores against fixed labels: hit rate, sentiment, classification, valence, ranked lists.

Predictions that could not be parsed are a class of their own (UNPARSED); they are never counted as neutral.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt.metrics.lexicon import Lexicon
from affectgpt.metrics.stats import Interval, percentile_interval
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping
from affectgpt.runtime import InputError

UNPARSED = "unparsed"


@dataclass(frozen=True)
class Classification:
    """Scores of one-label predictions, as fractions of 1.

    Attributes:
        accuracy: share of exact matches (WAR, weighted average recall, is the same number).
        weighted_f1, macro_f1: F1 averaged over the classes that occur in the truth, weighted by class size or not.
        uar: unweighted average recall, the mean recall over the classes that occur in the truth.
        classes: the rows of `confusion`; its columns are the classes and UNPARSED.
        confusion: counts [n_classes, n_classes + 1], rows = truth.
        unparsed: predictions outside the classes.
    """

    accuracy: float
    weighted_f1: float
    macro_f1: float
    uar: float
    n: int
    unparsed: int
    classes: tuple[str, ...]
    confusion: np.ndarray

    @property
    def war(self) -> float:
        return self.accuracy


def classify(truths: Sequence[str], predictions: Sequence[str | None], classes: Sequence[str]) -> Classification:
    """Score single labels; a prediction that is None or outside `classes` counts as UNPARSED, and as wrong.

    Classes that do not occur in the truth are left out of the means.

    >>> result = classify(["sad", "sad", "happy", "angry"], ["sad", "happy", "happy", "???"], ["happy", "sad", "angry"])
    >>> result.accuracy, round(result.uar, 4), round(result.weighted_f1, 4), result.unparsed
    (0.5, 0.5, 0.5, 1)

    Raises:
        InputError: no samples, different lengths, or a truth outside the classes.
    """
    if len(truths) != len(predictions) or not truths:
        raise InputError(f"{len(truths)} truths and {len(predictions)} predictions; expected as many, at least 1")
    columns = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(truths) - set(columns)):
        raise InputError(f"true labels {unknown} are not among the classes {list(classes)}")
    confusion = np.zeros((len(classes), len(classes) + 1), dtype=int)
    for truth, prediction in zip(truths, predictions, strict=True):
        confusion[columns[truth], columns.get(prediction or "", len(classes))] += 1

    support = confusion.sum(axis=1).astype(float)  # [C]
    hits = np.diagonal(confusion).astype(float)  # [C]
    predicted = confusion[:, :-1].sum(axis=0).astype(float)  # [C]
    present = support > 0
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=present)
    f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=support + predicted > 0)
    return Classification(
        accuracy=float(hits.sum() / len(truths)),
        weighted_f1=float((f1 * support).sum() / support.sum()),
        macro_f1=float(f1[present].mean()),
        uar=float(recall[present].mean()),
        n=len(truths),
        unparsed=int(confusion[:, -1].sum()),
        classes=tuple(classes),
        confusion=confusion,
    )


def weighted_f1_interval(scored: Classification, *, n_bootstrap: int, seed: int) -> Interval | None:
    """95 % percentile bootstrap interval over samples of the weighted F1; None without resamples.

    Drawing samples with replacement is drawing the cells of the confusion by their shares.
    """
    if not n_bootstrap:
        return None
    counts = scored.confusion.ravel()
    drawn = np.random.default_rng(seed).multinomial(scored.n, counts / scored.n, n_bootstrap)
    drawn = drawn.reshape(n_bootstrap, *scored.confusion.shape)  # [K, C, C + 1]
    support, predicted = drawn.sum(axis=2).astype(float), drawn[:, :, :-1].sum(axis=1).astype(float)  # [K, C]
    hits = np.diagonal(drawn, axis1=1, axis2=2).astype(float)  # [K, C]
    total = support + predicted
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return percentile_interval((f1 * support).sum(axis=1) / scored.n, seed)


@dataclass(frozen=True)
class MultiLabel:
    """Scores of sets of labels; `unknown` words are predicted labels that no truth has, which `strict` counts as wrong.

    micro_f1 counts labels over all samples, sample_f1 is the mean F1 of a sample, jaccard the mean of intersection over
    union, mean_ap the mean over labels of the average precision of a yes or no.
    """

    micro_f1: float
    micro_f1_strict: float
    sample_f1: float
    jaccard: float
    mean_ap: float
    n: int
    unknown: int
    classes: tuple[str, ...]


def score_sets(truths: Sequence[Collection[str]], predictions: Sequence[Collection[str]]) -> MultiLabel:
    """Score sets of labels as the published code of Emotion-LLaMA v2 (scikit-learn's MultiLabelBinarizer).

    The labels are those of the truth; others are ignored, except in `micro_f1_strict`. The average precision of a yes
    or no is recall * precision + (1 - recall) * share of the label.

    >>> found = score_sets([{"sad", "angry"}, {"sad"}], [{"sad"}, {"sad", "bored"}])
    >>> round(found.micro_f1, 3), round(found.micro_f1_strict, 3), found.unknown, found.mean_ap
    (0.8, 0.667, 1, 0.75)
    """
    if len(truths) != len(predictions) or not truths:
        raise InputError(f"{len(truths)} truths and {len(predictions)} predictions; expected as many, at least 1")
    classes = sorted(set().union(*truths))
    true, found = (
        np.array([[name in row for name in classes] for row in rows], dtype=bool) for rows in (truths, predictions)
    )  # [N, C]
    both, n_true, n_found = (true & found).sum(axis=1), true.sum(axis=1), found.sum(axis=1)  # [N]
    unknown = sum(len(set(row) - set(classes)) for row in predictions)
    hits, support, predicted = (true & found).sum(axis=0), true.sum(axis=0), found.sum(axis=0)  # [C]
    precision = np.divide(hits, predicted, out=np.zeros(len(classes)), where=predicted > 0)
    recall, share = hits / support, support / len(truths)
    total = n_true.sum() + n_found.sum()
    sizes = n_true + n_found
    return MultiLabel(
        micro_f1=float(2 * both.sum() / total),
        micro_f1_strict=float(2 * both.sum() / (total + unknown)),
        sample_f1=float(np.divide(2 * both, sizes, out=np.zeros(len(truths)), where=sizes > 0).mean()),
        jaccard=float((both / ((true | found).sum(axis=1) + 1e-6)).mean()),  # the published constant
        mean_ap=float((recall * precision + (1 - recall) * share).mean()),
        n=len(truths),
        unknown=unknown,
        classes=tuple(classes),
    )


@dataclass(frozen=True)
class HitRate:
    """`rate` is the share of hits, averaged over the five wheels; `n` is the number of scored samples per wheel.

    `rate_of_all` is the strict variant: a sample whose true label is not on a wheel is a miss for that wheel.
    """

    rate: float
    by_wheel: Mapping[str, float]
    n: Mapping[str, int]
    rate_of_all: float


def hit_rate(truths: Mapping[str, str], predictions: Mapping[str, Sequence[str]], lexicon: Lexicon) -> HitRate:
    """Hit rate on one-hot test sets (MER2025 / MER-UniBench protocol): is the level-1 cluster of the true label among
    the clusters of the predicted labels?

    A sample whose true label is not on a wheel is not scored there (this drops `neutral`); a missing prediction is a
    miss.

    >>> from affectgpt.metrics.lexicon import load_lexicon
    >>> truths = {"a": "happy", "b": "angry", "c": "neutral"}
    >>> result = hit_rate(truths, {"a": ["joyful"], "b": ["calm"]}, load_lexicon())
    >>> result.rate, set(result.n.values()), round(result.rate_of_all, 3)
    (0.5, {2}, 0.333)
    """
    grouping = WheelGrouping(lexicon)
    by_wheel: dict[str, float] = {}
    n_scored: dict[str, int] = {}
    n_hits: dict[str, int] = {}
    for name in LEVEL1:
        hits = [
            bool(truth & grouping.map(predictions.get(sample_id, ()), name))
            for sample_id, label in truths.items()
            if (truth := grouping.map([label], name))
        ]
        n_scored[name], n_hits[name] = len(hits), sum(hits)
        by_wheel[name] = sum(hits) / len(hits) if hits else 0.0
    n_all = max(len(truths), 1)
    return HitRate(
        rate=sum(by_wheel.values()) / len(LEVEL1),
        by_wheel=by_wheel,
        n=n_scored,
        rate_of_all=sum(n / n_all for n in n_hits.values()) / len(LEVEL1),
    )


_SENTIMENT = {
    "positive": ("positive", "pos", "积极", "正面", "正向"),
    "negative": ("negative", "neg", "消极", "负面", "负向"),
    "neutral": ("neutral", "中性", "中立"),
}
_SENTIMENT_OF = {word: sentiment for sentiment, words in _SENTIMENT.items() for word in words}
# The polarity of the level-1 clusters of W1 and W2; surprise has none.
_POLARITY = {"happy": "positive", "mad": "negative", "angry": "negative", "sad": "negative", "scared": "negative",
         "fearful": "negative", "disgusted": "negative", "bad": "negative"}  # fmt: skip


def sentiment_of(labels: Sequence[str], lexicon: Lexicon) -> str | None:
    """positive, negative or neutral, from sentiment words or the level-1 clusters of emotions on W1 and W2.

    The majority decides; a tie, and labels without polarity, give None (unreadable).

    >>> from affectgpt.metrics.lexicon import load_lexicon
    >>> [sentiment_of(labels, load_lexicon()) for labels in (["Positive"], ["sad", "hurt"], ["happy", "sad"])]
    ['positive', 'negative', None]
    """
    grouping = WheelGrouping(lexicon)
    votes = {"positive": 0, "negative": 0}
    neutral = False
    for label in labels:
        word = label.lower().strip()
        found = _SENTIMENT_OF.get(word)
        if found is None:
            groups = grouping.groups(label)
            found = next((_POLARITY[g] for name in LEVEL1[:2] if (g := groups.get(name, "")) in _POLARITY), None)
        if found == "neutral" or lexicon.kind(label) == "neutral":
            neutral = True
        elif found:
            votes[found] += 1
    if votes["positive"] != votes["negative"]:
        return max(votes, key=lambda name: votes[name])
    return "neutral" if neutral and not votes["positive"] else None


@dataclass(frozen=True)
class Sentiment:
    """`published` follows the literature: everything that is not positive counts as negative. `strict` counts neutral
    and unreadable predictions as UNPARSED. `dropped_zero` is the number of samples with a true score of 0."""

    published: Classification
    strict: Classification
    dropped_zero: int
    neutral: int
    unreadable: int


def score_sentiment(truths: Mapping[str, float], predictions: Mapping[str, str | float | None]) -> Sentiment:
    """Two-class sentiment (CMU-MOSI, CMU-MOSEI, CH-SIMS): accuracy and weighted F1.

    Args:
        truths: id -> score; positive means > 0, samples with a score of 0 are dropped.
        predictions: id -> a score, or "positive" / "negative" / "neutral", or None (unreadable).

    >>> truths = {"a": 1.2, "b": -0.4, "c": 0.0, "d": -2.0}
    >>> result = score_sentiment(truths, {"a": 0.3, "b": "negative", "d": "neutral"})
    >>> result.published.accuracy, round(result.strict.accuracy, 3), result.dropped_zero, result.neutral
    (1.0, 0.667, 1, 1)
    """
    kept = {sample_id: score for sample_id, score in truths.items() if score != 0}
    read: dict[str, str | None] = {}
    for sample_id in kept:
        value = predictions.get(sample_id)
        if isinstance(value, (int, float)):
            read[sample_id] = "positive" if value > 0 else "negative"
        else:
            read[sample_id] = value
    if unknown := sorted({str(value) for value in read.values() if value not in (*_SENTIMENT, None)}):
        raise InputError(f"unknown sentiments {unknown}; expected some of {list(_SENTIMENT)}, a number or None")
    classes = ("negative", "positive")
    true_classes = ["positive" if score > 0 else "negative" for score in kept.values()]
    two_sided = ["positive" if value == "positive" else "negative" for value in read.values()]
    return Sentiment(
        published=classify(true_classes, two_sided, classes),
        strict=classify(true_classes, [value if value in classes else None for value in read.values()], classes),
        dropped_zero=len(truths) - len(kept),
        neutral=sum(value == "neutral" for value in read.values()),
        unreadable=sum(value is None for value in read.values()),
    )


def pearson(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson correlation (PCC); NaN if one side is constant, an error for fewer than two points.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 6)
    1.0
    """
    if len(x) != len(y) or len(x) < 2:
        raise InputError(f"a correlation needs two or more pairs; found {len(x)} and {len(y)} values")
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def pearson_interval(x: Sequence[float], y: Sequence[float], *, n_bootstrap: int, seed: int) -> Interval | None:
    """95 % percentile bootstrap interval over pairs; None without resamples, or if a resample is constant."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    places = np.random.default_rng(seed).integers(len(a), size=(n_bootstrap, len(a)))
    values = np.array([pearson(a[drawn], b[drawn]) for drawn in places])
    return percentile_interval(values, seed) if n_bootstrap and np.isfinite(values).all() else None


def mean_squared_error(truths: Mapping[str, float], predictions: Mapping[str, float]) -> float:
    """Mean squared error of a score such as valence, in squared units of the score.

    >>> mean_squared_error({"a": 1.0, "b": -2.0}, {"a": 0.0, "b": -2.0, "c": 5.0})
    0.5

    Raises:
        InputError: no truths, or a truth without a prediction: a missing score has no fair replacement.
    """
    if not truths:
        raise InputError("no true scores to compare with")
    if missing := [name for name in truths if name not in predictions]:
        raise InputError(
            f"{len(missing)} of {len(truths)} samples have no predicted score, the first is {missing[0]!r}; "
            "give each a number in a column valence of the predictions"
        )
    return sum((predictions[name] - truth) ** 2 for name, truth in truths.items()) / len(truths)


def top_k_accuracy(truths: Sequence[str], rankings: Sequence[Sequence[str]], k: int) -> float:
    """Share of samples whose true label is among the first k of the ranked labels; an empty ranking is a miss.

    >>> ranked = [["sad", "angry"], ["happy", "sad"], []]
    >>> top_k_accuracy(["angry", "happy", "sad"], ranked, 1), top_k_accuracy(["angry", "happy", "sad"], ranked, 2)
    (0.3333333333333333, 0.6666666666666666)
    """
    if len(truths) != len(rankings) or not truths:
        raise InputError(f"{len(truths)} truths and {len(rankings)} rankings; expected as many, at least 1")
    return sum(truth in ranking[:k] for truth, ranking in zip(truths, rankings, strict=True)) / len(truths)


def to_class(labels: Sequence[str], classes: Sequence[str], lexicon: Lexicon) -> str | None:
    """Map free labels to a class: the first label that is a class, or that is on the same wheel clusters as one.

    The class must share the level-1 cluster of the label on at least three wheels, and on more wheels than any other
    class; None if no label has one.

    >>> from affectgpt.metrics.lexicon import load_lexicon
    >>> classes = ("worried", "happy", "neutral", "angry", "surprise", "sad")
    >>> [to_class([word], classes, load_lexicon()) for word in ("furious", "neutral", "joy", "frobnicated")]
    ['angry', 'neutral', 'happy', None]
    """
    grouping = WheelGrouping(lexicon)
    for label in labels:
        word = label.lower().strip()
        if word in classes:
            return word
        if lexicon.kind(label) == "neutral" and "neutral" in classes:
            return "neutral"
        groups = grouping.groups(label)
        agreement = {
            name: sum(wheel in groups and groups[wheel] == grouping.groups(name).get(wheel) for wheel in LEVEL1)
            for name in classes
        }
        best = max(agreement.values(), default=0)
        winners = [name for name, n in agreement.items() if n == best]
        if best >= 3 and len(winners) == 1:
            return winners[0]
    return None
