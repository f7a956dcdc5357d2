"""Merge several annotators' records of the same clips: labels by union or majority.

python -m affectgpt.annotate merge qwen/ gpt/ salmonn/ out=merged/ how=majority
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from affectgpt.annotate.checks import verdict
from affectgpt.annotate.duplicates import shingle_similarity, shingles
from affectgpt.annotate.record import Annotation, Clue, RecordError, record_from_row
from affectgpt.annotate.review.agreement import jaccard_distance
from affectgpt.annotate.review.votes import unite_labels
from affectgpt.journal import Journal
from affectgpt.runtime import UserError, stable_hash

HOW = ("union", "majority")
SAME_TEXT = 0.8
"""Similarity of shingles from which two clues of one modality count as the same."""


def merge_labels(sets: Sequence[Sequence[str]], how: str) -> list[str]:
    """The labels of all annotators ("union"), or of more than half of them ("majority"); case is ignored.

    >>> merge_labels([["Sad", "tired"], ["sad"], ["sad", "tired"], ["angry"]], "majority")
    ['Sad']
    """
    union = unite_labels(sets)
    if how == "union":
        return union
    votes = Counter(label for labels in sets for label in {label.strip().lower() for label in labels})
    return [label for label in union if 2 * votes[label.lower()] > len(sets)]


def merged_record(records: Mapping[str, Annotation], how: str) -> Annotation:
    """Merge the records of one clip, given as annotator -> record.

    The result has all clues but near-duplicates; the description, ranking and confidence of the annotator whose labels
    are nearest to the merged ones (the first on a tie); the mean valence; and all facts, checks and provenance.

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
        records.values(),
        key=lambda record: jaccard_distance(frozenset(label.lower() for label in record.labels), merged),
    )
    clues: list[Clue] = []
    for clue in (clue for record in records.values() for clue in record.clues):
        own = shingles(clue.text)
        others_of_modality = (shingles(other.text) for other in clues if other.modality == clue.modality)
        if all(shingle_similarity(own, other) < SAME_TEXT for other in others_of_modality):
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


def aligned_records(folders: Sequence[Path], left_out: Counter[str]) -> Iterator[dict[str, Annotation]]:
    """For each clip of the first folder, its records by folder name.

    Clips that a folder lacks, or that a check dropped in one, are counted in `left_out` by reason.
    """
    names = [folder.name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise UserError(f"merge takes two or more folders with different names; found {names}")
    logs = []
    try:
        for folder in folders:
            if not (folder / "records.jsonl").is_file():
                raise UserError(f"{folder / 'records.jsonl'}: no such file; give a folder that annotate wrote")
            logs.append(Journal(folder / "records.jsonl", name=lambda row: row["id"]))
        for row in logs[0].rows():
            found = {names[0]: record_from_row(row)}
            for name, log in zip(names[1:], logs[1:], strict=True):
                if (other := log.latest(row["id"])) is not None:
                    found[name] = record_from_row(other)
            if missing := [name for name in names if name not in found]:
                left_out[f"no record in {', '.join(missing)}"] += 1
            elif any(verdict(record) == "drop" for record in found.values()):
                left_out["dropped by a check of one annotator"] += 1
            else:
                yield found
    finally:
        for log in logs:
            log.close()
