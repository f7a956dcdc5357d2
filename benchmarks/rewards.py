"""What learning from rewards changes on the embedded corpus: python benchmarks/rewards.py RUNS [--steps N] [--only ...]

RUNS is the folder that `make demo` filled (its runs coarse and fine are the starts). Every variant starts from one of
them, learns from the rewards of the fine training clips, and answers clips of another corpus, of other people, which no
run has seen. One table, `rewards.json`, and plots in RUNS/rewards. The differences are paired, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectgpt.cli import compose
from affectgpt.demo.corpus import build_corpus
from affectgpt.inference.evaluate import evaluate_config
from affectgpt.metrics import read_predictions, read_references
from affectgpt.metrics.compare import compare
from affectgpt.metrics.faithfulness import absent_modality
from affectgpt.runtime import write_json_atomic
from affectgpt.tables import format_table
from affectgpt.training.rollouts import draw_rollouts
from affectgpt.training.stages import run_stage

HELD_OUT_SEED = 7
# The cold start, the task, and what is learned from it.
VARIANTS: Mapping[str, tuple[str, str, list[str]]] = {
    "wheel": ("fine", "labels", []),
    "wheel, p1": ("fine", "labels", ["stage.objective_options.penalty=p1"]),
    "coarse: wheel": ("coarse", "labels", []),
    "coarse: wheel, p1": ("coarse", "labels", ["stage.objective_options.penalty=p1"]),
    "faithfulness": (
        "fine-complete",
        "both",
        [
            "stage.rewards={faithfulness: 1, wheel: 1, clues: 1, format: 0.1}",
            "stage.objective_options.advantages=each",
            "stage.tasks={both: 1, labels: 0}",
            "stage.batch_size=4",
            "stage.modality_dropout=0.6",
            "stage.subtitle_dropout=0.6",
            "stage.learning_rate=5e-4",
            "stage.min_learning_rate=3e-4",
            "stage.warmup_steps=3",
            "stage.iterations_per_epoch=34",
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    runs, out = given.runs, given.runs / "rewards"
    shared = [f"paths.runs={runs}", f"device={given.device}"]
    corpus = out / "held-out"
    build_corpus(corpus, seed=HELD_OUT_SEED, n_coarse=8)
    start = time.monotonic()
    if not (runs / "fine-complete").exists() and "faithfulness" in given.only:
        # The published targets: a description speaks of all modalities, shown or not.
        run_stage(
            compose("train", [*shared, "stage=fine", "name=fine-complete", f"stage.init_from={runs / 'coarse'}",
                              "stage.targets=complete"])
        )  # fmt: skip
    results: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for name in given.only:
        init, task, settings = VARIANTS[name]
        folder = folder_of(out, name)
        if not (folder / "run.json").exists():
            steps = [
                f"stage.iterations_per_epoch={given.steps}",
                "stage.n_validation=0",
                "stage.init_from=" + str(runs / init),
            ]
            run_stage(
                compose(
                    "train", [f"paths.runs={out}", shared[1], "stage=reward", f"name={folder.name}", *steps, *settings]
                )
            )
        for title, checkpoint in ((init, runs / init), (name, folder)):
            title = f"{title} ({task})"
            if title not in files:
                files[title] = answer(checkpoint, corpus, out / "answers" / title.replace(": ", "-"), task, shared)
                results[title] = describe(files[title])
        results[f"{name} ({task})"] |= difference(files, f"{name} ({task})", f"{init} ({task})", corpus)
    write_json_atomic(out / "rewards.json", results)
    print(table(results))
    draw_rollouts(out / "rewards", {name: folder_of(out, name) for name in given.only})
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes; {out}")


def folder_of(out: Path, name: str) -> Path:
    return out / name.replace(": ", "-").replace(", ", "-")


def answer(checkpoint: Path, corpus: Path, out: Path, task: str, shared: list[str]) -> Path:
    """Answers to the held-out clips with everything shown and, for explanations, with pictures and sound alone."""
    common = [*shared, f"checkpoint={checkpoint}", f"task={task}", f"references={corpus / 'fine.jsonl'}",
              "generate.batch_size=32", f"generate.max_new_tokens={32 if task == 'labels' else 100}"]  # fmt: skip
    shown = {"all": []}
    if task == "both":
        shown |= {"pictures": ["modalities=[frames,motion]"], "sound": ["modalities=[audio]"]}
        shown = {name: [*given, *(["use_subtitle=false"] if given else [])] for name, given in shown.items()}
    for name, settings in shown.items():
        evaluate_config(compose("eval", [*common, f"out={out / name}", *settings]))
    return out


def describe(answers: Path) -> dict[str, Any]:
    rows = read_predictions(answers / "all" / "predictions.jsonl")
    score = json.loads((answers / "all" / "report.json").read_text())["scores"]["level 1 mean"]
    found = {
        "f_s": score["f_score"],
        "precision": score["precision"],
        "recall": score["recall"],
        "n": score["n"],
        "n_labels": sum(len(row.labels or ()) for row in rows) / len(rows),
    }
    parts = [row for name in ("pictures", "sound") if (answers / name).exists()
             for row in read_predictions(answers / name / "predictions.jsonl")]  # fmt: skip
    if parts:
        found["absent_modality"] = absent_modality(parts)["any"].to_dict()
    return found


def difference(files: Mapping[str, Path], name: str, before: str, corpus: Path) -> dict[str, Any]:
    systems = {title: read_predictions(files[title] / "all" / "predictions.jsonl") for title in (name, before)}
    test = compare(systems, read_references(corpus / "fine.jsonl"), n_bootstrap=1000).tests[name, before]
    return {"difference": test.difference, "low": test.interval.low, "high": test.interval.high, "p": test.p_value}


def table(results: Mapping[str, Any]) -> str:
    rows = [("held-out clips", "F_S", "precision", "recall", "labels", "difference of F_S", "absent modality")]
    for name, row in results.items():
        change = absent = ""
        if "difference" in row:
            change = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        if "absent_modality" in row:
            rate = row["absent_modality"]
            absent = f"{100 * rate['value']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
        figures = [f"{100 * row[key]:.1f}" for key in ("f_s", "precision", "recall")]
        rows.append((name, *figures, f"{row['n_labels']:.2f}", change, absent))
    return format_table(rows, "lrrrrll")


if __name__ == "__main__":
    main()
