"""Who is asked: a chat model, in this process or on a server, or a model of ours; loaded when it is first needed."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from affectgpt.chat.request import Request
from affectgpt.chat.transport import RequestFailed
from affectgpt.config import AskConfig, DataConfig, GenerateConfig, PreferConfig, QuestionConfig, ZeroShotConfig
from affectgpt.data.facts import MediaFacts
from affectgpt.data.sources import attempt, probe_samples
from affectgpt.prefer import prompts
from affectgpt.prompts import PROMPT_VERSION, Message
from affectgpt.runtime import UserError
from affectgpt.schema import BadSample, Prediction, Sample
from affectgpt.zeroshot.prompts import VERSION as DESCRIBE_VERSION
from affectgpt.zeroshot.run import ask_clips, unanswered
from affectgpt.zeroshot.systems import Model, open_system

if TYPE_CHECKING:
    from affectgpt.inference.loading import LoadedModel


class Asker(Protocol):
    """Answers come in the order of what is asked; with on_bad=skip, what cannot be answered is added to `bad`."""

    def settings(self) -> dict[str, Any]:
        """What decides its answers."""

    def probe(self, clips: Sequence[Sample], bad: list[BadSample]) -> list[Sample]:
        """The usable clips, with what their media contain."""

    def describe(self, clips: Sequence[Sample], bad: list[BadSample]) -> Iterator[Prediction]:
        """A description of each clip."""

    def about(
        self, clips: Sequence[Sample], questions: Mapping[str, str], bad: list[BadSample]
    ) -> Iterator[Prediction]:
        """The answer to a question, by id, about each clip."""

    def tell(
        self, asked: Sequence[Sample], requests: Mapping[str, Request], bad: list[BadSample], n_tokens: int
    ) -> Iterator[Prediction]:
        """The answer to each request, by id, that shows no media. Of `asked`, only the ids count."""

    def release(self) -> None:
        """Free the model before another one is loaded."""


class ChatAsker:
    """A chat model of transformers, or with `base_url` one on a server, whose answers are stored in `folder`."""

    def __init__(self, name: str, base_url: str | None, folder: Path, config: PreferConfig) -> None:
        if name.endswith(".jsonl"):
            raise UserError(f"{name}: expected a model; descriptions that were made elsewhere are descriptions={name}")
        self._name, self._base_url, self._folder, self._config = name, base_url, folder, config
        self._model: Model | None = None

    def settings(self) -> dict[str, Any]:
        config = self._config
        names = ("show", "use_subtitle", "n_frames", "longest_px", "temperature", "dtype", "revision")
        return {"model": self._name, **{name: getattr(config, name) for name in names}}

    def probe(self, clips: Sequence[Sample], bad: list[BadSample]) -> list[Sample]:
        usable, more = probe_samples(clips, on_bad=self._config.on_bad)
        bad += more
        return usable

    def describe(self, clips: Sequence[Sample], bad: list[BadSample]) -> Iterator[Prediction]:
        config = self._zeroshot(self._config.max_new_tokens)
        return ask_clips(clips, partial(self._open, config), kind="whole", config=config, bad=bad)

    def about(
        self, clips: Sequence[Sample], questions: Mapping[str, str], bad: list[BadSample]
    ) -> Iterator[Prediction]:
        def question(clip: Sample, shown: Sequence[str], subtitle: str | None) -> str:
            return prompts.introduced(questions[clip.id], shown, subtitle, self._config.lang)

        config = self._zeroshot(self._config.max_answer_tokens)
        return ask_clips(clips, partial(self._open, config), kind="whole", config=config, bad=bad, question=question)

    def tell(
        self, asked: Sequence[Sample], requests: Mapping[str, Request], bad: list[BadSample], n_tokens: int
    ) -> Iterator[Prediction]:
        if not asked:
            return
        system = self._open(self._zeroshot(n_tokens))
        for start in range(0, len(asked), system.batch_size):
            some = asked[start : start + system.batch_size]
            replies = system.answer([item.id for item in some], [requests[item.id] for item in some])
            for item, reply in zip(some, replies, strict=True):
                if isinstance(reply, RequestFailed):
                    bad.append(unanswered(item, system, reply))
                else:
                    yield Prediction(
                        id=item.id,
                        text=reply.text,
                        task="description",
                        lang=self._config.lang,
                        n_tokens=reply.n_new_tokens or None,
                        finish=reply.finish,
                        model=system.name,
                        prompt_version=prompts.VERSION,
                    )

    def release(self) -> None:
        self._model = None
        gc.collect()

    def _open(self, config: ZeroShotConfig) -> Model:
        if self._model is None:
            opened = open_system(self._name, self._base_url, self._folder, config)
            assert isinstance(opened, Model)  # it is no file
            self._model = opened
        return replace(self._model, config=config)

    def _zeroshot(self, n_tokens: int) -> ZeroShotConfig:
        config = self._config
        ask = AskConfig(
            model=config.model,
            revision=config.revision,
            strategy="s1" if config.use_subtitle else "s0",
            show=config.show,
            lang=config.lang,
            n_frames=config.n_frames,
            longest_px=config.longest_px,
            max_new_tokens=n_tokens,
            temperature=config.temperature,
            max_tokens_name=config.max_tokens_name,
            dtype=config.dtype,
        )
        return ZeroShotConfig(
            ask=ask,
            data=DataConfig(name="prefer", on_bad=config.on_bad, backend=config.backend),
            batch_size=config.batch_size,
            concurrency=config.concurrency,
            offline=config.offline,
            device=config.device,
            paths=config.paths,
        )


class OwnAsker:
    """A checkpoint. Questions about clips take the place of that of task description in our prompts."""

    def __init__(self, checkpoint: str, config: PreferConfig) -> None:
        self._checkpoint, self._config = checkpoint, config
        self._facts = MediaFacts()
        self._opened: LoadedModel | None = None

    @property
    def _loaded(self) -> LoadedModel:
        if self._opened is None:
            from affectgpt.inference.loading import load

            config = self._config
            self._opened = load(
                self._checkpoint, Path(config.paths.runs), device=config.device, base_models=config.base_models
            )
        return self._opened

    def settings(self) -> dict[str, Any]:
        known = {"model": self._loaded.name, "weights": self._loaded.weights_sha256, "prompts": PROMPT_VERSION}
        return known | {"use_subtitle": self._config.use_subtitle}

    def probe(self, clips: Sequence[Sample], bad: list[BadSample]) -> list[Sample]:
        needs = self._loaded.face_needs(self._config.backend)
        usable, more = probe_samples(clips, on_bad=self._config.on_bad, facts=self._facts, faces=needs)
        bad += more
        return usable

    def describe(self, clips: Sequence[Sample], bad: list[BadSample]) -> Iterator[Prediction]:
        from affectgpt.inference.prediction import predict

        return self._predict(predict, clips, bad, self._config.max_new_tokens)

    def about(
        self, clips: Sequence[Sample], questions: Mapping[str, str], bad: list[BadSample]
    ) -> Iterator[Prediction]:
        from affectgpt.inference.prediction import predict

        lang = self._config.lang
        asked = [replace(clip.in_language(lang, strict=False), question=questions[clip.id]) for clip in clips]
        return self._predict(predict, asked, bad, self._config.max_answer_tokens)

    def tell(
        self, asked: Sequence[Sample], requests: Mapping[str, Request], bad: list[BadSample], n_tokens: int
    ) -> Iterator[Prediction]:
        if not asked:
            return
        from affectgpt.inference.answers import answers

        loaded, config = self._loaded, self._config
        tried = [
            attempt(lambda item: loaded.processor.encode([Message("user", requests[item.id].prompt)]), item,
                    on_bad=config.on_bad)
            for item in asked
        ]  # fmt: skip
        bad += [item for item in tried if isinstance(item, BadSample)]
        pairs = [(item, row) for item, row in zip(asked, tried, strict=True) if not isinstance(row, BadSample)]
        generate = GenerateConfig(batch_size=config.batch_size, max_new_tokens=n_tokens)
        found = answers(loaded.model, loaded.processor, (row for _, row in pairs), generate)
        for (item, _), (text, tokens, finish) in zip(pairs, found, strict=True):
            yield Prediction(
                id=item.id,
                text=text,
                task="description",
                lang=config.lang,
                n_tokens=len(tokens),
                finish=finish,
                model=loaded.name,
                prompt_version=prompts.VERSION,
            )

    def release(self) -> None:
        self._opened = None
        gc.collect()

    def _predict(
        self, predict: Any, clips: Sequence[Sample], bad: list[BadSample], n_tokens: int
    ) -> Iterator[Prediction]:
        loaded, config = self._loaded, self._config
        return predict(
            loaded.model,
            loaded.processor,
            clips,
            loaded.reader(backend=config.backend, cache_folder=None, facts=self._facts),
            question=QuestionConfig(task="description", lang=config.lang, use_subtitle=config.use_subtitle),
            generate=GenerateConfig(batch_size=config.batch_size, max_new_tokens=n_tokens),
            name=loaded.name,
            on_bad=config.on_bad,
            bad=bad,
        )


def describing_version(asker: Asker) -> str:
    """The version of the prompt by which it describes clips."""
    return PROMPT_VERSION if isinstance(asker, OwnAsker) else DESCRIBE_VERSION
