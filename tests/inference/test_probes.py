"""Probes on clues: the choice is that of two forward passes, and pairs that do not differ are left out."""

import torch

from affectgpt.config import QuestionConfig
from affectgpt.inference.probes import probe_clues
from affectgpt.prompts import render
from affectgpt.schema import Sample
from tests.inference.test_prediction import Reader
from tests.models import tiny

SAMPLES = [
    Sample("s1", video="s1.mp4", subtitle="I see.", modalities=("audio", "frames")),
    Sample("s2", video="s2.mp4", subtitle="No.", modalities=("audio", "frames")),
]
REFERENCES = {
    "s1": "The brows rise. The voice trembles. The words are a plea.",
    "s2": "The lips smile. The voice trembles. The words are a joke.",
}
OTHERS = {"s1": "s2", "s2": "s1"}


def test_the_choice_is_that_of_two_forward_passes(built):
    model, processor = built
    found = probe_clues(model, processor, Reader(), SAMPLES, REFERENCES, OTHERS, QuestionConfig())

    def log_prob(sample, text, *modalities):
        media = tiny.media("audio", "frames", seed=int(sample.id[1:]), duration_s=0.1 + 0.01 * int(sample.id[1:]))
        messages = render(sample, task="description", modalities=modalities)
        with torch.no_grad():
            batch = processor(messages, {name: media[name] for name in modalities}, text)
            return float(model(**batch, log_probs=True).log_probs[0].mean())

    texts = {"s1": "The brows rise.", "s2": "The lips smile."}
    for case, modalities in (("shown", ("audio", "frames")), ("hidden", ("audio",))):
        right = [
            log_prob(sample, texts[sample.id], *modalities) > log_prob(sample, texts[OTHERS[sample.id]], *modalities)
            for sample in SAMPLES
        ]
        assert (found["visual"][case].count, found["visual"][case].n) == (sum(right), 2)


def test_pairs_that_do_not_differ_and_modalities_that_are_not_shown_are_left_out(built):
    found = probe_clues(*built, Reader(), SAMPLES, REFERENCES, OTHERS, QuestionConfig(modalities=["audio"]))
    assert found["acoustic"]["shown"].n == 0  # the same voice in both
    assert found["visual"]["shown"].n == 0
    assert found["lexical"]["shown"].n == found["lexical"]["hidden"].n == 2
