"""Text matching scores: 100 for equal texts, and missing libraries are named."""

import numpy as np
import pytest

from affectgpt.metrics import matching
from tests.metrics.test_wordnet import write_wordnet

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
pytest.importorskip("jieba")
pytest.importorskip("nltk")

ENGLISH = {
    "a": "The man's frown doesn't fade, and he shouts at her.",
    "b": "She smiles gently while her voice trembles a little.",
}
CHINESE = {"a": "他皱着眉头，大声地说话，显得很生气。", "b": "她面带微笑，声音却有些颤抖。"}


@pytest.mark.parametrize(("texts", "lang"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_equal_texts_score_100_and_missing_texts_0(texts, lang):
    equal = matching.match_texts(texts, texts, lang=lang).scores
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):
        assert equal[name] == pytest.approx(100)
    assert set(matching.match_texts(texts, {}, lang=lang).scores.values()) == {0.0}


def test_english_rouge_is_that_of_the_library_as_it_comes():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    answers = {"a": "He doesn't smile; the man's voice is loud.", "b": "She smiles, and doesn't shout - café."}
    expected = sum(scorer.score(ENGLISH[key], answers[key])["rougeL"].fmeasure for key in ENGLISH) / 2
    assert matching.match_texts(ENGLISH, answers).scores["ROUGE-L"] == pytest.approx(100 * expected, abs=1e-12)


def test_chinese_meteor_needs_no_wordnet_and_is_near_100_for_equal_texts():
    result = matching.match_texts(CHINESE, CHINESE, lang="zh", wordnet="nowhere")
    assert result.scores["METEOR"] > 99
    assert set(result.libraries) == {"sacrebleu", "rouge-score", "nltk", "jieba"}
    assert "python -m nltk.downloader omw-1.4" in result.unavailable[matching.CHINESE_METEOR]


def test_missing_wordnet_is_named_with_the_fix_and_nothing_is_downloaded():
    result = matching.match_texts(ENGLISH, ENGLISH, wordnet="nowhere")
    assert "METEOR" not in result.scores
    message = result.unavailable["METEOR"]
    assert "wordnet-base" in message
    assert "python -m nltk.downloader wordnet" in message
    assert "wordnet=nowhere does not have its files" in message


def test_synonyms_count_as_matches(tmp_path):
    folder = write_wordnet(tmp_path)
    truths, answers = {"a": "he is sore"}, {"a": "he is mad"}
    result = matching.match_texts(truths, answers, wordnet=folder)
    # Three matches of three words in one chunk: F 1, penalty 0.5 (1/3)^3.
    assert result.scores["METEOR"] == pytest.approx(100 * (1 - 0.5 / 27))
    assert result.libraries["WordNet"] == str(folder)
    apart = matching.match_texts(truths, {"a": "he is calm"}, wordnet=folder).scores["METEOR"]
    assert apart == pytest.approx(100 * (2 / 3) * (1 - 0.5 / 8))  # two of three words, F 2/3, one chunk of two

    table = tmp_path / "wn-data-cmn.tab"
    table.write_text("1-a\tcmn:lemma\t高兴\n1-a\tcmn:lemma\t开心\n", encoding="utf-8")
    chinese = matching.match_texts({"a": "高兴"}, {"a": "开心"}, lang="zh", wordnet=table).scores
    assert (chinese["METEOR"], chinese[matching.CHINESE_METEOR]) == (0, pytest.approx(50))


def test_a_missing_library_is_named_and_the_others_still_score(monkeypatch):
    original = matching._import
    refuse = {"rouge_score.rouge_scorer"}

    def limited(name):
        if name in refuse:
            raise matching.MissingLibrary("rouge_score is not installed: pip install 'affectgpt[evaluation]'")
        return original(name)

    monkeypatch.setattr(matching, "_import", limited)
    result = matching.match_texts(CHINESE, CHINESE, lang="zh")
    assert "affectgpt[evaluation]" in result.unavailable["ROUGE-L"]
    assert "BLEU-4" in result.scores


def test_worse_texts_score_lower():
    near = {"a": "The man frowns and shouts at her.", "b": "She smiles while her voice trembles."}
    far = {"a": "A dog sleeps.", "b": "Rain falls."}
    for name in ("BLEU-1", "ROUGE-L"):
        assert matching.match_texts(ENGLISH, near).scores[name] > matching.match_texts(ENGLISH, far).scores[name]


def test_invalid_input_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="lang is 'fr'"):
        matching.match_texts(ENGLISH, ENGLISH, lang="fr")
    with pytest.raises(ValueError, match="no descriptions"):
        matching.match_texts({}, {})


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_resample_that_draws_every_sample_once_scores_as_the_library_does(lang):
    texts = {
        "en": ["the brows rise", "the voice is loud and fast", "she smiles"],
        "zh": ["眉毛上挑", "声音响亮", "她在微笑"],
    }
    truths = {str(n): text for n, text in enumerate(texts[lang])}
    answers = {key: text[: max(3, len(text) - 2 * int(key) - 1)] for key, text in truths.items()}
    pairs = [(truths[key], answers[key]) for key in truths]
    for make in (matching._bleu, matching._rouge):
        for score, resampled in make(pairs, lang, np.arange(len(pairs))[None]).values():
            assert resampled[0] == pytest.approx(score)


def test_intervals_surround_the_scores_and_can_be_left_out():
    truths = {str(n): "the brows rise and the voice is loud" for n in range(30)}
    answers = {key: truths[key] if int(key) % 2 else "the lips smile and the voice is low" for key in truths}
    result = matching.match_texts(truths, answers, n_bootstrap=200)
    assert set(result.intervals) == set(result.scores)
    assert all(low < result.scores[name] < high for name, (low, high) in result.intervals.items())
    assert matching.match_texts(truths, answers, n_bootstrap=0).intervals == {}
