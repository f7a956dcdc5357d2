"""Encoders: media tensors of one sample -> states [T, E].

An encoder is any model that `AutoModel` builds for audio (HuBERT, WavLM, wav2vec2 ...; Whisper's encoder with its
log-mel spectrogram), images (CLIP, SigLIP, DINOv2, ViTMAE, and `Blip2VisionModel`, which has the layout of EVA-CLIP
ViT-g, optionally followed by BLIP-2's image Q-Former) or short videos (VideoMAE), or a timm model named `timm:<name>`.
It runs one sample at a time, in eval mode and outside autocast, so that its states are a pure function of its weights
and that sample: they are bit-identical in a batch, from the cache and for a single file. Gradients are computed only
where some of its weights train.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    Blip2Config,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    SiglipVisionModel,
    WhisperConfig,
)
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from affectgpt import bases
from affectgpt.models.configuration_affectgpt import IMAGES, VIDEOS, EncoderArchitecture, layers_to_average
from affectgpt.runtime import InputError, MissingLibrary

AutoModel.register(Blip2VisionConfig, Blip2VisionModel, exist_ok=True)  # transformers registers only the configuration

LN_VISION_EPS = 1e-5
"""Epsilon of the norm between EVA and the image Q-Former in BLIP-2's own code; transformers uses the encoder's 1e-6."""
FINAL_NORM_EPS = "post_layernorm_eps"
"""Key in config.json of a `Blip2VisionModel`: epsilon of its final norm, if it is not that of the others."""
# Weights that checkpoints may lack: frozen inference never reads the former, and the latter only with pool "pooled".
_UNUSED = re.compile(r"masked_spec_embed|mask_token")
_POOLING = re.compile(r"(^|\.)(visual_projection|pooler|head)\.")


class ImageQFormer(Blip2PreTrainedModel):
    """EVA ViT-g, its norm in fp32 and BLIP-2's frozen image Q-Former: images [N, 3, H, W] -> states [N, Q, E].

    The tensors are those of a BLIP-2 in transformers' layout: `vision_model.*`, `query_tokens` and `qformer.*`. The
    Q-Former computes in fp32, independent of the vision model's precision.
    """

    config_class = Blip2Config
    _keep_in_fp32_modules_strict = ["query_tokens", "qformer", "post_layernorm"]  # noqa: RUF012

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel(config.vision_config)
        shape = (1, config.num_query_tokens, config.qformer_config.hidden_size)
        self.query_tokens = nn.Parameter(torch.zeros(shape))
        self.qformer = Blip2QFormerModel(config.qformer_config)
        self.post_init()

    def cast(self, dtype: torch.dtype) -> ImageQFormer:
        self.vision_model.embeddings.to(dtype)
        self.vision_model.encoder.to(dtype)
        return self

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> BaseModelOutput:
        embedded = self.vision_model.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        patches = self.vision_model.encoder(inputs_embeds=embedded).last_hidden_state  # [N, P, E_vision]
        norm = self.vision_model.post_layernorm
        patches = nn.functional.layer_norm(
            patches.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), LN_VISION_EPS
        )
        queries = self.query_tokens.expand(len(patches), -1, -1)
        return BaseModelOutput(self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state)


class WhisperAudio(nn.Module):
    """Whisper's encoder on its log-mel spectrogram: audio [W, S] at 16 kHz -> states [W, ceil(S / 320), E].

    Whisper's input is always 30 s long; shorter audio is padded with silence, whose states are left out.
    """

    N_FFT, HOP, CHUNK_SAMPLES = 400, 160, 480_000

    def __init__(self, encoder: WhisperEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config

    def spectrogram(self, windows: Tensor) -> Tensor:
        """The log-mel spectrogram of transformers' WhisperFeatureExtractor.  [W, S] -> [W, mels, 3000], fp32"""
        filters = mel_filter_bank(
            num_frequency_bins=1 + self.N_FFT // 2,
            num_mel_filters=self.config.num_mel_bins,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=16000,
            norm="slaney",
            mel_scale="slaney",
        )
        padded = nn.functional.pad(windows.float(), (0, self.CHUNK_SAMPLES - windows.shape[1]))
        centred = nn.functional.pad(padded[:, None], (self.N_FFT // 2,) * 2, mode="reflect")[:, 0]
        frames = centred.unfold(1, self.N_FFT, self.HOP)[:, :-1]  # [W, 3000, n_fft]
        power = torch.fft.rfft(frames * torch.hann_window(self.N_FFT, device=frames.device)).abs() ** 2
        mels = power @ torch.from_numpy(filters).to(power.device, torch.float32)  # [W, 3000, mels]
        log = mels.clamp(min=1e-10).log10().transpose(1, 2)
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log, loudest - 8.0) + 4.0) / 4.0

    def forward(self, windows: Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
        n_samples = windows.shape[1]
        if n_samples > self.CHUNK_SAMPLES:
            raise InputError(
                f"audio: Whisper takes at most 30 s per window, found {n_samples / 16000:g} s; set sampling.window_s=30"
            )
        features = self.spectrogram(windows).to(self.encoder.conv1.weight.dtype)
        output = self.encoder(features, output_hidden_states=output_hidden_states)
        n_states = -(-n_samples // (2 * self.HOP))
        hidden = output.hidden_states
        return BaseModelOutput(
            output.last_hidden_state[:, :n_states],
            hidden_states=None if hidden is None else tuple(layer[:, :n_states] for layer in hidden),
        )


# Model type in config.json -> class that AutoModel does not choose (the image tower of a two-tower model, the encoder
# of an encoder-decoder), and how its tensor names differ in a checkpoint of the complete model.
CLASSES: dict[str, tuple[Any, dict[str, str] | None]] = {
    "clip": (CLIPVisionModelWithProjection, None),
    "clip_vision_model": (CLIPVisionModelWithProjection, None),
    "blip-2": (ImageQFormer, None),
    "blip_2_vision_model": (Blip2VisionModel, {r"^vision_model\.": ""}),
    "siglip": (SiglipVisionModel, None),
    "siglip_vision_model": (SiglipVisionModel, None),
    "whisper": (WhisperEncoder, {r"^(model\.)?encoder\.": ""}),
}


class Encoder(nn.Module):
    """A base model, frozen until its weights are told to train.

    `train()` leaves it in eval mode, so HuBERT's dropout, SpecAugment and LayerDrop and any other noise stay off; only
    the dropout of its LoRA follows.

    Args:
        lora_seed: for the initial weights of the LoRA that `config` may have.
    """

    def __init__(
        self, modality: str, config: EncoderArchitecture, model: nn.Module | None = None, lora_seed: int = 0
    ) -> None:
        super().__init__()
        self.modality = modality
        self.config = config
        self.model = model if model is not None else from_config(config.base)
        if config.lora:
            inject_lora(self.model, config.lora, lora_seed, what=f"encoders.{modality}")
        self.model.requires_grad_(False)
        self.train(False)

    def cast(self, dtype: torch.dtype) -> Encoder:
        """Convert to `dtype` in place, except parts that need fp32."""
        adapters = {name: tensor.data for name, tensor in self.named_parameters() if ".lora_" in name}
        cast(self.model, dtype)
        for name, values in adapters.items():
            self.get_parameter(name).data = values
        return self

    def train(self, mode: bool = True) -> Encoder:
        super().train(False)
        for name, module in self.named_modules():
            if ".lora_dropout" in name:
                module.train(mode)
        return self

    @property
    def trains(self) -> bool:
        """Whether any of its weights does."""
        return any(tensor.requires_grad for tensor in self.parameters())

    def blocks(self) -> dict[str, nn.Module]:
        """Name -> block: the members of the last list of blocks that its states pass through, in order."""
        used = self.used()

        def is_used(name: str) -> bool:
            return any(tensor.startswith(f"{name}.") for tensor in used)

        lists = [(name, module) for name, module in self.named_modules() if _is_blocks(module) and is_used(name)]
        outermost = [pair for pair in lists if not any(pair[0].startswith(f"{other}.") for other, _ in lists)]
        each = {f"{name}.{key}": block for name, found in outermost[-1:] for key, block in found.named_children()}
        return {name: block for name, block in each.items() if is_used(name)}

    def used(self) -> set[str]:
        """Names of the parameters that its states depend on: not those of unused layers, poolings and mask tokens.

        Found by differentiating a copy without memory.
        """
        with torch.device("meta"):
            hollow = Encoder(self.modality, self.config).to("meta").requires_grad_(True)
        if self.modality == "audio":
            probe = torch.zeros(1, 16000, device="meta")
        else:
            n_frames = getattr(hollow.model.config, "num_frames", 1) if self.modality in VIDEOS else 1
            probe = torch.zeros(n_frames, 3, *_pair(image_size(hollow.model.config)), device="meta")
        states, parameters = hollow(probe), dict(hollow.named_parameters())
        gradients = torch.autograd.grad(states.sum(), list(parameters.values()), allow_unused=True)
        return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode one sample.

        Args:
            inputs: audio windows [W, S] or images [T, 3, H, W].
            lengths: number of real samples in each audio window [W]; 0 = the window is padding of the batch.

        Returns:
            states [T, E], pooled by `config.pool`.
        """
        weight = next(self.model.parameters())
        grad = torch.is_grad_enabled() and self.trains
        takes_fp32 = isinstance(self.model, WhisperAudio)  # in half precision the spectrogram is noise
        inputs = inputs.to(weight.device, torch.float32 if takes_fp32 else weight.dtype)
        device = "cpu" if weight.is_meta else weight.device.type
        with torch.set_grad_enabled(grad), torch.autocast(device, enabled=False):
            if self.modality == "audio":
                steps = self._audio(inputs, lengths)
            elif self.modality in IMAGES or self.config.per_frame:
                steps = self._run(inputs)  # [T, P, E]
            else:
                steps = self._run(inputs[None])  # [1, T'*P, E]
                if self.config.pool != "pooled":
                    steps = steps[0].unflatten(0, (self.n_tubelets(len(inputs)), -1))  # [T', P, E]
            return self._pool(steps, inputs.shape[-2:]).to(getattr(torch, self.config.dtype))

    def n_tubelets(self, n_frames: int) -> int:
        """Number of time steps of a video encoder for `n_frames`; raises InputError if this is not a video encoder."""
        tubelet, takes = (getattr(self.model.config, key, None) for key in ("tubelet_size", "num_frames"))
        if not isinstance(tubelet, int):
            raise InputError(
                f"{self.modality}: {type(self.model).__name__} is not a video encoder; use one such as VideoMAE, "
                f"configure it as {'face' if self.modality == 'face_motion' else 'frames'}, or set per_frame=true"
            )
        if takes != n_frames:
            raise InputError(f"{self.modality}: {type(self.model).__name__} takes {takes} frames, found {n_frames}")
        return n_frames // tubelet

    def _audio(self, windows: Tensor, lengths: Tensor | None) -> list[Tensor]:
        """Windows [W, S] -> list of [F, E]. Each window is cut to its real length: no padding enters the encoder."""
        lengths_ = [windows.shape[1]] * len(windows) if lengths is None else [int(n) for n in lengths if n > 0]
        if len(set(lengths_)) == 1:
            return list(self._run(windows[: len(lengths_), : lengths_[0]]))
        return [self._run(window[None, :n])[0] for window, n in zip(windows, lengths_, strict=False)]

    def _run(self, inputs: Tensor) -> Tensor:
        """The configured layer(s) of the base model.  [N, ...] -> [N, P, E]"""
        layers, pool = self.config.layers, self.config.pool
        if pool in ("pooled", "pooled_mean", "queries") and layers != -1:
            raise InputError(f"{self.modality}: pool {pool!r} needs layers -1, found {layers!r}")
        if (pool == "queries") != isinstance(self.model, ImageQFormer):
            raise InputError(
                f"{self.modality}: {type(self.model).__name__} does not support pool {pool!r}; "
                "pool 'queries' needs a BLIP-2 with its image Q-Former"
            )
        options = self._options(inputs)
        if pool in ("pooled", "pooled_mean"):
            output = self.model(inputs, **options)
            pooled = getattr(output, "image_embeds", None)
            pooled = getattr(output, "pooler_output", None) if pooled is None else pooled
            if pooled is None:
                raise InputError(f"{self.modality}: {type(self.model).__name__} has no pooled output; use another pool")
            return pooled[:, None]  # [N, 1, E]
        if layers == -1:
            return self.model(inputs, **options).last_hidden_state
        output = self.model(inputs, output_hidden_states=True, **options)
        every = output.hidden_states
        if (
            self.modality == "audio"
        ):  # transformers gave the last one before the final norm in some versions, not in all
            every = (*every[:-1], output.last_hidden_state)
        n_last = layers_to_average(layers)
        if (n_last is None and not -len(every) <= layers < len(every)) or (n_last is not None and n_last > len(every)):
            raise InputError(f"{self.modality}: layers is {layers!r}, the encoder has {len(every)} hidden states")
        return every[layers] if n_last is None else torch.stack(every[-n_last:]).mean(dim=0)

    def _options(self, inputs: Tensor) -> dict[str, Any]:
        """Keyword arguments of the base model besides its inputs."""
        options: dict[str, Any] = {}
        if self.modality == "audio":
            return options
        resized = inputs.shape[-2:] != _pair(image_size(self.model.config))
        if resized and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            options["interpolate_pos_encoding"] = True
        if getattr(self.model.config, "model_type", None) == "vit_mae":
            # ViTMAE shuffles patches by random noise even if it masks none; ordered noise leaves them in place.
            rows, columns = _pair(self.model.config.patch_size)
            n_patches = (inputs.shape[-2] // rows) * (inputs.shape[-1] // columns)
            options["noise"] = torch.arange(n_patches, device=inputs.device).expand(len(inputs), -1)
        return options

    def _pool(self, steps: Tensor | list[Tensor], frame_size: tuple[int, int]) -> Tensor:
        """Steps [n, P, E] (a list where P varies) -> states [T, E]."""
        pool = self.config.pool
        if self.modality == "audio" and self.config.grid:
            together = torch.cat(list(steps)).transpose(0, 1)[None]  # [1, E, T]
            return nn.functional.adaptive_avg_pool1d(together, self.config.grid)[0].transpose(0, 1)  # [grid, E]
        if self.config.stride > 1:
            if self.modality != "audio":
                raise InputError(f"{self.modality}: stride is for audio; use grid for images and video")
            steps = [torch.stack([part.mean(dim=0) for part in step.split(self.config.stride)]) for step in steps]
        if pool == "queries" or (pool == "tokens" and not self.config.grid):
            return torch.cat(list(steps))  # [n*P, E]
        n_class = 0
        if self.modality != "audio" and not pool.startswith("pooled"):
            rows, columns = self.patches(frame_size)
            n_class = max(0, len(steps[0]) - rows * columns)
        if pool == "tokens":
            maps = torch.stack([step[n_class:] for step in steps]).transpose(1, 2).unflatten(2, (rows, columns))
            coarse = nn.functional.adaptive_avg_pool2d(maps, self.config.grid)  # [n, E, grid, grid]
            return coarse.flatten(2).transpose(1, 2).flatten(0, 1)  # [n*grid*grid, E]
        if pool == "cls":
            if not n_class:
                raise InputError(f"{self.modality}: this encoder has no class token; use pool 'frame' or 'mean'")
            return torch.stack([step[0] for step in steps])  # [n, E]
        means = torch.stack([step[n_class:].mean(dim=0) for step in steps])  # [n, E]
        if pool not in ("mean", "pooled_mean"):
            return means
        # Weighted by length, so that the mean over windows is the mean over time.
        weights = torch.tensor([len(step) - n_class for step in steps], device=means.device, dtype=means.dtype)
        return (weights @ means / weights.sum())[None]  # [1, E]

    def patches(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        height, width = _pair(self.model.config.patch_size)
        return frame_size[0] // height, frame_size[1] // width


def _is_blocks(module: nn.Module) -> bool:
    """Whether it is a list of modules of one kind that are more than a single layer."""
    members = list(module.children())
    is_list = isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(each) for each in members}) == 1
    return is_list and next(members[0].children(), None) is not None


def inject_lora(model: nn.Module, fields: Mapping[str, Any], seed: int, *, what: str) -> None:
    """Add LoRA to a model in place, in fp32, with initial weights drawn from `seed`; `what` names it in errors."""
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(LoraConfig(**fields), model)
        except ValueError as error:  # none of its layers has such a name, or it is of a kind that peft does not adapt
            linear = {name.rpartition(".")[2] for name, each in model.named_modules() if isinstance(each, nn.Linear)}
            raise InputError(
                f"{what}.lora: {error}; set lora.target_modules to some of its linear layers {sorted(linear)}"
            ) from error
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def image_size(config: Any) -> Any:
    """The image size in an encoder's configuration."""
    return getattr(config, "vision_config", config).image_size


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
        raise MissingLibrary(
            f"encoder 'timm:{name}' needs timm, which cannot be imported ({error}); install `affectgpt[vision]` "
            "with a torchvision that matches torch, or use the same weights as a Blip2VisionModel"
        ) from error
    return timm


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a base model to `dtype` in place, except parts that need fp32."""
    return model.cast(dtype) if isinstance(model, ImageQFormer) else model.to(dtype)


def from_config(base: Mapping[str, Any]) -> nn.Module:
    """An untrained base model of this configuration."""
    if "timm" in base:
        return TimmEncoder(base["timm"])
    config = base_config(base)
    if config.model_type in CLASSES:
        return _as_encoder(CLASSES[config.model_type][0](config))
    return AutoModel.from_config(config)


def _as_encoder(model: nn.Module) -> nn.Module:
    """The model with what it needs besides its weights: a spectrogram, or the epsilon of EVA's norm."""
    if isinstance(model, Blip2VisionModel):
        # transformers has one epsilon for all norms; MiniGPT-v2's final one differs. The converter writes it.
        model.post_layernorm.eps = getattr(model.config, FINAL_NORM_EPS, model.post_layernorm.eps)
    return WhisperAudio(model) if isinstance(model, WhisperEncoder) else model


def base_config(base: Mapping[str, Any]) -> PreTrainedConfig:
    fields = dict(base)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0  # frozen features are of the complete image
    return config


def load_config(name: str, revision: str | None = None, pool: str = "tokens") -> dict[str, Any]:
    """The configuration of a base encoder, in the form of `EncoderArchitecture.base`."""
    if name.startswith("timm:"):
        return {"timm": name.removeprefix("timm:")}
    return base_fields(AutoConfig.from_pretrained(name, revision=revision), pool)


def base_fields(config: PreTrainedConfig, pool: str = "tokens") -> dict[str, Any]:
    """The part of a base model's configuration that describes the encoder: of a two-tower model, the image tower."""
    if pool == "queries":
        if config.model_type != "blip-2":
            raise InputError(
                f"pool 'queries' needs a BLIP-2, found a model of type {config.model_type!r}; use another pool"
            )
        fields = config.to_diff_dict()
        parts = {key: {**fields.get(key, {})} for key in ("vision_config", "qformer_config")}
        return {"model_type": "blip-2", **parts, "num_query_tokens": config.num_query_tokens}
    if config.model_type in CLASSES and hasattr(config, "vision_config"):
        towers, config = config, config.vision_config
        config.projection_dim = getattr(towers, "projection_dim", None)
    fields = config.to_diff_dict()
    return {"model_type": config.model_type, **{key: fields[key] for key in fields if key != "_name_or_path"}}


def load(name: str, revision: str | None = None, dtype: str = "float32", pool: str = "tokens") -> nn.Module:
    """Load a base encoder; raises InputError naming weights that `pool` needs and the checkpoint lacks."""
    if name.startswith("timm:"):
        return TimmEncoder(name.removeprefix("timm:"), pretrained=True).to(getattr(torch, dtype))
    config = base_config(load_config(name, revision, pool))
    cls, key_mapping = CLASSES.get(config.model_type, (AutoModel, None))
    model, info = cls.from_pretrained(
        name,
        config=config,
        revision=revision,
        dtype=getattr(torch, dtype),
        key_mapping=key_mapping,
        output_loading_info=True,
    )
    missing = sorted(key for key in info["missing_keys"] if not _UNUSED.search(key))
    if not pool.startswith("pooled"):
        missing = [key for key in missing if not _POOLING.search(key)]
    if missing or info["mismatched_keys"]:
        raise InputError(
            f"encoder {name!r} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:5])} ...) "
            f"and has {len(info['mismatched_keys'])} of another shape; is it a checkpoint of this model?"
        )
    return _as_encoder(model)


def load_preprocessing(name: str, revision: str | None = None) -> dict[str, Any]:
    """The base model's preprocessor_config.json (of a timm model, mean and deviation); empty if it has none."""
    if name.startswith("timm:"):
        name = name.removeprefix("timm:")
        cfg = _timm(name).models.get_pretrained_cfg(name)
        return {"image_mean": list(cfg.mean), "image_std": list(cfg.std)} if cfg is not None else {}
    path = bases.resolve(name, "encoder", revision) / bases.PREPROCESSOR
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def min_samples(config: Any) -> int:
    """Audio samples needed for one state: the receptive field of the convolutions of HuBERT and similar models."""
    if isinstance(config, WhisperConfig):
        return 2 * WhisperAudio.HOP
    n = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        n = (n - 1) * stride + kernel
    return n
