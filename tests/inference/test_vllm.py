"""What vLLM gets, with a fake that continues prompt embeddings as vLLM should; vLLM itself is not run here."""

from __future__ import annotations

import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from affectgpt.config import GenerateConfig, InferConfig, LoraConfig
from affectgpt.inference.answers import answers
from affectgpt.inference.infer import run_inference
from affectgpt.inference.vllm import VllmEngine, sampling_values
from affectgpt.models import build
from affectgpt.runtime import UserError
from tests.models import tiny

SHOWN = (("audio", "frames", "motion"), ("frames",), (), ("motion",), ("audio",))


@pytest.fixture
def built(tmp_path):
    model, processor = build(tiny.tiny_spec(tiny.write_base_models(tmp_path, tiny.write_qwen2)))
    return model.eval(), processor


class FakeVllm:
    """Loads the named LLM and continues prompt embeddings with transformers."""

    def __init__(self, model, revision, dtype, enable_prompt_embeds, generation_config):
        from transformers import AutoModelForCausalLM

        assert (enable_prompt_embeds, generation_config, revision) == (True, "vllm", None)
        self.llm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.seen: list[torch.Tensor] = []

    def generate(self, prompts, parameters, use_tqdm):
        outputs = []
        for prompt in prompts:
            self.seen.append(prompt["prompt_embeds"])
            new = self.llm.generate(
                inputs_embeds=prompt["prompt_embeds"][None],
                max_new_tokens=parameters.max_tokens,
                eos_token_id=parameters.stop_token_ids,
                suppress_tokens=list(parameters.logit_bias),
                do_sample=parameters.temperature > 0,
                pad_token_id=0,
            )
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new[0].tolist()))]))
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    module = SimpleNamespace(LLM=FakeVllm, SamplingParams=lambda **values: SimpleNamespace(**values))
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_vllm_gets_the_embeddings_of_each_sample_and_its_tokens_give_the_same_answers(built, vllm):
    model, processor = built
    rows = [processor.encode(tiny.question(*shown), tiny.media(*shown, seed=i)) for i, shown in enumerate(SHOWN)]
    expected = list(answers(model, processor, rows, GenerateConfig(2, 7)))
    engine = VllmEngine(model)
    assert list(engine(model, processor, rows, GenerateConfig(2, 7))) == expected
    for row, seen in zip(rows, engine._llm.seen, strict=True):
        batch = processor.collate([row], for_generation=True)
        torch.testing.assert_close(seen, model.embed(batch.pop("input_ids"), batch)[0], rtol=1e-5, atol=1e-5)


def test_generation_settings_become_sampling_parameters(built):
    model, processor = built
    greedy = sampling_values(model, GenerateConfig(4, 30))
    assert greedy["max_tokens"] == 30
    assert greedy["temperature"] == 0.0
    assert greedy["stop_token_ids"] == processor.stop_token_ids
    assert set(greedy["logit_bias"]) == set(model.generation_config.suppress_tokens)
    sampled = sampling_values(model, GenerateConfig(4, 30, do_sample=True, temperature=0.7, top_p=0.9))
    assert (sampled["temperature"], sampled["top_p"]) == (0.7, 0.9)


def test_models_that_vllm_cannot_run_are_refused_with_the_reason(built, vllm, tmp_path, monkeypatch):
    model, processor = built
    with pytest.raises(UserError, match=r"has no beam search; set generate\.num_beams=1"):
        list(VllmEngine(model)(model, processor, [], GenerateConfig(num_beams=2)))
    monkeypatch.setitem(model.config.spec, "llm_quantization", "nf4")
    with pytest.raises(UserError, match=r"quantized \(nf4\); use engine=auto"):
        VllmEngine(model)
    monkeypatch.setattr(model.config, "lora", asdict(LoraConfig(2, 4, 0.0, ["q_proj"])))
    with pytest.raises(UserError, match="has LoRA adapters; use engine=auto"):
        VllmEngine(model)


def test_a_missing_package_is_named(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="engine=vllm needs the package vllm: pip install vllm"):
        VllmEngine(built[0])


def test_an_unknown_engine_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="engine is 'tpu'; expected auto or vllm"):
        run_inference(InferConfig(input=["clip.mp4"], engine="tpu"))
