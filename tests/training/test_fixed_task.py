"""The task "fixed" in training: one of the stage's candidates is the answer."""

from types import SimpleNamespace

import pytest
import torch

from affectgpt.data.stream import Part, Recipe, TrainingStream
from affectgpt.schema import Sample
from affectgpt.training.loader import EncodeDraw


class Processor:
    """Remembers what it would encode."""

    def visible(self, modalities):
        return tuple(name for name in modalities if name != "frames")

    def encode(self, messages, media, answer, text):
        self.seen = messages[0].content, sorted(media), answer
        return {"input_ids": torch.zeros(1), "labels": torch.zeros(1)}


def encode(task: str, candidates=("sad", "happy"), label: str = "sad"):
    sample = Sample(id="v1", label=label, labels=("sad",), modalities=("audio", "frames"))
    reader = SimpleNamespace(stored=lambda sample, shown: SimpleNamespace(media=dict.fromkeys(shown), missing={}))
    recipe = Recipe(tasks={task: 1.0}, langs={"en": 1.0}, candidates=candidates)
    processor = Processor()
    encoded = EncodeDraw(processor, reader)
    parts = [Part([sample])]
    TrainingStream(parts, recipe, modalities=("audio", "frames"), length=1, seed=0, encode=encoded)[0]
    return processor.seen


def test_the_question_lists_the_candidates_and_the_answer_is_the_label():
    question, _, answer = encode("fixed")
    assert "sad, happy" in question
    assert answer == "sad"
    assert "sad, happy" not in encode("labels")[0]


def test_a_label_that_is_no_candidate_is_named():
    with pytest.raises(
        ValueError, match=r"sample 'v1': its label 'bored' is none of the candidates \['sad', 'happy'\]"
    ):
        encode("fixed", label="bored")


def test_what_the_model_hides_is_neither_shown_nor_read():
    question, media, _ = encode("labels")
    assert question.startswith("<audio>\n")
    assert media == ["audio"]
