"""Compare systems on the same samples with paired tests, and summarize runs of several seeds as mean ± std."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.metrics.evaluate import Predictions, evaluate_samples
from affectgpt.metrics.lexicon import Lexicon, load_lexicon
from affectgpt.metrics.report import PRIMARY, Report, percent, percent_interval
from affectgpt.metrics.stats import MIN_RESAMPLES, PairedTest, paired_test
from affectgpt.metrics.wheel import GROUPINGS, LEVEL1
from affectgpt.runtime import InputError, write_json_atomic
from affectgpt.tables import format_table


def named_after_files(paths: Sequence[str | Path]) -> dict[str, Path]:
    """A name for each file: its stem, prefixed with as many parent folders as needed to make the names unique.

    >>> list(named_after_files(["runs/a/predictions.jsonl", "runs/b/predictions.jsonl"]))
    ['a/predictions', 'b/predictions']
    """
    files = [Path(path) for path in paths]
    names = _unique_names([file.with_suffix("") for file in files])
    if names is None:
        raise InputError(f"a prediction file is given twice: {[str(file) for file in files]}")
    return dict(zip(names, files, strict=True))


def named_after_folders(paths: Iterable[str | Path]) -> dict[str, Path]:
    """The same for folders, which keep a dot in their name; one that is given several times is named once.

    >>> list(named_after_folders(["x/fine-1.5", "y/fine-1.5", "x/fine-1.5"]))
    ['x/fine-1.5', 'y/fine-1.5']
    """
    folders = list(dict.fromkeys(Path(path).absolute() for path in paths))
    names = _unique_names(folders)
    assert names is not None  # absolute paths differ
    return dict(zip(names, folders, strict=True))


def _unique_names(paths: Sequence[Path]) -> list[str] | None:
    """The last parts of each path, as many as make all of them differ; None = two paths are equal."""
    depth = max((len(path.parts) for path in paths), default=1)
    for n_parts in range(1, depth + 1):
        names = ["/".join(path.parts[-n_parts:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
    return None


@dataclass(frozen=True)
class Comparison:
    """A report per system, and a paired test of the level-1 mean F_S (first minus second) for every pair.

    `by_sample` has precision and recall of every reference on the five wheels, [n_references, 5, 2]; NaN = not scored.
    """

    reports: Mapping[str, Report]
    tests: Mapping[tuple[str, str], PairedTest]
    by_sample: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def table(self) -> str:
        """Scores side by side, in percent, then every pair with its difference, interval and p-value."""
        reports = list(self.reports.values())
        width = max(10, *map(len, self.reports))
        rows = [("F_S             ", *(f"{name:>{width}}" for name in self.reports))]
        rows += [(name, *(percent(report.scores[name].f_score) for report in reports)) for name in reports[0].scores]
        rows.append(("M-avg", *(percent(report.m_avg or 0) for report in reports)))
        rows.append(("n", *(str(report.primary.n) for report in reports)))
        for label, count in (("missing", "missing"), ("without labels", "unparsed"), ("extra ids", "extra")):
            rows.append((label, *(str(getattr(report.counts, count)) for report in reports)))
        lines = [format_table(rows), "", f"{PRIMARY}, differences on the same samples:"]
        for (first, second), test in self.tests.items():
            figures = f"{percent(test.difference, '+')}  {percent_interval(test.interval, '+')}"
            lines.append(f"  {first} - {second}: {figures}  p = {test.p_value:.4f}")
        if len(self.tests) > 1:
            lines.append(f"  ({len(self.tests)} pairs were tested; multiply p by that for a cautious reading)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        tests = [{"first": a, "second": b, **asdict(test)} for (a, b), test in self.tests.items()]
        return {"reports": {name: report.to_dict() for name, report in self.reports.items()}, "tests": tests}

    def figures(self) -> dict[str, float]:
        """The numbers for a dashboard by name: F_S of every system, and every difference with its test."""
        found = {f"compare/{name}/F_S": report.primary.f_score for name, report in self.reports.items()}
        for (a, b), test in self.tests.items():
            values = {"difference": test.difference, "low": test.interval.low, "high": test.interval.high}
            found |= {f"compare/{a} - {b}/{key}": value for key, value in {**values, "p": test.p_value}.items()}
        return found

    def write(self, path: str | Path) -> None:
        write_json_atomic(Path(path), self.to_dict())


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
        InputError: fewer than two systems.
    """
    if len(systems) < 2:
        raise InputError(f"a comparison needs two systems or more, found {list(systems)}")
    lexicon = load_lexicon(lexicon)
    level1 = [GROUPINGS.index(grouping) for grouping in LEVEL1]
    reports, scores = {}, {}
    for name, predictions in systems.items():
        reports[name], by_sample = evaluate_samples(
            predictions, references, lexicon=lexicon, seed=seed, n_bootstrap=n_bootstrap
        )
        scores[name] = by_sample[:, level1]
    names = list(systems)
    n_resamples = max(n_bootstrap, MIN_RESAMPLES)  # n_bootstrap=0 leaves out the intervals of the reports only
    tests = {
        (first, second): paired_test(scores[first], scores[second], n_resamples=n_resamples, seed=seed)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }
    return Comparison(reports, tests, scores)


@dataclass(frozen=True)
class MeanStd:
    """A score over several runs of one system: mean, sample standard deviation (0 for one run), number of runs."""

    mean: float
    std: float
    n_runs: int

    def __str__(self) -> str:
        return f"{percent(self.mean)} ± {percent(self.std)} ({self.n_runs} runs)"


def over_seeds(reports: Sequence[Report]) -> dict[str, MeanStd]:
    """Mean and standard deviation of every F_S over runs with different seeds.

    Raises:
        InputError: no reports, or reports with different lexicons or groupings.
    """
    if not reports:
        raise InputError("no reports to average")
    if len({(report.lexicon_checksum, tuple(report.scores)) for report in reports}) > 1:
        raise InputError("the reports have different lexicons or groupings; score all runs in the same way")
    return {name: mean_std([report.scores[name].f_score for report in reports]) for name in reports[0].scores}


def mean_std(values: Sequence[float]) -> MeanStd:
    return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
