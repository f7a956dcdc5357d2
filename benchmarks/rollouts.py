"""Sampled answers per second, several to each prompt: python benchmarks/rollouts.py [--size brief|demo] [--group 8]

Compares transformers' `generate(do_sample=True, num_return_sequences=G)`, with one prompt and with several prompts per
call, with the groups of affectgpt.engine (and of `generate` with our draw, the path without the engine). All draw
answers of 0.8 to 1.2 of the mean number of tokens to the same prompts of words and soft tokens, whose encoder states
are cached. --step times a complete step instead: a rollout, then the update of stage=reward with the forward pass of
its reference (without the scoring of answers), and a supervised step on the same answers.

Rows take turns, and a row's time is the median of its turns; a ratio is the median of those to the first row in the
same turn. Wall and processor time stand side by side: on a busy machine the latter, with --threads 1, says more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generate import Collator, EachItsLength, states_of
from step import SIZES, both_clocks, collate, cpu_name, make_model, make_samples, peak_memory_mb, write_figures
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from affectgpt.engine import Group, continue_groups
from affectgpt.inference.answers import Sampling, draw, prompt_embeds
from affectgpt.training.objectives.reward import policy_loss, token_weights
from affectgpt.training.reference import Reference
from affectgpt.training.rollouts import Prompts, Rollout

STOP = 2


def by_transformers(
    model: Any, rows: list[dict[str, Tensor]], limits: list[list[int]], n_prompts: int
) -> list[list[list[int]]]:
    answers = []
    for start in range(0, len(rows), n_prompts):
        some, ends = rows[start : start + n_prompts], limits[start : start + n_prompts]
        flat = [end for group in ends for end in group]
        batch = {key: value.to(model.device) for key, value in Collator().collate(some, for_generation=True).items()}
        n_prompt = batch["input_ids"].shape[1]
        output = model.generate(
            **batch, do_sample=True, num_return_sequences=len(ends[0]), max_new_tokens=max(flat), top_k=0,
            stopping_criteria=StoppingCriteriaList([EachItsLength(n_prompt, flat)]),
        )  # fmt: skip
        new = iter(output[:, n_prompt:].tolist())
        answers += [[next(new)[:end] for end in group] for group in ends]
    return answers


def by_engine(
    model: Any, rows: list[dict[str, Tensor]], limits: list[list[int]], n_prompts: int
) -> list[list[list[int]]]:
    """`n_prompts` groups are written together."""
    n_answers, sampling = len(limits[0]), Sampling()
    embeds = prompt_embeds(model, Collator(), rows)
    ends = {(i, j): end for i, group in enumerate(limits) for j, end in enumerate(group)}
    generator = torch.Generator().manual_seed(0)
    dice = {key: torch.rand(end, dtype=torch.float64, generator=generator) for key, end in ends.items()}
    groups = iter([Group([(i, j) for j in range(n_answers)], each, max(limits[i])) for i, each in enumerate(embeds)])

    def choose(logits: Tensor, active: Any) -> Tensor:
        tokens = draw(logits, torch.stack([dice[row.key][len(row.tokens)] for row in active]), sampling)
        last = torch.tensor([len(row.tokens) + 1 == ends[row.key] for row in active])
        return tokens.masked_fill(last.to(tokens.device), STOP)

    found = dict(
        continue_groups(
            model.language_model, lambda: next(groups, None), choose,
            batch_size=n_prompts * n_answers, stop_ids=[STOP], suppressed_ids=[STOP],
        )
    )  # fmt: skip
    return [[found[i, j] for j in range(n_answers)] for i in range(len(rows))]


class Updates:
    """What follows a rollout, on the same tokens: packed, with cached states, and an AdamW step of learning rate 0."""

    def __init__(self, model: Any, prompts: list[dict[str, Tensor]], answers: list[list[list[int]]]) -> None:
        self.model, self.size = model, len(answers[0])
        flat = Rollout([tuple(answer) for group in answers for answer in group], [])
        texts = flat.texts(Prompts(prompts, []))
        states = [{key: value for key, value in prompt.items() if key.endswith("_states")} for prompt in prompts]
        copies = [each for each in states for _ in range(self.size)]
        self.supervised_batch = self.packed([{**text, **each} for text, each in zip(texts, copies, strict=True)])
        media = [{**text, **each} for text, each in zip(texts[:: self.size], states, strict=True)]
        self.reward_batch = {**self.packed(media), **self.packed(texts), "copies": self.size}
        lengths = [len(tokens) for tokens in flat.tokens]
        self.advantages = torch.randn(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(model.device)
        self.weights = token_weights("dapo", lengths, len(lengths), sum(lengths), max(lengths)).to(model.device)
        self.reference, self.compared = Reference(model), torch.zeros(sum(lengths), device=model.device)
        self.optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.0)

    def packed(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: value.to(self.model.device) for key, value in collate(rows, packed=True, cached=True).items()}

    def _step(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def supervised(self) -> None:
        self._step(self.model(**self.supervised_batch).loss)

    def compare(self) -> None:
        """The forward pass of the reference."""
        with self.reference.inside(self.model):
            self.compared = torch.cat(self.model(**self.reward_batch, log_probs=True).log_probs).float()

    def update(self) -> None:
        def token_loss(new: Tensor, at: slice) -> Tensor:
            parts = new.detach(), self.advantages[at], self.compared[at]
            return policy_loss(new, *parts, 0.2, 0.2, 0.04)[0] * self.weights[at]

        self._step(self.model(**self.reward_batch, token_loss=token_loss).loss)


def time_steps(updates: Updates, rollout: Callable[[], Any], n_rounds: int) -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of a rollout and of each part of a step, which take turns: medians of the rounds."""
    parts = {"rollout": rollout, "supervised step": updates.supervised, "reference": updates.compare}
    parts["update"] = updates.update
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for name, part in parts.items():  # the first call allocates
        if name != "rollout":
            part()
    for _ in range(n_rounds):
        for name, part in parts.items():
            updates.model.train(name != "rollout")
            times[name].append(both_clocks(part))
    return {name: medians(each) for name, each in times.items()}


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Of wall and processor time."""
    wall, processor = zip(*times, strict=True)
    return statistics.median(wall), statistics.median(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="brief")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lora", action="store_true", help="with adapters on q_proj and v_proj")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8, help="prompts, all in one call or batch in the last rows")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", action="store_true", help="time complete steps instead")
    parser.add_argument(
        "--best", action="store_true", help="only one prompt per call by transformers, and the engine's largest batch"
    )
    parser.add_argument("--batch", type=int, help="answers that the engine writes together; default: all")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began, size = time.perf_counter(), SIZES[options.size]

    model = make_model(size, dtype=getattr(torch, options.dtype), lora=options.lora).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, suppress_tokens=[STOP])
    model.to(options.device)
    samples = make_samples(size, options.prompts)
    generator, states = torch.Generator().manual_seed(0), states_of(model, samples[0])
    prompts, limits = [], []
    for sample in samples:
        n_answer = int((sample["labels"] != -100).sum())
        prompts.append({"input_ids": sample["input_ids"][:-n_answer]})
        prompts[-1] |= {
            f"{name}_states": each + 0.1 * torch.randn(each.shape, generator=generator) for name, each in states.items()
        }
        spread = 0.8 + 0.4 * torch.rand(options.group, generator=generator)
        limits.append([round(size.answer * float(share)) for share in spread])
    n_tokens, n_answers = sum(map(sum, limits)), options.prompts * options.group
    print(
        f"size {options.size}, {options.dtype}{', LoRA' if options.lora else ''}: LLM {size.llm.num_hidden_layers} x "
        f"{size.llm.hidden_size}, vocabulary {size.llm.vocab_size}; {options.prompts} prompts of "
        f"{statistics.mean(len(prompt['input_ids']) for prompt in prompts):.0f} tokens, {options.group} answers of "
        f"{n_tokens / n_answers:.0f} to each"
    )
    print(
        f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}; "
        f"load average before {', '.join(f'{value:.1f}' for value in os.getloadavg())}"
    )
    if options.step:
        model.token_budget = 4096
        answers = by_engine(model, prompts, limits, options.prompts)
        updates = Updates(model, prompts, answers)
        took = time_steps(updates, lambda: by_engine(model, prompts, limits, options.prompts), options.rounds)
        sums = {
            "rollout + supervised step": ("rollout", "supervised step"),
            "reward step, kl=0": ("rollout", "update"),
            "reward step": ("rollout", "update", "reference"),
        }
        for name, parts in sums.items():
            wall, processor = zip(*(took[part] for part in parts), strict=True)
            took[name] = sum(wall), sum(processor)
        base = took["rollout + supervised step"]
        print(f"\n{'':<36}{'wall s':>10}{'ratio':>8}{'processor s':>13}{'ratio':>8}")
        for name, (wall, processor) in took.items():
            print(f"{name:<36}{wall:>10.2f}{wall / base[0]:>7.2f}x{processor:>13.2f}{processor / base[1]:>7.2f}x")
        print(f"load average after {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
        write_figures(options.json, {"seconds": {name: wall for name, (wall, _) in took.items()}})
        return
    n_together = options.batch or n_answers
    rows = [
        ("transformers, one prompt per call", by_transformers, 1),
        (f"transformers, {options.prompts} prompts per call", by_transformers, options.prompts),
        (f"engine, batch {options.group}", by_engine, 1),
        (f"engine, batch {n_together}", by_engine, n_together // options.group),
    ]
    if options.best:
        rows = [rows[0], rows[-1]]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in rows}

    def turn(name: str, run: Callable[..., list[list[list[int]]]], n_prompts: int) -> None:
        answers = run(model, prompts, limits, n_prompts)
        assert [[len(answer) for answer in group] for group in answers] == limits, name

    for _ in range(options.rounds):
        for row in rows:
            times[row[0]].append(both_clocks(lambda row=row: turn(*row)))
    few = [[8] * options.group for _ in prompts]
    memory = {
        name: peak_memory_mb(lambda run=run, n=n_prompts: run(model, prompts, few, n)) for name, run, n_prompts in rows
    }
    seconds = {name: medians(each) for name, each in times.items()}
    first = times[rows[0][0]]
    print(f"\n{'':<36}{'answers/s':>10}{'ratio':>8}{'processor s an answer':>23}{'ratio':>8}{'memory MB':>11}")
    for name, (wall, processor) in seconds.items():
        ratios = medians([(base[0] / own[0], base[1] / own[1]) for base, own in zip(first, times[name], strict=True)])
        print(
            f"{name:<36}{n_answers / wall:>10.2f}{ratios[0]:>7.2f}x{processor / n_answers:>23.3f}"
            f"{ratios[1]:>7.2f}x{memory[name]:>11.0f}"
        )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"took {time.perf_counter() - began:.0f} s; load average after {load}")
    figures = [
        {"name": name, "answers_s": n_answers / wall, "tokens_s": n_tokens / wall, "memory_mb": memory[name]}
        for name, (wall, _) in seconds.items()
    ]
    write_figures(options.json, {"rows": figures})


if __name__ == "__main__":
    main()
