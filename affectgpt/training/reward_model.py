"""A reward model: how well an answer fits its clip, as the log-odds of one word after it.

    prompt, answer, "Does this fit the clip: " --LLM--> log p("yes") - log(1 - p("yes"))

It has no weights of its own: projectors and LoRA learn it with stage.objective=preference and variant=bradley_terry,
and its checkpoint is like any other. In stage=reward its trained tensors are put into the model that answers, so the
LLM is in memory once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affectgpt.config import PathsConfig
from affectgpt.models.checkpoint import read_manifest
from affectgpt.runs import checkpoint_to_use
from affectgpt.runtime import InputError, UserError
from affectgpt.training.reference import Reference

_VERDICT = {"en": ("\nDoes this fit the clip:", " yes"), "zh": ("\n是否符合这段视频：", "是")}

Row = Mapping[str, Any]


def with_verdict(processor: Any, row: Row, lang: str) -> dict[str, Any]:
    """The row of a prompt and an answer with the question after it, and the word "yes" as its only label."""
    tokenize = processor.tokenizer
    question, word = (tokenize(text, add_special_tokens=False)["input_ids"] for text in _VERDICT[lang])
    ids = torch.cat([row["input_ids"], torch.tensor([*question, word[-1]], dtype=row["input_ids"].dtype)])
    labels = torch.full_like(ids, -100)
    labels[-1] = ids[-1]
    made = {**row, "input_ids": ids, "labels": labels}
    if (places := row.get("position_ids")) is not None:
        made["position_ids"] = torch.cat([places, places[-1] + 1 + torch.arange(len(ids) - len(places))])
    return made


def log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; finite also where p is 1 up to rounding."""
    return log_prob - torch.log(-torch.expm1(log_prob.clamp(max=-1e-6)))


class RewardModel:
    """Scores answers with the trained tensors of a checkpoint, inside another model of the same kind.

    Args:
        model: whose trained parts have the shapes of the checkpoint's.
        folder: a checkpoint of stage.objective=preference with variant=bradley_terry.

    Raises:
        CheckpointError: the checkpoint does not fit the model.
    """

    def __init__(self, model: Any, processor: Any, folder: Path) -> None:
        self._model, self._processor = model, processor
        self._tensors = Reference.of_checkpoint(model, folder)

    def scores(self, rows: Sequence[Row], langs: Sequence[str], batch_size: int = 64) -> list[float]:
        """The log-odds of each row of a prompt and an answer."""
        asked = [with_verdict(self._processor, row, lang) for row, lang in zip(rows, langs, strict=True)]
        found: list[float] = []
        with self._tensors.inside(self._model):
            for start in range(0, len(asked), batch_size):
                batch = self._processor.collate(asked[start : start + batch_size], packed=True)
                batch = {key: value.to(self._model.device) for key, value in batch.items()}
                found += [float(log_odds(each[0])) for each in self._model(**batch, log_probs=True).log_probs]
        return found


def checkpoint_of(path: str | None, runs: Path | None = None) -> Path:
    """The folder of `stage.objective_options.reward_model`: a checkpoint, or that of a run by `runs.chosen_checkpoint`.

    Args:
        runs: where a run is found by its name; None = the default of `paths.runs`.

    Raises:
        InputError: it is not set, or there is no complete checkpoint.
    """
    if path is None:
        raise InputError(
            "reward model needs stage.objective_options.reward_model=runs/..., a run of stage=reward_model or one of "
            "its checkpoints"
        )
    try:
        folder = checkpoint_to_use(Path(PathsConfig.runs) if runs is None else runs, path)
        read_manifest(folder)
    except UserError as error:
        raise InputError(f"stage.objective_options.reward_model: {error}") from error
    return folder
