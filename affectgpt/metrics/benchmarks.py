"""Benchmarks of the field: which file holds the truth, which score counts, and what others got.

A benchmark is a YAML file (conf/benchmark/) that becomes a `BenchmarkConfig`. Kinds:

- ``openset``: F_S, level-1 mean over the five wheels (EMER-Fine, OV-MERD, OV-MERD+, MER2025 and MER2026 tracks);
- ``hit_rate``: one-hot truth, free labels predicted (MER2023-SEMI, MER2024, MELD, IEMOCAP in MER-UniBench);
- ``sentiment``: true scores, weighted F1 of two classes (CMU-MOSI, CMU-MOSEI, CH-SIMS, CH-SIMS v2);
- ``classes``: one-hot truth, predictions mapped to the classes: weighted F1 (MER2023-SEMI) or UAR and WAR (DFEW).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config import BenchmarkConfig
from affectgpt.metrics.classification import classify, hit_rate, score_sentiment, sentiment_of, to_class
from affectgpt.metrics.evaluate import Predictions, evaluate, labels_by_id
from affectgpt.metrics.io import ScoreFileError, read_references
from affectgpt.metrics.lexicon import Lexicon, load_lexicon
from affectgpt.metrics.report import Report
from affectgpt.runtime import InputError, write_text_atomic

KINDS = ("openset", "hit_rate", "sentiment", "classes")
HELP = "see docs/metrics.md, section 'Benchmarks'"
_LABEL_COLUMNS = ("label", "discrete", "emotion", "emo")
_SCORE_COLUMNS = ("valence", "val", "score", "sentiment")
_ID_COLUMNS = ("id", "name", "names")


@dataclass(frozen=True)
class BenchmarkResult:
    """The primary `value` (fraction of 1) of a benchmark, its n, further figures, and published results beside it."""

    name: str
    title: str
    metric: str
    value: float
    n: int
    details: Mapping[str, Any]
    lexicon: str
    published: Sequence[Mapping[str, Any]] = ()
    report: Report | None = field(default=None, repr=False)

    def table(self) -> str:
        lines = [self.report.table(), ""] if self.report else []
        lines.append(f"{self.title}: {self.metric} {100 * self.value:.2f}  (n = {self.n}, {self.lexicon})")
        lines += [f"  {key}: {_shown(value)}" for key, value in self.details.items() if not isinstance(value, list)]
        if self.published:
            lines.append("published:")
            lines += [
                f"  {row['system']:<40}{row['value']:7.2f}  {row.get('metric', self.metric)}; {row['source']}"
                for row in self.published
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        row = {key: value for key, value in vars(self).items() if key not in ("report", "published")}
        return row | {"report": self.report.to_dict() if self.report else None}

    def write(self, path: str | Path) -> None:
        write_text_atomic(Path(path), json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")


def _shown(value: object) -> str:
    return f"{100 * value:.2f}" if isinstance(value, float) else str(value)


def run_benchmark(
    config: BenchmarkConfig,
    predictions: Predictions,
    *,
    lexicon: str | Path | Lexicon = "builtin",
    seed: int = 42,
    n_bootstrap: int = 1000,
) -> BenchmarkResult:
    """Score predictions on one benchmark.

    Raises:
        ValueError: no folder set, an unknown kind; ScoreFileError: the truth cannot be read.
    """
    if config.kind not in KINDS:
        raise InputError(f"benchmark {config.name!r}: kind {config.kind!r} is not one of {list(KINDS)}")
    path = truth_path(config)
    tables = load_lexicon(lexicon)
    if config.kind == "openset":
        references = read_references(path, split=config.split)
        report = evaluate(predictions, references, lexicon=tables, seed=seed, n_bootstrap=n_bootstrap)
        metric, value, n = "F_S, level 1 mean", report.primary.f_score, report.primary.n
        details: dict[str, Any] = {"M-avg": report.m_avg}
        return _result(config, metric, value, n, details, tables, report)

    labels, _ = labels_by_id(predictions, tables)
    unparsed = sum(not found for found in labels.values())
    if config.kind == "sentiment":
        scores = {key: float(value) for key, value in read_truth(path, config, _SCORE_COLUMNS).items()}
        result = score_sentiment(scores, {key: sentiment_of(labels.get(key, ()), tables) for key in scores})
        details = {
            "accuracy": result.published.accuracy,
            "weighted F1, neutral and unreadable apart": result.strict.weighted_f1,
            "dropped, true score 0": result.dropped_zero,
            "predicted neutral": result.neutral,
            "unreadable": result.unreadable,
        }
        return _result(config, "weighted F1", result.published.weighted_f1, result.published.n, details, tables)

    truths = {key: str(value).lower() for key, value in read_truth(path, config, _LABEL_COLUMNS).items()}
    details = {"missing": len(set(truths) - set(labels)), "without labels": unparsed}
    if config.kind == "hit_rate":
        hits = hit_rate(truths, labels, tables)
        details |= {"hit rate over all samples": hits.rate_of_all, "n by wheel": dict(hits.n)}
        return _result(config, "hit rate", hits.rate, max(hits.n.values()), details, tables)
    predicted = [to_class(labels.get(key, ()), config.classes, tables) for key in truths]
    scored = classify(list(truths.values()), predicted, config.classes)
    details |= {
        "weighted F1": scored.weighted_f1, "macro F1": scored.macro_f1, "UAR": scored.uar, "WAR": scored.war,
        "unparsed or none of the classes": scored.unparsed, "classes": list(scored.classes),
        "confusion": scored.confusion.tolist(),
    }  # fmt: skip
    metric = config.metric or "weighted F1"
    return _result(config, metric, details[metric], scored.n, details, tables)


def _result(
    config: BenchmarkConfig, metric: str, value: float, n: int, details: dict[str, Any], tables: Lexicon,
    report: Report | None = None,
) -> BenchmarkResult:  # fmt: skip
    published = [dict(row) for row in config.published]
    lexicon = f"{tables.name} {tables.version}"
    return BenchmarkResult(config.name, config.title, metric, value, n, details, lexicon, published, report)


def truth_path(config: BenchmarkConfig) -> Path:
    if config.folder is None:
        raise InputError(f"benchmark {config.name!r}: say where your copy lies: benchmark.folder=/path/to/data; {HELP}")
    path = Path(config.folder) / config.references
    if not path.is_file():
        raise ScoreFileError(
            f"benchmark {config.name!r}: no {config.references!r} in {config.folder!r}; name the file with "
            f"benchmark.references=, or the folder with benchmark.folder=; {HELP}"
        )
    return path


def read_truth(path: Path, config: BenchmarkConfig, columns: Sequence[str]) -> dict[str, Any]:
    """id -> label or score, from CSV, JSONL, or a label.npz of MERBench (only with trust_pickle)."""
    if path.suffix == ".npz":
        return _read_pickled(path, config, "val" if columns is _SCORE_COLUMNS else "emo")
    rows: list[dict[str, Any]]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    found: dict[str, Any] = {}
    for line_no, row in enumerate(rows, 2 if path.suffix == ".csv" else 1):
        if config.split is not None and row.get("split") != config.split:
            continue
        names = [row[name] for name in _ID_COLUMNS if row.get(name)]
        values = [row[name] for name in columns if row.get(name) not in (None, "")]
        if not names or not values:
            raise ScoreFileError(
                f"{path}:{line_no}: expected one of {list(_ID_COLUMNS)} and one of {list(columns)}, found {sorted(row)}"
            )
        found[str(names[0])] = values[0]
    if not found:
        raise ScoreFileError(f"{path}: no rows{f' of split {config.split!r}' if config.split else ''}; {HELP}")
    return found


def _read_pickled(path: Path, config: BenchmarkConfig, key: str) -> dict[str, Any]:
    if not config.trust_pickle:
        raise ScoreFileError(
            f"{path} holds pickled objects, which can run code when they are loaded. If it comes from the data set's "
            "authors, say benchmark.trust_pickle=true; or give a CSV with name and label"
        )
    with np.load(path, allow_pickle=True) as data:
        if config.array not in data.files:
            raise ScoreFileError(f"{path}: no array {config.array!r}, only {sorted(data.files)}; set benchmark.array=")
        corpus = data[config.array].tolist()
    values = {str(name): entry[key] for name, entry in corpus.items()}
    if key == "emo":  # some label files number their classes
        return {n: config.classes[int(v)] if isinstance(v, (int, np.integer)) else str(v) for n, v in values.items()}
    return values


def mean_result(results: Sequence[BenchmarkResult], name: str, title: str) -> BenchmarkResult:
    """The plain mean of several benchmarks' primary values (MER-UniBench); n is the number of benchmarks."""
    if not results:
        raise InputError("no benchmark results to average")
    details = {result.title: result.value for result in results}
    value = sum(result.value for result in results) / len(results)
    return BenchmarkResult(name, title, "mean of the primary scores", value, len(results), details, results[0].lexicon)
