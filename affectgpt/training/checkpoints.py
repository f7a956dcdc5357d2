"""Which checkpoints of a run are whole, and which one a name or a folder means. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

from affectgpt.runtime import RECORD, RunRecord, UserError, runs_named

COMPLETE = "COMPLETE"
BEST = "best"
TRAINED_MANIFEST = "affectgpt.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def complete_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run whose marker was written, oldest first.

    Files are written in place, so a folder without the marker is what a killed run left behind.
    """
    found = {}
    for folder in run.glob("checkpoint-*"):
        if (match := _CHECKPOINT.fullmatch(folder.name)) and (folder / COMPLETE).exists():
            found[int(match.group(1))] = folder
    return [found[step] for step in sorted(found)]


def last_complete_run(runs: Path, name: str) -> Path | None:
    """The newest finished run called `name` (or `name-2` ...); None if there is none."""
    for run in reversed(runs_named(runs, name)):
        record = RunRecord.read(run)
        if record is not None and record.values["status"] == "finished" and complete_checkpoints(run):
            return run
    return None


def checkpoint_to_start_from(runs: Path, init_from: str) -> Path:
    """The checkpoint that a stage starts from: a checkpoint folder, or the end of a run given by folder or name.

    Raises:
        UserError: there is none; the message says which command makes one.
    """
    folder = Path(init_from)
    if (folder / TRAINED_MANIFEST).is_file():
        return folder
    run = folder if (folder / RECORD).is_file() else last_complete_run(runs, init_from)
    checkpoints = complete_checkpoints(run) if run is not None else []
    if not checkpoints:
        raise UserError(
            f"init_from is {init_from!r}, but {runs} holds no complete run of that name and it is no checkpoint "
            f"folder; run `python train.py stage=coarse` first, or set stage.init_from=null to start from random values"
        )
    return checkpoints[-1]


def checkpoint_to_use(runs: Path, checkpoint: str | None) -> Path:
    """The checkpoint to ask: a checkpoint folder; a run (its best by validation, else its last); None = the newest
    complete run of stage fine, else of stage coarse.

    Raises:
        UserError: there is none; the message says which command makes one.
    """
    if checkpoint is None:
        run = last_complete_run(runs, "fine") or last_complete_run(runs, "coarse")
        if run is None:
            raise UserError(
                f"{runs} holds no complete run; `python train.py stage=coarse` and `python train.py stage=fine` make "
                "one, or name a checkpoint folder with checkpoint="
            )
    else:
        folder = Path(checkpoint)
        if (folder / TRAINED_MANIFEST).is_file() or (folder / "config.json").is_file():
            return folder
        if not folder.is_dir() and (runs / checkpoint).is_dir():
            folder = runs / checkpoint
        if not (folder / RECORD).is_file():
            raise UserError(f"checkpoint {checkpoint!r} is neither a checkpoint nor a run folder")
        run = folder
    if (run / BEST / COMPLETE).exists():
        return run / BEST
    if checkpoints := complete_checkpoints(run):
        return checkpoints[-1]
    raise UserError(f"{run} holds no complete checkpoint; the same train.py command with resume=true goes on with it")
