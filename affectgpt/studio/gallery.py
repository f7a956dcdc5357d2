"""Predictions next to their references: what the gallery sorts, filters and compares."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from affectgpt.clauses import split
from affectgpt.config import SourceConfig, StudioConfig
from affectgpt.metrics import Lexicon, load_lexicon, read_predictions
from affectgpt.metrics.clip_scores import (
    FAULTS,
    SORT_KEYS,
    STATES,
    ClipScore,
    benchmark_scores,
    differences,
    extents,
    in_order,
    read_scores,
    score_clips,
    sector_confusion,
    select,
    sorted_by,
    wheel_order,
)
from affectgpt.metrics.compare import named_after_files
from affectgpt.metrics.faithfulness import explanation_of, marked
from affectgpt.metrics.wheel import WheelGrouping
from affectgpt.runs import RunRecord
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import Prediction, Sample, true_labels

log = logging.getLogger("affectgpt")

N_WHEELS = 5


@dataclass(frozen=True)
class System:
    """The predictions of one file, and their scores in the order of the references."""

    name: str
    predictions: Mapping[str, Prediction]
    scores: Sequence[ClipScore]

    @cached_property
    def by_id(self) -> dict[str, ClipScore]:
        return {score.id: score for score in self.scores}


@dataclass(frozen=True)
class Gallery:
    """All that the gallery shows; `samples` are the clips, where they are known; `seed` is that of paired tests."""

    systems: Mapping[str, System] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)
    lexicon: Lexicon | None = None
    lang: str = "en"
    n_bad: int = 0
    seed: int = 42

    def system(self, name: str) -> System:
        """The system of this name.

        Raises:
            InputError: there is none.
        """
        if name not in self.systems:
            raise InputError(f"no system {name!r}; expected one of {list(self.systems)}")
        return self.systems[name]

    def word_lists(self) -> Lexicon:
        """The lexicon of the scores.

        Raises:
            InputError: there are no predictions, so nothing was scored.
        """
        if self.lexicon is None:
            raise InputError("no predictions are shown here: start the studio with predictions=")
        return self.lexicon

    def media_path(self, clip_id: str) -> Path | None:
        """The video, else the sound, of a clip."""
        sample = self.samples.get(clip_id)
        path = sample and (sample.video or sample.audio)
        return Path(path) if path else None


def read_gallery(config: StudioConfig, runs: Sequence[Path]) -> Gallery:
    """The predictions that the settings name, or those that eval.py wrote for these runs."""
    files = _files_of(config, runs)
    if not files:
        return Gallery(lang=config.lang)
    lexicon = load_lexicon(config.lexicon, config.label_reading)
    stored = _stored_scores(config, files)
    samples, n_bad = _samples(config, [file for file, scores in zip(files, stored, strict=True) if scores is None])
    predictions = {name: read_predictions(file) for name, file in named_after_files(files).items()}
    short = [_short(file) for file in files]
    if len(set(short)) == len(files) and all(file.parent.parent == files[0].parent.parent for file in files):
        predictions = dict(zip(short, predictions.values(), strict=True))
    references = {key: true_labels(sample.in_language(config.lang, strict=False), config.lang)
                  for key, sample in samples.items()}  # fmt: skip
    if not references:
        references = {row.id: () for rows in predictions.values() for row in rows}
    descriptions = _descriptions(samples, config.lang)
    systems = {}
    for (name, rows), file in zip(predictions.items(), stored, strict=True):
        rows = [marked(row) for row in rows]
        if file is None:
            scores = score_clips(rows, references, lexicon=lexicon, descriptions=descriptions)
        else:
            scores = read_scores(file)
        systems[name] = System(name, {row.id: row for row in rows}, scores)
    return Gallery(systems, samples, lexicon, config.lang, n_bad, config.seed)


def _stored_scores(config: StudioConfig, files: Sequence[Path]) -> list[Path | None]:
    """For each predictions file its scores, as the settings or the record of a benchmark next to it name them; None =
    the gallery scores it itself."""
    given = config.scores
    if given is None:
        return [None if config.references is not None else _of_benchmark(file) for file in files]
    paths: list[Path | None] = [Path(item) for item in ([given] if isinstance(given, str) else given)]
    if len(paths) != len(files):
        raise UserError(f"scores= names {len(paths)} files and predictions= {len(files)}; expected one for each")
    return paths


def _of_benchmark(file: Path) -> Path | None:
    record = RunRecord.read(file.parent)
    if record is None or record.values.get("kind") != "benchmark":
        return None
    benchmark = (record.values.get("config") or {}).get("benchmark") or {}
    name = file.stem if benchmark.get("members") else benchmark.get("name")
    path = benchmark_scores(file.parent, str(name))
    scored = {Path(item).resolve() for item in record.values.get("inputs") or ()}
    return path if file.resolve() in scored and path.is_file() else None


def _short(file: Path) -> str:
    return file.parent.name if file.name == "predictions.jsonl" else file.stem


def _descriptions(samples: Mapping[str, Sample], lang: str) -> dict[str, Any]:
    found = {}
    for key, sample in samples.items():
        texts = sample.in_language(lang, strict=False)
        if texts.clauses or texts.description:
            found[key] = texts.clauses or texts.description
    return found


def _files_of(config: StudioConfig, runs: Sequence[Path]) -> list[Path]:
    given = config.predictions
    if not isinstance(given, (str, list, type(None))):
        raise UserError(f"predictions={given!r}: expected a file, or a list like predictions=[a.jsonl,b.jsonl]")
    files = [Path(item) for item in ([given] if isinstance(given, str) else given or [])]
    return files or sorted(path for run in runs for path in run.glob("eval*/predictions.jsonl"))


def _samples(config: StudioConfig, files: Sequence[Path]) -> tuple[dict[str, Sample], int]:
    """id -> clip, from `references` or from where eval.py took the references of these files; and the bad rows."""
    from affectgpt.data.sources import read_source

    if config.references is not None:
        sources = [(SourceConfig(manifest=config.references, columns=config.columns, split=config.split), None)]
    else:
        sources = [source for file in files for source in _scored_on(file)]
    samples: dict[str, Sample] = {}
    seen, n_bad = [], 0
    for source, folder in sources:
        if source in seen:
            continue
        seen.append(source)
        rows = read_source(source, folder, on_bad="skip")
        samples |= {sample.id: sample for sample in rows.samples}
        n_bad += len(rows.bad)
    if not samples and files:
        log.warning("no references: give references=<manifest> to see clips, true labels and scores")
    return samples, n_bad


def _scored_on(file: Path) -> list[tuple[SourceConfig, str | None]]:
    """The sources in the record of the evaluation that wrote or scored a predictions file."""
    record = RunRecord.read(file.parent)
    values = (record.values.get("config") or {}) if record is not None else {}
    if values.get("references"):
        own = {name: values.get(name) or default for name, default in (("columns", {}), ("split", None))}
        return [(SourceConfig(manifest=values["references"], **own), None)]
    data = values.get("data") or {}
    known = SourceConfig.__dataclass_fields__
    return [
        (SourceConfig(**{key: value for key, value in source.items() if key in known}), data.get("folder"))
        for source in data.get("test") or ()
    ]


# ---- what pages ask for ----------------------------------------------------------------------------------------------


def about(gallery: Gallery) -> dict[str, Any]:
    """Names of systems, what can be sorted and filtered by, and the wheels."""
    shown = Counter(
        tuple(score.modalities) for system in gallery.systems.values() for score in system.scores if score.modalities
    )
    return {
        "systems": [
            {"name": name, "n": len(system.predictions), "mean_f": _mean_f(system.scores)}
            for name, system in gallery.systems.items()
        ],
        "n_clips": len(next(iter(gallery.systems.values())).scores) if gallery.systems else 0,
        "n_bad": gallery.n_bad,
        "sort_keys": list(SORT_KEYS),
        "states": list(STATES),
        "faults": list(FAULTS),
        "modalities": [list(names) for names in shown],
    }


def _mean_f(scores: Sequence[ClipScore]) -> float | None:
    found = [score.f for score in scores if score.f is not None]
    return sum(found) / len(found) if found else None


def wheels(lexicon: Lexicon) -> list[list[dict[str, Any]]]:
    """For each wheel its sectors in order, each with its level-2 clusters."""
    found = []
    for number, wheel in enumerate(lexicon.wheels, 1):
        rows = []
        for sector in wheel_order(lexicon, number):
            inner = dict.fromkeys(wheel.level2[word] for word, own in wheel.level1.items() if own == sector)
            rows.append({"name": sector, "parts": list(inner)})
        found.append(rows)
    return found


def places(labels: Sequence[str], lexicon: Lexicon) -> dict[str, list[list[str] | None]]:
    """label -> for each wheel its [sector, part], or None."""
    grouping = WheelGrouping(lexicon)
    found: dict[str, list[list[str] | None]] = {}
    for label in labels:
        groups = grouping.groups(label)
        found[label] = [
            [groups[f"M3-W{k}-L1"], groups[f"M3-W{k}-L2"]] if f"M3-W{k}-L1" in groups else None
            for k in range(1, N_WHEELS + 1)
        ]
    return found


def chosen(gallery: Gallery, system: System, query: Mapping[str, str]) -> list[ClipScore]:
    """The clips of a system that the filters of a query leave, in the order that it asks for.

    Raises:
        InputError: an unknown sort key, state, fault or wheel, or a limit that is no number.
    """
    modalities = query.get("modalities")
    rows = select(
        system.scores,
        wheel=whole_number(query, "wheel", 1),
        true_sector=query.get("true_sector") or None,
        predicted_sector=query.get("predicted_sector") or None,
        label=query.get("label") or None,
        modalities=modalities.split(",") if modalities else None,
        state=query.get("state") or None,
        fault=query.get("fault") or None,
        lowest=_number(query, "lowest"),
        highest=_number(query, "highest"),
    )
    if word := query.get("text", "").strip().lower():
        rows = [row for row in rows if word in row.id.lower() or word in _text_of(gallery, system, row.id)]
    descending = query.get("descending") == "true"
    if query.get("sort") == "difference" and query.get("other"):
        other = gallery.system(query["other"]).by_id

        def gap(row: ClipScore) -> float | None:
            theirs = other[row.id].f if row.id in other else None
            return None if row.f is None or theirs is None else abs(row.f - theirs)

        return sorted_by(gap, rows, descending=descending)
    return in_order(rows, query.get("sort") or "f", descending=descending)


def _text_of(gallery: Gallery, system: System, clip_id: str) -> str:
    prediction, sample = system.predictions.get(clip_id), gallery.samples.get(clip_id)
    texts = (prediction.text if prediction else "", (sample.subtitle or "") if sample else "")
    return " ".join(texts).lower()


def listing(gallery: Gallery, query: Mapping[str, str]) -> dict[str, Any]:
    """One part of the list of clips: {total, offset, rows}."""
    system = gallery.system(query.get("system", ""))
    other = gallery.system(query["other"]) if query.get("other") else None
    rows = chosen(gallery, system, query)
    offset, limit = max(0, whole_number(query, "offset", 0)), min(200, max(1, whole_number(query, "limit", 50)))
    return {
        "total": len(rows),
        "offset": offset,
        "rows": [_line(gallery, row, other) for row in rows[offset : offset + limit]],
    }


def _line(gallery: Gallery, row: ClipScore, other: System | None) -> dict[str, Any]:
    faith = row.faithfulness
    line = {
        "id": row.id,
        "f": row.f,
        "true": row.true_labels,
        "predicted": row.predicted_labels,
        "missing": row.missing,
        "modalities": row.modalities,
        "n_characters": row.n_characters,
        "faults": [name for name in FAULTS if faith is not None and getattr(faith, name)],
        "has_media": gallery.media_path(row.id) is not None,
    }
    if other is not None:
        theirs = other.by_id.get(row.id)
        line |= {"other_f": theirs.f if theirs else None, "other_predicted": theirs.predicted_labels if theirs else []}
    return line


def confusion(gallery: Gallery, query: Mapping[str, str]) -> dict[str, Any]:
    """The confusion matrix of the clips that the filters leave, without the filter by sector itself."""
    system, wheel = gallery.system(query.get("system", "")), whole_number(query, "wheel", 1)
    rest = {key: value for key, value in query.items() if key not in ("true_sector", "predicted_sector", "sort")}
    rows = chosen(gallery, system, rest)
    return sector_confusion(rows, wheel, wheel_order(gallery.word_lists(), wheel)).to_dict()


def lengths(gallery: Gallery, query: Mapping[str, str]) -> dict[str, Any]:
    """Numbers of labels and lengths of explanations of the clips that the filters leave, of one or two systems."""
    system = gallery.system(query.get("system", ""))
    rows = chosen(gallery, system, {key: value for key, value in query.items() if key != "sort"})
    shown = [rows]
    if query.get("other"):
        other = gallery.system(query["other"]).by_id
        shown.append([other[row.id] for row in rows if row.id in other])
    found = extents(shown)
    return {**asdict(found), "numbers": found.numbers(), "spans": found.spans()}


def difference(gallery: Gallery, query: Mapping[str, str]) -> dict[str, Any]:
    """The paired test of two systems, and how many clips each is better on."""
    first, second = gallery.system(query.get("system", "")), gallery.system(query.get("other", ""))
    result = differences(first.scores, second.scores, seed=gallery.seed)
    test = result.test
    return {
        "difference": test.difference,
        "low": test.interval.low if test.interval else None,
        "high": test.interval.high if test.interval else None,
        "p_value": test.p_value,
        "first_better": result.n_first_better,
        "second_better": result.n_second_better,
        "equal": result.n_equal,
    }


def clip(gallery: Gallery, clip_id: str) -> dict[str, Any]:
    """Everything about one clip: the reference, and what each system says."""
    lexicon = gallery.word_lists()
    sample = gallery.samples.get(clip_id)
    answers, scored = [], [system.by_id[clip_id] for system in gallery.systems.values() if clip_id in system.by_id]
    for system in gallery.systems.values():
        if (prediction := system.predictions.get(clip_id)) is not None:
            score = system.by_id.get(clip_id)
            answers.append({"system": system.name, **shown(prediction, lexicon, score)})
    if sample is None and not answers and not scored:
        raise InputError(f"no clip {clip_id!r} in these predictions")
    texts = sample.in_language(gallery.lang, strict=False) if sample else None
    truth = list(true_labels(texts, gallery.lang)) if texts else list(scored[0].true_labels) if scored else []
    return {
        "id": clip_id,
        "has_media": gallery.media_path(clip_id) is not None,
        "subtitle": texts.subtitle if texts else None,
        "description": texts.description if texts else None,
        "true": truth,
        "places": places(truth, lexicon),
        "answers": answers,
    }


def shown(prediction: Prediction, lexicon: Lexicon, score: ClipScore | None = None) -> dict[str, Any]:
    """A prediction for a page: its sentences with what they rest on, its labels with their places on the wheels."""
    labels = list(score.predicted_labels) if score is not None else list(prediction.labels or ())
    explanation = explanation_of(prediction.text) if prediction.task in ("both", "description") else ""
    attribution = {row.get("text"): row for row in prediction.attribution}
    sentences = []
    for clause in split(explanation, prediction.lang) if explanation else ():
        found = attribution.get(clause.text, {})
        sentences.append(
            {
                "text": clause.text,
                "modality": clause.modality,
                "unsupported": [
                    row["modality"] for row in prediction.unsupported if clause.text in row.get("sentence", "")
                ],
                **{key: found[key] for key in ("drop", "over_time") if key in found},
            }
        )
    return {
        "text": prediction.text,
        "sentences": sentences,
        "labels": labels,
        "places": places(labels, lexicon),
        "f": score.f if score else None,
        "precision": score.precision if score else None,
        "recall": score.recall if score else None,
        "modalities": list(prediction.modalities),
        "times_s": {
            name: found["times_s"]
            for name, found in prediction.media.items()
            if isinstance(found, Mapping) and "times_s" in found
        },
        "finish": prediction.finish,
        "task": prediction.task,
        "lang": prediction.lang,
        "model": prediction.model,
        "labels_rest_on": next(
            ({key: row.get(key) for key in ("drop", "over_time")} for row in prediction.attribution
             if row.get("modality") == "labels"),
            None,
        ),
    }  # fmt: skip


def whole_number(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name) or default)
    except ValueError:
        raise InputError(f"{name} is {query[name]!r}; expected a whole number") from None


def _number(query: Mapping[str, str], name: str) -> float | None:
    try:
        return float(query[name]) if query.get(name) else None
    except ValueError:
        raise InputError(f"{name} is {query[name]!r}; expected a number") from None


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
