"""A stage and training data that exist only as YAML: they train, and eval.py and infer.py find the run."""

import json
from dataclasses import asdict

import pytest
import yaml

from affectgpt.cli import compose
from affectgpt.inference.evaluate import evaluate_config
from affectgpt.inference.infer import run_inference
from affectgpt.runs import RunRecord, newest_run
from affectgpt.runtime import InputError, UserError
from affectgpt.training import objectives
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config
from tests.data.conftest import write_clip


@pytest.fixture
def overrides(base_models, manifest, tmp_path):
    """A folder of YAML files on Hydra's search path: a model, a data set with a third training set, a third stage."""
    config = make_train_config(base_models, manifest, tmp_path, name="coarse")
    train, test = ({"manifest": str(manifest), "split": split} for split in ("train", "test"))
    files = {
        "model/toy.yaml": asdict(config.model),
        "data/toy.yaml": {"name": "toy", "coarse": [train], "train": {"again": train}, "test": [test]},
        "stage/third.yaml": {"name": "third", "data": ["again"], "init_from": "coarse", "iterations_per_epoch": 2},
    }
    for name, values in files.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True)
        (tmp_path / "conf" / name).write_text(yaml.safe_dump(values))
    short = ["stage.epochs=1", "stage.warmup_steps=0", "stage.n_validation=2", "stage.n_workers=0"]
    folders = [f"paths.cache={tmp_path}/cache", f"paths.runs={tmp_path}/runs", "device=cpu"]
    short += ["stage.save_every=2", "stage.validate_every=2", "model=toy", "generate.max_new_tokens=6"]
    return {
        "train": [f"hydra.searchpath=[file://{tmp_path}/conf]", "data=toy", *folders, *short],
        "eval": [f"hydra.searchpath=[file://{tmp_path}/conf]", "data=toy", *folders, "generate.max_new_tokens=6"],
    }


def test_a_third_stage_in_yaml_trains_and_evaluation_and_inference_find_its_run(overrides, tmp_path, capsys):
    coarse = run_stage(compose("train", [*overrides["train"], "stage=coarse", "stage.iterations_per_epoch=2"])).run
    third = run_stage(compose("train", [*overrides["train"], "stage=third"])).run
    record = RunRecord.read(third).values
    assert (third.name, record["kind"], record["steps"]) == ("third", "train third", 2)
    assert record["init_from"] == str(coarse / "checkpoint-2")
    report, out = evaluate_config(compose("eval", overrides["eval"]))
    assert report.primary.n == 3
    assert out.parent == third or third in out.parents
    clip = write_clip(tmp_path / "a.mp4")
    folders = [f"paths.runs={tmp_path}/runs", f"paths.cache={tmp_path}/cache", "device=cpu"]
    assert run_inference(compose("infer", [str(clip), *folders, "json=true", "generate.max_new_tokens=6"])) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"] == "third/best"


def test_the_newest_run_is_one_of_the_stage_trained_last_and_of_coarse_only_without_others(tmp_path):
    def run(name, started, stage, status="finished"):
        record = RunRecord.start(tmp_path / name, kind=f"train {stage}", config={})
        record.values["started"] = started
        record.finish(status)
        (tmp_path / name / "checkpoint-1").mkdir()
        (tmp_path / name / "checkpoint-1" / "COMPLETE").touch()
        return tmp_path / name

    assert newest_run(tmp_path / "nothing") is None
    coarse = run("coarse", "2026-01-01", "coarse")
    run("my-experiment", "2026-01-02", "fine")
    run("third", "2026-01-03", "third", status="failed")
    assert newest_run(tmp_path) == coarse
    run("fine", "2026-01-03", "fine")
    fine = run("fine-2", "2026-01-04", "fine")
    run("coarse-2", "2026-01-05", "coarse")
    assert newest_run(tmp_path) == fine
    assert newest_run(tmp_path) != run("third-2", "2026-01-06", "third")
    assert newest_run(tmp_path) == tmp_path / "third-2"


def test_an_unknown_objective_or_option_is_refused_with_the_list_of_known_ones():
    with pytest.raises(InputError, match=r"stage\.objective is 'rewards'; expected one of \[.*'supervised'\]"):
        objectives.load("rewards", {})
    with pytest.raises(InputError, match=r"objective_options has \['beta'\]; objective 'supervised' has the settings"):
        objectives.load("supervised", {"beta": 0.1})


TWICE = """
from dataclasses import dataclass

from affectgpt.prompts import target_text
from affectgpt.training.objectives import supervised


@dataclass(frozen=True)
class Objective(supervised.Objective):
    copies: int = 1

    def rows(self, draw, encode):
        return [encode(target_text(draw.sample, draw.task, draw.lang)) for _ in range(self.copies)]
"""


@pytest.mark.parametrize("cache_features", ["ahead", "first_epoch"])
def test_an_objective_is_one_file_and_may_make_several_rows_of_a_draw(
    base_models, manifest, tmp_path, monkeypatch, cache_features
):
    # Every answer twice: the mean over the labels, and so the gradient, stays the same.
    (tmp_path / "twice.py").write_text(TWICE)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    logs = {}
    for name, options in (("supervised", {}), ("twice", {"copies": 2})):
        config = make_train_config(base_models, manifest, tmp_path / name, n_validation=0)
        config.stage.objective, config.stage.objective_options = name, options
        config.data.cache_features = cache_features
        for projector in config.model.projectors.values():
            projector.dropout = 0.0
        lines = (run_stage(config).run / "metrics.jsonl").read_text().splitlines()
        logs[name] = [row for row in map(json.loads, lines) if "loss" in row]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in logs["twice"]] == pytest.approx([row[key] for row in logs["supervised"]], rel=2e-3)


def test_a_stage_without_training_data_lists_what_the_data_set_has(base_models, manifest, tmp_path):
    config = make_train_config(base_models, manifest, tmp_path, name="third")
    with pytest.raises(
        UserError,
        match=r"stage 'third' trains on \['third'\], which data 'toy' does not have; it has \['coarse', 'fine'\]",
    ):
        run_stage(config)
