"""Training checkpoints: the trained tensors, and the identity of the base models.

A checkpoint folder holds `trained.safetensors` (projectors, LoRA, and what was trained of the base models) and
`affectgpt.json`, the manifest: the `ModelSpec`, a fingerprint of each base model, the name, shape and dtype of every
tensor, and the sha256 of the file of tensors and of the manifest. Loading builds the model from the spec, refuses base
models and files that changed, and requires exactly the tensors that the model has.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import affectgpt
from affectgpt import bases
from affectgpt.config import LoraConfig
from affectgpt.models.assemble import build
from affectgpt.models.integrity import CheckpointError, check_finite, follow_umask
from affectgpt.models.modeling_affectgpt import AffectGPTForConditionalGeneration, is_of_base, part_of
from affectgpt.models.processing_affectgpt import AffectGPTProcessor
from affectgpt.models.spec import ModelSpec
from affectgpt.prompts import PROMPT_VERSION
from affectgpt.runs import COMPLETE, RECORD, TRAINED_MANIFEST, is_checkpoint_name
from affectgpt.runtime import sha256_of_file, stable_hash, sync, write_text_atomic

TENSORS_NAME = "trained.safetensors"
TRAINER_STATE = "trainer_state.json"  # only in checkpoints of a run

log = logging.getLogger("affectgpt")


def trained_tensors(model: AffectGPTForConditionalGeneration, parts: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Name -> tensor of the model's `own_parts`, frozen or not; or only of `parts`."""
    own = model.own_parts()
    parts = list(own if parts is None else parts)
    if unknown := [part for part in parts if part not in own and part != "projectors"]:
        raise CheckpointError(f"parts {unknown} are unknown; this model has {['projectors', *own]}")
    chosen = [tensors for part, tensors in own.items() if part in parts or part.split(".")[0] in parts]
    return {name: tensor.detach() for tensors in chosen for name, tensor in tensors.items()}


def save_trained(
    model: AffectGPTForConditionalGeneration,
    processor: AffectGPTProcessor,
    folder: str | os.PathLike[str],
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the trained tensors of a built model and the manifest to `folder`, the manifest last.

    Args:
        processor: the one built with the model. It is only checked: loading rebuilds it from the spec.
        state_dict: the values, if the model's own parameters are partitioned (ZeRO-3, FSDP).
    """
    if model.config.spec is None:
        raise CheckpointError(
            "the model has no spec, because affectgpt.models.build did not make it; use save_pretrained"
        )
    if processor.placeholder_token_ids != model.config.placeholder_token_ids:
        raise CheckpointError(
            f"the processor's placeholder ids {processor.placeholder_token_ids} are not the model's "
            f"{model.config.placeholder_token_ids}; pass the processor that was built with the model"
        )
    if absent := sorted(set(model.config.tuned) - model.own_tensors().keys()):
        raise CheckpointError(
            f"the model was loaded without encoders of which {len(absent)} tensors were trained ({absent[0]} ...), so "
            "it cannot be saved; load it with them"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = trained_tensors(model)
    if state_dict is not None:
        if absent := sorted(set(own) - set(state_dict)):
            raise CheckpointError(f"the state dict lacks {len(absent)} trained tensors: {', '.join(absent[:5])}")
        own = {name: state_dict[name] for name in own}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
    check_finite(tensors, f"{folder} is not written")
    (folder / TRAINED_MANIFEST).unlink(missing_ok=True)
    temporary = folder / f".{TENSORS_NAME}.tmp"
    write_tensors(tensors, temporary)
    manifest = {
        "format": 1,
        "affectgpt": affectgpt.__version__,
        "prompts": PROMPT_VERSION,
        "spec": model.config.spec,
        "base_fingerprints": model.config.base_fingerprints,
        "init": model.config.init,
        "tensors": {name: {"shape": list(t.shape), "dtype": _dtype(t)} for name, t in sorted(tensors.items())},
        "sha256": {TENSORS_NAME: sha256_of_file(temporary)},
    }
    if sums := {name: value for name in model.modalities if (value := model.encoder_sum(name))}:
        manifest["encoder_sums"] = sums
    manifest["manifest_sha256"] = digest_of(manifest)
    os.replace(temporary, folder / TENSORS_NAME)
    write_text_atomic(folder / TRAINED_MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file with the permissions of any new file, on the disk when this returns."""
    save_file(dict(tensors), path)
    follow_umask(path)
    sync(path)


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Of a manifest without its own checksum, as it is read back."""
    values = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return stable_hash(json.loads(json.dumps(values)))


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a trained-only folder.

    Raises:
        CheckpointError: the folder is not a complete checkpoint, or its manifest is broken or has changed.
    """
    folder = Path(folder)
    path = folder / TRAINED_MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {TRAINED_MANIFEST}, so it is not a complete training checkpoint; "
            "load a full model folder with AffectGPTForConditionalGeneration.from_pretrained"
        )
    in_a_run = (folder.parent / RECORD).is_file() and is_checkpoint_name(folder.name)
    if (in_a_run or (folder / TRAINER_STATE).is_file()) and not (folder / COMPLETE).exists():
        raise CheckpointError(
            f"{folder} has no {COMPLETE}: the run was ended while it wrote this checkpoint; use another one"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); use another checkpoint") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(f"{path}: format {str(found)[:40]!r} is unknown; expected 1")
    if "manifest_sha256" in manifest and manifest["manifest_sha256"] != digest_of(manifest):
        raise CheckpointError(
            f"{path} has changed since it was written; restore it, or use another checkpoint (base models that were "
            "moved are named with base_models=)"
        )
    if absent := [key for key in ("spec", "base_fingerprints", "tensors") if not isinstance(manifest.get(key), dict)]:
        raise CheckpointError(f"{path} has no {absent}; use another checkpoint")
    return manifest


def verified_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a checkpoint whose tensors are those that were written; raises CheckpointError."""
    return _read(Path(folder))[0]


def read_spec(folder: str | os.PathLike[str]) -> ModelSpec:
    """The description of the checkpoint's model."""
    return _spec_of(read_manifest(folder), folder)


def _spec_of(manifest: Mapping[str, Any], folder: str | os.PathLike[str]) -> ModelSpec:
    try:
        return ModelSpec.from_dict(manifest["spec"])
    except (KeyError, TypeError, AttributeError) as error:
        path = Path(folder) / TRAINED_MANIFEST
        raise CheckpointError(f"{path}: spec is not that of a model ({error!r}); use another checkpoint") from error


def load_trained(
    folder: str | os.PathLike[str],
    *,
    base_models: Mapping[str, str] | None = None,
    load_encoders: bool = True,
    llm_dtype: str | None = None,
    llm_quantization: str | None = None,
) -> tuple[AffectGPTForConditionalGeneration, AffectGPTProcessor]:
    """Build the model of a trained-only folder and load its trained tensors; returns it in eval mode.

    Args:
        base_models: "llm" or modality -> folder or id of base models that were moved since training.
        load_encoders: False to run from cached states.
        llm_dtype: precision of the LLM; None = as in training.
        llm_quantization: quantization of the LLM; "none" = not quantized, None = as in training. An LLM that was
            trained cannot be quantized.

    Raises:
        CheckpointError: a base model changed, or a tensor is missing, unexpected or of another shape.
        NotFound: a base model is missing.
    """
    manifest = read_manifest(folder)
    spec = _spec_of(manifest, folder)
    spec = respecified(spec, base_models, llm_dtype, llm_quantization)
    for part, base in {"llm": spec.llm, **spec.encoders}.items():
        expected, found = manifest["base_fingerprints"].get(part, ""), bases.fingerprint(base.path, part, base.revision)
        if found != expected:
            raise CheckpointError(
                f"{folder}: base model {part} at {base.path!r} is not the one used in training (found {found[:20]}, "
                f"expected {expected[:20]}); restore it, or give its location with base_models={{{part!r}: ...}}"
            )
    model, processor = build(spec, load_encoders=load_encoders)
    load_trained_tensors(model, folder)
    return model.eval(), processor


def respecified(
    spec: ModelSpec, base_models: Mapping[str, str] | None, llm_dtype: str | None, llm_quantization: str | None
) -> ModelSpec:
    """`spec` with moved base models and another precision of the LLM; for the arguments see `load_trained`."""
    if unknown := sorted(set(base_models or {}) - {"llm", *spec.encoders}):
        raise CheckpointError(f"base_models {unknown} are unknown; expected some of {['llm', *spec.encoders]}")
    for part, name in (base_models or {}).items():
        if part == "llm":
            spec = replace(spec, llm=replace(spec.llm, path=name, revision=None))
        else:
            moved = replace(spec.encoders[part], path=name, revision=None)
            spec = replace(spec, encoders={**spec.encoders, part: moved})
    if llm_dtype is not None:
        spec = replace(spec, llm=replace(spec.llm, dtype=llm_dtype))
    if llm_quantization is not None:
        quantization = None if llm_quantization == "none" else llm_quantization
        spec = replace(spec, llm=replace(spec.llm, quantization=quantization))
    return spec


def load_trained_tensors(
    model: AffectGPTForConditionalGeneration, folder: str | os.PathLike[str], *, parts: Iterable[str] | None = None
) -> None:
    """Copy a checkpoint's tensors into a built model, all or none.

    Args:
        parts: None requires exactly the model's trained tensors; ["projectors"] requires exactly those of the
            projectors and leaves the others unchanged, such as LoRA that this stage adds.

    Raises:
        CheckpointError: lists the missing and unexpected tensors and those of another shape, or names the base model
            or file that differs, or the tensors that are not finite.
    """
    manifest, stored = _read(Path(folder))
    for part, found in model.config.base_fingerprints.items():
        expected = manifest["base_fingerprints"].get(part, found)
        if found != expected:
            raise CheckpointError(
                f"{folder}: it was trained on another base model {part} (found {found[:20]}, expected {expected[:20]})"
            )
    before = model.config.tuned
    model.config.tuned = sorted({*before, *_tuned(model, stored, parts)})
    try:
        own = trained_tensors(model, parts)
        stored = _checked(model, folder, manifest, stored, own, parts)
    except BaseException:
        model.config.tuned = before
        raise
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])
    model.encoder_sums = dict(manifest.get("encoder_sums", {}))


def _tuned(model: AffectGPTForConditionalGeneration, stored: Iterable[str], parts: Iterable[str] | None) -> list[str]:
    """The names of tensors of the model's base models among `stored`, or only of those of `parts`."""
    of_base = {name for part, tensors in model.parts().items() if is_of_base(part) for name in tensors}
    absent = tuple(f"encoders.{name}." for name in set(model.modalities) - model.every_encoder().keys())
    chosen = [name for name in stored if parts is None or part_of(name) in parts]
    return [name for name in chosen if name in of_base or (absent and is_of_base(part_of(name)))]


def _checked(
    model: AffectGPTForConditionalGeneration,
    folder: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    stored: dict[str, Tensor],
    own: Mapping[str, Tensor],
    parts: Iterable[str] | None,
) -> dict[str, Tensor]:
    """Those of the stored tensors that are loaded; raises CheckpointError unless they are exactly `own`."""
    if set(stored) != set(manifest["tensors"]):
        raise CheckpointError(
            f"{folder}: {TENSORS_NAME} and {TRAINED_MANIFEST} list different tensors "
            f"({sorted(set(stored) ^ set(manifest['tensors']))[:5]}); the folder mixes two checkpoints"
        )
    if parts is not None:
        chosen = {part_of(name) for name in own}
        stored = {name: tensor for name, tensor in stored.items() if part_of(name) in chosen}
    if absent := set(model.modalities) - model.every_encoder().keys():  # a model that was built without them
        stored = {name: t for name, t in stored.items() if not name.startswith(tuple(f"encoders.{m}." for m in absent))}
    if packed := [name for name, tensor in own.items() if not tensor.is_floating_point()]:
        raise CheckpointError(
            f"{folder}: the LLM was trained ({packed[0]} ...), so it cannot be loaded into a quantized one; turn "
            "quantization off (null in training, none in inference)"
        )
    adapters = {part for names in (stored, own) for name in names if (part := part_of(name)).endswith("lora")}
    for part in sorted(adapters & {part_of(name) for name in stored} & {part_of(name) for name in own}):
        _check_adapters(folder, part, *(_lora_of(spec, part) for spec in (manifest["spec"], model.config.spec or {})))
    missing, unexpected = sorted(set(own) - set(stored)), sorted(set(stored) - set(own))
    shapes = [
        f"{name} {list(stored[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(set(own) & set(stored))
        if stored[name].shape != own[name].shape
    ]
    only_lora_is_missing = missing and not unexpected and not shapes and all(".lora_" in name for name in missing)
    differences = {"missing": missing, "not in the model": unexpected, "of another shape": shapes}
    if any(differences.values()):
        raise CheckpointError(
            f"{folder} does not match this model: "
            + "; ".join(
                f"{len(names)} {kind}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
                for kind, names in differences.items()
                if names
            )
            + ("; it was trained without LoRA: parts=['projectors'] loads the rest" if only_lora_is_missing else "")
        )
    return stored


def _lora_of(spec: Mapping[str, Any], part: str) -> LoraConfig | None:
    """The settings of the adapters of a part in a stored spec."""
    fields = spec.get("lora") if part == "lora" else spec.get("encoders", {}).get(part.split(".")[1], {}).get("lora")
    return LoraConfig(**fields) if fields else None


def _check_adapters(
    folder: str | os.PathLike[str], part: str, theirs: LoraConfig | None, mine: LoraConfig | None
) -> None:
    """Refuse adapters that would have another scale, or be of another variant, with the same tensors."""
    if theirs is None or mine is None:
        return
    setting = "model.llm.lora" if part == "lora" else f"model.{part}"
    for name in ("alpha", "use_dora", "use_rslora"):
        was, now = (str(getattr(each, name)).lower() for each in (theirs, mine))
        if was != now:
            raise CheckpointError(
                f"{folder}: its adapters were trained with {name}={was}, this model has {now}; "
                f"set {setting}.{name}={was}"
            )
    if theirs.dropout != mine.dropout:  # of training alone: it does not change what the adapters compute
        log.info("%s: %s.dropout was %g, and is %g from now on", folder, setting, theirs.dropout, mine.dropout)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors that belong together, also if `best` is replaced at this moment."""
    while True:
        manifest = read_manifest(folder)
        expected = manifest.get("sha256", {}).get(TENSORS_NAME)
        if expected is None:
            log.warning("%s is of an older version: nothing shows whether its tensors have changed", folder)
        try:
            return manifest, read_tensors(folder / TENSORS_NAME, sha256=expected)
        except CheckpointError:
            if read_manifest(folder) == manifest:
                raise


def differing_tensors(folder: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not bit-identical in the checkpoint and in `tensors`, or are only in one of them."""
    stored = read_tensors(Path(folder) / TENSORS_NAME)
    return sorted(
        name
        for name in set(stored) | set(tensors)
        if name not in stored or name not in tensors or not torch.equal(stored[name], tensors[name].cpu())
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def read_tensors(path: Path, advice: str = "use another checkpoint", *, sha256: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Args:
        sha256: the checksum that the file must have; the bytes that are compared are those that are loaded.

    Raises:
        CheckpointError: the file cannot be read, has another checksum, or holds NaN or infinity; ends with `advice`.
    """
    try:
        data = path.read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(f"{path} has changed since it was written; {advice}")
        tensors = safetensors.torch.load(data)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch does not have
        raise CheckpointError(f"{path} cannot be read ({error}); {advice}") from error
    check_finite(tensors, path)
    return tensors
