"""Track 3 of MER2026 (EmoPrefer): which of two descriptions of a clip people prefer, and which models they prefer.

Choices are "a1", "a2" and "same". The scores and the reading of answers are those of the published code (MERTools,
MER2026_Track3), quirks included; strict versions have their own names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from affectgpt.metrics.classification import Classification, classify
from affectgpt.metrics.stats import Rate
from affectgpt.runtime import InputError
from affectgpt.tables import cell_text, id_of, read_rows

CHOICES = ("a1", "a2", "same")
_FAR = 10_000  # the published code's position of a choice that does not occur


def published_choice(answer: str) -> str:
    """The choice in an answer, as the published code reads it.

    The answer's beginning decides, else the choice that occurs first, else it is "same". Choices are found inside other
    words; a choice that occurs only after 10,000 characters loses to those that do not occur.

    >>> [published_choice(text) for text in ("A2.", "Option a2, not a1", "I cannot tell", "Both tell the same", "Ua1")]
    ['a2', 'a2', 'same', 'same', 'a1']
    >>> published_choice("." * 10_001 + "a2")
    'a1'
    """
    return read_choice(answer)[0]


def read_choice(answer: str) -> tuple[str, str]:
    """`published_choice`, and how it was found, one of `HOW`.

    >>> [read_choice(text)[1] for text in ("a2", "A2.", "Option a2, not a1", "I cannot tell")]
    ['exact', 'beginning', 'first', 'none']
    """
    text = answer.lower()
    for choice in CHOICES:
        if text.startswith(choice):
            return choice, "exact" if text == choice else "beginning"
    if not any(choice in text for choice in CHOICES):
        return "same", "none"
    return min(CHOICES, key=lambda choice: at if (at := text.find(choice)) >= 0 else _FAR), "first"


HOW = ("exact", "beginning", "first", "none")
"""How a choice was found: the answer is the choice, begins with it, names it first, or names none (then "same")."""
NOT_ANSWERED = "not answered"
"""In the column `how` of our tables: the row has no answer and counts as "same"."""
EXCHANGED = {"a1": "a2", "a2": "a1", "same": "same"}
"""The choice that says the same once a1 and a2 are exchanged."""


def strict_choice(answer: str) -> str | None:
    """The only choice that an answer names as a word; None if it names none or several.

    >>> [strict_choice(text) for text in (" A2.", "a2, not a1", "I cannot tell", "Ua1")]
    ['a2', None, None, None]
    """
    found = set(re.findall(r"\b(?:a1|a2|same)\b", answer.lower()))
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class PreferenceScores:
    """Scores of choices against those of people.

    Attributes:
        two: the official scores of the classes a1 and a2: pairs with the truth "same" are left out, a predicted "same"
            counts as a1.
        three: scores of the classes a1, a2 and same.
        strict: as `two`, but an answer that is "same", or does not name exactly one of a1 and a2, is wrong.
        n_same: pairs with the truth "same", which `two` and `strict` leave out.
        read: how the choices were found (`HOW`) -> how many answers.
    """

    two: Classification
    three: Classification
    strict: Classification
    n_same: int
    read: Mapping[str, int]


def score_choices(truths: Sequence[str], answers: Sequence[str]) -> PreferenceScores:
    """Score answers, which are read by `read_choice`, against the choices of people, row by row.

    >>> found = score_choices(["a1", "a2", "a2", "same"], ["a1", "Better is a2.", "no idea", "same"])
    >>> round(found.two.weighted_f1, 3), found.three.accuracy, found.strict.unparsed, found.n_same, found.read["none"]
    (0.667, 0.75, 1, 1, 1)

    Raises:
        InputError: different numbers of rows, or no pair of which people prefer one.
    """
    if len(truths) != len(answers):
        raise InputError(f"{len(truths)} true choices and {len(answers)} answers; expected one answer for each row")
    found = [read_choice(answer) for answer in answers]
    choices = [choice for choice, _ in found]
    kept = [row for row, truth in enumerate(truths) if truth != "same"]
    if not kept:
        raise InputError(f"people prefer neither in all {len(truths)} pairs; the two-class score needs one they prefer")
    judged = [truths[row] for row in kept]
    strict = [strict_choice(answers[row]) for row in kept]
    read = Counter(how for _, how in found)
    return PreferenceScores(
        two=classify(judged, ["a2" if choices[row] == "a2" else "a1" for row in kept], CHOICES[:2]),
        three=classify(truths, choices, CHOICES),
        strict=classify(judged, strict, CHOICES[:2]),
        n_same=len(truths) - len(kept),
        read={how: read[how] for how in HOW},
    )


def swap_consistency(answers: Sequence[str], exchanged: Sequence[str]) -> Rate:
    """The share of pairs whose choice is exchanged when a1 and a2 are, "same" staying "same".

    Args:
        exchanged: answers to the same rows with a1 and a2 exchanged.

    >>> swap_consistency(["a1", "a2", "same"], ["a2", "a2", "same"])
    Rate(count=2, n=3)
    """
    if len(answers) != len(exchanged):
        raise InputError(f"{len(answers)} answers and {len(exchanged)} after the exchange; expected the same rows")
    pairs = zip(map(published_choice, answers), map(published_choice, exchanged), strict=True)
    return Rate(sum(second == EXCHANGED[first] for first, second in pairs), len(answers))


@dataclass(frozen=True)
class AnsweredPair:
    """A row of answers: `answer` is a choice or a longer text; a1 and a2 are None if the table does not have them."""

    where: str
    name: str
    a1: str | None
    a2: str | None
    answer: str


def read_answers(path: Path) -> list[AnsweredPair]:
    """The rows of a table with name and preference (or text, an answer), in file order. Names may repeat.

    In tables of `python -m affectgpt.prefer`, the answer is in `answer`; one without a choice is "" here.

    Raises:
        InputError: a row without preference and text, or an unreadable table.
    """
    found = []
    for number, (where, row) in enumerate(read_rows(path, known=("a1", "a2", "preference", "text")), 1):
        name = id_of(row, where)
        answer = cell_text(row.get("answer")) or cell_text(row.get("preference", row.get("text")))
        if row.get("how") in ("none", NOT_ANSWERED):
            answer = ""
        if answer is None:
            raise InputError(f"{where}: row {number} ({name!r}) has no preference and no text")
        found.append(AnsweredPair(where, name, cell_text(row.get("a1")), cell_text(row.get("a2")), answer))
    return found


def check_rows(
    answers: Sequence[AnsweredPair], wanted: Sequence[Sequence[str | None]], of: str, *, exchanged: bool = False
) -> None:
    """Raise InputError unless `answers` are about the rows `wanted` (name, a1, a2), in their order.

    Args:
        of: what the rows are, for messages, such as "the candidates".
        exchanged: a1 and a2 of the answers are a2 and a1 of the rows.
    """
    for number, (row, (name, *texts)) in enumerate(zip(answers, wanted, strict=False), 1):
        own = [row.a2, row.a1] if exchanged else [row.a1, row.a2]
        differ = [a is not None and b is not None and a.split() != b.split() for a, b in zip(own, texts, strict=True)]
        if row.name.split() != (name or "").split() or any(differ):
            what = "other descriptions" if any(differ) else "another clip"
            raise InputError(
                f"{row.where}: row {number} is of {row.name!r}, and not row {number} of {of}, {name!r} ({what}"
                f"{', after exchanging a1 and a2' if exchanged else ''})"
            )
    if len(answers) > len(wanted):
        raise InputError(f"{answers[len(wanted)].where}: more rows than the {len(wanted)} of {of}")
    if len(answers) < len(wanted):
        where = answers[0].where.rpartition(":")[0] if answers else "the table"
        raise InputError(f"{where}: {len(answers)} rows, but {len(wanted)} of {of}; rows must have their order")


def true_choices(rows: Sequence[AnsweredPair]) -> list[str]:
    """The choices of people in `rows`; "tie" is "same". InputError for anything else."""
    found = []
    for row in rows:
        choice = {"tie": "same"}.get(value := row.answer.lower(), value)
        if choice not in CHOICES:
            raise InputError(f"{row.where}: preference is {row.answer!r}; expected one of {list(CHOICES)}")
        found.append(choice)
    return found


@dataclass(frozen=True)
class Ranking:
    """Strengths of models, the strongest first; they sum to 1.

    Attributes:
        strengths: model -> strength; a is preferred to b with the probability a / (a + b).
        intervals: model -> 95 % bootstrap interval over comparisons.
        wins, comparisons: model -> how many; ties count as half a win if they count at all.
        undetermined: (a, b) if no chain of wins leads from a to b: how much weaker a is has then no finite estimate.
    """

    strengths: dict[str, float]
    wins: dict[str, float]
    comparisons: dict[str, float]
    ties: int
    undetermined: tuple[str, str] | None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def rank_models(
    pairs: Iterable[tuple[str, str, str]], *, ties: bool = False, n_bootstrap: int = 1000, seed: int = 42
) -> Ranking:
    """Bradley-Terry strengths of models (Bradley and Terry 1952), as EmoPrefer ranks them.

    Args:
        pairs: model a1, model a2, and the choice "a1", "a2" or "same".
        ties: count "same" as half a win of both; else it is left out, as in the two-class score.

    Raises:
        InputError: a model is compared with itself, an unknown choice, or no comparison that counts.

    >>> result = rank_models([("x", "y", "a1"), ("x", "y", "a1"), ("y", "x", "a1")], n_bootstrap=0)
    >>> {name: round(value, 4) for name, value in result.strengths.items()}, result.undetermined
    ({'x': 0.6667, 'y': 0.3333}, None)
    """
    rows = list(pairs)
    for number, (first, second, choice) in enumerate(rows, 1):
        if first == second or choice not in CHOICES:
            raise InputError(
                f"comparison {number}: {first!r} and {second!r}, preferred {choice!r}; expected two different models "
                f"and one of {list(CHOICES)}"
            )
    counts = Counter(row for row in rows if ties or row[2] != "same")
    if not counts:
        raise InputError(f"{len(rows)} comparisons, none of which counts; expected some that prefer a1 or a2")
    names = sorted({name for row in counts for name in row[:2]})
    place = {name: number for number, name in enumerate(names)}
    share = {"a1": 1.0, "a2": 0.0, "same": 0.5}
    wins = np.zeros((len(counts), len(names), len(names)))  # of one comparison of each kind, [K, M, M]
    for number, (first, second, choice) in enumerate(counts):
        wins[number, place[first], place[second]] = share[choice]
        wins[number, place[second], place[first]] = 1 - share[choice]
    often = np.array(list(counts.values()))  # [K]
    total = np.tensordot(often, wins, axes=1)
    strengths = bradley_terry(total)
    order = sorted(range(len(names)), key=lambda number: -strengths[number])
    intervals = {}
    if n_bootstrap:
        drawn = np.random.default_rng(seed).multinomial(often.sum(), often / often.sum(), n_bootstrap)
        resampled = bradley_terry(np.tensordot(drawn, wins, axes=1), rounds=200)  # [n_bootstrap, M]
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        intervals = {names[number]: (float(low[number]), float(high[number])) for number in order}
    of = [(names[number], number) for number in order]
    return Ranking(
        strengths={name: float(strengths[number]) for name, number in of},
        wins={name: float(total[number].sum()) for name, number in of},
        comparisons={name: float((total + total.T)[number].sum()) for name, number in of},
        ties=sum(row[2] == "same" for row in rows),
        undetermined=_apart(total, [names[number] for number in order], order),
        intervals=intervals,
    )


def bradley_terry(wins: np.ndarray, *, rounds: int = 10_000, tolerance: float = 1e-9) -> np.ndarray:
    """Maximum likelihood by s_i <- W_i / sum_j n_ij / (s_i + s_j), normalized, until no strength changes by more.

    The code of EmoPrefer stops after 50 rounds or a change of 1e-6.

    Args:
        wins: how often i was preferred to j, [..., M, M].

    Returns:
        strengths [..., M], which sum to 1.
    """
    n = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    strengths = np.full(won.shape, 1 / won.shape[-1])
    for _ in range(rounds):
        both = strengths[..., :, None] + strengths[..., None, :]
        expected = np.divide(n, both, out=np.zeros_like(n), where=both > 0).sum(axis=-1)
        new = np.divide(won, expected, out=np.zeros_like(won), where=expected > 0)
        new /= new.sum(axis=-1, keepdims=True)
        change, strengths = np.abs(new - strengths).max(), new
        if change < tolerance:
            break
    return strengths


def _apart(wins: np.ndarray, names: Sequence[str], order: Sequence[int]) -> tuple[str, str] | None:
    """A weaker and a stronger model between which no chain of wins leads up; None if every pair has one."""
    reached = (wins[np.ix_(order, order)] > 0) | np.eye(len(order), dtype=bool)
    for _ in order:
        reached = reached @ reached
    missing = np.argwhere(~reached)
    return (names[missing[-1][0]], names[missing[-1][1]]) if len(missing) else None
