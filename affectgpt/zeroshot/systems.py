"""The three places where an answer can come from: a model in this process, a server, or a file made elsewhere.

Each has `name`, `sees` (what can be shown to it), `batch_size` and `answer(ids, requests)`; `sight` says how media are
decoded for it, None = it needs none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.chat.local import Reply, Request, TransformersChat, load
from affectgpt.chat.served import ChatClient, Media
from affectgpt.media import Waveform, read_audio, read_frames
from affectgpt.runtime import UserError
from affectgpt.schema import Sample, check_id

if TYPE_CHECKING:
    from affectgpt.config import ZeroShotConfig

log = logging.getLogger("affectgpt")

IMAGES_AND_SOUND = frozenset(["images", "sound"])


@dataclass(frozen=True)
class Sight:
    """How clips are decoded: evenly spread frames, sound at a rate, its first seconds only if there is a limit."""

    n_frames: int
    rate_hz: int = 16000
    max_sound_s: float | None = None
    backend: str = "pyav"

    def look(self, sample: Sample, shown: Sequence[str], prompt: str) -> tuple[Request, dict[str, Any]]:
        """The request that shows `shown` of the clip, and the facts of what was shown."""
        request, facts = Request(prompt), {}
        if "images" in shown:
            assert sample.video is not None, f"sample {sample.id!r} lists pictures without a video"
            frames = read_frames(sample.video, self.n_frames, backend=self.backend)
            request = replace(request, images=frames.images, times_s=frames.times_s)
            facts["frames"] = {"times_s": [round(float(time), 3) for time in frames.times_s]}
        if "sound" in shown:
            source = sample.audio or sample.video
            assert source is not None, f"sample {sample.id!r} lists sound without a file"
            sound = read_audio(source, self.rate_hz)
            heard = sound if self.max_sound_s is None else _first(sound, self.max_sound_s)
            request = replace(request, sound=heard)
            facts["audio"] = {"heard_s": round(heard.duration_s, 3), "duration_s": round(sound.duration_s, 3)}
        return request, facts


def _first(sound: Waveform, seconds: float) -> Waveform:
    samples = sound.samples[: int(seconds * sound.rate_hz)]
    return replace(sound, samples=samples, duration_s=len(samples) / sound.rate_hz)


class InProcess:
    """A transformers-native model, loaded when it is made."""

    def __init__(self, name: str, config: ZeroShotConfig) -> None:
        log.info("loading %s", name)
        revision = config.ask.revision if name == config.ask.model else None
        self.chat: TransformersChat = load(name, revision, device=config.device, dtype=config.ask.dtype)
        self.name = f"{name}@{self.chat.revision[:12]}" if self.chat.revision else name
        self.sees = self.chat.sees
        self.batch_size = config.batch_size
        self._max_new_tokens = config.ask.max_new_tokens
        n_frames = self.chat.kind.n_frames or config.ask.n_frames
        self.sight = Sight(n_frames, self.chat.rate_hz or 16000, self.chat.max_sound_s, config.data.backend)

    def answer(self, ids: Sequence[str], requests: Sequence[Request]) -> list[Reply]:
        return self.chat.answer(requests, self._max_new_tokens)


class Served:
    """Any OpenAI-compatible server: frames as JPEG pictures, sound as WAV; answers are kept in a file."""

    def __init__(self, name: str, base_url: str, folder: Path, config: ZeroShotConfig) -> None:
        self.name = name
        self.sees = IMAGES_AND_SOUND
        self.batch_size = 4 * config.concurrency  # as many clips are in memory at once
        self.sight = Sight(config.ask.n_frames, backend=config.data.backend)
        self._longest_px = config.ask.longest_px
        self._client = ChatClient(
            name,
            base_url=base_url,
            cache=folder / "answers.jsonl",
            concurrency=config.concurrency,
            max_tokens=config.ask.max_new_tokens,
            offline=config.offline,
        )

    def answer(self, ids: Sequence[str], requests: Sequence[Request]) -> list[Reply]:
        answers = self._client.ask_all([[("user", self._content(request))] for request in requests])
        return [Reply(item.text, 0, 0, "eos" if item.finish == "stop" else item.finish) for item in answers]

    def _content(self, request: Request) -> str | list[str | Media]:
        parts: list[str | Media] = []
        if request.images is not None:
            parts += [Media.picture(image, self._longest_px) for image in request.images]
        if request.sound is not None:
            parts.append(Media.sound(request.sound.samples, request.sound.rate_hz))
        return [*parts, request.prompt] if parts else request.prompt


class Answered:
    """A JSONL file of `{"id", "text"}` rows that another environment wrote; nothing is decoded or loaded."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.path = path
        self.sees = IMAGES_AND_SOUND
        self.batch_size = 1000
        self.sight = None
        self.texts = read_answers(path)

    def answer(self, ids: Sequence[str], requests: Sequence[Request]) -> list[Reply]:
        return [Reply(self.texts[key], 0, 0, "eos") for key in ids]


System = InProcess | Served | Answered


def read_answers(path: Path) -> dict[str, str]:
    """The answers of a JSONL file by id.

    Raises:
        UserError: no such file, or a line that is no `{"id", "text"}` object, or an id twice; file and line are named.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of answers; `python -m affectgpt.zeroshot export` writes its questions")
    texts: dict[str, str] = {}
    for line_no, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key, text = check_id(row["id"]), row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}:{line_no}: expected {{"id": ..., "text": ...}}, found {line[:80]!r}') from error
        if not isinstance(text, str):
            raise UserError(f"{path}:{line_no}: the text of {key!r} must be a text, found {text!r}")
        if key in texts:
            raise UserError(f"{path}:{line_no}: {key!r} is answered twice; keep one answer an id")
        texts[key] = text
    return texts
