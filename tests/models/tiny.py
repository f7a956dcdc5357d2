"""Tiny base models in the real on-disk format, for everybody's tests: a folder each, as `from_pretrained` reads it.

Weights are random but drawn from a seed and large enough that outputs depend on inputs. Nothing is downloaded.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    HubertConfig,
    HubertModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    VideoMAEConfig,
    VideoMAEModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from affectgpt.config import EncoderConfig, LLMConfig, LoraConfig, ProjectorConfig, SamplingConfig
from affectgpt.models import ModelSpec
from affectgpt.prompts import Message
from affectgpt.schema import PLACEHOLDERS

WIDTH = 32
MODALITIES = ("audio", "frames", "motion")
"""The branches of the shared tiny model."""
TEXT = (
    "Watch and listen, then explain what the person feels and which clues show it.",
    "Which emotions does the person feel? Answer with emotion words only, separated by commas.",
    'The person says: "Fine." The brows are lowered and the voice is flat, so the person may be sad or ironic.',
    "A chat between a person with a question and an assistant. USER: hello ASSISTANT: happy, calm, surprised",
    "请观看并聆听，说明这个人的感受以及有哪些线索。这个人说：“我没事。”情绪：悲伤，平静",
)

LLAMA2_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S.%f') %}"
    "{% endif %}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}<|eot_id|>"
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN2_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


# ---------------------------------------------------------------- encoders


def _save(kind: type[PreTrainedModel], config, folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    return folder


def write_hubert(folder: Path, seed: int = 0, n_layers: int = 2) -> Path:
    """HuBERT in the layout of the large models (stable layer norm), 50 states a second."""
    config = HubertConfig(
        hidden_size=WIDTH, num_hidden_layers=n_layers, num_attention_heads=2, intermediate_size=64, conv_dim=[8] * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        do_stable_layer_norm=True, conv_bias=True, initializer_range=0.2,
    )  # fmt: skip
    _save(HubertModel, config, folder, seed)
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16000}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_eva(folder: Path, seed: int = 0) -> Path:
    """`Blip2VisionModel`, the layout of EVA-CLIP ViT-g: 28 px, 2 x 2 patches and a class token."""
    config = Blip2VisionConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=28,
        patch_size=14, initializer_range=0.2,
    )  # fmt: skip
    return _save(Blip2VisionModel, config, folder, seed)


def write_clip(folder: Path, seed: int = 0) -> Path:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=8, projection_dim=24, initializer_range=0.2,
    )  # fmt: skip
    _save(CLIPVisionModelWithProjection, config, folder, seed)
    settings = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_blip2(folder: Path, seed: int = 0) -> Path:
    """A whole BLIP-2: the vision model of `write_eva`, an image Q-Former (2 layers, 4 queries) and a text model."""
    text = OPTConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, encoder_hidden_size=WIDTH,
        initializer_range=0.2, vocab_size=20,
    )  # fmt: skip
    vision = Blip2VisionConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=28,
        patch_size=14, initializer_range=0.2,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(config)
        torch.nn.init.normal_(model.query_tokens)
        for parameter in model.vision_model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def write_vit_mae(folder: Path, seed: int = 0) -> Path:
    """A whole ViTMAE, as published: the encoder's weights below `vit.`, and a decoder that nobody needs."""
    config = ViTMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, initializer_range=0.2,
    )  # fmt: skip
    return _save(ViTMAEForPreTraining, config, folder, seed)


def write_whisper(folder: Path, seed: int = 0) -> Path:
    """A whole Whisper with a decoder; its encoder sees 30 s as 1500 states."""
    config = WhisperConfig(
        vocab_size=20, num_mel_bins=8, d_model=WIDTH, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, bos_token_id=0, eos_token_id=1,
        pad_token_id=2, decoder_start_token_id=0, init_std=0.2,
    )  # fmt: skip
    _save(WhisperForConditionalGeneration, config, folder, seed)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    return folder


def write_dinov2(folder: Path, seed: int = 0) -> Path:
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    return _save(Dinov2Model, config, folder, seed)


def write_videomae(folder: Path, seed: int = 0) -> Path:
    """VideoMAE on 4 frames of 16 px: 2 tubelets of 2 x 2 patches."""
    config = VideoMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=8, num_frames=4, tubelet_size=2, initializer_range=0.2,
    )  # fmt: skip
    return _save(VideoMAEModel, config, folder, seed)


# ---------------------------------------------------------------- language models


def write_llama(folder: Path, seed: int = 0, chat_template: str | None = None, vocab_size: int = 420) -> Path:
    """LLaMA with a sentencepiece tokenizer; without a chat template it is Vicuna's kind. No padding token."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, vocab_size=vocab_size, hard_vocab_limit=False,
        model_type="bpe", byte_fallback=True, character_coverage=0.98, pad_id=-1, minloglevel=2,
        remove_extra_whitespaces=False, normalization_rule_name="identity", num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    # A folder with tokenizer.model alone would load with other ids: class and add_bos_token must be said.
    settings = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "legacy": False,
    }  # fmt: skip
    if chat_template:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    n_pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    config = LlamaConfig(
        vocab_size=n_pieces, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
        pad_token_id=None,
    )  # fmt: skip
    return _save(LlamaForCausalLM, config, folder, seed)


def write_bpe_tokenizer(folder: Path, special: list[str], plain: list[str] = (), **settings) -> int:
    """A byte-level BPE tokenizer as Qwen and LLaMA-3 have; returns its length."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    wrapped.save_pretrained(folder)
    return len(wrapped)


def write_llama3(folder: Path, seed: int = 0) -> Path:
    """LLaMA with LLaMA-3's kind of tokenizer: its template ends turns with another token than eos."""
    length = write_bpe_tokenizer(
        folder, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", chat_template=LLAMA3_TEMPLATE,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=length, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.2, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    return _save(LlamaForCausalLM, config, folder, seed)


def write_qwen2(folder: Path, seed: int = 0) -> Path:
    """Qwen2 with tied embeddings and a vocabulary that is padded on disk, as the published ones are."""
    length = write_bpe_tokenizer(
        folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN2_TEMPLATE,
    )  # fmt: skip
    config = Qwen2Config(
        vocab_size=length + 16, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return _save(Qwen2ForCausalLM, config, folder, seed)


def write_qwen3(folder: Path, seed: int = 0) -> Path:
    length = write_bpe_tokenizer(
        folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"],
        eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN3_TEMPLATE,
    )  # fmt: skip
    config = Qwen3Config(
        vocab_size=length + 16, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return _save(Qwen3ForCausalLM, config, folder, seed)


# ---------------------------------------------------------------- the whole


WRITERS = {
    "audio": write_hubert,
    "frames": write_eva,
    "motion": write_videomae,
    "face": write_clip,
    "face_motion": write_videomae,
}
SAMPLING = SamplingConfig(n_frames=2, n_motion_frames=4, n_faces=2, n_motion_faces=4, window_s=0.1, max_windows=3)


def write_base_models(folder: Path, llm=write_llama, modalities=("audio", "frames", "motion")) -> dict[str, Path]:
    """One base model a modality and an LLM below `folder`; returns their folders, with the LLM's under "llm"."""
    paths = {"llm": llm(folder / "llm")}
    return paths | {name: WRITERS[name](folder / name) for name in modalities}


def tiny_spec(
    paths: dict[str, Path],
    modalities=("audio", "frames", "motion"),
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    lora: LoraConfig | None = None,
    **changes,
) -> ModelSpec:
    """A model over `write_base_models`: Q-Formers with 3 queries, 2 frames, 4 motion frames, windows of 0.1 s.

    Args:
        dtype, quantization, lora: of the LLM.
    """
    projector = ProjectorConfig(n_queries=3, hidden_size=16, n_layers=2, n_heads=2, dropout=0.0)
    fields = {
        "llm": LLMConfig(str(paths["llm"]), dtype=dtype, quantization=quantization, lora=lora or LoraConfig()),
        "encoders": {name: EncoderConfig(str(paths[name])) for name in modalities},
        "projectors": dict.fromkeys(modalities, projector),
        "sampling": SAMPLING,
    }
    return ModelSpec(**{**fields, **changes})


@dataclass(frozen=True)
class Sound:
    """What `affectgpt.media.read_audio` gives, as far as the processor reads it."""

    samples: np.ndarray
    rate_hz: int = 16000


def media(*modalities: str, seed: int = 0, duration_s: float = 0.25) -> dict[str, Any]:
    """Random media as the decoders give them: sound at 16 kHz, 2 frames and 4 motion frames of 20 x 30 px."""
    rng = np.random.default_rng(seed)
    every = {
        "audio": Sound(rng.normal(size=round(16000 * duration_s)).astype(np.float32)),
        "frames": rng.integers(0, 256, (SAMPLING.n_frames, 20, 30, 3), dtype=np.uint8),
        "motion": rng.integers(0, 256, (SAMPLING.n_motion_frames, 20, 30, 3), dtype=np.uint8),
        "face": rng.integers(0, 256, (SAMPLING.n_faces, 24, 24, 3), dtype=np.uint8),
        "face_motion": rng.integers(0, 256, (SAMPLING.n_motion_faces, 24, 24, 3), dtype=np.uint8),
    }
    return {name: every[name] for name in modalities}


def question(*modalities: str, text: str = "What does the person feel?") -> list[Message]:
    """A user message that shows `modalities`."""
    slots = "".join(PLACEHOLDERS[name] for name in modalities)
    return [Message("user", f"{slots}\n{text}" if slots else text)]
