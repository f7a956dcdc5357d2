"""Report on a folder of records: counts, findings, agreement, labels; on screen, as JSON, and as plots."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.annotate.checks import VERDICTS, verdict, worst_first
from affectgpt.annotate.record import CLUE_MODALITIES, Annotation
from affectgpt.annotate.review.votes import is_reviewed
from affectgpt.annotate.verify import AGREES_FROM, wheel_f
from affectgpt.metrics.lexicon import load_lexicon
from affectgpt.plots import draw_bars
from affectgpt.runtime import write_json_atomic

WIDTH = 100
N_LABELS = 30


@dataclass
class RecordsReport:
    """Counts over records; memory grows with the number of distinct labels only.

    Attributes:
        verdicts: records by verdict: keep, ask, drop.
        checks: (check, verdict) -> records; human rounds and the blind verifier are not among them.
        clues: records with a clue, by modality.
        words: clues by their number of words (characters in Chinese), by modality.
        labels, sectors: frequency of each label, and of each sector of the first emotion wheel.
        per_clip: records by their number of labels.
        valence: records by rounded valence.
        verified: scores of the blind verifier.
        human: records that both human rounds have confirmed.
        own: mean F on the wheels of the annotated labels against those that the manifest already had; None where the
            wheels list none of the latter.
        steps: step -> records, tokens in, tokens out.
    """

    n: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    checks: Counter[tuple[str, str]] = field(default_factory=Counter)
    clues: Counter[str] = field(default_factory=Counter)
    words: dict[str, Counter[int]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)
    per_clip: Counter[int] = field(default_factory=Counter)
    valence: Counter[int] = field(default_factory=Counter)
    descriptions: Counter[str] = field(default_factory=Counter)
    transcripts: int = 0
    verified: list[float] = field(default_factory=list)
    human: int = 0
    own: list[float | None] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=dict)

    def add(self, record: Annotation) -> None:
        """Count one record; of a dropped one, only the verdict, the checks and the steps."""
        self.n += 1
        result = verdict(record)
        self.verdicts[result] += 1
        for name, way in {(row["check"], row["verdict"]) for row in record.checks}:
            if name != "blind_verifier" and not name.startswith("human_"):
                self.checks[name, way] += 1
        for step in record.provenance:
            totals = self.steps.setdefault(step.step, [0, 0, 0])
            for place, value in enumerate((1, step.tokens_in, step.tokens_out)):
                totals[place] += value
        if result == "drop":
            return
        self.verified += [
            float(row["score"]) for row in record.checks if row["check"] == "blind_verifier" and row.get("score")
        ]
        self.human += is_reviewed(record)
        if own := record.given.get(record.lang, {}).get("labels"):
            self.own.append(wheel_f(own, record.labels))
        self.transcripts += bool(record.transcript)
        self.descriptions.update(list(record.description))
        self.clues.update({clue.modality for clue in record.clues})
        for clue in record.clues:
            size = len(clue.text) if record.lang == "zh" else len(clue.text.split())
            self.words.setdefault(clue.modality, Counter())[size] += 1
        self.per_clip[len(record.labels)] += 1
        self.labels.update(label.lower() for label in record.labels)
        if record.valence is not None:
            self.valence[round(record.valence)] += 1

    def finish(self) -> RecordsReport:
        """Group the labels by sectors of the first wheel; words that it does not list are `unknown`."""
        from affectgpt.metrics.wheel import LEVEL1, WheelGrouping

        grouping = WheelGrouping(load_lexicon("builtin"))
        for label, n in self.labels.items():
            self.sectors[grouping.groups(label).get(LEVEL1[0], "unknown")] += n
        return self

    @property
    def own_scores(self) -> list[float]:
        return [score for score in self.own if score is not None]

    def row(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "records": self.n,
            "verdicts": {name: self.verdicts[name] for name in VERDICTS},
            "checks": [{"check": name, "verdict": way, "records": n} for (name, way), n in sorted(self.checks.items())],
            "human_checked": self.human,
            "transcripts": self.transcripts,
            "descriptions": dict(sorted(self.descriptions.items())),
            "records_with_clue": dict(self.clues),
            "median_clue_words": {name: median_of(counts) for name, counts in self.words.items()},
            "labels": dict(self.labels.most_common()),
            "labels_per_clip": {str(size): n for size, n in sorted(self.per_clip.items())},
            "sectors": dict(self.sectors.most_common()),
            "valence": {str(value): n for value, n in sorted(self.valence.items())},
            "verifier": {"records": len(self.verified), "mean": _mean(self.verified), "agrees_from": AGREES_FROM},
            "own_labels": {"records": len(self.own), "scored": len(self.own_scores), "mean": _mean(self.own_scores)},
            "steps": {
                name: {"done": n, "tokens_in": n_in, "tokens_out": n_out}
                for name, (n, n_in, n_out) in self.steps.items()
            },
        }


def report_of(records: Iterable[Annotation]) -> RecordsReport:
    """The report on `records`."""
    report = RecordsReport()
    for record in records:
        report.add(record)
    return report.finish()


def median_of(counts: Counter[int]) -> int:
    """The (lower) median of values given as value -> count.

    >>> median_of(Counter({3: 1, 5: 2, 90: 1}))
    5
    """
    half, seen = (counts.total() + 1) // 2, 0
    for value, n in sorted(counts.items()):
        seen += n
        if seen >= half:
            return value
    raise ValueError("no values")


def _mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def format_report(report: RecordsReport, folder: Path) -> str:
    """The report on screen, at most 100 columns wide."""
    kept = report.n - report.verdicts["drop"]
    shown = ", ".join(f"{name} {report.verdicts[name]}" for name in VERDICTS)
    lines = [f"{report.n} records: {shown}"]
    if report.human:
        lines.append(f"confirmed by people in two rounds: {report.human}")
    for (name, way), n in worst_first(report.checks):
        lines.append(f"  {way:<6}{n:>8}  {100 * n / report.n:5.1f} %  {name}")
    if kept:
        lines.append("of those not dropped:")
        has = [*((f"{name} clue", report.clues[name]) for name in CLUE_MODALITIES), ("transcript", report.transcripts)]
        has += [(f"description {lang}", n) for lang, n in sorted(report.descriptions.items())]
        has.append(("labels", kept - report.per_clip[0]))
        for name, n in has:
            counts = report.words.get(name.removesuffix(" clue"))
            size = f"  median length {median_of(counts)}" if counts else ""
            lines.append(f"  {name:<16}{n:>8}  {100 * n / kept:5.1f} %{size}")
        mean = report.labels.total() / kept
        lines.append(f"{len(report.labels)} distinct labels, {mean:.2f} per clip; the most frequent:")
        lines += _wrapped([f"{label} {n}" for label, n in report.labels.most_common(20)])
        unknown = report.sectors["unknown"]
        if unknown:
            share = 100 * unknown / report.labels.total()
            lines.append(f"  not on the emotion wheel: {unknown} ({share:.1f} % of all labels)")
    if report.verified:
        low = sum(score < AGREES_FROM for score in report.verified)
        lines.append(
            f"blind verifier: {len(report.verified)} records, mean F on the wheels {_mean(report.verified):.3f}; "
            f"{low} below {AGREES_FROM}"
        )
    if report.own:
        mean = _mean(report.own_scores)
        shown = "on no wheel" if mean is None else f"mean F of the annotated ones on the wheels {mean:.3f}"
        fewer = f" ({len(report.own_scores)})" if len(report.own_scores) < len(report.own) else ""
        lines.append(f"labels of your manifest, kept: {len(report.own)} records, {shown}{fewer}")
    for name in ("agreement.json", "review_report.json"):
        if (folder / name).is_file():
            lines += [line[:WIDTH] for line in json.loads((folder / name).read_text(encoding="utf-8"))["told"]]
    return "\n".join(lines)


def _wrapped(words: list[str]) -> list[str]:
    lines = ["  "]
    for word in words:
        if len(lines[-1]) + len(word) + 2 > WIDTH:
            lines.append("  ")
        lines[-1] += f"{word}, "
    return [line.rstrip(", ") for line in lines]


def figures(report: RecordsReport) -> dict[str, float]:
    """The numbers for a dashboard by name."""
    found: dict[str, float] = {"annotate/records": report.n, "annotate/human": report.human}
    found |= {f"annotate/verdict/{name}": n for name, n in report.verdicts.items()}
    found |= {f"annotate/check/{name}: {way}": n for (name, way), n in report.checks.items()}
    found |= {f"annotate/clues/{name}": n for name, n in report.clues.items()}
    for step, (n, tokens_in, tokens_out) in report.steps.items():
        found |= {
            f"annotate/step/{step}/{key}": value
            for key, value in (("records", n), ("tokens in", tokens_in), ("tokens out", tokens_out))
        }
    if report.verified:
        found["annotate/blind verifier, mean"] = statistics.fmean(report.verified)
    if own := [value for value in report.own if value is not None]:
        found["annotate/F on labels of the manifest, mean"] = statistics.fmean(own)
    return found


def draw_report(report: RecordsReport, folder: Path) -> list[Path]:
    """Plots as PNG, SVG and PDF: checks, labels, sectors of the wheel, labels per clip, valence, lengths of clues."""
    made = []

    def bars(name: str, counts: Mapping[str, float], title: str, unit: str, horizontal: bool) -> None:
        if counts:
            draw_bars(folder / name, list(counts), {"": list(counts.values())}, title=title, unit=unit,
                      horizontal=horizontal)  # fmt: skip
            made.append(folder / name)

    found = {f"{way}: {name}": n for (name, way), n in worst_first(report.checks)}
    bars("checks", found, f"What checks found in {report.n} records", "records", True)
    top = dict(report.labels.most_common(N_LABELS))
    bars("labels", top, _title_of_labels(report, len(top)), "records", True)
    sectors = dict(report.sectors.most_common())
    bars("sectors", sectors, "Labels by sector of the first emotion wheel", "labels", True)
    sizes = {str(size): report.per_clip[size] for size in range(max(report.per_clip, default=-1) + 1)}
    bars("labels_per_clip", sizes, "Labels per clip", "records", False)
    valence = {str(value): report.valence[value] for value in range(-5, 6)} if report.valence else {}
    bars("valence", valence, "Valence, rounded", "records", False)
    medians = {name: float(median_of(report.words[name])) for name in CLUE_MODALITIES if name in report.words}
    bars("clue_lengths", medians, "Median length of a clue", "words (Chinese: characters)", False)
    return made


def _title_of_labels(report: RecordsReport, shown: int) -> str:
    n = len(report.labels)
    return f"The {shown} most frequent of {n} labels" if n > shown else f"All {n} labels"


def write_report(report: RecordsReport, folder: Path, pictures: bool) -> list[Path]:
    """Write report/report.json and the plots; returns the plots' paths without suffix."""
    target = folder / "report"
    write_json_atomic(target / "report.json", report.row())
    return draw_report(report, target) if pictures else []
