"""The models that can be served, behind two steps: `prepare` (one request, any thread) and `generate` (a batch)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.chat.request import Reply, Request, with_media
from affectgpt.chat.streaming import TextCallback
from affectgpt.config import GenerateConfig, QuestionConfig, ServeConfig
from affectgpt.prompts import Message
from affectgpt.runtime import UserError
from affectgpt.schema import MODALITIES
from affectgpt.serve.ask import Ask, Options, Wish
from affectgpt.serve.media import Files, read_pictures
from affectgpt.serve.problems import Problem, short

if TYPE_CHECKING:
    from affectgpt.chat.local import TransformersChat
    from affectgpt.inference.loading import LoadedModel


@dataclass(frozen=True)
class Prepared:
    """A request that only has to be generated.

    Attributes:
        inputs: what the model takes.
        facts: for the field `affectgpt` of the answer.
        reads_labels: whether labels are looked for in the answer.
        on_text: gets the final part of the answer while it is generated; a batch that is retried starts over.
    """

    inputs: Any
    wish: Wish
    facts: dict[str, Any]
    reads_labels: bool = False
    on_text: TextCallback | None = None


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
        from affectgpt.inference.prediction import shown_modalities
        from affectgpt.prompts import PROMPT_VERSION, render
        from affectgpt.schema import Sample

        options, processor = ask.options or Options(), self._processor
        asked = ask.turns[0][1].strip()
        if ask.system:
            raise Problem(400, "messages[0]: a system message; AffectGPT has none, expected a user message")
        if asked and (options.task or options.candidates):
            raise Problem(
                400,
                f"affectgpt.task {options.task!r} and the text {short(asked)}; expected one of them: a task has its "
                "own question, and what the person says belongs into affectgpt.subtitle",
                param="affectgpt.task",
            )
        task = options.task or "both"
        question = QuestionConfig(task, options.lang, list(options.candidates), options.modalities)
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
            shown = processor.visible(shown_modalities(sample, self.sees, question))
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
            question=processor.plain(asked) or None,
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
        from affectgpt.inference.answers import answers
        from affectgpt.metrics.extract import read_labels
        from affectgpt.runtime import seed_everything

        wish = items[0].wish
        generate = GenerateConfig(len(items), wish.max_new_tokens)
        if wish.temperature:
            generate = replace(generate, do_sample=True, temperature=wish.temperature, top_p=wish.top_p)
        if wish.seed is not None:
            seed_everything(wish.seed)
        inputs = [item.inputs for item in items]
        replies = []
        written = answers(self._model, self._processor, inputs, generate, _callbacks(items))
        for item, (text, tokens, finish) in zip(items, written, strict=True):
            labels = {"labels": list(read_labels(text).labels)} if item.reads_labels else {}
            replies.append(Reply(text, len(item.inputs["input_ids"]), len(tokens), finish, {**item.facts, **labels}))
        return replies


class Chat:
    """Another chat model, through `affectgpt.chat.local`."""

    def __init__(self, chat: TransformersChat, config: ServeConfig) -> None:
        self.name = config.name or chat.name
        self.sees: tuple[str, ...] = tuple(sorted(chat.sees))
        self._chat = chat
        self._config = config

    def prepare(self, ask: Ask, files: Files) -> Prepared:
        """Decode what the model sees of the request; ValueError or Problem if that cannot be."""
        from affectgpt.media import probe

        chat = self._chat
        question, *turns = (text for _, text in ask.turns)
        if ask.options is not None:
            raise Problem(400, f"affectgpt is for AffectGPT; {self.name} takes its question as text", param="affectgpt")
        if not question.strip():
            raise Problem(400, "no text in messages; expected a question", param="messages")
        if ask.wish.temperature:
            found = f"temperature is {ask.wish.temperature:g}"
            raise Problem(
                400, f"{found}; {self.name} answers greedily here: expected 0 or nothing", param="temperature"
            )
        for what, given in (("images", ask.images), ("sound", ask.sound)):
            if given and what not in chat.sees:
                raise Problem(400, f"{self.name} takes no {what}; it sees {list(self.sees) or 'text only'}")
        request = Request(question, system=ask.system, turns=tuple(turns))
        video, audio = files.path(ask.video), files.path(ask.sound)
        if video is not None:
            info = probe(video)
            audio = audio or (video if "sound" in chat.sees and info.has_audio else None)
            video = video if "images" in chat.sees and info.has_video else None
        n_frames, backend = self._config.n_frames, self._config.backend
        request, facts = with_media(request, chat, video=video, audio=audio, n_frames=n_frames, backend=backend)
        if ask.images:
            images, indices = read_pictures(ask.images, chat.n_frames, self._config)
            request = replace(request, images=images)
            facts = {"frames": {"pictures": indices}, **facts}
        if ask.video is not None and not facts:
            raise Problem(400, f"{ask.video.where}: {self.name} sees {list(self.sees)}, of which the video has nothing")
        return Prepared(request, ask.wish, {"modalities": list(facts), "media": facts})

    def generate(self, items: Sequence[Prepared]) -> list[Reply]:
        """Answers to requests with one wish."""
        inputs = [item.inputs for item in items]
        replies = self._chat.answer(inputs, items[0].wish.max_new_tokens, _callbacks(items))
        return [replace(reply, facts=item.facts) for item, reply in zip(items, replies, strict=True)]


def _callbacks(items: Sequence[Prepared]) -> dict[int, TextCallback]:
    return {place: item.on_text for place, item in enumerate(items) if item.on_text is not None}


def may_share_batch(one: Prepared, other: Prepared) -> bool:
    """A seeded draw would depend on the other requests of its batch."""
    return one.wish == other.wish and one.wish.seed is None


Served = AffectGPT | Chat


def load_served(config: ServeConfig) -> Served:
    """The model that `config` names; see `loading.load` and `mllm.load` for errors."""
    if config.model is None:
        from affectgpt.inference.loading import load

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
    from affectgpt.chat.local import load as load_chat
    from affectgpt.inference.loading import quiet_libraries

    quiet_libraries()
    return Chat(load_chat(config.model, config.revision, device=config.device, dtype=config.dtype or "auto"), config)


def prepare(served: Served, ask: Ask, config: ServeConfig) -> Prepared:
    """`served.prepare` with the request's files in a folder that is gone afterwards; faults of it are Problems."""
    with tempfile.TemporaryDirectory(prefix="affectgpt-serve-") as folder:
        files = Files(Path(folder), config)
        try:
            return served.prepare(ask, files)
        except UserError as error:
            raise Problem(400, files.scrubbed(str(error))) from error
