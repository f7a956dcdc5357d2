"""A model behind the protocol of OpenAI's API. Requests that arrive together are answered in one batch.

The way of a request: `Gate` (key, room for it) -> `read_ask` (JSON to an `Ask`) -> the model's `prepare`, in a thread
(decode media, write the prompt) -> `Batcher` (one generation at a time) -> JSON or server-sent events. What a request
may hold, and what becomes of it: docs/serve.md.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import io
import json
import logging
import math
import os
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.conf_schema import ServeConfig
from affectgpt.prompts import LANGUAGES, MODALITIES, TASKS, Message
from affectgpt.runtime import UserError

if TYPE_CHECKING:
    import numpy as np
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from affectgpt.loading import LoadedModel
    from affectgpt.mllm import TransformersChat

log = logging.getLogger("affectgpt")

KEY_VARIABLE = "AFFECTGPT_API_KEY"
HELP = "see docs/serve.md"
BODY_TIMEOUT_S = 60.0
KEEP_ALIVE_S = 10.0  # between comments in a stream that waits for its answer

_CONTAINERS = "mov,matroska,avi,wav,mp3,flac,ogg,aac,mpegts,flv,asf"
"""Demuxers of ffmpeg that requests may reach: files that hold media. Others (concat, hls, dash ...) hold names of
files, and would open them."""
_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
_USED = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream"}
_USED |= {"stream_options", "affectgpt"}
_IDLE = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of the protocol that are not implemented, with the values (besides null) under which that changes nothing."""


class Problem(Exception):
    """A request that gets no answer, as the protocol reports it; `param` is the field of the request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_s = retry_s

    def body(self) -> dict[str, Any]:
        kind = _ERROR_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        from starlette.responses import JSONResponse

        headers = {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Medium:
    """A picture, video or sound of a request: bytes, or a file of the media folder.

    Attributes:
        where: its place in the request, for messages.
        kind: of the bytes, where the request says it: wav or mp3.
    """

    where: str
    data: bytes | None = None
    path: Path | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Wish:
    """How an answer is written; requests with equal wishes can be generated together. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Options:
    """The field `affectgpt` of a request."""

    task: str | None = None
    lang: str = "en"
    subtitle: str | None = None
    candidates: tuple[str, ...] = ()
    modalities: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Ask:
    """A request that has been read.

    Attributes:
        turns: (role, text), from the first user message to the last; media stand beside, since all of one clip.
    """

    turns: tuple[tuple[str, str], ...]
    wish: Wish
    system: str | None = None
    images: tuple[Medium, ...] = ()
    video: Medium | None = None
    sound: Medium | None = None
    options: Options | None = None
    stream: bool = False
    include_usage: bool = False


def read_ask(body: Any, name: str, config: ServeConfig) -> Ask:
    """Read the body of a chat completion.

    Args:
        name: the model that is served.

    Raises:
        Problem: a field is missing, of a wrong kind, or asks for what this server does not do.
    """
    if not isinstance(body, dict):
        raise Problem(400, f"the body is {_short(body)}; expected a JSON object")
    if (asked := _get(body, "model", str)) != name:
        what = f"model {asked!r} is not served here" if asked else "model is missing"
        raise Problem(404 if asked else 400, f"{what}; expected {name!r}", param="model", code="model_not_found")
    for key, value in body.items():
        neutral = _NEUTRAL.get(key)
        if value is None or key in _USED or key in _IDLE or (neutral is not None and value in neutral):
            continue
        if key == "response_format":
            text = "the form of answers cannot be enforced here; ask for it in words and leave response_format out"
            raise Problem(400, f"{text} (annotate: annotator.structured=prompt)", param=key, code="unsupported_value")
        expected = f"{_short(neutral[0])} or nothing" if neutral else f"no such field; {HELP}"
        raise Problem(400, f"{key} is {_short(value)}; expected {expected}", param=key, code="unsupported_parameter")
    images, video, sound, system, turns = _read_messages(body.get("messages"), config)
    stream_options = _get(body, "stream_options", dict, {})
    return Ask(
        turns,
        _read_wish(body, config),
        system,
        images,
        video,
        sound,
        _read_options(body.get("affectgpt")),
        _get(body, "stream", bool, False),
        _get(stream_options, "include_usage", bool, False, "stream_options."),
    )


def _read_wish(body: Mapping[str, Any], config: ServeConfig) -> Wish:
    names = ("max_completion_tokens", "max_tokens")
    name = next((name for name in names if body.get(name) is not None), names[1])
    longest = _get(body, name, int, config.max_new_tokens)
    if not 1 <= longest <= config.max_tokens_limit:
        raise Problem(400, f"{name} is {longest}; expected 1 to {config.max_tokens_limit}", param=name)
    temperature, top_p = _get(body, "temperature", float, 0.0), _get(body, "top_p", float, 1.0)
    if not 0 <= temperature <= 2:
        raise Problem(400, f"temperature is {temperature:g}; expected 0 to 2", param="temperature")
    if not 0 < top_p <= 1:
        raise Problem(400, f"top_p is {top_p:g}; expected above 0 and at most 1", param="top_p")
    seed = _get(body, "seed", int)
    if seed is not None and not 0 <= seed < 2**63:
        raise Problem(400, f"seed is {seed}; expected 0 to 2^63 - 1", param="seed")
    return Wish(longest, temperature, top_p, seed) if temperature else Wish(longest)


def _read_options(value: Any) -> Options | None:
    if value is None:
        return None
    if not isinstance(value, dict) or (odd := sorted(set(value) - set(Options.__dataclass_fields__))):
        found = _short(value) if not isinstance(value, dict) else f"an object with {odd}"
        fields = list(Options.__dataclass_fields__)
        raise Problem(400, f"affectgpt is {found}; expected an object with some of {fields}", param="affectgpt")
    lists = {}
    for name in ("candidates", "modalities"):
        lists[name] = words = _get(value, name, list, None, "affectgpt.")
        if words is not None and not all(isinstance(word, str) for word in words):
            raise Problem(
                400, f"affectgpt.{name} is {_short(words)}; expected a list of texts", param=f"affectgpt.{name}"
            )
    texts = {name: _get(value, name, str, None, "affectgpt.") for name in ("task", "lang", "subtitle")}
    for name, known in (("task", TASKS), ("lang", LANGUAGES)):
        if texts[name] is not None and texts[name] not in known:
            raise Problem(
                400, f"affectgpt.{name} is {texts[name]!r}; expected one of {list(known)}", param=f"affectgpt.{name}"
            )
    modalities = lists["modalities"]
    return Options(
        texts["task"],
        texts["lang"] or "en",
        texts["subtitle"],
        tuple(lists["candidates"] or ()),
        None if modalities is None else tuple(modalities),
    )


_Messages = tuple[tuple[Medium, ...], "Medium | None", "Medium | None", "str | None", tuple[tuple[str, str], ...]]


def _read_messages(messages: Any, config: ServeConfig) -> _Messages:
    """(images, video, sound, system message, turns)"""
    if not isinstance(messages, list) or not messages:
        raise Problem(400, f"messages is {_short(messages)}; expected a list of messages", param="messages")
    images: list[Medium] = []
    single: dict[str, Medium] = {}
    system, turns = None, []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise Problem(400, f"{where} is {_short(message)}; expected an object", param=where)
        role, content = message.get("role"), message.get("content")
        expected = ("user", "system", "developer") if place == 0 else ("user",) if not turns else ("user", "assistant")
        expected = tuple(name for name in expected if not turns or name != turns[-1][0])
        if role not in expected:
            raise Problem(
                400, f"{where}.role is {_short(role)}; expected {' or '.join(expected)}", param=f"{where}.role"
            )
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            found = f"{where}.content is {_short(content)}"
            raise Problem(400, f"{found}; expected a text or a list of parts", param=f"{where}.content")
        texts = []
        for number, part in enumerate(parts):
            at = f"{where}.content[{number}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                texts.append(_get(part, "text", str, "", f"{at}."))
            elif kind not in ("image_url", "video_url", "input_audio"):
                expected_types = "text, image_url, video_url or input_audio"
                raise Problem(400, f"{at}: type is {_short(kind)}; expected {expected_types}", param=at)
            elif role != "user" or turns:
                raise Problem(400, f"{at}: {kind} here; media belong into the first user message", param=at)
            elif kind == "image_url":
                images.append(_read_image(part, at))
            elif kind in single:
                raise Problem(400, f"{at}: a second {kind}; a request is about one clip", param=at)
            else:
                single[kind] = _read_video(part, at, config) if kind == "video_url" else _read_sound(part, at)
        if role in ("system", "developer"):
            system = "\n".join(texts)
        else:
            turns.append((role, "\n".join(texts)))
    if not turns or turns[-1][0] != "user":
        raise Problem(400, "the last message is not the user's; expected a user message to answer", param="messages")
    if images and "video_url" in single:
        raise Problem(400, "image_url and video_url together; expected one video or its frames", param="messages")
    if len(images) > config.max_images:
        raise Problem(400, f"{len(images)} image_url parts; expected at most {config.max_images}", param="messages")
    return tuple(images), single.get("video_url"), single.get("input_audio"), system, tuple(turns)


def _read_image(part: Mapping[str, Any], at: str) -> Medium:
    url = _get(_get(part, "image_url", dict, {}, f"{at}."), "url", str, "", f"{at}.image_url.")
    if not url.startswith("data:"):
        raise Problem(400, f"{at}: image_url is {_short(url)}; expected a data: URI (nothing is fetched)", param=at)
    return Medium(at, _data_of(url, at))


def _read_video(part: Mapping[str, Any], at: str, config: ServeConfig) -> Medium:
    url = _get(_get(part, "video_url", dict, {}, f"{at}."), "url", str, "", f"{at}.video_url.")
    if url.startswith("data:"):
        return Medium(at, _data_of(url, at))
    return Medium(at, path=path_below(config.media_folder, url, at))


def _read_sound(part: Mapping[str, Any], at: str) -> Medium:
    sound = _get(part, "input_audio", dict, {}, f"{at}.")
    kind = sound.get("format")
    if kind not in ("wav", "mp3"):
        raise Problem(400, f"{at}: format is {_short(kind)}; expected 'wav' or 'mp3'", param=at)
    return Medium(at, _decoded(_get(sound, "data", str, "", f"{at}.input_audio."), at), kind=kind)


def path_below(folder: str | None, url: str, at: str) -> Path:
    """The file that a request names, which must lie below `folder`, also once links in its path are followed.

    Raises:
        Problem: it does not, or there is no such file. For what lies outside, the text does not tell whether it exists.
    """
    name = url.removeprefix("file://")
    if folder is None:
        raise Problem(
            400, f"{at}: video_url is {_short(url)}; expected a data: URI (this server has no media_folder=)", param=at
        )
    root = Path(folder).expanduser().resolve()
    path = root if "\0" in name else (root / name).resolve()
    if not path.is_relative_to(root) or path == root or "://" in name:
        expected = "a data: URI, or a path below the server's media folder"
        raise Problem(400, f"{at}: video_url is {_short(url)}; expected {expected}", param=at)
    if not path.is_file():
        raise Problem(400, f"{at}: no file {_short(url)} below the server's media folder", param=at)
    return path


def _data_of(url: str, at: str) -> bytes:
    head, _, payload = url.partition(",")
    if not head.endswith(";base64"):
        raise Problem(400, f"{at}: the URI begins with {_short(head)}; expected data:<type>;base64,<data>", param=at)
    return _decoded(payload, at)


def _decoded(text: str, at: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(400, f"{at}: the data are no base64 ({error})", param=at) from None
    if not data:
        raise Problem(400, f"{at}: 0 bytes; expected a media file in base64", param=at)
    return data


def _get(values: Mapping[str, Any], name: str, kind: type, default: Any = None, where: str = "") -> Any:
    """The value of a field, or `default` if it is absent or null; Problem if it is of another kind."""
    value = values.get(name)
    if value is None:
        return default
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool) or value != value:
        words = {str: "a text", int: "an integer", float: "a number", bool: "true or false", dict: "an object"}
        expected = words.get(kind, "a list")
        raise Problem(400, f"{where}{name} is {_short(value)}; expected {expected}", param=f"{where}{name}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


# ---------------------------------------------------------------- media


class Files:
    """The media of one request as files, checked against the limits; what came as bytes lies in `folder`."""

    def __init__(self, folder: Path, config: ServeConfig) -> None:
        self._folder = folder
        self._config = config
        self._named: dict[str, str] = {}

    def path(self, medium: Medium | None) -> str | None:
        """The file of a video or sound."""
        if medium is None:
            return None
        path = medium.path
        if path is None:
            assert medium.data is not None
            path = self._folder / str(len(self._named))
            path.write_bytes(medium.data)
        self._named[str(path)] = medium.where
        check_media(path, medium, self._config)
        return str(path)

    def scrubbed(self, message: str) -> str:
        """`message` with places in the request instead of paths of this machine."""
        for path, where in self._named.items():
            message = message.replace(path, where)
        return message


def check_media(path: Path, medium: Medium, config: ServeConfig) -> None:
    """Raise Problem unless `path` holds media itself, in the stated format, of a size and length within the limits."""
    import av

    longest_s = 0.0
    try:
        with av.open(
            f"file:{path}",
            container_options={"protocol_whitelist": "file", "format_whitelist": _CONTAINERS},
            metadata_errors="ignore",
        ) as container:
            found = container.format.name
            streams = [stream for stream in container.streams if stream.type in ("video", "audio")]
            for stream in streams:
                if stream.type == "video" and stream.codec_context is not None:
                    _check_pixels(stream.codec_context.width, stream.codec_context.height, medium.where, config)
            # Headers may state anything; packets say how much there is to decode.
            sums = dict.fromkeys((stream.index for stream in streams), 0.0)
            for packet in container.demux(streams) if streams else ():
                sums[packet.stream_index] += float((packet.duration or 0) * (packet.time_base or 0))
                longest_s = max(longest_s, sums[packet.stream_index])
                if longest_s > config.max_media_s:
                    break
    except av.FFmpegError as error:
        expected = f"a media file that ffmpeg reads as one of {_CONTAINERS}"
        raise Problem(
            400, f"{medium.where}: cannot be read ({error.strerror}); expected {expected}", param=medium.where
        ) from None
    if medium.kind and found != medium.kind:
        raise Problem(400, f"{medium.where}: format says {medium.kind}, found {found}", param=medium.where)
    if longest_s > config.max_media_s:
        raise Problem(
            400, f"{medium.where}: longer than {config.max_media_s:g} s (max_media_s); cut it", param=medium.where
        )


def _check_pixels(width: int, height: int, where: str, config: ServeConfig) -> None:
    if width * height > config.max_megapixels * 1e6:
        most = f"{config.max_megapixels:g} megapixels (max_megapixels)"
        raise Problem(400, f"{where}: {width} x {height} pixels; expected at most {most}: shrink it", param=where)


def read_pictures(images: Sequence[Medium], n: int | None, config: ServeConfig) -> tuple[np.ndarray, list[int]]:
    """`n` of the pictures, spread evenly in their order as frames of a video are (None = all), and which they are.

    Returns:
        uint8 [T,H,W,3] RGB, and T indices; with fewer than `n` pictures some repeat.

    Raises:
        Problem: one cannot be read or is too large, or their sizes differ.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from affectgpt.media import uniform_indices

    pictures = []
    for medium in images:
        assert medium.data is not None
        try:
            picture = Image.open(io.BytesIO(medium.data), formats=("JPEG", "PNG", "WEBP"))
            _check_pixels(*picture.size, medium.where, config)
            pictures.append(np.asarray(ImageOps.exif_transpose(picture).convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).partition(" <")[0]
            raise Problem(
                400, f"{medium.where}: no picture to be read ({reason}); expected JPEG, PNG or WebP", param=medium.where
            ) from None
    if len(sizes := {picture.shape for picture in pictures}) > 1:
        found = sorted(f"{width} x {height}" for height, width, _ in sizes)
        raise Problem(400, f"pictures of {', '.join(found)} pixels; expected frames of one clip, all of one size")
    indices = uniform_indices(len(pictures), n or len(pictures)).tolist()
    return np.stack([pictures[index] for index in indices]), indices


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Prepared:
    """A request that only has to be generated.

    Attributes:
        inputs: what the model takes.
        facts: for the field `affectgpt` of the answer.
        reads_labels: whether labels are looked for in the answer.
    """

    inputs: Any
    wish: Wish
    facts: dict[str, Any]
    reads_labels: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer; `finish` is "eos" or "length", the counts are of this request alone, `facts` those of `Prepared`."""

    text: str
    n_prompt_tokens: int
    n_new_tokens: int
    finish: str
    facts: dict[str, Any]


class AffectGPT:
    """A checkpoint, asked in the steps of `affectgpt.inference.predict` by requests that differ in what they want."""

    def __init__(self, loaded: LoadedModel, config: ServeConfig) -> None:
        self.name = config.name or loaded.name
        self.sees: tuple[str, ...] = tuple(loaded.model.modalities)
        self._config = config
        self._model = loaded.model.eval()
        self._processor = loaded.processor
        self._reader = loaded.reader(backend=config.backend, cache_folder=None)

    def prepare(self, ask: Ask, files: Files) -> Prepared:
        """Decode what the model sees of the request and write its prompt; ValueError or Problem if that cannot be."""
        from affectgpt.data.sources import probe_sample
        from affectgpt.inference import Asking, shown_modalities
        from affectgpt.prompts import PROMPT_VERSION, render
        from affectgpt.schema import Sample

        options, processor = ask.options or Options(), self._processor
        asked = ask.turns[0][1].strip()
        if ask.system:
            raise Problem(400, "messages[0]: a system message; AffectGPT has none, expected a user message")
        if asked and (options.task or options.candidates):
            raise Problem(
                400,
                f"affectgpt.task {options.task!r} and the text {_short(asked)}; expected one of them: a task has its "
                "own question, and what the person says belongs into affectgpt.subtitle",
                param="affectgpt.task",
            )
        task = options.task or "both"
        asking = Asking(task, options.lang, options.candidates, options.modalities)
        sample = probe_sample(
            Sample(
                id="request",
                video=files.path(ask.video),
                audio=files.path(ask.sound),
                subtitle=options.subtitle,
                lang=options.lang,
            )
        )
        if ask.images:
            has = {"frames", *(sample.modalities or ())}
            sample = replace(sample, modalities=tuple(name for name in MODALITIES if name in has))
        shown: tuple[str, ...] = ()
        if sample.modalities or not asked:
            shown = processor.visible(shown_modalities(sample, self.sees, asking))
        is_pictures = bool(ask.images) and "frames" in shown
        features = self._reader(sample, [name for name in shown if not (is_pictures and name == "frames")])
        media, facts = dict(features.media), dict(features.facts)
        if is_pictures:
            n_frames = processor.branches["frames"]["n_frames"]
            media["frames"], indices = read_pictures(ask.images, n_frames, self._config)
            facts["frames"] = {"pictures": indices}
        # Later turns are the client's own words. `plain` keeps a placeholder in them from being taken for media.
        messages = render(
            sample,
            task=task,
            lang=options.lang,
            candidates=options.candidates,
            modalities=shown,
            asked=processor.plain(asked) or None,
        )
        messages += [Message(role, processor.plain(text)) for role, text in ask.turns[1:]]
        told = {
            "task": None if asked else task,
            "lang": options.lang,
            "modalities": [*shown, *(["text"] if options.subtitle else [])],
            "left_out": {
                name: self._why_not(name, ask, sample.modalities or ()) for name in self.sees if name not in shown
            },
            "media": facts,
            "prompt_version": PROMPT_VERSION,
        }
        return Prepared(processor.encode(messages, media), ask.wish, told, not asked and task != "description")

    def _why_not(self, name: str, ask: Ask, has: Sequence[str]) -> str:
        if ask.options and ask.options.modalities is not None and name not in ask.options.modalities:
            return "not asked for"
        if name in has:
            return "another modality stands in for it"
        if ask.images and name == "motion":
            return "the clip came as pictures, not as a video"
        return "not in the request"

    def generate(self, items: Sequence[Prepared]) -> list[Reply]:
        """Answers to requests with one wish."""
        from affectgpt.inference import Decoding, generate_texts
        from affectgpt.metrics.extract import read_labels
        from affectgpt.runtime import seed_everything

        wish = items[0].wish
        decoding = Decoding(len(items), wish.max_new_tokens)
        if wish.temperature:
            decoding = replace(decoding, do_sample=True, temperature=wish.temperature, top_p=wish.top_p)
        if wish.seed is not None:
            seed_everything(wish.seed)
        texts = generate_texts(self._model, self._processor, [item.inputs for item in items], decoding)
        replies = []
        for item, (text, n_new, finish) in zip(items, texts, strict=True):
            labels = {"labels": list(read_labels(text).labels)} if item.reads_labels else {}
            replies.append(Reply(text, len(item.inputs["input_ids"]), n_new, finish, {**item.facts, **labels}))
        return replies


class Chat:
    """Another chat model, through `affectgpt.mllm`."""

    def __init__(self, chat: TransformersChat, config: ServeConfig) -> None:
        self.name = config.name or chat.name
        self.sees: tuple[str, ...] = tuple(sorted(chat.sees))
        self._chat = chat
        self._config = config

    def prepare(self, ask: Ask, files: Files) -> Prepared:
        """Decode what the model sees of the request; ValueError or Problem if that cannot be."""
        from affectgpt.media import probe, read_audio, read_frames
        from affectgpt.mllm import Request

        chat = self._chat
        prompt = "\n\n".join(text for _, text in ask.turns)
        if ask.options is not None:
            raise Problem(400, f"affectgpt is for AffectGPT; {self.name} takes its question as text", param="affectgpt")
        if not ask.turns[0][1].strip():
            raise Problem(400, "no text in messages; expected a question", param="messages")
        if ask.wish.temperature:
            found = f"temperature is {ask.wish.temperature:g}"
            raise Problem(
                400, f"{found}; {self.name} answers greedily here: expected 0 or nothing", param="temperature"
            )
        for what, given in (("images", ask.images), ("sound", ask.sound)):
            if given and what not in chat.sees:
                raise Problem(400, f"{self.name} takes no {what}; it sees {list(self.sees) or 'text only'}")
        facts: dict[str, Any] = {}
        images = times_s = sound = None
        video, heard = files.path(ask.video), files.path(ask.sound)
        if video is not None:
            info = probe(video)
            if "images" in chat.sees and info.has_video:
                frames = read_frames(video, chat.kind.n_frames or self._config.n_frames, backend=self._config.backend)
                images, times_s = frames.images, frames.times_s
                facts["frames"] = {"times_s": [round(float(time), 3) for time in times_s]}
            if "sound" in chat.sees and info.has_audio:
                heard = heard or video
        elif ask.images:
            images, indices = read_pictures(ask.images, chat.kind.n_frames, self._config)
            facts["frames"] = {"pictures": indices}
        if heard is not None:
            assert chat.rate_hz is not None
            whole = read_audio(heard, chat.rate_hz)
            longest = len(whole.samples) if chat.max_sound_s is None else int(chat.max_sound_s * chat.rate_hz)
            samples = whole.samples[:longest]
            sound = replace(whole, samples=samples, duration_s=len(samples) / chat.rate_hz)
            facts["audio"] = {"heard_s": round(sound.duration_s, 3), "duration_s": round(whole.duration_s, 3)}
        if ask.video is not None and not facts:
            raise Problem(400, f"{ask.video.where}: {self.name} sees {list(self.sees)}, of which the video has nothing")
        request = Request(prompt, images, times_s, sound, ask.system)
        return Prepared(request, ask.wish, {"modalities": list(facts), "media": facts})

    def generate(self, items: Sequence[Prepared]) -> list[Reply]:
        """Answers to requests with one wish."""
        replies = self._chat.answer([item.inputs for item in items], items[0].wish.max_new_tokens)
        return [
            Reply(reply.text, reply.n_prompt_tokens, reply.n_new_tokens, reply.finish, item.facts)
            for item, reply in zip(items, replies, strict=True)
        ]


Served = AffectGPT | Chat


def load_served(config: ServeConfig) -> Served:
    """The model that `config` names; see `loading.load` and `mllm.load` for errors."""
    if config.model is None:
        from affectgpt.loading import load

        loaded = load(
            config.checkpoint,
            Path(config.paths.runs),
            device=config.device,
            dtype=config.dtype,
            quantization=config.quantization,
            base_models=config.base_models,
        )
        return AffectGPT(loaded, config)
    if config.checkpoint is not None or config.quantization is not None or config.base_models:
        raise UserError(
            "model= serves another chat model; checkpoint=, quantization= and base_models= are for AffectGPT"
        )
    from affectgpt.loading import quiet_libraries
    from affectgpt.mllm import load as load_chat

    quiet_libraries()
    return Chat(load_chat(config.model, config.revision, device=config.device, dtype=config.dtype or "auto"), config)


# ---------------------------------------------------------------- batches


@dataclass(eq=False)
class Job:
    """A request that waits for its answer."""

    item: Prepared
    future: asyncio.Future[Reply]
    arrived_s: float = field(default_factory=time.monotonic)

    def fits(self, other: Job) -> bool:
        """Whether both can be generated together; a seeded draw would depend on its neighbours."""
        return self is other or (self.item.wish == other.item.wish and self.item.wish.seed is None)


class Batcher:
    """Collects requests and generates for those with equal wishes together, one batch at a time.

    A batch starts when `max_batch` requests are there, or `max_wait_s` after its oldest one arrived. While it runs,
    others collect, so that the batches grow with the load.

    Attributes:
        waiting: requests that are in no batch yet.
        n_answered, n_batches, largest, last_s: for /health, and for what to tell those who must come again.
    """

    def __init__(
        self, generate: Callable[[Sequence[Prepared]], list[Reply]], *, max_batch: int, max_wait_s: float
    ) -> None:
        self.waiting: list[Job] = []
        self.n_answered = self.n_batches = self.largest = 0
        self.last_s = 0.0
        self._generate = generate
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._arrived = asyncio.Event()

    def put(self, item: Prepared) -> asyncio.Future[Reply]:
        """The answer to come; cancelling it takes the request out, if its batch does not run yet."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.waiting.append(Job(item, future))
        self._arrived.set()
        return future

    async def run(self) -> None:
        """Work until cancelled."""
        with ThreadPoolExecutor(1, "model") as thread:
            while True:
                batch = await self._next()
                started_s = time.monotonic()
                await self._answer(batch, thread)
                self.last_s = time.monotonic() - started_s

    async def _next(self) -> list[Job]:
        while True:
            self.waiting = [job for job in self.waiting if not job.future.cancelled()]
            left_s: float | None = None
            if self.waiting:
                oldest = self.waiting[0]
                batch = [job for job in self.waiting if job.fits(oldest)][: self._max_batch]
                left_s = oldest.arrived_s + self._max_wait_s - time.monotonic()
                if len(batch) == self._max_batch or left_s <= 0:
                    self.waiting = [job for job in self.waiting if job not in batch]
                    return batch
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left_s)

    async def _answer(self, batch: Sequence[Job], thread: ThreadPoolExecutor) -> None:
        work = asyncio.get_running_loop().run_in_executor(thread, self._generate, [job.item for job in batch])
        await asyncio.wait([work])
        error = work.exception()
        if error is not None and len(batch) > 1:  # one bad request shall not fail its neighbours
            log.warning("a batch of %d failed (%s); its requests are tried one by one", len(batch), error)
            for job in batch:
                await self._answer([job], thread)
            return
        self.n_batches += 1
        self.largest = max(self.largest, len(batch))
        for job, reply in zip(batch, [None] if error else work.result(), strict=True):
            if job.future.cancelled():
                continue
            if reply is None:
                assert error is not None
                job.future.set_exception(error)
            else:
                self.n_answered += 1
                job.future.set_result(reply)


# ---------------------------------------------------------------- HTTP


class Gate:
    """ASGI middleware: lets in who has the key, and no more requests for answers than there is room for.

    A request counts from its first line to the last byte of its answer, so that bodies cannot pile up in memory.
    """

    def __init__(
        self, app: Any, api_key: str | None, most: int, retry_s: Callable[[], int], counts: dict[str, int]
    ) -> None:
        self._app = app
        self._key = api_key
        self._most = most
        self._retry_s = retry_s
        self._counts = counts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        if self._key is not None and not self._is_known(dict(scope["headers"]).get(b"authorization", b"")):
            text = f"no valid key: expected the header 'Authorization: Bearer <the server's {KEY_VARIABLE}>'"
            await Problem(401, text, code="invalid_api_key").response()(scope, receive, send)
            return
        if scope["path"] != "/v1/chat/completions":
            await self._app(scope, receive, send)
            return
        if self._counts["open"] >= self._most:
            text = f"{self._counts['open']} requests are being answered, and there is room for {self._most}; come again"
            problem = Problem(429, text, code="queue_full", retry_s=self._retry_s())
            await problem.response()(scope, receive, send)
            return
        self._counts["open"] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._counts["open"] -= 1

    def _is_known(self, header: bytes) -> bool:
        scheme, _, given = header.partition(b" ")
        assert self._key is not None
        return hmac.compare_digest(given.strip(), self._key.encode()) and scheme.lower() == b"bearer"


def build_app(served: Served, config: ServeConfig, *, api_key: str | None = None) -> Starlette:
    """The web application: /v1/chat/completions, /v1/models and /health."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    counts = {"open": 0}
    created = int(time.time())
    decoders = ThreadPoolExecutor(config.n_decoders, "decoder")
    batcher = Batcher(served.generate, max_batch=config.max_batch, max_wait_s=config.max_wait_ms / 1000)

    def retry_s() -> int:
        n_batches = len(batcher.waiting) / config.max_batch + 1
        return min(60, max(1, math.ceil(n_batches * batcher.last_s)))

    async def chat(request: HttpRequest) -> Response:
        ask = read_ask(await _read_body(request, config), served.name, config)
        prepared = await asyncio.get_running_loop().run_in_executor(decoders, partial(prepare, served, ask, config))
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        future = batcher.put(prepared)
        if ask.stream:
            events = _events(head, future, ask.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait([future, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not future.done():
            future.cancel()
            return Response(status_code=499)  # nobody reads it
        reply = _reply_of(future)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.text},
            "finish_reason": _FINISH[reply.finish],
            "logprobs": None,
        }
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(reply), "affectgpt": reply.facts}
        )

    def about() -> dict[str, Any]:
        return {
            "id": served.name,
            "object": "model",
            "created": created,
            "owned_by": "affectgpt",
            "sees": list(served.sees),
        }

    async def models(request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [about()]})

    async def model(request: HttpRequest) -> Response:
        if (name := request.path_params["name"]) != served.name:
            raise Problem(404, f"model {name!r} is not served here; expected {served.name!r}", code="model_not_found")
        return JSONResponse(about())

    async def health(request: HttpRequest) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "model": served.name,
                "requests": counts["open"],
                "waiting": len(batcher.waiting),
                "answered": batcher.n_answered,
                "batches": batcher.n_batches,
                "largest_batch": batcher.largest,
            }
        )

    async def problem(request: HttpRequest, error: Problem) -> Response:
        return error.response()

    async def http_error(request: HttpRequest, error: HTTPException) -> Response:
        known = "GET /health, GET /v1/models, POST /v1/chat/completions"
        text = f"{request.method} {request.url.path}: {error.detail}; expected one of {known}"
        return Problem(error.status_code, text).response()

    async def failure(request: HttpRequest, error: Exception) -> Response:
        return Problem(500, "the server failed on this request; its log says why").response()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        work = asyncio.ensure_future(batcher.run())
        yield
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        decoders.shutdown()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
        ],
        middleware=[Middleware(Gate, api_key, config.max_requests, retry_s, counts)],
        exception_handlers={Problem: problem, HTTPException: http_error, Exception: failure},
        lifespan=lifespan,
    )


_FINISH = {"eos": "stop", "length": "length"}


def prepare(served: Served, ask: Ask, config: ServeConfig) -> Prepared:
    """`served.prepare` with the request's files in a folder that is gone afterwards; faults of it are Problems."""
    with tempfile.TemporaryDirectory(prefix="affectgpt-serve-") as folder:
        files = Files(Path(folder), config)
        try:
            return served.prepare(ask, files)
        except (UserError, ValueError) as error:
            raise Problem(400, files.scrubbed(str(error))) from error


async def _read_body(request: HttpRequest, config: ServeConfig) -> Any:
    """The JSON of a request, read up to the limit."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page in a browser can send others without the server's consent
        raise Problem(415, f"Content-Type is {kind!r}; expected application/json")
    most = int(config.max_request_mb * 1e6)
    too_long = Problem(413, f"the body is longer than {config.max_request_mb:g} MB (max_request_mb); send less media")
    if int(request.headers.get("content-length") or 0) > most:
        raise too_long

    async def read() -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                raise too_long
        return bytes(data)

    try:
        return json.loads(await asyncio.wait_for(read(), BODY_TIMEOUT_S))
    except asyncio.TimeoutError:
        raise Problem(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is no JSON ({error})") from None


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _reply_of(future: asyncio.Future[Reply]) -> Reply:
    """The answer; what the user can mend is a Problem, anything else is raised as it is."""
    try:
        return future.result()
    except (UserError, ValueError) as error:
        raise Problem(400, str(error)) from error


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.n_prompt_tokens,
        "completion_tokens": reply.n_new_tokens,
        "total_tokens": reply.n_prompt_tokens + reply.n_new_tokens,
    }


async def _events(head: Mapping[str, Any], future: asyncio.Future[Reply], include_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of one answer: the role at once, the text when its batch is done, then how it ended."""

    def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        row = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        while not (await asyncio.wait([future], timeout=KEEP_ALIVE_S))[0]:
            yield ": waiting\n\n"
        if (error := future.exception()) is not None:
            log.error("a streamed request failed: %s", error)
            problem = Problem(400 if isinstance(error, (UserError, ValueError)) else 500, str(error))
            yield f"data: {json.dumps(problem.body())}\n\n"
        else:
            reply = future.result()
            yield event({"content": reply.text})
            yield event({}, _FINISH[reply.finish], affectgpt=reply.facts)
            if include_usage:
                yield event({}, choices=[], usage=_usage(reply))
        yield "data: [DONE]\n\n"
    finally:
        future.cancel()


# ---------------------------------------------------------------- the command


def run_server(config: ServeConfig) -> int:
    """Load the model, listen and answer until SIGTERM or Ctrl-C; running requests are finished first."""
    check(config)
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"serving needs {error.name}; pip install 'affectgpt[serve]'") from None
    api_key = os.environ.get(KEY_VARIABLE)
    if api_key is not None and not api_key.strip():
        raise UserError(f"the environment variable {KEY_VARIABLE} is set but empty; give it a key, or unset it")
    listener = bind(config.host, config.port)
    with contextlib.closing(listener):
        served = load_served(config)
        if api_key is None and config.host not in ("127.0.0.1", "localhost", "::1"):
            log.warning("%s: anybody who reaches %s can ask; set %s", served.name, config.host, KEY_VARIABLE)
        host = f"[{config.host}]" if ":" in config.host else config.host
        sees = ", ".join(served.sees) or "text only"
        log.info("serving %s (%s) at http://%s:%d/v1", served.name, sees, host, listener.getsockname()[1])
        signal.signal(signal.SIGTERM, lambda *_: exit_with(143))  # uvicorn hands the signal on once all is answered
        app = build_app(served, config, api_key=api_key)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
    return 0


def exit_with(code: int) -> None:
    raise SystemExit(code)


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, before a model is loaded in vain."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # connections wait from here on, also while the model is loaded
    except (OSError, OverflowError) as error:
        raise UserError(f"host={host} port={port}: cannot listen there ({error}); try another port=") from error
    return listener


def check(config: ServeConfig) -> None:
    """Raise UserError where settings make no sense."""
    for name in ("max_batch", "max_requests", "max_request_mb", "max_media_s", "max_images", "max_megapixels"):
        if getattr(config, name) <= 0:
            raise UserError(f"{name} is {getattr(config, name)}; expected above 0")
    for name in ("max_new_tokens", "max_tokens_limit", "n_frames", "n_decoders"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; expected at least 1")
    if config.max_wait_ms < 0:
        raise UserError(f"max_wait_ms is {config.max_wait_ms}; expected 0 or more")
    if config.media_folder is not None and not Path(config.media_folder).expanduser().is_dir():
        raise UserError(f"media_folder={config.media_folder}: no such folder")


if __name__ == "__main__":
    from affectgpt.cli import serve

    serve()
