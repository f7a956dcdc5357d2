"""The CPU versions: what a GPU's own kernels do better is done here in tiles that stay in the processor's cache.

Measurements are in docs/speed.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from affectgpt.engine.kernels import even_slices, inverse_rms, norm_gradient, scale_rows
from affectgpt.engine.layout import Pack, Span, group_spans

# Queries that meet their keys at once: few enough to skip most of what causality forbids, many enough for the matrix
# product (of 48, 72, 96, 136 and 290 the fastest in fp32; AVX-512, 266 tokens a sample).
_BLOCK = 96
# Attention weights are saved for samples of at most this many tokens per dimension of a head: 512 at 64, 1024 at 128.
# They are then at most four times the states, less than queries, keys, values and feed-forward save together.
_SAVED = 8
# Tokens that go through a feed-forward block at once.
_ROWS = 1536
# In fp32 with AVX-512, what is read once belongs on the left of a product: keys, values, and weights that meet up to 16
# rows; without it only weights that meet 2 to 7 rows.
_HAS_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
# Tokens that a thread needs before it gets a pack of its own.
_THREAD_TOKENS = 384


# ---------------------------------------------------------------- packs in parallel


def split_work(spans: Sequence[Span], token_budget: int, n_threads: int) -> tuple[int, int]:
    """(packs at once, tokens per pack) so that they stay within the budget together.

    Threads that share a pack wait for each other at every small operation; with a pack each they do not.
    """
    longest, n_tokens = max(stop - start for start, stop in spans), min(spans[-1][1], token_budget)
    n_workers = max(1, min(n_threads, len(spans), n_tokens // _THREAD_TOKENS, token_budget // longest))
    if n_workers == 1:
        return 1, token_budget
    # As few packs as the budget allows, each as short as that allows, so that all workers finish together.
    high = min(spans[-1][1], token_budget // n_workers)
    n_packs = max(n_workers, len(group_spans(spans, high)))
    low = longest
    while low < high:
        middle = (low + high) // 2
        if len(group_spans(spans, middle)) <= n_packs:
            high = middle
        else:
            low = middle + 1
    return n_workers, low


def map_packs(function: Callable[[Pack], Any], packs: Sequence[Pack], n_workers: int) -> Iterator[Any]:
    """`map(function, packs)`, in order, with `n_workers` packs at once."""
    if n_workers == 1:
        return map(function, packs)
    return _thread_pool(os.getpid(), n_workers, torch.get_num_threads() // n_workers).map(function, packs)


@lru_cache(maxsize=1)
def _thread_pool(pid: int, n_workers: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads that each compute with `n_threads` threads of torch; a forked process (`pid`) needs new ones."""
    ready = Barrier(n_workers + 1)

    def start() -> None:
        torch.set_num_threads(n_threads)
        torch.get_num_threads()  # a thread fixes its number when it first asks, and the number changes below
        ready.wait()

    n_here = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="pack", initializer=start)
    for _ in range(n_workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(n_here)  # the last call also sets the number of threads that start later
    return pool


# ---------------------------------------------------------------- attention on packs


def attend_per_sample(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, pack: Pack, head_dim: int, scale: float
) -> Tensor:
    """Rotary embedding and causal attention within each sample.

    query [Q, H*d], key and value [T, Hk*d], cos and sin [T, d/2] -> [Q, H*d]
    """
    return _Attention.apply(query, key, value, cos, sin, pack, head_dim, scale)


class _Attention(torch.autograd.Function):
    """Attention by matrix products, sample by sample and over blocks of queries.

    Attention weights are saved for the backward pass while they are small compared to what a layer saves anyway, and
    recomputed for long samples. torch's flash kernel for CPUs takes longer at these lengths.
    """

    @staticmethod
    def forward(ctx, query, key, value, cos, sin, pack, head_dim, scale):  # type: ignore[no-untyped-def]
        ctx.pack, ctx.head_dim, ctx.scale = pack, head_dim, scale
        needs_grad, saved = any(ctx.needs_input_grad), []
        ctx.saves_weights = needs_grad and max(pack.lengths) <= _SAVED * head_dim
        mixed = torch.empty_like(query)  # [Q, H*d]
        scaled = cos * scale, sin * scale
        for q, k, with_queries in _samples(pack):
            sample_query = _to_heads(query[q], head_dim, *(table[with_queries] for table in scaled))  # [H, n, d]
            sample_key, sample_value = _to_heads(key[k], head_dim, cos[k], sin[k]), _to_heads(value[k], head_dim)
            if needs_grad:
                saved += [sample_query, sample_key, sample_value]
            into = mixed[q].unflatten(1, (-1, head_dim))  # [n, H, d]
            for rows, n_keys in _blocks(q, k):
                weights = _weights(sample_query[:, rows], sample_key[:, :n_keys])  # [Hk, G*n, m]
                block = torch.bmm(weights, sample_value[:, :n_keys])  # [Hk, G*n, d]
                into[rows] = block.view(len(sample_query), -1, head_dim).transpose(0, 1)
                if ctx.saves_weights:
                    saved.append(weights)
        if needs_grad:
            ctx.save_for_backward(cos, sin, *saved)
        return mixed

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        cos, sin, *tensors = ctx.saved_tensors
        pack, head_dim, saved = ctx.pack, ctx.head_dim, iter(tensors)
        scaled = cos * ctx.scale, sin * ctx.scale
        d_query = torch.empty_like(grad)
        d_key, d_value = (grad.new_empty(sum(pack.lengths), tensors[1].shape[0] * head_dim) for _ in range(2))
        for q, k, with_queries in _samples(pack):
            query, key, value = next(saved), next(saved), next(saved)
            n_kv = len(key)
            d_mixed = _to_heads(grad[q], head_dim)  # [H, n, d]
            into_query, into_key, into_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for rows, n_keys in _blocks(q, k):
                block_key, block_value = key[:, :n_keys], value[:, :n_keys]
                weights = next(saved) if ctx.saves_weights else _weights(query[:, rows], block_key)
                d_block = d_mixed[:, rows].reshape(n_kv, -1, head_dim)  # [Hk, G*n, d]
                into_value[:, :n_keys].baddbmm_(weights.transpose(1, 2), d_block)
                d_weights = torch.bmm(d_block, block_value.transpose(1, 2))  # [Hk, G*n, m]
                # torch has no public name for this kernel; written out it takes three passes over the weights.
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                into_query[:, rows] = torch.bmm(d_scores, block_key).view(len(query), -1, head_dim)
                into_key[:, :n_keys].baddbmm_(d_scores.transpose(1, 2), query[:, rows].reshape(n_kv, -1, head_dim))
            _from_heads(into_query, d_query[q], *(table[with_queries] for table in scaled))
            _from_heads(into_key, d_key[k], cos[k], sin[k])
            _from_heads(into_value, d_value[k])
        return d_query, d_key, d_value, *(None,) * 5


def _samples(pack: Pack) -> Iterator[tuple[slice, slice, slice]]:
    """For each sample the rows of its queries, the rows of its keys, and the rows of the tokens that have queries."""
    q_start = k_start = 0
    for length, first in zip(pack.lengths, pack.firsts, strict=True):
        q_stop, k_stop = q_start + length - first, k_start + length
        yield slice(q_start, q_stop), slice(k_start, k_stop), slice(k_start + first, k_stop)
        q_start, k_start = q_stop, k_stop


def _blocks(queries: slice, keys: slice) -> Iterator[tuple[slice, int]]:
    """(queries, number of keys that they see) of each block of a sample; the last n keys are the block's own."""
    n_queries, n_keys = queries.stop - queries.start, keys.stop - keys.start
    for rows in even_slices(n_queries, _BLOCK):
        yield rows, n_keys - n_queries + rows.stop


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Attention weights of a block: query [H, n, d] (scaled), key [Hk, m, d] -> [Hk, G*n, m], G = H / Hk."""
    n, m = query.shape[1], key.shape[1]
    scores = torch.bmm(query.reshape(len(key), -1, query.shape[2]), key.transpose(1, 2))
    # In fp32 at any precision: torch's masks and exponentials in bf16 are slower than converting back and forth.
    wide = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    wide.view(len(query), n, m)[:, :, m - n :].add_(_causal_bias(n, wide.dtype))
    return torch.softmax(wide, dim=-1).to(scores.dtype)


@lru_cache(maxsize=2 * _BLOCK)
def _causal_bias(n: int, dtype: torch.dtype) -> Tensor:
    """[n, n], -inf where the key comes after the query, else 0."""
    return torch.full((n, n), float("-inf"), dtype=dtype).triu_(1)


def _to_heads(flat: Tensor, head_dim: int, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
    """[T, H*d] -> [H, T, d] contiguous, rotated if cos and sin [T, d/2] are given."""
    heads = flat.unflatten(1, (-1, head_dim)).transpose(0, 1).contiguous()
    return heads if cos is None or sin is None else _rotate(heads, torch.empty_like(heads), cos, sin)


def _from_heads(heads: Tensor, out: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> None:
    """The gradient of `_to_heads`.  [H, T, d] -> [T, H*d], into `out`"""
    if cos is not None and sin is not None:
        heads = _rotate(heads, torch.empty_like(heads), cos, -sin)
    out.unflatten(1, (-1, heads.shape[2])).copy_(heads.transpose(0, 1))


def _rotate(heads: Tensor, out: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    (first, second), (into_first, into_second) = heads.split(half, dim=-1), out.split(half, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin)
    return out


# ---------------------------------------------------------------- feed-forward


def feed_forward(norm: Any, mlp: Any, states: Tensor) -> Tensor:
    """states + down(silu(gate(norm(states))) * up(norm(states))), all frozen linear layers.  [T, D] -> [T, D]"""
    weights = (linear.weight for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return _FeedForward.apply(states, norm.weight, norm.variance_epsilon, *weights)


class _FeedForward(torch.autograd.Function):
    """`_ROWS` tokens at a time; saves only states, gate and up."""

    @staticmethod
    def forward(ctx, states, norm, eps, gate_weight, up_weight, down_weight):  # type: ignore[no-untyped-def]
        inverse = inverse_rms(states, eps)
        gate, up = (states.new_empty(len(states), len(gate_weight)) for _ in range(2))
        out = torch.empty_like(states)
        for rows in even_slices(len(states), _ROWS):
            normed = scale_rows(states[rows], inverse[rows], norm)
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
        for rows in even_slices(len(states), _ROWS):
            d_gated = torch.mm(grad[rows], down_weight)
            d_up = functional.silu(gate[rows]).mul_(d_gated)
            d_gate = torch.ops.aten.silu_backward(d_gated.mul_(up[rows]), gate[rows])
            d_normed = torch.mm(d_gate, gate_weight).addmm_(d_up, up_weight)
            torch.add(norm_gradient(d_normed, states[rows], norm, inverse[rows]), grad[rows], out=d_states[rows])
        return d_states, None, None, None, None, None


# ---------------------------------------------------------------- generation, one token per row


def prefers_own_product(linear: Any, states: Tensor) -> bool:
    """Whether `product` is faster than the module: few rows in fp32 without gradients; a plain layer."""
    is_fp32 = states.dtype == torch.float32 and states.device.type == "cpu"
    low, high = (1, 16) if _HAS_AVX512 else (2, 7)
    is_few = is_fp32 and low <= len(states) <= high and not torch.is_grad_enabled()
    return is_few and type(linear) is nn.Linear and not hasattr(linear.weight, "ds_id")


def product(linear: Any, states: Tensor) -> Tensor:
    """linear(states) for a few rows.  [n, D] -> [n, E]

    Weights are read from memory twice as fast with the weights on the left; for a single row only if it is doubled.
    """
    rows = states.expand(2, -1) if len(states) == 1 else states
    # Row-major before and after: MKL is slow with the other order.
    out = torch.mm(linear.weight, rows.contiguous().t()).t()[: len(states)].contiguous()
    return out if linear.bias is None else out + linear.bias


def transposed_buffers(dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether keys [C, d] and values [C, d] are fastest to read if stored transposed: keys in 16 bits; values in fp32
    with AVX-512."""
    return dtype != torch.float32, dtype == torch.float32 and _HAS_AVX512


def attend_newest(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """One query per row: query [n, H, d], keys and values [n, Hk, C, d], bias [n, C] -> [n, H, d]"""
    n, n_heads, head_dim = query.shape
    n_kv = keys.shape[1]
    grouped = (query * scale).reshape(n * n_kv, n_heads // n_kv, head_dim)  # [n*Hk, G, d]
    if query.dtype == torch.float32 and _HAS_AVX512:
        scores = torch.bmm(keys.flatten(0, 1), grouped.transpose(1, 2))  # [n*Hk, C, G]
        scores.view(n, n_kv, *scores.shape[1:]).add_(bias[:, None, :, None])
        mixed = torch.bmm(values.transpose(2, 3).flatten(0, 1), scores.softmax(dim=1)).transpose(1, 2)  # [n*Hk, G, d]
    else:
        scores = torch.bmm(grouped, keys.transpose(2, 3).flatten(0, 1))  # [n*Hk, G, C]
        scores.view(n, n_kv, *scores.shape[1:]).add_(bias[:, None, None])
        weights = scores.softmax(dim=2, dtype=torch.float32).to(values.dtype)
        mixed = torch.bmm(weights, values.flatten(0, 1))  # [n*Hk, G, d]
    return mixed.reshape(n, n_heads, head_dim)
