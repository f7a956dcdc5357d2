"""python -m affectgpt.convert: convert checkpoints and print the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.config import ConvertConfig
from affectgpt.runtime import InputError, NotFound, UserError

_SHOWN = 6  # tensor names per line; report.json has all


def report_text(report: Mapping[str, Any], out: Path) -> str:
    """The report as text."""
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


def run(config: ConvertConfig) -> int:
    """Convert, print the report and return the exit code.

    Raises:
        UserError: `out` has contents that must not be replaced.
        ConvertError: a file cannot be used.
    """
    if not config.files or config.out is None:
        raise InputError("name checkpoint files and out=FOLDER; --help shows examples")
    if config.visual not in ("face", "frames"):
        raise InputError(f"visual is {config.visual!r}; expected face or frames")
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not any((out / name).is_file() for name in ("report.json", "gguf.json")):
            raise UserError(f"{out} exists and was not written by a conversion; name another folder with out=")
        if not config.overwrite:
            raise UserError(
                f"{out} contains an earlier conversion; name another folder with out=, or set overwrite=true "
                "to replace it (then give all files in one command)"
            )
    if any(name.endswith(".gguf") for name in config.files):
        if len(config.files) > 1:
            raise InputError(f"a GGUF file is converted alone; found {config.files}")
        if not Path(config.files[0]).is_file():
            raise NotFound(f"the file {config.files[0]} does not exist")
        from affectgpt.convert import gguf

        gguf.convert_gguf(Path(config.files[0]), out)
        print(gguf.report_text(out))
        return 0
    from affectgpt.convert.conversion import convert

    report = convert(list(map(Path, config.files)), out, image_size=config.image_size, visual=config.visual)
    print(report_text(report, out))
    return 0 if report["complete"] else 1
