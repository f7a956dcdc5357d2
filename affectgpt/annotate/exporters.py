"""Records in the forms that others read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from affectgpt.annotate.prompts import other_language
from affectgpt.annotate.record import Annotation
from affectgpt.schema import Sample, write_jsonl


def to_samples(records: Iterable[Annotation]) -> Iterator[Sample]:
    """One manifest row a record: what training and evaluation read. A description in the other language becomes a
    translation; a record without one, or without labels, simply lacks them."""
    for record in records:
        other = other_language(record.lang)
        translations = {other: {"description": record.description[other]}} if other in record.description else {}
        yield Sample(
            id=record.id,
            **{name: path for name, path in record.media.items() if name in ("video", "audio", "face")},
            subtitle=record.transcript,
            description=record.description.get(record.lang),
            labels=record.labels or None,
            label=record.ranking[0] if record.ranking else None,
            valence=record.valence,
            lang=record.lang,
            translations=translations,
        )


def write_manifest(path: Path, records: Iterable[Annotation]) -> int:
    """Write a manifest whole or not at all; returns the number of rows."""
    n = 0

    def counted() -> Iterator[Sample]:
        nonlocal n
        for sample in to_samples(records):
            n += 1
            yield sample

    write_jsonl(path, counted())
    return n
