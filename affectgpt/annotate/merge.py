"""Several annotators' records of the same clips as one: labels by union or majority, and how far they agreed.

python -m affectgpt.annotate merge qwen/ gpt/ salmonn/ out=merged/ how=majority
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from affectgpt.annotate.checks import shingles, similarity, verdict
from affectgpt.annotate.record import Annotation, Clue, RecordError, from_row
from affectgpt.annotate.review.agreement import jaccard
from affectgpt.annotate.review.rounds import unite
from affectgpt.journal import Journal
from affectgpt.runtime import UserError, stable_hash

HOW = ("union", "majority")
SAME_TEXT = 0.8
"""Clues of one modality that share so many of their shingles are one clue."""


def merge_labels(sets: Sequence[Sequence[str]], how: str) -> list[str]:
    """The labels of all annotators, or those of more than half of them; case does not matter.

    >>> merge_labels([["Sad", "tired"], ["sad"], ["sad", "tired"], ["angry"]], "majority")
    ['Sad']
    """
    whole = unite(sets)
    if how == "union":
        return whole
    votes = Counter(label for labels in sets for label in {label.strip().lower() for label in labels})
    return [label for label in whole if 2 * votes[label.lower()] > len(sets)]


def merge_records(records: Mapping[str, Annotation], how: str) -> Annotation:
    """One record of one clip, out of several annotators' (name -> record).

    Clues of all, without those that say nearly the same; description, ranking and confidence of the annotator whose
    labels are nearest to the merged ones (the first on a tie); the mean valence; all facts, checks and steps.

    Raises:
        RecordError: the records are of different files or languages.
    """
    first, *others = records.values()
    for other in others:
        if (other.media_sha256, other.lang) != (first.media_sha256, first.lang):
            raise RecordError(f"record {first.id!r}: annotators {list(records)} had different files or languages")
    labels = merge_labels([record.labels for record in records.values()], how)
    merged = frozenset(label.lower() for label in labels)
    nearest = min(
        records.values(), key=lambda record: jaccard(frozenset(label.lower() for label in record.labels), merged)
    )
    clues: list[Clue] = []
    for clue in (clue for record in records.values() for clue in record.clues):
        own = shingles(clue.text)
        said = (shingles(other.text) for other in clues if other.modality == clue.modality)
        if all(similarity(own, other) < SAME_TEXT for other in said):
            clues.append(clue)
    valences = [record.valence for record in records.values() if record.valence is not None]
    steps = [
        replace(step, step=f"{name}/{step.step}") for name, record in records.items() for step in record.provenance
    ]
    facts = {(fact.name, fact.start_s): fact for record in records.values() for fact in record.evidence}
    checks = {tuple(sorted(row.items())): row for record in records.values() for row in record.checks}
    keys = [record.key for record in records.values()]
    return replace(
        nearest,
        key=stable_hash(["merge", how, *keys]),
        transcript=next((record.transcript for record in records.values() if record.transcript), None),
        labels=tuple(labels),
        clues=tuple(clues),
        valence=round(sum(valences) / len(valences), 3) if valences else None,
        evidence=tuple(facts.values()),
        checks=tuple(checks.values()),
        provenance=tuple(steps),
    )


def together(folders: Sequence[Path], left_out: Counter[str]) -> Iterator[dict[str, Annotation]]:
    """For each clip of the first folder its records in all folders, by the folders' names.

    A clip that a folder lacks, or whose record was dropped in one, is counted in `left_out` by reason.
    """
    names = [folder.name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise UserError(f"merge takes two or more folders of different names; found {names}")
    logs = []
    try:
        for folder in folders:
            if not (folder / "records.jsonl").is_file():
                raise UserError(f"{folder / 'records.jsonl'}: no such file; is it a folder that annotate wrote?")
            logs.append(Journal(folder / "records.jsonl", name=lambda row: row["id"]))
        for row in logs[0].rows():
            found = {names[0]: from_row(row)}
            for name, log in zip(names[1:], logs[1:], strict=True):
                if (other := log.latest(row["id"])) is not None:
                    found[name] = from_row(other)
            if missing := [name for name in names if name not in found]:
                left_out[f"no record in {', '.join(missing)}"] += 1
            elif any(verdict(record) == "drop" for record in found.values()):
                left_out["dropped by a check of one annotator"] += 1
            else:
                yield found
    finally:
        for log in logs:
            log.close()
