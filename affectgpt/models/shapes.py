"""Configurations of published base models, so that a preset can be built at full size without access to the hub.

They contain what decides tensors and arithmetic, without tokenizers and dropout rates; of CLIP and SigLIP, only the
image tower. The source of each entry is the model's own config.json and preprocessor_config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import (
    Blip2Config,
    CLIPVisionConfig,
    Dinov2Config,
    HubertConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    VideoMAEConfig,
    ViTMAEConfig,
    WavLMConfig,
    WhisperConfig,
)

from affectgpt.runtime import InputError

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}  # the large speech models are pre-norm


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _llama2() -> LlamaConfig:
    return LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5)


def _llama3() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_parameters=_rope(5e5), bos_token_id=128000, eos_token_id=128001,
    )  # fmt: skip


def _qwen25() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, rope_parameters=_rope(1e6), bos_token_id=151643,
        eos_token_id=151645,
    )  # fmt: skip


def _qwen3() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rope_parameters=_rope(1e6),
        bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip


def _smollm2(**shape: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_parameters=_rope(1e5),
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2, **shape,
    )  # fmt: skip


def _qwen3_small() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rope_parameters=_rope(1e6),
        tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip


def _qwen25_omni() -> Qwen2_5OmniThinkerConfig:
    rope = _rope(1e6) | {"mrope_section": [16, 24, 24]}
    # The other sizes are transformers' defaults; those of the vision tower's width are not the published ones.
    return Qwen2_5OmniThinkerConfig(
        text_config={"rope_parameters": rope, "tie_word_embeddings": False}, vision_config={"hidden_size": 1280}
    )


def _hubert() -> HubertConfig:
    return HubertConfig(**_LARGE, **_STABLE, conv_bias=True)


def _siglip(image_size: int, patch_size: int, shape: Mapping[str, int]) -> SiglipVisionConfig:
    return SiglipVisionConfig(image_size=image_size, patch_size=patch_size, **shape)


def _whisper() -> WhisperConfig:
    return WhisperConfig(
        vocab_size=51866, num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20,
        encoder_ffn_dim=5120, decoder_layers=32, decoder_attention_heads=20, decoder_ffn_dim=5120,
    )  # fmt: skip


_SMOLLM2 = {
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "360M": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
_CLIP_PIXELS = {
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_IMAGENET_PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_SIGLIP_PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SPEECH = {"do_normalize": True, "sampling_rate": 16000}

# hub id -> (configuration, the fields of its preprocessor_config.json that are used)
_PUBLISHED: dict[str, tuple[Callable[[], PreTrainedConfig], dict[str, Any]]] = {
    "facebook/hubert-large-ll60k": (_hubert, _SPEECH),
    "TencentGameMate/chinese-hubert-large": (_hubert, _SPEECH),
    "microsoft/wavlm-large": (lambda: WavLMConfig(**_LARGE, **_STABLE), _SPEECH),
    "openai/whisper-large-v3": (_whisper, {"feature_size": 128, "sampling_rate": 16000, "chunk_length": 30}),
    # EVA-CLIP ViT-g with 39 blocks, its final norm and an image Q-Former: the defaults of Blip2Config.
    "Salesforce/blip2-opt-2.7b": (Blip2Config, _CLIP_PIXELS | {"size": {"height": 224, "width": 224}}),
    "openai/clip-vit-large-patch14": (
        lambda: CLIPVisionConfig(**_LARGE, patch_size=14, projection_dim=768),
        _CLIP_PIXELS,
    ),
    "facebook/vit-mae-large": (lambda: ViTMAEConfig(**_LARGE), _IMAGENET_PIXELS | {"size": 224}),
    "facebook/dinov2-large": (
        lambda: Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518),
        _IMAGENET_PIXELS | {"crop_size": {"height": 224, "width": 224}},
    ),
    "google/siglip-large-patch16-256": (lambda: _siglip(256, 16, _LARGE), _SIGLIP_PIXELS),
    "google/siglip-so400m-patch14-384": (lambda: _siglip(384, 14, _SO400M), _SIGLIP_PIXELS),
    "MCG-NJU/videomae-large": (lambda: VideoMAEConfig(**_LARGE, use_mean_pooling=False), _IMAGENET_PIXELS),
    "facebook/hubert-base-ls960": (lambda: HubertConfig(**_BASE), _SPEECH),
    "openai/clip-vit-base-patch16": (
        lambda: CLIPVisionConfig(**_BASE, patch_size=16, projection_dim=512),
        _CLIP_PIXELS,
    ),
    "google/siglip-base-patch16-224": (lambda: _siglip(224, 16, _BASE), _SIGLIP_PIXELS),
    "MCG-NJU/videomae-base": (lambda: VideoMAEConfig(**_BASE, use_mean_pooling=False), _IMAGENET_PIXELS),
    "meta-llama/Llama-2-7b-hf": (_llama2, {}),
    "meta-llama/Llama-2-7b-chat-hf": (_llama2, {}),
    "lmsys/vicuna-7b-v1.5": (_llama2, {}),
    "meta-llama/Meta-Llama-3-8B": (_llama3, {}),
    "meta-llama/Meta-Llama-3-8B-Instruct": (_llama3, {}),
    "Qwen/Qwen2.5-7B-Instruct": (_qwen25, {}),
    "Qwen/Qwen3-8B": (_qwen3, {}),
    "Qwen/Qwen3-0.6B": (_qwen3_small, {}),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (lambda: _smollm2(**_SMOLLM2["135M"]), {}),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (lambda: _smollm2(**_SMOLLM2["360M"]), {}),
}
_OMNI: dict[str, Callable[[], PreTrainedConfig]] = {"Qwen/Qwen2.5-Omni-7B": _qwen25_omni}
PUBLISHED = tuple(_PUBLISHED)
"""Hub ids with a known configuration."""


def published_config(hub_id: str) -> PreTrainedConfig:
    """The configuration of a published base model; raises InputError with the known ids."""
    return _entry(hub_id)[0]()


def published_thinker(hub_id: str) -> PreTrainedConfig:
    """The configuration of the thinker of a published omni model; raises InputError with the known ids."""
    if hub_id not in _OMNI:
        raise InputError(
            f"no configuration of the omni model {hub_id!r} is known; use a local folder with a config.json, or one of "
            f"{tuple(_OMNI)}"
        )
    return _OMNI[hub_id]()


def published_preprocessing(hub_id: str) -> dict[str, Any]:
    """Image size, normalisation and sampling rate from the model's preprocessor_config.json."""
    return dict(_entry(hub_id)[1])


def _entry(hub_id: str) -> tuple[Callable[[], PreTrainedConfig], dict[str, Any]]:
    if hub_id not in _PUBLISHED:
        raise InputError(
            f"no configuration of {hub_id!r} is known; use a local folder with a config.json, or one of {PUBLISHED}"
        )
    return _PUBLISHED[hub_id]
