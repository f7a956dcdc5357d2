"""What the LLM keeps stays below a limit, whatever the limit, and the gradients are the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from affectgpt.config import LoraConfig
from affectgpt.engine import kernels, packing
from affectgpt.engine.activations import Kept, kept_bytes, kept_tensors
from affectgpt.models import build
from tests.engine.test_packing import awake, loss_and_gradients, samples
from tests.models import tiny

LORA = LoraConfig(4, 8, 0.0, ["q_proj", "v_proj"])


@pytest.fixture(params=[(tiny.write_llama, None), (tiny.write_llama3, LORA)], ids=["llama", "llama3-lora"])
def fresh(request, tmp_path):
    write, lora = request.param
    model, processor = build(tiny.tiny_spec(tiny.write_base_models(tmp_path, write), lora=lora))
    awake(model)
    return model, processor


def test_the_probe_of_one_layer_tells_what_the_whole_llm_keeps(fresh):
    llm = fresh[0].language_model
    n = 256
    embeds = torch.randn(1, n, llm.config.hidden_size, requires_grad=True)
    positions = torch.arange(n)[None]
    pack = packing.Pack(0, (n,), (0,), torch.empty(0, dtype=torch.int64))
    with kept_tensors([*llm.parameters(), *llm.buffers(), *packing.rotation_of(llm.model, embeds, positions)]) as kept:
        packing.answer_states(llm, embeds, positions, pack)
    found = kept_bytes(llm)
    assert found.n_layers == len(llm.model.layers)
    assert found.input_bytes == 4 * llm.config.hidden_size
    # Beside the layers there is one norm.
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


def test_only_the_first_layers_are_computed_again_and_gradients_stay_the_same(fresh, monkeypatch):
    model, processor = fresh
    batch = processor.collate(samples(processor), packed=True)
    plain = loss_and_gradients(model, batch)
    layer, calls = packing.layer_states, []
    layers: list[nn.Module] = list(model.language_model.model.layers)
    monkeypatch.setattr(
        packing, "layer_states", lambda *args, **more: calls.append(layers.index(args[0])) or layer(*args, **more)
    )
    for n in range(len(layers) + 1):
        calls.clear()
        model.checkpoint_layers(n)
        torch.testing.assert_close(loss_and_gradients(model, batch), plain, rtol=0, atol=0)
        assert [calls.count(place) for place in range(len(layers))] == [2] * n + [1] * (len(layers) - n)


def test_as_few_layers_are_checkpointed_as_the_limit_asks_for():
    kept = Kept(n_layers=4, layer_bytes=10.0, input_bytes=1.0)
    # Three tokens: 4 whole layers 120 bytes; each that is checkpointed saves 27, and one is always whole.
    assert [kept.n_checkpointed(3, limit) for limit in (120, 119, 93, 92, 66, 65, 39)] == [0, 1, 1, 2, 2, 3, 3]
    expected = r"3 tokens at once keep at least 3.9e-08 GB with .* more than the 3.8e-08 GB .* or at most 2 tokens"
    with pytest.raises(ValueError, match=expected):
        kept.n_checkpointed(3, 38)


def test_attention_is_part_of_what_is_counted(fresh, monkeypatch):
    llm = fresh[0].language_model
    monkeypatch.setattr(kernels, "_KEPT", 1000)
    whole = kept_bytes(llm)
    monkeypatch.setattr(kernels, "_KEPT", 0)  # weights of attention are made anew
    without = kept_bytes(llm)
    n_heads = llm.config.num_attention_heads
    # A causal triangle in blocks of queries: at least half of all weights.
    assert whole.layer_bytes - without.layer_bytes > 0.5 * 256 * n_heads * 4
