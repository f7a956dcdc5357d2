"""Runs that train blocks of an encoder and the LLM: resumed, continued by a later stage, cached and optimized."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from affectgpt.config import StrategyConfig
from affectgpt.models.checkpoint import read_manifest
from affectgpt.runs import complete_checkpoints
from affectgpt.runtime import UserError
from affectgpt.training.distributed import check_trained
from affectgpt.training.optimizer import keep_masters, set_rates
from affectgpt.training.setup import starting_model
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config
from tests.training.test_stages import outcome, same, stop_in_step, weights

PARTS = ["projectors", "encoders.audio.last1", "llm"]
STEPS = {"epochs": 1, "iterations_per_epoch": 3, "n_validation": 2, "validate_every": 3, "save_every": 9}


def config_of(base_models, manifest, folder, **stage):
    config = make_train_config(base_models, manifest, folder, **{"trainable": PARTS, **STEPS, **stage})
    config.model.llm.dtype = "bfloat16"  # so that the LLM has fp32 masters
    config.stage.learning_rates = {"llm": 1e-3}
    config.generate.max_new_tokens = 2
    return config


@pytest.fixture(scope="module")
def coarse(base_models, manifest, tmp_path_factory):
    """A run that nothing disturbed: (its configuration, its folder)."""
    config = config_of(base_models, manifest, tmp_path_factory.mktemp("coarse"))
    return config, run_stage(copy.deepcopy(config)).run


def cached(config):
    return [name for name in config.model.encoders if (Path(config.paths.cache) / "features" / name).is_dir()]


def test_a_stopped_run_resumes_to_what_was_uninterrupted(coarse, base_models, manifest, tmp_path, monkeypatch):
    config = config_of(base_models, manifest, tmp_path)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 1)
        assert run_stage(copy.deepcopy(config)).exit_code == 143
    config.resume = True
    assert outcome(run_stage(config).run) == outcome(coarse[1])


def test_a_later_stage_starts_from_the_trained_encoder_which_is_then_cached(coarse):
    config, run = coarse
    assert cached(config) == ["frames", "motion"]
    last = complete_checkpoints(run)[-1]
    tuned = [name for name in read_manifest(last)["tensors"] if name.startswith(("encoders.", "language_model."))]
    assert len([name for name in tuned if name.startswith("encoders.audio.model.encoder.layers.1.")]) == 16
    fine = copy.deepcopy(config)
    fine.stage.name, fine.stage.init_from, fine.stage.trainable = "fine", str(run), ["projectors"]
    fine.stage.learning_rates = {}
    model, _ = starting_model(fine, last)
    assert same({name: tensor.detach() for name, tensor in model.own_tensors().items()}, weights(last))
    after = weights(complete_checkpoints(run_stage(fine).run)[-1])
    assert all(torch.equal(after[name], weights(last)[name]) for name in tuned)
    assert "audio" in cached(config)


def test_media_that_the_cache_lacks_are_encoded_beside_those_of_an_encoder_that_trains(
    coarse, base_models, manifest, tmp_path
):
    config = config_of(base_models, manifest, tmp_path)
    config.data.cache_features = "first_epoch"
    assert outcome(run_stage(config).run) == outcome(coarse[1])
    assert cached(config) == ["frames", "motion"]


def test_the_start_of_a_run_says_what_trains_and_what_it_costs(coarse, caplog):
    config = copy.deepcopy(coarse[0])
    config.name, config.stage.iterations_per_epoch, config.stage.n_validation = "said", 1, 0
    config.stage.warmup_steps = 0
    with caplog.at_level("INFO", "affectgpt"):
        run_stage(config)
    assert "audio: encoded in every step and not cached, because the encoder trains" in caplog.text
    assert "the LLM trains: its layers run through autograd" in caplog.text
    config.stage.learning_rates = {"lora": 1e-3}
    with pytest.raises(UserError, match=r"stage\.learning_rates names \['lora'\]; expected some of stage\.trainable"):
        run_stage(config)


def test_zero_refuses_encoders_that_train_and_zero3_trained_weights_in_16_bits():
    with pytest.raises(UserError, match=r"strategy=zero2 does not train encoders \(audio\).* use strategy=ddp"):
        check_trained(StrategyConfig(name="zero2"), ["audio"], 0)
    with pytest.raises(UserError, match=r"16 bits .*\(1,000 parameters\); set model\.llm\.dtype=float32, or .*zero2"):
        check_trained(StrategyConfig(name="zero3"), [], 1000)
    check_trained(StrategyConfig(name="ddp"), ["audio"], 1000)
    check_trained(StrategyConfig(name="zero2"), [], 1000)


# ---------------------------------------------------------------- the optimizer


def steps(weight, optimizer, n):
    for _ in range(n):
        weight.grad = weight.detach().float().sin().to(weight.dtype)
        optimizer.step()


def test_weights_in_16_bits_follow_fp32_masters_which_a_checkpoint_keeps():
    """Steps of 1e-4 are lost in bf16 near 1."""
    start = torch.linspace(1, 2, 50)
    plain = nn.Parameter(start.bfloat16())
    steps(plain, torch.optim.AdamW([plain], lr=1e-4), 100)
    assert torch.equal(plain, start.bfloat16())
    weight = nn.Parameter(start.bfloat16())
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    keep_masters(optimizer)
    steps(weight, optimizer, 100)
    assert (weight.float() - start.bfloat16().float()).mean().item() == pytest.approx(-0.01, abs=0.004)
    again = nn.Parameter(weight.detach().clone())
    resumed = torch.optim.AdamW([again], lr=1e-4)
    keep_masters(resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(weight, optimizer, 20)
    steps(again, resumed, 20)
    assert torch.equal(weight, again)
    assert all(state["exp_avg"].dtype == torch.float32 for state in resumed.state.values())


def test_parts_have_learning_rates_of_their_own_in_every_group():
    decayed, alone, plain = (nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [decayed, alone], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    set_rates(optimizer, {id(alone): 0.1, id(plain): 0.1})
    found = [(group["params"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    expected = [([decayed], 1e-3, 0.1), ([alone], 1e-4, 0.1), ([plain], 1e-4, 0.0)]
    assert [(params, pytest.approx(rate), decay) for params, rate, decay in expected] == found
