"""Run one training stage: from its configuration to a finished run folder.

A run folder holds `config.yaml`, `run.json`, `metrics.jsonl`, `generations/`, `best/` and the last checkpoints. A stage
is a file of conf/stage: its data, objective, trained parts, starting weights and length.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from affectgpt.cache.reader import cache_mode, clip_reader
from affectgpt.config import TrainConfig
from affectgpt.data.facts import facts_in
from affectgpt.data.mixture import Source
from affectgpt.data.sources import report_bad
from affectgpt.data.stream import RepeatedSteps, TrainingStream
from affectgpt.runs import BEST, RunRecord, complete_checkpoints
from affectgpt.runtime import UserError, gc_paused, seed_everything, torch_device
from affectgpt.schema import BadSample
from affectgpt.training import objectives
from affectgpt.training.callbacks import (
    CompleteCheckpoints,
    MetricsFile,
    ProgressBar,
    StopOnSignal,
    TensorBoardLog,
    WandbLog,
    shown_generations,
    shown_rollouts,
)
from affectgpt.training.distributed import Processes
from affectgpt.training.loader import Batches
from affectgpt.training.memory import check_activation_gb
from affectgpt.training.objectives import Hooks, Objective, Started
from affectgpt.training.run_folder import open_run
from affectgpt.training.samples import check_texts, hold_out_validation, prepare_clips, training_sources
from affectgpt.training.schedule import schedule_of
from affectgpt.training.setup import set_up, starting_model
from affectgpt.training.trainer import StageTrainer, training_arguments
from affectgpt.training.validation import Validation, metric_of

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: its run folder, and the exit code for the shell (0, 143 after SIGTERM, 130 after Ctrl-C)."""

    run: Path
    exit_code: int


def run_stage(config: TrainConfig) -> StageResult:
    """Train one stage, or resume an unfinished run of it.

    With several processes each of them calls this; the first one writes the run folder.
    """
    if config.strategy.name == "zero3" and config.model.llm.quantization:
        raise UserError(
            f"strategy=zero3 cannot partition a quantized LLM (model.llm.quantization={config.model.llm.quantization});"
            " use strategy=ddp or zero2, or no quantization"
        )
    if config.strategy.name == "zero3" and config.model.llm.lora.r and config.model.llm.lora.use_dora:
        raise UserError(
            "strategy=zero3 partitions the weights whose norms DoRA needs (model.llm.lora.use_dora=true); use "
            "strategy=ddp or zero2, or use_dora=false"
        )
    check_activation_gb(config.stage, config.strategy.name)
    schedule_of(config.stage)  # refuses what cannot be, before there is a run folder
    objective = objectives.of_stage(config.stage)
    with Processes(config.strategy, torch_device(config.device)) as processes:
        if not processes.is_main:
            log.setLevel(logging.WARNING)
        return _run_stage(config, objective, processes)


def _run_stage(config: TrainConfig, objective: Objective, processes: Processes) -> StageResult:
    # Errors in a manifest, missing files and a missing earlier stage are found before there is a run folder.
    with gc_paused():
        sources, bad = processes.by_main(lambda: training_sources(config))
        if isinstance(objective, Hooks):
            processes.by_main(lambda: objective.check(config, sources))
            sources = objective.select(config, sources)
    files = [file for source in sources for file in source.files]
    with ExitStack() as stack:
        record, resume_from = processes.by_main(lambda: open_run(config, files, processes.world_size, stack))
        if record.values["status"] == "finished":
            log.info("%s is finished: there is nothing to resume; leave resume out to start another run", record.folder)
            return StageResult(record.folder, 0)
        return _run(config, objective, record, resume_from, sources, bad, processes)


def _run(
    config: TrainConfig,
    objective: Objective,
    record: RunRecord,
    resume_from: Path | None,
    sources: Sequence[Source],
    bad: Sequence[BadSample],
    processes: Processes,
) -> StageResult:
    names = config.stage.name, config.model.name, config.data.name
    log.info("run %s: stage %s, model %s, data %s", record.folder, *names)
    log.info("strategy %s: num_processes %d", config.strategy.name, processes.world_size)
    with StopOnSignal(processes.any) as stop, record if processes.is_main else nullcontext():
        results = _train(config, objective, record, resume_from, sources, bad, stop, processes)
        if processes.is_main:
            record.finish("stopped" if stop.stopped else "finished", **results)
    if stop.stopped:
        log.info("stopped; the same command with resume=true resumes the run")
    return StageResult(record.folder, stop.exit_code)


def _train(
    config: TrainConfig,
    objective: Objective,
    record: RunRecord,
    resume_from: Path | None,
    sources: Sequence[Source],
    bad: Sequence[BadSample],
    stop: StopOnSignal,
    processes: Processes,
) -> dict[str, Any]:
    """Train; returns the results for the run record."""
    stage, run, device = config.stage, record.folder, torch_device(config.device)
    seed_everything(config.seed)

    # The model
    init_from = Path(record.values["init_from"]) if record.values["init_from"] else None
    _log_start(config, init_from, resume_from)
    model, processor = starting_model(config, init_from)
    record.values["init"] = model.config.init or {"init": "random", "seed": config.seed}
    deepspeed = set_up(model, config, processes, device)

    # The data
    reader = clip_reader(
        model,
        processor,
        backend=config.data.backend,
        cache_folder=None if cache_mode(config.data.cache_features) == "off" else Path(config.paths.cache),
        limit_gb=config.paths.cache_limit_gb,
        facts=facts_in(Path(config.paths.cache)),
    )
    sources, bad_clips, n_uncached = prepare_clips(sources, config.data, reader, model.modalities, processes)
    if n_uncached == 0:  # all encoder states are in the cache, so the GPU needs no encoders
        for encoder in model.encoders_aside.values():
            encoder.to("cpu")
    sources, bad_texts = check_texts(
        sources, processor, (objective if isinstance(objective, Hooks) else Hooks()).answers, config.data.on_bad
    )
    bad = [*bad, *bad_clips, *bad_texts]
    if processes.is_main:
        record.values["n_bad_samples"] = report_bad(bad, run)
    training, validation = hold_out_validation(sources, stage.n_validation, config.seed)
    held_out = [sample for source in validation for sample in source.samples]
    metric = metric_of(validation)
    n_steps = stage.epochs * stage.iterations_per_epoch
    samples_per_step = stage.batch_size * stage.accumulation * processes.world_size
    stream: Any = TrainingStream(
        training,
        modalities=model.modalities,
        length=n_steps * samples_per_step,
        seed=config.seed,
        modality_dropout=stage.modality_dropout,
        subtitle_dropout=stage.subtitle_dropout,
        targets=stage.targets,
        # A step of one batch has nothing to sort, and the order within a batch stays as drawn.
        bucket=samples_per_step if not stage.packing and samples_per_step > stage.batch_size else 1,
        prompt_format=processor.prompt_format,
    )
    log.info(
        "%d training samples, %d held out for validation, %d bad; %d steps of %d samples",
        sum(len(source.samples) for source in training),
        len(held_out),
        len(bad),
        n_steps,
        samples_per_step,
    )

    # The loop
    callbacks: list[Any] = [
        ProgressBar(stage.name, metric),
        MetricsFile(run / "metrics.jsonl"),
        CompleteCheckpoints(run, stage.keep_last, processes.wait),
        stop,
    ]
    if config.logging.wandb != "disabled":
        name = config.study.name or config.name or stage.name
        tags = [stage.name, config.model.name, config.data.name, f"seed {config.seed}"]
        about = {"job": f"train {stage.name}", "group": name, "tags": tags}
        callbacks.append(WandbLog(config.logging, run, asdict(config), **about))
    if config.logging.tensorboard:
        callbacks.append(TensorBoardLog(run / "tensorboard"))
    if isinstance(objective, Hooks):
        objective.start(Started(config, model, processor, processes, run, shown_rollouts(config, callbacks)))
        if objective.passes > 1:
            stream = RepeatedSteps(stream, samples_per_step, objective.passes)
    validate = None
    if validation:
        show = shown_generations(callbacks)
        validate = Validation(config, validation, processor, reader, processes, run / "generations", show)
    trainer = StageTrainer(
        model=model,
        args=training_arguments(
            config, run, has_validation=bool(validation), use_cpu=device.type == "cpu", deepspeed=deepspeed
        ),
        train_dataset=stream,
        eval_dataset=held_out or None,
        data_collator=Batches(objective, processor, reader, model, packed=stage.packing),
        callbacks=callbacks,
        objective=objective,
        processor=processor,
        schedule=schedule_of(stage),
        rates=stage.learning_rates,
        validate=validate,
    )
    assert trainer.args.world_size == processes.world_size, "the Trainer counts other processes than were started"
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if stop.stopped:
        return {}
    if isinstance(objective, Hooks) and processes.is_main:
        objective.finish()
    best = trainer.state.best_metric
    log.info(
        "finished: %s%s",
        complete_checkpoints(run)[-1],
        f", best by validation ({metric} {best * 100:.1f}): {run / BEST}" if best is not None else "",
    )
    scored = {} if best is None else {"best_validation_score": best, "validation_metric": metric}
    return {"loss": trainer.mean_loss, **scored, "steps": trainer.state.global_step}


def next_commands(config: TrainConfig, run: Path, given: Sequence[str]) -> str:
    """What to run after a stage, with those of the settings given to train.py that the next command needs, too."""
    dropped = ("stage=", "stage.", "name=", "resume=", "debug=", "experiment=")
    kept = [item for item in given if not item.startswith((*dropped, "-"))]
    n_processes = os.environ.get("LOCAL_WORLD_SIZE", "N")
    train = "python" if config.strategy.name == "single" else f"torchrun --nproc_per_node {n_processes}"
    train += " train.py"
    if config.stage.objective_options.get("variant") == "bradley_terry":  # it scores answers, and gives none
        kept = [item for item in kept if not item.startswith(("data=", "data."))]  # pairs; rewards need labels
        rewards = ["stage.rewards={model: 1.0, format: 0.1}", f"stage.objective_options.reward_model={run}"]
        return f"next:\n  {train} {shlex.join(['stage=reward', *rewards, *kept])}"
    shared = [item for item in given if item.startswith(("data=", "data.", "paths.", "device=", "generate."))]
    shown = [f"checkpoint={run}", *shared]
    lines = [f"python eval.py {shlex.join(shown)}", f"python infer.py video.mp4 {shlex.join([f'checkpoint={run}'])}"]
    if config.stage.name == "coarse":
        start = [] if run.name == "coarse" else [f"stage.init_from={run}"]
        lines.insert(0, f"{train} {shlex.join(['stage=fine', *start, *kept])}")
    return "next:" + "".join(f"\n  {line}" for line in lines)


def _log_start(config: TrainConfig, init_from: Path | None, resume_from: Path | None) -> None:
    if resume_from is not None:
        log.info("resuming from %s", resume_from)
    elif init_from is not None:
        log.info("projectors start from %s", init_from)
    elif config.model.init == "random":
        log.info("projectors start from random values (seed %d)", config.seed)
