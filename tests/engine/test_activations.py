"""The bytes that the layers save are measured correctly, and checkpointing some layers changes no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from affectgpt.config import LoraConfig
from affectgpt.engine import cpu, kept_bytes, kept_tensors, layers
from affectgpt.engine.layout import Pack
from affectgpt.models import build
from tests.engine.test_packing import loss_and_gradients, randomize_lora, samples
from tests.models import tiny

LORA = LoraConfig(4, 8, 0.0, ["q_proj", "v_proj"])


@pytest.fixture(params=[(tiny.write_llama, None), (tiny.write_llama3, LORA)], ids=["llama", "llama3-lora"])
def fresh(request, tmp_path):
    write, lora = request.param
    model, processor = build(tiny.tiny_spec(tiny.write_base_models(tmp_path, write), lora=lora))
    randomize_lora(model)
    return model, processor


def test_the_probe_of_one_layer_gives_what_the_complete_llm_saves(fresh):
    llm = fresh[0].language_model
    n = 256
    embeds = torch.randn(1, n, llm.config.hidden_size, requires_grad=True)
    positions = torch.arange(n)[None]
    pack = Pack(0, (n,), (0,), torch.empty(0, dtype=torch.int64))
    with kept_tensors([*llm.parameters(), *llm.buffers(), *layers.rotary_tables(llm.model, embeds, positions)]) as kept:
        layers.final_states(llm, embeds, positions, pack)
    found = kept_bytes(llm)
    assert found.n_layers == len(llm.model.layers)
    assert found.input_bytes == 4 * llm.config.hidden_size
    # The rest is one norm.
    assert n * found.of(0) == pytest.approx(sum(kept.values()), rel=0.1)
    assert found.layer_bytes > 5 * found.input_bytes


def test_the_probe_changes_neither_random_numbers_nor_gradients(tmp_path):
    lora = LoraConfig(4, 8, 0.5, ["q_proj", "v_proj"])
    model, _ = build(tiny.tiny_spec(tiny.write_base_models(tmp_path, tiny.write_llama), lora=lora))
    model.train()
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    kept_bytes(model.language_model)
    assert torch.equal(torch.rand(4), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_the_first_layers_are_recomputed_and_gradients_stay_the_same(fresh, monkeypatch):
    model, processor = fresh
    batch = processor.collate(samples(processor), packed=True)
    plain = loss_and_gradients(model, batch)
    layer, calls = layers.decoder_layer, []
    modules: list[nn.Module] = list(model.language_model.model.layers)
    monkeypatch.setattr(
        layers, "decoder_layer", lambda *args, **more: calls.append(modules.index(args[0])) or layer(*args, **more)
    )
    for n in range(len(modules) + 1):
        calls.clear()
        model.checkpoint_layers(n)
        torch.testing.assert_close(loss_and_gradients(model, batch), plain, rtol=0, atol=0)
        assert [calls.count(place) for place in range(len(modules))] == [2] * n + [1] * (len(modules) - n)


def test_attention_weights_are_counted(fresh, monkeypatch):
    llm = fresh[0].language_model
    monkeypatch.setattr(cpu, "_SAVED", 1000)
    saved = kept_bytes(llm)
    monkeypatch.setattr(cpu, "_SAVED", 0)  # attention weights are recomputed
    without = kept_bytes(llm)
    n_heads = llm.config.num_attention_heads
    # A causal triangle in blocks of queries: at least half of all weights.
    assert saved.layer_bytes - without.layer_bytes > 0.5 * 256 * n_heads * 4
