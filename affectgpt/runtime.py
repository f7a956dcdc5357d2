"""What every command needs around its work: seeds, logging, atomic files, and the record that explains a run.

Each output folder holds `run.json`: command, commit, versions, resolved config, hashes of the inputs and a status. A
run folder is never overwritten: a second run of the same name gets a number behind it.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

log = logging.getLogger("affectgpt")

RECORD = "run.json"
_PACKAGES = ("affectgpt", "torch", "transformers", "accelerate", "peft", "numpy", "av", "sentencepiece", "hydra-core")


class UserError(RuntimeError):
    """Something the user can mend; commands print the message without a traceback and exit with 2."""


def set_up_logging(verbose: bool = False) -> None:
    """Plain lines on stderr; the noise of libraries stays at warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)


@contextmanager
def without_collector() -> Iterator[None]:
    """No search for cyclic garbage while many objects are made that stay, and none among them later.

    Each search walks through all objects: of the start of training on 100,000 clips it took a third.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def write_text_atomic(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    _write_atomic(path, [text])


def write_lines_atomic(path: Path, lines: Iterable[str]) -> None:
    """As `write_text_atomic`, line by line; nothing is held in memory."""
    _write_atomic(path, (f"{line}\n" for line in lines))


def _write_atomic(path: Path, texts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(texts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json_atomic(path: Path, value: Any) -> None:
    write_text_atomic(path, json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stable_hash(value: Any) -> str:
    """Hex digest of a JSON-like value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def append_jsonl_records(path: Path) -> list[dict[str, Any]]:
    """Read an append-only JSONL file for continuing it: a half-written last line is cut off with a warning.

    Raises:
        UserError: a line that is not the last is broken; that is no interrupted write, so nothing is cut.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        log.warning("%s: cut off a half-written last line (%d bytes)", path, len(data) - len(whole))
        with path.open("rb+") as file:
            file.truncate(len(whole))
    rows = []
    for line_no, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{line_no}: not JSON ({error}); mend or delete the file") from None
    return rows


def _git_commit() -> str | None:
    """Commit of the source tree that runs, with '-dirty'; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
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
    """`run.json` of one output folder: written at the start, updated with status and results at the end."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        self.values = values

    @classmethod
    def start(
        cls, folder: Path, *, kind: str, config: Mapping[str, Any], inputs: Iterable[str | Path] = (), **more: Any
    ) -> RunRecord:
        """Write the record with status "running"; `inputs` are files whose hashes belong to the run."""
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
        path = folder / RECORD
        return cls(folder, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    _started: float | None = None

    def finish(self, status: str, **results: Any) -> None:
        """`status`: "finished", "stopped" (asked to stop, resumable) or "failed"."""
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
        write_json_atomic(self.folder / RECORD, self.values)


_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def runs_named(runs: Path, name: str) -> list[Path]:
    """Run folders `name`, `name-2`, `name-3` ... that have a record, oldest first."""
    numbered = {}
    for folder in runs.glob(f"{name}*") if runs.is_dir() else ():
        match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", folder.name)
        if match and (folder / RECORD).is_file():
            numbered[int(match.group(1) or 1)] = folder
    return [numbered[number] for number in sorted(numbered)]


def new_run_folder(runs: Path, name: str) -> Path:
    """Make and return `runs/name`, or `runs/name-2` ... if it is taken."""
    if not _RUN_NAME.fullmatch(name):
        raise UserError(f"run name {name!r}: use letters, digits and . _ + - only, starting with a letter or digit")
    number = 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder
