"""`greedy` generates, token by token, what transformers' `generate` gives for each prompt alone."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from affectgpt.config import LoraConfig
from affectgpt.engine import cpu, generation, layers
from affectgpt.engine.generation import Prompt, greedy
from affectgpt.models import AffectGPTForConditionalGeneration, build
from tests.models import tiny

TEXTS = (
    "What does the person feel?",
    "Why?",
    "Which emotions does the person feel, and which clues in face, voice and words show it? Explain at length.",
    "The person says: I see.",
    "Sad?",
)
SHOWN = (("audio", "frames", "motion"), (), ("frames",), ("audio", "motion"), ("motion",))
LORA = LoraConfig(4, 8, 0.0, ["q_proj", "v_proj"])
LLMS = {
    "llama": tiny.write_llama,
    "llama3-gqa": tiny.write_llama3,
    "qwen2-bias-tied": tiny.write_qwen2,
    "qwen3-head-norms": tiny.write_qwen3,
}

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with g++")


@pytest.fixture(scope="module", params=[(name, lora) for name in LLMS for lora in (False, True)], ids=str)
def built(request, tmp_path_factory):
    name, lora = request.param
    return with_adapters(name, tmp_path_factory.mktemp("base"), lora=lora)


def with_adapters(name: str, folder: Path, *, lora: bool):
    """A tiny model of a family, frozen or with LoRA whose both halves are away from zero."""
    paths = tiny.write_base_models(folder, LLMS[name])
    model, processor = build(tiny.tiny_spec(paths, lora=LORA if lora else None))
    torch.manual_seed(3)
    for tensor_name, tensor in model.named_parameters():
        if ".lora_" in tensor_name:
            tensor.data.normal_(std=0.3)
    return model.eval(), processor


def encoded(processor, n: int) -> list[dict[str, Tensor]]:
    rows = []
    for i in range(n):
        shown = SHOWN[i % len(SHOWN)]
        messages = tiny.question(*shown, text=TEXTS[i % len(TEXTS)] + " And you?" * (i // len(TEXTS)))
        rows.append(processor.encode(messages, tiny.media(*shown, seed=i, duration_s=0.1 + 0.02 * i)))
    return rows


def by_transformers(model, processor, row: dict[str, Tensor], n_tokens: int, stops: list[int]) -> list[int]:
    batch = processor.collate([row], for_generation=True)
    output = model.generate(**batch, max_new_tokens=n_tokens, do_sample=False, eos_token_id=stops)
    return output[0, batch["input_ids"].shape[1] :].tolist()


def by_engine(
    model, processor, rows, limits: list[int], stops: list[int], batch_size: int, **options
) -> dict[int, list[int]]:
    waiting = []
    for key, (row, limit) in enumerate(zip(rows, limits, strict=True)):
        batch = processor.collate([row], for_generation=True)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        ids = batch.pop("input_ids")
        waiting.append(Prompt(key, model.embed(ids, batch)[0], limit))

    def take(n: int) -> list[Prompt]:
        taken, waiting[:] = waiting[:n], waiting[n:]
        return taken

    suppressed = model.generation_config.suppress_tokens or ()
    return dict(
        greedy(model.language_model, take, batch_size=batch_size, stop_ids=stops, suppressed_ids=suppressed, **options)
    )


def test_every_batch_size_gives_the_tokens_of_each_prompt_alone_with_limits_and_early_stops(built):
    model, processor = built
    assert generation.can_generate(model)
    rows = encoded(processor, 11)
    limits = [9, 1, 14, 5, 20, 12, 3, 1, 17, 8, 70]  # the last one outgrows its buffer twice
    free = [by_transformers(model, processor, row, limit, []) for row, limit in zip(rows, limits, strict=True)]
    # Tokens from the middle of answers become stop tokens, so that answers end early and at different steps.
    stops = sorted({free[2][6], free[4][2], free[8][11], *model.generation_config.eos_token_id})
    alone = [by_transformers(model, processor, row, limit, stops) for row, limit in zip(rows, limits, strict=True)]
    assert any(len(tokens) < limit for tokens, limit in zip(alone, limits, strict=True))
    for batch_size in (1, 3, 16):
        together = by_engine(model, processor, rows, limits, stops, batch_size)
        assert [together[key] for key in range(len(rows))] == alone, f"batch size {batch_size}"


@NEEDS_COMPILER
@pytest.mark.parametrize("family", ["llama3-gqa", "qwen3-head-norms"])
def test_compiled_layers_give_the_same_tokens_and_run_while_more_than_half_of_the_rows_are_active(
    family, tmp_path, monkeypatch
):
    model, processor = with_adapters(family, tmp_path, lora=family == "llama3-gqa")
    rows = encoded(processor, 7)
    limits = [9, 2, 14, 5, 90, 12, 3]  # the longest outgrows its buffer while it is alone
    compiled, sizes = generation._compiled_step, []
    monkeypatch.setattr(generation, "_COMPILED_GROWTH", 64)
    monkeypatch.setattr(
        generation,
        "_compiled_step",
        lambda *shape: lambda *given: sizes.append(len(given[1])) or compiled(*shape)(*given),
    )
    for batch_size in (1, 4):
        sizes.clear()
        plain = by_engine(model, processor, rows, limits, [], batch_size)
        assert not sizes
        assert by_engine(model, processor, rows, limits, [], batch_size, compiled=True) == plain
        assert set(sizes) == {batch_size}
        n_steps = len(sizes) // len(model.language_model.model.layers)
        if batch_size == 1:
            assert n_steps == sum(limit - 1 for limit in limits)
        else:
            assert 10 < n_steps < 80  # not while the last row is alone


def random_embeds(model, length: int, seed: int) -> Tensor:
    width = model.get_input_embeddings().weight.shape[1]
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=NEEDS_COMPILER)], ids=["plain", "compiled"])
def test_a_prompt_that_is_not_finite_changes_no_answer_to_another(tmp_path, compiled):
    model, _ = with_adapters("llama3-gqa", tmp_path, lora=False)
    good = [Prompt(key, random_embeds(model, 10 + key, seed=key), 12 - key) for key in range(5)]
    bad = Prompt("bad", torch.full_like(random_embeds(model, 50, seed=0), float("nan")), 3)

    def answers(prompts: list[Prompt], **options) -> dict:
        waiting = iter(prompts)
        found = greedy(
            model.language_model, lambda n: list(islice(waiting, n)), stop_ids=[], compiled=compiled, **options
        )
        return dict(found)

    alone = answers(good, batch_size=1)
    assert len({tuple(tokens[:4]) for tokens in alone.values()}) > 1
    for place in range(4):  # each slot, also one from which a row moves
        for batch_size in (1, 2, 3):
            found = answers([*good[:place], bad, *good[place:]], batch_size=batch_size)
            assert len(found.pop("bad")) == 3
            assert found == alone, f"place {place}, batch size {batch_size}"


def test_more_buffer_sizes_than_torch_compiles_of_one_function_are_all_compiled(tmp_path, monkeypatch):
    model, processor = with_adapters("llama", tmp_path, lora=False)
    monkeypatch.setattr(generation, "_COMPILED_GROWTH", 4)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # only traced, which is fast
    generation._compiled_step.cache_clear()
    counters.clear()
    rows = encoded(processor, 1)
    most = torch._dynamo.config.recompile_limit
    limits = [4 * (most + 3)]
    plain = by_engine(model, processor, rows, limits, [], 1)
    assert by_engine(model, processor, rows, limits, [], 1, compiled=True) == plain
    assert counters["stats"]["unique_graphs"] > most
    generation._compiled_step.cache_clear()  # the next test compiles for real


def test_slots_of_finished_rows_are_refilled_at_once_and_never_more_rows_than_the_batch_are_active(built, monkeypatch):
    model, processor = built
    rows = encoded(processor, 9)
    limits = [3, 8, 2, 5, 4, 8, 2, 3, 6]
    sizes = []
    step = generation._Rows.step
    monkeypatch.setattr(generation._Rows, "step", lambda self: sizes.append(len(self)) or step(self))
    by_engine(model, processor, rows, limits, [], 3)
    assert max(sizes) == 3
    # A row of n tokens takes n - 1 steps after its prompt; only steps of the last prompts have fewer rows.
    assert sum(sizes) == sum(limit - 1 for limit in limits)
    assert sizes.index(min(sizes)) > len(sizes) - max(limits)
    assert len(sizes) < sum(limit - 1 for limit in limits) / 2


def test_the_callback_gets_every_token_of_every_prompt_as_it_is_generated(built):
    model, processor = built
    limits, seen = [3, 8, 1, 5, 4, 8], {}

    def on_tokens(key, tokens):
        lengths = seen.setdefault(key, [])
        if not lengths or len(tokens) > len(lengths[-1]):
            lengths.append(list(tokens))

    rows = encoded(processor, len(limits))
    answers = by_engine(model, processor, rows, limits, [], 3, on_tokens=on_tokens)
    assert answers == by_engine(model, processor, rows, limits, [], 3)
    for key, tokens in answers.items():
        assert seen[key] == [tokens[: n + 1] for n in range(len(tokens))]


def test_buffers_grow_no_longer_than_the_longest_row_needs(built):
    model, _ = built
    rows = generation._Rows(model.language_model, 2)
    prompt = Prompt(0, torch.randn(10, model.get_input_embeddings().weight.shape[1]), 100)
    with torch.no_grad():
        for _ in range(3):  # one slot is reused
            rows.add([prompt], rows.prefill([prompt]).argmax(dim=-1) % 7)
            for _ in range(20):
                rows.append(rows.step().argmax(dim=-1) % 7)
            rows.active[0].limit = 1
            assert len(rows.pop_finished(frozenset())) == 1
    assert {buffer._keys.shape[2] for buffer in rows._buffers} == {generation._GROWTH}


@pytest.mark.parametrize("wide", [True, False], ids=["avx512", "avx2"])
def test_attention_of_one_token_on_any_processor_is_that_of_torch_and_in_bf16_up_to_rounding(wide, monkeypatch):
    monkeypatch.setattr(cpu, "_HAS_AVX512", wide)
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(*shape, generator=generator) for shape in ((3, 4, 8), (3, 2, 9, 8), (3, 2, 9, 8))
    )
    bias = torch.zeros(3, 9).masked_fill_(torch.arange(9) > torch.tensor([[3], [8], [0]]), float("-inf"))
    plain = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, None], keys, values, attn_mask=bias[:, None, None], scale=0.3, enable_gqa=True
    )[:, :, 0]
    torch.testing.assert_close(cpu.attend_newest(query, keys, values, bias, 0.3), plain, rtol=1e-5, atol=1e-6)
    half = cpu.attend_newest(*(tensor.bfloat16() for tensor in (query, keys, values, bias)), 0.3)
    torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.03)


def test_few_rows_have_the_weights_on_the_left_where_the_processor_reads_them_faster_so(monkeypatch):
    linear, n_rows = torch.nn.Linear(4, 3).requires_grad_(False), {}
    with torch.no_grad():
        for wide in (True, False):
            monkeypatch.setattr(cpu, "_HAS_AVX512", wide)
            n_rows[wide] = [n for n in range(1, 20) if cpu.prefers_own_product(linear, torch.ones(n, 4))]
            for n in n_rows[wide]:
                states = torch.arange(4.0 * n).view(n, 4)
                torch.testing.assert_close(cpu.product(linear, states), linear(states))
    assert n_rows == {True: list(range(1, 17)), False: list(range(2, 8))}


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.generation_config, "repetition_penalty", 1.2),
        lambda model: setattr(model.generation_config, "no_repeat_ngram_size", 2),
        lambda model: setattr(model.generation_config, "num_beams", 3),
        lambda model: setattr(model, "in_lockstep", True),
        lambda model: setattr(model.language_model.config, "model_type", "gemma"),
        lambda model: setattr(model.language_model.config, "sliding_window", 64),
        lambda model: setattr(model.language_model.config, "rope_parameters", {"rope_type": "dynamic"}),
    ],
    ids=["penalty", "ngrams", "beams", "zero3", "family", "window", "rope"],
)
def test_models_that_greedy_does_not_support_are_left_to_transformers(tmp_path, change):
    model, _ = build(tiny.tiny_spec(tiny.write_base_models(tmp_path)))
    assert isinstance(model, AffectGPTForConditionalGeneration)
    assert generation.can_generate(model)
    change(model)
    assert not generation.can_generate(model)


def test_long_prompts_go_through_the_llm_in_groups(built, monkeypatch):
    model, processor = built
    rows = encoded(processor, 5)
    whole = by_engine(model, processor, rows, [4] * 5, [], 5)
    seen = []
    states = layers.final_states
    monkeypatch.setattr(layers, "final_states", lambda *args: seen.append(args[1].shape[1]) or states(*args))
    monkeypatch.setattr(generation, "_PROMPT_TOKENS", 60)
    assert by_engine(model, processor, rows, [4] * 5, [], 5) == whole
    longest = max(len(row["input_ids"]) for row in rows)
    assert len([n for n in seen if n > 5]) > 1
    assert max(seen) <= max(60, longest)
