"""Keep the activations that the LLM stores for the backward pass below a limit: `stage.activation_gb`."""

from __future__ import annotations

import logging
from typing import Any

import torch

from affectgpt.config import StageConfig
from affectgpt.models import backend
from affectgpt.runtime import UserError

log = logging.getLogger("affectgpt")

# Per trained parameter, in fp32: gradient, two moments of Adam, and one temporary value.
_TRAINED_BYTES = 16


def check_activation_gb(stage: StageConfig, strategy: str) -> None:
    """Check `stage.activation_gb` against the other settings; raises UserError if it cannot be kept."""
    if stage.activation_gb is None:
        return
    backend.require_engine("stage.activation_gb")
    number = stage.activation_gb
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool) and number > 0
    if number != "auto" and not is_number:
        raise UserError(f"stage.activation_gb is {number!r}; expected GB above 0, auto, or null for no limit")
    if stage.gradient_checkpointing:
        raise UserError(
            "stage.activation_gb and stage.gradient_checkpointing=true are both set: the one checkpoints as few layers "
            "as possible, the other all; leave one of them out"
        )
    if not stage.packing or stage.token_budget is None or strategy == "zero3":
        raise UserError(
            f"stage.activation_gb needs a limit on the tokens that go through the LLM at once, but with packing="
            f"{str(stage.packing).lower()}, token_budget={stage.token_budget}, strategy={strategy} there is none; set "
            "stage.packing=true and stage.token_budget with another strategy than zero3, or use "
            "stage.gradient_checkpointing=true"
        )


def activation_limit_gb(wanted: Any, device: torch.device, n_trainable: int) -> float:
    """`stage.activation_gb`; auto = 90 % of the GPU's free memory, minus gradients and optimizer state."""
    if wanted != "auto":
        return float(wanted)
    if device.type != "cuda":
        raise UserError(f"stage.activation_gb=auto needs a GPU, but the device is {device}; give a number of GB")
    free, _ = torch.cuda.mem_get_info(device)
    return (0.9 * free - _TRAINED_BYTES * n_trainable) / 1e9


def layers_to_checkpoint(kept: Any, n_tokens: int, limit_bytes: float) -> int:
    """The fewest layers to checkpoint so that activations of `n_tokens` at once stay below `limit_bytes`.

    Args:
        kept: `engine.Kept`, bytes per token.

    Raises:
        UserError: the limit is exceeded even with all layers checkpointed.
    """
    for n in range(kept.n_layers):  # the last layer never needs it: the backward pass starts there
        if n_tokens * kept.of(n) <= limit_bytes:
            return n
    least = kept.of(kept.n_layers - 1)
    raise UserError(
        f"{n_tokens} tokens at once need at least {n_tokens * least / 1e9:.3g} GB for activations with all but one "
        f"layer checkpointed, and stage.activation_gb allows {limit_bytes / 1e9:.3g}; raise it, or set "
        f"stage.token_budget to at most {int(limit_bytes / least)} tokens"
    )


def keep_within(model: Any, stage: StageConfig, limit_gb: float) -> None:
    """Checkpoint as few layers of the LLM as keep its activations below `limit_gb`."""
    engine = backend.engine
    if not engine.supports(model.language_model):
        raise UserError(
            f"stage.activation_gb works with LLMs of the families {', '.join(engine.FAMILIES)}, this one is "
            f"{model.language_model.config.model_type}; use stage.gradient_checkpointing=true"
        )
    assert stage.token_budget is not None
    model.train()
    kept = engine.kept_bytes(model.language_model)
    n = layers_to_checkpoint(kept, stage.token_budget, 1e9 * limit_gb)
    model.checkpoint_layers(n)
    log.info(
        "gradient checkpointing in %d of %d layers: %d tokens at once keep %.3g of at most %.3g GB",
        n,
        kept.n_layers,
        stage.token_budget,
        stage.token_budget * kept.of(n) / 1e9,
        limit_gb,
    )
