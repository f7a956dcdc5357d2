"""LoRA on frozen linear layers that share their input: one product with the first halves of all adapters, and dropout
whose random numbers belong to a sample.

    out_i = x W_i' + scaling_i ((x * mask) A_i') B_i'

The modules of peft compute the same one by one. Here the layers of an input share the mask, the adapters run in the
LLM's precision (their weights and gradients stay in their own), and only x, the places where the mask is 0 and the r
values per token in the middle are saved.

A mask is a function of a seed, the layer and the place of its sample in the row. It does not depend on how samples are
packed, so packs run in parallel, and a recomputed layer draws the same again. What is drawn are the distances between
the few values that are dropped, not a number for each value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from affectgpt.engine import cpu, kernels


class Adapter(NamedTuple):
    """What `products` needs of a layer of peft: down [r, D], up [E, r]; `dropout` is 0 outside training."""

    base: nn.Linear
    down: Tensor
    up: Tensor
    scaling: float
    dropout: float


def adapter_of(linear: Any) -> Adapter | None:
    """The adapter of a layer; None if it has none, or is more than one plain adapter on a frozen plain layer."""
    base = getattr(linear, "base_layer", None)
    if type(base) is not nn.Linear or not kernels.is_frozen(base) or not hasattr(linear, "lora_A"):
        return None
    names = [name for name in linear.active_adapters if name in linear.lora_A]
    if len(names) != 1 or linear.disable_adapters or linear.merged or names[0] in getattr(linear, "lora_variant", {}):
        return None
    down, up, drop = (getattr(linear, part)[names[0]] for part in ("lora_A", "lora_B", "lora_dropout"))
    if down.bias is not None or up.bias is not None or hasattr(down.weight, "ds_id"):
        return None
    p = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
    return Adapter(base, down.weight, up.weight, linear.scaling[names[0]], p)


@dataclass(frozen=True)
class Dropout:
    """The random numbers of a decoder layer.

    Attributes:
        starts: places of the samples in the row.
        lengths, n_queries: tokens of each sample, and those that have queries.
    """

    seed: int
    layer: int
    starts: Sequence[int]
    lengths: Sequence[int]
    n_queries: Sequence[int]

    def dropped(self, number: int, n_rows: int, width: int, p: float, device: torch.device) -> Tensor:
        """The values that are dropped of the `number`-th input [n_rows, width] of the layer, each with probability p.

        Returns:
            places in the flat input, int64; some are n_rows * width, the place after its end.
        """
        counts = self.lengths if n_rows == sum(self.lengths) else self.n_queries
        generator, parts, start = torch.Generator(device), [], 0
        for count, place in zip(counts, self.starts, strict=True):
            generator.manual_seed(_mixed(self.seed, self.layer, number, place))
            stop = start + count * width
            places = _dropped(count * width, p, generator).add_(start)
            parts.append(places.masked_fill_(places >= stop, n_rows * width))
            start = stop
        return torch.cat(parts)


def _dropped(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Increasing places, those below n being a random choice of 0 to n - 1, each with probability p.

    The values kept between two that are dropped have a geometric distribution. As many places are drawn as n values do
    not exceed (6 standard deviations), whichever are needed, so that a GPU need not be asked.
    """
    n_drawn = int(n * p + 6 * math.sqrt(n * p * (1 - p))) + 16
    uniform = torch.empty(n_drawn, device=generator.device).uniform_(generator=generator)  # [0, 1)
    kept = uniform.neg_().log1p_().div_(math.log1p(-p)).to(torch.int64)
    return kept.add_(1).cumsum_(0).sub_(1)


def _mixed(*numbers: int) -> int:
    """A seed from 0 to 2**63 - 1, unlike those of neighbouring numbers (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return state >> 1


_WORD = (1 << 64) - 1


def products(linears: Sequence[Any], states: Tensor, dropout: Dropout | None, number: int) -> list[Tensor]:
    """[linear(states) for linear in linears]

    Args:
        dropout: where a mask comes from; None = from random numbers of torch.
        number: of this input in its layer, for the mask.
    """
    adapters = [adapter_of(linear) for linear in linears]
    fused = [adapter for adapter in adapters if adapter is not None]
    if not torch.is_grad_enabled() and not any(adapter.dropout for adapter in fused):
        return [
            _plain(linear, states) if adapter is None else _adapted(adapter, states)
            for linear, adapter in zip(linears, adapters, strict=True)
        ]
    found = iter(_trained(fused, states, dropout, number) if fused else ())
    return [
        _plain(linear, states) if adapter is None else next(found)
        for linear, adapter in zip(linears, adapters, strict=True)
    ]


def _plain(linear: Any, states: Tensor) -> Tensor:
    return cpu.product(linear, states) if cpu.prefers_own_product(linear, states) else linear(states)


def _adapted(adapter: Adapter, states: Tensor) -> Tensor:
    """Without gradients and dropout."""
    inner = functional.linear(states, adapter.down.to(states.dtype))
    return _plain(adapter.base, states).addmm_(inner, _scaled(adapter.up, adapter.scaling, states.dtype).t())


def _scaled(up: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    return (up * scaling).to(dtype)


def _trained(adapters: Sequence[Adapter], states: Tensor, dropout: Dropout | None, number: int) -> Sequence[Tensor]:
    p = adapters[0].dropout
    if any(adapter.dropout != p for adapter in adapters):  # each with a mask of its own
        return [_trained([each], states, dropout, 8 * place + number)[0] for place, each in enumerate(adapters, 1)]
    dropped, scalings = None, tuple(adapter.scaling / (1 - p) for adapter in adapters)
    if p > 0:
        if dropout is None:
            dropout = Dropout(int(torch.randint(2**62, ())), 0, [0], [len(states)], [len(states)])
        dropped = dropout.dropped(number, len(states), states.shape[1], p, states.device)
    bases = [adapter.base for adapter in adapters]
    ends = [*(adapter.down for adapter in adapters), *(adapter.up for adapter in adapters)]
    return _Adapted.apply(states, dropped, scalings, bases, *ends)


class _Adapted(torch.autograd.Function):
    """Several layers of one input; saves it, what is dropped of it, and the values between the adapters' halves."""

    @staticmethod
    def forward(ctx, states, dropped, scalings, bases, *ends):  # type: ignore[no-untyped-def]
        downs, ups, dtype = ends[: len(bases)], ends[len(bases) :], states.dtype
        down = torch.cat([each.to(dtype) for each in downs])  # [R, D]
        inner = functional.linear(_kept(states, dropped), down)  # [T, R]
        outs = []
        parts = inner.split([len(each) for each in downs], dim=1)
        for base, up, scaling, part in zip(bases, ups, scalings, parts, strict=True):
            out = functional.linear(states, base.weight, base.bias)
            outs.append(out.addmm_(part, _scaled(up, scaling, dtype).t()))
        ctx.scalings, ctx.bases = scalings, bases
        ctx.save_for_backward(states, dropped, inner, *ends)
        return tuple(outs)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        states, dropped, inner, *ends = ctx.saved_tensors
        bases, scalings, dtype = ctx.bases, ctx.scalings, states.dtype
        downs, ups = ends[: len(bases)], ends[len(bases) :]
        ranks = [len(each) for each in downs]
        d_inner, d_ups = torch.empty_like(inner), []
        d_states = torch.mm(grads[0], bases[0].weight)
        each = zip(grads, bases, ups, scalings, inner.split(ranks, dim=1), d_inner.split(ranks, dim=1), strict=True)
        for place, (grad, base, up, scaling, part, d_part) in enumerate(each):
            if place:
                d_states.addmm_(grad, base.weight)
            d_part.copy_(torch.mm(grad, _scaled(up, scaling, dtype)))
            d_ups.append(torch.mm(grad.t(), part).to(up.dtype).mul_(scaling))
        down = torch.cat([end.to(dtype) for end in downs])
        d_down = torch.mm(d_inner.t(), _kept(states, dropped))
        if dropped is None:
            d_states.addmm_(d_inner, down)
        else:
            flat, d_kept = _with_end(states)
            torch.mm(d_inner, down, out=d_kept)
            flat.index_fill_(0, dropped, 0)
            d_states += d_kept
        d_downs = [part.to(end.dtype) for part, end in zip(d_down.split(ranks), downs, strict=True)]
        return d_states, None, None, None, *d_downs, *d_ups


def _kept(states: Tensor, dropped: Tensor | None) -> Tensor:
    """A copy of the states with 0 where they are dropped, or the states if nothing is."""
    if dropped is None:
        return states
    flat, kept = _with_end(states)
    kept.copy_(states)
    flat.index_fill_(0, dropped, 0)
    return kept


def _with_end(like: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialized values and one more after them, flat, and the values in the shape of `like`."""
    flat = like.new_empty(like.numel() + 1)
    return flat, flat[:-1].view(like.shape)
