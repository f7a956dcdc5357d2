"""Keys and values of the rows that are being continued, in the memory order that the device reads fastest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from affectgpt.engine import cpu, kernels, layers
from affectgpt.engine.layout import Pack


class KeyValueBuffer:
    """Keys and values of one layer for all slots: [P, Hk, C, d] each, in the memory order that is fastest to read.

    Args:
        values_on_left: of the product with the attention weights, as in `cpu.attend_newest`.
    """

    def __init__(
        self, n_slots: int, n_kv_heads: int, head_dim: int, growth: int, *, values_on_left: bool = True
    ) -> None:
        self._n_slots, self._n_kv_heads, self._head_dim, self._growth = n_slots, n_kv_heads, head_dim, growth
        self._values_on_left = values_on_left
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def reserve(self, n_tokens: int, like: Tensor, at_most: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values with space for `n_tokens` per row, which will never be more than `at_most`; dtype and device
        are those of `like`."""
        if self._keys is None or self._values is None or self._keys.shape[2] < n_tokens:
            n_tokens = self._growth * (n_tokens // self._growth + 1)
            n_tokens = n_tokens if at_most is None else min(n_tokens, at_most)
            shape = (self._n_slots, self._n_kv_heads, n_tokens, self._head_dim)
            transposed = cpu.transposed_buffers(like.dtype) if like.device.type == "cpu" else (False, False)
            self._keys = _grown(self._keys, shape, like, transposed=transposed[0])
            self._values = _grown(self._values, shape, like, transposed=transposed[1] and self._values_on_left)
        return self._keys, self._values

    def attend_and_store(
        self, slot: int, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, rows: Tensor | None,
        pack: Pack, head_dim: int, scale: float,
    ) -> Tensor:  # fmt: skip
        """`layers.attend`; also stores keys and values of the pack's prompts in `slot` and the slots after it."""
        rotated = kernels.rotate(key.unflatten(1, (-1, head_dim)), cos, sin)  # [T, Hk, d]
        keys, values = self.reserve(max(pack.lengths) + 1, rotated)
        self.clear(slot, len(pack.lengths))
        plain = value.unflatten(1, (-1, head_dim))
        parts = zip(rotated.split(pack.lengths), plain.split(pack.lengths), strict=True)
        for at, (prompt_keys, prompt_values) in enumerate(parts, slot):
            keys[at, :, : len(prompt_keys)] = prompt_keys.transpose(0, 1)
            values[at, :, : len(prompt_values)] = prompt_values.transpose(0, 1)
        return layers.attend(query, key, value, cos, sin, rows, pack, head_dim, scale)

    def view(self, n: int, n_tokens: int, *, complete: bool) -> tuple[Tensor, Tensor]:
        """Keys and values of the first n slots, `n_tokens` of each, or (`complete`) as many as the buffer holds."""
        assert self._keys is not None, "no prompt was stored"
        keys, values = self.reserve(n_tokens, self._keys)
        return (keys[:n], values[:n]) if complete else (keys[:n, :, :n_tokens], values[:n, :, :n_tokens])

    def clear(self, start: int, n: int) -> None:
        """Zero n slots from `start` on, which new rows take.

        Where a row has no token yet, a bias of -inf and a weight of 0 hide any number of an earlier row but NaN and
        infinity.
        """
        for buffer in (self._keys, self._values):
            if buffer is not None:
                buffer[start : start + n].zero_()

    def move(self, order: Sequence[int]) -> None:
        """Move the row in slot `order[i]` to slot i."""
        for buffer in (self._keys, self._values):
            for slot, source in enumerate(order):
                if buffer is not None and slot != source:
                    buffer[slot] = buffer[source]


def _grown(old: Tensor | None, shape: tuple[int, ...], like: Tensor, *, transposed: bool) -> Tensor:
    """Zeros of `shape` [P, Hk, C, d] with the content of `old`; `transposed`: [P, Hk, d, C] in memory."""
    if transposed:
        new = like.new_zeros(*shape[:2], shape[3], shape[2]).transpose(2, 3)
    else:
        new = like.new_zeros(shape)
    if old is not None:
        new[:, :, : old.shape[2]] = old
    return new
