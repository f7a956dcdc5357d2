"""A run in one process: clips in, records out. It can be killed at any point and resumes where it was.

A clip whose record was made from the same files, pipeline, prompts and models is complete and costs nothing. A clip
that another process is annotating is left to that process. failed.jsonl lists the clips without a record, with the
reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from affectgpt.annotate.annotators import Annotator, Budget, make_annotator
from affectgpt.annotate.clips import ClipMedia, Clips, files_of, manifests, media_sha256, openface_of
from affectgpt.annotate.exporters import write_manifest
from affectgpt.annotate.pipeline import ROLES, annotate_clip, annotators_of, loads_models, settings_hash
from affectgpt.annotate.record import Annotation, RecordError, given_of, record_from_row, record_to_row
from affectgpt.annotate.speakers import Speakers
from affectgpt.annotate.steps import Dropped, StepFailed, Work, shown_by
from affectgpt.annotate.store import Store
from affectgpt.annotate.totals import COMPLETE, SIGNALS, SOME_FAILED, Totals, format_totals
from affectgpt.annotate.transcribe import Transcriber
from affectgpt.chat.concurrency import Stopped, StopSignal, for_each
from affectgpt.chat.transport import RequestFailed
from affectgpt.config import AnnotateConfig
from affectgpt.data.sources import probe_sample
from affectgpt.media import MediaError, isolated_media
from affectgpt.media.speech import detector_name
from affectgpt.runs import RunRecord
from affectgpt.runtime import UserError, n_cores, quiet_libraries, stable_hash, write_json_atomic, write_lines_atomic
from affectgpt.schema import BadSample, Sample


def run_single(config: AnnotateConfig, clips: Clips) -> int:
    """Annotate `clips` into the folder `config.out`; returns the exit code."""
    out = Path(config.out or "")
    if (out / "shards").exists():
        raise UserError(f"{out} was made in shards; resume with engine=processes or engine=ray, or choose another out=")
    if config.transcriber or loads_models(config):
        quiet_libraries()
    with RunRecord.start(out, kind="annotate", config=asdict(config), inputs=manifests(config)) as record:
        return _run_recorded(config, clips, out, record)


def _run_recorded(config: AnnotateConfig, clips: Clips, out: Path, record: RunRecord) -> int:
    store = Store(out, fsync=config.fsync, answers_in=Path(config.answers_in or out))
    try:
        before = {"tokens_in": store.tokens_in, "tokens_out": store.tokens_out, "cost": store.cost}
        run = _Run(config, store)
        with isolated_media():
            asyncio.run(run.annotate_all(clips))
        report: dict[str, Any] = {
            **vars(run.totals),
            "left": run.totals.n_left,
            "stopped_by": run.stop.reason,
            **{name: getattr(store, name) - value for name, value in before.items()},
            "cost_of_folder": store.cost,
            "uncounted": store.n_uncounted,
            "manifest_rows": write_outputs(store),
        }
    finally:
        store.close()
    write_json_atomic(out / "report.json", report)
    print(format_totals(run.totals, report, config))
    code = run.totals.exit_code(run.stop.reason)
    record.finish("finished" if code in (COMPLETE, SOME_FAILED) else "stopped", exit_code=code, report=report)
    return code


def write_outputs(store: Store) -> int:
    """Write failed.jsonl and manifest.jsonl from the folder's logs; returns the number of rows of the manifest."""
    failed = (row for row in store.failures.rows() if not row.get("mended"))
    shown = ({name: row[name] for name in ("id", "where", "reason", "dropped")} for row in failed)
    write_lines_atomic(store.folder / "failed.jsonl", (json.dumps(row, ensure_ascii=False) for row in shown))
    return write_manifest(store.folder / "manifest.jsonl", (record_from_row(row) for row in store.records.rows()))


class _Run:
    """One run over many clips."""

    def __init__(self, config: AnnotateConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.totals, self.stop = Totals(), StopSignal()
        configs = annotators_of(config)
        optional = {
            "speaker": config.speaker,
            "transcriber": config.transcriber,
            "speech": detector_name(config.speech),
            "faces": asdict(config.faces),
        }
        given = {name: value for name, value in optional.items() if value}
        self.settings = settings_hash(config.pipeline, configs, config.lang, **given)
        self.transcriber = None
        if config.transcriber:
            self.transcriber = Transcriber(config.transcriber, store, device=config.annotator.device)
        budget = Budget(config.budget, store, self.stop)
        self.annotators: dict[str, Annotator] = {}  # by role
        self.distinct: dict[int, Annotator] = {}  # roles with the same configuration share an annotator, and its limits
        used = {spec.annotator for spec in config.pipeline.steps}
        for role in (role for role in ROLES if role in used):
            number = id(configs[role])
            if number not in self.distinct:
                self.distinct[number] = make_annotator(configs[role], store, self.stop, budget)
            self.annotators[role] = self.distinct[number]
        self.shown = shown_by(config.pipeline.steps, self.annotators)
        hearing = any(one.in_process and "sound" in one.sees for one in self.distinct.values() if one.asks_model)
        self.any_rate = hearing or self.transcriber is not None
        self.speakers = Speakers(config.speaker, store, config.speech, any_rate=self.any_rate)
        self.later: list[Sample | BadSample] = []  # clips that another process is annotating

    async def annotate_all(self, clips: Clips) -> None:
        started, config, totals = time.monotonic(), self.config, self.totals
        totals.n_clips = clips.n
        _handle_signals(self.stop)
        # A quarter more clips than requests, so that slots stay busy while clips are hashed and records written.
        n_requests = max(annotator.config.concurrency for annotator in self.distinct.values())
        n_workers = config.workers or 2 * n_cores() + 5 * n_requests // 4
        with tqdm(total=clips.n, desc=config.pipeline.name, unit="clip", file=sys.stderr) as self.bar:
            try:
                await self.speakers.learn((item for item in clips if isinstance(item, Sample)), self.stop)
                await for_each(iter(clips), self.annotate_one, n_workers=n_workers, stop=self.stop)
                while self.later and not self.stop.reason:  # other processes had these clips: look again
                    todo, self.later = self.later, []
                    await for_each(iter(todo), self.annotate_one, n_workers=n_workers, stop=self.stop)
                    if self.later:
                        try:
                            await self.stop.sleep(0.5)
                        except Stopped:
                            break
            finally:
                for annotator in self.distinct.values():
                    totals.retries += annotator.retries
                    await annotator.close()
        totals.seconds = round(time.monotonic() - started, 2)

    async def annotate_one(self, sample: Sample | BadSample) -> None:
        """Make the record of one clip, or note why there is none.

        The errors caught here are faults of one clip. Others, a UserError about the settings among them, end the run.
        """
        totals, store = self.totals, self.store
        if isinstance(sample, BadSample):
            key = stable_hash([sample.id, sample.reason])
            self._failed(sample.id, "input", f"{sample.where}: {sample.reason}", totals.failed, key, "unusable row")
            return
        key = stable_hash([self.settings, sample.id, "unread"])
        try:
            openface = openface_of(sample, self.config.openface)
            sha256 = await asyncio.to_thread(media_sha256, list(files_of(sample, openface)), store.hashes)
            person = [sample.person] if sample.person else []
            key = stable_hash(
                [self.settings, sample.id, sha256, sample.subtitle, self.speakers.usual_of(sample), *person]
            )
            if self._is_there(sample, key):
                self._advance(there=1)
                return
            if not store.claims.acquire(f"clip {sample.id}"):
                self.later.append(sample)
                return
            try:
                if self._is_there(sample, key):  # another process has just finished it
                    self._advance(there=1)
                    return
                probed = await asyncio.to_thread(_probe, sample)
                config = self.config
                clip = ClipMedia(
                    probed, sha256, openface, config.backend, config.speech, config.faces, self.shown, self.any_rate
                )
                clip.hear(self.speakers.heard(sample))
                await store.records.put(await self._record(clip, key))
                self._clear_failure(sample.id)
                self._advance(made=1)
            finally:
                store.claims.release(f"clip {sample.id}")
        except Dropped as reason:
            self._failed(sample.id, "clip", str(reason), totals.dropped, key)
        except StepFailed as error:
            self._failed(sample.id, "answer", str(error), totals.failed, key, kind=error.kind)
        except RequestFailed as error:
            self._failed(sample.id, "call", str(error), totals.failed, key, kind=f"call: {str(error).split(' (')[0]}")
        except RecordError as error:
            self._failed(sample.id, "record", str(error), totals.failed, key, kind="record breaks its schema")
        except MediaError as error:
            self._failed(sample.id, "media", str(error), totals.failed, key, kind=f"media: {type(error).__name__}")

    async def _record(self, clip: ClipMedia, key: str) -> dict[str, Any]:
        work = Work(clip, self.config.lang, self.annotators, self.transcriber, self.speakers.usual_of(clip.sample))
        try:
            parts = await annotate_clip(work, self.config.pipeline.steps)
        finally:
            self.totals.calls += work.calls
            self.totals.repaired += work.repaired
        sample = clip.sample
        media = {name: getattr(sample, name) for name in ("video", "audio", "face") if getattr(sample, name)}
        order = {spec.name: place for place, spec in enumerate(self.config.pipeline.steps)}
        record = Annotation(
            id=sample.id,
            media_sha256=clip.sha256,
            key=key,
            media={name: str(Path(path).resolve()) for name, path in media.items()},
            lang=self.config.lang,
            person=sample.person,
            provenance=tuple(sorted(work.notes, key=lambda note: order[note.step])),
            given=self._given(sample),
            **{name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()},
        )
        row = record_to_row(record)
        self.totals.count_record(record)  # not before it is known to follow its schema
        return row

    def _given(self, sample: Sample) -> dict[str, Any]:
        """What the manifest already says; one of checked clues is the output of another run, and says nothing."""
        return given_of(sample) if self.config.keep_own and self.config.checked is None else {}

    def _is_there(self, sample: Sample, key: str) -> bool:
        """Whether the clip's newest record was made from exactly this; an older such record is made the newest.

        If only the manifest's own labels have changed, the record is written again with them.
        """
        name, given = sample.id, self._given(sample)
        row = self.store.records.latest(name)
        if row is not None and row["key"] != key:
            row = self.store.records.get(key)
            if row is not None:
                self.store.records.append(row)
        if row is None:
            return False
        if row.get("given", {}) != given:
            row = {field: value for field, value in row.items() if field != "given"} | (
                {"given": given} if given else {}
            )
            self.store.records.append(row)
        self.totals.count_record(record_from_row(row))
        self._clear_failure(name)
        return True

    def _failed(self, name: str, where: str, reason: str, count: Counter[str], key: str, kind: str = "") -> None:
        count[kind or reason] += 1
        row = {"key": key, "id": name, "where": where, "reason": reason, "dropped": count is self.totals.dropped}
        if self.store.failures.latest(name) != row:
            self.store.failures.append(row)
        self._advance()

    def _clear_failure(self, name: str) -> None:
        """A clip that failed before has a record now."""
        row = self.store.failures.latest(name)
        if row is not None and not row.get("mended"):
            self.store.failures.append({"key": row["key"], "id": name, "mended": True})

    def _advance(self, made: int = 0, there: int = 0) -> None:
        totals = self.totals
        totals.made += made
        totals.there += there
        self.bar.update()
        self.bar.set_postfix(
            calls=totals.calls,
            cost=f"{self.store.cost:.2f}",
            failed=totals.failed.total() + totals.dropped.total(),
            refresh=False,
        )


def _probe(sample: Sample) -> Sample:
    """The sample with its modalities; a manifest row that contradicts the media is a fault of this clip."""
    try:
        return probe_sample(sample)
    except MediaError:
        raise
    except UserError as error:
        raise MediaError(str(error)) from error


def _handle_signals(stop: StopSignal) -> None:
    """The first Ctrl-C or SIGTERM waits for the calls in flight (they are paid for); the second exits at once."""
    loop = asyncio.get_running_loop()

    def ask(name: str) -> None:
        if stop.reason in SIGNALS:
            os._exit(SIGNALS[name])  # safe: lines are written whole; only answers that have not arrived are lost
        print("\nstopping: waiting for the calls in flight; press again to exit at once", file=sys.stderr)
        stop.set(name)

    for name in SIGNALS:
        loop.add_signal_handler(getattr(signal, name), ask, name)
