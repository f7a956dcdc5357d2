"""LLM-based scores against a local server that answers by rule."""

import json
import re

import numpy as np
import pytest

from affectgpt.chat.served import ChatClient
from affectgpt.metrics.judge import (
    extract_by_llm,
    group_by_llm,
    grouping_question,
    judge,
    llm_grouping_score,
    parse_groups,
    parse_score,
    published_grouping_score,
    published_groups,
    sentiment_by_llm,
)
from affectgpt.metrics.sets import set_score
from affectgpt.runtime import UserError
from tests.chat.chat_server import ChatServer

SYNONYMS = [{"happy", "joyful", "glad"}, {"angry", "mad"}]


def by_rule(body):
    """Groups words by SYNONYMS, extracts quoted words, finds "happy" positive and "angry" unclear, rates 7."""
    text = body["messages"][0]["content"]
    if "sort emotion words" in text:
        words = json.loads(text.rsplit("Words: ", 1)[1])
        groups = [[word for word in words if word in group] for group in SYNONYMS]
        rest = [[word] for word in words if not any(word in group for group in SYNONYMS)]
        return "Sure: " + json.dumps([group for group in groups if group] + rest)
    if "positive, negative or neutral" in text:
        words = json.loads(text.rsplit("Words: ", 1)[1])
        return "Positive." if "happy" in words else "positive or negative" if "angry" in words else "negative"
    if "List every emotion" in text:
        return json.dumps(re.findall(r"'(\w+)'", text.rsplit("Description: ", 1)[1]))
    return '{"score": 7, "reason": "close"}'


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer(by_rule) as running:
        yield running


def client(server, tmp_path, **options):
    return ChatClient("toy-1", base_url=server.url, cache=tmp_path / "answers.jsonl", backoff_s=0.01, **options)


TRUTHS = {"a": ["happy", "sad"], "b": ["Angry"], "c": []}
PREDICTIONS = {"a": ["joyful", "glad"], "b": ["mad", "sad"]}


def test_grouping_merges_synonyms_and_equals_the_set_score_of_the_merged_words(server, tmp_path):
    result = llm_grouping_score(TRUTHS, PREDICTIONS, client(server, tmp_path))
    assert result.score == set_score([({"happy", "sad"}, {"happy"}), ({"angry"}, {"angry", "sad"}), (set(), set())])
    assert (result.model, result.unparsed, result.score.n) == ("toy-1", 0, 2)


def test_intervals_of_a_grouping_are_those_of_its_samples(server, tmp_path):
    truths = {key: TRUTHS[key] for key in "ab"}
    result = llm_grouping_score(truths, PREDICTIONS, client(server, tmp_path))
    np.testing.assert_array_equal(result.by_sample, [[[1, 0.5]], [[0.5, 1]]])
    # Twice a or twice b: F 2/3; a and b: F 3/4; Avg is 3/4 in each resample.
    found = result.intervals(n_bootstrap=200, seed=0)
    assert found == {"f_score": (pytest.approx(2 / 3), pytest.approx(0.75)), "avg": (0.75, 0.75)}
    assert result.intervals(n_bootstrap=0, seed=0) == {}


def test_order_and_case_of_labels_ask_the_same_question(server, tmp_path):
    one, _ = group_by_llm([["Sad", "happy "]], client(server, tmp_path))
    other, _ = group_by_llm([["happy", "sad", "SAD"]], client(server, tmp_path))
    assert one == other
    assert len(server.requests) == 1


def test_a_score_is_recomputed_without_the_server(server, tmp_path):
    online = llm_grouping_score(TRUTHS, PREDICTIONS, client(server, tmp_path))
    offline = ChatClient("toy-1", cache=tmp_path / "answers.jsonl", offline=True)
    assert llm_grouping_score(TRUTHS, PREDICTIONS, offline) == online


def test_a_missing_word_is_its_own_group_and_an_unparsed_answer_groups_nothing(server, tmp_path):
    server.answer = lambda body: (
        '[["happy", "glad", "invented"], ["happy", "sad"]]' if "lost" in str(body) else "no idea"
    )
    maps, n_unparsed = group_by_llm([["happy", "glad", "sad", "lost"], ["x", "y"], ["alone"]], client(server, tmp_path))
    assert maps[0]["happy"] == maps[0]["glad"] != maps[0]["sad"]
    assert maps[0]["lost"] == "lost"
    assert maps[1] == {"x": "x", "y": "y"}
    assert maps[2] == {"alone": "alone"}
    assert n_unparsed == 1


def test_the_question_names_its_version_and_sorted_words():
    text = grouping_question(["a", "b"])
    assert "task version 1" in text
    assert text.endswith('Words: ["a", "b"]')


def test_extraction_reports_how_each_text_was_parsed(server, tmp_path):
    texts = {"a": "He is 'angry' and 'hurt'.", "b": "A room.", "c": " "}
    readings = extract_by_llm(texts, client(server, tmp_path))
    assert readings["a"].labels == ("angry", "hurt")
    assert [readings[key].how for key in "abc"] == ["llm", "nothing", "empty"]
    assert len(server.requests) == 2


def test_judge_counts_unparsed_answers_and_scores_a_missing_prediction_1(server, tmp_path):
    replies = iter(['{"score": 9}', "no number", "Score: 5"])
    server.answer = lambda body: next(replies)
    truths = dict.fromkeys("abcd", "He smiles.")
    predictions = {"a": "He grins.", "b": "He laughs.", "c": "He frowns.", "d": ""}
    result = judge(truths, predictions, client(server, tmp_path, concurrency=1), "clue overlap")
    assert (result.mean, result.n, result.unparsed) == (5.0, 3, 1)
    with pytest.raises(ValueError, match="unknown aspect 'style'; expected one of"):
        judge(truths, predictions, client(server, tmp_path), "style")


@pytest.mark.parametrize("text", ["", "[", "[1, 2]", "{'a'}", '["a", "b"]', "[{['a', 'b']}]", "[NaN]"])
def test_an_answer_that_is_not_a_list_of_lists_is_not_parsed(text):
    assert parse_groups(text) is None


@pytest.mark.parametrize("text", ["", "score", "0", "11", '{"score": "high"}', '{"score": 3.5}', "between 3 and 8"])
def test_an_answer_without_a_score_is_none(text):
    assert parse_score(text) is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "true", "[7]"])
def test_a_score_that_is_no_finite_number_is_none(value):
    assert parse_score(f'{{"score": {value}}}') is None


@pytest.mark.parametrize("score", ["1", "8", "10", "0", "11", "", "8.5", "123", "high"])
def test_a_score_in_quotes_is_read_like_one_without(score):
    expected = int(score) if score in ("1", "8", "10") else None
    assert parse_score(json.dumps({"score": score, "reason": "x"})) == expected


def test_numbers_of_thousands_of_digits_are_unreadable():
    number = "9" * 5000
    for text in (number, f"Score: {number}", f'{{"score": {number}}}'):
        assert parse_score(text) is None
    assert parse_groups(f"[[{number}]]") is None


def test_groups_are_read_as_json_and_as_python_writes_them():
    groups = [["glad", "don't know"], ["upset"]]
    assert parse_groups(json.dumps(groups)) == parse_groups(str(groups)) == parse_groups(f"Groups: {groups}.") == groups
    assert parse_groups("[['glad', 3], []]") == [["glad"], []]
    for text in ("[['glad'], upset]", "[1, 2]", "[" * 5000 + "]" * 5000, "[['a'], __import__('os')]"):
        assert parse_groups(text) is None


def test_a_published_answer_is_cut_at_brackets_and_quotes_and_the_last_group_of_a_word_counts():
    assert published_groups("[['a', 'b'], [\"c\"], ['b', 'd']]") == {"a": "a", "b": "b", "c": "c", "d": "b"}
    assert published_groups("I cannot help.") == {}
    assert published_groups("[[]]") == {}


def test_published_answers_are_scored_without_a_model_and_missing_ones_are_counted():
    answers = {"a": "[['happy', 'joyful', 'glad'], ['sad']]", "b": "no groups"}
    result = published_grouping_score({**TRUTHS, "d": ["calm"]}, PREDICTIONS, answers, source="x.zip")
    pairs = [({"happy", "sad"}, {"happy"}), ({"angry"}, {"mad", "sad"}), (set(), set()), ({"calm"}, set())]
    assert result.score == set_score(pairs)
    assert (result.model, result.n_questions, result.unparsed, result.missing) == ("x.zip", 2, 1, 2)


def test_the_sentiment_of_labels_is_asked_once_per_set_and_no_labels_are_neutral(server, tmp_path):
    labels = {"a": ["Happy", "proud"], "b": ["proud", "happy "], "c": [], "d": ["sad"], "e": ["angry"]}
    found, n_asked = sentiment_by_llm(labels, client(server, tmp_path))
    assert found == {"a": "positive", "b": "positive", "c": "neutral", "d": "negative", "e": None}
    assert n_asked == len(server.requests) == 3


def test_a_question_that_the_server_refuses_is_unparsed_and_counted_unless_it_refuses_all(server, tmp_path):
    def refuse(body):
        words = body["messages"][-1]["content"]
        return {"status": 400, "value": {"error": {"message": "content check"}}} if "hateful" in words else None

    server.choose = refuse
    server.answer = lambda body: '{"score": 7}'
    truths = {"a": "She smiles.", "b": "hateful words"}
    rated = judge(truths, truths, client(server, tmp_path), "clue overlap")
    assert (rated.mean, rated.n, rated.unparsed, rated.refused) == (7, 1, 1, 1)
    with pytest.raises(UserError, match=r"1 of 1 requests .*HTTP 400: content check"):
        judge({"b": truths["b"]}, truths, client(server, tmp_path), "clue overlap")
    server.answer = lambda body: "negative"
    found, _ = sentiment_by_llm({"a": ["sad"], "b": ["hateful words"]}, client(server, tmp_path))
    assert found == {"a": "negative", "b": None}
