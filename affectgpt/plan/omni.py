"""The cost of the towers of an omni model for one sample, from their configuration.

They run on no device without memory, since they read the lengths of their windows; products of frozen linear layers and
attention are summed up instead. A test compares the sums with the operations of real towers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from affectgpt.models.omni.layout import n_audio_tokens

if TYPE_CHECKING:
    from affectgpt.models import ModelSpec
    from affectgpt.models.omni import OmniForConditionalGeneration

FRAME = (720, 1280)
"""Height and width of the frames of a clip before they are resized."""


def grid_of(spec: ModelSpec, vision: Any) -> tuple[int, int, int]:
    """Patches of a clip in time, height and width."""
    assert spec.omni is not None
    size, depth = vision.patch_size, vision.temporal_patch_size
    factor = size * vision.spatial_merge_size
    height, width = smart_resize(*FRAME, factor, spec.omni.min_pixels, spec.omni.max_pixels)
    return -(-spec.sampling.n_frames // depth), height // size, width // size


def tokens_of(model: OmniForConditionalGeneration, spec: ModelSpec, sound_s: float) -> dict[str, int]:
    """Modality -> soft tokens of a clip."""
    found = {}
    if "audio" in spec.modalities:
        found["audio"] = n_audio_tokens(round(100 * min(sound_s, spec.sampling.window_s)))  # mel frames of 10 ms
    if "frames" in spec.modalities:
        vision = model.encoders["frames"].model.config
        t, h, w = grid_of(spec, vision)
        found["frames"] = t * h * w // vision.spatial_merge_size**2
    return found


def audio_flops(tower: nn.Module, n_mel: int) -> int:
    """FLOPs of the audio tower for a sound of so many mel frames."""
    n_states = -(-n_mel // 2)
    chunk = tower.config.n_window
    lengths = [chunk] * (n_states // chunk) + [n_states % chunk]
    attention = sum(4 * length**2 * tower.config.d_model for length in lengths) * len(tower.layers)
    convolved = tower.conv1.weight.numel() * n_mel + tower.conv2.weight.numel() * n_states
    return 2 * (convolved + _weights(tower.layers) * n_states + _weights(tower.proj) * (n_states // 2)) + attention


def video_flops(tower: nn.Module, grid: tuple[int, int, int]) -> int:
    """FLOPs of the vision tower for patches in time, height and width."""
    config, (t, h, w) = tower.config, grid
    n = t * h * w
    _, bounds = get_vision_window_index(
        torch.tensor([grid]),
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    in_windows = int((bounds.diff().long() ** 2).sum())
    n_full = len(config.fullatt_block_indexes)
    pairs = n_full * t * (h * w) ** 2 + (len(tower.blocks) - n_full) * in_windows
    products = (tower.patch_embed.proj.weight.numel() + _weights(tower.blocks)) * n
    merged = _weights(tower.merger) * (n // config.spatial_merge_size**2)
    return 2 * (products + merged) + 4 * pairs * config.hidden_size


def aligner_backward(aligner: nn.Module, n_tokens: int) -> tuple[int, int]:
    """FLOPs of the backward pass of a trained aligner, whose input needs no gradient, and the bytes that it saves."""
    linear = [each for each in aligner.modules() if isinstance(each, nn.Linear)]
    weights = [each.weight.numel() for each in linear]
    saved = sum(each.in_features * each.weight.element_size() for each in linear)
    return 2 * n_tokens * (sum(weights) + sum(weights[1:])), n_tokens * saved


def _weights(module: nn.Module) -> int:
    """Weights of the linear layers, each of which meets every row once."""
    return sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear))
