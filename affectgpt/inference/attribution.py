"""What each clause of an answer rests on: media that are left out, and seconds of sound and film.

- Leave-one-out: how much the log-probability of a clause falls when the model sees no pictures, hears no sound or reads
  no subtitle. This is a change of the input, so it says what the model used, not what is true.
- Time: |gradient x state| of the clause's log-probability with respect to the encoder states (Shrikumar et al. 2017,
  "Not Just a Black Box"), summed over dimensions, as shares over time. For a Q-Former also its attention: the weight of
  every state, averaged over layers, heads and queries. States of sound stand where their window is in the clip; those
  of pictures follow each other in equal parts, as the frames were taken.
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
from affectgpt.media import audio_windows
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
        over_time: modality -> [N_BINS] shares over the duration of the clip's sound or film, which sum to 1.
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
    model: Any,
    processor: Any,
    sample: Sample,
    media: Mapping[str, Any],
    text: str,
    question: QuestionConfig,
    facts: Mapping[str, Any] | None = None,
) -> list[ClauseAttribution]:
    """Attribution of each clause of `text`, an answer of this model to `sample`.

    Args:
        media, facts: as `ClipReader` returns them: decoded media or states [T, E] by modality; without facts, sound
            counts as one window.
    """
    subtitle = question.use_subtitle and bool(sample.in_language(question.lang, strict=False).subtitle)
    states = encoder_states(model, processor, media)
    row = encode_answer(processor, sample, states, text, question, subtitle)
    spans = _spans(processor, row, text, question.lang)
    leaves = {name: states[name].detach().clone().requires_grad_() for name in states}
    with _attention_weights(model) as weights:
        found_probs = log_probs(model, processor, {**row, **{f"{name}_states": leaf for name, leaf in leaves.items()}})
    sound_s = (facts or {}).get("audio", {}).get("duration_s")
    places = {}
    if sound_s and "audio" in states:
        places["audio"] = _places_of_sound(len(states["audio"]), sound_s, processor.branches["audio"])
    attention = {name: _bins(weights[name], places.get(name)) for name in leaves if name in weights}
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
        gradients = (
            torch.autograd.grad(part.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
            if leaves
            else ()
        )
        over_time = {
            name: _bins((gradient * leaf).sum(dim=-1).abs().detach(), places.get(name))
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


def _places_of_sound(n_states: int, duration_s: float, branch: Mapping[str, Any]) -> Tensor | None:
    """Start and end [2, T] of the states of sound, as shares of its duration: windows lie apart or overlap in longer
    sound, and reach beyond the end of shorter sound that is padded. None if a state is a mean over windows."""
    rate_hz, window_s, mode = branch["rate_hz"], branch["window_s"], branch["window_mode"]
    n_samples = max(1, round(duration_s * rate_hz))
    windows = audio_windows(n_samples, rate_hz, window_s=window_s, max_windows=branch["max_windows"], mode=mode)
    if n_states < len(windows):
        return None
    width = len(windows) / n_states  # of a state, in windows, which are of one length and follow each other
    states = torch.arange(n_states, dtype=torch.float64) * width
    starts = torch.tensor([start for start, _ in windows])
    number = (states + 1e-9).long()  # of the window that a state is in
    length = windows[0][1] - windows[0][0]
    first = (starts[number] + (states - number) * length) / n_samples
    return torch.stack([first, first + width * length / n_samples]).float()


def _bins(values: Tensor, places: Tensor | None = None) -> list[float]:
    """Non-negative values [T] over the duration of a clip as N_BINS shares.

    Args:
        places: start and end [2, T] of the values as shares of the duration; None = equal parts of it.
    """
    values = values.float().flatten()
    if places is None:
        bounds = torch.arange(len(values) + 1, dtype=torch.float32) / len(values)
        places = torch.stack([bounds[:-1], bounds[1:]])
    starts, ends = places
    edges = torch.linspace(0, 1, N_BINS + 1)
    overlap = (torch.minimum(edges[1:, None], ends) - torch.maximum(edges[:-1, None], starts)).clamp(min=0)
    shares = (overlap / (ends - starts)) @ values.cpu()
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
