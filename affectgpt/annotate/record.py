"""The record of one annotated clip, with provenance; its schema is checked on every write and read.

Each line of records.jsonl is one record. A clue is one thing that was seen, heard or said. `evidence` holds all
measurements: a clue must not refer to others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from affectgpt.prompts import whose
from affectgpt.runtime import InputError, check_text, parse_json
from affectgpt.schema import LANGUAGES, PERSONS, Sample, check_id

CLUE_MODALITIES = ("visual", "acoustic", "lexical")
VALENCE = (-5.0, 5.0)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"\bAU ?(\d{1,2})\b")


class RecordError(InputError):
    """A record that violates its schema; the message names id and field, what was found and what was expected."""


@dataclass(frozen=True)
class Fact:
    """One measured number; `name` is the quantity ("pitch_hz", "AU12"), `start_s` and `end_s` its interval."""

    name: str
    modality: str
    value: float
    unit: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Clue:
    """One thing seen ("visual"), heard ("acoustic") or said ("lexical"), in words.

    `source` is the model that wrote it; `evidence` are the names of the facts that support it.
    """

    modality: str
    text: str
    start_s: float | None = None
    end_s: float | None = None
    source: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """One execution of a step; a step whose answer was repaired has two. Local steps use no tokens."""

    step: str
    model: str
    prompt_version: str | None = None
    prompt_sha256: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Annotation:
    """The annotation of one clip.

    Attributes:
        id, media_sha256: the clip; the hash is over its media files.
        key: hash of everything that the record was made from: media, pipeline, prompts, models.
        media: paths of "video", "audio", "face".
        person: whose emotion the record is about in a conversation of two (`Sample.person`); None = not told.
        transcript: what is said, in `lang`; None = unknown.
        labels: open-vocabulary emotion words; `ranking`: words of a fixed set, the best match first.
        description: language -> text.
        valence: -5 (most unpleasant) to 5, or None.
        confidence: 0 to 1 as stated by the annotator; not calibrated.
        evidence: measured facts.
        checks: findings of checks, as {"check", "verdict", "reason"}.
        given: what the clip's manifest already said: language -> {"labels", "label", "description"}, and "valence".
    """

    id: str
    media_sha256: str
    key: str = ""
    media: Mapping[str, str] = field(default_factory=dict)
    lang: str = "en"
    person: str | None = None
    transcript: str | None = None
    clues: tuple[Clue, ...] = ()
    labels: tuple[str, ...] = ()
    ranking: tuple[str, ...] = ()
    description: Mapping[str, str] = field(default_factory=dict)
    valence: float | None = None
    confidence: float | None = None
    evidence: tuple[Fact, ...] = ()
    checks: tuple[Mapping[str, str], ...] = ()
    provenance: tuple[Provenance, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)


def said_of(record: Annotation) -> str | None:
    """What people are shown of the transcript: whose emotion they are asked about, and what is said."""
    return f"{whose(record.person, record.lang)}{record.transcript or ''}".strip() or None


def given_of(sample: Sample) -> dict[str, Any]:
    """The labels, descriptions and valence that a sample has already, as `Annotation.given` holds them."""
    given: dict[str, Any] = {}
    for lang, texts in {sample.lang: vars(sample), **sample.translations}.items():
        own = {name: texts[name] for name in ("labels", "label", "description") if texts.get(name)}
        if own:
            given[lang] = {**own, "labels": list(own["labels"])} if "labels" in own else own
    return given if sample.valence is None else {**given, "valence": sample.valence}


def checked_record(record: Annotation) -> Annotation:
    """Return `record` if it follows its schema, else raise RecordError."""
    name = f"record {record.id!r}"
    try:
        check_id(record.id)
    except InputError as error:
        raise RecordError(f"{name}: {error}") from None
    _expect(bool(_SHA256.fullmatch(record.media_sha256)), name, "media_sha256", record.media_sha256, "64 hex digits")
    _expect(record.lang in LANGUAGES, name, "lang", record.lang, f"one of {list(LANGUAGES)}")
    _expect(set(record.description) <= set(LANGUAGES), name, "description", sorted(record.description), LANGUAGES)
    for text in (*record.description.values(), *record.labels, *record.ranking):
        _expect(isinstance(text, str) and bool(text.strip()), name, "texts", text, "a non-empty text")
        _unicode(name, "texts", text)
    _expect(record.person in (None, *PERSONS), name, "person", record.person, f"one of {list(PERSONS)}, or null")
    transcript = record.transcript
    _expect(transcript is None or isinstance(transcript, str), name, "transcript", transcript, "a text or null")
    _unicode(name, "transcript", transcript or "")
    for value, key, (low, high) in (
        (record.valence, "valence", VALENCE),
        (record.confidence, "confidence", (0.0, 1.0)),
    ):
        _expect(value is None or (_number(value) and low <= value <= high), name, key, value, f"{low:g} to {high:g}")
    _expect(set(record.given) <= {*LANGUAGES, "valence"}, name, "given", sorted(record.given), LANGUAGES)
    measured = {fact.name for fact in record.evidence}
    for fact in record.evidence:
        _expect(
            fact.modality in CLUE_MODALITIES, name, f"evidence {fact.name}", fact.modality, f"one of {CLUE_MODALITIES}"
        )
        _expect(_number(fact.value), name, f"evidence {fact.name}", fact.value, "a number")
    for clue in record.clues:
        _expect(
            clue.modality in CLUE_MODALITIES, name, "clue modality", clue.modality, f"one of {list(CLUE_MODALITIES)}"
        )
        _expect(
            isinstance(clue.text, str) and bool(clue.text.strip()), name, "clue text", clue.text, "a non-empty text"
        )
        _unicode(name, "clue text", clue.text)
        _expect(bool(clue.source), name, "clue source", clue.source, "the name of a model")
        start, end = clue.start_s, clue.end_s
        is_interval = start is end is None or (_number(start) and _number(end) and 0 <= (start or 0) <= (end or 0))
        _expect(is_interval, name, "clue start_s and end_s", (start, end), "0 <= start_s <= end_s, or both null")
        _expect(
            set(clue.evidence) <= measured,
            name,
            "clue evidence",
            sorted(set(clue.evidence) - measured),
            "measured facts",
        )
        claimed = {f"AU{int(number):02d}" for number in _UNIT.findall(clue.text)} - measured
        _expect(not claimed, name, "clue text", sorted(claimed), "action units that were measured")
    for row in record.checks:
        _expect(set(row) >= {"check", "verdict"}, name, "checks", dict(row), "keys check, verdict, reason")
        _unicode(name, "checks", *map(str, row.values()))
    for step in record.provenance:
        counts = (step.tokens_in, step.tokens_out)
        _expect(all(isinstance(n, int) and n >= 0 for n in counts), name, f"tokens of {step.step}", counts, "counts")
    return record


class _HalfPair(RecordError):
    """A text holds half of a surrogate pair."""


def _expect(condition: bool, record: str, key: str, found: Any, expected: Any) -> None:
    if not condition:
        raise RecordError(f"{record}: {key}: found {found!r}, expected {expected}")


def _unicode(record: str, key: str, *texts: str) -> None:
    for text in texts:
        try:
            check_text(text, f"{record}: {key}")
        except InputError as error:
            raise _HalfPair(str(error)) from None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


_NESTED = {"clues": Clue, "evidence": Fact, "provenance": Provenance}


def record_to_row(record: Annotation) -> dict[str, Any]:
    """The JSON object of a record, `key` first; raises RecordError if the record violates its schema."""
    row = dict(vars(checked_record(record)))
    for name in _NESTED:  # dataclasses.asdict would copy every number and text
        row[name] = [dict(vars(item)) for item in row[name]]
    if not row["given"]:
        del row["given"]
    return {"key": row.pop("key"), **row}


def record_from_row(row: Mapping[str, Any]) -> Annotation:
    """The record of a JSON object; unknown and missing keys are errors.

    Halves of surrogate pairs, which older versions stored as a model wrote them, are read as U+FFFD.

    Raises:
        RecordError: the object is no record.
    """
    try:
        return _record_of(row)
    except _HalfPair:
        return _record_of(_without_halves(row))


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, Mapping):
        return {key: _without_halves(item) for key, item in value.items()}
    return [_without_halves(item) for item in value] if isinstance(value, (list, tuple)) else value


def _record_of(row: Mapping[str, Any]) -> Annotation:
    name = f"record {row.get('id', '?')!r}" if isinstance(row, Mapping) else "record"
    values = _known(Annotation, row, name)
    for key, kind in _NESTED.items():
        items = values.get(key, ())
        _expect(isinstance(items, (list, tuple)), name, key, items, "a list")
        values[key] = tuple(kind(**_known(kind, item, f"{name}: {key}")) for item in items)
    for key in ("labels", "ranking", "checks"):
        _expect(isinstance(values.get(key, ()), (list, tuple)), name, key, values.get(key), "a list")
        values[key] = tuple(values.get(key, ()))
    values["clues"] = tuple(Clue(**{**vars(clue), "evidence": tuple(clue.evidence)}) for clue in values["clues"])
    return checked_record(Annotation(**values))


def _known(kind: type, row: Any, name: str) -> dict[str, Any]:
    _expect(isinstance(row, Mapping), name, kind.__name__, row, "an object")
    keys = {item.name for item in fields(kind)}
    required = {"Annotation": {"id", "media_sha256"}, "Clue": {"modality", "text", "source"}}.get(kind.__name__, set())
    if kind is Fact:
        required = {"name", "modality", "value", "unit"}
    wrong = sorted(set(row) - keys)
    _expect(not wrong, name, "keys", wrong, f"only {sorted(keys)}")
    _expect(required <= set(row), name, "keys", sorted(row), f"also {sorted(required - set(row))}")
    return dict(row)


def read_records(path: Path) -> Iterator[Annotation]:
    """The records of a JSONL file in its order; errors name file and line."""
    with path.open("rb") as file:
        for line_no, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except InputError as error:  # not UTF-8, or not JSON
                raise RecordError(f"{path}:{line_no}: {error}") from None
            try:
                yield record_from_row(row)
            except RecordError as error:
                raise RecordError(f"{path}:{line_no}: {error}") from None


def merge_fields(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge fields of a record: lists are concatenated without repeats, mappings united, other values overwritten.

    >>> merge_fields([{"labels": ["sad"], "valence": -2}, {"labels": ["sad", "tired"], "valence": -3}])
    {'labels': ['sad', 'tired'], 'valence': -3}
    """
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, (list, tuple)):
                known = list(merged.get(key, ()))
                merged[key] = known + [item for item in value if item not in known]
            elif isinstance(value, Mapping):
                merged[key] = {**merged.get(key, {}), **value}
            else:
                merged[key] = value
    return merged
