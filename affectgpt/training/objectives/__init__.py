"""What a stage minimizes: one file per objective; `stage.objective` is the file's name.

A file defines a dataclass `Objective` with the methods below. Its fields are settings, which a stage gives as
`objective_options`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from affectgpt.data.stream import Draw
from affectgpt.runtime import InputError

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
