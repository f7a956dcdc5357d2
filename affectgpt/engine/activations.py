"""How much the LLM's layers save for the backward pass.

A checkpointed layer saves its input and nothing else. The first layers are checkpointed: when the backward pass reaches
them, the memory of the others is free for what they recompute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from affectgpt.engine import layers
from affectgpt.engine.layout import Pack

# A sample of the usual length; on a CPU attention saves more per token for longer ones.
_PROBE_TOKENS = 256


@dataclass(frozen=True)
class Kept:
    """Bytes that the LLM's layers save per token.

    Attributes:
        layer_bytes: saved by a layer.
        input_bytes: saved by a checkpointed layer.
    """

    n_layers: int
    layer_bytes: float
    input_bytes: float

    def of(self, n_checkpointed: int) -> float:
        """Bytes per token with this many checkpointed layers; one layer at a time is always complete."""
        return n_checkpointed * self.input_bytes + max(self.n_layers - n_checkpointed, 1) * self.layer_bytes


def kept_bytes(llm: Any) -> Kept:
    """Measures what one layer saves, on its device, in its precision and with its adapters.

    Args:
        llm: one that `layers.supports`, in the training mode in which it will run.
    """
    decoder = llm.model
    weight = llm.get_input_embeddings().weight
    # The size depends on shapes alone.
    states = torch.full((_PROBE_TOKENS, weight.shape[1]), 0.01, dtype=weight.dtype, device=weight.device)
    positions = torch.arange(_PROBE_TOKENS, device=weight.device)[None]
    rotation = layers.rotary_tables(decoder, states[None], positions)
    pack = Pack(0, (_PROBE_TOKENS,), (0,), torch.empty(0, dtype=torch.int64))
    layer = decoder.layers[0]
    weights = (*layer.parameters(), *layer.buffers(), *rotation)
    rng = torch.random.fork_rng(devices=[weight.device] if weight.device.type == "cuda" else [])  # of LoRA's dropout
    with torch.enable_grad(), rng, kept_tensors(weights) as kept:
        layers.decoder_layer(layer, pack, states.requires_grad_(), *rotation, attend=layers.attend)
    return Kept(
        len(decoder.layers),
        sum(kept.values()) / _PROBE_TOKENS,
        states.element_size() * states.shape[1],
    )


@contextmanager
def kept_tensors(weights: Iterable[Tensor]) -> Iterator[dict[UntypedStorage, int]]:
    """Collect what autograd saves, without `weights`: storage -> bytes."""
    known = {tensor.untyped_storage() for tensor in weights}
    kept: dict[UntypedStorage, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in known:
            kept[storage] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
