"""The training step on packed samples: no padding, attention within each sample, loss only where there are labels.

    embeds [T, D], T = tokens of all samples --layers, each sample attends to itself--> states of the answers [K, D]
    --head and cross-entropy, a few rows at a time--> loss

What differs from running the LLM as transformers does, and changes no result beyond rounding:

- Attention runs sample by sample, so its cost grows with the samples' lengths and not with the length of the row.
- The last layer computes queries and feed-forward only from the first token whose successor is learnt; of the tokens
  before it nothing but keys and values is ever used.
- Logits exist for a few rows at a time. With a frozen head their gradient is taken in the forward pass, so that memory
  grows neither with the vocabulary nor with the number of answers.
- Frozen norms, rotary embedding and gated activation save no more than they need to be differentiated.

The layers are those of LLaMA, Mistral, Qwen2 and Qwen3 in transformers; their own submodules are called, so that LoRA,
quantized linear layers and weights that ZeRO-3 has split work as in any other step. Other LLMs train packed, too, by
transformers' own attention masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of transformers whose decoder layers `answer_states` knows."""
# Rows of queries that meet their keys at once on a CPU: small enough to skip most of what causality forbids, large
# enough for the matrix product (of 48, 72, 96, 136 and 290 the fastest in fp32; AVX-512, 266 tokens a sample).
_BLOCK = 96
# Tokens that a CPU takes through a feed-forward block at once, so that what lies between its products stays in cache.
_ROWS = 512
# Logits at once: 2^24 are 64 MB in fp32.
_LOGITS = 1 << 24


@dataclass(frozen=True)
class Pack:
    """Where samples lie in a packed row.

    Attributes:
        start, stop: the part of the row that they take.
        lengths: tokens of each sample; their sum is stop - start.
        firsts: for each sample the place, counted within it, of the first token whose successor is learnt.
        answers: places in the row of all such tokens, [K] int64 on the CPU.
    """

    start: int
    lengths: tuple[int, ...]
    firsts: tuple[int, ...]
    answers: Tensor

    @property
    def stop(self) -> int:
        return self.start + sum(self.lengths)

    @property
    def n_queries(self) -> list[int]:
        """Tokens of each sample from the first learnt one to its end."""
        return [length - first for length, first in zip(self.lengths, self.firsts, strict=True)]

    def whole(self) -> Pack:
        """The same samples with queries for all tokens, for every layer but the last."""
        return replace(self, firsts=(0,) * len(self.lengths))

    def queries(self) -> Tensor:
        """Places of the queries, [Q], counted from `start`."""
        spans = zip(pairwise(_bounds(self.lengths)), self.firsts, strict=True)
        return torch.cat([torch.arange(start + first, stop) for (start, stop), first in spans])


def packs_of(position_ids: Tensor, learnt: Tensor, token_budget: int | None = None) -> list[Pack]:
    """Cut a packed row into packs of at most `token_budget` tokens; a longer sample is a pack of its own.

    Args:
        position_ids: [1, T], restart at 0 with each sample.
        learnt: [T] bool, marks the tokens that predict a label.

    Raises:
        ValueError: the row does not begin with position 0.
    """
    # One transfer for both: reading from a GPU waits for it.
    begins, marks = torch.stack([position_ids[0] == 0, learnt]).cpu()
    if not begins[0]:
        raise ValueError("a packed row begins with position 0; make it with processor.collate(rows, packed=True)")
    spans = list(pairwise([*begins.nonzero()[:, 0].tolist(), len(marks)]))
    groups: list[list[tuple[int, int]]] = [[]]
    for start, stop in spans:
        if groups[-1] and token_budget is not None and stop - groups[-1][0][0] > token_budget:
            groups.append([])
        groups[-1].append((start, stop))
    packs = []
    for group in groups:
        found = [marks[start:stop].nonzero()[:, 0] for start, stop in group]
        packs.append(
            Pack(
                group[0][0],
                tuple(stop - start for start, stop in group),
                # At least one query a sample: attention kernels need not cope with none.
                tuple(int(f[0]) if len(f) else stop - start - 1 for f, (start, stop) in zip(found, group, strict=True)),
                torch.cat([f + start for f, (start, _) in zip(found, group, strict=True)]),
            )
        )
    return packs


def knows(llm: Any) -> bool:
    """Whether `answer_states` computes what this LLM computes; else it trains by its own forward method."""
    config = llm.config
    return (
        config.model_type in FAMILIES
        and getattr(config, "hidden_act", None) == "silu"
        and not getattr(config, "attention_dropout", 0.0)
        and hasattr(llm, "model")
        and hasattr(llm, "lm_head")
    )


def packed_loss(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    token_budget: int | None = None,
) -> Tensor:
    """Loss of a packed row.

    Args:
        embeds: [1, T, D]; position_ids, labels: [1, T].
        num_items_in_batch: the sum over all labels is divided by this number; None = the mean.
        token_budget: tokens that go through the LLM at once. Each pack is differentiated before the next one starts, so
            that memory grows with the budget and not with the batch; it costs no second pass. None = all at once.

    Raises:
        ValueError: a sample is longer than the LLM's sliding window.
    """
    targets = functional.pad(labels, (0, 1), value=-100)[0, 1:]  # [T]; place t predicts token t + 1
    packs = packs_of(position_ids, targets != -100, token_budget)
    _check_window(llm.config, max(max(pack.lengths) for pack in packs))

    def loss_of(pack: Pack, embeds: Tensor) -> Tensor:
        at = pack.answers.to(targets.device)
        states = answer_states(llm, embeds, position_ids[:, pack.start : pack.stop], pack)  # [Q, D]
        rows = torch.isin(pack.queries() + pack.start, pack.answers, assume_unique=True).nonzero()[:, 0]
        return summed_loss(llm.lm_head, states[rows.to(states.device)], targets[at])

    if len(packs) == 1:
        total = loss_of(packs[0], embeds)
    else:
        trained = [parameter for parameter in llm.parameters() if parameter.requires_grad]
        total = _PackByPack.apply(loss_of, packs, embeds, *trained)
    n_items = sum(len(pack.answers) for pack in packs) if num_items_in_batch is None else num_items_in_batch
    return total / (n_items.to(total.device) if isinstance(n_items, Tensor) else n_items)


class _PackByPack(torch.autograd.Function):
    """Sum of the packs' losses; each pack's gradient is made in the forward pass and kept instead of its graph."""

    @staticmethod
    def forward(ctx, loss_of, packs, embeds, *trained):  # type: ignore[no-untyped-def]
        needed = [tensor for tensor, wanted in zip((embeds, *trained), ctx.needs_input_grad[2:], strict=True) if wanted]
        total = torch.zeros((), dtype=torch.float32, device=embeds.device)
        sums = [torch.zeros_like(tensor) for tensor in needed]
        for pack in packs:
            piece = embeds[:, pack.start : pack.stop].detach().requires_grad_(ctx.needs_input_grad[2])
            with torch.set_grad_enabled(bool(needed)):
                loss = loss_of(pack, piece)
            total += loss.detach()
            if needed:
                inputs = [piece if tensor is embeds else tensor for tensor in needed]
                gradients = torch.autograd.grad(loss, inputs)
                for tensor, into, gradient in zip(needed, sums, gradients, strict=True):
                    (into[:, pack.start : pack.stop] if tensor is embeds else into).add_(gradient)
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        sums = iter(ctx.saved_tensors)
        return None, None, *((next(sums) * grad if wanted else None) for wanted in ctx.needs_input_grad[2:])


def answer_states(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    pack: Pack,
    attends: Sequence[Callable[..., Tensor]] | None = None,
) -> Tensor:
    """Final states [Q, D] at the places `pack.queries()` of a pack: embeds [1, T, D] with positions [1, T].

    Args:
        attends: for each layer what takes the place of `attend`; generation keeps keys and values there.
    """
    decoder = llm.model
    cos, sin = (table[0] for table in decoder.rotary_emb(embeds, position_ids=position_ids))  # [T, d], halves alike
    rotation = tuple(table[:, : table.shape[-1] // 2].contiguous() for table in (cos, sin))
    states, whole, last = embeds[0], pack.whole(), len(decoder.layers) - 1
    for number, layer in enumerate(decoder.layers):
        mix = attend if attends is None else attends[number]
        step = partial(_layer, layer, pack if number == last else whole, attend=mix)
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            states = checkpoint(step, states, *rotation, use_reentrant=False)
        else:
            states = step(states, *rotation)
    return _norm(decoder.norm, states)


def _check_window(config: Any, longest: int) -> None:
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and longest > window:
        raise ValueError(
            f"a sample has {longest} tokens, the LLM's sliding window {window}; packed samples attend to all of "
            "themselves: shorten them, or set stage.packing=false"
        )


def _layer(
    layer: Any, pack: Pack, states: Tensor, cos: Tensor, sin: Tensor, *, attend: Callable[..., Tensor]
) -> Tensor:
    """One decoder layer.  [T, D] -> [Q, D], the rows that have queries"""
    attention, feed_forward = layer.self_attn, layer.mlp
    normed = _norm(layer.input_layernorm, states)  # [T, D]
    key, value = attention.k_proj(normed), attention.v_proj(normed)  # [T, Hk*d]
    rows = None
    if any(pack.firsts):
        rows = pack.queries().to(states.device)
        states, normed = states[rows], normed[rows]  # [Q, D]
    query = attention.q_proj(normed)  # [Q, H*d]
    if hasattr(attention, "q_norm"):  # Qwen3 normalises each head
        query, key = (
            _norm(norm, heads.view(-1, attention.head_dim)).view_as(heads)
            for norm, heads in ((attention.q_norm, query), (attention.k_norm, key))
        )
    mixed = attend(query, key, value, cos, sin, rows, pack, attention.head_dim, attention.scaling)  # [Q, H*d]
    states = states + attention.o_proj(mixed)
    norm, linears = (
        layer.post_attention_layernorm,
        (feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj),
    )
    if states.device.type == "cpu" and _is_frozen(norm) and all(map(_is_frozen_product, linears)):
        weights = (linear.weight for linear in linears)
        return _CpuFeedForward.apply(states, norm.weight, norm.variance_epsilon, *weights)
    gate_proj, up_proj, down_proj = linears
    normed = _norm(norm, states)
    return states + down_proj(_Gated.apply(gate_proj(normed), up_proj(normed)))


# ---------------------------------------------------------------- attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor | None,
    pack: Pack,
    head_dim: int,
    scale: float,
) -> Tensor:
    """Rotary embedding and causal attention within each sample.

    Args:
        query: [Q, H*d]; key, value: [T, Hk*d].
        cos, sin: [T, d/2].
        rows: places of the queries in the row; None = all.

    Returns:
        [Q, H*d]
    """
    if query.device.type == "cpu":
        return _CpuAttention.apply(query, key, value, cos, sin, rows, pack, head_dim, scale)
    at = slice(None) if rows is None else rows
    query, key, value = (heads.unflatten(1, (-1, head_dim)) for heads in (query, key, value))  # [T, H, d]
    query, key = rotated(query, cos[at], sin[at]), rotated(key, cos, sin)
    if query.dtype in (torch.bfloat16, torch.float16) and (flash := _flash_varlen()) is not None:
        n_queries = pack.n_queries
        bounds = [
            torch.tensor(_bounds(counts), dtype=torch.int32, device=query.device)
            for counts in (n_queries, pack.lengths)
        ]
        return flash(query, key, value, *bounds, max(n_queries), max(pack.lengths), scale).flatten(1)
    return _sample_by_sample(query, key, value, pack, scale).flatten(1)


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding.  heads [T, H, d], cos and sin [T, d/2] -> [T, H, d]"""
    first, second = heads.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@lru_cache(maxsize=1)
def _flash_varlen() -> Any:
    """FlashAttention over samples of unequal length: the flash_attn package's, else torch's own; None = neither."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        pass
    else:
        return lambda q, k, v, q_bounds, k_bounds, q_max, k_max, scale: flash_attn_varlen_func(
            q, k, v, q_bounds, k_bounds, q_max, k_max, softmax_scale=scale, causal=True
        )
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return lambda q, k, v, q_bounds, k_bounds, q_max, k_max, scale: varlen_attn(
        q, k, v, q_bounds, k_bounds, q_max, k_max, scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )


def _sample_by_sample(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float) -> Tensor:
    """torch's attention on each sample in turn.  query [Q, H, d], key and value [T, Hk, d] -> [Q, H, d]"""
    mixed = []
    for q, k, v in zip(query.split(pack.n_queries), key.split(pack.lengths), value.split(pack.lengths), strict=True):
        q, k, v = (heads.transpose(0, 1)[None] for heads in (q, k, v))  # [1, H, L, d]
        whole = q.shape[2] == k.shape[2]
        n, m = q.shape[2], k.shape[2]
        allowed = None if whole else torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=whole, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        mixed.append(out[0].transpose(0, 1))  # [L, H, d]
    return torch.cat(mixed)


class _CpuAttention(torch.autograd.Function):
    """Rotary embedding and attention by matrix products over blocks of queries; the backward pass makes weights anew.

    torch's flash kernel for CPUs reaches a third of the matrix products' speed at these lengths in fp32, and a sixth in
    bf16 (docs/speed.md).
    """

    @staticmethod
    def forward(ctx, query, key, value, cos, sin, rows, pack, head_dim, scale):  # type: ignore[no-untyped-def]
        at = slice(None) if rows is None else rows
        ctx.q_rotation, ctx.k_rotation = (cos[at] * scale, sin[at] * scale), (cos, sin)
        ctx.blocks = list(_blocks(pack))
        query = _to_heads(query, head_dim, *ctx.q_rotation)  # [H, Q, d], scaled
        key = _to_heads(key, head_dim, *ctx.k_rotation)  # [Hk, T, d]
        value = _to_heads(value, head_dim)
        ctx.save_for_backward(query, key, value)
        mixed = torch.empty(query.shape[1], query.shape[0], head_dim, dtype=query.dtype)  # [Q, H, d]
        for q, k in ctx.blocks:
            weights = _weights(query[:, q], key[:, k])  # [Hk, G*n, m]
            block = torch.bmm(weights, value[:, k])  # [Hk, G*n, d]
            mixed[q] = block.view(len(query), -1, head_dim).transpose(0, 1)
        return mixed.flatten(1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, value = ctx.saved_tensors
        n_kv, head_dim = key.shape[0], key.shape[2]
        grad = _to_heads(grad, head_dim)  # [H, Q, d]
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for q, k in ctx.blocks:
            weights = _weights(query[:, q], key[:, k])
            d_mixed = grad[:, q].reshape(n_kv, -1, head_dim)  # [Hk, G*n, d]
            d_value[:, k].baddbmm_(weights.transpose(1, 2), d_mixed)
            d_weights = torch.bmm(d_mixed, value[:, k].transpose(1, 2))  # [Hk, G*n, m]
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, q] = torch.bmm(d_scores, key[:, k]).view(len(query), -1, head_dim)
            d_key[:, k].baddbmm_(d_scores.transpose(1, 2), query[:, q].reshape(n_kv, -1, head_dim))
        return (
            _from_heads(d_query, *ctx.q_rotation),
            _from_heads(d_key, *ctx.k_rotation),
            _from_heads(d_value),
            *(None,) * 6,
        )


def _blocks(pack: Pack) -> Iterator[tuple[slice, slice]]:
    """(queries, keys that they see) of each block; the last n keys are the block's own n places."""
    q_start = k_start = 0
    for length, first in zip(pack.lengths, pack.firsts, strict=True):
        n_queries = length - first
        n_blocks = -(-n_queries // _BLOCK)
        bounds = [n_queries * number // n_blocks for number in range(n_blocks + 1)]
        for start, stop in pairwise(bounds):
            yield slice(q_start + start, q_start + stop), slice(k_start, k_start + first + stop)
        q_start, k_start = q_start + n_queries, k_start + length


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Attention weights of a block: query [H, n, d] (scaled), key [Hk, m, d] -> [Hk, G*n, m], G = H / Hk."""
    n, m = query.shape[1], key.shape[1]
    scores = torch.bmm(query.reshape(len(key), -1, query.shape[2]), key.transpose(1, 2))
    scores.view(len(query), n, m)[:, :, m - n :].masked_fill_(_future(n), float("-inf"))
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=_BLOCK)
def _future(n: int) -> Tensor:
    """[n, n], True where the key comes after the query."""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def _to_heads(flat: Tensor, head_dim: int, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
    """[T, H*d] -> [H, T, d] contiguous, rotated on the way if cos and sin [T, d/2] are given."""
    heads = flat.unflatten(1, (-1, head_dim)).transpose(0, 1)
    return (
        heads.contiguous()
        if cos is None or sin is None
        else _rotate(heads, torch.empty(heads.shape, dtype=flat.dtype), cos, sin)
    )


def _from_heads(heads: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
    """The gradient on the way back of `_to_heads`.  [H, T, d] -> [T, H*d]"""
    n_heads, n_tokens, head_dim = heads.shape
    flat = torch.empty(n_tokens, n_heads, head_dim, dtype=heads.dtype)
    if cos is None or sin is None:
        flat.copy_(heads.transpose(0, 1))
    else:
        _rotate(heads, flat.transpose(0, 1), cos, -sin)
    return flat.flatten(1)


def _rotate(heads: Tensor, out: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    (first, second), (into_first, into_second) = heads.split(half, dim=-1), out.split(half, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin)
    return out


# ---------------------------------------------------------------- norm and activation


def _is_frozen(module: Any) -> bool:
    """Whether its weight is a plain tensor that does not train; one that ZeRO-3 has split only the module can use."""
    return not module.weight.requires_grad and not hasattr(module.weight, "ds_id")


def _is_frozen_product(linear: nn.Module) -> bool:
    """Whether it is a frozen product and nothing else: no LoRA, no bias, not quantized."""
    return type(linear) is nn.Linear and linear.bias is None and _is_frozen(linear)


def _norm(norm: Any, states: Tensor) -> Tensor:
    """Root-mean-square norm of a frozen module; any other runs itself."""
    return _RmsNorm.apply(states, norm.weight, norm.variance_epsilon) if _is_frozen(norm) else norm(states)


class _RmsNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps); keeps x and one number a row."""

    @staticmethod
    def forward(ctx, states, weight, eps):  # type: ignore[no-untyped-def]
        inverse = _inverse_rms(states, eps)
        ctx.save_for_backward(states, weight, inverse)
        return _scaled(states, inverse, weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return _norm_gradient(grad, *ctx.saved_tensors), None, None


def _inverse_rms(states: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) of each row, at least in fp32.  [T, D] -> [T, 1]"""
    wide = torch.promote_types(states.dtype, torch.float32)
    square = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=wide).square_()
    return square.div_(states.shape[-1]).add_(eps).rsqrt_()


def _scaled(states: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    # As transformers rounds: to the states' precision before the weight.
    return (states * inverse).to(states.dtype).mul_(weight)


def _norm_gradient(grad: Tensor, states: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    weighted = grad * weight
    dot = (weighted * states).sum(dim=-1, keepdim=True, dtype=inverse.dtype)
    slope = dot.mul_(inverse**3).div_(-states.shape[-1])  # [T, 1]
    return (weighted * inverse).addcmul_(states, slope).to(states.dtype)


class _Gated(torch.autograd.Function):
    """silu(gate) * up; keeps the two."""

    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), functional.silu(gate).mul_(grad)


class _CpuFeedForward(torch.autograd.Function):
    """states + down(silu(gate(norm(states))) * up(norm(states))), all frozen, `_ROWS` tokens at a time.

    What lies between the products stays in the processor's cache; only states, gate and up are kept.
    """

    @staticmethod
    def forward(ctx, states, norm, eps, gate_weight, up_weight, down_weight):  # type: ignore[no-untyped-def]
        inverse = _inverse_rms(states, eps)
        gate, up = (states.new_empty(len(states), len(gate_weight)) for _ in range(2))
        out = torch.empty_like(states)
        for rows in _rows(len(states)):
            normed = _scaled(states[rows], inverse[rows], norm)
            torch.mm(normed, gate_weight.t(), out=gate[rows])
            torch.mm(normed, up_weight.t(), out=up[rows])
            gated = functional.silu(gate[rows]).mul_(up[rows])
            torch.mm(gated, down_weight.t(), out=out[rows]).add_(states[rows])
        ctx.save_for_backward(states, norm, inverse, gate, up, gate_weight, up_weight, down_weight)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        states, norm, inverse, gate, up, gate_weight, up_weight, down_weight = ctx.saved_tensors
        d_states = torch.empty_like(states)
        for rows in _rows(len(states)):
            d_gated = torch.mm(grad[rows], down_weight)
            d_up = functional.silu(gate[rows]).mul_(d_gated)
            d_gate = torch.ops.aten.silu_backward(d_gated.mul_(up[rows]), gate[rows])
            d_normed = torch.mm(d_gate, gate_weight).addmm_(d_up, up_weight)
            torch.add(_norm_gradient(d_normed, states[rows], norm, inverse[rows]), grad[rows], out=d_states[rows])
        return d_states, None, None, None, None, None


def _rows(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS))


# ---------------------------------------------------------------- loss


def summed_loss(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of states [K, D] under the LLM's output layer against targets [K]."""
    if _is_frozen_product(head):
        return _FrozenHeadLoss.apply(states, head.weight, targets)
    n_rows = _rows_at_once(head.out_features)
    chunks = zip(states.split(n_rows), targets.split(n_rows), strict=True)
    # Made anew in the backward pass instead of kept.
    losses = [checkpoint(_chunk_loss, head, rows, wanted, use_reentrant=False) for rows, wanted in chunks]
    return torch.stack(losses).sum()


def _rows_at_once(vocabulary: int) -> int:
    return max(1, _LOGITS // vocabulary)


def _chunk_loss(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(states).float(), targets, reduction="sum")


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed cross-entropy; the gradient to the states is made while the logits are there, and kept instead of them."""

    @staticmethod
    def forward(ctx, states, weight, targets):  # type: ignore[no-untyped-def]
        n_rows = _rows_at_once(len(weight))
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), n_rows):
            rows, wanted = states[start : start + n_rows], targets[start : start + n_rows, None]
            logits = functional.linear(rows, weight).float()  # [n, V]
            found = torch.log_softmax(logits, dim=-1)
            total -= found.gather(1, wanted).sum()
            if gradient is not None:
                slope = found.exp_()
                slope.scatter_add_(1, wanted, slope.new_full((), -1.0).expand(wanted.shape))
                torch.mm(slope.to(weight.dtype), weight, out=gradient[start : start + n_rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(gradient.dtype), None, None


def _bounds(lengths: Any) -> list[int]:
    """0 and the running sums."""
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return bounds
