"""Checksums of the folders that this package writes: what has changed since is not loaded.

`SHA256SUMS` lists files in the format of sha256sum, so `sha256sum -c SHA256SUMS` checks a folder without this package.
A training checkpoint has the checksum of its tensors in `affectgpt.json` instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from affectgpt.runs import checksum_lines, checksums_in, differing_files
from affectgpt.runtime import InputError, sync, write_text_atomic

SUMS = "SHA256SUMS"

log = logging.getLogger("affectgpt")


class CheckpointError(InputError):
    """A checkpoint does not match the model or its base models; the message names the differences."""


def write_sums(folder: Path, patterns: Iterable[str] = ("**/*",)) -> None:
    """Write the checksums of the files that match, forced to the disk before; files that were listed stay so."""
    listed = set(read_sums(folder) or ())
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and path.name != SUMS}
    files |= {folder / name for name in listed if (folder / name).is_file()}
    for path in sorted(files):
        sync(path)
    write_text_atomic(folder / SUMS, "".join(f"{line}\n" for line in checksum_lines(folder, sorted(files))))
    sync(folder)


def read_sums(folder: Path) -> dict[str, str] | None:
    """File name -> sha256; None if the folder has no checksums."""
    path = folder / SUMS
    return checksums_in(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None


def check_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files with their checksums; a folder of an older version, which has none, gives a warning.

    Args:
        names: files to compare, those that will be read; None = all that are listed.

    Raises:
        CheckpointError: names the files that changed, are missing or are not listed.
    """
    listed = read_sums(folder)
    if listed is None:
        log.warning("%s has no %s, so nothing shows whether its files have changed", folder, SUMS)
        return
    wanted = sorted(listed if names is None else names)
    wrong = [f"{name} is not listed in {SUMS}" for name in wanted if name not in listed]
    wrong += differing_files(folder, {name: listed[name] for name in wanted if name in listed})
    if wrong:
        raise CheckpointError(f"{folder}: {'; '.join(wrong[:5])}. Restore the folder, or write it again")


def check_finite(tensors: Mapping[str, Tensor], where: str | os.PathLike[str]) -> None:
    """Raise CheckpointError naming the tensors that hold NaN or infinity."""
    wrong = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
    if wrong:
        shown = ", ".join(wrong[:5]) + (" ..." if wrong[5:] else "")
        raise CheckpointError(f"{where}: {len(wrong)} tensors hold NaN or infinity: {shown}; use another checkpoint")


def follow_umask(path: Path) -> None:
    """Give `path` the permissions of any new file; safetensors writes files that only their owner can read."""
    other = path.with_name(f".{path.name}.permissions")
    other.touch()
    path.chmod(other.stat().st_mode & 0o777)
    other.unlink()
