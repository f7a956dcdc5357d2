"""Train and score the embedded demo, in minutes on two CPU cores: python -m affectgpt.demo [--brief] [--runs DIR]

Draws the fine clips, unpacks the small base models, trains fine alone, explains one clip, draws the coarse clips,
trains coarse, and fine after coarse, scores each checkpoint and two baselines on the test split, and asks the last one
again with every subset of the inputs.
It runs the same code as train.py, eval.py and infer.py.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt.config import DemoConfig
from affectgpt.inference import counterfactual
from affectgpt.inference.evaluate import evaluate_config
from affectgpt.inference.infer import format_prediction
from affectgpt.metrics import Report
from affectgpt.runtime import log, n_cores, quiet_libraries, write_json_atomic
from affectgpt.spread import Processes
from affectgpt.tables import format_table

BRIEF = {
    "coarse": ["stage.epochs=1", "stage.iterations_per_epoch=40", "stage.validate_every=40", "stage.save_every=20"],
    "fine": ["stage.epochs=1", "stage.iterations_per_epoch=20", "stage.validate_every=20", "stage.save_every=20"],
}
"""Overrides for a smoke test: everything runs, the scores mean nothing."""
BOTH_STAGES = "coarse, then fine"
_GENERATE = ("generate.batch_size=66", "generate.max_new_tokens=128")


Compose = Callable[..., Any]
"""`affectgpt.cli.compose`: (command, overrides) -> configuration."""


def run(config: DemoConfig, compose: Compose) -> int:
    from affectgpt.demo.models import in_one_thread, store_base_models

    if config.bases is not None:
        store_base_models(Path(config.bases))
        return 0
    start = time.monotonic()
    runs = Path(config.runs)
    fine_only, coarse, fine = train_all(runs, compose, brief=config.brief)
    log.info("\n=== score all models, and ask the last one again with every subset of its inputs")
    jobs = [
        partial(measured, fine, compose),  # the longest first
        partial(scored, "before training", untrained(runs / "untrained", compose), compose),
        partial(scored, "coarse only", coarse, compose),
        partial(scored, "fine only", fine_only, compose),
        partial(scored, BOTH_STAGES, fine, compose),
        partial(scored, "  sound alone", fine, compose, "modalities=[audio]", "use_subtitle=false"),
        partial(scored, "  pictures alone", fine, compose, "modalities=[frames,motion]", "use_subtitle=false"),
        partial(scored, "  subtitle alone", fine, compose, "modalities=[]"),
    ]
    # Generation for a small model uses one core: two of these jobs run at once.
    faithful, *rows = Processes(min(2, n_cores())).map(in_one_thread, jobs)
    rows = [("heuristic: random", random_report(compose)), *rows]
    print(f"\n{table(rows)}\n\n{counterfactual.table(faithful)}\n")
    print(explain_one(fine, compose))
    write_json_atomic(runs / "demo-table.json", {title: report.primary.to_dict() for title, report in rows})
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes; runs and demo-table.json are in {runs}", file=sys.stderr)
    return 0


def train_all(runs: Path, compose: Compose, *, brief: bool) -> list[Path]:
    """Train, and explain a clip as soon as a model can; returns the runs fine alone, coarse, and fine after coarse."""
    from affectgpt.training.stages import run_stage

    def train(name: str, stage: str, init_from: str) -> Path:
        log.info("\n=== train %s", name)
        given = [f"stage={stage}", f"name={name}", f"stage.init_from={init_from}", f"paths.runs={runs}", *_GENERATE]
        return run_stage(compose("train", given + (BRIEF[stage] if brief else []))).run

    fine_only = train("fine-only", "fine", "null")
    print(f"\nThe first explanation, after fine alone:\n\n{explain_one(fine_only, compose)}", flush=True)
    coarse = train("coarse", "coarse", "null")
    return [fine_only, coarse, train("fine", "fine", str(coarse))]


def scored(title: str, checkpoint: Path, compose: Compose, *given: str) -> tuple[str, Report]:
    """A row of the table."""
    out = checkpoint / f"eval-{_slug(title)}"  # inside the run, so that demos do not share it
    config = compose("eval", [f"checkpoint={checkpoint}", f"out={out}", *_GENERATE, *given])
    return title, evaluate_config(config)[0]


def measured(checkpoint: Path, compose: Compose) -> dict[str, Any]:
    """The faithfulness of a checkpoint."""
    config = compose("eval", [f"checkpoint={checkpoint}", f"out={checkpoint / 'faithfulness'}", *_GENERATE])
    return counterfactual.measure(config)[0]


def untrained(folder: Path, compose: Compose) -> Path:
    """Save a checkpoint of the untrained model."""
    from affectgpt.models import build, model_spec
    from affectgpt.models.checkpoint import save_trained

    quiet_libraries()
    config = compose("train", ["stage=coarse"])
    save_trained(*build(model_spec(config.model, config.seed)), folder)
    return folder


def random_report(compose: Compose) -> Report:
    """The papers' baseline Random: one of six basic emotions drawn for each test sample."""
    from affectgpt.metrics import evaluate, random_labels, read_references

    source = compose("eval").data.test[0]
    references = read_references(source.manifest, split=source.split)
    return evaluate(random_labels(references), references)


def table(rows: Sequence[tuple[str, Report]]) -> str:
    """F_S, precision and recall in percent (level-1 mean over the five wheels), n, and the 95 % interval of F_S."""
    rows_of_text = [("test split".ljust(20), "  F_S", "precision", " recall", "   n", " 95 % interval of F_S")]
    for title, report in rows:
        score = report.primary
        interval = score.interval
        shown = f" {100 * interval.low:5.1f} to {100 * interval.high:.1f}" if interval else ""
        figures = (f"{100 * value:.1f}" for value in (score.f_score, score.precision, score.recall))
        rows_of_text.append((title, *figures, str(score.n), shown))
    return format_table(rows_of_text, "lrrrrl")


def _slug(title: str) -> str:
    return title.strip().replace(" ", "-").replace(",", "")


def explain_one(run: Path, compose: Compose) -> str:
    """The first test clip: explanation by the model of a run, reference labels and description."""
    from affectgpt.data.sources import read_manifest
    from affectgpt.inference.loading import load

    source = compose("eval").data.test[0]
    sample = read_manifest(source.manifest, split=source.split)[0][0]
    answer = load(str(run), run.parent).ask(sample)
    wrapped = textwrap.fill(sample.description or "", 100, initial_indent="  ", subsequent_indent="  ")
    truth = f"  truth:  {', '.join(sample.labels or ())}\n\n{wrapped}"
    again = f"  python infer.py {sample.video} checkpoint={run} subtitle={sample.subtitle!r}"
    return f"One clip, explained: {format_prediction(answer, sample)}\n\n{truth}\n{again}"
