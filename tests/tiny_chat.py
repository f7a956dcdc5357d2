"""Tiny random versions of published multimodal chat models, each a folder that `affectgpt.mllm.load` reads.

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

from .models.tiny import write_bpe_tokenizer

_LLM = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 32,
    "initializer_range": 0.2,
}
_SIGLIP = {**_CLIP, "model_type": "siglip_vision_model"}
_SOUND = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "max_source_positions": 50,
    "initializer_range": 0.2,
}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 7,
    "out_hidden_size": 32,
    "initializer_range": 0.2,
}
_PICTURE = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
_CROPPED = {
    **_PICTURE,
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_resize": True,
}
_PATCHES = {
    "size": {"shortest_edge": 14 * 14, "longest_edge": 28 * 28},
    "patch_size": 7,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_WHISPER = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 16,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 1,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


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
    model: str,
    config: Any,
    *,
    tokens: dict[str, str],
    template: str | None,
    settings: dict[str, dict[str, Any]],
    seed: int = 0,
    **special: str,
) -> Path:
    """Save tokenizer, settings and random weights.

    Args:
        model: class of transformers.
        config: (ids of the media tokens, length of the tokenizer) -> configuration.
        tokens: media tokens by the tokenizer's name for them.
        settings: JSON files by name.
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
    for name, values in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = getattr(transformers, model)(config(ids, len(tokenizer))).eval()
        for name, weights in network.named_parameters():
            if weights.ndim == 2 and not weights.any() and "position" not in name:
                torch.nn.init.normal_(weights, std=0.2)  # Gemma 3 starts with a projection of zeros: blind
        network.save_pretrained(folder)
    return folder


_LLAVA_TOKENS = {"image_token": "<image>", "video_token": "<video>"}


def write_video_llava(folder: Path) -> Path:
    return _write(
        folder,
        "VideoLlavaForConditionalGeneration",
        lambda ids, length: transformers.VideoLlavaConfig(
            vision_config=_CLIP,
            text_config={"model_type": "llama", **_LLM, "vocab_size": length},
            image_token_index=ids["image_token"],
            video_token_index=ids["video_token"],
        ),
        tokens=_LLAVA_TOKENS,
        template=_template(video="<video>", image="<image>"),
        settings={
            "processor_config": {
                "processor_class": "VideoLlavaProcessor",
                "patch_size": 7,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
            "preprocessor_config": {"image_processor_type": "VideoLlavaImageProcessor", **_CROPPED},
        },
    )


def write_llava_next_video(folder: Path) -> Path:
    return _write(
        folder,
        "LlavaNextVideoForConditionalGeneration",
        lambda ids, length: transformers.LlavaNextVideoConfig(
            vision_config=_CLIP,
            text_config={"model_type": "llama", **_LLM, "vocab_size": length},
            image_token_index=ids["image_token"],
            video_token_index=ids["video_token"],
            image_grid_pinpoints=[[28, 56]],
        ),
        tokens=_LLAVA_TOKENS,
        template=_template(video="<video>", image="<image>"),
        settings={
            "processor_config": {
                "processor_class": "LlavaNextVideoProcessor",
                "patch_size": 7,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
            "preprocessor_config": {
                "image_processor_type": "LlavaNextImageProcessor",
                **_CROPPED,
                "image_grid_pinpoints": [[28, 56]],
            },
            "video_preprocessor_config": {"video_processor_type": "LlavaNextVideoVideoProcessor", **_CROPPED},
        },
    )


def write_llava_onevision(folder: Path) -> Path:
    return _write(
        folder,
        "LlavaOnevisionForConditionalGeneration",
        lambda ids, length: transformers.LlavaOnevisionConfig(
            vision_config={**_SIGLIP, "vision_use_head": False},
            text_config={"model_type": "qwen2", **_LLM, "vocab_size": length},
            image_token_index=ids["image_token"],
            video_token_index=ids["video_token"],
            image_grid_pinpoints=[[28, 28]],
        ),
        tokens=_LLAVA_TOKENS,
        template=_template(video="<video>", image="<image>"),
        settings={
            "processor_config": {
                "processor_class": "LlavaOnevisionProcessor",
                "num_image_tokens": 16,
                "vision_feature_select_strategy": "full",
            },
            "preprocessor_config": {
                "image_processor_type": "LlavaOnevisionImageProcessor",
                **_PICTURE,
                "image_grid_pinpoints": [[28, 28]],
            },
            "video_preprocessor_config": {"video_processor_type": "LlavaOnevisionVideoProcessor", **_PICTURE},
        },
    )


def write_instructblip_video(folder: Path) -> Path:
    write_bpe_tokenizer(folder / "qformer_tokenizer", ["[PAD]", "[CLS]", "[SEP]"], pad_token="[PAD]", cls_token="[CLS]")
    return _write(
        folder,
        "InstructBlipVideoForConditionalGeneration",
        lambda ids, length: transformers.InstructBlipVideoConfig(
            vision_config={**_CLIP, "model_type": "instructblipvideo_vision_model"},
            qformer_config={
                "vocab_size": 500,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "encoder_hidden_size": 32,
                "initializer_range": 0.2,
            },
            text_config={"model_type": "llama", **_LLM, "vocab_size": length},
            num_query_tokens=3,
            video_token_index=ids["video_token"],
        ),
        tokens={"video_token": "<video>"},
        template=None,
        settings={
            "processor_config": {"processor_class": "InstructBlipVideoProcessor", "num_query_tokens": 3},
            "preprocessor_config": {"video_processor_type": "InstructBlipVideoVideoProcessor", **_PICTURE},
        },
    )


_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_QWEN_TEMPLATE = _template(
    video="<|vision_start|><|video_pad|><|vision_end|>", image="<|vision_start|><|image_pad|><|vision_end|>"
)


def write_qwen2_5_vl(folder: Path) -> Path:
    return _write(
        folder,
        "Qwen2_5_VLForConditionalGeneration",
        lambda ids, length: transformers.Qwen2_5_VLConfig(
            vision_config={**_QWEN_VISION, "window_size": 14, "fullatt_block_indexes": [1]},
            text_config={**_LLM, "vocab_size": length, "rope_parameters": _MROPE},
            **{f"{name}_id": value for name, value in ids.items()},
        ),
        tokens=_QWEN_TOKENS,
        template=_QWEN_TEMPLATE,
        settings={
            "preprocessor_config": {
                "processor_class": "Qwen2_5_VLProcessor",
                "image_processor_type": "Qwen2VLImageProcessor",
                **{key: value for key, value in _PATCHES.items() if key != "size"},
                "min_pixels": 14 * 14,  # as the published file has it
                "max_pixels": 28 * 28,
            }
        },
    )


def write_qwen2_vl(folder: Path) -> Path:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 7}
    return _write(
        folder,
        "Qwen2VLForConditionalGeneration",
        lambda ids, length: transformers.Qwen2VLConfig(
            vision_config={**vision, "initializer_range": 0.2},
            text_config={**_LLM, "vocab_size": length, "rope_parameters": _MROPE},
            **{f"{name}_id": value for name, value in ids.items()},
        ),
        tokens=_QWEN_TOKENS,
        template=_QWEN_TEMPLATE,
        settings={
            "preprocessor_config": {
                "processor_class": "Qwen2VLProcessor",
                "image_processor_type": "Qwen2VLImageProcessor",
                **_PATCHES,
            }
        },
    )


def write_qwen3_vl(folder: Path) -> Path:
    return _write(
        folder,
        "Qwen3VLForConditionalGeneration",
        lambda ids, length: transformers.Qwen3VLConfig(
            vision_config={**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            text_config={**_LLM, "vocab_size": length, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
            **{f"{name}_id": value for name, value in ids.items()},
        ),
        tokens=_QWEN_TOKENS,
        template=_template(video="<|vision_start|><|video_pad|><|vision_end|>"),
        settings={
            "preprocessor_config": {
                "processor_class": "Qwen3VLProcessor",
                "image_processor_type": "Qwen2VLImageProcessor",
                **_PATCHES,
            },
            "video_preprocessor_config": {
                "video_processor_type": "Qwen3VLVideoProcessor",
                **_PATCHES,
                "size": {"shortest_edge": 2 * 14 * 14, "longest_edge": 4 * 28 * 28},
            },
        },
    )


_SOUND_TEMPLATE = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def write_qwen2_audio(folder: Path) -> Path:
    return _write(
        folder,
        "Qwen2AudioForConditionalGeneration",
        lambda ids, length: transformers.Qwen2AudioConfig(
            audio_config=_SOUND,
            text_config={"model_type": "qwen2", **_LLM, "vocab_size": length},
            audio_token_index=ids["audio_token"],
        ),
        tokens={"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
        template=_template(audio=_SOUND_TEMPLATE),
        settings={"preprocessor_config": {"processor_class": "Qwen2AudioProcessor", **_WHISPER}},
    )


def write_audio_flamingo(folder: Path) -> Path:
    return _write(
        folder,
        "AudioFlamingo3ForConditionalGeneration",
        lambda ids, length: transformers.AudioFlamingo3Config(
            audio_config={
                "num_mel_bins": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "hidden_size": 32,
                "max_source_positions": 50,
                "initializer_range": 0.2,
            },
            text_config={"model_type": "qwen2", **_LLM, "vocab_size": length},
            audio_token_id=ids["audio_token"],
        ),
        tokens={"audio_token": "<sound>"},
        template=_template(audio="<sound>"),
        settings={
            "processor_config": {"processor_class": "AudioFlamingo3Processor", "max_audio_len": 5},
            "preprocessor_config": _WHISPER,
        },
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
        "Qwen2_5OmniThinkerForConditionalGeneration",
        lambda ids, length: transformers.Qwen2_5OmniThinkerConfig(
            vision_config={**_QWEN_VISION, "window_size": 14, "fullatt_block_indexes": [1]},
            audio_config={**_SOUND, "n_window": 25, "output_dim": 32},
            text_config={**_LLM, "vocab_size": length, "rope_parameters": _MROPE},
            audio_token_index=ids["audio_token"],
            image_token_index=ids["image_token"],
            video_token_index=ids["video_token"],
            audio_start_token_id=ids["audio_bos_token"],
            audio_end_token_id=ids["audio_eos_token"],
            vision_start_token_id=ids["vision_bos_token"],
            vision_end_token_id=ids["vision_eos_token"],
        ),
        tokens=tokens,
        template=_template(
            video="<|vision_bos|><|VIDEO|><|vision_eos|>",
            image="<|vision_bos|><|IMAGE|><|vision_eos|>",
            audio=_SOUND_TEMPLATE,
        ),
        settings={
            "preprocessor_config": {
                "processor_class": "Qwen2_5OmniProcessor",
                "image_processor_type": "Qwen2VLImageProcessor",
                **_PATCHES,
                **_WHISPER,
            },
        },
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
        "InternVLForConditionalGeneration",
        lambda ids, length: transformers.InternVLConfig(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": [28, 28],
                "patch_size": [7, 7],
                "initializer_range": 0.2,
            },
            text_config={"model_type": "qwen2", **_LLM, "vocab_size": length},
            image_token_id=ids["context_image_token"],
            image_seq_length=4,
        ),
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        template=_template(video="<video>", image="<IMG_CONTEXT>"),
        settings={
            "processor_config": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
            "preprocessor_config": {"image_processor_type": "GotOcr2ImageProcessor", **_PICTURE},
            "video_preprocessor_config": {"video_processor_type": "InternVLVideoProcessor", **_PICTURE},
        },
    )


def write_llava_next(folder: Path) -> Path:
    return _write(
        folder,
        "LlavaNextForConditionalGeneration",
        lambda ids, length: transformers.LlavaNextConfig(
            vision_config=_CLIP,
            text_config={"model_type": "llama", **_LLM, "vocab_size": length},
            image_token_index=ids["image_token"],
            image_grid_pinpoints=[[28, 56]],
        ),
        tokens={"image_token": "<image>"},
        template=_template(image="<image>"),
        settings={
            "processor_config": {
                "processor_class": "LlavaNextProcessor",
                "patch_size": 7,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
            "preprocessor_config": {
                "image_processor_type": "LlavaNextImageProcessor",
                **_CROPPED,
                "image_grid_pinpoints": [[28, 56]],
            },
        },
    )


def write_gemma3(folder: Path) -> Path:
    return _write(
        folder,
        "Gemma3ForConditionalGeneration",
        lambda ids, length: transformers.Gemma3Config(
            vision_config={**_SIGLIP, "vision_use_head": False},
            text_config={**_LLM, "vocab_size": length},
            mm_tokens_per_image=4,
            boi_token_index=ids["boi_token"],
            eoi_token_index=ids["eoi_token"],
            image_token_index=ids["image_token"],
        ),
        tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        template="{{ bos_token }}" + _template(image="<start_of_image>"),
        settings={
            "processor_config": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
            "preprocessor_config": {"image_processor_type": "Gemma3ImageProcessor", **_PICTURE},
        },
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
