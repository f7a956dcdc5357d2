"""Which sample comes n-th in a training run: a table computed from the seed before the first step.

A run is a sequence of draws. Draw n is a pure function of (seed, n), so a resumed run, or one with another number of
loader workers or processes, sees the same samples in the same order, and no position in the data has to be saved.
Passes over a source are seeded permutations without replacement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.clauses import shown_clues
from affectgpt.data.mixture import TARGETS, Source
from affectgpt.prompts import says_something, target_labels, target_text
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES, Sample


@dataclass(frozen=True)
class Draw:
    """One training example: a sample, what is asked about it, and which of its media are shown.

    `clues` are the clue modalities that the target keeps (see `prompts.target_text`); None = the complete target.
    """

    sample: Sample
    task: str
    lang: str
    modalities: tuple[str, ...]
    with_subtitle: bool
    candidates: tuple[str, ...] = ()  # task fixed: the labels to choose from
    clues: frozenset[str] | None = None
    prompt_format: str = "chat"  # of the processor, for `target_text`

    @property
    def target(self) -> str:
        """The text that the model learns to answer."""
        return target_text(self.sample, self.task, self.lang, self.clues, self.prompt_format)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that a right answer has: those that the target states."""
        return target_labels(self.sample, self.lang, self.clues)


class TrainingStream:
    """A map-style dataset of `length` draws from weighted sources.

    Args:
        modalities: branches that the model has; others are never shown.
        modality_dropout: probability that a modality is hidden from an example (one always stays), so that the model
            also learns to answer without sound or pictures.
        subtitle_dropout: probability that the subtitle is hidden.
        targets: "shown" keeps the clauses of a description that rest on what is shown (see `clauses.fit`), "complete"
            keeps all of it. A description of which nothing would be left is shown with everything that the clip has.
        bucket: number of consecutive draws, those of one optimizer step, that are sorted by the length of their texts,
            so that padded batches hold samples of similar length. Steps keep their samples; 1 = no sorting.
        prompt_format: of the processor; no draw depends on it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        modalities: Sequence[str],
        length: int,
        seed: int,
        modality_dropout: float = 0.0,
        subtitle_dropout: float = 0.0,
        targets: str = "shown",
        bucket: int = 1,
        prompt_format: str = "chat",
    ) -> None:
        self._prompt_format = prompt_format
        if targets not in TARGETS:
            raise InputError(f"stage.targets is {targets!r}; expected one of {list(TARGETS)}")
        self._sources = list(sources)
        self._modalities = tuple(modalities)
        self._length = length
        self._modality_dropout = modality_dropout
        self._subtitle_dropout = subtitle_dropout
        self._fit = targets == "shown"
        self._bucket = bucket
        self._sorted: tuple[int, list[int]] = (-1, [])  # the last bucket asked for: its start, its draws in order
        weights = np.array([source.weight for source in sources], dtype=float)
        if (weights < 0).any() or weights.sum() <= 0:
            raise InputError(f"weights of sources must be at least 0 with a positive sum, found {weights.tolist()}")
        # Independent seeds per column, so that adding a modality does not reshuffle the samples.
        columns = ("source", "task", "lang", "drop", "drop_faces", "candidates")
        column = {name: np.random.default_rng([seed, number]) for number, name in enumerate(columns)}
        self._source = column["source"].choice(len(sources), length, p=weights / weights.sum()).astype(np.int32)
        self._index = np.empty(length, dtype=np.int32)
        self._task, self._lang = np.empty(length, dtype=np.int16), np.empty(length, dtype=np.int16)
        task_dice, lang_dice = column["task"].random(length), column["lang"].random(length)
        for number, source in enumerate(sources):
            places = np.flatnonzero(self._source == number)
            self._index[places] = _passes(len(source.samples), len(places), seed, number)
            self._task[places] = _choose(task_dice[places], source.tasks)
            self._lang[places] = _choose(lang_dice[places], source.langs)
        # The first three modalities and the subtitle share a column; the draws of a seed depend on it.
        dice = column["drop"].random((length, 4), dtype=np.float32)
        faces = column["drop_faces"].random((length, len(MODALITIES) - 3), dtype=np.float32)
        self._dice = np.concatenate([dice[:, :3], faces, dice[:, 3:]], axis=1)  # [length, modalities + subtitle]

        n_dropped = max(len(source.drop_candidates) for source in sources)
        self._candidate_dice = column["candidates"].random((length, n_dropped), dtype=np.float32)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, n: int) -> Draw:
        """The n-th draw in loading order."""
        if self._bucket > 1:
            start = n - n % self._bucket
            if self._sorted[0] != start:
                places = range(start, min(start + self._bucket, self._length))
                self._sorted = start, sorted(places, key=lambda place: _text_bytes(self.draw(place)))
            n = self._sorted[1][n - start]
        return self.draw(n)

    def draw(self, n: int) -> Draw:
        """The n-th draw of the run, regardless of buckets."""
        if not 0 <= n < self._length:
            raise IndexError(n)
        source = self._sources[self._source[n]]
        sample = source.samples[self._index[n]]
        task, lang = list(source.tasks)[self._task[n]], list(source.langs)[self._lang[n]]
        has = [name for name in MODALITIES if name in (sample.modalities or ()) and name in self._modalities]
        dice = dict(zip(MODALITIES, self._dice[n, :-1], strict=True))
        shown = [name for name in has if dice[name] >= self._modality_dropout]
        if has and not shown:
            shown = [max(has, key=lambda name: dice[name])]
        with_subtitle = not shown or bool(self._dice[n, -1] >= self._subtitle_dropout)
        candidates = self._candidates(n, source, target_text(sample, task, lang)) if task == "fixed" else ()
        clues = self._clues(sample, lang, shown, with_subtitle)
        if clues is not None and task == "description" and not says_something(sample, lang, clues):
            shown, with_subtitle = has, True
            clues = self._clues(sample, lang, shown, with_subtitle)
        return Draw(sample, task, lang, tuple(shown), with_subtitle, candidates, clues, self._prompt_format)

    def _candidates(self, n: int, source: Source, answer: str) -> tuple[str, ...]:
        dice = dict(zip(source.drop_candidates, self._candidate_dice[n], strict=False))  # others have more columns
        return tuple(
            name
            for name in source.candidates
            if name == answer or name not in dice or dice[name] >= source.drop_candidates[name]
        )

    def _clues(self, sample: Sample, lang: str, shown: Sequence[str], with_subtitle: bool) -> frozenset[str] | None:
        if not self._fit:
            return None
        subtitle = with_subtitle and bool(sample.in_language(lang, strict=False).subtitle)
        return shown_clues(shown, subtitle=subtitle)


class RepeatedSteps:
    """The draws of `stream` with each optimizer step `passes` times in a row; of the same length.

    >>> steps = RepeatedSteps(range(6), samples_per_step=2, passes=2)
    >>> [steps[n] for n in range(len(steps))]
    [0, 1, 0, 1, 2, 3]
    """

    def __init__(self, stream: Sequence[Any], samples_per_step: int, passes: int) -> None:
        self._stream, self._samples_per_step, self._passes = stream, samples_per_step, passes

    def __len__(self) -> int:
        return len(self._stream)

    def __getitem__(self, n: int) -> Any:
        step, place = divmod(n, self._samples_per_step)
        return self._stream[step // self._passes * self._samples_per_step + place]


def _text_bytes(draw: Draw) -> int:
    """Size of a draw's own texts, which grows with its number of tokens."""
    subtitle = draw.sample.subtitle if draw.with_subtitle else None
    return len((draw.target + (subtitle or "")).encode())


def _passes(n_samples: int, length: int, seed: int, source: int) -> np.ndarray:
    """`length` indices into `n_samples`: consecutive seeded permutations."""
    n_passes = -(-length // n_samples)
    order = [np.random.default_rng([seed, source, turn]).permutation(n_samples) for turn in range(n_passes)]
    return np.concatenate(order)[:length] if order else np.empty(0, dtype=np.int64)


def _choose(dice: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Index of the weighted value that each of the `dice` in 0..1 selects, as `Generator.choice` would."""
    values = np.array(list(weights.values()), dtype=float)
    if (values < 0).any() or values.sum() <= 0:
        raise InputError(f"weights must be at least 0 with a positive sum, found {dict(weights)}")
    bounds = (values / values.sum()).cumsum()
    return (bounds / bounds[-1]).searchsorted(dice, side="right")
