"""The published architectures once more, from their descriptions, in plain tensor arithmetic: what converted weights
must compute. Everything is read from a dictionary with the published names; nothing here is shared with the package.

EVA-CLIP ViT-g (Fang et al. 2022, Sun et al. 2023): pre-norm transformer, query and value biases but no key bias.
Q-Former (Li et al. 2023, BLIP-2): post-norm BERT layers; queries attend to each other, in some layers to the image too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
    """Attention of q [N, A, E] to k and v [N, B, E], head by head."""
    size = q.shape[-1] // n_heads
    heads = []
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(torch.softmax(scores, dim=-1) @ v[..., part])
    return torch.cat(heads, dim=-1)


def eva(pixels: Tensor, state: State, n_heads: int = 16, n_blocks: int = 39) -> Tensor:
    """Pictures [N, 3, H, W] -> tokens [N, 1 + P, E] behind the 39th block, without a final norm."""
    kernel = state["patch_embed.proj.weight"]  # [E, 3, p, p]
    size = kernel.shape[-1]
    rows, columns = pixels.shape[2] // size, pixels.shape[3] // size
    patches = [
        pixels[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size].flatten(1) @ kernel.flatten(1).T
        for r in range(rows)
        for c in range(columns)
    ]
    x = torch.stack(patches, dim=1) + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    width = x.shape[-1]
    for number in range(n_blocks):
        block = f"blocks.{number}"
        y = norm(x, state, f"{block}.norm1", 1e-6)
        weights = state[f"{block}.attn.qkv.weight"]
        q = y @ weights[:width].T + state[f"{block}.attn.q_bias"]
        k = y @ weights[width : 2 * width].T
        v = y @ weights[2 * width :].T + state[f"{block}.attn.v_bias"]
        x = x + linear(attend(q, k, v, n_heads), state, f"{block}.attn.proj")
        y = norm(x, state, f"{block}.norm2", 1e-6)
        x = x + linear(gelu(linear(y, state, f"{block}.mlp.fc1")), state, f"{block}.mlp.fc2")
    return x


def qformer(queries: Tensor, states: Tensor, state: State, name: str, n_layers: int, every: int, n_heads: int = 12):
    """Queries [1, Q, H] read states [N, T, E] -> [N, Q, H]; cross-attention in layers 0, every, ..."""
    x = norm(queries.expand(len(states), -1, -1), state, f"{name}.bert.embeddings.LayerNorm", 1e-12)
    for number in range(n_layers):
        layer = f"{name}.bert.encoder.layer.{number}"
        for kind, keys in (("attention", None), ("crossattention", states)):
            if kind == "crossattention" and number % every:
                continue
            keys = x if keys is None else keys
            at = f"{layer}.{kind}"
            q, k, v = (
                linear(source, state, f"{at}.self.{part}")
                for part, source in (("query", x), ("key", keys), ("value", keys))
            )
            read = linear(attend(q, k, v, n_heads), state, f"{at}.output.dense")
            x = norm(x + read, state, f"{at}.output.LayerNorm", 1e-12)
        wide = gelu(linear(x, state, f"{layer}.intermediate_query.dense"))
        x = norm(
            x + linear(wide, state, f"{layer}.output_query.dense"), state, f"{layer}.output_query.LayerNorm", 1e-12
        )
    return x


def image_tokens(pixels: Tensor, eva_state: State, blip2: State) -> Tensor:
    """Pictures -> EVA -> ln_vision -> image Q-Former: [N, Q, H]."""
    states = norm(eva(pixels, eva_state), blip2, "ln_vision", 1e-5)
    return qformer(blip2["query_tokens"], states, blip2, "Qformer", 12, 2)


def video_llama_visual(frames: Tensor, eva_state: State, blip2: State, branch: State) -> Tensor:
    """One clip's frames [T, 3, H, W] -> soft tokens [1, Q, D]."""
    tokens = image_tokens(frames, eva_state, blip2)  # [T, Q, H]
    tokens = tokens + branch["video_frame_position_embedding.weight"][: len(tokens), None]
    read = qformer(branch["video_query_tokens"], tokens.flatten(0, 1)[None], branch, "video_Qformer", 2, 1)
    return linear(read, branch, "llama_proj")


def video_llama_audio(windows: Tensor, branch: State) -> Tensor:
    """One vector a window of sound, [N, T, E] -> soft tokens [N, Q, D]."""
    states = windows + branch["audio_position_embedding.weight"][: windows.shape[1]]
    read = qformer(branch["audio_query_tokens"], states, branch, "audio_Qformer", 2, 1)
    return linear(read, branch, "audio_llama_proj")


def weighted_sum(states: Tensor, state: State, scores: str, output: str) -> Tensor:
    """AffectGPT (2025): [N, T, E] -> [N, 1, D]; the scores are the weights, without a softmax."""
    weights = linear(states, state, scores)  # [N, T, 1]
    return linear((states * weights).sum(dim=1), state, output)[:, None]


def prefusion(video: Tensor, audio: Tensor, state: State) -> Tensor:
    """AffectGPT (2025): states of the pictures [N, T, E] and of the sound [N, U, F] -> [N, 1, D]."""
    seen = linear(video.mean(dim=1), state, "multi_video_embs")
    heard = linear(audio.mean(dim=1), state, "multi_audio_embs")
    weights = linear(linear(torch.cat([seen, heard], dim=1), state, "attention_mlp"), state, "fc_att")
    return linear(weights[:, :1] * seen + weights[:, 1:] * heard, state, "multi_llama_proj")[:, None]


def conv_prefusion(audio: Tensor, image_class: Tensor, video: Tensor, state: State) -> Tensor:
    """Emotion-LLaMA v2: sound [N, Q, E], class token [N, F] and video [N, Q, F] -> [N, Q, D]."""
    at, n_queries = "conv_pro_module", audio.shape[1]
    hidden = []
    for place, x in enumerate((audio, image_class[:, None].repeat(1, n_queries, 1), video)):
        for layer in (0, 3):
            x = linear(x, state, f"{at}.feats_prep.{place}.{layer}").clamp(min=0)
        hidden.append(x)
    together = torch.cat(hidden, dim=-1)
    weights = together
    for layer in (0, 3):
        weights = linear(weights, state, f"{at}.attention_mlp.{layer}").clamp(min=0)
    weights = linear(weights, state, f"{at}.fc_att")
    fused = sum(weights[..., place, None] * x for place, x in enumerate(hidden))
    y = together @ state[f"{at}.conv_entry.weight"][..., 0].T + state[f"{at}.conv_entry.bias"]
    for number in range(4):
        kernel = state[f"{at}.conv_module.conv_blocks.{number}.conv_block.0.weight"]  # [H, H, 3]
        zero = torch.zeros_like(y[:, :1])
        z = (
            torch.cat([zero, y[:, :-1]], dim=1) @ kernel[..., 0].T
            + y @ kernel[..., 1].T
            + torch.cat([y[:, 1:], zero], dim=1) @ kernel[..., 2].T
            + state[f"{at}.conv_module.conv_blocks.{number}.conv_block.0.bias"]
        )
        y = y + z * torch.sigmoid(z)
    return linear(linear(fused + y, state, f"{at}.fc_final"), state, "llama_proj_fusion")


def grouped(pixels: Tensor, eva_state: State, state: State) -> tuple[Tensor, Tensor]:
    """MiniGPT-v2 / Emotion-LLaMA: pictures -> (class token [N, 1, D], groups of four patches [N, P/4, D])."""
    width = eva_state["cls_token"].shape[-1]
    plain = {"ln.weight": torch.ones(width), "ln.bias": torch.zeros(width)}
    states = norm(eva(pixels, eva_state), plain, "ln", 1e-5)
    patches = states[:, 1:].reshape(len(states), -1, 4 * width)
    return linear(states[:, :1], state, "cls_tk_llama_proj"), linear(patches, state, "llama_proj")
