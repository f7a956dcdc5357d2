"""The task "fixed" in training: one of the stage's candidates is the answer."""

from types import SimpleNamespace

import torch

from affectgpt.cache.reader import Features
from affectgpt.data.mixture import Source
from affectgpt.data.stream import TrainingStream
from affectgpt.schema import Sample
from affectgpt.training.loader import Batches
from affectgpt.training.objectives.supervised import Objective


class Processor:
    """Remembers what it would encode."""

    def visible(self, modalities):
        return tuple(name for name in modalities if name != "frames")

    def encode(self, messages, media, answer, text, facts):
        self.seen = messages[0].content, sorted(media), answer
        return {"input_ids": torch.zeros(1), "labels": torch.zeros(1)}

    def collate(self, rows, packed):
        return {}


def encode(task: str):
    sample = Sample(id="v1", label="sad", labels=("sad",), modalities=("audio", "frames"))
    reader = SimpleNamespace(load=lambda sample, shown: Features(dict.fromkeys(shown), {}))
    source = Source([sample], tasks={task: 1.0}, candidates=("sad", "happy"))
    stream = TrainingStream([source], modalities=("audio", "frames"), length=1, seed=0)
    processor = Processor()
    Batches(Objective(), processor, reader, model=None, packed=True)([stream[0]])
    return processor.seen


def test_the_question_lists_the_candidates_and_the_answer_is_the_label():
    question, _, answer = encode("fixed")
    assert "sad, happy" in question
    assert answer == "sad"
    assert "sad, happy" not in encode("labels")[0]


def test_what_the_model_hides_is_neither_shown_nor_read():
    question, media, _ = encode("labels")
    assert question.startswith("<audio>\n")
    assert media == ["audio"]
