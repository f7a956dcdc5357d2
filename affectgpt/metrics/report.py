"""The result of scoring: every score with its n and interval, and counts of everything that was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.metrics.stats import Interval
from affectgpt.runtime import write_json_atomic
from affectgpt.tables import format_table

PRIMARY = "level 1 mean"
"""Mean over the five wheels at level 1: the primary score of MER2025, MER2026 and OV-MERD+."""


@dataclass(frozen=True)
class Score:
    """One row, as fractions of 1. `n` is the number of scored samples; for a mean over groupings, `n` to `n_max`."""

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
    """How many samples and labels were scored, and how many were left out.

    Attributes:
        references: samples with a reference; without_labels: those whose reference has no labels (never scored).
        predictions: predictions read; extra: those whose id has no reference (left out).
        missing: references without a prediction (scored as empty).
        unparsed: predictions without labels, for any reason.
        readings: number of predictions per way of reading ("given" = labels came with the prediction).
        tokens_truth, tokens_prediction: number of labels.
        unknown_truth, unknown_prediction: words that are not in the lexicon, with their frequencies.
        neutral_truth, neutral_prediction, negated_truth, negated_prediction: labels that mean "no emotion" or negate
            one; they are on no wheel and are left out like unknown words.
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
    """Scores by name ("level 1 mean" first), M-avg (mean F_S of the twelve groupings), counts, and the lexicon."""

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
        """The first row: the level-1 mean over the five wheels, unless other groupings were selected."""
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
        """Write report.json atomically."""
        write_json_atomic(Path(path), self.to_dict())

    def figures(self) -> dict[str, float]:
        """The numbers for a dashboard by name: means with their intervals, counts, faithfulness."""
        found: dict[str, float] = {}
        for name, score in self.scores.items():
            found[f"test/{name}/F_S"] = score.f_score
            if name.endswith("mean"):
                found |= {f"test/{name}/precision": score.precision, f"test/{name}/recall": score.recall}
                if score.interval is not None:
                    found |= {f"test/{name}/low": score.interval.low, f"test/{name}/high": score.interval.high}
        found |= {"test/n": self.primary.n, "test/missing": self.counts.missing, "test/unparsed": self.counts.unparsed}
        if self.m_avg is not None:
            found["test/M-avg"] = self.m_avg
        scores = self.extras.get("faithfulness", {})
        for group in ("absent_modality", "consistency", "explanations"):
            for name, row in scores.get(group, {}).items():
                if isinstance(row, Mapping) and row.get("value") is not None:
                    found[f"faithfulness/{group}/{name}"] = row["value"]
        for name, row in scores.get("clues", {}).items():
            for key in ("precision", "recall"):
                if row[key] is not None:
                    found[f"faithfulness/clues/{name}/{key}"] = row[key]
        return found

    def headline(self) -> str:
        """F_S, precision, recall, n and interval of the primary score in one line, in percent."""
        score, name = self.primary, next(iter(self.scores))
        interval = f" {percent_interval(score.interval)}" if score.interval else ""
        rest = f"precision {percent(score.precision)}  recall {percent(score.recall)}  n = {_n(score)}"
        return f"{name}: F_S {percent(score.f_score)}{interval}  {rest}"

    def table(self) -> str:
        """The report as text, in percent."""
        rows: list[tuple[str, ...]] = [
            ("grouping      ", "    F_S", "precision", " recall", "        n", "95 % interval of F_S")
        ]
        for name, score in self.scores.items():
            figures = (percent(value) for value in (score.f_score, score.precision, score.recall))
            rows.append((name, *figures, _n(score), percent_interval(score.interval) if score.interval else ""))
        lines = [format_table(rows, "lrrrrl")]
        if self.m_avg is not None:
            lines.append(f"{'M-avg':<16}{percent(self.m_avg):>7}  (mean F_S of the twelve groupings)")
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
                f"strict extras (no published figure): neutral-aware F_S {percent(strict['neutral_aware_f_s'])}, "
                f"mean F of the samples {percent(strict['sample_mean_f'])}"
            )
        notes += _faithfulness_notes(self.extras.get("faithfulness", {}))
        if extraction := self.extras.get("llm_extraction"):
            notes.append(f"labels of {extraction['read']} of {extraction['asked']} unparsed texts were read by an LLM")
        if grouped := self.extras.get("llm_grouping"):
            ranges = {name: f" [{percent(a)}, {percent(b)}]" for name, (a, b) in grouped.get("intervals", {}).items()}
            names = ("f_score", "avg", "precision", "recall")
            figures = "  ".join(f"{name} {percent(grouped[name])}{ranges.get(name, '')}" for name in names)
            model = grouped.get("by") or self.extras.get("llm", {}).get("model", "?")
            counted = f"n = {grouped['n']}, {grouped['unparsed']} unreadable answers"
            if grouped.get("missing"):
                counted += f", {grouped['missing']} samples without an answer"
            notes.append(f"LLM grouping ({model}): {figures}  {counted}")
        split = "; label text is split as published" if self.label_reading == "published" else ""
        notes.append(f"lexicon: {self.lexicon}, sha256 {self.lexicon_checksum[:12]}{split}")
        notes.append(f"bootstrap over samples: {self.n_bootstrap} resamples, seed {self.seed}")
        return notes


def _faithfulness_notes(scores: Mapping[str, Any]) -> list[str]:
    """Lines about explanations; scores without a sample are left out."""

    def rate(row: Mapping[str, Any]) -> str:
        interval = f"[{percent(row['low'])}, {percent(row['high'])}]"
        return f"{percent(row['value'])} % {interval} ({row['count']} of {row['n']})"

    notes = []
    absent = scores.get("absent_modality", {})
    if shown := [f"{name} {rate(row)}" for name, row in absent.items() if row["n"] and name != "any"]:
        notes.append(f"explanations with a statement about a modality that was not shown: {', '.join(shown)}")
    figures = []
    for name, row in scores.get("clues", {}).items():
        if row["n_predicted"] or row["n_reference"]:
            values = (row["precision"], row["recall"])
            figures.append(f"{name} {' / '.join('-' if value is None else f'{percent(value)} %' for value in values)}")
    if figures and any(row["n_reference"] for row in scores["clues"].values()):
        notes.append(f"clues, precision / recall: {', '.join(figures)}")
    consistency = scores.get("consistency", {})
    if consistency and consistency["unsupported"]["n"]:
        notes.append(
            f"labels that the explanation does not support: {rate(consistency['unsupported'])}; "
            f"explanations that contradict their labels: {rate(consistency['contradicting'])}"
        )
    if explained := scores.get("explanations"):
        notes.append(
            f"explanations with a true emotion (EEA) {rate(explained['eea'])}, with a predicted one (EPC) "
            f"{rate(explained['epc'])}, both right (FCR) {rate(explained['fcr'])}"
        )
    return notes


def _n(score: Score) -> str:
    return f"{score.n}-{score.n_max}" if score.n_max not in (None, score.n) else str(score.n)


def percent(value: float, sign: str = "") -> str:
    """
    >>> percent(0.5), percent(0.5, "+")
    ('50.00', '+50.00')
    """
    return f"{100 * value:{sign}.2f}"


def percent_interval(interval: Interval, sign: str = "") -> str:
    return f"[{percent(interval.low, sign)}, {percent(interval.high, sign)}]"
