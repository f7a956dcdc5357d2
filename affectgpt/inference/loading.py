"""From configuration values and checkpoint folders to models that can be trained or asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affectgpt.cache.reader import ClipReader, FeatureCache
from affectgpt.config import ModelConfig
from affectgpt.data.clips import Sampling
from affectgpt.data.facts import facts_in
from affectgpt.models import (
    AffectGPTForConditionalGeneration,
    AffectGPTProcessor,
    EncoderSpec,
    LoraSpec,
    ModelSpec,
    ProjectorSpec,
    SamplingSpec,
    bases,
    quantize,
)
from affectgpt.models.checkpoint import load_trained
from affectgpt.runs import TRAINED_MANIFEST, checkpoint_to_use
from affectgpt.runtime import UserError, sha256_of_file

log = logging.getLogger("affectgpt")


def quiet_libraries() -> None:
    """Silence the loading bars and load reports of transformers: loading is strict here, and bars are our own."""
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()


def model_spec(config: ModelConfig, seed: int) -> ModelSpec:
    """The model's description for `affectgpt.models.build`, out of conf/model."""
    encoders = {}
    for name, encoder in config.encoders.items():
        values = asdict(encoder)
        encoders[name] = EncoderSpec(values.pop("path"), **values)
    lora = config.llm.lora
    return ModelSpec(
        llm=config.llm.path,
        llm_revision=config.llm.revision,
        llm_dtype=config.llm.dtype,
        llm_quantization=config.llm.quantization,
        encoders=encoders,
        projectors={
            name: ProjectorSpec(**{**asdict(projector), "sources": tuple(projector.sources)})
            for name, projector in config.projectors.items()
            if projector.kind != "none"
        },
        sampling=SamplingSpec(**asdict(config.sampling)),
        lora=None if lora.r == 0 else LoraSpec(lora.r, lora.alpha, lora.dropout, tuple(lora.target_modules)),
        prompt_format=config.llm.prompt_format,
        seed=seed,
    )


def torch_device(name: str) -> torch.device:
    """ "auto" takes a GPU if there is one; asking for a GPU that is not there is an error."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU; `python -m affectgpt.doctor` says why")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def clip_reader(
    model: Any,
    processor: Any,
    *,
    backend: str = "pyav",
    cache_folder: Path | None = None,
    limit_gb: float | None = None,
) -> ClipReader:
    """The way from a sample's files to what `processor.encode` takes; with a cache folder, through encoder states.

    Args:
        limit_gb: what the encoder states in the folder may hold; None = no limit.
    """
    sampling = _sampling(processor)
    if cache_folder is None:
        return ClipReader(sampling, backend=backend)

    def encode(media: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, value in media.items():
            tensors |= processor.media(name, value)
        return model.encode(tensors)

    # Branch settings hold sizes, normalisation and sound windows: whatever decides what the encoder is fed.
    fed = {
        name: {key: value for key, value in settings.items() if key != "unless"} | {"n_tokens": None}
        for name, settings in processor.branches.items()
    }
    fingerprints = {name: [model.encoder_fingerprint(name), fed[name], backend] for name in model.modalities}
    cache = FeatureCache(
        cache_folder / "features",
        fingerprints,
        about=model.config.spec["encoders"],
        limit_bytes=None if limit_gb is None else round(limit_gb * 1e9),
    )
    on_gpu = any(next(encoder.parameters()).is_cuda for encoder in model.encoders.values())
    # A GPU encodes faster than one thread decodes; on the CPU both share the cores.
    n_threads = min(16, max(2, n_cores() // torch.cuda.device_count())) if on_gpu else 2
    return ClipReader(
        sampling, backend=backend, cache=cache, encode=encode, facts=facts_in(cache_folder), n_threads=n_threads
    )


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sampling(processor: Any) -> Sampling:
    values: dict[str, Any] = {}
    counts = {"frames": "n_frames", "motion": "n_motion_frames", "face": "n_faces", "face_motion": "n_motion_faces"}
    for name, count in counts.items():
        if name in processor.branches:
            values[count] = processor.branches[name]["n_frames"]
    if sound := processor.branches.get("audio"):
        values |= {key: sound[key] for key in ("rate_hz", "window_s", "max_windows", "window_mode")}
    return Sampling(**values)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint that is ready to answer.

    Attributes:
        name: what stands in predictions as the model: the checkpoint's run and folder.
        weights_sha256: identity of the trained tensors.
    """

    folder: Path
    name: str
    model: Any
    processor: Any
    weights_sha256: str

    def reader(self, *, backend: str, cache_folder: Path | None, limit_gb: float | None = None) -> ClipReader:
        return clip_reader(self.model, self.processor, backend=backend, cache_folder=cache_folder, limit_gb=limit_gb)


def load(
    checkpoint: str | None,
    runs: Path,
    *,
    device: str = "auto",
    dtype: str | None = None,
    quantization: str | None = None,
    base_models: Mapping[str, str] | None = None,
) -> LoadedModel:
    """Load a checkpoint folder, a run (its best by validation, else its last), or the newest complete run (None).

    Args:
        dtype: another precision for the frozen LLM than in training.
        quantization: another packing of its weights (nf4, int8, none) than in training.
        base_models: where base models lie now ("llm" or a modality -> folder), if they moved since training.
    """
    quiet_libraries()
    published = None if checkpoint is None or (runs / checkpoint).exists() else bases.release(checkpoint)
    folder = published or checkpoint_to_use(runs, checkpoint)
    log.info("checkpoint %s", folder)
    if (folder / TRAINED_MANIFEST).is_file():
        model, processor = load_trained(folder, base_models=base_models, llm_dtype=dtype, llm_quantization=quantization)
    elif quantization not in (None, "none"):
        raise UserError(f"{folder} is a full model; quantization is for training checkpoints, whose LLM is read anew")
    else:
        model = AffectGPTForConditionalGeneration.from_pretrained(folder)
        processor = AffectGPTProcessor.from_pretrained(folder)
    quantize.check_shapes(model, torch_device(device))
    model.to(torch_device(device))
    model.eval()
    weights = next(iter(sorted(folder.glob("*.safetensors"))))
    name = f"{folder.resolve().parent.name}/{folder.name}" if published is None else str(checkpoint)
    return LoadedModel(folder, name, model, processor, sha256_of_file(weights))
