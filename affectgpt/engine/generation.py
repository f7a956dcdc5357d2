"""Greedy generation for many prompts: no padding, a batch that is refilled as answers end, keys and values in place.

    prompts [L_i, D] --layers, packed--> keys and values of each row, first tokens
    then one token per row and step; when a row ends, the next prompt takes its place

The tokens are those of transformers' `generate` up to rounding, but

- prompts go through the LLM packed instead of padded, and through the last layer only where a prompt ends;
- a batch never waits for its longest answer;
- keys and values are in one buffer per layer, in the memory order that this device reads fastest, and nothing is copied
  when a token is added;
- a step calls the layers' submodules directly, without the masks, checks and outputs of a general forward method; torch
  can compile it.

The layers are those of `layers`, so LoRA, quantized layers and tied embeddings work as they do in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from affectgpt.engine import cpu, kernels, layers
from affectgpt.engine.buffers import KeyValueBuffer
from affectgpt.engine.layout import Pack

# Buffers grow by this many tokens: seldom, and without much memory for short answers.
_GROWTH = 64
# With compiled layers, which are compiled again for each size.
_COMPILED_GROWTH = 128
# Prompt tokens that go through the LLM at once.
_PROMPT_TOKENS = 4096
# Settings of a generation config that do not change a greedy answer, or that `greedy` gets as arguments.
_ALLOWED_SETTINGS = {
    "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "pad_token_id", "suppress_tokens",
    "temperature", "top_k", "top_p", "transformers_version", "use_cache",
}  # fmt: skip


@dataclass
class Prompt:
    """A prompt to continue.

    Attributes:
        key: returned with the answer.
        embeds: [L, D], without padding.
        rope_ids: [3, L] positions of a multimodal rotary embedding; None = 0 to L - 1. New tokens follow the last one.
    """

    key: Any
    embeds: Tensor
    max_new_tokens: int
    rope_ids: Tensor | None = None


def positions_of(prompts: Sequence[Any]) -> Tensor:
    """Positions of prompts in a row, [1, T]; [3, 1, T] if they have `rope_ids`, which all or none must have."""
    if all(prompt.rope_ids is None for prompt in prompts):
        return torch.cat([torch.arange(len(prompt.embeds)) for prompt in prompts])[None]
    return torch.cat([prompt.rope_ids for prompt in prompts], dim=1)[:, None]


def shift_of(prompt: Any) -> int:
    """The position of the first new token minus the number of tokens of the prompt."""
    return 0 if prompt.rope_ids is None else int(prompt.rope_ids[:, -1].max()) + 1 - len(prompt.embeds)


def can_generate(model: Any) -> bool:
    """Whether `greedy` gives the answers of `model.generate`.

    It does not for LLMs of other families, sliding windows, rotary embeddings that change with the length, settings of
    the generation config beyond stop and suppressed tokens, and weights that processes share (ZeRO-3).
    """
    config = model.language_model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    settings = {name for name in model.generation_config.to_diff_dict() if not name.startswith("_")}
    return (
        layers.supports(model.language_model)
        and layers.window_of(config) is None
        and rope in ("default", "linear", "llama3", "yarn")
        and not model.in_lockstep
        and settings <= _ALLOWED_SETTINGS
    )


@torch.no_grad()
def greedy(
    llm: Any,
    take: Callable[[int], Sequence[Prompt]],
    *,
    batch_size: int,
    stop_ids: Sequence[int],
    suppressed_ids: Sequence[int] = (),
    allowed_ids: Callable[[Any, Sequence[int]], Sequence[int]] | None = None,
    on_tokens: Callable[[Any, Sequence[int]], None] | None = None,
    compiled: bool = False,
) -> Iterator[tuple[Any, list[int]]]:
    """Continue prompts by the most likely token until a stop token or their limit.

    Args:
        take: returns at most the given number of prompts; fewer = there are no more.
        batch_size: rows that are continued together.
        suppressed_ids: tokens that are never generated.
        allowed_ids: (key, new tokens so far) -> the tokens that may follow, at least one; None = all.
        on_tokens: called after each step with the key and all new tokens so far of every active prompt.
        compiled: layers are compiled by torch while more than half of the rows are active. Each size of the buffers,
            128 tokens apart, takes some seconds to compile.

    Yields:
        (key, new tokens with the stop token) of each prompt as it ends.
    """
    rows = _Rows(llm, batch_size, compiled=compiled)
    head, stops = llm.get_output_embeddings(), frozenset(stop_ids)
    suppressed = torch.tensor(list(suppressed_ids), dtype=torch.int64, device=rows.tokens.device)
    # Free rows are filled a few at a time: on a GPU one prompt takes as long as several.
    few = max(1, batch_size // 8)
    has_more = True

    def most_likely(states: Tensor, written: Sequence[tuple[Any, Sequence[int]]]) -> Tensor:
        """[n, D] and (key, new tokens so far) of each row -> [n]"""
        logits = layers.linear_layer(head, states)
        if len(suppressed):
            logits[:, suppressed] = float("-inf")
        if allowed_ids is not None:
            for row, (key, tokens) in zip(logits, written, strict=True):
                allowed = torch.tensor(list(allowed_ids(key, tokens)), device=row.device)
                kept = row[allowed]
                row.fill_(float("-inf"))[allowed] = kept
        return logits.argmax(dim=-1)

    def finished() -> list[tuple[Any, list[int]]]:
        if on_tokens is not None:
            for row in rows.active:
                on_tokens(row.key, row.tokens)
        return rows.pop_finished(stops)

    while True:
        n_free = batch_size - len(rows)
        if has_more and (n_free >= few or not len(rows)):
            prompts = list(take(n_free))
            has_more = len(prompts) == n_free
            for group in _groups(prompts):
                rows.add(group, most_likely(rows.prefill(group), [(prompt.key, ()) for prompt in group]))
            yield from finished()
            if not len(rows) and has_more:
                continue
        if not len(rows):
            return
        rows.append(most_likely(rows.step(), [(row.key, row.tokens) for row in rows.active]))
        yield from finished()


def _groups(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Prompts in order, in groups of at most `_PROMPT_TOKENS` tokens; a longer prompt is a group of its own."""
    group: list[Prompt] = []
    for prompt in prompts:
        if group and sum(len(each.embeds) for each in [*group, prompt]) > _PROMPT_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


@dataclass
class _Row:
    """A prompt that is being continued; `n_cached` of its tokens have keys and values in the buffers."""

    key: Any
    limit: int
    n_cached: int
    tokens: list[int] = field(default_factory=list)


class _Rows:
    """The active rows, without gaps: the first n slots of the buffers.

    Attributes:
        tokens: the newest token of each row [n], not cached yet.
        lengths: `n_cached` of each row [n].
        shifts: what the position of a new token is beyond `n_cached` [n]; 0 without `Prompt.rope_ids`.
    """

    def __init__(self, llm: Any, n_slots: int, *, compiled: bool = False) -> None:
        self._llm, self._n_slots, self._compiled = llm, n_slots, compiled
        self._embedding = llm.get_input_embeddings()
        self._device = self._embedding.weight.device
        growth = _COMPILED_GROWTH if compiled else _GROWTH
        self._buffers = [
            KeyValueBuffer(n_slots, llm.config.num_key_value_heads, layer.self_attn.head_dim, growth)
            for layer in llm.model.layers
        ]
        self.active: list[_Row] = []
        self.tokens = self.lengths = self.shifts = torch.zeros(0, dtype=torch.int64, device=self._device)

    def __len__(self) -> int:
        return len(self.active)

    def prefill(self, prompts: Sequence[Prompt]) -> Tensor:
        """Run prompts through the LLM and cache their keys and values after the last row; final states [k, D].

        `add` must follow.
        """
        lengths = tuple(len(prompt.embeds) for prompt in prompts)
        pack = Pack(0, lengths, tuple(length - 1 for length in lengths), _NONE)
        embeds = torch.cat([prompt.embeds for prompt in prompts])[None]  # [1, T, D]
        positions = positions_of(prompts).to(self._device)
        attends = [partial(buffer.attend_and_store, len(self)) for buffer in self._buffers]
        return layers.final_states(self._llm, embeds, positions, pack, attends)

    def add(self, prompts: Sequence[Prompt], first: Tensor) -> None:
        """Add a row for each of the prompts of the last `prefill`; `first` [k] are their first tokens."""
        new = [_Row(prompt.key, prompt.max_new_tokens, len(prompt.embeds)) for prompt in prompts]
        self.active += new
        self.lengths = torch.cat([self.lengths, torch.tensor([row.n_cached for row in new], device=self._device)])
        self.shifts = torch.cat([self.shifts, torch.tensor(list(map(shift_of, prompts)), device=self._device)])
        self.tokens = torch.cat([self.tokens, first])
        _append(new, first)

    def step(self) -> Tensor:
        """Run the newest token of each row through the LLM.  -> [n, D]"""
        n, longest = len(self), max(row.n_cached for row in self.active) + 1
        compiled = self._compiled and 2 * n > self._n_slots
        # Compiled code has one shape: all slots, and all tokens that the buffers can hold.
        n_slots = self._n_slots if compiled else n
        tokens, lengths, shifts = (
            functional.pad(each, (0, n_slots - n)) for each in (self.tokens, self.lengths, self.shifts)
        )
        states = self._embedding(tokens)  # [P, D]
        buffers = [buffer.view(n_slots, longest, complete=compiled) for buffer in self._buffers]
        unseen = torch.arange(buffers[0][0].shape[2], device=self._device) > lengths[:, None]  # [P, C]
        bias = torch.zeros(unseen.shape, dtype=states.dtype, device=self._device).masked_fill_(unseen, float("-inf"))
        decoder = self._llm.model
        rotation = layers.rotary_tables(decoder, states[None], (lengths + shifts)[None])
        step = _compiled_step(n_slots, bias.shape[1]) if compiled else _layer_step
        for layer, (keys, values) in zip(decoder.layers, buffers, strict=True):
            states = step(layer, states, *rotation, lengths, bias, keys, values)
        return kernels.rms_norm(decoder.norm, states[:n])

    def append(self, tokens: Tensor) -> None:
        """Append to each row the token that follows from the last `step`."""
        self.tokens, self.lengths = tokens, self.lengths + 1
        for row in self.active:
            row.n_cached += 1
        _append(self.active, tokens)

    def pop_finished(self, stops: frozenset[int]) -> list[tuple[Any, list[int]]]:
        """Remove the rows that have ended; the last rows move into their slots."""
        ended = [
            slot for slot, row in enumerate(self.active) if row.tokens[-1] in stops or len(row.tokens) >= row.limit
        ]
        if not ended:
            return []
        done = [(self.active[slot].key, self.active[slot].tokens) for slot in ended]
        order = list(range(len(self)))
        for slot in reversed(ended):
            order[slot] = order[-1]
            order.pop()
        for buffer in self._buffers:
            buffer.move(order)
        self.active = [self.active[slot] for slot in order]
        remaining = torch.tensor(order, dtype=torch.int64, device=self._device)
        self.tokens, self.lengths = self.tokens[remaining], self.lengths[remaining]
        self.shifts = self.shifts[remaining]
        return done


_NONE = torch.empty(0, dtype=torch.int64)
_NEWEST = Pack(0, (1,), (0,), _NONE)


def _append(rows: Sequence[_Row], tokens: Tensor) -> None:
    for row, token in zip(rows, tokens.tolist(), strict=True):
        row.tokens.append(token)


def _layer_step(
    layer: Any, states: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor, bias: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """One decoder layer for the newest token of each row, whose key and value it also stores.

    Args:
        states: [n, D]; cos, sin: [n, d/2].
        lengths: cached tokens of each row [n].
        bias: [n, C], -inf where a row has no token yet.
        keys, values: [n, Hk, C, d], written in place.

    Returns:
        [n, D]
    """

    def attend(
        query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, rows: Any, pack: Pack, head_dim: int,
        scale: float,
    ) -> Tensor:  # fmt: skip
        query, key, value = (flat.unflatten(1, (-1, head_dim)) for flat in (query, key, value))  # [n, H, d]
        at = torch.arange(len(lengths), device=lengths.device)
        keys[at, :, lengths], values[at, :, lengths] = kernels.rotate(key, cos, sin), value
        return _attend_newest(kernels.rotate(query, cos, sin), keys, values, bias, scale).flatten(1)

    return layers.decoder_layer(layer, _NEWEST, states, cos, sin, attend=attend)


@lru_cache(maxsize=64)
def _compiled_step(n_slots: int, n_tokens: int) -> Callable[..., Tensor]:
    """`_layer_step` compiled by torch for one size of the buffers; all layers share it."""
    # torch compiles at most eight shapes of one function, so each shape gets a copy of its own. Dynamic shapes are much
    # slower: the compiler then leaves attention to general matrix products.
    copy = FunctionType(_layer_step.__code__.replace(), _layer_step.__globals__, _layer_step.__name__)
    return torch.compile(copy, dynamic=False)


def _attend_newest(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """One query per row: query [n, H, d], keys and values [n, Hk, C, d], bias [n, C] -> [n, H, d]"""
    if query.device.type == "cpu":
        return cpu.attend_newest(query, keys, values, bias, scale)
    mixed = functional.scaled_dot_product_attention(
        query[:, :, None], keys, values, attn_mask=bias[:, None, None], scale=scale,
        enable_gqa=keys.shape[1] != query.shape[1],
    )  # fmt: skip
    return mixed[:, :, 0]
