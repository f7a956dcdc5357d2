"""Formats of the benchmarks in which every clip has a question of its own (`affectgpt.questions`), as samples.

The question of a sample replaces that of task `description`; zero-shot systems are asked it as well. The true answer is
the sample's label. `video` is the folder that the paths in the files are relative to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from affectgpt import questions
from affectgpt.data.suffixes import medium_field
from affectgpt.questions import MME_TASKS, Question
from affectgpt.runtime import InputError
from affectgpt.schema import BadSample, Sample


class QuestionFolder(Protocol):
    """What is needed of `formats.Folder`."""

    path: Path
    video: str
    files: list[Path]


Rows = Iterator[Sample | BadSample]


def mme_emotion(folder: QuestionFolder, *, tasks: Sequence[str] = MME_TASKS) -> Rows:
    """MME-Emotion: <task>/question/*.json with video_id, label, label_set; the question is in our words"""
    return _samples(folder, questions.mme_emotion(folder.path, tasks, folder.files))


def emotion_hallucer(folder: QuestionFolder) -> Rows:
    """EmotionHallucer: *.json with pairs of a basic and a hallucinated yes/no question (the form of VideoHallucer)"""
    return _samples(folder, questions.emotion_hallucer(folder.path, folder.files))


def emobench_m(folder: QuestionFolder) -> Rows:
    """EmoBench-M: benchmark_json/*.json with id, video, conversations; media in dataset/<file>"""
    return _samples(folder, questions.emobench_m(folder.path, folder.files))


def intent_bench(folder: QuestionFolder, *, file: str = "qa.json") -> Rows:
    """IntentBench: qa.json with problem, problem_type, options, solution, path"""
    return _samples(folder, questions.intent_bench(folder.path / file, folder.files))


def _samples(folder: QuestionFolder, rows: Iterable[Question | BadSample]) -> Rows:
    root = folder.path / folder.video
    for row in rows:
        if isinstance(row, Question):
            try:
                media = medium_field(root, row.medium) if row.medium else {}
                yield Sample(id=row.id, **media, question=row.text, label=row.answer)
            except InputError as error:
                yield BadSample(row.id, str(folder.path), str(error))
        else:
            yield row
