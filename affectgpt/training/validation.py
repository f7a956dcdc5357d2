"""Validation while training: answers for held-out samples, scored like a test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectgpt.cache.reader import ClipReader
from affectgpt.config import GenerateConfig, QuestionConfig, TrainConfig
from affectgpt.data.mixture import Source
from affectgpt.inference.prediction import predict
from affectgpt.metrics import evaluate
from affectgpt.metrics.classification import classify
from affectgpt.prompts import target_text
from affectgpt.schema import Prediction, Sample, true_labels, write_jsonl
from affectgpt.training.callbacks import Shown, shown_frames
from affectgpt.training.distributed import Processes
from affectgpt.training.samples import question_of


class Validation:
    """Generates and scores answers; each process answers its share of the samples.

    Args:
        sources: the held-out samples, which are asked what the training asks (see `question_of`).
        folder: receives step-N.jsonl.
        show: called in the first process with the step and the first samples, for a dashboard.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[Source],
        processor: Any,
        reader: ClipReader,
        processes: Processes,
        folder: Path,
        show: Callable[[int, Sequence[Shown]], None] | None = None,
    ) -> None:
        generate = config.generate
        self._greedy = GenerateConfig(generate.batch_size, generate.max_new_tokens, compile=generate.compile)
        self._asked: list[tuple[QuestionConfig, list[Sample]]] = []
        for source in sources:
            question = question_of(source)
            samples = next((known for other, known in self._asked if other == question), None)
            if samples is None:
                self._asked.append((question, samples := []))
            ids = {sample.id for sample in samples}  # a clip of two sources is asked and counted once
            samples += [sample for sample in source.samples if sample.id not in ids]
        self._processor = processor
        self._reader = reader
        self._processes = processes
        self._folder = folder
        self._n_shown = config.logging.n_sample_generations
        self._show = show

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        answered = [(question, samples, self._answers(model, question, samples)) for question, samples in self._asked]
        if self._processes.is_main:
            write_jsonl(self._folder / f"step-{step:06d}.jsonl", [row for *_, rows in answered for row in rows])
            if self._show is not None:
                pairs = [pair for _, samples, rows in answered for pair in zip(samples, rows, strict=True)]
                self._show(step, [(sample, row, _frames(sample)) for sample, row in pairs[: self._n_shown]])
        return combined_scores(answered)

    def _answers(self, model: Any, question: QuestionConfig, samples: Sequence[Sample]) -> list[Prediction]:
        mine = self._processes.equal_share(samples)
        made = self._processes.together(
            lambda: list(predict(model, self._processor, mine, self._reader, question=question, generate=self._greedy))
        )
        by_id = {row.id: row for rows in made for row in rows}
        return [by_id[sample.id] for sample in samples]


def combined_scores(
    answered: Sequence[tuple[QuestionConfig, Sequence[Sample], Sequence[Prediction]]],
) -> dict[str, float]:
    """Scores of all questions; `score`, by which the best checkpoint is chosen, is a fraction of 1.

    f_s, precision, recall and n are of open questions (`validation_scores`), weighted_f1 and n_fixed of task fixed,
    whose classes are the candidates of all its questions. `score` is f_s or weighted_f1, and with both kinds of
    question their mean weighted by the number of samples. unparsed counts the answers without a (known) label.
    """
    scores, parts, unparsed = {}, [], 0.0
    open_ones = [row for row in answered if row[0].task != "fixed"]
    if open_ones:
        # With the number of the question: two questions may be about one clip.
        truths = {
            f"{number} {sample.id}": true_labels(sample, question.lang)
            for number, (question, samples, _) in enumerate(open_ones)
            for sample in samples
        }
        rows = [replace(row, id=f"{number} {row.id}") for number, (*_, rows) in enumerate(open_ones) for row in rows]
        found = _open_scores(rows, truths)
        unparsed += found.pop("unparsed")
        scores |= found
        parts.append((found["f_s"], len(truths)))
    fixed = [row for row in answered if row[0].task == "fixed"]
    if fixed:
        pairs = [
            (target_text(sample, "fixed", question.lang), _chosen(row, question.candidates))
            for question, samples, rows in fixed
            for sample, row in zip(samples, rows, strict=True)
        ]
        classes = list(dict.fromkeys(name for question, *_ in fixed for name in question.candidates))
        result = classify([truth for truth, _ in pairs], [choice for _, choice in pairs], classes)
        unparsed += result.unparsed
        scores |= {"weighted_f1": result.weighted_f1, "n_fixed": float(result.n)}
        parts.append((result.weighted_f1, result.n))
    score = sum(value * n for value, n in parts) / sum(n for _, n in parts)
    return {"score": score, **scores, "unparsed": unparsed}


def metric_of(sources: Sequence[Source]) -> str:
    """The name of the `score` that held-out samples of these sources get."""
    is_fixed = [question_of(source).task == "fixed" for source in sources]
    return "weighted F1" if is_fixed and all(is_fixed) else "F_S and weighted F1" if any(is_fixed) else "F_S"


def _chosen(prediction: Prediction, candidates: Sequence[str]) -> str | None:
    """The candidate that an answer names first."""
    known = {name.casefold(): name for name in candidates}
    named = (known.get(label.casefold()) for label in prediction.labels or ())
    return next(filter(None, named), None)


def validation_scores(predictions: Sequence[Prediction], references: Sequence[Sample]) -> dict[str, float]:
    """F_S, precision and recall (level-1 mean over the five wheels) with their denominators."""
    return _open_scores(predictions, {sample.id: true_labels(sample) for sample in references})


def _open_scores(predictions: Sequence[Prediction], truths: Mapping[str, Any]) -> dict[str, float]:
    report = evaluate(predictions, truths, n_bootstrap=0)
    return {
        "f_s": report.primary.f_score,
        "precision": report.primary.precision,
        "recall": report.primary.recall,
        "n": float(report.primary.n),
        "unparsed": float(report.counts.unparsed),
    }


def _frames(sample: Sample) -> Any:
    return shown_frames(sample.video) if "frames" in (sample.modalities or ()) else None
