"""Studies: one or two stages under different settings, as one sweep that ends with a table and curves.

    python train.py -m experiment=table4        # initialisation x length of stage 1 x stage 2 (AffectGPT, Table 4)
    python train.py -m experiment=llms          # comparison of frozen LLMs (its Figure 3)
    python train.py -m experiment=rewards       # variants of one stage from the same start: `training.variants`
    python -m affectgpt.study runs/table4       # table and pictures again from a finished sweep

With two stages, a cell of the sweep is one way of training: a variant (what the columns compare), a share of stage 1,
with or without stage 2. Cells share runs: stage 1 is trained once per variant, and the 50-epoch cell is the checkpoint
at half its steps. Scored cells are not recomputed, so the same command continues a stopped sweep.

Nothing is chosen on the test split: stage 2 ends with its best checkpoint by validation on held-out training samples;
the curves over the complete, training and test set are computed afterwards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from affectgpt.config import GenerateConfig, QuestionConfig, StudyConfig, StudyReportConfig, TrainConfig
from affectgpt.plots import Panel, draw_curves
from affectgpt.runs import COMPLETE, best_checkpoint, complete_checkpoints, mark_complete
from affectgpt.runs.boards import boards, markdown_table
from affectgpt.runs.watch import Curve, curves
from affectgpt.runtime import InputError, MissingLibrary, UserError, stable_hash, write_json_atomic
from affectgpt.schema import Sample, write_jsonl
from affectgpt.tables import format_table
from affectgpt.training.variants import (
    CELL,
    HEADS,
    Stopped,
    draw_variants,
    lock,
    of_variants,
    run_variant,
    score_cell,
    slug,
    train,
    true_labels,
    variant_rows,
)

log = logging.getLogger("affectgpt")

SETS = ("whole", "train", "test")
CURVE = "curve.json"
_LEFT_OUT = "left_out.json"


@dataclass(frozen=True)
class Cell:
    """One row and column of the table. stage1_epochs 0 = without stage 1, 2.5 = two and a half."""

    variant: str
    stage1_epochs: float
    stage2: bool

    @property
    def name(self) -> str:
        return f"{self.variant}-stage1-{self.stage1_epochs:g}-stage2-{'best' if self.stage2 else 'none'}"


def stage_names(study: StudyConfig) -> list[str]:
    """Names of the stages, whose configurations `run_sweep_job` takes."""
    if len(study.stages) not in (1, 2):
        raise InputError(f"study.stages is {study.stages}; expected the names of one or two stages")
    return study.stages


class LeftOut(InputError):
    """A cell that these settings cannot train, such as half of one epoch; a sweep has the others."""


def run_sweep_job(stage1: TrainConfig, stage2: TrainConfig | None = None) -> int:
    """`run_cell`, or with one stage `run_variant`, as a job of a sweep; returns the exit code.

    A cell that is left out is logged and in the report.
    """
    try:
        if stage2 is None:
            run_variant(stage1)
        else:
            run_cell(stage1, stage2)
    except Stopped as stopped:
        return stopped.exit_code
    except LeftOut as reason:
        study = stage1.study
        name = f"{slug(study.variant)}, stage 1: {study.stage1_share:g}, stage 2: {'best' if study.stage2 else 'none'}"
        log.warning("left out: %s: %s", name, reason)
        folder = Path(stage1.paths.runs) / study.name / "cells" / f"left-out-{stable_hash(name)[:8]}"
        write_json_atomic(folder / _LEFT_OUT, {"cell": name, "reason": str(reason)})
    return 0


def run_cell(stage1: TrainConfig, stage2: TrainConfig) -> Cell:
    """Train the runs that this cell needs, unless other cells have, and score it on the test split.

    Args:
        stage1, stage2: the configurations of the two stages in `study.stages` with this cell's settings.

    Raises:
        Stopped: a signal stopped a stage; the same command continues.
        LeftOut: the share of stage 1 is no checkpoint of it.
        UserError: the settings contradict each other or those of existing runs.
    """
    study = stage1.study
    share, n_points = study.stage1_share, study.n_points
    if not 0 <= share <= 1 or n_points < 1:
        raise UserError(f"study.stage1_share={share}, study.n_points={n_points}: expected 0 to 1, and 1 or more")
    if round(share * n_points) != share * n_points:
        raise LeftOut(
            f"study.stage1_share={share} with study.n_points={n_points}: the share must be k / n_points for a "
            "whole number k from 0 to n_points"
        )
    if 0 < share * stage1.stage.epochs < 1:
        raise LeftOut(f"study.stage1_share={share} of stage.epochs={stage1.stage.epochs} is less than an epoch")
    folder = Path(stage1.paths.runs) / study.name
    variant = slug(study.variant)
    cell = Cell(variant, share * stage1.stage.epochs, study.stage2)
    log.info("\n=== study %s, cell %s", study.name, cell.name)
    start = _start_folder(stage1, folder / f"{variant}-start")
    chosen = start
    if share:
        # Stage 2 starts from fixed epochs of stage 1, so only stage 2 needs validation to choose its best checkpoint.
        run = train(_prepared(stage1, folder, f"{variant}-stage1", None, validate_always=False))
        _score_curve(run, [start, *complete_checkpoints(run)], stage2)
        chosen = complete_checkpoints(run)[round(share * n_points) - 1]
    if study.stage2:
        name = f"{variant}-stage2-after-{cell.stage1_epochs:g}"
        run = train(_prepared(stage2, folder, name, chosen, validate_always=True))
        _score_curve(run, [chosen, *complete_checkpoints(run)], stage2)
        chosen = best_checkpoint(run) or complete_checkpoints(run)[-1]
    score_cell(asdict(cell), chosen, stage2, folder / "cells" / cell.name)
    return cell


def _prepared(
    config: TrainConfig, folder: Path, name: str, init_from: Path | None, *, validate_always: bool
) -> TrainConfig:
    """The stage with as many checkpoints as the curves need, all kept."""
    stage, n_points = config.stage, config.study.n_points
    total = stage.epochs * stage.iterations_per_epoch
    if total % n_points:
        raise UserError(f"study.n_points={n_points} does not divide the {total} steps of stage {stage.name}")
    every = total // n_points
    stage = replace(
        stage,
        init_from=None if init_from is None else str(init_from),
        save_every=every,
        keep_last=n_points,
        validate_every=every if validate_always else total,
    )
    # Without the settings of this cell, so that cells can share the run.
    study = replace(config.study, stage1_share=1.0, stage2=True)
    return replace(config, stage=stage, study=study, name=name, paths=replace(config.paths, runs=str(folder)))


def _start_folder(config: TrainConfig, folder: Path) -> Path:
    """A checkpoint of the variant before its first step."""
    from affectgpt.models.checkpoint import save_trained
    from affectgpt.training.setup import starting_model

    with lock(folder):
        if not (folder / COMPLETE).exists():
            save_trained(*starting_model(config), folder)
            mark_complete(folder, "step 0")
    return folder


# ---- scores ----------------------------------------------------------------------------------------------------------


def _score_curve(run: Path, checkpoints: Sequence[Path], config: TrainConfig) -> None:
    """Score every checkpoint on training and test data and write curve.json.

    The answers are labels only: a curve needs many answers, and only labels are scored.

    Args:
        config: of stage 2, whose training and test data are used.
    """
    from affectgpt.cache.reader import cache_mode, clip_reader
    from affectgpt.data.faces import face_needs
    from affectgpt.data.facts import facts_in
    from affectgpt.data.mixture import read_samples
    from affectgpt.inference.loading import load
    from affectgpt.inference.prediction import predict
    from affectgpt.models.checkpoint import load_trained_tensors
    from affectgpt.training.samples import sources_of_stage
    from affectgpt.training.validation import validation_scores

    path = run / CURVE
    points = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if len(points) == len(checkpoints):
        return
    facts = facts_in(Path(config.paths.cache))
    faces = face_needs(config.model.encoders, config.model.sampling, backend=config.data.backend)
    parts: dict[str, list[Sample]] = {
        name: read_samples(sources, config.data, facts, faces)[0]
        for name, sources in (("train", sources_of_stage(config)), ("test", config.data.test))
    }
    parts["whole"] = [*parts["train"], *parts["test"]]
    loaded = load(str(checkpoints[0]), run.parent, device=config.device)
    question = QuestionConfig(task="labels")
    generate = GenerateConfig(4 * config.generate.batch_size, config.study.max_new_tokens)
    for number, checkpoint in enumerate(checkpoints):
        if number < len(points):
            continue
        log.info("scoring %s on %d clips", checkpoint, len(parts["whole"]))
        load_trained_tensors(loaded.model, checkpoint)
        reader = clip_reader(  # of its own, since encoders may have been trained
            loaded.model,
            loaded.processor,
            backend=config.data.backend,
            cache_folder=None if cache_mode(config.data.cache_features) == "off" else Path(config.paths.cache),
            limit_gb=config.paths.cache_limit_gb,
            facts=facts,
        )
        rows = list(
            predict(loaded.model, loaded.processor, parts["whole"], reader, question=question, generate=generate)
        )
        write_jsonl(run / "curve" / f"point-{number}.jsonl", rows)
        by_id = {row.id: row for row in rows}
        scores = {}
        for name, samples in parts.items():
            scores[name] = validation_scores([by_id[sample.id] for sample in samples], samples)
        points.append({"checkpoint": checkpoint.name, **scores})
        write_json_atomic(path, points)


# ---- table and pictures ----------------------------------------------------------------------------------------------


def report(folder: Path) -> str:
    """Write table.md, table.json and the pictures of a study; returns the table as text.

    Raises:
        UserError: no cell of the study has been scored yet.
    """
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"cells/*/{CELL}"))]
    if not cells:
        raise UserError(f"{folder} has no scored cell; run a study first: python train.py -m experiment=table4")
    write_json_atomic(folder / "table.json", cells)
    if of_variants(cells):
        rows = variant_rows(folder, cells)
        text, in_markdown = format_table([HEADS, *rows], "lrrrrllll"), markdown_table(HEADS, rows)
        text += f"\n{true_labels(folder, cells)}"
    else:
        text, in_markdown = table(cells), markdown(cells)
    for path in sorted(folder.glob(f"cells/*/{_LEFT_OUT}")):
        left_out = json.loads(path.read_text(encoding="utf-8"))
        text += f"\nleft out: {left_out['cell']}: {left_out['reason']}"
    (folder / "table.md").write_text(f"{in_markdown}\n", encoding="utf-8")
    written = ["table.md", "table.json"]
    try:
        drawn = draw_variants(folder, cells) if of_variants(cells) else draw(folder)
        written += [f"{name}.png" for name in drawn]
    except MissingLibrary as error:
        written.append(f"no pictures ({error})")
    return f"{text}\n\n{folder}: {', '.join(written)}"


def _rows(
    cells: Sequence[Mapping[str, Any]],
) -> tuple[list[str], dict[tuple[float, bool], dict[str, Mapping[str, Any]]]]:
    """(variants, (epochs of stage 1, stage 2) -> variant -> score)."""
    variants = sorted({cell["variant"] for cell in cells})
    rows: dict[tuple[float, bool], dict[str, Mapping[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["stage1_epochs"], cell["stage2"])):
        rows.setdefault((cell["stage1_epochs"], cell["stage2"]), {})[cell["variant"]] = cell["score"]
    return variants, rows


def _titles(epochs: float, stage2: bool) -> tuple[str, str]:
    return f"{epochs:g} epochs" if epochs else "-", "best" if stage2 else "-"


_COLUMNS = (("avg", "Avg"), ("precision", "precision"), ("recall", "recall"), ("f_score", "F_S"))


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Rows as in the AffectGPT paper (Table 4), in percent: Avg = (precision + recall) / 2; F_S with its interval."""
    variants, rows = _rows(cells)
    width = 52
    lines = [" " * 18 + "".join(f"{variant:^{width}}" for variant in variants)]
    names = f"{'Avg':>7}{'precision':>11}{'recall':>8}{'F_S':>7}  {'95 % interval':<15}"
    lines.append(f"{'stage 1':<11}{'stage 2':<7}" + "".join(f"{names:<{width}}" for _ in variants))
    for key, by_variant in rows.items():
        titles = _titles(*key)
        line = f"{titles[0]:<11}{titles[1]:<7}"
        for variant in variants:
            line += f"{_figures(by_variant.get(variant)):<{width}}"
        lines.append(line.rstrip())
    n = {score["n"] for by_variant in rows.values() for score in by_variant.values()}
    lines.append(f"test split, n = {'-'.join(map(str, sorted(n)))}; level-1 mean over the five wheels, in percent")
    return "\n".join(lines)


def _figures(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return f"{'':>7}{'not yet':>11}"
    avg, precision, recall, f_score = (100 * score[key] for key, _ in _COLUMNS)
    interval = score.get("interval")
    shown = f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}" if interval else ""
    return f"{avg:>7.2f}{precision:>11.2f}{recall:>8.2f}{f_score:>7.2f}  {shown:<15}"


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """The same table in Markdown."""
    variants, rows = _rows(cells)
    heads = [f"{variant}: {title}" for variant in variants for _, title in _COLUMNS]
    lines = ["| stage 1 | stage 2 | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    for key, by_variant in rows.items():
        figures = []
        for variant in variants:
            score = by_variant.get(variant)
            figures += ["not yet" if score is None else f"{100 * score[name]:.2f}" for name, _ in _COLUMNS]
        lines.append(f"| {' | '.join(_titles(*key))} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Run:
    """The curves of one run: steps and Avg of its scored checkpoints by set, and its training loss."""

    title: str
    steps: list[int]
    avg: dict[str, list[float]]
    loss: Curve


def _read_run(run: Path, title: str) -> _Run | None:
    if not (run / CURVE).exists():
        return None
    points = json.loads((run / CURVE).read_text(encoding="utf-8"))
    steps = [0, *(int(point["checkpoint"].rpartition("-")[2]) for point in points[1:])]
    avg = {name: [50 * (point[name]["precision"] + point[name]["recall"]) for point in points] for name in SETS}
    return _Run(title, steps, avg, curves(run, ["loss"]).get("loss", Curve((), ())))


def draw(folder: Path) -> list[str]:
    """Draw the curves of the AffectGPT paper (Figures 1 to 5) for the runs so far; returns their names."""

    def scores(title: str, runs: Sequence[_Run], which: str) -> Panel:
        lines = {run.title: (run.steps, run.avg[which]) for run in runs}
        return Panel(title, "step", "Avg (%)", lines)

    def losses(title: str, runs: Sequence[_Run]) -> Panel:
        lines = {run.title: (run.loss.steps, run.loss.values) for run in runs}
        return Panel(title, "step", "training loss", lines)

    stage1 = {path.name.removesuffix("-stage1"): path for path in sorted(folder.glob("*-stage1"))}
    first = [run for name, path in stage1.items() if (run := _read_run(path, name))]
    second: dict[str, list[_Run]] = {}
    for path in sorted(folder.glob("*-stage2-after-*"), key=lambda path: float(path.name.rpartition("-")[2])):
        variant, _, epochs = path.name.rpartition("-stage2-after-")
        title = f"stage 1: {epochs} epochs" if epochs != "0" else "without stage 1"
        if run := _read_run(path, title):
            second.setdefault(variant, []).append(run)
    drawn = {
        "stage1-sets": [
            scores(f"{run.title}, {name}", [replace(run, title="Avg")], name) for run in first for name in SETS
        ],
        "stage1-variants": [losses("stage 1", first), scores("stage 1, whole set", first, "whole")] if first else [],
        "stage2-sets": [
            scores(f"{variant}, {name}", [replace(runs[-1], title="Avg")], name)
            for variant, runs in second.items()
            for name in SETS
        ],
        "stage2-necessity": [
            panel
            for variant, runs in second.items()
            for panel in (losses(f"stage 2, {variant}", runs), scores(f"stage 2, {variant}, test", runs, "test"))
        ],
    }
    columns = {"stage1-sets": 3, "stage2-sets": 3}
    for name, panels in drawn.items():
        if panels:
            draw_curves(folder / name, panels, n_columns=columns.get(name, 2))
    return [name for name, panels in drawn.items() if panels]


def run_report(config: StudyReportConfig) -> int:
    if config.folder is None:
        raise InputError("give the folder of a study, such as runs/table4")
    folder = Path(config.folder)
    print(report(folder))
    with boards(config.logging, folder, job="study", group=folder.name, config=asdict(config)) as shown:
        cells = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        for board in shown:
            _show(board, folder, cells)
    return 0


def _show(board: Any, folder: Path, cells: Sequence[Mapping[str, Any]]) -> None:
    """The table of a study, its figures and its pictures on wandb or TensorBoard."""
    board.pictures("study/curves", {path.stem: path for path in sorted(folder.glob("*.png"))})
    if of_variants(cells):
        for cell in cells:
            board.figures({f"study/{cell['variant']}/{column}": cell["score"][column] for column, _ in _COLUMNS})
        board.rows("study/table", HEADS, variant_rows(folder, cells))
        return
    variants, rows = _rows(cells)
    texts = []
    for key, by_variant in rows.items():
        titles = _titles(*key)
        for variant, score in by_variant.items():
            if score is not None:
                name = f"study/{variant}, stage 1 {titles[0]}, stage 2 {titles[1]}"
                board.figures({f"{name}/{column}": score[column] for column, _ in _COLUMNS})
        scores = [by_variant.get(variant) for variant in variants]
        texts.append([*titles, *(None if score is None else score[name] for score in scores for name, _ in _COLUMNS)])
    heads = [f"{variant}: {title}" for variant in variants for _, title in _COLUMNS]
    board.rows("study/table", ["stage 1", "stage 2", *heads], texts)
