"""Several systems on the same samples: reports side by side, paired tests, and several seeds as mean ± std."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affectgpt.metrics.evaluate import Predictions, evaluate_samples
from affectgpt.metrics.lexicon import Lexicon, load_lexicon
from affectgpt.metrics.report import PRIMARY, Report
from affectgpt.metrics.stats import PairedTest, paired_test
from affectgpt.metrics.wheel import GROUPINGS, LEVEL1
from affectgpt.runtime import InputError, write_text_atomic


def named_after_files(paths: Sequence[str | Path]) -> dict[str, Path]:
    """A name for each system: its file's stem, or with as many folders before it as tell the files apart.

    >>> list(named_after_files(["runs/a/predictions.jsonl", "runs/b/predictions.jsonl"]))
    ['a/predictions', 'b/predictions']
    """
    files = [Path(path) for path in paths]
    depth = max((len(file.parts) for file in files), default=1)
    for n_parts in range(1, depth + 1):
        names = ["/".join(file.with_suffix("").parts[-n_parts:]) for file in files]
        if len(set(names)) == len(files):
            return dict(zip(names, files, strict=True))
    raise InputError(f"a predictions file is given twice: {[str(file) for file in files]}")


@dataclass(frozen=True)
class Comparison:
    """Reports by system and, for every pair, the paired test of the level-1 mean F_S (first minus second)."""

    reports: Mapping[str, Report]
    tests: Mapping[tuple[str, str], PairedTest]

    def table(self) -> str:
        """Side by side, in percent; under it every pair with its difference, interval and p-value."""
        width = max(12, *(len(name) + 2 for name in self.reports))
        rows = [*next(iter(self.reports.values())).scores]
        lines = [f"{'F_S':<16}" + "".join(f"{name:>{width}}" for name in self.reports)]
        lines += [
            f"{row:<16}" + "".join(f"{100 * report.scores[row].f_score:{width}.2f}" for report in self.reports.values())
            for row in rows
        ]
        lines.append(f"{'M-avg':<16}" + "".join(f"{100 * (r.m_avg or 0):{width}.2f}" for r in self.reports.values()))
        lines.append(f"{'n':<16}" + "".join(f"{report.primary.n:>{width}}" for report in self.reports.values()))
        for label, count in (("missing", "missing"), ("without labels", "unparsed"), ("extra ids", "extra")):
            values = (getattr(report.counts, count) for report in self.reports.values())
            lines.append(f"{label:<16}" + "".join(f"{value:>{width}}" for value in values))
        lines += ["", f"{PRIMARY}, differences on the same samples:"]
        for (first, second), test in self.tests.items():
            low, high = 100 * test.interval.low, 100 * test.interval.high
            lines.append(
                f"  {first} - {second}: {100 * test.difference:+.2f}  [{low:+.2f}, {high:+.2f}]  p = {test.p_value:.4f}"
            )
        if len(self.tests) > 1:
            lines.append(f"  ({len(self.tests)} pairs were tested; multiply p by that for a cautious reading)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        tests = [{"first": a, "second": b, **asdict(test)} for (a, b), test in self.tests.items()]
        return {"reports": {name: report.to_dict() for name, report in self.reports.items()}, "tests": tests}

    def write(self, path: str | Path) -> None:
        write_text_atomic(Path(path), json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")


def compare(
    systems: Mapping[str, Predictions],
    references: Mapping[str, Sequence[str]],
    *,
    lexicon: str | Path | Lexicon = "builtin",
    seed: int = 42,
    n_bootstrap: int = 1000,
) -> Comparison:
    """Score several systems against the same references and test every pair.

    Raises:
        ValueError: fewer than two systems.
    """
    if len(systems) < 2:
        raise InputError(f"comparing needs two systems or more, found {list(systems)}")
    tables = load_lexicon(lexicon)
    reports, scores = {}, {}
    for name, predictions in systems.items():
        reports[name], every = evaluate_samples(
            predictions, references, lexicon=tables, seed=seed, n_bootstrap=n_bootstrap
        )
        scores[name] = every[:, [GROUPINGS.index(grouping) for grouping in LEVEL1]]
    names = list(systems)
    tests = {
        (first, second): paired_test(scores[first], scores[second], n_resamples=max(n_bootstrap, 1), seed=seed)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }
    return Comparison(reports, tests)


@dataclass(frozen=True)
class Spread:
    """A score over several runs of one system: mean, sample standard deviation (0 for one run), number of runs."""

    mean: float
    std: float
    n_runs: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.std:.2f} ({self.n_runs} runs)"


def over_seeds(reports: Sequence[Report]) -> dict[str, Spread]:
    """Mean and standard deviation of every F_S over runs that differ in the seed.

    Raises:
        ValueError: no reports, or reports with another lexicon or other rows.
    """
    if not reports:
        raise InputError("no reports to average")
    if len({(report.lexicon_checksum, tuple(report.scores)) for report in reports}) > 1:
        raise InputError("the reports have different lexicons or groupings; score all runs alike")
    return {row: spread([report.scores[row].f_score for report in reports]) for row in reports[0].scores}


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
