"""Scores of explanations on answers that one can count by hand, in English and Chinese."""

import tracemalloc

import numpy as np
import pytest

from affectgpt.chat.served import ChatClient
from affectgpt.metrics import load_lexicon
from affectgpt.metrics.faithfulness import (
    absent_modality,
    by_similarity,
    clue_scores,
    consistency,
    emotion_words,
    explanation_of,
    marked,
)
from affectgpt.metrics.judge import match_by_llm
from affectgpt.metrics.stats import Rate
from affectgpt.schema import Clause, Prediction
from tests.chat.chat_server import ChatServer


def answer(text, *modalities, lang="en", task="both", sample_id="a"):
    return Prediction(sample_id, text, lang=lang, task=task, modalities=modalities)


def test_only_statements_about_what_was_not_shown_count():
    rates = absent_modality(
        [
            answer("The brows rise. The voice trembles.\nEmotions: afraid", "frames"),
            answer("The brows rise. No voice is heard.", "frames"),
            answer("眉毛上挑，声音颤抖。\n情绪：害怕", "frames", lang="zh"),
            answer("The brows rise and the voice trembles.", "frames", "audio", "text"),
            answer("Emotions: afraid", "frames", task="labels"),
            answer("The voice trembles."),  # its inputs are not recorded
        ]
    )
    assert (rates["acoustic"].count, rates["acoustic"].n) == (2, 3)
    assert (rates["lexical"].count, rates["lexical"].n) == (0, 3)
    assert rates["visual"].n == 0
    assert rates["visual"].value is None
    assert (rates["any"].count, rates["any"].n) == (2, 3)


def test_sound_may_carry_words():
    rates = absent_modality([answer("The words are a reproach.", "audio")])
    assert rates["lexical"].n == 0
    assert absent_modality([answer("The words are a reproach.", "frames")])["lexical"].count == 1


def test_wilson_interval_of_rates_without_and_with_events():
    low, high = Rate(0, 66).interval
    assert low == 0
    assert high == pytest.approx(0.0550, abs=1e-4)  # 1.96^2 / (66 + 1.96^2)
    low, high = Rate(33, 66).interval
    assert low + high == pytest.approx(1)


def test_a_prediction_is_marked_and_its_text_stays():
    row = answer("The brows rise. The voice trembles.\nEmotions: afraid", "frames", "text")
    done = marked(row)
    assert done.text == row.text
    assert done.unsupported == ({"sentence": "The voice trembles.", "modality": "acoustic"},)
    assert marked(answer("The voice trembles.")).unsupported == ()


def test_the_line_of_labels_is_no_explanation():
    assert explanation_of("He smiles.\nEmotions: happy") == "He smiles."
    assert explanation_of("他笑了。\n情绪：高兴") == "他笑了。"


def test_clue_precision_and_recall_by_modality():
    reference = [
        Clause("The brows rise, the eyes widen and the jaw drops.", "visual"),
        Clause("The voice is loud and fast.", "acoustic"),
        Clause("The words ask for help.", "lexical"),
    ]
    text = "The brows rise and the nose wrinkles. The voice is loud. She seems afraid."
    scores = clue_scores([answer(text, "frames", "audio")], {"a": reference}, n_bootstrap=0)
    assert (scores["visual"].precision, scores["visual"].recall) == (1 / 2, 1 / 3)
    assert (scores["acoustic"].precision, scores["acoustic"].recall) == (1, 1 / 2)
    assert (scores["lexical"].n, scores["lexical"].recall) == (0, None)  # it was not shown
    assert (scores["all"].n_predicted, scores["all"].n_reference) == (3, 5)


def test_clues_in_chinese():
    scores = clue_scores(
        [answer("眉头微微皱起，嘴唇紧闭。声音低沉。", "frames", "audio", lang="zh")],
        {"a": "眉头皱起，眼睛睁大。声音低沉、发紧。"},
        n_bootstrap=0,
    )
    assert (scores["visual"].precision, scores["visual"].recall) == (1 / 2, 1 / 2)
    assert (scores["acoustic"].precision, scores["acoustic"].recall) == (1, 1 / 2)


def test_another_matcher_decides_what_is_the_same():
    def embed(texts):
        return np.array([[1.0, 0.0] if "mouth" in text or "lip" in text else [0.0, 1.0] for text in texts])

    rows, reference = [answer("The mouth smiles.", "frames")], {"a": "The lip corners rise."}
    assert clue_scores(rows, reference, n_bootstrap=0)["visual"].precision == 0
    assert clue_scores(rows, reference, match=by_similarity(embed), n_bootstrap=0)["visual"].precision == 1


def test_a_chat_model_decides_what_is_the_same(tmp_path):
    with ChatServer(
        lambda body: "[[1, 2], [1, 9]]" if "lip corners" in body["messages"][-1]["content"] else "?"
    ) as server:
        match = match_by_llm(ChatClient("m", base_url=server.url, cache=tmp_path / "answers.jsonl"))
        rows = [answer("The mouth smiles.", "frames"), answer("The mouth opens.", "frames", sample_id="b")]
        references = {"a": "The eyes close and the lip corners rise.", "b": "The brows rise."}
        score = clue_scores(rows, references, match=match, n_bootstrap=0)["visual"]
    assert (score.precision, score.recall) == (1 / 2, 1 / 3)
    assert len(server.requests) == 2


def test_numbers_of_clues_that_do_not_exist_match_nothing(tmp_path):
    with ChatServer(lambda body: "[[0, 1], [1, 0], [0, 0], [2, 1]]") as server:
        match = match_by_llm(ChatClient("m", base_url=server.url, cache=tmp_path / "answers.jsonl"))
        score = clue_scores(
            [answer("The mouth smiles.", "frames")], {"a": "The brows rise."}, match=match, n_bootstrap=0
        )["visual"]
    assert (score.precision, score.recall) == (0, 0)


def test_intervals_surround_the_scores_and_shrink_with_samples():
    text, reference = "The brows rise and the nose wrinkles.", "The brows rise and the jaw drops."

    def width(n):
        rows = [answer(text if i % 2 else "The brows rise.", "frames", sample_id=str(i)) for i in range(n)]
        score = clue_scores(rows, {str(i): reference for i in range(n)})["visual"]
        assert score.precision_interval.low <= score.precision <= score.precision_interval.high
        return score.precision_interval.high - score.precision_interval.low

    assert width(200) < width(20)


def test_over_all_modalities_clips_are_counted_and_drawn_with_all_their_clues():
    reference = [Clause("The brows rise.", "visual"), Clause("The voice is loud.", "acoustic")]
    rows = [answer("The brows rise. The voice trembles.", "frames", "audio", sample_id=str(i)) for i in range(20)]
    score = clue_scores(rows, {row.id: reference for row in rows})["all"]
    assert (score.n, score.n_predicted, score.precision, score.recall) == (20, 40, 1 / 2, 1 / 2)
    for interval in (score.precision_interval, score.recall_interval):  # equal clips: every draw scores the same
        assert (interval.low, interval.high) == (1 / 2, 1 / 2)


def test_intervals_equal_recomputing_the_scores_of_the_drawn_clips():
    texts = ["The brows rise.", "The nose wrinkles.", "The brows rise, the nose wrinkles and the eyes close."] * 7
    rows = [answer(text, "frames", sample_id=str(i)) for i, text in enumerate(texts)]
    ours = clue_scores(rows, dict.fromkeys(map(str, range(21)), "The brows rise."), n_bootstrap=100, seed=5)["all"]
    right, predicted = np.array([1, 0, 1] * 7), np.array([1, 1, 3] * 7)
    drawn = np.random.default_rng(5).integers(21, size=(100, 21))
    expected = np.quantile(right[drawn].sum(axis=1) / predicted[drawn].sum(axis=1), [0.025, 0.975])
    np.testing.assert_array_equal([ours.precision_interval.low, ours.precision_interval.high], expected)


def test_more_resamples_take_no_more_memory():
    rows = [answer("The brows rise.", "frames", sample_id=str(i)) for i in range(300)]
    references = {row.id: "The brows rise." for row in rows}

    def peak(n_bootstrap):
        tracemalloc.start()
        clue_scores(rows, references, n_bootstrap=n_bootstrap)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(64)  # fills the caches
    assert peak(2000) < 2 * peak(64)


def test_labels_without_support_and_explanations_that_contradict_them():
    rows = [
        answer("The brows rise. She seems afraid.", sample_id="agrees"),
        answer("The brows rise. She seems afraid.", sample_id="adds"),
        answer("The lips smile. He seems happy.", sample_id="contradicts"),
        answer("The lips smile.", sample_id="silent"),
    ]
    labels = {"agrees": ["scared"], "adds": ["scared", "proud"], "contradicts": ["furious"], "silent": ["happy"]}
    found = consistency(rows, labels, load_lexicon())
    assert (found.unsupported.count, found.unsupported.n) == (2, 4)  # proud, furious
    assert (found.contradicting.count, found.contradicting.n) == (1, 3)
    assert (found.silent.count, found.silent.n) == (1, 4)


def test_emotion_words_are_those_of_conclusions():
    lexicon = load_lexicon()
    text = "His voice is low, which indicates anger. He is not happy. So the feeling is angry and bitter."
    assert set(emotion_words(text, "en", lexicon)) == {"anger", "angry", "bitter"}
    assert emotion_words("声音低沉，表现出愤怒。因此他感到难过。", "zh", lexicon) == ("愤怒", "难过")
