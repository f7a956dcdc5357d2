"""Tiny random versions of published multimodal chat models, each a folder that `affectgpt.chat.local.load` reads.

Every folder has what the published one has: weights in the model's own class, configuration, tokenizer with the media
tokens, chat template, and the settings of image, video and sound processors (with small pictures). Nothing is
downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from tests.models.tiny import write_bpe_tokenizer

_WEIGHTS = {"initializer_range": 0.2}  # large enough that answers differ
_BLOCKS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    **_WEIGHTS,
}
_LLM = {
    **_BLOCKS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA, _QWEN = {"model_type": "llama", **_LLM}, {"model_type": "qwen2", **_LLM}
_CLIP = {"model_type": "clip_vision_model", **_BLOCKS, "image_size": 28, "patch_size": 7, "projection_dim": 32}
_SIGLIP = {**_CLIP, "model_type": "siglip_vision_model"}
_SOUND = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "max_source_positions": 50,
    **_WEIGHTS,
}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 7,
    "out_hidden_size": 32,
    **_WEIGHTS,
}
_QWEN2_5_VISION = {**_QWEN_VISION, "window_size": 14, "fullatt_block_indexes": [1]}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}

_PICTURE = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
_CROPPED = {
    **_PICTURE,
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_resize": True,
}
_PATCHES = {"patch_size": 7, "temporal_patch_size": 2, "merge_size": 2}
_SIZED_PATCHES = {**_PATCHES, "size": {"shortest_edge": 14 * 14, "longest_edge": 28 * 28}}
_WHISPER = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 16,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 1,
}
_LLAVA = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def _template(video: str = "", image: str = "", audio: str = "") -> str:
    """A chat template with these tokens for media."""
    media = "".join(
        f"{{% elif part.type == '{name}' %}}{token}"
        for name, token in {"video": video, "image": image, "audio": audio}.items()
        if token
    )
    return (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
        f"{{% if part.type == 'text' %}}{{{{ part.text }}}}{media}{{% endif %}}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _write(
    folder: Path,
    name: str,
    config: dict[str, Any],
    *,
    tokens: dict[str, str],
    ids: dict[str, str],
    template: str | None,
    preprocessor: dict[str, Any],
    processor: dict[str, Any] | None = None,
    video: dict[str, Any] | None = None,
    seed: int = 0,
    **special: str,
) -> Path:
    """Save tokenizer, settings and random weights.

    Args:
        name: what the names of the classes in transformers begin with.
        config: the configuration without what the tokenizer says.
        tokens: media tokens by the tokenizer's name for them.
        ids: the configuration's name for the id of a media token -> the tokenizer's name for the token.
        preprocessor, processor, video: settings; the class of the processor stands in `processor` if there is one.
        special: further special tokens of the tokenizer by name.
    """
    write_bpe_tokenizer(
        folder,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tokens.values()],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **special,
        # InstructBLIP's tokenizer has no name for its video token, the others have.
        **({"extra_special_tokens": tokens} if template is not None else {}),
    )
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    whole = {"processor_class": f"{name.removesuffix('Thinker')}Processor"}
    settings = {
        "processor_config": None if processor is None else whole | processor,
        "preprocessor_config": whole | preprocessor if processor is None else preprocessor,
        "video_preprocessor_config": video,
    }
    for file, values in settings.items():
        if values is not None:
            (folder / f"{file}.json").write_text(json.dumps(values))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = {
        **config,
        "text_config": {**config["text_config"], "vocab_size": len(tokenizer)},
        **{key: tokenizer.convert_tokens_to_ids(tokens[token]) for key, token in ids.items()},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = getattr(transformers, f"{name}ForConditionalGeneration")
        network = network(getattr(transformers, f"{name}Config")(**config)).eval()
        for parameter, weights in network.named_parameters():
            if weights.ndim == 2 and not weights.any() and "position" not in parameter:
                torch.nn.init.normal_(weights, std=0.2)  # Gemma 3 starts with a projection of zeros: blind
        network.save_pretrained(folder)
    return folder


_LLAVA_TOKENS = {"image_token": "<image>", "video_token": "<video>"}
_LLAVA_IDS = {"image_token_index": "image_token", "video_token_index": "video_token"}
_LLAVA_TEMPLATE = _template(video="<video>", image="<image>")


def write_video_llava(folder: Path) -> Path:
    return _write(
        folder,
        "VideoLlava",
        {"vision_config": _CLIP, "text_config": _LLAMA},
        tokens=_LLAVA_TOKENS,
        ids=_LLAVA_IDS,
        template=_LLAVA_TEMPLATE,
        processor=_LLAVA,
        preprocessor={"image_processor_type": "VideoLlavaImageProcessor", **_CROPPED},
    )


_GRID = {"image_grid_pinpoints": [[28, 56]]}
_LLAVA_NEXT_PICTURES = {"image_processor_type": "LlavaNextImageProcessor", **_CROPPED, **_GRID}


def write_llava_next(folder: Path) -> Path:
    return _write(
        folder,
        "LlavaNext",
        {"vision_config": _CLIP, "text_config": _LLAMA, **_GRID},
        tokens={"image_token": "<image>"},
        ids={"image_token_index": "image_token"},
        template=_template(image="<image>"),
        processor=_LLAVA,
        preprocessor=_LLAVA_NEXT_PICTURES,
    )


def write_llava_next_video(folder: Path) -> Path:
    return _write(
        folder,
        "LlavaNextVideo",
        {"vision_config": _CLIP, "text_config": _LLAMA, **_GRID},
        tokens=_LLAVA_TOKENS,
        ids=_LLAVA_IDS,
        template=_LLAVA_TEMPLATE,
        processor=_LLAVA,
        preprocessor=_LLAVA_NEXT_PICTURES,
        video={"video_processor_type": "LlavaNextVideoVideoProcessor", **_CROPPED},
    )


def write_llava_onevision(folder: Path) -> Path:
    grid = {"image_grid_pinpoints": [[28, 28]]}
    return _write(
        folder,
        "LlavaOnevision",
        {"vision_config": {**_SIGLIP, "vision_use_head": False}, "text_config": _QWEN, **grid},
        tokens=_LLAVA_TOKENS,
        ids=_LLAVA_IDS,
        template=_LLAVA_TEMPLATE,
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        preprocessor={"image_processor_type": "LlavaOnevisionImageProcessor", **_PICTURE, **grid},
        video={"video_processor_type": "LlavaOnevisionVideoProcessor", **_PICTURE},
    )


def write_instructblip_video(folder: Path, n_positions: int = 512) -> Path:
    """A model that takes four frames; `n_positions`: the longest question of its Q-Former, in tokens."""
    write_bpe_tokenizer(folder / "qformer_tokenizer", ["[PAD]", "[CLS]", "[SEP]"], pad_token="[PAD]", cls_token="[CLS]")
    return _write(
        folder,
        "InstructBlipVideo",
        {
            "vision_config": {**_CLIP, "model_type": "instructblipvideo_vision_model"},
            "qformer_config": {
                **_BLOCKS,
                "vocab_size": 500,
                "encoder_hidden_size": 32,
                "max_position_embeddings": n_positions,
            },
            "text_config": _LLAMA,
            "num_query_tokens": 3,
        },
        tokens={"video_token": "<video>"},
        ids={"video_token_index": "video_token"},
        template=None,
        processor={"num_query_tokens": 3},
        preprocessor={"video_processor_type": "InstructBlipVideoVideoProcessor", **_PICTURE},
    )


_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_QWEN_IDS = {f"{token}_id": token for token in _QWEN_TOKENS}
_QWEN_TEMPLATE = _template(
    video="<|vision_start|><|video_pad|><|vision_end|>", image="<|vision_start|><|image_pad|><|vision_end|>"
)
_QWEN_PICTURES = {"image_processor_type": "Qwen2VLImageProcessor"}


def write_qwen2_vl(folder: Path) -> Path:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 7}
    return _write(
        folder,
        "Qwen2VL",
        {"vision_config": {**vision, **_WEIGHTS}, "text_config": {**_LLM, "rope_parameters": _MROPE}},
        tokens=_QWEN_TOKENS,
        ids=_QWEN_IDS,
        template=_QWEN_TEMPLATE,
        preprocessor={**_QWEN_PICTURES, **_SIZED_PATCHES},
    )


def write_qwen2_5_vl(folder: Path) -> Path:
    return _write(
        folder,
        "Qwen2_5_VL",
        {"vision_config": _QWEN2_5_VISION, "text_config": {**_LLM, "rope_parameters": _MROPE}},
        tokens=_QWEN_TOKENS,
        ids=_QWEN_IDS,
        template=_QWEN_TEMPLATE,
        # The sizes as the published file has them.
        preprocessor={**_QWEN_PICTURES, **_PATCHES, "min_pixels": 14 * 14, "max_pixels": 28 * 28},
    )


def write_qwen3_vl(folder: Path) -> Path:
    video_size = {"shortest_edge": 2 * 14 * 14, "longest_edge": 4 * 28 * 28}
    return _write(
        folder,
        "Qwen3VL",
        {
            "vision_config": {**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            "text_config": {**_LLM, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        },
        tokens=_QWEN_TOKENS,
        ids=_QWEN_IDS,
        template=_template(video="<|vision_start|><|video_pad|><|vision_end|>"),
        preprocessor={**_QWEN_PICTURES, **_SIZED_PATCHES},
        video={"video_processor_type": "Qwen3VLVideoProcessor", **_PATCHES, "size": video_size},
    )


_SOUND_TOKENS = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
_SOUND_TEMPLATE = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def write_qwen2_audio(folder: Path) -> Path:
    return _write(
        folder,
        "Qwen2Audio",
        {"audio_config": _SOUND, "text_config": _QWEN},
        tokens=_SOUND_TOKENS,
        ids={"audio_token_index": "audio_token"},
        template=_template(audio=_SOUND_TEMPLATE),
        preprocessor=_WHISPER,
    )


def write_audio_flamingo(folder: Path) -> Path:
    sound = {
        "num_mel_bins": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_size": 32,
        "max_source_positions": 50,
        **_WEIGHTS,
    }
    return _write(
        folder,
        "AudioFlamingo3",
        {"audio_config": sound, "text_config": _QWEN},
        tokens={"audio_token": "<sound>"},
        ids={"audio_token_id": "audio_token"},
        template=_template(audio="<sound>"),
        processor={"max_audio_len": 5},
        preprocessor=_WHISPER,
    )


def write_qwen2_5_omni(folder: Path) -> Path:
    """Thinker and talker configuration with the thinker's weights under `thinker.`, as the published checkpoint."""
    tokens = {
        "image_token": "<|IMAGE|>",
        "video_token": "<|VIDEO|>",
        "audio_token": "<|AUDIO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    _write(
        folder,
        "Qwen2_5OmniThinker",
        {
            "vision_config": _QWEN2_5_VISION,
            "audio_config": {**_SOUND, "n_window": 25, "output_dim": 32},
            "text_config": {**_LLM, "rope_parameters": _MROPE},
        },
        tokens=tokens,
        ids={
            "audio_token_index": "audio_token",
            "image_token_index": "image_token",
            "video_token_index": "video_token",
            "audio_start_token_id": "audio_bos_token",
            "audio_end_token_id": "audio_eos_token",
            "vision_start_token_id": "vision_bos_token",
            "vision_end_token_id": "vision_eos_token",
        },
        template=_template(
            video="<|vision_bos|><|VIDEO|><|vision_eos|>",
            image="<|vision_bos|><|IMAGE|><|vision_eos|>",
            audio=_SOUND_TEMPLATE,
        ),
        preprocessor={**_QWEN_PICTURES, **_SIZED_PATCHES, **_WHISPER},
    )
    from safetensors.torch import load_file, save_file

    thinker = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"], "thinker_config": thinker})
    )
    weights = {f"thinker.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    weights["talker.codec_head.weight"] = torch.zeros(2, 2)  # the published checkpoint has what text does not need
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_internvl(folder: Path) -> Path:
    return _write(
        folder,
        "InternVL",
        {
            "vision_config": {**_BLOCKS, "image_size": [28, 28], "patch_size": [7, 7]},
            "text_config": _QWEN,
            "image_seq_length": 4,
        },
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        ids={"image_token_id": "context_image_token"},
        template=_template(video="<video>", image="<IMG_CONTEXT>"),
        processor={"image_seq_length": 4},
        preprocessor={"image_processor_type": "GotOcr2ImageProcessor", **_PICTURE},
        video={"video_processor_type": "InternVLVideoProcessor", **_PICTURE},
    )


def write_gemma3(folder: Path) -> Path:
    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    return _write(
        folder,
        "Gemma3",
        {"vision_config": {**_SIGLIP, "vision_use_head": False}, "text_config": _LLM, "mm_tokens_per_image": 4},
        tokens=tokens,
        ids={f"{token}_index": token for token in tokens},
        template="{{ bos_token }}" + _template(image="<start_of_image>"),
        processor={"image_seq_length": 4},
        preprocessor={"image_processor_type": "Gemma3ImageProcessor", **_PICTURE},
        bos_token="<|startoftext|>",
    )


WRITERS = {
    "video_llava": write_video_llava,
    "llava_next_video": write_llava_next_video,
    "llava_onevision": write_llava_onevision,
    "instructblipvideo": write_instructblip_video,
    "qwen2_vl": write_qwen2_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen3_vl": write_qwen3_vl,
    "internvl": write_internvl,
    "llava_next": write_llava_next,
    "gemma3": write_gemma3,
    "qwen2_audio": write_qwen2_audio,
    "audioflamingo3": write_audio_flamingo,
    "qwen2_5_omni": write_qwen2_5_omni,
}
"""By model type."""
