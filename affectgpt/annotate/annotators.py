"""Who answers: a server of the chat protocol, or a model in this process. Every answer is stored before it is used.

A call is known by the hash of everything that decides its answer: the clip's files, the step, the model, and the whole
request, in which media stand as what is shown of which file. So nothing has to be decoded to find out that an answer is
there already. Where a server listens, how fast it is asked and what it costs are no part of the hash.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from affectgpt.annotate.clips import Clip
from affectgpt.annotate.store import Store
from affectgpt.chat.served import Media
from affectgpt.config import AnnotatorConfig
from affectgpt.journal import once
from affectgpt.runtime import UserError, stable_hash

if TYPE_CHECKING:
    import ssl

    import httpx

    from affectgpt.chat.local import Reply, Request, TransformersChat

log = logging.getLogger("affectgpt")

CODE_VERSION = "1"
"""Changes whenever the same request would be sent in another way."""

KINDS = ("local", "openai", "transformers")
STRUCTURED = ("json_schema", "json_object", "prompt", "none")
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 403, 404})  # a wrong key or model name fails for every clip
_GIVE_UP_AFTER = 20


class CallFailed(RuntimeError):
    """One request got no answer; the clip is named as failed, others go on. Nothing is stored."""


class Stopped(RuntimeError):
    """No new calls are made any more: an interrupt, a budget that is used up, or an error of the user."""


@dataclass
class Stop:
    """Whether to go on, shared by all parts of a run; `reason` is "", "SIGINT", "SIGTERM", "budget" or "error"."""

    reason: str = ""
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._event.set()

    def check(self) -> None:
        if self.reason:
            raise Stopped(self.reason)

    async def sleep(self, seconds: float) -> None:
        """Sleep, but raise Stopped at once when it is time to stop."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self.check()


@dataclass(frozen=True)
class Question:
    """One question about one clip.

    Attributes:
        text: the prompt.
        schema: JSON schema of the answer.
        shows: "images" and "sound" -> how they are sampled, for example {"n_frames": 3}.
        turns: (answer, objection) pairs that came before, in a repair.
    """

    step: str
    text: str
    schema: Mapping[str, Any]
    clip: Clip
    shows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    turns: tuple[tuple[str, str], ...] = ()

    def media(self) -> list[dict[str, Any]]:
        """What is shown, as it stands in the key and in the file."""
        return [{"type": name, "of": self.clip.sha256, **sampling} for name, sampling in self.shows.items()]


class Bucket:
    """So many units a minute, with a minute's worth of them at hand after a rest of a minute."""

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60
        # A burst of a tenth of a minute: a whole minute's worth at once would be twice the limit in the first minute.
        self._most = max(1.0, per_minute / 10)
        self._left, self._at = self._most, time.monotonic()

    async def take(self, n: float, stop: Stop) -> None:
        """Wait until `n` units are there; more than the bucket holds are taken as debt, so that large calls pass."""
        self._fill()
        self._left -= n
        if self._left < 0:
            await stop.sleep(-self._left / self._rate)

    def give(self, n: float) -> None:
        """Correct an estimate by `n` units (negative = more were used)."""
        self._fill()
        self._left = min(self._most, self._left + n)

    def _fill(self) -> None:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now


def estimate_tokens(text: str) -> int:
    """About four ASCII letters a token, and one token for every other character; only for limits and estimates."""
    n_ascii = len(text.encode("ascii", "ignore"))
    return n_ascii // 4 + len(text) - n_ascii + 1


def media_tokens(media: Sequence[Mapping[str, Any]], config: AnnotatorConfig, sound_s: float = 10.0) -> int:
    """Tokens that a server counts for what is shown, by the settings of the annotator."""
    return round(
        sum(
            config.tokens_per_image * item.get("n_frames", 1)
            if item["type"] == "images"
            else config.tokens_per_second * sound_s
            for item in media
        )
    )


@dataclass
class Purse:
    """What the folder's calls may cost in all, in the currency of the prices; None = no cap.

    A call is made only if what was paid, what is in flight and the most that it can cost itself stay below the cap. Two
    processes do not see each other's calls in flight, so together they may exceed it by those.
    """

    cap: float | None
    store: Store
    stop: Stop
    reserved: float = 0.0
    n_held: int = 0

    async def reserve(self, most: float) -> None:
        """Wait until `most` surely fits, since calls in flight may cost less than they could; else stop the run."""
        while self.cap is not None:
            self.store.answers.refresh()  # what other processes have spent
            if self.store.cost + self.reserved + most <= self.cap:
                break
            if not self.n_held:
                self.stop.set("budget")
                self.stop.check()
            await self.stop.sleep(0.01)
        self.reserved += most
        self.n_held += 1

    def release(self, most: float) -> None:
        """The call of a reservation has ended, and what it cost is counted."""
        self.n_held -= 1
        self.reserved = self.reserved - most if self.n_held else 0.0


class Served:
    """A model behind any OpenAI-compatible server: OpenAI, vLLM, SGLang, or one of our own."""

    def __init__(self, config: AnnotatorConfig, store: Store, stop: Stop, purse: Purse) -> None:
        if not config.model:
            raise UserError("annotator.model= is missing: the name of the model that the server has")
        if config.structured not in STRUCTURED:
            raise UserError(f"annotator.structured is {config.structured!r}; expected one of {list(STRUCTURED)}")
        if purse.cap is not None and (config.price_in is None or config.price_out is None):
            raise UserError(
                f"a budget needs prices: set price_in and price_out of {config.model} (per million tokens), as your "
                "provider's price list has them; 0 for a server of your own"
            )
        self.config, self.name = config, config.model
        self.sees = frozenset(config.sees)
        self.structured = config.structured != "none"
        self._store, self._stop, self._purse = store, stop, purse
        self._slots = asyncio.Semaphore(config.concurrency)
        self._requests = Bucket(config.requests_per_min) if config.requests_per_min else None
        self._tokens = Bucket(config.tokens_per_min) if config.tokens_per_min else None
        # A client a slot: one for all would look through all its connections at every request.
        self._clients: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []
        self._tls: ssl.SSLContext | None = None
        self._jitter = random.Random(0)
        self._in_a_row = 0  # failures since the last answer
        self.retries = 0

    def parameters(self) -> dict[str, Any]:
        """What decides answers besides the question."""
        config = self.config
        chosen: dict[str, Any] = {config.max_tokens_name: config.max_tokens}
        if config.temperature is not None:
            chosen["temperature"] = config.temperature
        if config.seed is not None:
            chosen["seed"] = config.seed
        return {**chosen, **config.extra}

    def request(self, question: Question, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The body that is sent, with `parts` for the media."""
        content: Any = [*parts, {"type": "text", "text": question.text}] if parts else question.text
        messages = [{"role": "user", "content": content}]
        for said, objection in question.turns:
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": objection}]
        body = {"model": self.name, "messages": messages, **self.parameters()}
        if self.config.structured == "json_schema":
            form = {"name": question.step, "strict": True, "schema": dict(question.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self.config.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    async def answer(self, question: Question) -> tuple[dict[str, Any], bool]:
        """The stored or new answer, and whether it was asked for now."""
        shown = [{**item, "longest_px": self.config.longest_px} for item in question.media()]
        request = self.request(question, shown)
        key = _key(question, self.name, request)
        held: list[float] = []
        try:
            return await once(self._store.answers, self._store.claims, key, lambda: self._ask(question, request, held))
        finally:
            for most in held:  # not before the answer's cost is counted, which is when it is stored
                self._purse.release(most)

    async def _ask(self, question: Question, request: dict[str, Any], held: list[float]) -> dict[str, Any]:
        self._stop.check()
        n_in = estimate_tokens(json.dumps(request, ensure_ascii=False)) + media_tokens(question.media(), self.config)
        async with self._slots:
            self._stop.check()
            most = self.cost(n_in, self.config.max_tokens)
            await self._purse.reserve(most)
            held.append(most)
            body = await asyncio.to_thread(self._body, question) if question.shows else self._body(question)
            started = time.monotonic()
            completion = await self._send(body, n_in)
            seconds = time.monotonic() - started
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if self._tokens and usage:
            self._tokens.give(n_in + self.config.max_tokens - (tokens_in or 0) - (tokens_out or 0))
        return {
            "step": question.step,
            "model": self.name,
            "media_sha256": question.clip.sha256,
            "request": request,
            "text": choice.get("message", {}).get("content") or "",
            "finish": choice.get("finish_reason") or "",
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "cost": self.cost(tokens_in or 0, tokens_out or 0),
            "seconds": round(seconds, 3),
            "answered_by": completion.get("model"),
            "server": self.config.base_url or "api.openai.com",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """In the currency of the prices; 0 without prices."""
        return (tokens_in * (self.config.price_in or 0) + tokens_out * (self.config.price_out or 0)) / 1e6

    def _body(self, question: Question) -> bytes:
        return json.dumps(self.request(question, self._parts(question)), ensure_ascii=False).encode()

    def _parts(self, question: Question) -> list[dict[str, Any]]:
        parts = []
        if sampling := question.shows.get("images"):
            images = question.clip.frames(sampling["n_frames"], sampling.get("at_s")).images
            parts += [Media.picture(image, self.config.longest_px).part() for image in images]
        if "sound" in question.shows:
            sound = question.clip.sound()
            parts.append(Media.sound(sound.samples, sound.rate_hz).part())
        return parts

    async def _send(self, body: bytes, n_in: int) -> dict[str, Any]:
        """One answer, after retries; raises CallFailed, or stops the run where every call would fail."""
        import httpx

        config = self.config
        for attempt in range(config.max_retries + 1):
            if self._requests:
                await self._requests.take(1, self._stop)
            if self._tokens:
                await self._tokens.take(n_in + config.max_tokens, self._stop)
            self._stop.check()
            wait_s = min(60.0, config.backoff_s * 2**attempt) * self._jitter.uniform(0.5, 1.0)
            client = self._idle.pop() if self._idle else self._connect()
            try:
                # Not client.post, which puts address and headers together anew each time.
                response = await client.send(httpx.Request("POST", self._url, headers=self._headers, content=body))
                if response.is_success:
                    completion = response.json()
                    if isinstance(completion, dict) and completion.get("choices"):
                        self._in_a_row = 0
                        return completion
                    reason = "an answer without choices"
                else:
                    reason = f"HTTP {response.status_code}: {self._redacted(_message(response))}"
                    if response.status_code in _HOPELESS:
                        self._stop.set("error")
                        hint = f"check model, base_url and ${config.api_key_env}"
                        raise UserError(f"{self._where()}: {reason}; {hint}")
                    if response.status_code not in _RETRIED:
                        break
                    wait_s = _retry_after_s(response.headers.get("retry-after"), wait_s)
            except httpx.TimeoutException:
                reason = f"no answer within {config.timeout_s:g} s"
            except (httpx.TransportError, httpx.DecodingError, httpx.TooManyRedirects) as error:
                reason = f"no connection ({self._redacted(str(error) or type(error).__name__)})"
            except ValueError as error:  # of response.json: no JSON, or no UTF-8
                reason = f"an answer that is no JSON ({self._redacted(str(error))})"
            finally:
                self._idle.append(client)
            if attempt < config.max_retries:
                self.retries += 1
                await self._stop.sleep(wait_s)
        self._in_a_row += 1
        if self._in_a_row >= _GIVE_UP_AFTER:
            self._stop.set("error")
            raise UserError(f"{self._where()}: {self._in_a_row} requests in a row failed, the last with: {reason}")
        raise CallFailed(f"{reason} (attempt {attempt + 1} of at most {config.max_retries + 1})")

    def _connect(self) -> httpx.AsyncClient:
        import httpx

        key = os.environ.get(self.config.api_key_env)
        if not key and self.config.base_url is None:
            self._stop.set("error")
            name = self.config.api_key_env
            raise UserError(f"the environment variable {name} is not set; set it, or name a server by base_url")
        self._tls = self._tls or httpx.create_ssl_context()
        base_url = httpx.URL(self.config.base_url or "https://api.openai.com/v1")
        self._url = base_url.copy_with(path=base_url.path.rstrip("/") + "/chat/completions")
        fields = {"Host": base_url.netloc.decode(), "Authorization": f"Bearer {key or 'not-needed'}"}
        self._headers = httpx.Headers({**fields, "Accept": "application/json", "Content-Type": "application/json"})
        client = httpx.AsyncClient(timeout=self.config.timeout_s, follow_redirects=True, verify=self._tls)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _where(self) -> str:
        return f"{self.name} at {self.config.base_url or 'api.openai.com'}"

    def _redacted(self, text: str) -> str:
        key = os.environ.get(self.config.api_key_env)
        return text.replace(key, "***") if key else text


class InProcess:
    """A transformers model in this process, loaded on the first question; waiting questions are answered together."""

    def __init__(self, config: AnnotatorConfig, store: Store, stop: Stop) -> None:
        if not config.model:
            raise UserError("annotator.model= is missing: a hub id or a folder with a model")
        self.config, self.name = config, config.model
        self.sees = frozenset(config.sees)
        self.structured = config.structured != "none"
        self.retries = 0
        self._store, self._stop = store, stop
        self._waiting: asyncio.Queue[tuple[Question, asyncio.Future[dict[str, Any]]]] = asyncio.Queue()
        self._loop: asyncio.Task[None] | None = None
        self._chat: TransformersChat | None = None

    def parameters(self) -> dict[str, Any]:
        return {"revision": self.config.revision, "dtype": self.config.dtype, "max_new_tokens": self.config.max_tokens}

    async def answer(self, question: Question) -> tuple[dict[str, Any], bool]:
        request = {
            "model": self.name,
            "text": question.text,
            "media": question.media(),
            "turns": question.turns,
            **self.parameters(),
        }
        key = _key(question, self.name, request)
        return await once(self._store.answers, self._store.claims, key, lambda: self._ask(question, request))

    async def _ask(self, question: Question, request: dict[str, Any]) -> dict[str, Any]:
        self._stop.check()
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve())
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        await self._waiting.put((question, future))
        return {
            "step": question.step,
            "model": self.name,
            "media_sha256": question.clip.sha256,
            "request": request,
            **await future,
        }

    async def _serve(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(0.02)  # others that are about to ask
            while len(batch) < self.config.batch_size and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                rows = await asyncio.to_thread(self._generate, [question for question, _ in batch])
            except (UserError, ValueError, OSError, ImportError, RuntimeError) as error:
                for _, future in batch:  # the questioner decides what becomes of it
                    future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                future.set_result(row)

    def _generate(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        if self._chat is None:
            from affectgpt.chat.local import load

            config = self.config
            log.info("loading %s", self.name)
            self._chat = load(self.name, config.revision, device=config.device, dtype=config.dtype)
        started = time.monotonic()
        replies: list[Reply] = self._chat.answer([self._request(item) for item in questions], self.config.max_tokens)
        seconds = (time.monotonic() - started) / len(questions)
        return [
            {
                "text": reply.text,
                "finish": reply.finish,
                "tokens_in": reply.n_prompt_tokens,
                "tokens_out": reply.n_new_tokens,
                "cost": 0.0,
                "seconds": round(seconds, 3),
            }
            for reply in replies
        ]

    def _request(self, question: Question) -> Request:
        from affectgpt.chat.local import Request

        chat = self._chat
        assert chat is not None
        if unseen := set(question.shows) - chat.sees:
            raise UserError(
                f"{self.name} takes {sorted(chat.sees) or 'text only'}, and step {question.step!r} shows "
                f"{sorted(unseen)}; choose another model for it (annotator@vision=, annotator@audio=, annotator@text=)"
            )
        text = "\n\n".join([question.text, *(item for turn in question.turns for item in turn)])
        request = Request(text)
        if sampling := question.shows.get("images"):
            frames = question.clip.frames(chat.kind.n_frames or sampling["n_frames"], sampling.get("at_s"))
            request = replace(request, images=frames.images, times_s=frames.times_s)
        if "sound" in question.shows:
            sound = question.clip.sound(chat.rate_hz or 16000)
            if chat.max_sound_s is not None and sound.duration_s > chat.max_sound_s:
                n = int(chat.max_sound_s * sound.rate_hz)
                sound = replace(sound, samples=sound.samples[:n], duration_s=n / sound.rate_hz)
            request = replace(request, sound=sound)
        return request

    async def close(self) -> None:
        if self._loop is not None:
            self._loop.cancel()


class Local:
    """No model: `affectgpt.annotate.local` answers from what was measured. Nothing is stored, since nothing is paid."""

    name = "local-rules"
    sees = frozenset(["images", "sound"])
    structured = True
    retries = 0

    def __init__(self, config: AnnotatorConfig) -> None:
        self.config = config

    def parameters(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        return


Annotator = Served | InProcess | Local


def make_annotator(config: AnnotatorConfig, store: Store, stop: Stop, purse: Purse) -> Annotator:
    """The annotator that `config` describes; a model is loaded on its first question."""
    if config.kind not in KINDS:
        raise UserError(f"annotator.kind is {config.kind!r}; expected one of {list(KINDS)}")
    if set(config.sees) - {"images", "sound"}:
        raise UserError(f"annotator.sees is {config.sees}; expected some of images, sound")
    if config.kind == "local":
        return Local(config)
    return Served(config, store, stop, purse) if config.kind == "openai" else InProcess(config, store, stop)


def decides(config: AnnotatorConfig) -> dict[str, Any]:
    """The settings of an annotator that decide what it answers; part of a record's key."""
    if config.kind == "local":
        from affectgpt.annotate.local import VERSION

        return {"kind": "local", "version": VERSION}
    names = ("model", "revision", "structured", "temperature", "max_tokens", "seed", "extra", "longest_px", "dtype")
    values = asdict(config)
    return {"kind": config.kind, "code": CODE_VERSION, **{name: values[name] for name in names}}


def _key(question: Question, model: str, request: Mapping[str, Any]) -> str:
    return stable_hash([CODE_VERSION, question.clip.sha256, question.step, model, request])


def _message(response: httpx.Response) -> str:
    """What a server says of an error: the message of the protocol's error object, else the beginning of its text."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _retry_after_s(header: str | None, otherwise: float) -> float:
    """Seconds of a Retry-After header (the date form is rare and ignored), at most 300."""
    try:
        return min(300.0, max(0.0, float(header))) if header else otherwise
    except ValueError:
        return otherwise
