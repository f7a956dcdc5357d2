"""Read npz and npy files without running code from them, also arrays of pickled Python objects.

numpy stores an array of objects as a pickle, and unpickling can call any function. `read_array` checks the pickle first
and lets it build only dictionaries, lists, tuples, text, bytes, numbers, and numpy arrays and scalars of plain types;
anything else raises `NotPlain`. Sizes that a file claims are compared with its bytes before memory is allocated.
"""

from __future__ import annotations

import ast
import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.runtime import InputError

MAX_BYTES = 1 << 30
"""Largest array that is read: far above any published file of labels or descriptions."""
_MAX_OPCODES = 20_000_000
_MAX_DEPTH = 16
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    *("GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_LIST", "APPEND", "APPENDS", "LIST"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
}
_PLAIN_TYPE = re.compile(r"[<>|=]?(?:[biuf]\d{1,2}|[US]\d{1,9})")


class ArrayError(InputError):
    """The file is damaged, or is not an array or a set of arrays."""


class NotPlain(ArrayError):
    """An array holds objects of a class that is not read, named in the message."""


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an npz file."""
    with _open(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_array(path: Path, name: str) -> Any:
    """One array of an npz file, as nested lists of numbers and text; a 0-d array gives its item.

    Raises:
        NotPlain: it holds objects other than plain containers, text, numbers and arrays.
        ArrayError: not an npz file, no such array, damaged, or larger than MAX_BYTES.
    """
    with _open(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise ArrayError(f"no array {name!r}, only {sorted(array_names(path))}")
        return _parse(_member(archive, f"{name}.npy"), f"array {name!r}")


def read_array_folder(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and content of every .npy file in a folder or a zip file, sorted by name."""
    if path.is_dir():
        for file in sorted(path.glob("*.npy")):
            if file.stat().st_size > MAX_BYTES:
                raise ArrayError(f"{file.name} is larger than {MAX_BYTES} bytes")
            yield file.stem, _parse(file.read_bytes(), file.name)
        return
    with _open(path) as archive:
        for member in sorted(archive.namelist()):
            if member.endswith(".npy"):
                yield Path(member).stem, _parse(_member(archive, member), member)


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ArrayError(f"cannot be read: not an npz file or another zip file of arrays ({error})") from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if (size := archive.getinfo(name).file_size) > MAX_BYTES:
        raise ArrayError(f"{name} has {size} bytes, more than {MAX_BYTES}")
    try:
        return archive.read(name)  # at most the size above, whatever the compressed data hold
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # encrypted, unknown compression
        raise ArrayError(f"{name} cannot be read ({error})") from None


def _parse(data: bytes, what: str) -> Any:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"unknown version {version}")
        length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        header = ast.literal_eval(file.read(min(length, 10_000)).decode("latin1" if version < (3, 0) else "utf-8"))
        descr, shape, fortran = header["descr"], header["shape"], header["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ArrayError(f"{what} is not a numpy array ({error})") from None
    content = data[file.tell() :]
    try:
        if descr in ("|O", "O"):
            _check_opcodes(content)
            return _resolve(_Unpickler(content).load(), {}, 0)
        return _items(descr, shape, content, fortran)
    except NotPlain as error:
        raise NotPlain(f"{what}: {error}") from None
    except (
        pickle.UnpicklingError, ArrayError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
        OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise ArrayError(f"{what} is damaged ({error})") from None


def _items(descr: Any, shape: Any, content: Any, fortran: Any) -> Any:
    """The numbers or texts in the bytes of an array, which must be as many as its dtype and shape say."""
    if not isinstance(descr, str) or not _PLAIN_TYPE.fullmatch(descr):
        raise NotPlain(f"dtype {descr!r}")
    n_items = _count(shape)
    dtype = np.dtype(descr)
    if isinstance(content, str):  # written by Python 2
        content = content.encode("latin1")
    if dtype.itemsize * n_items != len(content):
        raise ArrayError(f"{len(content)} bytes, expected {dtype.itemsize * n_items} for {n_items} items of {dtype}")
    if not n_items:
        return []
    if not dtype.itemsize:  # an empty text
        return _fill("" if dtype.kind == "U" else b"", shape)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C").tolist()


def _fill(item: Any, shape: tuple[int, ...]) -> Any:
    if shape != ():  # takes no bytes in the file, so that nothing limits its size
        raise ArrayError(f"an array of shape {shape} of texts without characters")
    return item


def _count(shape: Any) -> int:
    """The number of items in an array of this shape; only a flat array may have none."""
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape if shape != (0,)):
        raise ArrayError(f"shape {shape!r}")
    return math.prod(shape)


def _check_opcodes(content: bytes) -> None:
    """Only opcodes that build plain containers, and no memo index beyond the objects, since it sizes the memo."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content), 1):
        if opcode.name not in _OPCODES:
            raise NotPlain(f"opcode {opcode.name}")
        if number > _MAX_OPCODES:
            raise ArrayError(f"more than {_MAX_OPCODES} objects")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number:
            raise ArrayError(f"memo index {argument} at object {number}")


class _Maker:
    """A function that a pickle may call. Unlike those of a Python function, a pickle cannot set its attributes."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function is changed")


class _Dtype:
    """Stands for numpy.dtype in a pickle: a type code, and the byte order that is set after it."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str):
            raise pickle.UnpicklingError(f"dtype {code!r}")
        self.code, self.order = code.lstrip("<>|="), ""

    def __setstate__(self, state: Any) -> None:
        order, fields = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in fields):
            raise NotPlain("a structured dtype")
        self.order = order

    @property
    def descr(self) -> str:
        return self.order + self.code


class _Array:
    """Stands for numpy.ndarray in a pickle; `spend` is called with the number of bytes or items that it copies."""

    __slots__ = ("_spend", "value")

    def __init__(self, spend: Callable[[int], None]) -> None:
        self._spend = spend
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array without a dtype")
        self._spend(len(content))
        if dtype.code not in ("O", "O4", "O8"):
            self.value = _items(dtype.descr, shape, content, fortran)
            return
        if not isinstance(content, list) or len(content) != _count(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} with another number of items")
        if fortran and len(shape) > 1:
            raise NotPlain("an array of objects in Fortran order")
        self.value = content[0] if shape == () else _nested(content, shape)


def _nested(items: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) == 1:
        return items
    size = math.prod(shape[1:])
    return [_nested(items[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


class _Unpickler(pickle.Unpickler):
    """Builds only plain objects; the classes and functions of numpy are replaced by the ones above."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._left = 2 * len(content) + 64  # copies of one object many times would need more than the file holds
        self._makers = {
            ("numpy", "ndarray"): _Maker(self._array),
            ("numpy", "dtype"): _Maker(_Dtype),
            ("_codecs", "encode"): _Maker(self._encode),
            ("__builtin__", "bytes"): _Maker(lambda: b""),  # empty bytes in protocol 0 to 2
            ("builtins", "bytes"): _Maker(lambda: b""),
            ("collections", "OrderedDict"): _Maker(lambda: {}),
        }
        for core in ("core", "_core"):
            self._makers[f"numpy.{core}.multiarray", "_reconstruct"] = _Maker(self._array)
            self._makers[f"numpy.{core}.multiarray", "scalar"] = _Maker(self._scalar)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._makers:
            raise NotPlain(f"{module}.{name}")
        return self._makers[module, name]

    def _spend(self, n: int) -> None:
        self._left -= n
        if self._left < 0:
            raise pickle.UnpicklingError("its arrays hold more than the file")

    def _array(self, *_: Any) -> _Array:
        return _Array(self._spend)

    def _scalar(self, dtype: Any, content: Any = b"") -> Any:
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("a scalar without a dtype")
        self._spend(len(content))
        return _items(dtype.descr, (), content, False)

    def _encode(self, text: str, encoding: str) -> bytes:
        """Bytes in the pickles of Python 2."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes in {encoding!r}")
        self._spend(len(text))
        return text.encode("latin1")


def _resolve(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """Replace the stand-ins by what they hold. Shared objects stay shared, so that a small file stays small."""
    if isinstance(value, (_Maker, _Dtype)):
        raise NotPlain("a function or a dtype")
    if not isinstance(value, (_Array, dict, list, tuple)):
        return value
    if depth > _MAX_DEPTH:
        raise pickle.UnpicklingError("containers are nested too deeply")
    if id(value) not in seen:
        if isinstance(value, _Array):
            result = _resolve(value.value, seen, depth + 1)
        elif isinstance(value, dict):
            result = {_resolve(key, seen, depth + 1): _resolve(item, seen, depth + 1) for key, item in value.items()}
        else:
            result = type(value)(_resolve(item, seen, depth + 1) for item in value)
        seen[id(value)] = result
    return seen[id(value)]
