"""Several answers to each prompt: it goes through the LLM once, and its keys and values are read once for all answers.

    prompts [L_i, D] --layers, packed--> keys and values of each prompt, logits of its first new token
    then one token per answer and step: answers to one prompt are neighbours, so its keys meet all of their queries in
    one matrix product; only the keys and values of an answer's own tokens are its own

An answer that ends makes room for one to the next prompt. How a token is chosen from the logits is the caller's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from affectgpt.engine import kernels, layers
from affectgpt.engine.buffers import KeyValueBuffer
from affectgpt.engine.generation import positions_of, shift_of
from affectgpt.engine.layout import Pack

# Buffers of the answers' own tokens grow by this many, up to the longest answer: each time all of it is copied.
_GROWTH = 128
# Prompt tokens that go through the LLM at once.
_PROMPT_TOKENS = 4096


@dataclass
class Group:
    """A prompt and the answers to it.

    Attributes:
        keys: one per answer, returned with it.
        embeds: [L, D], without padding.
        rope_ids: [3, L], see `generation.Prompt`.
    """

    keys: Sequence[Any]
    embeds: Tensor
    max_new_tokens: int
    rope_ids: Tensor | None = None


@dataclass(eq=False)
class _Prefix:
    """A prompt in the LLM: for each layer its keys [Hk, d, L] and values [Hk, L, d]; `logits` [V] of its next token,
    whose position is `end`."""

    end: int
    limit: int
    waiting: deque[Any]
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None


@dataclass(eq=False)
class Row:
    """An answer that is being written: its key and its tokens so far."""

    key: Any
    prefix: _Prefix
    tokens: list[int] = field(default_factory=list)


Choose = Callable[[Tensor, Sequence[Row]], Tensor]
"""(logits [n, V], the rows that they belong to) -> the next token of each [n]."""


@torch.no_grad()
def continue_groups(
    llm: Any,
    take: Callable[[], Group | None],
    choose: Choose,
    *,
    batch_size: int,
    stop_ids: Sequence[int],
    suppressed_ids: Sequence[int] = (),
) -> Iterator[tuple[Any, list[int]]]:
    """Continue each prompt by several answers until a stop token or their limit.

    Args:
        take: the next prompt; None = there are no more.
        batch_size: answers that are written together; a group may be larger.
        suppressed_ids: tokens that are never generated.

    Yields:
        (key, new tokens with the stop token) of each answer as it ends.
    """
    state, head, stops = _Active(llm, batch_size), llm.get_output_embeddings(), frozenset(stop_ids)
    suppressed = torch.tensor(list(suppressed_ids), dtype=torch.int64, device=state.tokens.device)
    # Free slots are filled a few at a time: one prompt takes almost as long as several.
    few, has_more = max(1, batch_size // 4), True

    def logits_of(states: Tensor) -> Tensor:
        logits = layers.linear_layer(head, states)
        if len(suppressed):
            logits[:, suppressed] = float("-inf")
        return logits

    while True:
        n_free = batch_size - len(state.rows)
        if n_free >= few or not state.rows:
            n_waiting, new = sum(len(prefix.waiting) for prefix in state.prefixes), []
            while has_more and n_waiting < n_free:
                group = take()
                has_more = group is not None
                if group is not None and group.keys:
                    new.append(group)
                    n_waiting += len(group.keys)
            for some in _at_once(new):
                state.prefill(some, logits_of)
            state.start(n_free, choose)
            yield from state.pop_finished(stops)
        if state.rows:
            state.append(choose(logits_of(state.step()), state.rows))
            yield from state.pop_finished(stops)
        elif not has_more and not state.prefixes:
            return


def _at_once(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups in order, as many at once as have `_PROMPT_TOKENS` tokens; a longer prompt comes alone."""
    some: list[Group] = []
    for group in groups:
        if some and sum(len(each.embeds) for each in [*some, group]) > _PROMPT_TOKENS:
            yield some
            some = []
        some.append(group)
    if some:
        yield some


class _Active:
    """The answers that are being written, those to one prompt next to each other.

    The buffers have no gaps, but their own order: an answer that ends is replaced by the one in the last slot, so that
    only this one is copied.

    Attributes:
        prefixes: the prompts that have answers here or waiting, in the order of their rows.
        tokens: the newest token of each row [n], not cached yet.
        n_cached: own tokens of each row with keys and values in the buffers [n].
        slots: of each row in the buffers, a permutation of 0 to n - 1.
    """

    def __init__(self, llm: Any, n_slots: int) -> None:
        self._llm = llm
        self._embedding = llm.get_input_embeddings()
        self._device = self._embedding.weight.device
        self._buffers = [
            KeyValueBuffer(
                n_slots, llm.config.num_key_value_heads, layer.self_attn.head_dim, _GROWTH, values_on_left=False
            )
            for layer in llm.model.layers
        ]
        self.rows: list[Row] = []
        self.slots: list[int] = []
        self.prefixes: list[_Prefix] = []
        self.tokens = self.n_cached = torch.zeros(0, dtype=torch.int64, device=self._device)

    def prefill(self, groups: Sequence[Group], logits_of: Callable[[Tensor], Tensor]) -> None:
        """Run prompts through the LLM; their answers wait."""
        lengths = tuple(len(group.embeds) for group in groups)
        pack = Pack(0, lengths, tuple(length - 1 for length in lengths), torch.empty(0, dtype=torch.int64))
        embeds = torch.cat([group.embeds for group in groups])[None]  # [1, T, D]
        positions = positions_of(groups).to(self._device)
        new = [
            _Prefix(len(group.embeds) + shift_of(group), group.max_new_tokens, deque(group.keys)) for group in groups
        ]
        attends = [partial(_attend_and_store, new)] * len(self._buffers)
        logits = logits_of(layers.final_states(self._llm, embeds, positions, pack, attends))  # [k, V]
        for prefix, row in zip(new, logits, strict=True):
            prefix.logits = row
        self.prefixes += new

    def start(self, n: int, choose: Choose) -> None:
        """Start up to `n` waiting answers with their first token."""
        kept, rows = dict.fromkeys(self.prefixes, 0), []
        for row in self.rows:
            kept[row.prefix] += 1
        order, n_old = [], 0  # of all rows: places of the old ones, and after them those of the new ones
        for prefix, n_kept in kept.items():
            order += range(n_old, n_old + n_kept)
            n_old += n_kept
            while prefix.waiting and len(rows) < n:
                order.append(len(self.rows) + len(rows))
                rows.append(Row(prefix.waiting.popleft(), prefix))
        if not rows:
            return
        first = choose(torch.stack([row.prefix.logits for row in rows]), rows)
        for row, token in zip(rows, first.tolist(), strict=True):
            row.tokens.append(token)
        for buffer in self._buffers:
            buffer.clear(len(self.rows), len(rows))
        self.slots += range(len(self.rows), len(self.rows) + len(rows))
        self.rows += rows
        self.tokens = torch.cat([self.tokens, first])
        self.n_cached = torch.cat([self.n_cached, self.n_cached.new_zeros(len(rows))])
        self._reorder(order)

    def step(self) -> Tensor:
        """Run the newest token of each row through the LLM.  -> [n, D]"""
        decoder = self._llm.model
        longest, at_most = max(len(row.tokens) for row in self.rows), max(row.prefix.limit for row in self.rows)
        states = self._embedding(self.tokens)  # [n, D]
        starts = torch.tensor([row.prefix.end for row in self.rows], device=self._device)
        rotation = layers.rotary_tables(decoder, states[None], (starts + self.n_cached)[None])
        unseen = torch.arange(longest, device=self._device) > self.n_cached[:, None]  # [n, C]
        bias = torch.zeros(unseen.shape, dtype=states.dtype, device=self._device).masked_fill_(unseen, float("-inf"))
        shared, stop = [], 0
        for prefix, of_prefix in groupby(self.rows, key=lambda row: row.prefix):
            start, stop = stop, stop + len(list(of_prefix))
            shared.append((slice(start, stop), prefix))
        slots = torch.tensor(self.slots, device=self._device)
        for number, layer in enumerate(decoder.layers):
            attend = partial(
                self._attend, number, shared, slots, bias, self._buffers[number].reserve(longest, states, at_most)
            )
            states = layers.decoder_layer(layer, _NEWEST, states, *rotation, attend=attend)
        return kernels.rms_norm(decoder.norm, states)

    def _attend(
        self, number: int, shared: Sequence[tuple[slice, _Prefix]], slots: Tensor, bias: Tensor,
        buffer: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor,
        rows: Any, pack: Pack, head_dim: int, scale: float,
    ) -> Tensor:  # fmt: skip
        """Attention of the newest token of each row in layer `number`, whose key and value it also stores."""
        query, key, value = (flat.unflatten(1, (-1, head_dim)) for flat in (query, key, value))  # [n, H, d]
        keys, values = buffer
        for buffered, new in ((keys, kernels.rotate(key, cos, sin)), (values, value)):
            buffered.transpose(1, 2)[slots, self.n_cached] = new
        n, n_own = len(query), bias.shape[1]
        own = keys[:n, :, :n_own], values[:n, :, :n_own]
        prefixes = [(rows, prefix.keys[number], prefix.values[number]) for rows, prefix in shared]
        return attend_shared(kernels.rotate(query, cos, sin), prefixes, *own, slots, bias, scale).flatten(1)

    def append(self, tokens: Tensor) -> None:
        """Append to each row the token that follows from the last `step`."""
        self.tokens, self.n_cached = tokens, self.n_cached + 1
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.tokens.append(token)

    def pop_finished(self, stops: frozenset[int]) -> list[tuple[Any, list[int]]]:
        """Remove the answers that have ended, and the prompts that have none left."""
        ended = [row.tokens[-1] in stops or len(row.tokens) >= row.prefix.limit for row in self.rows]
        if not any(ended):
            return []
        done = [(row.key, row.tokens) for row, is_over in zip(self.rows, ended, strict=True) if is_over]
        self._reorder([place for place, is_over in enumerate(ended) if not is_over])
        used = {row.prefix for row in self.rows}
        self.prefixes = [prefix for prefix in self.prefixes if prefix in used or prefix.waiting]
        return done

    def _reorder(self, order: Sequence[int]) -> None:
        """Keep the rows `order`, in this order."""
        slots, n = [self.slots[place] for place in order], len(order)
        free, sources = iter(sorted(set(range(n)) - set(slots))), list(range(n))
        for place, slot in enumerate(slots):
            if slot >= n:
                slots[place] = next(free)
                sources[slots[place]] = slot
        for buffer in self._buffers:
            buffer.move(sources)
        self.slots = slots
        self.rows = [self.rows[place] for place in order]
        places = torch.tensor(order, dtype=torch.int64, device=self._device)
        self.tokens, self.n_cached = self.tokens[places], self.n_cached[places]


_NEWEST = Pack(0, (1,), (0,), torch.empty(0, dtype=torch.int64))


def _attend_and_store(
    prefixes: Sequence[_Prefix], query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor,
    rows: Tensor | None, pack: Pack, head_dim: int, scale: float,
) -> Tensor:  # fmt: skip
    """`layers.attend`; also appends a layer's keys and values to the prefixes, which are the samples of the pack."""
    rotated = kernels.rotate(key.unflatten(1, (-1, head_dim)), cos, sin)  # [T, Hk, d]
    parts = zip(
        prefixes, rotated.split(pack.lengths), value.unflatten(1, (-1, head_dim)).split(pack.lengths), strict=True
    )
    for prefix, prompt_keys, prompt_values in parts:
        prefix.keys.append(prompt_keys.permute(1, 2, 0).contiguous())  # [Hk, d, L]
        prefix.values.append(prompt_values.transpose(0, 1).contiguous())  # [Hk, L, d]
    return layers.attend(query, key, value, cos, sin, rows, pack, head_dim, scale)


def attend_shared(
    query: Tensor, prefixes: Sequence[tuple[slice, Tensor, Tensor]], keys: Tensor, values: Tensor, slots: Tensor,
    bias: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """One query per row, which attends to a prefix that it shares with its neighbours, and to its own tokens.

    Args:
        query: [n, H, d].
        prefixes: for each prefix its rows, keys [Hk, d, L] and values [Hk, L, d]; all rows, in order.
        keys, values: of own tokens [n, Hk, C, d], those of row i at `slots[i]`.
        bias: [n, C] in the precision of the query, -inf where a row has no token.

    Returns:
        [n, H, d]
    """
    n, n_heads, head_dim = query.shape
    n_kv, n_own = keys.shape[1], keys.shape[2]
    n_together = n_heads // n_kv  # G, query heads of one key head
    longest = max(prefix_keys.shape[2] for _, prefix_keys, _ in prefixes)
    grouped = (query * scale).view(n, n_kv, n_together, head_dim)
    by_head = grouped.transpose(0, 1).reshape(n_kv, n * n_together, head_dim)
    by_slot = slots.argsort()  # the row in each slot
    # One row of scores per query, prefix and own tokens, so that there is one softmax for all.
    scores = query.new_empty(n_kv, n * n_together, longest + n_own)
    in_slots = grouped.index_select(0, by_slot).view(n * n_kv, n_together, head_dim)
    own = torch.bmm(in_slots, keys.flatten(0, 1).transpose(1, 2)).view(n, n_kv, n_together, n_own)
    into = scores[:, :, longest:].view(n_kv, n, n_together, n_own).transpose(0, 1)
    torch.add(own.index_select(0, slots), bias[:, None, None], out=into)
    parts = []
    for rows, prefix_keys, prefix_values in prefixes:
        lines, n_prefix = slice(rows.start * n_together, rows.stop * n_together), prefix_keys.shape[2]
        # Copied, since torch multiplies into a part of a tensor head by head.
        scores[:, lines, :n_prefix] = torch.bmm(by_head[:, lines], prefix_keys)  # [Hk, g*G, L]
        if n_prefix < longest:
            scores[:, lines, n_prefix:longest] = float("-inf")
        parts.append((lines, n_prefix, prefix_values))
    weights = scores.softmax(dim=2, dtype=torch.float32).to(query.dtype)
    mixed = torch.empty_like(by_head)  # [Hk, n*G, d]
    for lines, n_prefix, prefix_values in parts:
        mixed[:, lines] = torch.bmm(weights[:, lines, :n_prefix], prefix_values)
    own_weights = weights[:, :, longest:].view(n_kv, n, n_together, n_own).transpose(0, 1)
    rest = torch.bmm(own_weights.index_select(0, by_slot).view(n * n_kv, n_together, n_own), values.flatten(0, 1))
    rest = rest.view(n, n_kv, n_together, head_dim).index_select(0, slots)
    mixed = mixed.view(n_kv, n, n_together, head_dim).transpose(0, 1) + rest
    return mixed.reshape(n, n_heads, head_dim)
