"""Everything that needs a GPU: python benchmarks/gpu.py [--out gpu.md] [--only tests train generate rollouts lora]

Runs the tests marked `gpu` (attention over samples of unequal length, compiled layers, 4-bit LLM, rollouts, dropout of
LoRA) and the benchmarks on the first GPU, and writes one table with the GPU's name to a file. `make gpu` calls it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
BF16 = ["--dtype", "bfloat16", "--device", "cuda"]
COMMANDS: Mapping[str, list[str]] = {
    "tests": ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"],
    "train": [str(HERE / "train_gpu.py"), "model=affectgpt"],
    "generate": [str(HERE / "generate.py"), *BF16, "--batch-sizes", "1", "16", "64"],
    "rollouts": [str(HERE / "rollouts.py"), *BF16, "--prompts", "16"],
    "lora": [str(HERE / "lora.py"), "--device", "cuda"],
}

Row = tuple[str, str]


def rows_of(name: str, figures: Any, output: str, code: int) -> list[Row]:
    """The lines of the table for one command."""
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    if code:
        return [(name, f"failed with exit code {code}: {last}")]
    if name == "generate":
        return [(f"{row['name']}, batch {row['batch']}", f"{row['tokens_s']:.0f} tokens/s") for row in figures["rows"]]
    if name == "rollouts":
        return [(row["name"], f"{row['answers_s']:.1f} answers/s") for row in figures["rows"]]
    if name == "lora":
        return [
            (f"LoRA, {row['dtype']}, {row['adapters']}, dropout {row['dropout']}", f"{row['samples_s']:.1f} samples/s")
            for row in figures["rows"]
        ]
    if name == "train":  # it prints a table of its own
        return [("training step", line.strip()) for line in output.splitlines() if line.strip()]
    return [(name, last)]


def table(device: str, rows: list[Row]) -> str:
    lines = [f"# {device}, torch {torch.__version__}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)])


def main(run: Callable[..., Any] = subprocess.run) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="file of the table")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "make gpu needs an NVIDIA GPU that torch can use, and torch.cuda.is_available() is False; check nvidia-smi "
            "and that torch is not the CPU build. Without one, use make test",
            file=sys.stderr,
        )
        return 1
    path = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    rows: list[Row] = []
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            out = Path(scratch) / f"{name}.json"
            writes = name not in ("tests", "train")
            command = [sys.executable, *COMMANDS[name], *(["--json", str(out)] if writes else [])]
            print(f"\n---- {' '.join(command[1:])}", flush=True)
            done = run(command, env={**os.environ, "PYTHONPATH": path}, cwd=HERE.parent, capture_output=True, text=True)
            print(done.stdout + done.stderr, flush=True)
            figures = json.loads(out.read_text(encoding="utf-8")) if out.exists() else None
            failed |= done.returncode != 0
            rows += rows_of(name, figures, done.stdout, done.returncode)
    options.out.write_text(table(torch.cuda.get_device_name(0), rows) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
