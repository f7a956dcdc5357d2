"""Start a stage from pretrained projectors: `model.init=pretrained model.init_from=<folder>`.

The folder is written by `affectgpt.convert`: `projectors.safetensors`, `projectors.json`, and `lora/` if there are
adapters. A branch that is in both the folder and the model must match exactly, except for the order in which a
pre-fusion by attention names its sources, and for a map of class tokens that the folder lacks (MiniGPT-v2 has none,
Emotion-LLaMA starts from it). The model's other parts stay random, and the result lists both.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affectgpt.models.checkpoint import CheckpointError, read_manifest, read_tensors, trained_tensors, write_tensors
from affectgpt.models.integrity import SUMS, check_sums, write_sums
from affectgpt.models.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.runtime import sha256_of_file, write_json_atomic

PROJECTORS, PROJECTORS_JSON, ADAPTERS = "projectors.safetensors", "projectors.json", "lora"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "source.json")
_ADVICE = "convert the published files again"
# What can differ between two projectors with the same tensor shapes.
_CLASS_OUTPUT = "project.class_output"
_ARITHMETIC = ("kind", "n_heads", "softmax", "group_size", "n_class", "sources")

log = logging.getLogger("affectgpt")


def folder_of(init: str, init_from: str | None) -> Path | None:
    """The folder selected by `model.init` and `model.init_from`; None = random values.

    Raises:
        CheckpointError: `init` is unknown, the folder is not given, or it was not written by a conversion.
    """
    if init == "random":
        return None
    if init != "pretrained":
        raise CheckpointError(f"model.init is {init!r}; expected random or pretrained")
    if init_from is None:
        raise CheckpointError(
            "model.init=pretrained needs model.init_from=<folder>, a folder written by "
            "`python -m affectgpt.convert ... out=<folder>`"
        )
    _read_json(Path(init_from) / PROJECTORS_JSON, Path(init_from))
    return Path(init_from)


def start_from(model: AffectGPTForConditionalGeneration, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Copy the pretrained projectors (and adapters) in `folder` into the model.

    Returns:
        an entry for run records and checkpoints: {"init", "folder", "pretrained", "random", "sources"}; `sources` maps
        each pretrained part to the published file it comes from and the file's sha256.

    Raises:
        CheckpointError: the folder was not written by a conversion, has no branch of this model, or a branch differs in
            tensors, shapes or arithmetic; lists all differences. The model is then unchanged.
    """
    folder = Path(folder)
    described = _read_json(folder / PROJECTORS_JSON, folder)
    check_sums(folder, [PROJECTORS, PROJECTORS_JSON])
    own = trained_tensors(model)
    new: dict[str, Tensor] = {}
    wrong: list[str] = []
    sources: dict[str, Any] = {}
    stay_random: list[str] = []
    stored = read_tensors(folder / PROJECTORS, _ADVICE)
    for branch, facts in described["branches"].items():
        if branch not in model.projectors:
            continue
        there, here = (
            {key: _plain(fields[key]) for key in _ARITHMETIC}
            for fields in (facts["projector"], asdict(model.config.projector(branch)))
        )
        starts_without_class = there["kind"] == here["kind"] == "grouped" and here["n_class"] > there["n_class"] == 0
        reordered = there["kind"] == "attention" and sorted(there["sources"]) == sorted(here["sources"])
        wrong += [
            f"projectors.{branch}: {key} is {there[key]!r} in the folder, {here[key]!r} here"
            for key in _ARITHMETIC
            if there[key] != here[key]
            and not (key == "sources" and reordered)
            and not (key == "n_class" and starts_without_class)
        ]
        prefix = f"projectors.{branch}."
        theirs = {name: tensor for name, tensor in stored.items() if name.startswith(prefix)}
        mine = {name: tensor for name, tensor in own.items() if name.startswith(prefix)}
        if starts_without_class:
            of_class = {name for name in mine if name.startswith(f"{prefix}{_CLASS_OUTPUT}.")}
            mine = {name: tensor for name, tensor in mine.items() if name not in of_class}
            stay_random += [f"{prefix}{_CLASS_OUTPUT}"] * bool(of_class)  # a model may only fuse the class token
        wrong += _differences(theirs, mine)
        new |= _with_sources_in_order(theirs, there["sources"], here["sources"]) if reordered else theirs
        sources[f"projectors.{branch}"] = {key: facts[key] for key in ("file", "sha256")}
    if not new:
        raise CheckpointError(
            f"{folder} has projectors of {sorted(described['branches'])}, this model of {sorted(model.projectors)}; "
            "they have none in common, so model.init=pretrained would have no effect"
        )
    adapters = model.own_parts().get("lora", {})
    if adapters and (folder / ADAPTERS).is_dir():
        if (folder / SUMS).is_file():  # else there was a warning
            check_sums(folder, [f"{ADAPTERS}/{name}" for name in _ADAPTER_FILES])
        theirs, facts, differing = _read_adapters(folder / ADAPTERS, model.config.lora)
        wrong += differing + _differences(theirs, adapters)
        new |= theirs
        sources["lora"] = facts
    if wrong:
        shown = "\n".join(f"  {line}" for line in wrong[:12]) + (
            f"\n  and {len(wrong) - 12} more" if wrong[12:] else ""
        )
        raise CheckpointError(
            f"the projectors in {folder} do not match this model:\n{shown}\n"
            "configure the sizes listed in the folder's projectors.json, or set model.init=random"
        )
    with torch.no_grad():
        for name, tensor in new.items():
            own[name].copy_(tensor)
    parts = [f"projectors.{name}" for name in model.projectors] + ["lora"] * bool(adapters)
    result = {
        "init": "pretrained",
        "folder": folder.resolve().name,  # checkpoints are published: no paths
        "pretrained": [part for part in parts if part in sources],
        "random": [part for part in parts if part not in sources] + stay_random,
        "sources": sources,
    }
    log.info("pretrained from %s: %s", folder, ", ".join(result["pretrained"]))
    if result["random"]:
        log.info("random, because the folder has none: %s", ", ".join(result["random"]))
    unused = sorted(set(described["branches"]) - set(model.projectors))
    unused += ["lora"] * (not adapters and (folder / ADAPTERS).is_dir())
    if unused:
        log.info("not used, because this model has no such part: %s", ", ".join(unused))
    return result


def save_start(
    model: AffectGPTForConditionalGeneration, folder: str | os.PathLike[str], part: str, source: str, **more: Any
) -> None:
    """Write the model's projectors to a folder that `start_from` can read.

    Args:
        part, source: descriptions of the projectors and their origin.
        more: further entries of projectors.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained_tensors(model, ["projectors"]).items()}
    write_tensors(tensors, folder / PROJECTORS)
    origin = {"part": part, "file": source, "sha256": sha256_of_file(folder / PROJECTORS)}
    described = {
        "format": 1,
        "llm_width": model.get_input_embeddings().weight.shape[1],
        "branches": {name: {"projector": asdict(model.config.projector(name)), **origin} for name in model.projectors},
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        **more,
    }
    write_json_atomic(folder / PROJECTORS_JSON, described)
    write_sums(folder, [PROJECTORS, PROJECTORS_JSON])


def start_of(checkpoint: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The origin of the initial weights of a checkpoint's training, also over several stages; None = random."""
    return init_without_path(read_manifest(checkpoint).get("init"))


def init_without_path(init: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An origin with the name of its folder alone: older versions stored the path."""
    if init is None:
        return None
    return {**init, "folder": Path(init["folder"]).name} if "folder" in init else dict(init)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _with_sources_in_order(
    tensors: Mapping[str, Tensor], there: Sequence[str], here: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a pre-fusion by attention over the sources `there`, for one that has them in the order `here`."""
    if there == here:
        return dict(tensors)
    places = [there.index(name) for name in here]
    moved = {"mix.weight": 1, "score.weight": 0, "score.bias": 0}  # the dimension that has a part per source
    result = dict(tensors)
    for name, tensor in tensors.items():
        if (dim := moved.get(name.removeprefix("projectors.multi."))) is not None:
            parts = tensor.chunk(len(there), dim=dim)
            result[name] = torch.cat([parts[place] for place in places], dim=dim)
    return result


def _differences(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> list[str]:
    lines = [f"{name} is not in the folder" for name in sorted(set(mine) - set(theirs))]
    lines += [f"{name} is not in this model" for name in sorted(set(theirs) - set(mine))]
    for name in sorted(set(mine) & set(theirs)):
        if theirs[name].shape != mine[name].shape:
            lines.append(f"{name} is {list(theirs[name].shape)} in the folder, {list(mine[name].shape)} here")
            if name.endswith(".positions.embedding.weight"):
                branch = name.split(".")[1]
                lines[-1] += f" (set model.projectors.{branch}.max_positions={len(theirs[name])})"
    return lines


def _read_adapters(folder: Path, mine: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """(adapters with the model's tensor names, their source, differences from the model's settings)."""
    settings = _read_json(folder / "adapter_config.json", folder)
    tensors = {
        re.sub(
            r"^base_model\.model\.(.+)\.lora_([AB])\.weight$", r"language_model.\1.lora_\2.default.weight", name
        ): tensor
        for name, tensor in read_tensors(folder / "adapter_model.safetensors", _ADVICE).items()
    }
    differing = [
        f"lora: {key} is {settings[key]} in the folder, {mine[key]} here"
        for key in ("r", "lora_alpha")
        if settings[key] != mine[key]
    ]
    differing += [
        f"lora: {key} is {settings.get(key, False)} in the folder, {mine.get(key, False)} here"
        for key in ("use_dora", "use_rslora")
        if settings.get(key, False) != mine.get(key, False)
    ]
    return tensors, _read_json(folder / "source.json", folder), differing


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {path.name}; set model.init_from to a folder written by `python -m affectgpt.convert`, "
            "or set model.init=random"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); {_ADVICE}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object; {_ADVICE}")
    return found
