"""Run folders of stages: a new one, or with `resume` the last one, if no setting that affects the weights changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from affectgpt.config import EncoderConfig, ProjectorConfig, TrainConfig
from affectgpt.journal.locks import held
from affectgpt.models import pretrained
from affectgpt.runs import (
    RunRecord,
    changed_files,
    checkpoint_to_start_from,
    complete_checkpoints,
    new_run_folder,
    next_order,
    runs_named,
)
from affectgpt.runtime import UserError, sha256_of_file, write_text_atomic

# Settings that do not affect the weights, so they may change when a run is resumed.
_FREE_ON_RESUME = (
    "resume",
    "logging",
    "paths",
    "device",
    "offline",
    "data.cache_features",
    "generate.batch_size",
    "generate.compile",
    "stage.activation_gb",
    "stage.gradient_checkpointing",
    "stage.n_workers",
    "stage.keep_last",
    "stage.objective_options.limits",
    "strategy.num_processes",
    "strategy.timeout_s",
)


def open_run(
    config: TrainConfig, files: Sequence[str], n_processes: int, stack: ExitStack
) -> tuple[RunRecord, Path | None]:
    """The record of a run that may start now, and the checkpoint to resume from (None = train from step 0).

    A run with status "finished" has nothing left to train; only `resume` finds one.

    Args:
        files: inputs of the run, whose hashes are recorded, and compared when it is resumed.
        stack: holds the run for this process until it is closed.

    Raises:
        UserError: there is no run to resume, it has other settings or data, or another process trains it.
    """
    pretrained.folder_of(config.model.init, config.model.init_from)  # raises if there are no pretrained projectors
    if config.resume:
        return _resumed_run(config, files, n_processes, stack)
    runs, init_from = Path(config.paths.runs), config.stage.init_from
    checkpoint = checkpoint_to_start_from(runs, init_from) if init_from else None
    folder = new_run_folder(runs, config.name or config.stage.name)
    stack.enter_context(_held(folder))
    record = RunRecord.start(
        folder,
        kind=f"train {config.stage.name}",
        config=asdict(config),
        inputs=files,
        init_from=None if checkpoint is None else str(checkpoint),
        num_processes=n_processes,
        order=next_order(runs),
    )
    text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    write_text_atomic(record.folder / "config.yaml", text)
    return record, None


def _held(run: Path) -> AbstractContextManager[None]:
    return held(run / ".lock", what=f"{run} is being trained")


def _resumed_run(
    config: TrainConfig, files: Sequence[str], n_processes: int, stack: ExitStack
) -> tuple[RunRecord, Path | None]:
    """The last run of that name, if it can be resumed with these settings, and its last complete checkpoint."""
    runs, name = Path(config.paths.runs), config.name or config.stage.name
    named = runs_named(runs, name)
    if not named:
        raise UserError(f"resume=true, but {runs} holds no run named {name!r}; leave resume out to start one")
    run = named[-1]
    stack.enter_context(_held(run))
    record = RunRecord.read(run)
    assert record is not None
    if changed := changed_settings(record, config):
        raise UserError(f"{run} was started with other settings, so it cannot be resumed:\n{changed}")
    if record.values["status"] == "finished":
        return record, None
    if wrong := changed_inputs(record, files):
        raise UserError(
            f"{run} was started with other data, so it cannot be resumed: {', '.join(wrong[:5])}. Restore it, or start "
            "another run by leaving resume out"
        )
    if (before := record.values["num_processes"]) != n_processes:
        raise UserError(
            f"{run} was trained by {before} processes, now there are {n_processes}: batches would differ, and the "
            f"optimizer state is split by process. Resume with {before} (torchrun --nproc_per_node), or start a run "
            f"from its last checkpoint with stage.init_from={run}/checkpoint-<step>"
        )
    checkpoint = next(iter(complete_checkpoints(run)[-1:]), None)
    if checkpoint is not None and (wrong := changed_files(checkpoint)):
        raise UserError(
            f"{checkpoint} cannot be resumed: {', '.join(wrong[:5])}. Restore it, or remove the folder to resume from "
            "the checkpoint before it"
        )
    record.resume()
    return record, checkpoint


def changed_inputs(record: RunRecord, files: Sequence[str]) -> list[str]:
    """How the inputs of a run differ from `files` by their content, one text for each; files may have been moved.

    A run of an older version may have recorded none, which differ in nothing.
    """
    before: dict[str, str] = record.values.get("inputs") or {}
    now = {str(path): sha256_of_file(path) for path in files}
    if not before or sorted(before.values()) == sorted(now.values()):
        return []
    changed = [f"{path} has changed" for path, digest in now.items() if before.get(path, digest) != digest]
    more = [f"{path} is new" for path in now if path not in before and now[path] not in before.values()]
    less = [f"{path} is missing" for path in before if path not in now and before[path] not in now.values()]
    return changed + more + less


def changed_settings(record: RunRecord, config: TrainConfig) -> str:
    """Settings that affect the weights and differ between a run and `config`, one a line; empty = none.

    A setting that did not exist when the run started counts as its default.
    """
    default = asdict(TrainConfig())
    default["model"]["encoders"] = {name: asdict(EncoderConfig()) for name in config.model.encoders}
    default["model"]["projectors"] = {name: asdict(ProjectorConfig()) for name in config.model.projectors}
    differing = _differing(record.values["config"], asdict(config), default)
    return "\n".join(f"  {key}: was {old!r}, now {new!r}" for key, old, new in differing)


def _differing(before: Any, now: Any, default: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if prefix in _FREE_ON_RESUME:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        if prefix == "stage.tasks":  # a task of weight 0 is one that is not named, as in runs of older versions
            before, now = ({task: weight for task, weight in tasks.items() if weight} for tasks in (before, now))
        default = default if isinstance(default, dict) else {}
        for key in sorted({*before, *now}):
            name = f"{prefix}.{key}" if prefix else key
            yield from _differing(before.get(key, default.get(key)), now.get(key), default.get(key), name)
    elif before != now:
        yield prefix, before, now
