"""Samples and predictions, and how they are read from tables and written to JSONL.

A manifest has one row per sample; docs/data-format.md describes its columns. Every error names file, line and id, what
was found, what was expected and what to do. Rows are never repaired or replaced. Texts are checked here, where samples
and predictions are made: what passes can be tokenized, stored and printed.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from affectgpt.runtime import MAX_TEXT, InputError, check_text, json_line, printable, write_lines_atomic
from affectgpt.tables import MANIFEST_SUFFIXES, NO_VALUE, TableError, cell_id, is_blank, is_table, stream_rows

log = logging.getLogger("affectgpt")

MODALITIES = ("audio", "frames", "motion", "face", "face_motion")
"""The modalities of a sample, in the order of their placeholders in the prompt: audio, frames and motion frames of the
full scene, frames and motion frames of aligned face crops."""

SLOTS = ("multi", *MODALITIES)
"""Soft-token branches of a model, in prompt order. ``multi`` is not a modality: a pre-fusion projector computes it from
the states of the others, and the processor of a model with such a projector adds its placeholder."""

PLACEHOLDERS = {name: f"<{name}>" for name in SLOTS}

CLUES = ("visual", "acoustic", "lexical")
"""What a statement about a clip can rest on: pictures, sound, words."""

TASKS = ("description", "labels", "both", "think", "fixed")
LANGUAGES = ("en", "zh")
PERSONS = ("speaker", "listener")
"""Whose emotion a sample is about, in a conversation of two."""
MANIFEST_HELP = "see docs/data-format.md"
FACE_ORDERS = ("bgr", "rgb")  # channel orders of face crop files
_TEXT_FIELDS = ("subtitle", "description", "labels", "label", "clauses")  # the fields of a translation
_PLAIN_LIST = re.compile(r"\['[^'\"\\]*'(?:, '[^'\"\\]*')*\]")
_BAD_ID = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]")


class ManifestError(InputError):
    """A manifest or some of its rows cannot be read; the message lists file:line, the problem and what to do."""


def check_id(value: object) -> str:
    """Return `value` if it is a valid sample id, else raise InputError.

    An id is a short string without slashes or control characters: it appears in rows and log lines, and a file named
    after it cannot be outside its folder.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"id must be a non-empty string, found {value!r}")
    if _BAD_ID.search(value) or value in (".", "..") or len(value) > 200 or value != value.strip():
        raise InputError(
            f"invalid id {value!r}: expected at most 200 characters, no slash, backslash or control character, and no "
            "leading or trailing space"
        )
    return value


def _check_texts(texts: Mapping[str, Any]) -> None:
    for name in ("subtitle", "description", "label", "question", "rejected"):
        if (text := texts.get(name)) and not (text.isascii() and len(text) <= MAX_TEXT):  # without a call, mostly
            check_text(text, name)
    for label in texts.get("labels") or ():
        if not label.isascii():
            check_text(label, "a label")


def _check_path(path: str) -> None:
    """Raise InputError if no file can have this path; names in another encoding than UTF-8 can (os.fsdecode)."""
    try:
        if b"\0" not in os.fsencode(path):
            return
    except UnicodeEncodeError:
        pass
    raise InputError(f"path {printable(path)!r} holds a character that no file name can have")


@dataclass(frozen=True)
class Clause:
    """One statement of a description.

    `modality` is "visual", "acoustic" or "lexical" for a clue, "mixed" for a statement that relates several, and
    "inference" for a conclusion. `needs` are the clue modalities that it rests on; a clue rests on its own. `labels`
    are those that a conclusion states, `evidence` the names of measured facts, `start_s` and `end_s` its time.

    Raises:
        InputError: an empty text, an unknown modality, or needs that do not fit the modality.
    """

    text: str
    modality: str
    needs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    start_s: float | None = None
    end_s: float | None = None
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise InputError(f"a clause has no text, found {self.text!r}")
        if self.modality not in CLAUSE_MODALITIES:
            raise InputError(
                f"clause {reprlib.repr(self.text)}: modality is {self.modality!r}, expected one of "
                f"{list(CLAUSE_MODALITIES)}"
            )
        needs = self.needs or ((self.modality,) if self.modality in CLUES else ())
        if set(needs) - set(CLUES) or (self.modality in CLUES and set(needs) != {self.modality}):
            raise InputError(
                f"clause {reprlib.repr(self.text)} of modality {self.modality!r}: needs {list(needs)}, expected "
                f"{[self.modality] if self.modality in CLUES else f'some of {list(CLUES)}'}"
            )
        object.__setattr__(self, "needs", tuple(needs))


CLAUSE_MODALITIES = (*CLUES, "mixed", "inference")


@dataclass(frozen=True)
class Sample:
    """One clip and its annotation.

    `video`, `audio` and `face` are paths; relative paths in a manifest are resolved against its folder. `audio` is a
    separate audio file and takes precedence over the audio track of the video; `face` is a .npy file of aligned face
    crops (uint8 [n,h,w,3], channels in `face_order`). `labels` are open-vocabulary words, `label` is one word of a
    fixed set. `clauses` are the statements of the description, if the data set provides them; None = divided by rules
    where they are needed. Texts are in `lang`; `translations` has the other languages. `modalities` are those that the
    media contain, set by probing; None = not probed yet. `question` takes the place of the question of task
    `description`, in the language of the sample: for sets in which each sample has its own, such as visual questions.
    `rejected` is another description in `lang`, which people like less. `person` says whose emotion the sample is about
    in a conversation of two, one of `PERSONS`: prompts ask about this person, and face crops show it; None = not told.
    The sound and the subtitle are those of the speaker.
    """

    id: str
    video: str | None = None
    audio: str | None = None
    face: str | None = None
    face_order: str = "bgr"
    subtitle: str | None = None
    description: str | None = None
    labels: tuple[str, ...] | None = None
    label: str | None = None
    clauses: tuple[Clause, ...] | None = None
    valence: float | None = None
    lang: str = "en"
    split: str | None = None
    translations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    modalities: tuple[str, ...] | None = None
    question: str | None = None
    rejected: str | None = None
    person: str | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        if self.person is not None and self.person not in PERSONS:
            raise InputError(f"person is {self.person!r}; expected one of {list(PERSONS)}")
        _check_texts(vars(self))
        for texts in self.translations.values():
            _check_texts(texts)
        for path in (self.video, self.audio, self.face):
            if path is not None and (not path.isascii() or "\0" in path):
                _check_path(path)

    def with_modalities(self, modalities: tuple[str, ...]) -> Sample:
        """A copy with these modalities; unlike `replace`, it does not check the id again, which is faster."""
        changed = copy.copy(self)
        object.__setattr__(changed, "modalities", modalities)
        return changed

    def in_language(self, lang: str, strict: bool = True) -> Sample:
        """The same sample with its texts in `lang`.

        Without a translation, `strict` raises InputError; otherwise the subtitle is kept in its own language, and
        description and labels are dropped.
        """
        if lang == self.lang:
            return self
        texts: dict[str, Any] = dict.fromkeys(_TEXT_FIELDS) | dict(self.translations.get(lang, {}))
        if strict and lang not in self.translations:
            have = sorted({self.lang, *self.translations})
            raise InputError(f"sample {self.id!r} has no texts in {lang!r}, only in {have}; {MANIFEST_HELP}")
        texts["subtitle"] = texts["subtitle"] or self.subtitle
        return replace(self, lang=lang, translations={}, question=None, rejected=None, **texts)


_COLUMNS = frozenset(item.name for item in fields(Sample))
_TRANSLATED = {f"{name}_{lang}": (name, lang) for lang in LANGUAGES for name in _TEXT_FIELDS}
_READABLE = _COLUMNS | _TRANSLATED.keys() | {"name"}


def hears_other(person: str | None) -> bool:
    """Whether the voice and the words of a sample about `person` are those of the other person of the conversation.

    >>> hears_other("listener"), hears_other("speaker"), hears_other(None)
    (True, False, False)
    """
    return person == "listener"


def true_labels(sample: Sample, lang: str = "en") -> tuple[str, ...]:
    """The labels that a prediction is scored against: the open-vocabulary labels, else the one-hot label."""
    texts = sample.in_language(lang)
    return texts.labels or ((texts.label,) if texts.label else ())


@dataclass(frozen=True)
class Prediction:
    """The output of a model for one sample: a row of predictions.jsonl.

    `labels` None = not parsed yet. `modalities` lists the inputs that were used (soft-token branches, and "text" for
    the subtitle); `media` has details such as frame times and seconds of audio. `finish` is "eos" or "length";
    `strategy` is the subtitle strategy of a zero-shot run (s0, s1, s2), `person` that of the sample. `unsupported`
    lists the sentences about a modality that the model was not shown, as {"sentence", "modality"}; `attribution` what
    each clause rests on, if asked for (see `inference.attribution`).
    """

    id: str
    text: str
    labels: tuple[str, ...] | None = None
    task: str = "both"
    lang: str = "en"
    modalities: tuple[str, ...] = ()
    subtitle: str | None = None
    media: Mapping[str, Any] = field(default_factory=dict)
    n_tokens: int | None = None
    finish: str | None = None
    model: str | None = None
    prompt_version: str | None = None
    strategy: str | None = None
    person: str | None = None
    unsupported: tuple[Mapping[str, str], ...] = ()
    attribution: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_id(self.id)
        check_text(self.text, "text")


@dataclass(frozen=True)
class BadSample:
    """A row or file that cannot be used, and the reason; listed in bad_samples.jsonl, never replaced by another."""

    id: str
    where: str
    reason: str

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value.isascii():
                object.__setattr__(self, name, printable(value))


def held_out(ids: Iterable[str], *, n: int, seed: int) -> set[str]:
    """The `n` ids with the smallest seeded hash: a split that depends on nothing else.

    >>> sorted(held_out(["a", "b", "c", "d"], n=2, seed=0)) == sorted(held_out(["d", "c", "b", "a"], n=2, seed=0))
    True
    """
    return set(sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:n])


def parse_label_list(value: object) -> tuple[str, ...] | None:
    """Parse a label cell: a list, or text such as `['a', 'b']`, `['a' 'b']`, `(a, b)`, `a, b`, `a|b`, `【开心，自豪】`.

    Returns:
        labels without duplicates; None for an empty cell, NaN, null, N/A and lists of these.

    Raises:
        InputError: numbers, nested lists, dictionaries or markup instead of words.

    >>> parse_label_list('["don\\'t know", "sad"]'), parse_label_list("[happy, calm]"), parse_label_list("")
    (("don't know", 'sad'), ('happy', 'calm'), None)
    """
    if is_blank(value):
        return None
    words: Iterable[Any]
    if isinstance(value, str):
        if _PLAIN_LIST.fullmatch(value):  # the most frequent form, and much faster
            words = value[2:-2].split("', '")
        else:
            words = _words_of_cell(value)
    elif isinstance(value, (list, tuple)):
        words = [word for word in value if not is_blank(word)]
    else:
        raise InputError(f"labels must be a list of words, found {reprlib.repr(value)}")
    if not all(isinstance(word, str) for word in words):
        raise InputError(f"labels must be a list of words, found {reprlib.repr(value)}")
    if sum(map(len, words)) > _MAX_CELL:
        raise InputError(f"labels must be a list of words, found {sum(map(len, words))} characters")
    labels = tuple(dict.fromkeys(label for word in words if (label := word.strip()).lower() not in _NO_LABEL))
    if odd := next((label for label in labels if _NOT_A_WORD.search(label)), None):
        raise InputError(
            f"labels must be a list of words, found {reprlib.repr(odd)} in {reprlib.repr(value)}; "
            "write a, b or ['a', 'b']"
        )
    return labels or None


_NO_LABEL = frozenset(word.lower() for word in NO_VALUE)
_NOT_A_WORD = re.compile(r"[\x00-\x1f\[\]{}<>|\"“”«»「」【】［］`\ud800-\udfff]|'\s+'|^[\d\s.,:%()e+*/-]+$")
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|“[^“”]*”|‘[^‘’]*’(?!\w)|「[^「」]*」|『[^『』]*』)"""
_BARE_NULL = r"(?:None|null|nan|NaN|<NA>)"
_QUOTED_LIST = re.compile(rf"(?:(?:{_QUOTED}|{_BARE_NULL}\b)(?:[\s,，;；、|]+|$|(?=['\"“「『])))*", re.DOTALL)
_QUOTED_ITEM = re.compile(_QUOTED, re.DOTALL)
_NUMPY_STRING = re.compile(rf"\b(?:np|numpy)\.str_\(({_QUOTED})\)|(?:^|(?<=[\s,;\[(]))[ub](?=['\"])", re.DOTALL)
_CONTAINER = re.compile(
    r"(?:np\.|numpy\.)?(?:array|list|set|frozenset|tuple|Index|dict_keys|dict_values)\((.*?)(?:,\s*dtype=[^()]*)?\)",
    re.DOTALL,
)
_PAIRS = ("[]", "()", "{}", "【】", "［］", "（）", "〔〕")
_SCORE = re.compile(r"\s*(?:[(（]\s*\d*\.?\d+\s*%?\s*[)）]|[:：=]\s*\d*\.?\d+\s*%?)$")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_BULLET = re.compile(r"^(?:[-•*]|\d{1,2}[.)、])\s+(?=\S)")
_OPENING = ("[", "(", "{", "【", "［", "（", "〔")
_MAX_CELL = 20_000  # characters


def _words_of_cell(cell: str) -> list[str]:
    text = _INVISIBLE.sub("", cell).strip()
    if len(text) > _MAX_CELL:
        raise InputError(f"labels must be a list of words, found a cell of {len(text)} characters")
    if match := _CONTAINER.fullmatch(text):
        text = match[1].strip()
    text = unwrap_brackets(text if text[:1] not in _OPENING else text.rstrip(".;,。；，"))
    if re.search(r"(?:^|[\s,'\"])\.\.\.(?:$|[\s,'\"])", text):
        raise InputError(f"labels are abbreviated by '...': {reprlib.repr(cell)}; export the complete list")
    if (words := quoted_items(text)) is not None:
        if len(words) == 1 and words[0][:1] in ("[", "【", "［") and words[0] != cell:  # quoted twice
            return _words_of_cell(words[0])
        return words
    parts = re.split(r"[,;，、；|｜\r\n\t]", text)
    return [_SCORE.sub("", _BULLET.sub("", part.strip())).strip("\"'“”‘’«»‹›") for part in parts]


def unwrap_brackets(text: str) -> str:
    """`text` without the pair of brackets around it, if it has one."""
    for opening, closing in map(tuple, _PAIRS):
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            inner = text[1:-1]
            if closing not in inner or -1 < inner.find(opening) < inner.find(closing):
                return inner.strip()
    return text


def quoted_items(text: str) -> list[str] | None:
    """The strings in `'a', "b"` or `'a' 'b'`, in any quotes, without null; None if `text` is anything else."""
    text = _NUMPY_STRING.sub(lambda match: match[1] or "", text.strip())
    if not text or not _QUOTED_LIST.fullmatch(text):
        return None
    return [_unescape(item[1:-1]) for item in _QUOTED_ITEM.findall(text)]


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(lambda m: (m[3] and {"n": "\n", "t": "\t"}.get(m[3], m[3])) or chr(int(m[1] or m[2], 16)), text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def sample_from_row(row: Mapping[str, Any], folder: Path | None = None) -> Sample:
    """Build a Sample from one JSON object or CSV row; relative media paths are resolved against `folder`.

    `name` is accepted for `id`; columns `<field>_zh` and `<field>_en` become translations. Unknown columns are an
    error, because a misspelt `subtitel` would otherwise be lost without notice. Empty cells are as `tables.is_blank`
    says, ids as `tables.cell_id`.
    """
    row = {key: value for key, value in row.items() if not is_blank(value)}
    if "name" in row and "id" not in row:
        row["id"] = row.pop("name")
    if "id" not in row:
        raise InputError(f"no id: expected a column or key 'id' (or 'name'), found {sorted(map(str, row))}")
    sample_id = check_id(cell_id(row["id"]))
    lang = row.get("lang", "en")
    if not isinstance(lang, str) or lang not in LANGUAGES:
        raise InputError(f"lang {lang!r} is not one of {list(LANGUAGES)}")
    translations = row.pop("translations", {})
    if not isinstance(translations, Mapping) or not all(isinstance(texts, Mapping) for texts in translations.values()):
        raise InputError(f"translations must map a language to texts, found {translations!r}")
    translations = {key: dict(texts) for key, texts in translations.items()}
    if not _TRANSLATED.keys().isdisjoint(row):
        for key, (name, other) in _TRANSLATED.items():
            if key in row:
                value = row.pop(key)
                if other == lang:
                    row.setdefault(name, value)
                else:
                    translations.setdefault(other, {})[name] = value
    if unknown := sorted(row.keys() - _COLUMNS):
        raise InputError(f"unknown columns {unknown}; expected some of {sorted(_COLUMNS)}")
    for texts in (row, *translations.values()):
        for name in _TEXT_FIELDS:
            if name == "labels":
                texts[name] = parse_label_list(texts.get(name))
            elif name == "clauses":
                if name in texts:
                    texts[name] = parse_clauses(texts[name])
            elif (text := texts.get(name)) is not None and not isinstance(text, str):
                raise InputError(f"{name} must be a string, found {reprlib.repr(text)}")
            elif text is not None and texts is not row and is_blank(text):
                texts[name] = None
    for language, texts in translations.items():
        if language not in LANGUAGES or set(texts) - set(_TEXT_FIELDS):
            raise InputError(f"translations: {language!r} with {sorted(texts)}; expected {_TEXT_FIELDS} by language")
    if (question := row.get("question")) is not None and not isinstance(question, str):
        raise InputError(f"question must be a string, found {reprlib.repr(question)}")
    if not isinstance(row.get("rejected", ""), str):
        raise InputError(f"rejected must be a string, found {reprlib.repr(row['rejected'])}")
    if "valence" in row:
        row["valence"] = finite(row["valence"])
    if "split" in row:
        row["split"] = check_text(cell_id(row["split"]), "split")
    if (order := row.get("face_order", "bgr")) not in list(FACE_ORDERS):
        raise InputError(f"face_order must be one of {list(FACE_ORDERS)}, found {reprlib.repr(order)}")
    for key in ("video", "audio", "face"):
        if (entry := row.get(key)) is not None:
            if not isinstance(entry, str):
                raise InputError(f"{key} must be a path, found {reprlib.repr(entry)}")
            row[key] = _below(folder, entry) if folder is not None else entry
    if "modalities" in row:
        row["modalities"] = tuple(parse_label_list(row["modalities"]) or ())
        if odd := set(row["modalities"]) - set(MODALITIES):
            raise InputError(f"modalities {sorted(odd)} unknown; expected some of {list(MODALITIES)}")
    if not (row.get("video") or row.get("audio") or row.get("face") or row.get("subtitle")):
        raise InputError("no video, audio, face or subtitle; give at least one")
    return Sample(**{**row, "id": sample_id, "lang": lang, "translations": translations})


def finite(value: object, name: str = "valence") -> float:
    """The number in a cell; InputError if it is none, infinite or not a number."""
    try:
        if math.isfinite(number := float(value)):  # type: ignore[arg-type]
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name} must be a number, found {reprlib.repr(value)}")


def parse_clauses(value: object) -> tuple[Clause, ...] | None:
    """The clauses of a JSON list of objects; None for an empty one."""
    if not value:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise InputError(f"clauses must be a list of objects, found {reprlib.repr(value)}")
    known = {item.name for item in fields(Clause)}
    found = []
    for item in value:
        if (unknown := sorted(map(str, set(item) - known))) or not {"text", "modality"} <= set(item):
            raise InputError(
                f"a clause has the keys {sorted(map(str, item))}{f' (unknown: {unknown})' if unknown else ''}; "
                f"expected text, modality and some of {sorted(known - {'text', 'modality'})}"
            )
        try:
            checked = _clause_lists(item) | _clause_times(item)
        except InputError as error:
            raise InputError(f"clause {reprlib.repr(item['text'])}: {error}") from None
        found.append(Clause(**{**item, **checked}))
    return tuple(found)


def _clause_lists(item: Mapping[str, Any]) -> dict[str, Any]:
    lists = {"labels": parse_label_list(item.get("labels")) or ()}
    for key in ("needs", "evidence"):
        words = () if is_blank(item.get(key)) else item[key]
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise InputError(f"{key} must be a list of words, found {reprlib.repr(words)}")
        lists[key] = tuple(words)
    return lists


def _clause_times(item: Mapping[str, Any]) -> dict[str, Any]:
    """Its start and end in seconds."""
    times = {key: None if item.get(key) is None else finite(item[key], key) for key in ("start_s", "end_s")}
    start_s, end_s = times["start_s"] or 0.0, times["end_s"]
    if start_s < 0 or (end_s is not None and end_s < start_s):
        raise InputError(f"the time is {times['start_s']} to {end_s} s; expected 0 <= start_s <= end_s")
    return times


def _below(folder: Path, entry: str) -> str:
    """`str(folder / entry)`, without constructing a Path for simple entries: the slowest part of reading a row."""
    text = str(folder)
    if entry[:1] == "." or "//" in entry or "/." in entry or entry[-1:] == "/" or os.sep != "/" or text == ".":
        return str(folder / entry)
    return entry if entry[0] == "/" else f"{text.rstrip('/')}/{entry}"


def read_samples(
    path: str | os.PathLike[str], *, on_bad: str = "raise", columns: Mapping[str, str] | None = None
) -> tuple[list[Sample], list[BadSample]]:
    """Read the samples of a manifest, in file order.

    Args:
        on_bad: "raise" raises one ManifestError that lists the bad rows (at most 20); "skip" returns them.
        columns: as of `stream_samples`.

    Returns:
        samples and bad rows.
    """
    path = Path(path)
    if on_bad not in ("raise", "skip"):
        raise InputError(f"on_bad is {on_bad!r}; expected 'raise' or 'skip'")
    samples: list[Sample] = []
    bad: list[BadSample] = []
    for item in stream_samples(path, columns=columns):
        if isinstance(item, Sample):
            samples.append(item)
        else:
            bad.append(item)
    if bad and on_bad == "raise":
        raise bad_rows_error(bad)
    if not samples:
        raise ManifestError(f"{path}: no usable sample ({len(bad)} bad rows){listed(bad, 3)}\n{MANIFEST_HELP}")
    return samples, bad


def bad_rows_error(bad: Sequence[BadSample]) -> ManifestError:
    """The error that lists the bad rows (at most 20) of a manifest or data set."""
    return ManifestError(
        f"{listed(bad, 20).strip()}\n{len(bad)} bad rows; fix them, or leave them out with on_bad=skip; {MANIFEST_HELP}"
    )


def listed(bad: Sequence[BadSample], n: int) -> str:
    """The first n of `bad` with place, id and reason, each on a line of its own after a line break."""
    lines = [f"{row.where}: sample {row.id!r}: {row.reason}" for row in bad[:n]]
    if len(bad) > n:
        lines.append(f"... and {len(bad) - n} more")
    return "".join(f"\n{line}" for line in lines)


class SeenIds(Protocol):
    """Maps an id to its first line; a dict, or an index on disk if the ids do not fit in memory."""

    def setdefault(self, key: str, default: int, /) -> int: ...


def stream_samples(
    path: str | os.PathLike[str], seen: SeenIds | None = None, columns: Mapping[str, str] | None = None
) -> Iterator[Sample | BadSample]:
    """Iterate over the rows of a manifest in file order: samples, and rows that cannot be used.

    Args:
        columns: our name -> the name in the file; then columns that are neither named here nor ours are left out, and
            the log lists them.

    Raises:
        ManifestError: the file does not exist, cannot be read, is not UTF-8, or is no table.
    """
    path, seen = Path(path), {} if seen is None else seen
    if odd := sorted(set(columns or ()) - _READABLE):
        raise InputError(f"columns= names {odd}; expected some of {sorted(_READABLE)}, each with its name in the file")
    left_out: dict[str, None] = {}
    for line_no, row in _rows(path, columns):
        sample_id = str(row.get("id", row.get("name", "?"))) if isinstance(row, Mapping) else "?"
        try:
            if isinstance(row, InputError):
                raise row
            if columns:
                left_out |= dict.fromkeys(name for name in row if name not in _READABLE)
                row = {name: value for name, value in row.items() if name in _READABLE}
            sample = sample_from_row(row, path.parent)
            if (first := seen.setdefault(sample.id, line_no)) != line_no:
                raise InputError(f"the id is already used in line {first}; ids must be unique")
        except InputError as error:
            yield BadSample(sample_id, f"{path}:{line_no}", str(error))
            continue
        yield sample
    if left_out:
        log.info("%s: left out the columns %s, which columns= does not name", path, list(left_out))


def _rows(path: Path, columns: Mapping[str, str] | None) -> Iterator[tuple[Any, Mapping[str, Any] | InputError]]:
    if not is_table(path):
        raise ManifestError(f"{path}: expected a manifest ({' '.join(MANIFEST_SUFFIXES)}); {MANIFEST_HELP}")
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest file; {MANIFEST_HELP}")
    try:
        yield from stream_rows(path, known=_READABLE, columns=columns)
    except TableError as error:
        raise ManifestError(f"{error}; {MANIFEST_HELP}") from error.__cause__


def to_row(item: Sample | Prediction | BadSample) -> dict[str, Any]:
    """The fields that are set."""
    row = {key: value for key, value in vars(item).items() if value not in (None, {}, ())}
    if isinstance(item, Sample):
        if item.face is None:
            row.pop("face_order", None)
        if item.clauses:
            row["clauses"] = _clause_rows(item.clauses)
        if any("clauses" in texts for texts in item.translations.values()):
            row["translations"] = {
                lang: {
                    key: _clause_rows(value) if key == "clauses" and value else value for key, value in texts.items()
                }
                for lang, texts in item.translations.items()
            }
    return row


def _clause_rows(clauses: Iterable[Clause]) -> list[dict[str, Any]]:
    """JSON objects without what follows from the modality."""
    rows = []
    for clause in clauses:
        row = {key: value for key, value in vars(clause).items() if value not in (None, ())}
        if clause.modality in CLUES:
            row.pop("needs")
        rows.append(row)
    return rows


def to_json(item: Sample | Prediction | BadSample) -> str:
    """One line of JSON without the unset fields."""
    return json_line(to_row(item))


def write_jsonl(path: str | os.PathLike[str], items: Iterable[Sample | Prediction | BadSample]) -> None:
    """Write one line per item, atomically."""
    write_lines_atomic(Path(path), map(to_json, items))


def prediction_from_row(row: Mapping[str, Any]) -> Prediction:
    """Build a Prediction from one JSON object; unknown keys of other systems are ignored."""
    known = {item.name for item in fields(Prediction)}
    values = {key: value for key, value in row.items() if key in known and value is not None}
    if "id" not in values:
        raise InputError(f"a prediction without id, found {sorted(map(str, row))}; expected id and text")
    if not isinstance(values.get("text"), str):
        raise InputError(f"prediction {row['id']!r}: text must be a string, found {row.get('text')!r}")
    if not isinstance(values.get("media", {}), Mapping):
        raise InputError(f"prediction {row['id']!r}: media must be an object, found {row['media']!r}")
    for key in ("labels", "modalities", "unsupported", "attribution"):
        if key in values:
            if not isinstance(values[key], (list, tuple)):
                raise InputError(f"prediction {row['id']!r}: {key} must be a list, found {values[key]!r}")
            if key in ("labels", "modalities") and not all(isinstance(word, str) for word in values[key]):
                raise InputError(f"prediction {row['id']!r}: {key} must be a list of words, found {values[key]!r}")
            values[key] = tuple(values[key])
    return Prediction(**values)
