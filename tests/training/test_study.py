import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from affectgpt.cli import run
from affectgpt.config import QuestionConfig, StudyConfig
from affectgpt.journal import append_rows
from affectgpt.metrics import read_predictions
from affectgpt.metrics.clip_scores import read_scores, write_scores
from affectgpt.runs import changed_files
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import write_jsonl
from affectgpt.training import study, variants
from tests.conftest import make_train_config


def stages(base_models, manifest, folder, **values):
    """Configurations of either stage: three epochs, six steps, two scored checkpoints."""
    config = StudyConfig(name="toy", variant="models/random", n_points=2, max_new_tokens=4, **values)
    length = {"epochs": 3, "iterations_per_epoch": 2, "validate_every": 3}
    coarse = make_train_config(base_models, manifest, folder, **length)
    fine = make_train_config(base_models, manifest, folder, name="fine", **length)
    return [replace(item, study=config) for item in (coarse, fine)]


@pytest.fixture(scope="module")
def swept(base_models, manifest, tmp_path_factory):
    """Every cell but (0, no stage 2), swept once."""
    folder = tmp_path_factory.mktemp("study")
    for share, stage2 in ((0.0, True), (0.5, False), (0.5, True), (1.0, False)):
        study.run_cell(*stages(base_models, manifest, folder, stage1_share=share, stage2=stage2))
    return folder / "runs" / "toy"


def cell(folder, name):
    return json.loads((folder / "cells" / name / "cell.json").read_text())


def test_cells_share_stage_1_and_use_their_share_of_it(swept):
    assert [path.name for path in sorted(swept.glob("*stage1"))] == ["random-stage1"]
    half, whole = (cell(swept, f"random-stage1-{epochs}-stage2-none") for epochs in ("1.5", "3"))
    assert half["checkpoint"].endswith("random-stage1/checkpoint-3")
    assert whole["checkpoint"].endswith("random-stage1/checkpoint-6")


def test_stage_2_starts_from_the_checkpoint_of_its_cell_and_ends_with_its_best_by_validation(swept):
    for epochs, start in (("0", "random-start"), ("1.5", "random-stage1/checkpoint-3")):
        record = json.loads((swept / f"random-stage2-after-{epochs}" / "run.json").read_text())
        assert record["init_from"].endswith(start)
        chosen = Path(cell(swept, f"random-stage1-{epochs}-stage2-best")["checkpoint"])
        assert chosen == swept / f"random-stage2-after-{epochs}" / "best"


def test_a_damaged_start_is_noticed(swept, tmp_path):
    start = shutil.copytree(swept / "random-start", tmp_path / "start")
    assert changed_files(start) == []
    with (start / "trained.safetensors").open("ab") as file:
        file.write(b"x")
    assert changed_files(start) == ["trained.safetensors has changed since it was written"]


def test_curves_score_the_start_and_every_checkpoint_on_each_set(swept):
    points = json.loads((swept / "random-stage1" / study.CURVE).read_text())
    assert [point["checkpoint"] for point in points] == ["random-start", "checkpoint-3", "checkpoint-6"]
    assert {point[name]["n"] for point in points for name in ("train",)} == {9.0}
    assert {point["test"]["n"] + point["train"]["n"] - point["whole"]["n"] for point in points} == {0.0}


def test_a_scored_cell_is_not_computed_again(swept, base_models, manifest, monkeypatch):
    def never(*arguments, **values):
        raise AssertionError("computed again")

    monkeypatch.setattr("affectgpt.training.stages.run_stage", never)
    monkeypatch.setattr("affectgpt.inference.loading.load", never)
    study.run_cell(*stages(base_models, manifest, swept.parent.parent, stage1_share=0.5, stage2=True))


def test_the_report_has_the_scores_of_the_cells_and_draws_the_curves(swept):
    text = study.report(swept)
    score = cell(swept, "random-stage1-1.5-stage2-best")["score"]
    line = next(line for line in text.splitlines() if line.startswith("1.5 epochs") and "best" in line)
    assert f"{50 * (score['precision'] + score['recall']):.2f}" in line
    assert f"{100 * score['f_score']:.2f}" in line
    assert "not yet" not in text
    for name in ("stage1-sets", "stage1-variants", "stage2-sets", "stage2-necessity"):
        assert (swept / f"{name}.png").stat().st_size > 5000
    assert "| 1.5 epochs | best |" in (swept / "table.md").read_text()


def test_a_loss_that_is_no_number_is_not_drawn_and_a_step_logged_twice_has_its_last_value(tmp_path, monkeypatch):
    run = tmp_path / "random-stage1"
    run.mkdir()
    scores = {name: {"precision": 0.5, "recall": 0.5, "n": 1.0} for name in study.SETS}
    (run / study.CURVE).write_text(json.dumps([{"checkpoint": "start", **scores}]), encoding="utf-8")
    losses = [(1, 3.0), (2, float("nan")), (3, 2.0), (3, 1.0)]
    append_rows(run / "metrics.jsonl", [{"step": step, "loss": loss} for step, loss in losses])
    drawn = {}
    monkeypatch.setattr(study, "draw_curves", lambda path, panels, **_: drawn.update({path.name: panels}))
    study.draw(tmp_path)
    steps, values = drawn["stage1-variants"][0].curves["random"]
    assert (list(steps), list(values)) == ([1, 3], [3.0, 1.0])


def test_other_settings_under_the_same_name_are_refused(swept, base_models, manifest):
    coarse, fine = stages(base_models, manifest, swept.parent.parent, stage1_share=1.0, stage2=False)
    coarse.stage.learning_rate = 0.5
    with pytest.raises(UserError, match=r"(?s)another study\.name.*stage\.learning_rate: was 0\.01, now 0\.5"):
        study.run_cell(coarse, fine)


@pytest.mark.parametrize(("share", "points"), [(0.3, 2), (1.5, 2), (0.5, 1)])
def test_a_share_without_a_checkpoint_is_refused(base_models, manifest, tmp_path, share, points):
    coarse, fine = stages(base_models, manifest, tmp_path, stage1_share=share)
    coarse.study.n_points = points
    with pytest.raises(UserError, match=r"stage1_share"):
        study.run_cell(coarse, fine)


def test_a_number_of_points_that_does_not_divide_the_steps_is_refused(base_models, manifest, tmp_path):
    coarse, fine = stages(base_models, manifest, tmp_path)
    coarse.study.n_points = fine.study.n_points = 4
    with pytest.raises(UserError, match=r"n_points=4 does not divide the 6 steps"):
        study.run_cell(coarse, fine)


def test_an_empty_study_reports_the_command_that_runs_one(tmp_path, capsys):
    assert run("study", [str(tmp_path)]) == 2
    assert "experiment=table4" in capsys.readouterr().err


def test_a_sweep_leaves_out_cells_that_its_settings_cannot_train_and_its_report_names_them(
    base_models, manifest, tmp_path, caplog
):
    # A smoke test: one checkpoint of one epoch has no half.
    reasons = {1: "share must be k / n_points", 2: "is less than an epoch"}
    for n_points, reason in reasons.items():
        coarse, fine = stages(base_models, manifest, tmp_path / str(n_points), stage1_share=0.5)
        coarse.study.n_points, coarse.stage.epochs = n_points, 1
        assert study.run_sweep_job(coarse, fine) == 0
        assert reason in caplog.text
        folder = tmp_path / str(n_points) / "runs" / "toy"
        (folder / "cells" / "other").mkdir()
        score = {"n": 1, "avg": 0.5, "precision": 0.5, "recall": 0.5, "f_score": 0.5}
        one = {"variant": "random", "stage1_epochs": 1, "stage2": True, "score": score}
        (folder / "cells" / "other" / "cell.json").write_text(json.dumps(one))
        assert "left out: random, stage 1: 0.5, stage 2: best: study.stage1_share=0.5" in study.report(folder)


# ---- studies of one stage --------------------------------------------------------------------------------------------


def one_stage(base_models, manifest, folder, variant, start):
    config = make_train_config(
        base_models, manifest, folder, init_from=start and str(start), epochs=1, save_every=3, n_validation=0
    )
    question = QuestionConfig(task="labels", modalities=["frames"], use_subtitle=False)
    return replace(config, study=StudyConfig(name="one", variant=variant, stages=["coarse"], question=question))


def test_variants_of_one_stage_are_asked_as_the_study_says_and_compared_with_their_start(
    swept, base_models, manifest, tmp_path
):
    start = swept / "random-stage1"
    for variant in ("a", "b"):
        assert study.run_sweep_job(one_stage(base_models, manifest, tmp_path, variant, start)) == 0
    folder = tmp_path / "runs" / "one"
    assert cell(folder, "start")["checkpoint"] == str((start / "checkpoint-6").resolve())
    answers = {name: read_predictions(folder / "cells" / name / "predictions.jsonl") for name in ("start", "a", "b")}
    assert {(row.task, tuple(row.modalities)) for rows in answers.values() for row in rows} == {("labels", ("frames",))}
    # The figures do not depend on what tiny models answer.
    scores = read_scores(folder / "cells" / "a" / "scores.jsonl")
    for name, n_more in (("start", 0), ("a", 2)):
        rows = [replace(row, predicted_labels=("sad",) * (1 + n_more)) for row in scores]
        write_scores(folder / "cells" / name / "scores.jsonl", rows)
    texts = ["sad", *["She seems sad."] * (len(scores) - 1)]
    formed = [replace(row, text=text, finish="eos") for row, text in zip(answers["a"], texts, strict=True)]
    write_jsonl(folder / "cells" / "a" / "predictions.jsonl", formed)
    step = {"step": 1, "rewards": {"wheel": 0.5}, "labels": ["sad"], "n_tokens": 2, "text": "sad"}
    append_rows(folder / "a" / "rollouts.jsonl", [step, {**step, "step": 2}])
    lines = study.report(folder).splitlines()
    assert lines[0].split()[0] == "F_S"
    assert [line.split()[0] for line in lines[1:4]] == ["start", "a", "b"]
    assert lines[2].endswith("+2.00 (+2.00 to +2.00)")
    assert "+0.0 (+0.0 to +0.0)" in lines[2]
    assert f"1 of {len(scores)}" in lines[2]  # in format
    assert lines[4] == "3 clips, whose truth has 1.67 labels"
    assert (folder / "rollouts.png").stat().st_size > 5000
    with pytest.raises(UserError, match=r"one compares with .*checkpoint-6, not with .*checkpoint-3"):
        variants.run_variant(one_stage(base_models, manifest, tmp_path, "c", start / "checkpoint-3"))


def test_a_study_of_one_stage_needs_a_start_and_one_of_three_does_not_exist(base_models, manifest, tmp_path):
    with pytest.raises(InputError, match=r"compared with their start, but stage\.init_from is empty"):
        variants.run_variant(one_stage(base_models, manifest, tmp_path, "a", None))
    with pytest.raises(InputError, match="expected the names of one or two stages"):
        study.stage_names(StudyConfig(stages=["coarse", "fine", "reward"]))
