"""Run folders: run records, complete runs and checkpoints, and finding them by name. Needs no torch.

Each output folder holds `run.json` with command, commit, versions, resolved config, hashes of the inputs and status. A
run folder is never overwritten: a second run of the same name gets a number appended.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from affectgpt.runtime import (
    InputError,
    UserError,
    redacted,
    sha256_of_file,
    sync,
    write_json_atomic,
    write_text_atomic,
)

log = logging.getLogger("affectgpt")

RECORD = "run.json"
_PACKAGES = ("affectgpt", "torch", "transformers", "accelerate", "peft", "numpy", "av", "sentencepiece", "hydra-core")
COMPLETE = "COMPLETE"
BEST = "best"
TRAINED_MANIFEST = "affectgpt.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def _git_commit() -> str | None:
    """Commit of the running source tree, with '-dirty' if it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class RunRecord:
    """`run.json` of an output folder: written at the start, updated with status and results at the end.

    As a context it ends the record of a command that an exception ends: "stopped" after Ctrl-C or an exit, "failed"
    after an error.
    """

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        self.values = values

    @classmethod
    def start(
        cls, folder: Path, *, kind: str, config: Mapping[str, Any], inputs: Iterable[str | Path] = (), **more: Any
    ) -> RunRecord:
        """Write the record with status "running"; `inputs` are the files whose hashes it holds."""
        values = {
            "kind": kind,
            "status": "running",
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": _git_commit(),
            "versions": _versions(),
            "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
            "inputs": {str(path): sha256_of_file(path) for path in inputs},
            "config": config,
            **more,
        }
        record = cls(folder, values)
        record._started = time.monotonic()
        record._write()
        return record

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """The record of a folder; None if it has none."""
        path = folder / RECORD
        problem = "no kind and status"
        try:
            if not path.is_file():
                return None
            values = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(values, dict) and isinstance(values.get("kind"), str) and isinstance(values["status"], str):
                return cls(folder, values)
        except (OSError, ValueError, KeyError, RecursionError) as error:
            problem = str(error)
        raise InputError(f"{path}: not a run record ({problem}); restore it, or remove the folder")

    _started: float | None = None

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self.values["status"] != "running":
            return
        try:
            self.finish("stopped" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "failed")
        except UserError as error:  # a full disk, say: what ended the command is the better message
            log.warning("%s", error)

    def finish(self, status: str, **results: Any) -> None:
        """`status`: "finished", "stopped" (by a signal or limit, resumable) or "failed"."""
        self.values["status"] = status
        self.values["ended"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        if self._started is not None:
            self.values["duration_s"] = round(time.monotonic() - self._started, 1)
        self.values.update(results)
        self._write()

    def resume(self) -> None:
        self.values.setdefault("resumed", []).append(datetime.now(timezone.utc).isoformat(timespec="seconds"))
        self.values["status"] = "running"
        self._started = time.monotonic()
        self._write()

    def _write(self) -> None:
        write_json_atomic(self.folder / RECORD, redacted(self.values))


_RUN_NAME = re.compile(r"[^\W_][\w.+=, -]*(?<! )")


def runs_named(runs: Path, name: str) -> list[Path]:
    """Run folders `name`, `name-2`, `name-3` ... that have a record, oldest first."""
    numbered = {}
    for folder in runs.iterdir() if runs.is_dir() else ():
        match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", folder.name)
        if match and (folder / RECORD).is_file():
            numbered[int(match.group(1) or 1)] = folder
    return [numbered[number] for number in sorted(numbered)]


def new_run_folder(runs: Path, name: str) -> Path:
    """Create and return `runs/name`, or `runs/name-2` ... if it exists."""
    if not _RUN_NAME.fullmatch(name):
        raise UserError(
            f"run name {name!r}: use letters and digits of any script, spaces and . _ + - = , only, and start with a "
            "letter or digit"
        )
    number = 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def is_checkpoint_name(name: str) -> bool:
    """Whether a run names its checkpoints like this; one of them is complete when it is marked so."""
    return name == BEST or _CHECKPOINT.fullmatch(name) is not None


def complete_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoint folders of a run, oldest first.

    Files are written in place and the marker last, so a folder without it was left by a killed run.
    """
    found = {}
    for folder in run.glob("checkpoint-*"):
        if (match := _CHECKPOINT.fullmatch(folder.name)) and (folder / COMPLETE).exists():
            found[int(match.group(1))] = folder
    return [found[step] for step in sorted(found)]


def mark_complete(folder: Path, text: str) -> None:
    """Write the marker of a checkpoint once its files are on the disk, so that it also holds after a power failure.

    The marker is `text` and the sha256 of every other file, in the format of sha256sum.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / COMPLETE)
    for path in (*files, *filter(Path.is_dir, folder.rglob("*")), folder):
        sync(path)
    write_text_atomic(folder / COMPLETE, "".join(f"{line}\n" for line in [text, *checksum_lines(folder, files)]))
    sync(folder.parent)


def changed_files(folder: Path) -> list[str]:
    """How the files of a checkpoint differ from those of its marker, a line each; a marker without files lists none."""
    text = (folder / COMPLETE).read_text(encoding="utf-8", errors="replace")
    return differing_files(folder, checksums_in(text.partition("\n")[2]))


def checksum_lines(folder: Path, files: Sequence[Path]) -> list[str]:
    """Lines of sha256sum for files of a folder."""
    return [
        f"{digest}  {path.relative_to(folder).as_posix()}" for digest, path in zip(_digests(files), files, strict=True)
    ]


def checksums_in(text: str) -> dict[str, str]:
    """File name -> sha256, from lines of sha256sum."""
    lines = (line.partition("  ") for line in text.splitlines())
    return {name: digest for digest, _, name in lines if name}


def differing_files(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """One line for each file that is missing or has another sha256."""
    there = [name for name in expected if (folder / name).is_file()]
    found = dict(zip(there, _digests([folder / name for name in there]), strict=True))
    wrong = (
        f"{name} has changed since it was written" if name in found else f"{name} is missing"
        for name in sorted(expected)
        if found.get(name) != expected[name]
    )
    return list(wrong)


def _digests(files: Sequence[Path]) -> Iterator[str]:
    """The sha256 of each file; hashing needs no interpreter, so threads do it at once."""
    with ThreadPoolExecutor(max_workers=min(4, len(files) or 1)) as pool:
        return iter(list(pool.map(sha256_of_file, files)))


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left in a run that this process is about to continue: incomplete checkpoints and
    files that were not renamed yet."""
    best, old = run / BEST, run / f".{BEST}.old"
    if not best.exists() and (old / COMPLETE).exists():
        os.replace(old, best)
    for folder in (old, run / f".{BEST}.new", *run.glob("checkpoint-*")):
        if folder.is_dir() and (folder.name.startswith(".") or not (folder / COMPLETE).exists()):
            shutil.rmtree(folder)
    for path in (*run.glob(".*.tmp"), *run.glob("generations/.*.tmp")):
        path.unlink()


def replace_best(run: Path, new: Path) -> None:
    """Make the folder `new` the best checkpoint of a run, without a moment in which there is none.

    On Linux the two folders change their names in one system call. Where the file system cannot do this (NFS), the old
    one is set aside under a name that `best_checkpoint` knows.
    """
    best, old = run / BEST, run / f".{BEST}.old"
    if not best.exists():
        os.replace(new, best)
    elif _exchange(new, best):
        shutil.rmtree(new)
    else:
        shutil.rmtree(old, ignore_errors=True)
        os.replace(best, old)
        os.replace(new, best)
        shutil.rmtree(old)
    sync(run)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; False if the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    current, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(current, os.fsencode(one), current, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def best_checkpoint(run: Path) -> Path | None:
    """The best checkpoint of a run by validation; None if it has none yet."""
    for name in (BEST, f".{BEST}.old", BEST):  # the order in which `replace_best` renames, and once more
        if (run / name / COMPLETE).exists():
            return run / name
    return None


def _readable(folder: Path) -> RunRecord | None:
    """The record of a folder among others: a damaged one is left out with a warning that names it."""
    try:
        return RunRecord.read(folder)
    except InputError as error:
        log.warning("left out %s", error)
        return None


def next_order(runs: Path) -> int:
    """A number above that of every run in `runs`: it says which run is newer, whatever the clock of a machine said."""
    return 1 + max(
        (_order(record) for folder in runs.glob("*") if (record := _readable(folder)) is not None), default=0
    )


def _order(record: RunRecord) -> int:
    order = record.values.get("order")
    return order if isinstance(order, int) else 0  # a run of an older version


def last_complete_run(runs: Path, name: str) -> Path | None:
    """The newest finished run named `name` (or `name-2` ...); None if there is none."""
    for run in reversed(runs_named(runs, name)):
        record = _readable(run)
        if record is not None and record.values["status"] == "finished" and complete_checkpoints(run):
            return run
    return None


def checkpoint_to_start_from(runs: Path, init_from: str) -> Path:
    """The checkpoint from which a stage starts: a checkpoint folder, or the last one of a run given by folder or name.

    Raises:
        UserError: there is none; the message names the command that makes one.
    """
    folder = Path(init_from)
    if (folder / TRAINED_MANIFEST).is_file():
        return folder
    run = folder if (folder / RECORD).is_file() else last_complete_run(runs, init_from)
    checkpoints = complete_checkpoints(run) if run is not None else []
    if not checkpoints:
        fix = f"run `python train.py stage={init_from}` first" if _RUN_NAME.fullmatch(init_from) else "correct the path"
        raise UserError(
            f"init_from is {init_from!r}, but {runs} has no complete run of that name, and it is not a "
            f"checkpoint folder; {fix}, or set stage.init_from=null to start from random weights"
        )
    return checkpoints[-1]


def newest_run(runs: Path) -> Path | None:
    """The last complete run of the stage that was trained last; of stage coarse only if there is no other.

    Runs count if they have their stage's name, the default: others are experiments, to be used by name. A run is newer
    than another if it was started after it had a record; the clock decides only between runs of older versions.
    """
    records = [record for folder in sorted(runs.glob("*")) if (record := _readable(folder)) is not None]
    kinds = {record.values["kind"] for record in records}
    stages = {kind.removeprefix("train ") for kind in kinds if kind.startswith("train ")}
    newest = {stage: run for stage in sorted(stages) if (run := last_complete_run(runs, stage)) is not None}
    if len(newest) > 1:
        newest.pop("coarse", None)  # the first stage of the paper, from which the others start
    by_folder = {record.folder: record for record in records}
    age = {run: (_order(by_folder[run]), str(by_folder[run].values.get("started"))) for run in newest.values()}
    return max(age, key=lambda run: age[run], default=None)


def checkpoint_to_use(runs: Path, checkpoint: str | None) -> Path:
    """The folder of `chosen_checkpoint`."""
    return chosen_checkpoint(runs, checkpoint)[0]


def chosen_checkpoint(runs: Path, checkpoint: str | None) -> tuple[Path, str]:
    """The checkpoint to run, and why: a checkpoint folder; of a run its best by validation, else its last; None =
    `newest_run`.

    Raises:
        UserError: there is none; the message names the command that makes one.
    """
    if checkpoint is None:
        run = newest_run(runs)
        if run is None:
            raise UserError(
                f"{runs} has no complete run; `python train.py stage=coarse` and `python train.py stage=fine` create "
                "one; or name a checkpoint folder with checkpoint="
            )
    else:
        folder = Path(checkpoint)
        if (folder / TRAINED_MANIFEST).is_file() or (folder / "config.json").is_file():
            return folder, "as named"
        if not folder.is_dir() and (runs / checkpoint).is_dir():
            folder = runs / checkpoint
        if not (folder / RECORD).is_file():
            problem = "is neither a checkpoint nor a run folder" if folder.exists() else "does not exist"
            known = sorted(path.parent.name for path in runs.glob(f"*/{RECORD}"))
            raise UserError(f"checkpoint {checkpoint!r} {problem}; the runs in {runs} are {known}")
        run = folder
    which = f"the newest complete run in {runs}" if checkpoint is None else f"run {run}"
    if (best := best_checkpoint(run)) is not None:
        return best, f"best by validation of {which}"
    if checkpoints := complete_checkpoints(run):
        return checkpoints[-1], f"last checkpoint of {which}, which has no best by validation"
    raise UserError(f"{run} has no complete checkpoint; repeat its train.py command with resume=true to continue it")
