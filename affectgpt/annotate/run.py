"""The command: clips in, a folder of records out, told on screen; stops and resumes at any point.

A clip whose record was made from the same files, pipeline, prompts and models is done and costs nothing. A clip that
another process works on is left to it. What a clip lacked or why it failed stands in failed.jsonl, with the step.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from affectgpt.annotate import evidence
from affectgpt.annotate.annotators import Annotator, CallFailed, Purse, Stop, Stopped, make_annotator
from affectgpt.annotate.clips import Clip, files_of, media_sha256
from affectgpt.annotate.exporters import write_manifest
from affectgpt.annotate.pipeline import annotate_clip, check_pipeline, fingerprint, for_each
from affectgpt.annotate.record import Annotation, RecordError, from_row, to_row
from affectgpt.annotate.steps import Dropped, StepFailed, Work
from affectgpt.annotate.store import Store
from affectgpt.annotate.transcribe import Transcriber
from affectgpt.config import AnnotateConfig, AnnotatorConfig
from affectgpt.data.sources import probe_sample, samples_from_paths
from affectgpt.journal import FirstLines
from affectgpt.media import MediaError
from affectgpt.runs import RunRecord
from affectgpt.runtime import UserError, stable_hash, write_json_atomic, write_lines_atomic
from affectgpt.schema import HELP, LANGUAGES, BadSample, Sample, stream_samples

log = logging.getLogger("affectgpt")

COMPLETE, SOME_FAILED, BUDGET = 0, 3, 4
_SIGNALS = {"SIGINT": 130, "SIGTERM": 143}
ROLES = ("vision", "audio", "text", "translator", "reader")
_TEXT_ROLES = ("translator", "reader")  # the annotator for text serves them unless they have their own


@dataclass
class Totals:
    """What one run did.

    Attributes:
        made, there: records made now, and those that were there already (or that another process made meanwhile).
        failed, dropped: clips by reason: errors, and clips that hold nothing to annotate.
        without: records that lack a kind of clue, or a transcript.
        checked: records by what checks found, as verdict and check.
        calls, repaired: answers asked for, and how many had to be asked for again for their form.
    """

    n_clips: int = 0
    made: int = 0
    there: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    repaired: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def n_left(self) -> int:
        """Clips that the run did not come to."""
        return self.n_clips - self.made - self.there - self.failed.total() - self.dropped.total()


def run(config: AnnotateConfig) -> int:
    """Annotate; exit code 0 (all complete), 3 (some failed or dropped), 4 (budget), 130 or 143 (interrupted)."""
    check(config)
    clips = Clips(config)
    if config.plan:
        from affectgpt.annotate.plan import print_plan

        return print_plan(config, [item for item in clips if isinstance(item, Sample)], annotators_of(config))
    if config.engine != "single":
        from affectgpt.annotate.shards import run_sharded

        return run_sharded(config, clips)
    refuse_shards(config)
    out = Path(config.out or "")
    record = RunRecord.start(out, kind="annotate", config=asdict(config), inputs=_manifests(config))
    store = Store(out, fsync=config.fsync, answers_in=Path(config.answers_in or out))
    try:
        cost_before, tokens_before = store.cost, (store.tokens_in, store.tokens_out)
        totals, stop = asyncio.run(_Run(config, store).all(clips))
        n_rows = write_outputs(store)
        totals_row = {
            **vars(totals),
            "left": totals.n_left,
            "stopped_by": stop.reason,
            "tokens_in": store.tokens_in - tokens_before[0],
            "tokens_out": store.tokens_out - tokens_before[1],
            "cost": store.cost - cost_before,
            "cost_of_folder": store.cost,
            "uncounted": store.n_uncounted,
            "manifest_rows": n_rows,
        }
        write_json_atomic(out / "report.json", totals_row)
        print(told(totals, totals_row, config))
        code = exit_code(totals, stop)
        record.finish("finished" if code in (COMPLETE, SOME_FAILED) else "stopped", exit_code=code, report=totals_row)
        return code
    finally:
        store.close()


def exit_code(totals: Totals, stop: Stop) -> int:
    if stop.reason in _SIGNALS:
        return _SIGNALS[stop.reason]
    if stop.reason == "budget":
        return BUDGET
    return SOME_FAILED if totals.failed or totals.dropped else COMPLETE


def check(config: AnnotateConfig) -> None:
    """Raise UserError where settings are missing or contradict each other."""
    if config.action != "run":
        raise UserError(f"action is {config.action!r}; expected run")
    if not config.input:
        raise UserError(
            "nothing to annotate: python -m affectgpt.annotate videos/ out=emer_coarse/ (a folder, media files or a "
            "manifest; demo:coarse is the embedded corpus)"
        )
    if config.out is None and not config.plan:
        raise UserError("out= is missing: the folder for records, answers and the manifest")
    if config.lang not in LANGUAGES:
        raise UserError(f"lang is {config.lang!r}; expected one of {list(LANGUAGES)}")
    check_pipeline(config.pipeline)
    if strange := sorted({spec.annotator for spec in config.pipeline.steps} - set(ROLES)):
        raise UserError(f"pipeline {config.pipeline.name!r} names annotators {strange}; expected some of {list(ROLES)}")


def annotators_of(config: AnnotateConfig) -> dict[str, AnnotatorConfig]:
    """The annotator of each role: its own, or the common one."""
    own = {role: getattr(config, role) or (config.text if role in _TEXT_ROLES else None) for role in ROLES}
    return {role: annotator or config.annotator for role, annotator in own.items()}


def _manifests(config: AnnotateConfig) -> list[str]:
    return [path for path in config.input if Path(path).suffix in (".jsonl", ".csv")]


class Clips:
    """The clips of a run, not yet looked at, and rows of its manifest that cannot be used.

    A manifest is read anew by every iteration and never held; of folders and files the names are held.
    """

    def __init__(self, config: AnnotateConfig) -> None:
        self._config = config
        self._manifest = next(iter(_manifests(config)), None)
        if self._manifest and len(config.input) > 1:
            raise UserError(f"give one manifest, or media files and folders, not both; found {config.input}")
        self._samples = [] if self._manifest else samples_from_paths(config.input)
        n_good = 0
        self.n = 0
        for item in self:
            self.n += 1
            n_good += isinstance(item, Sample)
        if not n_good:
            of_split = f" of split {config.split!r}" if config.split else ""
            raise UserError(f"{self._manifest}: no usable sample{of_split} ({self.n} rows cannot be used); {HELP}")

    def __iter__(self) -> Iterator[Sample | BadSample]:
        config, n_good = self._config, 0
        rows = stream_samples(self._manifest, FirstLines()) if self._manifest else iter(self._samples)
        for item in rows:
            if isinstance(item, Sample):
                if config.split is not None and item.split != config.split:
                    continue
                if config.limit is not None and n_good == config.limit:
                    return
                n_good += 1
            yield item


def refuse_shards(config: AnnotateConfig) -> None:
    """A folder that was made in shards keeps its paid answers there."""
    if (Path(config.out or "") / "shards").exists():
        raise UserError(f"{config.out} was made in shards; go on with engine=processes or engine=ray, or another out=")


class _Run:
    """One run over many clips."""

    def __init__(self, config: AnnotateConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.totals = Totals()
        configs = annotators_of(config)
        speaker = {"speaker": config.speaker} if config.speaker else {}
        heard_by = {"transcriber": config.transcriber} if config.transcriber else {}
        self.settings = fingerprint(config.pipeline, configs, config.lang, **speaker, **heard_by)
        self.roles = [role for role in ROLES if any(spec.annotator == role for spec in config.pipeline.steps)]
        self.configs = configs
        self.usual: dict[str, dict[str, float]] = {}

    async def all(self, clips: Clips) -> tuple[Totals, Stop]:
        """Annotate all clips."""
        started = time.monotonic()
        config, totals, self.stop = self.config, self.totals, Stop()
        purse = Purse(config.budget, self.store, self.stop)
        made: dict[int, Annotator] = {}
        for role in self.roles:  # roles with one configuration share one annotator, and its limits
            made.setdefault(id(self.configs[role]), make_annotator(self.configs[role], self.store, self.stop, purse))
        self.annotators = {role: made[id(self.configs[role])] for role in self.roles}
        self.transcriber = None
        if config.transcriber:
            self.transcriber = Transcriber(config.transcriber, self.store, device=config.annotator.device)
        totals.n_clips = clips.n
        _on_signals(self.stop)
        # A quarter more clips than requests, so that slots stay busy while clips are looked at and records written.
        n_requests = max(annotator.config.concurrency for annotator in made.values())
        n_workers = config.workers or 2 * _cores() + 5 * n_requests // 4
        self.later: list[Sample | BadSample] = []
        with tqdm(total=clips.n, desc=config.pipeline.name, unit="clip", file=sys.stderr) as self.bar:
            try:
                if config.speaker:
                    await self._learn_speakers(clips)
                await for_each(iter(clips), self.one, n_workers=n_workers, stop=self.stop)
                while self.later and not self.stop.reason:  # others work on these: see what becomes of them
                    todo, self.later = self.later, []
                    await for_each(iter(todo), self.one, n_workers=n_workers, stop=self.stop)
                    if self.later:
                        try:
                            await self.stop.sleep(0.5)
                        except Stopped:
                            break
            finally:
                for annotator in made.values():
                    totals.retries += annotator.retries
                    await annotator.close()
        totals.seconds = round(time.monotonic() - started, 2)
        return totals, self.stop

    async def one(self, sample: Sample | BadSample) -> None:
        """Make the record of one clip, or name why there is none."""
        totals, store = self.totals, self.store
        if isinstance(sample, BadSample):
            key = stable_hash([sample.id, sample.reason])
            self._failed(sample.id, "input", f"{sample.where}: {sample.reason}", totals.failed, key, "unusable row")
            return
        openface = self._openface(sample)
        key = stable_hash([self.settings, sample.id, "unread"])
        try:
            sha256 = await asyncio.to_thread(media_sha256, list(files_of(sample, openface)), store.hashes)
            key = stable_hash([self.settings, sample.id, sha256, sample.subtitle, self._usual_of(sample)])
            if self._is_there(sample.id, key):
                self._advance(there=1)
                return
            if not store.claims.take(f"clip {sample.id}"):
                self.later.append(sample)
                return
            try:
                if self._is_there(sample.id, key):  # another process has just finished it
                    self._advance(there=1)
                    return
                clip = Clip(await asyncio.to_thread(probe_sample, sample), sha256, openface, self.config.backend)
                row = await self._record(clip, key)
                await store.records.put(row)
                self._mended(sample.id)
                self._advance(made=1)
            finally:
                store.claims.release(f"clip {sample.id}")
        except Dropped as reason:
            self._failed(sample.id, "clip", str(reason), totals.dropped, key)
        except StepFailed as error:
            self._failed(sample.id, "answer", str(error), totals.failed, key, kind="unusable answer")
        except CallFailed as error:
            self._failed(sample.id, "call", str(error), totals.failed, key, kind=f"call: {str(error).split(' (')[0]}")
        except RecordError as error:
            self._failed(sample.id, "record", str(error), totals.failed, key, kind="record breaks its schema")
        except (MediaError, OSError) as error:
            self._failed(sample.id, "media", str(error), totals.failed, key, kind=f"media: {type(error).__name__}")

    async def _record(self, clip: Clip, key: str) -> dict[str, Any]:
        work = Work(clip, self.config.lang, self.annotators, self.transcriber, self._usual_of(clip.sample))
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
            provenance=tuple(sorted(work.notes, key=lambda note: order[note.step])),
            **{name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()},
        )
        self._tell(record)
        return to_row(record)

    def _is_there(self, name: str, key: str) -> bool:
        """Whether the newest record of this clip was made from just this; an older one of that kind is made newest."""
        row = self.store.records.latest(name)
        if row is not None and row["key"] != key:
            row = self.store.records.get(key)
            if row is not None:
                self.store.records.append(row)
        if row is None:
            return False
        self._tell(from_row(row))
        self._mended(name)
        return True

    def _tell(self, record: Annotation) -> None:
        """Count what a record lacks and what checks found in it."""
        self.totals.without.update(_lacks(record))
        self.totals.checked.update({f"{row['verdict']:<9}{row['check']}" for row in record.checks})

    def _mended(self, name: str) -> None:
        """What failed before is no longer failed."""
        row = self.store.failures.latest(name)
        if row is not None and not row.get("mended"):
            self.store.failures.append({"key": row["key"], "id": name, "mended": True})

    def _openface(self, sample: Sample) -> Path | None:
        if self.config.openface is None:
            return None
        path = Path(self.config.openface) / f"{sample.id}.csv"
        return path if path.is_file() else None

    def _speaker(self, sample: Sample) -> str | None:
        match = re.search(self.config.speaker, sample.id) if self.config.speaker else None
        return match.group(1) if match else None

    def _usual_of(self, sample: Sample) -> dict[str, float]:
        return self.usual.get(self._speaker(sample) or "", {})

    async def _learn_speakers(self, clips: Clips) -> None:
        """Measure every clip once; the medians of a speaker with several clips are what is usual for them."""
        found: dict[str, dict[str, list[float]]] = {}

        async def measure(sample: Sample) -> None:
            try:
                clip = Clip(await asyncio.to_thread(probe_sample, sample), "")
                if (speaker := self._speaker(sample)) is None or "sound" not in clip.sees:
                    return
                sound = await asyncio.to_thread(clip.sound)
                facts = await asyncio.to_thread(evidence.sound_facts, sound.samples, sound.rate_hz)
            except (MediaError, OSError):
                return  # it is named as failed when its turn comes
            for fact in facts:
                if fact.name in evidence.RELATIVE:
                    found.setdefault(speaker, {}).setdefault(fact.name, []).append(fact.value)

        samples = (item for item in clips if isinstance(item, Sample))
        await for_each(samples, measure, n_workers=_cores(), stop=self.stop)
        for speaker, values in found.items():
            medians = {name: round(statistics.median(all_), 3) for name, all_ in values.items() if len(all_) > 1}
            if medians:
                self.usual[speaker] = medians

    def _failed(self, name: str, where: str, reason: str, count: Counter[str], key: str, kind: str = "") -> None:
        count[kind or reason] += 1
        row = {"key": key, "id": name, "where": where, "reason": reason, "dropped": count is self.totals.dropped}
        if self.store.failures.latest(name) != row:
            self.store.failures.append(row)
        self._advance()

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


def _lacks(record: Annotation) -> list[str]:
    """Kinds of clues that a record is without, and a missing transcript or label set."""
    told = {clue.modality for clue in record.clues}
    lacks = [f"{name} clue" for name in ("visual", "acoustic", "lexical") if record.clues and name not in told]
    return lacks + ["transcript"] * (not record.transcript) + ["labels"] * (not record.labels)


def _on_signals(stop: Stop) -> None:
    """The first Ctrl-C or SIGTERM lets calls in flight end (they are paid); the second leaves at once."""
    loop = asyncio.get_running_loop()

    def ask(name: str) -> None:
        if stop.reason in _SIGNALS:
            os._exit(_SIGNALS[name])  # nothing half-written can stay: lines are whole, and answers not yet in are lost
        print("\nstopping: waiting for the calls in flight; once more to leave at once", file=sys.stderr)
        stop.set(name)

    for name in _SIGNALS:
        loop.add_signal_handler(getattr(signal, name), ask, name)


def write_outputs(store: Store) -> int:
    """failed.jsonl and manifest.jsonl from what stands in the folder now; returns the manifest's rows."""
    failed = (row for row in store.failures.rows() if not row.get("mended"))
    shown = ({name: row[name] for name in ("id", "where", "reason", "dropped")} for row in failed)
    write_lines_atomic(store.folder / "failed.jsonl", (json.dumps(row, ensure_ascii=False) for row in shown))
    return write_manifest(store.folder / "manifest.jsonl", (from_row(row) for row in store.records.rows()))


def told(totals: Totals, row: dict[str, Any], config: AnnotateConfig) -> str:
    """The report on screen."""
    done = totals.made + totals.there
    lines = [f"{done} of {totals.n_clips} clips complete ({totals.made} now, {totals.there} before)"]
    for what, counts in (("failed", totals.failed), ("dropped", totals.dropped)):
        lines += [f"  {what:<9}{n:>6}  {reason[:140]}" for reason, n in counts.most_common(10)]
    if totals.n_left:
        lines.append(f"  left     {totals.n_left:>6}  not begun or not finished; the same command goes on")
    lines += [f"  without  {n:>6}  {what}" for what, n in totals.without.most_common()]
    lines += [f"  {what[:9]}{n:>6}  {what[9:]}" for what, n in totals.checked.most_common()]
    tokens = f"{row['tokens_in']:,} tokens in, {row['tokens_out']:,} out"
    uncounted = f", {row['uncounted']} answers without a token count" if row["uncounted"] else ""
    lines.append(
        f"calls {totals.calls} ({totals.repaired} repairs, {totals.retries} retries), {tokens}{uncounted}, "
        f"cost {row['cost']:.4f} (folder: {row['cost_of_folder']:.4f}), {totals.seconds:.1f} s"
    )
    if row["stopped_by"] == "budget":
        lines.append(f"stopped: the next call could exceed budget={config.budget:g}; raise it to go on")
    elif row["stopped_by"]:
        lines.append(f"stopped by {row['stopped_by']}")
    lines.append(f"{config.out}: records.jsonl, manifest.jsonl ({row['manifest_rows']} rows), failed.jsonl")
    return "\n".join(lines)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def records_of(folder: Path) -> Iterator[Annotation]:
    """The newest record of each clip in an output folder."""
    store = Store(folder)
    try:
        for row in store.records.rows():
            yield from_row(row)
    finally:
        store.close()
