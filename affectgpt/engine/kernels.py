"""Building blocks of a decoder layer on packed rows that run on any device: attention per sample, norm, gate, losses.

Where weights are frozen, each function saves no more for the backward pass than it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from affectgpt.engine.layout import Pack, bounds_of

# Elements of a norm that a CPU processes at once, so that its passes find them in the cache.
CPU_ELEMENTS = 1 << 17
# Logits at once: 64 MB in fp32; on a CPU what its cache holds.
_LOGITS, _CPU_LOGITS = 1 << 24, 1 << 20


def is_frozen(module: Any) -> bool:
    """Whether its weight is a plain tensor that does not train; a weight that ZeRO-3 has split needs its module."""
    return not module.weight.requires_grad and not hasattr(module.weight, "ds_id")


def is_frozen_linear(linear: nn.Module) -> bool:
    """Whether it is a frozen matrix product and nothing else: no LoRA, no bias, not quantized."""
    return type(linear) is nn.Linear and linear.bias is None and is_frozen(linear)


def even_slices(n: int, limit: int) -> Iterator[slice]:
    """0 to n in as few slices of at most `limit` as possible, of about equal length."""
    n_parts = -(-n // limit)
    return (slice(n * part // n_parts, n * (part + 1) // n_parts) for part in range(n_parts))


# ---------------------------------------------------------------- attention


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding.  heads [T, H, d], cos and sin [T, d/2] -> [T, H, d]"""
    first, second = heads.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend_per_sample(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float) -> Tensor:
    """Causal attention within each sample: FlashAttention in 16 bits if available, else torch's, sample by sample.

    query [Q, H, d], key and value [T, Hk, d] -> [Q, H, d]
    """
    if query.dtype in (torch.bfloat16, torch.float16) and (flash := _flash_varlen()) is not None:
        n_queries = pack.n_queries
        bounds = [
            torch.tensor(bounds_of(counts), dtype=torch.int32, device=query.device)
            for counts in (n_queries, pack.lengths)
        ]
        return flash(query, key, value, *bounds, max(n_queries), max(pack.lengths), scale)
    mixed = []
    for q, k, v in zip(query.split(pack.n_queries), key.split(pack.lengths), value.split(pack.lengths), strict=True):
        q, k, v = (heads.transpose(0, 1)[None] for heads in (q, k, v))  # [1, H, L, d]
        n, m = q.shape[2], k.shape[2]
        allowed = None if n == m else torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=n == m, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        mixed.append(out[0].transpose(0, 1))  # [L, H, d]
    return torch.cat(mixed)


@lru_cache(maxsize=1)
def _flash_varlen() -> Any:
    """FlashAttention over samples of unequal length: from the package flash_attn, else torch's own; None = neither."""
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


# ---------------------------------------------------------------- norm and gate


def is_step(states: Tensor) -> bool:
    """Whether these are so few tokens, without gradients, that tiling gains nothing; this path can be compiled."""
    return not torch.is_grad_enabled() and states.numel() <= CPU_ELEMENTS


def rms_norm(norm: Any, states: Tensor) -> Tensor:
    """Root-mean-square norm of a frozen module; a module that trains runs itself."""
    if not is_frozen(norm):
        return norm(states)
    if is_step(states):
        return scale_rows(states, inverse_rms(states, norm.variance_epsilon), norm.weight)
    return _RmsNorm.apply(states, norm.weight, norm.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps); saves x and one number per row."""

    @staticmethod
    def forward(ctx, states, weight, eps):  # type: ignore[no-untyped-def]
        inverse, out = inverse_rms(states, eps), torch.empty_like(states)
        for rows in _tiles(states):
            out[rows] = scale_rows(states[rows], inverse[rows], weight)
        ctx.save_for_backward(states, weight, inverse)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        states, weight, inverse = ctx.saved_tensors
        out = torch.empty_like(states)
        for rows in _tiles(states):
            out[rows] = norm_gradient(grad[rows], states[rows], weight, inverse[rows])
        return out, None, None


def _tiles(states: Tensor) -> Iterator[slice]:
    """Rows at once: all on a GPU, on a CPU as many as its cache holds several copies of."""
    on_cpu = states.device.type == "cpu"
    return even_slices(len(states), max(1, CPU_ELEMENTS // states.shape[-1] if on_cpu else len(states)))


def inverse_rms(states: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) of each row, at least in fp32.  [T, D] -> [T, 1]"""
    wide = torch.promote_types(states.dtype, torch.float32)
    square = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=wide).square_()
    return square.div_(states.shape[-1]).add_(eps).rsqrt_()


def scale_rows(states: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """The norm, given `inverse_rms`; rounded to the states' precision before the weight, as in transformers."""
    return (states * inverse).to(states.dtype).mul_(weight)


def norm_gradient(grad: Tensor, states: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    weighted = grad * weight
    dot = (weighted * states).sum(dim=-1, keepdim=True, dtype=inverse.dtype)
    slope = dot.mul_(inverse**3).div_(-states.shape[-1])  # [T, 1]
    return (weighted * inverse).addcmul_(states, slope).to(states.dtype)


def gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up"""
    return _Gated.apply(gate, up) if torch.is_grad_enabled() else functional.silu(gate).mul_(up)


class _Gated(torch.autograd.Function):
    """silu(gate) * up; saves the two."""

    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), functional.silu(gate).mul_(grad)


# ---------------------------------------------------------------- losses


TokenLoss = Callable[[Tensor, slice], Tensor]
"""(log-probabilities of some labels [n], which of all labels these are) -> the loss of each [n], from its own alone."""


def summed_loss(
    head: nn.Module, states: Tensor, targets: Tensor, token_loss: TokenLoss | None = None, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of targets [K] under the LLM's output layer at states [K, D].

    Args:
        token_loss: None = cross-entropy.
        first: the place of the first target among all labels.

    Returns:
        the sum, and the targets' log-probabilities [K] in fp32 without gradients.
    """
    if is_frozen_linear(head):
        return _FrozenHeadLoss.apply(states, head.weight, targets, token_loss, first)
    n_rows = _rows_at_once(head.out_features, states.device)
    losses, found = [], []
    for rows, wanted in zip(states.split(n_rows), targets.split(n_rows), strict=True):
        own = checkpoint(_chunk_log_probs, head, rows, wanted, use_reentrant=False)
        losses.append((-own if token_loss is None else token_loss(own, slice(first, first + len(own)))).sum())
        found.append(own.detach())
        first += len(own)
    return torch.stack(losses).sum(), torch.cat(found)


def _rows_at_once(vocabulary: int, device: torch.device) -> int:
    """Rows of logits at once; at least 64, which keep a matrix product busy."""
    return max(64, (_CPU_LOGITS if device.type == "cpu" else _LOGITS) // vocabulary)


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed losses; the gradient of the states is computed with the logits and kept instead of them."""

    @staticmethod
    def forward(ctx, states, weight, targets, token_loss, first):  # type: ignore[no-untyped-def]
        n_rows = _rows_at_once(len(weight), states.device)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        own = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), n_rows):
            part, wanted = slice(start, start + n_rows), targets[start : start + n_rows, None]
            logits = functional.linear(states[part], weight).float()  # [n, V]
            found = torch.log_softmax(logits, dim=-1)
            own[part] = found.gather(1, wanted)[:, 0]
            if token_loss is None:
                loss, slope = -own[part].sum(), None
            else:
                loss, slope = _with_slope(token_loss, own[part], first + start)
            total += loss
            if gradient is not None:
                rise = found.exp_()  # of minus the log-probability, along the logits
                rise.scatter_add_(1, wanted, rise.new_full((), -1.0).expand(wanted.shape))
                torch.mm(rise.to(weight.dtype), weight, out=gradient[part])
                if slope is not None:
                    gradient[part].mul_(-slope[:, None])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(own)
        return total, own

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(gradient.dtype), None, None, None, None


def _with_slope(token_loss: TokenLoss, log_probs: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and the derivative of each [n] by its log-probability."""
    with torch.enable_grad():
        leaf = log_probs.detach().clone().requires_grad_()
        total = token_loss(leaf, slice(first, first + len(leaf))).sum()
        return total.detach(), torch.autograd.grad(total, leaf)[0]


def log_probs(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of targets [K] under the LLM's output layer at states [K, D], in fp32.  -> [K]

    Logits are computed for a few rows at a time, and again in the backward pass.
    """
    n_rows = _rows_at_once(head.out_features, states.device)
    chunks = zip(states.split(n_rows), targets.split(n_rows), strict=True)
    return torch.cat([checkpoint(_chunk_log_probs, head, rows, wanted, use_reentrant=False) for rows, wanted in chunks])


def _chunk_log_probs(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return -functional.cross_entropy(head(states).float(), targets, reduction="none")
