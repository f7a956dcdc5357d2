"""Many requests to any OpenAI-compatible server, with a log of the answers.

Answers are appended to a JSONL file, one line per request, under the hash of the complete request (model, messages,
sampling parameters). So a run that was killed sends only the missing requests, a score can be recomputed without a
server (`offline=True`), and the file shows what was asked. The server's address is recorded but is not part of the key:
the same model at another address is the same model. In key and file, images and audio are replaced by their hashes:
eight frames per clip would make the file a second copy of the data set.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.chat.completion import REFUSED
from affectgpt.chat.concurrency import StopSignal, for_each
from affectgpt.chat.request import Reply, Request
from affectgpt.chat.transport import ChatError, Endpoint, Known, RequestFailed, Server
from affectgpt.journal import Journal, read_journal
from affectgpt.media import Waveform
from affectgpt.runtime import InputError, stable_hash

if TYPE_CHECKING:
    import numpy as np


def image_part(image: np.ndarray, longest_px: int | None = None) -> dict[str, Any]:
    """uint8 [H,W,3] RGB as a JPEG part of a message, scaled down so that no side is longer than `longest_px`."""
    from PIL import Image

    picture, file = Image.fromarray(image), io.BytesIO()
    if longest_px is not None:
        picture.thumbnail((longest_px, longest_px))
    picture.save(file, "JPEG", quality=90)
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_base64(file)}"}}


def sound_part(sound: Waveform) -> dict[str, Any]:
    """Mono sound as a 16-bit WAV part of a message; samples beyond full scale are clipped."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sound.rate_hz)
        out.writeframes((sound.samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return {"type": "input_audio", "input_audio": {"data": _base64(file), "format": "wav"}}


def _base64(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode()


def media_parts(request: Request, longest_px: int | None = None) -> list[dict[str, Any]]:
    """The images and the sound of a request as parts of a message."""
    images = () if request.images is None else request.images
    return [image_part(image, longest_px) for image in images] + ([sound_part(request.sound)] if request.sound else [])


def messages_of(request: Request, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a request, with `parts` for its media."""
    content: Any = [*parts, {"type": "text", "text": request.prompt}] if parts else request.prompt
    messages = [{"role": "user", "content": content}]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    for number, text in enumerate(request.turns):
        messages.append({"role": "user" if number % 2 else "assistant", "content": text})
    return messages


class ChatClient:
    """A chat model on a server, asked at temperature 0; the answers are logged.

    Args:
        model: name to send; pin an exact version, because it is in every report.
        cache: JSONL file of the answers.
        concurrency: requests in flight.
        max_tokens: longest answer; part of the key.
        max_tokens_name, temperature: the request field of `max_tokens`, and the temperature (None = not sent). A server
            that refuses them is noticed, see `transport.Known`; with them set, its first refusal is saved.
        longest_px: images are scaled down to this.
        offline: answer from the log only; a missing answer is an error.
        server: base_url, api_key_env, max_retries, backoff_s, timeout_s ..., see `transport.Server`.

    Raises:
        InputError: a setting does not exist, or is out of range.

    Attributes:
        where: model and address of the server, for messages.
        n_asked, n_cached: requests answered by the server and from the log.
        n_refused, n_empty: of these answers, those that the model or its provider refused, and other empty ones.
    """

    sees = frozenset(["images", "sound"])
    n_frames: int | None = None
    rate_hz: int | None = None
    max_sound_s: float | None = None

    def __init__(
        self,
        model: str,
        *,
        cache: str | Path,
        concurrency: int = 8,
        max_tokens: int = 512,
        max_tokens_name: str = "max_tokens",
        temperature: float | None = 0.0,
        longest_px: int | None = None,
        offline: bool = False,
        **server: Any,
    ) -> None:
        if concurrency < 1:
            raise InputError(f"concurrency is {concurrency}; expected at least 1")
        known = [item.name for item in fields(Server)]
        if unknown := sorted(server.keys() - set(known)):
            raise InputError(f"a chat model on a server has no setting {unknown[0]!r}; expected some of {known}")
        self.name = model
        self.n_asked = self.n_cached = self.n_refused = self.n_empty = 0
        self._cache, self._offline = Path(cache), offline
        self._concurrency, self._max_tokens, self._longest_px = concurrency, max_tokens, longest_px
        self._server = Server(**server)
        self._max_tokens_name, self._temperature = max_tokens_name, temperature
        self._known = Known()
        self.where = Endpoint(model, self._server, StopSignal()).where

    def answer(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, *, refused_is_empty: bool = False
    ) -> list[Reply]:
        """Answers in the order of `requests`; equal requests are sent once.

        Args:
            refused_is_empty: a request that the server refuses has an empty answer with the finish "refusal", unless it
                refuses all.

        Raises:
            ChatError: some requests got no answer; the answers to all others are in the log.
        """
        n_before = self.n_asked
        answers = self.try_answer(requests, max_new_tokens)
        failures = {id(answer): answer for answer in answers if isinstance(answer, RequestFailed)}
        is_fine = refused_is_empty and all(failure.is_refusal for failure in failures.values())
        if failures and not (is_fine and any(isinstance(answer, Reply) for answer in answers)):
            n_new, n_failed = self.n_asked - n_before, len(failures)  # equal requests fail together
            raise ChatError(
                f"{n_failed} of {n_new + n_failed} requests to {self.where} failed; first: "
                f"{next(iter(failures.values()))}. {n_new} new answers are in {self._cache}: the same command asks "
                "only for the rest"
            )
        self.n_refused += len(failures)
        return [answer if isinstance(answer, Reply) else Reply("", 0, 0, "refusal") for answer in answers]

    def try_answer(self, requests: Sequence[Request], max_new_tokens: int | None = None) -> list[Reply | RequestFailed]:
        """`answer`, with the error in place of each answer that there is none of.

        Raises:
            ChatError: no request to this server gets an answer, or an answer is not in the log and `offline` is set.
        """
        bodies = [self._body(request, max_new_tokens) for request in requests]
        keys = [stable_hash(_recorded(body)) for body in bodies]
        unique = dict(zip(keys, bodies, strict=True))
        missing = {key: body for key, body in unique.items() if self._stored(key) is None}
        self.n_cached += len(unique) - len(missing)
        if missing and self._offline:
            raise ChatError(
                f"{len(missing)} of {len(unique)} answers of {self.name!r} are not in {self._cache} and offline is "
                "set; run once with a server"
            )
        failures = self._ask_server(missing) if missing else {}
        replies = {key: reply for key in unique if (reply := self._stored(key)) is not None}
        refused = {key for key, reply in replies.items() if reply.finish in REFUSED}
        self.n_refused += len(refused)
        self.n_empty += sum(not reply.text.strip() for key, reply in replies.items() if key not in refused)
        return [failures[key] if key in failures else replies[key] for key in keys]

    def _stored(self, key: str) -> Reply | None:
        """The answer in the log; one whose text is no text, from an earlier release, counts as missing."""
        row = self._log.get(key)
        if row is None or not isinstance(row.get("text"), str):
            return None
        finish = row.get("finish") or ""
        return Reply(row["text"], 0, 0, "eos" if finish == "stop" else finish)

    def _body(self, request: Request, max_new_tokens: int | None) -> dict[str, Any]:
        messages = messages_of(request, media_parts(request, self._longest_px))
        return {
            "model": self.name,
            "messages": messages,
            **({} if self._temperature is None else {"temperature": self._temperature}),
            self._max_tokens_name: self._max_tokens if max_new_tokens is None else max_new_tokens,
        }

    @cached_property
    def _log(self) -> Any:
        """The answers by key: a journal, or offline a dictionary, for which a read-only file will do."""
        if self._offline:
            return {row["key"]: row for row in read_journal(self._cache)}
        return Journal(self._cache)

    def _ask_server(self, missing: Mapping[str, Mapping[str, Any]]) -> dict[str, RequestFailed]:
        """Ask for what is missing; returns the failures by key.

        It runs in an event loop of its own: a notebook has one in this thread already.
        """
        loop, stop = asyncio.new_event_loop(), StopSignal()
        try:
            with ThreadPoolExecutor(1, "chat") as thread:
                work = thread.submit(loop.run_until_complete, self._ask_all(missing, stop))
                try:
                    return work.result()
                except BaseException:  # an interrupt: requests in flight are paid, so their answers are awaited
                    loop.call_soon_threadsafe(stop.set, "interrupt")
                    raise
        finally:
            loop.close()

    async def _ask_all(self, missing: Mapping[str, Mapping[str, Any]], stop: StopSignal) -> dict[str, RequestFailed]:
        endpoint = Endpoint(self.name, self._server, stop, self._known)
        failures: dict[str, RequestFailed] = {}

        async def ask(item: tuple[str, Mapping[str, Any]]) -> None:
            key, body = item
            try:
                completion = await endpoint.complete(body)
            except RequestFailed as error:
                failures[key] = error
                return
            row = {
                "key": key,
                "request": _recorded(body),
                "text": completion.text,
                "finish": completion.finish,
                "answered_by": completion.answered_by,
                "server": endpoint.where,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                **({"refusal": completion.refusal} if completion.refusal else {}),
                **({"adapted": completion.adapted} if completion.adapted else {}),
            }
            await self._log.put(row)
            self.n_asked += 1

        try:
            await for_each(iter(missing.items()), ask, n_workers=self._concurrency, stop=stop)
        finally:
            await endpoint.close()
        return failures


def _recorded(value: Any) -> Any:
    """A request body with media replaced by their hash."""
    if isinstance(value, Mapping):
        if value.get("type") in ("image_url", "input_audio"):
            payload = value["image_url"]["url"] if "image_url" in value else value["input_audio"]["data"]
            return {"type": value["type"], "sha256": hashlib.sha256(payload.encode()).hexdigest()}
        return {key: _recorded(item) for key, item in value.items()}
    return [_recorded(item) for item in value] if isinstance(value, list) else value
