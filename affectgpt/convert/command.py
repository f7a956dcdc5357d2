"""Turn published checkpoints into base models and projections of this package:

python -m affectgpt.convert video_llama_v.pth video_llama_a.pth blip2.pth eva_vit_g.pth out=base/

Any of these files, in any order: each is recognised by its tensors, never by its name. Below out= come
  eva_qformer/             image encoder and image Q-Former (needs EVA and BLIP-2), a base model for pool: queries
  eva/                     the image encoder as MiniGPT-v2 and Emotion-LLaMA run it (needs EVA and one of them)
  projectors.safetensors   projections of the branches, for model.init=pretrained model.init_from=base/
  lora/                    adapters of the LLM in the layout of peft
  report.json              what was taken, left out on purpose, missing and unexpected

image_size=448    pixels of the image encoder; position embeddings are interpolated
visual=frames     AffectGPT (2025): what its visual branch was trained on, face (default) or frames
overwrite=true    replace an earlier conversion in out=

Exit code 0 only if nothing is missing or unexpected, 1 if something is, 2 if a file cannot be used at all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.runtime import UserError

_OPTIONS = ("out", "image_size", "visual", "overwrite")
_SHOWN = 6  # names of tensors in a line; report.json has all


def report_text(report: Mapping[str, Any], out: Path) -> str:
    """The report for people."""
    lines = []
    for file in report["files"]:
        lines.append(f"{file['path']}  ({file['bytes'] / 1e6:,.1f} MB, sha256 {file['sha256'][:12]})")
        lines += [f"  is    {title}" for title in file["recognised"]]
        lines.append(f"  took  {file['taken']} tensors")
        lines += [f"  left  {len(names)}: {reason} ({_some(names)})" for reason, names in file["dropped"].items()]
        if file["unexpected"]:
            lines.append(f"  UNEXPECTED  {len(file['unexpected'])}: {_some(file['unexpected'])}")
        lines += [f"  note  {remark}" for remark in file["remarks"]]
    for output in report["outputs"]:
        if output["complete"]:
            lines.append(f"{out / output['name']}: {output['tensors']} tensors, complete")
            continue
        lines.append(f"{out / output['name']}: NOT WRITTEN")
        lines += [f"  needs {need}" for need in output["needs"]]
        for what in ("missing", "misshapen"):
            if output[what]:
                lines.append(f"  {what}  {len(output[what])}: {_some(output[what])}")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def run(files: Sequence[Path], out: Path, *, image_size: int | None, visual: str, overwrite: bool) -> int:
    """Convert, print the report and return the exit code.

    Raises:
        UserError: `out` holds something that may not be replaced.
        affectgpt.convert.ConvertError: a file cannot be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / "report.json").is_file():
            raise UserError(f"{out} exists and was not written by a conversion; name another folder with out=")
        if not overwrite:
            raise UserError(
                f"{out} holds an earlier conversion; name another folder with out=, or replace it with overwrite=true "
                "(give all files in one command then)"
            )
    from affectgpt.convert import convert

    report = convert(files, out, image_size=image_size, visual=visual)
    print(report_text(report, out))
    return 0 if report["complete"] else 1


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = dict(item.split("=", 1) for item in arguments if "=" in item and not Path(item).exists())
    files = [Path(item) for item in arguments if "=" not in item or Path(item).exists()]
    if {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    size = options.get("image_size", "")
    if (
        not files
        or "out" not in options
        or set(options) - set(_OPTIONS)
        or not (size == "" or size.isdecimal())
        or options.get("visual", "face") not in ("face", "frames")
        or options.get("overwrite", "false") not in ("true", "false")
    ):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        return run(
            files,
            Path(options["out"]),
            image_size=int(size) if size else None,
            visual=options.get("visual", "face"),
            overwrite=options.get("overwrite") == "true",
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
