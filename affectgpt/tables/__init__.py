"""Tables: read rows of CSV, JSONL and npz files, and align rows of text for the terminal.

Pickled arrays are read by `affectgpt.tables.arrays`, which runs no code from a file; numpy unpickles a file only if the
caller declares it as trusted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np

from affectgpt.runtime import InputError, csv_records
from affectgpt.tables.arrays import ArrayError, NotPlain, array_names, read_array

ID_COLUMNS = ("id", "name", "names")


def format_table(rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Rows of cells as aligned text; columns are two spaces apart, no line ends in spaces, short rows are padded.

    Spaces within a cell are kept, so that a caller can indent a title or pad a column. (tabulate strips them.)

    Args:
        align: one letter per column, "l" or "r"; columns after its last letter are right-aligned.

    >>> print(format_table([("part", "kind", "GiB"), ("llm", "Qwen2", "14.19"), ("all", "", "15.5")], "ll"))
    part  kind     GiB
    llm   Qwen2  14.19
    all           15.5
    """
    columns = list(zip_longest(*rows, fillvalue=""))
    align = align.ljust(len(columns), "r")
    for number, column in enumerate(columns):
        width = max(map(len, column))
        columns[number] = tuple(f"{cell:{'<' if align[number] == 'l' else '>'}{width}}" for cell in column)
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


class TableError(InputError):
    """A table cannot be read; the message names file and line, what was found and what was expected."""


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line, row) of a .jsonl, .csv or .npz file; spaces around column names are removed.

    Raises:
        TableError: the file does not exist, cannot be read, has another format or contains pickled objects.
    """
    readers = {".csv": _csv_rows, ".npz": _npz_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise TableError(f"{path}: expected .jsonl, .csv or .npz, found {path.suffix!r}")
    with table_errors(path):
        yield from readers[path.suffix](path)


def id_of(row: dict[str, Any], where: str) -> str:
    """The id of a row, from a column `id`, `name` or `names`."""
    for column in ID_COLUMNS:
        if row.get(column) not in (None, ""):
            return str(row[column])
    raise TableError(f"{where}: no column of {list(ID_COLUMNS)}, found {sorted(map(str, row))}")


def read_names(path: Path) -> list[str]:
    """The ids in a table such as track_all_candidates.csv, or in a .txt file with one per line, in file order.

    Raises:
        TableError: the file cannot be read, or has a duplicate id.
    """
    if path.suffix == ".txt":
        with table_errors(path):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        found = [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        found = [(where, id_of(row, where)) for where, row in read_rows(path)]
    names: dict[str, None] = {}
    for where, name in found:
        if name in names:
            raise TableError(f"{where}: duplicate id {name!r}")
        names[name] = None
    return list(names)


def read_pickled_mapping(path: Path, array: str, *, trust_pickle: bool, setting: str) -> dict[str, Any]:
    """The dictionary in a 0-d object array of an npz file; numpy scalars and arrays in it become numbers and lists.

    Args:
        trust_pickle: unpickle objects of any class, which can run code. Without it, only dictionaries, lists, text,
            numbers and numpy arrays of these are read.
        setting: the setting that sets `trust_pickle`, for the error message.
    """
    with table_errors(path):
        try:
            found = read_array(path, array)
        except NotPlain as error:
            if not trust_pickle:
                raise TableError(
                    f"{path}: contains pickled objects ({error}), which can run code when they are loaded; if the file "
                    f"is from the authors of the data set, set {setting}"
                ) from None
            with np.load(path, allow_pickle=True) as data:
                found = data[array].tolist()
    if not isinstance(found, dict):
        raise TableError(f"{path}: expected a dictionary in array {array!r}, found {type(found).__name__}")
    return {str(name): entry for name, entry in found.items()}


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading `path` into TableError; any other exception passes through."""
    try:
        if not path.is_file():
            raise TableError(f"{path}: no such file")
        yield
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from None
    except ArrayError as error:
        raise TableError(f"{path}: {error}") from None
    except (OSError, EOFError, csv.Error, BadZipFile, UnpicklingError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        records = csv_records(file)
        columns = next(records, (1, []))[1]
        for line, cells in records:
            if len(cells) > len(columns):
                found = f"expected {len(columns)} cells, found {len(cells)}"
                raise TableError(f"{path}:{line}: {found}; quote cells that contain commas")
            cells += [""] * (len(columns) - len(cells))
            yield f"{path}:{line}", dict(zip(columns, cells, strict=True))


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines(): a text may contain U+2028 and other characters at which it splits.
    for line_no, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path}:{line_no}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise TableError(f"{path}:{line_no}: expected a JSON object, found {type(row).__name__}")
        yield f"{path}:{line_no}", row


def npz_arrays(path: Path) -> list[str]:
    """The names of the arrays in an npz file."""
    with table_errors(path):
        return array_names(path)


def _npz_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the npz files of the challenges: labels (`filenames`, `fileitems`) or descriptions (`name2reason`)."""
    arrays = array_names(path)
    try:
        if "name2reason" in arrays:
            reasons = read_array(path, "name2reason")
            if not isinstance(reasons, dict):
                found = type(reasons).__name__
                raise TableError(f"{path}: expected a dictionary id -> text in name2reason, found {found}")
            for name, reason in reasons.items():
                yield f"{path}[{name}]", {"name": name, "reason": reason}
            return
        if not {"filenames", "fileitems"} <= set(arrays):
            raise TableError(f"{path}: expected arrays filenames and fileitems, or name2reason, found {sorted(arrays)}")
        names, items = read_array(path, "filenames"), read_array(path, "fileitems")
    except NotPlain as error:
        raise TableError(
            f"{path}: contains pickled objects ({error}), which are not loaded because they can run code; "
            "save the labels as text arrays or as a CSV with name,openset"
        ) from None
    if not isinstance(names, list) or not isinstance(items, list) or len(names) != len(items):
        shapes = [len(found) if isinstance(found, list) else type(found).__name__ for found in (names, items)]
        raise TableError(f"{path}: expected one item per filename, found {shapes[0]} filenames and {shapes[1]} items")
    for number, (name, item) in enumerate(zip(names, items, strict=True)):
        yield f"{path}[{number}]", {"name": name, "openset": item}
