"""Attribution of clauses: log-probabilities with and without an input, and shares over time that sum to 1."""

import pytest
import torch

from affectgpt.config import GenerateConfig, QuestionConfig
from affectgpt.inference.attribution import N_BINS, _bins, _places_of_sound, attribute
from affectgpt.inference.prediction import predict
from affectgpt.media import audio_windows
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


@pytest.mark.parametrize("mode", ["cover", "fixed"])
@pytest.mark.parametrize(("duration_s", "time_s"), [(5, 1.1), (12, 1.1), (12, 6.1), (12, 11.9), (60, 26.1), (60, 59.9)])
def test_an_event_in_the_sound_stands_at_its_time_in_the_clip_whichever_windows_heard_it(mode, duration_s, time_s):
    branch = {"rate_hz": 100, "window_s": 10.0, "max_windows": 3, "window_mode": mode}
    windows = audio_windows(duration_s * 100, 100, window_s=10.0, max_windows=3, mode=mode)
    sounds = [(torch.arange(start, stop) == round(time_s * 100)).float() for start, stop in windows]
    heard = torch.cat(sounds)
    shares = _bins(heard, _places_of_sound(len(heard), duration_s, branch))
    place = int(time_s / duration_s * N_BINS)
    assert shares[place] == pytest.approx(float(heard.any()))  # "fixed" windows leave out the end
    assert mode == "fixed" or heard.any()


def test_seconds_of_sound_that_no_window_heard_have_no_share():
    branch = {"rate_hz": 100, "window_s": 10.0, "max_windows": 3, "window_mode": "cover"}
    shares = torch.tensor(_bins(torch.ones(300), _places_of_sound(300, 60, branch)))  # windows at 0, 25 and 50 s
    assert (shares > 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]


def test_sound_of_several_windows_is_attributed_over_the_clip(built):
    duration_s = 3 * tiny.SAMPLING.window_s * tiny.SAMPLING.max_windows
    media = tiny.media("audio", duration_s=duration_s)
    facts = {"audio": {"duration_s": duration_s}}
    sample = Sample("s1", video="s1.mp4", modalities=("audio",))
    found = attribute(*built, sample, media, TEXT, QuestionConfig(), facts)
    together = attribute(*built, sample, media, TEXT, QuestionConfig())
    for clause, joined in zip(found, together, strict=True):
        shares = clause.over_time["audio"]
        assert sum(shares) == pytest.approx(1)
        assert shares.count(0.0) >= N_BINS // 2, "two thirds of the clip were not heard"
        assert joined.over_time["audio"].count(0.0) == 0


def test_a_clip_of_which_only_the_subtitle_is_shown_has_drops_and_no_shares(built):
    found = attribute(*built, Sample("s1", subtitle="I see."), {}, TEXT, QuestionConfig())
    assert found[0].text == "The brows rise."
    for clause in found:
        assert set(clause.drop) == {"lexical"}
        assert clause.over_time == {}


def test_predictions_carry_it_only_if_asked(built):
    settings = {"question": QuestionConfig(), "generate": GenerateConfig(2, 4)}
    plain = list(predict(*built, [SAMPLE], Reader(), **settings))
    asked = list(predict(*built, [SAMPLE], Reader(), attribution=True, **settings))
    assert plain[0].attribution == ()
    assert asked[0].text == plain[0].text
    assert sum(clause["n_tokens"] for clause in asked[0].attribution) > 0
