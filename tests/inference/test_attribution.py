"""Attribution of clauses: log-probabilities with and without an input, and shares over time that sum to 1."""

import pytest
import torch

from affectgpt.config import GenerateConfig, QuestionConfig
from affectgpt.inference.attribution import N_BINS, _bins, attribute
from affectgpt.inference.prediction import predict
from affectgpt.prompts import render
from affectgpt.schema import Sample
from tests.inference.test_prediction import Reader
from tests.models import tiny

TEXT = "The brows rise. The voice trembles. She seems afraid.\nEmotions: afraid, tense"
SAMPLE = Sample("s1", video="s1.mp4", subtitle="I see.", modalities=("audio", "frames"))


@pytest.fixture(scope="module")
def clauses(built):
    return attribute(*built, SAMPLE, tiny.media("audio", "frames"), TEXT, QuestionConfig())


def test_every_clause_of_the_answer_has_its_tokens(built, clauses):
    _, processor = built
    assert [(clause.text, clause.modality) for clause in clauses] == [
        ("The brows rise.", "visual"),
        ("The voice trembles.", "acoustic"),
        ("She seems afraid.", "inference"),
        ("Emotions: afraid, tense", "labels"),
    ]
    media = tiny.media("audio", "frames")
    row = processor.encode(render(SAMPLE, modalities=tuple(media)), media, TEXT)
    n_answer = int((row["labels"] != -100).sum())
    assert sum(clause.n_tokens for clause in clauses) in (n_answer, n_answer - len(processor.end_ids))


def test_a_drop_is_the_difference_of_two_forward_passes(built, clauses):
    model, processor = built

    def log_probs(*modalities, subtitle=True):
        media = tiny.media(*modalities)
        messages = render(SAMPLE, modalities=modalities, with_subtitle=subtitle)
        with torch.no_grad():
            return model(**processor(messages, media, TEXT), log_probs=True).log_probs[0]

    whole, n = log_probs("audio", "frames"), clauses[0].n_tokens
    for clue, other in (("acoustic", log_probs("frames")), ("visual", log_probs("audio"))):
        assert clauses[0].drop[clue] == pytest.approx(float((whole - other)[:n].mean()), abs=1e-4)
    without = log_probs("audio", "frames", subtitle=False)
    assert clauses[0].drop["lexical"] == pytest.approx(float((whole - without)[:n].mean()), abs=1e-4)


def test_shares_over_time_sum_to_one(clauses):
    for clause in clauses:
        assert set(clause.over_time) == {"audio", "frames"}
        for shares in (*clause.over_time.values(), *clause.attention.values()):
            assert len(shares) == N_BINS
            assert sum(shares) == pytest.approx(1)
            assert min(shares) >= 0


def test_bins_keep_the_place_of_an_event():
    values = torch.zeros(40)
    values[10] = 1.0
    assert _bins(values)[5] == pytest.approx(1)
    assert _bins(torch.ones(7)) == pytest.approx([1 / N_BINS] * N_BINS, abs=1e-6)


def test_predictions_carry_it_only_if_asked(built):
    settings = {"question": QuestionConfig(), "generate": GenerateConfig(2, 4)}
    plain = list(predict(*built, [SAMPLE], Reader(), **settings))
    asked = list(predict(*built, [SAMPLE], Reader(), attribution=True, **settings))
    assert plain[0].attribution == ()
    assert asked[0].text == plain[0].text
    assert sum(clause["n_tokens"] for clause in asked[0].attribution) > 0
