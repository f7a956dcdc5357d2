"""The model of a stage: built, given its first weights, and set up to train on its device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from affectgpt.config import TrainConfig
from affectgpt.models import build, model_spec, pretrained, quantize, trainable_table
from affectgpt.models.checkpoint import load_trained_tensors, read_manifest, read_spec
from affectgpt.models.modeling_affectgpt import part_of
from affectgpt.runtime import UserError, quiet_libraries
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
        stored, own = {part_of(name) for name in read_manifest(init_from)["tensors"]}, set(model.own_parts())
        added = {part for part in own if part.endswith("lora")} - stored
        lost = set(before.projectors) - set(model.config.slots)
        gone = {part for part in stored if "." in part and part.split(".")[1] in lost}
        parts = None if before.llm.lora.r and not added else (stored | own) - added - gone
        load_trained_tensors(model, init_from, parts=parts)
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
    _say_what_it_costs(model)
    n_16bit = sum(each.numel() for each in model.parameters() if each.requires_grad and each.element_size() == 2)
    distributed.check_trained(strategy, model.training_encoders(), n_16bit)
    if unknown := sorted(set(stage.learning_rates) - set(stage.trainable)):
        raise UserError(f"stage.learning_rates names {unknown}; expected some of stage.trainable {stage.trainable}")
    quantize.check_shapes(model, device)  # an evaluation would find out too late
    deepspeed = distributed.deepspeed_config(strategy, n_trainable)
    if strategy.name == "zero3":
        assert deepspeed is not None
        distributed.partition_frozen(model.language_model, deepspeed, stage.batch_size, stage.accumulation)
        model.in_lockstep = True
    # Frozen encoders are kept out of the module: no strategy may wrap, copy or partition them.
    model.set_encoders_aside().to(device)
    model.to(device)
    if stage.activation_gb is not None:
        limit_gb = processes.by_main(lambda: activation_limit_gb(stage.activation_gb, device, n_trainable))
        keep_within(model, stage, limit_gb)
    return deepspeed


def _say_what_it_costs(model: Any) -> None:
    """What is slower than with frozen encoders and a frozen LLM."""
    if encoders := model.training_encoders():
        log.info("%s: encoded in every step and not cached, because the encoder trains", ", ".join(encoders))
    if any(tensor.requires_grad for tensor in model.parts()["language_model"].values()):
        log.info(
            "the LLM trains: its layers run through autograd and transformers' modules, with the engine's attention "
            "and packing, but without its fused norms, feed-forward and loss of a frozen LLM"
        )
