"""The analyses of the papers; each prints a table and writes JSON, PNG and SVG files."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt import plots as draw
from affectgpt.chat.served import ChatClient
from affectgpt.config import AnalyzeConfig, BenchmarkConfig
from affectgpt.metrics import (
    GROUPINGS,
    empty,
    evaluate,
    load_lexicon,
    random_labels,
    read_predictions,
    read_references,
)
from affectgpt.metrics.baselines import MER2023_EMOTIONS
from affectgpt.metrics.benchmarks import read_true_values
from affectgpt.metrics.classification import UNPARSED, classify, pearson, to_class
from affectgpt.metrics.compare import compare, named_after_files, over_seeds
from affectgpt.metrics.evaluate import labels_by_id
from affectgpt.metrics.io import ScoreFileError
from affectgpt.metrics.judge import JUDGE_ASPECTS, judge
from affectgpt.metrics.matching import match_texts
from affectgpt.metrics.sets import jaccard
from affectgpt.metrics.wheel import WheelGrouping
from affectgpt.prompts import LABEL_LINE
from affectgpt.runtime import InputError, UserError, write_json_atomic

log = logging.getLogger("affectgpt")
Labels = Mapping[str, Sequence[str]]


@dataclass
class Request:
    """A parsed command line: named values, files given by name (S0=a.jsonl), plain files."""

    analysis: str = "analysis"
    out: Path = Path("analysis")
    references: str | None = None
    table: str | None = None
    labels: str | None = None
    split: str | None = None
    lexicon: str = "builtin"
    grouping: str = "M1"
    lang: str = "en"
    classes: tuple[str, ...] = ()
    k: int = 1
    seed: int = 42
    n_bootstrap: int = 1000
    pictures: bool = True
    model: str | None = None
    base_url: str | None = None
    named: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def truth(self) -> dict[str, tuple[str, ...]]:
        if self.references is None:
            raise UserError("references= is missing: a file with the true labels")
        return read_references(self.references, split=self.split)


def correlation_matrix(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], np.ndarray]:
    """PCC between metrics over systems (OV-MER paper, Table 4).  system -> metric -> value gives [n_metrics, n_metrics]

    >>> names, matrix = correlation_matrix({"a": {"x": 1, "y": 2}, "b": {"x": 2, "y": 4}, "c": {"x": 3, "y": 6}})
    >>> names, matrix.round(6).tolist()
    (['x', 'y'], [[1.0, 1.0], [1.0, 1.0]])
    """
    if len(scores) < 3:
        raise UserError(f"a correlation over {len(scores)} systems means nothing; give three or more")
    names = list(next(iter(scores.values())))
    columns = [[row[name] for row in scores.values()] for name in names]
    return names, np.array([[pearson(a, b) for b in columns] for a in columns])


def baselines(request: Request) -> dict[str, Any]:
    truth = request.truth()
    vocabulary: Sequence[str] = MER2023_EMOTIONS
    if request.labels is not None:  # drawn by their frequency in these references
        vocabulary = [word for labels in read_references(request.labels).values() for word in labels]
    systems: dict[str, Labels] = {"Empty": empty(truth), "Random": random_labels(truth, vocabulary, seed=request.seed)}
    return _side_by_side(request, systems, truth, "Heuristic baselines")


def side_by_side(request: Request) -> dict[str, Any]:
    truth = request.truth()
    systems = {name: read_predictions(path) for name, path in request.named.items()}
    systems |= {name: read_predictions(path) for name, path in named_after_files(request.files).items()}
    if len(systems) < 2:
        raise UserError(f"give two prediction files or more, as name=file; found {sorted(systems)}")
    return _side_by_side(request, systems, truth, " and ".join(systems))


def _side_by_side(request: Request, systems: Mapping[str, Any], truth: Labels, title: str) -> dict[str, Any]:
    result = compare(systems, truth, lexicon=request.lexicon, seed=request.seed, n_bootstrap=request.n_bootstrap)
    print(result.table())
    primary = {name: report.primary for name, report in result.reports.items()}
    figures = {
        "F_S": [100 * score.f_score for score in primary.values()],
        "precision": [100 * score.precision for score in primary.values()],
        "recall": [100 * score.recall for score in primary.values()],
    }
    _picture(request, lambda path: draw.draw_bars(path, list(primary), figures, title=title, unit="level 1 mean, %"))
    return result.to_dict()


def correlation(request: Request) -> dict[str, Any]:
    scores: dict[str, dict[str, float]] = {}
    if request.table is not None:
        with Path(request.table).open(encoding="utf-8-sig", newline="") as file:
            (_, *header), *rows = csv.reader(file)
        scores = {name: dict(zip(header, map(float, values), strict=True)) for name, *values in rows}
    else:
        truth = request.truth()
        files = {**request.named, **named_after_files(request.files)}
        for name, path in files.items():
            report = evaluate(read_predictions(path), truth, lexicon=request.lexicon, n_bootstrap=0)
            scores[name] = {key: score.f_score for key, score in report.scores.items() if key in GROUPINGS}
            scores[name]["M-avg"] = report.m_avg or 0.0
    names, matrix = correlation_matrix(scores)
    _print_matrix(names, names, matrix, "{:.3f}")
    title = f"PCC over {len(scores)} systems"
    _picture(request, lambda path: draw.draw_heat_map(path, matrix, names, names, title=title, low=0, high=1))
    return {"metrics": names, "pcc": matrix.tolist(), "systems": list(scores)}


def language(request: Request) -> dict[str, Any]:
    if len(request.named) < 2:
        raise UserError("give two label files or more by name: EE=ee.csv CC=cc.csv")
    grouping = WheelGrouping(load_lexicon(request.lexicon))
    sets = {name: read_references(path, split=request.split) for name, path in request.named.items()}
    names = list(sets)
    matrix = np.zeros((len(names), len(names)))
    counts = np.zeros_like(matrix, dtype=int)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            shared = [sample_id for sample_id in sets[a] if sample_id in sets[b]]
            first, second = ([grouping.map(sets[x][key], request.grouping) for key in shared] for x in (a, b))
            matrix[i, j], counts[i, j] = jaccard(zip(first, second, strict=True))
    _print_matrix(names, names, matrix, "{:.3f}")
    title = f"Jaccard similarity of label sets ({request.grouping})"
    _picture(request, lambda path: draw.draw_heat_map(path, matrix, names, names, title=title, low=0, high=1))
    return {"names": names, "jaccard": matrix.tolist(), "n": counts.tolist(), "grouping": request.grouping}


def onehot(request: Request) -> dict[str, Any]:
    truth = request.truth()
    rows = _column(request, ("label", "discrete", "onehot"))
    report = evaluate({key: [label] for key, label in rows.items()}, truth, lexicon=request.lexicon,
                      seed=request.seed, n_bootstrap=request.n_bootstrap)  # fmt: skip
    print(report.table())
    score = report.primary
    figures = {"one-hot labels": [100 * value for value in (score.f_score, score.precision, score.recall)]}
    _picture(request, lambda path: draw.draw_bars(
        path, ["F_S", "precision", "recall"], figures, title="One-hot against open labels", unit="%"))  # fmt: skip
    return report.to_dict()


def labels(request: Request) -> dict[str, Any]:
    truth = request.truth()
    words = Counter(word for found in truth.values() for word in found)
    sizes = Counter(len(found) for found in truth.values())
    lexicon = load_lexicon(request.lexicon)
    kinds = Counter(dict.fromkeys(("known", "unknown", "neutral", "negated"), 0))
    for word, n in words.items():
        kinds[lexicon.kind(word)] += n
    lengths = [len(text) for text in _column(request, ("description", "reason", "english"), needed=False).values()]
    total = sum(words.values())
    once = sum(n == 1 for n in words.values())
    result = {
        "clips": len(truth), "labels": total, "distinct": len(words), "once": once,
        "labels_per_clip": {str(size): n for size, n in sorted(sizes.items())},
        "mean_labels_per_clip": total / max(len(truth), 1),
        "share_of_the_ten_commonest": sum(n for _, n in words.most_common(10)) / max(total, 1),
        "kinds": dict(kinds), "frequencies": dict(words.most_common()),
        "description_characters": {"n": len(lengths), "mean": float(np.mean(lengths)) if lengths else None},
    }  # fmt: skip
    for key, value in result.items():
        if key != "frequencies":
            print(f"{key:<28}{value}")
    print("commonest: " + ", ".join(f"{word} {n}" for word, n in words.most_common(20)))
    most = words.most_common(30)
    counts = {"labels": [n for _, n in most]}
    _picture(request, lambda path: draw.draw_bars(
        path, [word for word, _ in most], counts, title=f"The {len(most)} commonest of {len(words)} labels",
        unit="occurrences", horizontal=True))  # fmt: skip
    histogram = {"clips": [sizes[size] for size in range(max(sizes, default=0) + 1)]}
    _picture(request, lambda path: draw.draw_bars(
        path, [str(size) for size in range(max(sizes, default=0) + 1)], histogram, title="Labels per clip",
        unit="clips"), "counts")  # fmt: skip
    return result


def wheel(request: Request) -> dict[str, Any]:
    truth, predicted = request.truth(), _predicted(request)
    grouping, name = WheelGrouping(load_lexicon(request.lexicon)), f"M3-W{request.k}-L1"
    shares = []
    for side in (list(truth.values()), [predicted.get(key, ()) for key in truth]):
        counts = Counter(group for found in side for word in found if (group := grouping.groups(word).get(name)))
        shares.append({group: n / counts.total() for group, n in counts.items()})
    true, answered = shares
    print(f"{'sector':<14}{'true %':>8}{'predicted %':>13}")
    for sector in sorted(set(true) | set(answered)):
        print(f"{sector:<14}{100 * true.get(sector, 0):>8.1f}{100 * answered.get(sector, 0):>13.1f}")
    _picture(request, lambda path: draw.draw_wheel(path, true, answered, title=f"Wheel {request.k}, level 1"))
    return {"wheel": request.k, "true": true, "predicted": answered}


def confusion(request: Request) -> dict[str, Any]:
    if not request.classes:
        raise UserError("classes= is missing: classes=happy,sad,neutral,angry")
    truth = {key: value.lower() for key, value in _column(request, ("label", "discrete")).items()}
    lexicon = load_lexicon(request.lexicon)
    predicted = _predicted(request)
    answers = [to_class(predicted.get(key, ()), request.classes, lexicon) for key in truth]
    result = classify(list(truth.values()), answers, request.classes)
    columns = [*result.classes, UNPARSED]
    _print_matrix(list(result.classes), columns, result.confusion, "{:d}")
    print(f"weighted F1 {100 * result.weighted_f1:.2f}  UAR {100 * result.uar:.2f}  WAR {100 * result.war:.2f}")
    shares = result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    _picture(request, lambda path: draw.draw_heat_map(
        path, shares, list(result.classes), columns, title="True (rows) and predicted", low=0, high=1))  # fmt: skip
    return {key: value for key, value in vars(result).items() if key != "confusion"} | {
        "confusion": result.confusion.tolist()
    }


def _predicted(request: Request) -> dict[str, tuple[str, ...]]:
    if len(request.files) != 1:
        raise UserError(f"give one prediction file; found {request.files}")
    return labels_by_id(read_predictions(request.files[0]), load_lexicon(request.lexicon))[0]


def _column(request: Request, names: Sequence[str], needed: bool = True) -> dict[str, str]:
    """id -> text of the first of the columns that the references have."""
    assert request.references is not None
    try:
        config = BenchmarkConfig(name="references", split=request.split)
        return {key: str(value) for key, value in read_true_values(Path(request.references), config, names).items()}
    except ScoreFileError:
        if needed:
            raise
        return {}


def _print_matrix(rows: Sequence[str], columns: Sequence[str], matrix: np.ndarray, fmt: str) -> None:
    width = max(9, *(len(name) + 2 for name in columns))
    print(" " * 12 + "".join(f"{name:>{width}}" for name in columns))
    for name, values in zip(rows, matrix, strict=True):
        print(f"{name:<12}" + "".join(f"{fmt.format(value):>{width}}" for value in values))


def _picture(request: Request, make: Callable[[Path], None], suffix: str = "") -> None:
    if request.pictures:
        path = request.out / (request.analysis + (f"-{suffix}" if suffix else ""))
        make(path)
        log.info("picture: %s.png, .svg", path)


def seeds(request: Request) -> dict[str, Any]:
    if len(request.files) < 2:
        raise UserError(f"give the prediction files of two runs or more; found {request.files}")
    truth = request.truth()
    reports = [
        evaluate(read_predictions(path), truth, lexicon=request.lexicon, n_bootstrap=0) for path in request.files
    ]
    spreads = over_seeds(reports)
    for name, value in spreads.items():
        print(f"{name:<16}{value}")
    errors = {"F_S": [(100 * value.std, 100 * value.std) for value in spreads.values()]}
    figures = {"F_S": [100 * value.mean for value in spreads.values()]}
    _picture(request, lambda path: draw.draw_bars(
        path, list(spreads), figures, title=f"Mean ± standard deviation of {len(reports)} runs", unit="F_S, %",
        errors=errors))  # fmt: skip
    return {name: vars(value) for name, value in spreads.items()}


def texts(request: Request) -> dict[str, Any]:
    truth, predicted = _descriptions(request)
    result = match_texts(truth, predicted, lang=request.lang)
    for name, value in result.scores.items():
        print(f"{name:<10}{value:8.2f}")
    for name, reason in result.unavailable.items():
        print(f"{name:<10} not computed: {reason}")
    libraries = ", ".join(f"{name} {version}" for name, version in result.libraries.items())
    print(f"n = {result.n}, lang = {request.lang}, {libraries}")
    figures = {"score": list(result.scores.values())}
    if result.scores:
        _picture(
            request, lambda path: draw.draw_bars(path, list(result.scores), figures, title="Text matching", unit="%")
        )
    return vars(result)


def by_judge(request: Request) -> dict[str, Any]:
    if request.model is None:
        raise UserError("model= is missing: the name of the judging model, pinned to a version")
    truth, predicted = _descriptions(request)
    client = ChatClient(request.model, base_url=request.base_url, cache=request.out / "llm-answers.jsonl")
    results = {aspect: judge(truth, predicted, client, aspect) for aspect in JUDGE_ASPECTS}
    for aspect, result in results.items():
        mean = "-" if result.mean is None else f"{result.mean:.2f}"
        print(f"{aspect:<16}{mean:>6}  n = {result.n}, {result.unparsed} unreadable, {result.model}")
    print(f"{client.n_asked} calls, {client.n_cached} answers from the cache")
    figures = {"mean": [result.mean or 0.0 for result in results.values()]}
    _picture(request, lambda path: draw.draw_bars(path, list(results), figures, title="LLM judge", unit="1 to 10"))
    return {aspect: vars(result) for aspect, result in results.items()}


def _descriptions(request: Request) -> tuple[dict[str, str], dict[str, str]]:
    """True descriptions, and the predicted texts without their label line."""
    request.truth()
    if len(request.files) != 1:
        raise UserError(f"give one prediction file; found {request.files}")
    heads = tuple(head.strip() for head in LABEL_LINE.values())
    predicted = {}
    for row in read_predictions(request.files[0]):
        lines = [line for line in row.text.splitlines() if not line.startswith(heads)]
        predicted[row.id] = "\n".join(lines).strip()
    return _column(request, ("description", "reason", "english" if request.lang == "en" else "chinese")), predicted


ANALYSES: dict[str, Callable[[Request], dict[str, Any]]] = {
    "baselines": baselines, "correlation": correlation, "language": language, "onehot": onehot, "labels": labels,
    "subtitles": side_by_side, "modalities": side_by_side, "wheel": wheel, "confusion": confusion,
    "seeds": seeds, "texts": texts, "judge": by_judge,
}  # fmt: skip


def run(config: AnalyzeConfig) -> int:
    """The analysis that the first of `config.files` names; writes its figures as JSON."""
    if not config.files or config.files[0] not in ANALYSES:
        found = config.files[0] if config.files else "none"
        raise InputError(f"expected an analysis, one of {list(ANALYSES)}, found {found!r}; --help describes them")
    analysis, *files = config.files
    values = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in ("files", "out")}
    values["classes"] = tuple(config.classes)
    request = Request(analysis=analysis, files=files, out=Path(config.out), **values)
    result = ANALYSES[analysis](request)
    write_json_atomic(request.out / f"{analysis}.json", result)
    log.info("figures: %s", request.out / f"{analysis}.json")
    return 0


if __name__ == "__main__":
    from affectgpt.cli import main

    main("analyze")
