"""One training stage from its configuration to a finished run folder.

A run folder holds `config.yaml`, `run.json`, `metrics.jsonl`, `generations/`, `best/` and the last checkpoints. The
stage itself is data: what it trains on, what is trainable, where it starts and how long it runs stand in conf/stage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from affectgpt.conf_schema import DataConfig, SourceConfig, StageConfig, TrainConfig
from affectgpt.data import leaks
from affectgpt.data.facts import MediaFacts, facts_in
from affectgpt.data.features import ClipReader, cache_mode
from affectgpt.data.sources import probe_samples, read_source, report_bad
from affectgpt.data.splits import hold_out
from affectgpt.data.stream import Part, Recipe, TrainingStream, weighted, with_texts
from affectgpt.inference import Asking, Decoding, predict
from affectgpt.loading import clip_reader, model_spec, quiet_libraries, torch_device
from affectgpt.metrics import evaluate
from affectgpt.models import build, pretrained, quantize, trainable_table
from affectgpt.models.checkpoint import load_trained_tensors, read_spec
from affectgpt.models.processing_affectgpt import MEDIA_KEYS
from affectgpt.runtime import (
    RunRecord,
    UserError,
    new_run_folder,
    runs_named,
    seed_everything,
    without_collector,
    write_text_atomic,
)
from affectgpt.schema import BadSample, Prediction, Sample, true_labels, write_jsonl
from affectgpt.training import distributed
from affectgpt.training.callbacks import MetricsFile, ProgressBar, StopOnSignal, TensorBoardLog, WandbLog
from affectgpt.training.checkpoints import BEST, checkpoint_to_start_from, complete_checkpoints
from affectgpt.training.distributed import Processes
from affectgpt.training.loader import Batches, EncodeDraw
from affectgpt.training.schedule import Schedule
from affectgpt.training.trainer import StageTrainer

log = logging.getLogger("affectgpt")

# What may differ between a run and its continuation, since it does not decide the weights.
_FREE_ON_RESUME = (
    "resume",
    "logging",
    "paths",
    "device",
    "data.cache_features",
    "stage.n_workers",
    "stage.keep_last",
    "strategy.num_processes",
    "strategy.timeout_s",
)


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: its run folder, and the exit code for the shell (0, 143 after SIGTERM, 130 after Ctrl-C)."""

    run: Path
    exit_code: int


@dataclass(frozen=True)
class Run:
    """A run folder that is open for training.

    Attributes:
        record: run.json; only the first process writes it.
        init_from: the checkpoint that the stage started from.
        resume_from: the checkpoint to go on from; None = there is none yet.
    """

    folder: Path
    record: RunRecord
    init_from: Path | None
    resume_from: Path | None


def run_stage(config: TrainConfig) -> StageResult:
    """Train one stage, or go on with an unfinished one; every choice that was made for the user is printed.

    With a strategy of several processes each of them calls this; the first one writes the run folder.
    """
    if config.strategy.name == "zero3" and config.model.llm.quantization:
        raise UserError(
            f"strategy=zero3 does not split a packed LLM (model.llm.quantization={config.model.llm.quantization}); "
            "take strategy=ddp or zero2, or leave the quantization out"
        )
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
        parts, bad = processes.by_main(lambda: _training_parts(config, sources))
    run = processes.by_main(lambda: _open_run(config, parts, processes.world_size))
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


def _open_run(config: TrainConfig, parts: Sequence[Part], n_processes: int) -> Run:
    stage = config.stage
    init_from = None
    pretrained.folder_of(config.model.init, config.model.init_from)  # a wrong one shall show before there is a run
    if stage.init_from and not config.resume:
        init_from = checkpoint_to_start_from(Path(config.paths.runs), stage.init_from)
    folder, resume_from = _run_folder(config, n_processes)
    record = RunRecord.read(folder)
    if record is None:
        record = RunRecord.start(
            folder,
            kind=f"train {stage.name}",
            config=asdict(config),
            inputs=[file for part in parts for file in part.files],
            init_from=None if init_from is None else str(init_from),
            num_processes=n_processes,
        )
        write_text_atomic(folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True))
    else:
        record.resume()
        init_from = Path(record.values["init_from"]) if record.values["init_from"] else None
    return Run(folder, record, init_from, resume_from)


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
        model.gradient_checkpointing_enable()
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
    caching = cache_mode(config.data.cache_features)
    reader = clip_reader(
        model,
        processor,
        backend=config.data.backend,
        cache_folder=None if caching == "off" else Path(config.paths.cache),
        limit_gb=config.paths.cache_limit_gb,
    )
    with without_collector():
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
        asking = Asking(
            task="both" if stage.tasks.get("both") else "labels", lang=max(stage.langs, key=stage.langs.get)
        )
        generate = config.generate
        decoding = Decoding(generate.batch_size, generate.max_new_tokens, compile=generate.compile)
        mine = processes.equal_share(validation)
        made = processes.together(
            lambda: list(predict(model, processor, mine, reader, asking=asking, decoding=decoding))
        )
        by_id = {row.id: row for rows in made for row in rows}
        rows = [by_id[sample.id] for sample in validation]
        if processes.is_main:
            write_jsonl(run.folder / "generations" / f"step-{step:06d}.jsonl", rows)
        if processes.is_main and wandb_log is not None:
            wandb_log.show_generations(step, _with_frames(validation, rows, config.logging.n_sample_generations))
        return validation_scores(rows, validation, asking.lang)

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


def recipe_of(stage: StageConfig) -> Recipe:
    """What the stage asks for and shows."""
    return Recipe(stage.tasks, stage.langs, stage.modality_dropout, stage.subtitle_dropout, tuple(stage.candidates))


def _training_parts(config: TrainConfig, sources: Sequence[SourceConfig]) -> tuple[list[Part], list[BadSample]]:
    """The training data with the texts that the stage asks for, and without what the test set holds."""
    facts = facts_in(Path(config.paths.cache))
    parts, bad = read_sources(sources, config.data, facts=facts, recipe=recipe_of(config.stage))
    parts, leaked = leaks.keep_apart(parts, config.data, facts)
    return parts, [*bad, *leaked]


def read_sources(
    sources: Sequence[SourceConfig],
    data: DataConfig,
    *,
    facts: MediaFacts | None = None,
    recipe: Recipe | None = None,
) -> tuple[list[Part], list[BadSample]]:
    """Read the sources and look at the headers of their media; the parts, and what was left out.

    Args:
        recipe: if given, samples must have the texts that it (or their source) asks for.
    """
    parts: list[Part] = []
    bad: list[BadSample] = []
    for source in sources:
        rows = read_source(source, data.folder, on_bad=data.on_bad)
        samples, bad_media = probe_samples(rows.samples, on_bad=data.on_bad, facts=facts)
        bad += rows.bad + bad_media
        files = tuple(str(file) for file in rows.files)
        part = Part(samples, source.weight, source.tasks, source.langs, tuple(source.candidates), files)
        if recipe is not None:
            tasks, langs, candidates = part.asked(recipe)
            samples, lacking = with_texts(samples, tasks, langs, candidates, on_bad=data.on_bad)
            bad += lacking
            part = replace(part, samples=samples, candidates=candidates)
        if not samples:
            raise UserError(f"{rows.name}: no usable sample is left; the first of {len(bad)}: {bad[0].reason}")
        parts.append(part)
    return weighted(parts, data.weights), bad


def prepare_training(
    parts: Sequence[Part],
    stage: StageConfig,
    data: DataConfig,
    seed: int,
    reader: ClipReader,
    modalities: Sequence[str],
    processes: Processes,
) -> tuple[list[Part], list[Sample], list[BadSample], int]:
    """Encode the training data (with a cache that is filled ahead; each process its share) and hold out validation.

    Returns:
        training parts, validation samples (out of the training data, never the test split), bad clips, and how many
        clips will need encoders in the steps.
    """
    usable: list[Part] = []
    bad: list[BadSample] = []
    n_uncached = 0
    ahead = cache_mode(data.cache_features) == "ahead"
    for part in parts:
        samples = part.samples
        mine = processes.share(samples)
        prepared = processes.together(
            lambda mine=mine: (
                reader.prepare(
                    mine,
                    modalities,
                    on_bad=data.on_bad,
                    encode=ahead,
                    what="encoding clips" if ahead else "reading clips",
                ).summary
            )
        )
        bad_clips = [row for rows, _ in prepared for row in rows]
        n_uncached += sum(count for _, count in prepared)
        bad += bad_clips
        bad_ids = {row.id for row in bad_clips}
        good = [sample for sample in samples if sample.id not in bad_ids]
        if not good:
            raise UserError(f"none of {len(samples)} clips can be decoded; the first: {bad[0].id!r}: {bad[0].reason}")
        usable.append(replace(part, samples=good))
    parts = usable
    n_all = sum(len(part.samples) for part in parts)
    if stage.n_validation >= n_all:
        raise UserError(
            f"stage.n_validation={stage.n_validation} would hold out all of {n_all} usable training samples; lower it "
            "(0 = no validation) or add samples"
        )
    validation: list[Sample] = []
    training: list[Part] = []
    for part in parts:
        share = round(stage.n_validation * len(part.samples) / n_all)
        rest, held = hold_out(part.samples, n=share, seed=seed)
        training.append(replace(part, samples=rest))
        validation += held
    return training, validation, bad, n_uncached


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


def _run_folder(config: TrainConfig, n_processes: int) -> tuple[Path, Path | None]:
    """The run's folder, and with `resume` the checkpoint to go on from (None = it has none yet)."""
    runs, name = Path(config.paths.runs), config.name or config.stage.name
    if not config.resume:
        return new_run_folder(runs, name), None
    named = runs_named(runs, name)
    if not named:
        raise UserError(f"resume=true, but {runs} holds no run named {name!r}; leave resume out to start one")
    run = named[-1]
    record = RunRecord.read(run)
    assert record is not None
    if record.values["status"] == "finished":
        raise UserError(f"resume=true, but {run} is finished; leave resume out to start another run")
    if differing := differing_settings(record.values["config"], asdict(config)):
        listed = "\n".join(f"  {key}: was {old!r}, now {new!r}" for key, old, new in differing)
        raise UserError(f"{run} was started with other settings, so it cannot go on:\n{listed}")
    if (before := record.values.get("num_processes", 1)) != n_processes:
        raise UserError(
            f"{run} was trained by {before} processes, now there are {n_processes}: batches would be others, and the "
            f"optimizer state is split by process. Go on with {before} (torchrun --nproc_per_node), or start a run "
            f"from its last checkpoint with stage.init_from={run}/checkpoint-<step>"
        )
    checkpoints = complete_checkpoints(run)
    return run, checkpoints[-1] if checkpoints else None


def differing_settings(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(setting, before, now) of what decides the weights and differs between two configurations as dictionaries."""
    if prefix in _FREE_ON_RESUME:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted({*before, *now}):
            found += differing_settings(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if before == now else [(prefix, before, now)]
