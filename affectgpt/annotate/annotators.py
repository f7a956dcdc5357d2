"""Annotators, which answer the questions of a pipeline: a server, a model in this process, or rules without a model.

An annotator is a class with the attributes of `Annotator`, found by its `kind` in `ANNOTATORS` or as "module:Class".

Every answer is stored before it is used. It is found by the hash of everything that decides it: the clip's files, the
step, the model and the complete request, in which media are described by what is shown of which file. So no media are
decoded for an answer that is stored. The server's address, the rate limits and the prices are not part of the hash.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from typing import Any, ClassVar, Protocol

from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.local import RULES_VERSION
from affectgpt.annotate.store import Store
from affectgpt.chat.batches import Batcher
from affectgpt.chat.concurrency import StopSignal
from affectgpt.chat.constrained import require_llguidance
from affectgpt.chat.request import Chat, Request, first_seconds
from affectgpt.chat.served import media_parts, messages_of
from affectgpt.chat.transport import Endpoint, Server
from affectgpt.config import AnnotatorConfig
from affectgpt.journal import get_or_make
from affectgpt.runtime import UserError, redacted, stable_hash

log = logging.getLogger("affectgpt")

CODE_VERSION = "1"
"""Changes whenever the same request would be sent in another way."""

PICTURES_VERSION = "2"
"""Changes whenever the same sampling gives other pictures."""

STRUCTURED = ("json_schema", "json_object", "prompt", "none")


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
    clip: ClipMedia
    shows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    turns: tuple[tuple[str, str], ...] = ()

    def media(self) -> list[dict[str, Any]]:
        """The description of what is shown, for the key and the stored request."""
        return [{"type": name, "of": self.clip.sha256, **sampling} for name, sampling in self.shows.items()]

    def key(self, model: str, request: Mapping[str, Any]) -> str:
        """The key of the answer to `request`, the question as it is stored."""
        code = f"{CODE_VERSION} {PICTURES_VERSION}" if "images" in self.shows else CODE_VERSION
        return stable_hash([code, self.clip.sha256, self.step, model, request])

    def request(self, chat: Chat | None = None) -> Request:
        """The question with its media decoded, as `chat` takes them; None = as a server does."""
        images = times_s = sound = None
        if sampling := self.shows.get("images"):
            frames = self.clip.frames(sampling["n_frames"], sampling.get("at_s"), sampling.get("crop", False))
            images, times_s = frames.images, frames.times_s
        if "sound" in self.shows:
            sound = self.clip.sound((chat and chat.rate_hz) or 16000)
            sound = first_seconds(sound, chat and chat.max_sound_s)
        return Request(self.text, images, times_s, sound, turns=tuple(chain.from_iterable(self.turns)))


def estimate_tokens(text: str) -> int:
    """About four ASCII characters per token, and one token for every other character; for limits and estimates."""
    n_ascii = len(text.encode("ascii", "ignore"))
    return n_ascii // 4 + len(text) - n_ascii + 1


def media_tokens(media: Sequence[Mapping[str, Any]], config: AnnotatorConfig, sound_s: float) -> int:
    """Estimated tokens of what is shown, by the settings of the annotator."""
    return round(
        sum(
            config.tokens_per_image * item.get("n_frames", 1)
            if item["type"] == "images"
            else config.tokens_per_second * sound_s
            for item in media
        )
    )


@dataclass
class Budget:
    """What the folder's calls may cost in total, in the currency of the prices; None = no limit.

    A call is made only if what was paid, the most that calls in flight can cost and the most that it can cost itself
    stay within the limit. Processes do not see each other's calls in flight, so together they may exceed it by those.
    """

    limit: float | None
    store: Store
    stop: StopSignal
    reserved: float = 0.0
    n_reserved: int = 0

    async def reserve(self, most: float) -> None:
        """Wait until `most` certainly fits: calls in flight may cost less than they could. Else stop the run."""
        while self.limit is not None:
            self.store.answers.refresh()  # what other processes have paid
            if self.store.cost + self.reserved + most <= self.limit:
                break
            if not self.n_reserved:
                self.stop.set("budget")
                self.stop.check()
            await self.stop.sleep(0.01)
        self.reserved += most
        self.n_reserved += 1

    def release(self, most: float) -> None:
        """The call of a reservation has ended, and its cost is counted."""
        self.n_reserved -= 1
        self.reserved = self.reserved - most if self.n_reserved else 0.0


class Annotator(Protocol):
    """What a pipeline needs of an annotator; it is constructed with (config, store, stop, budget).

    Attributes:
        asks_model: False = it answers from the measured evidence alone, by rules, and its answers are not stored.
        in_process: it loads a model into this process, which may need a GPU.
        name: the model's name, in keys and provenance.
        sees: what it can be shown: "images", "sound".
        structured: it answers with a JSON object; False = with plain text.
        retries: requests that were sent again.
        enforces_schema: (optional) its decoding cannot leave the schema of a question.
        n_frames: (optional) the one number of pictures that it takes; None = any. Steps show it as many.
    """

    asks_model: ClassVar[bool]
    in_process: ClassVar[bool]
    config: AnnotatorConfig
    name: str

    @property
    def sees(self) -> frozenset[str]: ...

    @property
    def structured(self) -> bool: ...

    @property
    def retries(self) -> int: ...

    def parameters(self) -> dict[str, Any]:
        """What decides an answer besides the question."""

    async def answer(self, question: Question) -> tuple[dict[str, Any], bool]:
        """The stored or new answer (text, tokens_in, tokens_out, seconds), and whether it is new."""

    async def close(self) -> None: ...


class Served:
    """A model on an OpenAI-compatible server: OpenAI, vLLM, SGLang, or `python -m affectgpt.serve`."""

    asks_model, in_process = True, False

    def __init__(self, config: AnnotatorConfig, store: Store, stop: StopSignal, budget: Budget) -> None:
        if not config.model:
            raise UserError("annotator.model= is missing: the name of the model that the server has")
        _check_structured(config)
        if budget.limit is not None and (config.price_in is None or config.price_out is None):
            raise UserError(
                f"a budget needs prices: set price_in and price_out of {config.model} (per million tokens), as in your "
                "provider's price list; 0 for a server of your own"
            )
        for name, value in (("price_in", config.price_in), ("price_out", config.price_out), ("budget", budget.limit)):
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; expected a finite number of at least 0")
        self.config, self.name = config, config.model
        self.sees = frozenset(config.sees)
        self.structured = config.structured != "none"
        self._store, self._stop, self._budget = store, stop, budget
        self._slots = asyncio.Semaphore(config.concurrency)
        server = Server(**{item.name: getattr(config, item.name) for item in fields(Server)})
        self._endpoint = Endpoint(config.model, server, stop)

    @property
    def retries(self) -> int:
        return self._endpoint.retries

    def parameters(self) -> dict[str, Any]:
        """What decides answers besides the question."""
        config = self.config
        chosen: dict[str, Any] = {config.max_tokens_name: config.max_tokens}
        if config.temperature is not None:
            chosen["temperature"] = config.temperature
        if config.seed is not None:
            chosen["seed"] = config.seed
        return {**chosen, **config.extra}

    async def answer(self, question: Question) -> tuple[dict[str, Any], bool]:
        """The stored or new answer, and whether it is new."""
        shown = [{**item, "longest_px": self.config.longest_px} for item in question.media()]
        text = Request(question.text, turns=tuple(chain.from_iterable(question.turns)))
        request = self._body(question, messages_of(text, shown))
        reserved: list[float] = []

        async def ask() -> dict[str, Any]:
            return await self._ask(question, request, reserved)

        try:
            return await get_or_make(self._store.answers, self._store.claims, question.key(self.name, request), ask)
        finally:
            for most in reserved:  # not before the answer's cost is counted, which is when it is stored
                self._budget.release(most)

    async def _ask(self, question: Question, request: dict[str, Any], reserved: list[float]) -> dict[str, Any]:
        self._stop.check()
        n_in = estimate_tokens(json.dumps(request, ensure_ascii=False))
        async with self._slots:
            self._stop.check()
            sound_s = (await asyncio.to_thread(question.clip.sound)).duration_s if "sound" in question.shows else 0.0
            n_in += media_tokens(question.media(), self.config, sound_s)
            most = self.cost(n_in, self.config.max_tokens)
            await self._budget.reserve(most)
            reserved.append(most)
            body = request
            if question.shows:
                body = self._body(question, await asyncio.to_thread(self._messages, question))
            started = time.monotonic()
            completion = await self._endpoint.complete(body, n_in + self.config.max_tokens)
            seconds = time.monotonic() - started
        return {
            "step": question.step,
            "model": self.name,
            "media_sha256": question.clip.sha256,
            "request": {**redacted({**request, "messages": None}), "messages": request["messages"]},
            "text": completion.text,
            "finish": completion.finish,
            "tokens_in": completion.tokens_in,
            "tokens_out": completion.tokens_out,
            "cost": self.cost(completion.tokens_in or 0, completion.tokens_out or 0),
            "seconds": round(seconds, 3),
            "answered_by": completion.answered_by,
            "server": self._endpoint.address,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **({"refusal": completion.refusal} if completion.refusal else {}),
            **({"adapted": completion.adapted} if completion.adapted else {}),
        }

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """In the currency of the prices; 0 without prices."""
        return (tokens_in * (self.config.price_in or 0) + tokens_out * (self.config.price_out or 0)) / 1e6

    def _messages(self, question: Question) -> list[dict[str, Any]]:
        request = question.request()
        return messages_of(request, media_parts(request, self.config.longest_px))

    def _body(self, question: Question, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = {"model": self.name, "messages": messages, **self.parameters()}
        if self.config.structured == "json_schema":
            form = {"name": question.step, "strict": True, "schema": dict(question.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self.config.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    async def close(self) -> None:
        await self._endpoint.close()


def _check_structured(config: AnnotatorConfig) -> None:
    if config.structured not in STRUCTURED:
        raise UserError(f"annotator.structured is {config.structured!r}; expected one of {list(STRUCTURED)}")


class InProcess:
    """A transformers model in this process, loaded on the first question; waiting questions are answered together.

    With structured=json_schema the model can write nothing but what the question's schema allows, with json_object
    nothing but a JSON object.
    """

    asks_model, in_process = True, True
    retries = 0

    def __init__(self, config: AnnotatorConfig, store: Store, stop: StopSignal, budget: Budget) -> None:
        if not config.model:
            raise UserError("annotator.model= is missing: a hub id or a folder with a model")
        _check_structured(config)
        if config.structured in ("json_schema", "json_object"):
            require_llguidance(f"annotator.structured={config.structured}")
        self.config, self.name = config, config.model
        self.sees = frozenset(config.sees)
        self.structured = config.structured != "none"
        self.enforces_schema = config.structured == "json_schema"
        self._store, self._stop = store, stop
        self._batcher = Batcher(self._generate, max_batch=config.batch_size, max_wait_s=0.02)
        self._work: asyncio.Task[None] | None = None
        self._chat: Chat | None = None

    @functools.cached_property
    def n_frames(self) -> int | None:
        from affectgpt.chat.local import frames_of

        return frames_of(self.name, self.config.revision)

    def parameters(self) -> dict[str, Any]:
        return {"revision": self.config.revision, "dtype": self.config.dtype, "max_new_tokens": self.config.max_tokens}

    async def answer(self, question: Question) -> tuple[dict[str, Any], bool]:
        """The stored or new answer, and whether it is new."""
        request = {
            "model": self.name,
            "text": question.text,
            "media": question.media(),
            "turns": question.turns,
            **({"schema": schema} if (schema := self._schema(question)) is not None else {}),
            **self.parameters(),
        }

        async def ask() -> dict[str, Any]:
            self._stop.check()
            if self._work is None:
                self._work = asyncio.create_task(self._batcher.run())
            about = {"step": question.step, "model": self.name, "media_sha256": question.clip.sha256}
            return {**about, "request": request, **await self._batcher.put(question)}

        return await get_or_make(self._store.answers, self._store.claims, question.key(self.name, request), ask)

    def _schema(self, question: Question) -> Mapping[str, Any] | None:
        if self.config.structured == "json_object":
            return {"type": "object"}
        return question.schema if self.config.structured == "json_schema" else None

    def _generate(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        if self._chat is None:
            from affectgpt.chat.local import load

            config = self.config
            log.info("loading %s", self.name)
            self._chat = load(self.name, config.revision, device=config.device, dtype=config.dtype)
        for question in questions:
            if unseen := set(question.shows) - self._chat.sees:
                raise UserError(
                    f"{self.name} takes {sorted(self._chat.sees) or 'text only'}, and step {question.step!r} shows "
                    f"{sorted(unseen)}; choose another model for it (annotator@vision=, annotator@audio=, "
                    "annotator@text=)"
                )
        started = time.monotonic()
        requests = [replace(question.request(self._chat), schema=self._schema(question)) for question in questions]
        replies = self._chat.answer(requests, self.config.max_tokens)
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

    async def close(self) -> None:
        if self._work is not None:
            self._work.cancel()


class Local:
    """No model: `affectgpt.annotate.local` answers from the measured evidence. Its answers cost nothing."""

    asks_model, in_process = False, False
    name = "local-rules"
    sees = frozenset(["images", "sound"])
    structured = True
    retries = 0

    def __init__(self, config: AnnotatorConfig, store: Store, stop: StopSignal, budget: Budget) -> None:
        self.config = config

    def parameters(self) -> dict[str, Any]:
        return {}

    async def answer(self, question: Question) -> tuple[dict[str, Any], bool]:
        raise TypeError("rules answer through affectgpt.annotate.local, not to questions in words")

    async def close(self) -> None:
        return


ANNOTATORS: dict[str, type[Annotator]] = {"local": Local, "openai": Served, "transformers": InProcess}


def annotator_class(kind: str) -> type[Annotator]:
    """The class of an annotator: an entry of ANNOTATORS, or "module:Class"."""
    if ":" in kind:
        return named_object(kind, "annotator.kind")
    if kind not in ANNOTATORS:
        raise UserError(f"annotator.kind is {kind!r}; expected one of {list(ANNOTATORS)}, or module:Class")
    return ANNOTATORS[kind]


def named_object(name: str, where: str) -> Any:
    """The object that "module:attribute" names; `where` is the setting, for the error."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: {name} cannot be imported ({error})") from error


def make_annotator(config: AnnotatorConfig, store: Store, stop: StopSignal, budget: Budget) -> Annotator:
    """The annotator that `config` describes; a model is loaded on its first question."""
    make: Any = annotator_class(config.kind)
    if set(config.sees) - {"images", "sound"}:
        raise UserError(f"annotator.sees is {config.sees}; expected some of images, sound")
    return make(config, store, stop, budget)


def decides(config: AnnotatorConfig) -> dict[str, Any]:
    """The settings of an annotator that decide its answers; part of a record's key."""
    if config.kind == "local":
        return {"kind": "local", "version": RULES_VERSION}
    names = ("model", "revision", "structured", "temperature", "max_tokens", "seed", "extra", "longest_px", "dtype")
    values = asdict(config)
    return {"kind": config.kind, "code": CODE_VERSION, **{name: values[name] for name in names}}
