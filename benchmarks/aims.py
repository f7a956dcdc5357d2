"""Compare all benchmarks with their goals: python benchmarks/aims.py [--threads N] [--only step generate rollouts ...]

Runs the benchmarks one after another at size `brief`, shows their output, and prints a table of goals and measurements.
Each ratio comes from one run of one benchmark, whose rows were measured in turns. Those of step, generate, folder and
loader take about half an hour on two cores; avoid other jobs on the machine (the printed load averages reveal them).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMANDS: Mapping[str, list[str]] = {
    "step": ["step.py", "--batch-size", "8"],
    "generate": ["generate.py", "--rounds", "2", "--batch-sizes", "1", "8", "16", "32"],
    "rollouts": ["rollouts.py"],
    "reward": ["rollouts.py", "--step"],
    "lora": ["lora.py"],
    "folder": ["folder.py", "--rounds", "2"],
    "loader": ["loader.py", "start", "wait", "--clips", "115595"],
}


@dataclass(frozen=True)
class Aim:
    """One line of the table; `measured` computes its value from the figures of `benchmark`."""

    title: str
    benchmark: str
    measured: Callable[[Any], float]
    goal: float
    layout: str = "{:.1f}x"
    at_most: bool = False

    def reached(self, value: float) -> bool:
        return value <= self.goal if self.at_most else value >= self.goal


def tokens_s(figures: Any, name: str, batch: int) -> float:
    return next(row["tokens_s"] for row in figures["rows"] if (row["name"], row["batch"]) == (name, batch))


def generation(name: str, against: str) -> Callable[[Any], float]:
    return lambda figures: tokens_s(figures, name, 16) / tokens_s(figures, against, 1)


def folder(name: str) -> Callable[[Any], float]:
    return lambda figures: figures["rows"][name]["clips_s"] / figures["rows"]["one by one, online"]["clips_s"]


def step(name: str) -> Callable[[Any], float]:
    return lambda figures: figures["rows"][name]["ratio"]


def rollouts(figures: Any) -> float:
    transformers, *_, engine = (row["answers_s"] for row in figures["rows"])
    return engine / transformers


def reward(figures: Any) -> float:
    return figures["seconds"]["reward step"] / figures["seconds"]["rollout + supervised step"]


def dropout(dtype: str) -> Callable[[Any], float]:
    def cost(figures: Any) -> float:
        rows = [row for row in figures["rows"] if (row["adapters"], row["dtype"]) == ("fused", dtype)]
        without, with_dropout = (row["samples_s"] for row in rows)
        return without / with_dropout - 1

    return cost


AIMS = (
    Aim("training step, fp32, against online and padded", "step", step("+ loss in chunks"), 8),
    Aim("the same with a bf16 LLM", "step", step("+ bf16 LLM"), 16),
    Aim("LoRA, fp32", "step", step("LoRA: all of the above, fp32"), 7),
    Aim("LLM's share of the fp32 peak", "step", lambda f: f["llm_share_of_peak"]["fp32"], 0.85, "{:.0%}"),
    Aim("generation, batch 16 against transformers at 1", "generate", generation("own loop", "transformers"), 4.5),
    Aim("the same, compiled", "generate", generation("compiled", "transformers"), 4.5),
    Aim("own batch 16 against own batch 1", "generate", generation("own loop", "own loop"), 4.5),
    Aim("rollouts, batch 64 against num_return_sequences=8", "rollouts", rollouts, 5),
    Aim("reward step against rollout + supervised step", "reward", reward, 1.5, at_most=True),
    Aim("dropout of LoRA, fp32", "lora", dropout("float32"), 0.1, "{:.0%}", True),
    Aim("dropout of LoRA, bf16", "lora", dropout("bfloat16"), 0.1, "{:.0%}", True),
    Aim("folder, batch 32 and cached, against one by one", "folder", folder("batch 32, cached"), 12),
    Aim("the same, compiled", "folder", folder("batch 32, cached, compiled"), 12),
    Aim("cached epoch, waiting for data", "loader", lambda f: f["wait"]["cached, later steps"], 0.02, "{:.1%}", True),
    Aim("115,595 clips to the first step", "loader", lambda f: f["start"]["first step"], 10, "{:.1f} s", True),
    Aim("train.py --help", "loader", lambda f: f["start"]["--help"], 1, "{:.2f} s", True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            script, *arguments = COMMANDS[name]
            out = Path(scratch) / f"{name}.json"
            threads = [] if name == "loader" else ["--threads", str(options.threads)]
            print(f"\n---- {script} {' '.join(arguments)}", flush=True)
            path = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            subprocess.run(
                [sys.executable, str(HERE / script), *arguments, *threads, "--json", str(out)],
                env={**os.environ, "PYTHONPATH": path},
                check=True,
            )
            figures[name] = json.loads(out.read_text(encoding="utf-8"))
    print(f"\n{'aim':<50}{'goal':>9}{'measured':>10}")
    for aim in AIMS:
        if aim.benchmark in figures:
            value = aim.measured(figures[aim.benchmark])
            sign = "< " if aim.at_most else "> "
            verdict = "" if aim.reached(value) else "  missed"
            print(f"{aim.title:<50}{sign + aim.layout.format(aim.goal):>9}{aim.layout.format(value):>10}{verdict}")


if __name__ == "__main__":
    main()
