"""Base models + a plain description -> model and processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from affectgpt.models import bases, encoders, quantize, shapes
from affectgpt.models.configuration_affectgpt import (
    IMAGES,
    VIDEOS,
    AffectGPTConfig,
    EncoderConfig,
    ProjectorConfig,
    check_pool,
)
from affectgpt.models.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.models.processing_affectgpt import AffectGPTProcessor
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES, SLOTS

# CLIP's normalisation, which EVA-CLIP shares; used where a base model has no preprocessor_config.json.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class EncoderSpec:
    """A frozen encoder: hub id, folder or `timm:<name>`; `layers`, `pool`, `stride` and `grid` as in `EncoderConfig`.

    `image_size`: pictures are stretched to this square; None = what the base model was made for.
    """

    name: str
    revision: str | None = None
    layers: int | str = -1
    pool: str = "tokens"
    dtype: str = "float32"
    stride: int = 1
    grid: int = 0
    image_size: int | None = None


@dataclass(frozen=True)
class ProjectorSpec:
    """A trained projector; sizes follow from the encoder. `max_positions` None = as many as the sampling gives.

    Attributes:
        kind, n_queries, hidden_size, n_layers, n_heads, dropout, softmax, group_size: as in `ProjectorConfig`.
        sources: of the pre-fusion "multi", the modalities that it fuses; empty = all that the model has.
        unless: the branch is hidden from samples that have this modality.
    """

    kind: str = "qformer"
    n_queries: int = 32
    hidden_size: int = 768
    n_layers: int = 2
    n_heads: int = 12
    dropout: float = 0.1
    max_positions: int | None = None
    softmax: bool = True
    group_size: int = 4
    sources: tuple[str, ...] = ()
    unless: str | None = None


@dataclass(frozen=True)
class SamplingSpec:
    """What is taken from a clip: pictures and windows of sound (modes: see affectgpt.media.audio_windows)."""

    n_frames: int = 8
    n_motion_frames: int = 16
    n_faces: int = 8
    n_motion_faces: int = 16
    rate_hz: int = 16000
    window_s: float = 2.0
    max_windows: int = 8
    window_mode: str = "cover"


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters of the LLM (peft)."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def to_peft(self) -> dict[str, Any]:
        """The fields of peft's LoraConfig."""
        scale = {"r": self.r, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return {**scale, "target_modules": list(self.target_modules)}


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build the model from base models; values only, so that it travels as JSON.

    Attributes:
        llm, llm_revision, llm_dtype: hub id or folder of any causal LM, and its precision ("float32", "bfloat16").
        llm_quantization: "nf4" or "int8" packs the LLM's linear layers, see `quantize`.
        encoders, projectors: modality -> spec; both name the same modalities. A projector "multi" is a pre-fusion.
        prompt_format: "auto", "chat" or "vicuna".
        seed: of the projectors' and LoRA's first weights.
    """

    llm: str
    encoders: Mapping[str, EncoderSpec]
    projectors: Mapping[str, ProjectorSpec]
    llm_revision: str | None = None
    llm_dtype: str = "float32"
    llm_quantization: str | None = None
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    lora: LoraSpec | None = None
    prompt_format: str = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        if set(self.encoders) != set(self.projectors) - {"multi"}:
            raise InputError(
                f"encoders name {sorted(self.encoders)}, projectors {sorted(self.projectors)}; a modality needs both"
            )
        if unknown := sorted(set(self.encoders) - set(MODALITIES)):
            raise InputError(f"modalities {unknown} are unknown; expected some of {list(MODALITIES)}")
        for name, projector in self.projectors.items():
            if absent := sorted({*projector.sources, *filter(None, [projector.unless])} - set(self.encoders)):
                raise InputError(f"{name}: sources and unless name {absent}; this model has {list(self.modalities)}")

    @property
    def sources(self) -> tuple[str, ...]:
        """What the pre-fusion fuses, in the order of its tensors."""
        return tuple(self.projectors["multi"].sources) or self.modalities

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(name for name in MODALITIES if name in self.encoders)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `dataclasses.asdict` (after a trip through JSON)."""
        values = dict(values)
        values["encoders"] = {name: EncoderSpec(**fields) for name, fields in values["encoders"].items()}
        values["projectors"] = {
            name: ProjectorSpec(**{**fields, "sources": tuple(fields.get("sources", ()))})
            for name, fields in values["projectors"].items()
        }
        values["sampling"] = SamplingSpec(**values.get("sampling", {}))
        if values.get("lora"):
            lora = dict(values["lora"])
            values["lora"] = LoraSpec(**{**lora, "target_modules": tuple(lora["target_modules"])})
        return cls(**values)


def build(
    spec: ModelSpec, *, load_encoders: bool = True, load_llm: bool = True
) -> tuple[AffectGPTForConditionalGeneration, AffectGPTProcessor]:
    """Assemble model and processor from their base models.

    Args:
        load_encoders: False leaves the encoders' weights on disk, for training from cached states.
        load_llm: False neither fetches nor reads the LLM's, for work with encoders alone; its fingerprint is left out.

    Raises:
        FileNotFoundError: a base model is not there; names which.
        ValueError: a base model does not fit what the spec asks of it.
    """
    spec, fingerprints = _pin(spec, load_llm)
    bases.fetch_all(spec, load_encoders, load_llm)
    # transformers draws weights before it replaces them by those of a file; later draws must not depend on how many.
    with torch.random.fork_rng(devices=[]):
        return _assemble(spec, fingerprints, load_encoders, load_llm)


def _assemble(
    spec: ModelSpec, fingerprints: Mapping[str, str], load_encoders: bool, load_llm: bool
) -> tuple[AffectGPTForConditionalGeneration, AffectGPTProcessor]:
    text_config = AutoConfig.from_pretrained(spec.llm, revision=spec.llm_revision)
    branches, settings, n_states, loaded = {}, {}, {}, {}
    for name in spec.modalities:
        encoder = spec.encoders[name]
        base = encoders.load_config(encoder.name, encoder.revision, encoder.pool)
        preprocessing = encoders.load_preprocessing(encoder.name, encoder.revision)
        branches[name], settings[name], n_states[name] = _branch(name, spec, base, preprocessing)
        if load_encoders:
            loaded[name] = encoders.load(encoder.name, encoder.revision, encoder.dtype, encoder.pool)
    if "multi" in spec.projectors:
        branches["multi"], settings["multi"] = _fusion(spec, branches, n_states)
    processor = AffectGPTProcessor(
        AutoTokenizer.from_pretrained(spec.llm, revision=spec.llm_revision),
        branches=settings,
        prompt_format=spec.prompt_format,
        max_tokens=getattr(text_config, "max_position_embeddings", None),
    )
    dtype = getattr(torch, spec.llm_dtype)
    config = AffectGPTConfig(
        text_config=text_config,
        branches=branches,
        placeholder_token_ids=processor.placeholder_token_ids,
        lora=None if spec.lora is None else spec.lora.to_peft(),
        seed=spec.seed,
        spec=asdict(spec),
        base_fingerprints=fingerprints,
        dtype=dtype,
    )
    if load_llm:
        packing = quantize.loading_options(spec.llm_quantization, dtype)
        language_model = AutoModelForCausalLM.from_pretrained(
            spec.llm, revision=spec.llm_revision, dtype=dtype, **packing
        )
    else:
        with torch.device("meta"):
            language_model = AutoModelForCausalLM.from_config(text_config, dtype=dtype)
    model = AffectGPTForConditionalGeneration(config, language_model=language_model, encoders=loaded)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    inside = [token for token in processor.placeholder_token_ids.values() if token < vocabulary]
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=processor.stop_token_ids,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        suppress_tokens=inside or None,  # vocabularies padded on disk have rows at these ids; they are no words
    )
    return model, processor


def build_hollow(spec: ModelSpec, device: str = "meta") -> AffectGPTForConditionalGeneration:
    """The model at its full size without reading a weight or asking a hub.

    Shapes come from `affectgpt.models.shapes` (published models) or from the config.json of local folders.

    Args:
        device: "meta" takes no memory and cannot compute; "cuda" or "cpu" draws random weights there.

    Raises:
        ValueError: a base model is neither a folder nor one whose shape is written down.
    """
    branches: dict[str, Any] = {}
    n_states: dict[str, int] = {}
    for name in spec.modalities:
        base, preprocessing = _shape_of_encoder(spec.encoders[name])
        branches[name], _, n_states[name] = _branch(name, spec, base, preprocessing)
    if "multi" in spec.projectors:
        branches["multi"], _ = _fusion(spec, branches, n_states)
    text_config = (
        AutoConfig.from_pretrained(spec.llm) if bases.is_local(spec.llm) else shapes.published_config(spec.llm)
    )
    dtype = getattr(torch, spec.llm_dtype)
    config = AffectGPTConfig(
        text_config=text_config,
        branches=branches,
        placeholder_token_ids={name: text_config.vocab_size + i for i, name in enumerate(SLOTS)},
        lora=None if spec.lora is None else spec.lora.to_peft(),
        seed=spec.seed,
        spec=asdict(spec),
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        language_model = AutoModelForCausalLM.from_config(text_config, dtype=dtype)
        loaded = {
            name: encoders.cast(
                encoders.from_config(config.encoder(name).base), getattr(torch, spec.encoders[name].dtype)
            )
            for name in spec.modalities
        }
        model = AffectGPTForConditionalGeneration(config, language_model=language_model, encoders=loaded)
    return model.to(device)  # some models compute tables, such as VideoMAE's positions, on the CPU


def hollow_settings(spec: ModelSpec, modality: str) -> dict[str, Any]:
    """What the processor of `build_hollow`'s model would be told of one modality: sizes, frames, windows of sound."""
    return _branch(modality, spec, *_shape_of_encoder(spec.encoders[modality]))[1]


def _shape_of_encoder(encoder: EncoderSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration, preprocessing) of a base encoder from a local folder, or as published."""
    name = encoder.name
    if name.startswith("timm:") or bases.is_local(name):
        return encoders.load_config(name, pool=encoder.pool), encoders.load_preprocessing(name)
    config = shapes.published_config(name)
    return encoders.base_fields(config, encoder.pool), shapes.published_preprocessing(name)


def _pin(spec: ModelSpec, with_llm: bool = True) -> tuple[ModelSpec, dict[str, str]]:
    """(spec with absolute folders and hub commits instead of branches, fingerprint of each base model)."""

    def pin(name: str, what: str, revision: str | None) -> tuple[str, str | None]:
        fingerprints[what] = bases.fingerprint(name, what, revision)
        if bases.is_local(name):
            return str(Path(name).expanduser().resolve()), None
        commit = fingerprints[what].partition("commit:")[2]
        return name, commit or revision

    fingerprints: dict[str, str] = {}
    llm, llm_revision = pin(spec.llm, "llm", spec.llm_revision) if with_llm else (spec.llm, spec.llm_revision)
    pinned = {}
    for modality in spec.modalities:
        name, revision = pin(spec.encoders[modality].name, modality, spec.encoders[modality].revision)
        pinned[modality] = replace(spec.encoders[modality], name=name, revision=revision)
    return replace(spec, llm=llm, llm_revision=llm_revision, encoders=pinned), fingerprints


def _branch(
    name: str, spec: ModelSpec, base: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(config of encoder and projector, processor settings, states a sample has at most) of one modality.

    Args:
        base, preprocessing: what the base model's config.json and preprocessor_config.json say.
    """
    encoder, projector, sampling = spec.encoders[name], spec.projectors[name], spec.sampling
    config = EncoderConfig(
        base=base,
        layers=encoder.layers,
        pool=encoder.pool,
        dtype=encoder.dtype,
        stride=encoder.stride,
        grid=encoder.grid,
    )
    check_pool(name, encoder.pool)
    # A copy without memory or arithmetic tells how many states of what width one window, frame or clip gives.
    with torch.device("meta"):
        hollow = encoders.FrozenEncoder(name, config).to("meta")
    settings: dict[str, Any] = {"n_tokens": projector.n_queries}
    if projector.unless:
        settings["unless"] = projector.unless
    n_class = 0
    if name == "audio":
        settings |= {key: getattr(sampling, key) for key in ("rate_hz", "window_s", "max_windows", "window_mode")}
        settings |= {
            "normalize": preprocessing.get("do_normalize", not isinstance(hollow.model, encoders.WhisperSound)),
            "min_samples": encoders.min_samples(hollow.model.config),
        }
        if (hears := preprocessing.get("sampling_rate", sampling.rate_hz)) != sampling.rate_hz:
            raise InputError(f"audio: {encoder.name!r} hears {hears} Hz, sampling.rate_hz is {sampling.rate_hz}")
        n_steps, n_runs = sampling.max_windows, sampling.max_windows
        probe = torch.zeros(1, round(sampling.window_s * sampling.rate_hz), device="meta")
    else:
        height, width = encoder.image_size, encoder.image_size
        if height is None or width is None:
            height, width = _image_size(preprocessing, encoders.image_size(hollow.model.config))
        n_frames = {
            "frames": sampling.n_frames,
            "motion": sampling.n_motion_frames,
            "face": sampling.n_faces,
            "face_motion": sampling.n_motion_faces,
        }[name]
        settings |= {
            "n_frames": n_frames,
            "height": height,
            "width": width,
            "mean": list(preprocessing.get("image_mean") or CLIP_MEAN),
            "std": list(preprocessing.get("image_std") or CLIP_STD),
        }
        n_steps, n_runs = (n_frames, n_frames) if name in IMAGES else (hollow.n_tubelets(n_frames), 1)
        probe = torch.zeros(n_frames // n_runs, 3, height, width, device="meta")
    n_states, width_of_states = hollow(probe).shape  # of one run of the encoder
    if encoder.pool in ("mean", "pooled_mean"):
        n_runs = n_steps = 1
    if name in VIDEOS and encoder.pool == "pooled":
        n_steps = 1
    if projector.kind == "grouped":
        if name in IMAGES and encoder.pool == "tokens" and not encoder.grid:
            rows, columns = hollow.patches((height, width))
            n_class = n_states - rows * columns
        _check_groups(name, spec, n_states * n_runs, n_class, n_runs)
    if projector.kind == "linear" and projector.n_queries != n_states * n_runs:
        raise InputError(
            f"{name}: a linear projector makes one token a state; pool {encoder.pool!r} gives {n_states * n_runs} "
            f"states, n_queries is {projector.n_queries}: set it to that number, or pool to 'mean' and it to 1"
        )
    if projector.kind == "linear" and name == "audio" and sampling.window_mode != "fixed" and n_steps > 1:
        raise InputError(
            "audio: a linear projector needs the same number of states from every sound; "
            "set sampling.window_mode to 'fixed' or pool to 'mean'"
        )
    default_positions = n_steps if n_steps > 1 else 0
    projector_config = ProjectorConfig(
        kind=projector.kind,
        input_size=width_of_states,
        n_queries=projector.n_queries,
        hidden_size=projector.hidden_size,
        n_layers=projector.n_layers,
        n_heads=projector.n_heads,
        dropout=projector.dropout,
        max_positions=default_positions if projector.max_positions is None else projector.max_positions,
        tokens_per_position=n_states * n_runs // n_steps,
        softmax=projector.softmax,
        group_size=projector.group_size if projector.kind == "grouped" else 1,
        n_class=n_class,
    )
    return {"encoder": config, "projector": projector_config}, settings, n_states * n_runs


def _check_groups(name: str, spec: ModelSpec, n_states: int, n_class: int, n_runs: int) -> None:
    """Raise ValueError unless the states of a grouped projector, class tokens left out, divide into its soft tokens."""
    projector = spec.projectors[name]
    if (n_class and n_runs > 1) or (name == "audio" and spec.sampling.window_mode != "fixed"):
        raise InputError(
            f"{name}: a grouped projector takes one picture with its class token, or a fixed number of states; "
            "sample one frame, set encoders' grid, or set sampling.window_mode to 'fixed'"
        )
    groups, rest = divmod(n_states - n_class, projector.group_size)
    if rest or projector.n_queries != n_class + groups:
        raise InputError(
            f"{name}: {n_class} class tokens and {n_states - n_class} other states by {projector.group_size} give "
            f"{n_class + groups} soft tokens and leave {rest} states over; n_queries is {projector.n_queries}"
        )


def _fusion(
    spec: ModelSpec, branches: Mapping[str, Mapping[str, Any]], n_states: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, processor settings) of the pre-fusion."""
    projector, sources = spec.projectors["multi"], spec.sources
    sizes = [branches[name]["projector"].input_size for name in sources]
    config = ProjectorConfig(
        kind=projector.kind,
        input_size=max(sizes),
        n_queries=projector.n_queries,
        hidden_size=projector.hidden_size,
        n_layers=projector.n_layers,
        n_heads=projector.n_heads,
        dropout=projector.dropout,
        max_positions=projector.max_positions or 0,
        softmax=projector.softmax,
        sources=sources,
        source_sizes=sizes,
        source_states=[n_states[name] for name in sources],
    )
    return {"projector": config}, {"n_tokens": projector.n_queries, "sources": list(sources)}


def _image_size(preprocessing: Mapping[str, Any], built_for: Any) -> tuple[int, int]:
    """(height, width): what the base model's preprocessor ends at, else what the encoder was built for."""
    for size in (preprocessing.get("crop_size"), preprocessing.get("size"), built_for):
        if isinstance(size, Mapping) and "height" in size:
            return size["height"], size["width"]
        if isinstance(size, Mapping) and "shortest_edge" in size:
            return size["shortest_edge"], size["shortest_edge"]
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)):
            return size[0], size[1]
    raise InputError(f"no image size in preprocessor_config.json ({dict(preprocessing)}) nor in the encoder's config")
