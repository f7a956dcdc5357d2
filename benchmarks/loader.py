"""Benchmark data loading: python benchmarks/loader.py [costs] [start] [build] [wait] [--size brief|demo] [--clips ...]

    costs   CPU time of each step that depends on the number of clips, and of one draw
    start   time from the command `train.py` to its first step, with media facts from an earlier run
    build   `affectgpt.cache` on one core and on all: clips/s and utilisation of the cores
    wait    fraction of a run's time spent waiting for the loader: in the first epoch and with cached states

Base models have the shapes of benchmarks/step.py and random weights. Clips are noise with a tone. Large data sets
consist of hard links to a few files, with a different fake hash and fake states for each link.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from step import SIZES, Size, write_figures
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Blip2VisionModel,
    HubertModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    VideoMAEModel,
)

from affectgpt.cache.reader import clip_reader
from affectgpt.config import DataConfig, ModelConfig, SourceConfig, StageConfig
from affectgpt.data.facts import FILE, MediaFacts
from affectgpt.data.mixture import Source, read_mixture, read_samples
from affectgpt.data.stream import TrainingStream
from affectgpt.demo.video import write_mp4
from affectgpt.models import build, model_spec
from affectgpt.runtime import quiet_libraries, write_text_atomic
from affectgpt.schema import Sample, write_jsonl
from affectgpt.training.loader import Batches
from affectgpt.training.objectives.supervised import Objective

ROOT = Path(__file__).parent.parent
TEXT = "The brows are lowered, the lips are pressed and the voice is flat, so the person may be sad or angry. "
MODELS = {"audio": HubertModel, "frames": Blip2VisionModel, "motion": VideoMAEModel}


def write_base_models(size: Size, folder: Path) -> dict[str, Any]:
    """Write random models of this size; returns the contents of a conf/model file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder / "llm"
    )
    torch.manual_seed(0)
    LlamaForCausalLM(size.llm).save_pretrained(folder / "llm")
    for name, config in size.encoders.items():
        MODELS[name](config).save_pretrained(folder / name)
    projector = {"kind": "qformer", **size.projector}
    return {
        "name": "benchmark",
        "llm": {"path": str(folder / "llm")},
        "encoders": {name: {"path": str(folder / name)} for name in size.encoders},
        "projectors": dict.fromkeys(size.encoders, projector),
        "sampling": {"window_s": size.window_s, "max_windows": size.n_windows},
    }


def write_clips(folder: Path, n: int, *, seconds: float, edge: int, rate_hz: int = 10) -> list[Path]:
    folder.mkdir(parents=True)
    for number in range(n):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 255, (round(seconds * rate_hz), edge // 8, edge // 8, 3), dtype=np.uint8)
        frames = small.repeat(8, axis=1).repeat(8, axis=2)
        sound = 0.3 * np.sin(2 * np.pi * (200 + number) * np.arange(round(16000 * seconds)) / 16000)
        write_mp4(folder / f"{number}.mp4", frames, rate_hz=rate_hz, waveform=sound.astype(np.float32))
    return sorted(folder.iterdir())


def write_manifest(path: Path, files: Sequence[Path]) -> None:
    write_jsonl(
        path,
        [
            Sample(
                f"clip{number:06d}",
                video=str(file),
                subtitle=f"This is sentence {number}.",
                description=TEXT * 2 + f"It is clip {number}.",
                labels=("sad", "angry"),
            )
            for number, file in enumerate(files)
        ],
    )


def many_clips(folder: Path, n: int) -> Path:
    """Write a manifest of `n` clips: hard links to a few files."""
    few = write_clips(folder / "few", 32, seconds=0.5, edge=32)
    names = [folder / "many" / f"{number:06d}.mp4" for number in range(n)]
    (folder / "many").mkdir()
    for number, name in enumerate(names):
        os.link(few[number % len(few)], name)
    write_manifest(folder / "m.jsonl", names)
    return folder / "m.jsonl"


def write_fake_facts(folder: Path, manifest: Path, config: Any) -> None:
    """Write facts, hashes and (small) states of every clip, like an earlier run."""
    cache = folder / "cache"
    cache.mkdir()
    model, processor = build(model_spec(config, seed=0), load_llm=False)
    reader = clip_reader(model, processor, cache_folder=cache)
    widths = {name: base.hidden_size for name, base in SIZES["demo"].encoders.items() if name in model.modalities}
    states = {name: torch.zeros(8, model.config.projector(name).input_size) for name in widths}
    lines = []
    with manifest.open(encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            status = os.stat(row["video"])
            digest = hashlib.sha256(row["id"].encode()).hexdigest()
            info = {"has_video": True, "has_audio": True, "duration_s": 0.5}
            lines.append(
                json.dumps([row["video"], status.st_size, status.st_mtime_ns, {"info": info, "sha256": digest}])
            )
            for name, state in states.items():
                reader._cache.write(name, digest, state, {})
    write_text_atomic(cache / FILE, "\n".join(lines) + "\n")


class Clock:
    """CPU seconds by name; less sensitive to other jobs than wall-clock time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, per: int = 1) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = (time.process_time() - start) / per


def costs(options: argparse.Namespace, folder: Path, config: Any) -> dict[str, Any]:
    """One row per step, one column per number of clips."""
    columns: dict[int, dict[str, float]] = {}
    for n in options.clips:
        place = folder / f"costs{n}"
        place.mkdir()
        manifest = many_clips(place, n)
        clock = Clock()
        source = SourceConfig(manifest=str(manifest))
        data = DataConfig(name="benchmark")
        if n <= 10_000:
            with clock("probe, first time (us per clip)", per=n):
                read_samples([source], data, MediaFacts(place / "first" / FILE))
            clock.seconds["probe, first time (us per clip)"] *= 1e6
        write_fake_facts(place, manifest, config)
        facts = MediaFacts(place / "cache" / FILE)
        with clock("manifest, known facts, texts"):
            sources, _ = read_mixture([source], data, StageConfig(name="benchmark"), facts)
        samples = sources[0].samples
        model, processor = build(model_spec(config, seed=0), load_llm=False)
        reader = clip_reader(model, processor, cache_folder=place / "cache")
        with clock("index and lookup in the cache"):
            assert reader.prepare(samples, model.modalities, on_bad="raise").n_uncached == 0
        with clock("300,000 draws: shuffle"):
            stream = TrainingStream(
                [Source(samples)], modalities=model.modalities, length=300_000, seed=0, modality_dropout=0.1
            )
        batches = Batches(Objective(), processor, reader, model, packed=True)
        with clock("first example"):
            batches([stream[0]])
        some = np.random.default_rng(0).integers(0, len(stream), 500).tolist()
        with clock("a draw (us)", per=len(some)):
            for number in some:
                stream.draw(number)
        with clock("an example, new text (us)", per=len(some)):
            for number in some:
                batches([stream[number]])
        with clock("an example again (us)", per=len(some)):
            for number in some:
                batches([stream[number]])
        for name in ("a draw (us)", "an example, new text (us)", "an example again (us)"):
            clock.seconds[name] *= 1e6
        columns[n] = clock.seconds
    print("CPU seconds, or us            " + "".join(f"{n:>12,}" for n in columns))
    for name in columns[options.clips[-1]] | columns[options.clips[0]]:
        cells = "".join(f"{columns[n][name]:12.3f}" if name in columns[n] else f"{'-':>12}" for n in columns)
        print(f"{name:<31}{cells}")
    return {str(n): seconds for n, seconds in columns.items()}


def train_command(folder: Path, manifest: Path, **settings: object) -> list[str]:
    sources = [{"manifest": str(manifest)}]
    values = {
        "stage": "coarse",
        "model": "benchmark",
        "data.coarse": json.dumps(sources).replace('"', ""),
        "data.fine": "[]",
        "data.test": "[]",
        "stage.log_every": 1,
        "stage.n_validation": 0,
        "paths.runs": folder / "runs",
        "paths.cache": folder / "cache",
        "device": "cpu",
        "hydra.searchpath": f"[file://{folder.parent}/conf]",
    }
    return [
        sys.executable,
        str(ROOT / "train.py"),
        *(f"{key}={value}" for key, value in {**values, **settings}.items()),
    ]


def start(options: argparse.Namespace, folder: Path, config: Any) -> dict[str, Any]:
    """Seconds from the command to the first line of metrics.jsonl."""
    n = max(options.clips)
    place = folder / "start"
    place.mkdir()
    manifest = many_clips(place, n)
    write_fake_facts(place, manifest, config)
    figures = {}
    for title, extra in (("--help", ["--help"]), ("first step", [])):
        times, worked = [], []
        for turn in range(options.rounds):
            runs = place / f"runs-{turn}"
            command = [*train_command(place, manifest, **{"paths.runs": runs}), *extra]
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            with (place / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
                while process.poll() is None and not any(runs.glob("*/metrics.jsonl")):
                    time.sleep(0.02)
                while process.poll() is None and not any(path.stat().st_size for path in runs.glob("*/metrics.jsonl")):
                    time.sleep(0.02)
                times.append(time.perf_counter() - began)
                if process.poll() not in (None, 0):
                    sys.exit((place / "log").read_text())
                process.kill()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            worked.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        print(f"{title} of {n:,} clips: {min(times):.2f} s (best of {len(times)}), {min(worked):.2f} s of CPU time")
        figures[title] = min(times)
    return figures


def measured(command: Sequence[str]) -> tuple[float, float, str]:
    """(seconds, CPU seconds, output) of a command and its child processes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout + done.stderr


def build_cache(options: argparse.Namespace, folder: Path, config: Any) -> dict[str, Any]:
    place = folder / "build"
    place.mkdir()
    write_manifest(place / "m.jsonl", write_clips(place / "clips", options.n_build, seconds=3.0, edge=240, rate_hz=25))
    n_cores, figures = os.cpu_count() or 1, {}
    for n_processes in (1, n_cores):
        command = train_command(place, place / "m.jsonl")
        kept = [item for item in command[2:] if not item.startswith(("stage", "paths.runs"))]
        kept += [f"n_processes={n_processes}", f"paths.cache={place}/cache-{n_processes}"]
        os.environ["OMP_NUM_THREADS"] = "1"
        again = [measured([sys.executable, "-m", "affectgpt.cache", *kept])[:2] for _ in range(2)]
        (wall, cpu), (idle_wall, idle_cpu) = again
        seconds = wall - idle_wall
        print(
            f"build by {n_processes} processes: {options.n_build} clips of 3 s in {wall:.1f} s, {idle_wall:.1f} s of "
            f"them starting; {seconds / options.n_build * 1e3:.0f} ms per clip, "
            f"{options.n_build / seconds:.1f} clips/s, "
            f"{(cpu - idle_cpu) / (seconds * n_processes):.0%} of {n_processes} cores busy"
        )
        del os.environ["OMP_NUM_THREADS"]
        figures[f"seconds a clip, {n_processes} processes"] = seconds / options.n_build
    n_bytes = sum(path.stat().st_size for path in (place / "cache-1" / "features").rglob("*") if path.is_file())
    print(f"{n_bytes / options.n_build / 1e6:.2f} MB of states per clip")
    return figures


def wait(options: argparse.Namespace, folder: Path, config: Any) -> dict[str, Any]:
    place, figures = folder / "wait", {}
    place.mkdir()
    write_manifest(place / "m.jsonl", write_clips(place / "clips", 24, seconds=3.0, edge=240, rate_hz=25))
    steps = {
        "stage.epochs": 1,
        "stage.iterations_per_epoch": options.steps,
        "stage.save_every": 10_000,
        "stage.warmup_steps": 1,
    }
    for title, settings in (
        ("cached", {}),
        ("cached, no loader processes", {"stage.n_workers": 0}),
        ("first epoch fills the cache", {"data.cache_features": "first_epoch", "paths.cache": place / "first"}),
        ("online", {"data.cache_features": "off"}),
    ):
        runs = place / title.replace(" ", "-").replace(",", "")
        measured(train_command(place, place / "m.jsonl", **steps, **settings, **{"paths.runs": runs}))
        (file,) = runs.glob("*/metrics.jsonl")
        rows = [row for row in map(json.loads, file.read_text().splitlines()) if "data_wait_share" in row]
        seconds = [3 / row["samples_per_s"] for row in rows]
        parts = {"first step": slice(0, 1), "steps 2-8": slice(1, 8), "later steps": slice(8, None)}
        cells = []
        for name, part in parts.items():
            waited = sum(row["data_wait_share"] * s for row, s in zip(rows[part], seconds[part], strict=True))
            cells.append(f"{name} {waited / sum(seconds[part]):.2%} of {sum(seconds[part]) / len(seconds[part]):.3f} s")
            figures[f"{title}, {name}"] = waited / sum(seconds[part])
        print(f"waits for data, {title}: " + ", ".join(cells))
    return figures


TASKS = {"costs": costs, "start": start, "build": build_cache, "wait": wait}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], default=[])
    parser.add_argument("--size", choices=SIZES, default="brief", help="model size for build and wait")
    parser.add_argument("--clips", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000, 115_595])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of start")
    parser.add_argument("--n-build", type=int, default=24, help="number of clips for build")
    parser.add_argument("--steps", type=int, default=40, help="steps per run of wait, with 3 samples each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    quiet_libraries()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; load average before: {load}")
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in options.tasks or TASKS:
            size = options.size if task in ("build", "wait") else "demo"
            conf = folder / task
            conf.mkdir()
            values = write_base_models(SIZES[size], conf / "base")
            (conf / "conf" / "model").mkdir(parents=True)
            write_text_atomic(conf / "conf" / "model" / "benchmark.yaml", yaml.safe_dump(values))
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), values))
            figures[task] = TASKS[task](options, conf, config)
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
