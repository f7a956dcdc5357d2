"""Adapters of layers with a common input equal those of peft; masks of dropout belong to samples."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from affectgpt.engine.lora import Dropout, _kept, adapter_of, products


def adapted(dropout: float, dtype: torch.dtype = torch.float64, **config) -> nn.ModuleDict:
    """Three layers of one input, the second one with a bias, with adapters away from zero."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"q": nn.Linear(6, 8, bias=False), "k": nn.Linear(6, 4), "v": nn.Linear(6, 4, bias=False)})
    layers.requires_grad_(False).to(dtype)
    settings = LoraConfig(r=2, lora_alpha=6, lora_dropout=dropout, target_modules=["q", "k", "v"], **config)
    layers = inject_adapter_in_model(settings, layers)
    for name, tensor in layers.named_parameters():
        if ".lora_" in name:
            tensor.data = torch.randn_like(tensor, dtype=dtype)
    return layers.train()


def noise(n_rows: int = 5) -> Dropout:
    return Dropout(7, 1, [0, 2], [2, n_rows - 2], [1, 1])


def test_layers_of_one_input_have_outputs_and_gradients_of_peft():
    layers, states = list(adapted(0.0).values()), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    trained = [states, *(tensor for layer in layers for tensor in layer.parameters() if tensor.requires_grad)]

    def outcome(outs):
        total = sum((out * (place + 1)).sin().sum() for place, out in enumerate(outs))
        return [out.detach() for out in outs], torch.autograd.grad(total, trained)

    expected = outcome([layer(states) for layer in layers])
    torch.testing.assert_close(outcome(products(layers, states, noise(), 0)), expected)
    with torch.no_grad():
        torch.testing.assert_close(products(layers, states, None, 0), expected[0])


def test_with_dropout_the_gradients_are_those_of_the_function_with_this_mask():
    layers, states = list(adapted(0.5).values()), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(products(layers, x, noise(), 0)), states)
    mask = noise().mask(0, 5, 6, 0.5, states.device)
    for layer, out in zip(layers, products(layers, states, noise(), 0), strict=True):
        adapter = adapter_of(layer)
        branch = (states * mask / 0.5) @ adapter.down.t() @ adapter.up.t() * adapter.scaling
        torch.testing.assert_close(out, layer.base_layer(states) + branch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_mask_of_bits_keeps_values_exactly(dtype):
    states = torch.tensor([[1.5, -0.1, float("inf")], [-3e-5, 7.0, float("-inf")]], dtype=dtype)
    mask = torch.tensor([[-1, 0, 0], [-1, -1, -1]], dtype=torch.int8)
    assert torch.equal(_kept(states, mask), torch.where(mask.bool(), states, 0))


def test_a_mask_depends_on_its_sample_and_not_on_the_samples_around_it():
    device = torch.device("cpu")
    both = Dropout(7, 3, [0, 40], [40, 60], [40, 60]).mask(1, 100, 50, 0.1, device)
    alone = Dropout(7, 3, [40], [60], [60]).mask(1, 60, 50, 0.1, device)
    assert torch.equal(both[40:], alone)
    others = [Dropout(8, 3, [40], [60], [60]), Dropout(7, 2, [40], [60], [60]), Dropout(7, 3, [41], [60], [60])]
    masks = [alone, *(other.mask(1, 60, 50, 0.1, device) for other in others), both[40:].roll(1, 0)]
    assert len({mask.numpy().tobytes() for mask in masks}) == 5
    kept = torch.cat(masks[:4]).double().mean()
    assert kept == pytest.approx(0.9, abs=4 * (0.09 / 12000) ** 0.5)
    first, last = masks[0].double() - 0.9, masks[1].double() - 0.9  # neighbouring seeds are not correlated
    assert abs((first * last).mean()) < 4 * 0.09 / 3000**0.5


@pytest.mark.parametrize("odd", ["dora", "merged", "off", "two", "trained"])
def test_layers_that_are_more_than_one_plain_adapter_keep_their_own_forward_method(odd):
    layers = adapted(0.0, torch.float32, use_dora=odd == "dora")
    layer = layers["q"]
    if odd == "merged":
        layer.merge()
    elif odd == "off":
        layer.enable_adapters(False)
    elif odd == "two":
        layer.update_layer("second", 2, lora_alpha=2, lora_dropout=0.0, init_lora_weights=True, config=LoraConfig())
        layer.set_adapter(["default", "second"])
    elif odd == "trained":
        layer.base_layer.weight.requires_grad_(True)
    assert adapter_of(layer) is None
    states = torch.randn(5, 6)
    torch.testing.assert_close(products([layer], states, None, 0)[0], layer(states))
