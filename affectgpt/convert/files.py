"""Read published files without running code from them, and write safetensors with one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from affectgpt.runtime import InputError, sha256_of_file


class ConvertError(InputError):
    """A file cannot be converted; the message says which, why, and what to do next."""


@dataclass
class Weights:
    """The named tensors of one file, read lazily.

    Attributes:
        shapes: name -> shape.
        dtypes: name -> torch dtype.
        load: name -> tensor. If the file can be memory-mapped, only this tensor is read.
        remarks: notes on the file for the report.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    load: Callable[[str], Tensor]
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def sha256(self) -> str:
        return sha256_of_file(self.path)


# What torch.load raises for damaged files (tried with 8,000 of each format, torch 2.13).
_UNREADABLE = (
    RuntimeError, EOFError, ValueError, OSError, LookupError, struct.error, AssertionError, TypeError, AttributeError,
)  # fmt: skip


def open_weights(path: Path) -> Weights:
    """Open a .safetensors file or a file of `torch.save`, whatever its name.

    Raises:
        ConvertError: it is neither, it contains objects other than tensors and plain values, or no named tensors.
    """
    if not path.is_file():
        raise ConvertError(f"{path} does not exist or is not a file")
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:] == b"{":  # eight bytes of length, then JSON
        return _open_safetensors(path)
    remarks = []
    try:
        if head.startswith(b"PK"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:  # files of torch before 1.6 are one pickle, which cannot be memory-mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
            remarks.append("in torch's old format, so it was read into memory completely")
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)|Unsupported (?:global|class|operand)[^\n]*", str(error))
        raise ConvertError(
            f"{path} is refused ({refused[0] if refused else str(error).splitlines()[0]}): it contains objects other "
            "than tensors, or is not a checkpoint, and opening such objects runs code from the file. If you trust its "
            "source, open it in the program that wrote it, save only the tensors and convert that file: "
            "torch.save({'model': {k: v for k, v in checkpoint['model'].items()}}, 'tensors.pth')"
        ) from error
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()
        raise ConvertError(
            f"{path} cannot be read ({reason[0] if reason else type(error).__name__}); "
            "is the download complete, and is it a checkpoint?"
        ) from error
    tensors = _tensors_of(content, path, remarks)
    return Weights(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tensor.dtype for name, tensor in tensors.items()},
        tensors.__getitem__,
        remarks,
    )


def _open_safetensors(path: Path) -> Weights:
    shapes, dtypes = {}, {}
    try:
        file = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            part = file.get_slice(name)
            shapes[name] = tuple(part.get_shape())
            if (dtype := part.get_dtype()) not in _DTYPES:
                raise ConvertError(f"{path}: tensor {name} is {dtype}; expected one of {', '.join(_DTYPES)}")
            dtypes[name] = _DTYPES[dtype]
    except SafetensorError as error:
        raise ConvertError(f"{path} cannot be read ({error}); is the download complete?") from error
    return Weights(path, shapes, dtypes, file.get_tensor)


def _tensors_of(content: Any, path: Path, remarks: list[str]) -> dict[str, Tensor]:
    """The state dict in the result of `torch.load`: the dictionary itself, or its entry with one of the usual names."""
    for key in ("model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            if others := sorted(str(name) for name in content if name != key):
                remarks.append(f"besides {key!r} it contains {', '.join(others)}: not used")
            content = content[key]
            break
    tensors = (
        {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise ConvertError(f"{path} contains {type(content).__name__} instead of a dictionary of named tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor to write; `load` computes it just before it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


def write_safetensors(path: Path, entries: Sequence[Entry]) -> int:
    """Write tensors one after another, with one in memory at a time; returns the size of the file in bytes.

    The library's own writer needs all of them at once. Format: eight bytes of header length, a JSON header with the
    offsets of each tensor, then the data (github.com/huggingface/safetensors, Format).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        if entry.dtype not in _DTYPE_NAMES:
            raise ConvertError(f"tensor {entry.name} is {entry.dtype}; expected one of {', '.join(_DTYPES)}")
        size = math.prod(entry.shape) * entry.dtype.itemsize
        header[entry.name] = {
            "dtype": _DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.load().detach().to(entry.dtype).contiguous()
            if tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry.name} has shape {list(tensor.shape)}, its entry says {list(entry.shape)}")
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return path.stat().st_size
