"""Supervised fine-tuning: cross-entropy over the tokens of the true answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from affectgpt.data.stream import Draw
from affectgpt.training.objectives import Row


@dataclass(frozen=True)
class Objective:
    def rows(self, draw: Draw, encode: Callable[[str | None], Row]) -> list[Row]:
        return [encode(draw.target)]

    def collate(self, processor: Any, rows: Sequence[Row], packed: bool) -> dict[str, Tensor]:
        return processor.collate(rows, packed=packed)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], n_labels: Tensor | None) -> Tensor:
        return model(**batch, num_items_in_batch=n_labels).loss
