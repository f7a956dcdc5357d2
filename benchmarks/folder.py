"""A folder of clips, end to end: python benchmarks/folder.py [--size brief|demo] [--threads N]

From mp4 files to answers, with random models of the given size in their real formats. The first row works as published
code does: each clip in turn is decoded, encoded and answered by transformers' `generate`. The others do what infer.py
does: clips are decoded ahead in threads and answered in a batch that is refilled; then with cached encoder states, as
for a second question about the same clips, and with compiled layers (`generate.compile`). The cache is filled and the
layers are compiled before, and both are timed separately. All rows answer the same clips; their texts are compared.
Rows take turns and a row's time is the median of its turns.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import SIZES, Size, cpu_name, write_figures
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from affectgpt.cache.reader import clip_reader
from affectgpt.config import EncoderConfig, GenerateConfig, LLMConfig, ProjectorConfig, QuestionConfig, SamplingConfig
from affectgpt.data.sources import probe_samples, samples_from_paths
from affectgpt.demo.models import make_tokenizer
from affectgpt.demo.video import write_mp4
from affectgpt.inference.prediction import predict
from affectgpt.models import ModelSpec, build
from affectgpt.prompts import render
from affectgpt.runtime import quiet_libraries
from affectgpt.schema import Sample

CLIP_S, FRAME_RATE_HZ = 4.0, 12.5
SUBTITLE = "I told you that I would come, and I came, and nobody was there to open the door for me. " * 3


@dataclass
class Row:
    """One line of the table; `times` are seconds per clip, one for each turn."""

    name: str
    run: Callable[[Sequence[Sample]], Iterator[str]]
    n_clips: int
    times: list[float] = field(default_factory=list)


def write_clips(folder: Path, n: int) -> None:
    """Clips of 256 x 256 px with sound: coarse noise, different in each frame."""
    folder.mkdir()
    for number in range(n):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 255, (round(CLIP_S * FRAME_RATE_HZ), 16, 16, 3), dtype=np.uint8)
        sound = rng.normal(scale=0.1, size=round(16000 * CLIP_S)).astype(np.float32)
        frames = blocks.repeat(16, axis=1).repeat(16, axis=2)
        write_mp4(folder / f"clip{number:03d}.mp4", frames, rate_hz=FRAME_RATE_HZ, waveform=sound)


def build_model(size: Size, folder: Path) -> tuple[Any, Any]:
    """Random base models in `folder`, and the model built from them."""
    torch.manual_seed(0)
    make_tokenizer(folder / "llm", np.random.default_rng(0), 2000)
    config = copy.deepcopy(size.llm)
    config.vocab_size = max(config.vocab_size, len(AutoTokenizer.from_pretrained(folder / "llm")))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "llm")
    for name, config in size.encoders.items():
        AutoModel.from_config(config).save_pretrained(folder / name)
    (folder / "audio" / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
    projector = ProjectorConfig(dropout=0.0, **size.projector)
    model, processor = build(
        ModelSpec(
            llm=LLMConfig(str(folder / "llm")),
            encoders={
                name: EncoderConfig(str(folder / name), pool="frame" if name == "frames" else "tokens")
                for name in size.encoders
            },
            projectors=dict.fromkeys(size.encoders, projector),
            sampling=SamplingConfig(window_s=size.window_s, max_windows=size.n_windows),
        )
    )
    return model.eval(), processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="brief")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    began, size = time.perf_counter(), SIZES[options.size]
    quiet_libraries()

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, processor = build_model(size, folder)
        write_clips(folder / "clips", options.clips)
        samples, _ = probe_samples(samples_from_paths([folder / "clips"], SUBTITLE))
        decode, cached = clip_reader(model, processor), clip_reader(model, processor, cache_folder=folder / "cache")
        question = QuestionConfig()

        def one_by_one(samples: Sequence[Sample]) -> Iterator[str]:
            for sample in samples:
                media = decode(sample, model.modalities).media
                batch = processor(render(sample, modalities=model.modalities), media)
                new = model.generate(**batch, max_new_tokens=size.answer)[0, batch["input_ids"].shape[1] :]
                yield processor.tokenizer.decode(new, skip_special_tokens=True).strip()

        def batched(reader: Any, *, compiled: bool = False) -> Callable[[Sequence[Sample]], Iterator[str]]:
            generate = GenerateConfig(options.batch_size, size.answer, compile=compiled)

            def run(samples: Sequence[Sample]) -> Iterator[str]:
                rows = predict(model, processor, samples, reader, question=question, generate=generate)
                return (row.text for row in rows)

            return run

        few = max(2, options.clips // 8)
        rows = [
            Row("one by one, online", one_by_one, few),
            Row(f"batch {options.batch_size}, online", batched(decode), options.clips),
            Row(f"batch {options.batch_size}, cached", batched(cached), options.clips),
            Row(f"batch {options.batch_size}, cached, compiled", batched(cached, compiled=True), options.clips),
        ]
        prompt = processor.prompt_ids(render(samples[0], modalities=model.modalities))
        shape = f"LLM {size.llm.num_hidden_layers} x {size.llm.hidden_size}"
        frames = processor.branches["frames"]["n_frames"]
        print(
            f"size {options.size}: {shape}, prompts of {len(prompt)} and answers of {size.answer} tokens; "
            f"clips of {CLIP_S:.0f} s, {frames} frames"
        )
        print(
            f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}; "
            f"{options.clock} time; load average before {', '.join(f'{value:.1f}' for value in os.getloadavg())}"
        )
        start = clock()
        cached.prepare(samples, model.modalities, on_bad="raise", progress=False)
        filling = (clock() - start) / len(samples)
        texts = [list(row.run(samples[:few])) for row in rows]
        start = time.perf_counter()
        list(rows[-1].run(samples[: options.batch_size]))
        print(f"compiling and the first batch: {time.perf_counter() - start:.0f} s, not in the table")
        same = [sum(a == b for a, b in zip(each, texts[0], strict=True)) for each in texts]
        print(f"texts equal to the first row's: {', '.join(f'{n} of {few}' for n in same[1:])}")

        for _ in range(options.rounds):
            for row in rows:
                start = clock()
                n = sum(1 for _ in row.run(samples[: row.n_clips]))
                row.times.append((clock() - start) / n)
    reference = statistics.median(rows[0].times)
    print(f"\n{'':<26}  {'clips/s':>7}  {'ratio':>6}")
    for row in rows:
        seconds = statistics.median(row.times)
        print(f"{row.name:<26}  {1 / seconds:>7.2f}  {reference / seconds:>5.1f}x")
    print(f"{'filling the cache':<26}  {1 / filling:>7.2f}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"took {time.perf_counter() - began:.0f} s; load average after {load}")
    figures = {row.name: {"clips_s": 1 / statistics.median(row.times)} for row in rows}
    write_figures(options.json, {"rows": figures, "filling_clips_s": 1 / filling})


if __name__ == "__main__":
    main()
