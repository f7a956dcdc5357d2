"""Which models to annotate with: every choice of audio, video, merging and translating model, against references.

    python -m affectgpt.annotate study clips.csv out=study references=clips.csv repeats=2 \\
        audio=[vllm:SALMONN,none] video=[vllm:Chat-UniVi] merge=[openai:gpt-4o,vllm:Qwen2-7B] translate=[vllm:Qwen2-7B]

The layout of Tables 1 and 2 of the AffectGPT paper (Lian et al. 2024, arXiv:2407.07653): a row is one choice of models,
columns are Avg, Accuracy_S, Recall_S and F_S of the labels in English and in Chinese. All rows share one folder of
answers, so a model that is added is asked, and the others are not asked again.

Labels are read by one model in all rows (`annotator=`), and grouped by the emotion wheels of `affectgpt.metrics`; the
paper groups them by GPT-3.5, so its figures are on another scale.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affectgpt.annotate import prompts, steps
from affectgpt.annotate.clips import Clips
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.run import run
from affectgpt.annotate.steps import StepOutput, Work
from affectgpt.annotate.totals import COMPLETE, SOME_FAILED
from affectgpt.config import AnnotateConfig, AnnotatorConfig, StepConfig, StudyOfAnnotatorsConfig
from affectgpt.metrics import Lexicon, evaluate, load_lexicon, read_references
from affectgpt.runtime import UserError, stable_hash, write_json_atomic, write_text_atomic
from affectgpt.schema import LANGUAGES, Sample

ROLES = {"audio": "audio", "video": "vision", "merge": "text", "translate": "translator"}
"""Column of the table -> role of the annotator that it chooses."""
Candidates = Mapping[str, Mapping[str, AnnotatorConfig | None]]
"""Column -> name -> model; None = without this column's medium."""
NONE = "none"
MEASURES = ("Avg", "Accuracy_S", "Recall_S", "F_S")
_LEFT_OUT = {"audio": "acoustic", "video": "visual"}


@dataclass(frozen=True)
class Cell:
    """One row of the table: the name of the chosen model by column."""

    chosen: Mapping[str, str]

    @property
    def folder(self) -> str:
        """A folder name that tells the models; the hash keeps names apart that look alike without their signs."""
        words = "-".join(re.sub(r"\W+", "_", name.rpartition(":")[2]) for name in self.chosen.values())
        return f"{words[:80]}-{stable_hash(dict(self.chosen))[:8]}"


@dataclass
class Row:
    """What became of a cell: by language and measure, one value a repeat, in percent.

    Attributes:
        calls: answers that were asked for now.
        n, missing: references, and of these clips without labels (scored as empty), in the worst repeat.
    """

    cell: Cell
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    calls: int = 0
    n: int = 0
    missing: int = 0


def run_study(
    config: StudyOfAnnotatorsConfig,
    base: AnnotateConfig,
    candidates: Candidates,
) -> int:
    """Annotate with every choice of models and score it; exit codes as of one run, 0 also if some clips failed.

    Args:
        base: what all rows have in common: clips, folder, pipeline, the annotator that reads labels.
        candidates: what the columns choose from.
    """
    cells = grid(candidates)
    if config.repeats < 1:
        raise UserError(f"repeats is {config.repeats}; expected at least 1")
    out = Path(base.out or "")
    if base.out is None or not config.references:
        raise UserError("out= and references= are needed: a folder, and a file with the true labels (docs/annotate.md)")
    clips = {item.id for item in Clips(base) if isinstance(item, Sample)}
    truths = {lang: _truths(Path(config.references), lang, clips) for lang in LANGUAGES}
    lexicon = load_lexicon(config.lexicon)
    rows = []
    for number, cell in enumerate(cells, 1):
        row = Row(cell)
        for repeat in range(config.repeats):
            for lang in LANGUAGES:
                done = out / "cells" / cell.folder / f"{lang}-{repeat}"
                print(f"row {number} of {len(cells)}: {_named(cell)}, {lang}, repeat {repeat + 1}", file=sys.stderr)
                setting = setting_of(base, cell, candidates, lang, repeat, done)
                code = _quietly(setting)
                if code not in (COMPLETE, SOME_FAILED):
                    print(f"stopped in {done} (exit code {code}); the same command goes on", file=sys.stderr)
                    return code
                _score(row, done, lang, truths[lang], lexicon)
        rows.append(row)
        write_outputs(out, rows, config.repeats, lexicon)
    print(table(rows))
    print(f"calls {sum(row.calls for row in rows)}; {out}: study.md, study.csv, study.json")
    return COMPLETE


# ---- the grid --------------------------------------------------------------------------------------------------------


def grid(candidates: Candidates) -> list[Cell]:
    """Every choice of one candidate a column; rows without any clue and doubles are left out."""
    empty = [column for column in ROLES if not candidates.get(column)]
    if empty:
        raise UserError(f"{empty[0]}= is missing: [model, ...], such as {empty[0]}=[vllm:name,local]")
    for column in ("merge", "translate"):
        if NONE in candidates[column]:
            raise UserError(f"{column}={NONE}: only audio and video can be left out")
    chosen = itertools.product(*(candidates[column] for column in ROLES))
    cells = [Cell(dict(zip(ROLES, names, strict=True))) for names in chosen]
    return [cell for cell in cells if (cell.chosen["audio"], cell.chosen["video"]) != (NONE, NONE)]


def setting_of(
    base: AnnotateConfig,
    cell: Cell,
    candidates: Candidates,
    lang: str,
    repeat: int,
    out: Path,
) -> AnnotateConfig:
    """The run of one cell in one language. Repeats differ in the seed that is sent, so that models are asked again."""

    def seeded(annotator: AnnotatorConfig | None) -> AnnotatorConfig | None:
        return annotator if annotator is None or not repeat else replace(annotator, seed=(annotator.seed or 0) + repeat)

    models = {role: seeded(candidates[column][cell.chosen[column]]) for column, role in ROLES.items()}
    left_out = [_LEFT_OUT[column] for column in _LEFT_OUT if cell.chosen[column] == NONE]
    pipeline = replace(base.pipeline, steps=steps_of(base.pipeline.steps, left_out, translated=lang != base.lang))
    return replace(
        base,
        **models,
        annotator=seeded(base.annotator),
        reader=seeded(base.annotator),
        pipeline=pipeline,
        out=str(out),
        answers_in=str(Path(base.out or "") / "answers"),
    )


def steps_of(given: Sequence[StepConfig], left_out: Sequence[str], *, translated: bool) -> list[StepConfig]:
    """The pipeline up to its labels in one language, without the steps that are left out."""
    if missing := sorted({"merge", "labels"} - {step.step or step.name for step in given}):
        raise UserError(f"a study needs a pipeline with the steps merge and labels; {missing} are missing")
    kept = [step for step in given if (step.step or step.name) not in left_out]
    if left_out:  # what is not to be heard or seen is not to be measured either
        without = {"without": list(left_out)}
        kept = [
            replace(step, step=f"{__name__}:measured_without", options={**step.options, **without})
            if (step.step or step.name) == "measure"
            else step
            for step in kept
        ]
    names = {step.name for step in kept}
    kept = [replace(step, needs=[name for name in step.needs if name in names]) for step in kept]
    (labels,) = [step for step in kept if step.name == "labels"]
    merge = next(step.name for step in kept if (step.step or step.name) == "merge")
    if translated:
        wanted = [
            StepConfig("translate", annotator="translator", needs=[merge]),
            StepConfig("labels", f"{__name__}:translated_labels", "reader", labels.prompt, ["translate"]),
        ]
    else:
        wanted = [replace(labels, annotator="reader")]
    before = [step for step in kept if step.name not in ("translate", "labels")]
    return needed([*before, *wanted], "labels")


def needed(given: Sequence[StepConfig], last: str) -> list[StepConfig]:
    """The steps that `last` rests on, and itself."""
    by_name, found, todo = {step.name: step for step in given}, set(), [last]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += by_name[name].needs
    return [step for step in given if step.name in found]


def measured_without(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Measured evidence without that of modalities. options: without = [visual, acoustic]."""
    part = steps.measure(work, spec, about)
    return {"evidence": [fact for fact in part["evidence"] if fact.modality not in spec.options["without"]]}


async def translated_labels(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Labels of the translated description, in its language."""
    other = prompts.other_language(work.lang)
    if other not in about.get("description", {}):
        return {}
    read = {**about, "clues": [], "description": {other: about["description"][other]}}
    values, _ = await steps.ask(work, spec, read, spec.prompt or "labels", lang=other)
    return {"labels": values["labels"]} if values else {}


# ---- runs and scores -------------------------------------------------------------------------------------------------


def _quietly(config: AnnotateConfig) -> int:
    """Run; what it says goes into a file beside its results."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return run(config)
    finally:
        write_text_atomic(Path(config.out or "") / "said.txt", said.getvalue())


def _truths(path: Path, lang: str, clips: set[str]) -> dict[str, tuple[str, ...]]:
    """True labels of the clips that are annotated."""
    truths = {name: labels for name, labels in read_references(path, lang=lang).items() if name in clips}
    if not truths:
        raise UserError(f"{path}: holds none of the {len(clips)} clips, such as {min(clips)!r}")
    return truths


def _score(row: Row, folder: Path, lang: str, truths: Mapping[str, tuple[str, ...]], lexicon: Lexicon) -> None:
    row.calls += json.loads((folder / "report.json").read_text(encoding="utf-8"))["calls"]
    labels = {record.id: record.labels for record in records_in(folder) if record.id in truths}
    report = evaluate({**dict.fromkeys(truths, ()), **labels}, truths, lexicon=lexicon, n_bootstrap=0)
    score = report.primary
    values = (score.avg, score.precision, score.recall, score.f_score)
    for name, value in zip(MEASURES, values, strict=True):
        row.scores.setdefault(lang, {}).setdefault(name, []).append(100 * value)
    row.n = len(truths)
    row.missing = max(row.missing, sum(not labels.get(name) for name in truths))


# ---- the table -------------------------------------------------------------------------------------------------------


def _named(cell: Cell) -> str:
    return " + ".join(cell.chosen.values())


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _cells(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    head = [*ROLES, *(f"{name} {lang}" for lang in LANGUAGES for name in MEASURES), "clips", "missing", "calls"]
    body = []
    for row in rows:
        numbers = []
        for lang in LANGUAGES:
            for name in MEASURES:
                values = row.scores[lang][name]
                mean, deviation = spread(values)
                numbers.append(f"{mean:.2f}±{deviation:.2f}" if len(values) > 1 else f"{mean:.2f}")
        body.append([*row.cell.chosen.values(), *numbers, str(row.n), str(row.missing), str(row.calls)])
    return head, body


def table(rows: Sequence[Row]) -> str:
    """For the terminal: one row a choice of models, in percent."""
    head, body = _cells(rows)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = []
    for line in (head, *body):
        cells = [
            text.ljust(width) if place < len(ROLES) else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_outputs(out: Path, rows: Sequence[Row], repeats: int, lexicon: Lexicon) -> None:
    """study.md, study.csv (means and deviations apart) and study.json (every repeat)."""
    head, body = _cells(rows)
    marks = ["---"] * len(ROLES) + ["---:"] * (len(head) - len(ROLES))
    lines = ["| " + " | ".join(line) + " |" for line in (head, marks, *body)]
    runs = f"mean and standard deviation over {repeats} runs" if repeats > 1 else "one run"
    note = f"Percent, {runs}; mean of the five wheels at level 1, lexicon {lexicon.name} {lexicon.version}."
    write_text_atomic(out / "study.md", "\n".join([*lines, "", note, ""]))
    file = io.StringIO()
    columns = [f"{name}_{lang}{end}" for lang in LANGUAGES for name in MEASURES for end in ("", "_std")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*ROLES, *columns, "clips", "missing", "calls"])
    for row in rows:
        numbers = [
            f"{value:.4f}" for lang in LANGUAGES for name in MEASURES for value in spread(row.scores[lang][name])
        ]
        writer.writerow([*row.cell.chosen.values(), *numbers, row.n, row.missing, row.calls])
    write_text_atomic(out / "study.csv", file.getvalue())
    found: list[dict[str, Any]] = [
        {"models": dict(row.cell.chosen), "folder": row.cell.folder, "scores": row.scores, "clips": row.n,
         "missing": row.missing, "calls": row.calls}
        for row in rows
    ]  # fmt: skip
    write_json_atomic(out / "study.json", {"rows": found, "lexicon_sha256": lexicon.checksum})
