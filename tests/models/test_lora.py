"""DoRA and rsLoRA: the function that their papers define, in every path that a model with adapters takes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from affectgpt.config import LoraConfig, StrategyConfig, TrainConfig
from affectgpt.hub.export import export, probe_logits
from affectgpt.models import AffectGPTForConditionalGeneration, AffectGPTProcessor, build, load_trained, save_trained
from affectgpt.models.assemble import build_hollow
from affectgpt.models.checkpoint import CheckpointError, load_trained_tensors
from affectgpt.models.modeling_affectgpt import trainable_table
from affectgpt.plan.costs import parameters
from affectgpt.runtime import UserError
from affectgpt.training.stages import run_stage
from tests.engine.test_packing import largest_difference, loss_and_gradients, samples
from tests.models import tiny

PLAIN = LoraConfig(r=4, alpha=6, dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj"])
DORA = dataclasses.replace(PLAIN, use_dora=True)
RSLORA = dataclasses.replace(PLAIN, use_rslora=True)
VARIANTS = pytest.mark.parametrize("lora", [DORA, RSLORA], ids=["dora", "rslora"])


def built(bases, lora: LoraConfig, modalities=("audio",), **settings):
    """A model whose adapters, and the norms of DoRA, are away from their start."""
    model, processor = build(tiny.tiny_spec(bases, modalities, lora=lora, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".lora_" in name:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model.eval(), processor


def adapted(model) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@VARIANTS
def test_an_adapted_layer_computes_the_formula_of_the_paper(bases, lora):
    layers = adapted(built(bases, lora)[0])
    assert layers
    for layer in layers.values():
        weight, states = layer.base_layer.weight, torch.randn(3, layer.in_features)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if lora.use_dora:  # Liu et al. (2024), equation 5, with one norm per output
            moved = weight + 6 / 4 * up @ down
            moved = layer.lora_magnitude_vector["default"].weight[:, None] * moved / moved.norm(dim=1, keepdim=True)
        else:  # Kalajdzievski (2023): alpha / sqrt(r)
            moved = weight + 6 / 2 * up @ down
        torch.testing.assert_close(layer(states), states @ moved.t())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_new_dora_changes_no_output_and_its_norms_train_in_fp32(bases, dtype):
    model, processor = build(tiny.tiny_spec(bases, ("audio",), lora=DORA, dtype=dtype))
    plain, _ = build(tiny.tiny_spec(bases, ("audio",), dtype=dtype))
    tolerance = {"float32": 1e-5, "bfloat16": 0.1}[dtype]
    logits = [probe_logits(each.eval(), processor).float() for each in (model, plain)]
    torch.testing.assert_close(*logits, atol=tolerance, rtol=tolerance)
    norms = {name: tensor for name, tensor in model.parts()["lora"].items() if "magnitude" in name}
    assert len(norms) == len(adapted(model))
    assert all(tensor.dtype == torch.float32 and tensor.requires_grad for tensor in norms.values())


@VARIANTS
def test_packed_training_has_the_loss_and_gradients_of_padded_training(bases, lora):
    model, processor = built(bases, lora, tiny.MODALITIES)
    rows = samples(processor)
    loss, gradients = loss_and_gradients(model, processor.collate(rows))
    packed_loss, packed = loss_and_gradients(model, processor.collate(rows, packed=True))
    assert packed_loss.item() == pytest.approx(loss.item(), abs=1e-5)
    assert any(".lora_B." in name for name in packed)
    assert any("magnitude" in name for name in packed) == lora.use_dora
    assert largest_difference(gradients, packed) < 1e-4


@VARIANTS
def test_checkpoint_export_and_merge_keep_the_logits(bases, lora, tmp_path):
    model, processor = built(bases, lora)
    expected = probe_logits(model, processor)
    save_trained(model, processor, tmp_path / "trained")
    loaded, _ = load_trained(tmp_path / "trained")
    assert torch.equal(probe_logits(loaded, processor), expected)
    out = export(tmp_path / "trained", tmp_path / "full")
    again = AffectGPTForConditionalGeneration.from_pretrained(out).eval()
    assert torch.equal(probe_logits(again, AffectGPTProcessor.from_pretrained(out)), expected)
    merged = export(tmp_path / "trained", tmp_path / "merged", merge_lora=True)
    again = AffectGPTForConditionalGeneration.from_pretrained(merged).eval()
    assert not adapted(again)
    torch.testing.assert_close(probe_logits(again, processor), expected, atol=1e-4, rtol=1e-4)


@VARIANTS
def test_adapters_of_another_variant_are_refused_with_the_setting_to_change(bases, lora, tmp_path):
    setting = "use_dora" if lora.use_dora else "use_rslora"
    save_trained(*built(bases, lora), tmp_path)
    plain, processor = built(bases, PLAIN)
    with pytest.raises(CheckpointError, match=rf"{setting}=true, .* set model\.llm\.lora\.{setting}=true"):
        load_trained_tensors(plain, tmp_path)
    load_trained_tensors(plain, tmp_path, parts=["projectors"])
    save_trained(plain, processor, tmp_path)
    with pytest.raises(CheckpointError, match=rf"set model\.llm\.lora\.{setting}=false"):
        load_trained_tensors(built(bases, lora)[0], tmp_path)


def test_without_a_variant_the_stored_settings_are_those_of_older_checkpoints(bases, tmp_path):
    model, processor = built(bases, PLAIN)
    save_trained(model, processor, tmp_path)
    stored = json.loads((tmp_path / "affectgpt.json").read_text())["spec"]["lora"]
    assert stored.keys() == {"r", "alpha", "dropout", "target_modules"} == {*map(_ours, model.config.lora)}


def _ours(name: str) -> str:
    return name.removeprefix("lora_")


def test_the_plan_counts_one_more_weight_per_output_and_says_the_variant(bases):
    sizes = {}
    for lora in (PLAIN, DORA):
        model = build_hollow(tiny.tiny_spec(bases, ("frames",), lora=lora))
        model.set_trainable(["lora"])
        (sizes[lora.use_dora],) = [part.trainable for part in parameters(model) if part.name == "lora"]
    assert sizes[True] - sizes[False] == sum(layer.out_features for layer in adapted(model).values())
    assert "r 4, DoRA" in trainable_table(model)


def test_dora_on_partitioned_weights_is_refused():
    config = TrainConfig(strategy=StrategyConfig(name="zero3"))
    config.model.llm.lora = DORA
    with pytest.raises(UserError, match="use strategy=ddp or zero2, or use_dora=false"):
        run_stage(config)
