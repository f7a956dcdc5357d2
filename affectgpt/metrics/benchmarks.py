"""Public benchmarks: the file with the true labels, the primary score, and published results.

A benchmark is a YAML file in conf/benchmark/, read as a `BenchmarkConfig`. Kinds:

- ``openset``: F_S, level-1 mean over the five wheels (EMER-Fine, OV-MERD, OV-MERD+, MER2025 and MER2026 tracks);
- ``hit_rate``: one-hot truth, free predicted labels (MER2023-SEMI, MER2024, MELD, IEMOCAP in MER-UniBench);
- ``sentiment``: sentiment scores as truth, weighted F1 of two classes (CMU-MOSI, CMU-MOSEI, CH-SIMS, CH-SIMS v2);
- ``classes``: one-hot truth, predictions mapped to the classes: weighted F1 (MER2023-SEMI) or UAR and WAR (DFEW);
- ``multilabel``: several true labels, F1 over labels (MAFW and BOLD in MMEVerse-Bench);
- ``classes_valence``: classes and a valence: weighted F1 - 0.25 MSE (MER2023-MULTI and MER2023-NOISE);
- ``mme_emotion``, ``emotion_hallucer``, ``emobench_m``, ``intent_bench``, ``clues``: a question or
  true clues of each clip, see `affectgpt.metrics.question_benchmarks`.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from affectgpt.chat.served import ChatClient
from affectgpt.config import BenchmarkConfig
from affectgpt.metrics.benchmark_result import BenchmarkResult
from affectgpt.metrics.classification import (
    classify,
    hit_rate,
    mean_squared_error,
    score_sentiment,
    score_sets,
    sentiment_of,
    to_class,
)
from affectgpt.metrics.clip_scores import ClipScore, score_classes, score_clips
from affectgpt.metrics.evaluate import Predictions, evaluate, labels_by_id
from affectgpt.metrics.io import ScoreFileError, read_references
from affectgpt.metrics.judge import (
    SENTIMENT_VERSION,
    labels_as_published,
    llm_grouping_score,
    published_grouping_score,
    read_stored_answers,
    sentiment_by_llm,
)
from affectgpt.metrics.lexicon import Lexicon, load_lexicon, split_published, split_published_2024
from affectgpt.metrics.question_benchmarks import QUESTION_KINDS, question_files, run_questions
from affectgpt.metrics.report import Report
from affectgpt.runtime import InputError
from affectgpt.schema import Prediction, held_out
from affectgpt.tables import cell_text, id_of, read_names, read_pickled_mapping, read_rows

BENCHMARK_KINDS = ("openset", "hit_rate", "sentiment", "classes", "classes_valence", "multilabel", *QUESTION_KINDS)
COMBINED = "weighted F1 - 0.25 MSE of the valence"
_HELP = "see docs/metrics.md, section 'Benchmarks'"
_LABEL_COLUMNS = ("label", "discrete", "emotion", "emo")
_SCORE_COLUMNS = ("valence", "val", "score", "sentiment")
Value = TypeVar("Value")


def run_benchmark(
    config: BenchmarkConfig,
    predictions: Predictions,
    *,
    lexicon: str | Path | Lexicon = "builtin",
    seed: int = 42,
    n_bootstrap: int = 1000,
    client: ChatClient | None = None,
    valences: Mapping[str, float] | None = None,
    groups: str | Path | None = None,
    divider: ChatClient | None = None,
    n_frames: int = 10,
) -> BenchmarkResult:
    """Score predictions on one benchmark.

    Args:
        client: a language model, which then groups the labels of the kind `openset` in addition, and tells the
            sentiment of the labels of the kind `sentiment` instead of the lexicon. The kind `mme_emotion` needs it: it
            is the judge.
        divider: for `mme_emotion`, the model that divides answers into steps; None = `client`.
        n_frames: for `mme_emotion`, the frames that the judge sees at most; 0 = none.
        valences: id -> predicted valence, for the kind `classes_valence`.
        groups: stored groups of words (`judge.read_stored_answers`), instead of those of `client`, for `openset`.

    Raises:
        InputError: no folder, an unknown kind, a valence is missing, no true label can be scored, or the file with the
            true labels cannot be read.
    """
    if config.kind not in BENCHMARK_KINDS:
        raise InputError(f"benchmark {config.name!r}: kind {config.kind!r} is not one of {list(BENCHMARK_KINDS)}")
    if config.kind in QUESTION_KINDS:
        return run_questions(
            config, truth_path(config), predictions, client=client, divider=divider, n_frames=n_frames, seed=seed,
            n_bootstrap=n_bootstrap,
        )  # fmt: skip
    path = truth_path(config)
    lexicon = load_lexicon(lexicon)
    rows = predictions if isinstance(predictions, Mapping) else list(predictions)
    if config.kind == "openset":
        split_text = split_published if lexicon.label_splitting == "published" else None
        references = _scored(read_references(path, split=_split_column(config), split_text=split_text), path, config)
        report = evaluate(rows, references, lexicon=lexicon, seed=seed, n_bootstrap=n_bootstrap)
        metric, value, n = "F_S, level 1 mean", report.primary.f_score, report.primary.n
        details: dict[str, Any] = {"M-avg": report.m_avg}
        grouped = None
        intervals: dict[str, tuple[float, float]] = {}
        labels, _ = labels_by_id(rows, lexicon)
        if groups is not None:
            truths_2024 = read_references(path, split=_split_column(config), split_text=split_published_2024)
            given = () if isinstance(rows, Mapping) else rows
            grouped = published_grouping_score(
                _scored(truths_2024, path, config),
                labels_as_published(given, labels),
                read_stored_answers(groups),
                source=Path(groups).name,
            )
        elif client is not None:
            grouped = llm_grouping_score(references, labels, client)
        if grouped is not None:
            by = f"by LLM grouping ({grouped.model})"
            grouped_score = grouped.score
            details |= {f"F_S {by}": grouped_score.f_score, f"Avg {by}": grouped_score.avg}
            details |= {f"precision {by}": grouped_score.precision, f"recall {by}": grouped_score.recall}
            details |= {"unreadable groupings": grouped.unparsed, "clips without a grouping": grouped.missing}
            ranges = grouped.intervals(n_bootstrap=n_bootstrap, seed=seed)
            intervals = {
                f"{name} {by}": ranges[key] for name, key in (("F_S", "f_score"), ("Avg", "avg")) if key in ranges
            }
        if (own := report.primary.interval) is not None:
            intervals[metric] = own.low, own.high
        clips = score_clips(_given(rows), references, lexicon=lexicon)
        result = _result(config, metric, value, n, details, lexicon, clips, report)
        return replace(result, intervals=intervals)

    labels, _ = labels_by_id(rows, lexicon)
    if config.kind == "sentiment":
        return _score_sentiment(config, true_scores(path, config), rows, labels, lexicon, client)
    truths = {key: str(value).lower() for key, value in read_true_values(path, config, _LABEL_COLUMNS, "emo").items()}
    details = {
        "missing": len(set(truths) - set(labels)),
        "without labels": sum(not found for found in labels.values()),
    }
    if config.kind == "hit_rate":
        hits = hit_rate(truths, labels, lexicon)
        if not any(hits.n.values()):
            raise InputError(
                f"{path}: none of the {len(truths)} true labels is on an emotion wheel, they are "
                f"{sorted(set(truths.values()))[:5]}; does the file hold placeholders, as MER2024's preparation code "
                "writes for its test set?"
            )
        details |= {"hit rate over all samples": hits.rate_of_all, "n by wheel": dict(hits.n)}
        clips = score_clips(_given(rows), {key: (label,) for key, label in truths.items()}, lexicon=lexicon)
        return _result(config, "hit rate", hits.rate, max(hits.n.values()), details, lexicon, clips)
    if config.kind == "multilabel":
        return _score_multilabel(config, truths, rows, details, lexicon)
    n_true = len(truths)
    if not (truths := {key: value for key, value in truths.items() if value not in config.drop}):
        raise InputError(f"{path}: all {n_true} true labels are among benchmark.drop={list(config.drop)}")
    if config.drop:
        details["dropped"] = n_true - len(truths)
    predicted = [to_class(labels.get(key, ()), config.classes, lexicon) for key in truths]
    scored = classify(list(truths.values()), predicted, config.classes)
    details |= {
        "weighted F1": scored.weighted_f1, "macro F1": scored.macro_f1, "UAR": scored.uar, "WAR": scored.war,
        "unparsed or none of the classes": scored.unparsed, "classes": list(scored.classes),
        "confusion": scored.confusion.tolist(),
    }  # fmt: skip
    if "neutral" in config.classes:
        last = {name: last_word(text, config.classes) for name, text in _texts(rows).items()}
        as_published = classify(list(truths.values()), [last.get(key, "neutral") for key in truths], config.classes)
        details["weighted F1, last word or else neutral (code of Emotion-LLaMA)"] = as_published.weighted_f1
    if config.columns:  # a table of MMEVerse
        exact = {name: text.strip().lower() for name, text in _texts(rows).items()}
        as_published = classify(list(truths.values()), [exact.get(key, "") for key in truths], config.classes)
        details["weighted F1, exact answers (code of Emotion-LLaMA v2)"] = as_published.weighted_f1
    metric = config.metric or "weighted F1"
    if config.kind == "classes_valence":
        metric = COMBINED
        details["MSE of the valence"] = mean_squared_error(true_scores(path, config), valences or {})
        details[COMBINED] = scored.weighted_f1 - 0.25 * details["MSE of the valence"]
    found = {key: (name,) if name else () for key, name in zip(truths, predicted, strict=True) if key in labels}
    clips = score_classes(_given(rows), {key: (name,) for key, name in truths.items()}, found, lexicon=lexicon)
    return _result(config, metric, details[metric], scored.n, details, lexicon, clips)


def _given(rows: Predictions) -> list[Prediction]:
    """Predictions, from texts or labels by id as well."""
    if not isinstance(rows, Mapping):
        return list(rows)
    return [
        Prediction(name, value) if isinstance(value, str) else Prediction(name, "", labels=tuple(value))
        for name, value in rows.items()
    ]


def _score_multilabel(
    config: BenchmarkConfig, truths: Mapping[str, str], rows: Any, details: dict[str, Any], lexicon: Lexicon
) -> BenchmarkResult:
    """Answers and true cells are divided at commas and semicolons, as the published code of Emotion-LLaMA v2 does."""
    answers = {name: _words(text) for name, text in _texts(rows).items()}
    sets = {key: _words(cell) for key, cell in truths.items()}
    scored = score_sets(list(sets.values()), [answers.get(key, set()) for key in truths])
    clips = score_classes(_given(rows), _sorted(sets), _sorted(answers), lexicon=lexicon)
    details |= {
        "micro F1": scored.micro_f1, "samples F1": scored.sample_f1, "Jaccard": scored.jaccard, "mAP": scored.mean_ap,
        "micro F1, other words count as wrong": scored.micro_f1_strict, "other words": scored.unknown,
        "classes": list(scored.classes),
    }  # fmt: skip
    metric = config.metric or "micro F1"
    return _result(config, metric, details[metric], scored.n, details, lexicon, clips)


def _sorted(sets: Mapping[str, set[str]]) -> dict[str, list[str]]:
    return {name: sorted(words) for name, words in sets.items()}


def _words(text: str) -> set[str]:
    return {word for part in re.split("[;,]", text) if (word := part.strip().lower())}


def last_word(text: str, classes: Sequence[str]) -> str:
    """The class of an answer in the published code of Emotion-LLaMA: what follows its last space, else neutral.

    >>> [last_word(text, ["happy", "neutral"]) for text in ("The person is happy", "He is happy.", "no idea")]
    ['happy', 'neutral', 'neutral']
    """
    word = text.split(" ")[-1]
    return word if word in classes else "neutral"


def _texts(rows: Mapping[str, str | Sequence[str]] | Sequence[Prediction]) -> dict[str, str]:
    if isinstance(rows, Mapping):
        return {name: value if isinstance(value, str) else ", ".join(value) for name, value in rows.items()}
    return {row.id: row.text or ", ".join(row.labels or ()) for row in rows}


def _score_sentiment(
    config: BenchmarkConfig, truths: Mapping[str, float], rows: Predictions, labels: Mapping[str, Sequence[str]],
    lexicon: Lexicon, client: ChatClient | None,
) -> BenchmarkResult:  # fmt: skip
    if client is None:
        read_by, found = "sign of the lexicon (published: Qwen2.5)", None
        sentiments = {key: sentiment_of(labels.get(key, ()), lexicon) for key in truths}
    else:
        sentiments, found = sentiment_by_llm({key: labels.get(key, ()) for key in truths}, client)
        read_by = f"{client.name}, prompt version {SENTIMENT_VERSION}"
    result = score_sentiment(truths, sentiments)
    details = {
        "accuracy": result.published.accuracy,
        "weighted F1, neutral and unreadable apart": result.strict.weighted_f1,
        "dropped, true score 0": result.dropped_zero,
        "predicted neutral": result.neutral,
        "unreadable": result.unreadable,
        "missing": len(set(truths) - set(labels)),
        "sentiment of the labels by": read_by,
        **({"questions": found} if found is not None else {}),
    }
    sign = {key: "positive" if score > 0 else "negative" if score else "neutral" for key, score in truths.items()}
    classes = {key: (name,) for key, name in sign.items()}
    answers = {key: ("positive" if sentiments[key] == "positive" else "negative",) for key in truths}
    zero = {key for key, score in truths.items() if score == 0}
    clips = score_classes(_given(rows), classes, answers, dropped=zero, lexicon=lexicon)
    return _result(config, "weighted F1", result.published.weighted_f1, result.published.n, details, lexicon, clips)


def read_valences(path: str | Path) -> dict[str, float]:
    """id -> predicted valence, from a column `valence`, `val`, `score` or `sentiment` of a CSV or JSONL file.

    Raises:
        ScoreFileError: no such column, not a number, or a duplicate id.
    """
    return _numbers(Path(path), _read_columns(Path(path), _SCORE_COLUMNS, None))


def _result(
    config: BenchmarkConfig, metric: str, value: float, n: int, details: dict[str, Any], lexicon: Lexicon,
    clips: Sequence[ClipScore], report: Report | None = None,
) -> BenchmarkResult:  # fmt: skip
    published = [dict(row) for row in config.published if "split" not in row or row["split"] == config.split]
    version = f"{lexicon.name} {lexicon.version}"
    return BenchmarkResult(
        config.name, config.title, metric, value, n, details, version, published, report, clips=clips
    )


def true_scores(path: Path, config: BenchmarkConfig) -> dict[str, float]:
    """id -> true valence or sentiment score."""
    return _numbers(path, read_true_values(path, config, _SCORE_COLUMNS, "val"))


def _numbers(path: Path, values: Mapping[str, Any]) -> dict[str, float]:
    scores = {}
    for name, value in values.items():
        try:
            scores[name] = float(value)
        except (TypeError, ValueError):
            scores[name] = math.nan
        if not math.isfinite(scores[name]):
            raise ScoreFileError(f"{path}: the score of {name!r} must be a number, found {value!r}")
    return scores


def _scored(values: Mapping[str, Value], path: Path, config: BenchmarkConfig) -> dict[str, Value]:
    """The entries of the split, and of ids with `config.id_prefix`, of a file that holds training data as well."""
    values = _of_split(values, path, config)
    if config.id_prefix is None:
        return dict(values)
    found = {name: value for name, value in values.items() if name.startswith(config.id_prefix)}
    if not found:
        raise ScoreFileError(
            f"{path}: no id starts with {config.id_prefix!r} (benchmark.id_prefix), ids are like {next(iter(values))!r}"
        )
    return found


def _of_split(values: Mapping[str, Value], path: Path, config: BenchmarkConfig) -> Mapping[str, Value]:
    """The entries of `split_file`, or of our own split by `n_test`, the one of the data set's format."""
    if config.split_file is not None:
        listed = Path(config.folder or "") / config.split_file
        names = read_names(listed)
        if absent := [name for name in names if name not in values]:
            raise ScoreFileError(f"{listed}: {len(absent)} of {len(names)} ids are not in {path}, first {absent[0]!r}")
        return {name: values[name] for name in names}
    if config.n_test is None or config.split is None:
        return values
    if config.split not in ("train", "test"):
        raise InputError(f"benchmark.split is {config.split!r}; expected test, train, or null for all clips")
    if config.n_test >= len(values):
        raise ScoreFileError(f"{path}: {len(values)} clips; expected more than benchmark.n_test={config.n_test}")
    test = held_out(values, n=config.n_test, seed=0)
    return {name: value for name, value in values.items() if (name in test) == (config.split == "test")}


def _split_column(config: BenchmarkConfig) -> str | None:
    """The split that a column of the references names."""
    return None if config.n_test is not None or config.split_file is not None else config.split


def truth_path(config: BenchmarkConfig) -> Path:
    if config.folder is None:
        raise InputError(f"benchmark {config.name!r}: set the folder of your copy: benchmark.folder=/path; {_HELP}")
    path = Path(config.folder) / config.references
    if not (path.is_file() or (config.kind in QUESTION_KINDS and path.is_dir())):
        raise ScoreFileError(
            f"benchmark {config.name!r}: no {config.references!r} in {config.folder!r}; set the file with "
            f"benchmark.references=, or the folder with benchmark.folder=; {_HELP}"
        )
    return path


def truth_files(config: BenchmarkConfig) -> list[Path]:
    """The files with the true answers, for the record of a run."""
    path = truth_path(config)
    return [path] if path.is_file() else question_files(config, path)


def read_true_values(
    path: Path, config: BenchmarkConfig, columns: Sequence[str], npz_key: str | None
) -> dict[str, Any]:
    """id -> label, score or text, from CSV, JSONL, or a label.npz of MERBench, of the clips that the benchmark scores.

    Args:
        columns: those of a table; the first that a row has.
        npz_key: "emo" or "val", the entries of a label.npz; None = it has none of these columns.

    Raises:
        ScoreFileError: no such value, or not what the file must hold.
    """
    if path.suffix == ".npz":
        if npz_key is None:
            raise ScoreFileError(f"{path}: a label.npz has emo and val only; expected a table with one of {[*columns]}")
        values = _read_pickled(path, config, npz_key)
    else:
        values = _read_columns(path, columns, _split_column(config), config.columns)
    return _scored(values, path, config)


def _read_columns(
    path: Path, columns: Sequence[str], split: str | None, own: Mapping[str, str] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for where, row in read_rows(path, known=("split", *columns), columns=own or {}):
        if split is not None and cell_text(row.get("split")) != split:
            continue
        values = [row[name] for name in columns if row.get(name) not in (None, "")]
        if not values:
            raise ScoreFileError(f"{where}: expected a value in one of {list(columns)}, found {sorted(row)}")
        if (name := id_of(row, where)) in found:
            raise ScoreFileError(f"{where}: duplicate id {name!r}; ids must be unique")
        found[name] = values[0]
    if not found:
        raise ScoreFileError(f"{path}: no rows{f' of split {split!r}' if split else ''}; {_HELP}")
    return found


def _read_pickled(path: Path, config: BenchmarkConfig, key: str) -> dict[str, Any]:
    trusted = "benchmark.trust_pickle=true; or use a CSV file with name and label"
    corpus = read_pickled_mapping(path, config.array, trust_pickle=config.trust_pickle, setting=trusted)
    if bad := [name for name, entry in corpus.items() if not isinstance(entry, dict) or key not in entry]:
        found = reprlib.repr(corpus[bad[0]])
        raise ScoreFileError(f"{path}: the entry of {bad[0]!r} must have {key!r}, found {found}")
    values = {name: entry[key] for name, entry in corpus.items()}
    return values if key == "val" else {name: _class_name(path, config, name, value) for name, value in values.items()}


def _class_name(path: Path, config: BenchmarkConfig, name: str, value: Any) -> str:
    """The emotion of an entry; some label files number their classes."""
    if not isinstance(value, (int, np.integer)):
        return str(value)
    if not 0 <= value < len(config.classes):
        raise ScoreFileError(f"{path}: {name!r} has class number {value}, benchmark.classes names {config.classes}")
    return config.classes[int(value)]


def mean_result(
    results: Sequence[BenchmarkResult], name: str, title: str, published: Sequence[Mapping[str, Any]] = ()
) -> BenchmarkResult:
    """The unweighted mean of the primary values of several benchmarks (MER-UniBench); n is the number of benchmarks."""
    if not results:
        raise InputError("no benchmark results to average")
    details: dict[str, Any] = {result.title: result.value for result in results}
    value = sum(details.values()) / len(results)
    rows = [dict(row) for row in published]
    metric = "mean of the primary scores"
    return BenchmarkResult(name, title, metric, value, len(results), details, results[0].lexicon, rows)
