"""Keep what the LLM holds for the backward pass below a limit: `stage.activation_gb`."""

from __future__ import annotations

import logging
from typing import Any

import torch

from affectgpt.config import StageConfig
from affectgpt.engine import activations, packing
from affectgpt.runtime import UserError

log = logging.getLogger("affectgpt")

# A trained parameter's gradient and two moments of Adam, in fp32, and one more for what is made on the way.
_TRAINED_BYTES = 16


def check_activation_gb(stage: StageConfig, strategy: str) -> None:
    """Whether `stage.activation_gb` can be held with the other settings."""
    if stage.activation_gb is None:
        return
    number = stage.activation_gb
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool) and number > 0
    if number != "auto" and not is_number:
        raise UserError(f"stage.activation_gb is {number!r}; expected GB above 0, auto, or null for no limit")
    if stage.gradient_checkpointing:
        raise UserError(
            "stage.activation_gb and stage.gradient_checkpointing=true are both given: the one checkpoints as few "
            "layers as it can, the other all; leave one of them out"
        )
    if not stage.packing or stage.token_budget is None or strategy == "zero3":
        raise UserError(
            f"stage.activation_gb needs a bound of the tokens that go through the LLM at once, and with packing="
            f"{str(stage.packing).lower()}, token_budget={stage.token_budget}, strategy={strategy} there is none; set "
            "stage.packing=true and stage.token_budget with another strategy than zero3, or take "
            "stage.gradient_checkpointing=true"
        )


def activation_limit_gb(wanted: Any, device: torch.device, n_trainable: int) -> float:
    """`stage.activation_gb`; auto = what the GPU has free, less gradients, optimizer state and a tenth for the rest."""
    if wanted != "auto":
        return float(wanted)
    if device.type != "cuda":
        raise UserError(f"stage.activation_gb=auto asks a GPU for its free memory, and this is {device}; give a number")
    free, _ = torch.cuda.mem_get_info(device)
    return (0.9 * free - _TRAINED_BYTES * n_trainable) / 1e9


def keep_within(model: Any, stage: StageConfig, limit_gb: float) -> None:
    """Checkpoint as many layers of the LLM as it takes for its activations to stay below `limit_gb`."""
    if not packing.knows(model.language_model):
        raise UserError(
            f"stage.activation_gb is for LLMs of the families {', '.join(packing.FAMILIES)}, this one is "
            f"{model.language_model.config.model_type}; take stage.gradient_checkpointing=true"
        )
    assert stage.token_budget is not None
    model.train()
    kept = activations.kept_bytes(model.language_model)
    n = kept.n_checkpointed(stage.token_budget, 1e9 * limit_gb)
    model.checkpoint_layers(n)
    log.info(
        "gradient checkpointing in %d of %d layers: %d tokens at once keep %.3g of at most %.3g GB",
        n,
        kept.n_layers,
        stage.token_budget,
        stage.token_budget * kept.of(n) / 1e9,
        limit_gb,
    )
