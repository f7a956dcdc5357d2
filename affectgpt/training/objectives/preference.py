"""Learning from preferences: of two answers to a prompt, the better one becomes more likely (DPO and its variants), or
gets the higher score (a reward model with the Bradley-Terry loss).

    pair of answers --log-probabilities of the model, and of the reference--> margin h --> loss of the pair

with h = beta * ((log p(chosen) - log p_reference(chosen)) - (log p(rejected) - log p_reference(rejected))). For the
reward model h is the difference of the two scores, see `training.reward_model`. docs/preferences.md has the sources.
Dropout is off in such a stage: it would only add noise to the margin.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from affectgpt.clauses import shown_clues
from affectgpt.config import TrainConfig
from affectgpt.data.mixture import Source
from affectgpt.data.pairs import KINDS, PairMaker
from affectgpt.data.stream import Draw
from affectgpt.journal import append_rows
from affectgpt.models import model_spec
from affectgpt.runtime import InputError
from affectgpt.schema import Sample
from affectgpt.training import reward_model
from affectgpt.training.objectives import Hooks, Row, Started
from affectgpt.training.reference import Reference, turn_dropout_off

log = logging.getLogger("affectgpt")

VARIANTS = ("dpo", "ipo", "hinge", "robust", "simpo", "bradley_terry")
_PER_TOKEN = ("ipo", "simpo")  # log-probabilities are means over the tokens of an answer, else sums
_NO_REFERENCE = ("simpo", "bradley_terry")
_STATE = "preference-{rank}.pt"
_MADE_FOR = ("description", "both", "think")


@dataclass
class Objective(Hooks):
    """Settings of `stage.objective_options`.

    Attributes:
        variant: dpo, ipo, hinge (SLiC), robust, simpo, or bradley_terry for a reward model.
        beta: the larger, the closer the model stays to the reference.
        smoothing: the share of pairs that are thought to be the wrong way round (dpo: conservative DPO; robust; simpo).
        gamma: simpo: the margin that is wanted.
        supervised: weight of the mean cross-entropy of the chosen answers, which is added to the loss.
        made: how pairs are made for samples without a rejected answer: deleted, contradicted; [] = they are refused.
    """

    variant: str = "dpo"
    beta: float = 0.1
    smoothing: float = 0.0
    gamma: float = 0.5
    supervised: float = 0.0
    made: list[str] = field(default_factory=lambda: list(KINDS))

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f"stage.objective_options.variant is {self.variant!r}; expected one of {list(VARIANTS)}")
        if unknown := sorted(set(self.made) - set(KINDS)):
            raise InputError(f"stage.objective_options.made has {unknown}; expected some of {list(KINDS)}")
        if not self.beta > 0 or not 0 <= self.smoothing < 0.5 or not self.supervised >= 0:
            raise InputError(
                f"beta is {self.beta}, smoothing {self.smoothing} and supervised {self.supervised}; expected a beta "
                "above 0, smoothing from 0 to below 0.5 and supervised from 0"
            )
        self._sums = torch.zeros(5, dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        kept = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**kept, "_maker": self._maker}  # loader processes need no model

    @property
    def is_reward_model(self) -> bool:
        return self.variant == "bradley_terry"

    # ---- before the run ----------------------------------------------------------------------------------------------

    def check(self, config: TrainConfig, sources: Sequence[Source]) -> None:
        if config.strategy.name == "zero3":
            raise InputError("stage.objective=preference does not work with strategy=zero3; use single, ddp or zero2")
        if config.stage.modality_dropout or config.stage.subtitle_dropout:
            raise InputError(
                "stage.objective=preference compares two answers to the same clip with all that it has; set "
                "stage.modality_dropout=0 and stage.subtitle_dropout=0"
            )
        for source in sources:
            judged = any(sample.rejected is not None for sample in source.samples)
            allowed = _MADE_FOR[:1] if judged else _MADE_FOR
            if odd := [task for task in source.tasks if task not in allowed]:
                what = "pairs of descriptions" if judged else "pairs that differ in a clue"
                raise InputError(f"task {odd[0]} does not fit {what}; set stage.tasks to some of {list(allowed)}")

    def select(self, config: TrainConfig, sources: Sequence[Source]) -> list[Source]:
        """The samples that have a pair; the others are counted in the log."""
        modalities = model_spec(config.model, config.seed).modalities
        langs = {lang for source in sources for lang in source.langs}
        self._maker = PairMaker((sample for each in sources for sample in each.samples), langs, self.made, config.seed)
        self._rows: list[dict[str, Any]] = []
        kept, counts = [], Counter[str]()
        for source in sources:
            good = []
            for sample in source.samples:
                draws = [
                    _draw(sample, task, lang, modalities, config.stage.targets)
                    for lang in source.langs
                    for task in source.tasks
                ]
                pairs = [self._maker.pair(draw) for draw in draws]
                usable = all(pair is not None and pair.chosen != pair.rejected for pair in pairs)
                if usable:
                    good.append(sample)
                for draw, pair in zip(draws, pairs, strict=True):
                    if usable and pair is not None:
                        counts[pair.made or "judged by people"] += 1
                        self._rows.append({"id": sample.id, "task": draw.task, "lang": draw.lang, **vars(pair)})
            kept.append(replace(source, samples=good))
        n, n_kept = (sum(len(each.samples) for each in found) for found in (sources, kept))
        if any(not each.samples for each in kept):
            raise InputError(
                f"stage.objective=preference: a source has no pair: none of its samples has a `rejected` description, "
                f"or a clue that could be changed (stage.objective_options.made={self.made}); see docs/preferences.md"
            )
        log.info("pairs: %s", ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        if n_kept < n:
            log.warning(
                "%d of %d samples are left out: they have no `rejected` description, and no clue to change",
                n - n_kept,
                n,
            )
        return kept

    def answers(self, sample: Sample, task: str, lang: str, prompt_format: str) -> list[str | None]:
        judged = [] if sample.rejected is None else [sample.rejected]
        return [*super().answers(sample, task, lang, prompt_format), *judged]

    def start(self, started: Started) -> None:
        turn_dropout_off(started.model)
        self._started = started
        self._reference = None if self.variant in _NO_REFERENCE else Reference(started.model)
        path = started.run / "pairs.jsonl"
        if started.processes.is_main and not path.exists():
            append_rows(path, self._rows)

    # ---- batches and loss --------------------------------------------------------------------------------------------

    def rows(self, draw: Draw, encode: Callable[[str | None], Row]) -> list[Row]:
        pair = self._maker.pair(draw)
        assert pair is not None, "a sample without a pair was selected"
        return [{**encode(text), "lang": draw.lang} for text in (pair.chosen, pair.rejected)]

    def collate(self, processor: Any, rows: Sequence[Row], packed: bool) -> dict[str, Tensor]:
        plain = [{key: value for key, value in row.items() if key != "lang"} for row in rows]
        if self.is_reward_model:
            plain = [
                reward_model.with_verdict(processor, row, langs["lang"]) for row, langs in zip(plain, rows, strict=True)
            ]
        return processor.collate(plain, packed=packed)

    def prepare(
        self, batches: list[dict[str, Tensor]], step: int, n_labels: Tensor | None
    ) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Add the reference's log-probabilities; the loss is divided by the pairs of the step instead of its labels."""
        model, n_pairs = self._started.model, 0
        for batch in batches:
            is_packed = batch.get("attention_mask") is None
            n_pairs += int((batch["position_ids"] == 0).sum() if is_packed else len(batch["input_ids"])) // 2
            if self._reference is not None:
                with self._reference.inside(model):
                    inputs = {key: value.to(model.device) for key, value in batch.items()}
                    if not model.training_encoders():  # they run once for reference and update
                        inputs = model.with_states(inputs)
                        batch.clear()
                        batch.update(inputs)
                    batch["reference"] = self._totals(model(**inputs, log_probs=True).log_probs)
        # All processes have batches of the same size.
        return batches, torch.tensor(n_pairs * self._started.processes.world_size, device=model.device)

    def _totals(self, log_probs: Sequence[Tensor]) -> Tensor:
        """One number for each answer [2n]."""
        if self.is_reward_model:
            return torch.stack([reward_model.log_odds(each[0]) for each in log_probs])
        return torch.stack([each.mean() if self.variant in _PER_TOKEN else each.sum() for each in log_probs])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], n_labels: Tensor | None) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "reference"}
        log_probs = model(**inputs, log_probs=True).log_probs
        totals = self._totals(log_probs)
        reference = batch.get("reference", torch.zeros_like(totals))
        gains = totals - reference  # [2n]
        chosen, rejected = gains[0::2], gains[1::2]
        losses = pair_losses(chosen - rejected, self.variant, self.beta, self.smoothing, self.gamma)
        if self.supervised and not self.is_reward_model:
            losses = losses - self.supervised * torch.stack([each.mean() for each in log_probs[0::2]])
        figures = [torch.ones_like(chosen), (chosen > rejected).to(chosen.dtype), chosen - rejected, chosen, rejected]
        self._sums = self._sums.to(chosen.device) + torch.stack(figures).detach().double().sum(dim=1)
        return losses.mean() if n_labels is None else losses.sum() / n_labels

    # ---- log and checkpoints -----------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Share of pairs in the right order, and means of this process: of h / beta, and of its two parts."""
        n, *sums = self._sums.tolist()
        self._sums = torch.zeros_like(self._sums)
        names = ("pair_accuracy", "margin", "chosen", "rejected")
        return {name: total / n for name, total in zip(names, sums, strict=True)} if n else {}

    def save(self, checkpoint: Path) -> None:
        torch.save(self._sums.cpu(), checkpoint / _STATE.format(rank=self._started.processes.rank))

    def load(self, checkpoint: Path | None, step: int) -> None:
        if checkpoint is not None:
            self._sums = torch.load(checkpoint / _STATE.format(rank=self._started.processes.rank), weights_only=True)


def _draw(sample: Sample, task: str, lang: str, modalities: Sequence[str], targets: str) -> Draw:
    """The draw of a sample with everything that it and the model have, as `TrainingStream` makes it."""
    shown = tuple(name for name in modalities if name in (sample.modalities or ()))
    subtitle = bool(sample.in_language(lang, strict=False).subtitle)
    clues = shown_clues(shown, subtitle=subtitle) if targets == "shown" else None
    return Draw(sample, task, lang, shown, True, clues=clues)


def pair_losses(margins: Tensor, variant: str, beta: float, smoothing: float = 0.0, gamma: float = 0.0) -> Tensor:
    """The loss of each pair.  [n] -> [n]

    Args:
        margins: by how much more the chosen answer has gained over the reference than the rejected one; for
            bradley_terry the difference of the scores, where beta does not count.
    """
    if variant == "bradley_terry":
        return -functional.logsigmoid(margins)
    if variant == "ipo":  # Azar et al. 2023, equation 17
        return (margins - 1 / (2 * beta)) ** 2
    h = beta * margins - (gamma if variant == "simpo" else 0.0)
    if variant == "hinge":  # SLiC, Zhao et al. 2023
        return torch.relu(1 - h)
    right, wrong = -functional.logsigmoid(h), -functional.logsigmoid(-h)
    if variant == "robust":  # Chowdhury et al. 2024
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    return (1 - smoothing) * right + smoothing * wrong
