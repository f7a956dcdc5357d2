"""MME-Emotion: are the steps of an explanation right, and the emotion at its end?

A chat model divides an answer into numbered steps, the last of which is the prediction; a second one sees the truth, a
text about the sound, frames of the clip and the steps, and rates each step as a/b. Recognition (Rec-S) is the last
rating of a sample, reasoning (Rea-S) the mean of the others, 0 without any; CoT-S is alpha * Rec-S + (1 - alpha) *
Rea-S. The means are those of the published code, and with its peculiarities:

- a reply that cannot be parsed, a clip without a text about the sound, and a missing answer are left out of the means;
- ratings stand on one line inside <score>; in tasks with one label only those of the form ": a/1" count;
- in tasks with several labels the last rating is the share of true labels that was found: long lists cost nothing;
- the overall score reads the ratings of all tasks by the rule for several labels.

Beside them stand strict scores: what was left out for the model's or the judge's sake counts as wrong, every step must
have its rating, and several labels are scored by the F1 of the sets. The prompts are worded here anew (MIT-licensed
ones of the authors are not included), so a score differs from a published one by judge, prompt and sampling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.chat.request import Reply, Request
from affectgpt.chat.served import ChatClient
from affectgpt.questions import MME_MULTIPLE, MME_NOUN, Question

STEPS_VERSION = "1"
RATING_VERSION = "1"
_CHUNK = 64  # questions whose frames are in memory together
_MAX_STEPS = 2048  # tokens

_STEPS_PROMPT = """\
You divide an answer about a video into the steps of its reasoning (task version {version}).
Write every step as one short sentence that begins with its number, as in "Step 1: ...". The last step says what the \
answer predicts: "{form}" If the answer gives no reasons, write this step only. If it predicts no {noun}, name None. \
Put all steps inside <step></step> and write nothing else.
Answer: {answer}"""

_RATING_PROMPT = """\
You rate a prediction about the {noun} of a person in a video, step by step (task version {version}).
Rate a step 1/1 if it is right and 0/1 if it is wrong. A step before the last is wrong only if it clearly contradicts \
{seen} the description of the sound. {last} Give as many ratings as there are steps, on one line, like this:
<score>Step 1: 1/1, Step 2: 0/1, Step 3: {example}</score>
Description of the sound: {clue}
True {noun}: {truth}
Steps: {steps}"""

_LAST_OF_ONE = "The last step is right exactly if it names the true {noun}; do not look at the clip for it."
_LAST_OF_SEVERAL = (
    "Rate the last step a/b, where b is the number of true {noun}s and a the number of these that it names; do not "
    "look at the clip for it. With the true emotions calm and fear, the prediction fear and anger is 1/2."
)


def steps_question(question: Question, answer: str) -> str:
    """The question to the model that divides an answer into steps."""
    noun = MME_NOUN.get(question.task, "emotion")
    is_multiple = question.task in MME_MULTIPLE
    form = f"The predicted {noun}s are ..., ..." if is_multiple else f"The predicted {noun} is ..."
    return _STEPS_PROMPT.format(version=STEPS_VERSION, form=form, noun=noun, answer=answer.strip())


def rating_question(question: Question, steps: str, has_frames: bool) -> str:
    """The question to the judge; the frames are in the request."""
    noun, is_multiple = MME_NOUN.get(question.task, "emotion"), question.task in MME_MULTIPLE
    last = (_LAST_OF_SEVERAL if is_multiple else _LAST_OF_ONE).format(noun=noun)
    return _RATING_PROMPT.format(
        version=RATING_VERSION, noun=noun, seen="the frames or" if has_frames else "", last=last,
        example="2/3" if is_multiple else "0/1", clue=question.extra["audio_clue"], truth=question.answer, steps=steps,
    ).replace("contradicts  ", "contradicts ")  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """The steps of one answer and the judge's reply, both as text; "" = refused."""

    question: Question
    answer: str
    steps: str
    reply: str


def judge_steps(
    questions: Sequence[Question],
    answers: Mapping[str, str],
    judge: ChatClient,
    divider: ChatClient,
    frames: Callable[[Question], np.ndarray | None],
) -> list[Judged]:
    """Divide and rate the answers that there are, for questions with a text about the sound, in order.

    Args:
        frames: the frames that the judge sees, uint8 [T,H,W,3]; None = none.

    Raises:
        ChatError: a request failed; a refusal is an empty text instead, unless all are refused.
    """
    asked = [item for item in questions if item.id in answers and "audio_clue" in item.extra]
    divided = divider.answer(
        [Request(steps_question(item, answers[item.id])) for item in asked], _MAX_STEPS, refused_is_empty=True
    )
    judged: list[Judged] = []
    for start in range(0, len(asked), _CHUNK):
        chunk = list(zip(asked[start : start + _CHUNK], divided[start : start + _CHUNK], strict=True))
        requests = [_rating_request(item, steps, frames) for item, steps in chunk if steps.text.strip()]
        replies = iter(judge.answer(requests, refused_is_empty=True) if requests else [])
        for item, steps in chunk:
            reply = next(replies).text if steps.text.strip() else ""
            judged.append(Judged(item, answers[item.id], steps.text, reply))
    return judged


def _rating_request(item: Question, steps: Reply, frames: Callable[[Question], np.ndarray | None]) -> Request:
    images = frames(item)
    return Request(rating_question(item, steps.text, images is not None), images=images)


# ---- as published ----------------------------------------------------------------------------------------------------

_SCORE = re.compile(r"<score>(.*?)</score>")
_OF_ONE = re.compile(r": (\d)/1")
_OF_SEVERAL = re.compile(r":\s*(\d{1,9})/(\d{1,9})")  # int() raises on thousands of digits


def ratings(reply: str, *, several: bool) -> list[float]:
    """The ratings of a reply by the rules of the published code; [] = left out.

    >>> ratings("<score>Step 1: 1/1, Step 2: 2/3</score>", several=False)
    [1.0]
    >>> ratings("<score>Step 1: 1/1, Step 2: 2/4</score>", several=True), ratings("Step 1: 1/1", several=True)
    ([1.0, 0.5], [])
    """
    match = _SCORE.search(reply)
    if match is None:
        return []
    if not several:
        return [float(found.group(1)) for found in _OF_ONE.finditer(match.group(1))]
    pairs = [(int(a), int(b)) for a, b in _OF_SEVERAL.findall(match.group(1))]
    return [a / b if b else 0.0 for a, b in pairs]


@dataclass(frozen=True)
class StepScore:
    """Of one sample: the last rating, the mean of the others (0 without any), and the number of ratings."""

    recognition: float
    reasoning: float
    n_steps: int


def step_score(rated: Sequence[float]) -> StepScore:
    """
    >>> step_score([1, 0, 1])
    StepScore(recognition=1, reasoning=0.5, n_steps=3)
    """
    others = rated[:-1]
    return StepScore(rated[-1], sum(others) / len(others) if others else 0.0, len(rated))


@dataclass(frozen=True)
class StepMeans:
    """Means over n samples; 0 for n = 0, as published."""

    recognition: float
    reasoning: float
    cot: float
    steps: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        return {"Rec-S": self.recognition, "Rea-S": self.reasoning, "CoT-S": self.cot, "steps": self.steps, "n": self.n}


def step_means(scores: Sequence[StepScore], alpha: float) -> StepMeans:
    """Sums in the order of the samples, then divided: the published means to the last digit."""
    n = len(scores)
    recognition, reasoning, steps = (
        sum(values) / n if n else 0
        for values in (
            [score.recognition for score in scores], [score.reasoning for score in scores],
            [score.n_steps for score in scores],
        )
    )  # fmt: skip
    return StepMeans(recognition, reasoning, alpha * recognition + (1 - alpha) * reasoning, steps, n)


_ER_WILD = {"angry": "anger", "disgusted": "disgust", "happy": "happiness", "sad": "sadness", "surprised": "surprise"}


def label_of(question: Question) -> str:
    """The label under which a sample is listed: ER-Wild writes five of them in two ways."""
    return _ER_WILD.get(question.answer, question.answer) if question.task == "ER-Wild" else question.answer


# ---- strict ----------------------------------------------------------------------------------------------------------

_STEP = re.compile(r"Step\s*(\d{1,9})\s*:", re.IGNORECASE)
_RATED = re.compile(r"Step\s*(\d{1,9})\s*:\s*(\d{1,9})\s*/\s*(\d{1,9})", re.IGNORECASE)
_NAMES = re.compile(r"\b(?:is|are|was|were|includes?)\b|:", re.IGNORECASE)


def strict_score(item: Judged) -> StepScore | None:
    """The score of a reply with one sensible rating a step; None for any other, which is wrong.

    With several true labels, recognition is the F1 of predicted and true labels, where the judge says how many match
    and the last step how many were predicted.
    """
    steps = item.steps.rpartition("<step>")[2].partition("</step>")[0]
    numbers = [int(number) for number in _STEP.findall(steps)]
    span = re.search(r"<score>(.*?)</score>", item.reply, re.DOTALL)
    rated = [tuple(map(int, found)) for found in _RATED.findall(span.group(1))] if span else []
    if not numbers or [number for number, _, _ in rated] != numbers or numbers != list(range(1, len(numbers) + 1)):
        return None
    if any(b != 1 or a > 1 for _, a, b in rated[:-1]):
        return None
    _, a, b = rated[-1]
    n_true = len(true_labels(item.question))
    if b != n_true or a > b:
        return None
    recognition = float(a)
    if item.question.task in MME_MULTIPLE:
        n_found = len(named_labels(_STEP.split(steps)[-1]))
        recognition = 2 * min(a, n_found) / (n_found + n_true)
    return StepScore(recognition, step_score([a for _, a, _ in rated]).reasoning, len(rated))


def true_labels(question: Question) -> tuple[str, ...]:
    """The true labels of a sample; one in tasks with one label."""
    if question.task not in MME_MULTIPLE:
        return (question.answer,)
    return tuple(label for part in re.split("[;,]", question.answer) if (label := part.strip()))


def named_labels(step: str) -> tuple[str, ...]:
    """The labels in a last step such as "The predicted emotions are happy, calm and excited.".

    >>> named_labels("The predicted emotions are happy, calm and excited."), named_labels("The emotion is None.")
    (('happy', 'calm', 'excited'), ())
    """
    listed = re.split(r"[,;]|\band\b", _NAMES.split(step)[-1], flags=re.IGNORECASE)
    words = [word for part in listed if (word := part.strip(" .\t\n\"'"))]
    return tuple(word for word in dict.fromkeys(words) if word.lower() != "none")
