"""What an omni model costs: towers counted on real ones, and a plan of the published size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from affectgpt.cli import compose
from affectgpt.config import OmniConfig
from affectgpt.models import build, build_hollow, model_spec
from affectgpt.plan import omni
from affectgpt.plan.command import make_plan, text_of
from tests.models.tiny_omni import PIXELS, SAMPLING, omni_spec, write_omni


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_omni(tmp_path_factory.mktemp("omni"))


def test_operations_of_the_towers_are_those_counted_on_real_ones(folder):
    model, _ = build(omni_spec(folder))
    towers = {name: tower.model for name, tower in model.encoders.items()}
    for tower in towers.values():
        tower.set_attn_implementation("eager")  # whose products the counter sees
    with FlopCounterMode(display=False) as counter:
        model.encoders["audio"](torch.zeros(8, 80))
        assert counter.get_total_flops() == omni.audio_flops(towers["audio"], 80)
    with FlopCounterMode(display=False) as counter:  # 6 x 10 patches: windows of 4 x 4 and what is left of them
        model.encoders["frames"](torch.zeros(2 * 6 * 10, 96), torch.tensor([2, 6, 10]))
        assert counter.get_total_flops() == omni.video_flops(towers["frames"], (2, 6, 10))


def test_a_plan_counts_tokens_parameters_and_memory(folder):
    config = compose("plan", ["model=qwen2_5_omni", "stage=fine", f"model.llm.path={folder}", "gpu=h100", "sound_s=2"])
    config.model.omni, config.model.sampling = OmniConfig(**PIXELS), replace(SAMPLING, n_frames=3)
    plan = make_plan(config)
    # 50 tokens of sound; frames of 720p become 16 x 24 pixels, 2 x 3 tokens for each of two pairs
    assert plan["sample"]["soft_tokens"] == {"audio": 50, "frames": 12}
    parts = {part["name"]: part for part in plan["parts"]}
    assert {name for name, part in parts.items() if part["trainable"]} == {"lora"}
    assert plan["memory"]["plain"]["encoder weights"] == sum(
        parts[f"encoders.{name}"]["bytes"] for name in ("audio", "frames")
    )
    assert plan["sample"]["flops"]["encoders"]["bfloat16"] > 0
    assert text_of(plan).endswith("no states are cached: python -m affectgpt.cache has nothing to do")


def test_the_published_size_is_counted():
    config = compose("train", ["model=qwen2_5_omni", "stage=fine"])
    model = build_hollow(model_spec(config.model, 42))
    assert model.set_trainable(config.stage.trainable) == 40_370_176
    sizes = {name: sum(tensor.numel() for tensor in part.values()) for name, part in model.parts().items()}
    assert sizes["language_model"] == 7_615_616_512  # as Qwen2.5-7B
    assert sum(map(len, (model.tensors_of("projectors.audio"), model.tensors_of("projectors.frames")))) == 2 + 5
