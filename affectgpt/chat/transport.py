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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from affectgpt.chat.completion import (
    LONGEST_ANSWER,
    Completion,
    Fault,
    decompressed,
    fault_of,
    read_completion,
    too_long,
)
from affectgpt.chat.concurrency import StopSignal
from affectgpt.runtime import UserError, redacted

if TYPE_CHECKING:
    import ssl

    import httpx

log = logging.getLogger("affectgpt")

_GIVE_UP_AFTER = 20  # failed requests in a row
# What has never answered in the protocol is most often another page at a wrong address; a proxy may do it for a moment.
_RETRIES_OF_INVALID = 2
_QUOTED = 300  # characters of a server's own words in an error

# Parameters that some models refuse, and what they take instead; None = the parameter is left out.
_INSTEAD: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": None,
}
# A parameter that is named in an error is refused, unless only its value is wrong: "supports at most 4096 tokens".
_REFUSAL = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|deprecated|not (allowed|permitted)", re.IGNORECASE
)
_WRONG_VALUE = re.compile(
    r"at (least|most)|too (large|long|high|low|small|many)|(less|greater|more) than|maximum|minimum|exceed|between"
    r"|range|up to|[<>≤≥]",
    re.IGNORECASE,
)


class ChatError(UserError):
    """No request to this server gets an answer, or some got none; the message says what to check."""


class RequestFailed(ChatError):
    """One request got no answer after all attempts; others may.

    Attributes:
        is_refusal: the server refuses this request, and would again.
    """

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


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
        max_retries: further attempts after 408, 409, 425, 429, 5xx, time-outs, broken connections and invalid answers
            (at most 2 after invalid answers of a server that has given no valid one yet).
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


@dataclass
class Known:
    """What is known of a model on a server; several endpoints may share it.

    Attributes:
        adapted: parameters that the server refuses, as in `Completion`.
        failed_in_a_row: requests that failed since the last answer.
        has_answered: whether there was an answer.
    """

    adapted: dict[str, str | None] = field(default_factory=dict)
    failed_in_a_row: int = 0
    has_answered: bool = False


class Endpoint:
    """One model on a server; used in one event loop.

    Args:
        known: is updated.

    Attributes:
        address: the server's, for records; `where`: model and address, for messages.
        retries: further attempts so far.
    """

    def __init__(self, model: str, server: Server, stop: StopSignal, known: Known | None = None) -> None:
        self._server, self._stop = server, stop
        self._requests = RateLimiter(server.requests_per_min) if server.requests_per_min else None
        self._tokens = RateLimiter(server.tokens_per_min) if server.tokens_per_min else None
        self._known = known or Known()
        self._key = (os.environ.get(server.api_key_env) or "").strip()
        self.address = self._redacted(server.base_url or "api.openai.com")
        self.where = f"{model} at {self.address}"
        self.retries = 0
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
        attempt, n_invalid = 1, 0
        adapted = {name: instead for name, instead in self._known.adapted.items() if name in body}
        while True:
            if self._requests:
                await self._requests.take(1, self._stop)
            if self._tokens:
                await self._tokens.take(n_tokens, self._stop)
            self._stop.check()
            try:
                completion = read_completion(await self._post(_encoded(body, adapted)), adapted)
            except Fault as fault:
                words = self._redacted(fault.words)[:_QUOTED]  # redacted first: half a key is still a secret
                reason = f"{fault.reason}: {words}" if words else fault.reason
                if fault.is_fatal:
                    raise self._fatal(f"{reason}; check model, base_url and ${self._server.api_key_env}") from None
                if refused := _refused_parameters(fault, set(body) - set(adapted)):
                    adapted = {**adapted, **{name: _INSTEAD[name] for name in refused}}
                    log.debug("%s: %s", self.where, reason)
                    continue
                is_refusal = not fault.is_passing
                n_invalid += fault.is_invalid
                is_no_server = n_invalid > _RETRIES_OF_INVALID and not self._known.has_answered
                if is_refusal or attempt > self._server.max_retries or (fault.is_invalid and is_no_server):
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
                self._known.failed_in_a_row, self._known.has_answered = 0, True
                self._remember(adapted)
                if self._tokens and completion.tokens_in is not None:
                    self._tokens.give_back(n_tokens - completion.tokens_in - (completion.tokens_out or 0))
                return completion
        self._known.failed_in_a_row += 1
        if self._known.failed_in_a_row >= _GIVE_UP_AFTER:
            raise self._fatal(f"{self._known.failed_in_a_row} requests in a row failed, the last with: {reason}")
        raise RequestFailed(f"{reason} ({attempt} attempt{'s' * (attempt > 1)})", is_refusal=is_refusal)

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _remember(self, adapted: Mapping[str, str | None]) -> None:
        """Adapt later requests in the same way: this one was answered."""
        for name, instead in adapted.items():
            if name not in self._known.adapted:
                change = f"{instead} is sent instead" if instead else "it is left out"
                log.warning("%s refuses %s, so %s", self.where, name, change)
                self._known.adapted[name] = instead

    async def _post(self, data: bytes) -> bytes:
        """The body of a successful response; Fault for anything else."""
        import httpx

        client = self._idle.pop() if self._idle else self._connect()
        try:
            # For the complete attempt: httpx's own time-outs restart with every byte.
            return await asyncio.wait_for(self._exchange(client, data), self._server.timeout_s)
        except asyncio.TimeoutError:
            raise Fault(f"no complete answer within {self._server.timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Fault("no connection", str(error) or type(error).__name__) from error
        finally:
            self._idle.append(client)

    async def _exchange(self, client: httpx.AsyncClient, data: bytes) -> bytes:
        import httpx

        # Not client.post, which merges address and headers again for every request.
        request = httpx.Request("POST", self._url, headers=self._headers, content=data)
        response = await client.send(request, stream=True)
        try:
            raw = bytearray()
            async for chunk in response.aiter_raw():
                raw += chunk
                if len(raw) > LONGEST_ANSWER:
                    raise too_long()
        finally:
            await response.aclose()
        body = decompressed(bytes(raw), response.headers.get("content-encoding", ""))
        if response.is_success:
            return body
        raise fault_of(response.status_code, body, response.headers)

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
            json_type = {b"Accept": b"application/json", b"Content-Type": b"application/json"}
            self._headers = httpx.Headers({**fields, **json_type, b"Accept-Encoding": b"identity"})
            self._tls = httpx.create_ssl_context()
        client = httpx.AsyncClient(timeout=None, verify=self._tls)
        self._clients.append(client)
        return client

    def _fatal(self, reason: str) -> ChatError:
        self._stop.set("error")
        return ChatError(f"{self.where}: {reason}")

    def _redacted(self, text: str) -> str:
        """`text` without the key, and without a password in the address."""
        text = redacted(text)
        return text.replace(self._key, "***") if self._key else text


def _encoded(body: Mapping[str, Any], adapted: Mapping[str, str | None]) -> bytes:
    sent = {name: value for old, value in body.items() if (name := adapted.get(old, old)) is not None}
    return json.dumps(sent, ensure_ascii=False).encode()


def _refused_parameters(fault: Fault, sent: set[str]) -> list[str]:
    """The parameters among `sent` that the fault refuses and that can be renamed or left out."""
    if fault.status not in (400, 422):
        return []
    is_wrong_value = _WRONG_VALUE.search(fault.words) and not _REFUSAL.search(f"{fault.code} {fault.words}")
    named = [
        name
        for name in _INSTEAD
        if name in sent and (fault.param == name or re.search(rf"(?<![a-zA-Z0-9_]){name}(?![a-zA-Z0-9_])", fault.words))
    ]
    return [] if is_wrong_value else named
