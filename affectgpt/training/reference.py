"""The model as it was when its stage began, without a second model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affectgpt.models.checkpoint import CheckpointError, load_trained_tensors, read_manifest
from affectgpt.models.modeling_affectgpt import is_of_base, part_of


def turn_dropout_off(model: nn.Module) -> None:
    """For the rest of the run, in all modules, so that log-probabilities are those of the model that answers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):  # projectors, layers of transformers
            module.attention_dropout = 0.0


class Reference:
    """The trained tensors at the time of construction; everything else is frozen and therefore shared.

    Where only new LoRA adapters train, they are 0 at the start: the reference is the model with LoRA off, and nothing
    is copied. Otherwise, and with DoRA, whose norms are not 0, a copy of the trained tensors is kept, a few percent of
    a model.

    Attributes:
        is_copy: whether tensors were copied.
    """

    def __init__(self, model: Any) -> None:
        trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        outputs = {name: tensor for name, tensor in trained.items() if ".lora_B." in name}
        is_lora = all(".lora_A." in name or ".lora_B." in name for name in trained)
        self.is_copy = not (is_lora and outputs and all(not tensor.any() for tensor in outputs.values()))
        self._values: dict[str, Tensor] = (
            {name: tensor.detach().clone() for name, tensor in trained.items()}
            if self.is_copy
            else {name: tensor.new_zeros(()).expand_as(tensor) for name, tensor in outputs.items()}
        )

    @classmethod
    def of_checkpoint(cls, model: Any, folder: Path) -> Reference:
        """The trained tensors of a checkpoint; `model` stays as it is.

        Raises:
            CheckpointError: they do not fit the model.
        """
        stored = {name for name in read_manifest(folder)["tensors"] if is_of_base(part_of(name))}
        if differing := sorted(stored.symmetric_difference(model.config.tuned)):
            raise CheckpointError(
                f"{folder}: of the base models, other tensors were trained than of this model ({differing[0]} ...); "
                "train both from the same checkpoint, with the same stage.trainable"
            )
        ids = {id(tensor) for tensor in model.own_tensors().values()}
        own = {name: tensor for name, tensor in model.named_tensors() if id(tensor) in ids}
        now = {name: tensor.data.clone() for name, tensor in own.items()}
        sums = [model.encoder_sum(name) for name in model.modalities]
        try:
            load_trained_tensors(model, folder)
            for name, before in zip(model.modalities, sums, strict=True):
                if name not in model.training_encoders() and model.encoder_sum(name) != before:
                    raise CheckpointError(
                        f"{folder}: its encoder of {name} has other weights than this model's, whose states both read; "
                        "train both from the same checkpoint"
                    )
            found = cls.__new__(cls)
            found.is_copy, found._values = True, {name: tensor.data.clone() for name, tensor in own.items()}
        finally:
            for name, tensor in own.items():
                tensor.data.copy_(now[name])
        return found

    @contextmanager
    def inside(self, model: Any) -> Iterator[None]:
        """While it is open, `model` (not wrapped) is the reference; without gradients and dropout."""
        parameters = {name: tensor for name, tensor in model.named_tensors() if name in self._values}
        now = {name: tensor.data for name, tensor in parameters.items()}
        was_training = model.training
        model.eval()
        try:
            for name, tensor in parameters.items():
                tensor.data = self._values[name]
            with torch.no_grad():
                yield
        finally:
            for name, tensor in parameters.items():
                tensor.data = now[name]
            model.train(was_training)
