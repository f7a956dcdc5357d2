"""Incremental detokenization: the text of an answer that is final while the answer is still being generated."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

TextCallback = Callable[[str], None]
"""Called from the generating thread with the text of an answer so far, each time that more of it is final."""

# How a sentencepiece vocabulary spells a byte that is in none of its words.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class StreamDecoder:
    """Decodes answers token by token and passes the final part of their texts to callbacks.

    Args:
        stop_ids: tokens that end an answer.
        callbacks: by the number of the answer.
        decode: tokens -> text of an answer; None = the tokenizer's, without special tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: Collection[int],
        callbacks: Mapping[int, TextCallback],
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._decode = decode
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._stops = frozenset(stop_ids)
        self._callbacks = dict(callbacks)
        self._n_sent = dict.fromkeys(callbacks, 0)

    def update(self, number: int, tokens: Sequence[int]) -> None:
        """Process an answer, given as all its tokens so far; to be called after each token."""
        if (callback := self._callbacks.get(number)) is None:
            return
        if tokens[-1] in self._stops:
            text = self._decoded(tokens[:-1])
            del self._callbacks[number]
        else:
            text = self._final_text(tokens)
        if len(text) > self._n_sent[number]:
            self._n_sent[number] = len(text)
            callback(text)

    def _final_text(self, tokens: Sequence[int]) -> str:
        """The beginning of the text that no further token can change.

        Held back are white space (it is stripped at the end), incomplete characters, runs of byte tokens (one wrong
        byte invalidates the run), and spaces that the tokenizer's clean-up may still remove.
        """
        n = len(tokens)
        while n and (self._is_open(tokens[n - 1]) or self._may_be_joined(tokens[:n])):
            n -= 1
        return self._decoded(tokens[:n]).rstrip("\N{REPLACEMENT CHARACTER}").rstrip()

    def _may_be_joined(self, tokens: Sequence[int]) -> bool:
        """Whether clean-up could still remove a space; the longest string that it joins to a word is " 've"."""
        if not self._tokenizer.clean_up_tokenization_spaces:
            return False
        return " " in self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)[-3:]

    def _is_open(self, token: int) -> bool:
        """Whether bytes after `token` can change how the bytes up to it are decoded."""
        if token in self._added:
            return True
        spelled = self._tokenizer.convert_ids_to_tokens(token)
        return spelled is None or _BYTE.fullmatch(spelled) is not None

    def _decoded(self, tokens: Sequence[int]) -> str:
        if self._decode is not None:
            return self._decode(tokens)
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True).strip()


class GenerateStreamer:
    """The `streamer` of transformers' `generate`, for any number of rows.

    Args:
        numbers: of the answers, row by row.
    """

    def __init__(self, decoder: StreamDecoder, numbers: Sequence[int]) -> None:
        self._decoder = decoder
        self._rows: list[tuple[int, list[int]]] = [(number, []) for number in numbers]

    def put(self, value: Any) -> None:
        """The prompts [B, L] first, then one token per row [B], which is padding after a row's stop token."""
        if value.ndim == 2:
            return
        for (number, tokens), token in zip(self._rows, value.tolist(), strict=True):
            tokens.append(token)
            self._decoder.update(number, tokens)

    def end(self) -> None:
        """Required by `generate`; the complete texts come with the answers."""
