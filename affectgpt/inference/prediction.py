"""Samples to predictions: read in threads, answered in batches, appended to a file that a second run continues.

samples --threads: decode or read the cache, render the prompt--> encoded samples, a bounded number ahead
encoded samples --`answers`--> answers, in the order of the samples --> predictions
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from affectgpt.cache.reader import ClipReader, Features
from affectgpt.config import GenerateConfig, QuestionConfig
from affectgpt.data.sources import attempt
from affectgpt.inference.answers import CHOICES, SAMPLE_ID, AnswerFunction, answers
from affectgpt.inference.attribution import attribute
from affectgpt.journal import Journal
from affectgpt.journal.locks import held
from affectgpt.metrics.extract import read_labels
from affectgpt.metrics.faithfulness import marked
from affectgpt.prompts import PROMPT_VERSION, candidate_texts, render
from affectgpt.runtime import InputError, UserError, n_cores, remove_unfinished, write_json_atomic
from affectgpt.schema import MODALITIES, BadSample, Prediction, Sample, prediction_from_row, to_row
from affectgpt.spread import in_threads

log = logging.getLogger("affectgpt")

_MAX_READERS = 8
LATER = ("dtype", "backend")
"""Settings that older files do not tell: files without them are continued with any."""


def check_modalities(question: QuestionConfig, model_has: Sequence[str]) -> None:
    """Raise InputError for modalities that the model does not have: no clip is at fault."""
    if odd := [name for name in question.modalities or () if name not in model_has]:
        raise InputError(f"modalities {odd} asked for, but this model has {list(model_has)}")


def shown_modalities(sample: Sample, model_has: Sequence[str], question: QuestionConfig) -> tuple[str, ...]:
    """The soft-token branches that the model is shown of `sample`.

    Raises:
        InputError: a modality is asked for that the model does not have, or there is nothing to show at all.
    """
    check_modalities(question, model_has)
    wanted = model_has if question.modalities is None else question.modalities
    shown = tuple(name for name in MODALITIES if name in wanted and name in (sample.modalities or ()))
    subtitle = sample.in_language(question.lang, strict=False).subtitle
    if not shown and not (question.use_subtitle and subtitle):
        has = list(sample.modalities or ())
        raise InputError(
            f"sample {sample.id!r} has nothing to show: its media have {has}, modalities is {list(wanted)}, and "
            f"{'it has no subtitle' if question.use_subtitle else 'use_subtitle is false'}"
        )
    return shown


def predict(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    reader: ClipReader,
    *,
    question: QuestionConfig,
    generate: GenerateConfig,
    name: str | None = None,
    on_bad: str = "raise",
    bad: list[BadSample] | None = None,
    answer: AnswerFunction = answers,
    attribution: bool = False,
) -> Iterator[Prediction]:
    """Yield a prediction for each usable sample, in order.

    Several clips are read and encoded in threads while answers are generated; memory does not grow with their number.

    Args:
        samples: with probed modalities.
        reader: reads media or cached states.
        name: of the model, for the record.
        on_bad: "raise" stops at a clip that cannot be read; "skip" leaves it out.
        bad: receives the samples that were left out.
        attribution: also compute what each clause rests on, at the cost of about two answers per clip.
    """
    model.eval()

    def read(sample: Sample) -> tuple[Prediction, dict[str, Any], tuple[Sample, Features] | None]:
        """The prediction without its answer, the encoded sample, and what attribution needs."""
        shown = processor.visible(shown_modalities(sample, model.modalities, question))
        features = reader(sample, shown)
        messages = render(
            sample,
            task=question.task,
            lang=question.lang,
            candidates=question.candidates,
            modalities=shown,
            with_subtitle=question.use_subtitle,
            prompt_format=processor.prompt_format,
        )
        subtitle = sample.in_language(question.lang, strict=False).subtitle if question.use_subtitle else None
        unanswered = Prediction(
            id=sample.id,
            text="",
            task=question.task,
            lang=question.lang,
            modalities=shown + (("text",) if subtitle else ()),
            subtitle=subtitle,
            media=features.facts,
            model=name,
            prompt_version=PROMPT_VERSION,
            person=sample.person,
        )
        encoded = processor.encode(messages, features.media, facts=features.facts)
        encoded[SAMPLE_ID] = sample.id
        if generate.constrain and question.task == "fixed":
            texts = candidate_texts(question.candidates, question.lang, processor.prompt_format)
            encoded[CHOICES] = processor.answer_ids(messages, texts)
        return unanswered, encoded, (sample, features) if attribution else None

    def results() -> Iterator[tuple[Prediction, dict[str, Any], Any] | BadSample]:
        read_or_skip = partial(attempt, read, on_bad=on_bad)
        if len(samples) == 1:
            return map(read_or_skip, samples)
        n_threads = min(_MAX_READERS, n_cores())
        return in_threads(read_or_skip, samples, n_threads=n_threads, n_ahead=generate.batch_size + n_threads)

    pending: deque[tuple[Prediction, Any]] = deque()

    def inputs() -> Iterator[Mapping[str, Any]]:
        for result in results():
            if not isinstance(result, BadSample):
                pending.append((result[0], result[2]))
                yield result[1]
            elif bad is not None:
                bad.append(result)

    with contextlib.closing(inputs()) as source:
        for text, tokens, finish in answer(model, processor, source, generate):
            labels = None if question.task == "description" else read_labels(text).labels
            unanswered, shown_to_it = pending.popleft()
            prediction = marked(replace(unanswered, text=text, labels=labels, n_tokens=len(tokens), finish=finish))
            if shown_to_it is not None and text:
                asked, features = shown_to_it
                clauses = attribute(model, processor, asked, features.media, text, question, features.facts)
                prediction = replace(prediction, attribution=tuple(clause.to_dict() for clause in clauses))
            yield prediction


def predict_to_file(
    predictions: Callable[[Sequence[Sample]], Iterable[Prediction]],
    samples: Sequence[Sample],
    out: Path,
    *,
    settings: Mapping[str, Any],
    what: str = "predicting",
) -> list[Prediction]:
    """Append predictions to `out`, except for ids that it already has; returns the rows of all `samples`, in order.

    Each row is forced to the disk before the next one is written. One process writes `out`.

    Args:
        predictions: predicts the samples that are still missing.
        settings: everything that decides the answers, stored next to the file. Continuing with other settings is
            refused, since the file would mix two systems.
        what: title of the progress bar.

    Raises:
        UserError: another process writes `out`, it was made with other or unknown settings, holds something else than
            predictions, or cannot be written.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file, such as {out / 'predictions.jsonl'}")
    with held(out.with_name(f".{out.name}.lock"), what=f"{out} is being written"):
        return _append_missing(predictions, samples, out, settings, what)


def _append_missing(
    predictions: Callable[[Sequence[Sample]], Iterable[Prediction]],
    samples: Sequence[Sample],
    out: Path,
    settings: Mapping[str, Any],
    what: str,
) -> list[Prediction]:
    sidecar = out.with_name(out.name + ".settings.json")
    if not sidecar.exists() and out.exists() and out.stat().st_size:
        raise UserError(
            f"{out} has rows, but no {sidecar.name} that says how they were made, so it cannot be continued; restore "
            "that file, or name another out= file"
        )
    made: dict[str, Prediction] = {}
    with contextlib.closing(Journal(out, key="id", fsync=True)) as journal:
        done = {row["id"]: prediction_from_row(row) for row in journal.rows()}
        now = json.loads(json.dumps(settings, default=str))
        if done:
            before = json.loads(sidecar.read_text(encoding="utf-8"))
            keys = {*before, *(key for key in now if key not in LATER)}
            if differing := sorted(key for key in keys if before.get(key) != now.get(key)):
                raise UserError(f"{out} was made with other settings ({', '.join(differing)}); name another out= file")
        remove_unfinished(sidecar)
        write_json_atomic(sidecar, now)
        todo = [sample for sample in samples if sample.id not in done]
        n_done = len(samples) - len(todo)
        if done:
            log.info("%s has %d of %d samples; %d to do", out, n_done, len(samples), len(todo))
        rows = tqdm(predictions(todo), what, len(samples), initial=n_done, file=sys.stderr, disable=len(samples) == 1)
        for prediction in map(marked, rows):
            journal.append(to_row(prediction))
            made[prediction.id] = prediction
    known = {**done, **made}
    return [known[sample.id] for sample in samples if sample.id in known]
