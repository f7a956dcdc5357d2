"""Decoding by a JSON schema: whatever the model prefers, its answer follows the schema, alone and in a batch."""

import json
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from affectgpt.chat.constrained import Grammars
from affectgpt.chat.local import load
from affectgpt.chat.request import Request
from affectgpt.runtime import InputError, MissingLibrary
from tests.models import tiny

pytest.importorskip("llguidance")

NAMES = ["pitch_range", "loudness"]
SCHEMA = {
    "type": "object",
    "properties": {
        "clue": {"type": "string", "pattern": r"^\S"},
        "words": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 8}, "maxItems": 2},
        "evidence": {"type": "array", "items": {"type": "string", "enum": NAMES}, "maxItems": 3},
        "valence": {"type": "number", "minimum": -5, "maximum": 5, "multipleOf": 0.01},
    },
    "required": ["clue", "words", "evidence", "valence"],
    "additionalProperties": False,
}
WORD = {**SCHEMA, "properties": {"word": {"enum": ["sad", "glad"]}}, "required": ["word"]}


def follows(answer: dict) -> bool:
    return (
        list(answer) == list(SCHEMA["required"])
        and isinstance(answer["clue"], str)
        and bool(answer["clue"].strip())
        and len(answer["words"]) <= 2
        and all(1 <= len(word) <= 8 for word in answer["words"])
        and set(answer["evidence"]) <= set(NAMES)
        and -5 <= answer["valence"] <= 5
    )


@pytest.fixture(scope="module", params=["write_qwen2", "write_llama"])
def chat(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    more = {} if request.param == "write_qwen2" else {"chat_template": tiny.LLAMA2_TEMPLATE}
    return load(getattr(tiny, request.param)(folder, **more), device="cpu")


def test_a_model_of_random_weights_answers_by_the_schema(chat):
    free, reply = (chat.answer([Request("Why?", schema=schema)], 160)[0] for schema in (None, SCHEMA))
    with pytest.raises(json.JSONDecodeError):
        json.loads(free.text)
    assert follows(json.loads(reply.text))
    assert reply.n_new_tokens <= 160


def test_rows_of_a_batch_follow_their_own_schemas_and_are_the_answers_of_single_requests(chat):
    requests = [Request("Why?", schema=SCHEMA), Request("And how does she feel?"), Request("A word?", schema=WORD)]
    together = chat.answer(requests, 120)
    assert together == [chat.answer([request], 120)[0] for request in requests]
    assert follows(json.loads(together[0].text))
    assert json.loads(together[2].text)["word"] in ("sad", "glad")
    assert together[2].finish == "eos"


@pytest.fixture(scope="module")
def grammars(tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(tiny.write_qwen2(tmp_path_factory.mktemp("tokens")))
    return Grammars(tokenizer, len(tokenizer) + 16, [tokenizer.eos_token_id], "tiny"), tokenizer


def written(grammars, schema, limit, choose):
    """(text, whether it ended, state) of an answer of which `choose` picks each token among the allowed ones."""
    grammar, tokenizer = grammars
    answer, token, tokens = grammar.answer(schema, limit), None, []
    while len(tokens) < limit:
        token = choose(np.flatnonzero(np.unpackbits(answer.allowed(token), bitorder="little")))
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(tokens), True, answer
        tokens.append(int(token))
    return tokenizer.decode(tokens), False, answer


@pytest.mark.parametrize("limit", [90, 120, 200])
def test_any_choice_of_tokens_ends_as_json_within_the_limit(grammars, limit):
    for seed in range(12):
        choose = np.random.default_rng(seed).choice
        text, has_ended, _ = written(grammars, SCHEMA, limit, choose)
        assert has_ended
        assert follows(json.loads(text)), text


def test_a_text_that_never_ends_is_closed_and_counts_as_cut(grammars, chat):
    _, tokenizer = grammars
    letter = tokenizer.convert_tokens_to_ids("a")

    def endless(allowed):
        return letter if letter in allowed else allowed[-1]

    text, has_ended, answer = written(grammars, SCHEMA, 150, endless)
    assert has_ended
    assert answer.was_closed
    assert json.loads(text)["clue"].count("a") > 40
    assert not written(grammars, WORD, 150, endless)[2].was_closed
    assert chat.answer([Request("Why?", schema={"type": "string", "minLength": 99})], 30)[0].finish == "length"


def test_a_number_is_chosen_by_the_model_not_by_the_end_of_the_limit(grammars):
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "number", "multipleOf": 0.1,
              "minimum": 0, "maximum": 1}}, "required": ["a", "n"]}  # fmt: skip
    _, tokenizer = grammars
    letter, one = (tokenizer.convert_tokens_to_ids(each) for each in "a1")

    def prefers_one(allowed):
        return next((token for token in (letter, one) if token in allowed), allowed[-1])

    text, _, answer = written(grammars, schema, 80, prefers_one)
    assert answer.was_closed
    assert json.loads(text)["n"] == 1


def test_a_schema_that_cannot_be_followed_and_a_missing_library_are_named(grammars, monkeypatch):
    with pytest.raises(InputError, match=r"JSON schema of an answer cannot be used: .*nonsense"):
        grammars[0].answer({"type": "nonsense"}, 10)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'affectgpt\[structured\]'"):
        Grammars(grammars[1], 400, [0], "tiny")
