"""From samples to predictions: batched generation, written line by line, going on where a killed run stopped.

samples --threads: decode or read the cache, write the prompt--> inputs, a bounded number ahead
inputs --encoders, projectors--> prompts of embeddings --`models.generation`--> answers, in the samples' order
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from affectgpt.cache.reader import ClipReader
from affectgpt.data.sources import attempt
from affectgpt.engine import generation, packing
from affectgpt.engine.streaming import Listener, Streamer, Telling
from affectgpt.journal import append_jsonl_records
from affectgpt.metrics.extract import read_labels
from affectgpt.prompts import PROMPT_VERSION, render
from affectgpt.runtime import InputError, UserError, stable_hash, write_json_atomic
from affectgpt.schema import MODALITIES, BadSample, Prediction, Sample, prediction_from_row, to_json
from affectgpt.spread import in_threads

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class Asking:
    """What a model is asked for.

    Attributes:
        modalities: soft-token branches to show; None = all that clip and model have.
        use_subtitle: False is strategy S0 of the papers, True is S1.
    """

    task: str = "both"
    lang: str = "en"
    candidates: tuple[str, ...] = ()
    modalities: tuple[str, ...] | None = None
    use_subtitle: bool = True


@dataclass(frozen=True)
class Decoding:
    """How an answer is written; the default is greedy and repeatable."""

    batch_size: int = 8
    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    num_beams: int = 1
    compile: bool = False


def shown_modalities(sample: Sample, model_has: Sequence[str], asking: Asking) -> tuple[str, ...]:
    """The soft-token branches that the model really sees of `sample`.

    Raises:
        ValueError: a modality is asked for that the model does not have, or nothing at all is left to look at.
    """
    if odd := [name for name in asking.modalities or () if name not in model_has]:
        raise InputError(f"modalities {odd} asked for, but this model has {list(model_has)}")
    wanted = model_has if asking.modalities is None else asking.modalities
    shown = tuple(name for name in MODALITIES if name in wanted and name in (sample.modalities or ()))
    if not shown and not (asking.use_subtitle and sample.subtitle):
        has = list(sample.modalities or ())
        raise InputError(
            f"sample {sample.id!r} has nothing to show: its media hold {has}, asked for are {list(wanted)}, "
            f"and there is {'no subtitle' if asking.use_subtitle else 'no use of the subtitle'}"
        )
    return shown


class Answer(NamedTuple):
    """What the LLM wrote; `finish` is "eos", or "length" if it was cut."""

    text: str
    n_tokens: int
    finish: str


Engine = Callable[[Any, Any, Iterable[Mapping[str, Any]], Decoding], Iterator[Answer]]
"""(model, processor, encoded samples, decoding) -> their answers, in order."""


def answers(
    model: Any,
    processor: Any,
    inputs: Iterable[Mapping[str, Any]],
    decoding: Decoding,
    listeners: Mapping[int, Listener] | None = None,
) -> Iterator[Answer]:
    """Answers to encoded samples (`processor.encode`), in their order; `inputs` is read as far as there is room.

    Greedy answers come from `models.generation` where it knows the LLM; all others from transformers' `generate`. The
    text is the same as that of each sample alone.

    Args:
        listeners: by the place of an input: are told the text of its answer as far as it is certain, while it is being
            written. With beams nothing is certain before the end.

    Raises:
        UserError: `decoding.compile` is asked for where transformers' `generate` writes, or without a compiler.
    """
    is_greedy = not decoding.do_sample and decoding.num_beams == 1
    by = _by_own_loop if is_greedy and generation.knows(model) else _by_transformers
    if decoding.compile:
        _check_compiling(model, by is _by_own_loop)
    telling = Telling(processor.tokenizer, processor.stop_token_ids, listeners) if listeners else None
    return by(model, processor, inputs, decoding, telling)


def _check_compiling(model: Any, by_own_loop: bool) -> None:
    if not by_own_loop:
        raise UserError(
            "generate.compile=true is for greedy answers (do_sample=false, num_beams=1) of LLMs of the families "
            f"{', '.join(packing.FAMILIES)}; here transformers' generate writes them. Leave it out"
        )
    from torch._inductor import config as inductor

    compiler = inductor.cpp.cxx[1]  # g++ or clang++, unless CXX names another
    if model.device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"generate.compile=true needs a C++ compiler on a CPU, and there is no {compiler} on the PATH; install one "
            "or name another by the environment variable CXX"
        )


def generate_texts(
    model: Any,
    processor: Any,
    inputs: Sequence[Mapping[str, Any]],
    decoding: Decoding,
    listeners: Mapping[int, Listener] | None = None,
) -> list[Answer]:
    """`answers` to samples that are all at hand."""
    return list(answers(model, processor, inputs, decoding, listeners))


def predict(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    reader: ClipReader,
    *,
    asking: Asking,
    decoding: Decoding,
    name: str | None = None,
    on_bad: str = "raise",
    bad: list[BadSample] | None = None,
    engine: Engine = answers,
) -> Iterator[Prediction]:
    """Yield one prediction a usable sample, in order, generating `decoding.batch_size` at a time.

    Clips are read and prepared in threads while answers are written; memory does not grow with the number of samples.

    Args:
        samples: with probed modalities.
        reader: gives media or cached states.
        name: what made the prediction, for the record.
        on_bad: "raise" stops at a clip that cannot be read; "skip" leaves it out.
        bad: receives what was left out.
        engine: writes the answers.
    """
    model.eval()

    def read(sample: Sample) -> tuple[Sample, tuple[str, ...], dict[str, Any], dict[str, Any]]:
        shown = processor.visible(shown_modalities(sample, model.modalities, asking))
        features = reader(sample, shown)
        messages = render(
            sample,
            task=asking.task,
            lang=asking.lang,
            candidates=asking.candidates,
            modalities=shown,
            with_subtitle=asking.use_subtitle,
        )
        return sample, shown, features.facts, processor.encode(messages, features.media)

    asked: deque[tuple[Sample, tuple[str, ...], dict[str, Any]]] = deque()

    def inputs() -> Iterator[Mapping[str, Any]]:
        n_threads = min(_MAX_READERS, os.cpu_count() or 1)
        n_ahead = decoding.batch_size + n_threads
        for result in in_threads(partial(attempt, read, on_bad=on_bad), samples, n_threads=n_threads, n_ahead=n_ahead):
            if isinstance(result, BadSample):
                if bad is not None:
                    bad.append(result)
                continue
            sample, shown, facts, encoded = result
            asked.append((sample, shown, facts))
            yield encoded

    with contextlib.closing(inputs()) as source:
        for answer in engine(model, processor, source, decoding):
            sample, shown, facts = asked.popleft()
            subtitle = sample.in_language(asking.lang, strict=False).subtitle if asking.use_subtitle else None
            yield Prediction(
                id=sample.id,
                text=answer.text,
                labels=None if asking.task == "description" else read_labels(answer.text).labels,
                task=asking.task,
                lang=asking.lang,
                modalities=shown + (("text",) if subtitle else ()),
                subtitle=subtitle,
                media=facts,
                n_tokens=answer.n_tokens,
                finish=answer.finish,
                model=name,
                prompt_version=PROMPT_VERSION,
            )


_MAX_READERS = 8


def prompt_embeds(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Word embeddings and soft tokens of encoded samples, [L, D] each; encoders run once a sample."""
    batch = processor.collate(rows, for_generation=True)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    with torch.no_grad():
        embeds = model.embed(batch.pop("input_ids"), batch)  # [B, L, D], padded on the left
    return [padded[-len(row["input_ids"]) :] for padded, row in zip(embeds, rows, strict=True)]


def answer_of(processor: Any, tokens: Sequence[int]) -> Answer:
    """The answer that new tokens spell, up to the first stop token."""
    ends = set(processor.stop_token_ids)
    stop = next((place for place, token in enumerate(tokens) if token in ends), None)
    text = processor.tokenizer.decode(list(tokens[:stop]), skip_special_tokens=True).strip()
    return Answer(text, len(tokens) if stop is None else stop + 1, "length" if stop is None else "eos")


def _by_own_loop(
    model: Any,
    processor: Any,
    inputs: Iterable[Mapping[str, Any]],
    decoding: Decoding,
    telling: Telling | None = None,
) -> Iterator[Answer]:
    source = enumerate(inputs)

    def take(n: int) -> list[generation.Prompt]:
        if not (taken := list(islice(source, n))):
            return []
        embeds = prompt_embeds(model, processor, [row for _, row in taken])
        return [
            generation.Prompt(number, each, decoding.max_new_tokens)
            for (number, _), each in zip(taken, embeds, strict=True)
        ]

    stops = model.generation_config.eos_token_id
    ended: dict[int, list[int]] = {}
    n_given = 0
    for number, tokens in generation.greedy(
        model.language_model,
        take,
        batch_size=decoding.batch_size,
        stop_ids=stops if isinstance(stops, list) else [] if stops is None else [stops],
        suppressed_ids=model.generation_config.suppress_tokens or (),
        watch=None if telling is None else telling.tell,
        compiles=decoding.compile,
    ):
        ended[number] = tokens
        while n_given in ended:
            yield answer_of(processor, ended.pop(n_given))
            n_given += 1


_SORTED_BATCHES = 4
"""Batches whose samples are sorted by length before they are padded."""


def _by_transformers(
    model: Any,
    processor: Any,
    inputs: Iterable[Mapping[str, Any]],
    decoding: Decoding,
    telling: Telling | None = None,
) -> Iterator[Answer]:
    size = decoding.batch_size
    # What is drawn at random belongs to a sample by its place in the run, so sampled answers keep the input's order.
    n_together = size if decoding.do_sample else _SORTED_BATCHES * size
    source = iter(inputs)
    n_before = 0
    while window := list(islice(source, n_together)):
        order = list(range(len(window)))
        if not decoding.do_sample:
            order.sort(key=lambda place: len(window[place]["input_ids"]), reverse=True)
        made: dict[int, Answer] = {}
        for start in range(0, len(order), size):
            places = order[start : start + size]
            streamer = None
            if telling is not None and decoding.num_beams == 1:
                streamer = Streamer(telling, [n_before + place for place in places])
            rows = [window[place] for place in places]
            made |= zip(places, _batch_by_transformers(model, processor, rows, decoding, streamer), strict=True)
        n_before += len(window)
        yield from (made[place] for place in range(len(window)))


@torch.no_grad()
def _batch_by_transformers(
    model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], decoding: Decoding, streamer: Streamer | None
) -> list[Answer]:
    batch = processor.collate(rows, for_generation=True)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    options: dict[str, Any] = {"max_new_tokens": decoding.max_new_tokens, "num_beams": decoding.num_beams}
    if decoding.do_sample:
        options |= {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
    else:
        # Given as None, they also silence the sampling values that a chat model's own generation config may carry.
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if streamer is not None:
        options["streamer"] = streamer
    output = model.generate(**batch, **options)
    return [answer_of(processor, tokens) for tokens in output[:, batch["input_ids"].shape[1] :].tolist()]


def predict_to_file(
    predictions: Callable[[Sequence[Sample]], Iterator[Prediction]],
    samples: Sequence[Sample],
    out: Path,
    *,
    settings: dict[str, Any],
    progress: Callable[[Iterator[Prediction], int, int], Iterator[Prediction]] | None = None,
) -> list[Prediction]:
    """Append predictions to `out`, skipping ids that stand there already; returns all rows of `samples`, in order.

    Args:
        predictions: makes predictions for the samples that are still missing.
        settings: everything that decides the answers. Kept beside the file; going on with other settings is refused,
            since the file would then mix two systems.
        progress: wraps the iterator, given (iterator, number done, number of all).
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sidecar = out.with_name(out.name + ".settings.json")
    done = {row["id"]: row for row in append_jsonl_records(out)}
    fingerprint = stable_hash(settings)
    if done and sidecar.exists():
        before = json.loads(sidecar.read_text(encoding="utf-8"))
        if stable_hash(before) != fingerprint:
            differing = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
            raise UserError(f"{out} was made with other settings ({', '.join(differing)}); name another out= file")
    write_json_atomic(sidecar, json.loads(json.dumps(settings, default=str)))
    todo = [sample for sample in samples if sample.id not in done]
    if done:
        log.info("%s holds %d of %d samples already; %d to do", out, len(samples) - len(todo), len(samples), len(todo))
    rows = predictions(todo)
    if progress is not None:
        rows = progress(rows, len(samples) - len(todo), len(samples))
    made: dict[str, Prediction] = {}
    with contextlib.closing(out.open("a", encoding="utf-8")) as file:
        for prediction in rows:
            file.write(to_json(prediction) + "\n")
            file.flush()
            os.fsync(file.fileno())
            made[prediction.id] = prediction
    old = {key: prediction_from_row(row) for key, row in done.items()}
    return [{**old, **made}[sample.id] for sample in samples if sample.id in old or sample.id in made]


def settings_of(asking: Asking, decoding: Decoding, **more: Any) -> dict[str, Any]:
    """What decides the answers, as plain values for `predict_to_file`; batch size and speed do not belong to it."""
    kept = {key: value for key, value in asdict(decoding).items() if key not in ("batch_size", "compile")}
    return json.loads(json.dumps({**asdict(asking), **kept, "prompt_version": PROMPT_VERSION, **more}))
