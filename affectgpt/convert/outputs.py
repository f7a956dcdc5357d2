"""The outputs of a conversion, checked against the tensors of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from affectgpt.convert.files import Entry, Weights


@dataclass
class Output:
    """One output: a file of tensors, and settings next to it.

    Attributes:
        name: "eva_qformer", "eva", "projectors" or "lora".
        weights: path of the tensor file in the folder of the conversion.
        entries: tensors, with our names.
        missing, misshapen: tensors that the model needs and that are missing or have another shape.
        needs: descriptions of the files that must be converted together with the given ones.
        settings: name of a file next to the tensors -> JSON value.
    """

    name: str
    weights: str
    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return bool(self.entries) and not (self.missing or self.misshapen or self.needs)

    def fill(self, expected: Mapping[str, tuple[int, ...]], entries: Mapping[str, Entry]) -> None:
        """Add the entries and note how they differ from the tensors of the model."""
        self.entries += list(entries.values())
        self.missing += sorted(set(expected) - set(entries))
        self.misshapen += [
            f"{name} is {list(entries[name].shape)}, not {list(shape)}"
            for name, shape in sorted(expected.items())
            if name in entries and entries[name].shape != shape
        ]
        self.misshapen += [f"{name} is not in the model" for name in sorted(set(entries) - set(expected))]


Source = tuple[Weights, str]
"""A file, and the name of a tensor in it."""


def shapes_of(sources: Mapping[str, Source], prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): weights.shapes[theirs]
        for name, (weights, theirs) in sources.items()
        if name.startswith(prefix)
    }


def entry_of(name: str, source: Source, dtype: torch.dtype | None = None) -> Entry:
    weights, theirs = source
    return Entry(name, weights.shapes[theirs], dtype or weights.dtypes[theirs], lambda: weights.load(theirs))


def state_shapes(make: Callable[[], nn.Module], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Name -> shape of a module's tensors; the module is made on the meta device."""
    with torch.device("meta"):
        return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in make().state_dict().items()}
