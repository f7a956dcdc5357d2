"""Answers of the model to the prompts of a step, their rewards, and the limits that stop a run whose reward is gamed.

    prompts --several answers each, with seeds of their own--> attempts --rewards--> advantages, rollouts.jsonl

A seed is a function of the run's seed, the draw and the number of the answer, so that a resumed run, or one with
another number of processes, samples the same answers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affectgpt.clauses import shown_clues
from affectgpt.data.stream import Draw
from affectgpt.inference.answers import Answer, Sampling, sample_groups
from affectgpt.journal import append_rows, read_journal
from affectgpt.metrics.rewards import Attempt, Scorer, advantages, repetition, watched
from affectgpt.plots import Panel, draw_curves
from affectgpt.prompts import target_clauses
from affectgpt.runtime import UserError, json_line, sync, write_lines_atomic
from affectgpt.training.objectives import Row, Started
from affectgpt.training.reward_model import RewardModel

FILE = "rollouts.jsonl"


class RewardLimit(UserError):
    """The answers have left the limits in which their rewards mean something."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch: encoded rows without an answer, and their draws. No library moves it to the GPU."""

    rows: list[Row]
    draws: list[Draw]

    def __contains__(self, key: str) -> bool:
        return False  # the Trainer asks for "labels"


@dataclass
class Rollout:
    """The answers to the prompts of one batch, flat: G answers to the first prompt, then G to the second, ...

    Attributes:
        tokens: of each answer.
        advantages: [P * G].
        old: log-probabilities [K] of all tokens under the policy that drew them, from the first pass on.
        reference: the same under the reference; None = not needed.
    """

    tokens: list[tuple[int, ...]]
    advantages: list[float]
    old: Tensor | None = None
    reference: Tensor | None = None

    def texts(self, prompts: Prompts) -> list[Row]:
        """Prompt and answer, whose tokens are the labels; a row without media for each answer."""
        size = len(self.tokens) // len(prompts.rows)
        made = []
        for number, tokens in enumerate(self.tokens):
            row = prompts.rows[number // size]
            ids = row["input_ids"]
            new = torch.tensor(tokens, dtype=ids.dtype)
            labels = torch.cat([torch.full_like(ids, -100), new])
            made.append({"input_ids": torch.cat([ids, new]), "labels": labels})
            if "rope_ids" in row:  # of the prompt; `collate` continues them
                made[-1]["rope_ids"] = row["rope_ids"]
            if (places := row.get("position_ids")) is not None:
                after = places[-1] + 1 + torch.arange(len(new))
                made[-1]["position_ids"] = torch.cat([places, after])
        return made


def seed_of(seed: int, draw: int, number: int) -> int:
    """Seed from 0 to 2**63 - 1 of the `number`-th answer to a draw.

    >>> seed_of(42, 0, 0) != seed_of(42, 0, 1) != seed_of(42, 1, 0)
    True
    """
    digest = hashlib.blake2b(f"{seed} {draw} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def attempt_of(draw: Draw, answer: Answer) -> Attempt:
    sample = draw.sample
    subtitle = draw.with_subtitle and bool(sample.in_language(draw.lang, strict=False).subtitle)
    return Attempt(
        sample.id,
        answer.text,
        draw.task,
        draw.lang,
        draw.labels,
        target_clauses(sample, draw.lang, draw.clues) if sample.clauses or sample.description else (),
        shown_clues(draw.modalities, subtitle=subtitle, hears_words=True),
        sample.video,
        answer.n_tokens,
        answer.finish,
    )


class Rollouts:
    """Samples and scores the answers of a run.

    Args:
        scorer, weights: the rewards and their weights.
        batch_size: answers that are sampled together.
        kind: of the advantages, see `metrics.rewards.advantages`.
        limits: of `metrics.rewards.watched` and "kl": the mean over `n_steps` steps must not be above it, or for
            "in_format" below it.
    """

    def __init__(
        self,
        started: Started,
        scorer: Scorer,
        weights: Mapping[str, float],
        group_size: int,
        sampling: Sampling,
        *,
        batch_size: int,
        kind: str,
        limits: Mapping[str, float],
        n_steps: int,
        reward_model: RewardModel | None = None,
    ) -> None:
        self._started, self._scorer, self._weights, self._group_size = started, scorer, dict(weights), group_size
        self._sampling, self._kind, self._limits, self._n_steps = sampling, kind, dict(limits), n_steps
        self._reward_model = reward_model
        self._batch_size = batch_size
        self._file = started.run / FILE
        self.recent: list[dict[str, float]] = []  # what was watched in the last steps
        self.sums: dict[str, tuple[float, int]] = {}  # of each figure since the last log line: sum and count

    def __call__(
        self, batches: Sequence[Prompts], step: int, turn: int, updates: Sequence[float]
    ) -> tuple[list[Rollout], int, int]:
        """The rollouts of this process's batches, and the numbers of answers and of their tokens in all processes.

        Args:
            step: optimizer steps before this one.
            turn: rollouts before this one.
            updates: of the updates since then, this process's sums over tokens of KL divergence, of clipped ratios, and
                of 1.
        """
        started, begin = self._started, time.perf_counter()
        seed, processes = started.config.seed, started.processes
        size = len(batches[0].rows)
        first = turn * len(batches) * processes.world_size * size

        def mine() -> tuple[list[list[tuple[int, ...]]], list[list[Attempt]], np.ndarray, list[int], float, Any]:
            # The numbers of the draws in the stream, which hands its batches to the processes in turn.
            starts = [first + (number * processes.world_size + processes.rank) * size for number in range(len(batches))]
            drawn = [
                [seed_of(seed, start + n, k) for k in range(self._group_size)] for start in starts for n in range(size)
            ]
            rows = [row for batch in batches for row in batch.rows]
            groups = sample_groups(
                started.model, started.processor, rows, drawn, self._sampling, batch_size=self._batch_size
            )
            seeds = [each for group in drawn for each in group]
            sampled_s = time.perf_counter() - begin
            draws = [draw for batch in batches for draw in batch.draws]
            attempts = [
                [attempt_of(draw, answer) for answer in group] for draw, group in zip(draws, groups, strict=True)
            ]
            flat = [attempt for group in attempts for attempt in group]
            tokens = [[answer.tokens for answer in group] for group in groups]
            rewards = np.array(
                [
                    self._modelled(batches, tokens) if name == "model" else self._scorer.reward(name, flat)
                    for name in self._weights
                ]
            ).T  # [P * G, K]
            return tokens, attempts, rewards.reshape(len(groups), self._group_size, -1), seeds, sampled_s, updates

        was_training = started.model.training
        started.model.eval()
        found = processes.together(mine)
        started.model.train(was_training)
        weights = list(self._weights.values())
        attempts = [attempt for _, groups, *_ in found for group in groups for attempt in group]
        rewards = np.concatenate([each[2] for each in found])  # [P, G, K], of all processes
        by_prompt = advantages(rewards, weights, self._kind)
        self._note_updates(*np.sum([each[5] for each in found], axis=0).tolist())
        self._note(attempts, rewards, found[processes.rank][4], time.perf_counter() - begin)
        if processes.is_main:
            seeds = [seed for each in found for seed in each[3]]
            rows = self._rows(step + 1, attempts, rewards.reshape(-1, len(weights)), by_prompt.ravel(), seeds)
            append_rows(self._file, rows)
            if started.show is not None:
                started.show(step + 1, rows)
        tokens = found[processes.rank][0]
        before = sum(len(found[rank][1]) for rank in range(processes.rank))
        rollouts = []
        for number in range(len(batches)):
            part = slice(number * size, (number + 1) * size)
            own = by_prompt[before:][part].ravel().tolist()
            rollouts.append(Rollout([each for group in tokens[part] for each in group], own))
        return rollouts, len(attempts), sum(each.n_tokens for each in attempts)

    def _modelled(self, batches: Sequence[Prompts], tokens: Sequence[Sequence[tuple[int, ...]]]) -> list[float]:
        """The reward model's scores of the answers, which it sees with the clips."""
        assert self._reward_model is not None, "the reward `model` was not checked"
        found, groups = [], iter(tokens)
        for batch in batches:
            answers = [each for _ in batch.rows for each in next(groups)]
            langs = [draw.lang for draw in batch.draws for _ in range(self._group_size)]
            prompts = [row for row in batch.rows for _ in range(self._group_size)]
            texts = Rollout(answers, []).texts(batch)
            rows = [{**prompt, **text} for prompt, text in zip(prompts, texts, strict=True)]
            found += self._reward_model.scores(rows, langs)
        return found

    def _rows(
        self, step: int, attempts: Sequence[Attempt], rewards: np.ndarray, advantage: np.ndarray, seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        weights = np.array(list(self._weights.values()))
        return [
            {
                "step": step,
                "id": attempt.id,
                "answer": number % self._group_size,
                "task": attempt.task,
                "lang": attempt.lang,
                "shown": sorted(attempt.shown),
                "seed": seeds[number],
                "text": attempt.text,
                "labels": list(attempt.labels),
                "truth": list(attempt.truth),
                "n_tokens": attempt.n_tokens,
                "finish": attempt.finish,
                "rewards": dict(zip(self._weights, rewards[number].tolist(), strict=True)),
                "reward": float(rewards[number] @ weights),
                "advantage": float(advantage[number]),
                "video": attempt.video,
            }
            for number, attempt in enumerate(attempts)
        ]

    # ---- figures and limits ------------------------------------------------------------------------------------------

    def _note(self, attempts: Sequence[Attempt], rewards: np.ndarray, sampled_s: float, all_s: float) -> None:
        seen = watched(attempts)
        self.recent = [*self.recent, seen][-self._n_steps - 1 :]
        total = rewards @ np.array(list(self._weights.values()))  # [P, G]
        self._add(
            {
                "reward": float(total.mean()),
                "reward_std": float(total.std(axis=1).mean()),
                "equal_groups": float((np.ptp(total, axis=1) < 1e-9).mean()),
                **{f"reward_{name}": float(rewards[..., n].mean()) for n, name in enumerate(self._weights)},
                **seen,
                "sampled_s": sampled_s,
                "scored_s": all_s - sampled_s,
            }
        )

    def _note_updates(self, divergence: float, clipped: float, n_tokens: float) -> None:
        if n_tokens:
            figures = {"kl": divergence / n_tokens, "clipped": clipped / n_tokens}
            self.recent[-1] |= {"kl": figures["kl"]}
            self._add(figures)

    def _add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            total, n = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, n + 1)

    def means(self) -> dict[str, float]:
        """Means since the last call."""
        found = {name: total / n for name, (total, n) in self.sums.items()}
        self.sums = {}
        return found

    def check_limits(self, step: int) -> None:
        """Raise RewardLimit if the mean of a figure over the last steps is beyond its limit."""
        for name, limit in self._limits.items():
            values = [seen[name] for seen in self.recent if name in seen][-self._n_steps :]
            mean = sum(values) / max(len(values), 1)
            if len(values) == self._n_steps and (mean < limit if name == "in_format" else mean > limit):
                raise RewardLimit(
                    f"step {step + 1}: {_WHAT[name]} is {mean:.3g} on average over the last {self._n_steps} steps, the "
                    f"limit {limit:g} (stage.objective_options.limits.{name}). {_ADVICE[name]} The answers with their "
                    f"rewards are in {self._file}; the last checkpoint is kept, and resume=true with another limit "
                    "continues from it"
                )

    # ---- files -------------------------------------------------------------------------------------------------------

    def restore_file(self, step: int) -> None:
        """Drop the rows of steps after `step`, which are sampled again."""
        if self._started.processes.is_main and self._file.exists():
            kept = [row for row in read_journal(self._file) if row["step"] <= step]
            write_lines_atomic(self._file, map(json_line, kept))

    def force_to_disk(self) -> None:
        """Before a checkpoint counts as complete: a power failure must not leave fewer rows than its steps have."""
        if self._file.exists():
            sync(self._file)


def draw_rollouts(path: Path, runs: Mapping[str, Path]) -> None:
    """Draw rewards, labels, tokens and repetition of the answers of runs, by step, as `path` with .png, .svg and .pdf.

    Args:
        runs: a curve for each, by title; those without an answer are left out.

    Raises:
        MissingLibrary: matplotlib is not installed.
    """
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for title, run in runs.items():
        by_step: dict[int, list[dict[str, Any]]] = {}
        for row in read_journal(run / FILE):
            by_step.setdefault(row["step"], []).append(row)
        if not by_step:
            continue
        figures: dict[str, Callable[[dict[str, Any]], float]] = {
            f"reward {name}": lambda row, name=name: row["rewards"][name]  # type: ignore[misc]
            for name in next(iter(by_step.values()))[0]["rewards"]
        }
        figures |= {
            "labels of an answer": lambda row: len(row["labels"]),
            "tokens of an answer": lambda row: row["n_tokens"],
            "repeated word triples": lambda row: repetition(row["text"]),
        }
        for name, value in figures.items():
            means = [sum(map(value, rows)) / len(rows) for rows in by_step.values()]
            panels.setdefault(name, {})[title] = (list(by_step), means)
    if panels:
        draw_curves(path, [Panel(name, "step", name, curves) for name, curves in panels.items()], n_columns=3)


_WHAT = {
    "n_labels": "the number of labels of an answer",
    "n_tokens": "the length of an answer in tokens",
    "repetition": "the share of repeated word triples",
    "truncated": "the share of answers cut at max_new_tokens",
    "absent_claims": "the share of answers with a statement about what was not shown",
    "in_format": "the share of answers in format",
    "kl": "the KL divergence from the reference, per token,",
}
_ADVICE = {
    "n_labels": "Long lists raise the wheel reward: set stage.objective_options.penalty=p1.",
    "n_tokens": "Raise stage.objective_options.kl, or lower max_new_tokens.",
    "repetition": "Raise stage.objective_options.kl or lower stage.learning_rate.",
    "truncated": "Raise stage.objective_options.max_new_tokens, or kl.",
    "absent_claims": "Add the reward faithfulness.",
    "in_format": "Raise stage.objective_options.max_new_tokens if answers are cut; otherwise start from a model that "
    "has learned the form, and give the reward format more weight.",
    "kl": "Raise stage.objective_options.kl or lower stage.learning_rate.",
}
LIMITS = tuple(_WHAT)
