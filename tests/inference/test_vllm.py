"""What vLLM gets, with a stand-in that has the signatures of vLLM 0.33 and continues prompt embeddings as it should.

vLLM itself is not run here: its wheel is for CUDA.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from affectgpt.config import EvalConfig, GenerateConfig, InferConfig, LoraConfig
from affectgpt.hub.export import export
from affectgpt.inference.answers import SAMPLE_ID, answers
from affectgpt.inference.evaluate import evaluate_config
from affectgpt.inference.infer import run_inference
from affectgpt.inference.loading import LoadedModel, load
from affectgpt.inference.vllm import VllmEngine, engine_named, sampling_values
from affectgpt.models import build, save_trained
from affectgpt.runtime import UserError
from affectgpt.schema import Sample, write_jsonl
from tests.models import tiny

SHOWN = (("audio", "frames"), ("frames",), (), ("audio",))
LORA = LoraConfig(r=4, alpha=6, dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj"])


def checkpoint(folder: Path, lora: LoraConfig | None = None) -> Path:
    """A checkpoint of trained tensors, with adapters that change answers."""
    bases = tiny.write_base_models(folder, tiny.write_qwen2, ("audio", "frames"))
    model, processor = build(tiny.tiny_spec(bases, ("audio", "frames"), lora=lora))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".lora_" in name:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    save_trained(model, processor, folder / "trained")
    return folder / "trained"


def loaded(folder: Path) -> LoadedModel:
    return load(str(folder), folder.parent, device="cpu")


def rows_of(processor) -> list:
    return [processor.encode(tiny.question(*shown), tiny.media(*shown, seed=i)) for i, shown in enumerate(SHOWN)]


class SamplingParams:
    """With the arguments of vLLM 0.33, of which those are named here that this package uses."""

    def __init__(
        self, *, n=1, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=None, stop=None, stop_token_ids=None,
        max_tokens=16, min_tokens=0, logprobs=None, detokenize=True, logit_bias=None,
    ):  # fmt: skip
        assert isinstance(max_tokens, int)
        assert all(isinstance(token, int) for token in stop_token_ids)
        self.max_tokens, self.temperature, self.top_p = max_tokens, temperature, top_p
        self.stop_token_ids, self.logit_bias, self.detokenize = stop_token_ids, logit_bias or {}, detokenize
        assert top_k >= -1
        self.seed = seed


class LLM:
    """With the arguments of vLLM 0.33; `engine` are fields of its EngineArgs. Other names are errors there, too."""

    ENGINE = frozenset({"enable_prompt_embeds", "generation_config", "max_model_len", "enable_prefix_caching"})

    def __init__(
        self, model, *, tokenizer=None, skip_tokenizer_init=False, trust_remote_code=False, tensor_parallel_size=1,
        dtype="auto", quantization=None, revision=None, seed=0, gpu_memory_utilization=0.92, enforce_eager=False,
        **engine,
    ):  # fmt: skip
        if unknown := engine.keys() - self.ENGINE:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        assert engine["generation_config"] == "vllm"
        self.takes_embeds, self.has_tokenizer = engine.get("enable_prompt_embeds", False), not skip_tokenizer_init
        self.model, self.n_gpus, self.revision = model, tensor_parallel_size, revision
        self.llm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.seen: list[torch.Tensor] = []

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        vocabulary = self.llm.config.vocab_size
        outputs = []
        each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        for prompt, sampling_params in zip(prompts, each, strict=True):
            assert all(0 <= token < vocabulary for token in sampling_params.logit_bias)
            assert self.has_tokenizer or not sampling_params.detokenize
            assert self.takes_embeds
            assert prompt.keys() <= {"prompt_embeds", "prompt", "prompt_token_ids", "cache_salt"}
            embeds = prompt["prompt_embeds"]
            assert embeds.ndim == 2
            assert embeds.shape[1] == self.llm.config.hidden_size
            self.seen.append(embeds)
            if sampling_params.seed is not None:
                torch.manual_seed(sampling_params.seed)
            new = self.llm.generate(
                inputs_embeds=embeds[None],
                max_new_tokens=sampling_params.max_tokens,
                eos_token_id=sampling_params.stop_token_ids,
                suppress_tokens=list(sampling_params.logit_bias) or None,
                do_sample=sampling_params.temperature > 0,
                pad_token_id=0,
            )
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new[0].tolist()))]))
        return outputs


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams))


def test_vllm_gets_the_embeddings_of_each_sample_and_its_tokens_give_the_same_answers(tmp_path):
    given = loaded(checkpoint(tmp_path))
    model, processor = given.model, given.processor
    rows = rows_of(processor)
    expected = list(answers(model, processor, rows, GenerateConfig(2, 7)))
    engine = VllmEngine(given, tmp_path / "cache")
    assert list(engine(model, processor, rows, GenerateConfig(2, 7))) == expected
    for row, seen in zip(rows, engine._llm.seen, strict=True):
        batch = processor.collate([row], for_generation=True)
        torch.testing.assert_close(seen, model.embed(batch.pop("input_ids"), batch)[0], rtol=1e-5, atol=1e-5)
    assert engine._llm.model == str(tmp_path / "llm"), "the base model itself, not a copy"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["trained", "full", "merged"])
def test_a_model_with_lora_answers_as_without_vllm(tmp_path, kind):
    folder = checkpoint(tmp_path, LORA)
    if kind != "trained":
        folder = export(folder, tmp_path / "release", merge_lora=kind == "merged")
    given = loaded(folder)
    rows = rows_of(given.processor)
    expected = list(answers(given.model, given.processor, rows, GenerateConfig(2, 7)))
    plain = loaded(checkpoint(tmp_path / "plain"))
    without = list(answers(plain.model, plain.processor, rows, GenerateConfig(2, 7)))
    assert expected != without, "the adapters must change the answers, or this test shows nothing"
    engine = VllmEngine(given, tmp_path / "cache", {"tensor_parallel_size": 2})
    assert list(engine(given.model, given.processor, rows, GenerateConfig(2, 7))) == expected
    assert engine._llm.n_gpus == 2
    (written,) = (tmp_path / "cache" / "vllm").iterdir()
    assert engine._llm.model == str(written)
    before = {path.name: path.stat().st_mtime_ns for path in written.iterdir()}
    again = loaded(folder)
    engine = VllmEngine(again, tmp_path / "cache")
    assert list(engine(again.model, again.processor, rows, GenerateConfig(2, 7))) == expected
    assert {path.name: path.stat().st_mtime_ns for path in written.iterdir()} == before, "written once"


def test_generation_settings_become_sampling_parameters(tmp_path):
    given = loaded(checkpoint(tmp_path))
    greedy = sampling_values(given.model, GenerateConfig(4, 30))
    assert greedy["max_tokens"] == 30
    assert greedy["temperature"] == 0.0
    assert greedy["stop_token_ids"] == given.processor.stop_token_ids
    assert set(greedy["logit_bias"]) == set(given.model.generation_config.suppress_tokens)
    sampled = sampling_values(given.model, GenerateConfig(4, 30, do_sample=True, temperature=0.7, top_p=0.9))
    assert (sampled["temperature"], sampled["top_p"], sampled["top_k"]) == (0.7, 0.9, 50)
    assert sampling_values(given.model, GenerateConfig(do_sample=True, top_k=0))["top_k"] == -1


def test_a_sampled_answer_is_a_function_of_the_seed_and_its_sample(tmp_path):
    given = loaded(checkpoint(tmp_path))
    rows = [{**row, SAMPLE_ID: f"s{number}"} for number, row in enumerate(rows_of(given.processor))]
    generate = GenerateConfig(2, 7, do_sample=True)

    def sampled(seed, rows):
        engine = engine_named("vllm", loaded(tmp_path / "trained"), tmp_path / "cache", None, seed)
        return [answer.tokens for answer in engine(given.model, given.processor, rows, generate)]

    once = sampled(1, rows)
    assert sampled(1, rows) == once
    assert sampled(1, rows[:1:-1]) == once[:1:-1], "those that a stopped run has left, in another order"
    assert sampled(2, rows) != once
    alike = [{**rows[0], SAMPLE_ID: name} for name in ("a", "b", "c")]
    assert len(set(sampled(1, alike))) > 1


def test_what_vllm_cannot_run_is_refused_with_the_reason(tmp_path, monkeypatch):
    given = loaded(checkpoint(tmp_path))
    with pytest.raises(UserError, match=r"vllm\.dtype is set by the checkpoint; leave it out"):
        VllmEngine(given, tmp_path, {"dtype": "float16"})
    with pytest.raises(UserError, match=r"has no beam search; set generate\.num_beams=1"):
        list(VllmEngine(given, tmp_path)(given.model, given.processor, [], GenerateConfig(num_beams=2)))
    monkeypatch.setitem(given.model.config.spec, "llm_quantization", "nf4")
    with pytest.raises(UserError, match=r"quantized LLM \(nf4\)"):
        VllmEngine(given, tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="engine=vllm needs the package vllm: pip install vllm"):
        VllmEngine(given, tmp_path)


def test_an_evaluation_asks_the_engine_that_is_set_and_its_answers_name_it(tmp_path):
    folder = checkpoint(tmp_path)
    write_jsonl(tmp_path / "m.jsonl", [Sample(id=str(i), subtitle=f"Line {i}.", labels=("sad",)) for i in range(3)])
    files = []
    for engine in ("auto", "vllm"):
        config = EvalConfig(checkpoint=str(folder), references=str(tmp_path / "m.jsonl"), out=str(tmp_path / engine))
        config.engine, config.device, config.n_bootstrap, config.generate.max_new_tokens = engine, "cpu", 0, 7
        config.paths.cache = str(tmp_path / "cache")
        evaluate_config(config)
        files.append(tmp_path / engine / "predictions.jsonl")
    assert files[0].read_text() == files[1].read_text()
    settings = [json.loads(Path(f"{file}.settings.json").read_text()) for file in files]
    assert "engine" not in settings[0]
    assert settings[1] == settings[0] | {"engine": "vllm"}


def test_an_unknown_engine_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="engine is 'tpu'; expected auto or vllm"):
        run_inference(InferConfig(input=["clip.mp4"], engine="tpu"))
