"""The systems of a zero-shot run: chat models, in this process or on a server, and files of answers made elsewhere."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.chat.local import load
from affectgpt.chat.request import Chat, Reply, Request, with_media
from affectgpt.chat.served import ChatClient
from affectgpt.chat.transport import RequestFailed
from affectgpt.config import ZeroShotConfig
from affectgpt.runtime import InputError, UserError, parse_json
from affectgpt.schema import Sample, check_id
from affectgpt.tables import cell_id

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class Model:
    """A chat model.

    Attributes:
        name: as recorded in predictions.
        batch_size: clips that are decoded and sent together.
    """

    name: str
    chat: Chat
    batch_size: int
    config: ZeroShotConfig

    @property
    def sees(self) -> frozenset[str]:
        return self.chat.sees

    def request(self, sample: Sample, shown: Sequence[str], prompt: str) -> tuple[Request, dict[str, Any]]:
        """The request with the media `shown` of the clip, and facts about them."""
        return with_media(
            Request(prompt),
            self.chat,
            video=sample.video if "images" in shown else None,
            audio=(sample.audio or sample.video) if "sound" in shown else None,
            n_frames=self.config.ask.n_frames,
            backend=self.config.data.backend,
        )

    def answer(self, ids: Sequence[str], requests: Sequence[Request]) -> list[Reply | RequestFailed]:
        """With on_bad=skip, the error in place of each answer that a server does not give."""
        n = self.config.ask.max_new_tokens
        if isinstance(self.chat, ChatClient) and self.config.data.on_bad == "skip":
            return self.chat.try_answer(requests, n)
        return [*self.chat.answer(requests, n)]


class AnswerFile:
    """A JSONL file of `{"id", "text"}` rows that another environment wrote; nothing is decoded or loaded."""

    sees = frozenset(["images", "sound"])
    batch_size = 1000

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path
        self._texts = read_answers(path)

    def request(self, sample: Sample, shown: Sequence[str], prompt: str) -> tuple[Request, dict[str, Any]]:
        if sample.id not in self._texts:
            raise InputError(f"{self._path} has no answer for it")
        return Request(prompt), {}

    def answer(self, ids: Sequence[str], requests: Sequence[Request]) -> list[Reply | RequestFailed]:
        return [Reply(self._texts[key], 0, 0, "eos") for key in ids]


System = Model | AnswerFile


def open_system(name: str, base_url: str | None, folder: Path, config: ZeroShotConfig) -> System:
    """The model `name` on a server, with its answers logged in `folder`; without a server, the file or model `name`."""
    ask = config.ask
    if base_url is not None:
        client = ChatClient(
            name,
            base_url=base_url,
            cache=folder / "answers.jsonl",
            concurrency=config.concurrency,
            longest_px=ask.longest_px,
            max_tokens_name=ask.max_tokens_name,
            temperature=ask.temperature,
            offline=config.offline,
        )
        return Model(name, client, 4 * config.concurrency, config)
    if name.endswith(".jsonl"):
        return AnswerFile(Path(name))
    log.info("loading %s", name)
    chat = load(name, ask.revision if name == ask.model else None, device=config.device, dtype=ask.dtype)
    return Model(f"{name}@{chat.revision[:12]}" if chat.revision else name, chat, config.batch_size, config)


def read_answers(path: Path) -> dict[str, str]:
    """The answers of a JSONL file by id.

    Raises:
        UserError: no such file, a line that is not an `{"id", "text"}` object, or a repeated id, with its line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such answer file; `python -m affectgpt.zeroshot export` writes the questions")
    texts: dict[str, str] = {}
    for line_no, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            key, text = check_id(cell_id(row["id"])), row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}:{line_no}: expected {{"id": ..., "text": ...}}, found {line[:80]!r}') from error
        if not isinstance(text, str):
            raise UserError(f"{path}:{line_no}: the text of {key!r} must be a string, found {reprlib.repr(text)}")
        if key in texts:
            raise UserError(f"{path}:{line_no}: {key!r} is answered twice; keep one answer per id")
        texts[key] = text
    return texts
