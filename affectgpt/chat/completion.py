"""What a server of the OpenAI chat protocol sends back: a checked answer, or a fault in the server's own words."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_ANSWER = 16 << 20  # bytes; a long answer of 8,192 tokens has about 40 kB
REFUSED = frozenset({"refusal", "content_filter"})
"""Finish reasons of an answer that the model or its provider refused."""

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# Wrong address, key or model, or no money left: every request would fail.
_FATAL = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404, 405, 410})
_FATAL_CODES = frozenset({"invalid_api_key", "model_not_found", "insufficient_quota", "account_deactivated"})
_NO_MODEL = re.compile(
    r"model\b.{0,80}\bnot exist|(no such|unknown|invalid) model\b|model\b.{0,80}\bnot found", re.I | re.S
)
_STATUS = re.compile("[3-5][0-9][0-9]")
_MOST_TOKENS = 10**9


@dataclass(frozen=True)
class Completion:
    """A checked answer; token counts and the model's name are as the server gave them, None = not given.

    Attributes:
        text: "" where there is none.
        finish: "stop", "length", "refusal" (a refusal in place of text) or another word of the server; "" = none.
        adapted: parameters that the server refuses -> the name sent instead, None = left out.
        refusal: the words of a refusal in place of text.
    """

    text: str
    finish: str
    tokens_in: int | None
    tokens_out: int | None
    answered_by: str | None
    adapted: Mapping[str, str | None]
    refusal: str | None = None


@dataclass
class Fault(Exception):
    """An attempt without an answer.

    Attributes:
        words: the server's own; they may hold the key.
        status: HTTP status, or that of an error object in an answer of status 200.
        code, param: of the protocol's error object.
        is_passing: whether another attempt may succeed.
        is_invalid: an answer of another form.
    """

    reason: str
    words: str = ""
    status: int | None = None
    code: str = ""
    param: str = ""
    is_passing: bool = True
    is_invalid: bool = False
    retry_after_s: float | None = None

    @property
    def is_fatal(self) -> bool:
        """Whether every request would meet it."""
        has_no_model = self.status in (400, 422) and _NO_MODEL.search(self.words) is not None
        return self.status in _FATAL or self.code in _FATAL_CODES or has_no_model


def fault_of(status: int, data: bytes, headers: Mapping[str, str]) -> Fault:
    """The fault that a response without success reports."""
    words, code, param, _ = _error_in(data)
    if status in (301, 302, 303, 307, 308) and "location" in headers:
        words = f"redirected, which is not followed, to {headers['location']}"
    wait_s = retry_after_s(headers.get("retry-after"))
    return Fault(f"HTTP {status}", words, status, code, param, status in _RETRIED, retry_after_s=wait_s)


def decompressed(data: bytes, encoding: str) -> bytes:
    """A body with its Content-Encoding removed; Fault beyond `LONGEST_ANSWER`, however small its compressed form.

    httpx decompresses everything that has arrived at once, several encodings one after the other: 64 kB become GBs.
    """
    if encoding.strip().lower() in ("", "identity"):
        return data
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        raise Fault(f"an answer with the Content-Encoding {encoding[:40]!r}, which was not asked for", is_passing=False)
    stream = zlib.decompressobj(wbits=47)  # gzip or zlib, by the header
    try:
        body = stream.decompress(data, LONGEST_ANSWER + 1)
    except zlib.error as error:
        raise Fault("a compressed answer that is damaged", str(error)) from None
    if len(body) > LONGEST_ANSWER:
        raise too_long()
    if not stream.eof:
        raise Fault("a compressed answer that is cut off")
    return body


def too_long() -> Fault:
    return Fault(f"an answer of more than {LONGEST_ANSWER >> 20} MB", is_passing=False)


def read_completion(data: bytes, adapted: Mapping[str, str | None]) -> Completion:
    """Check the body of a chat completion; Fault if it is none.

    A message without content is an empty answer; content in parts is the text of its text parts.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        raise Fault("an answer that is not JSON", _text_of(data), is_invalid=True) from None
    body = body if isinstance(body, dict) else {}
    if body.get("error"):
        words, code, param, status = _error_in(data)
        is_passing = status is None or status in _RETRIED
        what = "an error instead of an answer"
        raise Fault(what, words, status, code, param, is_passing, is_invalid=status is None)
    choices, model, usage = body.get("choices"), body.get("model"), body.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _no_content(data)
    content, finish, refusal = message.get("content"), choice.get("finish_reason"), message.get("refusal")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        content = "".join(part for part in texts if isinstance(part, str))
        refusal = refusal or next((part.get("refusal") for part in parts if part.get("type") == "refusal"), None)
    if not isinstance(content, str | None) or not isinstance(finish, str | None):
        raise _no_content(data)
    is_refusal = not (content or "").strip() and isinstance(refusal, str) and bool(refusal)
    counts = usage if isinstance(usage, dict) else {}
    return Completion(
        text=_encodable(content or ""),
        finish="refusal" if is_refusal else _encodable(finish or ""),
        tokens_in=_count(counts.get("prompt_tokens")),
        tokens_out=_count(counts.get("completion_tokens")),
        answered_by=_encodable(model) if isinstance(model, str) else None,
        adapted=adapted,
        refusal=_encodable(str(refusal)) if is_refusal else None,
    )


def _no_content(data: bytes) -> Fault:
    words = _text_of(data)
    return Fault("an answer without choices[0].message.content", words, is_invalid=True)


def _encodable(text: str) -> str:
    """Half of a surrogate pair, from an answer that was cut off inside an emoji, cannot be written as UTF-8."""
    return text.encode(errors="replace").decode()


def _count(value: Any) -> int | None:
    """A token count; None for anything else, NaN and infinity among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def _text_of(data: bytes) -> str:
    return data.decode(errors="replace")


def _error_in(data: bytes) -> tuple[str, str, str, int | None]:
    """(message, code, param, status) of an error object, in the forms that servers give it; else the text alone."""
    text = _text_of(data)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text, "", "", None
    body = body[0] if isinstance(body, list) and body else body
    body = body if isinstance(body, dict) else {}
    error = body.get("error") or body
    if isinstance(error, str):
        return error, "", "", None
    error = error if isinstance(error, dict) else {}
    words = error.get("message") or error.get("detail") or error.get("error")
    code, param = (error.get(name) for name in ("code", "param"))
    number = code if isinstance(code, int) else int(code) if isinstance(code, str) and _STATUS.fullmatch(code) else 0
    return (
        words if isinstance(words, str) else text,
        code if isinstance(code, str) else "",
        param if isinstance(param, str) else "",
        number if 300 <= number < 600 else None,
    )


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, at most 300; None for no header and for its rare form with a date."""
    try:
        return min(300.0, max(0.0, float(header or "")))
    except ValueError:
        return None
