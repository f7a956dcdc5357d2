"""The records of JSONL, CSV and xlsx files: encodings, separators, quotes, and limits on what is read from a file."""

from __future__ import annotations

import codecs
import csv
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate
from zipfile import ZipFile

from affectgpt.runtime import InputError, MissingLibrary, parse_json

log = logging.getLogger("affectgpt")

MAX_LINE = 1 << 24
"""Characters of one line; MAX_XLSX: bytes of an unpacked xlsx file; MAX_COLUMNS: of an xlsx table."""
MAX_XLSX = 1 << 28
MAX_COLUMNS = 1000

csv.field_size_limit(MAX_LINE)  # the default of 131,072 characters is less than a long description


class TableError(InputError):
    """A table cannot be read; the message names file and line, what was found and what was expected."""


def encoding_of(path: Path) -> str:
    """The encoding of a text file: UTF-8, UTF-16 with a byte order mark, or GB18030, which is said in the log.

    Raises:
        TableError: the file has another encoding.
    """
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        file.seek(0)
        try:
            for block in iter(partial(file.read, 1 << 20), b""):
                decoder.decode(block)
                line += block.count(b"\n")
            decoder.decode(b"", final=True)
            if b"\0" not in head:
                return "utf-8-sig"
            found = "is UTF-16 without a byte order mark, or no text"
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            found = f"is not UTF-8 text (line {line}: byte 0x{error.object[error.start]:02x})"
            if sample := _chinese(path):
                log.warning("%s: read as GB18030 (GBK), for example %r; save it as UTF-8", path, sample)
                return "gb18030"
    raise TableError(f"{path}: {found}; save it as UTF-8, for example with `iconv -f GB18030 -t UTF-8`")


def _chinese(path: Path) -> str | None:
    """Some Chinese text of a file in GB18030; None if it has another encoding.

    Other encodings give rare characters: at least 9 of 10 must be among the 7,445 of GB2312.
    """
    n_odd = n_common = 0
    sample = None
    try:
        with path.open(encoding="gb18030") as file:
            for block in iter(partial(file.read, 1 << 20), ""):
                odd = re.sub(r"[\x00-\x7f]+", "", block)
                n_odd += len(odd)
                n_common += len(odd.encode("gb2312", "ignore")) // 2
                sample = sample or next(iter(re.findall(r"[\u4e00-\u9fff]{1,12}", block)), None)
    except UnicodeDecodeError:
        return None
    return sample if n_common >= 0.9 * n_odd else None


def _lines(file: Any) -> Iterator[str | None]:
    """The lines of a file; None for a line of more than MAX_LINE characters, which is skipped."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith("\n"):
            line = file.readline(MAX_LINE + 1)
        yield None


def jsonl_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """(line, object) of every line that is not empty, or (line, error)."""
    # Only "\n" ends a line: a text may contain U+2028 and other characters at which splitlines() splits.
    with path.open(encoding=encoding_of(path), newline="\n") as file:
        for number, line in enumerate(_lines(file), 1):
            try:
                if line is None:
                    raise InputError(f"a line of more than {MAX_LINE} characters")
                if not line.strip():
                    continue
                value = parse_json(line)
                if not isinstance(value, dict):
                    raise InputError(f"expected a JSON object, found {type(value).__name__}")
            except InputError as error:
                yield number, error
            else:
                yield number, value


def csv_records(path: Path, ids: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of the header and of every row that is not empty.

    Raises:
        csv.Error: a quote that is not closed in its row, which would swallow rows; a line or cell that is too long.
    """
    line, names = 1, []
    shapes: set[str] = set()
    with path.open(encoding=encoding_of(path), newline="") as file:
        first = file.readline(MAX_LINE)
        separator = "\t" if path.suffix.lower() == ".tsv" else _separator(first, ids)
        reader = csv.reader(
            chain([first], map(_not_too_long, _lines(file))), delimiter=separator, skipinitialspace=True, strict=True
        )
        try:
            for cells in reader:
                if line == 1:
                    names = [name.strip().lower() for name in cells]
                    id_at = next((place for place, name in enumerate(names) if name in ids), 0)
                elif cells:
                    if reader.line_num > line:
                        _check_rows_in_cells(cells, len(names), id_at, shapes, separator)
                    if len(shapes) < 1000 and len(cells) > id_at:
                        shapes.add(_shape(cells[id_at]))
                if cells or line == 1:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise csv.Error(
                f'line {line}: {error}; a quote that opens here is not closed: write "..." around the whole '
                'cell and "" for a quote within it'
            ) from None


def _not_too_long(line: str | None) -> str:
    if line is None:
        raise csv.Error(f"a line of more than {MAX_LINE} characters")
    return line


def _separator(header: str, ids: Collection[str]) -> str:
    """The separator of a header: the one that separates the name of the ids, else the most frequent."""
    for separator in ",;\t":
        if {name.strip(' "\ufeff\r\n').lower() for name in header.split(separator)} & set(ids):
            return separator
    return max(",;\t", key=header.count)


def _check_rows_in_cells(cells: Sequence[str], n: int, id_at: int, shapes: set[str], separator: str) -> None:
    """Raise csv.Error if a cell of several lines is several rows: a quote opened in one and was closed in another.

    From its second line on, such a cell has the ids of rows in the column of the ids (or, if that follows the cell, up
    to its last line), and lines with the number of cells of a row. A text of several lines has neither.
    """
    if len(cells) < n:
        raise csv.Error(f"a cell of several lines, and only {len(cells)} of {n} cells")
    for at, cell in enumerate(cells[:n]):
        lines = re.split(r"\r\n|\r|\n", cell)
        if len(lines) == 1:
            continue
        rows = [next(csv.reader([line], delimiter=separator, skipinitialspace=True), []) for line in lines]
        fits = [len(row) == size for row, size in zip(rows, (n - at, *[n] * (len(rows) - 2), at + 1), strict=True)]
        if id_at < at:
            found = [row[id_at] if len(row) > id_at else "" for row in rows[1:]]
        else:
            places = (id_at - at, *[id_at] * (len(rows) - 2))
            found = [row[place] if len(row) > place else "" for row, place in zip(rows, places, strict=False)]
        alike = {_shape(name) for name in found} <= shapes | {_shape(cells[id_at])}
        if at == id_at or (alike and any(fits[1:] if id_at < at else fits[:-1])) or (n > 2 < len(rows) and all(fits)):
            raise csv.Error("a cell contains whole rows")


def _shape(text: str) -> str:
    """The kinds of characters in an id: "9" for digits, "a" and "A" for letters, "x" for Chinese and others."""
    for kind, letters in (("9", r"\d+"), ("a", r"[a-z]+"), ("A", r"[A-Z]+"), ("x", r"[^\x00-\x7f]+")):
        text = re.sub(letters, kind, text)
    return text


def xlsx_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells as CSV would have them) of the first sheet; formulas count with the value last saved."""
    try:
        import openpyxl
    except ImportError:
        raise MissingLibrary(
            f"{path} needs openpyxl: pip install 'affectgpt[evaluation]', or save the table as CSV (UTF-8)"
        ) from None
    with ZipFile(path) as archive:  # zipfile reads no more of a member than it states
        if (size := sum(member.file_size for member in archive.infolist())) > MAX_XLSX:
            raise TableError(f"{path}: unpacks to {size} bytes; expected at most {MAX_XLSX}; save it as CSV (UTF-8)")
        if any(_n_cells(archive, name) > MAX_COLUMNS for name in archive.namelist()):
            raise TableError(
                f"{path}: a row has more than {MAX_COLUMNS} cells; save the columns you need as CSV (UTF-8)"
            )
    rows: list[tuple[int, list[Any]]] = []
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # what the file states may be larger than what it holds
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            if number == 1 or any(cell is not None for cell in row):
                rows.append((number, list(row)))
        book.close()
    except (AttributeError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        # A damaged file fails in the library's own code, in any of these ways.
        raise TableError(f"{path}: not an xlsx table ({error}); save it as CSV (UTF-8)") from error
    if len(book.worksheets) > 1:
        log.warning("%s: read the first of %d sheets, %r", path, len(book.worksheets), sheet.title)
    for number, row in rows:
        cells = [_xlsx_text(value) for value in row]
        if any(cells) or number == 1:
            while cells and not cells[-1]:
                cells.pop()
            yield number, cells


def _n_cells(archive: ZipFile, name: str) -> int:
    """The largest number of cells in a row of a sheet, counted up to MAX_COLUMNS + 1; the library keeps a whole row."""
    most = n = 0

    def count(tag: str, attributes: object) -> None:
        nonlocal most, n
        kind = tag.rpartition(":")[2]
        n = 0 if kind == "row" else n + (kind == "c")
        most = max(most, n)
        if most > MAX_COLUMNS:
            raise StopIteration

    parser = ParserCreate()
    parser.StartElementHandler = count
    try:
        with archive.open(name) as file:
            parser.ParseFile(file)
    except (ExpatError, StopIteration):  # not XML, which the library reports; or too many cells
        pass
    return most


def _xlsx_text(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
