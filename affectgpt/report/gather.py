"""What a report is about: systems with their scores, clips and run records, and the curves of training runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from affectgpt.config import DataConfig, EvalConfig, ReportConfig, SourceConfig
from affectgpt.inference.evaluate import (
    published_splitting,
    reference_sources,
    references_of,
    score_rows,
)
from affectgpt.metrics import load_lexicon, read_predictions
from affectgpt.metrics.clip_scores import SCORES, ClipScore, read_scores
from affectgpt.metrics.compare import named_after_files, named_after_folders
from affectgpt.metrics.lexicon import Lexicon
from affectgpt.runs import RECORD, RunRecord
from affectgpt.runs.watch import Curve, curves
from affectgpt.runtime import InputError, NotFound, UserError, parse_json
from affectgpt.schema import Prediction, Sample, listed

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class System:
    """Predictions with their scores.

    Attributes:
        report: as in report.json; clips: in the order of the references; predictions, samples: by id.
        record: the run record of the evaluation, {} without one.
    """

    name: str
    report: Mapping[str, Any]
    clips: tuple[ClipScore, ...]
    predictions: Mapping[str, Prediction]
    samples: Mapping[str, Sample]
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """Everything that the page shows.

    Attributes:
        systems: by name; the first one is shown in detail.
        records: run records of training runs by name; curves: their quantities by name.
        notes: what could not be shown, and why.
    """

    title: str
    lexicon: Lexicon
    systems: Mapping[str, System]
    records: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Mapping[str, Curve]]
    notes: tuple[str, ...] = ()


def gather(config: ReportConfig) -> Content:
    """Read runs and evaluations, or score predictions.

    Raises:
        UserError: neither runs nor predictions are given, a folder is no run, or predictions cannot be scored.
    """
    lexicon = load_lexicon(config.lexicon, config.label_reading)
    given = config.predictions
    files = [Path(item) for item in ([given] if isinstance(given, str) else given or [])]
    if bool(files) == bool(config.runs):
        raise InputError(
            "give run folders, or predictions= with references=; python -m affectgpt.report --help shows both"
        )
    notes: list[str] = []
    if files:
        systems = {name: _scored(name, file, config, lexicon, notes) for name, file in named_after_files(files).items()}
        return Content(config.title or ", ".join(systems), lexicon, systems, {}, {}, tuple(notes))
    trained: dict[Path, Mapping[str, Any]] = {}
    evaluations: list[Path] = []
    for folder in map(Path, config.runs):
        record = RunRecord.read(folder)
        if record is None:
            raise NotFound(f"{folder} is no run: it has no {RECORD}; python -m affectgpt.runs lists the runs")
        kind = record.values["kind"]
        run = folder if kind.startswith("train") else folder.parent
        if kind == "eval":
            evaluations.append(folder)
        elif kind.startswith("train"):
            inside = [path.parent for path in sorted(folder.glob(f"*/{RECORD}"))]
            of_run = [path for path in inside if _is_evaluation(path)]
            if not of_run:
                notes.append(f"{folder} has no finished evaluation; python eval.py checkpoint={folder} makes one.")
            evaluations += sorted(of_run, key=lambda path: (-_n_shown(path), path.name))
        else:
            raise InputError(f"{folder} is a run of {kind!r}; expected a training run or an evaluation")
        if (of_training := RunRecord.read(run)) is not None and of_training.values["kind"].startswith("train"):
            trained[run.absolute()] = of_training.values
    runs = named_after_folders(trained)
    records = {name: trained[run] for name, run in runs.items()}
    found = {name: curves(run) for name, run in runs.items()}
    systems = {name: _evaluated(name, path, notes) for name, path in named_after_folders(evaluations).items()}
    title = config.title or ", ".join(records) or ", ".join(systems)
    return Content(title, lexicon, systems, records, found, tuple(notes))


def _is_evaluation(folder: Path) -> bool:
    record = RunRecord.read(folder)
    return record is not None and record.values["kind"] == "eval" and record.values["status"] == "finished"


def _n_shown(folder: Path) -> int:
    """Number of inputs that the model was shown: the evaluation with most of them comes first."""
    rows = read_predictions(folder / "predictions.jsonl") if (folder / "predictions.jsonl").is_file() else []
    return max((len(row.modalities) for row in rows), default=0)


def _scored(name: str, file: Path, config: ReportConfig, lexicon: Lexicon, notes: list[str]) -> System:
    """Score a predictions file, as eval.py does."""
    if config.references is None:
        raise InputError("references= is missing: a file with the true labels of predictions=")
    scoring = EvalConfig(
        references=config.references,
        columns=config.columns,
        split=config.split,
        lang=config.lang,
        n_bootstrap=config.n_bootstrap,
        seed=config.seed,
    )
    references, _ = references_of(scoring, published_splitting(lexicon))
    rows = read_predictions(file)
    report, clips = score_rows(scoring, lexicon, rows, references, file.parent)
    return System(name, report.to_dict(), tuple(clips), {row.id: row for row in rows}, _samples(scoring, notes))


def _evaluated(name: str, folder: Path, notes: list[str]) -> System:
    """An evaluation as eval.py left it; one of an older version without scores of clips is scored again."""
    record = RunRecord.read(folder)
    assert record is not None
    scoring = _scoring_of(record.values, folder)
    file = folder / "predictions.jsonl"
    if not file.is_file():
        file = next((Path(path) for path in record.values.get("inputs", {}) if Path(path).is_file()), file)
    rows = read_predictions(file)
    try:
        report = parse_json((folder / "report.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"{folder / 'report.json'}: {error.strerror}; repeat the evaluation") from error
    if (folder / SCORES).is_file():
        clips = read_scores(folder / SCORES)
    else:
        lexicon = load_lexicon(scoring.lexicon, scoring.label_reading)
        references, _ = references_of(scoring, published_splitting(lexicon))
        _, clips = score_rows(scoring, lexicon, rows, references, folder)
    samples = _samples(scoring, notes)
    return System(name, report, tuple(clips), {row.id: row for row in rows}, samples, record.values)


def _scoring_of(record: Mapping[str, Any], folder: Path) -> EvalConfig:
    """The settings of an evaluation that say what was scored, from its run record."""
    config = record.get("config")
    if not isinstance(config, Mapping):
        raise InputError(f"{folder / RECORD}: no config; repeat the evaluation")
    names = (
        "references",
        "columns",
        "split",
        "lang",
        "lexicon",
        "label_reading",
        "n_bootstrap",
        "seed",
        "faithfulness",
    )
    data = config.get("data") or {}
    known = {item.name for item in fields(SourceConfig)}
    test = [
        SourceConfig(**{key: value for key, value in source.items() if key in known})
        for source in data.get("test") or []
    ]
    return EvalConfig(
        data=DataConfig(name=str(data.get("name")), folder=data.get("folder"), test=test),
        **{name: config[name] for name in names if config.get(name) is not None},
    )


def _samples(scoring: EvalConfig, notes: list[str]) -> dict[str, Sample]:
    """The clips of the references, for their media, subtitles and descriptions; rows without media are left out."""
    from affectgpt.data.sources import read_source

    found: dict[str, Sample] = {}
    new: list[str] = []
    try:
        for source in reference_sources(scoring):
            rows = read_source(source, scoring.data.folder, on_bad="skip")
            found |= {sample.id: sample.in_language(scoring.lang, strict=False) for sample in rows.samples}
            if rows.bad:
                new.append(
                    f"{len(rows.bad)} clips of the references are not shown:{listed(rows.bad, 3)}".replace("\n", " ")
                )
    except UserError as error:
        new.append(f"The clips of the references are not shown: {error}")
    notes += [note for note in new if note not in notes]
    return found
