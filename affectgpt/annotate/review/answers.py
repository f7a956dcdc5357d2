"""The answers of a review: exports of Label Studio in, answers.jsonl out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectgpt.annotate.review.labelstudio import ReviewAnswer, ReviewError, read_export
from affectgpt.annotate.review.setup import Review
from affectgpt.journal import Journal


class ReviewAnswers:
    """The answers of a review, read from its folder."""

    def __init__(self, folder: Path) -> None:
        self._by: dict[tuple[int, str, str], dict[str, dict[str, Any]]] = {}
        log = _log(folder)
        try:
            for row in log.rows():
                self._by.setdefault((row["round"], row["screen"], row["id"]), {})[row["annotator"]] = row
        finally:
            log.close()

    def of(self, number: int, screen: str, name: str) -> dict[str, dict[str, Any]]:
        """annotator -> answer, sorted by annotator."""
        return dict(sorted(self._by.get((number, screen, name), {}).items()))


def _log(folder: Path) -> Journal:
    return Journal(folder / "answers.jsonl")


def import_exports(paths: Sequence[Path], folder: Path) -> Counter[str]:
    """Add the answers of exports to answers.jsonl, and count them; reading a file again changes nothing.

    Of several answers to a task, in the files and in answers.jsonl, the one that was changed last counts.

    Raises:
        ReviewError: an answer to a task that was not assigned, or by the wrong person: each annotator of the review is
            one person, and no person is two annotators, in one round or across both.
    """
    review = Review.read(folder)
    found: Counter[str] = Counter()
    newest: dict[str, ReviewAnswer] = {}
    for path in paths:
        for answer in read_export(path):
            if isinstance(answer, str):
                found[answer] += 1
                continue
            key = _key_of(answer, review, path)
            if key in newest:
                found["older answers to the same task"] += 1
            if key not in newest or answer.at >= newest[key].at:
                newest[key] = answer
    log = _log(folder)
    try:
        old = {row["key"]: row for row in log.rows()}
        people = {row["annotator"]: row["person"] for row in old.values() if row["person"]}
        rows = []
        for key, answer in newest.items():
            person = answer.person or old.get(key, {}).get("person", "")  # known from before the user was deleted
            if person:
                _check_person(people, answer.about["annotator"], person)
            row = _row_of(key, answer, person)
            if old.get(key) == row:
                found["known already"] += 1
            elif key in old and answer.at < old[key]["at"]:
                found["older answers to the same task"] += 1
            else:
                rows.append(row)
        for row in rows:  # only now, so that a file with an error adds nothing
            log.append(row)
            found["new"] += 1
    finally:
        log.close()
    return found


def save_answer(folder: Path, review: Review, answer: ReviewAnswer) -> dict[str, Any]:
    """Append one answer and force it to the disk, so that it survives a killed server; returns its row.

    Raises:
        ReviewError: a task that was not given to this annotator, or the wrong person, as for `import_exports`.
    """
    key = _key_of(answer, review, folder)
    log = Journal(folder / "answers.jsonl", fsync=True)
    try:
        people = {row["annotator"]: row["person"] for row in log.rows() if row["person"]}
        _check_person(people, answer.about["annotator"], answer.person)
        row = _row_of(key, answer, answer.person)
        log.append(row)
    finally:
        log.close()
    return row


def _row_of(key: str, answer: ReviewAnswer, person: str) -> dict[str, Any]:
    """A line of answers.jsonl."""
    return {
        "key": key,
        **{name: answer.about[name] for name in ("round", "screen", "id", "annotator")},
        "person": person,
        "given": {name: list(texts) for name, texts in answer.given.items()},
        "clues": {name: list(texts) for name, texts in answer.clues.items()},
        "labels": list(answer.labels),
        "other": list(answer.other),
        "seconds": answer.seconds,
        "at": answer.at,
    }


def _key_of(answer: ReviewAnswer, review: Review, path: Path) -> str:
    about = answer.about
    number, name, person = str(about.get("round")), about["id"], about.get("annotator")
    if number not in review.rounds:
        raise ReviewError(f"{path}: clip {name!r} is of round {number}; this review has {sorted(review.rounds)}")
    setup = review.rounds[number]
    if person not in setup["assignment"].get(name, ()) or about["screen"] not in setup["screens"]:
        raise ReviewError(
            f"{path}: clip {name!r}, screen {about['screen']!r} was not given to {person!r} in this review"
        )
    return f"{number} {about['screen']} {person} {name}"


def _check_person(people: dict[str, str], name: str, person: str) -> None:
    """Record that annotator `name` is `person`; raise if another person, or another annotator, is recorded already."""
    if people.setdefault(name, person) != person:
        raise ReviewError(
            f"tasks of annotator {name!r} were answered by persons {people[name]} and {person}; expected one"
        )
    if others := [other for other, known in people.items() if known == person and other != name]:
        raise ReviewError(
            f"person {person} answered as {others[0]!r} and as {name!r}; rounds need different people: have one redo it"
        )
