"""Published base models at full size, without memory: their parameter counts are those of the published weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from affectgpt.models import ModelSpec, build_hollow, encoders, shapes
from tests.models import tiny

# Counted from the published weights (safetensors metadata, model cards).
LLMS = {
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
}
ENCODERS = {
    "facebook/hubert-large-ll60k": 315_438_720,
    "facebook/dinov2-large": 304_368_640,
    "microsoft/wavlm-large": 315_453_120,
    "facebook/hubert-base-ls960": 94_371_712,
}


@pytest.mark.parametrize("hub_id", LLMS)
def test_an_llm_has_the_published_number_of_parameters(hub_id):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.published_config(hub_id))
    assert sum(p.numel() for p in model.parameters()) == LLMS[hub_id]


@pytest.mark.parametrize("hub_id", ENCODERS)
def test_an_encoder_has_the_published_number_of_parameters(hub_id):
    with torch.device("meta"):
        model = AutoModel.from_config(shapes.published_config(hub_id))
    assert sum(p.numel() for p in model.parameters()) == ENCODERS[hub_id]


def test_each_published_shape_can_be_built_as_what_it_is_used_for():
    for hub_id in shapes.PUBLISHED:
        config = shapes.published_config(hub_id)
        with torch.device("meta"):
            if hasattr(config, "num_key_value_heads"):
                AutoModelForCausalLM.from_config(config)
            else:
                encoders.from_config(encoders.base_fields(config))


def test_an_unknown_id_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no configuration of 'someone/else' is known.*Qwen/Qwen3-8B"):
        shapes.published_config("someone/else")


def test_a_hollow_model_has_the_tensors_of_the_built_one(bases, built):
    model, _ = built
    hollow = build_hollow(ModelSpec.from_dict(model.config.spec))
    assert all(tensor.is_meta for tensor in hollow.state_dict().values())
    shape = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in hollow.state_dict().items()} == shape
    trains = lambda m: {name for name, p in m.named_parameters() if p.requires_grad}  # noqa: E731
    assert trains(hollow) == trains(model)


def test_a_hollow_model_on_a_device_with_memory_computes(bases, built):
    _, processor = built
    model = build_hollow(tiny.tiny_spec(bases), device="cpu").eval()
    row = processor.encode(tiny.question("audio", "frames", "motion"), tiny.media("audio", "frames", "motion"))
    # Placeholders of a hollow model lie right behind the vocabulary of its text config.
    placeholder = {
        processor.placeholder_token_ids[name]: token for name, token in model.config.placeholder_token_ids.items()
    }
    batch = processor.collate([row], for_generation=True)
    batch["input_ids"] = batch["input_ids"].apply_(lambda token: placeholder.get(token, token))
    assert model(**batch).logits.isfinite().all()
