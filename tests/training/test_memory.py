"""A limit on activations that cannot be kept is refused; the message names the setting that prevents it."""

from __future__ import annotations

import pytest
import torch

from affectgpt.config import StageConfig
from affectgpt.engine import Kept
from affectgpt.models import build
from affectgpt.runtime import UserError
from affectgpt.training.memory import activation_limit_gb, check_activation_gb, keep_within, layers_to_checkpoint
from tests.models import tiny


@pytest.mark.parametrize(
    ("settings", "strategy", "expected"),
    [
        ({"activation_gb": -1}, "single", "is -1; expected GB above 0, auto, or null"),
        ({"activation_gb": True}, "single", "is True; expected GB above 0"),
        ({"activation_gb": "all"}, "single", "is 'all'; expected GB above 0"),
        ({"activation_gb": 1, "gradient_checkpointing": True}, "single", "leave one of them out"),
        ({"activation_gb": 1, "packing": False}, "single", "packing=false, token_budget=4096"),
        ({"activation_gb": 1, "token_budget": None}, "ddp", "token_budget=None, strategy=ddp there is none"),
        ({"activation_gb": 1}, "zero3", "with another strategy than zero3"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(settings, strategy, expected):
    with pytest.raises(UserError, match=expected):
        check_activation_gb(StageConfig(name="coarse", **settings), strategy)


def test_limits_that_can_be_kept_pass():
    for limit in (None, 0.5, 20, "auto"):
        check_activation_gb(StageConfig(name="coarse", activation_gb=limit), "zero2")


def test_auto_is_the_free_memory_of_a_gpu_minus_gradients_and_optimizer_state(monkeypatch):
    assert activation_limit_gb(2, torch.device("cpu"), 10) == 2
    with pytest.raises(UserError, match="needs a GPU, but the device is cpu; give a number"):
        activation_limit_gb("auto", torch.device("cpu"), 10)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 10**9, 80 * 10**9))
    assert activation_limit_gb("auto", torch.device("cuda"), 10**9) == pytest.approx(2)  # 18 - 16


def test_a_limit_is_refused_for_an_llm_whose_layers_are_not_run_by_the_engine(tmp_path):
    model, _ = build(tiny.tiny_spec(tiny.write_base_models(tmp_path, tiny.write_llama)))
    model.language_model.config.model_type = "gpt_neox"
    with pytest.raises(UserError, match=r"works with LLMs of the families llama, .* this one is gpt_neox"):
        keep_within(model, StageConfig(name="coarse"), 1.0)


def test_as_few_layers_are_checkpointed_as_the_limit_requires():
    kept = Kept(n_layers=4, layer_bytes=10.0, input_bytes=1.0)
    # Three tokens: 4 complete layers 120 bytes; checkpointing one saves 27, and one is always complete.
    assert [layers_to_checkpoint(kept, 3, limit) for limit in (120, 119, 93, 92, 66, 65, 39)] == [
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    expected = (
        r"3 tokens at once need at least 3.9e-08 GB .* stage.activation_gb allows 3.8e-08; .* to at most 2 tokens"
    )
    with pytest.raises(UserError, match=expected):
        layers_to_checkpoint(kept, 3, 38)
