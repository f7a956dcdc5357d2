"""Learning from rewards (GRPO): answers to a prompt are sampled, scored and compared with each other.

    prompts --`Rollouts`--> answers, advantages --log-probabilities of the model, and of the reference--> loss

    loss = sum of w_i * (-min(r A, clip(r, 1 - clip, 1 + clip_high) A) + kl * k3) over the tokens of all answers i

with r = exp(log p - log p_old), A the advantage of the answer, k3 = exp(d) - d - 1 for d = log p_reference - log p, and
w_i by `reduction`. docs/rewards.md has the sources. Dropout is off in such a stage, so that the model that is updated
is the one that has answered.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affectgpt.chat.served import ChatClient
from affectgpt.config import TrainConfig
from affectgpt.data.mixture import Source
from affectgpt.data.stream import Draw
from affectgpt.inference.answers import Sampling
from affectgpt.metrics.lexicon import load_lexicon
from affectgpt.metrics.rewards import ADVANTAGES, NEEDS, PENALTIES, Scorer, user_reward
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping
from affectgpt.prompts import target_labels
from affectgpt.runtime import InputError, MissingLibrary
from affectgpt.schema import Sample
from affectgpt.training.objectives import Hooks, Row, Started
from affectgpt.training.reference import Reference, turn_dropout_off
from affectgpt.training.reward_model import RewardModel, checkpoint_of
from affectgpt.training.rollouts import LIMITS, Prompts, Rollout, Rollouts, draw_rollouts

log = logging.getLogger("affectgpt")

REDUCTIONS = ("grpo", "dr_grpo", "dapo")
_STATE = "rollouts-{rank}.pt"
_EXPLAINED = ("both", "think", "description")
_OWN = ("advantages", "weights", "old", "reference", "number")  # keys of a batch that are not the model's


@dataclass
class Objective(Hooks):
    """Settings of `stage.objective_options`; rewards and group_size are `stage.rewards` and `stage.group_size`.

    Attributes:
        rewards: name -> weight, see `metrics.rewards`; weight 0 = only logged.
        group_size: answers to a prompt.
        advantages: group, centred or each, see `metrics.rewards.advantages`.
        penalty: length penalty of the rewards wheel, recall and dual: none, p1, p2, p3 or nano.
        reduction: grpo = mean over answers of their token means; dr_grpo = sum / (answers * max_new_tokens);
            dapo = mean over all tokens of the step.
        clip, clip_high: bounds of the ratio, 1 - clip and 1 + clip_high; clip_high None = clip.
        kl: weight of the KL divergence from the model at the start of the stage; 0 = none.
        passes: optimizer steps with the same answers.
        temperature, top_p, top_k, max_new_tokens: of sampling; max_new_tokens None = generate.max_new_tokens.
        reward_model: run or checkpoint of stage=reward_model, for reward model.
        sampled_together: answers that are sampled in one batch.
        judge: settings of the chat model of reward judge: model, base_url, concurrency ... as in `ChatClient`.
        limits: bounds of what is watched; the run stops where a mean over `limit_steps` steps is beyond one.
    """

    rewards: dict[str, float] = field(default_factory=lambda: {"wheel": 1.0, "format": 0.1})
    group_size: int = 8
    advantages: str = "group"
    penalty: str = "none"
    reduction: str = "dapo"
    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.04
    passes: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None
    sampled_together: int = 64
    reward_model: str | None = None
    judge: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    limit_steps: int = 10

    def __post_init__(self) -> None:
        for name, known in (("reduction", REDUCTIONS), ("advantages", ADVANTAGES), ("penalty", PENALTIES)):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"stage.objective_options.{name} is {value!r}; expected one of {list(known)}")
        at_least = {"group_size": 2, "passes": 1, "kl": 0, "clip": 0, "top_k": 0}
        at_least |= {"limit_steps": 1, "sampled_together": 1, "clip_high": 0, "max_new_tokens": 1}
        for name, low in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                where = "stage" if name == "group_size" else "stage.objective_options"
                why = "; an answer is compared with the others to its prompt" if name == "group_size" else ""
                raise InputError(f"{where}.{name} is {value}; expected at least {low}{why}")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"temperature is {self.temperature} and top_p {self.top_p}; expected a temperature above 0 and top_p "
                "in 0 to 1: equal answers teach nothing"
            )
        if odd := {name: weight for name, weight in self.rewards.items() if not math.isfinite(weight)}:
            raise InputError(f"stage.rewards has the weights {odd}; expected finite numbers")
        if not any(self.rewards.values()):
            raise InputError(f"stage.rewards is {self.rewards}; at least one reward needs a weight other than 0")
        if unknown := sorted(self.limits.keys() - set(LIMITS)):
            raise InputError(f"stage.objective_options.limits has {unknown}; expected some of {list(LIMITS)}")

    def __getstate__(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}  # loader processes need no model

    # ---- before the run ----------------------------------------------------------------------------------------------

    def check(self, config: TrainConfig, sources: Sequence[Source]) -> None:
        if config.strategy.name == "zero3":
            raise InputError("stage.objective=reward does not work with strategy=zero3; use single, ddp or zero2")
        if "judge" in self.rewards and not self.judge.get("model"):
            raise InputError("reward judge needs a chat model: stage.objective_options.judge.model=...")
        if "judge" in self.rewards:
            self._judge(Path())
        if "model" in self.rewards:
            checkpoint_of(self.reward_model, Path(config.paths.runs))
        needs = {name: NEEDS.get(name, ()) for name in self.rewards}
        for name in self.rewards:
            if name not in NEEDS:
                user_reward(name)
        grouping = WheelGrouping(load_lexicon("builtin"))
        n, n_off_wheel = 0, 0
        for source in sources:
            for name, needed in needs.items():
                if odd := [task for task in source.tasks if "explanation" in needed and task not in _EXPLAINED]:
                    raise InputError(
                        f"reward {name} needs an explanation, which answers to task {odd[0]} do not have; set "
                        f"stage.tasks to some of {list(_EXPLAINED)}, or leave the reward out"
                    )
                if "labels" in needed and "description" in source.tasks:
                    raise InputError(f"reward {name} needs labels in the answer, which task description does not have")
            for sample in source.samples:
                for lang in source.langs:
                    labels = target_labels(sample, lang)
                    n += 1
                    n_off_wheel += not any(name in grouping.groups(each) for each in labels for name in LEVEL1)
                    has = {"labels": bool(labels), "description": bool(sample.in_language(lang).description)}
                    lacking = [(name, need) for name in needs for need in needs[name] if not has.get(need, True)]
                    if lacking:
                        raise InputError(
                            f"reward {lacking[0][0]} needs {lacking[0][1]} to compare with, which sample "
                            f"{sample.id!r} does not have in {lang!r}; leave the sample or the reward out"
                        )
        if n_off_wheel and {"wheel", "recall", "precision", "dual"} & self.rewards.keys():
            log.warning(
                "%d of %d samples have no label on an emotion wheel, such as neutral: rewards by wheels are 0 for all "
                "answers to them, so they teach nothing", n_off_wheel, n,
            )  # fmt: skip

    def answers(self, sample: Sample, task: str, lang: str, prompt_format: str) -> list[None]:
        return [None]  # the model writes them, and generation has a limit of its own

    def start(self, started: Started) -> None:
        turn_dropout_off(started.model)
        self._started = started
        needs_reference = self.kl > 0 or "kl" in self.limits
        self._reference = Reference(started.model) if needs_reference else None
        judge = self._judge(started.run) if "judge" in self.rewards else None
        model = None
        if "model" in self.rewards:
            folder = checkpoint_of(self.reward_model, Path(started.config.paths.runs))
            model = RewardModel(started.model, started.processor, folder)
        default = started.config.generate.max_new_tokens
        self._longest = default if self.max_new_tokens is None else self.max_new_tokens
        self._rollouts = Rollouts(
            started,
            Scorer(penalty=self.penalty, judge=judge),
            self.rewards,
            self.group_size,
            Sampling(self.temperature, self.top_p, self.top_k, self._longest),
            batch_size=self.sampled_together,
            kind=self.advantages,
            limits=self.limits,
            n_steps=self.limit_steps,
            reward_model=model,
        )
        self._buffer: list[Rollout] = []
        self._counts = (0, 0)  # answers and tokens of the buffer, in all processes
        self._updates = torch.zeros(3, dtype=torch.float64)  # sums over tokens: divergence, clipped ratios, 1

    def _judge(self, run: Path) -> ChatClient:
        return ChatClient(**{"cache": run / "judge-answers.jsonl", **self.judge})

    # ---- batches -----------------------------------------------------------------------------------------------------

    def rows(self, draw: Draw, encode: Callable[[str | None], Row]) -> list[Row]:
        return [{**encode(None), "draw": draw}]

    def collate(self, processor: Any, rows: Sequence[Row], packed: bool) -> Any:
        prompts = [{key: value for key, value in row.items() if key != "draw"} for row in rows]
        return Prompts(prompts, [row["draw"] for row in rows])

    def prepare(
        self, batches: list[Prompts], step: int, n_labels: Tensor | None
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        model = self._started.model  # whose frozen encoders run once for sampling, reference and update
        batches = [Prompts([model.encoded(row) for row in prompts.rows], prompts.draws) for prompts in batches]
        if step % self.passes == 0 or not self._buffer:
            updates, self._updates = self._updates.tolist(), torch.zeros_like(self._updates)
            self._buffer, *counts = self._rollouts(batches, step, step // self.passes, updates)
            self._counts = (counts[0], counts[1])
            if self._reference is not None:
                self._compare(batches)
            self._rollouts.check_limits(step)
        made = [self._batch(number, prompts) for number, prompts in enumerate(batches)]
        return made, torch.tensor(self._counts[1], device=self._started.model.device)

    def _batch(self, number: int, prompts: Prompts) -> dict[str, Any]:
        """The packed or padded batch of all answers, with one advantage and weight for each of their tokens."""
        rollout, (n_answers, n_tokens) = self._buffer[number], self._counts
        batch: dict[str, Any] = self._collated(rollout, prompts)
        lengths = [len(tokens) for tokens in rollout.tokens]
        batch["advantages"] = torch.tensor(rollout.advantages).float().repeat_interleave(torch.tensor(lengths))  # [K]
        batch["weights"] = token_weights(self.reduction, lengths, n_answers, n_tokens, self._longest)
        batch["number"] = number
        for name in ("old", "reference"):
            if (value := getattr(rollout, name)) is not None:
                batch[name] = value
        return batch

    def _collated(self, rollout: Rollout, prompts: Prompts) -> dict[str, Any]:
        """Texts of all answers with the media of each prompt once."""
        collate, packed = self._started.processor.collate, self._started.config.stage.packing
        media = collate(prompts.rows, packed=packed)
        texts = collate(rollout.texts(prompts), packed=packed)
        return {**media, **texts, "copies": self.group_size}

    def _compare(self, batches: Sequence[Prompts]) -> None:
        """Compute the reference's log-probabilities; the divergence is noted once the model's own are known."""
        model, device = self._started.model, self._started.model.device
        with self._reference.inside(model):  # type: ignore[union-attr]
            for rollout, prompts in zip(self._buffer, batches, strict=True):
                made = self._collated(rollout, prompts)
                batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in made.items()}
                rollout.reference = torch.cat(model(**batch, log_probs=True).log_probs).float().cpu()

    # ---- loss --------------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Mapping[str, Any], n_labels: Tensor | None) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key not in _OWN}
        found = model(**inputs, token_loss=partial(self._token_loss, batch))
        with torch.no_grad():
            new = torch.cat(found.log_probs)  # [K]
            if self.passes > 1 and "old" not in batch:
                self._buffer[batch["number"]].old = new.float().cpu()
            _, clipped, divergence = self._policy_loss(batch, new, slice(0, len(new)))
        sums = [divergence.sum().item(), clipped.sum().item(), len(new)]
        self._updates += torch.tensor(sums, dtype=torch.float64)
        return found.loss

    def _token_loss(self, batch: Mapping[str, Any], new: Tensor, at: slice) -> Tensor:
        return self._policy_loss(batch, new, at)[0] * batch["weights"][at]

    def _policy_loss(self, batch: Mapping[str, Any], new: Tensor, at: slice) -> tuple[Tensor, Tensor, Tensor]:
        """`policy_loss` of the tokens `at` of the batch, whose log-probabilities are `new`."""
        old, reference = (batch[name][at] if name in batch else None for name in ("old", "reference"))
        return policy_loss(
            new, new.detach() if old is None else old, batch["advantages"][at], reference,
            self.clip, self.clip if self.clip_high is None else self.clip_high, self.kl,
        )  # fmt: skip

    # ---- log and checkpoints -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        try:
            run = self._started.run
            draw_rollouts(run / "rollouts", {run.name: run})
        except MissingLibrary as error:
            log.info("no picture of the rewards: %s", error)

    def metrics(self) -> dict[str, float]:
        return self._rollouts.means()

    def save(self, checkpoint: Path) -> None:
        self._rollouts.force_to_disk()
        state = {
            "buffer": [vars(rollout) for rollout in self._buffer] if self.passes > 1 else [],
            "counts": self._counts,
            "updates": self._updates,
            "recent": self._rollouts.recent,
            "sums": self._rollouts.sums,
        }
        torch.save(state, checkpoint / _STATE.format(rank=self._started.processes.rank))

    def load(self, checkpoint: Path | None, step: int) -> None:
        self._rollouts.restore_file(step)
        if checkpoint is None:
            return
        state = torch.load(checkpoint / _STATE.format(rank=self._started.processes.rank), weights_only=True)
        self._buffer = [Rollout(**values) for values in state["buffer"]]
        self._counts, self._updates = state["counts"], state["updates"]
        self._rollouts.recent, self._rollouts.sums = state["recent"], state["sums"]


def token_weights(reduction: str, lengths: Sequence[int], n_answers: int, n_tokens: int, longest: int) -> Tensor:
    """The weight of each token of answers of these lengths, [sum of lengths].

    Args:
        n_answers, n_tokens: in the complete optimizer step.
        longest: the most tokens that an answer can have.
    """
    each = {
        "grpo": [1 / (n_answers * length) for length in lengths],
        "dr_grpo": [1 / (n_answers * longest)] * len(lengths),
        "dapo": [1 / n_tokens] * len(lengths),
    }[reduction]
    return torch.tensor(each).repeat_interleave(torch.tensor(lengths))


def policy_loss(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    reference: Tensor | None,
    clip: float,
    clip_high: float,
    kl: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each token, whether its ratio was clipped, and its k3 estimate of the KL divergence.  all [K]

    Args:
        new, old, reference: log-probabilities of the tokens under the trained model, the model that drew them, and the
            reference (None = no divergence).
    """
    ratio = (new - old).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    divergence = torch.zeros_like(new)
    if reference is not None:
        difference = reference - new
        divergence = difference.exp() - difference - 1
    return kl * divergence - surrogate, (ratio * advantages > bounded * advantages).detach(), divergence.detach()
