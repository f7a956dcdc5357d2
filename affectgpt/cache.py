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
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from affectgpt.conf_schema import CacheConfig, SourceConfig
from affectgpt.runtime import UserError, set_up_logging
from affectgpt.schema import BadSample, Sample

if TYPE_CHECKING:
    from affectgpt.data.states import StateStore
    from affectgpt.models import ModelSpec

log = logging.getLogger("affectgpt")

_CLIPS_A_TASK = 8
GB = 10**9


@dataclass(frozen=True)
class Job:
    """What a process needs to encode clips; plain values, so that it can travel to a process or a cluster."""

    spec: ModelSpec
    folder: Path
    backend: str
    device: str


# ---- building --------------------------------------------------------------------------------------------------------


def run_build(config: CacheConfig) -> int:
    """Encode every clip of the data set; exit code 0, or 3 if clips were left out (listed in bad_samples.jsonl)."""
    from affectgpt.data.facts import facts_in
    from affectgpt.data.sources import report_bad
    from affectgpt.loading import model_spec, quiet_libraries, torch_device
    from affectgpt.training.stages import read_sources

    start = time.monotonic()
    quiet_libraries()
    sources: list[SourceConfig] = [*config.data.coarse, *config.data.fine, *config.data.test]
    if not sources:
        raise UserError(f"data {config.data.name!r} names no manifest; see conf/data")
    parts, bad = read_sources(sources, config.data, facts=facts_in(Path(config.paths.cache)))
    samples = list({(sample.video, sample.audio): sample for part in parts for sample in part.samples}.values())
    folder = Path(config.paths.cache)
    device = torch_device(config.device)
    job = Job(model_spec(config.model, seed=0), folder, config.data.backend, device.type)
    tasks = [samples[first : first + _CLIPS_A_TASK] for first in range(0, len(samples), _CLIPS_A_TASK)]
    engine = {"processes": in_processes, "ray": on_ray}.get(config.engine)
    if engine is None:
        raise UserError(f"engine is {config.engine!r}; expected processes or ray")
    n_done = 0
    with tqdm(total=len(samples), desc="encoding", unit="clip") as bar:
        for n_good, left_out in engine(job, tasks, config.n_processes):
            n_done += n_good
            bad += left_out
            bar.update(n_good + len(left_out))
            if bad and config.data.on_bad == "raise":
                raise UserError(
                    f"sample {bad[0].id!r} ({bad[0].where}): {bad[0].reason}. Mend or remove it, or leave out such "
                    "samples with data.on_bad=skip; what was encoded is kept"
                )
    folder.mkdir(parents=True, exist_ok=True)
    report_bad(bad, folder)
    n_bytes = sum(store.n_bytes for store in stores(folder))
    log.info(
        "%d clips in the cache, %d left out, %.1f s; %s holds %.2f GB of states",
        n_done,
        len(bad),
        time.monotonic() - start,
        folder / "features",
        n_bytes / GB,
    )
    return 3 if bad else 0


Result = tuple[int, list[BadSample]]


class Encoder:
    """Encoders without an LLM behind them, in one process: clips in, number of good ones and the bad ones out."""

    def __init__(self, job: Job, number: int = 0) -> None:
        import torch

        from affectgpt.loading import clip_reader, quiet_libraries
        from affectgpt.models import build

        quiet_libraries()
        model, processor = build(job.spec, load_llm=False)
        device = job.device
        if device == "cuda":
            device = f"cuda:{number % torch.cuda.device_count()}"
        model.encoders.to(device)
        self._modalities = model.modalities
        self._reader = clip_reader(model, processor, backend=job.backend, cache_folder=job.folder)

    def __call__(self, samples: Sequence[Sample]) -> Result:
        good, bad = self._reader.prepare(samples, self._modalities, on_bad="skip", what="", progress=False)
        return len(good), bad


_encoder: Encoder | None = None


def _start(job: Job, numbers: Any) -> None:
    import torch

    global _encoder
    if job.device == "cpu":
        torch.set_num_threads(1)  # one clip a core is faster than one clip on all cores
    _encoder = Encoder(job, numbers.get())


def _encode(samples: Sequence[Sample]) -> Result:
    assert _encoder is not None
    return _encoder(samples)


def in_processes(job: Job, tasks: Sequence[Sequence[Sample]], n_processes: int | None) -> Iterator[Result]:
    """Encode on this machine: one process a core, or one a card."""
    import torch

    if n_processes is None:
        n_processes = torch.cuda.device_count() if job.device == "cuda" else _n_cores()
    n_processes = max(1, min(n_processes, len(tasks)))
    if n_processes == 1:
        yield from map(Encoder(job), tasks)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(n_processes):
        numbers.put(number)
    with context.Pool(n_processes, _start, (job, numbers)) as pool:
        yield from pool.imap_unordered(_encode, tasks)


def on_ray(job: Job, tasks: Sequence[Sequence[Sample]], n_processes: int | None) -> Iterator[Result]:
    """Encode on a Ray cluster: one actor a card or a core; the cache must lie on storage that all nodes share."""
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise UserError("engine=ray needs ray: pip install 'affectgpt[cluster]'") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    resource = "GPU" if job.device == "cuda" else "CPU"
    n_actors = n_processes or int(ray.cluster_resources().get(resource, 1))
    remote = ray.remote(num_gpus=1, num_cpus=1)(_Actor) if resource == "GPU" else ray.remote(num_cpus=1)(_Actor)
    pool = ActorPool([remote.remote(job) for _ in range(max(1, min(n_actors, len(tasks))))])
    yield from pool.map_unordered(lambda actor, task: actor.encode.remote(task), list(tasks))


class _Actor:
    """`Encoder` as a Ray actor; Ray shows each actor its own card as number 0."""

    def __init__(self, job: Job) -> None:
        self._encoder = Encoder(job)

    def encode(self, samples: Sequence[Sample]) -> Result:
        return self._encoder(samples)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- care ------------------------------------------------------------------------------------------------------------


def stores(cache: Path) -> list[StateStore]:
    """All stores below a cache folder."""
    from affectgpt.data.states import ABOUT, StateStore

    return [StateStore(path.parent) for path in sorted((cache / "features").glob(f"*/*/{ABOUT}"))]


def _title(store: StateStore) -> tuple[str, str]:
    from affectgpt.data.states import ABOUT

    about = json.loads((store.folder / ABOUT).read_text(encoding="utf-8"))
    encoder = about.get("encoder") or {}
    name = str(encoder.get("name", "?")).rstrip("/")
    shown = "/".join(Path(name).parts[-2:])
    return store.folder.parent.name, f"{shown} {encoder.get('layers', '')} {encoder.get('pool', '')}".strip()


def list_stores(cache: Path) -> str:
    """A table: modality, encoder, clips, size, last use, folder."""
    lines = [f"{'modality':<12}{'encoder, layer, pool':<44}{'clips':>9}{'GB':>9}  {'last used':<11}folder"]
    total = 0
    for store in stores(cache):
        modality, encoder = _title(store)
        used = time.strftime("%Y-%m-%d", time.localtime(store.last_used_s))
        total += store.n_bytes
        lines.append(
            f"{modality:<12}{encoder:<44}{len(store):>9,}{store.n_bytes / GB:>9.3f}  {used:<11}{store.folder.name}"
        )
    lines.append(f"{'all':<65}{total / GB:>9.3f}  below {cache / 'features'}")
    return "\n".join(lines)


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
    now_s = time.time() if now_s is None else now_s
    done = []
    for folder in sorted((cache / "features").glob("*/*")):
        if folder.is_dir() and not (folder / "about.json").exists():
            n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
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


def _remove(store: StateStore, why: str) -> str:
    n_bytes = store.n_bytes
    shutil.rmtree(store.folder)
    return f"removed {store.folder}: {why}, {n_bytes / GB:.3f} GB"


def main(arguments: Sequence[str] | None = None) -> int:
    """`ls`, `verify` and `gc`; anything else is a build, configured like training."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in ("ls", "verify", "gc"):
        from affectgpt import cli

        cli.cache()
        return 0
    set_up_logging()
    verb = arguments.pop(0)
    allowed = {"ls": (), "verify": ("repair",), "gc": ("max_gb", "unused_days")}[verb]
    options = dict(item.partition("=")[::2] for item in arguments)
    cache = Path(options.pop("paths.cache", os.environ.get("AFFECTGPT_CACHE", "~/.cache/affectgpt"))).expanduser()
    if unknown := sorted(set(options) - set(allowed)):
        print(f"{verb} takes {', '.join((*allowed, 'paths.cache'))}; found {unknown}", file=sys.stderr)
        return 2
    if verb == "ls":
        print(list_stores(cache))
        return 0
    if verb == "verify":
        return verify(cache, repair=options.get("repair") == "true")
    numbers = {name: float(value) for name, value in options.items()}
    print(collect(cache, max_gb=numbers.get("max_gb"), unused_days=numbers.get("unused_days")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
