"""Generated tokens per second: python benchmarks/generate.py [--size brief|demo] [--dtype bfloat16]

Compares transformers' `generate` on padded batches, which keeps a batch until its last answer has ended, with the
greedy loop of affectgpt.engine, with and without compiled layers. All continue the same prompts of words and soft
tokens (from cached encoder states: projections are timed, encoders are not) by 0.8 to 1.2 of the mean number of tokens,
as answers differ in length. Tokens are compared before anything is timed, and compilation is timed separately. Rows
take turns and a row's time is the median of its turns, so that other work on the machine affects all of them alike;
--clock cpu with --threads 1 measures processor time, which other work affects least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step import SIZES, cpu_name, make_model, make_samples, peak_memory_mb, write_figures
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from affectgpt.engine import Prompt, greedy
from affectgpt.inference.answers import prompt_embeds
from affectgpt.models import AffectGPTProcessor


class Collator:
    """The part of a processor that batching needs."""

    class tokenizer:
        pad_token_id = 0

    branches: dict[str, Any] = {}  # noqa: RUF012
    collate = AffectGPTProcessor.collate


class EachItsLength(StoppingCriteria):
    """Ends each row at its own number of tokens."""

    def __init__(self, n_prompt: int, limits: Sequence[int]) -> None:
        self._ends = torch.tensor(limits) + n_prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] >= self._ends.to(input_ids.device)


@dataclass
class Row:
    """One line of the table; `times` are seconds per token, one for each turn."""

    name: str
    run: Callable[[Any, list[dict[str, Tensor]], list[int], int], list[list[int]]]
    batch_size: int
    times: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    @property
    def n_samples(self) -> int:
        """Two batches, so that a batch is refilled; at batch 1 four samples."""
        return max(4, 2 * self.batch_size)


def by_transformers(model: Any, rows: list[dict[str, Tensor]], limits: list[int], batch_size: int) -> list[list[int]]:
    answers = []
    for start in range(0, len(rows), batch_size):
        some, ends = rows[start : start + batch_size], limits[start : start + batch_size]
        batch = {key: value.to(model.device) for key, value in Collator().collate(some, for_generation=True).items()}
        n_prompt = batch["input_ids"].shape[1]
        output = model.generate(
            **batch, max_new_tokens=max(ends), stopping_criteria=StoppingCriteriaList([EachItsLength(n_prompt, ends)])
        )
        answers += [new[:end] for new, end in zip(output[:, n_prompt:].tolist(), ends, strict=True)]
    return answers


def by_engine(
    model: Any, rows: list[dict[str, Tensor]], limits: list[int], batch_size: int, *, compiled: bool = False
) -> list[list[int]]:
    waiting = list(range(len(rows)))

    def take(n: int) -> list[Prompt]:
        taken, waiting[:] = waiting[:n], waiting[n:]
        embeds = prompt_embeds(model, Collator(), [rows[i] for i in taken]) if taken else []
        return [Prompt(i, each, limits[i]) for i, each in zip(taken, embeds, strict=True)]

    ended = dict(greedy(model.language_model, take, batch_size=batch_size, stop_ids=[], compiled=compiled))
    return [ended[i] for i in range(len(rows))]


def states_of(model: Any, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoder states of a sample, on the CPU."""
    media = {key: value.to(model.device) for key, value in sample.items() if key not in ("input_ids", "labels")}
    return {name: each.cpu() for name, each in model.encode(media).items()}


by_compiled = partial(by_engine, compiled=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="brief")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    began, size = time.perf_counter(), SIZES[options.size]

    model = make_model(size, dtype=getattr(torch, options.dtype), lora=False).eval()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    model.to(options.device)
    rows = [
        Row(name, run, batch_size)
        for batch_size in options.batch_sizes
        for name, run in (("transformers", by_transformers), ("own loop", by_engine), ("compiled", by_compiled))
    ]
    samples = make_samples(size, max(row.n_samples for row in rows))
    generator, states = torch.Generator().manual_seed(0), states_of(model, samples[0])
    prompts, limits = [], []
    for sample in samples:
        n_answer = int((sample["labels"] != -100).sum())
        prompts.append({"input_ids": sample["input_ids"][:-n_answer]})
        prompts[-1] |= {
            f"{name}_states": each + 0.1 * torch.randn(each.shape, generator=generator) for name, each in states.items()
        }
        limits.append(n_answer)
    mean = statistics.mean(len(prompt["input_ids"]) for prompt in prompts)
    print(
        f"size {options.size}, {options.dtype}: LLM {size.llm.num_hidden_layers} x {size.llm.hidden_size}, vocabulary "
        f"{size.llm.vocab_size}; prompts of {mean:.0f}, answers of {statistics.mean(limits):.0f} tokens on average"
    )
    print(
        f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}; "
        f"{options.clock} time; load average before {', '.join(f'{value:.1f}' for value in os.getloadavg())}"
    )
    few = 6
    plain = by_transformers(model, prompts[:few], limits[:few], 1)
    same = [
        sum(a == b for a, b in zip(run(model, prompts[:few], limits[:few], n), plain, strict=True))
        for run, n in ((by_engine, 1), (by_engine, 4), (by_compiled, 4), (by_transformers, few))
    ]
    print(
        f"equal to transformers at batch 1, of {few} answers: own loop at batch 1 {same[0]}, at batch 4 {same[1]}, "
        f"compiled {same[2]}; transformers at batch {few} {same[3]}"
    )
    if options.dtype == "float32" and same[:3] != [few] * 3:
        raise SystemExit("answers differ in fp32")

    for row in rows:
        if row.run is by_compiled:
            start = time.perf_counter()
            row.run(model, prompts[: row.batch_size], limits[: row.batch_size], row.batch_size)
            print(f"compiling for batch {row.batch_size} and its first answers: {time.perf_counter() - start:.0f} s")
        n = min(row.n_samples, row.batch_size * 2)
        row.memory_mb = peak_memory_mb(lambda row=row, n=n: row.run(model, prompts[:n], [8] * n, row.batch_size))
    for _ in range(options.rounds):
        for row in rows:
            start = clock()
            row.run(model, prompts[: row.n_samples], limits[: row.n_samples], row.batch_size)
            row.times.append((clock() - start) / sum(limits[: row.n_samples]))

    seconds = {(row.name, row.batch_size): statistics.median(row.times) for row in rows}
    first = options.batch_sizes[0]
    titles = ("batch", "", "tokens/s", f"of batch {first}", "of transformers", "memory MB")
    print("\n{:>5}  {:<12}  {:>8}  {:>11}  {:>15}  {:>9}".format(*titles))
    for row in rows:
        mine = seconds[row.name, row.batch_size]
        print(
            f"{row.batch_size:>5}  {row.name:<12}  {1 / mine:>8.1f}  {seconds[row.name, first] / mine:>10.2f}x  "
            f"{seconds['transformers', row.batch_size] / mine:>14.2f}x  {row.memory_mb:>9.0f}"
        )
    print()
    for row in rows[-2:]:
        ratio = seconds["transformers", first] / seconds[row.name, row.batch_size]
        print(f"{row.name} at batch {row.batch_size} against transformers at batch {first}: {ratio:.2f}x")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"took {time.perf_counter() - began:.0f} s; load average after {load}")
    figures = [
        {
            "name": row.name,
            "batch": row.batch_size,
            "tokens_s": 1 / statistics.median(row.times),
            "memory_mb": row.memory_mb,
        }
        for row in rows
    ]
    write_figures(options.json, {"rows": figures})


if __name__ == "__main__":
    main()
