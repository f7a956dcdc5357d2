"""Runs for a page: a list of all, and of each its curves, its answers to validation clips over steps, its rollouts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.config import SourceConfig
from affectgpt.runs import RunRecord
from affectgpt.runs.overview import list_runs
from affectgpt.runs.watch import curves, generation_steps, generations_over_steps, read_generations, read_rollouts
from affectgpt.runs.watch import rollout_steps as steps_of
from affectgpt.runtime import InputError, UserError, stable_hash

log = logging.getLogger("affectgpt")

MAX_POINTS = 400  # of a curve
MAX_CLIPS = 60  # of the answers or rollouts of one step


@dataclass
class Watch:
    """The runs in some folders; a page names a run by its key, never by a path."""

    roots: Sequence[Path]
    _clips: dict[str, dict[str, Path]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def runs(self) -> list[dict[str, Any]]:
        """A row for each run, the newest first."""
        rows = []
        for root in self.roots:
            if root.is_dir():
                rows += [
                    {**asdict(one), "key": stable_hash(str(Path(one.folder).resolve()))[:12]} for one in list_runs(root)
                ]
        return sorted(rows, key=lambda row: row["started"] or "", reverse=True)

    def _folder(self, key: str) -> Path:
        found = next((row["folder"] for row in self.runs() if row["key"] == key), None)
        if found is None:
            raise InputError("no such run; has it been removed?")
        return Path(found)

    def run(self, key: str) -> dict[str, Any]:
        """Curves, and the steps with answers and rollouts."""
        folder = self._folder(key)
        rows = curves(folder)
        return {
            "name": folder.name,
            "curves": {name: _thinned(curve.steps, curve.values) for name, curve in rows.items()},
            "generation_steps": generation_steps(folder),
            "rollout_steps": steps_of(read_rollouts(folder)),
        }

    def answers(self, key: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """The answers to the validation clips of one step; or those of all steps to one clip."""
        folder = self._folder(key)
        if clip := query.get("id"):
            found = generations_over_steps(folder, clip).items()
        else:
            step = _step(query)
            found = [(step, row) for row in read_generations(folder, step)[:MAX_CLIPS]]
        return [
            {"step": step, "id": row.id, "text": row.text, "labels": row.labels or (), "clip": f"{key}.{row.id}",
             "lang": row.lang}
            for step, row in found
        ]  # fmt: skip

    def rollouts(self, key: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """The sampled answers of one step with their rewards."""
        rows = read_rollouts(self._folder(key), _step(query))
        shown = ("id", "answer", "text", "truth", "rewards", "reward", "advantage", "lang")
        return [{name: row.get(name) for name in shown} | {"clip": f"{key}.{row.get('id')}"} for row in rows[:500]]

    def media_path(self, name: str) -> Path | None:
        """The clip `<key of the run>.<id>`."""
        key, _, clip = name.partition(".")
        with self._lock:
            if key not in self._clips:
                self._clips[key] = _clips_of(self._folder(key))
        return self._clips[key].get(clip)


def _step(query: Mapping[str, str]) -> int:
    try:
        return int(query.get("step", ""))
    except ValueError:
        raise InputError(f"step is {query.get('step')!r}; expected a whole number") from None


def _thinned(steps: Sequence[int], values: Sequence[float]) -> list[list[float]]:
    every = max(1, -(-len(steps) // MAX_POINTS))
    return [[step, value] for step, value in zip(steps[::every], values[::every], strict=True)]


def _clips_of(run: Path) -> dict[str, Path]:
    """id -> file of the training data of a run; what can no longer be read has none."""
    from affectgpt.data.sources import read_source

    record = RunRecord.read(run)
    values = (record.values.get("config") or {}) if record is not None else {}
    data, stage = values.get("data") or {}, values.get("stage") or {}
    named: dict[str, Any] = {"coarse": data.get("coarse"), "fine": data.get("fine")} | (data.get("train") or {})
    clips: dict[str, Path] = {}
    for name in stage.get("data") or [stage.get("name")]:
        sources = named.get(name) or []
        for source in sources if isinstance(sources, list) else [sources]:
            known = {key: value for key, value in source.items() if key in SourceConfig.__dataclass_fields__}
            try:
                rows = read_source(SourceConfig(**known), data.get("folder"), on_bad="skip")
            except UserError as error:
                log.warning("clips of %s are not shown: %s", run.name, error)
                continue
            clips |= {
                sample.id: Path(sample.video or sample.audio or "")
                for sample in rows.samples
                if sample.video or sample.audio
            }
    return clips


def watch_routes(watch: Watch, in_thread: Callable[..., Any]) -> list[Any]:
    """The routes of the runs."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def runs(request: Any) -> Any:
        rows = await in_thread(watch.runs)
        return JSONResponse([{name: value for name, value in row.items() if name != "folder"} for row in rows])

    def of(function: Callable[..., Any], with_query: bool) -> Callable[..., Any]:
        async def answer(request: Any) -> Any:
            more = (dict(request.query_params),) if with_query else ()
            return JSONResponse(await in_thread(function, request.path_params["key"], *more))

        return answer

    return [
        Route("/api/runs", runs),
        Route("/api/runs/{key}", of(watch.run, False)),
        Route("/api/runs/{key}/answers", of(watch.answers, True)),
        Route("/api/runs/{key}/rollouts", of(watch.rollouts, True)),
    ]
