"""What each clause of an answer rests on: media that are left out, and seconds of sound and film.

- Leave-one-out: how much the log-probability of a clause falls when the model sees no pictures, hears no sound or reads
  no subtitle. This is a change of the input, so it says what the model used, not what is true.
- Time: |gradient x state| of the clause's log-probability with respect to the encoder states (Shrikumar et al. 2017,
  "Not Just a Black Box"), summed over dimensions, as shares over time. For a Q-Former also its attention: the weight of
  every state, averaged over layers, heads and queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from affectgpt.clauses import BRANCHES, shown_clues, split
from affectgpt.config import QuestionConfig
from affectgpt.metrics.faithfulness import explanation_of
from affectgpt.models.projectors import CrossAttention
from affectgpt.prompts import render
from affectgpt.schema import Sample

N_BINS = 20
"""Resolution of the shares over time."""


@dataclass(frozen=True)
class ClauseAttribution:
    """What one clause rests on.

    Attributes:
        modality: of the clause, see `clauses.split`.
        drop: clue modality that was shown -> fall of the clause's log-probability without it, in nats per token.
        over_time: modality -> [N_BINS] shares of the clip's duration, which sum to 1.
        attention: modality -> [N_BINS], the attention of its Q-Former; the same for all clauses.
    """

    text: str
    modality: str
    n_tokens: int
    drop: Mapping[str, float]
    over_time: Mapping[str, Sequence[float]] = field(default_factory=dict)
    attention: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        def rounded(shares: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
            return {name: [round(value, 4) for value in values] for name, values in shares.items()}

        row = {"text": self.text, "modality": self.modality, "n_tokens": self.n_tokens}
        row["drop"] = {name: round(value, 4) for name, value in self.drop.items()}
        return {**row, "over_time": rounded(self.over_time), "attention": rounded(self.attention)}


def attribute(
    model: Any, processor: Any, sample: Sample, media: Mapping[str, Any], text: str, question: QuestionConfig
) -> list[ClauseAttribution]:
    """Attribution of each clause of `text`, an answer of this model to `sample`.

    Args:
        media: modality -> decoded media or states [T, E], as `ClipReader` returns them.
    """
    subtitle = question.use_subtitle and bool(sample.in_language(question.lang, strict=False).subtitle)
    states = encoder_states(model, processor, media)
    row = encode_answer(processor, sample, states, text, question, subtitle)
    spans = _spans(processor, row, text, question.lang)
    leaves = {name: states[name].detach().clone().requires_grad_() for name in states}
    with _attention_weights(model) as weights:
        found_probs = log_probs(model, processor, {**row, **{f"{name}_states": leaf for name, leaf in leaves.items()}})
    attention = {name: _bins(weights[name]) for name in leaves if name in weights}
    shown = shown_clues(states, subtitle=subtitle)
    without = {}
    for clue in sorted(shown):
        rest = {name: value for name, value in states.items() if name not in BRANCHES.get(clue, ())}
        with torch.no_grad():
            other = encode_answer(processor, sample, rest, text, question, subtitle and clue != "lexical")
            without[clue] = log_probs(model, processor, other)
    found = []
    for clause_text, modality, start, stop in spans:
        part = found_probs[start:stop]
        gradients = torch.autograd.grad(part.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
        over_time = {
            name: _bins((gradient * leaf).sum(dim=-1).abs().detach())
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
            if gradient is not None
        }
        n = max(stop - start, 1)
        drop = {clue: float((part.detach() - values[start:stop]).sum()) / n for clue, values in without.items()}
        found.append(ClauseAttribution(clause_text, modality, stop - start, drop, over_time, attention))
    return found


def encoder_states(model: Any, processor: Any, media: Mapping[str, Any]) -> dict[str, Tensor]:
    """Modality -> encoder states [T, E] of decoded media or cached states."""
    features: dict[str, Tensor] = {}
    for name, value in media.items():
        features |= processor.media(name, value)
    features = {key: value.to(model.device) for key, value in features.items()}
    known = {name: features[f"{name}_states"] for name in media if f"{name}_states" in features}
    with torch.no_grad():
        return {name: state.float() for name, state in {**known, **model.encode(features)}.items()}


def encode_answer(
    processor: Any, sample: Sample, states: Mapping[str, Tensor], text: str, question: QuestionConfig, subtitle: bool
) -> dict[str, Tensor]:
    """The encoded sample whose answer is `text`, shown these states [T, E], with or without its subtitle."""
    messages = render(
        sample,
        task=question.task,
        lang=question.lang,
        candidates=question.candidates,
        modalities=tuple(states),
        with_subtitle=subtitle,
        prompt_format=processor.prompt_format,
    )
    return processor.encode(messages, {name: state.detach() for name, state in states.items()}, text)


def log_probs(model: Any, processor: Any, row: Mapping[str, Tensor]) -> Tensor:
    """Log-probabilities of the answer's tokens [n]."""
    batch = {key: value.to(model.device) for key, value in processor.collate([row]).items()}
    return model(**batch, log_probs=True).log_probs[0]


def _spans(processor: Any, row: Mapping[str, Tensor], text: str, lang: str) -> list[tuple[str, str, int, int]]:
    """(clause, modality, first token, token after the last) of the clauses of an answer, and of its line of labels."""
    ids = row["labels"][row["labels"] != -100].tolist()
    ends = [len(_letters(processor.tokenizer.decode(ids[: n + 1], skip_special_tokens=True))) for n in range(len(ids))]
    explanation = explanation_of(text)
    parts = [(clause.text, clause.modality) for clause in split(explanation, lang)]
    if rest := text.strip()[len(explanation) :].strip():
        parts.append((rest, "labels"))
    spans, start, n_letters = [], 0, 0
    for part, modality in parts:
        n_letters += len(_letters(part))
        stop = next((n + 1 for n, end in enumerate(ends) if end >= n_letters), len(ids))
        spans.append((part, modality, start, stop))
        start = stop
    return spans


def _letters(text: str) -> str:
    return "".join(text.split())


def _bins(values: Tensor) -> list[float]:
    """Non-negative values [T] over the duration of a clip as N_BINS shares."""
    values = values.float().flatten()
    edges = torch.linspace(0, len(values), N_BINS + 1)
    places = torch.arange(len(values), dtype=torch.float32)
    overlap = (torch.minimum(edges[1:, None], places + 1) - torch.maximum(edges[:-1, None], places)).clamp(min=0)
    shares = overlap @ values.cpu()
    return (shares / shares.sum().clamp(min=1e-12)).tolist()


@contextlib.contextmanager
def _attention_weights(model: Any) -> Iterator[dict[str, Tensor]]:
    """Collect the cross-attention [T] of each branch's Q-Former, averaged over layers, heads and queries."""
    found: dict[str, list[Tensor]] = {}
    handles: list[Any] = []

    def hook(name: str) -> Any:
        def collect(module: Any, arguments: Any, keywords: Mapping[str, Any], output: Any) -> None:
            hidden = arguments[0] if arguments else keywords["hidden_states"]
            keys = keywords.get("encoder_hidden_states", arguments[2] if len(arguments) > 2 else None)
            if keys is None:
                return
            heads, size = module.num_attention_heads, module.attention_head_size
            query = module.query(hidden).view(*hidden.shape[:2], heads, size).transpose(1, 2)  # [1, H, Q, d]
            key = module.key(keys).view(*keys.shape[:2], heads, size).transpose(1, 2)  # [1, H, T, d]
            weights = (query @ key.transpose(-1, -2) * size**-0.5).softmax(dim=-1)
            found.setdefault(name, []).append(weights.mean(dim=(0, 1, 2)).detach())

        return collect

    for name, projector in model.projectors.items():
        attention = [module for module in projector.modules() if isinstance(module, CrossAttention)]
        handles += [module.register_forward_hook(hook(name), with_kwargs=True) for module in attention]
    collected: dict[str, Tensor] = {}
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
        collected.update({name: torch.stack(each).mean(dim=0) for name, each in found.items()})
