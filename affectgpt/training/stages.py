"""One training stage from its configuration to a finished run folder.

A run folder holds `config.yaml`, `run.json`, `metrics.jsonl`, `generations/`, `best/` and the last checkpoints. The
stage itself is data: what it trains on, what is trainable, where it starts and how long it runs stand in conf/stage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from affectgpt.cache.reader import cache_mode
from affectgpt.config import GenerateConfig, QuestionConfig, TrainConfig
from affectgpt.data.sources import report_bad
from affectgpt.data.stream import Part, TrainingStream
from affectgpt.inference.loading import clip_reader, model_spec, quiet_libraries, torch_device
from affectgpt.inference.prediction import predict
from affectgpt.metrics import evaluate
from affectgpt.models import build, pretrained, quantize, trainable_table
from affectgpt.models.checkpoint import load_trained_tensors, read_spec
from affectgpt.models.processing_affectgpt import MEDIA_KEYS
from affectgpt.runs import BEST, complete_checkpoints
from affectgpt.runtime import UserError, seed_everything, without_collector
from affectgpt.schema import BadSample, Prediction, Sample, true_labels, write_jsonl
from affectgpt.training import distributed
from affectgpt.training.callbacks import MetricsFile, ProgressBar, StopOnSignal, TensorBoardLog, WandbLog
from affectgpt.training.distributed import Processes
from affectgpt.training.loader import Batches, EncodeDraw
from affectgpt.training.memory import activation_limit_gb, check_activation_gb, keep_within
from affectgpt.training.run_folder import Run, open_run
from affectgpt.training.samples import prepare_training, recipe_of, training_parts
from affectgpt.training.schedule import Schedule
from affectgpt.training.trainer import StageTrainer

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: its run folder, and the exit code for the shell (0, 143 after SIGTERM, 130 after Ctrl-C)."""

    run: Path
    exit_code: int


def run_stage(config: TrainConfig) -> StageResult:
    """Train one stage, or go on with an unfinished one; every choice that was made for the user is printed.

    With a strategy of several processes each of them calls this; the first one writes the run folder.
    """
    if config.strategy.name == "zero3" and config.model.llm.quantization:
        raise UserError(
            f"strategy=zero3 does not split a packed LLM (model.llm.quantization={config.model.llm.quantization}); "
            "take strategy=ddp or zero2, or leave the quantization out"
        )
    check_activation_gb(config.stage, config.strategy.name)
    with Processes(config.strategy, torch_device(config.device)) as processes:
        if not processes.is_main:
            log.setLevel(logging.WARNING)
        return _run_stage(config, processes)


def _run_stage(config: TrainConfig, processes: Processes) -> StageResult:
    stage = config.stage
    sources = {"coarse": config.data.coarse, "fine": config.data.fine}.get(stage.name, [])
    if not sources:
        raise UserError(f"data {config.data.name!r} has no training manifest for stage {stage.name!r}; see conf/data")
    # Mistakes in a manifest, missing files and a missing first stage shall show before there is a run folder.
    with without_collector():
        parts, bad = processes.by_main(lambda: training_parts(config, sources))
    run = processes.by_main(lambda: open_run(config, parts, processes.world_size))
    log.info("run %s: stage %s, model %s, data %s", run.folder, stage.name, config.model.name, config.data.name)
    log.info("strategy %s: num_processes %d", config.strategy.name, processes.world_size)
    if run.resume_from is not None:
        log.info("going on from %s", run.resume_from)
    elif run.init_from is not None:
        log.info("projections start from %s", run.init_from)
    elif config.model.init == "random":
        log.info("projections start from random values (seed %d)", config.seed)
    finish = run.record.finish if processes.is_main else _nothing
    try:
        with StopOnSignal(processes.any) as stop:
            results = _train(config, run, parts, bad, stop, processes)
            finish("stopped" if stop.stopped else "finished", **results)
    except (KeyboardInterrupt, SystemExit):
        finish("stopped")
        raise
    except BaseException:
        finish("failed")
        raise
    if stop.stopped:
        log.info("stopped; the same command with resume=true goes on")
    return StageResult(run.folder, stop.exit_code)


def _nothing(*arguments: object, **values: object) -> None:
    """What processes other than the first write."""


def starting_model(config: TrainConfig) -> tuple[Any, Any]:
    """(model, processor) as a stage without one before it begins with."""
    quiet_libraries()
    model, processor = build(model_spec(config.model, config.seed))
    if folder := pretrained.folder_of(config.model.init, config.model.init_from):
        model.config.init = pretrained.start_from(model, folder)
    return model, processor


def _train(
    config: TrainConfig,
    run: Run,
    parts: Sequence[Part],
    bad: Sequence[BadSample],
    stop: StopOnSignal,
    processes: Processes,
) -> dict[str, Any]:
    """Train; returns what belongs into the run record."""
    stage = config.stage
    seed_everything(config.seed)
    if run.init_from is None:
        model, processor = starting_model(config)
    else:
        quiet_libraries()
        model, processor = build(model_spec(config.model, config.seed))
        model.config.init = pretrained.start_of(run.init_from)
        before = read_spec(run.init_from)
        # Adapters of the stage before must be taken over; those that this stage adds start anew.
        load_trained_tensors(model, run.init_from, parts=None if before.lora else ["projectors"])
        if unused := [name for name in before.modalities if name not in model.modalities]:
            log.info("not taken over, since this model has no such branch: projections of %s", ", ".join(unused))
    run.record.values["init"] = model.config.init or {"init": "random", "seed": config.seed}
    n_trainable = model.set_trainable(stage.trainable)
    if stage.gradient_checkpointing:
        model.checkpoint_layers()
    # With ZeRO-3 all gradients belong into the backward pass, where every process gathers the same weights.
    model.token_budget = None if config.strategy.name == "zero3" else stage.token_budget
    log.info("%s", trainable_table(model))

    device = torch_device(config.device)
    quantize.check_shapes(model, device)  # an evaluation would find out too late
    to_deepspeed = distributed.deepspeed_config(config.strategy, n_trainable)
    if config.strategy.name == "zero3":
        assert to_deepspeed is not None
        distributed.partition_frozen(model.language_model, to_deepspeed, stage.batch_size, stage.accumulation)
        model.in_lockstep = True
    # Encoders only give states: no wrapper shall move, copy or split them.
    encoders = model.set_encoders_aside()
    encoders.to(device)
    model.to(device)
    if stage.activation_gb is not None:
        limit_gb = processes.by_main(lambda: activation_limit_gb(stage.activation_gb, device, n_trainable))
        keep_within(model, stage, limit_gb)
    caching = cache_mode(config.data.cache_features)
    reader = clip_reader(
        model,
        processor,
        backend=config.data.backend,
        cache_folder=None if caching == "off" else Path(config.paths.cache),
        limit_gb=config.paths.cache_limit_gb,
    )
    training, validation, bad_clips, n_uncached = prepare_training(
        parts, stage, config.data, config.seed, reader, model.modalities, processes
    )
    if n_uncached == 0:  # with all states at hand the encoders need no place on the GPU
        encoders.to("cpu")
    bad = [*bad, *bad_clips]
    if processes.is_main:
        run.record.values["n_bad_samples"] = report_bad(bad, run.folder)
    total_steps = stage.epochs * stage.iterations_per_epoch
    schedule = Schedule(
        total_steps, stage.warmup_steps, stage.warmup_learning_rate, stage.learning_rate, stage.min_learning_rate
    )
    arguments = training_arguments(
        config,
        run.folder,
        total_steps,
        has_validation=bool(validation),
        use_cpu=device.type == "cpu",
        to_deepspeed=to_deepspeed,
    )
    assert arguments.world_size == processes.world_size, "the Trainer counts other processes than were started"
    step_size = stage.batch_size * stage.accumulation * arguments.world_size
    stream = TrainingStream(
        training,
        recipe_of(stage),
        modalities=model.modalities,
        length=total_steps * step_size,
        seed=config.seed,
        encode=EncodeDraw(processor, reader),
        # With one batch a step there is nothing to sort, and the order within a batch stays as drawn.
        bucket=step_size if not stage.packing and step_size > stage.batch_size else 1,
    )
    log.info(
        "%d training samples, %d held out for validation, %d bad; %d steps of %d samples",
        sum(len(part.samples) for part in training),
        len(validation),
        len(bad),
        total_steps,
        stage.batch_size * stage.accumulation * arguments.world_size,
    )
    callbacks: list[Any] = [ProgressBar(f"{stage.name}"), MetricsFile(run.folder / "metrics.jsonl"), stop]
    wandb_log = None
    if config.logging.wandb != "disabled":
        wandb_log = WandbLog(config.logging.wandb, config.logging.project, run.folder, asdict(config))
        callbacks.append(wandb_log)
    if config.logging.tensorboard:
        callbacks.append(TensorBoardLog(run.folder / "tensorboard"))

    def validate(model: Any, step: int) -> Mapping[str, float]:
        question = QuestionConfig(
            task="both" if stage.tasks.get("both") else "labels", lang=max(stage.langs, key=stage.langs.get)
        )
        generate = config.generate
        greedy = GenerateConfig(generate.batch_size, generate.max_new_tokens, compile=generate.compile)
        mine = processes.equal_share(validation)
        made = processes.together(
            lambda: list(predict(model, processor, mine, reader, question=question, generate=greedy))
        )
        by_id = {row.id: row for rows in made for row in rows}
        rows = [by_id[sample.id] for sample in validation]
        if processes.is_main:
            write_jsonl(run.folder / "generations" / f"step-{step:06d}.jsonl", rows)
        if processes.is_main and wandb_log is not None:
            wandb_log.show_generations(step, _with_frames(validation, rows, config.logging.n_sample_generations))
        return validation_scores(rows, validation, question.lang)

    collate = partial(processor.collate, packed=stage.packing)
    batches = Batches(collate, model.encode, reader, MEDIA_KEYS)
    trainer = StageTrainer(
        model=model,
        args=arguments,
        train_dataset=stream,
        eval_dataset=validation or None,
        batches=batches,
        data_collator=batches,
        callbacks=callbacks,
        processor=processor,
        schedule=schedule,
        validate=validate if validation else None,
        keep_last=stage.keep_last,
    )
    for standard in [item for item in trainer.callback_handler.callbacks if type(item).__name__ == "PrinterCallback"]:
        trainer.remove_callback(standard)
    output = trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None)
    if stop.stopped:
        return {}
    best = trainer.state.best_metric
    log.info(
        "finished: %s%s",
        complete_checkpoints(run.folder)[-1],
        f", best by validation (F_S {best * 100:.1f}): {run.folder / BEST}" if best is not None else "",
    )
    return {"loss": output.training_loss, "best_validation_f_s": best, "steps": trainer.state.global_step}


def training_arguments(
    config: TrainConfig,
    run: Path,
    total_steps: int,
    *,
    has_validation: bool,
    use_cpu: bool,
    to_deepspeed: Mapping[str, Any] | None = None,
) -> TrainingArguments:
    """What the Trainer must know; data order, schedule and checkpoints are ours."""
    stage = config.stage
    return TrainingArguments(
        output_dir=str(run),
        max_steps=total_steps,
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
        metric_for_best_model="f_s" if has_validation else None,
        greater_is_better=True if has_validation else None,
        save_strategy="steps",
        save_steps=stage.save_every,
        seed=config.seed,
        data_seed=config.seed,
        train_sampling_strategy="sequential",  # the stream is already in order
        dataloader_num_workers=stage.n_workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        use_cpu=use_cpu,
        deepspeed=None if to_deepspeed is None else dict(to_deepspeed),
        ddp_find_unused_parameters=False,  # every step uses all that trains, see the model's _idle
        ddp_timeout=config.strategy.timeout_s,
        disable_tqdm=True,
        report_to="none",
    )


def validation_scores(
    predictions: Sequence[Prediction], references: Sequence[Sample], lang: str = "en"
) -> dict[str, float]:
    """F_S, precision and recall (level-1 mean over the five wheels) with their denominators."""
    truths = {sample.id: true_labels(sample, lang) for sample in references}
    report = evaluate(predictions, truths, n_bootstrap=0)
    return {
        "f_s": report.primary.f_score,
        "precision": report.primary.precision,
        "recall": report.primary.recall,
        "n": float(report.primary.n),
        "unparsed": float(report.counts.unparsed),
    }


def _with_frames(
    samples: Sequence[Sample], predictions: Sequence[Prediction], n: int
) -> list[tuple[Sample, Prediction, Any]]:
    """The first `n` samples with their prediction and decoded frames."""
    from affectgpt.media import read_frames

    by_id = {prediction.id: prediction for prediction in predictions}
    rows = []
    for sample in samples[:n]:
        frames = None
        if sample.video is not None and "frames" in (sample.modalities or ()):
            frames = read_frames(sample.video, 3).images
        rows.append((sample, by_id[sample.id], frames))
    return rows
