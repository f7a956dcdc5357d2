"""The conversion: recognise files, assemble and write the outputs, and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.convert.files import ConvertError, open_weights, write_safetensors
from affectgpt.convert.images import eva, eva_qformer, eva_video
from affectgpt.convert.outputs import Output, Source
from affectgpt.convert.parts import Recognised, recognise
from affectgpt.convert.trained import MINIGPT_IMAGE_SIZE, lora, projectors
from affectgpt.journal.locks import held
from affectgpt.models.integrity import write_sums
from affectgpt.runtime import folder_at_once, write_json_atomic

REPORT = "report.json"


def convert(
    paths: Sequence[Path], folder: Path, *, image_size: int | None = None, visual: str = "face"
) -> dict[str, Any]:
    """Convert published files to the new folder `folder`; returns the contents of its `report.json`.

    Incomplete outputs are not written, only reported; `report["complete"]` is true if all outputs are complete and no
    tensor is unexpected. If no output is complete, no folder is made. Only a complete conversion replaces what `folder`
    holds.

    Args:
        image_size: as in `outputs_of`.
        visual: as in `recognise`.

    Raises:
        ConvertError: a file cannot be read or is not recognised, two files contain the same part, or an incomplete
            conversion would replace what `folder` holds.
    """
    files = [recognise(open_weights(path), visual) for path in paths]
    outputs = outputs_of(files, image_size=image_size)
    report: dict[str, Any] = {
        "format": 1,
        "files": [
            {
                "path": str(file.weights.path),
                "sha256": file.weights.sha256,
                "bytes": file.weights.path.stat().st_size,
                "recognised": [part.title for part in file.parts],
                "taken": len(file.taken),
                "dropped": file.dropped,
                "unexpected": file.unexpected,
                "remarks": file.weights.remarks,
            }
            for file in files
        ],
        "outputs": [
            {
                "name": output.name,
                "complete": output.is_complete,
                "tensors": len(output.entries),
                "missing": output.missing,
                "misshapen": output.misshapen,
                "needs": output.needs,
            }
            for output in outputs
        ],
        "complete": all(output.is_complete for output in outputs) and not any(file.unexpected for file in files),
    }
    if not any(output.is_complete for output in outputs):
        return report
    if not report["complete"] and folder.is_dir() and any(folder.iterdir()):
        raise ConvertError(
            f"{folder} is left as it was, because the new conversion is incomplete: {'; '.join(_lacks(report))}. Give "
            "all files in one command, or name another folder with out="
        )
    what = f"another conversion to {folder} is running"
    with held(folder.with_name(f".{folder.name}.lock"), what=what), folder_at_once(folder) as target:
        for output in outputs:
            if output.is_complete:
                _write(output, target)
        for weights in {(target / output.weights).parent for output in outputs if output.is_complete} - {target}:
            write_sums(weights)  # each can be used, and moved, alone
        write_json_atomic(target / REPORT, report)
        write_sums(target)
    return report


def _lacks(report: Mapping[str, Any]) -> list[str]:
    """What keeps a conversion from being complete."""
    parts = [(output["name"], what, output[what]) for output in report["outputs"] for what in ("missing", "misshapen")]
    parts += [(file["path"], "unexpected", file["unexpected"]) for file in report["files"]]
    return [
        *(f"{output['name']} needs {need}" for output in report["outputs"] for need in output["needs"]),
        *(f"{name} has {len(names)} {what} tensors ({names[0]} ...)" for name, what, names in parts if names),
    ]


def outputs_of(files: Sequence[Recognised], *, image_size: int | None = None) -> list[Output]:
    """The outputs of the files together.

    Args:
        image_size: input size of the image encoder in pixels; None = as in the file, or 448 with MiniGPT-v2's parts.

    Raises:
        ConvertError: two files contain the same part.
    """
    sources: dict[str, Source] = {}
    by_part: dict[str, Recognised] = {}
    for file in files:
        for part in file.parts:
            if part.name in by_part:
                raise ConvertError(
                    f"{by_part[part.name].weights.path} and {file.weights.path} both contain: {part.title}; give one"
                )
            by_part[part.name] = file
        for ours, theirs in file.taken.items():
            if ours in sources and not ours.startswith("vision_model.post_layernorm"):
                raise ConvertError(
                    f"{sources[ours][0].path} and {file.weights.path} both contain {ours}; convert them separately"
                )
            sources.setdefault(ours, (file.weights, theirs))
    results = []
    if "blip2" in by_part or ("eva" in by_part and "views" not in by_part):
        results.append(eva_qformer(sources, by_part, image_size))
    if "eva" in by_part and "views" in by_part:
        results.append(eva(sources, by_part, image_size or MINIGPT_IMAGE_SIZE))
        if "fusion" in by_part:
            results.append(eva_video(by_part))
    if any(name.startswith("projectors.") for name in sources):
        results.append(projectors(sources, by_part))
    if "lora" in by_part:
        results.append(lora(sources, by_part))
    return results


def _write(output: Output, target: Path) -> None:
    path = target / output.weights
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, output.entries)
    for name, value in output.settings.items():
        write_json_atomic(path.parent / name, value)
