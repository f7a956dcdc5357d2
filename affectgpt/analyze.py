"""The analyses of the papers; each prints a table and writes JSON, PNG, SVG and PDF files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt import plots
from affectgpt.chat.served import ChatClient
from affectgpt.clauses import join, split
from affectgpt.config import AnalyzeConfig, BenchmarkConfig
from affectgpt.metrics import (
    GROUPINGS,
    contents,
    empty,
    evaluate,
    load_lexicon,
    random_labels,
    read_labels,
    read_predictions,
    read_references,
)
from affectgpt.metrics.baselines import MER2023_EMOTIONS
from affectgpt.metrics.benchmarks import read_true_values, true_scores
from affectgpt.metrics.classification import UNPARSED, classify, pearson, pearson_interval, to_class, top_k_accuracy
from affectgpt.metrics.clip_scores import score_clips, sector_confusion, wheel_order
from affectgpt.metrics.compare import compare, named_after_files, over_seeds
from affectgpt.metrics.confidence import score_confidence
from affectgpt.metrics.evaluate import evaluate_samples, labels_by_id
from affectgpt.metrics.faithfulness import phrases
from affectgpt.metrics.io import ScoreFileError, read_descriptions
from affectgpt.metrics.judge import JUDGE_ASPECTS, extract_by_llm, judge, llm_grouping_score
from affectgpt.metrics.matching import match_texts
from affectgpt.metrics.preference import rank_models
from affectgpt.metrics.report import percent
from affectgpt.metrics.sets import jaccard, set_score
from affectgpt.metrics.stats import (
    Rate,
    bootstrap_interval,
    mean_f_statistic,
    mean_precision_statistic,
    mean_recall_statistic,
    weighted_means,
)
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping, label_shares
from affectgpt.prompts import LABEL_LINE
from affectgpt.runtime import InputError, write_json_atomic
from affectgpt.schema import Clause, Prediction, finite, parse_label_list, write_jsonl
from affectgpt.tables import cell_text, format_table, id_of, is_blank, read_rows

log = logging.getLogger("affectgpt")


def correlation_matrix(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], np.ndarray]:
    """PCC between metrics over systems (OV-MER paper, Table 4); NaN for a constant metric.

    system -> metric -> value gives [n_metrics, n_metrics].

    >>> names, matrix = correlation_matrix({"a": {"x": 1, "y": 2}, "b": {"x": 2, "y": 4}, "c": {"x": 3, "y": 6}})
    >>> names, matrix.round(6).tolist()
    (['x', 'y'], [[1.0, 1.0], [1.0, 1.0]])
    """
    if len(scores) < 3:
        raise InputError(f"a correlation needs three systems or more, found {list(scores)}")
    names = list(next(iter(scores.values())))
    columns = [[row[name] for row in scores.values()] for name in names]
    return names, np.array([[pearson(a, b) for b in columns] for a in columns])


def baselines(config: AnalyzeConfig) -> dict[str, Any]:
    truth = _truth(config)
    vocabulary: Sequence[str] = MER2023_EMOTIONS
    if config.labels is not None:  # draw labels by their frequency in these references
        vocabulary = [word for labels in read_references(config.labels).values() for word in labels]
    systems = {"Empty": empty(truth), "Random": random_labels(truth, vocabulary, seed=config.seed)}
    return _compare(config, systems, truth, "Heuristic baselines")


def side_by_side(config: AnalyzeConfig) -> dict[str, Any]:
    truth = _truth(config)
    systems = {name: read_predictions(path) for name, path in _named_files(config).items()}
    if len(systems) < 2:
        raise InputError(f"give two prediction files or more, as name=file; found {sorted(systems)}")
    return _compare(config, systems, truth, " and ".join(systems))


def _compare(
    config: AnalyzeConfig, systems: Mapping[str, Any], truth: Mapping[str, Sequence[str]], title: str
) -> dict[str, Any]:
    result = compare(systems, truth, lexicon=config.lexicon, seed=config.seed, n_bootstrap=config.n_bootstrap)
    print(result.table())
    _draw_scores(config, result.by_sample, title=title)
    return result.to_dict()


_STATISTICS = {"F_S": mean_f_statistic, "precision": mean_precision_statistic, "recall": mean_recall_statistic}


def _draw_scores(config: AnalyzeConfig, by_sample: Mapping[str, np.ndarray], *, title: str) -> None:
    """F_S, precision and recall of each system, averaged over the wheels, with 95 % bootstrap intervals over clips.

    Args:
        by_sample: system -> precision and recall of every reference, [n_references, 5, 2]; NaN = not scored.
    """
    values: dict[str, list[float | None]] = {name: [] for name in _STATISTICS}
    intervals: dict[str, list[plots.Range | None]] = {name: [] for name in _STATISTICS}
    for scores in by_sample.values():
        means = weighted_means(scores, np.ones((1, len(scores))))
        for name, statistic in _STATISTICS.items():
            values[name].append(100 * float(statistic(means)[0]))
            found = bootstrap_interval(scores, statistic, n_bootstrap=config.n_bootstrap, seed=config.seed)
            intervals[name].append(None if found is None else (100 * found.low, 100 * found.high))
    unit = "level 1 mean, %" + (", with 95 % intervals" if config.n_bootstrap else "")
    _draw(config, plots.draw_bars, list(by_sample), values, title=title, unit=unit, intervals=intervals)


def correlation(config: AnalyzeConfig) -> dict[str, Any]:
    scores: dict[str, dict[str, float]] = {}
    if config.table is not None:
        scores = _read_scores(Path(config.table))
    else:
        truth = _truth(config)
        for name, path in _named_files(config).items():
            report = evaluate(read_predictions(path), truth, lexicon=config.lexicon, n_bootstrap=0)
            scores[name] = {key: score.f_score for key, score in report.scores.items() if key in GROUPINGS}
            scores[name]["M-avg"] = report.m_avg or 0.0
    names, matrix = correlation_matrix(scores)
    _print_matrix(names, names, matrix, "{:.3f}")
    title = f"PCC over {len(scores)} systems"
    low = -1 if (matrix < 0).any() else 0
    _draw(config, plots.draw_heat_map, matrix, names, names, title=title, low=low, high=1)
    shown = [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]  # JSON has no NaN
    return {"metrics": names, "pcc": shown, "systems": list(scores)}


def _read_scores(path: Path) -> dict[str, dict[str, float]]:
    """A table of system, metric, metric, ... as system -> metric -> value."""
    scores: dict[str, dict[str, float]] = {}
    for where, row in read_rows(path):
        try:
            (_, system), *values = row.items()
            found = {metric: float(value) for metric, value in values}
        except (TypeError, ValueError):
            raise InputError(f"{where}: expected a system and numbers, found {list(row.values())}") from None
        if str(system) in scores:
            raise InputError(f"{where}: system {str(system)!r} is there twice; expected one row for each system")
        if scores and found.keys() != (metrics := next(iter(scores.values())).keys()):
            raise InputError(f"{where}: expected the metrics of the first row, {[*metrics]}, found {[*found]}")
        scores[str(system)] = found
    return scores


def language(config: AnalyzeConfig) -> dict[str, Any]:
    if len(config.named) < 2:
        raise InputError("give two label files or more by name: EE=ee.csv CC=cc.csv")
    grouping = WheelGrouping(load_lexicon(config.lexicon))
    sets = {name: read_references(path, split=config.split) for name, path in config.named.items()}
    names = list(sets)
    matrix = np.zeros((len(names), len(names)))
    counts = np.zeros_like(matrix, dtype=int)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            shared = [sample_id for sample_id in sets[a] if sample_id in sets[b]]
            first, second = ([grouping.map(sets[x][key], config.grouping) for key in shared] for x in (a, b))
            matrix[i, j], counts[i, j] = jaccard(zip(first, second, strict=True))
    shown = np.where(counts > 0, matrix, np.nan)
    _print_matrix(names, names, shown, "{:.3f}")
    title = f"Jaccard similarity of label sets ({config.grouping})"
    _draw(config, plots.draw_heat_map, shown, names, names, title=title, low=0, high=1)
    return {"names": names, "jaccard": matrix.tolist(), "n": counts.tolist(), "grouping": config.grouping}


def onehot(config: AnalyzeConfig) -> dict[str, Any]:
    truth = _truth(config)
    predictions = {key: [label] for key, label in _column(config, ("label", "discrete", "onehot"), "emo").items()}
    report, by_sample = evaluate_samples(
        predictions, truth, lexicon=config.lexicon, seed=config.seed, n_bootstrap=config.n_bootstrap
    )
    print(report.table())
    level1 = by_sample[:, [GROUPINGS.index(name) for name in LEVEL1]]
    _draw_scores(config, {"one-hot labels": level1}, title="One-hot against open labels")
    return report.to_dict()


def labels(config: AnalyzeConfig) -> dict[str, Any]:
    truth = _truth(config)
    words = Counter(word for found in truth.values() for word in found)
    sizes = Counter(len(found) for found in truth.values())
    lexicon = load_lexicon(config.lexicon)
    kinds = Counter(dict.fromkeys(("known", "unknown", "neutral", "negated"), 0))
    for word, n in words.items():
        kinds[lexicon.kind(word)] += n
    lengths = [len(text) for text in _column(config, ("description", "reason", "english"), required=False).values()]
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
    top = dict(words.most_common(30))
    title = f"The {len(top)} commonest of {len(words)} labels"
    bars = {"labels": list(top.values())}
    _draw(config, plots.draw_bars, list(top), bars, title=title, unit="occurrences", horizontal=True)
    ticks = range(max(sizes, default=0) + 1)
    bars = {"clips": [sizes[size] for size in ticks]}
    _draw(config, plots.draw_bars, list(map(str, ticks)), bars, title="Labels per clip", unit="clips", suffix="-counts")
    return result


def wheel(config: AnalyzeConfig) -> dict[str, Any]:
    truth, predicted = _truth(config), _predicted_labels(config)
    if not 1 <= config.k <= len(LEVEL1):
        raise InputError(f"k={config.k}: expected the number of a wheel, 1 to {len(LEVEL1)}")
    grouping = WheelGrouping(load_lexicon(config.lexicon))
    answers = [predicted.get(key, ()) for key in truth]
    found = label_shares(
        list(truth.values()), answers, grouping, config.k, n_bootstrap=config.n_bootstrap, seed=config.seed
    )
    print(f"{'sector':<14}{'true %':>8}{'predicted %':>13}")
    for sector, (share, of_predicted) in zip(found.sectors, found.shares, strict=True):
        print(f"{sector:<14}{100 * share:>8.1f}{100 * of_predicted:>13.1f}")
    true, answered, ranges = found.side(0), found.side(1), found.ranges()
    title = f"Wheel {config.k}, level 1" + (", with 95 % intervals" if ranges else "")
    order = wheel_order(grouping.lexicon, config.k)
    _draw(config, plots.draw_wheel, true, answered, title=title, intervals=ranges, order=order)
    return {"wheel": config.k, "true": true, "predicted": answered}


def confusion(config: AnalyzeConfig) -> dict[str, Any]:
    if not config.classes:
        raise InputError("classes= is missing: classes=happy,sad,neutral,angry")
    truth = {key: value.lower() for key, value in _column(config, ("label", "discrete"), "emo").items()}
    lexicon = load_lexicon(config.lexicon)
    predicted = _predicted_labels(config)
    answers = [to_class(predicted.get(key, ()), config.classes, lexicon) for key in truth]
    result = classify(list(truth.values()), answers, config.classes)
    columns = [*result.classes, UNPARSED]
    _print_matrix(result.classes, columns, result.confusion, "{:d}")
    print(f"weighted F1 {percent(result.weighted_f1)}  UAR {percent(result.uar)}  WAR {percent(result.war)}")
    n_true = result.confusion.sum(axis=1, keepdims=True)
    shares = np.where(n_true > 0, result.confusion / np.maximum(n_true, 1), np.nan)  # no row without a true clip
    title = "Shares of the true class"
    sides = ("true", "predicted")
    _draw(config, plots.draw_heat_map, shares, result.classes, columns, title=title, low=0, high=1, labels=sides)
    return vars(result) | {"confusion": result.confusion.tolist()}


def sectors(config: AnalyzeConfig) -> dict[str, Any]:
    truth, lexicon = _truth(config), load_lexicon(config.lexicon)
    rows = score_clips(read_predictions(_prediction_file(config)), truth, lexicon=lexicon)
    result = sector_confusion(rows, config.k, wheel_order(lexicon, config.k))
    _print_matrix(result.sectors, result.sectors, result.counts, "{:d}")
    agreement = result.agreement
    if agreement.interval is not None:
        low, high = agreement.interval
        share = f"{percent(agreement.value or 0)} % [{percent(low)}, {percent(high)}]"
        print(f"clips in their true sector: {share} ({agreement.count} of {agreement.n})")
    n_true = result.counts.sum(axis=1, keepdims=True)
    shares = np.where(n_true > 0, result.counts / np.maximum(n_true, 1), np.nan)
    names = [f"{name} ({n})" for name, n in zip(result.sectors, n_true[:, 0], strict=True)]
    title, sides = f"Wheel {config.k}: shares of the true sector", ("true sector (clips)", "predicted sector")
    _draw(config, plots.draw_heat_map, shares, names, result.sectors, title=title, low=0, high=1, labels=sides)
    return result.to_dict()


def seeds(config: AnalyzeConfig) -> dict[str, Any]:
    files = config.files[1:]
    if len(files) < 2:
        raise InputError(f"give the prediction files of two runs or more; found {files}")
    truth = _truth(config)
    reports = [evaluate(read_predictions(path), truth, lexicon=config.lexicon, n_bootstrap=0) for path in files]
    scores = over_seeds(reports)
    for name, value in scores.items():
        print(f"{name:<16}{value}")
    bars = {"F_S": [100 * value.mean for value in scores.values()]}
    spread = {"F_S": [(100 * (value.mean - value.std), 100 * (value.mean + value.std)) for value in scores.values()]}
    title = f"Mean ± standard deviation of {len(reports)} runs"
    _draw(config, plots.draw_bars, list(scores), bars, title=title, unit="F_S, %", intervals=spread)
    return {name: vars(value) for name, value in scores.items()}


def texts(config: AnalyzeConfig) -> dict[str, Any]:
    truth, predicted = _descriptions(config)
    result = match_texts(
        truth, predicted, lang=config.lang, n_bootstrap=config.n_bootstrap, seed=config.seed, wordnet=config.wordnet
    )
    for name, value in result.scores.items():
        interval = result.intervals.get(name)
        print(f"{name:<10}{value:8.2f}" + (f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""))
    for name, reason in result.unavailable.items():
        print(f"{name:<10} not computed: {reason}")
    libraries = ", ".join(f"{name} {version}" for name, version in result.libraries.items())
    print(f"n = {result.n}, lang = {config.lang}, {libraries}")
    if result.scores:
        bars = {"score": list(result.scores.values())}
        intervals = {"score": [result.intervals.get(name) for name in result.scores]}
        unit = "%, with 95 % intervals" if result.intervals else "%"
        _draw(config, plots.draw_bars, list(result.scores), bars, title="Text matching", unit=unit, intervals=intervals)
    return vars(result)


def by_judge(config: AnalyzeConfig) -> dict[str, Any]:
    client = _client(config)
    truth, predicted = _descriptions(config)
    results = {aspect: judge(truth, predicted, client, aspect) for aspect in JUDGE_ASPECTS}
    for aspect, result in results.items():
        mean = "-" if result.mean is None else f"{result.mean:.2f}"
        print(f"{aspect:<16}{mean:>6}  n = {result.n}, {result.unparsed} unreadable, {result.model}")
    print(f"{client.n_asked} calls, {client.n_cached} answers from the cache")
    bars = {"mean": [result.mean for result in results.values()]}
    intervals = {"mean": [_interval_of_mean(list(result.by_id.values()), config) for result in results.values()]}
    unit = "1 to 10, with 95 % intervals" if config.n_bootstrap else "1 to 10"
    _draw(config, plots.draw_bars, list(results), bars, title="LLM judge", unit=unit, intervals=intervals)
    return {aspect: vars(result) for aspect, result in results.items()}


def discrete(config: AnalyzeConfig) -> dict[str, Any]:
    classes, lexicon = tuple(config.classes) or contents.CANDIDATES, load_lexicon(config.lexicon)
    columns = ("label", "discrete", "emo", "emotions")
    truth = {key: label.lower() for key, label in _column(config, columns, "emo").items()}
    if outside := sorted(set(truth.values()) - set(classes)):
        raise InputError(f"true labels {outside} are not among the classes {list(classes)}; set classes=")
    rankings: Mapping[str, tuple[str, ...] | None]
    if given := _given(config, "ranking"):
        by = "column ranking"
        rankings = {
            key: contents.in_classes(parse_label_list(value) or (), classes, lexicon) for key, value in given.items()
        }
    else:
        client = _client(config)
        rankings, by = contents.rank_emotions(_texts(config), client, lexicon, classes), _by(client)
    shared, counts = _shared(config, truth, rankings)
    true, found = [truth[key] for key in shared], [rankings[key] or () for key in shared]
    rates = {f"top-{k}": Rate(round(top_k_accuracy(true, found, k) * len(shared)), len(shared)) for k in (1, 2)}
    for name, rate in rates.items():
        low, high = rate.interval or (0, 0)
        print(f"{name:<8}{percent(rate.value or 0)} %  [{percent(low)}, {percent(high)}]  {rate.count} of {rate.n}")
    _print_counts(counts, by)
    bars = {"accuracy": [100 * (rate.value or 0) for rate in rates.values()]}
    intervals = {
        "accuracy": [(100 * rate.interval[0], 100 * rate.interval[1]) for rate in rates.values() if rate.interval]
    }
    unit = "%, with 95 % intervals"
    _draw(
        config,
        plots.draw_bars,
        list(rates),
        bars,
        title="One-hot label among the first",
        unit=unit,
        intervals=intervals,
    )
    return {name: rate.to_dict() for name, rate in rates.items()} | {"classes": classes, "ranked_by": by, **counts}


NO_VALENCE = -10
"""The valence of clips of MER2023 that have none."""


def valence(config: AnalyzeConfig) -> dict[str, Any]:
    scores = true_scores(_references(config), _as_benchmark(config))
    truth = {key: score for key, score in scores.items() if score != NO_VALENCE}
    values: Mapping[str, float | None]
    if given := _given(config, "valence"):
        values, by = {key: finite(value, f"the valence of {key!r}") for key, value in given.items()}, "column valence"
    else:
        client = _client(config)
        values, by = contents.estimate_valence(_texts(config), client), _by(client)
    shared, counts = _shared(config, truth, values)
    read = {key: value for key in shared if (value := values[key]) is not None}
    true, found = [truth[key] for key in read], list(read.values())
    pcc = pearson(true, found)
    interval = pearson_interval(true, found, n_bootstrap=config.n_bootstrap, seed=config.seed)
    shown = "not defined, one side is constant" if np.isnan(pcc) else f"{pcc:.3f}"
    print(f"PCC     {shown}" + (f"  [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""))
    print(f"mean    {np.mean(true):.2f} true, {np.mean(found):.2f} found")
    _print_counts(counts, by)
    low, high = contents.VALENCE
    grid = np.arange(low, high + 1)
    table = np.zeros((len(grid), len(grid)))
    for a, b in zip(true, found, strict=True):
        table[int(np.clip(round(a), low, high) - low), int(np.clip(round(b), low, high) - low)] += 1
    names = [f"{value:+.0f}" for value in grid]
    title = f"Clips by valence, PCC {pcc:.2f}"
    _draw(config, plots.draw_heat_map, table, names, names, title=title, fmt="{:.0f}", labels=("true", "found"))
    return {
        "pcc": None if np.isnan(pcc) else pcc,
        "interval": vars(interval) if interval else None,
        "estimated_by": by,
        **counts,
    }


def clues(config: AnalyzeConfig) -> dict[str, Any]:
    found: Mapping[str, tuple[str, ...] | None]
    if config.model is None:
        by = "the rules of affectgpt.clauses: visual clauses at commas"
        described = _described(config)
        divided = {key: split(text, config.lang) if isinstance(text, str) else text for key, text in described.items()}
        found = {
            key: tuple(clue for part in parts if part.modality == "visual" for clue in phrases(part.text, config.lang))
            for key, parts in divided.items()
        }
    else:
        client = _client(config)
        found, by = contents.list_visual_clues(_texts(config), client), _by(client)
    read = {key: listed for key, listed in found.items() if listed is not None}
    if not read:
        raise InputError(f"none of the {len(found)} answers about clues can be read; they are in llm-answers.jsonl")
    sizes = [len(listed) for listed in read.values()]
    interval = _interval_of_mean(sizes, config)
    counts = {"n": len(read), "unreadable": len(found) - len(read), "without": sizes.count(0)}
    print("visual clues in a description")
    print(f"mean    {np.mean(sizes):.2f}" + (f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""))
    print(f"median  {np.median(sizes):g}, most {max(sizes)}")
    _print_counts(counts, by)
    per = Counter(sizes)
    ticks = range(max(sizes) + 1)
    bars = {"descriptions": [per[size] for size in ticks]}
    _draw(
        config, plots.draw_bars, list(map(str, ticks)), bars, title="Visual clues in a description", unit="descriptions"
    )
    result = {"mean": float(np.mean(sizes)), "interval": interval, "median": float(np.median(sizes)), "counted_by": by}
    return result | counts | {"descriptions_by_clues": {str(size): per[size] for size in ticks}, "clues": read}


def clue_texts(config: AnalyzeConfig) -> dict[str, Any]:
    if config.subtitles is None:
        raise InputError("subtitles= is missing: a table of what is said, with name and english, chinese or subtitle")
    client, truth, descriptions = _client(config), _truth(config), _described(config)
    columns = ({"en": "english", "zh": "chinese"}[config.lang], "subtitle")
    subtitles = {
        id_of(row, where): text
        for where, row in read_rows(Path(config.subtitles))
        if (text := next((text for name in columns if (text := cell_text(row.get(name)))), None))
    }
    texts_of = contents.single_modality_texts(descriptions, subtitles, client, config.lang)
    folder = Path(config.out) / "clue_texts"
    folder.mkdir(parents=True, exist_ok=True)
    systems = {}
    for name, texts_by_id in texts_of.items():
        readings = extract_by_llm(texts_by_id, client)
        systems[name] = [
            Prediction(key, text, readings[key].labels, "description", config.lang, model=client.name)
            for key, text in texts_by_id.items()
        ]
        write_jsonl(folder / f"{name}.jsonl", systems[name])
        empty_texts = sum(not text for text in texts_by_id.values())
        print(f"{folder / name}.jsonl: {len(texts_by_id)} texts, {empty_texts} of them empty")
    print(f"written and read by {_by(client)}; {client.n_asked} calls, {client.n_cached} answers from the cache")
    truth = {key: truth[key] for key in descriptions if key in truth}
    result = _compare(config, systems, truth, "What the modalities contribute") | {"written_by": _by(client)}
    result["llm_grouping"] = grouped = {}
    rows = [(f"grouped by {client.name}", "F_S", "95 % interval", "Avg", "precision", "recall", "n", "unreadable")]
    for name, system in systems.items():
        found = llm_grouping_score(truth, {row.id: row.labels or () for row in system}, client)
        score = found.score
        ranges = found.intervals(n_bootstrap=config.n_bootstrap, seed=config.seed)
        low, high = map(percent, ranges.get("f_score", (np.nan, np.nan)))
        figures = map(percent, (score.avg, score.precision, score.recall))
        shown = f"[{low}, {high}]" if ranges else "-"
        rows.append((name, percent(score.f_score), shown, *figures, str(score.n), str(found.unparsed)))
        grouped[name] = {"f_score": score.f_score, "avg": score.avg, "intervals": ranges, **vars(score)}
        grouped[name] |= {"unreadable": found.unparsed}
    print("\n" + format_table(rows))
    return result


def annotations(config: AnalyzeConfig) -> dict[str, Any]:
    if len(config.named) != 2:
        raise InputError("give two annotations of the same clips by name: human=a.csv human_llm=b.csv,b-labels.csv")
    sides = {name: _annotation(files, config) for name, files in config.named.items()}
    grouping = WheelGrouping(load_lexicon(config.lexicon))
    first, second = sides
    shared = [key for key in sides[first].labels if key in sides[second].labels]
    if not shared:
        raise InputError(f"{first} and {second} have no clip with labels in common; ids must be the same in both")
    result: dict[str, Any] = {}
    for scope, keys in (("all", None), ("shared", shared)):
        result[scope] = {name: side.statistics(keys, config.lang) for name, side in sides.items()}
    rows = [("", *(f"{name}, {scope} clips" for scope in result for name in sides))]
    for key in [key for key in result["all"][first] if key != "commonest"]:
        values = [result[scope][name][key] for scope in result for name in sides]
        shown = [
            "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value) for value in values
        ]
        rows.append((key.replace("_", " "), *shown))
    print(format_table(rows))
    for name in sides:
        print(f"commonest of {name}: {result['all'][name]['commonest']}")
    pairs = [tuple(grouping.map(side.labels[key], config.grouping) for side in sides.values()) for key in shared]
    similarity, n = jaccard((a, b) for a, b in pairs)
    more = [len(sides[second].labels[key]) - len(sides[first].labels[key]) for key in shared]
    kept = set_score((a, b) for a, b in pairs)
    interval = _interval_of_mean(more, config)
    result |= {
        "grouping": config.grouping, "jaccard": similarity, "n_jaccard": n, "more_labels": float(np.mean(more)),
        "more_labels_interval": interval, "first_found_in_second": kept.recall, "second_found_in_first": kept.precision,
    }  # fmt: skip
    shown = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    print(f"labels per clip, {second} - {first}: {np.mean(more):+.2f}{shown} on {len(shared)} shared clips")
    print(
        f"{config.grouping}: Jaccard {similarity:.3f} (n = {n}); {percent(kept.recall)} % of the labels of {first} are "
        f"in {second}, {percent(kept.precision)} % of those of {second} in {first} (means over {kept.n} clips)"
    )
    sizes = {name: Counter(len(side.labels[key]) for key in shared) for name, side in sides.items()}
    ticks = range(max(max(found) for found in sizes.values()) + 1)
    bars = {name: [found[size] for size in ticks] for name, found in sizes.items()}
    title = f"Labels per clip, {len(shared)} shared clips"
    _draw(config, plots.draw_bars, list(map(str, ticks)), bars, title=title, unit="clips")
    return result


def ranking(config: AnalyzeConfig) -> dict[str, Any]:
    files = _named_files(config)
    if not files:
        raise InputError("give a table with a1, a2 (names of models) and preference (a1, a2 or same)")
    result: dict[str, Any] = {}
    bars: dict[str, list[float | None]] = {}
    intervals: dict[str, list[plots.Range | None]] = {}
    names: list[str] = []
    for name, path in files.items():
        pairs = _preferences(Path(path))
        options = {"n_bootstrap": config.n_bootstrap, "seed": config.seed}
        try:
            found, with_ties = (rank_models(pairs, ties=ties, **options) for ties in (False, True))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        rows = [(name, "strength %", "95 % interval", "ties half %", "wins", "comparisons")]
        for model, strength in found.strengths.items():
            low, high = found.intervals.get(model, (np.nan, np.nan))
            shown = f"[{percent(low)}, {percent(high)}]" if found.intervals else "-"
            tied = percent(with_ties.strengths[model])
            rows.append(
                (model, percent(strength), shown, tied, f"{found.wins[model]:g}", f"{found.comparisons[model]:g}")
            )
        print(format_table(rows))
        print(f"{len(pairs)} comparisons, {found.ties} of them ties")
        if found.undetermined:
            weaker, stronger = found.undetermined
            print(f"no chain of wins leads from {weaker} to {stronger}: how far they are apart is not determined")
        result[name] = {"ties left out": asdict(found), "ties half a win": asdict(with_ties)}
        names += [model for model in found.strengths if model not in names]
        bars[name] = [100 * found.strengths[model] if model in found.strengths else None for model in names]
        ranges = [found.intervals.get(model) for model in names]
        intervals[name] = [(100 * pair[0], 100 * pair[1]) if pair else None for pair in ranges]
    for name in files:  # models that later files added
        bars[name] += [None] * (len(names) - len(bars[name]))
        intervals[name] += [None] * (len(names) - len(intervals[name]))
    unit = "strength, %" + (", with 95 % intervals" if config.n_bootstrap else "")
    _draw(config, plots.draw_bars, names, bars, title="Preferred models", unit=unit, intervals=intervals)
    return result


def _preferences(path: Path) -> list[tuple[str, str, str]]:
    """Model a1, model a2 and the choice of every row; "tie" is "same"."""
    found = []
    for where, row in read_rows(path):
        first, second, choice = (cell_text(row.get(name)) for name in ("a1", "a2", "preference"))
        if first is None or second is None or choice is None:
            raise InputError(f"{where}: expected a1, a2 and preference, found {sorted(row)}")
        choice = {"tie": "same"}.get(choice.lower(), choice.lower())
        found.append((first, second, choice))
    return found


@dataclass(frozen=True)
class _Annotation:
    """Descriptions and labels by clip, of one way to annotate."""

    texts: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]

    def statistics(self, keys: Sequence[str] | None, lang: str) -> dict[str, Any]:
        """Of these clips, None = all (OV-MER paper, Figure 5: length of the clues, labels per clip, their variety)."""
        labels = [found for key, found in self.labels.items() if keys is None or key in keys]
        texts = [text for key, text in self.texts.items() if keys is None or key in keys]
        words = Counter(word for found in labels for word in found)
        total = words.total()
        size = [len(text) if lang == "zh" else len(text.split()) for text in texts]
        return {
            "clips": len(labels), "labels_per_clip": total / max(len(labels), 1), "distinct_labels": len(words),
            "used_once": sum(n == 1 for n in words.values()),
            "share_of_the_ten_commonest": sum(n for _, n in words.most_common(10)) / max(total, 1),
            "descriptions": len(texts),
            ("characters" if lang == "zh" else "words") + "_per_description": float(np.mean(size)) if size else None,
            "commonest": ", ".join(f"{word} {n}" for word, n in words.most_common(10)),
        }  # fmt: skip


def _annotation(files: str, config: AnalyzeConfig) -> _Annotation:
    """From tables separated by commas: labels of a column of labels, else as the texts state them."""
    texts: dict[str, str] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for path in map(Path, files.split(",")):
        columns = {name for _, row in read_rows(path, known=("labels", "openset")) for name in row}
        if columns & {"labels", "openset"}:
            labels |= read_references(path, split=config.split, lang=config.lang)
        texts |= _flat(read_descriptions(path, split=config.split, lang=config.lang), config.lang)
    if not labels:
        labels = {key: read_labels(text).labels for key, text in texts.items()}
    return _Annotation(texts, {key: tuple(dict.fromkeys(map(str.lower, found))) for key, found in labels.items()})


def _client(config: AnalyzeConfig) -> ChatClient:
    if config.model is None:
        raise InputError("model= is missing: the name of the language model, pinned to a version")
    cache = Path(config.out) / "llm-answers.jsonl"
    return ChatClient(config.model, base_url=config.base_url, cache=cache, offline=config.offline)


def _by(client: ChatClient) -> str:
    return f"{client.name}, prompt version {contents.CONTENTS_VERSION}"


def _given(config: AnalyzeConfig, column: str) -> dict[str, Any]:
    """id -> value of a column of the prediction file, such as the records of an annotation have; {} without it."""
    rows = read_rows(Path(_prediction_file(config)))
    return {id_of(row, where): row[column] for where, row in rows if not is_blank(row.get(column))}


def _described(config: AnalyzeConfig) -> dict[str, str | tuple[Clause, ...]]:
    """The descriptions of the prediction file, in clauses where it has them."""
    path = _prediction_file(config)
    found = read_descriptions(path, split=config.split, lang=config.lang)
    if not found:
        raise InputError(f"{path}: no descriptions in lang={config.lang}; see docs/metrics.md, section 'Files'")
    return found


def _texts(config: AnalyzeConfig) -> dict[str, str]:
    return _flat(_described(config), config.lang)


def _flat(found: Mapping[str, str | tuple[Clause, ...]], lang: str) -> dict[str, str]:
    return {key: text if isinstance(text, str) else join(text, lang) for key, text in found.items()}


def _shared(
    config: AnalyzeConfig, truth: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[list[str], dict[str, int]]:
    """The clips in both, and how many there are, are in one only, and have no readable value."""
    shared = [key for key in found if key in truth]
    if not shared:
        raise InputError(f"no clip of {_prediction_file(config)} is in {config.references}; are both of one data set?")
    unreadable = sum(found[key] in (None, ()) for key in shared)
    only = {"without_description": len(truth) - len(shared), "without_truth": len(found) - len(shared)}
    return shared, {"n": len(shared), "unreadable": unreadable, **only}


def confidence(config: AnalyzeConfig) -> dict[str, Any]:
    """Stated confidence against correctness, as EmoCaliber's code counts them and as we do."""
    truth = _column(config, ("label", "discrete", "emotion", "emo"), "emo")
    texts = {row.id: row.text for row in read_predictions(_prediction_file(config))}
    classes = config.classes or sorted({label.lower() for label in truth.values()})
    found = score_confidence(texts, truth, classes, load_lexicon(config.lexicon))
    if found.ours is None:
        raise InputError(
            f"{_prediction_file(config)}: none of {found.n} answers states a confidence, such as "
            "<confidence>0.85</confidence>"
        )
    both = {"EmoCaliber's code": found.published, "ours": found.ours}
    rows = [("", "ECE", "ECE, 1 included", "Brier", "ROC AUC", "accuracy", "mean confidence", "n")]
    for name, scored in both.items():
        if scored is not None:
            values = (scored.ece, scored.ece_closed, scored.brier, scored.roc_auc, scored.accuracy)
            shown = ("-" if value is None else percent(value) for value in (*values, scored.mean_confidence))
            rows.append((name, *shown, str(scored.n)))
    print(format_table(rows, "lrrrrrrr"))
    print(f"without a confidence: {found.without} of {found.n}; by EmoCaliber's code {found.without_published}")
    bins = [item for item in found.ours.bins if item.n]
    _draw(
        config, plots.draw_reliability, [(item.confidence, item.accuracy, item.n) for item in bins],
        title=f"Stated confidence, {found.ours.n} answers",
    )  # fmt: skip
    return asdict(found)


def _print_counts(counts: Mapping[str, int], by: str) -> None:
    print("; ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items()) + f"; by {by}")


def _interval_of_mean(values: Sequence[float], config: AnalyzeConfig) -> plots.Range | None:
    pairs = np.repeat(np.asarray(values, dtype=float)[:, None, None], 2, axis=2)  # [N, 1, 2]
    found = bootstrap_interval(pairs, mean_precision_statistic, n_bootstrap=config.n_bootstrap, seed=config.seed)
    return None if found is None else (found.low, found.high)


ANALYSES: dict[str, Callable[[AnalyzeConfig], dict[str, Any]]] = {
    "baselines": baselines, "correlation": correlation, "language": language, "onehot": onehot, "labels": labels,
    "subtitles": side_by_side, "modalities": side_by_side, "wheel": wheel, "sectors": sectors, "confusion": confusion,
    "seeds": seeds, "texts": texts, "judge": by_judge, "discrete": discrete, "valence": valence, "clues": clues,
    "clue_texts": clue_texts, "annotations": annotations, "ranking": ranking, "confidence": confidence,
}  # fmt: skip


def _truth(config: AnalyzeConfig) -> dict[str, tuple[str, ...]]:
    return read_references(_references(config), split=config.split)


def _references(config: AnalyzeConfig) -> Path:
    if config.references is None:
        raise InputError("references= is missing: a file with the true labels")
    return Path(config.references)


def _named_files(config: AnalyzeConfig) -> dict[str, str | Path]:
    return {**config.named, **named_after_files(config.files[1:])}


def _prediction_file(config: AnalyzeConfig) -> str:
    if len(config.files) != 2:
        raise InputError(f"give one prediction file; found {config.files[1:]}")
    return config.files[1]


def _predicted_labels(config: AnalyzeConfig) -> dict[str, tuple[str, ...]]:
    return labels_by_id(read_predictions(_prediction_file(config)), load_lexicon(config.lexicon))[0]


def _descriptions(config: AnalyzeConfig) -> tuple[dict[str, str], dict[str, str]]:
    """True descriptions, and the predicted texts without their label line."""
    starts = tuple(start.strip() for start in LABEL_LINE.values())
    predicted = {}
    for row in read_predictions(_prediction_file(config)):
        lines = [line for line in row.text.splitlines() if not line.startswith(starts)]
        predicted[row.id] = "\n".join(lines).strip()
    return _column(config, ("description", "reason", "english" if config.lang == "en" else "chinese")), predicted


def _column(
    config: AnalyzeConfig, names: Sequence[str], npz_key: str | None = None, *, required: bool = True
) -> dict[str, str]:
    """id -> text, from the first of these columns that a row of the references has; `npz_key` as in a label.npz."""
    try:
        values = read_true_values(_references(config), _as_benchmark(config), names, npz_key)
        return {key: str(value) for key, value in values.items()}
    except ScoreFileError:
        if required:
            raise
        return {}


def _as_benchmark(config: AnalyzeConfig) -> BenchmarkConfig:
    return BenchmarkConfig(name="references", split=config.split, array=config.array)


def _print_matrix(rows: Sequence[str], columns: Sequence[str], matrix: np.ndarray, fmt: str) -> None:
    width = max(7, *map(len, columns))
    cells = [(" " * 12, *(f"{name:>{width}}" for name in columns))]
    cells += [
        (name, *("-" if np.isnan(value) else fmt.format(value) for value in values))
        for name, values in zip(rows, matrix, strict=True)
    ]
    print(format_table(cells))


def _draw(config: AnalyzeConfig, draw: Callable[..., None], *values: Any, suffix: str = "", **options: Any) -> None:
    if config.pictures:
        path = Path(config.out) / f"{config.files[0]}{suffix}"
        draw(path, *values, **options)
        log.info("picture: %s.png, .svg, .pdf", path)


def run_analysis(config: AnalyzeConfig) -> int:
    """Run the analysis that is the first of `config.files`, and write its result as JSON."""
    if not config.files or config.files[0] not in ANALYSES:
        found = config.files[0] if config.files else "none"
        raise InputError(f"expected an analysis, one of {list(ANALYSES)}, found {found!r}; --help describes them")
    path = Path(config.out) / f"{config.files[0]}.json"
    write_json_atomic(path, ANALYSES[config.files[0]](config))
    log.info("figures: %s", path)
    return 0


if __name__ == "__main__":
    from affectgpt.cli import main

    main("analyze")
