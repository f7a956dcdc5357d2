"""model.init=pretrained in complete runs: where the first weights come from, and where that is recorded."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from affectgpt.models import CheckpointError, build, model_spec
from affectgpt.models.pretrained import save_start
from affectgpt.runs import RunRecord
from affectgpt.training.setup import starting_model
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config


@pytest.fixture(scope="module")
def config(base_models, manifest, tmp_path_factory):
    """A short run that starts from projections of another seed."""
    folder = tmp_path_factory.mktemp("start")
    config = make_train_config(base_models, manifest, folder)
    other, _ = build(model_spec(config.model, seed=config.seed + 1), load_encoders=False)
    save_start(other, folder / "base", "a test", "other seed")
    config.model.init, config.model.init_from = "pretrained", str(folder / "base")
    return config


def test_a_first_stage_starts_from_the_pretrained_projectors(config):
    model, _ = starting_model(config)
    stored = load_file(f"{config.model.init_from}/projectors.safetensors")
    assert stored
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in stored.items())


def test_run_checkpoints_and_the_next_stage_record_the_initialization(config, tmp_path):
    first = copy.deepcopy(config)
    first.paths.runs = str(tmp_path / "runs")
    run = run_stage(first).run
    started = RunRecord.read(run).values["init"]
    assert started["init"] == "pretrained"
    assert started["pretrained"] == [f"projectors.{name}" for name in config.model.encoders]
    assert {source["file"] for source in started["sources"].values()} == {"other seed"}
    assert json.loads((run / "checkpoint-6" / "affectgpt.json").read_text())["init"] == started
    second = copy.deepcopy(first)
    second.name, second.stage.init_from = "again", str(run / "checkpoint-6")
    second.model.init, second.model.init_from = "random", None
    again = run_stage(second).run
    assert json.loads((again / "checkpoint-6" / "affectgpt.json").read_text())["init"] == started


def test_missing_pretrained_projectors_leave_no_run_folder(config, tmp_path):
    wrong = copy.deepcopy(config)
    wrong.paths.runs, wrong.model.init_from = str(tmp_path / "runs"), str(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no projectors\.json"):
        run_stage(wrong)
    assert not (tmp_path / "runs").exists()
