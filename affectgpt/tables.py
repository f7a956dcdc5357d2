"""Tables: read rows of CSV, JSONL and npz files, and align rows of text for the terminal.

Nothing is unpickled unless the caller says that the file is trusted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.runtime import InputError

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
    """Yield (file:line, row) of a .jsonl, .csv or .npz file; column names lose the spaces around them.

    Raises:
        TableError: no such file, another format, not UTF-8, a line that is no JSON object, pickled objects.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    try:
        if path.suffix == ".csv":
            yield from _csv_rows(path)
        elif path.suffix == ".npz":
            yield from _npz_rows(path)
        elif path.suffix == ".jsonl":
            yield from _jsonl_rows(path)
        else:
            raise TableError(f"{path}: expected .jsonl, .csv or .npz, found {path.suffix!r}")
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from None


def id_of(row: dict[str, Any], where: str) -> str:
    """The row's id, in a column `id`, `name` or `names`."""
    for column in ID_COLUMNS:
        if row.get(column) not in (None, ""):
            return str(row[column])
    raise TableError(f"{where}: no column of {list(ID_COLUMNS)}, found {sorted(map(str, row))}")


def read_names(path: Path) -> list[str]:
    """The ids of a list such as track_all_candidates.csv, or of a .txt file with one a line, in file order.

    An id that stands twice is an error.
    """
    if path.suffix == ".txt":
        if not path.is_file():
            raise TableError(f"{path}: no such file")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        found = [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        found = [(where, id_of(row, where)) for where, row in read_rows(path)]
    names: dict[str, None] = {}
    for where, name in found:
        if name in names:
            raise TableError(f"{where}: id {name!r} stands twice")
        names[name] = None
    return list(names)


def trusted_object(path: Path, array: str, *, trust_pickle: bool, say: str) -> Any:
    """The Python object in a 0-d object array of an npz file, which is unpickled only if `trust_pickle`.

    Args:
        say: how a user says so, for the error.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    if not trust_pickle:
        raise TableError(
            f"{path}: holds pickled objects, which can run code when they are loaded; if it comes from the data set's "
            f"authors, say {say}"
        )
    with np.load(path, allow_pickle=True) as data:
        if array not in data.files:
            raise TableError(f"{path}: no array {array!r}, only {sorted(data.files)}")
        return data[array].tolist()


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        columns = [name.strip() for name in next(reader, [])]
        for cells in reader:
            if len(cells) > len(columns):
                raise TableError(
                    f"{path}:{reader.line_num}: {len(cells)} cells under {len(columns)} columns; quote commas"
                )
            if cells:
                cells += [""] * (len(columns) - len(cells))
                yield f"{path}:{reader.line_num}", dict(zip(columns, cells, strict=True))


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines: a text may hold U+2028 and other characters that it takes for line ends.
    for line_no, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TableError(f"{path}:{line_no}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise TableError(f"{path}:{line_no}: expected a JSON object, found {type(row).__name__}")
        yield f"{path}:{line_no}", row


def _npz_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with np.load(path, allow_pickle=False) as data:
        if not {"filenames", "fileitems"} <= set(data.files):
            raise TableError(f"{path}: expected arrays filenames and fileitems, found {sorted(data.files)}")
        try:
            names, items = data["filenames"], data["fileitems"]
        except ValueError:
            raise TableError(
                f"{path}: holds pickled objects, which are not loaded because they can run code; "
                "save the labels as text arrays or as a CSV with name,openset"
            ) from None
    for number, (name, item) in enumerate(zip(names.tolist(), items.tolist(), strict=True)):
        yield f"{path}[{number}]", {"name": name, "openset": item}
