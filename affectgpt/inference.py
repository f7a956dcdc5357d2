"""From samples to predictions: batched generation, written line by line, going on where a killed run stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from affectgpt.data.features import ClipReader
from affectgpt.data.sources import check_each
from affectgpt.metrics.extract import read_labels
from affectgpt.prompts import MODALITIES, PROMPT_VERSION, render
from affectgpt.runtime import UserError, append_jsonl_records, stable_hash, write_json_atomic
from affectgpt.schema import BadSample, Prediction, Sample, prediction_from_row, to_json

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


def shown_modalities(sample: Sample, model_has: Sequence[str], asking: Asking) -> tuple[str, ...]:
    """The soft-token branches that the model really sees of `sample`.

    Raises:
        ValueError: a modality is asked for that the model does not have, or nothing at all is left to look at.
    """
    if odd := [name for name in asking.modalities or () if name not in model_has]:
        raise ValueError(f"modalities {odd} asked for, but this model has {list(model_has)}")
    wanted = model_has if asking.modalities is None else asking.modalities
    shown = tuple(name for name in MODALITIES if name in wanted and name in (sample.modalities or ()))
    if not shown and not (asking.use_subtitle and sample.subtitle):
        has = list(sample.modalities or ())
        raise ValueError(
            f"sample {sample.id!r} has nothing to show: its media hold {has}, asked for are {list(wanted)}, "
            f"and there is {'no subtitle' if asking.use_subtitle else 'no use of the subtitle'}"
        )
    return shown


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
) -> Iterator[Prediction]:
    """Yield one prediction a usable sample, in order, generating `decoding.batch_size` at a time.

    Args:
        samples: with probed modalities.
        reader: gives media or cached states.
        name: what made the prediction, for the record.
        on_bad: "raise" stops at a clip that cannot be read; "skip" leaves it out.
        bad: receives what was left out.
    """
    model.eval()
    for start in range(0, len(samples), decoding.batch_size):
        chunk = samples[start : start + decoding.batch_size]
        encoded: dict[str, Any] = {}

        def read(sample: Sample, encoded: dict[str, Any] = encoded) -> Sample:
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
            encoded[sample.id] = (shown, features.facts, processor.encode(messages, features.media))
            return sample

        good, left_out = check_each(
            chunk,
            read,
            name=lambda sample: sample.id,
            where=lambda sample: str(sample.video or sample.audio),
            on_bad=on_bad,
            what="reading",
            n_threads=1,
            progress=False,
        )
        if bad is not None:
            bad += left_out
        if not good:
            continue
        items = [encoded[sample.id] for sample in good]
        texts = generate_texts(model, processor, [inputs for _, _, inputs in items], decoding)
        for sample, (shown, facts, _), (text, n_tokens, finish) in zip(good, items, texts, strict=True):
            subtitle = sample.in_language(asking.lang, strict=False).subtitle if asking.use_subtitle else None
            yield Prediction(
                id=sample.id,
                text=text,
                labels=None if asking.task == "description" else read_labels(text).labels,
                task=asking.task,
                lang=asking.lang,
                modalities=shown + (("text",) if subtitle else ()),
                subtitle=subtitle,
                media=facts,
                n_tokens=n_tokens,
                finish=finish,
                model=name,
                prompt_version=PROMPT_VERSION,
            )


@torch.no_grad()
def generate_texts(
    model: Any, processor: Any, inputs: Sequence[dict[str, Any]], decoding: Decoding
) -> list[tuple[str, int, str]]:
    """Generate for encoded samples; (text, number of new tokens, "eos" or "length") each."""
    batch = processor.collate(list(inputs), for_generation=True)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    options: dict[str, Any] = {"max_new_tokens": decoding.max_new_tokens, "num_beams": decoding.num_beams}
    if decoding.do_sample:
        options |= {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
    else:
        # Given as None, they also silence the sampling values that a chat model's own generation config may carry.
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    output = model.generate(**batch, **options)
    new = output[:, batch["input_ids"].shape[1] :]
    ends = set(processor.stop_token_ids)
    results = []
    for row in new.tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        text = processor.tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
        results.append((text, len(row) if stop is None else stop + 1, "length" if stop is None else "eos"))
    return results


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
    kept = {key: value for key, value in asdict(decoding).items() if key != "batch_size"}
    return json.loads(json.dumps({**asdict(asking), **kept, "prompt_version": PROMPT_VERSION, **more}))
