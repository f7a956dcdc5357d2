"""Several systems as one: union and majority of label sets, votes for one label, routing by validation.

Systems have an order: equal votes are decided by the system that is listed first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from affectgpt.runtime import InputError


def votes(
    labels: Mapping[str, Sequence[str]], same: Callable[[str], Hashable] = str.lower
) -> dict[str, tuple[str, ...]]:
    """Label -> the systems that give it, for one clip. Labels are in the order of systems and of their lists.

    Args:
        labels: system -> its labels.
        same: two labels with equal values are one label, in the words of the first system that gives it.

    >>> votes({"x": ["Sad", "tired"], "y": ["angry", "sad"]})
    {'Sad': ('x', 'y'), 'tired': ('x',), 'angry': ('y',)}
    """
    words: dict[Hashable, str] = {}
    found: dict[str, list[str]] = {}
    for system, given in labels.items():
        for label in given:
            word = words.setdefault(same(label), label)
            if system not in found.setdefault(word, []):
                found[word].append(system)
    return {word: tuple(systems) for word, systems in found.items()}


def union(found: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """All labels of `votes`."""
    return tuple(found)


def majority(found: Mapping[str, Sequence[str]], at_least: int) -> tuple[str, ...]:
    """The labels of `votes` that at least so many systems give; () if there is none.

    >>> majority(votes({"x": ["sad", "tired"], "y": ["angry", "sad"], "z": ["sad"]}), 2)
    ('sad',)
    """
    return tuple(label for label, systems in found.items() if len(systems) >= at_least)


def plurality(choices: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The most frequent choice, and the systems that give it; of equally frequent ones that of the first system.

    >>> plurality({"x": "a1", "y": "a2", "z": "a2"}), plurality({"x": "same", "y": "a2"})
    (('a2', ('y', 'z')), ('same', ('x',)))
    """
    found: dict[str, list[str]] = {}
    for system, choice in choices.items():
        found.setdefault(choice, []).append(system)
    best = max(found, key=lambda choice: len(found[choice]))  # the first of equals
    return best, tuple(found[best])


@dataclass(frozen=True)
class Route:
    """The system of one group of clips.

    Attributes:
        n: validation clips of the group.
        scores: system -> mean score of these clips.
        too_few: there are fewer than `min_clips`, so the best system of all clips is taken.
    """

    group: str
    system: str
    n: int
    scores: Mapping[str, float]
    too_few: bool


@dataclass(frozen=True)
class Routing:
    """Which system answers about which group of clips.

    Attributes:
        best: the system with the highest mean score on all validation clips; it answers about unknown groups.
        value: mean score of the validation clips, each by the system of its group: never below that of `best`.
        singles: system -> mean score of all validation clips.
        held_out: as `value`, but the systems are chosen without the clips that they are scored on (five folds): what
            to expect of new clips. It may be below that of `best`; None with fewer than ten clips.
    """

    best: str
    routes: Mapping[str, Route]
    value: float
    singles: Mapping[str, float]
    held_out: float | None

    def system_of(self, group: str) -> str:
        return self.routes[group].system if group in self.routes else self.best

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_FOLDS = 5


def route(
    scores: Mapping[str, Sequence[float]], groups: Sequence[str], *, min_clips: int = 20, seed: int = 42
) -> Routing:
    """Choose for each group of clips the system whose mean score on its validation clips is highest.

    A group with fewer than `min_clips` validation clips, and one without any, gets the system that is best on all
    clips. Of equally good systems the first is taken.

    Args:
        scores: system -> score of each validation clip, in the same order for all systems.
        groups: the group of each of these clips.
        seed: of the folds of `Routing.held_out`.

    >>> found = route({"x": [1.0, 0.0, 0.6], "y": [0.0, 1.0, 0.5]}, ["p", "q", "p"], min_clips=1)
    >>> found.best, {group: each.system for group, each in found.routes.items()}, round(found.value, 3)
    ('x', {'p': 'x', 'q': 'y'}, 0.867)
    """
    systems = list(scores)
    table = np.array([scores[name] for name in systems], dtype=float)  # [S, N]
    if not systems or table.ndim != 2 or table.shape[1] != len(groups) or not groups:
        raise InputError(f"{len(systems)} systems, {len(groups)} validation clips; expected a score of each for each")
    if not np.isfinite(table).all():
        raise InputError("a validation clip has no score; leave such clips out")
    names = np.array(groups, dtype=object)
    best, chosen = _choose(table, names, min_clips)
    routes = {}
    for group in dict.fromkeys(groups):
        inside = table[:, names == group]
        means = dict(zip(systems, map(float, inside.mean(axis=1)), strict=True))
        routes[group] = Route(group, systems[chosen[group]], inside.shape[1], means, inside.shape[1] < min_clips)
    return Routing(
        best=systems[best],
        routes=routes,
        value=_value(table, names, best, chosen),
        singles=dict(zip(systems, map(float, table.mean(axis=1)), strict=True)),
        held_out=_held_out(table, names, min_clips, seed),
    )


def _choose(table: np.ndarray, groups: np.ndarray, min_clips: int) -> tuple[int, dict[str, int]]:
    """The best system of all clips [S, N], and that of each group."""
    best = int(table.mean(axis=1).argmax())
    chosen = {}
    for group in dict.fromkeys(groups):
        inside = table[:, groups == group]
        chosen[group] = best if inside.shape[1] < min_clips else int(inside.mean(axis=1).argmax())
    return best, chosen


def _value(table: np.ndarray, groups: np.ndarray, best: int, chosen: Mapping[str, int]) -> float:
    return float(np.mean([table[chosen.get(group, best), clip] for clip, group in enumerate(groups)]))


def _held_out(table: np.ndarray, groups: np.ndarray, min_clips: int, seed: int) -> float | None:
    n = table.shape[1]
    if n < 2 * _FOLDS:
        return None
    fold = np.random.default_rng(seed).permutation(n) % _FOLDS
    total = 0.0
    for number in range(_FOLDS):
        inside = fold == number
        choice = _choose(table[:, ~inside], groups[~inside], min_clips)
        total += _value(table[:, inside], groups[inside], *choice) * inside.sum()
    return total / n
