"""The models that can be served. Each has two steps: `prepare` (one request, any thread) and `generate` (a batch)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.chat.request import Reply, Request, with_media
from affectgpt.chat.streaming import TextCallback
from affectgpt.config import GenerateConfig, QuestionConfig, ServeConfig
from affectgpt.data.faces import FACE_MODALITIES
from affectgpt.data.facts import MediaFacts
from affectgpt.prompts import Message
from affectgpt.runtime import UserError, quiet_libraries
from affectgpt.schema import MODALITIES
from affectgpt.serve.errors import APIError, short
from affectgpt.serve.media import MediaFiles, read_images
from affectgpt.serve.request import ChatRequest, Decoding, Options

if TYPE_CHECKING:
    import torch

    from affectgpt.chat.local import TransformersChat
    from affectgpt.inference.loading import LoadedModel
    from affectgpt.schema import Sample


@dataclass(frozen=True)
class Prepared:
    """A request that is ready for generation.

    Attributes:
        inputs: the model inputs.
        facts: for the field `affectgpt` of the answer.
        reads_labels: whether labels are parsed from the answer.
        on_text: gets the final part of the answer while it is generated; a batch that is retried starts over.
    """

    inputs: Any
    decoding: Decoding
    facts: dict[str, Any]
    reads_labels: bool = False
    on_text: TextCallback | None = None


class AffectGPT:
    """A checkpoint. Requests take the steps of `affectgpt.inference.prediction.predict`, each with its own settings."""

    def __init__(self, loaded: LoadedModel, config: ServeConfig) -> None:
        self.name = config.name or loaded.name
        self.sees: tuple[str, ...] = tuple(loaded.model.modalities)
        self._config = config
        self._model = loaded.model.eval()
        self._processor = loaded.processor
        self._facts = MediaFacts()
        self._faces = loaded.face_needs(config.backend)
        self._reader = loaded.reader(backend=config.backend, cache_folder=None, facts=self._facts)

    def prepare(self, request: ChatRequest, files: MediaFiles) -> Prepared:
        """Decode the media that the model takes and write the prompt; UserError or APIError if that fails."""
        from affectgpt.data.sources import probe_sample
        from affectgpt.inference.prediction import shown_modalities
        from affectgpt.prompts import PROMPT_VERSION, render
        from affectgpt.schema import Sample

        options, processor = request.options or Options(), self._processor
        asked = request.turns[0][1].strip()
        if request.system:
            raise APIError(400, "messages[0]: a system message; AffectGPT has none, expected a user message")
        if asked and (options.task or options.candidates):
            raise APIError(
                400,
                f"affectgpt.task {options.task!r} and the text {short(asked)}; expected one of them: a task has its "
                "own question, and the transcript belongs in affectgpt.subtitle",
                param="affectgpt.task",
            )
        task = options.task or "both"
        question = QuestionConfig(task, options.lang, list(options.candidates), options.modalities)
        sample = Sample(
            id="request",
            video=files.path(request.video),
            audio=files.path(request.sound),
            subtitle=options.subtitle,
            person=options.person,
            lang=options.lang,
        )
        try:
            sample = probe_sample(sample, self._facts, self._faces)
            no_face = self._why_no_face(sample)
            if request.images:
                has = {"frames", *(sample.modalities or ())}
                sample = replace(sample, modalities=tuple(name for name in MODALITIES if name in has))
            shown: tuple[str, ...] = ()
            if sample.modalities or not asked:
                shown = processor.visible(shown_modalities(sample, self.sees, question))
            has_images = bool(request.images) and "frames" in shown
            features = self._reader(sample, [name for name in shown if not (has_images and name == "frames")])
        finally:
            for path in filter(None, (sample.video, sample.audio)):
                self._facts.forget(path)
        media, media_facts = dict(features.media), dict(features.facts)
        if has_images:
            branch = processor.branches["frames"]
            n_frames, order = branch["n_frames"], branch.get("short_clips", "even")
            media["frames"], indices = read_images(request.images, n_frames, self._config, order)
            media_facts["frames"] = {"pictures": indices}
        # `plain` turns placeholders in the client's texts into text.
        messages = render(
            sample,
            task=task,
            lang=options.lang,
            candidates=options.candidates,
            modalities=shown,
            question=processor.plain(asked) or None,
            prompt_format=processor.prompt_format,
        )
        messages += [Message(role, processor.plain(text)) for role, text in request.turns[1:]]
        facts = {
            "task": None if asked else task,
            "lang": options.lang,
            "modalities": [*shown, *(["text"] if options.subtitle else [])],
            "left_out": {
                name: self._why_left_out(name, request, sample.modalities or (), no_face)
                for name in self.sees
                if name not in shown
            },
            "media": media_facts,
            "prompt_version": PROMPT_VERSION,
        }
        encoded = processor.encode(messages, media, facts=media_facts)
        return Prepared(encoded, request.decoding, facts, not asked and task != "description")

    def _why_no_face(self, sample: Sample) -> str | None:
        """Why the video of a request gives no face crops, in words; None = no face was looked for, or it gives some."""
        has = sample.modalities or ()
        if self._faces is None or sample.video is None or "frames" not in has or {*FACE_MODALITIES} & {*has}:
            return None
        return self._facts.why_no_face(sample.video, self._faces.of(sample.person), sample.audio)

    def _why_left_out(self, name: str, request: ChatRequest, has: Sequence[str], no_face: str | None) -> str:
        if request.options and request.options.modalities is not None and name not in request.options.modalities:
            return "not asked for"
        if name in has:
            return "replaced by another modality"
        if request.images and name == "motion":
            return "the clip was sent as images, not as a video"
        if name in FACE_MODALITIES and no_face is not None:
            return no_face
        return "not in the request"

    def generate(self, items: Sequence[Prepared]) -> list[Reply]:
        """Answers to requests with the same decoding settings."""
        from affectgpt.inference.answers import answers
        from affectgpt.metrics.extract import read_labels

        decoding = items[0].decoding
        generate = GenerateConfig(len(items), decoding.max_new_tokens)
        if decoding.temperature:
            generate = replace(generate, do_sample=True, temperature=decoding.temperature, top_p=decoding.top_p)
        inputs = [item.inputs for item in items]
        replies = []
        with _seeded(decoding.seed, self._model):
            written = list(answers(self._model, self._processor, inputs, generate, _callbacks(items)))
        for item, (text, tokens, finish) in zip(items, written, strict=True):
            labels = {"labels": list(read_labels(text).labels)} if item.reads_labels else {}
            replies.append(Reply(text, len(item.inputs["input_ids"]), len(tokens), finish, {**item.facts, **labels}))
        return replies


class ChatModel:
    """Any other chat model of `affectgpt.chat.local`."""

    def __init__(self, chat: TransformersChat, config: ServeConfig) -> None:
        self.name = config.name or chat.name
        self.sees: tuple[str, ...] = tuple(sorted(chat.sees))
        self._chat = chat
        self._config = config

    def prepare(self, request: ChatRequest, files: MediaFiles) -> Prepared:
        """Decode the media that the model takes; UserError or APIError if that fails."""
        from affectgpt.media import probe

        chat = self._chat
        question, *turns = (text for _, text in request.turns)
        if request.options is not None:
            raise APIError(400, f"the field affectgpt is for AffectGPT; ask {self.name} in the text", param="affectgpt")
        if not question.strip():
            raise APIError(400, "no text in messages; expected a question", param="messages")
        if request.decoding.temperature:
            found = f"temperature is {request.decoding.temperature:g}"
            raise APIError(
                400, f"{found}; {self.name} only decodes greedily here: expected 0 or nothing", param="temperature"
            )
        for what, given in (("images", request.images), ("sound", request.sound)):
            if given and what not in chat.sees:
                raise APIError(400, f"{self.name} takes no {what}; it takes {list(self.sees) or 'text only'}")
        prompt = Request(question, system=request.system, turns=tuple(turns))
        video, audio = files.path(request.video), files.path(request.sound)
        if video is not None:
            info = probe(video)
            audio = audio or (video if "sound" in chat.sees and info.has_audio else None)
            video = video if "images" in chat.sees and info.has_video else None
        n_frames, backend = self._config.n_frames, self._config.backend
        prompt, facts = with_media(prompt, chat, video=video, audio=audio, n_frames=n_frames, backend=backend)
        if request.images:
            images, indices = read_images(request.images, chat.n_frames, self._config)
            prompt = replace(prompt, images=images)
            facts = {"frames": {"pictures": indices}, **facts}
        if request.video is not None and not facts:
            raise APIError(400, f"{request.video.where}: the video has no {' and no '.join(self.sees)}")
        return Prepared(prompt, request.decoding, {"modalities": list(facts), "media": facts})

    def generate(self, items: Sequence[Prepared]) -> list[Reply]:
        """Answers to requests with the same decoding settings."""
        inputs = [item.inputs for item in items]
        replies = self._chat.answer(inputs, items[0].decoding.max_new_tokens, _callbacks(items))
        return [replace(reply, facts=item.facts) for item, reply in zip(items, replies, strict=True)]


@contextlib.contextmanager
def _seeded(seed: int | None, model: torch.nn.Module) -> Iterator[None]:
    """Draw from generators with this seed; those of requests without one go on as if nothing had been drawn."""
    if seed is None:
        yield
        return
    import torch

    gpus = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(list(gpus)):
        torch.manual_seed(seed)
        yield


def _callbacks(items: Sequence[Prepared]) -> dict[int, TextCallback]:
    return {place: item.on_text for place, item in enumerate(items) if item.on_text is not None}


def may_share_batch(one: Prepared, other: Prepared) -> bool:
    """Whether both have the same decoding settings and no seed: a seeded sample would depend on its batch."""
    return one.decoding == other.decoding and one.decoding.seed is None


Served = AffectGPT | ChatModel


def load_served(config: ServeConfig) -> Served:
    """The model that `config` names; errors as of `inference.loading.load` and `chat.local.load`."""
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
            "model= serves another chat model; checkpoint=, quantization= and base_models= are for AffectGPT only"
        )
    from affectgpt.chat.local import load as load_chat

    quiet_libraries()
    return ChatModel(
        load_chat(config.model, config.revision, device=config.device, dtype=config.dtype or "auto"), config
    )


def prepare(served: Served, request: ChatRequest, config: ServeConfig) -> Prepared:
    """`served.prepare` with the request's files in a temporary folder; a UserError becomes a APIError."""
    with tempfile.TemporaryDirectory(prefix="affectgpt-serve-") as folder:
        files = MediaFiles(Path(folder), config)
        try:
            return served.prepare(request, files)
        except UserError as error:
            raise APIError(400, files.scrubbed(str(error))) from error
