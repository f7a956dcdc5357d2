"""What a model is built from: the settings that decide its tensors, and a seed. Checkpoints store it as JSON."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from affectgpt.config import (
    EncoderConfig,
    EncoderLoraConfig,
    FacesConfig,
    LLMConfig,
    LoraConfig,
    ModelConfig,
    OmniConfig,
    ProjectorConfig,
    SamplingConfig,
)
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES

OMNI_MODALITIES = ("audio", "frames")
"""What an omni model can be shown: its towers take one sound and one video."""

_LLM_KEYS = {
    "path": "llm",
    "revision": "llm_revision",
    "dtype": "llm_dtype",
    "quantization": "llm_quantization",
    "prompt_format": "prompt_format",
}


@dataclass(frozen=True)
class ModelSpec:
    """A checked model description: a `ModelConfig` without its name and starting point, and with a seed.

    Attributes:
        encoders, projectors: modality -> settings; both have the same modalities. A projector "multi" is a pre-fusion.
        seed: for the initial weights of projectors and LoRA.
        omni: settings of a whole omni model at `llm.path`, which has no encoders and projectors; None = it is none.

    Raises:
        InputError: unknown modalities, or ones with only an encoder or only a projector; settings that an omni model
            does not have.
    """

    llm: LLMConfig
    encoders: Mapping[str, EncoderConfig]
    projectors: Mapping[str, ProjectorConfig]
    sampling: SamplingConfig
    seed: int = 42
    omni: OmniConfig | None = None

    def __post_init__(self) -> None:
        if self.omni is not None:
            self._check_omni(self.omni)
        if set(self.encoders) != set(self.projectors) - {"multi"}:
            raise InputError(
                f"encoders name {sorted(self.encoders)}, projectors {sorted(self.projectors)}; a modality needs both"
            )
        if unknown := sorted(set(self.encoders) - set(MODALITIES)):
            raise InputError(f"modalities {unknown} are unknown; expected some of {list(MODALITIES)}")
        for name, projector in self.projectors.items():
            if absent := sorted({*projector.sources, *filter(None, [projector.unless])} - set(self.encoders)):
                raise InputError(f"{name}: sources and unless name {absent}; this model has {list(self.modalities)}")

    def _check_omni(self, omni: OmniConfig) -> None:
        if self.encoders or self.projectors:
            raise InputError(
                f"model.omni: {self.llm.path} has its own towers, but encoders are {sorted(self.encoders)} and "
                f"projectors {sorted(self.projectors)}; leave them out, or set model.omni=null"
            )
        if not omni.modalities or (odd := sorted(set(omni.modalities) - set(OMNI_MODALITIES))):
            raise InputError(f"model.omni.modalities has {odd if omni.modalities else 'none'}; expected some of "
                             f"{list(OMNI_MODALITIES)}")  # fmt: skip
        if self.llm.quantization or self.llm.prompt_format not in ("auto", "chat"):
            raise InputError(
                f"model.omni: quantization is {self.llm.quantization!r}, prompt_format {self.llm.prompt_format!r}; an "
                "omni model runs in float32 or bfloat16, with its own chat template: set model.llm.quantization=null "
                "and model.llm.prompt_format=auto"
            )
        if self.sampling.max_windows != 1:
            raise InputError(
                f"model.omni: sampling.max_windows is {self.sampling.max_windows}; its sound is one piece of at most "
                "sampling.window_s seconds: set model.sampling.max_windows=1"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        shown = self.encoders if self.omni is None else self.omni.modalities
        return tuple(name for name in MODALITIES if name in shown)

    @property
    def fused(self) -> tuple[str, ...]:
        """The modalities of the pre-fusion, in the order of its tensors."""
        return tuple(self.projectors["multi"].sources) or self.modalities

    def to_dict(self) -> dict[str, Any]:
        """JSON-like values, as checkpoints store them."""
        llm, lora = self.llm, self.llm.lora
        return {
            "llm": llm.path,
            "encoders": {
                name: {"name" if key == "path" else key: value for key, value in _stored(encoder).items()}
                for name, encoder in self.encoders.items()
            },
            "projectors": {name: _stored(projector) for name, projector in self.projectors.items()},
            "llm_revision": llm.revision,
            "llm_dtype": llm.dtype,
            "llm_quantization": llm.quantization,
            "sampling": _stored(self.sampling),
            "lora": _stored(lora) if lora.r else None,
            "prompt_format": llm.prompt_format,
            "seed": self.seed,
            **({} if self.omni is None else {"omni": asdict(self.omni)}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`; absent settings have their defaults."""
        llm = {field: values[key] for field, key in _LLM_KEYS.items() if key in values}
        encoders = {name: dict(fields) for name, fields in values["encoders"].items()}
        return cls(
            llm=LLMConfig(**llm, lora=LoraConfig(**values.get("lora") or {})),
            encoders={
                name: EncoderConfig(path=fields.pop("name"), lora=EncoderLoraConfig(**fields.pop("lora", {})), **fields)
                for name, fields in encoders.items()
            },
            projectors={name: ProjectorConfig(**fields) for name, fields in values["projectors"].items()},
            sampling=_sampling(values.get("sampling", {})),
            seed=values["seed"],
            omni=OmniConfig(**values["omni"]) if "omni" in values else None,
        )


def _stored(settings: EncoderConfig | ProjectorConfig | SamplingConfig | LoraConfig) -> dict[str, Any]:
    """The fields, without those that were added after the first release and have their default."""
    later = {
        "channels": EncoderConfig.channels,
        "resize": EncoderConfig.resize,
        "per_frame": EncoderConfig.per_frame,
        "class_last": ProjectorConfig.class_last,
        "class_token": ProjectorConfig.class_token,
        "short_clips": SamplingConfig.short_clips,
        "use_dora": LoraConfig.use_dora,
        "use_rslora": LoraConfig.use_rslora,
        "faces": asdict(FacesConfig()),
    }
    fields = {key: value for key, value in asdict(settings).items() if key not in later or value != later[key]}
    if isinstance(settings, EncoderConfig):
        fields.pop("lora")
        if settings.lora.r:
            fields["lora"] = _stored(settings.lora)
    return fields


def _sampling(values: Mapping[str, Any]) -> SamplingConfig:
    return SamplingConfig(**{**values, "faces": FacesConfig(**values.get("faces", {}))})


def model_spec(config: ModelConfig, seed: int) -> ModelSpec:
    """What `affectgpt.models.build` takes, from a configuration; later changes of `config` do not reach it."""
    projectors = {name: projector for name, projector in config.projectors.items() if projector.kind != "none"}
    return copy.deepcopy(ModelSpec(config.llm, config.encoders, projectors, config.sampling, seed, config.omni))


def peft_fields(lora: LoraConfig) -> dict[str, Any] | None:
    """Fields of peft's LoraConfig; None = no adapters."""
    if not lora.r:
        return None
    return {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.target_modules),
        **{variant: True for variant in ("use_dora", "use_rslora") if getattr(lora, variant)},
    }
