"""The rows of a table of pairs with their clips, and the table of answers. Names repeat, so rows go by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affectgpt.data.formats import PREFERENCE, FormatError, Subtitles, open_folder
from affectgpt.metrics.preference import NOT_ANSWERED, read_choice
from affectgpt.runtime import InputError
from affectgpt.schema import BadSample, Prediction, Sample
from affectgpt.tables import TableError, id_of, write_csv


@dataclass(frozen=True)
class Pair:
    """One row.

    Attributes:
        key: the number of the row, from "1"; the id of its answers.
        a1, a2: as they are asked: exchanged in a reversed run.
        clip: with the name as its id; a BadSample if no clip can have this name.
    """

    key: str
    name: str
    a1: str
    a2: str
    clip: Sample | BadSample


def read_pairs(
    folder: Path,
    file: str,
    *,
    options: Mapping[str, str],
    subtitles: str = "",
    with_media: bool = True,
    exchange: bool = False,
    limit: int | None = None,
) -> tuple[list[Pair], list[Path]]:
    """The rows in file order, and the tables that were read.

    Args:
        options: names of the media folders, as those of any format.
        with_media: False = the clips are not looked for; only their names are needed.
        exchange: a1 and a2 change places.

    Raises:
        FormatError: no such folder or table, another option, or no columns name, a1, a2.
    """
    source, _ = open_folder(PREFERENCE, folder, dict(options))
    spoken = Subtitles(source, subtitles)
    pairs = []
    try:
        for number, (where, row) in enumerate(source.rows(file, "a1", "a2"), 1):
            if limit is not None and number > limit:
                break
            name = id_of(row, where)
            a1, a2 = ("" if row[side] is None else str(row[side]) for side in ("a1", "a2"))
            try:
                english, chinese = spoken.get(name)
                translations = {"zh": {"subtitle": chinese}} if chinese else {}
                media = source.media(name) if with_media else {}
                clip: Sample | BadSample = Sample(
                    id=name, subtitle=english or chinese, translations=translations, **media
                )
            except FormatError:
                raise
            except InputError as error:
                clip = BadSample(name, where, str(error))
            pairs.append(Pair(str(number), name, *((a2, a1) if exchange else (a1, a2)), clip))
    except TableError as error:
        raise FormatError(f"{error}; see docs/data-sets.md") from None
    if not pairs:
        raise FormatError(f"{folder / file}: no rows; see docs/data-sets.md")
    return pairs, source.files


def write_answers(path: Path, pairs: Sequence[Pair], answers: Mapping[str, Prediction]) -> dict[str, int]:
    """Write name, a1, a2, preference, how (the choice was found), answer; a row without an answer counts as "same".

    Returns:
        how often each choice and each way to find it occurs.
    """
    rows: list[Sequence[str]] = [("name", "a1", "a2", "preference", "how", "answer")]
    counts: dict[str, int] = {}
    for pair in pairs:
        answer = answers.get(pair.key)
        choice, how = ("same", NOT_ANSWERED) if answer is None else read_choice(answer.text.strip())
        for found in (choice, how):
            counts[found] = counts.get(found, 0) + 1
        rows.append((pair.name, pair.a1, pair.a2, choice, how, "" if answer is None else answer.text))
    write_csv(path, rows)
    return counts
