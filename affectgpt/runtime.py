"""Errors, logging, devices, seeds, hashes and atomic files: what all other modules share."""

from __future__ import annotations

import contextlib
import errno
import gc
import glob
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import sys
import threading
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


MAX_TEXT = 1 << 20
"""Characters of one text; the longest context of an LLM has about half as many."""

MAX_NESTING = 64
"""Levels of lists and objects in JSON; json itself accepts more than repr, copying and comparison can follow."""

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def check_text(text: str, what: str) -> str:
    """Return `text` if it is Unicode text of at most MAX_TEXT characters, else raise InputError.

    Half of a surrogate pair is no text: no tokenizer and no UTF-8 file takes it. It comes from an emoji that was cut in
    two (JSON `\\ud83d`) and from bytes that are not UTF-8.

    Args:
        what: names the text in the message.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"{what} has {len(text)} characters; expected at most {MAX_TEXT}")
    if not text.isascii() and (half := _HALF_PAIR.search(text)):
        before = printable(text[max(0, half.start() - 20) : half.start()])
        raise InputError(
            f"{what} is not Unicode text: half of a surrogate pair (\\u{ord(half[0]):04x}) after {before!r}; "
            "remove it, or save the text again as UTF-8"
        )
    return text


def printable(text: str) -> str:
    """`text` with halves of surrogate pairs, as in file names that are not UTF-8, written as \\udcxx."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """The value of JSON from an untrusted file or server.

    Raises:
        InputError: not JSON, nested more than MAX_NESTING levels, or a number with thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(f"not JSON that can be read: nested more than {MAX_NESTING} levels") from None
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from None
    opening = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(map(text.count, opening)) > MAX_NESTING and _nesting(value) > MAX_NESTING:  # type: ignore[arg-type]
        raise InputError(f"nested more than {MAX_NESTING} levels")
    return value


def _nesting(value: Any) -> int:
    """Levels of lists and dictionaries in a JSON value, counted without recursion, at most MAX_NESTING + 1."""
    level, n = [value], 0
    while level and n < MAX_NESTING + 2:
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        n += 1
    return n - 1


def json_line(value: Any) -> str:
    """JSON on one line that can be written as UTF-8; file names that are not UTF-8 get escapes, which read back."""
    line = json.dumps(value, ensure_ascii=False)
    return line if line.isascii() or not _HALF_PAIR.search(line) else json.dumps(value)


def set_up_logging(verbose: bool = False) -> None:
    """Log plain lines to stderr; of libraries only warnings. No file name is an error where it is printed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
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


_loading = threading.RLock()


@contextmanager
def loading_models() -> Iterator[None]:
    """One thread of the process loads models at a time.

    transformers replaces `tie_weights` of all models while one is loaded; two threads at once would leave it replaced,
    and models that are built later would not share their embeddings.
    """
    with _loading:
        yield


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)  # without it a power failure could bring the old file back
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free disk space, or choose a folder that you may write to"
        ) from error


@contextmanager
def folder_at_once(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `folder` once it is filled; after an error `folder` is as it was.

    For one process at a time: callers hold a lock, or a name of their own.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    target = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(target, ignore_errors=True)  # of a killed process with the same number
    target.mkdir()
    try:
        yield target
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(target, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot do it for folders
            raise
    finally:
        os.close(file)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `path` before it was renamed; only for a caller that alone writes `path`."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    if not text.isascii() and _HALF_PAIR.search(text):  # a file name that is not UTF-8
        text = json.dumps(value, indent=2, default=str)
    write_text_atomic(path, text + "\n")


_SECRET_NAME = (
    r"(?:[a-z0-9_-]*[_-])?"
    r"(?:(?:api|access|private|auth)[_-]?key|token|secret|password|passwd|authorization|credentials?)"
)
_IS_SECRET_NAME = re.compile(_SECRET_NAME, re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"(://[^/@\s:]*:)[^/@\s]+@")
# As in settings on the command line and in addresses: extra.api_key=..., {Authorization: Bearer ...}, ?token=...
_NAMED_SECRET = re.compile(
    rf"(?<![a-z0-9])({_SECRET_NAME}['\"]?\s*[=:]\s*['\"]?(?:Bearer\s+)?)[^\s,'\"}}&]+", re.IGNORECASE
)


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITE_FAILED = re.compile(
    rf"\bos error ({'|'.join(map(str, _DISK_FULL))})\b|inline_container\.cc.*unexpected pos|file write failed"
)


@contextmanager
def disk_full_named(folder: Path, advice: str) -> Iterator[None]:
    """Report a full disk, a quota or a file-size limit as one UserError; other errors pass.

    Libraries report it in their own ways: safetensors with the number of the system's error in its text, torch with the
    place in its writer. A folder with less than 1 MiB of free space counts as full.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in _DISK_FULL or _WRITE_FAILED.search(str(error)) or shutil.disk_usage(folder).free < 1 << 20:
            raise UserError(f"{folder}: cannot be written, the disk is full or a limit is reached; {advice}") from error
        raise


def redacted(value: Any) -> Any:
    """A JSON-like value without secrets, for files: passwords in addresses, and what is named key, token, password ...

    >>> redacted({"url": "http://me:pw@a/v1", "extra": {"api_key": "sk-1", "top_p": 1}, "max_tokens": 5})
    {'url': 'http://me:***@a/v1', 'extra': {'api_key': '***', 'top_p': 1}, 'max_tokens': 5}
    """
    if isinstance(value, str):
        return _NAMED_SECRET.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1***@", value))
    if isinstance(value, dict):
        return {name: "***" if _is_secret(name, item) else redacted(item) for name, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_secret(name: Any, value: Any) -> bool:
    is_text = isinstance(value, str) and bool(value)
    return is_text and isinstance(name, str) and _IS_SECRET_NAME.fullmatch(name) is not None


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stable_hash(value: Any) -> str:
    """Hex digest of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
