"""Do explanations lead to the right emotion, and do they name what is there? Scores of given readings, without a model.

- `explanation_scores`: EEA, EPC and FCR, for one label or label sets (ERV, AAAI 2026); `score_explanations` finds the
  emotion of an explanation by the lexicon.
- `supported_share`: share of the sentences of one explanation that carry the true emotion (the reward of ERV).
- `hallucination`: mentions of what is not in the clip, in the manner of CHAIR (Rohrbach et al., 2018).
- `probe_scores`, `pair_accuracy`: yes/no questions on clues, in the manner of POPE (Li et al., 2023), and in pairs of a
  true and a false statement, as in EmotionHallucer.
- `graded_clues`: how closely the sentences of an explanation match the true clues, from similarities.

Elsewhere the emotion of an explanation, the things in an answer and the similarities come from the caller: by a
classifier, embeddings or a language model. Name the source next to the score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from affectgpt.metrics.faithfulness import emotion_words, explanation_of
from affectgpt.metrics.lexicon import Lexicon
from affectgpt.metrics.stats import Rate
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping
from affectgpt.runtime import InputError
from affectgpt.schema import Prediction

Emotions = str | Collection[str] | None
"""One emotion, several, or none."""


@dataclass(frozen=True)
class ExplanationScores:
    """Shares of the n clips with a true emotion.

    Attributes:
        eea: explanation-emotion accuracy: the explanation's emotion is the true one.
        epc: explanation-prediction consistency: the explanation's emotion is the predicted one.
        fcr: faithful-correct rate: explanation and prediction both have the true emotion.
        accuracy: the predicted emotion is the true one.
        without_emotion: explanations without an emotion. They agree with nothing and stay in all n.
    """

    eea: Rate
    epc: Rate
    fcr: Rate
    accuracy: Rate
    without_emotion: int

    def to_dict(self) -> dict[str, Any]:
        rates = {name: getattr(self, name).to_dict() for name in ("eea", "epc", "fcr", "accuracy")}
        return {**rates, "without_emotion": self.without_emotion}


def explanation_scores(
    truths: Mapping[str, Emotions],
    predictions: Mapping[str, Emotions],
    explained: Mapping[str, Emotions],
    *,
    agree: Callable[[frozenset[str], frozenset[str]], bool] | None = None,
) -> ExplanationScores:
    """EEA, EPC and FCR.

    Args:
        explained: id -> the emotion that the explanation alone expresses.
        agree: whether two label sets, in lower case, express the same emotion; None = a word in common.
            `wheel_agreement(lexicon)` compares by the emotion wheels.

    Raises:
        InputError: no clip has a true emotion.

    >>> truths = {"a": "sad", "b": "angry", "c": "happy"}
    >>> scores = explanation_scores(truths, {"a": "sad", "b": "sad", "c": "happy"}, {"a": "sad", "b": "angry"})
    >>> scores.eea.count, scores.epc.count, scores.fcr.count, scores.eea.n, scores.without_emotion
    (2, 1, 1, 3, 1)
    """
    agree = agree or (lambda first, second: bool(first & second))
    true = {name: found for name, emotions in truths.items() if (found := _emotions(emotions))}
    if not true:
        raise InputError("no clip has a true emotion to compare explanations with")
    counts: Counter[str] = Counter()
    for name, truth in true.items():
        prediction, explanation = _emotions(predictions.get(name)), _emotions(explained.get(name))
        right, says = agree(truth, prediction), agree(truth, explanation)
        counts["accuracy"] += right
        counts["eea"] += says
        counts["epc"] += agree(prediction, explanation)
        counts["fcr"] += right and says
        counts["without"] += not explanation
    rates = {name: Rate(counts[name], len(true)) for name in ("eea", "epc", "fcr", "accuracy")}
    return ExplanationScores(**rates, without_emotion=counts["without"])


def score_explanations(
    predictions: Iterable[Prediction],
    references: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]],
    lexicon: Lexicon,
) -> ExplanationScores | None:
    """EEA, EPC and FCR of the explanations of predictions, with the emotion words that the lexicon finds in them.

    Args:
        references: id -> true labels. A clip without a label on a wheel, such as neutral, is not counted: no word of an
            explanation could agree with it.
        labels: id -> predicted labels, from `evaluate.labels_by_id`.

    Returns:
        None if no explanation has such a reference.
    """
    grouping = WheelGrouping(lexicon)
    explained: dict[str, Emotions] = {}
    for prediction in predictions:
        text = explanation_of(prediction.text)
        true = references.get(prediction.id, ())
        on_wheel = any(not grouping.groups(label).keys().isdisjoint(LEVEL1) for label in true)
        if text and on_wheel and prediction.task not in ("labels", "fixed"):
            explained[prediction.id] = emotion_words(text, prediction.lang, lexicon)
    if not explained:
        return None
    truths = {name: references[name] for name in explained}
    return explanation_scores(truths, labels, explained, agree=wheel_agreement(lexicon))


def _emotions(value: Emotions) -> frozenset[str]:
    words = (value,) if isinstance(value, str) else value or ()
    return frozenset(word for item in words if (word := item.lower().strip()))


def wheel_agreement(lexicon: Lexicon, threshold: float = 0.5) -> Callable[[frozenset[str], frozenset[str]], bool]:
    """Two label sets agree if they are equal, or if their set F at level 1, averaged over the wheels on which the first
    has a category, reaches `threshold`: the alignment of AffectGPT-R1 (0.5).

    To share one category is not enough: long explanations name so many emotions that they would agree with anything.

    >>> from affectgpt.metrics.lexicon import load_lexicon
    >>> agree = wheel_agreement(load_lexicon())
    >>> agree(frozenset({"furious"}), frozenset({"angry", "mad"})), agree(frozenset({"sad"}), frozenset({"happy"}))
    (True, False)
    """
    grouping = WheelGrouping(lexicon)

    def agree(first: frozenset[str], second: frozenset[str]) -> bool:
        if first == second:
            return bool(first)
        scores = []
        for name in LEVEL1:
            if groups := grouping.map(first, name):
                others = grouping.map(second, name)
                scores.append(2 * len(groups & others) / (len(groups) + len(others)))
        return bool(scores) and sum(scores) / len(scores) >= threshold

    return agree


def supported_share(sentences: Sequence[Collection[str]], truth: str) -> float | None:
    """Share of the sentences of an explanation that carry the true emotion.

    Args:
        sentences: the emotions of each sentence, by a classifier; none, or only "neutral", for a neutral sentence.

    Returns:
        a share of the sentences that are not neutral, or of all if the truth is "neutral"; None if there is none.

    >>> supported_share([{"sad", "tired"}, {"neutral"}, {"happy"}], "sad"), supported_share([set(), {"sad"}], "neutral")
    (0.5, 0.5)
    """
    found = [set(_emotions(emotions)) or {"neutral"} for emotions in sentences]
    counted = found if truth == "neutral" else [emotions for emotions in found if emotions != {"neutral"}]
    return sum(truth in emotions for emotions in counted) / len(counted) if counted else None


@dataclass(frozen=True)
class Hallucination:
    """`mentions`: of all mentions, those of something that is not in the clip (CHAIR_i). `answers`: of the answers that
    mention anything, those with at least one (CHAIR_s). `most_frequent`: what is invented, with counts."""

    mentions: Rate
    answers: Rate
    without_mention: int
    most_frequent: Mapping[str, int] = field(default_factory=dict)


def hallucination(mentioned: Mapping[str, Collection[str]], present: Mapping[str, Collection[str]]) -> Hallucination:
    """How many of the things (objects, clues) that answers mention are not in the clip.

    Args:
        mentioned: id -> things in the answer; one that occurs twice is one mention.
        present: id -> things in the clip, in the same words; answers without an entry are an error.

    >>> result = hallucination({"a": ["tears", "frown"], "b": [], "c": ["smile"]}, {"a": ["tears"], "b": [], "c": []})
    >>> result.mentions.count, result.mentions.n, result.answers.count, result.answers.n, result.without_mention
    (2, 3, 2, 2, 1)

    Raises:
        InputError: an answer without a reference, which would count everything in it as invented.
    """
    if unknown := [name for name in mentioned if name not in present]:
        raise InputError(
            f"{len(unknown)} answers have no reference of what is in the clip, the first is {unknown[0]!r}"
        )
    invented: Counter[str] = Counter()
    n_mentions = n_answers = 0
    answers_with = 0
    for name, things in mentioned.items():
        said = _emotions(things)
        wrong = said - _emotions(present[name])
        invented.update(wrong)
        n_mentions += len(said)
        n_answers += bool(said)
        answers_with += bool(wrong)
    return Hallucination(
        mentions=Rate(invented.total(), n_mentions),
        answers=Rate(answers_with, n_answers),
        without_mention=len(mentioned) - n_answers,
        most_frequent=dict(invented.most_common(20)),
    )


@dataclass(frozen=True)
class ProbeScores:
    """Answers to yes/no questions. An unreadable or missing answer is wrong, and neither yes nor no.

    `precision` and `recall` are of the answer yes; None without a yes, or without a true yes. `yes_bias` is the share
    of yes among the readable answers minus the share of true yes among all: above 0 for a model that agrees too often.
    """

    accuracy: Rate
    precision: float | None
    recall: float | None
    f1: float | None
    yes_bias: float | None
    unreadable: int


def probe_scores(truths: Mapping[str, bool], answers: Mapping[str, str | bool | None]) -> ProbeScores:
    """Score yes/no questions such as "Is the person crying?".

    >>> scores = probe_scores({"a": True, "b": False, "c": False}, {"a": "Yes.", "b": "Yes, she is.", "c": "no"})
    >>> scores.accuracy.count, scores.precision, scores.recall, round(scores.f1, 3), round(scores.yes_bias, 3)
    (2, 0.5, 1.0, 0.667, 0.333)

    Raises:
        InputError: no questions.
    """
    if not truths:
        raise InputError("no yes/no questions to score")
    read = {name: _yes_no(answers.get(name)) for name in truths}
    n_yes, n_true = sum(value is True for value in read.values()), sum(truths.values())
    both = sum(read[name] is True and truth for name, truth in truths.items())
    readable = sum(value is not None for value in read.values())
    return ProbeScores(
        accuracy=Rate(sum(read[name] is truth for name, truth in truths.items()), len(truths)),
        precision=both / n_yes if n_yes else None,
        recall=both / n_true if n_true else None,
        f1=2 * both / (n_yes + n_true) if n_yes + n_true else None,
        yes_bias=n_yes / readable - n_true / len(truths) if readable else None,
        unreadable=len(truths) - readable,
    )


def pair_accuracy(
    pairs: Sequence[tuple[str, str]], truths: Mapping[str, bool], answers: Mapping[str, str | bool | None]
) -> Rate:
    """Share of pairs of questions (one true, one false) of which both are answered correctly: agreeing gives 0.

    >>> truths = {"a": True, "a'": False, "b": True, "b'": False}
    >>> pair_accuracy([("a", "a'"), ("b", "b'")], truths, {"a": "yes", "a'": "no", "b": "yes", "b'": "yes"}).count
    1
    """
    right = [all(_yes_no(answers.get(name)) is truths[name] for name in pair) for pair in pairs]
    return Rate(sum(right), len(right))


def _yes_no(answer: str | bool | None) -> bool | None:
    return parse_yes_no(answer) if isinstance(answer, str) else answer


_YES = re.compile(
    r"(?:yes|yeah|true|correct)(?![a-z])|没错|正确|是(?!否|不是)|对(?!不起)|有(?!没有)|会(?!不会)", re.IGNORECASE
)
_NO = re.compile(
    r"(?:no(?! (?:idea|way to))|nope|not(?! (?:sure|certain|clear|enough|possible|able))|false|incorrect)(?![a-z])|"
    r"不(?!确定|清楚|知道|好说|明确|太确定|能(?:确定|判断))|否|没(?!错|办法|法|有(?:办法|足够))|错",
    re.IGNORECASE,
)


def parse_yes_no(text: str) -> bool | None:
    """Yes or no at the start of an answer, after "answer:" and the like, in English or Chinese; None for anything else.

    >>> [parse_yes_no(text) for text in ("Yes, he is.", "**No**", "Answer: no.", "没有", "是的", "It is unclear.")]
    [True, False, False, False, True, None]
    """
    start = re.sub(r"^[\s\W_]*(?:(?:the\s+)?answer(?:\s+is)?|答案是?|回答)[\s\W_]*", "", text, flags=re.IGNORECASE)
    start = re.sub(r"^[\s\W_]+", "", start)
    if _NO.match(start):
        return False
    return True if _YES.match(start) else None


def graded_clues(similarity: Mapping[str, np.ndarray], threshold: float = 0.5) -> float | None:
    """How closely an explanation follows the true clues, from 0 to 1: clues without a similar sentence lower the mean.

    Per clue, the highest similarity s of a sentence gives max(0, s - threshold) / (1 - threshold); the mean over the
    clues of a modality, then over the modalities that have clues (the perception reward of the public HumanOmniV2
    code, which uses cosines of sentence embeddings and a threshold of 0.5).

    Args:
        similarity: modality -> similarities [n_sentences, n_clues].

    Returns:
        None without clues.

    >>> graded_clues({"visual": np.array([[0.9, 0.2], [0.1, 0.75]]), "acoustic": np.zeros((2, 0))})
    0.65
    """
    means = []
    for table in similarity.values():
        if table.shape[1]:
            best = table.max(axis=0) if len(table) else np.zeros(table.shape[1])
            means.append(np.maximum(0.0, best - threshold).mean() / (1 - threshold))
    return float(np.mean(means)) if means else None
