"""Validation while training: answers for held-out samples, scored like a test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.cache.reader import ClipReader
from affectgpt.config import GenerateConfig, QuestionConfig, TrainConfig
from affectgpt.inference.prediction import predict
from affectgpt.media import read_frames
from affectgpt.metrics import evaluate
from affectgpt.schema import Prediction, Sample, true_labels, write_jsonl
from affectgpt.training.distributed import Processes

Shown = tuple[Sample, Prediction, Any]
"""A sample, its prediction, and frames uint8 [T, H, W, 3] or None."""


class Validation:
    """Generates and scores answers; each process answers its share of the samples.

    Args:
        folder: receives step-N.jsonl.
        show: called in the first process with the step and the first samples, for a dashboard.
    """

    def __init__(
        self,
        config: TrainConfig,
        samples: Sequence[Sample],
        processor: Any,
        reader: ClipReader,
        processes: Processes,
        folder: Path,
        show: Callable[[int, Sequence[Shown]], None] | None = None,
    ) -> None:
        stage, generate = config.stage, config.generate
        task = next((task for task in ("both", "think") if stage.tasks.get(task)), "labels")
        self._question = QuestionConfig(task=task, lang=max(stage.langs, key=stage.langs.get))
        self._greedy = GenerateConfig(generate.batch_size, generate.max_new_tokens, compile=generate.compile)
        self._samples = samples
        self._processor = processor
        self._reader = reader
        self._processes = processes
        self._folder = folder
        self._n_shown = config.logging.n_sample_generations
        self._show = show

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        mine = self._processes.equal_share(self._samples)
        made = self._processes.together(
            lambda: list(
                predict(model, self._processor, mine, self._reader, question=self._question, generate=self._greedy)
            )
        )
        by_id = {row.id: row for rows in made for row in rows}
        rows = [by_id[sample.id] for sample in self._samples]
        if self._processes.is_main:
            write_jsonl(self._folder / f"step-{step:06d}.jsonl", rows)
            if self._show is not None:
                shown = list(zip(self._samples, rows, strict=True))[: self._n_shown]
                self._show(step, [(sample, row, _frames(sample)) for sample, row in shown])
        return validation_scores(rows, self._samples, self._question.lang)


def validation_scores(
    predictions: Sequence[Prediction], references: Sequence[Sample], lang: str = "en"
) -> dict[str, float]:
    """F_S, precision and recall (level-1 mean over the five wheels) with their denominators."""
    truths: Mapping[str, Any] = {sample.id: true_labels(sample, lang) for sample in references}
    report = evaluate(predictions, truths, n_bootstrap=0)
    return {
        "f_s": report.primary.f_score,
        "precision": report.primary.precision,
        "recall": report.primary.recall,
        "n": float(report.primary.n),
        "unparsed": float(report.counts.unparsed),
    }


def _frames(sample: Sample) -> Any:
    if sample.video is None or "frames" not in (sample.modalities or ()):
        return None
    return read_frames(sample.video, 3).images
