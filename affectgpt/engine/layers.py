"""The decoder layers of LLaMA, Mistral, Qwen2, Qwen3 and Qwen2.5-Omni in transformers, run on a packed row without
padding.

The layers' own submodules are called, so that LoRA, quantized layers and weights that ZeRO-3 has split work as usual.
On a CPU some steps have their own version, see `cpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from affectgpt.engine import cpu, kernels
from affectgpt.engine.layout import Pack, bounds_of
from affectgpt.engine.lora import Dropout, products

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen2_5_omni_text")
"""Model types of transformers whose decoder layers `decoder_layer` reproduces."""


def supports(llm: Any) -> bool:
    """Whether `final_states` computes what this LLM's own forward method computes."""
    config = llm.config
    return (
        config.model_type in FAMILIES
        and getattr(config, "hidden_act", None) == "silu"
        and not getattr(config, "attention_dropout", 0.0)
        and hasattr(llm, "model")
        and hasattr(llm, "lm_head")
    )


def window_of(config: Any) -> int | None:
    """The LLM's sliding window in tokens; None = it has none."""
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def final_states(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    pack: Pack,
    attends: Sequence[Callable[..., Tensor]] | None = None,
    seed: int | None = None,
) -> Tensor:
    """Final states [Q, D] of the tokens `pack.queries()`, from embeds [1, T, D] with positions [1, T] or [3, 1, T].

    Args:
        seed: of the dropout of LoRA, from 0 to 2**62.
        attends: for each layer what replaces `attend`; generation stores keys and values there.
    """
    decoder = llm.model
    rotation = rotary_tables(decoder, embeds, position_ids)
    states, all_queries, last = embeds[0], pack.with_all_queries(), len(decoder.layers) - 1
    starts = [pack.start + start for start in bounds_of(pack.lengths)[:-1]]
    for number, layer in enumerate(decoder.layers):
        now = pack if number == last else all_queries
        run = partial(
            decoder_layer,
            layer,
            now,
            attend=attend if attends is None else attends[number],
            dropout=None if seed is None else Dropout(seed, number, starts, now.lengths, now.n_queries),
        )
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            states = checkpoint(run, states, *rotation, use_reentrant=False)
        else:
            states = run(states, *rotation)
    return kernels.rms_norm(decoder.norm, states)


def rotary_tables(decoder: Any, embeds: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary embedding, [T, d/2] each, in the dtype of `embeds`.

    Args:
        position_ids: [1, T], or [3, 1, T] in time, height and width of a multimodal rotary embedding.
    """
    cos, sin = (table[0] for table in decoder.rotary_emb(embeds, position_ids=position_ids))  # [T, d], equal halves
    half = cos.shape[-1] // 2
    return cos[:, :half].contiguous(), sin[:, :half].contiguous()


def decoder_layer(
    layer: Any,
    pack: Pack,
    states: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    attend: Callable[..., Tensor],
    dropout: Dropout | None = None,
) -> Tensor:
    """One decoder layer.  [T, D] -> [Q, D], the rows of the tokens that have queries

    Args:
        attend: `attend`, or what replaces it.
        dropout: of LoRA.
    """
    attention = layer.self_attn
    normed = kernels.rms_norm(layer.input_layernorm, states)  # [T, D]
    rows = None
    if any(pack.firsts):
        key, value = products((attention.k_proj, attention.v_proj), normed, dropout, 0)  # [T, Hk*d]
        rows = pack.queries().to(states.device)
        states, normed = states[rows], normed[rows]  # [Q, D]
        (query,) = products((attention.q_proj,), normed, dropout, 1)  # [Q, H*d]
    else:
        query, key, value = products((attention.q_proj, attention.k_proj, attention.v_proj), normed, dropout, 0)
    if hasattr(attention, "q_norm"):  # Qwen3 normalizes each head
        query, key = (
            kernels.rms_norm(norm, heads.view(-1, attention.head_dim)).view_as(heads)
            for norm, heads in ((attention.q_norm, query), (attention.k_norm, key))
        )
    mixed = attend(query, key, value, cos, sin, rows, pack, attention.head_dim, attention.scaling)  # [Q, H*d]
    states = states + products((attention.o_proj,), mixed, dropout, 2)[0]
    return feed_forward(layer.post_attention_layernorm, layer.mlp, states, dropout)


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
        rows: positions of the queries in the pack; None = all.

    Returns:
        [Q, H*d]
    """
    if query.device.type == "cpu":
        return cpu.attend_per_sample(query, key, value, cos, sin, pack, head_dim, scale)
    at = slice(None) if rows is None else rows
    query, key, value = (heads.unflatten(1, (-1, head_dim)) for heads in (query, key, value))  # [T, H, d]
    query, key = kernels.rotate(query, cos[at], sin[at]), kernels.rotate(key, cos, sin)
    return kernels.attend_per_sample(query, key, value, pack, scale).flatten(1)


def linear_layer(linear: Any, states: Tensor) -> Tensor:
    """linear(states).  [n, D] -> [n, E]"""
    return cpu.product(linear, states) if cpu.prefers_own_product(linear, states) else linear(states)


def feed_forward(norm: Any, mlp: Any, states: Tensor, dropout: Dropout | None = None) -> Tensor:
    """states + down(silu(gate(norm(states))) * up(norm(states))).  [T, D] -> [T, D]"""
    if (
        not kernels.is_step(states)
        and states.device.type == "cpu"
        and kernels.is_frozen(norm)
        and all(map(kernels.is_frozen_linear, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)))
    ):
        return cpu.feed_forward(norm, mlp, states)
    normed = kernels.rms_norm(norm, states)
    gated = kernels.gate_up(*products((mlp.gate_proj, mlp.up_proj), normed, dropout, 3))
    return states + products((mlp.down_proj,), gated, dropout, 4)[0]
