"""Read predictions and references from JSONL, CSV, xlsx and npz files. Nothing is unpickled.

- Predictions: our predictions.jsonl; CSV with `name,openset`; the npz of the challenges (`filenames`, `fileitems`, or
  `name2reason`).
- References: JSONL or CSV (`id` or `name`; `labels` or `openset`), such as track2_train_ovmerd.csv.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.metrics.lexicon import CellLabels
from affectgpt.runtime import InputError
from affectgpt.schema import LANGUAGES, Clause, Prediction, parse_clauses, parse_label_list, prediction_from_row
from affectgpt.tables import Row, TableError, cell_text, id_of, is_blank, read_rows

_HELP = "see docs/metrics.md, section 'Files'"
_LABEL_COLUMNS = ("labels", "openset")
_TEXT_COLUMNS = ("text", "reason", "description", "english")
_COLUMNS = (*_LABEL_COLUMNS, *_TEXT_COLUMNS)
_REFERENCE_COLUMNS = frozenset(
    [*_COLUMNS, "chinese", "reasons", "split", "lang"]
    + [f"{name}_{lang}" for name in ("labels", "description") for lang in LANGUAGES]
)


ScoreFileError = TableError
"""A file of predictions or references cannot be read; the message names file and line, and what was expected."""


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions: label cells as labels, texts as texts, whose labels are parsed when they are scored.

    Raises:
        ScoreFileError: unreadable file, missing columns, a duplicate id.
    """
    path = Path(path)
    predictions: dict[str, Prediction] = {}
    for where, row in read_rows(path, known=_COLUMNS):
        sample_id = id_of(row, where)
        if sample_id in predictions:
            raise ScoreFileError(f"{where}: duplicate id {sample_id!r}; expected one prediction per sample")
        try:
            predictions[sample_id] = _prediction(sample_id, row)
        except InputError as error:
            raise ScoreFileError(f"{where}: {error}; {_HELP}") from None
    if not predictions:
        raise ScoreFileError(f"{path}: no predictions; {_HELP}")
    return list(predictions.values())


def _prediction(sample_id: str, row: Mapping[str, Any]) -> Prediction:
    if isinstance(row.get("text"), str):
        return prediction_from_row({**row, "id": sample_id, "labels": _labels_cell(row)})
    for column in (*_LABEL_COLUMNS, "discrete"):
        if column in row:  # text such as "['sad', 'tired']" is parsed later, so that the report counts how it was read
            value = row[column]
            if is_blank(value) or isinstance(value, str):
                return Prediction(sample_id, _text_of(value), task="labels")
            return Prediction(sample_id, "", labels=parse_label_list(value) or (), task="labels")
    for column in _TEXT_COLUMNS:
        if column in row:
            return Prediction(sample_id, _text_of(row[column]), task="description")
    raise InputError(f"sample {sample_id!r}: no column of {list(_COLUMNS)}, found {sorted(row)}")


def _labels_cell(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of a row that also has a text; None = not given, so that they are read from the text."""
    if row.get("labels") is None:  # an empty list or cell says that there are none
        return None
    return parse_label_list(row["labels"]) or ()


def _text_of(value: object) -> str:
    return "" if is_blank(value) else str(value)


def read_references(
    path: str | Path,
    *,
    split: str | None = None,
    lang: str | None = None,
    split_text: Callable[[str], Iterable[str]] | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Read true labels: id -> labels; an empty cell gives (), which is counted but not scored.

    Args:
        split: only read rows of this split (column `split`).
        columns: our name of a column -> its name in the file.
        lang: prefer `labels_<lang>` or the translation into this language; None = the row's own labels.
        split_text: how cells of text are split, such as `lexicon.split_published` for scores that equal published
            ones; None = `schema.parse_label_list`, which also takes other separators and rejects what is no label.

    Raises:
        InputError: an unknown `lang`.
        ScoreFileError: unreadable file, missing columns, a duplicate id, no row of that split.
    """
    path = Path(path)
    references: dict[str, tuple[str, ...]] = {}
    splits: set[str] = set()
    for where, sample_id, row in _reference_rows(path, split, lang, columns, splits):
        if sample_id in references:
            raise ScoreFileError(f"{where}: duplicate id {sample_id!r}; ids must be unique")
        present = [name for name in _LABEL_COLUMNS if name in row]
        translated = _translation(row, lang, where) if lang else {}
        if lang and f"labels_{lang}" in row:
            value = row[f"labels_{lang}"]
        elif lang and _lang_of(row) != lang and "labels" in translated:
            value = translated["labels"]
        elif present:
            value = row[present[0]]
        else:
            value = None
            if path.suffix.lower() != ".jsonl":  # JSONL rows omit empty fields
                raise ScoreFileError(f"{where}: no column of {list(_LABEL_COLUMNS)}, found {sorted(row)}; {_HELP}")
        try:
            if split_text is not None and isinstance(value, str):
                references[sample_id] = CellLabels(split_text(_text_of(value)))
            else:
                references[sample_id] = parse_label_list(value) or ()
        except InputError as error:
            raise ScoreFileError(f"{where}: sample {sample_id!r}: {error}; {_HELP}") from None
    if not references:
        found = f"its splits are {sorted(splits)}" if splits else "the file is empty"
        raise ScoreFileError(f"{path}: no references{f' of split {split!r}' if split else ''}; {found}")
    return references


def read_descriptions(
    path: str | Path,
    *,
    split: str | None = None,
    lang: str = "en",
    columns: Mapping[str, str] | None = None,
) -> dict[str, str | tuple[Clause, ...]]:
    """Read descriptions in `lang`: id -> clauses, or the text without clauses. Rows without one are left out.

    The text is in the column `description` (of a row in `lang`, or its translation), `english`/`chinese`, `reason` or
    `reasons`, or in `text`, the answer of a model.

    Args:
        split, columns: as of `read_references`.

    Raises:
        InputError: an unknown `lang`.
        ScoreFileError: unreadable file, or clauses that are not valid.
    """
    found: dict[str, str | tuple[Clause, ...]] = {}
    for where, sample_id, row in _reference_rows(Path(path), split, lang, columns, set()):
        own = row if _lang_of(row) == lang else _translation(row, lang, where)
        names = (f"description_{lang}", {"en": "english", "zh": "chinese"}[lang], "reason", "reasons")
        texts = [own.get("description"), *(row.get(name) for name in names), own.get("text")]
        try:
            clauses = parse_clauses(own.get("clauses"))
        except InputError as error:
            raise ScoreFileError(f"{where}: sample {sample_id!r}: {error}; {_HELP}") from None
        text = next((text for text in texts if isinstance(text, str) and not is_blank(text)), None)
        if clauses or text:
            found[sample_id] = clauses or text or ""
    return found


def _reference_rows(
    path: Path, split: str | None, lang: str | None, columns: Mapping[str, str] | None, splits: set[str]
) -> Iterator[tuple[str, str, Row]]:
    """Yield (file:line, id, row) of the rows of `split`; the splits of all rows are added to `splits`."""
    if lang is not None and lang not in LANGUAGES:
        raise InputError(f"lang={lang!r}: expected one of {list(LANGUAGES)}")
    for where, row in read_rows(path, known=_REFERENCE_COLUMNS, columns=columns):
        sample_id = id_of(row, where)
        splits.add(own_split := cell_text(row.get("split")) or "")
        if split is None or own_split == split:
            yield where, sample_id, row


def _lang_of(row: Row) -> str:
    """The language of a row's own texts, as of a manifest."""
    return cell_text(row.get("lang")) or "en"


def _translation(row: Row, lang: str, where: str) -> Mapping[str, Any]:
    """The texts of a row in another language than its own."""
    translations = row.get("translations") or {}
    texts = translations.get(lang, {}) if isinstance(translations, dict) else None
    if not isinstance(texts, dict):
        raise ScoreFileError(
            f"{where}: translations must be texts by language, found {reprlib.repr(translations)}; {_HELP}"
        )
    return texts


def write_predictions_npz(path: str | Path, labels: Mapping[str, Iterable[str]]) -> None:
    """Write the npz that challenge servers accept: `filenames` and `fileitems` as arrays of strings."""
    names = list(labels)
    items = ["[" + ", ".join(labels[name]) + "]" for name in names]
    np.savez_compressed(path, filenames=np.array(names, dtype=str), fileitems=np.array(items, dtype=str))
