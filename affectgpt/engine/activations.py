"""What the LLM's layers keep for the backward pass, held below a limit by computing some of it anew.

A layer that is checkpointed keeps its input and nothing else. It is the first layers that are: when the backward pass
comes to them, what the others have kept is gone, so that what they compute anew finds room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affectgpt.engine import kernels, packing
from affectgpt.engine.packing import Pack

# A sample of the usual length; on a CPU attention keeps more for longer ones.
_PROBE_TOKENS = 256


@dataclass(frozen=True)
class Kept:
    """Bytes that tokens on their way through the LLM leave in its layers.

    Attributes:
        n_layers: of the LLM.
        layer_bytes: kept by a layer for each token.
        input_bytes: kept by a checkpointed layer for each token.
    """

    n_layers: int
    layer_bytes: float
    input_bytes: float

    def of(self, n_checkpointed: int) -> float:
        """Bytes a token when so many layers are checkpointed; at least one at a time is whole."""
        return n_checkpointed * self.input_bytes + max(self.n_layers - n_checkpointed, 1) * self.layer_bytes

    def n_checkpointed(self, n_tokens: int, limit_bytes: float) -> int:
        """The fewest layers to checkpoint for `n_tokens` at once to keep no more than `limit_bytes`.

        Raises:
            ValueError: with all layers checkpointed it is still more.
        """
        for n in range(self.n_layers):  # the last one need not be: it is the first on the way back
            if n_tokens * self.of(n) <= limit_bytes:
                return n
        least = self.of(self.n_layers - 1)
        raise ValueError(
            f"{n_tokens} tokens at once keep at least {n_tokens * least / 1e9:.3g} GB with all layers but one "
            f"checkpointed, more than the {limit_bytes / 1e9:.3g} GB that they may; allow more, or at most "
            f"{int(limit_bytes / least)} tokens (stage.token_budget)"
        )


def kept_bytes(llm: Any) -> Kept:
    """Counts what a layer keeps of a probe, on its device, in its precision and with its adapters.

    The LLM is one that `packing` knows, in the training mode in which it will run.
    """
    decoder = llm.model
    weight = llm.get_input_embeddings().weight
    # What is kept depends on shapes alone.
    states = torch.full((_PROBE_TOKENS, weight.shape[1]), 0.01, dtype=weight.dtype, device=weight.device)
    positions = torch.arange(_PROBE_TOKENS, device=weight.device)[None]
    rotation = packing.rotation_of(decoder, states[None], positions)
    pack = Pack(0, (_PROBE_TOKENS,), (0,), torch.empty(0, dtype=torch.int64))
    layer = decoder.layers[0]
    weights = (*layer.parameters(), *layer.buffers(), *rotation)
    rng = torch.random.fork_rng(devices=[weight.device] if weight.device.type == "cuda" else [])  # of LoRA's dropout
    with torch.enable_grad(), rng, kept_tensors(weights) as kept:
        packing.layer_states(layer, pack, states.requires_grad_(), *rotation, attend=kernels.attend)
    return Kept(
        len(decoder.layers),
        sum(kept.values()) / _PROBE_TOKENS,
        states.element_size() * states.shape[1],
    )


@contextmanager
def kept_tensors(weights: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Collect what autograd saves beside `weights`: storage -> bytes, each storage once."""
    known = {tensor.untyped_storage()._cdata for tensor in weights}
    kept: dict[int, int] = {}
    alive = []  # a freed storage's address would be taken by the next

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            alive.append(tensor)
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
