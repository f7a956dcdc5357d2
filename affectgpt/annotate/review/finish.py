"""What the answers of a review give so far: changes, agreement, and the records that both rounds have confirmed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from affectgpt.annotate.exporters import records_in, write_manifest
from affectgpt.annotate.record import Annotation, record_to_row
from affectgpt.annotate.review.answers import ReviewAnswers
from affectgpt.annotate.review.changes import RoundReport, report_rounds
from affectgpt.annotate.review.setup import Review
from affectgpt.annotate.review.votes import STALE_DESCRIPTION, confirmed
from affectgpt.journal import Journal
from affectgpt.runtime import write_json_atomic, write_lines_atomic


@dataclass(frozen=True)
class Outcome:
    """What `write_outcome` wrote.

    Attributes:
        reports: of each screen of each round.
        n_finished: confirmed records; `n_stale`: of these, those whose description is older than the review.
        unfinished: the other clips of the review, by reason.
        n_rows: of the manifest; None = no clip has passed both rounds yet, and there is none.
    """

    reports: list[RoundReport]
    n_finished: int
    n_stale: int
    unfinished: Counter[str]
    n_rows: int | None

    def lines(self) -> list[str]:
        return [line for one in self.reports for line in one.lines()]


def write_outcome(folder: Path) -> Outcome:
    """Write changes.jsonl and review_report.json; append the confirmed records, and write their manifest."""
    review, answers = Review.read(folder), ReviewAnswers(folder)
    reports, changes = report_rounds(review, answers)
    n_finished, n_stale, unfinished = _write_confirmed(folder, review, answers)
    write_lines_atomic(folder / "changes.jsonl", (json.dumps(row, ensure_ascii=False) for row in changes))
    told = [line for one in reports for line in one.lines()]
    rounds = [asdict(one) for one in reports]
    write_json_atomic(folder / "review_report.json", {"rounds": rounds, "unfinished": unfinished, "told": told})
    n_rows = write_manifest(folder / "manifest.jsonl", records_in(folder)) if n_finished else None
    return Outcome(reports, n_finished, n_stale, unfinished, n_rows)


def _write_confirmed(folder: Path, review: Review, answers: ReviewAnswers) -> tuple[int, int, Counter[str]]:
    """Append the confirmed records.

    Returns:
        their number, the number of those with an outdated description, and the other clips of the review by reason.
    """
    finished: list[Annotation] = []
    unfinished: Counter[str] = Counter()
    for record in records_in(Path(review.source)):
        if record.id in review.rounds["1"]["assignment"]:
            result = confirmed(record, review, answers)
            if isinstance(result, str):
                unfinished[result] += 1
            else:
                finished.append(result)
    records = Journal(folder / "records.jsonl", name=lambda row: row["id"])
    try:
        for record in finished:
            append_if_new(records, record)
    finally:
        records.close()
    n_stale = sum(any(row["check"] == STALE_DESCRIPTION for row in record.checks) for record in finished)
    return len(finished), n_stale, unfinished


def append_if_new(log: Journal, record: Annotation) -> None:
    """Append a record unless it is the newest of its clip already."""
    row = json.loads(json.dumps(record_to_row(record)))  # as it is read back: with lists for tuples
    if log.latest(record.id) != row:
        log.append(row)
