"""What a stage minimizes: one file per objective; `stage.objective` is the file's name.

A file defines a dataclass `Objective` with the methods below. Its fields are settings, which a stage gives as
`objective_options`. One that needs more than a batch, such as the model before training or answers of the model, also
inherits from `Hooks`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from affectgpt.config import StageConfig, TrainConfig
from affectgpt.data.mixture import Source
from affectgpt.data.stream import Draw
from affectgpt.prompts import target_text
from affectgpt.runtime import InputError
from affectgpt.schema import Sample
from affectgpt.training.distributed import Processes

Row = dict[str, Any]
"""Tensors of one prompt with or without an answer, unbatched: what `processor.encode` returns."""


class Objective(Protocol):
    def rows(self, draw: Draw, encode: Callable[[str | None], Row]) -> list[Row]:
        """The rows of one training example, in a loader process.

        Args:
            encode: makes the row of the draw's prompt and an answer, whose tokens are the labels; None = no answer.
        """
        ...

    def collate(self, processor: Any, rows: Sequence[Row], packed: bool) -> dict[str, Tensor]:
        """The batch of the rows of several draws, in their order; in a loader process, if its media are encoded."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], n_labels: Tensor | None) -> Tensor:
        """The loss of a batch, in the training process.

        Args:
            model: the model as wrapped by the strategy; calling it synchronizes gradients.
            n_labels: labels in the whole optimizer step, over all its batches and processes. A sum divided by it gives
                the gradient of one large batch. None = the batch has no labels; return a mean over the batch.
        """
        ...


@dataclass(frozen=True)
class Started:
    """A stage whose first step comes next.

    Attributes:
        model: with its starting weights, not wrapped by a strategy.
        show: called in the first process with the step and rows of rollouts, for dashboards.
    """

    config: TrainConfig
    model: Any
    processor: Any
    processes: Processes
    run: Path
    show: Callable[[int, Sequence[Mapping[str, Any]]], None] | None = None


class Hooks:
    """What an objective may do in addition; by default nothing.

    Attributes:
        passes: optimizer steps in a row that get the same draws.
    """

    passes: int = 1

    def check(self, config: TrainConfig, sources: Sequence[Source]) -> None:
        """Refuse settings that do not fit, before there is a run folder; raises UserError."""

    def select(self, config: TrainConfig, sources: Sequence[Source]) -> Sequence[Source]:
        """The samples that the objective can use, before there is a run folder; called in every process."""
        return sources

    def answers(self, sample: Sample, task: str, lang: str, prompt_format: str) -> Sequence[str | None]:
        """The answers to a prompt that are trained on, for the check of their length; None = the prompt alone."""
        return [target_text(sample, task, lang, None, prompt_format)]

    def start(self, started: Started) -> None:
        """Before the first step, also of a resumed run."""

    def prepare(self, batches: list[Any], step: int, n_labels: Tensor | None) -> tuple[list[Any], Tensor | None]:
        """The batches of this process for the optimizer step after `step` steps, and their number of labels."""
        return batches, n_labels

    def metrics(self) -> dict[str, float]:
        """Figures for the log since they were last asked for."""
        return {}

    def save(self, checkpoint: Path) -> None:
        """Write what a resumed run needs; called in every process."""

    def load(self, checkpoint: Path | None, step: int) -> None:
        """The inverse; None = the run starts from step 0."""

    def finish(self) -> None:
        """After the last step of a finished run, in the first process."""


def of_stage(stage: StageConfig) -> Objective:
    """The objective of a stage with its settings."""
    given: dict[str, Any] = {"rewards": stage.rewards} if stage.rewards else {}
    if stage.group_size is not None:
        given["group_size"] = stage.group_size
    if given and stage.objective != "reward":
        raise InputError(f"stage.{next(iter(given))} is for stage.objective=reward, not for {stage.objective!r}")
    return load(stage.objective, {**stage.objective_options, **given})


def load(name: str, options: Mapping[str, Any]) -> Objective:
    """The objective `name` with its settings.

    Raises:
        InputError: there is no such objective or setting; the message lists those that exist.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise InputError(
            f"stage.objective is {name!r}; expected one of {names} (files in affectgpt/training/objectives)"
        )
    objective = importlib.import_module(f"{__name__}.{name}").Objective
    known = [field.name for field in dataclasses.fields(objective)]
    if unknown := sorted(options.keys() - set(known)):
        raise InputError(f"stage.objective_options has {unknown}; objective {name!r} has the settings {known}")
    return objective(**options)
