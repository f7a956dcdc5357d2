"""One request to a server of the OpenAI chat protocol: retries, rate limits, and checks of the response.

Why not the kept libraries for it (openai 3.57, tenacity 9, aiolimiter 1.2): the openai client has a time-out per read
but none per attempt, no limit of size, and waits that no signal can end. The rest of the retry loop (Retry-After,
refused parameters, a rate limit per attempt, failures in a row) would not get shorter with tenacity. aiolimiter
refuses a request above the limit of a minute, and cannot take back tokens that were not used.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affectgpt.chat.concurrency import StopSignal
from affectgpt.runtime import UserError

if TYPE_CHECKING:
    import ssl

    import httpx

log = logging.getLogger("affectgpt")

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FATAL = frozenset({301, 302, 303, 307, 308, 401, 403, 404})  # wrong address, key or model: every request would fail
_GIVE_UP_AFTER = 20  # failed requests in a row
_LONGEST_ANSWER = 16 << 20  # bytes; a long answer of 8,192 tokens has about 40 kB
_QUOTED = 300  # characters of a server's own words in an error

# Parameters that some models refuse, and what they take instead; None = the parameter is left out.
_INSTEAD: dict[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None}
# "supports at most 4096 tokens" is no refusal, but a wrong value.
_REFUSAL = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|deprecated|not (allowed|permitted)", re.IGNORECASE
)


class ChatError(UserError):
    """No request to this server gets an answer, or some got none; the message says what to check."""


class RequestFailed(ChatError):
    """One request got no answer after all attempts; others may."""


@dataclass(frozen=True)
class Completion:
    """A checked answer; token counts and the model's name are as the server gave them, None = not given.

    Attributes:
        finish: "stop", "length" or another word of the server; "" = none.
        adapted: parameters that the server refuses -> the name sent instead, None = left out.
    """

    text: str
    finish: str
    tokens_in: int | None
    tokens_out: int | None
    answered_by: str | None
    adapted: Mapping[str, str | None]


class RateLimiter:
    """A token bucket, filled with `per_minute` units a minute, that holds a tenth of them."""

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60
        # With a bucket of a full minute's units, the first minute would see twice the limit.
        self._most = max(1.0, per_minute / 10)
        self._left, self._at = self._most, time.monotonic()

    async def take(self, n: float, stop: StopSignal) -> None:
        """Wait for `n` units; more than the bucket holds are debt, which later requests wait for."""
        self._fill()
        self._left -= n
        if self._left < 0:
            await stop.sleep(-self._left / self._rate)

    def give_back(self, n: float) -> None:
        """Correct an estimate that was `n` units too high (negative = too low)."""
        self._fill()
        self._left = min(self._most, self._left + n)

    def _fill(self) -> None:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now


@dataclass(frozen=True)
class Server:
    """A server and how it is asked.

    Attributes:
        base_url: such as "http://localhost:8000/v1"; None = OpenAI's.
        api_key_env: environment variable with the key, which is in no message. A server without a key needs none.
        max_retries: further attempts after 408, 409, 425, 429, 5xx, time-outs, broken connections and invalid answers.
            Waits double from `backoff_s` up to 60 s, with jitter; a Retry-After header of up to 300 s is obeyed.
        timeout_s: for one attempt, from connecting to the last byte.
        requests_per_min, tokens_per_min: limits of the account; None = none.
    """

    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    max_retries: int = 6
    backoff_s: float = 1.0
    timeout_s: float = 120.0
    requests_per_min: float | None = None
    tokens_per_min: float | None = None


class Endpoint:
    """One model on a server; used in one event loop.

    Args:
        adapted: parameters that the server refuses, as in `Completion`; grows, and may be shared.

    Attributes:
        address: the server's, for records; `where`: model and address, for messages.
        retries: further attempts so far.
    """

    def __init__(
        self, model: str, server: Server, stop: StopSignal, adapted: dict[str, str | None] | None = None
    ) -> None:
        self._server, self._stop = server, stop
        self._requests = RateLimiter(server.requests_per_min) if server.requests_per_min else None
        self._tokens = RateLimiter(server.tokens_per_min) if server.tokens_per_min else None
        self._adapted = {} if adapted is None else adapted
        self._key = (os.environ.get(server.api_key_env) or "").strip()
        self.address = self._redacted(server.base_url or "api.openai.com")
        self.where = f"{model} at {self.address}"
        self.retries = 0
        self._in_a_row = 0  # failed requests since the last answer
        # One client per request in flight: a shared one would search all its connections at every request.
        self._clients: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []
        self._tls: ssl.SSLContext | None = None
        self._jitter = random.Random(0)

    async def complete(self, body: Mapping[str, Any], n_tokens: int = 0) -> Completion:
        """The answer to a request body.

        Args:
            n_tokens: the most that the request may use, for `tokens_per_min`.

        Raises:
            RequestFailed: this request got no answer.
            ChatError: no request to this server gets one; the stop signal is then set.
            Stopped: the stop signal was set while the request waited.
        """
        attempt = 1
        adapted, data = self._encoded(body)
        while True:
            if self._requests:
                await self._requests.take(1, self._stop)
            if self._tokens:
                await self._tokens.take(n_tokens, self._stop)
            self._stop.check()
            try:
                completion = read_completion(await self._post(data), adapted)
            except _Fault as fault:
                words = self._redacted(fault.words)[:_QUOTED]  # redacted first: half a key is still a secret
                reason = f"{fault.reason}: {words}" if words else fault.reason
                if fault.status in _FATAL:
                    raise self._fatal(f"{reason}; check model, base_url and ${self._server.api_key_env}") from None
                if self._adapt(fault, reason, set(body) - set(adapted)):
                    adapted, data = self._encoded(body)
                    continue
                if not fault.is_passing or attempt > self._server.max_retries:
                    break
                wait_s = fault.retry_after_s
                if wait_s is None:
                    backoff_s = self._server.backoff_s * 2 ** (attempt - 1)
                    wait_s = min(60.0, backoff_s) * self._jitter.uniform(0.5, 1.0)
                log.debug("%s: %s; next attempt in %.1f s", self.where, reason, wait_s)
                attempt += 1
                self.retries += 1
                await self._stop.sleep(wait_s)
            else:
                self._in_a_row = 0
                if self._tokens and completion.tokens_in is not None:
                    self._tokens.give_back(n_tokens - completion.tokens_in - (completion.tokens_out or 0))
                return completion
        self._in_a_row += 1
        if self._in_a_row >= _GIVE_UP_AFTER:
            raise self._fatal(f"{self._in_a_row} requests in a row failed, the last with: {reason}")
        raise RequestFailed(f"{reason} ({attempt} attempt{'s' * (attempt > 1)})")

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _encoded(self, body: Mapping[str, Any]) -> tuple[dict[str, str | None], bytes]:
        """The parameters of `body` that are adapted, and the bytes to send."""
        adapted = {name: instead for name, instead in self._adapted.items() if name in body}
        sent = {name: value for old, value in body.items() if (name := adapted.get(old, old)) is not None}
        return adapted, json.dumps(sent, ensure_ascii=False).encode()

    def _adapt(self, fault: _Fault, reason: str, sent: set[str]) -> bool:
        """Whether the server refused a parameter that can be renamed or left out, which it is from now on."""
        names = [name for name in _INSTEAD if name in sent and re.search(rf"\b{name}\b", fault.words)]
        if fault.status not in (400, 422) or not names or not _REFUSAL.search(fault.words):
            return False
        for name in names:
            if name not in self._adapted:
                change = f"{_INSTEAD[name]} is sent instead" if _INSTEAD[name] else "it is left out"
                log.warning("%s refuses %s, so %s (%s)", self.where, name, change, reason)
            self._adapted[name] = _INSTEAD[name]
        return True

    async def _post(self, data: bytes) -> bytes:
        """The body of a successful response; _Fault for anything else."""
        import httpx

        client = self._idle.pop() if self._idle else self._connect()
        try:
            # For the complete attempt: httpx's own time-outs restart with every byte.
            return await asyncio.wait_for(self._exchange(client, data), self._server.timeout_s)
        except asyncio.TimeoutError:
            raise _Fault(f"no complete answer within {self._server.timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Fault("no connection", str(error) or type(error).__name__) from error
        finally:
            self._idle.append(client)

    async def _exchange(self, client: httpx.AsyncClient, data: bytes) -> bytes:
        import httpx

        # Not client.post, which merges address and headers again for every request.
        request = httpx.Request("POST", self._url, headers=self._headers, content=data)
        response = await client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _LONGEST_ANSWER:
                    raise _Fault(f"an answer of more than {_LONGEST_ANSWER >> 20} MB", is_passing=False)
        finally:
            await response.aclose()
        if response.is_success:
            return bytes(body)
        status, words = response.status_code, _words_of(body)
        if response.is_redirect:
            words = f"redirected, which is not followed, to {response.headers['location']}"
        wait_s = _retry_after_s(response.headers.get("retry-after"))
        raise _Fault(f"HTTP {status}", words, status, status in _RETRIED, wait_s)

    def _connect(self) -> httpx.AsyncClient:
        import httpx

        if self._tls is None:
            if not self._key and self._server.base_url is None:
                name = self._server.api_key_env
                raise self._fatal(f"the environment variable {name} is not set; set it, or name a server by base_url")
            if not self._key.isprintable():
                raise self._fatal(f"the environment variable {self._server.api_key_env} holds a line break")
            try:
                base_url = httpx.URL(self._server.base_url or "https://api.openai.com/v1")
            except httpx.InvalidURL:
                base_url = httpx.URL()
            if base_url.scheme not in ("http", "https") or not base_url.host:
                raise self._fatal("base_url is not an address; expected one such as http://localhost:8000/v1")
            self._url = base_url.copy_with(path=base_url.path.rstrip("/") + "/chat/completions")
            fields = {b"Host": base_url.netloc, b"Authorization": f"Bearer {self._key or 'not-needed'}".encode()}
            json_type = b"application/json"
            self._headers = httpx.Headers({**fields, b"Accept": json_type, b"Content-Type": json_type})
            self._tls = httpx.create_ssl_context()
        client = httpx.AsyncClient(timeout=None, verify=self._tls)
        self._clients.append(client)
        return client

    def _fatal(self, reason: str) -> ChatError:
        self._stop.set("error")
        return ChatError(f"{self.where}: {reason}")

    def _redacted(self, text: str) -> str:
        """`text` without the key, and without a password in the address."""
        text = re.sub(r"(://[^/@\s:]*:)[^/@\s]+@", r"\1***@", text)
        return text.replace(self._key, "***") if self._key else text


@dataclass
class _Fault(Exception):
    """An attempt without an answer; `words` are the server's own and may hold the key."""

    reason: str
    words: str = ""
    status: int | None = None
    is_passing: bool = True  # whether another attempt may succeed
    retry_after_s: float | None = None


def read_completion(data: bytes, adapted: Mapping[str, str | None]) -> Completion:
    """Check the body of a chat completion; _Fault if it is none.

    A message without content is an empty answer; content in parts is the text of its text parts.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        raise _Fault("an answer that is not JSON", _words_of(data)) from None
    body = body if isinstance(body, dict) else {}
    choices, model, usage = body.get("choices"), body.get("model"), body.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    content, finish = (message.get("content"), choice.get("finish_reason")) if isinstance(message, dict) else (0, 0)
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if body.get("error") or not isinstance(content, str | None) or not isinstance(finish, str | None):
        what = "an error instead of an answer" if body.get("error") else "an answer without choices[0].message.content"
        raise _Fault(what, _words_of(data))
    counts = usage if isinstance(usage, dict) else {}
    return Completion(
        # Half of a surrogate pair, from an answer that was cut off inside an emoji, cannot be written as UTF-8.
        text=(content or "").encode(errors="replace").decode(),
        finish=finish or "",
        tokens_in=_count(counts.get("prompt_tokens")),
        tokens_out=_count(counts.get("completion_tokens")),
        answered_by=model if isinstance(model, str) else None,
        adapted=adapted,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _words_of(data: bytes | bytearray) -> str:
    """What a server said: the message of the protocol's error object, else the text."""
    text = data.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def _retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, at most 300; None for no header and for its rare form with a date."""
    try:
        return min(300.0, max(0.0, float(header or "")))
    except ValueError:
        return None
