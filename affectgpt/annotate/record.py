"""The record: what is known of one clip after annotation, and from whom; checked when written and when read.

Every line of records.jsonl is one record. A clue is one thing that was seen, heard or said; `evidence` holds what was
measured, and nothing that claims to be measured may be outside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from affectgpt.runtime import InputError
from affectgpt.schema import LANGUAGES, check_id

MODALITIES = ("visual", "acoustic", "lexical")
VALENCE = (-5.0, 5.0)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"\bAU ?(\d{1,2})\b")


class RecordError(InputError):
    """A record breaks its schema; the message names the id, the field, what was found and what was expected."""


@dataclass(frozen=True)
class Fact:
    """One measured number. `name` says what ("pitch_hz", "AU12"), `start_s` and `end_s` where in the clip."""

    name: str
    modality: str
    value: float
    unit: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Clue:
    """One thing seen ("visual"), heard ("acoustic") or said ("lexical"), in words.

    `source` is the model that wrote it; `evidence` are the names of the facts that it leans on.
    """

    modality: str
    text: str
    start_s: float | None = None
    end_s: float | None = None
    source: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """One step as it was done; a step whose answer was repaired stands twice. Local steps cost no tokens."""

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
    """What is known of one clip.

    Attributes:
        id, media_sha256: which clip; the hash is over its media files.
        key: hash of everything that the record was made from; another model, prompt or file makes another key.
        media: paths of "video", "audio", "face".
        transcript: what is said, in `lang`; None = not known.
        labels: open-vocabulary emotion words; `ranking`: words of a fixed set, the most fitting first.
        description: text by language.
        valence: -5 (most unpleasant) to 5, or None.
        confidence: 0 to 1 as the annotator puts it; see docs/annotate.md for what it is worth.
        evidence: what was measured.
        checks: what checks found, as {"check", "verdict", "reason"}.
    """

    id: str
    media_sha256: str
    key: str = ""
    media: Mapping[str, str] = field(default_factory=dict)
    lang: str = "en"
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


def check(record: Annotation) -> Annotation:
    """Return `record` if it keeps its schema, else raise RecordError."""
    name = f"record {record.id!r}"
    try:
        check_id(record.id)
    except ValueError as error:
        raise RecordError(f"{name}: {error}") from None
    _expect(bool(_SHA256.fullmatch(record.media_sha256)), name, "media_sha256", record.media_sha256, "64 hex digits")
    _expect(record.lang in LANGUAGES, name, "lang", record.lang, f"one of {list(LANGUAGES)}")
    _expect(set(record.description) <= set(LANGUAGES), name, "description", sorted(record.description), LANGUAGES)
    for text in (*record.description.values(), *record.labels, *record.ranking):
        _expect(isinstance(text, str) and bool(text.strip()), name, "texts", text, "a non-empty text")
    transcript = record.transcript
    _expect(transcript is None or isinstance(transcript, str), name, "transcript", transcript, "a text or null")
    for value, key, (low, high) in (
        (record.valence, "valence", VALENCE),
        (record.confidence, "confidence", (0.0, 1.0)),
    ):
        _expect(value is None or (_number(value) and low <= value <= high), name, key, value, f"{low:g} to {high:g}")
    measured = {fact.name for fact in record.evidence}
    for fact in record.evidence:
        _expect(fact.modality in MODALITIES, name, f"evidence {fact.name}", fact.modality, f"one of {MODALITIES}")
        _expect(_number(fact.value), name, f"evidence {fact.name}", fact.value, "a number")
    for clue in record.clues:
        _expect(clue.modality in MODALITIES, name, "clue modality", clue.modality, f"one of {list(MODALITIES)}")
        _expect(
            isinstance(clue.text, str) and bool(clue.text.strip()), name, "clue text", clue.text, "a non-empty text"
        )
        _expect(bool(clue.source), name, "clue source", clue.source, "the name of a model")
        start, end = clue.start_s, clue.end_s
        whole = start is end is None or (_number(start) and _number(end) and 0 <= (start or 0) <= (end or 0))
        _expect(whole, name, "clue start_s and end_s", (start, end), "0 <= start_s <= end_s, or both null")
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
    for step in record.provenance:
        counts = (step.tokens_in, step.tokens_out)
        _expect(all(isinstance(n, int) and n >= 0 for n in counts), name, f"tokens of {step.step}", counts, "counts")
    return record


def _expect(holds: bool, record: str, key: str, found: Any, expected: Any) -> None:
    if not holds:
        raise RecordError(f"{record}: {key}: found {found!r}, expected {expected}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


_NESTED = {"clues": Clue, "evidence": Fact, "provenance": Provenance}


def to_row(record: Annotation) -> dict[str, Any]:
    """The JSON object of a record, `key` first; raises RecordError if the record breaks its schema."""
    row = dict(vars(check(record)))
    for name in _NESTED:  # not dataclasses.asdict, which copies every number and text
        row[name] = [dict(vars(item)) for item in row[name]]
    return {"key": row.pop("key"), **row}


def from_row(row: Mapping[str, Any]) -> Annotation:
    """The record of a JSON object; unknown and missing keys are errors."""
    name = f"record {row.get('id', '?')!r}"
    values = _known(Annotation, row, name)
    for key, kind in _NESTED.items():
        items = values.get(key, ())
        _expect(isinstance(items, (list, tuple)), name, key, items, "a list")
        values[key] = tuple(kind(**_known(kind, item, f"{name}: {key}")) for item in items)
    for key in ("labels", "ranking", "checks"):
        _expect(isinstance(values.get(key, ()), (list, tuple)), name, key, values.get(key), "a list")
        values[key] = tuple(values.get(key, ()))
    values["clues"] = tuple(Clue(**{**vars(clue), "evidence": tuple(clue.evidence)}) for clue in values["clues"])
    return check(Annotation(**values))


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
    """The records of a JSONL file in which each id stands once, such as one that was exported; errors as file:line."""
    with path.open(encoding="utf-8") as file:
        for line_no, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield from_row(json.loads(line))
                except ValueError as error:
                    raise RecordError(f"{path}:{line_no}: {error}") from None


def fold(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Put parts of a record together: lists joined without repeats, mappings united, of other values the last.

    >>> fold([{"labels": ["sad"], "valence": -2}, {"labels": ["sad", "tired"], "description": {"en": "She sighs."}}])
    {'labels': ['sad', 'tired'], 'valence': -2, 'description': {'en': 'She sighs.'}}
    """
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, (list, tuple)):
                known = list(whole.get(key, ()))
                whole[key] = known + [item for item in value if item not in known]
            elif isinstance(value, Mapping):
                whole[key] = {**whole.get(key, {}), **value}
            else:
                whole[key] = value
    return whole
