"""The model of a stage: built, given its first weights, and set up to train on its device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from affectgpt.config import TrainConfig
from affectgpt.models import build, model_spec, pretrained, quantize, trainable_table
from affectgpt.models.checkpoint import load_trained_tensors, read_spec
from affectgpt.runtime import quiet_libraries
from affectgpt.training import distributed
from affectgpt.training.distributed import Processes
from affectgpt.training.memory import activation_limit_gb, keep_within

log = logging.getLogger("affectgpt")


def starting_model(config: TrainConfig, init_from: Path | None = None) -> tuple[Any, Any]:
    """(model, processor) before the first step.

    Args:
        init_from: the checkpoint that the stage starts from; None = random or pretrained projectors, as `model.init`
            says.
    """
    quiet_libraries()
    model, processor = build(model_spec(config.model, config.seed))
    if init_from is not None:
        model.config.init = pretrained.start_of(init_from)
        before = read_spec(init_from)
        # Adapters of the earlier stage must be loaded; adapters that this stage adds start from their initialization.
        load_trained_tensors(model, init_from, parts=None if before.llm.lora.r else ["projectors"])
        if unused := [name for name in before.modalities if name not in model.modalities]:
            log.info("not loaded, because this model has no such branch: projectors of %s", ", ".join(unused))
    elif folder := pretrained.folder_of(config.model.init, config.model.init_from):
        model.config.init = pretrained.start_from(model, folder)
    return model, processor


def set_up(model: Any, config: TrainConfig, processes: Processes, device: torch.device) -> dict[str, Any] | None:
    """Freeze, partition and move the model as the stage and the strategy say; returns DeepSpeed's configuration."""
    stage, strategy = config.stage, config.strategy
    n_trainable = model.set_trainable(stage.trainable)
    if stage.gradient_checkpointing:
        model.checkpoint_layers()
    # With ZeRO-3 all gradients must be computed in the backward pass, where every process gathers the same weights.
    model.token_budget = None if strategy.name == "zero3" else stage.token_budget
    log.info("%s", trainable_table(model))
    quantize.check_shapes(model, device)  # an evaluation would find out too late
    deepspeed = distributed.deepspeed_config(strategy, n_trainable)
    if strategy.name == "zero3":
        assert deepspeed is not None
        distributed.partition_frozen(model.language_model, deepspeed, stage.batch_size, stage.accumulation)
        model.in_lockstep = True
    # The frozen encoders are kept out of the module: no strategy may wrap, copy or partition them.
    model.set_encoders_aside().to(device)
    model.to(device)
    if stage.activation_gb is not None:
        limit_gb = processes.by_main(lambda: activation_limit_gb(stage.activation_gb, device, n_trainable))
        keep_within(model, stage, limit_gb)
    return deepspeed
