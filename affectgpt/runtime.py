"""Errors, logging, devices, seeds, hashes and atomic files: what all other modules share."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import logging
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger("affectgpt")


class UserError(RuntimeError):
    """An error that the user can correct: commands print its message without a traceback and exit with code 2.

    Commands, and loops that leave out bad samples, catch only this class and its subclasses. Any other exception is a
    bug and ends the run with its traceback.
    """


class InputError(UserError, ValueError):
    """An unusable setting, file or sample; the message states what was found and what was expected."""


class NotFound(UserError, FileNotFoundError):
    """A file, folder, model or run that does not exist; the message states how to create or name it."""


class MissingLibrary(UserError, ImportError):
    """An optional library, or data that it needs, is not installed; the message states how to install it."""


def set_up_logging(verbose: bool = False) -> None:
    """Log plain lines to stderr; of libraries only warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def quiet_libraries() -> None:
    """Silence progress bars and load reports of transformers: our own loader is strict and reports what is wrong."""
    import torch
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()
    if not torch.cuda.is_available():
        # transformers imports an installed DeepSpeed, which warns that it finds no GPU unless this says so.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def torch_device(name: str) -> torch.device:
    """The device of a setting auto, cpu or cuda; auto is a GPU if there is one.

    Raises:
        UserError: an unknown name, or cuda without a GPU.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU; `python -m affectgpt.doctor` says why")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def n_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector while building long-lived objects, and exclude them from later collections.

    Each collection visits all objects; with 100,000 clips this took a third of the start of training.
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
    """Write `path` completely or not at all."""
    _write_atomic(path, [text])


def write_lines_atomic(path: Path, lines: Iterable[str]) -> None:
    """`write_text_atomic` line by line, without holding the text in memory."""
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


csv.field_size_limit(2**24)  # characters; the default of 131,072 is less than a long description


def csv_records(file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of the header and of every row that is not empty.

    Raises:
        csv.Error: two columns of one name, or a quote that is not closed in its row, which would swallow rows.
    """
    reader = csv.reader(file, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if line == 1:
                columns = cells = [name.strip() for name in cells]
                if double := sorted({name for name in columns if name and columns.count(name) > 1}):
                    raise csv.Error(f"line 1: several columns are named {double}; rename or remove all but one")
            elif len(columns) > 2 and any(_has_rows(cell, len(columns)) for cell in cells):
                raise csv.Error("a cell contains whole rows")
            if cells or line == 1:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        if str(error).startswith("line 1:"):
            raise
        raise csv.Error(
            f'line {line}: {error}; a quote that opens here is not closed: write "..." around the whole '
            'cell and "" for a quote within it'
        ) from None


def _has_rows(cell: str, n_columns: int) -> bool:
    lines = cell.split("\n")[1:] if "\n" in cell else []
    return any(len(re.findall(r",(?=\S)", line)) >= n_columns - 1 for line in lines)
