"""What a decoder layer computes on packed rows: attention within each sample, norms, gated activation, the head's loss.

Each function saves no more than it needs to be differentiated, where its weights are frozen; weights that train, LoRA,
quantized and split ones go through their own modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from affectgpt.engine.packing import Pack

# Rows of queries that meet their keys at once on a CPU: small enough to skip most of what causality forbids, large
# enough for the matrix product (of 48, 72, 96, 136 and 290 the fastest in fp32; AVX-512, 266 tokens a sample).
_BLOCK = 96
# Attention weights are kept for samples of at most so many tokens a dimension of a head: 512 at 64, 1024 at 128. They
# are then at most four times the states, less than queries, keys, values and feed-forward keep together.
_KEPT = 8
# Tokens that a CPU takes through a feed-forward block at once, so that what lies between its products stays in cache.
_ROWS = 1536
# Rows for which reading a weight takes longer than computing with it.
_FEW_ROWS = 16
# Elements of a norm that a CPU takes at once, so that its several passes find them in cache.
_ELEMENTS = 1 << 17
# Logits at once: 64 MB in fp32; on a CPU what its cache holds.
_LOGITS, _CPU_LOGITS = 1 << 24, 1 << 20


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
        return _CpuAttention.apply(query, key, value, cos, sin, pack, head_dim, scale)
    at = slice(None) if rows is None else rows
    query, key, value = (heads.unflatten(1, (-1, head_dim)) for heads in (query, key, value))  # [T, H, d]
    query, key = rotated(query, cos[at], sin[at]), rotated(key, cos, sin)
    if query.dtype in (torch.bfloat16, torch.float16) and (flash := _flash_varlen()) is not None:
        n_queries = pack.n_queries
        bounds = [
            torch.tensor(bounds_of(counts), dtype=torch.int32, device=query.device)
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
    """Rotary embedding and attention by matrix products, sample by sample and over blocks of queries.

    What a sample needs stays in the processor's cache. Attention weights are kept for the backward pass while they are
    small beside what a layer keeps anyway, and made anew for long samples. torch's flash kernel for CPUs takes longer
    at these lengths (docs/speed.md).
    """

    @staticmethod
    def forward(ctx, query, key, value, cos, sin, pack, head_dim, scale):  # type: ignore[no-untyped-def]
        ctx.pack, ctx.head_dim, ctx.scale = pack, head_dim, scale
        wanted, kept = any(ctx.needs_input_grad), []
        ctx.keeps = wanted and max(pack.lengths) <= _KEPT * head_dim
        mixed = torch.empty_like(query)  # [Q, H*d]
        scaled = cos * scale, sin * scale
        for q, k, seen in _samples(pack):
            sample_query = _to_heads(query[q], head_dim, *(table[seen] for table in scaled))  # [H, n, d]
            sample_key, sample_value = _to_heads(key[k], head_dim, cos[k], sin[k]), _to_heads(value[k], head_dim)
            if wanted:
                kept += [sample_query, sample_key, sample_value]
            into = mixed[q].unflatten(1, (-1, head_dim))  # [n, H, d]
            for rows, n_keys in _blocks(q, k):
                weights = _weights(sample_query[:, rows], sample_key[:, :n_keys])  # [Hk, G*n, m]
                block = torch.bmm(weights, sample_value[:, :n_keys])  # [Hk, G*n, d]
                into[rows] = block.view(len(sample_query), -1, head_dim).transpose(0, 1)
                if ctx.keeps:
                    kept.append(weights)
        if wanted:
            ctx.save_for_backward(cos, sin, *kept)
        return mixed

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        cos, sin, *saved = ctx.saved_tensors
        pack, head_dim, kept = ctx.pack, ctx.head_dim, iter(saved)
        scaled = cos * ctx.scale, sin * ctx.scale
        d_query = torch.empty_like(grad)
        d_key, d_value = (grad.new_empty(sum(pack.lengths), saved[1].shape[0] * head_dim) for _ in range(2))
        for q, k, seen in _samples(pack):
            query, key, value = next(kept), next(kept), next(kept)
            n_kv = len(key)
            d_mixed = _to_heads(grad[q], head_dim)  # [H, n, d]
            into_query, into_key, into_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for rows, n_keys in _blocks(q, k):
                seen_key, seen_value = key[:, :n_keys], value[:, :n_keys]
                weights = next(kept) if ctx.keeps else _weights(query[:, rows], seen_key)
                d_block = d_mixed[:, rows].reshape(n_kv, -1, head_dim)  # [Hk, G*n, d]
                into_value[:, :n_keys].baddbmm_(weights.transpose(1, 2), d_block)
                d_weights = torch.bmm(d_block, seen_value.transpose(1, 2))  # [Hk, G*n, m]
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                into_query[:, rows] = torch.bmm(d_scores, seen_key).view(len(query), -1, head_dim)
                into_key[:, :n_keys].baddbmm_(d_scores.transpose(1, 2), query[:, rows].reshape(n_kv, -1, head_dim))
            _from_heads(into_query, d_query[q], *(table[seen] for table in scaled))
            _from_heads(into_key, d_key[k], cos[k], sin[k])
            _from_heads(into_value, d_value[k])
        return d_query, d_key, d_value, *(None,) * 5


def _samples(pack: Pack) -> Iterator[tuple[slice, slice, slice]]:
    """Of each sample the rows of its queries, the rows of its keys, and which of the latter have queries."""
    q_start = k_start = 0
    for length, first in zip(pack.lengths, pack.firsts, strict=True):
        q_stop, k_stop = q_start + length - first, k_start + length
        yield slice(q_start, q_stop), slice(k_start, k_stop), slice(k_start + first, k_stop)
        q_start, k_start = q_stop, k_stop


def _blocks(queries: slice, keys: slice) -> Iterator[tuple[slice, int]]:
    """(queries, number of keys that they see) of each block of a sample; the last n of these are its own places."""
    n_queries, n_keys = queries.stop - queries.start, keys.stop - keys.start
    for rows in _even(n_queries, _BLOCK):
        yield rows, n_keys - n_queries + rows.stop


def _even(n: int, most: int) -> Iterator[slice]:
    """0 to n in as few parts of at most `most` as there can be, of about equal length."""
    n_parts = -(-n // most)
    return (slice(n * part // n_parts, n * (part + 1) // n_parts) for part in range(n_parts))


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Attention weights of a block: query [H, n, d] (scaled), key [Hk, m, d] -> [Hk, G*n, m], G = H / Hk."""
    n, m = query.shape[1], key.shape[1]
    scores = torch.bmm(query.reshape(len(key), -1, query.shape[2]), key.transpose(1, 2))
    # In fp32 whatever the precision: torch's masks and exponentials are slower in bf16 than the way there and back.
    wide = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    wide.view(len(query), n, m)[:, :, m - n :].add_(_future(n, wide.dtype))
    return torch.softmax(wide, dim=-1).to(scores.dtype)


@lru_cache(maxsize=2 * _BLOCK)
def _future(n: int, dtype: torch.dtype) -> Tensor:
    """[n, n], -inf where the key comes after the query, else 0."""
    return torch.full((n, n), float("-inf"), dtype=dtype).triu_(1)


def _to_heads(flat: Tensor, head_dim: int, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
    """[T, H*d] -> [H, T, d] contiguous, rotated on the way if cos and sin [T, d/2] are given."""
    heads = flat.unflatten(1, (-1, head_dim)).transpose(0, 1).contiguous()
    return heads if cos is None or sin is None else _rotate(heads, torch.empty_like(heads), cos, sin)


def _from_heads(heads: Tensor, out: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> None:
    """The gradient on the way back of `_to_heads`.  [H, T, d] -> [T, H*d], into `out`"""
    if cos is not None and sin is not None:
        heads = _rotate(heads, torch.empty_like(heads), cos, -sin)
    out.unflatten(1, (-1, heads.shape[2])).copy_(heads.transpose(0, 1))


def _rotate(heads: Tensor, out: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    (first, second), (into_first, into_second) = heads.split(half, dim=-1), out.split(half, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin)
    return out


# ---------------------------------------------------------------- norm and activation


def product(linear: Any, states: Tensor) -> Tensor:
    """linear(states), in the order that a CPU is fastest at while few tokens are written.  [n, D] -> [n, E]

    Weights that are read from memory for a few rows are read twice as fast with the weights on the left; for one row
    that is so of two equal ones (docs/speed.md).
    """
    n_rows = len(states)
    if not _is_few(states) or type(linear) is not nn.Linear or hasattr(linear.weight, "ds_id"):
        return linear(states)
    # Rows one after the other in memory, before and after: MKL is slow with the other order.
    rows = states.expand(2, -1) if n_rows == 1 else states
    out = torch.mm(linear.weight, rows.contiguous().t()).t()[:n_rows].contiguous()
    return out if linear.bias is None else out + linear.bias


def _is_few(states: Tensor) -> bool:
    """Whether `product` has a way of its own; in bf16 the usual one is the fastest."""
    is_fp32 = states.dtype == torch.float32 and states.device.type == "cpu"
    return is_fp32 and len(states) <= _FEW_ROWS and not torch.is_grad_enabled()


def _is_step(states: Tensor) -> bool:
    """Whether so few tokens are written that nothing is gained by taking them in parts; this way can be compiled."""
    return not torch.is_grad_enabled() and states.numel() <= _ELEMENTS


def _is_frozen(module: Any) -> bool:
    """Whether its weight is a plain tensor that does not train; one that ZeRO-3 has split only the module can use."""
    return not module.weight.requires_grad and not hasattr(module.weight, "ds_id")


def _is_frozen_product(linear: nn.Module) -> bool:
    """Whether it is a frozen product and nothing else: no LoRA, no bias, not quantized."""
    return type(linear) is nn.Linear and linear.bias is None and _is_frozen(linear)


def rms_norm(norm: Any, states: Tensor) -> Tensor:
    """Root-mean-square norm of a frozen module; any other runs itself."""
    if not _is_frozen(norm):
        return norm(states)
    if _is_step(states):
        return _scaled(states, _inverse_rms(states, norm.variance_epsilon), norm.weight)
    return _RmsNorm.apply(states, norm.weight, norm.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps); keeps x and one number a row."""

    @staticmethod
    def forward(ctx, states, weight, eps):  # type: ignore[no-untyped-def]
        inverse, out = _inverse_rms(states, eps), torch.empty_like(states)
        for rows in _parts(states):
            out[rows] = _scaled(states[rows], inverse[rows], weight)
        ctx.save_for_backward(states, weight, inverse)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        states, weight, inverse = ctx.saved_tensors
        out = torch.empty_like(states)
        for rows in _parts(states):
            out[rows] = _norm_gradient(grad[rows], states[rows], weight, inverse[rows])
        return out, None, None


def _parts(states: Tensor) -> Iterator[slice]:
    """Rows at once: all on a GPU, on a CPU as many as its cache holds several copies of."""
    on_cpu = states.device.type == "cpu"
    return _even(len(states), max(1, _ELEMENTS // states.shape[-1] if on_cpu else len(states)))


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


def feed_forward(norm: Any, mlp: Any, states: Tensor) -> Tensor:
    """states + down(silu(gate(norm(states))) * up(norm(states))).  [T, D] -> [T, D]"""
    linears = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if (
        not _is_step(states)
        and states.device.type == "cpu"
        and _is_frozen(norm)
        and all(map(_is_frozen_product, linears))
    ):
        weights = (linear.weight for linear in linears)
        return _CpuFeedForward.apply(states, norm.weight, norm.variance_epsilon, *weights)
    normed = rms_norm(norm, states)
    gate, up = product(mlp.gate_proj, normed), product(mlp.up_proj, normed)
    gated = _Gated.apply(gate, up) if torch.is_grad_enabled() else functional.silu(gate).mul_(up)
    return states + product(mlp.down_proj, gated)


class _CpuFeedForward(torch.autograd.Function):
    """states + down(silu(gate(norm(states))) * up(norm(states))), all frozen, `_ROWS` tokens at a time.

    What lies between the products stays in the processor's cache; only states, gate and up are kept.
    """

    @staticmethod
    def forward(ctx, states, norm, eps, gate_weight, up_weight, down_weight):  # type: ignore[no-untyped-def]
        inverse = _inverse_rms(states, eps)
        gate, up = (states.new_empty(len(states), len(gate_weight)) for _ in range(2))
        out = torch.empty_like(states)
        for rows in _even(len(states), _ROWS):
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
        for rows in _even(len(states), _ROWS):
            d_gated = torch.mm(grad[rows], down_weight)
            d_up = functional.silu(gate[rows]).mul_(d_gated)
            d_gate = torch.ops.aten.silu_backward(d_gated.mul_(up[rows]), gate[rows])
            d_normed = torch.mm(d_gate, gate_weight).addmm_(d_up, up_weight)
            torch.add(_norm_gradient(d_normed, states[rows], norm, inverse[rows]), grad[rows], out=d_states[rows])
        return d_states, None, None, None, None, None


# ---------------------------------------------------------------- loss


def summed_loss(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of states [K, D] under the LLM's output layer against targets [K]."""
    if _is_frozen_product(head):
        return _FrozenHeadLoss.apply(states, head.weight, targets)
    n_rows = _rows_at_once(head.out_features, states.device)
    chunks = zip(states.split(n_rows), targets.split(n_rows), strict=True)
    # Made anew in the backward pass instead of kept.
    losses = [checkpoint(_chunk_loss, head, rows, wanted, use_reentrant=False) for rows, wanted in chunks]
    return torch.stack(losses).sum()


def _rows_at_once(vocabulary: int, device: torch.device) -> int:
    """At least 64, which keep a matrix product busy."""
    return max(64, (_CPU_LOGITS if device.type == "cpu" else _LOGITS) // vocabulary)


def _chunk_loss(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(states).float(), targets, reduction="sum")


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed cross-entropy; the gradient to the states is made while the logits are there, and kept instead of them."""

    @staticmethod
    def forward(ctx, states, weight, targets):  # type: ignore[no-untyped-def]
        n_rows = _rows_at_once(len(weight), states.device)
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


def bounds_of(lengths: Any) -> list[int]:
    """0 and the running sums."""
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return bounds
