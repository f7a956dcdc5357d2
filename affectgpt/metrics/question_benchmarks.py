"""Benchmarks that ask a question of their own about each clip, or list its true clues, from file to result.

Kinds: ``mme_emotion``, ``emotion_hallucer``, ``emobench_m``, ``intent_bench`` (their files: `affectgpt.questions`), and
``clues``: a table of true clues for each clip, for the two scores of MEP-Bench.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt import questions as files
from affectgpt.chat.served import ChatClient
from affectgpt.config import BenchmarkConfig
from affectgpt.media import probe, read_frames
from affectgpt.metrics import answers as scores
from affectgpt.metrics import steps
from affectgpt.metrics.benchmark_result import BenchmarkResult
from affectgpt.metrics.evaluate import Predictions
from affectgpt.metrics.faithfulness import clue_scores
from affectgpt.metrics.judge import CLUES_VERSION, match_by_llm
from affectgpt.metrics.stats import weighted_mean_interval
from affectgpt.questions import EMOBENCH, GENERATED, MME_MULTIPLE, Question
from affectgpt.runtime import InputError
from affectgpt.schema import CLUES, Clause, Prediction, parse_label_list
from affectgpt.tables import TableError, id_of, read_rows

QUESTION_KINDS = ("mme_emotion", "emotion_hallucer", "emobench_m", "intent_bench", "clues")
CLUE_COLUMNS = {"visual_clues": "visual", "audio_clues": "acoustic", "text_clues": "lexical"}
_READERS: dict[str, Callable[..., files.Questions]] = {
    "mme_emotion": files.mme_emotion,
    "emotion_hallucer": files.emotion_hallucer,
    "emobench_m": files.emobench_m,
    "intent_bench": files.intent_bench,
}
_NO_LEXICON = "no emotion wheel"


def run_questions(
    config: BenchmarkConfig,
    path: Path,
    predictions: Predictions,
    *,
    client: ChatClient | None = None,
    divider: ChatClient | None = None,
    n_frames: int = 10,
    seed: int = 42,
    n_bootstrap: int = 1000,
) -> BenchmarkResult:
    """Score answers to the questions in `path`; arguments as in `benchmarks.run_benchmark`.

    Raises:
        InputError: files that cannot be read, no answer with the id of a question, or no judge where one is needed.
        ChatError: a request to the judge failed.
    """
    rows = _rows(predictions)
    options: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    if config.kind == "clues":
        return _clues(config, path, rows, client, options)
    asked = files.usable(_READERS[config.kind](path))
    given = {row.id: row.text for row in rows}
    known = {question.id for question in asked}
    if not known & set(given):
        raise InputError(
            f"no prediction answers a question of {config.name}: predictions have ids like {next(iter(given), None)!r},"
            f" questions like {asked[0].id!r}; ask them with data={config.name}, see docs/question-benchmarks.md"
        )
    counts = {"missing": len(known - set(given)), "answers to no question": len(set(given) - known)}
    if config.kind == "mme_emotion":
        if client is None:
            raise InputError("benchmark mme_emotion needs a chat model as judge: llm.model=... llm.base_url=...")
        return _mme_emotion(config, asked, given, counts, client, divider or client, n_frames, options)
    if config.kind == "emotion_hallucer":
        return _emotion_hallucer(config, asked, given, counts, options)
    if config.kind == "emobench_m":
        return _emobench_m(config, asked, given, counts, client, options)
    return _intent_bench(config, asked, given, counts, options)


def question_files(config: BenchmarkConfig, path: Path) -> list[Path]:
    """The files that hold the questions and their true answers."""
    read: list[Path] = []
    files.usable(_READERS[config.kind](path, files=read))
    return read


def _rows(predictions: Predictions) -> list[Prediction]:
    if not isinstance(predictions, Mapping):
        return [row if row.text or not row.labels else _as_text(row.id, row.labels) for row in predictions]
    return [
        Prediction(key, value) if isinstance(value, str) else _as_text(key, value) for key, value in predictions.items()
    ]


def _as_text(key: str, labels: Sequence[str]) -> Prediction:
    return Prediction(key, ", ".join(labels))


def _result(
    config: BenchmarkConfig,
    metric: str,
    value: float,
    n: int,
    details: Mapping[str, Any],
    strata: Sequence[tuple[float, Sequence[float]]],
    options: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
) -> BenchmarkResult:
    found = weighted_mean_interval(strata, **options)
    intervals = {} if found is None else {metric: (found.low, found.high)}
    published = [dict(row) for row in config.published]
    return BenchmarkResult(
        config.name, config.title, metric, value, n, details, _NO_LEXICON, published, intervals=intervals,
        answers=tuple(rows),
    )  # fmt: skip


# ---- MME-Emotion -----------------------------------------------------------------------------------------------------


def _mme_emotion(
    config: BenchmarkConfig, asked: list[Question], given: Mapping[str, str], counts: dict[str, Any], judge: ChatClient,
    divider: ChatClient, n_frames: int, options: Mapping[str, Any],
) -> BenchmarkResult:  # fmt: skip
    root = Path(config.folder or "") / config.media

    def frames(question: Question) -> np.ndarray | None:
        return first_frames(root / question.medium, n_frames) if n_frames and question.medium else None

    judged = steps.judge_steps(asked, given, judge, divider, frames)
    details: dict[str, Any] = {}
    overall: list[steps.StepScore] = []  # read by the rule for several labels, as the published overall score
    strict: dict[str, list[steps.StepScore]] = {question.task: [] for question in asked}
    listed: dict[tuple[str, str], list[steps.StepScore]] = defaultdict(list)
    by_task: dict[str, list[steps.StepScore]] = {task: [] for task in strict}
    wrong = steps.StepScore(0.0, 0.0, 0)
    rows, dropped = [], 0
    for item in judged:
        task, read = item.question.task, steps.ratings(item.reply, several=True)
        strictly = steps.strict_score(item)
        strict[task].append(strictly or wrong)
        own = steps.ratings(item.reply, several=task in MME_MULTIPLE)
        dropped += not read
        if read:
            overall.append(steps.step_score(read))
        if own:
            by_task[task].append(steps.step_score(own))
            listed[task, steps.label_of(item.question)].append(by_task[task][-1])
        score = asdict(steps.step_score(own)) if own else None
        rows.append(_row(item.question, item.answer, steps=item.steps, reply=item.reply, score=score))
    for question in asked:
        if question.id not in given:
            strict[question.task].append(wrong)
    means = steps.step_means(overall, config.alpha)
    details |= {"Rec-S": means.recognition, "Rea-S": means.reasoning, "alpha": str(config.alpha)}
    details["steps of an answer"] = f"{means.steps:.1f}"
    for task, found in by_task.items():
        of_task = steps.step_means(found, config.alpha)
        details |= {f"{task}: {name}": value for name, value in of_task.to_dict().items() if name.endswith("-S")}
    strictly_all = steps.step_means([score for found in strict.values() for score in found], config.alpha)
    details |= {f"{name}, strict": value for name, value in strictly_all.to_dict().items() if name.endswith("-S")}
    details |= {
        **counts,
        "left out, reply not readable": dropped,
        "left out, no text about the sound": sum(q.id in given and "audio_clue" not in q.extra for q in asked),
        "scored strictly": strictly_all.n,
        "judge": f"{judge.name}, prompt version {steps.RATING_VERSION}, at most {n_frames} frames",
        "steps by": f"{divider.name}, prompt version {steps.STEPS_VERSION}",
        "by label": [
            {"task": task, "label": label, **steps.step_means(found, config.alpha).to_dict()}
            for (task, label), found in sorted(listed.items())
        ],
    }
    if not overall:
        raise InputError(
            f"no reply of {judge.name} holds ratings inside <score></score>: {dropped} of {len(judged)} replies are "
            "not readable; look at the log of answers, and name another judge with llm.model="
        )
    values = [config.alpha * score.recognition + (1 - config.alpha) * score.reasoning for score in overall]
    return _result(config, "CoT-S", means.cot, means.n, details, [(1.0, values)], options, rows)


def first_frames(path: Path, n_frames: int) -> np.ndarray:
    """One frame a second of the clip, at most `n_frames`; of a longer clip as many, evenly spread.  uint8 [T,H,W,3]

    The published judge sees the first ten seconds of a longer clip.
    """
    seconds = ceil(probe(path).duration_s or 1.0)
    return read_frames(path, max(1, min(n_frames, seconds))).images


def _row(question: Question, answer: str | None, **found: Any) -> dict[str, Any]:
    return {"id": question.id, "task": question.task, "truth": question.answer, "answer": answer, **found}


# ---- the others ------------------------------------------------------------------------------------------------------


def _emotion_hallucer(
    config: BenchmarkConfig, asked: list[Question], given: Mapping[str, str], counts: dict[str, Any],
    options: Mapping[str, Any],
) -> BenchmarkResult:  # fmt: skip
    found = scores.score_pairs(asked, given)
    published, strict = found.published, found.strict
    details = {
        **scores.to_percent(published),
        "yes difference (Pct. Diff)": f"{published.yes_difference:.4f}",
        "false positive ratio (FP Ratio)": _plain(published.false_positives),
        **{f"{name}, strict": value for name, value in scores.to_percent(strict).items()},
        "yes difference, strict": f"{strict.yes_difference:.4f}",
        "share of yes": found.yes_share,
        "yes bias of readable answers": _plain(found.yes_bias),
        "unreadable": found.unreadable,
        **counts,
        **{f"{name}: pair accuracy": rates.pairs.value for name, rates in found.by_file.items()},
    }
    rows = (_row(q, given.get(q.id), pair_right=found.right[q.extra["pair"]]) for q in asked)
    strata = [(1.0, [float(value) for value in found.right.values()])]
    value = published.pairs.count / published.pairs.n
    return _result(config, "pair accuracy", value, published.pairs.n, details, strata, options, rows)


def _plain(value: float | None) -> str:
    """A number that is no share, so that it is not printed in percent."""
    return "-" if value is None else f"{value:.4f}"


def _emobench_m(
    config: BenchmarkConfig, asked: list[Question], given: Mapping[str, str], counts: dict[str, Any],
    client: ChatClient | None, options: Mapping[str, Any],
) -> BenchmarkResult:  # fmt: skip
    by_file: dict[str, list[Question]] = defaultdict(list)
    for question in asked:
        by_file[question.task].append(question)
    generated = by_file.pop(GENERATED, [])
    found = scores.EmoBench(
        {name: scores.score_scenario(rows, given) for name, rows in by_file.items()},
        scores.judge_laughter(generated, given, client) if generated and client else None,
    )
    accuracies, strictly = found.accuracies(strict=False), found.accuracies(strict=True)
    of_dimension, strict_dimension = scores.dimensions(accuracies), scores.dimensions(strictly)
    if not of_dimension:
        raise InputError("no file of EmoBench-M was scored: smile alone needs a judge, llm.model=...")
    value = sum(of_dimension.values()) / len(of_dimension)
    details: dict[str, Any] = {
        **of_dimension,
        "accuracy, strict": sum(strict_dimension.values()) / len(strict_dimension),
        **{f"{name}, strict": score for name, score in strict_dimension.items()},
    }
    names = {file: f"{key} ({file})" for scenarios in EMOBENCH.values() for key, file in scenarios.items()}
    for name, score in found.scenarios.items():
        if score.published is not None:
            details[f"{names[name]}: accuracy"] = score.published.accuracy
            details[f"{names[name]}: weighted F1"] = score.published.f1
            details[f"{names[name]}: weighted precision"] = score.published.precision
        details[f"{names[name]}: accuracy, strict"] = score.strict.accuracy
        details[f"{names[name]}: without a label"] = score.left_out
    if found.laughter:
        told = found.laughter
        details |= {f"{names[GENERATED]}: {key} of 5": f"{score:.2f}" for key, score in told.published.items()}
        details |= {
            f"{names[GENERATED]}: {key} of 5, readable replies": "-" if score is None else f"{score:.2f}"
            for key, score in told.read.items()
        }
        details |= {f"{names[GENERATED]}: unreadable replies": told.unreadable, "laughter by": _by(client)}
    elif generated:
        details[f"{names[GENERATED]}"] = "not judged: give llm.model=..."
    strata = []
    for name in of_dimension:
        present = [file for file in EMOBENCH[name].values() if file in accuracies]
        for scenario in (found.scenarios[file] for file in present if file in found.scenarios):
            rights = [float(scenario.right[key]) for key in scenario.readable]
            strata.append((1 / len(of_dimension) / len(present), rights))
    rows = (
        _row(q, given.get(q.id), right=found.scenarios[q.task].right[q.id] if q.task in found.scenarios else None)
        for q in asked
    )
    options = {**options, "n_bootstrap": 0} if found.laughter else options  # a rating is no share of right answers
    return _result(config, "accuracy", value, len(asked) - counts["missing"], details | counts, strata, options, rows)


def _by(client: ChatClient | None) -> str:
    assert client is not None
    return f"{client.name}, prompt version {scores.LAUGHTER_VERSION}"


def _intent_bench(
    config: BenchmarkConfig, asked: list[Question], given: Mapping[str, str], counts: dict[str, Any],
    options: Mapping[str, Any],
) -> BenchmarkResult:  # fmt: skip
    found = scores.score_intent(asked, given)
    details = {
        "mean accuracy, strict": found.strict,
        **{f"{kind}: mean accuracy": value for kind, value in found.published_by_kind.items()},
        **{f"{kind}: mean accuracy, strict": value for kind, value in found.strict_by_kind.items()},
        "questions by kind": dict(found.n_by_kind),
        "without <answer></answer>": found.without_span,
        **counts,
    }
    rows = (_row(q, given.get(q.id), score=found.values.get(q.id)) for q in asked)
    strata = [(1.0, list(found.values.values()))]
    return _result(config, "mean accuracy", found.published, len(found.values), details, strata, options, rows)


# ---- clues -----------------------------------------------------------------------------------------------------------


def _clues(
    config: BenchmarkConfig, path: Path, rows: list[Prediction], client: ChatClient | None, options: Mapping[str, Any]
) -> BenchmarkResult:
    """Utilisation and faithfulness, which the abstract of MEP-Bench names but does not define, by our own matching."""
    truths = read_clues(path)
    known = [row for row in rows if row.id in truths]
    if not known:
        raise InputError(f"{path}: no prediction has true clues; ids are like {next(iter(truths))!r}")
    match = match_by_llm(client) if client else None
    found = clue_scores(known, truths, match=match, **options)
    everything = found["all"]
    if everything.recall is None:
        raise InputError(f"{path}: no clip that was answered has a true clue")
    details: dict[str, Any] = {"faithfulness": everything.precision if everything.n_predicted else "no clue stated"}
    for name in CLUES:
        if found[name].n_reference:
            details[f"utilisation, {name}"] = found[name].recall
        if found[name].n_predicted:
            details[f"faithfulness, {name}"] = found[name].precision
    details |= {
        "true clues": everything.n_reference,
        "stated clues": everything.n_predicted,
        "missing": len(set(truths) - {row.id for row in rows}),
        "clues compared by": f"{client.name}, prompt version {CLUES_VERSION}" if client else "their words",
    }
    interval = everything.recall_interval
    result = _result(config, "utilisation", everything.recall, len(known), details, [], options, ())
    if interval is None:
        return result
    intervals = {"utilisation": (interval.low, interval.high)}
    if everything.precision_interval is not None:
        intervals["faithfulness"] = (everything.precision_interval.low, everything.precision_interval.high)
    return BenchmarkResult(**{**vars(result), "intervals": intervals})


def read_clues(path: Path) -> dict[str, tuple[Clause, ...]]:
    """id -> true clues, from the columns `visual_clues`, `audio_clues` and `text_clues` of a table: lists of phrases.

    In JSONL they may be in an object `extracted_clues`, the form of the public development code of HumanOmniV2's line.

    Raises:
        TableError: none of these columns, a cell that is no list, or a duplicate id.
    """
    found: dict[str, tuple[Clause, ...]] = {}
    for where, row in read_rows(path, known=CLUE_COLUMNS):
        if (key := id_of(row, where)) in found:
            raise TableError(f"{where}: duplicate id {key!r}; ids must be unique")
        if not {*CLUE_COLUMNS, "extracted_clues"} & set(row):
            raise TableError(f"{where}: expected a column of {list(CLUE_COLUMNS)}, found {sorted(map(str, row))}")
        try:
            nested = row.get("extracted_clues")
            cells: Mapping[str, Any] = nested if isinstance(nested, Mapping) else row
            lists = {modality: parse_label_list(cells.get(column)) or () for column, modality in CLUE_COLUMNS.items()}
        except InputError as error:
            raise TableError(f"{where}: sample {key!r}: {error}") from None
        found[key] = tuple(Clause(text, modality) for modality, texts in lists.items() for text in texts)
    if not found:
        raise TableError(f"{path}: no rows")
    return found
