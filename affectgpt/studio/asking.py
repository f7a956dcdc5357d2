"""The models of the studio: loaded after the pages are up, and asked one clip at a time with the steps of infer.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.config import GenerateConfig, QuestionConfig, StudioConfig
from affectgpt.metrics import Lexicon
from affectgpt.runtime import InputError, UserError, gc_paused
from affectgpt.schema import LANGUAGES, TASKS, Prediction, Sample
from affectgpt.serve.replies import KEEP_ALIVE_S, PartialText
from affectgpt.studio.gallery import shown, to_json

if TYPE_CHECKING:
    from affectgpt.inference.loading import LoadedModel

log = logging.getLogger("affectgpt")


class Models:
    """The checkpoints to try clips with. One thread loads them, then answers in turn."""

    def __init__(self, config: StudioConfig, checkpoints: Sequence[str | None]) -> None:
        self._config, self.device = config, config.device
        self._loaded: dict[int, LoadedModel] = {}
        self._errors: dict[int, str] = {}
        self.names = [checkpoint or "the newest run" for checkpoint in checkpoints]
        self._thread = ThreadPoolExecutor(1, "model")
        for place, checkpoint in enumerate(checkpoints):
            self._thread.submit(self._load, place, checkpoint)

    def about(self) -> list[dict[str, Any]]:
        """Name, state and inputs of each model."""
        rows = []
        for place, name in enumerate(self.names):
            loaded = self._loaded.get(place)
            row: dict[str, Any] = {"name": name, "ready": loaded is not None, "error": self._errors.get(place)}
            if loaded is not None:
                row |= {"name": loaded.name, "modalities": list(loaded.model.modalities)}
            rows.append(row)
        return rows

    def n_frames(self) -> int | None:
        """How many frames the first model with pictures sees; None = not loaded yet, or none."""
        for loaded in self._loaded.values():
            if "frames" in loaded.processor.branches:
                return int(loaded.processor.branches["frames"]["n_frames"])
        return None

    def _load(self, place: int, checkpoint: str | None) -> None:
        try:
            with gc_paused():
                from affectgpt.inference.loading import load
            config = self._config
            self._loaded[place] = load(
                checkpoint,
                Path(config.paths.runs),
                device=config.device,
                dtype=config.dtype,
                quantization=config.quantization,
                base_models=config.base_models,
            )
        except UserError as error:
            self._errors[place] = str(error)
            log.error("%s", error)
        except BaseException as error:
            self._errors[place] = f"{type(error).__name__}: see the log of the server"
            log.exception("%s could not be loaded", self.names[place])
            if not isinstance(error, Exception):
                raise

    async def answer(
        self, place: int, sample: Sample, question: QuestionConfig, lexicon: Lexicon, hide: Mapping[str, str]
    ) -> AsyncIterator[str]:
        """Server-sent events: {"text"} while an answer is written, then {"answer"} with what it rests on; or {"error"}.

        Of an omni model, the answer alone.

        Args:
            hide: paths of this machine -> what to call them in messages.
        """
        partial = PartialText()
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, self._predict, place, sample, question, partial)
        future.add_done_callback(lambda _: partial.changed.set())
        sent = ""
        try:
            while True:
                try:
                    await asyncio.wait_for(partial.changed.wait(), KEEP_ALIVE_S)
                except asyncio.TimeoutError:
                    yield ": waiting\n\n"
                    continue
                partial.changed.clear()
                if partial.text != sent:
                    sent = partial.text
                    yield _event({"text": sent})
                if future.done():
                    break
            error = future.exception()
            if error is None:
                yield _event({"answer": shown(future.result(), lexicon)})
            elif isinstance(error, UserError):
                text = str(error)
                for path, name in hide.items():
                    text = text.replace(path, name)
                yield _event({"error": text})
            else:
                log.error("an answer failed", exc_info=error)
                yield _event({"error": "internal error; see the log of the server"})
        finally:
            future.cancel()

    def _predict(self, place: int, sample: Sample, question: QuestionConfig, partial: PartialText) -> Prediction:
        if place in self._errors:
            raise UserError(self._errors[place])
        from affectgpt.data.sources import probe_sample
        from affectgpt.inference.answers import answers
        from affectgpt.inference.loading import is_omni
        from affectgpt.inference.prediction import predict

        loaded = self._loaded[place]

        def answer(model: Any, processor: Any, inputs: Any, generate: GenerateConfig) -> Any:
            return answers(model, processor, inputs, generate, {0: partial.write})

        (prediction,) = predict(
            loaded.model,
            loaded.processor,
            [probe_sample(sample)],
            loaded.reader(backend=self._config.backend, cache_folder=None),
            question=question,
            generate=GenerateConfig(batch_size=1, max_new_tokens=self._config.max_new_tokens),
            name=loaded.name,
            answer=answer,
            attribution=not is_omni(loaded.model),
        )
        return prediction

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _event(row: Mapping[str, Any]) -> str:
    return f"data: {to_json(row)}\n\n"


def read_question(body: Any) -> tuple[QuestionConfig, str | None]:
    """The question of a request, and the subtitle that it states.

    Raises:
        InputError: a field of a wrong type or value.
    """
    if not isinstance(body, dict):
        raise InputError("expected a JSON object")
    task, lang = body.get("task", "both"), body.get("lang", "en")
    if task not in TASKS:
        raise InputError(f"task is {task!r}; expected one of {list(TASKS)}")
    if lang not in LANGUAGES:
        raise InputError(f"lang is {lang!r}; expected one of {list(LANGUAGES)}")
    lists: dict[str, list[str] | None] = {}
    for name in ("candidates", "modalities"):
        words = body.get(name)
        if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise InputError(f"{name} is {words!r}; expected a list of strings")
        lists[name] = words
    subtitle = body.get("subtitle")
    if subtitle is not None and not isinstance(subtitle, str):
        raise InputError(f"subtitle is {subtitle!r}; expected a text")
    use_subtitle = bool(subtitle and subtitle.strip())
    question = QuestionConfig(task, lang, lists["candidates"] or [], lists["modalities"], use_subtitle)
    return question, subtitle if use_subtitle else None
