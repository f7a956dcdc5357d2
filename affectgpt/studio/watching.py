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
from affectgpt.runs.watch import Rollouts, curves, generation_steps, generations_over_steps, read_generations
from affectgpt.runtime import InputError, UserError, stable_hash
from affectgpt.studio.gallery import whole_number

log = logging.getLogger("affectgpt")

MAX_POINTS = 400  # of a curve
PART = 20  # clips of the answers or rollouts of one step that a page shows at a time


@dataclass
class Watch:
    """The runs in some folders; a page names a run by its key, never by a path."""

    roots: Sequence[Path]
    _clips: dict[str, dict[str, Path]] = field(default_factory=dict)
    _rollouts: dict[str, Rollouts] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def runs(self) -> list[dict[str, Any]]:
        """A row for each run, the newest first."""
        rows = []
        for root in self.roots:
            if root.is_dir():
                rows += [
                    {**asdict(one), "key": stable_hash(str(Path(one.folder).resolve()))[:12]} for one in list_runs(root)
                ]
        return sorted(rows, key=lambda row: row["started"] or "", reverse=True)

    def _found(self, key: str) -> Path | None:
        return next((Path(row["folder"]) for row in self.runs() if row["key"] == key), None)

    def _folder(self, key: str) -> Path:
        if (found := self._found(key)) is None:
            raise InputError("no such run; has it been removed?")
        return found

    def run(self, key: str) -> dict[str, Any]:
        """Curves, and the steps with answers and rollouts."""
        folder = self._folder(key)
        rows = curves(folder)
        return {
            "name": folder.name,
            "curves": {name: _thinned(curve.steps, curve.values) for name, curve in rows.items()},
            "generation_steps": generation_steps(folder),
            "rollout_steps": self._rollouts_of(key, folder).steps(),
        }

    def _rollouts_of(self, key: str, folder: Path) -> Rollouts:
        with self._lock:
            return self._rollouts.setdefault(key, Rollouts(folder))

    def answers(self, key: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The answers to validation clips at one step, or those of all steps to one clip: {total, part, rows}."""
        folder, offset = self._folder(key), max(0, whole_number(query, "offset", 0))
        if clip := query.get("id"):
            found = list(generations_over_steps(folder, clip).items())
        else:
            step = whole_number(query, "step", 0)
            found = [(step, row) for row in read_generations(folder, step)]
        rows = [
            {"step": step, "id": row.id, "text": row.text, "labels": row.labels or (), "clip": f"{key}.{row.id}",
             "lang": row.lang}
            for step, row in found[offset : offset + PART]
        ]  # fmt: skip
        return {"total": len(found), "part": PART, "rows": rows}

    def rollouts(self, key: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The sampled answers of one step with their rewards, clip by clip, the best first: {total, part, rows}."""
        offset = max(0, whole_number(query, "offset", 0))
        log = self._rollouts_of(key, self._folder(key))
        total, clips = log.clips(whole_number(query, "step", 0), offset, PART)
        shown = ("answer", "text", "rewards", "reward", "advantage", "lang")
        rows = []
        for name, found in clips.items():
            found.sort(key=lambda row: row.get("reward") or 0.0, reverse=True)
            answers = [{field: row.get(field) for field in shown} for row in found]
            rows.append({"id": name, "clip": f"{key}.{name}", "truth": found[0].get("truth") or [], "answers": answers})
        return {"total": total, "part": PART, "rows": rows}

    def media_path(self, name: str) -> Path | None:
        """The clip `<key of the run>.<id>`; the first one of a run reads its training data."""
        key, _, clip = name.partition(".")
        with self._reading:  # once for all who ask
            if key not in self._clips and (folder := self._found(key)) is not None:
                self._clips[key] = _clips_of(folder)
        return self._clips.get(key, {}).get(clip)


def _thinned(steps: Sequence[int], values: Sequence[float]) -> list[list[float]]:
    every = max(1, -(-(len(steps) - 1) // (MAX_POINTS - 1)))
    points = list(zip(steps, values, strict=True))
    return [[step, value] for step, value in points[:-1:every] + points[-1:]]  # the last one is the present state


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
