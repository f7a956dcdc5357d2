"""Data sets in the layouts in which they are published: one function a format, from a folder to samples.

A reader takes a `Folder` and the format's own options, and yields a `Sample` for each row it can use and a `BadSample`
for each that it cannot. Texts of several files are joined by name. Media lie in the published places below the folder:
`video/<name>.mp4` (or another suffix), `audio/<name>.wav`, `openface_face/<name>/<name>.npy`.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affectgpt.data.splits import hold_out
from affectgpt.runtime import InputError
from affectgpt.schema import FACE_ORDERS, BadSample, Sample, check_id, parse_label_list, read_samples
from affectgpt.tables import TableError, id_of, read_names, read_rows, trusted_object

log = logging.getLogger("affectgpt")

HELP = "see docs/data-sets.md"
VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v")
SOUND_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a", ".ogg")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

EMER_TEST_SHARE = 66 / 332
"""EMER-Fine has 266 training and 66 test samples."""

Rows = Iterator[Sample | BadSample]


class FormatError(InputError):
    """A data set is not in the format that it is said to be in; the message names file, found and expected."""


@dataclass
class Folder:
    """A data set's folder: where its media lie, and which of its tables were read.

    Attributes:
        video, audio, faces: subfolders of the media ("." = the folder itself); one that is not there holds nothing.
        face_order: channel order of the face crops, bgr or rgb.
        files: tables that were read, for the record of a run.
    """

    path: Path
    video: str = "video"
    audio: str = "audio"
    faces: str = "openface_face"
    face_order: str = "bgr"
    files: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.face_order not in FACE_ORDERS:
            raise FormatError(f"face_order must be one of {list(FACE_ORDERS)}, found {self.face_order!r}")

    def file(self, name: str) -> Path:
        """A table of the data set that must be there; noted as read."""
        path = self.path / name
        if not path.is_file():
            near = sorted(item.name for item in self.path.glob("*") if item.suffix in (".csv", ".json", ".txt", ".npz"))
            raise FormatError(f"{path}: no such file; the folder holds {near[:12]}; name yours with an option; {HELP}")
        self.files.append(path)
        return path

    def rows(self, name: str, *columns: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file:line, row) of a table that must be there and have `columns`."""
        path = self.file(name)
        for where, row in read_rows(path):
            if missing := [column for column in columns if column not in row]:
                raise FormatError(f"{where}: no column {missing[0]!r}, found {sorted(map(str, row))}; {HELP}")
            yield where, row

    def by_name(self, name: str, *columns: str) -> dict[str, dict[str, Any]]:
        """Rows of a table by their name, for joining; {} if `name` is empty or no such file is there."""
        if not name or not (self.path / name).is_file():
            return {}
        found: dict[str, dict[str, Any]] = {}
        for where, row in self.rows(name, *columns):
            key = id_of(row, where)
            if key in found:
                raise FormatError(f"{where}: name {key!r} stands twice; names must be unique to be joined")
            found[key] = row
        log.info("%s: %d rows joined by name", self.path / name, len(found))
        return found

    def media(self, name: str) -> dict[str, Any]:
        """Media fields of a sample; a video that is not there keeps its path, and fails when it is looked at."""
        found: dict[str, Any] = {}
        videos, sounds = self._listing[0].get(name, []), self._listing[1].get(name, [])
        for files in (videos, sounds):
            if len(files) > 1:
                raise InputError(f"{len(files)} files are named so: {files}; keep one")
        if sounds:
            found["audio"] = sounds[0]
        if videos or self._listing[0] or not sounds:
            found["video"] = videos[0] if videos else str(self.path / self.video / f"{name}.mp4")
        if name in self._listing[2]:
            found |= {"face": str(self.path / self.faces / name / f"{name}.npy"), "face_order": self.face_order}
        return found

    @functools.cached_property
    def _listing(self) -> tuple[dict[str, list[str]], dict[str, list[str]], frozenset[str]]:
        """Videos and sounds by name, and names with face crops: one listing a folder is quicker than many questions."""
        videos = _by_stem(self.path / self.video, (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
        sounds = _by_stem(self.path / self.audio, SOUND_SUFFIXES)
        faces = self.path / self.faces
        if not videos and not sounds:
            inside = sorted(item.name for item in self.path.glob("*") if item.is_dir())
            raise FormatError(
                f"{self.path}: no clip in {self.video!r} and no sound in {self.audio!r}; it has folders {inside[:12]}; "
                f"say where the media lie with options: {{video: ..., audio: ...}} ('.' = beside the tables); {HELP}"
            )
        return videos, sounds, frozenset(os.listdir(faces) if faces.is_dir() else ())


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
    """Two descriptions of one clip, and which of them people prefer: "a1", "a2" or "same"."""

    id: str
    a1: str
    a2: str
    preference: str
    video: str | None = None
    audio: str | None = None


def _text(value: object) -> str | None:
    """A text cell; empty and NaN are no text."""
    text = str(value).strip() if value is not None else ""
    return None if not text or text.lower() == "nan" else text


def _sample(folder: Folder, where: str, name: str, **texts: Any) -> Sample | BadSample:
    """A sample with its media; what is wrong with the row is returned, not raised."""
    try:
        labels = parse_label_list(texts.pop("labels", None))
        given = {key: value for key, value in texts.items() if value is not None}
        return Sample(id=name, labels=labels, **folder.media(name), **given)
    except FormatError:
        raise
    except ValueError as error:
        return BadSample(name, where, str(error))


class Subtitles:
    """Subtitles by name: `name, chinese, english` (subtitle_chieng.csv) or `name, sentence` (transcription_en_all.csv).

    What is said is one thing in two languages: where one is missing, the other stands in.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._rows = folder.by_name(name)

    def of(self, name: str, own: str | None = None) -> tuple[str | None, str | None]:
        """(English or what there is, Chinese); `own` is a subtitle that the row itself has."""
        row = self._rows.get(name, {})
        english = _text(row.get("english")) or _text(row.get("sentence")) or own
        chinese = _text(row.get("chinese"))
        return english or chinese, chinese


def _with_split(rows: Rows, test_share: float) -> Rows:
    """`split` train or test by a seeded hash of the id: this project's own split, where the published one is a list."""
    known = list(rows)
    samples = [row for row in known if isinstance(row, Sample)]
    n_test = round(len(samples) * test_share)
    test = {sample.id for sample in hold_out(samples, n=n_test, seed=0)[1]} if n_test < len(samples) else set()
    for row in known:
        yield replace(row, split="test" if row.id in test else "train") if isinstance(row, Sample) else row


def _translation(**texts: Any) -> dict[str, Any] | None:
    """`translations` with Chinese texts, or None if there are none."""
    chinese = {key: value for key, value in texts.items() if value is not None}
    return {"zh": chinese} if chinese else None


# ---- formats ---------------------------------------------------------------------------------------------------------


def manifest(folder: Folder, *, file: str = "manifest.jsonl") -> Rows:
    """our own: one JSONL or CSV file, columns as in docs/data-format.md"""
    samples, bad = read_samples(folder.file(file), on_bad="skip")
    yield from samples
    yield from bad


def emer_v1(folder: Folder, *, english: str = "gt-eng.csv", chinese: str = "gt-chi.csv") -> Rows:
    """EMER-V1 (100 clips): gt-eng.csv and gt-chi.csv with names, emotions, subtitles, reasons"""
    columns = ("names", "emotions", "subtitles", "reasons")
    others = folder.by_name(chinese, *columns)
    for where, row in folder.rows(english, *columns):
        name = id_of(row, where)
        other = others.get(name, {})
        yield _sample(
            folder,
            where,
            name,
            subtitle=_text(row["subtitles"]) or _text(other.get("subtitles")),
            description=_text(row["reasons"]),
            labels=row["emotions"],
            translations=_translation(
                subtitle=_text(other.get("subtitles")),
                description=_text(other.get("reasons")),
                labels=parse_label_list(other.get("emotions")),
            ),
        )


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
    openset, said = folder.by_name(labels, "openset"), Subtitles(folder, subtitles)
    for where, row in folder.rows(descriptions, "english", "chinese"):
        name = id_of(row, where)
        english, chinese = said.of(name)
        yield _sample(
            folder,
            where,
            name,
            subtitle=english,
            description=_text(row["english"]),
            labels=openset.get(name, {}).get("openset"),
            translations=_translation(subtitle=chinese, description=_text(row["chinese"])),
        )


def mer_openset(folder: Folder, *, labels: str, descriptions: str = "", subtitles: str = "subtitle_chieng.csv") -> Rows:
    """any table name, openset (OV labels), joined with one of name, reason and with subtitles"""
    reasons, said = folder.by_name(descriptions, "reason"), Subtitles(folder, subtitles)
    seen = set()
    for where, row in folder.rows(labels, "openset"):
        name = id_of(row, where)
        seen.add(name)
        yield _openset_sample(folder, where, name, row["openset"], reasons.get(name, {}).get("reason"), said)
    for name in [name for name in reasons if name not in seen]:  # described, but without labels
        yield _openset_sample(folder, str(folder.path / descriptions), name, None, reasons[name]["reason"], said)


def _openset_sample(
    folder: Folder, where: str, name: str, openset: Any, reason: Any, said: Subtitles
) -> Sample | BadSample:
    english, chinese = said.of(name)
    return _sample(
        folder,
        where,
        name,
        subtitle=english,
        description=_text(reason),
        labels=openset,
        translations=_translation(subtitle=chinese),
    )


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


def mer_onehot(folder: Folder, *, labels: str = "track1_train.csv", subtitles: str = "subtitle_chieng.csv") -> Rows:
    """one-hot emotions: track1_train.csv with name, discrete (task fixed)"""
    said = Subtitles(folder, subtitles)
    for where, row in folder.rows(labels, "discrete"):
        name = id_of(row, where)
        english, chinese = said.of(name)
        yield _sample(
            folder,
            where,
            name,
            subtitle=english,
            label=_text(row["discrete"]),
            translations=_translation(subtitle=chinese),
        )


def candidates(
    folder: Folder, *, names: str = "track_all_candidates.csv", subtitles: str = "subtitle_chieng.csv"
) -> Rows:
    """clips to predict, without truth: track_all_candidates.csv, track1_track2_candidate.csv (name)"""
    said = Subtitles(folder, subtitles)
    for name in read_names(folder.file(names)):
        english, chinese = said.of(name)
        yield _sample(folder, names, name, subtitle=english, translations=_translation(subtitle=chinese))


def merr(
    folder: Folder,
    *,
    file: str = "MERR_fine_grained.json",
    index: str | None = None,
    subtitles: str = "transcription_en_all.csv",
) -> Rows:
    """MERR: MERR_fine_grained.json or MERR_coarse_grained.json, its index .txt and subtitles where they are there"""
    entries = _json(folder.file(file), dict)
    index = str(Path(file).with_suffix(".txt")) if index is None else index
    known = _merr_index(folder, index) if index and (folder.path / index).is_file() else {}
    said = Subtitles(folder, subtitles)
    if unused := len(set(known) - set(entries)):
        log.warning("%s: %d of its names are not in %s and are left out", folder.path / index, unused, file)
    for name, entry in entries.items():
        where = str(folder.path / file)
        if not isinstance(entry, dict):
            yield BadSample(name, where, f"expected an object of facts, found {type(entry).__name__}")
            continue
        emotion, valence = known.get(name, (_text(entry.get("pseu_emotion")), None))
        english, chinese = said.of(name, _text(entry.get("text")))
        yield _sample(
            folder,
            where,
            name,
            subtitle=english,
            description=_text(entry.get("smp_reason_caption")) or _text(entry.get("caption")),
            label=emotion,
            valence=valence,
            translations=_translation(subtitle=chinese),
        )


def merr_index(folder: Folder, *, file: str, subtitles: str = "transcription_en_all.csv") -> Rows:
    """an index of MERR or MER2023 alone: lines of name n_frames emotion [valence], such as relative_test3_NCEV.txt"""
    said = Subtitles(folder, subtitles)
    for name, (emotion, valence) in _merr_index(folder, file).items():
        english, _ = said.of(name)
        yield _sample(folder, str(folder.path / file), name, subtitle=english, label=emotion, valence=valence)


def _merr_index(folder: Folder, file: str) -> dict[str, tuple[str, float | None]]:
    """name -> (emotion, valence); -10 stands for no valence."""
    path = folder.file(file)
    found: dict[str, tuple[str, float | None]] = {}
    for line_no, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        try:
            name, _, emotion, *rest = cells
            valence = float(rest[0]) if rest else None
        except (ValueError, IndexError):
            raise FormatError(f"{path}:{line_no}: expected 'name n_frames emotion valence', found {line!r}") from None
        if name in found:
            raise FormatError(f"{path}:{line_no}: name {name!r} stands twice; names must be unique")
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
    """label.npz of MERBench (pickled: trust_pickle says that you trust it); classes names numbered emotions"""
    corpus = trusted_object(folder.file(file), array, trust_pickle=trust_pickle, say="options: {trust_pickle: true}")
    said = Subtitles(folder, subtitles)
    for name, entry in corpus.items():
        emotion, valence = entry.get("emo"), entry.get("val")
        if isinstance(emotion, int) or hasattr(emotion, "item"):
            number = int(emotion)
            if not 0 <= number < len(classes):
                raise FormatError(
                    f"{folder.path / file}: {name!r} has emotion number {number}, and classes= names {len(classes)}; "
                    f"say options: {{classes: [neutral, angry, ...]}} in the order of the numbers"
                )
            emotion = classes[number]
        english, chinese = said.of(str(name))
        yield _sample(
            folder,
            str(folder.path / file),
            str(name),
            subtitle=english,
            label=_text(emotion),
            valence=None if valence in (None, "") else float(valence),
            translations=_translation(subtitle=chinese),
        )


def llava(folder: Folder, *, file: str, answer: str = "description") -> Rows:
    """a LLaVA or ShareGPT list: image / video and conversations; the first answer becomes answer= (or labels, label)

    The questions are not kept, since prompts are our own; later turns are left out and counted.
    """
    if answer not in ("description", "labels", "label"):
        raise FormatError(f"answer must be description, labels or label, found {answer!r}")
    path = folder.file(file)
    entries = [row for _, row in read_rows(path)] if path.suffix == ".jsonl" else _json(path, list)
    n_left_out, doubled = 0, _doubled_stems(entries)
    for number, entry in enumerate(entries):
        where = f"{path}[{number}]"
        medium = _first_medium(entry)
        name = str(
            entry.get("id") or (medium and (medium if Path(medium).stem in doubled else Path(medium).stem)) or "?"
        )
        name = name.replace("/", "_")
        try:
            answers = _answers(entry)
            n_left_out += len(answers) - 1
            value = parse_label_list(answers[0]) if answer == "labels" else answers[0].strip()
            if medium is None:
                raise InputError(f"no image or video, found {sorted(entry)}")
            yield Sample(id=name, **_medium_field(folder.path, medium), **{answer: value})
        except ValueError as error:
            yield BadSample(name, where, str(error))
    if n_left_out:
        log.warning("%s: %d further turns of the conversations are left out; the first answer counts", path, n_left_out)


def _first_medium(entry: Mapping[str, Any]) -> str | None:
    for key in ("video", "videos", "image", "images"):
        value = entry.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, str) and value:
            return value
    return None


def _doubled_stems(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """File names without suffix that several files share, which therefore cannot be ids."""
    seen: dict[str, str] = {}
    doubled = set()
    for medium in filter(None, map(_first_medium, entries)):
        if seen.setdefault(Path(medium).stem, medium) != medium:
            doubled.add(Path(medium).stem)
    return doubled


def _medium_field(folder: Path, medium: str) -> dict[str, str]:
    """A listed path below the folder; one that leads out of it is refused."""
    path = Path(medium)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"path {medium!r} leads out of the data set's folder; write it relative to the folder")
    return {"audio" if path.suffix.lower() in SOUND_SUFFIXES else "video": str(folder / path)}


def _answers(entry: Mapping[str, Any]) -> list[str]:
    turns = entry.get("conversations") or entry.get("messages") or []
    found = [
        turn.get("value", turn.get("content"))
        for turn in turns
        if turn.get("from", turn.get("role")) in ("gpt", "assistant")
    ]
    if not found or not all(isinstance(text, str) for text in found):
        raise InputError("conversations hold no answer (from: gpt, value: text)")
    return found


def predictions(
    folder: Folder,
    *,
    file: str,
    array: str = "name2reason",
    trust_pickle: bool = False,
    subtitles: str = "subtitle_chieng.csv",
) -> Rows:
    """what a model wrote, as training data: csv, our JSONL, *-openset.npz, name2reason npz (pickled: trust_pickle)"""
    path = folder.file(file)
    rows: Iterable[tuple[str, dict[str, Any]]]
    if path.suffix == ".npz" and array in _arrays(path):
        found = trusted_object(path, array, trust_pickle=trust_pickle, say="options: {trust_pickle: true}")
        rows = [(f"{path}[{name}]", {"name": name, "reason": reason}) for name, reason in found.items()]
    else:
        rows = read_rows(path)
    said = Subtitles(folder, subtitles)
    for where, row in rows:
        labels = row.get("labels") or row.get("openset")
        text = _text(row.get("text") or row.get("reason") or row.get("description"))
        yield _openset_sample(folder, where, id_of(row, where), labels, text, said)


def _arrays(path: Path) -> list[str]:
    import numpy as np

    with np.load(path, allow_pickle=False) as data:
        return list(data.files)


def read_preferences(folder: Folder, *, file: str = "track3_emoprefer.csv") -> Iterator[Preference | BadSample]:
    """pairs of descriptions: track3_emoprefer*.csv with name, a1, a2, preference (a1, a2, same / tie)"""
    for where, row in folder.rows(file, "a1", "a2", "preference"):
        name = id_of(row, where)
        choice = {"tie": "same"}.get(value := str(row["preference"]).strip().lower(), value)
        a1, a2 = _text(row["a1"]), _text(row["a2"])
        try:
            if choice not in ("a1", "a2", "same"):
                raise InputError(f"preference is {row['preference']!r}; expected a1, a2 or same")
            if a1 is None or a2 is None:
                raise InputError("a1 or a2 is empty; a pair needs both descriptions")
            media = folder.media(check_id(name))
            yield Preference(name, a1, a2, choice, media.get("video"), media.get("audio"))
        except FormatError:
            raise
        except ValueError as error:
            yield BadSample(name, where, str(error))


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, kind):
        expected = "an object by name" if kind is dict else "a list"
        raise FormatError(f"{path}: expected {expected}, found {type(value).__name__}; {HELP}")
    return value


FORMATS: dict[str, Callable[..., Rows]] = {
    "manifest": manifest,
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
    "llava": llava,
    "sharegpt": llava,
    "predictions": predictions,
}
PREFERENCE = "preference"
_FOLDER_OPTIONS = ("video", "audio", "faces", "face_order")


def options_of(format: str) -> dict[str, Any]:
    """Option -> default of a format; `inspect.Parameter.empty` = must be given."""
    reader = read_preferences if format == PREFERENCE else FORMATS[format]
    own = {key: item.default for key, item in inspect.signature(reader).parameters.items() if key != "folder"}
    return own | {key: getattr(Folder, key) for key in _FOLDER_OPTIONS}


def open_folder(format: str, folder: Path, options: Mapping[str, Any]) -> tuple[Folder, dict[str, Any]]:
    """The folder, and the options that are the reader's own.

    Raises:
        FormatError: unknown format or option, no such folder, an option that must be given.
    """
    if format not in (*FORMATS, PREFERENCE):
        raise FormatError(f"unknown format {format!r}; expected one of {[*FORMATS, PREFERENCE]}")
    known = options_of(format)
    if odd := sorted(set(options) - set(known)):
        raise FormatError(f"format {format!r} has no option {odd[0]!r}; its options are {sorted(known)}")
    if lacking := [key for key, default in known.items() if default is inspect.Parameter.empty and key not in options]:
        raise FormatError(f"format {format!r} needs options: {{{lacking[0]}: ...}}; {HELP}")
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such folder; say where the data set lies (folder=, data.folder= in training)")
    place = Folder(folder, **{key: options[key] for key in _FOLDER_OPTIONS if key in options})
    return place, {key: value for key, value in options.items() if key not in _FOLDER_OPTIONS}


def read_format(format: str, folder: Path, options: Mapping[str, Any]) -> tuple[list[Sample | BadSample], list[Path]]:
    """All rows of a data set in file order, a second row of an id as bad, and the tables that were read."""
    place, own = open_folder(format, folder, options)
    rows: list[Sample | BadSample] = []
    seen: set[str] = set()
    try:
        for row in FORMATS[format](place, **own):
            if isinstance(row, Sample) and row.id in seen:
                row = BadSample(row.id, str(place.files[0]), "the id stands in an earlier row; ids must be unique")
            seen.add(row.id)
            rows.append(row)
    except TableError as error:
        raise FormatError(f"{error}; {HELP}") from None
    if not any(isinstance(row, Sample) for row in rows):
        raise FormatError(f"{folder}: no usable sample of format {format!r} in {list(map(str, place.files))}; {HELP}")
    return rows, place.files
