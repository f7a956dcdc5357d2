"""Start a stage from pretrained projections instead of random ones: `model.init=pretrained model.init_from=<folder>`.

The folder is what `affectgpt.convert` writes: `projectors.safetensors`, `projectors.json`, and `lora/` if there
are adapters. Whole branches are taken or none of their tensors: a branch that is in both the folder and the model must
fit exactly, the others of the model keep their random values, and the answer says which are which.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from affectgpt.models.checkpoint import CheckpointError, read_manifest, trained_tensors
from affectgpt.models.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.runtime import sha256_of_file, write_json_atomic

PROJECTORS, PROJECTORS_JSON, ADAPTERS = "projectors.safetensors", "projectors.json", "lora"
# What two projectors of equal tensor shapes can still differ in.
_ARITHMETIC = ("kind", "n_heads", "softmax", "group_size", "n_class", "sources")

log = logging.getLogger("affectgpt")


def folder_of(init: str, init_from: str | None) -> Path | None:
    """The folder that `model.init` and `model.init_from` ask for; None = random values.

    Raises:
        CheckpointError: `init` is unknown, or the folder is not named or no conversion.
    """
    if init == "random":
        return None
    if init != "pretrained":
        raise CheckpointError(f"model.init is {init!r}; expected random or pretrained")
    if init_from is None:
        raise CheckpointError(
            "model.init=pretrained needs model.init_from=<folder>, as `python -m affectgpt.convert ... out=<folder>` "
            "writes it"
        )
    _read_json(Path(init_from) / PROJECTORS_JSON, Path(init_from))
    return Path(init_from)


def start_from(model: AffectGPTForConditionalGeneration, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Copy the pretrained projections (and adapters) of `folder` into the model, all that fit or none.

    Returns:
        what run records and checkpoints keep: {"init", "folder", "pretrained", "random", "sources"}; `sources` maps
        each pretrained part to the published file that it comes from and that file's sha256.

    Raises:
        CheckpointError: the folder is no conversion, has no branch of this model, or a branch has other tensors, shapes
            or arithmetic than the model's; every difference is named.
    """
    folder = Path(folder)
    described = _read_json(folder / PROJECTORS_JSON, folder)
    own = {
        name: tensor for part, tensors in model.parts().items() if _is_trained(part) for name, tensor in tensors.items()
    }
    new: dict[str, Tensor] = {}
    wrong: list[str] = []
    sources: dict[str, Any] = {}
    stored = _read_tensors(folder / PROJECTORS)
    for branch, facts in described["branches"].items():
        if branch not in model.projectors:
            continue
        there, here = (
            {key: _plain(fields[key]) for key in _ARITHMETIC}
            for fields in (facts["projector"], asdict(model.config.projector(branch)))
        )
        wrong += [
            f"projectors.{branch}: {key} is {there[key]!r} in the folder, {here[key]!r} here"
            for key in _ARITHMETIC
            if there[key] != here[key]
        ]
        prefix = f"projectors.{branch}."
        theirs = {name: tensor for name, tensor in stored.items() if name.startswith(prefix)}
        wrong += _differences(theirs, {name: tensor for name, tensor in own.items() if name.startswith(prefix)})
        new |= theirs
        sources[f"projectors.{branch}"] = {key: facts[key] for key in ("file", "sha256")}
    if not new:
        raise CheckpointError(
            f"{folder} has projections of {sorted(described['branches'])}, this model of {sorted(model.projectors)}; "
            "none is in both, so model.init=pretrained would change nothing"
        )
    adapters = {name: tensor for name, tensor in own.items() if ".lora_" in name}
    if adapters and (folder / ADAPTERS).is_dir():
        theirs, facts, differing = _read_adapters(folder / ADAPTERS, model.config.lora)
        wrong += differing + _differences(theirs, adapters)
        new |= theirs
        sources["lora"] = facts
    if wrong:
        shown = "\n".join(f"  {line}" for line in wrong[:12]) + (
            f"\n  and {len(wrong) - 12} more" if wrong[12:] else ""
        )
        raise CheckpointError(
            f"the projections of {folder} do not fit this model:\n{shown}\n"
            "choose the sizes that the folder has (projectors.json lists them), or model.init=random"
        )
    with torch.no_grad():
        for name, tensor in new.items():
            own[name].copy_(tensor)
    parts = [f"projectors.{name}" for name in model.projectors] + ["lora"] * bool(adapters)
    result = {
        "init": "pretrained",
        "folder": str(folder),
        "pretrained": [part for part in parts if part in sources],
        "random": [part for part in parts if part not in sources],
        "sources": sources,
    }
    log.info("pretrained from %s: %s", folder, ", ".join(result["pretrained"]))
    if result["random"]:
        log.info("random, since the folder has none: %s", ", ".join(result["random"]))
    unused = sorted(set(described["branches"]) - set(model.projectors))
    unused += ["lora"] * (not adapters and (folder / ADAPTERS).is_dir())
    if unused:
        log.info("not used, since this model has no such part: %s", ", ".join(unused))
    return result


def save_start(
    model: AffectGPTForConditionalGeneration, folder: str | os.PathLike[str], part: str, source: str, **more: Any
) -> None:
    """Write the model's projections so that others can start from them.

    Args:
        part, source: what they are and where they come from, for people.
        more: further values for projectors.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained_tensors(model, ["projectors"]).items()}
    save_file(tensors, folder / PROJECTORS)
    origin = {"part": part, "file": source, "sha256": sha256_of_file(folder / PROJECTORS)}
    described = {
        "format": 1,
        "llm_width": model.get_input_embeddings().weight.shape[1],
        "branches": {name: {"projector": asdict(model.config.projector(name)), **origin} for name in model.projectors},
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        **more,
    }
    write_json_atomic(folder / PROJECTORS_JSON, described)


def start_of(checkpoint: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the training that led to a checkpoint once started from; None = random values."""
    return read_manifest(checkpoint).get("init")


def _is_trained(part: str) -> bool:
    return part == "lora" or part.startswith("projectors.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _differences(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> list[str]:
    lines = [f"{name} is not in the folder" for name in sorted(set(mine) - set(theirs))]
    lines += [f"{name} has no place here" for name in sorted(set(theirs) - set(mine))]
    for name in sorted(set(mine) & set(theirs)):
        if theirs[name].shape != mine[name].shape:
            lines.append(f"{name} is {list(theirs[name].shape)} in the folder, {list(mine[name].shape)} here")
            if name.endswith(".positions.embedding.weight"):
                branch = name.split(".")[1]
                lines[-1] += f" (model.projectors.{branch}.max_positions={len(theirs[name])} makes it fit)"
    return lines


def _read_adapters(folder: Path, mine: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """(adapters under our names, their source, what differs from the model's)."""
    settings = _read_json(folder / "adapter_config.json", folder)
    tensors = {
        re.sub(
            r"^base_model\.model\.(.+)\.lora_([AB])\.weight$", r"language_model.\1.lora_\2.default.weight", name
        ): tensor
        for name, tensor in _read_tensors(folder / "adapter_model.safetensors").items()
    }
    differing = [
        f"lora: {key} is {settings[key]} in the folder, {mine[key]} here"
        for key in ("r", "lora_alpha")
        if settings[key] != mine[key]
    ]
    return tensors, _read_json(folder / "source.json", folder), differing


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {path.name}; name a folder that `python -m affectgpt.convert` wrote with "
            "model.init_from=<folder>, or start with model.init=random"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); convert again") from error
