"""Base models and a `ModelSpec` -> model and processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedConfig

from affectgpt import bases
from affectgpt.config import (
    SAMPLED,
    EncoderConfig,
    FacesConfig,
    LLMConfig,
    ProjectorConfig,
    SamplingConfig,
)
from affectgpt.models import encoders, quantize, shapes
from affectgpt.models.configuration_affectgpt import (
    IMAGES,
    VIDEOS,
    AffectGPTConfig,
    EncoderArchitecture,
    ProjectorArchitecture,
    check_pool,
)
from affectgpt.models.integrity import SUMS, check_sums
from affectgpt.models.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.models.processing_affectgpt import AffectGPTProcessor
from affectgpt.models.spec import ModelSpec, peft_fields
from affectgpt.runtime import InputError, loading_models
from affectgpt.schema import SLOTS

# CLIP's normalisation, which EVA-CLIP shares; used if a base model has no preprocessor_config.json.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Branches:
    """The resolved branches of a model.

    Attributes:
        architectures: slot -> {"encoder", "projector"}, as in `AffectGPTConfig.branches`.
        settings: slot -> settings of the processor, as in `AffectGPTProcessor`.
    """

    architectures: dict[str, dict[str, Any]]
    settings: dict[str, dict[str, Any]]


@loading_models()
def build(
    spec: ModelSpec, *, load_encoders: bool = True, load_llm: bool = True
) -> tuple[AffectGPTForConditionalGeneration, AffectGPTProcessor]:
    """Assemble model and processor from their base models.

    Args:
        load_encoders: False leaves the encoders out, for training from cached states.
        load_llm: False leaves the LLM's weights out, for running only the encoders; the LLM gets no fingerprint.

    Raises:
        NotFound: a base model is not there; names which.
        InputError: a base model does not fit the spec.
    """
    if spec.omni is not None and not (load_encoders and load_llm):
        raise InputError(f"{spec.llm.path} is a whole omni model: its states are not cached, and it is loaded as one")
    spec, fingerprints = _pin(spec, load_llm)
    used: dict[str, LLMConfig | EncoderConfig] = {"llm": spec.llm} if load_llm else {}
    used |= spec.encoders if load_encoders else {}
    bases.fetch_all(used)
    for folder in {Path(part.path) for part in used.values() if bases.is_local(part.path)}:
        if (folder / SUMS).is_file():  # a conversion wrote it; of other base models changes show in the fingerprint
            check_sums(folder)
    # transformers draws random weights before it loads those of a file; later draws must not depend on how many.
    with torch.random.fork_rng(devices=[]):
        return _assemble(spec, fingerprints, load_encoders, load_llm)


def _assemble(
    spec: ModelSpec, fingerprints: Mapping[str, str], load_encoders: bool, load_llm: bool
) -> tuple[AffectGPTForConditionalGeneration, AffectGPTProcessor]:
    if spec.omni is not None:
        from affectgpt.models import omni

        model, processor = omni.assemble(spec, fingerprints)
        model.generation_config = _generation_config(model, processor)
        return model, processor
    source = {"pretrained_model_name_or_path": spec.llm.path, "revision": spec.llm.revision}
    text_config = AutoConfig.from_pretrained(**source)
    branches = _branches(spec, _stored_encoder)
    processor = AffectGPTProcessor(
        AutoTokenizer.from_pretrained(**source),
        branches=branches.settings,
        prompt_format=spec.llm.prompt_format,
        max_tokens=getattr(text_config, "max_position_embeddings", None),
    )
    config = _config(spec, text_config, branches, processor.placeholder_token_ids, fingerprints)
    loaded = {
        name: encoders.load(encoder.path, encoder.revision, encoder.dtype, encoder.pool)
        for name, encoder in spec.encoders.items()
        if load_encoders
    }
    if load_llm:
        packing = quantize.loading_options(spec.llm.quantization, config.dtype)
        language_model = AutoModelForCausalLM.from_pretrained(**source, dtype=config.dtype, **packing)
    else:
        with torch.device("meta"):
            language_model = AutoModelForCausalLM.from_config(text_config, dtype=config.dtype)
    model = AffectGPTForConditionalGeneration(config, language_model=language_model, encoders=loaded)
    model.generation_config = _generation_config(model, processor)
    return model, processor


def _generation_config(model: AffectGPTForConditionalGeneration, processor: AffectGPTProcessor) -> GenerationConfig:
    """Greedy, up to the end of an answer, without tokens that stand for media."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    inside = sorted(token for token in processor.media_token_ids if token < vocabulary)
    return GenerationConfig(
        do_sample=False,
        eos_token_id=processor.stop_token_ids,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        suppress_tokens=inside or None,  # padded vocabularies have rows at these ids, which are no words
    )


def build_hollow(spec: ModelSpec, device: str = "meta") -> AffectGPTForConditionalGeneration:
    """The full-size model without reading a weight or contacting the hub.

    Shapes come from `affectgpt.models.shapes` (published models) or from the config.json of local folders.

    Args:
        device: "meta" takes no memory and cannot compute; "cuda" or "cpu" draws random weights there.

    Raises:
        InputError: a base model is neither a folder nor one whose shape is known.
    """
    if spec.omni is not None:
        from affectgpt.models import omni  # loads modules of transformers that no other model needs

        return omni.build_hollow(spec, device)
    branches = _branches(spec, _shape_of_encoder)
    path = spec.llm.path
    text_config = AutoConfig.from_pretrained(path) if bases.is_local(path) else shapes.published_config(path)
    placeholders = {name: text_config.vocab_size + i for i, name in enumerate(SLOTS)}
    config = _config(spec, text_config, branches, placeholders)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        language_model = AutoModelForCausalLM.from_config(text_config, dtype=config.dtype)
        loaded = {
            name: encoders.cast(
                encoders.from_config(config.encoder(name).base), getattr(torch, spec.encoders[name].dtype)
            )
            for name in spec.modalities
        }
        model = AffectGPTForConditionalGeneration(config, language_model=language_model, encoders=loaded)
    return model.to(device)  # some models compute tables on the CPU, such as VideoMAE's position embeddings


def hollow_settings(spec: ModelSpec, modality: str) -> dict[str, Any]:
    """The processor settings that belong to `build_hollow`'s model: sizes, frames, audio windows of one modality."""
    return _branch(modality, spec, *_shape_of_encoder(spec.encoders[modality]))[1]


def _config(
    spec: ModelSpec,
    text_config: PreTrainedConfig,
    branches: Branches,
    placeholder_token_ids: Mapping[str, int],
    fingerprints: Mapping[str, str] | None = None,
) -> AffectGPTConfig:
    return AffectGPTConfig(
        text_config=text_config,
        branches=branches.architectures,
        placeholder_token_ids=placeholder_token_ids,
        lora=peft_fields(spec.llm.lora),
        seed=spec.seed,
        spec=spec.to_dict(),
        base_fingerprints=fingerprints,
        dtype=getattr(torch, spec.llm.dtype),
    )


def _stored_encoder(encoder: EncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration, preprocessing) of a base encoder from its files."""
    return (
        encoders.load_config(encoder.path, encoder.revision, encoder.pool),
        encoders.load_preprocessing(encoder.path, encoder.revision),
    )


def _shape_of_encoder(encoder: EncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration, preprocessing) of a base encoder from a local folder, or as published."""
    if encoder.path.startswith("timm:") or bases.is_local(encoder.path):
        return _stored_encoder(replace(encoder, revision=None))
    config = shapes.published_config(encoder.path)
    return encoders.base_fields(config, encoder.pool), shapes.published_preprocessing(encoder.path)


def _pin(spec: ModelSpec, with_llm: bool = True) -> tuple[ModelSpec, dict[str, str]]:
    """(spec with absolute folders and with commits as revisions, fingerprint of each base model)."""

    def pin(part: Any, what: str) -> Any:
        fingerprints[what] = bases.fingerprint(part.path, what, part.revision)
        if bases.is_local(part.path):
            return replace(part, path=str(Path(part.path).expanduser().resolve()), revision=None)
        return replace(part, revision=fingerprints[what].partition("commit:")[2] or part.revision)

    fingerprints: dict[str, str] = {}
    llm = pin(spec.llm, "llm") if with_llm else spec.llm
    pinned = {name: pin(spec.encoders[name], name) for name in spec.modalities if name in spec.encoders}
    return replace(spec, llm=llm, encoders=pinned), fingerprints


# ---------------------------------------------------------------- branches


def _branches(spec: ModelSpec, base_of: Callable[[EncoderConfig], tuple[dict[str, Any], dict[str, Any]]]) -> Branches:
    """Resolve all branches; `base_of` gives (configuration, preprocessing) of a base encoder."""
    branches, n_states = Branches({}, {}), {}
    for name in spec.modalities:
        base, preprocessing = base_of(spec.encoders[name])
        branches.architectures[name], branches.settings[name], n_states[name] = _branch(name, spec, base, preprocessing)
    if "multi" in spec.projectors:
        sizes = [branches.architectures[name]["projector"].input_size for name in spec.fused]
        projector = spec.projectors["multi"]
        architecture = _projector(
            projector,
            input_size=max(sizes),
            max_positions=projector.max_positions or 0,
            sources=spec.fused,
            source_sizes=sizes,
            source_states=[n_states[name] for name in spec.fused],
        )
        for name, n in zip(spec.fused, architecture.source_states, strict=True):
            if projector.kind == "conv" and n != projector.n_queries and not _n_class(branches, name):
                raise InputError(
                    f"multi: a pre-fusion by convolution takes {projector.n_queries} states of each source "
                    f"(n_queries), or the class token of a grouped one; {name} has {n} states"
                )
        branches.architectures["multi"] = {"projector": architecture}
        branches.settings["multi"] = {"n_tokens": projector.n_queries, "sources": list(spec.fused)}
    return branches


def _n_class(branches: Branches, name: str) -> int:
    return branches.architectures[name]["projector"].n_class


def _projector(projector: ProjectorConfig, **resolved: Any) -> ProjectorArchitecture:
    """The architecture of a configured projector; `resolved` are the sizes that follow from its encoder."""
    same = ("kind", "n_queries", "hidden_size", "n_layers", "n_heads", "dropout", "softmax")
    return ProjectorArchitecture(**{key: getattr(projector, key) for key in same}, **resolved)


def _branch(
    name: str, spec: ModelSpec, base: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(architecture of encoder and projector, processor settings, maximum number of states a sample) of a modality.

    Args:
        base, preprocessing: contents of the base model's config.json and preprocessor_config.json.
    """
    encoder, projector, sampling = spec.encoders[name], spec.projectors[name], spec.sampling
    check_pool(name, encoder.pool)
    if encoder.per_frame and name not in VIDEOS:
        raise InputError(f"encoders.{name}.per_frame is for {list(VIDEOS)}; leave it out")
    same = ("layers", "pool", "dtype", "stride", "grid", "per_frame")
    architecture = EncoderArchitecture(
        base=base, lora=peft_fields(encoder.lora), **{key: getattr(encoder, key) for key in same}
    )
    # A copy on the meta device shows how many states of what width one window, frame or clip gives.
    with torch.device("meta"):
        hollow = encoders.Encoder(name, architecture).to("meta")
    settings: dict[str, Any] = {"n_tokens": projector.n_queries}
    if projector.unless:
        settings["unless"] = projector.unless
    sampled = {key: getattr(sampling, key) for key in SAMPLED[name]}
    n_class = 0
    if name == "audio":
        settings |= {
            **sampled,
            "normalize": preprocessing.get("do_normalize", not isinstance(hollow.model, encoders.WhisperAudio)),
            "min_samples": encoders.min_samples(hollow.model.config),
        }
        if (rate_hz := preprocessing.get("sampling_rate", sampling.rate_hz)) != sampling.rate_hz:
            raise InputError(
                f"audio: {encoder.path!r} takes {rate_hz} Hz, "
                f"sampling.rate_hz is {sampling.rate_hz}; set it to {rate_hz}"
            )
        n_steps, n_runs = sampling.max_windows, sampling.max_windows
        probe = torch.zeros(1, round(sampling.window_s * sampling.rate_hz), device="meta")
    else:
        for what, value, known in (
            (f"encoders.{name}.channels", encoder.channels, ("rgb", "bgr")),
            (f"encoders.{name}.resize", encoder.resize, ("bicubic", "bilinear")),
            ("sampling.short_clips", sampling.short_clips, ("even", "last")),
        ):
            if value not in known:
                raise InputError(f"{what} is {value!r}; expected one of {list(known)}")
        height, width = encoder.image_size, encoder.image_size
        if height is None or width is None:
            height, width = _image_size(preprocessing, encoders.image_size(hollow.model.config))
        (n_frames,) = sampled.values()
        settings |= {
            "n_frames": n_frames,
            "height": height,
            "width": width,
            "mean": list(preprocessing.get("image_mean") or CLIP_MEAN),
            "std": list(preprocessing.get("image_std") or CLIP_STD),
        }
        # Settings that were added later count only where they are used, so that older cached states stay valid.
        later = {"channels": encoder.channels, "resize": encoder.resize, "short_clips": sampling.short_clips}
        usual = {"channels": EncoderConfig.channels, "resize": EncoderConfig.resize}
        usual["short_clips"] = SamplingConfig.short_clips
        settings |= {key: value for key, value in later.items() if value != usual[key]}
        if name in ("face", "face_motion") and sampling.faces != FacesConfig():
            settings["faces"] = asdict(sampling.faces)
        by_frame = name in IMAGES or encoder.per_frame
        n_steps, n_runs = (n_frames, n_frames) if by_frame else (hollow.n_tubelets(n_frames), 1)
        probe = torch.zeros(n_frames // n_runs, 3, height, width, device="meta")
    n_states, width_of_states = hollow(probe).shape  # of one run of the encoder
    if encoder.pool in ("mean", "pooled_mean") or (name == "audio" and encoder.grid):
        n_runs = n_steps = 1
    if name in VIDEOS and encoder.pool == "pooled" and not encoder.per_frame:
        n_steps = 1
    if projector.kind == "grouped":
        if name in IMAGES and encoder.pool == "tokens" and not encoder.grid:
            rows, columns = hollow.patches((height, width))
            n_class = n_states - rows * columns
        _check_groups(name, spec, n_states * n_runs, n_class, n_runs)
    if projector.kind == "linear" and projector.n_queries != n_states * n_runs:
        raise InputError(
            f"{name}: a linear projector gives one token per state; pool {encoder.pool!r} gives {n_states * n_runs} "
            f"states, n_queries is {projector.n_queries}: set n_queries to that number, or set pool to 'mean' and "
            "n_queries to 1"
        )
    if projector.kind == "linear" and name == "audio" and sampling.window_mode == "cover" and n_steps > 1:
        raise InputError(
            "audio: a linear projector needs the same number of states from every clip; "
            "set sampling.window_mode to 'fixed' or pool to 'mean'"
        )
    default_positions = n_steps if n_steps > 1 else 0
    projector_architecture = _projector(
        projector,
        input_size=width_of_states,
        max_positions=default_positions if projector.max_positions is None else projector.max_positions,
        tokens_per_position=n_states * n_runs // n_steps,
        group_size=projector.group_size if projector.kind == "grouped" else 1,
        n_class=n_class,
        class_last=projector.class_last and n_class > 0,
        class_token=projector.class_token,
    )
    if projector_architecture.class_last:
        settings["n_class"] = n_class
    return {"encoder": architecture, "projector": projector_architecture}, settings, n_states * n_runs


def _check_groups(name: str, spec: ModelSpec, n_states: int, n_class: int, n_runs: int) -> None:
    """Raise InputError unless the states of a grouped projector, class tokens left out, divide into its soft tokens."""
    projector = spec.projectors[name]
    if (n_class and n_runs > 1) or (name == "audio" and spec.sampling.window_mode == "cover"):
        raise InputError(
            f"{name}: a grouped projector takes one image with its class token, or a fixed number of states; "
            "sample one frame, set the encoder's grid, or set sampling.window_mode to 'fixed'"
        )
    groups, rest = divmod(n_states - n_class, projector.group_size)
    n_mapped = n_class if projector.class_token else 0
    if rest or projector.n_queries != n_mapped + groups:
        raise InputError(
            f"{name}: {n_class} class tokens and {n_states - n_class} other states in groups of {projector.group_size} "
            f"give {n_mapped + groups} soft tokens with {rest} states left over; n_queries is {projector.n_queries}"
        )


def _image_size(preprocessing: Mapping[str, Any], built_for: Any) -> tuple[int, int]:
    """(height, width) after the base model's preprocessing, else the size the encoder was built for."""
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
