"""Frozen encoders: media tensors of one sample -> states [T, E].

An encoder is whatever `AutoModel` builds for sound (HuBERT, WavLM, wav2vec2 ...), images (CLIP, SigLIP, DINOv2, and
`Blip2VisionModel`, which has the layout of EVA-CLIP ViT-g) or short videos (VideoMAE), or a timm model named
`timm:<name>`. It runs one sample at a time, in eval mode, without gradients and outside autocast, so that its states
are a pure function of that sample: a batch, a cache and a single file give the same bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    SiglipVisionModel,
)
from transformers.utils import cached_file

from affectgpt.models.configuration_affectgpt import EncoderConfig, layers_to_average

AutoModel.register(Blip2VisionConfig, Blip2VisionModel, exist_ok=True)  # transformers registers the configuration only

# Two-tower and projected models, by the model type in their config.json: the class that is their image side.
IMAGE_SIDE = {
    "clip": CLIPVisionModelWithProjection,
    "clip_vision_model": CLIPVisionModelWithProjection,
    "blip-2": Blip2VisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
# Weights that frozen inference never reads, those behind the tokens only with pool "pooled"; checkpoints may lack them.
_UNUSED = re.compile(r"masked_spec_embed|mask_token")
_BEHIND_TOKENS = re.compile(r"(^|\.)(visual_projection|pooler|head)\.")


class FrozenEncoder(nn.Module):
    """A base model that never trains.

    `train()` leaves it in eval mode: HuBERT's dropout, SpecAugment and LayerDrop and any other noise stay off.
    """

    def __init__(self, modality: str, config: EncoderConfig, model: nn.Module | None = None) -> None:
        super().__init__()
        self.modality = modality
        self.config = config
        self.model = model if model is not None else from_config(config.base)
        self.model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        return super().train(False)

    @torch.no_grad()
    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode one sample.

        Args:
            inputs: sound windows [W, S]; frames or motion [T, 3, H, W].
            lengths: true samples of each sound window [W]; 0 marks a window that is padding of the batch.

        Returns:
            states [T, E] as `config.pool` says.
        """
        weight = next(self.model.parameters())
        inputs = inputs.to(weight.device, weight.dtype)
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            if self.modality == "audio":
                steps = self._sound(inputs, lengths)
            elif self.modality == "frames":
                steps = self._run(inputs)  # [T, P, E]
            else:
                steps = self._run(inputs[None])  # [1, T'*P, E]
                if self.config.pool != "pooled":
                    steps = steps[0].unflatten(0, (self.n_tubelets(len(inputs)), -1))  # [T', P, E]
            return self._pool(steps, inputs.shape[-2:])

    def n_tubelets(self, n_frames: int) -> int:
        """Time steps that a video encoder makes of `n_frames`; raises ValueError if it is no such encoder."""
        tubelet, takes = (getattr(self.model.config, key, None) for key in ("tubelet_size", "num_frames"))
        if not isinstance(tubelet, int):
            raise ValueError(
                f"motion: {type(self.model).__name__} is no video encoder; use one such as VideoMAE, "
                "or name this one under frames"
            )
        if takes != n_frames:
            raise ValueError(f"motion: {type(self.model).__name__} takes {takes} frames, found {n_frames}")
        return n_frames // tubelet

    def _sound(self, windows: Tensor, lengths: Tensor | None) -> list[Tensor]:
        """Windows [W, S] -> a list of [F, E]; each window at its true length, so padding never enters the encoder."""
        lengths_ = [windows.shape[1]] * len(windows) if lengths is None else [int(n) for n in lengths if n > 0]
        if len(set(lengths_)) == 1:
            return list(self._run(windows[: len(lengths_), : lengths_[0]]))
        return [self._run(window[None, :n])[0] for window, n in zip(windows, lengths_, strict=False)]

    def _run(self, inputs: Tensor) -> Tensor:
        """The configured layer(s) of the base model.  [N, ...] -> [N, P, E]"""
        layers = self.config.layers
        if self.config.pool == "pooled":
            if layers != -1:
                raise ValueError(f"{self.modality}: pool 'pooled' goes with layers -1, found {layers!r}")
            output = self.model(inputs)
            pooled = getattr(output, "image_embeds", None)
            pooled = getattr(output, "pooler_output", None) if pooled is None else pooled
            if pooled is None:
                raise ValueError(f"{self.modality}: {type(self.model).__name__} has no pooled output; use another pool")
            return pooled[:, None]  # [N, 1, E]
        if layers == -1:
            return self.model(inputs).last_hidden_state
        every = self.model(inputs, output_hidden_states=True).hidden_states
        n_last = layers_to_average(layers)
        if (n_last is None and not -len(every) <= layers < len(every)) or (n_last is not None and n_last > len(every)):
            raise ValueError(f"{self.modality}: layers is {layers!r}, the encoder has {len(every)} hidden states")
        return every[layers] if n_last is None else torch.stack(every[-n_last:]).mean(dim=0)

    def _pool(self, steps: Tensor | list[Tensor], frame_size: tuple[int, int]) -> Tensor:
        """Steps [n, P, E] (a list where P varies) -> states [T, E]."""
        pool = self.config.pool
        if pool == "tokens":
            return torch.cat(list(steps))  # [n*P, E]
        n_class = 0
        if self.modality != "audio" and pool != "pooled":
            patch = self.model.config.patch_size
            rows, columns = (patch, patch) if isinstance(patch, int) else patch
            n_class = max(0, len(steps[0]) - (frame_size[0] // rows) * (frame_size[1] // columns))
        if pool == "cls":
            if not n_class:
                raise ValueError(f"{self.modality}: this encoder has no class token; use pool 'frame' or 'mean'")
            return torch.stack([step[0] for step in steps])  # [n, E]
        means = torch.stack([step[n_class:].mean(dim=0) for step in steps])  # [n, E]
        if pool != "mean":
            return means
        # Weighted by length, so that the mean over windows is the mean over time.
        weights = torch.tensor([len(step) - n_class for step in steps], device=means.device, dtype=means.dtype)
        return (weights @ means / weights.sum())[None]  # [1, E]


class TimmEncoder(nn.Module):
    """A timm vision transformer with the outputs of a transformers model.  [N, 3, H, W] -> [N, P, E]"""

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        self.model = _timm(name).create_model(name, pretrained=pretrained, num_classes=0)
        patches = self.model.patch_embed
        self.config = SimpleNamespace(image_size=patches.img_size, patch_size=patches.patch_size)

    def forward(self, images: Tensor, output_hidden_states: bool = False) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if not output_hidden_states:
            last = self.model.forward_features(images)
            return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=self.model.forward_head(last))
        layers = self.model.forward_intermediates(
            images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        hidden = tuple(torch.cat([prefix, patches], dim=1) for patches, prefix in layers)
        return BaseModelOutputWithPooling(last_hidden_state=hidden[-1], hidden_states=hidden)


def _timm(name: str) -> Any:
    """The timm library, or an error that names the encoder that needs it."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a CUDA torchvision beside a CPU torch raises RuntimeError
        raise ImportError(
            f"encoder 'timm:{name}' needs timm, which does not import here ({error}); install `affectgpt[vision]` "
            "with a torchvision that matches torch, or use the same weights as a Blip2VisionModel"
        ) from error
    return timm


def from_config(base: Mapping[str, Any]) -> nn.Module:
    """An untrained base model of that configuration (its weights are loaded afterwards)."""
    if "timm" in base:
        return TimmEncoder(base["timm"])
    config = base_config(base)
    if config.model_type in IMAGE_SIDE:
        return IMAGE_SIDE[config.model_type](config)
    return AutoModel.from_config(config)


def base_config(base: Mapping[str, Any]) -> PreTrainedConfig:
    fields = dict(base)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def load_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of a base encoder, as the dictionary that `EncoderConfig.base` holds."""
    if name.startswith("timm:"):
        return {"timm": name.removeprefix("timm:")}
    return base_fields(AutoConfig.from_pretrained(name, revision=revision))


def base_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What of a base model's configuration the encoder keeps: the image side of a model with several."""
    if config.model_type in IMAGE_SIDE and hasattr(config, "vision_config"):
        whole, config = config, config.vision_config
        config.projection_dim = getattr(whole, "projection_dim", None)
    fields = config.to_diff_dict()
    return {"model_type": config.model_type, **{key: fields[key] for key in fields if key != "_name_or_path"}}


def load(name: str, revision: str | None = None, dtype: str = "float32", pool: str = "tokens") -> nn.Module:
    """Load a base encoder; raises ValueError naming weights that the checkpoint lacks and `pool` needs."""
    if name.startswith("timm:"):
        return TimmEncoder(name.removeprefix("timm:"), pretrained=True).to(getattr(torch, dtype))
    config = base_config(load_config(name, revision))
    model, info = IMAGE_SIDE.get(config.model_type, AutoModel).from_pretrained(
        name,
        config=config,
        revision=revision,
        dtype=getattr(torch, dtype),
        key_mapping={r"^vision_model\.": ""} if config.model_type == "blip_2_vision_model" else None,
        output_loading_info=True,
    )
    missing = sorted(key for key in info["missing_keys"] if not _UNUSED.search(key))
    if pool != "pooled":
        missing = [key for key in missing if not _BEHIND_TOKENS.search(key)]
    if missing or info["mismatched_keys"]:
        raise ValueError(
            f"encoder {name!r} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:5])} ...) "
            f"and has {len(info['mismatched_keys'])} of another shape; is it a checkpoint of that model?"
        )
    return model


def load_preprocessing(name: str, revision: str | None = None) -> dict[str, Any]:
    """What the base model's preprocessor_config.json says (a timm model: mean and deviation); empty if it has none."""
    if name.startswith("timm:"):
        name = name.removeprefix("timm:")
        cfg = _timm(name).models.get_pretrained_cfg(name)
        return {"image_mean": list(cfg.mean), "image_std": list(cfg.std)} if cfg is not None else {}
    path = cached_file(name, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def min_samples(config: Any) -> int:
    """Samples of sound that give one state: the receptive field of the convolutions that begin HuBERT and its kin."""
    n = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        n = (n - 1) * stride + kernel
    return n
