"""Studies of one stage: variants that start from one checkpoint, such as rewards with and without a length penalty.

    python train.py -m experiment=rewards       # a file with `study.stages: [reward]`
    python -m affectgpt.study runs/rewards      # table and picture again

Every variant is one run from `stage.init_from`. It and the start answer the test clips as `study.question` asks, and
the table compares each variant with the start on the same clips.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from affectgpt.config import EvalConfig, TrainConfig
from affectgpt.metrics.clip_scores import SCORES, ClipScore, read_scores
from affectgpt.metrics.io import read_predictions
from affectgpt.metrics.report import percent
from affectgpt.metrics.rewards import Attempt, in_format
from affectgpt.metrics.stats import PairedTest, Rate, paired_test
from affectgpt.runs import RunRecord, best_checkpoint, checkpoint_to_start_from, complete_checkpoints, runs_named
from affectgpt.runtime import InputError, UserError, write_json_atomic
from affectgpt.schema import Prediction

CELL = "cell.json"
START = "start"


class Stopped(Exception):
    """Training was stopped by a signal; the command exits with `exit_code`."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped with exit code {exit_code}")
        self.exit_code = exit_code


def run_variant(config: TrainConfig) -> Path:
    """Train this variant, unless its run is finished, and score it and its start on the test clips; returns its run.

    Raises:
        Stopped: a signal stopped the stage; the same command continues.
        UserError: no start, or another one or other settings than those of the runs in the folder of the study.
    """
    study, stage = config.study, config.stage
    if not stage.init_from:
        raise InputError(
            f"study.stages is {study.stages}: variants of one stage are compared with their start, but "
            "stage.init_from is empty; give a run or a checkpoint"
        )
    runs = Path(config.paths.runs)
    folder, variant = runs / study.name, slug(study.variant)
    start = checkpoint_to_start_from(runs, stage.init_from).resolve()
    cell = folder / "cells" / START
    with lock(folder / START):
        score_cell({"variant": START}, start, config, cell)
    if (scored := json.loads((cell / CELL).read_text(encoding="utf-8"))["checkpoint"]) != str(start):
        raise UserError(f"{folder} compares with {scored}, not with {start}; give this study another study.name")
    stage = replace(stage, init_from=str(start))
    run = train(replace(config, stage=stage, name=variant, paths=replace(config.paths, runs=str(folder))))
    chosen = best_checkpoint(run) or complete_checkpoints(run)[-1]
    score_cell({"variant": variant}, chosen, config, folder / "cells" / variant)
    return run


# ---- parts of every study --------------------------------------------------------------------------------------------


def slug(variant: str) -> str:
    """The last part of an id or path, as a folder name."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", variant.rstrip("/").rpartition("/")[2]).strip("-.")
    if not name:
        raise UserError(
            f"study.variant={variant!r} has no letter or digit; set it to what varies, such as ${{model.init}}"
        )
    return name


def lock(folder: Path) -> FileLock:
    """Held while a run or a checkpoint is made that cells of a sweep share."""
    locks = folder.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.name}.lock")


def train(config: TrainConfig) -> Path:
    """The finished run of that name; trained or resumed if necessary."""
    from affectgpt.training.run_folder import changed_settings
    from affectgpt.training.stages import run_stage

    runs = Path(config.paths.runs)
    assert config.name is not None
    with lock(runs / config.name):  # concurrent cells share stage 1
        named = runs_named(runs, config.name)
        record = RunRecord.read(named[-1]) if named else None
        if record is not None and record.values["status"] == "finished":
            if changed := changed_settings(record, config):
                raise UserError(
                    f"{named[-1]} was trained with other settings; give this study another study.name:\n{changed}"
                )
            return named[-1]
        result = run_stage(replace(config, resume=record is not None))
        if result.exit_code:
            raise Stopped(result.exit_code)
        return result.run


def score_cell(values: Mapping[str, Any], checkpoint: Path, config: TrainConfig, out: Path) -> None:
    """Score a checkpoint on the test clips, asked as `study.question` says, unless `out` has its score.

    Args:
        values: what cell.json says about the cell besides its checkpoint and score.
    """
    from affectgpt.inference.evaluate import evaluate_config

    if (out / CELL).exists():
        return
    report, _ = evaluate_config(
        EvalConfig(
            **asdict(config.study.question),
            checkpoint=str(checkpoint),
            data=config.data,
            out=str(out),
            generate=config.generate,
            paths=config.paths,
            device=config.device,
        )
    )
    write_json_atomic(out / CELL, {**values, "checkpoint": str(checkpoint), "score": report.primary.to_dict()})


# ---- table and picture -----------------------------------------------------------------------------------------------

HEADS = ("", "F_S", "precision", "recall", "labels", "in format", "absent modality", "F_S - start", "labels - start")


def of_variants(cells: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the cells are those of a study of one stage."""
    return "stage1_epochs" not in cells[0]


def variant_rows(folder: Path, cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of `HEADS` for the start and each variant: percent, labels of an answer, answers in format and with a
    statement about what was not shown, paired 95 % intervals.
    """
    clips = {cell["variant"]: read_scores(folder / "cells" / cell["variant"] / SCORES) for cell in cells}
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell["variant"] != START, cell["variant"])):
        name, score = cell["variant"], cell["score"]
        own = clips[name]
        stated = [row.faithfulness.absent for row in own if row.faithfulness and row.faithfulness.absent is not None]
        absent = Rate(sum(map(bool, stated)), len(stated))
        changes = ("", "")
        if name != START and START in clips:
            scores, labels = differences(own, clips[START])
            changes = (_change(scores, 100, 1), _change(labels, 1, 2))
        figures = [percent(score[key]) for key in ("f_score", "precision", "recall")]
        n_labels = f"{np.mean([row.n_predicted for row in own]):.2f}"
        formed = [_in_format(row) for row in read_predictions(folder / "cells" / name / "predictions.jsonl")]
        shares = [f"{sum(formed)} of {len(formed)}", f"{absent.count} of {absent.n}" if absent.n else ""]
        rows.append((name, *figures, n_labels, *shares, *changes))
    return rows


def _in_format(answer: Prediction) -> bool:
    return in_format(Attempt(answer.id, answer.text, answer.task, answer.lang, finish=answer.finish or "eos"))


def true_labels(folder: Path, cells: Sequence[Mapping[str, Any]]) -> str:
    """How many labels the truth has, to compare the answers' with."""
    rows = read_scores(folder / "cells" / cells[0]["variant"] / SCORES)
    return f"{len(rows)} clips, whose truth has {np.mean([row.n_true for row in rows]):.2f} labels"


def differences(own: Sequence[ClipScore], before: Sequence[ClipScore]) -> tuple[PairedTest, PairedTest]:
    """F_S (level-1 mean) and labels of an answer, of `own` minus `before`, on the same clips.

    Raises:
        InputError: other clips.
    """
    if [row.id for row in own] != [row.id for row in before]:
        raise InputError("the cells of a study were scored on different clips; give this study another study.name")
    wheels = [
        np.array([(row.precision_by_wheel, row.recall_by_wheel) for row in rows], dtype=float).transpose(0, 2, 1)
        for rows in (own, before)
    ]  # [n, 5, 2]
    counts = [np.array([[[row.n_predicted] * 2] for row in rows], dtype=float) for rows in (own, before)]  # [n, 1, 2]
    return paired_test(*wheels), paired_test(*counts, lambda means: means[..., 0, 0])


def _change(test: PairedTest, scale: float, digits: int) -> str:
    difference, low, high = (
        f"{scale * value:+.{digits}f}" for value in (test.difference, test.interval.low, test.interval.high)
    )
    return f"{difference} ({low} to {high})"


def draw_variants(folder: Path, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw the answers that the variants sampled, by step, if rewards taught them; returns the picture's name."""
    from affectgpt.training.rollouts import FILE, draw_rollouts

    names = sorted(cell["variant"] for cell in cells)
    runs = {name: folder / name for name in names if (folder / name / FILE).exists()}
    if not runs:
        return []
    draw_rollouts(folder / "rollouts", runs)
    return ["rollouts"]
