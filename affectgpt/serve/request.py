"""Reads the JSON of a chat completion into a `ChatRequest`; a `APIError` names the field that is wrong."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.config import ServeConfig
from affectgpt.schema import LANGUAGES, PERSONS, TASKS
from affectgpt.serve.errors import APIError, short

HELP = "see docs/serve.md"
_USED = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream"}
_USED |= {"stream_options", "affectgpt"}
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
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
"""Fields of the protocol that are not implemented, with the values (besides null) that are no restriction."""


@dataclass(frozen=True)
class MediaPart:
    """An image, a video or sound of a request: bytes, or a file of the media folder.

    Attributes:
        where: its path in the request, for messages.
        kind: the stated format of sound, wav or mp3.
    """

    where: str
    data: bytes | None = None
    path: Path | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Decoding:
    """Decoding settings; temperature 0 is greedy."""

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
    person: str | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A valid request.

    Attributes:
        turns: (role, text), from the first user message to the last. Media are separate: they all show one clip.
    """

    turns: tuple[tuple[str, str], ...]
    decoding: Decoding
    system: str | None = None
    images: tuple[MediaPart, ...] = ()
    video: MediaPart | None = None
    sound: MediaPart | None = None
    options: Options | None = None
    stream: bool = False
    include_usage: bool = False


def read_request(body: Any, name: str, config: ServeConfig) -> ChatRequest:
    """Read the body of a chat completion.

    Args:
        name: the model of this server.

    Raises:
        APIError: a field is missing, of a wrong type, or not supported.
    """
    _check_values(body)
    if not isinstance(body, dict):
        raise APIError(400, f"the body is {short(body)}; expected a JSON object")
    if (asked := _get(body, "model", str)) != name:
        what = f"model {asked!r} is not served here" if asked else "model is missing"
        raise APIError(404 if asked else 400, f"{what}; expected {name!r}", param="model", code="model_not_found")
    for key, value in body.items():
        neutral = _NEUTRAL.get(key)
        if value is None or key in _USED or key in _IGNORED or (neutral is not None and value in neutral):
            continue
        if key == "response_format":
            text = "this server cannot enforce a format; describe it in the prompt and leave response_format out"
            raise APIError(400, f"{text} (annotate: annotator.structured=prompt)", param=key, code="unsupported_value")
        expected = f"{short(neutral[0])} or nothing" if neutral else f"no such field; {HELP}"
        raise APIError(400, f"{key} is {short(value)}; expected {expected}", param=key, code="unsupported_parameter")
    images, video, sound, system, turns = _read_messages(body.get("messages"), config)
    stream_options = _get(body, "stream_options", dict, {})
    return ChatRequest(
        turns,
        _read_decoding(body, config),
        system,
        images,
        video,
        sound,
        _read_options(body.get("affectgpt")),
        _get(body, "stream", bool, False),
        _get(stream_options, "include_usage", bool, False, "stream_options."),
    )


_LOWEST_TEMPERATURE = 0.01
_LOWEST_TOP_P = 1e-6
_DEEPEST = 32  # levels of a body


def _check_values(body: Any) -> None:
    """APIError for nesting that `repr` cannot show, and for text that is not Unicode: half of a surrogate pair."""
    todo: list[tuple[Any, str, int]] = [(body, "", 0)]
    while todo:
        value, at, depth = todo.pop()
        where = at or "the body"
        if depth > _DEEPEST:
            raise APIError(400, f"the body has more than {_DEEPEST} levels of lists and objects")
        if isinstance(value, str) and not _is_unicode(value):
            raise APIError(400, f"{where}: half of a surrogate pair; expected Unicode text", param=at or None)
        if isinstance(value, dict):
            if not all(map(_is_unicode, value)):
                raise APIError(400, f"{where}: a field name with half of a surrogate pair; expected Unicode text")
            todo += [(item, f"{at}.{name}" if at else name, depth + 1) for name, item in value.items()]
        elif isinstance(value, list):
            todo += [(item, f"{at}[{number}]", depth + 1) for number, item in enumerate(value)]


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _read_decoding(body: Mapping[str, Any], config: ServeConfig) -> Decoding:
    names = ("max_completion_tokens", "max_tokens")
    name = next((name for name in names if body.get(name) is not None), names[1])
    longest = _get(body, name, int, config.max_new_tokens)
    if not 1 <= longest <= config.max_tokens_limit:
        raise APIError(400, f"{name} is {short(longest)}; expected 1 to {config.max_tokens_limit}", param=name)
    temperature, top_p = _get(body, "temperature", float, 0.0), _get(body, "top_p", float, 1.0)
    # Lower values overflow the logits (float16: 65,504), or leave no token.
    if not (temperature == 0 or _LOWEST_TEMPERATURE <= temperature <= 2):
        found = f"temperature is {short(temperature)}"
        raise APIError(400, f"{found}; expected 0, or {_LOWEST_TEMPERATURE:g} to 2", param="temperature")
    if not _LOWEST_TOP_P <= top_p <= 1:
        raise APIError(400, f"top_p is {short(top_p)}; expected {_LOWEST_TOP_P:g} to 1", param="top_p")
    seed = _get(body, "seed", int)
    if seed is not None and not 0 <= seed < 2**63:
        raise APIError(400, f"seed is {short(seed)}; expected 0 to 2^63 - 1", param="seed")
    return Decoding(longest, temperature, top_p, seed) if temperature else Decoding(longest)


def _read_options(value: Any) -> Options | None:
    if value is None:
        return None
    if not isinstance(value, dict) or (odd := sorted(set(value) - set(Options.__dataclass_fields__))):
        found = short(value) if not isinstance(value, dict) else f"an object with {odd}"
        fields = list(Options.__dataclass_fields__)
        raise APIError(400, f"affectgpt is {found}; expected an object with some of {fields}", param="affectgpt")
    lists = {}
    for name in ("candidates", "modalities"):
        lists[name] = words = _get(value, name, list, None, "affectgpt.")
        if words is not None and not all(isinstance(word, str) for word in words):
            raise APIError(
                400, f"affectgpt.{name} is {short(words)}; expected a list of strings", param=f"affectgpt.{name}"
            )
    texts = {name: _get(value, name, str, None, "affectgpt.") for name in ("task", "lang", "subtitle", "person")}
    for name, known in (("task", TASKS), ("lang", LANGUAGES), ("person", PERSONS)):
        if texts[name] is not None and texts[name] not in known:
            raise APIError(
                400, f"affectgpt.{name} is {texts[name]!r}; expected one of {list(known)}", param=f"affectgpt.{name}"
            )
    modalities = lists["modalities"]
    return Options(
        texts["task"],
        texts["lang"] or "en",
        texts["subtitle"],
        tuple(lists["candidates"] or ()),
        None if modalities is None else tuple(modalities),
        texts["person"],
    )


_Messages = tuple[
    tuple[MediaPart, ...], "MediaPart | None", "MediaPart | None", "str | None", tuple[tuple[str, str], ...]
]


def _read_messages(messages: Any, config: ServeConfig) -> _Messages:
    """(images, video, sound, system message, turns)"""
    if not isinstance(messages, list) or not messages:
        raise APIError(400, f"messages is {short(messages)}; expected a list of messages", param="messages")
    images: list[MediaPart] = []
    single: dict[str, MediaPart] = {}
    system, turns = None, []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise APIError(400, f"{where} is {short(message)}; expected an object", param=where)
        role, content = message.get("role"), message.get("content")
        expected = ("user", "system", "developer") if place == 0 else ("user",) if not turns else ("user", "assistant")
        expected = tuple(name for name in expected if not turns or name != turns[-1][0])
        if role not in expected:
            raise APIError(
                400, f"{where}.role is {short(role)}; expected {' or '.join(expected)}", param=f"{where}.role"
            )
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            found = f"{where}.content is {short(content)}"
            raise APIError(400, f"{found}; expected a string or a list of parts", param=f"{where}.content")
        texts = []
        for number, part in enumerate(parts):
            at = f"{where}.content[{number}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                texts.append(_get(part, "text", str, "", f"{at}."))
            elif kind not in ("image_url", "video_url", "input_audio"):
                expected_types = "text, image_url, video_url or input_audio"
                raise APIError(400, f"{at}: type is {short(kind)}; expected {expected_types}", param=at)
            elif role != "user" or turns:
                raise APIError(400, f"{at}: {kind} here; media are allowed in the first user message only", param=at)
            elif kind == "image_url":
                images.append(_read_image(part, at))
            elif kind in single:
                raise APIError(400, f"{at}: a second {kind}; a request shows one clip", param=at)
            else:
                single[kind] = _read_video(part, at, config) if kind == "video_url" else _read_sound(part, at)
        if role in ("system", "developer"):
            system = "\n".join(texts)
        else:
            turns.append((role, "\n".join(texts)))
    if not turns or turns[-1][0] != "user":
        raise APIError(400, "the last message is not from the user; expected a user message", param="messages")
    if images and "video_url" in single:
        raise APIError(400, "image_url and video_url together; expected one video or its frames", param="messages")
    if len(images) > config.max_images:
        raise APIError(400, f"{len(images)} image_url parts; expected at most {config.max_images}", param="messages")
    return tuple(images), single.get("video_url"), single.get("input_audio"), system, tuple(turns)


def _read_image(part: Mapping[str, Any], at: str) -> MediaPart:
    url = _get(_get(part, "image_url", dict, {}, f"{at}."), "url", str, "", f"{at}.image_url.")
    if not url.startswith("data:"):
        raise APIError(400, f"{at}: image_url is {short(url)}; expected a data: URI (nothing is fetched)", param=at)
    return MediaPart(at, _data_of(url, at))


def _read_video(part: Mapping[str, Any], at: str, config: ServeConfig) -> MediaPart:
    url = _get(_get(part, "video_url", dict, {}, f"{at}."), "url", str, "", f"{at}.video_url.")
    if url.startswith("data:"):
        return MediaPart(at, _data_of(url, at))
    return MediaPart(at, path=path_below(config.media_folder, url, at))


def _read_sound(part: Mapping[str, Any], at: str) -> MediaPart:
    sound = _get(part, "input_audio", dict, {}, f"{at}.")
    kind = sound.get("format")
    if kind not in ("wav", "mp3"):
        raise APIError(400, f"{at}: format is {short(kind)}; expected 'wav' or 'mp3'", param=at)
    return MediaPart(at, _decoded(_get(sound, "data", str, "", f"{at}.input_audio."), at), kind=kind)


def path_below(folder: str | None, url: str, at: str) -> Path:
    """The file that a request names; it must be below `folder` after symbolic links are resolved.

    Raises:
        APIError: it is not, or does not exist. For paths outside, the message does not reveal whether they exist.
    """
    name = url.removeprefix("file://")
    if folder is None:
        raise APIError(
            400, f"{at}: video_url is {short(url)}; expected a data: URI (this server has no media_folder=)", param=at
        )
    root = Path(folder).expanduser().resolve()
    try:
        path = root if "\0" in name else (root / name).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError):  # a name that is too long, or a loop of links
        path, is_file = root / "?", False
    if not path.is_relative_to(root) or path == root or "://" in name:
        expected = "a data: URI, or a path below the server's media folder"
        raise APIError(400, f"{at}: video_url is {short(url)}; expected {expected}", param=at)
    if not is_file:
        raise APIError(400, f"{at}: no file {short(url)} below the server's media folder", param=at)
    return path


def _data_of(url: str, at: str) -> bytes:
    head, _, payload = url.partition(",")
    if not head.endswith(";base64"):
        raise APIError(400, f"{at}: the URI begins with {short(head)}; expected data:<type>;base64,<data>", param=at)
    return _decoded(payload, at)


def _decoded(text: str, at: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise APIError(400, f"{at}: the data is not base64 ({error})", param=at) from None
    if not data:
        raise APIError(400, f"{at}: 0 bytes; expected a media file in base64", param=at)
    return data


def _get(values: Mapping[str, Any], name: str, kind: type, default: Any = None, where: str = "") -> Any:
    """The value of a field, or `default` if it is absent or null; APIError if it has another type."""
    value = values.get(name)
    if value is None:
        return default
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool) or value != value:
        words = {str: "a string", int: "an integer", float: "a number", bool: "true or false", dict: "an object"}
        expected = words.get(kind, "a list")
        raise APIError(400, f"{where}{name} is {short(value)}; expected {expected}", param=f"{where}{name}")
    return value
