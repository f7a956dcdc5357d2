"""python -m affectgpt.runs: all runs of a folder with stage, data, model, status, best score, steps and date."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affectgpt.config import RunsConfig
from affectgpt.journal.locks import is_owned
from affectgpt.runs import RECORD, RunRecord, is_checkpoint_name
from affectgpt.runs.watch import read_metrics
from affectgpt.runtime import InputError, NotFound
from affectgpt.tables import format_table

STATES = ("running", "finished", "stopped", "failed", "unfinished", "unreadable")
"""`unfinished`: a training run whose process was killed; its record still says "running", but no living process holds
the run. Other commands do not hold their folder, so a killed one stays "running". `unreadable`: the record cannot be
read."""
_DEPTH = 4  # of folders below the folder of runs: runs/<study>/<run>/<evaluation>


@dataclass(frozen=True)
class RunSummary:
    """One folder with a run record.

    Attributes:
        name: its path below the folder of runs.
        kind: "train", "eval", "benchmark", "annotate" or "zeroshot"; stage: of a training run.
        data, model: names of the configurations; of an evaluation, `model` is the checkpoint or the predictions file.
        score: a fraction of 1: of a training run its best F_S by validation, of an evaluation its F_S, of a benchmark
            the score of the benchmark; None = not known yet. score_of: "validation", "test", or the benchmark.
        n: clips that the score of an evaluation is of.
        steps, planned_steps: of a training run.
        started, ended: ISO 8601 with time zone; duration_s: of the last process.
        init_from: the checkpoint that a training run started from.
        problem: why the record is unreadable.
    """

    name: str
    folder: str
    kind: str
    status: str
    stage: str | None = None
    data: str | None = None
    model: str | None = None
    score: float | None = None
    score_of: str | None = None
    n: int | None = None
    steps: int | None = None
    planned_steps: int | None = None
    started: str | None = None
    ended: str | None = None
    duration_s: float | None = None
    init_from: str | None = None
    problem: str | None = None


def list_runs(runs: Path) -> list[RunSummary]:
    """Every run at or below `runs`, by the time of its start; an evaluation in the folder of a run follows that run.

    Raises:
        NotFound: there is no such folder.
    """
    if not runs.is_dir():
        raise NotFound(f"{runs} is no folder; name the folder of the runs: python -m affectgpt.runs path/to/runs")
    found = {folder: summary(folder, runs) for folder in _folders(runs, 0)}

    def place(folder: Path) -> tuple[str, ...]:
        """Start and name of each enclosing run and of the run itself."""
        chain = [above for above in (*reversed(folder.parents), folder) if above in found]
        return tuple(text for above in chain for text in (found[above].started or "", found[above].name))

    return [found[folder] for folder in sorted(found, key=place)]


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RECORD).is_file():
        yield folder
    if depth < _DEPTH:
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except OSError:  # removed in the meantime, or not ours to read
            return
        for name in names:
            if not name.startswith(".") and name != "generations" and not is_checkpoint_name(name):
                yield from _folders(folder / name, depth + 1)


def summary(folder: Path, runs: Path | None = None) -> RunSummary:
    """What the record of a run says, and metrics.jsonl where training has not ended."""
    name = folder.name if runs is None or folder == runs else folder.relative_to(runs).as_posix()
    try:
        record = RunRecord.read(folder)
        if record is None:
            raise InputError(f"{folder} has no {RECORD}")
        return _summary(name, folder, record.values)
    except InputError as error:
        return RunSummary(name, str(folder), "unknown", "unreadable", problem=str(error))


def _summary(name: str, folder: Path, values: Mapping[str, Any]) -> RunSummary:
    kind, _, stage = str(values["kind"]).partition(" ")
    config = _mapping(values.get("config"))
    status = str(values["status"])
    if kind == "train" and status == "running" and not is_owned(folder / ".lock"):
        status = "unfinished"
    facts = _training(folder, values, _mapping(config.get("stage"))) if kind == "train" else _scoring(values, kind)
    model = _mapping(config.get("model")).get("name")
    if kind in ("eval", "benchmark"):
        model = config.get("checkpoint") or config.get("predictions")
    elif model is None:
        model = config.get("model")
    references = config.get("references")
    data = Path(str(references)).name if references else _mapping(config.get("data")).get("name")
    return RunSummary(
        name,
        str(folder),
        kind,
        status,
        stage=stage or None,
        data=_text(data) or _text(_mapping(config.get("benchmark")).get("name")),
        model=_text(", ".join(map(str, model)) if isinstance(model, list) else model),
        started=_text(values.get("started")),
        ended=_text(values.get("ended")),
        duration_s=_number(values.get("duration_s")),
        init_from=_text(values.get("init_from")),
        **facts,
    )


def _training(folder: Path, values: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    best, steps = _number(values.get("best_validation_score")), _number(values.get("steps"))
    if best is None or steps is None:
        rows = read_metrics(folder)
        scores = [row["eval_score"] for row in rows if "eval_score" in row]
        best = max(scores, default=None) if best is None else best
        steps = rows[-1]["step"] if rows and steps is None else steps
    planned = [_number(stage.get(name)) for name in ("epochs", "iterations_per_epoch")]
    return {
        "score": best,
        "score_of": None if best is None else "validation",
        "steps": None if steps is None else int(steps),
        "planned_steps": int(planned[0] * planned[1]) if planned[0] and planned[1] else None,
    }


def _scoring(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    score = _number(values.get("value" if kind == "benchmark" else "f_s"))
    n = _number(values.get("n"))
    return {
        "score": score,
        "score_of": None if score is None else _text(values.get("benchmark")) or "test",
        "n": None if n is None else int(n),
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return str(value) if value not in (None, "") else None


def table(summaries: Sequence[RunSummary]) -> str:
    """The runs as text; scores in percent."""
    rows = [("run", "stage", "data", "model", "status", "score", "", "steps", "started")]
    for run in summaries:
        planned = "" if run.planned_steps in (None, run.steps) else f"/{run.planned_steps}"
        rows.append(
            (
                run.name,
                run.stage or run.kind,
                run.data or "-",
                _short(run.model or "-"),
                run.status,
                "-" if run.score is None else f"{100 * run.score:.2f}",
                "" if run.score_of is None else run.score_of + ("" if run.n is None else f", n = {run.n}"),
                "" if run.steps is None else f"{run.steps}{planned}",
                (run.started or "-")[:16].replace("T", " "),
            )
        )
    lines = [format_table(rows, "lllllrlrl")]
    lines += [f"{run.name}: {run.problem}" for run in summaries if run.problem]
    return "\n".join(lines)


def _short(text: str, width: int = 32) -> str:
    """The end of a long path, which tells checkpoints apart."""
    return text if len(text) <= width else "…" + text[1 - width :]


def run(config: RunsConfig) -> int:
    """Print the list of runs."""
    found = list_runs(Path(config.folder))
    if config.status is not None:
        if config.status not in STATES:
            raise InputError(f"status={config.status}: expected one of {list(STATES)}")
        found = [item for item in found if item.status == config.status]
    if config.json:
        print(json.dumps([asdict(item) for item in found], indent=2, ensure_ascii=False))
    else:
        print(table(found) if found else f"{config.folder} has no runs" + (" of this status" if config.status else ""))
    return 0
