"""Compare models to annotate with: every choice of audio, video, merging and translating model, against references.

    python -m affectgpt.annotate study clips.csv out=study references=clips.csv repeats=2 \\
        audio=[vllm:SALMONN,none] video=[vllm:Chat-UniVi] merge=[openai:gpt-4o,vllm:Qwen2-7B] translate=[vllm:Qwen2-7B]

The layout is that of Tables 1 and 2 of the AffectGPT paper (Lian et al. 2024, arXiv:2407.07653): a row is one choice of
models, the columns are Avg, Accuracy_S, Recall_S and F_S of the labels in English and in Chinese. All rows share one
folder of answers, so adding a model costs only its own calls.

One model reads the labels in all rows (`annotator=`), and the emotion wheels of `affectgpt.metrics` group them; the
paper groups them with GPT-3.5, so its figures are on another scale.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affectgpt.annotate import prompts, steps
from affectgpt.annotate.clips import Clips
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.pipeline import ancestors
from affectgpt.annotate.run import check_settings
from affectgpt.annotate.single import run_single
from affectgpt.annotate.steps import StepOutput, Work
from affectgpt.annotate.totals import COMPLETE, SOME_FAILED
from affectgpt.config import AnnotateConfig, AnnotatorConfig, StepConfig, StudyOfAnnotatorsConfig
from affectgpt.metrics import Lexicon, evaluate, load_lexicon, read_references
from affectgpt.metrics.compare import mean_std
from affectgpt.runtime import UserError, stable_hash, write_json_atomic, write_text_atomic
from affectgpt.schema import LANGUAGES, Sample
from affectgpt.tables import format_table, write_csv

COLUMN_ROLES = {"audio": "audio", "video": "vision", "merge": "text", "translate": "translator"}
"""Column of the table -> role of the annotator that it chooses."""
Candidates = Mapping[str, Mapping[str, AnnotatorConfig | None]]
"""Column -> name -> model; None = the column's medium is left out."""
NONE = "none"
MEASURES = ("Avg", "Accuracy_S", "Recall_S", "F_S")
_LEFT_OUT = {"audio": "acoustic", "video": "visual"}


@dataclass(frozen=True)
class ModelChoice:
    """One choice of models: column -> name."""

    chosen: Mapping[str, str]

    @property
    def folder(self) -> str:
        """A folder name made of the models; the hash distinguishes names that differ in punctuation only."""
        words = "-".join(re.sub(r"\W+", "_", name.rpartition(":")[2]) for name in self.chosen.values())
        return f"{words[:80]}-{stable_hash(dict(self.chosen))[:8]}"


@dataclass
class StudyRow:
    """The scores of one choice of models: language -> measure -> one value per repeat, in percent.

    Attributes:
        calls: answers requested by this run of the study.
        n, missing: clips with a reference, and those of them without labels (scored as empty), in the worst repeat.
    """

    cell: ModelChoice
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    calls: int = 0
    n: int = 0
    missing: int = 0


def run_study(config: StudyOfAnnotatorsConfig, base: AnnotateConfig, candidates: Candidates) -> int:
    """Annotate with every choice of models and score it; exit codes as of one run, but 0 if some clips failed.

    Args:
        base: the common settings of all rows: clips, folder, pipeline, the annotator that reads labels.
        candidates: the models that the columns choose from.
    """
    cells = grid(candidates)
    if config.repeats < 1:
        raise UserError(f"repeats is {config.repeats}; expected at least 1")
    out = Path(base.out or "")
    if base.out is None or not config.references:
        raise UserError(
            "out= and references= are required: a folder, and a file with the true labels (docs/annotate.md)"
        )
    if base.engine != "single" or base.plan:
        raise UserError("a study runs in one process and has no plan; leave out engine= and plan=")
    clips = {item.id for item in Clips(base) if isinstance(item, Sample)}
    truths = {lang: _truths(Path(config.references), lang, clips) for lang in LANGUAGES}
    lexicon = load_lexicon(config.lexicon)
    rows = []
    for number, cell in enumerate(cells, 1):
        row = StudyRow(cell)
        for repeat in range(config.repeats):
            for lang in LANGUAGES:
                folder = out / "cells" / cell.folder / f"{lang}-{repeat}"
                models = " + ".join(cell.chosen.values())
                print(f"row {number} of {len(cells)}: {models}, {lang}, repeat {repeat + 1}", file=sys.stderr)
                code = _run_quietly(run_settings(base, cell, candidates, lang, repeat, folder))
                if code not in (COMPLETE, SOME_FAILED):
                    print(f"stopped in {folder} (exit code {code}); repeat the command to continue", file=sys.stderr)
                    return code
                _add_scores(row, folder, lang, truths[lang], lexicon)
        rows.append(row)
        write_study(out, rows, config.repeats, lexicon)
    print(study_table(rows))
    print(f"calls {sum(row.calls for row in rows)}; {out}: study.md, study.csv, study.json")
    print("next: annotate all clips with the models of the best row (annotator@audio=, annotator@vision= ...)")
    return COMPLETE


# ---- the grid --------------------------------------------------------------------------------------------------------


def grid(candidates: Candidates) -> list[ModelChoice]:
    """Every choice of one candidate per column; choices without audio and video are left out."""
    empty = [column for column in COLUMN_ROLES if not candidates.get(column)]
    if empty:
        raise UserError(f"{empty[0]}= is missing: [model, ...], such as {empty[0]}=[vllm:name,local]")
    for column in ("merge", "translate"):
        if NONE in candidates[column]:
            raise UserError(f"{column}={NONE}: only audio and video can be left out")
    chosen = itertools.product(*(candidates[column] for column in COLUMN_ROLES))
    cells = [ModelChoice(dict(zip(COLUMN_ROLES, names, strict=True))) for names in chosen]
    with_clues = [cell for cell in cells if (cell.chosen["audio"], cell.chosen["video"]) != (NONE, NONE)]
    if not with_clues:
        raise UserError(f"audio=[{NONE}] video=[{NONE}]: nothing is left to annotate with; name a model in one of them")
    return with_clues


def run_settings(
    base: AnnotateConfig, cell: ModelChoice, candidates: Candidates, lang: str, repeat: int, out: Path
) -> AnnotateConfig:
    """The settings of one run. Repeats differ in the seed that is sent, so that models are asked again."""

    def seeded(annotator: AnnotatorConfig | None) -> AnnotatorConfig | None:
        return annotator if annotator is None or not repeat else replace(annotator, seed=(annotator.seed or 0) + repeat)

    models = {role: seeded(candidates[column][cell.chosen[column]]) for column, role in COLUMN_ROLES.items()}
    left_out = [_LEFT_OUT[column] for column in _LEFT_OUT if cell.chosen[column] == NONE]
    pipeline = replace(base.pipeline, steps=study_steps(base.pipeline.steps, left_out, translated=lang != base.lang))
    return replace(
        base,
        **models,
        annotator=seeded(base.annotator),
        reader=seeded(base.annotator),
        pipeline=pipeline,
        out=str(out),
        answers_in=str(Path(base.out or "") / "answers"),
    )


def study_steps(given: Sequence[StepConfig], left_out: Sequence[str], *, translated: bool) -> list[StepConfig]:
    """The pipeline up to its labels in one language, without the steps in `left_out`."""
    merge = next((step.name for step in given if (step.step or step.name) == "merge"), None)
    labels = next((step for step in given if step.name == "labels"), None)
    if merge is None or labels is None:
        names = [step.name for step in given]
        raise UserError(f"a study needs a pipeline with the steps merge and labels; this one has {names}")
    kept = [step for step in given if (step.step or step.name) not in left_out]
    if left_out:  # a medium that is left out is not measured either
        without = {"without": list(left_out)}
        kept = [
            replace(step, step=f"{__name__}:measured_without", options={**step.options, **without})
            if (step.step or step.name) == "measure"
            else step
            for step in kept
        ]
    names = {step.name for step in kept}
    kept = [replace(step, needs=[name for name in step.needs if name in names]) for step in kept]
    labels = next(step for step in kept if step.name == "labels")
    if translated:
        wanted = [
            StepConfig("translate", annotator="translator", needs=[merge]),
            StepConfig("labels", f"{__name__}:translated_labels", "reader", labels.prompt, ["translate"]),
        ]
    else:
        wanted = [replace(labels, annotator="reader")]
    cut = [*(step for step in kept if step.name not in ("translate", "labels")), *wanted]
    used = {*ancestors(cut, cut[-1]), "labels"}
    return [step for step in cut if step.name in used]


def measured_without(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Measured evidence without some modalities. options: without = [visual, acoustic]."""
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


def _run_quietly(config: AnnotateConfig) -> int:
    """Run; the summary goes into said.txt next to the results."""
    check_settings(config)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            return run_single(config, Clips(config))
    finally:
        write_text_atomic(Path(config.out or "") / "said.txt", printed.getvalue())


def _truths(path: Path, lang: str, clips: set[str]) -> dict[str, tuple[str, ...]]:
    """The true labels of the annotated clips."""
    truths = {name: labels for name, labels in read_references(path, lang=lang).items() if name in clips}
    if not truths:
        raise UserError(f"{path}: has labels for none of the {len(clips)} clips, such as {min(clips)!r}")
    return truths


def _add_scores(
    row: StudyRow, folder: Path, lang: str, truths: Mapping[str, tuple[str, ...]], lexicon: Lexicon
) -> None:
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


def _cells(rows: Iterable[StudyRow]) -> list[list[str]]:
    head = [*COLUMN_ROLES, *(f"{name} {lang}" for lang in LANGUAGES for name in MEASURES), "clips", "missing", "calls"]
    lines = [head]
    for row in rows:
        numbers = []
        for lang in LANGUAGES:
            for name in MEASURES:
                score = mean_std(row.scores[lang][name])
                numbers.append(f"{score.mean:.2f}±{score.std:.2f}" if score.n_runs > 1 else f"{score.mean:.2f}")
        lines.append([*row.cell.chosen.values(), *numbers, str(row.n), str(row.missing), str(row.calls)])
    return lines


def study_table(rows: Sequence[StudyRow]) -> str:
    """The table on screen: one row per choice of models, in percent."""
    return format_table(_cells(rows), "l" * len(COLUMN_ROLES))


def write_study(out: Path, rows: Sequence[StudyRow], repeats: int, lexicon: Lexicon) -> None:
    """Write study.md, study.csv (means and deviations in columns of their own) and study.json (every repeat)."""
    head, *body = _cells(rows)
    marks = ["---"] * len(COLUMN_ROLES) + ["---:"] * (len(head) - len(COLUMN_ROLES))
    lines = ["| " + " | ".join(line) + " |" for line in (head, marks, *body)]
    runs = f"mean and standard deviation over {repeats} runs" if repeats > 1 else "one run"
    note = f"Percent, {runs}; mean of the five wheels at level 1, lexicon {lexicon.name} {lexicon.version}."
    write_text_atomic(out / "study.md", "\n".join([*lines, "", note, ""]))
    columns = [f"{name}_{lang}{end}" for lang in LANGUAGES for name in MEASURES for end in ("", "_std")]
    table: list[list[object]] = [[*COLUMN_ROLES, *columns, "clips", "missing", "calls"]]
    for row in rows:
        scores = [mean_std(row.scores[lang][name]) for lang in LANGUAGES for name in MEASURES]
        numbers = [f"{value:.4f}" for score in scores for value in (score.mean, score.std)]
        table.append([*row.cell.chosen.values(), *numbers, row.n, row.missing, row.calls])
    write_csv(out / "study.csv", table)
    found: list[dict[str, Any]] = [
        {"models": dict(row.cell.chosen), "folder": row.cell.folder, "scores": row.scores, "clips": row.n,
         "missing": row.missing, "calls": row.calls}
        for row in rows
    ]  # fmt: skip
    write_json_atomic(out / "study.json", {"rows": found, "lexicon_sha256": lexicon.checksum})
