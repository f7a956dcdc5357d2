"""Answers of a model to encoded samples: by the engine's greedy loop if it can, else by transformers' `generate`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import LogitsProcessor, LogitsProcessorList

from affectgpt.chat.streaming import GenerateStreamer, StreamDecoder, TextCallback
from affectgpt.config import GenerateConfig
from affectgpt.models import backend
from affectgpt.runtime import InputError, UserError


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: logits / temperature, then the `top_k` most likely tokens (0 = all), then the fewest of
    them whose probabilities reach `top_p`. Tokens as likely as the last one that is kept are kept, too."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256


class Answer(NamedTuple):
    """What the LLM wrote.

    Attributes:
        tokens: the new tokens, with the stop token if there is one.
        finish: "eos", or "length" if the answer was cut.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


CHOICES = "choices"
"""Key of an encoded sample: the ids of all answers that may be given to it (`processor.answer_ids`)."""

SAMPLE_ID = "sample_id"
"""Key of an encoded sample: its id, for engines that draw each answer with a seed of its own."""

AnswerFunction = Callable[[Any, Any, Iterable[Mapping[str, Any]], GenerateConfig], Iterator[Answer]]
"""(model, processor, encoded samples, generation settings) -> their answers, in order."""


def answers(
    model: Any,
    processor: Any,
    inputs: Iterable[Mapping[str, Any]],
    generate: GenerateConfig,
    callbacks: Mapping[int, TextCallback] | None = None,
) -> Iterator[Answer]:
    """Answers to encoded samples (`processor.encode`), in their order; `inputs` is read as far as rows become free.

    The batch changes no answer: each is the one that its sample gets alone.

    Args:
        inputs: those with `CHOICES` are answered by one of them: at each step the most likely token among those that
            continue a choice.
        callbacks: position of an input -> function that gets the text of its answer while it is generated, see
            `StreamDecoder`. With beam search no text is final before the end.

    Raises:
        UserError: `generate.compile` is set where transformers' `generate` is used, or without a compiler.
    """
    engine = backend.engine
    is_greedy = not generate.do_sample and generate.num_beams == 1
    by_engine = engine is not None and is_greedy and engine.can_generate(model)
    # The engine counts positions without gaps.
    by = _by_engine if by_engine and not processor.masks_absent else _by_transformers
    if generate.compile:
        _check_compile(model, by is _by_engine)
    decoder = (
        StreamDecoder(processor.tokenizer, processor.stop_token_ids, callbacks, processor.answer_text)
        if callbacks
        else None
    )
    return by(model, processor, inputs, generate, decoder)


def _check_compile(model: Any, by_engine: bool) -> None:
    engine = backend.require_engine("generate.compile=true")
    if not by_engine:
        raise UserError(
            "generate.compile=true is for greedy answers (do_sample=false, num_beams=1) of LLMs of the families "
            f"{', '.join(engine.FAMILIES)}, in a prompt format that masks no absent modalities (not emotion_llama_v2); "
            "here transformers' generate is used. Leave it out"
        )
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if model.device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"generate.compile=true needs a C++ compiler on a CPU, and {compiler} is not on the PATH; install it, or "
            "name another one in the environment variable CXX"
        )


def prompt_embeds(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Word embeddings and soft tokens of encoded samples, [L, D] each; encoders run once per sample."""
    if any("position_ids" in row for row in rows):
        raise InputError(
            f"prompt_format {processor.prompt_format!r} masks absent modalities, but this generation takes embeddings; "
            "give it samples with all modalities of the model, or leave engine=vllm out"
        )
    batch = processor.collate(list(map(_tensors, rows)), for_generation=True)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    with torch.no_grad():
        embeds = model.embed(batch.pop("input_ids"), batch)  # [B, L, D], padded on the left
    return [padded[-len(row["input_ids"]) :] for padded, row in zip(embeds, rows, strict=True)]


def _tensors(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in (CHOICES, SAMPLE_ID)}


def stop_ids(model: Any) -> list[int]:
    """The tokens that end an answer, from the model's generation config."""
    ids = model.generation_config.eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def answer_of(processor: Any, tokens: Sequence[int]) -> Answer:
    """The answer in `tokens`, up to and including the first stop token."""
    ends = set(processor.stop_token_ids)
    n = next((place for place, token in enumerate(tokens) if token in ends), None)
    return Answer(
        processor.answer_text(tokens[:n]),
        tuple(tokens if n is None else tokens[: n + 1]),
        "length" if n is None else "eos",
    )


def _continues(choices: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[int]:
    """The tokens that continue one of `choices` after `tokens`; after a complete choice, its last token.

    >>> _continues([[5, 6, 0], [5, 7, 0], [8, 0]], [5])
    [6, 7]
    """
    n = len(tokens)
    found = {ids[n] for ids in choices if len(ids) > n and list(ids[:n]) == list(tokens)}
    return sorted(found) or [choices[0][-1]]


def _by_engine(
    model: Any,
    processor: Any,
    inputs: Iterable[Mapping[str, Any]],
    generate: GenerateConfig,
    decoder: StreamDecoder | None = None,
) -> Iterator[Answer]:
    engine, source = backend.engine, enumerate(inputs)
    choices: dict[int, Sequence[Sequence[int]]] = {}
    n_vocabulary = model.get_output_embeddings().weight.shape[0]

    def allowed(number: int, tokens: Sequence[int]) -> Sequence[int]:
        return _continues(choices[number], tokens) if number in choices else range(n_vocabulary)

    def take(n: int) -> list[Any]:
        if not (taken := list(islice(source, n))):
            return []
        choices.update((number, row[CHOICES]) for number, row in taken if CHOICES in row)
        embeds = prompt_embeds(model, processor, [row for _, row in taken])
        return [
            engine.Prompt(number, each, generate.max_new_tokens, row.get("rope_ids"))
            for (number, row), each in zip(taken, embeds, strict=True)
        ]

    finished: dict[int, list[int]] = {}
    n_returned = 0
    for number, tokens in engine.greedy(
        model.language_model,
        take,
        batch_size=generate.batch_size,
        stop_ids=stop_ids(model),
        suppressed_ids=model.generation_config.suppress_tokens or (),
        allowed_ids=allowed if generate.constrain else None,
        on_tokens=None if decoder is None else decoder.update,
        compiled=generate.compile,
    ):
        finished[number] = tokens
        while n_returned in finished:
            yield answer_of(processor, finished.pop(n_returned))
            n_returned += 1


_SORTED_BATCHES = 4
"""Batches whose samples are sorted by length before they are padded."""


def _by_transformers(
    model: Any,
    processor: Any,
    inputs: Iterable[Mapping[str, Any]],
    generate: GenerateConfig,
    decoder: StreamDecoder | None = None,
) -> Iterator[Answer]:
    size = generate.batch_size
    # Random draws depend on the order of the samples, so sampled answers keep the order of the input.
    n_together = size if generate.do_sample else _SORTED_BATCHES * size
    source = iter(inputs)
    n_before = 0
    while window := list(islice(source, n_together)):
        order = list(range(len(window)))
        if not generate.do_sample:
            order.sort(key=lambda place: len(window[place]["input_ids"]), reverse=True)
        made: dict[int, Answer] = {}
        for start in range(0, len(order), size):
            places = order[start : start + size]
            streamer = None
            if decoder is not None and generate.num_beams == 1:
                streamer = GenerateStreamer(decoder, [n_before + place for place in places])
            rows = [window[place] for place in places]
            made |= zip(places, _batch_by_transformers(model, processor, rows, generate, streamer), strict=True)
        n_before += len(window)
        yield from (made[place] for place in range(len(window)))


@torch.no_grad()
def _batch_by_transformers(
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    generate: GenerateConfig,
    streamer: GenerateStreamer | None,
) -> list[Answer]:
    batch = processor.collate(list(map(_tensors, rows)), for_generation=True)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    n_prompt = batch["input_ids"].shape[1]
    options: dict[str, Any] = {"max_new_tokens": generate.max_new_tokens, "num_beams": generate.num_beams}
    if generate.do_sample:
        drawn = {"temperature": generate.temperature, "top_p": generate.top_p, "top_k": generate.top_k}
        options |= {"do_sample": True, **drawn}
    else:
        # None also overrides sampling values in the generation config of a chat model, which would cause warnings.
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if streamer is not None:
        options["streamer"] = streamer
    if generate.constrain:
        free = range(model.get_output_embeddings().weight.shape[0])

        def allowed(number: int, ids: torch.Tensor) -> Sequence[int]:
            choices = rows[number].get(CHOICES)
            return free if choices is None else _continues(choices, ids[n_prompt:].tolist())

        options["prefix_allowed_tokens_fn"] = allowed
    output = model.generate(**batch, **options)
    return [answer_of(processor, tokens) for tokens in output[:, n_prompt:].tolist()]


@torch.no_grad()
def sample_groups(
    model: Any,
    processor: Any,
    prompts: Sequence[Mapping[str, Any]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 64,
) -> list[list[Answer]]:
    """Draw several answers to each prompt.

    An answer is a function of the model, its prompt, `sampling` and its seed; up to rounding it does not depend on the
    other answers of its batch. The engine runs each prompt once for all of its answers.

    Args:
        prompts: encoded samples (`processor.encode` without an answer).
        seeds: for each prompt one seed from 0 to 2**63 - 1 per answer.
        batch_size: answers that are drawn together.
    """
    embeds = prompt_embeds(model, processor, prompts) if prompts else []
    keys = [[(number, place) for place in range(len(group))] for number, group in enumerate(seeds)]
    dice = {
        key: _dice(seed, sampling)
        for of, group in zip(keys, seeds, strict=True)
        for key, seed in zip(of, group, strict=True)
    }
    drawn: dict[Any, Sequence[int]] = {}
    engine = backend.engine
    if engine is not None and engine.can_generate(model):
        groups = (
            engine.Group(some, each, sampling.max_new_tokens, row.get("rope_ids"))
            for some, each, row in zip(keys, embeds, prompts, strict=True)
        )
        for key, tokens in engine.continue_groups(
            model.language_model,
            lambda: next(groups, None),
            lambda logits, rows: draw(logits, torch.stack([dice[row.key][len(row.tokens)] for row in rows]), sampling),
            batch_size=batch_size,
            stop_ids=stop_ids(model),
            suppressed_ids=model.generation_config.suppress_tokens or (),
        ):
            drawn[key] = tokens
    else:
        jobs = [
            (key, each, row.get("rope_ids"))
            for some, each, row in zip(keys, embeds, prompts, strict=True)
            for key in some
        ]
        for start in range(0, len(jobs), batch_size):
            some = jobs[start : start + batch_size]
            drawn |= _sampled_by_transformers(model, some, dice, sampling)
    return [[answer_of(processor, drawn[key]) for key in group] for group in keys]


def _dice(seed: int, sampling: Sampling) -> torch.Tensor:
    """A number from 0 to 1 for each token of an answer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64)


_BLOCK = 256  # tokens of the vocabulary whose probabilities are added first
_LIKELY = 64  # tokens among which the most likely ones are looked for first


def draw(logits: torch.Tensor, dice: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The token of each row at which its cumulative probability passes its number.

    Args:
        logits: [n, V].
        dice: [n] from 0 to 1, in fp64 on the CPU.

    Returns:
        [n] on the device of the logits.
    """
    probabilities = _kept_probabilities(logits, sampling)
    size = probabilities.shape[1]
    whole = size // _BLOCK * _BLOCK
    # A sum over the complete vocabulary would not be repeatable on a GPU.
    sums = probabilities[:, :whole].unflatten(1, (size // _BLOCK, _BLOCK)).sum(dim=2)
    sums = torch.cat([sums, probabilities[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    bounds = sums.cpu().double().cumsum(dim=1)  # [n, V / 256 + 1]
    block, rest = _passed(bounds, dice * bounds[:, -1])
    places = block[:, None] * _BLOCK + torch.arange(_BLOCK)  # [n, 256]
    inner = probabilities.gather(1, places.clamp(max=size - 1).to(logits.device)).cpu().double()
    inner = inner.masked_fill(places >= size, 0).cumsum(dim=1)
    token, _ = _passed(inner, rest)
    return (block * _BLOCK + token).to(logits.device)


def _passed(bounds: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of each row's increasing `bounds` [n, k] above its target [n], and what the target is above the one
    before it; never a step of width 0."""
    targets = torch.minimum(targets, torch.nextafter(bounds[:, -1], torch.zeros_like(targets)))
    places = torch.searchsorted(bounds, targets[:, None], right=True)  # [n, 1]
    before = functional.pad(bounds, (1, 0)).gather(1, places)
    return places[:, 0], targets - before[:, 0]


def _kept_probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities [n, V], not normalized, 0 where `top_k` and `top_p` leave a token out."""
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(dim=1)
    if sampling.top_p < 1:
        likely = probabilities.topk(min(_LIKELY, logits.shape[1])).values
        least = _least(likely, sampling.top_p)
        if (flat := likely.sum(dim=1) < sampling.top_p).any():
            least[flat] = _least(probabilities[flat].sort(dim=1, descending=True).values, sampling.top_p)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities


def _least(likely: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest probability that is kept of each row [n, k], sorted from the largest one.  -> [n, 1]"""
    n_before = (likely.cumsum(dim=1) < top_p).sum(dim=1, keepdim=True).clamp(max=likely.shape[1] - 1)
    return likely.gather(1, n_before)


def _sampled_by_transformers(
    model: Any,
    jobs: Sequence[tuple[Any, torch.Tensor, torch.Tensor | None]],
    dice: Mapping[Any, torch.Tensor],
    sampling: Sampling,
) -> dict[Any, list[int]]:
    """New tokens for (key, prompt embeddings [L, D], `rope_ids` [3, L] if the model has them)."""
    longest = max(len(embeds) for _, embeds, _ in jobs)
    padded = torch.stack([functional.pad(each, (0, 0, longest - len(each), 0)) for _, each, _ in jobs])  # [B, L, D]
    lengths = torch.tensor([len(embeds) for _, embeds, _ in jobs], device=padded.device)
    mask = torch.arange(longest, device=padded.device)[None] >= longest - lengths[:, None]  # [B, L]
    places = [functional.pad(each, (longest - each.shape[1], 0)) for _, _, each in jobs if each is not None]
    output = model.generate(
        inputs_embeds=padded,
        **({"rope_ids": torch.stack(places, dim=1).to(padded.device)} if places else {}),
        attention_mask=mask.long(),
        max_new_tokens=sampling.max_new_tokens,
        logits_processor=LogitsProcessorList([_Draw([dice[key] for key, _, _ in jobs], sampling)]),
        # `_Draw` leaves one token; settings of a chat model's generation config would change the distribution.
        **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0},
    )
    return dict(zip((key for key, _, _ in jobs), output.tolist(), strict=True))


class _Draw(LogitsProcessor):
    """Leaves the drawn token of each row."""

    def __init__(self, dice: Sequence[torch.Tensor], sampling: Sampling) -> None:
        self._dice = iter(torch.stack(list(dice)).unbind(dim=1))
        self._sampling = sampling

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = draw(scores, next(self._dice), self._sampling)
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)
