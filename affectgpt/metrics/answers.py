"""Scores of answers to questions: EmotionHallucer, EmoBench-M and IntentBench.

Each has the score of the published code or paper, with its peculiarities, and a strict one beside it, in which a
missing or unreadable answer is wrong. docs/question-benchmarks.md says where each rule was read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
from affectgpt.metrics.classification import classify
from affectgpt.metrics.reasoning import pair_accuracy, parse_yes_no, probe_scores
from affectgpt.metrics.stats import Rate
from affectgpt.questions import (
    BASIC,
    CHOICE,
    EMOBENCH,
    GENERATED,
    HALLUCINATED,
    JOINT,
    JUDGED,
    LETTERS,
    Question,
    answer_span,
)
from affectgpt.runtime import InputError

LAUGHTER_VERSION = "1"

# ---- EmotionHallucer -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairScores:
    """Shares of n pairs and of their 2 n questions, by one way of reading answers.

    Attributes:
        yes_difference: (answers yes - true yes) / questions; 0 without a bias.
        false_positives: share of hallucinated questions in the wrong answers; 0.5 without a bias, None without any.
    """

    basic: Rate
    hallucinated: Rate
    pairs: Rate
    yes_difference: float
    false_positives: float | None


def pair_scores(basic: Sequence[bool], hallucinated: Sequence[bool], *, n_yes: int | None = None) -> PairScores:
    """From which questions of each pair are answered rightly.

    Args:
        n_yes: answers yes; None = the right answers to basic questions and the wrong ones to hallucinated questions.

    >>> found = pair_scores([True, True, False], [True, False, False])
    >>> found.pairs.count, round(found.yes_difference, 3), round(found.false_positives, 3)
    (1, 0.167, 0.667)
    """
    n, n_basic, n_hallucinated = len(basic), sum(basic), sum(hallucinated)
    n_wrong = 2 * n - n_basic - n_hallucinated
    n_yes = n_basic + n - n_hallucinated if n_yes is None else n_yes
    return PairScores(
        Rate(n_basic, n),
        Rate(n_hallucinated, n),
        Rate(sum(a and b for a, b in zip(basic, hallucinated, strict=True)), n),
        (n_yes - n) / (2 * n),
        (n - n_hallucinated) / n_wrong if n_wrong else None,
    )


def contains_answer(text: str, truth: str) -> bool:
    """Right by the rule of VideoHallucer's code: the true word is anywhere in the answer; "yes or no" is always right.

    >>> contains_answer("Yes or no?", "no"), contains_answer("Nothing.", "no")
    (True, False)
    """
    return re.search(rf"\b({truth})\b", text, re.IGNORECASE) is not None


@dataclass(frozen=True)
class EmotionHallucer:
    """`published` looks for the true word in an answer; `strict` reads yes or no at its start, as elsewhere here.

    `yes_bias` and `unreadable` are of `reasoning.probe_scores`; `right` tells each pair, by the published rule.
    """

    published: PairScores
    strict: PairScores
    by_file: Mapping[str, PairScores]
    yes_share: float | None
    yes_bias: float | None
    unreadable: int
    missing: int
    right: Mapping[str, bool]


def score_pairs(questions: Sequence[Question], answers: Mapping[str, str]) -> EmotionHallucer:
    """Score pairs of yes/no questions; a missing answer is wrong.

    Raises:
        InputError: a pair lacks one of its two questions.
    """
    pairs: dict[str, dict[str, Question]] = defaultdict(dict)
    for question in questions:
        pairs[question.extra["pair"]][question.extra["side"]] = question
    if odd := [name for name, sides in pairs.items() if len(sides) < 2]:
        raise InputError(f"pair {odd[0]!r} has one question; expected a basic and a hallucinated one")
    basic, hallucinated = ([sides[side] for sides in pairs.values()] for side in (BASIC, HALLUCINATED))
    hits = [[contains_answer(answers.get(q.id, ""), q.answer) for q in side] for side in (basic, hallucinated)]
    truths = {q.id: q.answer == "yes" for q in questions}
    read = {q.id: parse_yes_no(answers.get(q.id, "")) for q in questions}
    strictly = [[read[q.id] is truths[q.id] for q in side] for side in (basic, hallucinated)]
    n_yes = sum(value is True for value in read.values())
    probes = probe_scores(truths, read)
    files: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(basic):
        files[question.task].append(place)
    readable = len(questions) - probes.unreadable
    strict = pair_scores(*strictly, n_yes=n_yes)
    both = pair_accuracy([(a.id, b.id) for a, b in zip(basic, hallucinated, strict=True)], truths, read)
    assert both == strict.pairs
    return EmotionHallucer(
        published=pair_scores(*hits),
        strict=strict,
        by_file={name: pair_scores(*([side[n] for n in places] for side in hits)) for name, places in files.items()},
        yes_share=n_yes / readable if readable else None,
        yes_bias=probes.yes_bias,
        unreadable=probes.unreadable,
        missing=sum(question.id not in answers for question in questions),
        right={name: a and b for name, a, b in zip(pairs, *hits, strict=True)},
    )


# ---- EmoBench-M ------------------------------------------------------------------------------------------------------

_VALUE = re.compile(r"""['"]?([\w ]+?)['"]?\s*:\s*['"]?([^'",{}\n]+)""")


def labels_of_answer(text: str) -> dict[str, str]:
    """The label or labels in an answer such as {'emotion': 'sad'}; "" is the key of a bare label.

    The published code takes labels that others have read from the answers; this is our reading.

    >>> labels_of_answer("{'emotion label': 'Happy', 'intent label': 'wishing'}"), labels_of_answer("Negative.")
    ({'emotion': 'happy', 'intent': 'wishing'}, {'': 'negative'})
    """
    start, stop = text.find("{"), text.rfind("}")
    if 0 <= start < stop:
        found = {key.lower().removesuffix("label").strip(): value for key, value in _VALUE.findall(text[start:stop])}
        return {key: value.strip().strip(".").lower() for key, value in found.items()}
    return {"": text.strip().strip("\"'.").strip().lower()}


def one_label(text: str) -> str:
    """The label of an answer; of several, the emotion, else the first.

    >>> one_label("{'answer': 'true'}")
    'true'
    """
    found = labels_of_answer(text)
    return found.get("emotion", next(iter(found.values()), ""))


def joint_label(text: str) -> str:
    """Emotion and intent joined as in the published code; "" if one of them is missing.

    >>> joint_label("{'emotion': 'sad', 'intent': 'wishing'}"), joint_label("sad, wishing"), joint_label("sad")
    ('sad_wishing', 'sad_wishing', '')
    """
    found = labels_of_answer(text)
    pair = (found.get("emotion"), found.get("intent"))
    if not all(pair) and "" in found:
        parts = [part.strip() for part in found[""].split(",")]
        pair = (parts[0], parts[1]) if len(parts) == 2 else (None, None)
    return f"{pair[0]}_{pair[1]}" if all(pair) else ""


@dataclass(frozen=True)
class LabelScores:
    """Means weighted by the size of the true classes, as scikit-learn's; all of n samples."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    n: int


def label_scores(truths: Sequence[str], found: Sequence[str]) -> LabelScores:
    """Accuracy, precision, recall and F1 over the labels of both sides; a division by zero is 0.

    >>> label_scores(["a", "b", "b"], ["a", "b", "c"])
    LabelScores(accuracy=0.6666666666666666, precision=1.0, recall=0.6666666666666666, f1=0.7777777777777777, n=3)
    """
    scored = classify(truths, found, sorted({*truths, *found}))
    table = scored.confusion[:, :-1].astype(float)
    support, predicted = table.sum(axis=1), table.sum(axis=0)
    precision = np.divide(np.diagonal(table), predicted, out=np.zeros(len(table)), where=predicted > 0)
    weighted = float((precision * support).sum() / support.sum())
    return LabelScores(scored.accuracy, weighted, scored.accuracy, scored.weighted_f1, scored.n)


@dataclass(frozen=True)
class Scenario:
    """One file of labels. `published` leaves out rows without a predicted label; None if that leaves none.

    `right` has all questions, `readable` those that `published` scores.
    """

    published: LabelScores | None
    strict: LabelScores
    right: Mapping[str, bool]
    readable: Sequence[str]

    @property
    def left_out(self) -> int:
        return len(self.right) - len(self.readable)


def score_scenario(questions: Sequence[Question], answers: Mapping[str, str]) -> Scenario:
    """Score the answers to one file of EmoBench-M, but not to the one whose answers are texts."""
    read = joint_label if questions[0].task == JOINT else one_label
    truths = {question.id: read(question.answer) for question in questions}
    if odd := [name for name, label in truths.items() if not label]:
        raise InputError(f"question {odd[0]!r}: its true answer holds no label that can be read")
    found = {name: read(answers.get(name, "")) for name in truths}
    kept = [name for name in truths if found[name]]
    published = label_scores([truths[name] for name in kept], [found[name] for name in kept]) if kept else None
    strict = label_scores(list(truths.values()), list(found.values()))
    right = {name: found[name] == truth for name, truth in truths.items()}
    return Scenario(published, strict, right, kept)


_LAUGHTER = {
    "logic": "how logical it is: whether cause and effect are clear, sensible and fit the situation",
    "content": "how well it reflects what is said, seen and heard in the clip, and what sets off the laughter",
}
_LAUGHTER_PROMPT = """\
You rate an explanation of why the audience of a video laughs (task version {version}).
Reference: {truth}
Explanation: {answer}
Compare it with the reference and rate {aspect}. 1 = not at all, 5 = fully. Answer with one line: Score: <1 to 5>"""


@dataclass(frozen=True)
class Laughter:
    """Mean ratings of 0 to 5: `published` counts an unreadable reply as 0, as the public script; `read` leaves it out.

    `n` answers were rated in each aspect; without an answer there is nothing to rate, and `missing` are such questions.
    """

    published: Mapping[str, float]
    read: Mapping[str, float | None]
    n: int
    unreadable: int
    missing: int

    @property
    def share(self) -> float:
        """The published total of both aspects, of the 10 that can be reached."""
        return sum(self.published.values()) / (5 * len(self.published))


def judge_laughter(questions: Sequence[Question], answers: Mapping[str, str], client: ChatClient) -> Laughter | None:
    """Let a chat model rate explanations of laughter in two aspects; None without an answer.

    Raises:
        ChatError: a request failed; a refusal is an unreadable reply instead.
    """
    asked = [question for question in questions if answers.get(question.id, "").strip()]
    if not asked:
        return None
    requests = [Request(laughter_question(item.answer, answers[item.id], key)) for key in _LAUGHTER for item in asked]
    replies = client.answer(requests, refused_is_empty=True)
    values = [parse_rating(reply.text) for reply in replies]
    of = {key: values[place * len(asked) : (place + 1) * len(asked)] for place, key in enumerate(_LAUGHTER)}
    readable = {key: [value for value in found if value is not None] for key, found in of.items()}
    return Laughter(
        {key: sum(value or 0 for value in found) / len(found) for key, found in of.items()},
        {key: sum(found) / len(found) if found else None for key, found in readable.items()},
        len(asked),
        sum(value is None for value in values),
        len(questions) - len(asked),
    )


def laughter_question(truth: str, answer: str, aspect: str) -> str:
    return _LAUGHTER_PROMPT.format(version=LAUGHTER_VERSION, truth=truth, answer=answer, aspect=_LAUGHTER[aspect])


def parse_rating(text: str) -> int | None:
    """
    >>> parse_rating("Score: 4"), parse_rating("**Score**: 6"), parse_rating("good")
    (4, None, None)
    """
    match = re.search(r"score\W{0,6}(\d+)", text, re.IGNORECASE) or re.fullmatch(r"\s*(\d+)\W*", text)
    rating = float(match.group(1)) if match else -1  # int() raises on thousands of digits
    return int(rating) if 0 <= rating <= 5 else None


@dataclass(frozen=True)
class EmoBench:
    """`scenarios` by file; `laughter` None = not judged. `dimension` takes accuracies by file."""

    scenarios: Mapping[str, Scenario]
    laughter: Laughter | None

    def accuracies(self, *, strict: bool) -> dict[str, float]:
        """File -> accuracy; of the explanations of laughter, the share of the rating that can be reached."""
        found = {
            name: (scored.strict if strict or scored.published is None else scored.published).accuracy
            for name, scored in self.scenarios.items()
        }
        return found | ({GENERATED: self.laughter.share} if self.laughter else {})


def dimensions(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Dimension -> unweighted mean over its files that were scored.

    >>> dimensions({"mosi": 0.5, "fgmsa": 0.7, "meld": 0.4})
    {'FER': 0.6, 'CEU': 0.4}
    """
    means = {}
    for name, files in EMOBENCH.items():
        if found := [accuracies[file] for file in files.values() if file in accuracies]:
            means[name] = sum(found) / len(found)
    return means


# ---- IntentBench -----------------------------------------------------------------------------------------------------


def published_reward(answer: str, truth: str, kind: str) -> float:
    """The score of one answer by the evaluation code of HumanOmniV2; 0 for kinds that it does not know.

    Letters are compared with their spaces ("A, E" lacks E), "yes" and "no" anywhere in the text, yes first.

    >>> published_reward("A, E", "A,E", "emer_ov_mc"), published_reward("I don't know", "No", "judge")
    (0.5, 1.0)
    """
    if kind == CHOICE:
        return float(answer.strip() == truth.strip())
    if kind == "numerical":
        given, true = _number(answer), _number(truth)
        if (("." in truth) or ("," in truth)) != (("." in answer) or ("," in answer)) or given is None or true is None:
            return 0.0
        return float(round(true, 2) == round(given, 2))
    if kind == "regression":
        given, true = _number(answer), _number(truth)
        return 0.0 if given is None or true is None else mean_relative_accuracy(given, true)
    if kind == LETTERS:
        return list_f1(answer.split(","), truth.split(","))
    if kind == JUDGED:
        both = answer.lower(), truth.lower()
        return float(all("yes" in text for text in both) or all("no" in text for text in both))
    return 0.0


def list_f1(found: Sequence[str], true: Sequence[str]) -> float:
    """F1 in which repeated entries count in the lengths, but match once.

    >>> list_f1(["A", "A"], ["A"]), list_f1(["A", "B"], ["A", "C"])
    (0.6666666666666666, 0.5)
    """
    n_both = len({*found} & {*true})
    precision, recall = (n_both / len(side) if side else 0 for side in (found, true))
    return 2 * (precision * recall) / (precision + recall) if precision + recall > 0 else 0.0


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def mean_relative_accuracy(found: float, true: float) -> float:
    """Share of the thresholds 0.5, 0.55 ... 0.95 that 1 - relative error exceeds, in the float32 of the published code.

    >>> [round(mean_relative_accuracy(value, 10.0), 3) for value in (10, 8, 3)]
    [1.0, 0.6, 0.0]
    """
    pred, target = np.float32(found), np.float32(true)
    error = np.abs(pred - target) / (np.abs(target) + np.float32(1e-8))
    thresholds = (0.5 + 0.05 * np.arange(10)).astype(np.float32)
    return float(np.mean((error < np.float32(1) - thresholds).astype(np.float32)))


@dataclass(frozen=True)
class IntentScores:
    """Means of the scores of answers, all together and by kind of question.

    Attributes:
        published: as the public code with one process: an answer without <answer></answer> is replaced by the last
            response of the run, and questions without an answer are not there.
        strict: an answer without a span is read as it is, letters without their spaces, yes and no at the start; a
            missing answer is 0. Kinds other than choice, letters and judge have no strict rule and count as published.
        without_span: answers without <answer></answer>.
    """

    published: float
    strict: float
    published_by_kind: Mapping[str, float]
    strict_by_kind: Mapping[str, float]
    n_by_kind: Mapping[str, int]
    without_span: int
    missing: int
    values: Mapping[str, float]


def score_intent(questions: Sequence[Question], answers: Mapping[str, str]) -> IntentScores:
    """Score the answers to IntentBench.

    Raises:
        InputError: no question has an answer.
    """
    given = [question for question in questions if question.id in answers]
    if not given:
        raise InputError("no question of IntentBench has an answer; ids are the numbers of the rows, such as '00000'")
    last = answers[given[-1].id]
    published: dict[str, list[float]] = defaultdict(list)
    strict: dict[str, list[float]] = defaultdict(list)
    values: dict[str, float] = {}
    without = 0
    for question in questions:
        text = answers.get(question.id)
        if text is not None:
            span = answer_span(text)
            without += not span
            values[question.id] = published_reward(span or last, answer_span(question.extra["solution"]), question.task)
            published[question.task].append(values[question.id])
        strict[question.task].append(0.0 if text is None else strict_reward(text, question))
    everything = [value for found in published.values() for value in found]
    strictly = [value for found in strict.values() for value in found]
    return IntentScores(
        sum(everything) / len(everything),
        sum(strictly) / len(strictly),
        {kind: sum(found) / len(found) for kind, found in published.items()},
        {kind: sum(found) / len(found) for kind, found in strict.items()},
        {kind: len(found) for kind, found in strict.items()},
        without,
        len(questions) - len(given),
        values,
    )


def strict_reward(text: str, question: Question) -> float:
    """The strict score of one answer.

    >>> strict_reward("The answer is B.", Question("1", "multiple choice", "", "B"))
    0.0
    >>> strict_reward("(b) Sad", Question("1", "multiple choice", "", "B"))
    1.0
    """
    span = answer_span(text) or text
    if question.task in (CHOICE, LETTERS):
        found, true = letters_of(span), letters_of(question.answer)
        return float(found == true) if question.task == CHOICE else list_f1(found, true)
    if question.task == JUDGED:
        said = parse_yes_no(span)
        return float(said is not None and said is parse_yes_no(question.answer))
    return published_reward(span, question.answer, question.task)


def letters_of(text: str) -> list[str]:
    """The option letters with which an answer begins, in order, each once.

    >>> letters_of("A, e"), letters_of("B. She is sad"), letters_of("A man"), letters_of("A and C")
    (['A', 'E'], ['B'], [], ['A', 'C'])
    """
    found = []
    place = re.compile(r"[\s(\[*,;.:)\]]*(?:and\s+)?[(\[]?([A-Za-z])(?=\s*(?:$|[.,;:)\]*]|and\b))")
    start = 0
    while match := place.match(text, start):
        found.append(match.group(1).upper())
        start = match.end()
    return list(dict.fromkeys(found))


def to_percent(rates: PairScores) -> dict[str, Any]:
    """The shares of pairs by the names of the paper's table."""
    return {
        "basic accuracy": rates.basic.value,
        "hallucinated accuracy": rates.hallucinated.value,
        "pair accuracy": rates.pairs.value,
    }
