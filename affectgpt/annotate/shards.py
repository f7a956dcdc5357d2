"""Annotate many clips on many cores or nodes: the clips are split into shards, each shard is a run of its own.

    python -m affectgpt.annotate clips.jsonl out=o engine=processes            # the cores of this machine
    python -m affectgpt.annotate clips.jsonl out=o engine=ray shards=256       # a cluster; `out` on shared storage

The hash of its id (with `speaker`, of its speaker) assigns a clip to a shard, so a clip stays in its shard when the
manifest grows. A shard is an ordinary run in out/shards/<number> with a manifest, records, answers and a log; it can be
resumed. One command at a time runs the shards of `out`. At the end the records are merged, and `out` is as one process
would leave it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from affectgpt.annotate.clips import Clips
from affectgpt.annotate.exporters import write_manifest
from affectgpt.annotate.pipeline import ROLES, loads_models
from affectgpt.annotate.record import record_from_row
from affectgpt.annotate.single import run_single
from affectgpt.annotate.speakers import speaker_of
from affectgpt.annotate.totals import BUDGET, COMPLETE, SOME_FAILED, Totals, format_totals
from affectgpt.config import AnnotateConfig, AnnotatorConfig, FacesConfig, PathsConfig, PipelineConfig, StepConfig
from affectgpt.journal import Journal
from affectgpt.journal.locks import held
from affectgpt.runs import RunRecord
from affectgpt.runtime import (
    UserError,
    json_line,
    n_cores,
    redacted,
    stable_hash,
    write_json_atomic,
    write_lines_atomic,
)
from affectgpt.schema import Sample, to_json
from affectgpt.spread import Ray, Threads, Workers

log = logging.getLogger("affectgpt")

ENGINES = ("processes", "ray")
_JOB, _LOG, _STOP, _BAD = "job.json", "log.txt", "stop", "bad.jsonl"
_STOPPED = (130, 143)
_SUMMED = ("tokens_in", "tokens_out", "cost", "cost_of_folder", "uncounted")
_MAX_OPEN_FILES = 200


def run_sharded(config: AnnotateConfig, clips: Clips) -> int:
    """Annotate in shards; the exit codes are those of a run in one process."""
    if config.answers_in:
        raise UserError("answers_in is for engine=single: each shard stores its own answers")
    if config.engine not in ENGINES:
        raise UserError(f"engine is {config.engine!r}; expected single, {' or '.join(ENGINES)}")
    out, started = Path(config.out or ""), time.monotonic()
    if (out / "records.jsonl").exists() and not (out / "shards").exists():
        raise UserError(
            f"{out} was made by engine=single and holds its answers; continue with that engine, or choose another out="
        )
    with held(out / "shards.lock", what=f"{out} is being annotated"):
        return _run_held(config, clips, out, started)


def _run_held(config: AnnotateConfig, clips: Clips, out: Path, started: float) -> int:
    workers = workers_of(config)
    n_shards = number_of_shards(out, config.shards, workers.n)
    with RunRecord.start(out, kind="annotate", config=asdict(config)) as record:
        return _run_recorded(config, clips, out, workers, n_shards, started, record)


def _run_recorded(
    config: AnnotateConfig, clips: Clips, out: Path, workers: Workers, n_shards: int, started: float, record: RunRecord
) -> int:
    folders = [out / "shards" / f"{number:05d}" for number in range(n_shards)]
    try:
        bad = split_clips(clips, folders, config.speaker)
    except OSError as error:
        raise UserError(f"{out / 'shards'}: cannot be written ({error.strerror}); is the disk full?") from error
    n_at_once = min(workers.n, n_shards)
    jobs = {}
    for folder in folders:
        settings = asdict(job_of(config, folder, n_shards, n_at_once))
        jobs[folder.resolve()] = json.dumps(settings)
        write_json_atomic(folder / _JOB, redacted(settings))
        (folder / "report.json").unlink(missing_ok=True)
    codes, stopped_by = watch(workers, jobs, clips.n)
    totals, row = collect(out, folders, bad)
    totals.seconds = round(time.monotonic() - started, 2)
    code = SOME_FAILED if totals.failed or totals.dropped else COMPLETE
    if BUDGET in codes:
        code, row["stopped_by"] = BUDGET, "budget"
    if stopped_by:
        code, row["stopped_by"] = 128 + stopped_by, signal.Signals(stopped_by).name
    report = {**vars(totals), **row, "left": totals.n_left, "shards": n_shards}
    write_json_atomic(out / "report.json", report)
    print(format_totals(totals, row, config))
    record.finish("finished" if code in (COMPLETE, SOME_FAILED) else "stopped", exit_code=code, report=report)
    return code


# ---- input -----------------------------------------------------------------------------------------------------------


def number_of_shards(out: Path, shards: int | None, n_processes: int) -> int:
    """That of the folder, which never changes; in a new folder `shards`, by default one per process."""
    path = out / "shards" / "shards.json"
    if path.is_file():
        n = int(json.loads(path.read_text(encoding="utf-8"))["n_shards"])
        if shards not in (None, n):
            raise UserError(f"{out} has {n} shards, but shards={shards}; leave shards out to continue in this folder")
        return n
    n = shards or n_processes
    if n < 1:
        raise UserError(f"shards is {n}; expected at least 1")
    write_json_atomic(path, {"n_shards": n})
    return n


def split_clips(clips: Iterable[Any], folders: Sequence[Path], speaker: str | None = None) -> Counter[str]:
    """Write each clip to the manifest of its shard, and unusable rows to shards/bad.jsonl.

    Returns:
        the number of unusable rows, by their name in the report.
    """
    bad: Counter[str] = Counter()
    for first in range(0, len(folders), _MAX_OPEN_FILES):  # one pass over the clips per so many shards
        with ExitStack() as stack:
            files = {}
            for number, folder in list(enumerate(folders))[first : first + _MAX_OPEN_FILES]:
                folder.mkdir(parents=True, exist_ok=True)
                files[number] = stack.enter_context((folder / ".input.tmp").open("w", encoding="utf-8"))
            bad_file = stack.enter_context((folders[0].parent / _BAD).open("a" if first else "w", encoding="utf-8"))
            for item in clips:
                if isinstance(item, Sample):
                    if file := files.get(shard_of(item, len(folders), speaker)):
                        file.write(to_json(_absolute(item)) + "\n")
                elif not first:
                    bad["unusable row"] += 1
                    reason = f"{item.where}: {item.reason}"
                    row = {"id": item.id, "where": "input", "reason": reason, "dropped": False}
                    bad_file.write(json_line(row) + "\n")
        for number in files:
            os.replace(folders[number] / ".input.tmp", folders[number] / "input.jsonl")
    return bad


def shard_of(sample: Sample, n_shards: int, speaker: str | None = None) -> int:
    """Number of a sample's shard; with `speaker`, that of all clips of the person, whose medians are measured there."""
    name = speaker_of(sample, speaker)
    return int(stable_hash(sample.id if name is None else name)[:12], 16) % n_shards


def _absolute(sample: Sample) -> Sample:
    media = {name: os.path.abspath(path) for name in ("video", "audio", "face") if (path := getattr(sample, name))}
    return replace(sample, **media)


def job_of(config: AnnotateConfig, folder: Path, n_shards: int, n_at_once: int) -> AnnotateConfig:
    """The settings of one shard, with its share of concurrency, rate limits and budget."""

    def share(annotator: AnnotatorConfig) -> AnnotatorConfig:
        limits = {"requests_per_min": annotator.requests_per_min, "tokens_per_min": annotator.tokens_per_min}
        return replace(
            annotator,
            concurrency=max(1, math.ceil(annotator.concurrency / n_at_once)),
            **{name: limit and limit / n_at_once for name, limit in limits.items()},
        )

    return replace(
        config,
        input=[str((folder / "input.jsonl").resolve())],
        out=str(folder.resolve()),
        engine="single",
        split=None,
        limit=None,
        budget=None if config.budget is None else config.budget / n_shards,
        annotator=share(config.annotator),
        answers_in=None,
        **{role: (own := getattr(config, role)) and share(own) for role in ROLES},
    )


def config_of(values: Mapping[str, Any]) -> AnnotateConfig:
    """The inverse of `asdict`."""
    pipeline = values["pipeline"]
    parts = {role: own and AnnotatorConfig(**own) for role in ROLES if (own := values[role])}
    return AnnotateConfig(
        **{
            **values,
            **parts,
            "annotator": AnnotatorConfig(**values["annotator"]),
            "faces": FacesConfig(**values["faces"]),
            "pipeline": PipelineConfig(pipeline["name"], [StepConfig(**step) for step in pipeline["steps"]]),
            "paths": PathsConfig(**values["paths"]),
        }
    )


# ---- running ---------------------------------------------------------------------------------------------------------


def workers_of(config: AnnotateConfig) -> Threads | Ray:
    """Workers, each of which runs one shard at a time in a separate process."""
    if config.engine == "processes":
        return Threads(config.n_processes or n_cores())
    return Ray(config.n_processes, gpu=loads_models(config))


Job = tuple[Path, str]
"""The folder of a shard, and its settings as JSON. They may hold secrets, so no file has all of them."""


def shard_runner(worker: int) -> Callable[[Job], int]:
    """The function of a worker: runs a shard in a process and returns its exit code."""
    return lambda job: start(*job).wait()


def start(folder: Path, settings: str) -> subprocess.Popen[bytes]:
    """Start the process of the shard in `folder`, in its own session, so that Ctrl-C reaches only this process."""
    command = [sys.executable, "-m", "affectgpt.annotate.shards", str(folder)]
    with (folder / _LOG).open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # its exit code tells of a process that died
        pipe.write(settings.encode())
    return process


def main(folder: Path) -> int:
    """Run one shard in this process, with the settings from standard input."""
    config = config_of(json.loads(sys.stdin.buffer.read()))
    threading.Thread(target=_follow_parent, args=(folder, os.getppid()), daemon=True).start()
    if not (folder / "input.jsonl").stat().st_size:
        return 0  # with few clips, some shards are empty
    try:
        return run_single(config, Clips(config))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _follow_parent(folder: Path, parent: int) -> None:
    """Exit when the parent process is gone; stop cleanly when it asks for it."""
    stop, is_stopping = folder.parent / _STOP, False
    while os.getppid() == parent:
        if stop.exists() and not is_stopping:
            is_stopping = True
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    os._exit(143)  # safe at any time: the next writer cuts off an incomplete line


# ---- watching -------------------------------------------------------------------------------------------------------


class StopFile:
    """Ctrl-C and SIGTERM: the first asks all shards to finish the calls in flight, the second exits at once, and the
    shards with this process."""

    def __init__(self, file: Path) -> None:
        self.signal = 0
        self._file = file

    def __enter__(self) -> StopFile:
        self._file.unlink(missing_ok=True)
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if exception[0] is not None:
            self._file.touch()  # stop the shards that still run

    def _ask(self, number: int, frame: object) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        self._file.touch()
        print("\nstopping: waiting for the calls in flight; press again to exit at once", file=sys.stderr)


def watch(workers: Workers, jobs: Mapping[Path, str], n_clips: int) -> tuple[list[int], int]:
    """Run all shards with a progress bar; returns their exit codes and the signal that stopped them, or 0."""
    codes: list[int] = []
    folders = list(jobs)
    written = {folder: _LineCounter(folder / "records.jsonl") for folder in folders}
    shown_s = 0.0
    with (
        StopFile(folders[0].parent / _STOP) as stop,
        tqdm(total=n_clips, desc=f"{len(folders)} shards", unit="clip", file=sys.stderr) as bar,
    ):
        todo = takewhile(lambda _: not stop.signal, jobs.items())
        for ended in workers.run(shard_runner, todo, tick_s=0.5):
            if ended:
                codes.append(ended[1])
                if ended[1] not in (COMPLETE, SOME_FAILED, BUDGET, *_STOPPED):
                    raise UserError(_error_of(ended[0][0], ended[1]))
            if ended or time.monotonic() > shown_s + 1:
                shown_s = time.monotonic()
                bar.n = min(n_clips, sum(lines.count() for lines in written.values()))
                bar.set_postfix(shards=f"{len(codes)}/{len(folders)}", refresh=False)
                bar.refresh()
        return codes, stop.signal


class _LineCounter:
    """Counts the lines of a growing file; reads only what is new."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_to, self._n = path, 0, 0

    def count(self) -> int:
        if self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._read_to)
                while block := file.read(1 << 20):
                    self._n += block.count(b"\n")
                self._read_to = file.tell()
        return self._n


def _error_of(folder: Path, code: int) -> str:
    lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    error = errors[-1].removeprefix("error: ") if errors else f"exit code {code}; see {folder / _LOG}"
    return f"shard {folder.name}: {error}"


# ---- results --------------------------------------------------------------------------------------------------------


def collect(out: Path, folders: Sequence[Path], bad: Mapping[str, int]) -> tuple[Totals, dict[str, Any]]:
    """Merge records and failures of all shards into `out`; returns the sums of their reports."""
    records = Journal(out / "records.jsonl", name=lambda row: row["id"])
    try:
        for folder in folders:
            for row in _rows(folder / "records.jsonl"):
                known = records.latest(row["id"])
                if known is None or any(known.get(name) != row.get(name) for name in ("key", "given")):
                    records.append(row)
        n_rows = write_manifest(out / "manifest.jsonl", (record_from_row(row) for row in records.rows()))
    finally:
        records.close()
    failed = [out / "shards" / _BAD, *(folder / "failed.jsonl" for folder in folders)]
    write_lines_atomic(out / "failed.jsonl", _lines_of(failed))
    totals = Totals(n_clips=sum(bad.values()), failed=Counter(bad))
    row: dict[str, Any] = {"stopped_by": "", **dict.fromkeys(_SUMMED, 0)}
    for folder in folders:
        path = folder / "report.json"
        if not path.is_file():
            totals.n_clips += _LineCounter(folder / "input.jsonl").count()  # not started, or empty
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        for name in ("n_clips", "made", "there", "calls", "repaired", "retries"):
            setattr(totals, name, getattr(totals, name) + report[name])
        for name in ("failed", "dropped", "without", "checked", "own"):
            getattr(totals, name).update(report.get(name, {}))
        for name in _SUMMED:
            row[name] += report[name]
    return totals, {**row, "manifest_rows": n_rows}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        shard = Journal(path, name=lambda row: row["id"])
        try:
            yield from shard.rows()
        finally:
            shard.close()


def _lines_of(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                yield from (line.rstrip("\n") for line in file)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
