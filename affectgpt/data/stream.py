"""Which sample comes n-th in a training run: a table computed from the seed before the first step.

A run is one long list of draws. Draw n is a pure function of (seed, n), so a resumed run, another number of loader
workers or another number of processes sees the same samples in the same order, and nothing about the position in the
data has to be saved. Passes over a source are seeded permutations without replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from affectgpt.prompts import target_text
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES, TASKS, BadSample, Sample


@dataclass(frozen=True)
class Draw:
    """One training example: a sample, what is asked of it, and what of it is shown."""

    sample: Sample
    task: str
    lang: str
    modalities: tuple[str, ...]
    with_subtitle: bool
    candidates: tuple[str, ...] = ()  # task fixed: the labels to choose from


@dataclass(frozen=True)
class Recipe:
    """What training asks for and shows.

    Attributes:
        tasks, langs: weights, need not sum to 1.
        modality_dropout: chance that a medium is left out of an example (at least one always stays), so that the
            model also works where sound or pictures are missing.
        subtitle_dropout: chance that the subtitle is left out.
        candidates: task fixed: the labels to choose from, for sources that name none.
    """

    tasks: Mapping[str, float]
    langs: Mapping[str, float]
    modality_dropout: float = 0.0
    subtitle_dropout: float = 0.0
    candidates: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        samples: with probed `modalities`.
        weight: share of the draws relative to other parts.
        tasks, langs, candidates: this part's own; empty = those of the recipe (and for candidates, if there are none
            either, all labels of the part).
        files: the tables that the samples come from.
    """

    samples: Sequence[Sample]
    weight: float = 1.0
    tasks: Mapping[str, float] = field(default_factory=dict)
    langs: Mapping[str, float] = field(default_factory=dict)
    candidates: Sequence[str] = ()
    files: Sequence[str] = ()

    def asked(self, recipe: Recipe) -> tuple[dict[str, float], dict[str, float], tuple[str, ...]]:
        """(weights of tasks, weights of languages, candidates) that hold for this part; zero weights are gone."""
        tasks = {task: weight for task, weight in (self.tasks or recipe.tasks).items() if weight != 0}
        langs = {lang: weight for lang, weight in (self.langs or recipe.langs).items() if weight != 0}
        if "fixed" not in tasks:
            return tasks, langs, ()
        own = self.candidates or recipe.candidates or sorted({sample.label for sample in self.samples if sample.label})
        return tasks, langs, tuple(own)


def weighted(parts: Sequence[Part], weights: str) -> list[Part]:
    """Parts whose weights are as "given", or "proportional": times their number of samples."""
    if weights not in ("given", "proportional"):
        raise InputError(f"data.weights is {weights!r}; expected given or proportional")
    if weights == "given":
        return list(parts)
    return [replace(part, weight=part.weight * len(part.samples)) for part in parts]


class TrainingStream:
    """A map-style dataset of `length` draws from weighted sources.

    Args:
        parts: the sources of the mixture.
        modalities: branches that the model has; others are never shown.
        encode: makes the model's inputs out of a draw.
        bucket: so many draws in a row, those of one optimizer step, are taken in order of their texts' lengths, so that
            padded batches hold samples of like length. What a step holds stays the same; 1 = in the order drawn.

    Raises:
        ValueError: a sample lacks the texts that the recipe's tasks and languages ask for (named, with the count).
    """

    def __init__(
        self,
        parts: Sequence[Part],
        recipe: Recipe,
        *,
        modalities: Sequence[str],
        length: int,
        seed: int,
        encode: Callable[[Draw], Any],
        bucket: int = 1,
    ) -> None:
        self._parts = [part.samples for part in parts]
        self._recipe = recipe
        self._modalities = tuple(modalities)
        self._encode = encode
        self._bucket = bucket
        self._order: tuple[int, list[int]] = (-1, [])  # of the bucket that was asked for last: its start, its draws
        self._length = length
        asked = [part.asked(recipe) for part in parts]
        for part, (tasks, langs, choice) in zip(parts, asked, strict=True):
            with_texts(part.samples, tasks, langs, choice)
        self._asked = [(list(tasks), list(langs), choice) for tasks, langs, choice in asked]
        weights = np.array([part.weight for part in parts], dtype=float)
        if (weights < 0).any() or weights.sum() <= 0:
            raise InputError(f"weights of sources must be at least 0 with a positive sum, found {weights.tolist()}")
        # The seeds of the columns are independent, so that adding a modality does not reshuffle the samples.
        columns = ("source", "task", "lang", "drop", "drop_faces")
        column = {name: np.random.default_rng([seed, number]) for number, name in enumerate(columns)}
        self._source = column["source"].choice(len(parts), length, p=weights / weights.sum()).astype(np.int32)
        self._index = np.empty(length, dtype=np.int32)
        self._task, self._lang = np.empty(length, dtype=np.int16), np.empty(length, dtype=np.int16)
        task_dice, lang_dice = column["task"].random(length), column["lang"].random(length)
        for number, (tasks, langs, _) in enumerate(asked):
            places = np.flatnonzero(self._source == number)
            self._index[places] = _passes(len(self._parts[number]), len(places), seed, number)
            self._task[places] = _weighted(task_dice[places], tasks)
            self._lang[places] = _weighted(lang_dice[places], langs)
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
        sample = self._parts[self._source[n]][self._index[n]]
        tasks, langs, candidates = self._asked[self._source[n]]
        task, lang = tasks[self._task[n]], langs[self._lang[n]]
        has = [name for name in MODALITIES if name in (sample.modalities or ()) and name in self._modalities]
        dice = dict(zip(MODALITIES, self._dice[n, :-1], strict=True))
        shown = [name for name in has if dice[name] >= self._recipe.modality_dropout]
        if has and not shown:
            shown = [max(has, key=lambda name: dice[name])]
        with_subtitle = not shown or bool(self._dice[n, -1] >= self._recipe.subtitle_dropout)
        return Draw(sample, task, lang, tuple(shown), with_subtitle, candidates if task == "fixed" else ())

    def __getitem__(self, n: int) -> Any:
        if self._bucket > 1:
            start = n - n % self._bucket
            if self._order[0] != start:
                places = range(start, min(start + self._bucket, self._length))
                self._order = start, sorted(places, key=lambda place: _n_bytes(self.draw(place)))
            n = self._order[1][n - start]
        return self._encode(self.draw(n))


def _n_bytes(draw: Draw) -> int:
    """Length of a draw's own words, which goes with its number of tokens."""
    subtitle = draw.sample.subtitle if draw.with_subtitle else None
    return len((target_text(draw.sample, draw.task, draw.lang) + (subtitle or "")).encode())


def _passes(n_samples: int, length: int, seed: int, source: int) -> np.ndarray:
    """`length` indices into `n_samples`: one seeded permutation after the other."""
    n_passes = -(-length // n_samples)
    order = [np.random.default_rng([seed, source, turn]).permutation(n_samples) for turn in range(n_passes)]
    return np.concatenate(order)[:length] if order else np.empty(0, dtype=np.int64)


def _weighted(dice: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Which of the weighted values each of the `dice` in 0..1 stands for, as `Generator.choice` would draw them."""
    values = np.array(list(weights.values()), dtype=float)
    if (values < 0).any() or values.sum() <= 0:
        raise InputError(f"weights must be at least 0 with a positive sum, found {dict(weights)}")
    bounds = (values / values.sum()).cumsum()
    return (bounds / bounds[-1]).searchsorted(dice, side="right")


_BOTH = ("description", "labels")
_NEEDS = {"description": _BOTH[:1], "labels": _BOTH[1:], "both": _BOTH, "fixed": ("label",)}


def with_texts(
    samples: Sequence[Sample],
    tasks: Iterable[str],
    langs: Iterable[str],
    candidates: Sequence[str] = (),
    *,
    on_bad: str = "raise",
) -> tuple[list[Sample], list[BadSample]]:
    """Split `samples` into those that have the texts for all `tasks` in all `langs`, and the others with the reason.

    Raises:
        ValueError: an unknown task; with on_bad "raise", samples that lack texts (one named, with the count).
    """
    tasks, langs = list(tasks), list(langs)
    if odd := [task for task in tasks if task not in TASKS]:
        raise InputError(f"unknown tasks {odd}; expected some of {list(TASKS)}")
    good: list[Sample] = []
    bad: list[BadSample] = []
    for sample in samples:
        reasons = [_lack(sample, task, lang, candidates) for lang in langs for task in tasks]
        if reason := next(filter(None, reasons), None):
            bad.append(BadSample(sample.id, str(sample.video or sample.audio or sample.id), reason))
        else:
            good.append(sample)
    if bad and on_bad == "raise":
        raise InputError(
            f"{bad[0].reason}; {len(bad)} samples lack texts for tasks {tasks} in {langs}. Ask a source for what "
            "it has (tasks: {labels: 1.0} in its YAML), or leave such samples out with data.on_bad=skip"
        )
    return good, bad


def _lack(sample: Sample, task: str, lang: str, candidates: Sequence[str]) -> str | None:
    """What `sample` lacks for a task, or None."""
    if lang != sample.lang or not all(getattr(sample, name) for name in _NEEDS[task]):
        try:
            target_text(sample, task, lang)
        except ValueError as error:
            return str(error)
    if task == "fixed" and (label := target_text(sample, task, lang)) not in candidates:
        return f"sample {sample.id!r}: its label {label!r} is none of the candidates {list(candidates)}"
    return None
