"""Read published data sets in their original layout: one function per format.

A reader takes a `Folder` and the options of its format, and yields a `Sample` for each usable row and a `BadSample` for
each other row. Texts from several files are joined by name. Media are expected in the published subfolders:
`video/<name>.mp4` (or another suffix), `audio/<name>.wav`, `openface_face/<name>/<name>.npy`.

To add a format, write its reader and list it in FORMATS. `python -m affectgpt.data formats` prints its options and the
first line of its docstring.
"""

from __future__ import annotations

import codecs
import functools
import inspect
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.data.question_formats import emobench_m, emotion_hallucer, intent_bench, mme_emotion
from affectgpt.data.splits import hold_out
from affectgpt.data.streamed import manifest_of
from affectgpt.data.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, medium_field
from affectgpt.runtime import InputError, parse_json
from affectgpt.schema import FACE_ORDERS, BadSample, Sample, check_id, finite, listed, parse_label_list, read_samples
from affectgpt.tables import (
    TableError,
    cell_text,
    id_of,
    is_blank,
    npz_arrays,
    read_lines,
    read_names,
    read_pickled_mapping,
    read_rows,
)

log = logging.getLogger("affectgpt")

_HELP = "see docs/data-sets.md"
_TABLES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".txt", ".npz")
_TRUST = "options: {trust_pickle: true}"

EMER_TEST_SHARE = 66 / 332
"""EMER-Fine has 266 training and 66 test samples."""

Rows = Iterator[Sample | BadSample]


class FormatError(InputError):
    """A data set is not in the given format; the message names the file, what was found and what was expected."""


@dataclass
class Folder:
    """The folder of a data set.

    Attributes:
        video, audio, faces: subfolders of the media ("." = the folder itself); a missing one counts as empty.
        face_order: channel order of the face crops, bgr or rgb.
        columns: the format's name of a column -> the name in its tables.
        files: the tables that have been read, for the record of a run.
        used: the names in `columns` that these tables have.
    """

    path: Path
    video: str = "video"
    audio: str = "audio"
    faces: str = "openface_face"
    face_order: str = "bgr"
    columns: Mapping[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.face_order not in FACE_ORDERS:
            raise FormatError(f"face_order must be one of {list(FACE_ORDERS)}, found {self.face_order!r}")

    def file(self, name: str) -> Path:
        """The path of a required table, which is added to `files`."""
        path = self.path / name
        if not path.is_file():
            near = sorted(item.name for item in self.path.glob("*") if item.suffix.lower() in _TABLES)
            raise FormatError(f"{path}: no such file; the folder has {near[:12]}; set the name with an option; {_HELP}")
        self.files.append(path)
        return path

    def rows(self, name: str, *columns: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file:line, row) of a required table with `columns`."""
        path = self.file(name)
        for where, row in self.read(path, columns):
            if missing := [column for column in columns if column not in row]:
                raise FormatError(f"{where}: no column {missing[0]!r}, found {sorted(map(str, row))}; {_HELP}")
            yield where, row

    def read(self, path: Path, known: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file:line, row) of a table."""
        return read_rows(path, known=known, columns=self.columns, used=self.used)

    def by_name(self, name: str, *columns: str) -> dict[str, dict[str, Any]]:
        """The rows of an optional table by name, for joining; {} if `name` is empty or the file does not exist."""
        if not name or not (self.path / name).is_file():
            return {}
        found: dict[str, dict[str, Any]] = {}
        for where, row in self.rows(name, *columns):
            key = id_of(row, where)
            if key in found:
                raise FormatError(f"{where}: duplicate name {key!r}; names must be unique to be joined")
            found[key] = row
        log.info("%s: %d rows joined by name", self.path / name, len(found))
        return found

    def media(self, name: str) -> dict[str, Any]:
        """The media fields of a sample; a missing video keeps its path and fails when it is probed."""
        found: dict[str, Any] = {}
        videos, audios = self._listing[0].get(name, []), self._listing[1].get(name, [])
        for files in (videos, audios):
            if len(files) > 1:
                raise InputError(f"{len(files)} files have this name: {files}; keep one")
        if audios:
            found["audio"] = audios[0]
        if videos or self._listing[0] or not audios:
            found["video"] = videos[0] if videos else str(self.path / self.video / f"{name}.mp4")
        if name in self._listing[2]:
            found |= {"face": str(self.path / self.faces / name / f"{name}.npy"), "face_order": self.face_order}
        return found

    @functools.cached_property
    def _listing(self) -> tuple[dict[str, list[str]], dict[str, list[str]], frozenset[str]]:
        """Video and audio files by name, and the names with face crops; faster than a stat call per file."""
        videos = _by_stem(self.path / self.video, (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
        audios = _by_stem(self.path / self.audio, AUDIO_SUFFIXES)
        faces = self.path / self.faces
        if not videos and not audios:
            inside = sorted(item.name for item in self.path.glob("*") if item.is_dir())
            raise FormatError(
                f"{self.path}: no video in {self.video!r} and no audio in {self.audio!r}; found folders {inside[:12]}; "
                f"set the media folders with options: {{video: ..., audio: ...}} ('.' = next to the tables); {_HELP}"
            )
        return videos, audios, frozenset(os.listdir(faces) if faces.is_dir() else ())


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes:
                found.setdefault(stem, []).append(os.path.join(folder, name))
    return found


@dataclass(frozen=True)
class Preference:
    """Two descriptions of one clip, and which one people prefer: "a1", "a2" or "same"."""

    id: str
    a1: str
    a2: str
    preference: str
    video: str | None = None
    audio: str | None = None


def _sample(
    folder: Folder,
    where: str,
    name: str,
    spoken: Subtitles | None = None,
    *,
    chinese: Mapping[str, Any] | None = None,
    valence: float | None = None,
    **texts: Any,
) -> Sample | BadSample:
    """The sample of a row with its media, or a BadSample if the row is invalid.

    Args:
        spoken: adds the subtitles of `name`; a subtitle in `texts` takes the place of a missing English one.
        chinese, texts: description, labels ... as in the table, in Chinese and in English; empty cells are left out.
    """
    try:
        own, translated = _texts(texts), _texts(chinese or {})
        if spoken is not None:
            english, translated_subtitle = spoken.get(name)
            own["subtitle"] = english or own.get("subtitle") or translated_subtitle
            translated = {"subtitle": translated_subtitle, **translated}
        fields = {key: value for key, value in (own | {"valence": valence}).items() if value is not None}
        translated = {key: value for key, value in translated.items() if value is not None}
        translations = {"zh": translated} if translated else {}
        return Sample(id=name, **fields, **folder.media(name), translations=translations)
    except FormatError:
        raise
    except InputError as error:
        return BadSample(name, where, str(error))


def _texts(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {key: parse_label_list(value) if key == "labels" else cell_text(value) for key, value in cells.items()}


class Subtitles:
    """Subtitles by name, from `name, chinese, english` (subtitle_chieng.csv) or `name, sentence` (MERR)."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._rows = folder.by_name(name)

    def get(self, name: str) -> tuple[str | None, str | None]:
        """(English, Chinese); None where there is none."""
        row = self._rows.get(name, {})
        return cell_text(row.get("english")) or cell_text(row.get("sentence")), cell_text(row.get("chinese"))


def _with_split(rows: Rows, test_share: float) -> Rows:
    """Set `split` to train or test by a seeded hash of the id: our own split, because the tables do not include one."""
    if not 0 <= test_share <= 1:
        raise FormatError(f"test_share is {test_share}; expected a share from 0 to 1")
    known = list(rows)
    samples = [row for row in known if isinstance(row, Sample)]
    n_test = round(len(samples) * test_share)
    held_out = hold_out(samples, n=n_test, seed=0)[1] if n_test < len(samples) else samples
    test = {sample.id for sample in held_out}
    for row in known:
        yield replace(row, split="test" if row.id in test else "train") if isinstance(row, Sample) else row


# ---- formats ---------------------------------------------------------------------------------------------------------


def manifest(folder: Folder, *, file: str = "manifest.jsonl") -> Rows:
    """our own format: a JSONL or CSV file with the columns of docs/data-format.md"""
    samples, bad = read_samples(folder.file(file), on_bad="skip", columns=folder.columns)
    folder.used |= set(folder.columns.values())
    yield from samples
    yield from bad


def hub_rows(
    folder: Folder,
    *,
    path: str,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    n_rows: int | None = None,
) -> Rows:
    """a data set of the library datasets (hub id, or a folder of Parquet files); media are saved in the folder"""
    file = manifest_of(
        path, folder.path, split=split, name=name, revision=revision, n_rows=n_rows, columns=folder.columns
    )
    yield from manifest(folder, file=file.name)


def emer_v1(folder: Folder, *, english: str = "gt-eng.csv", chinese: str = "gt-chi.csv") -> Rows:
    """EMER-V1 (100 clips): gt-eng.csv and gt-chi.csv with names, emotions, subtitles, reasons"""
    columns = ("names", "emotions", "subtitles", "reasons")
    others = folder.by_name(chinese, *columns)
    for where, row in folder.rows(english, *columns):
        name = id_of(row, where)
        english_texts, chinese_texts = _emer_v1_texts(row), _emer_v1_texts(others.get(name, {}))
        english_texts["subtitle"] = cell_text(english_texts["subtitle"]) or chinese_texts["subtitle"]
        yield _sample(folder, where, name, **english_texts, chinese=chinese_texts)


def _emer_v1_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"subtitle": row.get("subtitles"), "description": row.get("reasons"), "labels": row.get("emotions")}


def emer_fine(
    folder: Folder,
    *,
    descriptions: str = "final-EMER-reason.csv",
    labels: str = "check-openset.csv",
    subtitles: str = "subtitle_chieng.csv",
    test_share: float = EMER_TEST_SHARE,
) -> Rows:
    """EMER-Fine = EMER-V2 (332 clips): descriptions in Chinese and English, OV labels, subtitles"""
    return _with_split(_emer_fine(folder, descriptions, labels, subtitles), test_share)


def _emer_fine(folder: Folder, descriptions: str, labels: str, subtitles: str) -> Rows:
    openset, spoken = folder.by_name(labels, "openset"), Subtitles(folder, subtitles)
    for where, row in folder.rows(descriptions, "english", "chinese"):
        name = id_of(row, where)
        texts = {"description": row["english"], "labels": openset.get(name, {}).get("openset")}
        yield _sample(folder, where, name, spoken, **texts, chinese={"description": row["chinese"]})


def mer_openset(folder: Folder, *, labels: str, descriptions: str = "", subtitles: str = "subtitle_chieng.csv") -> Rows:
    """any table with name, openset (OV labels), joined with a table of name, reason and with subtitles"""
    reasons, spoken = folder.by_name(descriptions, "reason"), Subtitles(folder, subtitles)
    seen = set()
    for where, row in folder.rows(labels, "openset"):
        name = id_of(row, where)
        seen.add(name)
        description = reasons.get(name, {}).get("reason")
        yield _sample(folder, where, name, spoken, labels=row["openset"], description=description)
    for name in [name for name in reasons if name not in seen]:  # with a description, but without labels
        yield _sample(folder, str(folder.path / descriptions), name, spoken, description=reasons[name]["reason"])


def ovmerd(
    folder: Folder,
    *,
    labels: str = "track2_train_ovmerd.csv",
    descriptions: str = "track3_train_ovmerd.csv",
    subtitles: str = "subtitle_chieng.csv",
    test_share: float = EMER_TEST_SHARE,
) -> Rows:
    """OV-MERD (332 clips): track2_train_ovmerd.csv and track3_train_ovmerd.csv"""
    rows = mer_openset(folder, labels=labels, descriptions=descriptions, subtitles=subtitles)
    return _with_split(rows, test_share)


def mercaptionplus(
    folder: Folder,
    *,
    labels: str = "track2_train_mercaptionplus.csv",
    descriptions: str = "track3_train_mercaptionplus.csv",
    subtitles: str = "subtitle_chieng.csv",
) -> Rows:
    """MER-Caption+: track2_train_mercaptionplus.csv and track3_train_mercaptionplus.csv"""
    return mer_openset(folder, labels=labels, descriptions=descriptions, subtitles=subtitles)


def mer_human(
    folder: Folder, *, labels: str = "track2_train_human.csv", subtitles: str = "subtitle_chieng.csv"
) -> Rows:
    """human OV labels of MER2025 / MER2026: track2_train_human.csv"""
    return mer_openset(folder, labels=labels, subtitles=subtitles)


def mer_onehot(
    folder: Folder,
    *,
    labels: str = "track1_train.csv",
    subtitles: str = "subtitle_chieng.csv",
    test_share: float = 0.0,
) -> Rows:
    """one-hot emotions: track1_train.csv with name, discrete (task fixed); test_share of them are our own test split"""
    rows = _mer_onehot(folder, labels, subtitles)
    return _with_split(rows, test_share) if test_share else rows


def _mer_onehot(folder: Folder, labels: str, subtitles: str) -> Rows:
    spoken = Subtitles(folder, subtitles)
    for where, row in folder.rows(labels, "discrete"):
        yield _sample(folder, where, id_of(row, where), spoken, label=row["discrete"])


def candidates(
    folder: Folder, *, names: str = "track_all_candidates.csv", subtitles: str = "subtitle_chieng.csv"
) -> Rows:
    """clips to predict, without labels: track_all_candidates.csv, track1_track2_candidate.csv (name)"""
    spoken = Subtitles(folder, subtitles)
    for name in read_names(folder.file(names), columns=folder.columns, used=folder.used):
        yield _sample(folder, names, name, spoken)


def merr(
    folder: Folder,
    *,
    file: str = "MERR_fine_grained.json",
    index: str | None = None,
    subtitles: str = "transcription_en_all.csv",
) -> Rows:
    """MERR: MERR_fine_grained.json or MERR_coarse_grained.json, with its index .txt and subtitles if they exist"""
    entries = _json(folder.file(file), dict)
    index = str(Path(file).with_suffix(".txt")) if index is None else index
    known = _merr_index(folder, index) if index and (folder.path / index).is_file() else {}
    spoken = Subtitles(folder, subtitles)
    if unused := len(set(known) - set(entries)):
        log.warning("%s: left out %d names that are not in %s", folder.path / index, unused, file)
    for name, entry in entries.items():
        where = str(folder.path / file)
        if not isinstance(entry, dict):
            yield BadSample(name, where, f"expected a JSON object, found {type(entry).__name__}")
            continue
        label, valence = known.get(name, (entry.get("pseu_emotion"), None))
        description = cell_text(entry.get("smp_reason_caption")) or entry.get("caption")
        texts = {"subtitle": entry.get("text"), "description": description, "label": label}
        yield _sample(folder, where, name, spoken, **texts, valence=valence)


def merr_index(folder: Folder, *, file: str, subtitles: str = "transcription_en_all.csv") -> Rows:
    """an index of MERR or MER2023: lines of name n_frames emotion [valence], such as relative_test3_NCEV.txt"""
    spoken = Subtitles(folder, subtitles)
    for name, (emotion, valence) in _merr_index(folder, file).items():
        subtitle = next(filter(None, spoken.get(name)), None)
        yield _sample(folder, str(folder.path / file), name, subtitle=subtitle, label=emotion, valence=valence)


def _merr_index(folder: Folder, file: str) -> dict[str, tuple[str, float | None]]:
    """name -> (emotion, valence); -10 means no valence."""
    path = folder.file(file)
    found: dict[str, tuple[str, float | None]] = {}
    for line_no, line in enumerate(read_lines(path), 1):
        cells = line.split()
        if not cells:
            continue
        try:
            name, _, emotion, *rest = cells
            valence = finite(rest[0]) if rest else None
        except (ValueError, IndexError):
            raise FormatError(f"{path}:{line_no}: expected 'name n_frames emotion valence', found {line!r}") from None
        if name in found:
            raise FormatError(f"{path}:{line_no}: duplicate name {name!r}; names must be unique")
        found[name] = (emotion, None if valence == -10 else valence)
    return found


def merbench_npz(
    folder: Folder,
    *,
    file: str = "label.npz",
    array: str = "test_corpus",
    classes: Sequence[str] = (),
    trust_pickle: bool = False,
    subtitles: str = "",
) -> Rows:
    """label.npz of MERBench; classes names the emotions if they are numbered"""
    path = folder.file(file)
    corpus = read_pickled_mapping(path, array, trust_pickle=trust_pickle, setting=_TRUST)
    spoken = Subtitles(folder, subtitles)
    for name, entry in corpus.items():
        try:
            emotion, valence = entry.get("emo"), entry.get("val")
            valence = None if is_blank(valence) else finite(valence)
        except (AttributeError, ValueError):
            yield BadSample(name, str(path), f"expected a dictionary with emo and a number val, found {entry!r}")
            continue
        if isinstance(emotion, (int, np.integer)):
            if not 0 <= emotion < len(classes):
                raise FormatError(
                    f"{path}: {name!r} has emotion number {emotion}, but classes has {len(classes)} names; "
                    f"set options: {{classes: [neutral, angry, ...]}} in the order of the numbers"
                )
            emotion = classes[emotion]
        yield _sample(folder, str(path), name, spoken, label=emotion, valence=valence)


def mmeverse(
    folder: Folder,
    *,
    file: str,
    label: str = "emotion_label",
    text: str = "english",
    mode: str = "mode",
    train: Sequence[str] = ("train",),
    explanation: str = "",
    clue: str = "",
    multiple: bool = False,
    max_words: int = 200,
) -> Rows:
    """a table of MMEVerse (Emotion-LLaMA v2): video_id, and the columns of label, text, mode (split) and explanation

    Rows whose mode is one of `train` have the split train. With an explanation, rows without one and with one of more
    than `max_words` words are left out and counted: the published code asks them for the label instead. `clue` names
    the one stream that an explanation is about. With `multiple`, the cell of the label is a list.
    """
    streams: Mapping[str, tuple[str, ...] | None] = {"": None, "audio": ("audio",), "image": ("frames",)}
    if clue not in streams:
        raise FormatError(f"clue is {clue!r}; expected audio, image or nothing")
    n_left_out = 0
    for where, row in folder.rows(file, *filter(None, ("video_id", label, text, mode, explanation))):
        name, told = str(row["video_id"]).strip(), cell_text(row[explanation]) if explanation else None
        if explanation and (told is None or len(told.split()) > max_words):
            n_left_out += 1
            continue
        texts = {"labels" if multiple else "label": row[label], "subtitle": row[text], "description": told}
        if not multiple and explanation and not clue:
            texts["labels"] = [cell] if (cell := cell_text(row[label])) else None  # for the task think
        made = _sample(folder, where, name, **texts)
        if isinstance(made, Sample):
            split = cell_text(row[mode])
            made = replace(made, split="train" if split in train else split, modalities=streams[clue])
        yield made
    if n_left_out:
        log.warning(
            "%s: left out %d rows: no %s of 1 to %d words", folder.path / file, n_left_out, explanation, max_words
        )


def llava(folder: Folder, *, file: str, answer: str = "description", questions: bool = False) -> Rows:
    """a LLaVA or ShareGPT list of image / video and conversations; the first answer becomes description, labels, label

    The questions are dropped, because our prompts replace them, unless `questions` is set; later turns are left out and
    counted.
    """
    if answer not in ("description", "labels", "label"):
        raise FormatError(f"answer must be description, labels or label, found {answer!r}")
    path = folder.file(file)
    entries = [row for _, row in folder.read(path)] if path.suffix.lower() == ".jsonl" else _json(path, list)
    if odd := [number for number, entry in enumerate(entries) if not isinstance(entry, dict)]:
        raise FormatError(f"{path}[{odd[0]}]: expected a JSON object, found {type(entries[odd[0]]).__name__}; {_HELP}")
    n_left_out, shared = 0, _shared_stems(entries)
    for number, entry in enumerate(entries):
        where = f"{path}[{number}]"
        medium = _first_medium(entry)
        name = str(
            entry.get("id") or (medium and (medium if Path(medium).stem in shared else Path(medium).stem)) or "?"
        )
        name = name.replace("/", "_")
        try:
            answers = _answers(entry)
            n_left_out += len(answers) - 1
            value = parse_label_list(answers[0]) if answer == "labels" else answers[0].strip()
            if medium is None:
                raise InputError(f"no image or video, found {sorted(entry)}")
            asked = _first_question(entry) if questions else None
            yield Sample(id=name, **medium_field(folder.path, medium), **{answer: value}, question=asked)
        except InputError as error:
            yield BadSample(name, where, str(error))
    if n_left_out:
        log.warning("%s: left out %d further turns of conversations; only the first answer is used", path, n_left_out)


def _first_medium(entry: Mapping[str, Any]) -> str | None:
    for key in ("video", "videos", "image", "images"):
        value = entry.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, str) and value:
            return value
    return None


def _first_question(entry: Mapping[str, Any]) -> str:
    """The first question of a conversation, without the placeholders of its media."""
    for turn in entry.get("conversations") or entry.get("messages") or ():
        if turn.get("from", turn.get("role")) in ("human", "user"):
            text = turn.get("value", turn.get("content"))
            if isinstance(text, list):  # of parts, those of media without a text
                texts = [part.get("text") for part in text if isinstance(part, dict)]
                text = "\n".join(each for each in texts if isinstance(each, str)) or None
            if isinstance(text, str):
                return re.sub(r"<(image|video|audio|ImageHere|Img|/Img)>", "", text).strip()
            break
    raise InputError("conversations have no question (from: human, value: text)")


def _shared_stems(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """Stems that several files share, which therefore cannot be ids."""
    seen: dict[str, str] = {}
    shared = set()
    for medium in filter(None, map(_first_medium, entries)):
        if seen.setdefault(Path(medium).stem, medium) != medium:
            shared.add(Path(medium).stem)
    return shared


def _answers(entry: Mapping[str, Any]) -> list[str]:
    turns = entry.get("conversations") or entry.get("messages") or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"conversations must be a list of objects, found {turns!r}")
    found = [
        turn.get("value", turn.get("content"))
        for turn in turns
        if turn.get("from", turn.get("role")) in ("gpt", "assistant")
    ]
    if not found or not all(isinstance(text, str) for text in found):
        raise InputError("conversations have no answer (from: gpt, value: text)")
    return found


def predictions(
    folder: Folder,
    *,
    file: str,
    array: str = "name2reason",
    trust_pickle: bool = False,
    subtitles: str = "subtitle_chieng.csv",
) -> Rows:
    """predictions as training data: CSV, our JSONL, *-openset.npz, name2reason npz"""
    path = folder.file(file)
    rows: Iterable[tuple[str, dict[str, Any]]]
    if path.suffix.lower() == ".npz" and array in npz_arrays(path):
        found = read_pickled_mapping(path, array, trust_pickle=trust_pickle, setting=_TRUST)
        rows = [(f"{path}[{name}]", {"name": name, "reason": reason}) for name, reason in found.items()]
    else:
        rows = folder.read(path, ("labels", "openset", "text", "reason", "description"))
    spoken = Subtitles(folder, subtitles)
    for where, row in rows:
        labels = row.get("labels") or row.get("openset")
        text = row.get("text") or row.get("reason") or row.get("description")
        yield _sample(folder, where, id_of(row, where), spoken, labels=labels, description=text)


def read_preferences(folder: Folder, *, file: str = "track3_emoprefer.csv") -> Iterator[Preference | BadSample]:
    """pairs of descriptions: track3_emoprefer*.csv with name, a1, a2, preference (a1, a2, same / tie)"""
    for where, row in folder.rows(file, "a1", "a2", "preference"):
        name = id_of(row, where)
        choice = {"tie": "same"}.get(value := str(row["preference"]).strip().lower(), value)
        a1, a2 = cell_text(row["a1"]), cell_text(row["a2"])
        try:
            if choice not in ("a1", "a2", "same"):
                raise InputError(f"preference is {row['preference']!r}; expected a1, a2 or same")
            if a1 is None or a2 is None:
                raise InputError("a1 or a2 is empty; expected two descriptions")
            media = folder.media(check_id(name))
            yield Preference(name, a1, a2, choice, media.get("video"), media.get("audio"))
        except FormatError:
            raise
        except InputError as error:
            yield BadSample(name, where, str(error))


def preference_pairs(
    folder: Folder, *, file: str = "track3_emoprefer.csv", subtitles: str | None = None
) -> Iterator[Sample | BadSample]:
    """training pairs from track3_emoprefer*.csv: the preferred description and the other one; "same" is left out"""
    spoken = Subtitles(folder, subtitles) if subtitles is not None else None
    n_of: Counter[str] = Counter()
    n_same = 0
    for row in read_preferences(folder, file=file):
        if isinstance(row, BadSample):
            yield row
        elif row.preference == "same":
            n_same += 1
        else:
            n_of[row.id] += 1
            chosen, rejected = (row.a1, row.a2) if row.preference == "a1" else (row.a2, row.a1)
            # A clip may be in several rows: the row is the sample.
            found = _sample(folder, file, row.id, spoken, description=chosen, rejected=rejected)
            if isinstance(found, Sample) and chosen == rejected:
                found = BadSample(row.id, file, "a1 and a2 are the same text")
            if isinstance(found, Sample) and n_of[row.id] > 1:
                found = replace(found, id=f"{row.id}~{n_of[row.id]}")
            yield found
    if n_same:
        log.info("%s: %d pairs are left out, in which people prefer neither", folder.path / file, n_same)


def _json(path: Path, kind: type) -> Any:
    try:
        value = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (InputError, OSError) as error:
        raise FormatError(f"{path}: {error}") from None
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise FormatError(f"{path}: expected {expected}, found {type(value).__name__}; {_HELP}")
    return value


FORMATS: dict[str, Callable[..., Rows]] = {
    "manifest": manifest,
    "datasets": hub_rows,
    "emer_v1": emer_v1,
    "emer_fine": emer_fine,
    "ovmerd": ovmerd,
    "mercaptionplus": mercaptionplus,
    "mer_human": mer_human,
    "mer_openset": mer_openset,
    "mer_onehot": mer_onehot,
    "candidates": candidates,
    "merr": merr,
    "merr_index": merr_index,
    "merbench_npz": merbench_npz,
    "mmeverse": mmeverse,
    "llava": llava,
    "sharegpt": llava,
    "predictions": predictions,
    "preference_pairs": preference_pairs,
    "mme_emotion": mme_emotion,
    "emotion_hallucer": emotion_hallucer,
    "emobench_m": emobench_m,
    "intent_bench": intent_bench,
}
PREFERENCE = "preference"
FOLDER_OPTIONS = ("video", "audio", "faces", "face_order")


def options_of(format: str) -> dict[str, Any]:
    """The options of a format with their defaults; `inspect.Parameter.empty` = required."""
    reader = read_preferences if format == PREFERENCE else FORMATS[format]
    own = {key: item.default for key, item in inspect.signature(reader).parameters.items() if key != "folder"}
    return own | {key: getattr(Folder, key) for key in FOLDER_OPTIONS}


def open_folder(
    format: str, folder: Path, options: Mapping[str, Any], columns: Mapping[str, str] | None = None
) -> tuple[Folder, dict[str, Any]]:
    """The folder, and the options of the reader.

    Raises:
        FormatError: unknown format or option, no such folder, or a missing required option.
    """
    if format not in (*FORMATS, PREFERENCE):
        raise FormatError(f"unknown format {format!r}; expected one of {[*FORMATS, PREFERENCE]}")
    known = options_of(format)
    if unknown := sorted(set(options) - set(known)):
        raise FormatError(f"format {format!r} has no option {unknown[0]!r}; its options are {sorted(known)}")
    if missing := [key for key, default in known.items() if default is inspect.Parameter.empty and key not in options]:
        raise FormatError(f"format {format!r} needs options: {{{missing[0]}: ...}}; {_HELP}")
    if not folder.is_dir():
        raise FormatError(
            f"{folder}: no such folder; set the folder of the data set: folder= (data.folder= in training)"
        )
    own = {key: options[key] for key in FOLDER_OPTIONS if key in options}
    source = Folder(folder, **own, columns=columns or {})
    return source, {key: value for key, value in options.items() if key not in FOLDER_OPTIONS}


def read_format(
    format: str, folder: Path, options: Mapping[str, Any], columns: Mapping[str, str] | None = None
) -> tuple[list[Sample | BadSample], list[Path]]:
    """All rows of a data set in file order, with duplicate ids as bad rows, and the tables that were read."""
    source, own = open_folder(format, folder, options, columns)
    rows: list[Sample | BadSample] = []
    seen: set[str] = set()
    try:
        for row in FORMATS[format](source, **own):
            if isinstance(row, Sample) and row.id in seen:
                row = BadSample(row.id, str(source.files[0]), "duplicate id; ids must be unique")
            seen.add(row.id)
            rows.append(row)
    except TableError as error:
        raise FormatError(f"{error}; {_HELP}") from None
    if unused := sorted(set(source.columns.values()) - source.used):
        files = list(map(str, source.files))
        raise FormatError(f"{folder}: columns= names {unused[0]!r}, but no table has this column: {files}; {_HELP}")
    if not any(isinstance(row, Sample) for row in rows):
        found = f"in {list(map(str, source.files))}{listed([row for row in rows if isinstance(row, BadSample)], 3)}"
        raise FormatError(f"{folder}: no usable sample of format {format!r} {found}; {_HELP}")
    return rows, source.files
