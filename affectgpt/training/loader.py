"""From draws to batches: what loader processes do, and what is left to the training process.

    draw --cache, or decode--> media --prompt and answer, each text tokenized once--> rows --collate--> batch

Encoder states that the cache lacks are computed by the training process, which alone has the encoders on the GPU; it
stores them and collates such batches itself.
"""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import context, process
from typing import Any

import torch
from torch import Tensor

from affectgpt.cache.reader import CacheKey, ClipReader, Features
from affectgpt.data.stream import Draw
from affectgpt.models.modeling_affectgpt import media_keys
from affectgpt.models.processing_affectgpt import TEXT_KEYS
from affectgpt.prompts import Message, render
from affectgpt.runtime import InputError
from affectgpt.training.objectives import Objective, Row

_MAX_TOKENS = 8_000_000  # of texts that a loader process keeps: 64 MB

Batch = dict[str, Tensor]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Shielded(process.BaseProcess):
    """A loader process that SIGTERM and SIGINT do not reach; the training process ends it.

    `timeout`, `kill -- -PGID`, a scheduler and Ctrl-C signal the complete process group. A loader that died of it would
    end the training process with an error before it has saved. The signals are blocked from the moment of the fork, so
    there is no time in which they can end the process.
    """

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # a fork server does not inherit the mask
        super().run()

    def terminate(self) -> None:
        """The loader calls this for processes that do not end when asked; SIGTERM would have no effect."""
        self.kill()


class _Forked(_Shielded, context.ForkProcess):
    pass


class _Spawned(_Shielded, context.SpawnProcess):
    pass


class _Served(_Shielded, context.ForkServerProcess):
    pass


def shielded_processes() -> context.BaseContext:
    """The default way to start processes, for loader processes that end only when the training process ends them."""
    method = multiprocessing.get_start_method()
    found = copy.copy(multiprocessing.get_context(method))
    found.Process = {"fork": _Forked, "spawn": _Spawned, "forkserver": _Served}[method]  # type: ignore[assignment]
    return found


@dataclass(frozen=True)
class Uncollated:
    """A batch with media that are not encoded yet: for each draw its rows, and the cache keys of these media.

    A class of its own, so that no library moves its tensors to the GPU.
    """

    rows: list[list[Row]]
    missing: list[Mapping[str, CacheKey]]


class Batches:
    """The collator of the training data: draws in, batches out.

    Args:
        objective: decides which rows a draw has and how they are collated.
        model: encodes what the cache lacks; it stays in the training process.
        packed: see `processor.collate`.
    """

    def __init__(self, objective: Objective, processor: Any, reader: ClipReader, model: Any, *, packed: bool) -> None:
        self._objective = objective
        self._processor = processor
        self._reader = reader
        self._model = model
        self._packed = packed
        self._texts: dict[bytes, dict[str, Tensor]] = {}
        self._n_tokens = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def __call__(self, draws: Sequence[Draw]) -> Batch | Uncollated:
        """In a loader process: the batch, or its rows if some of their media have to be encoded first."""
        made = [self._rows(draw) for draw in draws]
        uncollated = Uncollated([rows for rows, _ in made], [missing for _, missing in made])
        return uncollated if any(uncollated.missing) else self._collate(uncollated.rows)

    def complete(self, loaded: Iterator[Batch | Uncollated]) -> Iterator[Batch]:
        """In the training process: the batches, once everything in them is encoded."""
        for batch in loaded:
            if isinstance(batch, Uncollated):
                batch = self._collate(list(map(self._encoded, batch.rows, batch.missing)))
            yield batch

    def _rows(self, draw: Draw) -> tuple[list[Row], Mapping[str, CacheKey]]:
        shown = self._processor.visible(draw.modalities)
        found = self._reader.load(draw.sample, shown)
        prompt = render(
            draw.sample,
            task=draw.task,
            lang=draw.lang,
            candidates=draw.candidates,
            modalities=shown,
            with_subtitle=draw.with_subtitle,
            prompt_format=draw.prompt_format,
        )
        try:
            rows = self._objective.rows(draw, lambda answer: self._row(prompt, found, answer))
        except InputError as error:
            raise InputError(f"sample {draw.sample.id!r}: {error}") from error
        return rows, found.missing

    def _row(self, prompt: Sequence[Message], found: Features, answer: str | None) -> Row:
        key = hashlib.blake2b(repr((list(prompt), answer)).encode(), digest_size=16).digest()
        known = self._texts.get(key)
        text = None if known is None else {name: ids.long() for name, ids in known.items()}
        row = self._processor.encode(prompt, found.media, answer=answer, text=text, facts=found.facts)
        # The first texts stay until the end: a pass meets each text once, so a later one would not come back sooner.
        if known is None and self._n_tokens < _MAX_TOKENS:
            self._texts[key] = {name: row[name].to(torch.int32) for name in TEXT_KEYS if name in row}
            self._n_tokens += len(row["input_ids"])
        return row

    def _encoded(self, rows: list[Row], missing: Mapping[str, CacheKey]) -> list[Row]:
        """The rows of one draw with encoder states instead of the missing media; the cache stores them."""
        if not missing:
            return rows
        media = media_keys(missing)
        states = self._model.encode({key: rows[0][key] for key in media})
        states = {name: state.cpu() for name, state in states.items()}
        self._reader.write(missing, states)
        new = {f"{name}_states": state for name, state in states.items()}
        return [{key: value for key, value in row.items() if key not in media} | new for row in rows]

    def _collate(self, rows: Sequence[Sequence[Row]]) -> Batch:
        return self._objective.collate(self._processor, [row for each in rows for row in each], self._packed)
