"""What a run did: counts, the summary on screen, and the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from affectgpt.annotate.record import CLUE_MODALITIES, Annotation
from affectgpt.config import AnnotateConfig

COMPLETE, SOME_FAILED, BUDGET = 0, 3, 4
ANSWERED = ("unusable answer", "empty answer", "refusal", "record breaks its schema")
"""Failures that stored answers decide, so that the same command ends in them again."""
SIGNALS = {"SIGINT": 130, "SIGTERM": 143}


@dataclass
class Totals:
    """Counts of one run; the fields are those of report.json.

    Attributes:
        made, there: records made now, and records that existed already (or that another process made meanwhile).
        failed, dropped: clips by reason: errors, and clips with nothing to annotate.
        without: records that lack a kind of clue, a transcript or labels.
        checked: records by finding, as verdict and check.
        calls, repaired: answers that were requested, and how many were requested again because of their form.
    """

    n_clips: int = 0
    made: int = 0
    there: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    repaired: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def n_left(self) -> int:
        """Clips that the run did not reach."""
        return self.n_clips - self.made - self.there - self.failed.total() - self.dropped.total()

    def count_record(self, record: Annotation) -> None:
        """Count what a complete record lacks and what checks found in it."""
        found = {clue.modality for clue in record.clues}
        lacks = [f"{name} clue" for name in CLUE_MODALITIES if record.clues and name not in found]
        lacks += ["transcript"] * (not record.transcript) + ["labels"] * (not record.labels)
        self.without.update(lacks)
        texts = record.given.get(record.lang, {})
        self.own.update([*texts, *(["valence"] if "valence" in record.given else [])])
        self.checked.update({f"{row['verdict']:<9}{row['check']}" for row in record.checks})

    def exit_code(self, stopped_by: str) -> int:
        """Exit code of a run that ended by itself (`stopped_by` ""), or by a signal or the budget."""
        if stopped_by in SIGNALS:
            return SIGNALS[stopped_by]
        if stopped_by == "budget":
            return BUDGET
        return SOME_FAILED if self.failed or self.dropped else COMPLETE


def format_totals(totals: Totals, report: Mapping[str, Any], config: AnnotateConfig) -> str:
    """The summary on screen; `report` holds the other fields of report.json."""
    done = totals.made + totals.there
    lines = [f"{done} of {totals.n_clips} clips complete ({totals.made} now, {totals.there} before)"]
    for what, counts in (("failed", totals.failed), ("dropped", totals.dropped)):
        lines += [f"  {what:<9}{n:>6}  {reason[:140]}" for reason, n in counts.most_common(10)]
    if totals.n_left:
        lines.append(f"  left     {totals.n_left:>6}  not started or not finished; repeat the command to continue")
    lines += [f"  without  {n:>6}  {what}" for what, n in totals.without.most_common()]
    lines += [f"  {what[:9]}{n:>6}  {what[9:]}" for what, n in totals.checked.most_common()]
    for what, n in totals.own.most_common():
        lines.append(f"  own      {n:>6}  {what} of your manifest, kept in manifest.jsonl")
    if totals.own["labels"]:
        lines.append(f"`python -m affectgpt.annotate report {config.out}` compares them with the annotated ones")
    tokens = f"{report['tokens_in']:,} tokens in, {report['tokens_out']:,} out"
    uncounted = f", {report['uncounted']} answers without a token count" if report["uncounted"] else ""
    lines.append(
        f"calls {totals.calls} ({totals.repaired} repairs, {totals.retries} retries), {tokens}{uncounted}, "
        f"cost {report['cost']:.4f} (folder: {report['cost_of_folder']:.4f}), {totals.seconds:.1f} s"
    )
    if report["stopped_by"] == "budget":
        lines.append(f"stopped: the next call could exceed budget={config.budget:g}; raise it to continue")
    elif report["stopped_by"]:
        lines.append(f"stopped by {report['stopped_by']}")
    lines.append(f"{config.out}: records.jsonl, manifest.jsonl ({report['manifest_rows']} rows), failed.jsonl")
    n_answered = sum(totals.failed[kind] for kind in ANSWERED)
    if n_answered:
        lines.append(
            f"{n_answered} clips failed by answers that are kept, and a repeat reads the same ones: a larger "
            "annotator.max_tokens, another annotator.seed or another model asks anew, in this folder about all clips"
        )
    again = totals.n_left or totals.failed.total() > n_answered or report["stopped_by"]
    lines.append(
        "next: " + ("repeat the command; then " if again else "") + f"python -m affectgpt.annotate check {config.out}"
    )
    return "\n".join(lines)
