"""Rewards of sampled answers, and the advantages of a group of answers to one prompt. No torch.

A reward is a function from `Attempt`s to one number each, higher is better. docs/rewards.md has the sources of the
formulas, and says which of them are known only from secondary notes.

>>> scorer = Scorer()
>>> attempt = Attempt("clip", "Her voice breaks.\\nEmotions: sad, happy", truth=("sad",))
>>> scorer.reward("wheel", [attempt]), Scorer(penalty="p1").reward("wheel", [attempt])
([0.6666666666666666], [0.3333333333333333])
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from affectgpt.clauses import claims
from affectgpt.metrics.extract import read_labels
from affectgpt.metrics.faithfulness import clue_scores, emotion_words, explanation_of
from affectgpt.metrics.lexicon import Lexicon, load_lexicon
from affectgpt.metrics.sets import harmonic_mean, sample_score
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping
from affectgpt.prompts import LABEL_LINE
from affectgpt.runtime import InputError
from affectgpt.schema import CLUES, Clause, Prediction

if TYPE_CHECKING:
    from affectgpt.chat.served import ChatClient

# ---- answers ---------------------------------------------------------------------------------------------------------

# A processor writes control tokens of its tokenizer, such as Qwen3's <think>, with a space: "< think>".
_THINK = re.compile(r"\s*< ?think>(.*?)< ?/think>\s*< ?answer>(.*?)< ?/answer>\s*", re.DOTALL)
_THOUGHT = re.compile(r"< ?think>(.*?)(?:< ?/think>|< ?answer>|$)", re.DOTALL)


@dataclass(frozen=True)
class Attempt:
    """One sampled answer, and what it is scored against.

    Attributes:
        id: of the sample.
        truth: true labels, those that the shown modalities support.
        reference: clauses of the true description, those that rest on what was shown.
        shown: clue modalities that the model was shown; the subtitle is "lexical".
        video: path, for rewards of users.
    """

    id: str
    text: str
    task: str = "both"
    lang: str = "en"
    truth: tuple[str, ...] = ()
    reference: tuple[Clause, ...] = ()
    shown: frozenset[str] = frozenset(CLUES)
    video: str | None = None
    n_tokens: int = 0
    finish: str = "eos"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of the answer, read as the benchmark reads them; none from a description."""
        return () if self.task == "description" else read_labels(self.text).labels

    @cached_property
    def explanation(self) -> str:
        """The answer without its labels: the think span, or the text before the line of labels."""
        if self.task in ("labels", "fixed"):
            return ""
        if self.task == "think":
            match = _THOUGHT.search(self.text)
            return match[1].strip() if match else ""
        return explanation_of(self.text)


def in_format(attempt: Attempt) -> bool:
    """Whether an answer has the form that its task asks for.

    >>> in_format(Attempt("a", "<think>The brows rise.</think>\\n<answer>surprised</answer>", "think"))
    True
    >>> [in_format(Attempt("a", text)) for text in ("The brows rise.\\nEmotions: surprised", "surprised", "")]
    [True, False, False]
    >>> in_format(Attempt("a", "sad, tired", "labels")), in_format(Attempt("a", "She seems sad.", "labels"))
    (True, False)
    """
    text = attempt.text.strip()
    if attempt.finish == "length" or not text:
        return False
    if attempt.task == "think":
        match = _THINK.fullmatch(text)
        return match is not None and all(part.strip() and not re.search(r"< ?/?\w+>", part) for part in match.groups())
    if attempt.task == "both":
        head, lines = LABEL_LINE[attempt.lang].strip(), text.splitlines()
        marked = [number for number, line in enumerate(lines) if line.strip().startswith(head)]
        return marked == [len(lines) - 1] and bool(attempt.explanation and attempt.labels)
    if attempt.task in ("labels", "fixed"):
        return "\n" not in text and read_labels(text).how in ("words", "list")
    return True


# ---- wheels ----------------------------------------------------------------------------------------------------------


def wheel_scores(grouping: WheelGrouping, truth: Sequence[str], predicted: Sequence[str]) -> tuple[float, float, float]:
    """Precision, recall and F of one sample, averaged over the five wheels at level 1.

    It is the benchmark's primary score of this sample alone: on a wheel where the truth has no category, or neither set
    has one in common, all three are 0.

    >>> wheel_scores(WheelGrouping(load_lexicon()), ["sad"], ["sad", "happy"])
    (0.5, 1.0, 0.6666666666666666)
    """
    sums = [0.0, 0.0, 0.0]
    for name in LEVEL1:
        found = sample_score(grouping.map(truth, name), grouping.map(predicted, name))
        if found is not None:
            for place, value in enumerate((*found, harmonic_mean(*found))):
                sums[place] += value
    precision, recall, f_score = (total / len(LEVEL1) for total in sums)
    return precision, recall, f_score


def length_penalty(kind: str, n_predicted: int, n_true: int) -> float:
    """The factor by which a reward shrinks if an answer has more labels than the truth; otherwise 1.

    p1, p2 and p3 are those of AffectGPT-R1, nano that of Nano-EmoX; none = 1.

    >>> [round(length_penalty(kind, 4, 2), 3) for kind in PENALTIES], length_penalty("p1", 2, 2)
    ([1.0, 0.333, 0.5, 0.5, 0.683], 1.0)
    """
    if n_predicted <= n_true:
        return 1.0
    if kind == "p1":
        return 1 / (n_predicted - n_true + 1)
    if kind == "p2":
        return n_true / n_predicted
    if kind == "p3":
        return (math.log(n_true) if n_true > 1 else 1.0) / math.log(max(n_predicted, 2))
    if kind == "nano":
        return math.log(n_true + 1) / math.log(n_predicted + 1)
    return 1.0


PENALTIES = ("none", "p1", "p2", "p3", "nano")
ALIGNED = 0.5
"""Wheel F of explanation and labels from which they are aligned (AffectGPT-R1)."""


# ---- rewards ---------------------------------------------------------------------------------------------------------

NEEDS: Mapping[str, tuple[str, ...]] = {
    "wheel": ("labels",),
    "recall": ("labels",),
    "precision": ("labels",),
    "format": (),
    "alignment": ("explanation",),
    "dual": ("labels", "explanation"),
    "faithfulness": ("explanation",),
    "clues": ("description", "explanation"),
    "judge": ("labels", "judge"),
    "model": ("reward_model",),
}
"""Reward -> what it needs: true `labels` or a true `description` of the sample, a task whose answer has an
`explanation`, a chat model as a `judge`, a trained `reward_model` (which sees the clip, so
`Scorer` cannot compute it)."""

Reward = Callable[[Sequence[Attempt]], Sequence[float]]
"""A reward of a user: attempts -> one finite number each."""


class Scorer:
    """Computes rewards by name; a name with a dot is the path of a user's function, `package.module.function`.

    Args:
        penalty: length penalty of `wheel`, `recall` and `dual`, one of `PENALTIES`.
        judge: the chat model of the reward `judge`.
    """

    def __init__(
        self, *, lexicon: str | Lexicon = "builtin", penalty: str = "none", judge: ChatClient | None = None
    ) -> None:
        if penalty not in PENALTIES:
            raise InputError(f"length penalty {penalty!r}; expected one of {list(PENALTIES)}")
        self._lexicon = load_lexicon(lexicon)
        self._grouping = WheelGrouping(self._lexicon)
        self._penalty, self._judge = penalty, judge
        self._users: dict[str, Reward] = {}

    def reward(self, name: str, attempts: Sequence[Attempt]) -> list[float]:
        """The reward `name` of each attempt.

        Raises:
            InputError: an unknown reward, or a user's function that does not give one finite number for each attempt.
            ChatError: the judge gave no answer, or none that can be read. It never counts as a low reward.
        """
        if name == "judge":
            return self._judged(attempts)
        if name in NEEDS:
            return [float(getattr(self, f"_{name}")(attempt)) for attempt in attempts]
        if name not in self._users:
            self._users[name] = user_reward(name)
        values = [float(value) for value in self._users[name](list(attempts))]
        if len(values) != len(attempts) or not all(map(math.isfinite, values)):
            raise InputError(
                f"reward {name} gave {len(values)} values for {len(attempts)} answers, {values[:5]}...; expected one "
                "finite number for each"
            )
        return values

    def _wheel(self, attempt: Attempt) -> float:
        """Wheel F of the labels, times the length penalty."""
        return self._penalized(attempt, attempt.labels)[2]

    def _penalized(self, attempt: Attempt, labels: Sequence[str]) -> tuple[float, ...]:
        """`wheel_scores`, times the length penalty."""
        factor = length_penalty(self._penalty, len(set(labels)), len(set(attempt.truth)))
        return tuple(factor * score for score in wheel_scores(self._grouping, attempt.truth, labels))

    def _precision(self, attempt: Attempt) -> float:
        return wheel_scores(self._grouping, attempt.truth, attempt.labels)[0]

    def _recall(self, attempt: Attempt) -> float:
        """Wheel recall, times the length penalty: without one, the longer list is never worse."""
        return self._penalized(attempt, attempt.labels)[1]

    def _format(self, attempt: Attempt) -> float:
        return float(in_format(attempt))

    def _words(self, attempt: Attempt) -> tuple[str, ...]:
        """The emotion words that the explanation concludes."""
        return emotion_words(attempt.explanation, attempt.lang, self._lexicon)

    def _alignment(self, attempt: Attempt) -> float:
        """1 if explanation and labels express the same emotions."""
        return float(wheel_scores(self._grouping, attempt.labels, self._words(attempt))[2] >= ALIGNED)

    def _dual(self, attempt: Attempt) -> float:
        """`wheel` of the emotion words of the explanation."""
        return self._penalized(attempt, self._words(attempt))[2]

    def _faithfulness(self, attempt: Attempt) -> float:
        """Minus the share of the modalities that were not shown about which the explanation makes a statement."""
        absent = [name for name in CLUES if name not in attempt.shown]
        found = claims(attempt.explanation, attempt.lang)
        return -sum(name in found for name in absent) / len(absent) if absent else 0.0

    def _clues(self, attempt: Attempt) -> float:
        """F of the clues of the explanation against those of the reference."""
        prediction = Prediction(attempt.id, attempt.explanation, lang=attempt.lang, task="description")
        score = clue_scores([prediction], {attempt.id: attempt.reference}, n_bootstrap=0)["all"]
        return harmonic_mean(score.precision or 0.0, score.recall or 0.0)

    def _judged(self, attempts: Sequence[Attempt]) -> list[float]:
        """How much the emotions of answer and truth overlap, rated 1 to 10 by a chat model, as 0 to 1."""
        from affectgpt.chat.request import Request
        from affectgpt.chat.transport import ChatError
        from affectgpt.metrics.judge import judge_question, parse_score

        assert self._judge is not None, "the reward `judge` was not checked"
        asked = [attempt for attempt in attempts if attempt.text.strip()]
        truths = [", ".join(attempt.truth) for attempt in asked]
        questions = [
            Request(judge_question(truth, attempt.text, "label overlap"))
            for truth, attempt in zip(truths, asked, strict=True)
        ]
        scores: dict[int, float] = {}
        for attempt, reply in zip(asked, self._judge.answer(questions), strict=True):
            if (score := parse_score(reply.text)) is None:
                raise ChatError(
                    f"reward judge: {self._judge.where} rated the answer to {attempt.id!r} with {reply.text[:80]!r}, "
                    "which is no score from 1 to 10; take another model, or leave the reward out"
                )
            scores[id(attempt)] = (score - 1) / 9
        return [scores.get(id(attempt), 0.0) for attempt in attempts]


def user_reward(path: str) -> Reward:
    """The function that `package.module.function` names.

    Raises:
        InputError: no such reward, module or function.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise InputError(
            f"no reward is named {path!r}; expected some of {list(NEEDS)}, or the dotted path of a function, "
            "package.module.function"
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a fault in the user's module
        raise InputError(f"reward {path}: there is no module {error.name}; is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise InputError(f"reward {path}: module {module} has no function {name}")
    return found


# ---- groups ----------------------------------------------------------------------------------------------------------

ADVANTAGES = ("group", "centred", "each")


def advantages(rewards: np.ndarray, weights: Sequence[float], kind: str = "group") -> np.ndarray:
    """How much better each answer is than the others to the same prompt.  [P, G, K], [K] -> [P, G]

    Args:
        rewards: of P prompts, G answers each, K rewards.
        kind: "group" = the weighted sum, minus its mean over the group, divided by its standard deviation (GRPO);
            "centred" = not divided (Dr. GRPO); "each" = every reward is normalised on its own, then they are added with
            their weights (GDPO, and MER-R1 for recall and precision).

    >>> advantages(np.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]), [1, 0.5], "centred").tolist()
    [[0.25, -0.75, -0.25, 0.75]]
    >>> advantages(np.array([[[1.0], [1.0]]]), [1.0]).tolist()
    [[0.0, 0.0]]
    """
    if kind not in ADVANTAGES:
        raise InputError(f"advantages {kind!r}; expected one of {list(ADVANTAGES)}")
    by_reward = np.asarray(weights, dtype=float)
    if kind == "each":
        return _normalized(rewards) @ by_reward
    total = (rewards @ by_reward)[..., None]
    return (_normalized(total) if kind == "group" else total - total.mean(axis=1, keepdims=True))[..., 0]


_EPSILON = 1e-4  # as in TRL; groups whose rewards hardly differ are not blown up


def _normalized(rewards: np.ndarray) -> np.ndarray:
    """Zero mean and unit (population) standard deviation over the answers of a prompt.  [P, G, K]"""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, keepdims=True) + _EPSILON)


def repetition(text: str) -> float:
    """Share of the word triples (character triples in Chinese) of a text that occurred in it before.

    >>> repetition("sad, sad, sad, sad"), repetition("the brows rise and the jaw drops"), repetition("sad")
    (0.5, 0.0, 0.0)
    """
    words = re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def watched(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Means over answers that show when a reward is gamed.

    `n_labels`, `n_tokens`, `repetition` (see there), `in_format` and `truncated` (shares of the answers), and
    `absent_claims`: share of the answers that make a statement about a modality that was not shown.
    """
    absent = [claims(each.explanation, each.lang) - each.shown for each in attempts]
    return {
        "n_labels": _mean([len(each.labels) for each in attempts]),
        "n_tokens": _mean([each.n_tokens for each in attempts]),
        "repetition": _mean([repetition(each.text) for each in attempts]),
        "in_format": _mean([in_format(each) for each in attempts]),
        "truncated": _mean([each.finish == "length" for each in attempts]),
        "absent_claims": _mean([bool(found) for found in absent]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
