"""Run folders: a new one, or the one to go on with, if nothing that decides its weights has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from affectgpt.config import TrainConfig
from affectgpt.data.stream import Part
from affectgpt.models import pretrained
from affectgpt.runs import RunRecord, checkpoint_to_start_from, complete_checkpoints, new_run_folder, runs_named
from affectgpt.runtime import UserError, write_text_atomic

# What may differ between a run and its continuation, since it does not decide the weights.
_FREE_ON_RESUME = (
    "resume",
    "logging",
    "paths",
    "device",
    "data.cache_features",
    "stage.activation_gb",
    "stage.gradient_checkpointing",
    "stage.n_workers",
    "stage.keep_last",
    "strategy.num_processes",
    "strategy.timeout_s",
)


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


def open_run(config: TrainConfig, parts: Sequence[Part], n_processes: int) -> Run:
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
