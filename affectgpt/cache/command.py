"""Build, list, check and clean the cache of encoder states:

    python -m affectgpt.cache model=affectgpt data=my_data          # encode all clips of a data set, all cores or cards
    python -m affectgpt.cache ls                                    # what lies there, whose, how large, last used when
    python -m affectgpt.cache verify [repair=true]                  # read everything against its checksums
    python -m affectgpt.cache gc [max_gb=500] [unused_days=30]      # drop damaged, doubled and long unused states

Training and inference fill the cache by themselves; building it ahead uses every core and card, and can be stopped and
started again: what is there is not made again.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from affectgpt.config import CacheCollectConfig, CacheConfig, CacheListConfig, CacheVerifyConfig
from affectgpt.runtime import InputError, UserError, n_cores, quiet_libraries, set_up_logging, torch_device
from affectgpt.schema import BadSample, Sample, sample_from_row, to_json
from affectgpt.tables import format_table

if TYPE_CHECKING:
    from affectgpt.cache.store import StateStore
    from affectgpt.models import ModelSpec

log = logging.getLogger("affectgpt")

_CLIPS_A_TASK = {"cpu": 8, "cuda": 128}
_TIMES = 3  # that a task is begun on a cluster before it is held for what ends the actors
GB = 10**9


@dataclass(frozen=True)
class Job:
    """What a process needs to encode clips; plain values, so that it can travel to a process or a cluster."""

    spec: ModelSpec
    folder: Path
    backend: str
    device: str
    limit_gb: float | None = None


@dataclass(frozen=True)
class Done:
    """What became of some clips: how many are in the cache, which are bad, and how many found no room."""

    n_cached: int
    bad: list[BadSample]
    n_without_room: int


# ---- building --------------------------------------------------------------------------------------------------------


def run_build(config: CacheConfig) -> int:
    """Encode every clip of the data set; exit code 0, or 3 if clips were left out (listed in bad_samples.jsonl)."""
    from affectgpt.cache.store import folder_bytes
    from affectgpt.data.facts import facts_in
    from affectgpt.data.mixture import read_samples
    from affectgpt.data.sources import report_bad
    from affectgpt.models import model_spec

    start = time.monotonic()
    quiet_libraries()
    engine = {"processes": in_processes, "ray": on_ray}.get(config.engine)
    if engine is None:
        raise UserError(f"engine is {config.engine!r}; expected processes or ray")
    sources = [source for sources in config.data.training().values() for source in sources] + config.data.test
    if not sources:
        raise UserError(f"data {config.data.name!r} names no manifest; see conf/data")
    folder = Path(config.paths.cache)
    found, bad = read_samples(sources, config.data, facts_in(folder))
    samples = list({_media(sample): sample for sample in found}.values())
    device = torch_device(config.device)
    spec = model_spec(config.model, seed=0)
    job = Job(spec, folder, config.data.backend, device.type, config.paths.cache_limit_gb)
    n_a_task = _CLIPS_A_TASK[device.type]
    tasks = [samples[first : first + n_a_task] for first in range(0, len(samples), n_a_task)]
    n_cached = n_without_room = 0
    shown_s = 0.0
    with tqdm(total=len(samples), desc="encoding", unit=" clips") as bar:
        for done in engine(job, tasks, config.n_processes):
            n_cached += done.n_cached
            n_without_room += done.n_without_room
            bad += done.bad
            if time.monotonic() - shown_s > 2.0:
                shown_s = time.monotonic()
                bar.set_postfix_str(f"{folder_bytes(folder / 'features') / GB:.2f} GB in the cache", refresh=False)
            bar.update(done.n_cached + done.n_without_room + len(done.bad))
            if bad and config.data.on_bad == "raise":
                raise UserError(
                    f"sample {bad[0].id!r} ({bad[0].where}): {bad[0].reason}. Mend or remove it, or leave out such "
                    "samples with data.on_bad=skip; what was encoded is kept"
                )
    folder.mkdir(parents=True, exist_ok=True)
    report_bad(bad, folder)
    log.info(
        "%d clips in the cache, %d left out, %.1f s; %s holds %.3f GB of states",
        n_cached,
        len(bad),
        time.monotonic() - start,
        folder / "features",
        folder_bytes(folder / "features") / GB,
    )
    if n_without_room:
        log.warning(
            "%d clips found no room under paths.cache_limit_gb=%g: training encodes them each time they come up; "
            "allow more, or free space with `python -m affectgpt.cache gc`",
            n_without_room,
            config.paths.cache_limit_gb,
        )
    return 3 if bad or n_without_room else 0


def _media(sample: Sample) -> tuple[str | None, ...]:
    return sample.video, sample.audio, sample.face, sample.face_order


class Encoder:
    """Encoders without an LLM behind them, in one process; clips in, what became of them out."""

    def __init__(self, job: Job, number: int = 0) -> None:
        import torch

        from affectgpt.cache.reader import clip_reader
        from affectgpt.models import build

        quiet_libraries()
        model, processor = build(job.spec, load_llm=False)
        device = job.device
        if device == "cuda":
            device = f"cuda:{number % torch.cuda.device_count()}"
        model.encoders.to(device)
        self._modalities = model.modalities
        self._reader = clip_reader(
            model, processor, backend=job.backend, cache_folder=job.folder, limit_gb=job.limit_gb
        )

    def __call__(self, samples: Sequence[Sample]) -> Done:
        done = self._reader.prepare(samples, self._modalities, on_bad="skip", progress=False)
        return Done(len(done.good) - done.n_uncached, done.bad, done.n_uncached)


_job: Job | None = None
_number = 0
_encoder: Encoder | None = None


def _start(job: Job, numbers: Any) -> None:
    """In a new process. The encoders wait for the first task, whose caller hears of what goes wrong with them."""
    import torch

    global _job, _number
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    set_up_logging()
    if job.device == "cpu":
        torch.set_num_threads(1)  # one clip a core is faster than one clip on all cores
    _job, _number = job, numbers.get()


def _encode(samples: Sequence[Sample]) -> Done:
    global _encoder
    if _encoder is None:
        assert _job is not None
        _encoder = Encoder(_job, _number)
    return _encoder(samples)


def in_processes(job: Job, tasks: Sequence[Sequence[Sample]], n_processes: int | None) -> Iterator[Done]:
    """Encode on this machine: one process a core, or one a card."""
    import torch

    if n_processes is None:
        n_processes = torch.cuda.device_count() if job.device == "cuda" else n_cores()
    n_processes = max(1, min(n_processes, len(tasks)))
    if n_processes == 1:
        yield from map(Encoder(job), tasks)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(n_processes):
        numbers.put(number)
    with ProcessPoolExecutor(n_processes, context, _start, (job, numbers)) as pool:
        try:
            for future in as_completed([pool.submit(_encode, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that encodes was killed, perhaps for want of memory; the same command goes on, "
                f"with fewer of them by n_processes (it was {n_processes})"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def on_ray(job: Job, tasks: Sequence[Sequence[Sample]], n_processes: int | None) -> Iterator[Done]:
    """Encode with Ray Data on a cluster, an actor a card or core; the cache must lie on storage that all nodes share.

    Actors that are lost begin anew, and with them their clips; what they have put into the cache is not made again.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise UserError(f"engine=ray needs Ray Data ({error}): pip install 'affectgpt[cluster]'") from error
    # For its own actors Ray Data makes Ray's core write an error that is none to the terminal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    is_ours = not ray.is_initialized()
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except ConnectionError as error:
        raise UserError(
            f"{error}; RAY_ADDRESS says which cluster, RAY_ADDRESS=local takes this machine alone, and "
            "RAY_BACKEND_LOG_LEVEL=warning shows why it did not answer"
        ) from error
    try:
        resource, share = ("GPU", {"num_gpus": 1}) if job.device == "cuda" else ("CPU", {"num_cpus": 1})
        n_actors = max(1, min(n_processes or int(ray.cluster_resources().get(resource, 1)), len(tasks)))
        begun = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Begun).remote()
        rows = [{"task": number, "clips": "\n".join(map(to_json, task))} for number, task in enumerate(tasks)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(job, begun),
            batch_size=1,  # of tasks; a block holds one, so that each is heard of as it ends
            compute=ray.data.ActorPoolStrategy(size=n_actors),
            **share,
        )
        _quieten(dataset.context)
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            for row in map(json.loads, batch["said"]):
                if "error" in row:
                    raise UserError(row["error"])
                yield Done(**{**row, "bad": [BadSample(**bad) for bad in row["bad"]]})
    except RayTaskError:
        raise  # a defect in what an actor runs; it carries the actor's traceback
    except RayError as error:
        raise UserError(f"a process of the Ray cluster ended ({error}); the same command goes on") from error
    finally:
        if is_ours:
            ray.shutdown()


def _quieten(context: Any) -> None:
    """No words of Ray Data on the terminal (its log is in the session's folder), and time for a cluster to grow."""
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)


class _Begun:
    """How often each task was begun; an actor, since Ray Data itself would begin a task for ever."""

    def __init__(self) -> None:
        self._times: Counter[int] = Counter()

    def again(self, task: int) -> int:
        self._times[task] += 1
        return self._times[task]


class _Actor:
    """`Encoder` in an actor of Ray Data, which shows each its own card as number 0; texts in, texts out.

    The encoders wait for the first task, and what the user can mend is told in words: an error would come back with
    advice on settings of Ray Data.
    """

    def __init__(self, job: Job, begun: Any) -> None:
        self._job = job
        self._begun = begun
        self._encoder: Encoder | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        return {"said": [json.dumps(self._said(*row)) for row in zip(batch["task"], batch["clips"], strict=True)]}

    def _said(self, task: int, clips: str) -> dict[str, Any]:
        import ray

        samples = [sample_from_row(json.loads(line)) for line in clips.split("\n")]
        if ray.get(self._begun.again.remote(int(task))) > _TIMES:
            error = (
                f"{_TIMES} processes of the Ray cluster ended over the clips {samples[0].id!r} to {samples[-1].id!r}"
            )
            return {"error": f"{error}, perhaps for want of memory; the same command goes on, what was encoded is kept"}
        try:
            if self._encoder is None:
                self._encoder = self._new_encoder()
            return asdict(self._encoder(samples))
        except UserError as error:
            return {"error": str(error)}

    def _new_encoder(self) -> Encoder:
        import torch

        if self._job.device == "cpu":
            torch.set_num_threads(1)
        return Encoder(self._job)


# ---- care ------------------------------------------------------------------------------------------------------------


def stores(cache: Path) -> list[StateStore]:
    """All stores below a cache folder."""
    from affectgpt.cache.store import ABOUT, StateStore

    return [StateStore(path.parent) for path in sorted((cache / "features").glob(f"*/*/{ABOUT}"))]


def _title(store: StateStore) -> tuple[str, str]:
    from affectgpt.cache.store import ABOUT

    about = json.loads((store.folder / ABOUT).read_text(encoding="utf-8"))
    encoder = about.get("encoder") or {}
    name = str(encoder.get("name", "?")).rstrip("/")
    shown = "/".join(Path(name).parts[-2:])
    return store.folder.parent.name, f"{shown} {encoder.get('layers', '')} {encoder.get('pool', '')}".strip()


def list_stores(cache: Path) -> str:
    """A table: modality, encoder, clips, size, last use, folder."""
    rows = [("modality", "encoder, layer, pool", "clips", "GB", "last used", "folder")]
    total = 0
    for store in stores(cache):
        used = time.strftime("%Y-%m-%d", time.localtime(store.last_used_s))
        total += store.n_bytes
        rows.append((*_title(store), f"{len(store):,}", f"{store.n_bytes / GB:.3f}", used, store.folder.name))
    rows.append(("all", "", "", f"{total / GB:.3f}", "", f"below {cache / 'features'}"))
    return format_table(rows, "llrrll")


def verify(cache: Path, *, repair: bool) -> int:
    """Read every entry; prints what is damaged. With `repair` it is dropped, to be made again. Exit code 0 or 1."""
    n_all = n_bad = 0
    for store in stores(cache):
        bad = store.damaged()
        n_all += len(store)
        n_bad += len(bad)
        modality, encoder = _title(store)
        print(f"{modality} {encoder}: {len(store):,} entries, {len(bad)} damaged")
        for name in bad[:10]:
            print(f"  {name}")
        if bad and repair:
            store.compact()
    if n_bad:
        print("dropped; they are made again when they are needed" if repair else "repair=true drops them")
    return 1 if n_bad and not repair else 0


def collect(cache: Path, *, max_gb: float | None, unused_days: float | None, now_s: float | None = None) -> str:
    """Free space: damaged and doubled entries always; then stores unused for long; then the least recently used ones
    until the rest fits. Returns what was done, a line each."""
    from affectgpt.cache.store import folder_bytes

    now_s = time.time() if now_s is None else now_s
    done = []
    for folder in _old_folders(cache):
        n_bytes = folder_bytes(folder)
        shutil.rmtree(folder)
        done.append(f"removed {folder}: an old layout that nothing reads, {n_bytes / GB:.3f} GB")
    kept = []
    for store in stores(cache):
        days = (now_s - store.last_used_s) / 86400
        if unused_days is not None and days > unused_days:
            done.append(_remove(store, f"unused for {days:.0f} days"))
            continue
        if freed := store.compact():
            done.append(f"{store.folder}: {freed / GB:.3f} GB of damaged or doubled entries")
        kept.append(store)
    kept.sort(key=lambda store: store.last_used_s)
    while max_gb is not None and kept and sum(store.n_bytes for store in kept) > max_gb * GB:
        done.append(_remove(kept.pop(0), f"the least recently used, over max_gb={max_gb:g}"))
    return "\n".join(done or ["nothing to do"])


def _old_folders(cache: Path) -> list[Path]:
    """Stores of one file an entry, as they were before there were shards; nothing else is taken for one."""
    folders = [path for path in (cache / "features").glob("*/*") if re.fullmatch("[0-9a-f]{16}", path.name)]
    return sorted(path for path in folders if any(path.glob("[0-9a-f][0-9a-f]/*.safetensors")))


def _remove(store: StateStore, why: str) -> str:
    n_bytes = store.n_bytes
    shutil.rmtree(store.folder)
    return f"removed {store.folder}: {why}, {n_bytes / GB:.3f} GB"


def run_ls(config: CacheListConfig) -> int:
    print(list_stores(Path(config.paths.cache)))
    return 0


def run_verify(config: CacheVerifyConfig) -> int:
    return verify(Path(config.paths.cache), repair=config.repair)


def run_gc(config: CacheCollectConfig) -> int:
    for name in ("max_gb", "unused_days"):
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise InputError(f"{name} is {value}; expected a number of at least 0")
    print(collect(Path(config.paths.cache), max_gb=config.max_gb, unused_days=config.unused_days))
    return 0
