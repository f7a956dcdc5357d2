"""From a draw to a batch: what loader processes do, and what is left to the training process.

Loader processes take states out of the cache, tokenise each text once, and put batches together. What the cache lacks
they decode; its states are made by the encoders of the training process, which alone has them on the GPU, and kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affectgpt.cache.reader import ClipReader, Place
from affectgpt.data.stream import Draw
from affectgpt.prompts import render

_KEPT_TOKENS = 8_000_000  # of texts that a loader process keeps: 64 MB

Row = Mapping[str, Tensor]


@dataclass(frozen=True)
class Unencoded:
    """A sample of which some media are no states yet, and the places in the cache where those belong."""

    row: Row
    missing: Mapping[str, Place]


class EncodeDraw:
    """Makes model inputs out of a draw; a class of its own so that loader processes can take it along."""

    def __init__(self, processor: Any, reader: ClipReader) -> None:
        self._processor = processor
        self._reader = reader
        self._texts: dict[bytes, dict[str, Tensor]] = {}
        self._n_tokens = 0

    def __call__(self, draw: Draw) -> Row | Unencoded:
        shown = self._processor.visible(draw.modalities)
        question, answer = render(
            draw.sample,
            task=draw.task,
            lang=draw.lang,
            candidates=draw.candidates,
            modalities=shown,
            with_subtitle=draw.with_subtitle,
            with_answer=True,
        )
        key = hashlib.blake2b(f"{question.content}\0{answer.content}".encode(), digest_size=16).digest()
        known = self._texts.get(key)
        found = self._reader.stored(draw.sample, shown)
        text = None if known is None else {name: ids.long() for name, ids in known.items()}
        row = self._processor.encode([question], found.media, answer=answer.content, text=text)
        if known is None and self._n_tokens < _KEPT_TOKENS:
            # Without end of the first texts for new ones: a pass meets each once, so the last seen is the last to come.
            self._texts[key] = {name: row[name].to(torch.int32) for name in ("input_ids", "labels")}
            self._n_tokens += len(row["input_ids"])
        return Unencoded(row, found.missing) if found.missing else row


class Batches:
    """Puts rows together: in a loader process if all are complete, else in the training process.

    Args:
        collate: makes a batch of rows.
        encode: encoder states by modality of a row's media, in the training process.
        reader: keeps them.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[Row]], dict[str, Tensor]],
        encode: Callable[[Row], Mapping[str, Tensor]],
        reader: ClipReader,
        media_keys: Mapping[str, str],
    ) -> None:
        self._collate = collate
        self._encode = encode
        self._reader = reader
        self._media_keys = media_keys

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None}  # the model stays in the training process

    def __call__(self, rows: Sequence[Row | Unencoded]) -> Any:
        """What a loader process hands over: a batch, or rows that wait for their states."""
        complete = [row for row in rows if not isinstance(row, Unencoded)]
        return self._collate(complete) if len(complete) == len(rows) else list(rows)

    def complete(self, handed: Iterator[Any]) -> Iterator[dict[str, Tensor]]:
        """In the training process: batches out of what loader processes handed over."""
        for rows in handed:
            yield rows if isinstance(rows, Mapping) else self._collate([self._whole(row) for row in rows])

    def _whole(self, row: Row | Unencoded) -> Row:
        """The row with states in the place of media, which are kept in the cache."""
        if not isinstance(row, Unencoded):
            return row
        media = {self._media_keys[name] for name in row.missing} | ({"input_lengths"} & row.row.keys())
        states = {name: state.cpu() for name, state in self._encode({key: row.row[key] for key in media}).items()}
        self._reader.keep(row.missing, states)
        rest = {key: value for key, value in row.row.items() if key not in media}
        return rest | {f"{name}_states": state for name, state in states.items()}
