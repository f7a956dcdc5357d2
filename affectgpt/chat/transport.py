"""One request to a server of the OpenAI chat protocol: retries, rate limits, and checks of what comes back.

Why not what exists (openai 3.57, tenacity 9, aiolimiter 1.2, looked at in 2026):

- The openai client's time-out is per read, so a server that sends a byte now and then is never given up; it follows
  redirects, reads answers of any length, and its pauses cannot be ended by an interrupt. It also costs more processor
  time a request than all of annotation around it.
- tenacity would replace the loop of `Endpoint.complete`, but not what decides in it: Retry-After, refused parameters,
  a rate limit for each attempt, and failures in a row.
- aiolimiter refuses a request larger than a minute's limit, and takes no correction once the true count is known.
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
    """No answer, and none to be expected until the user changes something; the message says what."""


class RequestFailed(ChatError):
    """One request got no answer after all attempts; others may."""


@dataclass(frozen=True)
class Completion:
    """A checked answer.

    Attributes:
        finish: the server's word, "stop" or "length"; "" = none given.
        tokens_in, tokens_out: as the server counted; None = it does not count.
        answered_by: the model that the server names.
        adapted: parameters that the server refuses, with the name sent instead (None = left out).
    """

    text: str
    finish: str
    tokens_in: int | None
    tokens_out: int | None
    answered_by: str | None
    adapted: Mapping[str, str | None]


class RateLimiter:
    """A token bucket: `per_minute` units flow in evenly, and up to a tenth of a minute's units are kept."""

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60
        # Not a full minute's units: on top of what flows in, the first minute would see twice the limit.
        self._most = max(1.0, per_minute / 10)
        self._left, self._at = self._most, time.monotonic()

    async def take(self, n: float, stop: StopSignal) -> None:
        """Wait until `n` units are there. A request larger than the bucket takes on debt, which later ones wait for."""
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


class Endpoint:
    """The chat-completions address of one server and one model; made and used in one event loop.

    Args:
        base_url: such as "http://localhost:8000/v1"; None = OpenAI's.
        api_key_env: environment variable with the key, which no message shows. A server without a key needs none.
        max_retries: further attempts after 408, 409, 425, 429, 5xx, time-outs, broken connections and answers that are
            none. Waits double from `backoff_s` up to 60 s, with jitter; a Retry-After header of up to 300 s is obeyed.
        timeout_s: for one attempt, from connecting to the last byte.
        requests_per_min, tokens_per_min: limits of the account; None = none.
        adapted: parameters that the server is known to refuse; grows. Share it between endpoints of one server.

    Attributes:
        where: model and server, for messages.
        server: the server's address, for records.
        retries: further attempts so far.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        max_retries: int = 6,
        backoff_s: float = 1.0,
        timeout_s: float = 120.0,
        requests_per_min: float | None = None,
        tokens_per_min: float | None = None,
        stop: StopSignal,
        adapted: dict[str, str | None] | None = None,
    ) -> None:
        self._base_url, self._api_key_env = base_url, api_key_env
        self._max_retries, self._backoff_s, self._timeout_s = max_retries, backoff_s, timeout_s
        self._requests = RateLimiter(requests_per_min) if requests_per_min else None
        self._tokens = RateLimiter(tokens_per_min) if tokens_per_min else None
        self._stop = stop
        self._adapted = {} if adapted is None else adapted
        self._key = (os.environ.get(api_key_env) or "").strip()
        self.server = self._redacted(base_url or "api.openai.com")
        self.where = f"{model} at {self.server}"
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
                words = self._redacted(fault.words)[:_QUOTED]  # in this order: half a key is still a secret
                reason = f"{fault.reason}: {words}" if words else fault.reason
                if fault.status in _FATAL:
                    raise self._fatal(f"{reason}; check model, base_url and ${self._api_key_env}") from None
                if self._adapt(fault, reason, set(body) - set(adapted)):
                    adapted, data = self._encoded(body)
                    continue
                if not fault.is_passing or attempt > self._max_retries:
                    break
                wait_s = min(60.0, self._backoff_s * 2 ** (attempt - 1)) * self._jitter.uniform(0.5, 1.0)
                wait_s = wait_s if fault.retry_after_s is None else fault.retry_after_s
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
        """What is changed in `body` because the server refuses it, and the bytes to send."""
        adapted = {name: instead for name, instead in self._adapted.items() if name in body}
        names = {name: adapted.get(name, name) for name in body}
        sent = {names[name]: value for name, value in body.items() if names[name] is not None}
        return adapted, json.dumps(sent, ensure_ascii=False).encode()

    def _adapt(self, fault: _Fault, reason: str, sent: set[str]) -> bool:
        """Whether the server refused a parameter that can be replaced or left out; from then on it is."""
        if fault.status not in (400, 422) or not _REFUSAL.search(fault.words):
            return False
        names = [name for name in _INSTEAD if name in sent and re.search(rf"\b{name}\b", fault.words)]
        for name in names:
            if name not in self._adapted:
                instead = _INSTEAD[name]
                sent_now = f"{instead} is sent instead" if instead else "it is left out"
                log.warning("%s refuses %s, so %s (%s)", self.where, name, sent_now, reason)
            self._adapted[name] = _INSTEAD[name]
        return bool(names)

    async def _post(self, data: bytes) -> bytes:
        """The body of a successful response; _Fault for anything else."""
        import httpx

        client = self._idle.pop() if self._idle else self._connect()
        try:
            # Over the whole attempt: httpx's own time-outs begin anew with every byte.
            return await asyncio.wait_for(self._exchange(client, data), self._timeout_s)
        except asyncio.TimeoutError:
            raise _Fault(f"no complete answer within {self._timeout_s:g} s") from None
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
        raise _Fault(f"HTTP {status}", words, status=status, is_passing=status in _RETRIED, retry_after_s=wait_s)

    def _connect(self) -> httpx.AsyncClient:
        import httpx

        if not self._clients:
            if not self._key and self._base_url is None:
                name = self._api_key_env
                raise self._fatal(f"the environment variable {name} is not set; set it, or name a server by base_url")
            if not self._key.isprintable():
                raise self._fatal(f"the environment variable {self._api_key_env} holds a line break; set it again")
            try:
                base_url = httpx.URL(self._base_url or "https://api.openai.com/v1")
            except httpx.InvalidURL as error:
                raise self._fatal(f"base_url cannot be read ({self._redacted(str(error))})") from None
            if base_url.scheme not in ("http", "https") or not base_url.host:
                raise self._fatal("base_url is no address; expected one such as http://localhost:8000/v1")
            self._url = base_url.copy_with(path=base_url.path.rstrip("/") + "/chat/completions")
            key = f"Bearer {self._key or 'not-needed'}".encode()
            fields = {b"Host": base_url.netloc, b"Authorization": key}
            self._headers = httpx.Headers(
                {**fields, b"Accept": b"application/json", b"Content-Type": b"application/json"}
            )
            self._tls = httpx.create_ssl_context()
        assert self._tls is not None
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


class _Fault(Exception):
    """An attempt without an answer.

    Attributes:
        words: the server's own, which may hold the key.
        is_passing: whether another attempt may succeed.
    """

    def __init__(
        self,
        reason: str,
        words: str = "",
        *,
        status: int | None = None,
        is_passing: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.words, self.status = reason, words, status
        self.is_passing, self.retry_after_s = is_passing, retry_after_s


def read_completion(data: bytes, adapted: Mapping[str, str | None]) -> Completion:
    """Check the body of a chat completion; _Fault if it is none.

    A message without content is an empty answer; the text of content in parts is that of its text parts.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        raise _Fault("an answer that is not JSON", _words_of(data)) from None
    if not isinstance(body, dict) or body.get("error"):
        raise _Fault("an error instead of an answer", _words_of(data))
    choices, model, usage = body.get("choices"), body.get("model"), body.get("usage")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _Fault("an answer without choices", _words_of(data))
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise _Fault("an answer without a message", _words_of(data))
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str | None) or not isinstance(finish, str | None):
        raise _Fault("an answer whose content or finish_reason is not text", _words_of(data))
    counts = usage if isinstance(usage, dict) else {}
    # Half of a surrogate pair, from an answer that was cut off inside an emoji, cannot be written as UTF-8.
    text = (content or "").encode(errors="replace").decode()
    return Completion(
        text,
        finish or "",
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        model if isinstance(model, str) else None,
        adapted,
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
