"""Tables: read rows of JSONL, CSV, TSV, xlsx and npz files, and align rows of text for the terminal.

What is read from a table is the same for manifests, references, predictions and published data sets: column names,
empty cells (`cell_text`), ids (`cell_id`). Pickled arrays are read by `affectgpt.tables.arrays`, which runs no code
from a file; numpy unpickles a file only if the caller declares it as trusted.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np

from affectgpt.runtime import InputError, write_text_atomic
from affectgpt.tables.arrays import ArrayError, NotPlain, array_names, read_array
from affectgpt.tables.sheets import TableError, csv_records, encoding_of, jsonl_records, xlsx_records

log = logging.getLogger("affectgpt")

ID_COLUMNS = ("id", "name", "names")
MANIFEST_SUFFIXES = (".jsonl", ".csv", ".tsv", ".xlsx")
NO_VALUE = frozenset(("", "nan", "NaN", "NAN", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT"))
"""Cells that hold no value: what pandas reads as missing, and how it prints it."""

Row = dict[str, Any]


def is_blank(value: object) -> bool:
    """Whether a cell holds no value: None, NaN, an empty cell, or one of NO_VALUE."""
    if isinstance(value, str):
        return value.isspace() if len(value) > 40 else value.strip() in NO_VALUE
    return value is None or (isinstance(value, float) and value != value)


def cell_text(value: object) -> str | None:
    """The text of a cell without spaces around it; None if it holds no value."""
    return None if is_blank(value) else str(value).strip()


def cell_id(value: object) -> str:
    """The id in a cell: text as it is ("00001" keeps its zeros), whole numbers as their digits (7 and 7.0 are "7").

    Raises:
        InputError: any other value.

    >>> cell_id(" 00001"), cell_id(7.0)
    ('00001', '7')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or is_blank(value):
        raise InputError(f"id must be a non-empty string, found {value!r}")
    return value.strip()


def is_table(path: str | Path) -> bool:
    """Whether a path is that of a manifest rather than of a media file or a folder."""
    return Path(path).suffix.lower() in MANIFEST_SUFFIXES


def read_rows(
    path: Path,
    *,
    known: Collection[str] = (),
    columns: Mapping[str, str] | None = None,
    used: set[str] | None = None,
) -> Iterator[tuple[str, Row]]:
    """Yield (file:line, row) of a table; arguments as of `stream_rows`.

    Raises:
        TableError: the file does not exist, cannot be read, has another format or contains pickled objects.
    """
    place = "{}[{}]" if path.suffix.lower() == ".npz" else "{}:{}"
    for number, row in stream_rows(path, known=known, columns=columns, used=used):
        where = place.format(path, number)
        if isinstance(row, InputError):
            raise TableError(f"{where}: {row}")
        yield where, row


def stream_rows(
    path: Path,
    *,
    known: Collection[str] = (),
    columns: Mapping[str, str] | None = None,
    used: set[str] | None = None,
) -> Iterator[tuple[int | str, Row | InputError]]:
    """Yield (line, row), or (line, error) for a line that cannot be used, of a .jsonl, .csv, .tsv, .xlsx or .npz file.

    CSV is read as UTF-8, UTF-16 or GB18030, with the separator of its header (`,`, `;` or tab) and without the spaces
    after separators. Columns without a name, such as the index that pandas writes, are left out if they hold numbers.

    Args:
        known: column names that are found in any case, such as `ID`, besides those of ids.
        columns: our name -> the name in the file.
        used: if given, the names in `columns` that the file has are added; otherwise a missing one is an error.

    Raises:
        TableError: the file does not exist, cannot be read or has another format.
    """
    header = _Header(path, {*known, *ID_COLUMNS}, columns or {}, used)
    suffix = path.suffix.lower()
    with table_errors(path):
        if suffix == ".jsonl":
            for number, found in jsonl_records(path):
                yield number, found if isinstance(found, InputError) else header.json_row(found)
        elif suffix == ".npz":
            yield from _npz_rows(path)
        elif suffix in (".csv", ".tsv"):
            yield from header.rows(csv_records(path, header.ids))
        elif suffix == ".xlsx":
            yield from header.rows(xlsx_records(path))
        else:
            raise TableError(f"{path}: expected {', '.join(MANIFEST_SUFFIXES)} or .npz, found {path.suffix!r}")
        header.finish()


class _Header:
    """The column names of a table, and the rows under them."""

    def __init__(self, path: Path, known: set[str], columns: Mapping[str, str], used: set[str] | None) -> None:
        self._path, self._known, self._used = path, known, used
        self._ours = {theirs: ours for ours, theirs in columns.items()}
        self._missing = set(self._ours)
        self.ids = {*ID_COLUMNS, *(theirs.lower() for ours, theirs in columns.items() if ours in ID_COLUMNS)}
        if len(self._ours) < len(columns):
            raise TableError(f"columns={dict(columns)}: one column of the file cannot be two of ours")

    def rename(self, names: Iterable[str]) -> list[str]:
        """Our names for the names in the file: as `columns` maps them, else in the case that we know."""
        names = list(names)
        self._missing.difference_update(names)
        taken = {self._ours[name] for name in names if name in self._ours}
        found = []
        for name in names:
            if name in self._ours:
                found.append(self._ours[name])
            else:
                name = name.lower() if name not in self._known and name.lower() in self._known else name
                found.append(f"{name} (of the file)" if name in taken else name)
        return found

    def rows(self, records: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Row | InputError]]:
        """The rows of a table whose first record holds the names."""
        _, header = next(records, (1, []))
        names = self.rename(name.strip() for name in header)
        if double := sorted({name for name in names if name and names.count(name) > 1}):
            raise TableError(f"{self._path}:1: several columns are named {double}; rename or remove all but one")
        if header and self._used is None:
            self.finish(names)
        nameless = [place for place, name in enumerate(names) if re.fullmatch(r"(?:Unnamed: \d+)?", name)]
        for line, cells in records:
            if len(cells) > len(names) and any(cells[len(names) :]):
                found = f"expected {len(names)} cells, found {len(cells)}"
                yield line, InputError(f"{found}; quote cells that contain the separator")
                continue
            cells += [""] * (len(names) - len(cells))
            if odd := [place for place in nameless if not re.fullmatch(r"\s*\d*(?:\.0)?\s*", cells[place])]:
                found = f"{cells[odd[0]][:40]!r} in column {odd[0] + 1}, which has no name"
                yield line, InputError(f"found {found}; name or remove the column")
                continue
            row = dict(zip(names, cells, strict=False))
            for place in nameless:
                row.pop(names[place], None)
            yield line, row

    def json_row(self, row: Row) -> Row:
        return dict(zip(self.rename(row), row.values(), strict=True)) if self._ours else row

    def finish(self, names: Sequence[str] = ()) -> None:
        """Note which names of `columns` the file has."""
        if self._used is not None:
            self._used |= set(self._ours) - self._missing
        elif self._missing:
            found = f", found {sorted(filter(None, names))}" if names else ""
            raise TableError(
                f"{self._path}: no column {sorted(self._missing)[0]!r}, which columns= names"
                f" for {self._ours[sorted(self._missing)[0]]}{found}"
            )


def id_of(row: Mapping[str, Any], where: str) -> str:
    """The id of a row, from a column `id`, `name` or `names`."""
    for column in ID_COLUMNS:
        if not is_blank(row.get(column)):
            try:
                return cell_id(row[column])
            except InputError as error:
                raise TableError(f"{where}: {error}") from None
    raise TableError(f"{where}: no column of {list(ID_COLUMNS)}, found {sorted(map(str, row))}")


def read_names(path: Path, **arguments: Any) -> list[str]:
    """The ids in a table such as track_all_candidates.csv, or in a .txt file with one per line, in file order.

    Args:
        arguments: of `stream_rows`.

    Raises:
        TableError: the file cannot be read, or has a duplicate id.
    """
    if path.suffix.lower() == ".txt":
        found = [(f"{path}:{number}", line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    else:
        found = [(where, id_of(row, where)) for where, row in read_rows(path, **arguments)]
    names: dict[str, None] = {}
    for where, name in found:
        if name in names:
            raise TableError(f"{where}: duplicate id {name!r}")
        names[name] = None
    return list(names)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, in any encoding that tables may have."""
    with table_errors(path):
        return path.read_text(encoding=encoding_of(path)).splitlines()


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
        raise TableError(f"{path}: is not {error.encoding} text ({error.reason}); save it as UTF-8") from None
    except ArrayError as error:
        raise TableError(f"{path}: {error}") from None
    except (OSError, EOFError, csv.Error, BadZipFile, UnpicklingError) as error:
        raise TableError(f"{path}: cannot be read ({error})") from error


def npz_arrays(path: Path) -> list[str]:
    """The names of the arrays in an npz file."""
    with table_errors(path):
        return array_names(path)


def _npz_rows(path: Path) -> Iterator[tuple[int | str, Row | InputError]]:
    """Rows of the npz files of the challenges: labels (`filenames`, `fileitems`) or descriptions (`name2reason`)."""
    arrays = array_names(path)
    try:
        if "name2reason" in arrays:
            reasons = read_array(path, "name2reason")
            if not isinstance(reasons, dict):
                found = type(reasons).__name__
                raise TableError(f"{path}: expected a dictionary id -> text in name2reason, found {found}")
            for name, reason in reasons.items():
                yield name, {"name": name, "reason": reason}
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
        yield number, {"name": name, "openset": item}


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file for programs, cells as they are.

    Spreadsheets run text that begins like a formula, even from a subtitle or a file name. Such cells are not changed,
    since the readers of published formats would get other text; a warning counts them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    formulas = []
    for row in rows:
        writer.writerow(row)
        formulas += [cell for cell in row if isinstance(cell, str) and _is_formula(cell)]
    write_text_atomic(path, text.getvalue())
    if formulas:
        log.warning(
            "%s: a spreadsheet would run %d cells as formulas, the first one %.60r; import the file there with all "
            "columns as text",
            path,
            len(formulas),
            formulas[0],
        )


def _is_formula(cell: str) -> bool:
    if not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


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
