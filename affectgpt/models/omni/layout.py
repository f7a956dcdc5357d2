"""Pictures and sound of a clip as the towers of Qwen2.5-Omni take them, and the places of their tokens in a prompt.

Order and positions of the tokens (TMRoPE: Qwen2.5-Omni technical report, 2025, section 2.2) are computed by
transformers' own functions. Its video processor needs torchvision; the patches here are those of its image processor,
two frames each, with Pillow's bicubic resizing.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import __version__
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniPreTrainedModelForConditionalGeneration as ThinkerPositions,
)
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from affectgpt.runtime import InputError, MissingLibrary

if not hasattr(Qwen2_5OmniProcessor, "replace_video_with_audio_token"):
    raise MissingLibrary(
        f"omni models need transformers 5.23 or newer, found {__version__}: pip install -U transformers"
    )

_LEAST_S = 1e-3  # between frames that have the same time


class _Positions:
    """What `get_rope_index` reads of a model."""

    get_rope_index = ThinkerPositions.get_rope_index
    get_llm_pos_ids_for_vision = ThinkerPositions.get_llm_pos_ids_for_vision
    get_chunked_index = ThinkerPositions.get_chunked_index

    def __init__(self, config: Any) -> None:
        self.config, self.spatial_merge_size = config, config.vision_config.spatial_merge_size


class _Interleaving:
    """What `replace_video_with_audio_token` reads of a processor."""

    replace_video_with_audio_token = Qwen2_5OmniProcessor.replace_video_with_audio_token
    get_chunked_index = Qwen2_5OmniProcessor.get_chunked_index

    def __init__(self, merge_size: int) -> None:
        self.video_processor = SimpleNamespace(merge_size=merge_size)
        self.audio_bos_token, self.video_token, self.audio_token, self.audio_eos_token = "<va>"


def interleaved(grid: Tensor, n_audio: int, seconds_per_grid: float, config: Any) -> str:
    """The tokens of a video with its sound, in order: "<", then "v" and "a", then ">".

    Args:
        grid: [3] patches of the video in time, height and width.
        n_audio: tokens of the sound.
    """
    video = {"video_grid_thw": grid[None], "video_second_per_grid": [seconds_per_grid]}
    return _Interleaving(config.vision_config.spatial_merge_size).replace_video_with_audio_token(
        video,
        0,
        {"num_audio_tokens": torch.tensor([n_audio])},
        0,
        position_id_per_seconds=config.position_id_per_seconds,
        seconds_per_chunk=config.seconds_per_chunk,
    )


def positions(
    ids: Tensor, grid: Tensor | None, n_mel: Tensor | None, seconds_per_grid: float, is_interleaved: bool, config: Any
) -> Tensor:
    """Positions in time, height and width of the tokens of a prompt.  ids [L] -> [3, L]

    Args:
        grid: [3], of the video; n_mel: [], mel frames of the sound; None = the prompt has none.
    """
    found, _ = _Positions(config).get_rope_index(  # type: ignore[arg-type]
        ids[None],
        video_grid_thw=None if grid is None else grid[None],
        attention_mask=torch.ones_like(ids)[None],
        use_audio_in_video=is_interleaved,
        audio_seqlens=None if n_mel is None else n_mel[None],
        second_per_grids=torch.tensor([seconds_per_grid]),
    )
    return found[:, 0]


def seconds_per_frame(times_s: Sequence[float]) -> float:
    """The mean distance of frames, at least a millisecond.

    >>> seconds_per_frame([0.0, 0.5, 1.0]), seconds_per_frame([2.0])
    (0.5, 0.001)
    """
    return max((times_s[-1] - times_s[0]) / max(len(times_s) - 1, 1), _LEAST_S)


def patches(
    images: np.ndarray, *, min_pixels: int, max_pixels: int, mean: Sequence[float], std: Sequence[float], config: Any
) -> tuple[Tensor, Tensor]:
    """Frames uint8 [T, H, W, 3] -> patches [P, 3 * t * p * p] of t frames and p x p pixels, and their grid [3].

    Frames keep their shape up to multiples of the merged patches; the last one is repeated to fill its patch.

    Raises:
        InputError: a side is 200 times the other one.
    """
    size, merge, depth = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    try:
        height, width = smart_resize(*images.shape[1:3], size * merge, min_pixels, max_pixels)
    except ValueError as error:
        raise InputError(f"frames: {error}; leave this clip out") from error
    frames = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
    resized = np.stack([np.asarray(each.resize((width, height), Image.Resampling.BICUBIC)) for each in frames])
    pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255  # [T, 3, H', W']
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    if short := -len(pixels) % depth:
        pixels = torch.cat([pixels, pixels[-1:].expand(short, -1, -1, -1)])
    grid = (len(pixels) // depth, height // size, width // size)
    shaped = pixels.view(grid[0], depth, 3, grid[1] // merge, merge, size, grid[2] // merge, merge, size)
    flat = shaped.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], 3 * depth * size * size)
    return flat.contiguous(), torch.tensor(grid)


def n_audio_tokens(n_mel: int) -> int:
    """Tokens of a sound of so many mel frames: a convolution and a pooling halve each.

    >>> n_audio_tokens(400), n_audio_tokens(2)
    (100, 0)
    """
    return ((n_mel - 1) // 2 + 1 - 2) // 2 + 1
