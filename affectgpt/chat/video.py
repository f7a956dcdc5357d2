"""transformers' video processors without torchvision.

The base class of transformers' video processors calls torchvision for four operations. `OnTorch` does them in plain
torch; in the method resolution order it comes between a model's own processor and that base class, so what the model
adds (patches, frame sizes) stays as published. Where a model's module cannot be imported without torchvision, its few
lines are written here. The same classes are used where torchvision is installed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling, SizeDict
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor
from transformers.video_processing_utils import BaseVideoProcessor

from affectgpt.runtime import InputError

_MODES = {
    PILImageResampling.LANCZOS: "lanczos",
    PILImageResampling.BILINEAR: "bilinear",
    PILImageResampling.BICUBIC: "bicubic",
}


class OnTorch(BaseVideoProcessor):
    """The base class's operations on uint8 or float tensors [..., C, H, W]."""

    def resize(self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **_: Any) -> Tensor:
        """To height and width, or to the shorter edge with the aspect ratio kept.  [...,H,W] -> [...,h,w]"""
        if size.height and size.width:
            shape = (size.height, size.width)
        elif size.shortest_edge and not size.longest_edge:
            shape = get_resize_output_image_size(
                image, size=size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
            )
        else:
            raise InputError(f"video size: expected height and width, or shortest_edge, found {size}")
        resample = PILImageResampling.BILINEAR if resample is None else resample
        if resample not in _MODES:
            raise InputError(f"video resampling: expected lanczos (1), bilinear (2) or bicubic (3), found {resample}")
        flat = image.flatten(end_dim=-4)  # [N,C,H,W]
        flat = F.interpolate(flat, shape, mode=_MODES[resample], antialias=antialias)
        return flat.unflatten(0, image.shape[:-3])

    def center_crop(self, image: Tensor, size: SizeDict, **_: Any) -> Tensor:
        """The centre, zero-padded where the image is smaller.  [...,H,W] -> [...,h,w]"""
        height, width = image.shape[-2:]
        missing = (max(size.width - width, 0), max(size.height - height, 0))
        image = F.pad(image, [side for n in missing for side in (n // 2, (n + 1) // 2)])
        top, left = (image.shape[-2] - size.height) // 2, (image.shape[-1] - size.width) // 2
        return image[..., top : top + size.height, left : left + size.width]

    def normalize(self, image: Tensor, mean: Any, std: Any, **_: Any) -> Tensor:
        mean, std = (torch.as_tensor(value, dtype=image.dtype).view(-1, 1, 1) for value in (mean, std))
        return (image - mean) / std

    def convert_to_rgb(self, video: Tensor) -> Tensor:
        """No-op: requests hold RGB."""
        return video


class VideoLlava(VideoLlavaVideoProcessor, OnTorch):
    pass


class LlavaNextVideo(LlavaNextVideoVideoProcessor, OnTorch):
    pass


class LlavaOnevision(LlavaOnevisionVideoProcessor, OnTorch):
    pass


class SmolVLM(SmolVLMVideoProcessor, OnTorch):
    pass


class Qwen3VL(Qwen3VLVideoProcessor, OnTorch):
    cap_pixels_per_frame = False  # transformers' present default, set to silence its warning


class Qwen2VL(Qwen3VL):
    """Qwen2-VL, Qwen2.5-VL and the Omni models: patches as in Qwen3-VL, but pixel limits per frame."""

    size: ClassVar = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    patch_size = 14

    def __init__(self, **kwargs: Any) -> None:
        size = dict(kwargs.pop("size", None) or self.size)
        # The limits' names in older checkpoints.
        size["shortest_edge"] = kwargs.pop("min_pixels", None) or size["shortest_edge"]
        size["longest_edge"] = kwargs.pop("max_pixels", None) or size["longest_edge"]
        super().__init__(size=size, **kwargs)

    def resize(self, videos: Tensor, size: SizeDict, resample: Any, factor: int, **_: Any) -> Tensor:
        height, width = smart_resize(
            *videos.shape[-2:], factor=factor, min_pixels=size.shortest_edge, max_pixels=size.longest_edge
        )
        return OnTorch.resize(self, videos, SizeDict(height=height, width=width), resample)


class InternVL(OnTorch):
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: ClassVar = {"height": 384, "width": 384}
    do_resize = True
    do_rescale = True
    do_normalize = True


class InstructBlipVideo(InternVL):
    model_input_names: ClassVar = ["pixel_values"]

    def _preprocess(self, videos: list[Tensor], **settings: Any) -> Any:
        batch = super()._preprocess(videos, **settings)
        batch["pixel_values"] = batch.pop("pixel_values_videos")
        return batch


VIDEO_PROCESSORS: dict[str, type[OnTorch]] = {
    "video_llava": VideoLlava,
    "llava_next_video": LlavaNextVideo,
    "llava_onevision": LlavaOnevision,
    "smolvlm": SmolVLM,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen2VL,
    "qwen2_5_omni": Qwen2VL,
    "qwen3_omni_moe": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VL,
    "qwen3_5": Qwen3VL,
    "internvl": InternVL,
    "instructblipvideo": InstructBlipVideo,
}
"""By model type."""
