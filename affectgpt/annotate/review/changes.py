"""Who changed what in a review: one row per change, and counts, times and agreement of each round."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from affectgpt.annotate.record import CLUE_MODALITIES
from affectgpt.annotate.review.agreement import LabelAgreement, label_agreement
from affectgpt.annotate.review.answers import ReviewAnswers
from affectgpt.annotate.review.setup import Review
from affectgpt.annotate.review.votes import changes_between


@dataclass
class RoundReport:
    """One screen of one round.

    Attributes:
        answered, asked: answers that arrived, and tasks that were given out.
        changes: annotator -> kind of change -> count.
        agreement: on label sets; None for clues.
        seconds: median time of an answer, or None.
    """

    round: int
    screen: str
    answered: int
    asked: int
    changes: dict[str, dict[str, int]]
    agreement: LabelAgreement | None
    seconds: float | None

    def lines(self) -> list[str]:
        """The report on screen."""
        time = f", median {self.seconds:.0f} s" if self.seconds is not None else ""
        lines = [f"round {self.round}, {self.screen}: {self.answered} of {self.asked} answers{time}"]
        kinds = ("kept", "edited", "removed", "added") if self.screen == "clues" else ("ticked", "added")
        for name, counts in self.changes.items():
            lines.append(f"  {name:<16}" + "  ".join(f"{kind} {counts.get(kind, 0)}" for kind in kinds))
        return [*lines, f"  {self.agreement.line()}"] if self.agreement else lines


def report_rounds(review: Review, answers: ReviewAnswers) -> tuple[list[RoundReport], list[dict[str, Any]]]:
    """A report for each screen of each round, and one row per change."""
    reports, rows = [], []
    for number, setup in sorted(review.rounds.items()):
        for screen in setup["screens"]:
            changes: dict[str, Counter[str]] = {name: Counter() for name in setup["annotators"]}
            clips, seconds, asked = [], [], 0
            for name, people in setup["assignment"].items():
                asked += len(people)
                given = answers.of(int(number), screen, name)
                seconds += [row["seconds"] for row in given.values() if row["seconds"] is not None]
                clips.append({person: row["labels"] for person, row in given.items()})
                for person, row in given.items():
                    about = {"round": int(number), "screen": screen, "id": name, "annotator": person}
                    for change in _changes(row, screen):
                        changes[person][change["change"]] += 1
                        rows.append({**about, **change})
            reports.append(
                RoundReport(
                    int(number),
                    screen,
                    sum(len(clip) for clip in clips),
                    asked,
                    {person: dict(counts) for person, counts in changes.items()},
                    label_agreement(clips) if screen == "labels" else None,
                    statistics.median_high(seconds) if seconds else None,
                )
            )
    return reports, rows


def _changes(row: Mapping[str, Any], screen: str) -> list[dict[str, str]]:
    if screen == "labels":
        other = {label.lower() for label in row["other"]}
        return [{"change": "added" if label.lower() in other else "ticked", "after": label} for label in row["labels"]]
    return [
        {"modality": modality, "change": change.kind, "before": change.before, "after": change.after}
        for modality in CLUE_MODALITIES
        for change in changes_between(row["given"].get(modality, []), row["clues"].get(modality, []))
    ]
