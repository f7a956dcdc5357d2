"""The result of a benchmark: how it is printed and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.metrics.clip_scores import ClipScore
from affectgpt.metrics.report import Report, percent
from affectgpt.runtime import write_json_atomic
from affectgpt.tables import format_table


@dataclass(frozen=True)
class BenchmarkResult:
    """The primary `value` (a fraction of 1) of a benchmark, its n, further scores, and published results.

    `intervals` are 95 % bootstrap intervals over clips of `value`, by the name `metric`, and of figures in `details`.
    `clips` are the scores of single clips; a mean of several benchmarks has none. `answers` are instead the
    questions of a benchmark that asks its own, with the answers to them and their scores.
    """

    name: str
    title: str
    metric: str
    value: float
    n: int
    details: Mapping[str, Any]
    lexicon: str
    published: Sequence[Mapping[str, Any]] = ()
    report: Report | None = field(default=None, repr=False)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    clips: Sequence[ClipScore] = field(default=(), repr=False)
    answers: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def table(self) -> str:
        lines = [self.report.table(), ""] if self.report else []
        score = f"{self.metric} {percent(self.value)}{self._range(self.metric)}"
        lines.append(f"{self.title}: {score}  (n = {self.n}, {self.lexicon})")
        for key, value in self.details.items():
            if not isinstance(value, list):
                shown = percent(value) if isinstance(value, float) and not key.startswith("MSE") else value
                lines.append(f"  {key}: {shown}{self._range(key)}")
        if self.published:
            lines += ["", self.beside_published()]
        return "\n".join(lines)

    def _range(self, figure: str) -> str:
        if figure not in self.intervals:
            return ""
        low, high = self.intervals[figure]
        return f" [{percent(low)}, {percent(high)}]"

    def beside_published(self) -> str:
        """This result and the published ones, in percent: a column for each metric, since they are not comparable."""
        metrics = list(dict.fromkeys([self.metric, *(str(row.get("metric", self.metric)) for row in self.published)]))
        own = {self.metric: self.value} | {
            metric: value
            for metric in metrics
            for name, value in self.details.items()
            if isinstance(value, float) and (name == metric or name.startswith(f"{metric} ("))
        }
        cells = [("", *metrics, "source"), ("these predictions", *(_cell(own.get(name)) for name in metrics), "")]
        for row in self.published:
            value, of = row["value"] / 100, row.get("metric", self.metric)
            values = (_cell(value if name == of else None) for name in metrics)
            mark = " (secondary)" if row.get("certainty") == "secondary" else ""
            cells.append((row["system"], *values, row["source"] + mark))
        return format_table(cells, "l" + "r" * len(metrics) + "l")

    def to_dict(self) -> dict[str, Any]:
        row = {
            key: value for key, value in vars(self).items() if key not in ("report", "published", "clips", "answers")
        }
        return row | {"report": self.report.to_dict() if self.report else None}

    def write(self, path: str | Path) -> None:
        write_json_atomic(Path(path), self.to_dict())


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
