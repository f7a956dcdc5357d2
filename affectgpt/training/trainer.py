"""transformers' Trainer with what these models need: trained-only checkpoints with a completeness marker, our schedule,
validation by generating, counted padding."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from affectgpt.models.checkpoint import (
    CheckpointError,
    differing_tensors,
    load_trained_tensors,
    save_trained,
    trained_tensors,
)
from affectgpt.runs import BEST, COMPLETE, complete_checkpoints
from affectgpt.runtime import write_text_atomic
from affectgpt.training import distributed
from affectgpt.training.loader import Batches
from affectgpt.training.schedule import Schedule

log = logging.getLogger("affectgpt")


class StageTrainer(Trainer):
    """Trains what `requires_grad` says, on a `TrainingStream`.

    Args:
        processor: saved beside the trained tensors.
        batches: completes what the loader hands over.
        schedule: the learning rate.
        validate: called as validate(model, step) every `eval_steps`; returns scores with the key "f_s", by which the
            best checkpoint is kept. None = no validation.
        keep_last: complete checkpoints kept besides the best one.
    """

    def __init__(
        self,
        *args: Any,
        processor: Any,
        batches: Batches,
        schedule: Schedule,
        validate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
        keep_last: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._processor = processor
        self._batches = batches
        self._schedule = schedule
        self._validate = validate
        self._keep_last = keep_last
        self._seen = _Counts()

    # Optimizer and schedule

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; biases, norms and other vectors do not (reference recipe)."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            schedule = self._schedule
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: schedule.at(step) / schedule.peak
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Counting what goes through

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._seen.add(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}; lower learning_rate or "
                "max_grad_norm, or train in float32"
            )
        return loss

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = super().get_batch_samples(self._batches.complete(epoch_iterator), *args, **kwargs)
        self._seen.waited_s += time.perf_counter() - start
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._seen.rates(self.args.world_size)
        super().log(logs, start_time)

    # Validation

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        assert self._validate is not None, "evaluation is only scheduled with `validate`"
        found = self._validate(self.model, self.state.global_step)
        scores = {f"{metric_key_prefix}_{key}": value for key, value in found.items()}
        self.model.train()
        if self.state.best_metric is None or found["f_s"] > self.state.best_metric:
            self._save_best(scores)
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        self._seen.restart_clock()
        return scores

    def _save_best(self, scores: Mapping[str, float]) -> None:
        best = Path(self.args.output_dir) / BEST
        new = best.with_name(f".{BEST}.new")
        if self.args.should_save:
            shutil.rmtree(new, ignore_errors=True)
        self.save_model(str(new))
        if not self.args.should_save:
            return
        (new / COMPLETE).write_text(f"step {self.state.global_step}: {dict(scores)}\n", encoding="utf-8")
        shutil.rmtree(best, ignore_errors=True)
        os.replace(new, best)

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors and their manifest; every process calls it, the first one writes."""
        state = self._trained(keep=self.args.should_save)
        if state is not None:
            save_trained(self.model, self._processor, Path(output_dir or self.args.output_dir), state_dict=state)

    def _trained(self, *, keep: bool) -> dict[str, torch.Tensor] | None:
        parameters = {name: self.model.get_parameter(name) for name in trained_tensors(self.model)}
        return distributed.whole(parameters, keep=keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained_tensors(self.model, Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        # Not strict, since frozen weights are not in the file; what counts is compared below.
        found, _ = self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        if found is None:
            raise CheckpointError(f"{resume_from_checkpoint} holds no DeepSpeed state; was it written by strategy=ddp?")
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        state = self._trained(keep=True)
        assert state is not None
        if differing := differing_tensors(resume_from_checkpoint, state):
            raise CheckpointError(
                f"{resume_from_checkpoint}: DeepSpeed's state and trained.safetensors differ in {len(differing)} "
                f"tensors ({', '.join(differing[:3])}); the folder mixes two checkpoints, go on from another one"
            )
        return prepared

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        run = Path(self.args.output_dir)
        folder = run / f"checkpoint-{self.state.global_step}"
        write_text_atomic(folder / COMPLETE, f"step {self.state.global_step}\n")
        for old in complete_checkpoints(run)[: -self._keep_last]:
            # The marker goes first: a kill in the middle of the removal must not leave a folder that looks whole.
            (old / COMPLETE).unlink()
            shutil.rmtree(old)


class _Counts:
    """Samples, tokens, padding and waiting for data since the last log line.

    Attributes:
        waited_s: seconds in which the loop stood still for the loader.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._masks: list[tuple[torch.Tensor | int, int, torch.Tensor | int]] = []
        self.waited_s = 0.0
        self._since = time.perf_counter()

    def restart_clock(self) -> None:
        """Forget what was counted, so that a pause does not count as slow training."""
        self._reset()

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        # Sums stay on the device: reading them here would wait for the GPU at every step.
        mask = batch.get("attention_mask")
        if mask is not None:
            self._masks.append((mask.shape[0], mask.numel(), mask.sum()))
        else:  # packed: positions restart at 0 with each sample
            places = batch["position_ids"]
            self._masks.append(((places == 0).sum(), places.numel(), places.numel()))

    def rates(self, world_size: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._since
        samples = sum(int(count) for count, _, _ in self._masks)
        positions = sum(count for _, count, _ in self._masks)
        tokens = sum(int(count) for _, _, count in self._masks)
        waited_s = self.waited_s
        self._reset()
        if not samples:
            return {}
        return {
            "samples_per_s": world_size * samples / seconds,
            "tokens_per_s": world_size * tokens / seconds,
            "padding_share": 1 - tokens / positions,
            "data_wait_share": waited_s / seconds,
        }
