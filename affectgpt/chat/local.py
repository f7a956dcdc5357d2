"""Multimodal chat models of transformers, in this process.

    chat = load("Qwen/Qwen2.5-VL-7B-Instruct")
    chat.sees                                                   # frozenset({"images"})
    chat.answer([Request("What does she feel?", images=frames.images, times_s=frames.times_s)])[0].text

`MODEL_TYPES` has one line for each model type: whether frames are passed as one video or as images, whether the model
takes sound, and whether it was trained without a chat template. The rest is the model's own processor and template.
Images are always processed by PIL and torch, with or without torchvision, so that a model gets the same values on
every machine.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectgpt.chat.constrained import Grammars, SchemaLogits
from affectgpt.chat.request import Reply, Request
from affectgpt.chat.streaming import GenerateStreamer, StreamDecoder, TextCallback
from affectgpt.chat.transport import RequestFailed
from affectgpt.runtime import UserError, loading_models, torch_device

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class ModelType:
    """How one transformers model type takes its input.

    Attributes:
        frames: passed as one "video" or as "images"; None = no visual input.
        sound: whether it takes audio input.
        template: False = no chat template: the prompt is plain text, and the processor puts the video before it.
        n_frames: the one number of frames that it takes; None = any.
    """

    frames: str | None = None
    sound: bool = False
    template: bool = True
    n_frames: int | None = None


_VIDEO = (
    *("video_llava", "llava_next_video", "llava_onevision", "internvl", "smolvlm"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"),
)
MODEL_TYPES: dict[str, ModelType] = {
    **dict.fromkeys(_VIDEO, ModelType("video")),
    "instructblipvideo": ModelType("video", template=False, n_frames=4),
    **dict.fromkeys(("qwen2_5_omni", "qwen3_omni_moe"), ModelType("video", sound=True)),
    **dict.fromkeys(("idefics3", "llava", "llava_next", "gemma3", "mistral3"), ModelType("images")),
    **dict.fromkeys(("qwen2_audio", "audioflamingo3"), ModelType(sound=True)),
}
"""Supported model types; any other causal LM is used with text only."""


class TransformersChat:
    """A loaded model with its processor; see `load`.

    Attributes:
        sees, n_frames, rate_hz: as in `request.Chat`.
        max_sound_s: longest sound that the processor does not truncate; None without audio input.
        revision: commit of the hub that was loaded; None for a folder.
    """

    def __init__(self, name: str, model: Any, processor: Any, kind: ModelType) -> None:
        self.name = name
        self.model = model
        self.processor = processor
        self.kind = kind
        self.sees = frozenset(["images"] * bool(kind.frames) + ["sound"] * kind.sound)
        self.n_frames = kind.n_frames
        extractor = getattr(processor, "feature_extractor", None)
        self.rate_hz: int | None = extractor.sampling_rate if kind.sound else None
        # Processors truncate longer sound silently: Qwen's at the window of their Whisper features.
        longest_s = getattr(processor, "max_audio_len", extractor.chunk_length) if kind.sound else None
        self.max_sound_s: float | None = None if longest_s is None else float(longest_s)
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def answer(
        self,
        requests: Sequence[Request],
        max_new_tokens: int = 256,
        callbacks: Mapping[int, TextCallback] | None = None,
    ) -> list[Reply]:
        """Greedy answers in the order of `requests`; requests with media of one shape form a batch.

        Args:
            callbacks: by the index of a request: get the final part of its answer while it is generated.

        Raises:
            UserError: a request holds media that the model does not take, sound of another rate or too long, or a
                schema that cannot be followed.
            MissingLibrary: a request has a schema, and llguidance is not installed.
        """
        groups: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            self._check(request)
            shape = None if request.images is None else request.images.shape
            groups.setdefault((shape, request.sound is not None), []).append(place)
        replies: dict[int, Reply] = {}
        decoder = StreamDecoder(self._tokenizer, self._ends, callbacks) if callbacks else None
        for places in groups.values():
            together = [requests[place] for place in places]
            streamer = GenerateStreamer(decoder, places) if decoder else None
            replies |= zip(places, self._generate(together, max_new_tokens, streamer), strict=True)
        return [replies[place] for place in range(len(requests))]

    def render(self, request: Request) -> str:
        """The prompt as text, with media tokens and turns as in the model's chat template."""
        prompt = self._as_text("\n\n".join([request.prompt, *request.turns]))  # few templates know longer chats
        system = request.system and self._as_text(request.system)
        if not self.kind.template:
            return f"{system}\n{prompt}" if system else prompt
        content: list[dict[str, str]] = []
        if request.images is not None:
            content += [{"type": "video"}] if self.kind.frames == "video" else [{"type": "image"}] * len(request.images)
        if request.sound is not None:
            content.append({"type": "audio"})
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        if system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        if not self.sees:  # templates of text-only models take plain strings
            messages = [{"role": item["role"], "content": item["content"][-1]["text"]} for item in messages]
        has_thinking = "enable_thinking" in str(self.processor.chat_template)
        options = {"enable_thinking": False} if has_thinking else {}
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)

    def encode(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Model inputs of requests with the same kinds of media, padded on the left."""
        texts = [self.render(request) for request in requests]
        bos = self._tokenizer.bos_token
        options: dict[str, Any] = {"return_tensors": "pt"}
        if hasattr(self.processor, "tokenizer") and self.kind.template:
            options["text_kwargs"] = {"padding": True}  # for all parts, Whisper features would not be padded
        else:
            options["padding"] = True
        if bos and texts[0].startswith(bos):
            options["add_special_tokens"] = False  # it is in the template
        shown = [request for request in requests if request.images is not None]
        if shown and self.kind.frames == "images":
            options["images"] = [list(request.images) for request in shown if request.images is not None]
        elif shown:
            name = "videos" if self.kind.template else "images"  # InstructBLIP-Video's name for its video
            options[name] = [request.images for request in shown]
            if self.kind.template:
                options["do_sample_frames"] = False  # the frames are sampled already
                options["video_metadata"] = [_metadata(request) for request in shown]
        if sounds := [request.sound.samples for request in requests if request.sound is not None]:
            options["audio"] = sounds
            options["sampling_rate"] = self.rate_hz
        inputs = dict(self.processor(text=texts, **options))
        if "video_second_per_grid" in inputs:  # the Omni processors take one frame rate per call
            step = self.processor.video_processor.temporal_patch_size
            inputs["video_second_per_grid"] = torch.tensor([step / _metadata(request)["fps"] for request in shown])
        return inputs

    def move(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` on the model's device, media in its dtype."""
        moved = {}
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor):
                dtype = self.model.dtype if value.is_floating_point() and key not in _KEEP_FLOAT32 else value.dtype
                value = value.to(self.model.device, dtype)
            moved[key] = value
        return moved

    @torch.no_grad()
    def _generate(
        self, requests: Sequence[Request], max_new_tokens: int, streamer: GenerateStreamer | None
    ) -> list[Reply]:
        inputs, ends = self.encode(requests), self._ends
        self._check_question(inputs)
        by_schema = {
            row: self._grammars.answer(request.schema, max_new_tokens)
            for row, request in enumerate(requests)
            if request.schema is not None
        }
        output = self.model.generate(
            **self.move(inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._tokenizer.pad_token_id,
            streamer=streamer,
            logits_processor=[SchemaLogits(by_schema)] if by_schema else None,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        replies = []
        for place, (row, mask) in enumerate(zip(new.tolist(), inputs["attention_mask"], strict=True)):
            stop = next((at for at, token in enumerate(row) if token in ends), None)
            text = self._tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
            n_new = len(row) if stop is None else stop + 1
            is_cut = stop is None or (place in by_schema and by_schema[place].was_closed)
            replies.append(Reply(text, int(mask.sum()), n_new, "length" if is_cut else "eos"))
        return replies

    @functools.cached_property
    def _grammars(self) -> Grammars:
        n_tokens = self.model.get_output_embeddings().weight.shape[0]
        return Grammars(self._tokenizer, n_tokens, sorted(self._ends), self.name)

    @property
    def _ends(self) -> set[int]:
        """The tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return {*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id} - {None}

    def _check(self, request: Request) -> None:
        shows = {"images": request.images is not None, "sound": request.sound is not None}
        if unseen := [name for name, is_shown in shows.items() if is_shown and name not in self.sees]:
            raise UserError(
                f"{self.name} ({self.model.config.model_type}) takes no {' and no '.join(unseen)}; "
                f"it takes {sorted(self.sees) or 'text only'}: leave them out, or use another model"
            )
        if not self.kind.template and request.images is None:
            raise UserError(f"{self.name} answers questions about a video only; add images")
        if request.images is not None:
            images = request.images
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
                raise ValueError(f"images must be uint8 [T,H,W,3], found {images.dtype} {list(images.shape)}")
            if self.kind.n_frames not in (None, len(images)):
                raise ValueError(f"{self.name} takes {self.kind.n_frames} frames, found {len(images)}")
        if request.sound is not None:
            sound = request.sound
            if sound.rate_hz != self.rate_hz:
                raise ValueError(
                    f"{self.name} takes sound at {self.rate_hz} Hz, found {sound.rate_hz} Hz; "
                    f"decode it with read_audio(path, {self.rate_hz})"
                )
            duration_s = len(sound.samples) / sound.rate_hz
            if self.max_sound_s is not None and duration_s > self.max_sound_s:
                raise ValueError(
                    f"{self.name} takes at most {self.max_sound_s:g} s of sound, found {duration_s:.1f} s; cut it"
                )

    def _check_question(self, inputs: Mapping[str, Any]) -> None:
        """InstructBLIP's Q-Former reads the question, too, and its processor does not limit it."""
        if "qformer_input_ids" not in inputs:
            return
        n, most = inputs["qformer_input_ids"].shape[1], self.model.config.qformer_config.max_position_embeddings
        if n > most:
            raise RequestFailed(
                f"{self.name}: its Q-Former takes questions of at most {most} tokens, found {n}; ask a shorter one, or "
                "another model"
            )

    def _as_text(self, text: str) -> str:
        """`text` without control tokens: each gets a space after its first character."""
        return self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    @functools.cached_property
    def _control(self) -> re.Pattern[str]:
        tokens = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        for name in ("image_token", "video_token", "audio_token"):
            tokens.add(str(getattr(self.processor, name, "") or ""))
        tokens = {token for token in tokens if len(token) > 1}
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


_KEEP_FLOAT32 = frozenset(["second_per_grid_ts", "video_second_per_grid"])


def _metadata(request: Request) -> dict[str, Any]:
    """Video metadata of transformers, at a constant frame rate: frames are evenly spaced."""
    assert request.images is not None
    n = len(request.images)
    times = request.times_s
    span_s = float(times[-1] - times[0]) if times is not None else 0.0
    rate_hz = (n - 1) / span_s if span_s > 0 else 1.0
    return {"total_num_frames": n, "fps": rate_hz, "frames_indices": list(range(n)), "duration": n / rate_hz}


@loading_models()
def load(
    name: str | Path, revision: str | None = None, *, device: str = "auto", dtype: str = "auto"
) -> TransformersChat:
    """Load a model from a folder or the hub.

    Args:
        name: a folder in transformers' format, or a hub id.
        revision: commit on the hub; pin it for reported results.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".

    Raises:
        UserError: no such model, an unsupported type, missing weights, or no chat template.
    """

    name = str(name)
    target = torch_device(device)
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"dtype is {dtype!r}; expected auto, float32, bfloat16 or float16")
    if name.endswith(".gguf"):
        raise UserError(
            f"{name} is a GGUF file; convert it once with `python -m affectgpt.convert {name} out=FOLDER`, and name "
            "the folder"
        )
    config = _config_of(name, revision)
    kind, model_class, model_config = _model_class(name, config)
    try:
        processor = _processor(name, revision, config, kind)
    except (OSError, ValueError) as error:  # transformers' classes for missing and unreadable files
        raise UserError(f"{name}: its processor cannot be loaded ({_first_line(error)})") from error
    if kind.template and not getattr(processor, "chat_template", None):
        raise UserError(f"{name} has no chat template; use a chat or instruct version")
    if config.model_type == "instructblipvideo":
        found, expected = processor.tokenizer.convert_tokens_to_ids("<video>"), config.video_token_index
        if found != expected:
            raise UserError(
                f"{name}: <video> is token {found}, but the configuration has video_token_index={expected}; use a "
                "revision that was updated for videos, or correct the index in its config.json"
            )
    try:
        model, report = model_class.from_pretrained(
            name, revision=revision, config=model_config, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its weights cannot be loaded ({_first_line(error)})") from error
    if wrong := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise UserError(f"{name}: {len(wrong)} tensors are missing or have another shape, such as {wrong[:3]}")
    if report["unexpected_keys"]:
        log.info("%s: %d tensors are not used", name, len(report["unexpected_keys"]))
    return TransformersChat(name, model.to(target).eval(), processor, kind)


@loading_models()
def frames_of(name: str, revision: str | None = None) -> int | None:
    """The one number of frames that a model takes, by its configuration; None = any, or none. UserError as `load`."""
    kind = MODEL_TYPES.get(_config_of(name, revision).model_type)
    return kind.n_frames if kind else None


def _config_of(name: str, revision: str | None) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: its configuration cannot be read ({_first_line(error)}); check the name, and download a model "
            f"of the hub first where there is no network: hf download {name}"
        ) from error
    if config.model_type == "instructblip":  # published for images; the video model takes its weights unchanged
        config = transformers.InstructBlipVideoConfig.from_pretrained(name, revision=revision)
        config.model_type = "instructblipvideo"
    return config


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _model_class(name: str, config: Any) -> tuple[ModelType, Any, Any]:
    """How the model takes input, its class, and that class's part of the configuration."""
    import transformers

    kind = MODEL_TYPES.get(config.model_type)
    if kind is None and type(config) in transformers.AutoModelForCausalLM._model_mapping:
        return ModelType(), transformers.AutoModelForCausalLM, config
    if kind is None:
        raise UserError(
            f"{name}: model type {config.model_type!r} is not supported; expected one of {', '.join(MODEL_TYPES)}, or "
            "a causal LM. Serve it (base_url=...) or use the JSONL exchange; see docs/baselines.md"
        )
    if hasattr(config, "thinker_config"):  # the Omni models: the thinker writes text, the talker is not needed
        config = config.thinker_config
        return kind, transformers.AutoModelForImageTextToText._model_mapping[type(config)], config
    for auto in ("AutoModelForMultimodalLM", "AutoModelForSeq2SeqLM"):
        if type(config) in (mapping := getattr(transformers, auto)._model_mapping):
            return kind, mapping[type(config)], config
    raise UserError(f"{name}: transformers {transformers.__version__} has no chat class for {config.model_type!r}")


def _processor(name: str, revision: str | None, config: Any, kind: ModelType) -> Any:
    """The model's processor, assembled from its parts, or the tokenizer of a text-only model.

    Without torchvision, AutoProcessor refuses every processor that has a video processor.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    where = {"revision": revision} if revision else {}
    if not (kind.frames or kind.sound):
        return transformers.AutoTokenizer.from_pretrained(name, **where)
    processor_class = PROCESSOR_MAPPING[type(config)]
    settings, _ = processor_class.get_processor_dict(name, **where)
    parts = []
    for part in processor_class.get_attributes():
        if part == "tokenizer":
            parts.append(transformers.AutoTokenizer.from_pretrained(name, **where))
        elif part.endswith("tokenizer"):
            parts.append(transformers.AutoTokenizer.from_pretrained(name, subfolder=part, **where))
        elif part == "video_processor":
            from affectgpt.chat.video import VIDEO_PROCESSORS

            parts.append(VIDEO_PROCESSORS[config.model_type].from_pretrained(name, **where))
        elif part == "image_processor":
            parts.append(transformers.AutoImageProcessor.from_pretrained(name, backend="pil", **where))
        else:
            parts.append(transformers.AutoFeatureExtractor.from_pretrained(name, **where))
    # Its check of the parts' classes looks up video processors in a table that is empty without torchvision.
    unchecked = type(processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": lambda *_: None})
    return unchecked.from_args_and_dict(parts, settings)
