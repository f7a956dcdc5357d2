"""Export a checkpoint as one self-contained folder: `python -m affectgpt.export runs/fine out=release`.

The folder contains LLM, encoders, projectors and processor, for `AffectGPTForConditionalGeneration.from_pretrained` and
`AffectGPTProcessor.from_pretrained`, and the checksums of all its files. Before the command succeeds, the folder is
loaded and its logits are compared.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from affectgpt.media import Waveform
from affectgpt.models import AffectGPTForConditionalGeneration, AffectGPTProcessor, load_trained, read_spec
from affectgpt.models.integrity import write_sums
from affectgpt.models.modeling_affectgpt import merge_lora_into
from affectgpt.prompts import Message
from affectgpt.runs import checkpoint_to_use
from affectgpt.runtime import UserError, quiet_libraries
from affectgpt.schema import PLACEHOLDERS

if TYPE_CHECKING:
    from affectgpt.config import ExportConfig

log = logging.getLogger("affectgpt")


def export(
    checkpoint: Path,
    out: Path,
    *,
    merge_lora: bool = False,
    dtype: str | None = None,
    base_models: Mapping[str, str] | None = None,
) -> Path:
    """Write the full model of a training checkpoint to `out`, load it again and compare logits.

    Args:
        merge_lora: merge the adapters into the LLM's weights; otherwise they are saved as adapters.
        dtype: precision of the LLM ("float32", "bfloat16", "float16"); None = as in training.
        base_models: new locations ("llm" or modality -> folder or hub id) of base models that were moved.

    Raises:
        UserError: `out` is not empty, or there are no adapters to merge.
        RuntimeError: the logits of the loaded folder differ from those of the model.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"out={out} is not empty; name a new folder, or delete it first")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
    if read_spec(checkpoint).omni is not None:
        raise UserError(
            f"{checkpoint} belongs to an omni model, which is not exported as one folder (docs/models.md); share the "
            "checkpoint, which names its base model"
        )
    model, processor = load_trained(checkpoint, base_models=base_models, llm_dtype=dtype)
    if merge_lora:
        merge_lora_into(model)
    model.config.spec = without_paths(model.config.spec)
    model.config.text_config._name_or_path = ""
    expected = probe_logits(model, processor)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    write_sums(out)
    del model
    found = probe_logits(
        AffectGPTForConditionalGeneration.from_pretrained(out).eval(), AffectGPTProcessor.from_pretrained(out)
    )
    if not torch.equal(expected, found):
        raise RuntimeError(
            f"{out}: logits of the loaded folder differ from those of the exported model by up to "
            f"{(expected - found).abs().max():.3g}; do not publish it, and report this as a bug"
        )
    n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    log.info("%s: %.2f GB, loads with identical logits", out, n_bytes / 1e9)
    return out


def without_paths(spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The model spec with absolute paths cut to folder names, so that a release does not reveal local paths."""
    if spec is None:
        return None
    spec = copy.deepcopy(dict(spec))
    spec["llm"] = _public_name(spec["llm"])
    for encoder in spec["encoders"].values():
        encoder["name"] = _public_name(encoder["name"])
    return spec


def _public_name(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


@torch.no_grad()
def probe_logits(model: nn.Module, processor: AffectGPTProcessor) -> Tensor:
    """Logits of one random sample (fixed seed) with all modalities of the model.  [1, L, V]"""
    random = np.random.default_rng(0)
    media: dict[str, Any] = {}
    for name, branch in processor.branches.items():
        if name == "audio":
            duration_s = min(1.0, branch["window_s"] * branch["max_windows"])
            n_samples = max(round(duration_s * branch["rate_hz"]), branch["min_samples"])
            samples = random.standard_normal(n_samples).astype(np.float32)
            media[name] = Waveform(samples, branch["rate_hz"], n_samples / branch["rate_hz"], branch["rate_hz"], 1)
        elif "n_frames" in branch and branch.get("unless") not in processor.branches:
            shape = (branch["n_frames"], branch["height"], branch["width"], 3)
            media[name] = random.integers(0, 256, shape, dtype=np.uint8)
    slots = "".join(PLACEHOLDERS[name] for name in PLACEHOLDERS if name in media)
    return model(**processor([Message("user", f"{slots}\nWhat does the person feel?")], media)).logits


def run_export(config: ExportConfig) -> int:
    """Run the export command."""
    quiet_libraries()
    checkpoint = checkpoint_to_use(Path(config.paths.runs), config.checkpoint)
    export(
        checkpoint,
        Path(config.out),
        merge_lora=config.merge_lora,
        dtype=config.dtype,
        base_models=config.base_models,
    )
    print(f"{config.out}: full model of {checkpoint}")
    return 0
