"""Greedy generation for many prompts: no padding, a batch that is refilled as answers end, keys and values in place.

    prompts [L_i, D] --layers of `packing`, prompt after prompt--> keys and values of each row, first token
    then a token a row and step; a row that has ended makes room for the next prompt

What differs from transformers' `generate`, and changes no token beyond what rounding decides:

- Prompts go through the LLM packed instead of padded, the last layer only where a prompt ends.
- A batch never waits for its longest answer: rows that have ended leave, waiting prompts take their places.
- Keys and values lie in one buffer a layer, in the order in which the products of this machine read them fastest;
  nothing is copied when a token is added.
- One pass over the layers' own submodules a token, without the masks, checks and outputs of a general forward method;
  torch can compile it.

The layers are those that `packing` knows, so LoRA, quantized layers and tied embeddings work as they do in training.
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

from affectgpt.engine import kernels, packing
from affectgpt.engine.packing import Pack

# Buffers grow by this many tokens, so that growing costs little and short answers little memory.
_GROWTH = 64
# And by this many where each size has to be compiled for.
_COMPILED_GROWTH = 128
# Tokens of prompts that go through the LLM at once.
_PROMPT_TOKENS = 4096
# What a generation config may hold without changing a greedy answer, beside what `greedy` is given.
_WITHOUT_EFFECT = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "pad_token_id",
    "suppress_tokens", "temperature", "top_k", "top_p", "transformers_version", "use_cache",
}  # fmt: skip


@dataclass
class Prompt:
    """What is to be continued.

    Attributes:
        key: returned with the answer.
        embeds: [L, D], without padding.
        max_new_tokens: the answer is cut behind so many.
    """

    key: Any
    embeds: Tensor
    max_new_tokens: int


def knows(model: Any) -> bool:
    """Whether `greedy` gives what `model.generate` would give; else that is to be asked.

    Not known are LLMs of other families, sliding windows, rotary embeddings that change with the length, settings of
    the generation config beyond stop and suppressed tokens, and weights that several processes share (ZeRO-3).
    """
    llm = model.language_model
    config = llm.config
    window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        packing.knows(llm)
        and not window
        and rope in ("default", "linear", "llama3", "yarn")
        and not model.in_lockstep
        and not model.generation_config.to_diff_dict().keys() - _WITHOUT_EFFECT
    )


@torch.no_grad()
def greedy(
    llm: Any,
    take: Callable[[int], Sequence[Prompt]],
    *,
    batch_size: int,
    stop_ids: Sequence[int],
    suppressed_ids: Sequence[int] = (),
    watch: Callable[[Any, Sequence[int]], None] | None = None,
    compiles: bool = False,
) -> Iterator[tuple[Any, list[int]]]:
    """Continue prompts by the likeliest token until a stop token or their limit.

    Args:
        take: gives the next prompts, at most so many as asked; none = there are no more.
        batch_size: rows that are continued together.
        suppressed_ids: tokens that are never written.
        watch: is called after each pass with the key and all new tokens so far of every open prompt.
        compiles: layers run compiled by torch while more than half of the rows are taken. It takes some seconds for
            each size that the buffers grow to, 128 tokens apart.

    Yields:
        (key, new tokens with the stop token) of each prompt as it ends.
    """
    rows = _Rows(llm, batch_size, compiles=compiles)
    head, stops = llm.get_output_embeddings(), frozenset(stop_ids)
    suppressed = torch.tensor(list(suppressed_ids), dtype=torch.int64, device=rows.tokens.device)
    # Room is filled a few rows at a time: a pass over one prompt alone costs a GPU as much as one over some.
    few = max(1, batch_size // 8)
    waiting = True

    def chosen(states: Tensor) -> Tensor:
        """The likeliest tokens.  [n, D] -> [n]"""
        logits = kernels.product(head, states)
        if len(suppressed):
            logits[:, suppressed] = float("-inf")
        return logits.argmax(dim=-1)

    def ended() -> list[tuple[Any, list[int]]]:
        if watch is not None:
            for row in rows._rows:
                watch(row.key, row.tokens)
        return rows.close_ended(stops)

    while True:
        room = batch_size - len(rows)
        if waiting and (room >= few or not len(rows)):
            prompts = list(take(room))
            waiting = len(prompts) == room
            for some in _portions(prompts):
                rows.open(some, chosen(rows.read(some)))
            yield from ended()
            if not len(rows) and waiting:
                continue
        if not len(rows):
            return
        rows.add(chosen(rows.step()))
        yield from ended()


def _portions(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
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
    """A prompt that is being continued; `n_kept` of its tokens have keys and values in the buffers."""

    key: Any
    limit: int
    n_kept: int
    tokens: list[int] = field(default_factory=list)


class _Rows:
    """The rows that are being continued, without gaps: the first n places of the buffers.

    Attributes:
        tokens: the newest token of each row [n]; it is not kept yet.
        lengths: `n_kept` of each row [n].
    """

    def __init__(self, llm: Any, n_places: int, *, compiles: bool = False) -> None:
        self._llm, self._n_places, self._compiles = llm, n_places, compiles
        self._table = llm.get_input_embeddings()
        self._device = self._table.weight.device
        growth = _COMPILED_GROWTH if compiles else _GROWTH
        self._memory = [
            _Memory(n_places, llm.config.num_key_value_heads, layer.self_attn.head_dim, growth)
            for layer in llm.model.layers
        ]
        self._rows: list[_Row] = []
        self.tokens = self.lengths = torch.zeros(0, dtype=torch.int64, device=self._device)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, prompts: Sequence[Prompt]) -> Tensor:
        """Take prompts through the LLM and keep their keys and values behind the last row; states at their ends [k, D].

        `open` is to follow.
        """
        lengths = tuple(len(prompt.embeds) for prompt in prompts)
        pack = Pack(0, lengths, tuple(length - 1 for length in lengths), _NONE)
        embeds = torch.cat([prompt.embeds for prompt in prompts])[None]  # [1, T, D]
        positions = torch.cat([torch.arange(length) for length in lengths]).to(self._device)[None]
        attends = [partial(memory.read, len(self)) for memory in self._memory]
        return packing.answer_states(self._llm, embeds, positions, pack, attends)

    def open(self, prompts: Sequence[Prompt], first: Tensor) -> None:
        """Begin a row for each of the prompts that were read last; `first` [k] are their first tokens."""
        new = [_Row(prompt.key, prompt.max_new_tokens, len(prompt.embeds)) for prompt in prompts]
        self._rows += new
        self.lengths = torch.cat([self.lengths, torch.tensor([row.n_kept for row in new], device=self._device)])
        self.tokens = torch.cat([self.tokens, first])
        _note(new, first)

    def step(self) -> Tensor:
        """Take the newest token of each row through the LLM.  -> [n, D]"""
        n, longest = len(self), max(row.n_kept for row in self._rows) + 1
        compiled = self._compiles and 2 * n > self._n_places
        # Compiled code is made for one shape: all places count, and all that the buffers hold.
        n_places = self._n_places if compiled else n
        tokens, lengths = (functional.pad(each, (0, n_places - n)) for each in (self.tokens, self.lengths))
        states = self._table(tokens)  # [P, D]
        buffers = [memory.buffers(n_places, longest, whole=compiled) for memory in self._memory]
        unseen = torch.arange(buffers[0][0].shape[2], device=self._device) > lengths[:, None]  # [P, C]
        bias = torch.zeros(unseen.shape, dtype=states.dtype, device=self._device).masked_fill_(unseen, float("-inf"))
        decoder = self._llm.model
        rotation = packing.rotation_of(decoder, states[None], lengths[None])
        step = _compiled(n_places, bias.shape[1]) if compiled else _step
        for layer, (keys, values) in zip(decoder.layers, buffers, strict=True):
            states = step(layer, states, *rotation, lengths, bias, keys, values)
        return kernels.rms_norm(decoder.norm, states[:n])

    def add(self, tokens: Tensor) -> None:
        """Append the token that `step` has led to to each row."""
        self.tokens, self.lengths = tokens, self.lengths + 1
        for row in self._rows:
            row.n_kept += 1
        _note(self._rows, tokens)

    def close_ended(self, stops: frozenset[int]) -> list[tuple[Any, list[int]]]:
        """Take out the rows that have ended; the last ones move into their places."""
        ended = [
            place for place, row in enumerate(self._rows) if row.tokens[-1] in stops or len(row.tokens) >= row.limit
        ]
        if not ended:
            return []
        done = [(self._rows[place].key, self._rows[place].tokens) for place in ended]
        order = list(range(len(self)))
        for place in reversed(ended):
            order[place] = order[-1]
            order.pop()
        for memory in self._memory:
            memory.move(order)
        self._rows = [self._rows[place] for place in order]
        kept = torch.tensor(order, dtype=torch.int64, device=self._device)
        self.tokens, self.lengths = self.tokens[kept], self.lengths[kept]
        return done


_NONE = torch.empty(0, dtype=torch.int64)
_NEWEST = Pack(0, (1,), (0,), _NONE)


def _note(rows: Sequence[_Row], tokens: Tensor) -> None:
    for row, token in zip(rows, tokens.tolist(), strict=True):
        row.tokens.append(token)


def _step(
    layer: Any, states: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor, bias: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """One decoder layer for the newest token of each row, whose key and value it keeps, too.

    Args:
        states: [n, D]; cos, sin: [n, d/2].
        lengths: tokens that each row keeps [n].
        bias: [n, C], -inf where a row has nothing yet.
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
        keys[at, :, lengths], values[at, :, lengths] = kernels.rotated(key, cos, sin), value
        return _attend(kernels.rotated(query, cos, sin), keys, values, bias, scale).flatten(1)

    return packing.layer_states(layer, _NEWEST, states, cos, sin, attend=attend)


@lru_cache(maxsize=64)
def _compiled(n_places: int, n_tokens: int) -> Callable[..., Tensor]:
    """`_step` compiled by torch for so many rows and tokens in the buffers, for all layers alike."""
    # Of one function torch compiles no more than eight shapes, and then none; a copy for each has but one. Shapes that
    # may vary are slower by far: the compiler then leaves attention to general matrix products.
    own = FunctionType(_step.__code__.replace(), _step.__globals__, _step.__name__)
    return torch.compile(own, dynamic=False)


class _Memory:
    """Keys and values of one layer for all places: [P, Hk, C, d] each, whatever their order in memory.

    Of all orders a CPU's matrix products read keys as [C, d] and values as [d, C] fastest in fp32, the other way round
    in bf16 (docs/speed.md).
    """

    def __init__(self, n_places: int, n_kv_heads: int, head_dim: int, growth: int) -> None:
        self._n_places, self._n_kv_heads, self._head_dim, self._growth = n_places, n_kv_heads, head_dim, growth
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def _reserve(self, n_tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with room for `n_tokens` a row; `like` gives type and device."""
        if self._keys is None or self._values is None or self._keys.shape[2] < n_tokens:
            n_tokens = self._growth * (n_tokens // self._growth + 1)
            shape = (self._n_places, self._n_kv_heads, n_tokens, self._head_dim)
            on_cpu, wide = like.device.type == "cpu", like.dtype == torch.float32
            self._keys = _grown(self._keys, shape, like, transposed=on_cpu and not wide)
            self._values = _grown(self._values, shape, like, transposed=on_cpu and wide)
        return self._keys, self._values

    def read(
        self, place: int, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, rows: Tensor | None,
        pack: Pack, head_dim: int, scale: float,
    ) -> Tensor:  # fmt: skip
        """`kernels.attend`, and keep keys and values of the pack's prompts at `place` and behind."""
        rotated = kernels.rotated(key.unflatten(1, (-1, head_dim)), cos, sin)  # [T, Hk, d]
        keys, values = self._reserve(max(pack.lengths) + 1, rotated)
        plain = value.unflatten(1, (-1, head_dim))
        parts = zip(rotated.split(pack.lengths), plain.split(pack.lengths), strict=True)
        for at, (some_keys, some_values) in enumerate(parts, place):
            keys[at, :, : len(some_keys)] = some_keys.transpose(0, 1)
            values[at, :, : len(some_values)] = some_values.transpose(0, 1)
        return kernels.attend(query, key, value, cos, sin, rows, pack, head_dim, scale)

    def buffers(self, n: int, n_tokens: int, *, whole: bool) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `n` places, with room for `n_tokens` each and (unless `whole`) for no more."""
        assert self._keys is not None, "nothing was read"
        keys, values = self._reserve(n_tokens, self._keys)
        return (keys[:n], values[:n]) if whole else (keys[:n, :, :n_tokens], values[:n, :, :n_tokens])

    def move(self, order: Sequence[int]) -> None:
        """Put the row at place `order[i]` to place i."""
        for buffer in (self._keys, self._values):
            for place, source in enumerate(order):
                if buffer is not None and place != source:
                    buffer[place] = buffer[source]


def _grown(old: Tensor | None, shape: tuple[int, ...], like: Tensor, *, transposed: bool) -> Tensor:
    """Zeros of `shape` [P, Hk, C, d] with what `old` holds; `transposed` in memory: [P, Hk, d, C]."""
    if transposed:
        new = like.new_zeros(*shape[:2], shape[3], shape[2]).transpose(2, 3)
    else:
        new = like.new_zeros(shape)
    if old is not None:
        new[:, :, : old.shape[2]] = old
    return new


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """One query a row: query [n, H, d], keys and values [n, Hk, C, d], bias [n, C] -> [n, H, d]"""
    n, n_heads, head_dim = query.shape
    n_kv = keys.shape[1]
    if query.device.type != "cpu":
        mixed = functional.scaled_dot_product_attention(
            query[:, :, None], keys, values, attn_mask=bias[:, None, None], scale=scale, enable_gqa=n_kv != n_heads
        )
        return mixed[:, :, 0]
    grouped = (query * scale).reshape(n * n_kv, n_heads // n_kv, head_dim)  # [n*Hk, G, d]
    if query.dtype == torch.float32:
        scores = torch.bmm(keys.flatten(0, 1), grouped.transpose(1, 2))  # [n*Hk, C, G]
        scores.view(n, n_kv, *scores.shape[1:]).add_(bias[:, None, :, None])
        mixed = torch.bmm(values.transpose(2, 3).flatten(0, 1), scores.softmax(dim=1)).transpose(1, 2)  # [n*Hk, G, d]
    else:
        scores = torch.bmm(grouped, keys.transpose(2, 3).flatten(0, 1))  # [n*Hk, G, C]
        scores.view(n, n_kv, *scores.shape[1:]).add_(bias[:, None, None])
        weights = scores.softmax(dim=2, dtype=torch.float32).to(values.dtype)
        mixed = torch.bmm(weights, values.flatten(0, 1))  # [n*Hk, G, d]
    return mixed.reshape(n, n_heads, head_dim)
