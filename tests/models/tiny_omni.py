"""A tiny Qwen2.5-Omni in the layout of the published one: a thinker among other parts, with its processor's files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor

from affectgpt.config import LLMConfig, LoraConfig, OmniConfig, SamplingConfig
from affectgpt.models import ModelSpec
from tests.models.tiny import WIDTH, write_bpe_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    *("<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>"),
)
PIXELS = {"min_pixels": 256, "max_pixels": 512}  # 4 to 8 merged patches of 8 x 8 pixels
SAMPLING = SamplingConfig(n_frames=4, window_s=30.0, max_windows=1)
LORA = LoraConfig(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj", "down_proj"])


def write_omni(folder: Path, seed: int = 0) -> Path:
    """The folder of a thinker of 2 layers in each part; its weights have the published names, below `thinker.`."""
    length = write_bpe_tokenizer(folder, list(SPECIAL), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    first = length - len(SPECIAL)
    ids = {token: first + number for number, token in enumerate(SPECIAL)}
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    WhisperFeatureExtractor(feature_size=8, return_attention_mask=True).save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "patch_size": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | pixels))
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": length + 16, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
            "initializer_range": 0.2, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "window_size": 16, "out_hidden_size": WIDTH, "fullatt_block_indexes": [1], "initializer_range": 0.2,
        },
        audio_config={
            "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "d_model": WIDTH, "output_dim": WIDTH, "n_window": 20, "initializer_range": 0.2,
        },
        audio_token_index=ids["<|AUDIO|>"], image_token_index=ids["<|IMAGE|>"], video_token_index=ids["<|VIDEO|>"],
        audio_start_token_id=ids["<|audio_bos|>"], audio_end_token_id=ids["<|audio_eos|>"],
        vision_start_token_id=ids["<|vision_bos|>"], vision_end_token_id=ids["<|vision_eos|>"],
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        thinker = Qwen2_5OmniThinkerForConditionalGeneration(config)
    published = {"model.language_model.": "model.", "model.audio_tower.": "audio_tower.", "model.visual.": "visual."}
    tensors = {"talker.of_no_interest": torch.zeros(1)}
    for name, tensor in thinker.state_dict().items():
        old = next((prefix for prefix in published if name.startswith(prefix)), None)
        short = name if old is None else published[old] + name.removeprefix(old)
        tensors[f"thinker.{short}"] = tensor.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole = {"model_type": "qwen2_5_omni", "enable_audio_output": True, "thinker_config": config.to_dict()}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def omni_spec(folder: Path, **omni) -> ModelSpec:
    """The model of `write_omni` with LoRA, 4 frames and sound among them."""
    return ModelSpec(LLMConfig(str(folder), lora=LORA), {}, {}, SAMPLING, omni=OmniConfig(**{**PIXELS, **omni}))
