"""Answers of a group are those that each would be alone; the prompt goes through the LLM once."""

from __future__ import annotations

import pytest
import torch

from affectgpt.engine import groups, layers
from affectgpt.engine.groups import Group, attend_shared, continue_groups
from tests.engine.test_generation import LLMS, encoded, random_embeds, with_adapters
from tests.engine.test_generation import by_engine as greedy_alone


@pytest.fixture(scope="module", params=[("llama", True), ("llama3-gqa", False), ("qwen3-head-norms", True)], ids=str)
def built(request, tmp_path_factory):
    name, lora = request.param
    assert name in LLMS
    return with_adapters(name, tmp_path_factory.mktemp("base"), lora=lora)


def most_likely(logits, rows):
    return logits.argmax(dim=1)


def by_groups(model, processor, rows, sizes, limits, stops, batch_size, choose=most_likely):
    """(prompt, answer) -> tokens"""
    made = []
    for number, (row, size, limit) in enumerate(zip(rows, sizes, limits, strict=True)):
        batch = processor.collate([row], for_generation=True)
        ids = batch.pop("input_ids")
        made.append(Group([(number, place) for place in range(size)], model.embed(ids, batch)[0], limit))
    suppressed = model.generation_config.suppress_tokens or ()
    source = iter(made)
    found = continue_groups(
        model.language_model, lambda: next(source, None), choose,
        batch_size=batch_size, stop_ids=stops, suppressed_ids=suppressed,
    )  # fmt: skip
    return dict(found)


def test_the_greedy_answers_of_a_group_are_those_of_each_prompt_alone(built):
    model, processor = built
    rows, limits, sizes = encoded(processor, 5), [9, 70, 1, 5, 12], [3, 2, 4, 0, 5]
    free = greedy_alone(model, processor, rows, limits, [], 1)
    stops = [free[0][5], free[4][3]]
    alone = greedy_alone(model, processor, rows, limits, stops, 1)
    for batch_size in (3, 16):
        found = by_groups(model, processor, rows, sizes, limits, stops, batch_size)
        expected = {(number, place): alone[number] for number, size in enumerate(sizes) for place in range(size)}
        assert found == expected, f"batch size {batch_size}"


def test_answers_that_differ_keep_their_own_tokens_while_others_end(built):
    model, processor = built
    rows, limits, sizes = encoded(processor, 4), [6, 11, 9, 7], [4, 3, 1, 4]

    def choose(logits, rows):
        """The k-th most likely token, k from the answer's key and length: neighbours differ from the first token on."""
        place = torch.tensor([(row.key[0] + row.key[1] + len(row.tokens)) % 4 for row in rows])
        return logits.topk(4).indices.gather(1, place[:, None])[:, 0]

    alone = by_groups(model, processor, rows, sizes, limits, [], 1, choose)
    stops = [alone[0, 1][2], alone[1, 0][4]]
    alone = by_groups(model, processor, rows, sizes, limits, stops, 1, choose)
    assert len({len(tokens) for tokens in alone.values()}) > 3
    for batch_size in (2, 5):
        assert by_groups(model, processor, rows, sizes, limits, stops, batch_size, choose) == alone


def test_a_prompt_that_is_not_finite_changes_no_answer_to_another(built):
    model, _ = built
    good = [Group([(key, 0), (key, 1)], random_embeds(model, 10 + key, seed=key), 12 - key) for key in range(4)]
    bad = Group(["bad", "worse"], torch.full_like(random_embeds(model, 30, seed=0), float("nan")), 9)

    def answers(made, batch_size):
        waiting = iter(made)
        return dict(
            continue_groups(
                model.language_model, lambda: next(waiting, None), most_likely, batch_size=batch_size, stop_ids=[]
            )
        )

    alone = answers(good, 1)
    for place in range(3):
        for batch_size in (1, 3, 4):
            found = answers([*good[:place], bad, *good[place:]], batch_size)
            assert [len(found.pop(key)) for key in bad.keys] == [9, 9]
            assert found == alone, f"place {place}, batch size {batch_size}"


def test_a_prompt_goes_through_the_llm_once_and_a_step_has_at_most_the_batch_of_rows(built, monkeypatch):
    model, processor = built
    rows = encoded(processor, 3)
    prompts, steps = [], []
    states, step = layers.final_states, groups._Active.step
    monkeypatch.setattr(layers, "final_states", lambda *args: prompts.append(args[1].shape[1]) or states(*args))
    monkeypatch.setattr(groups._Active, "step", lambda self: steps.append(len(self.rows)) or step(self))
    by_groups(model, processor, rows, [6, 6, 6], [4, 5, 6], [], 4)
    assert sum(prompts) == sum(len(row["input_ids"]) for row in rows)
    assert max(steps) == 4
    assert sum(steps) == 6 * (3 + 4 + 5)  # the first token comes from the prompt


def test_log_probabilities_of_the_drawn_tokens_are_those_of_the_model(built):
    model, processor = built
    rows, seen = encoded(processor, 2), {}
    generator = torch.Generator().manual_seed(0)

    def choose(logits, rows):
        tokens = logits.softmax(dim=1).multinomial(1, generator=generator)
        for row, value in zip(rows, logits.log_softmax(dim=1).gather(1, tokens)[:, 0].tolist(), strict=True):
            seen.setdefault(row.key, []).append(value)
        return tokens[:, 0]

    drawn = by_groups(model, processor, rows, [3, 3], [7, 5], [], 4, choose)
    suppressed = torch.tensor(list(model.generation_config.suppress_tokens or ()), dtype=torch.int64)
    for (number, place), tokens in drawn.items():
        batch = processor.collate([rows[number]], for_generation=True)
        ids = batch.pop("input_ids")
        with torch.no_grad():
            words = model.get_input_embeddings()(torch.tensor([tokens]))
            embeds = torch.cat([model.embed(ids, batch), words], dim=1)
            logits = model.language_model(inputs_embeds=embeds).logits[0, ids.shape[1] - 1 : -1]
        logits[:, suppressed] = float("-inf")
        expected = logits.log_softmax(dim=1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(seen[number, place]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_a_shared_prefix_and_own_tokens_is_attention_to_both_in_one_row(dtype):
    generator = torch.Generator().manual_seed(0)

    def made(*shape):
        return torch.randn(*shape, generator=generator)

    n_kv, n_heads, d, n_own = 2, 4, 8, 5
    lengths, counts, has = [9, 4], [3, 2], [1, 5, 3, 2, 4]  # two prefixes, their rows, own tokens of each row
    query, keys, values = made(5, n_heads, d), made(5, n_kv, n_own, d), made(5, n_kv, n_own, d)
    prefixes = [(made(n_kv, d, length), made(n_kv, length, d)) for length in lengths]
    bias = torch.zeros(5, n_own).masked_fill_(torch.arange(n_own) >= torch.tensor(has)[:, None], float("-inf"))
    expected = []
    for row in range(5):
        prefix_keys, prefix_values = prefixes[row >= counts[0]]
        k = torch.cat([prefix_keys.transpose(1, 2), keys[row, :, : has[row]]], dim=1)[None]
        v = torch.cat([prefix_values, values[row, :, : has[row]]], dim=1)[None]
        q = query[row][None, :, None]
        expected.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)[0, :, 0])
    shared = [(slice(0, 3), *(t.to(dtype) for t in prefixes[0])), (slice(3, 5), *(t.to(dtype) for t in prefixes[1]))]
    slots = torch.tensor([2, 0, 4, 1, 3])
    own = keys[slots.argsort()].to(dtype), values[slots.argsort()].to(dtype)
    found = attend_shared(query.to(dtype), shared, *own, slots, bias.to(dtype), 0.3)
    exact = dtype == torch.float32
    torch.testing.assert_close(
        found.float(), torch.stack(expected), rtol=1e-5 if exact else 0.05, atol=1e-6 if exact else 0.03
    )
