"""Read the emotion wheel tables published by the MER2025 and MER2026 challenges.

Files: `wheel1..5.xlsx` or `.csv` (level1, level2, level3, forward-filled), `synonym.xlsx` or `.csv` (pairs of columns
`word_run<k>`, `synonym_run<k>`), `format.csv` (name, format: comma-separated forms). The table of forms of MER2026 has
the same columns under another name: pass its path instead of the folder.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from affectgpt.metrics.lexicon.tables import Lexicon, Wheel, WheelRow
from affectgpt.runtime import InputError
from affectgpt.tables.sheets import xlsx_records

FORMS_FILE = "format.csv"
_HELP = "see docs/metrics.md, section 'The published tables'"


def load_published(path: str | Path) -> Lexicon:
    """Build a Lexicon from published tables.

    Args:
        path: the folder, or a table of forms in it (`emotion_wheel/format-2026.csv`) to select a year.

    Raises:
        InputError: a file is missing or cannot be read, or a table lacks columns or keys.
        MissingLibrary: xlsx tables without openpyxl.
    """
    path = Path(path)
    folder, forms_path = (path, path / FORMS_FILE) if path.is_dir() else (path.parent, path)
    if not forms_path.is_file():
        raise InputError(f"lexicon {str(path)!r}: no table of forms {str(forms_path)!r}; {_HELP}")
    digest = hashlib.sha256()
    wheels = [Wheel.from_rows(_wheel_rows(_find(folder, f"wheel{number}", digest))) for number in range(1, 6)]

    synonyms: dict[str, set[str]] = {}
    table_path = _find(folder, "synonym", digest)
    header, *rows = _read_table(table_path)
    word_columns = [i for i, name in enumerate(header[:-1]) if str(name).startswith("word_run")]
    if not word_columns:
        raise InputError(f"{table_path}: no columns word_run1, synonym_run1 ...; found {header}; {_HELP}")
    for row in rows:
        for column in word_columns:
            word = str(row[column] or "").strip().lower()
            if not word:
                continue
            synonyms.setdefault(word, set()).add(word)
            for synonym in split_published(str(row[column + 1] or "")):
                synonyms.setdefault(synonym.lower(), set()).add(word)

    digest.update(forms_path.read_bytes())
    keys: dict[str, set[str]] = {}
    header, *rows = _read_table(forms_path)
    if header[:2] != ["name", "format"]:
        raise InputError(f"{forms_path}: expected the columns name, format; found {header}; {_HELP}")
    for key, forms, *_ in rows:
        if key not in synonyms:
            raise InputError(f"{forms_path}: {key!r} is not a key of {table_path.name}; {_HELP}")
        for form in (*split_published(forms), key):
            keys.setdefault(form, set()).add(key)
    return Lexicon(
        name=f"published:{forms_path.name}",
        version="as published",
        checksum=digest.hexdigest(),
        wheels=tuple(wheels),
        wheel_words={key: tuple(sorted(words)) for key, words in synonyms.items()},
        forms={form: tuple(sorted(found)) for form, found in keys.items()},
        label_splitting="published",
    )


def split_published(text: str) -> list[str]:
    """Split label text at every quote and comma, as the published implementation does.

    >>> split_published("['sad', \\"don't know\\"]")
    ['sad', 'don', 't know']
    """
    text = text.removeprefix("[").removesuffix("]")
    return [part.strip() for part in re.split(r"['\",]", text) if part.strip()]


def split_published_2024(text: str) -> list[str]:
    """Split label text as the code of MER2024 does: what the first two brackets enclose, at every quote, not stripped.

    >>> split_published_2024("['sad, tired', \\"don't know\\"]"), split_published_2024("[[]]")
    (['sad, tired', 'don', 't know'], [])
    """
    inner = text.partition("[")[2].partition("[")[0].partition("]")[0]
    return [part for part in re.split(r"['\"]", inner) if part.strip() not in ("", ",")]


class CellLabels(tuple[str, ...]):
    """Labels that were split from the text of a cell in a published way; they are not split once more."""

    __slots__ = ()


def _find(folder: Path, stem: str, digest: Any) -> Path:
    for suffix in (".xlsx", ".csv"):
        if (path := folder / (stem + suffix)).is_file():
            digest.update(path.read_bytes())
            return path
    raise InputError(f"lexicon folder {str(folder)!r} has no {stem}.xlsx or {stem}.csv; {_HELP}")


def _read_table(path: Path) -> list[list[Any]]:
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = [list(row) for row in csv.reader(file) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read ({error}); {_HELP}") from error
    else:
        try:
            rows = [list(cells) for _, cells in xlsx_records(path) if cells]
        except (OSError, BadZipFile) as error:
            raise InputError(f"{path}: cannot be read ({error}); {_HELP}") from error
        except InputError as error:
            raise InputError(f"{error}; {_HELP}") from error
    if not rows:
        raise InputError(f"{path}: the table is empty; {_HELP}")
    return [row + [""] * (len(rows[0]) - len(row)) for row in rows]


def _wheel_rows(path: Path) -> list[WheelRow]:
    header, *rows = _read_table(path)
    if header[:3] != ["level1", "level2", "level3"]:
        raise InputError(f"{path}: expected the columns level1, level2, level3; found {header}; {_HELP}")
    filled: list[WheelRow] = []
    current: Sequence[str] = ("", "", "")
    for row in rows:
        if any(row[:3]):
            current = [str(cell).lower().strip() if cell else last for cell, last in zip(row[:3], current, strict=True)]
            filled.append((current[0], current[1], current[2]))
    return filled
