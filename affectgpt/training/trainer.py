"""transformers' Trainer with what these models need: objectives, our schedule, validation by generating, checkpoints of
trained tensors only, and throughput in the logs."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from affectgpt.config import TrainConfig
from affectgpt.models.checkpoint import (
    CheckpointError,
    differing_tensors,
    load_trained_tensors,
    save_trained,
)
from affectgpt.runs import BEST, mark_complete, replace_best
from affectgpt.runtime import disk_full_named, write_json_atomic
from affectgpt.training import distributed
from affectgpt.training.loader import shielded_processes
from affectgpt.training.objectives import Hooks, Objective
from affectgpt.training.optimizer import keep_masters, set_rates, split_groups
from affectgpt.training.schedule import Schedule

log = logging.getLogger("affectgpt")

SUMS = "sums.json"


def training_arguments(
    config: TrainConfig, run: Path, *, has_validation: bool, use_cpu: bool, deepspeed: Mapping[str, Any] | None
) -> TrainingArguments:
    """The Trainer's part of the configuration; data order, learning rates and removal of checkpoints are ours."""
    stage = config.stage
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=stage.epochs * stage.iterations_per_epoch,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.accumulation,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        adam_beta1=stage.betas[0],
        adam_beta2=stage.betas[1],
        max_grad_norm=stage.max_grad_norm,
        logging_steps=stage.log_every,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=stage.validate_every if has_validation else None,
        metric_for_best_model="score" if has_validation else None,
        greater_is_better=True if has_validation else None,
        save_strategy="steps",
        save_steps=stage.save_every,
        seed=config.seed,
        data_seed=config.seed,
        train_sampling_strategy="sequential",  # the stream is in order
        dataloader_num_workers=stage.n_workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        use_cpu=use_cpu,
        deepspeed=None if deepspeed is None else dict(deepspeed),
        ddp_find_unused_parameters=False,  # every step uses all trained parameters, see the model's _idle
        ddp_timeout=config.strategy.timeout_s,
        disable_tqdm=True,
        report_to="none",
    )
    # One process trains on one GPU. With more of them the Trainer would use nn.DataParallel, which has no setting.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


_FREE_SPACE = (
    "free some space and repeat the command with resume=true, which continues from the last complete checkpoint"
)


class StageTrainer(Trainer):
    """Trains the parameters with `requires_grad` on a `TrainingStream`, whose collator is a `Batches`.

    Methods of Trainer with a leading underscore are overridden where it has no public hook: it would save and load all
    weights of the model. tests/training notices if a new version of transformers no longer calls them.

    Args:
        objective: computes the loss.
        processor: saved with the trained tensors.
        schedule: the learning rate.
        rates: peak learning rate of parts (entries of `stage.trainable`) that have one of their own.
        validate: called as validate(model, step) every `eval_steps`; returns scores with the key "score", by which the
            best checkpoint is chosen. None = no validation.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        processor: Any,
        schedule: Schedule,
        rates: Mapping[str, float],
        validate: Callable[[nn.Module, int], Mapping[str, float]] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._objective = objective
        self._hooks = objective if isinstance(objective, Hooks) else Hooks()
        self._processor = processor
        self._schedule = schedule
        self._rates = rates
        self._validate = validate
        self._resumed_from: Path | None = None
        self._unknown_steps = 0  # whose losses a checkpoint of an older version does not have
        self._throughput = _Throughput()
        self.add_callback(_Resumed(self))

    # ---------------------------------------------------------------- optimizer and schedule

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; biases, norms and other vectors do not (reference recipe)."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            if self._rates:
                named = {part: self.model.tensors_of(part).values() for part in self._rates}
                set_rates(
                    optimizer,
                    {id(each): self._rates[part] / self._schedule.peak for part in named for each in named[part]},
                )
            if self.is_deepspeed_enabled:
                split_groups(optimizer, lambda parameter: parameter.dtype)  # it flattens each group to one tensor
            else:
                keep_masters(optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            schedule = self._schedule
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: schedule.at(step) / schedule.peak
            )
        return self.lr_scheduler

    # ---------------------------------------------------------------- steps

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        if self.args.dataloader_num_workers:
            # accelerate passes attributes of its loader on to the one within, but sets them on itself
            getattr(loader, "base_dataloader", loader).multiprocessing_context = shielded_processes()
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        batches, n_labels = super().get_batch_samples(self.data_collator.complete(epoch_iterator), *args, **kwargs)
        self._throughput.waited_s += time.perf_counter() - start
        return self._hooks.prepare(batches, self.state.global_step, n_labels) if batches else (batches, n_labels)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._throughput.add(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}; lower learning_rate or "
                "max_grad_norm, or train in float32"
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        loss = self._objective.loss(model, inputs, num_items_in_batch)
        # Gradients are averaged over the processes, and this loss is divided by the labels of all of them.
        return loss if num_items_in_batch is None else loss * self.args.world_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._throughput.rates(self.args.world_size) | self._hooks.metrics()
        if "train_loss" in logs:
            logs["train_loss"] = self.mean_loss
        super().log(logs, start_time)

    @property
    def mean_loss(self) -> float:
        """Of all steps of the run, also of those before it was resumed; complete when training has ended."""
        return self._total_loss_scalar / max(self.state.global_step - self._unknown_steps, 1)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # The Trainer adds the steps after the last line of the log as process 0 has them; the lines are means.
        self._tr_loss = self.accelerator.gather(self._tr_loss.detach().reshape(1)).mean()
        return super()._finalize_training(*args, **kwargs)

    # ---------------------------------------------------------------- validation

    def validate_if_due(self) -> None:
        """The validation of the step that the run resumes from, if it was stopped before it."""
        step = self.state.global_step
        due = step and self._validate is not None and (step % self.args.eval_steps == 0 or step >= self.state.max_steps)
        if due and not any("eval_score" in row and row["step"] == step for row in self.state.log_history):
            log.info("validating step %d, where the run was stopped", step)
            self._determine_best_metric(self.evaluate(), None)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        assert self._validate is not None, "evaluation is only scheduled with `validate`"
        found = self._validate(self.model, self.state.global_step)
        scores = {f"{metric_key_prefix}_{key}": value for key, value in found.items()}
        self.model.train()
        if self.state.best_metric is None or found["score"] > self.state.best_metric:
            self._save_best(scores)
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        self._throughput.reset()  # the pause is no part of a step's time
        return scores

    def _save_best(self, scores: Mapping[str, float]) -> None:
        run = Path(self.args.output_dir)
        new = run / f".{BEST}.new"
        if self.args.should_save:
            shutil.rmtree(new, ignore_errors=True)
        with disk_full_named(run, _FREE_SPACE):
            self.save_model(str(new))
            if self.args.should_save:
                mark_complete(new, f"step {self.state.global_step}: {dict(scores)}")
                replace_best(run, new)

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
        with disk_full_named(Path(self.args.output_dir), _FREE_SPACE):
            super()._save_checkpoint(*arguments, **keywords)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors and their manifest; a collective call, the first process writes."""
        state = self._trained_tensors(keep=self.args.should_save)
        if state is not None:
            save_trained(self.model, self._processor, Path(output_dir or self.args.output_dir), state_dict=state)

    def _trained_tensors(self, *, keep: bool) -> dict[str, torch.Tensor] | None:
        return distributed.gathered(self.model.own_tensors(), keep=keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained_tensors(self.model, Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._save_sums(Path(output_dir))
        self._hooks.save(Path(output_dir))
        if not self.is_deepspeed_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_sums(self, checkpoint: Path) -> None:
        """What the next line of the log has so far: a resumed run logs the means of an uninterrupted one."""
        losses = self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()  # [world_size]
        if self.args.should_save:
            sums = {
                "losses": losses,
                "total_loss": self._total_loss_scalar,
                "unknown_steps": self._unknown_steps,
                "last_logged": self._globalstep_last_logged,
                "throughput": self._throughput.sums(),
            }
            write_json_atomic(checkpoint / SUMS, sums)

    def load_sums(self) -> None:
        """The inverse, once the Trainer has reset its own sums; a checkpoint of an older version has none."""
        self._hooks.load(self._resumed_from, self.state.global_step)
        self._unknown_steps = self.state.global_step
        if self._resumed_from is None or not (path := self._resumed_from / SUMS).is_file():
            return
        sums = json.loads(path.read_text(encoding="utf-8"))
        self._tr_loss += sums["losses"][self.args.process_index]
        self._total_loss_scalar = sums["total_loss"]
        self._unknown_steps = sums["unknown_steps"]
        self._globalstep_last_logged = sums["last_logged"]
        self._throughput.load(sums["throughput"])

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        self._resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        # Not strict, since frozen weights are not in the file; the trained ones are compared below.
        found, _ = self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        if found is None:
            raise CheckpointError(f"{resume_from_checkpoint} holds no DeepSpeed state; was it written by strategy=ddp?")
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        state = self._trained_tensors(keep=True)
        assert state is not None
        if differing := differing_tensors(resume_from_checkpoint, state):
            raise CheckpointError(
                f"{resume_from_checkpoint}: DeepSpeed's state and trained.safetensors differ in {len(differing)} "
                f"tensors ({', '.join(differing[:3])}); the folder mixes two checkpoints, resume from another one"
            )
        return prepared


class _Resumed(TrainerCallback):
    """Brings a resumed run to where an uninterrupted one is; the last callback, after the log has been restored."""

    def __init__(self, trainer: StageTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.load_sums()
        self._trainer.validate_if_due()


class _Throughput:
    """Samples, tokens, padding and waiting for data since the last log line.

    Attributes:
        waited_s: seconds in which the training loop waited for the loader.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._counts: list[tuple[torch.Tensor | int, int, torch.Tensor | int]] = []  # samples, positions, tokens
        self.waited_s = 0.0
        self._since = time.perf_counter()

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        # Sums stay on the device: reading them here would wait for the GPU at every step.
        mask = batch.get("attention_mask")
        if mask is not None:
            self._counts.append((mask.shape[0], mask.numel(), mask.sum()))
        else:  # packed: positions restart at 0 with each sample
            positions = batch["position_ids"]
            self._counts.append(((positions == 0).sum(), positions.numel(), positions.numel()))

    def sums(self) -> dict[str, float]:
        """For `load`."""
        return {
            "samples": sum(int(count) for count, _, _ in self._counts),
            "positions": sum(count for _, count, _ in self._counts),
            "tokens": sum(int(count) for _, _, count in self._counts),
            "waited_s": self.waited_s,
            "seconds": time.perf_counter() - self._since,
        }

    def load(self, sums: Mapping[str, Any]) -> None:
        self._counts = [(sums["samples"], sums["positions"], sums["tokens"])]
        self.waited_s = sums["waited_s"]
        self._since = time.perf_counter() - sums["seconds"]

    def rates(self, world_size: int) -> dict[str, float]:
        sums = self.sums()
        self.reset()
        if not sums["samples"]:
            return {}
        return {
            "samples_per_s": world_size * sums["samples"] / sums["seconds"],
            "tokens_per_s": world_size * sums["tokens"] / sums["seconds"],
            "padding_share": 1 - sums["tokens"] / sums["positions"],
            "data_wait_share": sums["waited_s"] / sums["seconds"],
        }
