"""Track 3 of MER2026 (EmoPrefer): which of two descriptions of a clip people prefer, and which models they prefer.

Choices are "a1", "a2" and "same". The scores and the reading of answers are those of the published code (MERTools,
MER2026_Track3), quirks included; strict versions have their own names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from affectgpt.runtime import InputError

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
    text = answer.lower()
    for choice in CHOICES:
        if text.startswith(choice):
            return choice
    if not any(choice in text for choice in CHOICES):
        return "same"
    return min(CHOICES, key=lambda choice: at if (at := text.find(choice)) >= 0 else _FAR)


def strict_choice(answer: str) -> str | None:
    """The only choice that an answer names as a word; None if it names none or several.

    >>> [strict_choice(text) for text in (" A2.", "a2, not a1", "I cannot tell", "Ua1")]
    ['a2', None, None, None]
    """
    found = set(re.findall(r"\b(?:a1|a2|same)\b", answer.lower()))
    return found.pop() if len(found) == 1 else None


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
