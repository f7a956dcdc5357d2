"""What is certain of an answer while it is still being written, so that its text can be shown in pieces."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Listener = Callable[[str], None]
"""Is called with a beginning of an answer, from the thread that writes it, each time that more of it is certain."""

# How a sentencepiece vocabulary spells a byte that is in none of its words.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Telling:
    """Tells listeners what is certain of their answers.

    Args:
        stop_ids: tokens behind which an answer has ended.
        listeners: by the number of the answer.
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int], listeners: Mapping[int, Listener]) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._stops = frozenset(stop_ids)
        self._listeners = dict(listeners)
        self._told = dict.fromkeys(listeners, 0)

    def tell(self, number: int, tokens: Sequence[int]) -> None:
        """Take note of all tokens of an answer so far; to be called after each token."""
        if (listener := self._listeners.get(number)) is None:
            return
        if tokens[-1] in self._stops:
            text = self._decoded(tokens[:-1])
            del self._listeners[number]
        else:
            text = self.certain(tokens)
        if len(text) > self._told[number]:
            self._told[number] = len(text)
            listener(text)

    def certain(self, tokens: Sequence[int]) -> str:
        """What the text begins with, whatever follows `tokens`.

        Held back are white space (the end is stripped), characters of which bytes are missing, runs of byte tokens (one
        wrong byte spoils all of them), and spaces that the tokenizer's clean-up may still take away.
        """
        n = len(tokens)
        while n and (self._is_open(tokens[n - 1]) or self._may_be_joined(tokens[:n])):
            n -= 1
        return self._decoded(tokens[:n]).rstrip("\N{REPLACEMENT CHARACTER}").rstrip()

    def _may_be_joined(self, tokens: Sequence[int]) -> bool:
        """Whether clean-up could still take a space away; the longest that it joins to a word is " 've"."""
        if not self._tokenizer.clean_up_tokenization_spaces:
            return False
        return " " in self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)[-3:]

    def _is_open(self, token: int) -> bool:
        """Whether bytes behind `token` can change how those before it are read."""
        if token in self._added:
            return True
        spelled = self._tokenizer.convert_ids_to_tokens(token)
        return spelled is None or _BYTE.fullmatch(spelled) is not None

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True).strip()


class Streamer:
    """What transformers' `generate(streamer=...)` gives its tokens to, for any number of rows.

    Args:
        numbers: of the answers, row by row.
    """

    def __init__(self, telling: Telling, numbers: Sequence[int]) -> None:
        self._telling = telling
        self._rows: list[tuple[int, list[int]]] = [(number, []) for number in numbers]

    def put(self, value: Any) -> None:
        """The prompts [B, L] at first, then a token of each row [B]; behind a row's stop token it is padding."""
        if value.ndim == 2:
            return
        for (number, tokens), token in zip(self._rows, value.tolist(), strict=True):
            tokens.append(token)
            self._telling.tell(number, tokens)

    def end(self) -> None:
        """Nothing is left to be told: the rest comes with the answers."""
