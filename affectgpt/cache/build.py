"""Encode all clips of a data set ahead of training, on every core or card of this machine or of a Ray cluster.

Training and inference fill the cache as they go. A build can be stopped and run again: what is in the cache is not
encoded again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from affectgpt.cache.reader import clip_reader, face_needs_of
from affectgpt.cache.store import folder_bytes
from affectgpt.config import CacheConfig
from affectgpt.data.faces import face_needs
from affectgpt.data.facts import facts_in
from affectgpt.data.mixture import read_unprobed
from affectgpt.data.sources import probe_sample, report_bad
from affectgpt.models import ModelSpec, build, model_spec
from affectgpt.runtime import InputError, n_cores, quiet_libraries, torch_device
from affectgpt.schema import BadSample, Sample
from affectgpt.spread import Processes, Ray

log = logging.getLogger("affectgpt")

_CLIPS_PER_TASK = {"cpu": 8, "cuda": 128}
GB = 10**9


@dataclass(frozen=True)
class Outcome:
    """What became of some clips: how many are in the cache, which are bad, and how many did not fit the size limit."""

    n_cached: int
    bad: list[BadSample]
    n_refused: int


def run_build(config: CacheConfig) -> int:
    """Encode every clip of the data set; exit code 0, or 3 if clips were left out (listed in bad_samples.jsonl)."""
    start = time.monotonic()
    quiet_libraries()
    if config.engine not in ("processes", "ray"):
        raise InputError(f"engine is {config.engine!r}; expected processes or ray")
    if config.model.omni is not None:
        raise InputError(
            f"model={config.model.name}: states of omni models are not cached (docs/models.md); train without this step"
        )
    sources = [source for sources in config.data.training().values() for source in sources] + config.data.test
    if not sources:
        raise InputError(f"data {config.data.name!r} names no manifest; see conf/data")
    folder = Path(config.paths.cache)
    faces = face_needs(config.model.encoders, config.model.sampling, backend=config.data.backend)
    found, bad = read_unprobed(sources, config.data, facts_in(folder), faces)
    samples = list({_media(sample): sample for sample in found}.values())
    device = torch_device(config.device).type
    size = _CLIPS_PER_TASK[device]
    tasks = [samples[first : first + size] for first in range(0, len(samples), size)]
    workers: Processes | Ray
    if config.engine == "ray":
        workers = Ray(config.n_processes, gpu=device == "cuda")
    else:
        most = config.n_processes or (torch.cuda.device_count() if device == "cuda" else n_cores())
        workers = Processes(max(1, min(most, len(tasks))))
    make = partial(
        make_encoder,
        model_spec(config.model, seed=0),
        device=device,
        # One clip per core is faster than one clip on all cores.
        n_threads=1 if device == "cpu" and (workers.n > 1 or isinstance(workers, Ray)) else None,
        backend=config.data.backend,
        cache_folder=folder,
        limit_gb=config.paths.cache_limit_gb,
    )
    n_cached = n_refused = 0
    shown_s = 0.0
    with tqdm(total=len(samples), desc="encoding", unit=" clips") as bar:
        for ended in workers.run(make, tasks, name=lambda task: f"clips {task[0].id!r} to {task[-1].id!r}"):
            assert ended is not None
            outcome = ended[1]
            n_cached += outcome.n_cached
            n_refused += outcome.n_refused
            bad += outcome.bad
            if time.monotonic() - shown_s > 2.0:
                shown_s = time.monotonic()
                bar.set_postfix_str(f"{folder_bytes(folder / 'features') / GB:.2f} GB in the cache", refresh=False)
            bar.update(outcome.n_cached + outcome.n_refused + len(outcome.bad))
            if bad and config.data.on_bad == "raise":
                raise InputError(
                    f"sample {bad[0].id!r} ({bad[0].where}): {bad[0].reason}. Fix or remove it, or leave out bad "
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
    if n_refused:
        log.warning(
            "%d clips do not fit paths.cache_limit_gb=%g: training encodes them each time they are drawn; raise the "
            "limit, or free space with `python -m affectgpt.cache gc`",
            n_refused,
            config.paths.cache_limit_gb,
        )
    return 3 if bad or n_refused else 0


def _media(sample: Sample) -> tuple[str | None, ...]:
    return sample.video, sample.audio, sample.face, sample.face_order, sample.person


def make_encoder(
    spec: ModelSpec,
    worker: int,
    *,
    device: str,
    n_threads: int | None,
    backend: str,
    cache_folder: Path,
    limit_gb: float | None,
) -> Callable[[Sequence[Sample]], Outcome]:
    """The encoders of a model without its LLM, in one worker: a function that encodes clips into the cache.

    It takes samples that are not probed. Faces are looked for here, so that a clip is decoded once for them and for the
    encoders.

    Args:
        worker: number of the worker; with device "cuda", of its card.
        n_threads: of torch; None = as they are.
    """
    quiet_libraries()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    model, processor = build(spec, load_llm=False)
    model.encoders.to(f"cuda:{worker % torch.cuda.device_count()}" if device == "cuda" else device)
    facts = facts_in(cache_folder)
    reader = clip_reader(model, processor, backend=backend, cache_folder=cache_folder, limit_gb=limit_gb, facts=facts)
    probe = partial(probe_sample, facts=facts, faces=face_needs_of(model, processor, backend=backend))

    def encode(samples: Sequence[Sample]) -> Outcome:
        prepared = reader.prepare(samples, model.modalities, on_bad="skip", progress=False, probe=probe)
        return Outcome(len(prepared.good) - prepared.n_uncached, prepared.bad, prepared.n_uncached)

    return encode
