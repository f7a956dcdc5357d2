"""An omni model on the hub or in a folder -> model and processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor

from affectgpt import bases
from affectgpt.models import shapes
from affectgpt.models.omni.modeling import OmniForConditionalGeneration, OmniModelConfig, ThinkerLLM
from affectgpt.models.omni.processing import OmniProcessor
from affectgpt.models.spec import ModelSpec, peft_fields
from affectgpt.runtime import InputError

MODELS = {"qwen2_5_omni_thinker": Qwen2_5OmniThinkerForConditionalGeneration}
"""Model types of thinkers that are built."""


def assemble(spec: ModelSpec, fingerprints: Mapping[str, str]) -> tuple[OmniForConditionalGeneration, OmniProcessor]:
    """The thinker of `spec.llm.path`, which is on this machine, and its processor; talker and vocoder are not read.

    Raises:
        InputError: it is another kind of model, or lacks weights, sizes of its pictures or a chat template.
    """
    folder = bases.resolve(spec.llm.path, "llm", spec.llm.revision)
    config = thinker_config(folder, spec.llm.path)
    processor = _processor(folder, spec, config)
    thinker, found = MODELS[config.model_type].from_pretrained(
        folder, config=config, dtype=getattr(torch, spec.llm.dtype), output_loading_info=True
    )
    if missing := sorted(map(str, found["missing_keys"])):
        raise InputError(
            f"{spec.llm.path} lacks {len(missing)} tensors of {type(thinker).__name__} ({missing[0]} ...); name a "
            "complete model"
        )
    return _around(thinker, spec, config, processor.placeholder_token_ids, fingerprints), processor


def thinker_config(folder: Path, path: str) -> Any:
    """transformers' configuration of a thinker, also within that of a whole omni model."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = dict(fields.get("thinker_config", fields))
    kind = fields.pop("model_type", None)
    if kind not in MODELS:
        raise InputError(
            f"model.omni: {path} is of type {kind!r}, which is not built; expected one of {list(MODELS)} "
            "(Qwen2.5-Omni). Of another model with a causal LM, name the LLM at model.llm.path and leave model.omni out"
        )
    return AutoConfig.for_model(kind, **fields)


def build_hollow(spec: ModelSpec, device: str) -> OmniForConditionalGeneration:
    """The full-size model without reading a weight; see `affectgpt.models.build_hollow`."""
    path = spec.llm.path
    if bases.is_local(path):
        config = thinker_config(Path(path).expanduser(), path)
    else:
        config = shapes.published_thinker(path)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        thinker = MODELS[config.model_type]._from_config(config, dtype=getattr(torch, spec.llm.dtype))
        placeholders = {"audio": config.audio_token_id, "frames": config.video_token_id}
        return _around(thinker, spec, config, placeholders).to(device)


def _around(
    thinker: Any,
    spec: ModelSpec,
    config: Any,
    placeholders: Mapping[str, int],
    fingerprints: Mapping[str, str] | None = None,
) -> OmniForConditionalGeneration:
    towers = {"audio": thinker.model.audio_tower, "frames": thinker.model.visual}
    return OmniForConditionalGeneration(
        OmniModelConfig(
            text_config=config.text_config,
            shown=spec.modalities,
            placeholder_token_ids=placeholders,
            lora=peft_fields(spec.llm.lora),
            seed=spec.seed,
            spec=spec.to_dict(),
            base_fingerprints=fingerprints,
            dtype=getattr(torch, spec.llm.dtype),
            tie_word_embeddings=config.tie_word_embeddings,
        ),
        language_model=ThinkerLLM(config.text_config, thinker.model.language_model, thinker.lm_head),
        encoders={name: towers[name] for name in spec.modalities},
    )


def _processor(folder: Path, spec: ModelSpec, config: Any) -> OmniProcessor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (template := _template(folder)) is not None:
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        raise InputError(f"{spec.llm.path} has no chat template; an omni model is asked with its own")
    settings = json.loads((folder / bases.PREPROCESSOR).read_text(encoding="utf-8"))
    if absent := [name for name in ("image_mean", "image_std") if name not in settings]:
        raise InputError(f"{spec.llm.path}: its {bases.PREPROCESSOR} has no {absent}; name a complete model")
    assert spec.omni is not None
    sound = WhisperFeatureExtractor.from_pretrained(folder)
    longest_s = sound.n_samples / sound.sampling_rate
    if spec.sampling.window_s > longest_s or spec.sampling.rate_hz != sound.sampling_rate:
        raise InputError(
            f"model.sampling: window_s is {spec.sampling.window_s} and rate_hz {spec.sampling.rate_hz}; this model "
            f"hears at most {longest_s:g} s at {sound.sampling_rate} Hz"
        )
    pixels = {"mean": settings["image_mean"], "std": settings["image_std"]}
    return OmniProcessor(tokenizer, config, sound, pixels, spec.omni, spec.sampling)


def _template(folder: Path) -> str | None:
    """The chat template of the processor, which knows media; the tokenizer may have another one."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    if (path := folder / "chat_template.json").is_file():
        return json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    return None
