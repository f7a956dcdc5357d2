"""Which sample comes n-th in a training run: a table computed from the seed before the first step.

A run is one long list of draws. Draw n is a pure function of (seed, n), so a resumed run, another number of loader
workers or another number of processes sees the same samples in the same order, and nothing about the position in the
data has to be saved. Passes over a source are seeded permutations without replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.prompts import MODALITIES, TASKS, answer
from affectgpt.schema import Sample


@dataclass(frozen=True)
class Draw:
    """One training example: a sample, what is asked of it, and what of it is shown."""

    sample: Sample
    task: str
    lang: str
    modalities: tuple[str, ...]
    with_subtitle: bool


@dataclass(frozen=True)
class Recipe:
    """What training asks for and shows.

    Attributes:
        tasks, langs: weights, need not sum to 1.
        modality_dropout: chance that a medium is left out of an example (at least one always stays), so that the
            model also works where sound or pictures are missing.
        subtitle_dropout: chance that the subtitle is left out.
    """

    tasks: Mapping[str, float]
    langs: Mapping[str, float]
    modality_dropout: float = 0.0
    subtitle_dropout: float = 0.0


class TrainingStream:
    """A map-style dataset of `length` draws from weighted sources.

    Args:
        sources: (samples, weight) pairs; the samples' `modalities` are probed.
        modalities: branches that the model has; others are never shown.
        encode: makes the model's inputs out of a draw.

    Raises:
        ValueError: a sample lacks the texts that the recipe's tasks and languages ask for (named, with the count).
    """

    def __init__(
        self,
        sources: Sequence[tuple[Sequence[Sample], float]],
        recipe: Recipe,
        *,
        modalities: Sequence[str],
        length: int,
        seed: int,
        encode: Callable[[Draw], Any],
    ) -> None:
        self._sources = [samples for samples, _ in sources]
        self._recipe = recipe
        self._modalities = tuple(modalities)
        self._encode = encode
        self._length = length
        self._tasks = list(recipe.tasks)
        self._langs = list(recipe.langs)
        _check_texts(self._sources, self._tasks, self._langs)
        weights = np.array([weight for _, weight in sources], dtype=float)
        # The seeds of the columns are independent, so that adding a modality does not reshuffle the samples.
        columns = ("source", "task", "lang", "drop", "drop_faces")
        column = {name: np.random.default_rng([seed, number]) for number, name in enumerate(columns)}
        self._source = column["source"].choice(len(sources), length, p=weights / weights.sum()).astype(np.int32)
        self._index = np.empty(length, dtype=np.int32)
        for number, samples in enumerate(self._sources):
            places = np.flatnonzero(self._source == number)
            self._index[places] = _passes(len(samples), len(places), seed, number)
        self._task = _weighted(column["task"], recipe.tasks, length)
        self._lang = _weighted(column["lang"], recipe.langs, length)
        # The three first modalities and the subtitle share a column, so that runs from before face crops draw the same.
        dice = column["drop"].random((length, 4), dtype=np.float32)
        faces = column["drop_faces"].random((length, len(MODALITIES) - 3), dtype=np.float32)
        self._dice = np.concatenate([dice[:, :3], faces, dice[:, 3:]], axis=1)  # [length, modalities + subtitle]

    def __len__(self) -> int:
        return self._length

    def draw(self, n: int) -> Draw:
        """The n-th draw of the run."""
        if not 0 <= n < self._length:
            raise IndexError(n)
        sample = self._sources[self._source[n]][self._index[n]]
        has = [name for name in MODALITIES if name in (sample.modalities or ()) and name in self._modalities]
        dice = dict(zip(MODALITIES, self._dice[n, :-1], strict=True))
        shown = [name for name in has if dice[name] >= self._recipe.modality_dropout]
        if has and not shown:
            shown = [max(has, key=lambda name: dice[name])]
        with_subtitle = not shown or bool(self._dice[n, -1] >= self._recipe.subtitle_dropout)
        return Draw(sample, self._tasks[self._task[n]], self._langs[self._lang[n]], tuple(shown), with_subtitle)

    def __getitem__(self, n: int) -> Any:
        return self._encode(self.draw(n))


def _passes(n_samples: int, length: int, seed: int, source: int) -> np.ndarray:
    """`length` indices into `n_samples`: one seeded permutation after the other."""
    n_passes = -(-length // n_samples)
    order = [np.random.default_rng([seed, source, turn]).permutation(n_samples) for turn in range(n_passes)]
    return np.concatenate(order)[:length] if order else np.empty(0, dtype=np.int64)


def _weighted(rng: np.random.Generator, weights: Mapping[str, float], length: int) -> np.ndarray:
    values = np.array(list(weights.values()), dtype=float)
    if (values < 0).any() or values.sum() <= 0:
        raise ValueError(f"weights must be at least 0 with a positive sum, found {dict(weights)}")
    return rng.choice(len(values), length, p=values / values.sum()).astype(np.int16)


def _check_texts(sources: Sequence[Sequence[Sample]], tasks: Sequence[str], langs: Sequence[str]) -> None:
    if odd := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"unknown tasks {odd}; expected some of {list(TASKS)}")
    problems = []
    for samples in sources:
        for sample in samples:
            try:
                for lang in langs:
                    for task in tasks:
                        answer(sample, task, lang)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError(f"{problems[0]}; {len(problems)} samples lack texts for tasks {list(tasks)} in {list(langs)}")
