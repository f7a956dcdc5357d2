"""State dicts with the names of the published checkpoints, whole, and random values in small shapes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

EVA_WIDTH, QFORMER_WIDTH, SOUND_WIDTH, LLM_WIDTH = 48, 24, 32, 32  # the last two as in tiny.py
EVA_MLP = 64
N_QUERIES, N_FRAME_POSITIONS, N_SOUND_POSITIONS = 4, 32, 8
State = dict[str, Tensor]


class Draw:
    def __init__(self, seed: int, scale: float = 0.3) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.scale = scale

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * self.scale

    def linear(self, name: str, n_in: int, n_out: int) -> State:
        return {f"{name}.weight": self(n_out, n_in), f"{name}.bias": self(n_out)}

    def norm(self, name: str, width: int) -> State:
        return {f"{name}.weight": 1 + self(width), f"{name}.bias": self(width)}


def eva(seed: int = 1, n_blocks: int = 39, side: int = 2, patch: int = 14) -> State:
    """eva_vit_g.pth: a bare state dict; the published one has 16 x 16 patches."""
    draw, width = Draw(seed), EVA_WIDTH
    state = {
        # Large enough that the epsilon of ln_vision (1e-5 published, 1e-6 in transformers) does not show.
        "cls_token": draw(1, 1, width) * 10,
        "pos_embed": draw(1, side * side + 1, width) * 10,
        "patch_embed.proj.weight": draw(width, 3, patch, patch) * 0.3,
        "patch_embed.proj.bias": draw(width),
    }
    for number in range(n_blocks):
        block = f"blocks.{number}"
        state |= draw.norm(f"{block}.norm1", width)
        state[f"{block}.attn.q_bias"], state[f"{block}.attn.v_bias"] = draw(width), draw(width)
        state[f"{block}.attn.qkv.weight"] = draw(3 * width, width)
        state |= draw.linear(f"{block}.attn.proj", width, width) | draw.norm(f"{block}.norm2", width)
        state |= draw.linear(f"{block}.mlp.fc1", width, EVA_MLP) | draw.linear(f"{block}.mlp.fc2", EVA_MLP, width)
    return state


def qformer(draw: Draw, name: str, n_layers: int, every: int, encoder_width: int, text: bool = False) -> State:
    width = QFORMER_WIDTH
    state = draw.norm(f"{name}.bert.embeddings.LayerNorm", width)
    state[f"{name}.bert.embeddings.position_ids"] = torch.arange(512)[None]
    for number in range(n_layers):
        layer = f"{name}.bert.encoder.layer.{number}"
        for kind in ("attention", *["crossattention"] * (number % every == 0)):
            source = encoder_width if kind == "crossattention" else width
            at = f"{layer}.{kind}"
            state |= draw.linear(f"{at}.self.query", width, width)
            state |= draw.linear(f"{at}.self.key", source, width) | draw.linear(f"{at}.self.value", source, width)
            state |= draw.linear(f"{at}.output.dense", width, width) | draw.norm(f"{at}.output.LayerNorm", width)
        for suffix in ("_query", *[""] * text):
            state |= draw.linear(f"{layer}.intermediate{suffix}.dense", width, 4 * width)
            state |= draw.linear(f"{layer}.output{suffix}.dense", 4 * width, width)
            state |= draw.norm(f"{layer}.output{suffix}.LayerNorm", width)
    return state


def blip2(seed: int = 2, text: bool = True) -> State:
    """blip2_pretrained_flant5xxl.pth below "model"; with `text`, what other BLIP-2 files hold for words, too."""
    draw = Draw(seed)
    state = {"query_tokens": draw(1, N_QUERIES, QFORMER_WIDTH)} | draw.norm("ln_vision", EVA_WIDTH)
    state |= qformer(draw, "Qformer", 12, 2, EVA_WIDTH, text) | draw.linear("t5_proj", QFORMER_WIDTH, 16)
    if text:
        state["Qformer.bert.embeddings.word_embeddings.weight"] = draw(30, QFORMER_WIDTH)
        state["Qformer.bert.embeddings.position_embeddings.weight"] = draw(512, QFORMER_WIDTH)
        state |= draw.linear("Qformer.cls.predictions.decoder", QFORMER_WIDTH, 30)
    return state


def video_branch(seed: int = 3) -> State:
    """Video-LLaMA's visual branch, below "model"."""
    draw = Draw(seed)
    return {
        "video_query_tokens": draw(1, N_QUERIES, QFORMER_WIDTH),
        "video_frame_position_embedding.weight": draw(N_FRAME_POSITIONS, QFORMER_WIDTH),
        **qformer(draw, "video_Qformer", 2, 1, QFORMER_WIDTH),
        **draw.linear("llama_proj", QFORMER_WIDTH, LLM_WIDTH),
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": draw(8),
    }


def audio_branch(seed: int = 4) -> State:
    """Video-LLaMA's audio branch, below "model"."""
    draw = Draw(seed)
    return {
        "audio_query_tokens": draw(1, N_QUERIES, QFORMER_WIDTH),
        "audio_position_embedding.weight": draw(N_SOUND_POSITIONS, SOUND_WIDTH),
        **qformer(draw, "audio_Qformer", 2, 1, SOUND_WIDTH),
        **draw.linear("audio_llama_proj", QFORMER_WIDTH, LLM_WIDTH),
    }


def lora(
    draw: Draw, targets: dict[str, tuple[int, int]], n_layers: int = 2, r: int = 4, infix: str = ".default"
) -> State:
    """targets: module below a layer -> (width in, width out)."""
    state = {}
    for number in range(n_layers):
        for module, (n_in, n_out) in targets.items():
            at = f"llama_model.base_model.model.model.layers.{number}.{module}"
            state[f"{at}.lora_A{infix}.weight"] = draw(r, n_in)
            state[f"{at}.lora_B{infix}.weight"] = draw(n_out, r)
    return state


SEEN_WIDTH, HEARD_WIDTH = 12, 16


def affectgpt_2025(seed: int = 5, width: int = LLM_WIDTH, targets: dict[str, tuple[int, int]] | None = None) -> State:
    """The trained tensors of an AffectGPT run of 2025, below "model"."""
    draw, fused = Draw(seed), HEARD_WIDTH
    if targets is None:
        targets = dict.fromkeys(("self_attn.q_proj", "self_attn.o_proj"), (width, width))
    return {
        **lora(draw, targets),
        **draw.linear("image_llama_proj", SEEN_WIDTH, width),
        **draw.linear("video_attention_mlp", SEEN_WIDTH, 1),
        **draw.linear("affectgpt_proj", SEEN_WIDTH, width),
        **draw.linear("audio_attention_mlp", HEARD_WIDTH, 1),
        **draw.linear("audio_llama_proj", HEARD_WIDTH, width),
        **draw.linear("multi_audio_embs", HEARD_WIDTH, fused),
        **draw.linear("multi_video_embs", SEEN_WIDTH, fused),
        **draw.linear("attention_mlp", 2 * fused, fused),
        **draw.linear("fc_att", fused, 2),
        **draw.linear("multi_llama_proj", fused, width),
    }


def minigpt_v2(seed: int = 6, width: int = LLM_WIDTH, infix: str = ".default") -> State:
    """The trained tensors of MiniGPT-v2, below "model"."""
    draw = Draw(seed)
    targets = dict.fromkeys(("self_attn.q_proj", "self_attn.v_proj"), (width, width))
    return {**lora(draw, targets, infix=infix), **draw.linear("llama_proj", 4 * EVA_WIDTH, width)}


def emotion_llama(seed: int = 7, width: int = LLM_WIDTH) -> State:
    """The trained tensors of Emotion-LLaMA, below "model"."""
    draw = Draw(seed)
    state = minigpt_v2(seed, width) | draw.linear("cls_tk_llama_proj", EVA_WIDTH, width)
    for number in (1, 2, 3):
        state |= draw.linear(f"feats_llama_proj{number}", HEARD_WIDTH, width)
    return state | draw.linear("attention.fc_att", 8, 7) | draw.linear("attention.feats_prep.0.0", HEARD_WIDTH, 8)


HIDDEN_V2 = 8  # of the pre-fusion of Emotion-LLaMA v2


def emotion_llama_v2(seed: int = 8, width: int = LLM_WIDTH) -> State:
    """The trained tensors of Emotion-LLaMA v2, below "model": sound HEARD_WIDTH, picture and video EVA_WIDTH wide."""
    draw, hidden, at = Draw(seed), HIDDEN_V2, "conv_pro_module"
    state = minigpt_v2(seed, width) | draw.linear("llama_proj_video", EVA_WIDTH, width)
    state |= draw.linear("llama_proj_audio", HEARD_WIDTH, width)
    mlps = {f"feats_prep.{place}": size for place, size in enumerate((HEARD_WIDTH, EVA_WIDTH, EVA_WIDTH))}
    for name, size in (mlps | {"attention_mlp": 3 * hidden}).items():
        state |= draw.linear(f"{at}.{name}.0", size, 4 * hidden) | draw.linear(f"{at}.{name}.3", 4 * hidden, hidden)
    state |= draw.linear(f"{at}.fc_att", hidden, 3) | draw.linear(f"{at}.fc_final", hidden, 2 * hidden)
    state |= {f"{at}.conv_entry.weight": draw(hidden, 3 * hidden, 1), f"{at}.conv_entry.bias": draw(hidden)}
    for number in range(4):
        block = f"{at}.conv_module.conv_blocks.{number}.conv_block.0"
        state |= {f"{block}.weight": draw(hidden, hidden, 3), f"{block}.bias": draw(hidden)}
    return state | draw.linear("llama_proj_fusion", 2 * hidden, width)


def save(state: State, path: Path, key: str | None = "model", **others: object) -> Path:
    """A file of `torch.save`: the state below `key`, beside `others`, or the bare state."""
    torch.save({key: state, **others} if key else state, path)
    return path
