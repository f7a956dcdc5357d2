"""Ask any OpenAI-compatible chat model: many requests at once, retried, cached, resumable.

Answers are appended to a JSONL file, one line a finished request, under the hash of the full request (model,
messages, sampling parameters). So a killed run goes on with exactly the missing calls, a score can be recomputed
without a server (`offline=True`), and the file shows what was asked. The server's address is recorded but is no part of
the key: the same model behind another port is the same model. API keys come from the environment and are never written.

A message may hold pictures and sound between its texts (`Media`). In the key and in the file their bytes stand as
hashes: eight frames a clip would make the file a second copy of the data set.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import random
import threading
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.journal import append_jsonl_records
from affectgpt.prompts import Message
from affectgpt.runtime import InputError, UserError, stable_hash

if TYPE_CHECKING:
    import numpy as np
    import openai

log = logging.getLogger("affectgpt")

_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class ChatError(UserError):
    """Requests that got no answer: how many, from where, why, and what to do. The answers that came are cached."""


@dataclass(frozen=True)
class Media:
    """A picture (`kind` "jpeg") or a sound ("wav") inside a message; `data` is the whole file."""

    kind: str
    data: bytes

    @classmethod
    def picture(cls, image: np.ndarray, longest_px: int | None = None) -> Media:
        """uint8 [H,W,3] RGB as JPEG, shrunk so that no side is above `longest_px`."""
        from PIL import Image

        picture, file = Image.fromarray(image), io.BytesIO()
        if longest_px is not None:
            picture.thumbnail((longest_px, longest_px))
        picture.save(file, "JPEG", quality=90)
        return cls("jpeg", file.getvalue())

    @classmethod
    def sound(cls, samples: np.ndarray, rate_hz: int) -> Media:
        """float [S] mono, full scale 1, as 16-bit WAV; what lies outside full scale is clipped."""
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate_hz)
            out.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
        return cls("wav", file.getvalue())

    def part(self) -> dict[str, Any]:
        """A content part of the chat-completions protocol."""
        encoded = base64.b64encode(self.data).decode()
        if self.kind == "wav":
            return {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
        return {"type": "image_url", "image_url": {"url": f"data:image/{self.kind};base64,{encoded}"}}


Turn = Message | tuple[str, Sequence["str | Media"]]
"""A message of text, or (role, texts and media in order)."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote; `finish` is "stop", "length" ..., `cached` tells whether it came from the file."""

    text: str
    finish: str
    cached: bool


@dataclass
class ChatStats:
    """What a client did: `calls` answered by the server, `cached` answered from the file, `retries`, tokens."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """A chat model behind an OpenAI-compatible endpoint, with a cache of its answers.

    Args:
        model: name to send; pin an exact version, because it stands in every report.
        base_url: the endpoint, e.g. "http://localhost:8000/v1"; None = OpenAI's.
        cache: JSONL file of answers; None = no cache (tests only: paid answers would be lost).
        api_key_env: environment variable with the key. A local server without a key works when it is unset.
        concurrency: requests in flight at once.
        max_retries: further attempts after 429, 5xx, time-outs and broken connections; waits double from `backoff_s` up
            to 60 s, with jitter, and a Retry-After header is obeyed.
        timeout_s: for one attempt.
        temperature, max_tokens, seed: sent with every request and part of the key.
        offline: answer from the cache only; a missing answer is an error.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        cache: str | Path | None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        max_retries: int = 6,
        backoff_s: float = 1.0,
        timeout_s: float = 120.0,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = None,
        offline: bool = False,
    ) -> None:
        if concurrency < 1 or max_retries < 0:
            raise InputError(f"concurrency is {concurrency} and max_retries {max_retries}; expected >= 1 and >= 0")
        self.model = model
        self.base_url = base_url
        self.stats = ChatStats()
        self._cache = None if cache is None else Path(cache)
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._max_retries = max_retries
        self._backoff_s = backoff_s
        self._timeout_s = timeout_s
        self._sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        if seed is not None:
            self._sampling["seed"] = seed
        self._offline = offline
        self._answers: dict[str, Answer] | None = None  # read on first use
        self._client: openai.OpenAI | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._jitter = random.Random(0)

    def request(self, messages: Sequence[Turn]) -> dict[str, Any]:
        """The full request body, as it is sent."""
        return {
            "model": self.model,
            "messages": [{"role": role, "content": _content(content)} for role, content in messages],
            **self._sampling,
        }

    def ask(self, messages: Sequence[Turn]) -> Answer:
        """One answer; raises ChatError when there is none."""
        return self.ask_all([messages])[0]

    def ask_all(
        self, conversations: Sequence[Sequence[Turn]], on_answer: Callable[[int, int], None] | None = None
    ) -> list[Answer]:
        """Answers in the order of `conversations`; equal requests are made once.

        Args:
            on_answer: called with (finished, total) after each new answer, for a progress bar.

        Raises:
            ChatError: some requests failed for good; the answers of all others are in the cache by then.
        """
        answers = self._load()
        bodies = [self.request(messages) for messages in conversations]
        keys = [stable_hash(_recorded(body)) for body in bodies]
        requests = dict(zip(keys, bodies, strict=True))
        missing = {key: body for key, body in requests.items() if key not in answers}
        known = {key: answers[key] for key in requests if key in answers}
        self.stats.cached += len(known)
        if missing and self._offline:
            raise ChatError(
                f"{len(missing)} of {len(requests)} answers of {self.model!r} are not in {self._cache} and offline is "
                "set; run once with a server"
            )
        if missing:
            known |= self._ask_server(missing, on_answer)
        return [known[key] for key in keys]

    def _ask_server(
        self, missing: dict[str, dict[str, Any]], on_answer: Callable[[int, int], None] | None
    ) -> dict[str, Answer]:
        self._stop.clear()
        found: dict[str, Answer] = {}
        failures: list[str] = []
        pool = ThreadPoolExecutor(max_workers=self._concurrency)
        futures = {pool.submit(self._answer, key, body): key for key, body in missing.items()}
        try:
            for future in as_completed(futures):
                try:
                    found[futures[future]] = future.result()
                except ChatError as error:
                    failures.append(str(error))
                if on_answer is not None:
                    on_answer(len(found) + len(failures), len(missing))
        finally:  # on an interrupt: no new requests; finished answers are already in the file
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if failures:
            raise ChatError(
                f"{len(failures)} of {len(missing)} requests to {self._where()} failed; first: {failures[0]}. "
                f"{len(found)} new answers are in {self._cache}: the same command asks only for the rest"
            )
        return found

    def _answer(self, key: str, body: dict[str, Any]) -> Answer:
        """One request with its retries; the answer is in the file before it is returned."""
        import openai

        for attempt in range(self._max_retries + 1):
            if self._stop.is_set():
                raise ChatError("not sent, because another request failed for good")
            wait_s = min(60.0, self._backoff_s * 2**attempt) * self._jitter.uniform(0.5, 1.0)
            try:
                completion = self._connect().chat.completions.create(**body)
                if completion.choices:
                    return self._keep(key, body, completion)
                reason = "an answer without choices"
            except openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}: {self._redacted(error.message)}"
                if error.status_code not in _RETRIED_STATUS:
                    self._stop.set()  # a wrong key or model name fails for every request: do not hammer the server
                    raise ChatError(f"{reason}; check model, base_url and ${self._api_key_env}") from None
                wait_s = _retry_after_s(error.response.headers.get("retry-after"), wait_s)
            except openai.APITimeoutError:
                reason = f"no answer within {self._timeout_s:g} s"
            except openai.APIConnectionError as error:
                reason = f"no connection ({self._redacted(str(error.__cause__ or error))})"
            except (json.JSONDecodeError, openai.APIResponseValidationError) as error:
                reason = f"an answer that is no JSON ({self._redacted(str(error))})"
            if attempt < self._max_retries:
                with self._lock:
                    self.stats.retries += 1
                log.debug("%s: %s; next attempt in %.1f s", self._where(), reason, wait_s)
                self._stop.wait(wait_s)
        raise ChatError(f"{reason} after {self._max_retries + 1} attempts")

    def _connect(self) -> openai.OpenAI:
        import openai

        with self._lock:
            if self._client is None:
                key = os.environ.get(self._api_key_env)
                if not key and self.base_url is None:
                    self._stop.set()
                    raise ChatError(
                        f"the environment variable {self._api_key_env} is not set; set it, or name a server by base_url"
                    )
                self._client = openai.OpenAI(
                    api_key=key or "not-needed", base_url=self.base_url, timeout=self._timeout_s, max_retries=0
                )
            return self._client

    def _keep(self, key: str, body: dict[str, Any], completion: Any) -> Answer:
        choice, usage = completion.choices[0], completion.usage
        answer = Answer(choice.message.content or "", choice.finish_reason or "", cached=False)
        row = {
            "key": key,
            "request": _recorded(body),
            "text": answer.text,
            "finish": answer.finish,
            "answered_by": completion.model,
            "server": self._where(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with self._lock:
            self.stats.calls += 1
            if usage is not None:
                self.stats.prompt_tokens += usage.prompt_tokens or 0
                self.stats.completion_tokens += usage.completion_tokens or 0
            if self._cache is not None:
                _append_line(self._cache, json.dumps(row, ensure_ascii=False))
            self._load_unlocked()[key] = Answer(answer.text, answer.finish, cached=True)
        return answer

    def _load(self) -> dict[str, Answer]:
        with self._lock:
            return self._load_unlocked()

    def _load_unlocked(self) -> dict[str, Answer]:
        if self._answers is None:
            rows = [] if self._cache is None else append_jsonl_records(self._cache)
            self._answers = {row["key"]: Answer(row["text"], row["finish"], cached=True) for row in rows}
        return self._answers

    def _where(self) -> str:
        return f"{self.model} at {self.base_url or 'api.openai.com'}"

    def _redacted(self, text: str) -> str:
        key = os.environ.get(self._api_key_env)
        return text.replace(key, "***") if key else text


def _content(content: str | Sequence[str | Media]) -> Any:
    if isinstance(content, str):
        return content
    return [part.part() if isinstance(part, Media) else {"type": "text", "text": part} for part in content]


def _recorded(value: Any) -> Any:
    """A request body with media bytes replaced by their hash."""
    if isinstance(value, Mapping):
        if value.get("type") in ("image_url", "input_audio"):
            payload = value["image_url"]["url"] if "image_url" in value else value["input_audio"]["data"]
            return {"type": value["type"], "sha256": hashlib.sha256(payload.encode()).hexdigest()}
        return {key: _recorded(item) for key, item in value.items()}
    return [_recorded(item) for item in value] if isinstance(value, list) else value


def _append_line(path: Path, line: str) -> None:
    """One write call on a file opened for appending: lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (line + "\n").encode("utf-8"))
    finally:
        os.close(descriptor)


def _retry_after_s(header: str | None, otherwise: float) -> float:
    """Seconds of a Retry-After header (the date form is rare and ignored), at most 300."""
    try:
        return min(300.0, max(0.0, float(header))) if header else otherwise
    except ValueError:
        return otherwise
