"""Answers that follow a JSON schema: at every step the model chooses among the tokens that the schema allows.

    schema --llguidance--> parser of one answer --> allowed tokens [V]; the logits of all others become -inf

Close to its limit of tokens an answer is closed: open strings and lists end, and what the schema still requires follows
in its shortest form, so that a text that was cut is JSON all the same. No number and no word of an enumeration is made
up: the model chooses those itself. Such an answer counts as cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from affectgpt.runtime import InputError, MissingLibrary

if TYPE_CHECKING:
    from torch import Tensor

# Spaces as json.dumps writes them, and in our prompts: then everything between two values is determined.
_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Tokens kept for what an answer may open in its last free step: an item of a list, a number.
_RESERVE = 16
_LONGEST_CLOSING = 4096


def require_llguidance(user: str) -> ModuleType:
    """The library; `user` is the setting that needs it.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise MissingLibrary(
            f"{user} needs llguidance ({error}): pip install 'affectgpt[structured]', or ask for JSON in words only "
            "(annotator.structured=prompt)"
        ) from None
    return llguidance


class Grammars:
    """Schemas in the tokens of one model.

    Args:
        n_tokens: width of the model's logits.
        stop_ids: tokens that end an answer.
        name: of the model, for errors.

    Raises:
        MissingLibrary: llguidance is not installed.
        InputError: the tokenizer is not one of the library `tokenizers`.
    """

    def __init__(self, tokenizer: Any, n_tokens: int, stop_ids: Sequence[int], name: str) -> None:
        self._library = require_llguidance("an answer by a JSON schema")
        from llguidance.hf import from_tokenizer

        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise InputError(
                f"{name}: its tokenizer is a {type(tokenizer).__name__} without a tokenizer.json, which JSON schemas "
                "need; save it as a fast tokenizer, or set annotator.structured=prompt"
            )
        self._tokens = from_tokenizer(tokenizer, n_vocab=max(n_tokens, len(tokenizer)), eos_token=sorted(stop_ids))
        self._stop_ids = frozenset(stop_ids)

    def answer(self, schema: Mapping[str, Any], max_new_tokens: int) -> SchemaAnswer:
        """The state of one answer.

        Raises:
            InputError: the schema is invalid, or has what the library does not support.
        """
        grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPACES)
        matcher = self._library.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"the JSON schema of an answer cannot be used: {matcher.get_error().splitlines()[0]}")
        return SchemaAnswer(matcher, self._tokens, self._stop_ids, max_new_tokens)


class SchemaAnswer:
    """What may follow in one answer.

    Attributes:
        was_closed: it came to its limit and was closed.
    """

    def __init__(self, matcher: Any, tokens: Any, stop_ids: frozenset[int], limit: int) -> None:
        self._matcher, self._tokens, self._stop_ids, self._limit = matcher, tokens, stop_ids, limit
        self._written: list[int] = []
        self._n_closing = len(self._closing(matcher))
        self.was_closed = False

    def allowed(self, token: int | None) -> np.ndarray:
        """One bit per token, least significant bit first, uint8 [ceil(V/8)]: what may follow after `token`.

        Args:
            token: the newest token of the answer; None = it is still empty.
        """
        matcher = self._matcher
        if token is not None and not matcher.is_stopped():
            if not matcher.consume_token(token) or matcher.is_error():
                raise RuntimeError(f"token {token} was not allowed here: {matcher.get_error()}")
            if token not in self._stop_ids:
                self._written.append(token)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():  # a limit of the parser
            raise InputError(f"the JSON schema of an answer cannot be followed: {matcher.get_error().splitlines()[0]}")
        n_left = self._limit - len(self._written)
        # From here closing takes at most what it takes from the start and the rest of an open word.
        if matcher.is_stopped() or n_left > self._n_closing + 2 * _RESERVE:
            return bits
        closing = self._closing(matcher)
        if len(closing) + 1 + _RESERVE < n_left:
            return bits
        self.was_closed = True
        following = closing[0] if closing else min(self._stop_ids)
        is_number = self._tokens.decode_bytes(closing[:1])[:1].isdigit()
        if is_number and len(closing) + 1 < n_left:
            return bits
        only = np.zeros_like(bits)
        only[following >> 3] = 1 << (following & 7)
        return only & bits if closing else only

    def _closing(self, matcher: Any) -> list[int]:
        """The tokens that complete the JSON from here, in the shortest form; numbers are 0."""
        matcher, closing = matcher.deep_copy(), []
        while not matcher.is_accepting() and len(closing) < _LONGEST_CLOSING:
            if forced := matcher.compute_ff_bytes():
                following = self._tokens.tokenize_bytes(forced)
            else:
                following = [self._shortest(matcher, self._written + closing)]
            if not matcher.consume_tokens(following):
                break  # a byte sequence that this vocabulary writes in another way; the model continues freely
            closing += following
        return closing

    def _shortest(self, matcher: Any, before: Sequence[int]) -> int:
        """The allowed token that comes closest to the end of the JSON."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        for byte in b'"' if _in_string(self._tokens.decode_bytes(list(before))) else b']}"0':
            (token,) = self._tokens.tokenize_bytes(bytes([byte]))
            if bits[token >> 3] >> (token & 7) & 1:
                return token
        # Within an escape, a character of several bytes, or a word of an enumeration.
        return int(np.unpackbits(bits, bitorder="little").argmax())


def _in_string(text: bytes) -> bool:
    """Whether JSON that begins with `text` is inside a string there.

    >>> _in_string(b'{"a": "x'), _in_string(b'{"a": "x"'), _in_string(b'{"a": "x\\\\"')
    (True, False, True)
    """
    inside = escaped = False
    for byte in text:
        if escaped:
            escaped = False
        elif byte == ord('"'):
            inside = not inside
        elif byte == ord("\\"):
            escaped = inside
    return inside


class SchemaLogits:
    """A logits processor of transformers' `generate` for a batch, greedy or sampled.

    Args:
        answers: row -> its state; rows without one are free.
    """

    def __init__(self, answers: Mapping[int, SchemaAnswer]) -> None:
        self._answers = answers
        self._is_first = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [B, L] so far, scores [B, V] -> scores [B, V]"""
        import torch

        scores, n_tokens = scores.clone(), scores.shape[1]
        newest = [None] * len(scores) if self._is_first else input_ids[:, -1].tolist()
        self._is_first = False
        for row, answer in self._answers.items():
            bits = np.unpackbits(answer.allowed(newest[row]), bitorder="little")[:n_tokens]
            scores[row].masked_fill_(torch.from_numpy(bits == 0).to(scores.device), float("-inf"))
        return scores
