"""The result of scoring: every number with its n, its interval and all that was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.metrics.stats import Interval
from affectgpt.runtime import write_text_atomic

PRIMARY = "level 1 mean"
"""Mean over the five wheels at level 1: the primary figure of MER2025, MER2026 and OV-MERD+."""


@dataclass(frozen=True)
class Score:
    """One row: fractions of 1. `n` is the number of scored samples; of a mean the smallest (and `n_max`)."""

    f_score: float
    precision: float
    recall: float
    n: int
    n_max: int | None = None
    interval: Interval | None = None

    @property
    def avg(self) -> float:
        return (self.precision + self.recall) / 2

    def to_dict(self) -> dict[str, Any]:
        row = {key: value for key, value in asdict(self).items() if value is not None}
        return row | {"avg": self.avg}


@dataclass(frozen=True)
class Counts:
    """What went in and what fell out.

    Attributes:
        references: samples with a reference; without_labels: of these, references without any label (never scored).
        predictions: predictions read; extra: of these, ids that no reference has (left out).
        missing: references without a prediction (scored as empty).
        unparsed: predictions that gave no label, whatever the reason; readings says how each text was read.
        readings: how many predictions were read in which way ("given" = labels came with the prediction).
        unknown_truth, unknown_prediction: words that the lexicon does not know, with how often they occur.
        neutral_truth, neutral_prediction, negated_truth, negated_prediction: label tokens that say "no emotion" or deny
            one; they have no place on the wheels and are left out like unknown words.
    """

    references: int = 0
    without_labels: int = 0
    predictions: int = 0
    extra: int = 0
    missing: int = 0
    unparsed: int = 0
    readings: Mapping[str, int] = field(default_factory=dict)
    tokens_truth: int = 0
    tokens_prediction: int = 0
    unknown_truth: Mapping[str, int] = field(default_factory=dict)
    unknown_prediction: Mapping[str, int] = field(default_factory=dict)
    neutral_truth: int = 0
    neutral_prediction: int = 0
    negated_truth: int = 0
    negated_prediction: int = 0


@dataclass(frozen=True)
class Report:
    """Scores by name ("level 1 mean" first), M-avg = mean F_S of the twelve groupings, counts, and the lexicon."""

    scores: Mapping[str, Score]
    m_avg: float | None
    counts: Counts
    lexicon: str
    lexicon_checksum: str
    seed: int
    n_bootstrap: int
    label_reading: str = "exact"
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> Score:
        """The headline: the first row (level-1 mean over the five wheels, unless other groupings were asked for)."""
        return next(iter(self.scores.values()))

    def to_dict(self) -> dict[str, Any]:
        primary_name = next(iter(self.scores))
        counts = {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(self.counts).items()}
        return {
            "primary": {"name": primary_name, **self.primary.to_dict()},
            "m_avg": self.m_avg,
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "counts": counts,
            "lexicon": {"name": self.lexicon, "sha256": self.lexicon_checksum},
            "label_reading": self.label_reading,
            "bootstrap": {"n": self.n_bootstrap, "seed": self.seed},
            **({"extras": dict(self.extras)} if self.extras else {}),
        }

    def write(self, path: str | Path) -> None:
        """Write report.json, whole or not at all."""
        write_text_atomic(Path(path), json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")

    def headline(self) -> str:
        """One line: F_S, precision, recall, n and the interval of the primary figure, in percent."""
        score, name = self.primary, next(iter(self.scores))
        rest = f"precision {100 * score.precision:.2f}  recall {100 * score.recall:.2f}  n = {_n(score)}"
        return f"{name}: F_S {_percent(score)}  {rest}"

    def table(self) -> str:
        """The report as a terminal table, in percent."""
        lines = [f"{'grouping':<16}{'F_S':>7}  {'precision':>9}  {'recall':>7}  {'n':>9}  95 % interval of F_S"]
        for name, score in self.scores.items():
            interval = f"  {_interval(score.interval)}" if score.interval else ""
            lines.append(
                f"{name:<16}{100 * score.f_score:7.2f}  {100 * score.precision:9.2f}  {100 * score.recall:7.2f}  "
                f"{_n(score):>9}{interval}"
            )
        if self.m_avg is not None:
            lines.append(f"{'M-avg':<16}{100 * self.m_avg:7.2f}  (mean F_S of the twelve groupings)")
        return "\n".join([*lines, "", *self._notes()])

    def _notes(self) -> list[str]:
        counts = self.counts
        notes = [
            f"{counts.references} references ({counts.without_labels} without labels), "
            f"{counts.predictions} predictions ({counts.extra} without a reference, {counts.unparsed} without labels), "
            f"{counts.missing} missing (scored as empty)",
            "read as: " + (", ".join(f"{how} {n}" for how, n in counts.readings.items()) or "-"),
        ]
        for side, unknown, neutral, negated, total in (
            ("references", counts.unknown_truth, counts.neutral_truth, counts.negated_truth, counts.tokens_truth),
            ("predictions", counts.unknown_prediction, counts.neutral_prediction, counts.negated_prediction,
             counts.tokens_prediction),
        ):  # fmt: skip
            shown = ", ".join(f"{word} {n}" for word, n in list(unknown.items())[:8])
            more = f", and {len(unknown) - 8} more words" if len(unknown) > 8 else ""
            notes.append(
                f"{side}: {total} labels, {sum(unknown.values())} unknown to the lexicon, "
                f"{neutral} neutral, {negated} negated" + (f"; unknown: {shown}{more}" if unknown else "")
            )
        if strict := self.extras.get("strict"):
            notes.append(
                f"strict extras (no published figure): neutral-aware F_S {100 * strict['neutral_aware_f_s']:.2f}, "
                f"mean F of the samples {100 * strict['sample_mean_f']:.2f}"
            )
        if extraction := self.extras.get("llm_extraction"):
            notes.append(f"labels of {extraction['read']} of {extraction['asked']} unparsed texts were read by an LLM")
        if grouped := self.extras.get("llm_grouping"):
            figures = "  ".join(f"{name} {100 * grouped[name]:.2f}" for name in ("f_score", "precision", "recall"))
            model = self.extras.get("llm", {}).get("model", "?")
            counted = f"n = {grouped['n']}, {grouped['unparsed']} unreadable answers"
            notes.append(f"LLM grouping ({model}): {figures}  {counted}")
        notes.append(f"lexicon: {self.lexicon}, sha256 {self.lexicon_checksum[:12]}")
        notes.append(f"bootstrap over samples: {self.n_bootstrap} resamples, seed {self.seed}")
        return notes


def _n(score: Score) -> str:
    return f"{score.n}-{score.n_max}" if score.n_max not in (None, score.n) else str(score.n)


def _interval(interval: Interval) -> str:
    return f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def _percent(score: Score) -> str:
    return f"{100 * score.f_score:.2f}" + (f" {_interval(score.interval)}" if score.interval else "")
