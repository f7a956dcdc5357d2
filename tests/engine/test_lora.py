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
    mask = mask_of(noise(), 0, 5, 6, 0.5)
    for layer, out in zip(layers, products(layers, states, noise(), 0), strict=True):
        adapter = adapter_of(layer)
        branch = (states * mask / 0.5) @ adapter.down.t() @ adapter.up.t() * adapter.scaling
        torch.testing.assert_close(out, layer.base_layer(states) + branch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_dropped_is_zero_whatever_it_was_and_the_rest_is_unchanged(dtype):
    states = torch.tensor([[1.5, -0.1, float("inf")], [-3e-5, float("nan"), float("-inf")]], dtype=dtype)
    expected = torch.tensor([[1.5, -0.1, 0], [-3e-5, 0, float("-inf")]], dtype=dtype)
    assert torch.equal(_kept(states, torch.tensor([2, 4, 6])), expected)  # 6 is the place after the end
    assert torch.equal(_kept(expected, torch.tensor([6, 6])), expected)


def mask_of(dropout: Dropout, number: int, n_rows: int, width: int, p: float) -> torch.Tensor:
    dropped = dropout.dropped(number, n_rows, width, p, torch.device("cpu"))
    return torch.ones(n_rows * width + 1, dtype=torch.bool).index_fill_(0, dropped, False)[:-1].view(n_rows, width)


def test_a_mask_depends_on_its_sample_and_not_on_the_samples_around_it():
    both = mask_of(Dropout(7, 3, [0, 40], [40, 60], [40, 60]), 1, 100, 50, 0.1)
    alone = mask_of(Dropout(7, 3, [40], [60], [60]), 1, 60, 50, 0.1)
    assert torch.equal(both[40:], alone)
    others = [Dropout(8, 3, [40], [60], [60]), Dropout(7, 2, [40], [60], [60]), Dropout(7, 3, [41], [60], [60])]
    masks = [alone, *(mask_of(other, 1, 60, 50, 0.1) for other in others), both[40:].roll(1, 0)]
    assert len({mask.numpy().tobytes() for mask in masks}) == 5
    first, last = masks[0].double() - 0.9, masks[1].double() - 0.9  # neighbouring seeds are not correlated
    assert abs((first * last).mean()) < 4 * 0.09 / 3000**0.5


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_every_value_is_dropped_with_the_same_probability_independently_of_its_neighbours(p):
    """Over 400 seeds: the mean of all values, of the first and the last one, and the products of neighbours."""
    masks = torch.stack([mask_of(Dropout(seed, 0, [0], [20], [20]), 0, 20, 30, p).flatten() for seed in range(400)])
    centred, spread = masks.double() - (1 - p), p * (1 - p)
    for values, sigma in (
        (centred, spread**0.5),
        (centred[:, 0], spread**0.5),
        (centred[:, -1], spread**0.5),
        (centred[:, 1:] * centred[:, :-1], spread),
        (centred[:, 30:] * centred[:, :-30], spread),
    ):
        assert abs(values.mean()) < 4 * sigma / values.numel() ** 0.5


@pytest.mark.parametrize(("n", "p"), [(1, 0.05), (3, 0.5), (40, 0.9)])
def test_few_values_are_dropped_as_often_as_many(n, p):
    masks = torch.stack([mask_of(Dropout(seed, 0, [0], [1], [1]), 0, 1, n, p) for seed in range(600)]).double()
    assert abs(masks.mean() - (1 - p)) < 4 * (p * (1 - p) / masks.numel()) ** 0.5


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
