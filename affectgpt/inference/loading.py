"""Load a checkpoint for inference."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.cache.reader import ClipReader, clip_reader
from affectgpt.models import AffectGPTForConditionalGeneration, AffectGPTProcessor, bases, load_trained, quantize
from affectgpt.models.checkpoint import read_manifest
from affectgpt.models.integrity import read_sums
from affectgpt.runs import TRAINED_MANIFEST, chosen_checkpoint
from affectgpt.runtime import UserError, quiet_libraries, sha256_of_file, stable_hash, torch_device

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class LoadedModel:
    """A loaded checkpoint.

    Attributes:
        name: the model's name in predictions: run and folder of the checkpoint, or its hub id.
        weights_sha256: of the file with the trained tensors, or of the weights of a full model (of several files: of
            their names and hashes).
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
        dtype: precision of the frozen LLM; None = as in training.
        quantization: quantization of the frozen LLM (nf4, int8, none); None = as in training.
        base_models: "llm" or modality -> folder of base models that were moved since training.
    """
    quiet_libraries()
    published = None if checkpoint is None or (runs / checkpoint).exists() else bases.release(checkpoint)
    folder, why = (published, "downloaded") if published else chosen_checkpoint(runs, checkpoint)
    log.info("checkpoint %s (%s)", folder, why)
    if (folder / TRAINED_MANIFEST).is_file():
        model, processor = load_trained(folder, base_models=base_models, llm_dtype=dtype, llm_quantization=quantization)
    elif quantization not in (None, "none"):
        raise UserError(f"{folder} is a full model; quantization needs a training checkpoint")
    else:
        model = AffectGPTForConditionalGeneration.from_pretrained(folder)
        processor = AffectGPTProcessor.from_pretrained(folder)
    quantize.check_shapes(model, torch_device(device))
    model.to(torch_device(device))
    model.eval()
    name = f"{folder.resolve().parent.name}/{folder.name}" if published is None else str(checkpoint)
    return LoadedModel(folder, name, model, processor, _weights_sha256(folder))


def _weights_sha256(folder: Path) -> str:
    """The recorded checksums, which loading has just compared, or those of a folder that has none."""
    if (folder / TRAINED_MANIFEST).is_file():
        recorded = read_manifest(folder).get("sha256", {})
    else:
        recorded = read_sums(folder) or {}
    found = {path.name: recorded.get(path.name) or sha256_of_file(path) for path in folder.glob("*.safetensors")}
    return next(iter(found.values())) if len(found) == 1 else stable_hash(found)
