"""Write the file that a challenge server accepts."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affectgpt.config import SubmitConfig
from affectgpt.metrics import load_lexicon, read_predictions
from affectgpt.metrics.classification import to_class
from affectgpt.metrics.evaluate import labels_by_id
from affectgpt.metrics.io import write_predictions_npz
from affectgpt.metrics.preference import CHOICES, check_rows, read_answers, read_choice
from affectgpt.runtime import InputError, NotFound
from affectgpt.tables import read_names, write_csv


def build_submission(
    labels: Mapping[str, Sequence[str]], candidates: Sequence[str] | None = None, empty: str | None = None
) -> dict[str, tuple[str, ...]]:
    """The labels to submit, in the order of `candidates`, else sorted by name.

    Args:
        empty: the label of clips without one; None = they are an error.

    Raises:
        InputError: candidates without a prediction, or clips without a label.
    """
    names = list(candidates) if candidates is not None else sorted(labels)
    if missing := [name for name in names if name not in labels]:
        raise InputError(f"{len(missing)} of {len(names)} candidates have no prediction: {_some(missing)}")
    submitted = {name: tuple(labels[name]) or ((empty,) if empty else ()) for name in names}
    if unlabelled := [name for name, found in submitted.items() if not found]:
        raise InputError(
            f"{len(unlabelled)} of {len(names)} clips have no label: {_some(unlabelled)}; predict them again, or set "
            "their label with empty=neutral"
        )
    return submitted


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write_submission(path: Path, labels: Mapping[str, Sequence[str]]) -> None:
    """Write .npz or .csv, by the suffix of `path`."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    if path.suffix == ".npz":
        write_predictions_npz(path, labels)
    elif path.suffix == ".csv":
        write_csv(path, [("name", "openset"), *((name, f"[{', '.join(found)}]") for name, found in labels.items())])
    else:
        raise InputError(f"{path}: expected a .npz or .csv file to write, found {path.suffix!r}")


def submit(config: SubmitConfig) -> int:
    """Write the submission and print what it contains."""
    if config.track is not None:
        return submit_track(config)
    if len(config.files) != 2:
        raise InputError(f"expected a prediction file and a file to write, found {config.files}; --help shows how")
    source, target = config.files
    labels, _ = labels_by_id(read_predictions(source), load_lexicon("builtin"))
    candidates = read_names(Path(config.candidates)) if config.candidates else None
    submitted = build_submission(labels, candidates, config.empty)
    write_submission(Path(target), submitted)
    n_filled = sum(not labels[name] for name in submitted)
    filled = f"{n_filled} filled with {config.empty!r}, " if n_filled else ""
    n_labels, n_left = sum(map(len, submitted.values())), len(labels) - len(submitted)
    print(f"{target}: {len(submitted)} clips, {n_labels} labels, {filled}{n_left} predictions left out")
    return 0


# ---- the tracks of MER2026 -------------------------------------------------------------------------------------------

TRACK1_LABELS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
MAX_BYTES = 256 * 1024 * 1024
_Row = tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """The form of a track's file.

    Attributes:
        columns: the header; the last column is the prediction.
        suffixes: of the file; a .zip holds answer.csv.
        candidates: the published list of rows, and how many rows it has.
    """

    columns: _Row
    suffixes: tuple[str, ...]
    candidates: str
    n_rows: int


FORMS = {
    1: Form(("name", "discrete"), (".csv",), "track1_track2_candidate.csv", 20_000),
    2: Form(("name", "openset"), (".zip",), "track1_track2_candidate.csv", 20_000),
    3: Form(("name", "a1", "a2", "preference"), (".csv", ".zip"), "track3_candidate.csv", 10_000),
}


def read_candidates(track: int, path: Path) -> list[_Row]:
    """The rows that a track's file must have, without predictions: (name,), for track 3 (name, a1, a2)."""
    if track != 3:
        return [(name,) for name in read_names(path)]
    table = _parse_csv(_read_text(path).removeprefix("\ufeff"), str(path))
    if table[:1] != [("name", "a1", "a2")]:
        raise InputError(f"{path}: expected the columns name,a1,a2 of track3_candidate.csv, found {table[:1]}")
    if odd := [number for number, row in enumerate(table) if len(row) != 3]:
        raise InputError(f"{path}: row {odd[0]} has {len(table[odd[0]])} cells, expected 3")
    return table[1:]


def problems(track: int, path: Path, candidates: Sequence[_Row]) -> list[str]:
    """What keeps a file from the official form of a track: one line for each row and reason; [] = nothing.

    Rows are counted from 1, without the header. Tracks 1 and 2 may have any order; the rows of track 3, whose names may
    repeat, are those of the candidates in their order.

    Raises:
        InputError: the file cannot be read as a table at all.
    """
    form = FORMS[track]
    table = _parse_csv(_read_text(path), str(path))
    if table[:1] != [form.columns]:
        return [f"header: expected {','.join(form.columns)}, found {','.join(table[0]) if table else 'an empty file'}"]
    found: list[str] = []
    rows = table[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != len(form.columns):
            found.append(f"row {number}: {len(row)} cells, expected {len(form.columns)}")
        elif reason := _wrong(track, row[-1]):
            found.append(f"row {number} ({row[0]!r}): {reason}")
    return found + (_wrong_order if track == 3 else _wrong_names)(rows, candidates)


def _wrong(track: int, cell: str) -> str | None:
    if track == 2:
        inner = cell[1:-1]
        if not (len(cell) >= 2 and cell[0] == "[" and cell[-1] == "]") or set("[]\n\r") & set(inner):
            return f"openset is {cell!r}; expected one list in brackets, such as [happy, proud], or [] for none"
        if inner.strip() and not all(part.strip(" '\"") for part in inner.split(",")):
            return f"openset {cell!r} has an empty label"
        return None
    known = TRACK1_LABELS if track == 1 else CHOICES
    return None if cell in known else f"{FORMS[track].columns[-1]} is {cell!r}; expected one of {', '.join(known)}"


def _wrong_names(rows: Sequence[_Row], candidates: Sequence[_Row]) -> list[str]:
    found, wanted, first = [], {name for (name,) in candidates}, dict[str, int]()
    for number, row in enumerate(rows, 1):
        if row and row[0] in first:
            found.append(f"row {number} ({row[0]!r}): the name is in row {first[row[0]]}, too")
        elif row and row[0] not in wanted:
            found.append(f"row {number} ({row[0]!r}): the name is not among the candidates")
        if row:
            first.setdefault(row[0], number)
    return found + [f"no row of candidate {name!r}" for (name,) in candidates if name not in first]


def _wrong_order(rows: Sequence[_Row], candidates: Sequence[_Row]) -> list[str]:
    found = []
    for number, (row, wanted) in enumerate(zip(rows, candidates, strict=False), 1):
        if differ := [column for column, a, b in zip(FORMS[3].columns, row, wanted, strict=False) if a != b]:
            found.append(
                f"row {number} ({row[0]!r}): {' and '.join(differ)} not as in row {number} of the candidates "
                f"({wanted[0]!r}); rows must have their order"
            )
    if len(rows) != len(candidates):
        found.append(f"{len(rows)} rows, but {len(candidates)} candidates")
    return found


def submit_track(config: SubmitConfig) -> int:
    """Write the file of a track, or check one if `config.files` has one; exit code 1 if there are problems."""
    track = config.track
    if track not in FORMS:
        raise InputError(f"track is {track}; expected 1, 2 or 3 of MER2026")
    form = FORMS[track]
    if len(config.files) not in (1, 2):
        raise InputError(
            "expected a file to check, or a prediction file and a file to write, found "
            f"{config.files}; --help shows how"
        )
    if not config.candidates:
        raise InputError(f"track={track} needs candidates={form.candidates}, the rows that the file must have")
    target = Path(config.files[-1])
    if target.suffix not in form.suffixes:
        raise InputError(f"{target}: track {track} takes a {' or '.join(form.suffixes)} file, found {target.suffix!r}")
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a file")
    candidates = read_candidates(track, Path(config.candidates))
    if len(candidates) != form.n_rows:
        print(f"{config.candidates}: {len(candidates)} rows; the published {form.candidates} has {form.n_rows}")
    if len(config.files) == 2:
        rows, how = (_preferences if track == 3 else _labels)(track, Path(config.files[0]), candidates, config.empty)
        _write(target, [form.columns, *rows])
        print(f"{target}: {len(rows)} rows, {how}")
    found = problems(track, target, candidates)
    for line in found[:20]:
        print(f"  problem: {line}")
    print(f"{target}: {len(found)} problems" if found else f"{target}: ok, in the form of track {track}")
    return 1 if found else 0


def _labels(track: int, source: Path, candidates: Sequence[_Row], empty: str | None) -> tuple[list[_Row], str]:
    """The rows of tracks 1 and 2, and what was done to get them."""
    lexicon = load_lexicon("builtin")
    predicted, _ = labels_by_id(read_predictions(source), lexicon)
    names = [name for (name,) in candidates]
    if track == 2:
        n_empty = sum(not predicted.get(name, True) for name in names)
        for name in names:
            if odd := [word for word in predicted.get(name, ()) if set("[],\n\r") & set(word)]:
                raise InputError(f"{source}: {name!r} has label {odd[0]!r}; labels have no comma, bracket or new line")
        chosen = {name: words or ((empty,) if empty else ()) for name, words in predicted.items()}
        found = _of_all(chosen, names)
        n_left = len(predicted) - len(names)
        how = f"{n_empty} {f'filled with {empty!r}' if empty else 'without a label'}, {n_left} predictions left out"
        return [(name, f"[{', '.join(found[name])}]") for name in names], how
    if empty is not None and empty not in TRACK1_LABELS:
        raise InputError(f"empty={empty}; expected one of {', '.join(TRACK1_LABELS)}")
    classes = {name: to_class(predicted[name], TRACK1_LABELS, lexicon) for name in names if name in predicted}
    found = build_submission({name: (word,) if word else () for name, word in classes.items()}, names, empty)
    n_empty = sum(word is None for word in classes.values())
    n_mapped = sum(word is not None and predicted[name][:1] != (word,) for name, word in classes.items())
    how = f"{n_mapped} other words mapped to the six labels, {n_empty} filled with {empty!r}"
    return [(name, found[name][0]) for name in names], how


def _of_all(labels: Mapping[str, _Row], names: Sequence[str]) -> Mapping[str, _Row]:
    if missing := [name for name in names if name not in labels]:
        raise InputError(f"{len(missing)} of {len(names)} candidates have no prediction: {_some(missing)}")
    return labels


def _preferences(track: int, source: Path, candidates: Sequence[_Row], empty: str | None) -> tuple[list[_Row], str]:
    """The rows of track 3. Predictions are in the same rows of `source`, as preference or as text."""
    if empty is not None:
        raise InputError("empty= is for tracks 1 and 2; an answer without a choice counts as same in track 3")
    answers = read_answers(source)
    check_rows(answers, candidates, "the candidates")
    found = [read_choice(row.answer) for row in answers]
    n = Counter(how for _, how in found)
    n_read = len(found) - n["exact"]
    how = f"{n_read} choices read from longer answers, {n['none']} of them without a choice, which count as same"
    return [(*wanted, choice) for wanted, (choice, _) in zip(candidates, found, strict=True)], how


def _read_text(path: Path) -> str:
    """The text of a .csv file, or of answer.csv in a .zip file."""
    try:
        if path.suffix != ".zip":
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{path} is larger than {MAX_BYTES} bytes")
            return path.read_bytes().decode()
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != ["answer.csv"]:
                raise InputError(f"{path}: expected answer.csv alone, found {archive.namelist()[:5]}")
            if archive.getinfo("answer.csv").file_size > MAX_BYTES:
                raise InputError(f"{path}: answer.csv is larger than {MAX_BYTES} bytes")
            return archive.read("answer.csv").decode()
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 ({error})") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable zip file ({error})") from None


def _parse_csv(text: str, where: str) -> list[_Row]:
    """Rows with commas and double quotes, blank lines left out."""
    try:
        return [tuple(row) for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise InputError(f"{where}: not a CSV file ({error})") from None


def _write(path: Path, rows: Sequence[_Row]) -> None:
    if path.suffix == ".csv":
        write_csv(path, rows)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    member = zipfile.ZipInfo("answer.csv")  # of a fixed date: the same rows make the same file
    member.compress_type = zipfile.ZIP_DEFLATED
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(member, text.getvalue())
    os.replace(temporary, path)


if __name__ == "__main__":
    from affectgpt.cli import main

    main("submit")
