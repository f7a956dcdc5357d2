"""Answers do not depend on the batch, on the code that generates them, or on callbacks."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from affectgpt.config import GenerateConfig
from affectgpt.engine import generation
from affectgpt.inference import answers as answering
from affectgpt.inference.answers import CHOICES, answers, prompt_embeds
from affectgpt.models import backend
from affectgpt.runtime import UserError
from tests.models import tiny

SHOWN = (("audio", "frames", "motion"), ("frames",), ("audio", "motion"), ("audio",), ("frames", "motion"))


def encoded(processor, n: int) -> list:
    return [
        processor.encode(tiny.question(*SHOWN[i % 5]), tiny.media(*SHOWN[i % 5], seed=i, duration_s=0.15))
        for i in range(n)
    ]


def stop_early(model, processor, monkeypatch) -> None:
    """Make stop tokens of some tokens that this model generates, so that answers differ in length."""
    texts = [processor.collate([row], for_generation=True) for row in encoded(processor, 4)]
    new = [model.generate(**batch, max_new_tokens=8)[0, batch["input_ids"].shape[1] :].tolist() for batch in texts]
    stops = sorted({new[0][4], new[2][6], *processor.stop_token_ids})
    monkeypatch.setattr(type(processor), "stop_token_ids", property(lambda self: stops))
    monkeypatch.setattr(model.generation_config, "eos_token_id", stops)


def test_answers_are_those_of_transformers_one_by_one_at_every_batch_size(built, monkeypatch):
    stop_early(*built, monkeypatch)
    rows = encoded(built[1], 20)
    alone = list(answering._by_transformers(*built, rows, GenerateConfig(1, 12)))
    assert {answer.finish for answer in alone} == {"eos", "length"}
    for batch_size in (1, 3, 16):
        for by in (answering._by_engine, answering._by_transformers):
            assert list(by(*built, rows, GenerateConfig(batch_size, 12))) == alone, f"batch size {batch_size}"


def test_constrained_answers_are_choices_by_every_path_and_the_rest_of_the_batch_is_free(built):
    processor = built[1]
    texts = ["sad", "sadness", "glad and calm"]
    rows, free = (encoded(processor, 4) for _ in range(2))
    for row, shown in zip(rows[:3], SHOWN, strict=False):
        row[CHOICES] = processor.answer_ids(tiny.question(*shown), texts)
    found = list(answers(*built, rows, GenerateConfig(3, 12, constrain=True)))
    assert {answer.text for answer in found[:3]} <= set(texts)
    assert {answer.finish for answer in found[:3]} == {"eos"}
    assert found[3] == list(answers(*built, free, GenerateConfig(3, 12)))[3]
    for batch_size in (1, 3):
        for by in (answering._by_engine, answering._by_transformers):
            assert list(by(*built, rows, GenerateConfig(batch_size, 12, constrain=True))) == found
    for more in ({"num_beams": 2}, {"do_sample": True}):
        others = list(answers(*built, rows[:3], GenerateConfig(3, 12, constrain=True, **more)))
        assert {answer.text for answer in others} <= set(texts)


def test_of_two_choices_the_one_with_the_more_likely_first_token_is_written(built):
    model, processor = built
    (row,) = encoded(processor, 1)
    batch = processor.collate([row], for_generation=True)
    best = model.generate(**batch, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0][0]
    stop = processor.stop_token_ids[0]
    words = [token for token in best.argsort(descending=True).tolist()[3:60:8] if token != stop]
    for more, less in itertools.pairwise(words):
        row[CHOICES] = [[less, stop], [more, stop]]
        assert next(answers(*built, [row], GenerateConfig(1, 4, constrain=True))).tokens == (more, stop)


def test_greedy_answers_come_from_the_engine_and_sampled_ones_from_transformers(built, monkeypatch):
    used = []
    for name in ("_by_engine", "_by_transformers"):
        monkeypatch.setattr(answering, name, lambda *args, name=name: used.append(name) or iter(()))
    for generate in (GenerateConfig(), GenerateConfig(do_sample=True), GenerateConfig(num_beams=2)):
        list(answers(*built, [], generate))
    monkeypatch.setattr(built[0].generation_config, "repetition_penalty", 1.3)
    list(answers(*built, [], GenerateConfig()))
    assert used == ["_by_engine", "_by_transformers", "_by_transformers", "_by_transformers"]


def test_the_prompts_of_a_batch_are_the_embeddings_that_each_has_alone(built):
    model, processor = built
    rows = encoded(processor, 5)
    for row, together in zip(rows, prompt_embeds(model, processor, rows), strict=True):
        batch = processor.collate([row], for_generation=True)
        alone = model.embed(batch.pop("input_ids"), batch)[0]
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_an_answer_is_cut_at_the_first_stop_token_and_keeps_its_tokens(built):
    _, processor = built
    words = tuple(processor.tokenizer("sad, calm", add_special_tokens=False)["input_ids"])
    stop = processor.stop_token_ids[0]
    assert answering.answer_of(processor, [*words, stop, stop]) == ("sad, calm", (*words, stop), "eos")
    assert answering.answer_of(processor, words) == ("sad, calm", words, "length")
    assert answering.answer_of(processor, words).n_tokens == len(words)


def test_of_sampled_answers_only_the_most_likely_tokens_are_drawn(built, monkeypatch):
    model, processor = built
    rows = encoded(processor, 5)
    greedy = list(answers(model, processor, rows, GenerateConfig(2, 6)))
    hot = {"do_sample": True, "temperature": 1e6}
    assert list(answers(model, processor, rows, GenerateConfig(2, 6, top_k=1, **hot))) == greedy
    passed = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **each: passed.append(each["top_k"]) or generate(**each))
    for top_k in (GenerateConfig.top_k, 0):
        assert list(answers(model, processor, rows, GenerateConfig(5, 6, top_k=top_k, **hot))) != greedy
    assert passed == [50, 0]


def test_no_inputs_give_no_answers(built):
    assert list(answers(*built, [], GenerateConfig())) == []


def test_compile_is_refused_where_it_would_have_no_effect_or_cannot_work(built, monkeypatch):
    model, processor = built
    for generate in (GenerateConfig(do_sample=True, compile=True), GenerateConfig(num_beams=2, compile=True)):
        with pytest.raises(UserError, match=r"greedy answers \(do_sample=false, num_beams=1\) of LLMs of the families"):
            next(answers(model, processor, [], generate))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no-such-compiler is not on the PATH; install it, or name another .* CXX"):
        next(answers(model, processor, [], GenerateConfig(compile=True)))


@pytest.mark.parametrize("more", [{}, {"do_sample": True}, {"num_beams": 2}], ids=["greedy", "sampled", "beams"])
def test_callbacks_get_beginnings_of_their_answers_and_change_none(built, monkeypatch, more):
    model, processor = built
    generate = GenerateConfig(3, 12, **more)
    stop_early(model, processor, monkeypatch)
    rows = encoded(processor, 7)
    torch.manual_seed(0)
    plain = list(answers(model, processor, rows, generate))
    received = {number: [] for number in (0, 2, 3, 6)}
    torch.manual_seed(0)
    callbacks = {number: texts.append for number, texts in received.items()}
    assert list(answers(model, processor, rows, generate, callbacks)) == plain
    assert generate.num_beams > 1 or len({answer.n_tokens for answer in plain}) > 1
    for number, texts in received.items():
        assert all(plain[number].text.startswith(text) for text in texts)
        assert texts == sorted(texts, key=len)
        if plain[number].finish == "eos" and plain[number].text and generate.num_beams == 1:
            assert texts[-1] == plain[number].text
    assert bool(sum(map(len, received.values()))) == (generate.num_beams == 1)


@pytest.mark.parametrize("by_engine", [True, False])
def test_callbacks_get_the_first_words_after_a_few_of_many_steps(built, monkeypatch, by_engine):
    model, processor = built
    place, name = (generation._Rows, "step") if by_engine else (type(model.language_model), "forward")
    step, steps, received_at = getattr(place, name), [], []
    monkeypatch.setattr(place, name, lambda self, *args, **more: steps.append(1) or step(self, *args, **more))
    monkeypatch.setattr(backend.engine, "can_generate", lambda model: by_engine)
    callbacks = {0: lambda text: received_at.append(len(steps))}
    (answer,) = answers(model, processor, encoded(processor, 1), GenerateConfig(1, 40), callbacks)
    assert answer.n_tokens == 40
    assert len(steps) >= 39
    assert received_at[0] < 10
    assert len(set(received_at)) > 10


SAMPLED = answering.Sampling(temperature=0.8, top_p=0.95, top_k=20, max_new_tokens=6)


def test_a_sampled_answer_depends_on_its_seed_and_not_on_the_batch(built):
    rows, seeds = encoded(built[1], 3), [[1, 2, 3], [4, 5, 6], [1, 8, 9]]
    found = answering.sample_groups(*built, rows, seeds, SAMPLED, batch_size=2)
    assert [len(group) for group in found] == [3, 3, 3]
    assert len({answer.tokens for answer in found[0]}) > 1
    assert answering.sample_groups(*built, rows, seeds, SAMPLED, batch_size=9) == found
    assert answering.sample_groups(*built, rows[2:], [[8]], SAMPLED) == [[found[2][1]]]


def test_answers_are_drawn_from_the_probabilities_of_the_model(built):
    model, processor = built
    rows, n = encoded(processor, 1), 400
    sampling = answering.Sampling(temperature=0.3, top_k=3, max_new_tokens=1)
    drawn = answering.sample_groups(*built, rows, [range(n)], sampling, batch_size=n)[0]
    batch = processor.collate(rows, for_generation=True)
    with torch.no_grad():
        logits = model(**batch).logits[0, -1] / 0.3
    logits[model.generation_config.suppress_tokens or []] = float("-inf")
    top = logits.topk(3)
    expected = dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))
    counts = {token: sum(answer.tokens[0] == token for answer in drawn) / n for token in expected}
    assert sum(counts.values()) == 1
    for token, share in expected.items():
        assert counts[token] == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5 + 1e-3)


def test_sampled_answers_of_the_engine_are_those_of_transformers(built, monkeypatch):
    rows, seeds = encoded(built[1], 3), [[1, 2], [3, 4, 5], [6]]
    found = answering.sample_groups(*built, rows, seeds, SAMPLED, batch_size=4)
    monkeypatch.setattr(backend, "engine", None)
    assert answering.sample_groups(*built, rows, seeds, SAMPLED, batch_size=4) == found


@pytest.mark.parametrize("sampling", [answering.Sampling(0.7, 0.6), answering.Sampling(1.3, 0.9, 5), SAMPLED], ids=str)
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(sampling):
    logits = 4 * torch.randn(6, 700, generator=torch.Generator().manual_seed(0))
    logits[3] = 0.01 * logits[3]  # the likely tokens alone do not reach top_p
    warped = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        warped = TopKLogitsWarper(sampling.top_k)(None, warped)
    warped = TopPLogitsWarper(sampling.top_p)(None, warped).softmax(dim=1)
    found = answering._kept_probabilities(logits, sampling)
    torch.testing.assert_close(found / found.sum(dim=1, keepdim=True), warped, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [600, 512])  # sums are over 256 tokens
def test_a_number_selects_the_token_where_the_cumulative_probability_passes_it_and_never_an_impossible_one(size):
    probabilities, last = torch.zeros(1, size), size - 1
    probabilities[0, [3, 255, 256, last]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    dice = {0.0: 3, 0.0999: 3, 0.1001: 255, 0.3001: 256, 0.5999: 256, 0.6001: last, 1 - 2**-53: last}
    found = answering.draw(
        probabilities.log().expand(len(dice), -1), torch.tensor(list(dice), dtype=torch.float64), answering.Sampling()
    )
    assert found.tolist() == list(dice.values())
