"""The packed step equals the padded one of transformers: losses, log-probabilities and gradients, for every LLM."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from affectgpt.config import LoraConfig
from affectgpt.engine import cpu, kernels, layers, packed_loss
from affectgpt.engine.layout import find_spans, make_packs
from affectgpt.models import build
from tests.models import tiny
from tests.models.test_modeling import ANSWERS, SHOWN, gradients

EVERY_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = LoraConfig(r=2, alpha=4, dropout=0.0, target_modules=EVERY_LAYER)


def samples(processor):
    """Four samples of different modalities, length and number of answer tokens."""
    return [
        processor.encode(tiny.question(*names), tiny.media(*names, seed=i, duration_s=0.05 + 0.1 * i), answer=answer)
        for i, (names, answer) in enumerate(zip(SHOWN, ANSWERS, strict=True))
    ]


def loss_and_gradients(model, batch, **settings):
    model.zero_grad()
    loss = model(**batch, **settings).loss
    loss.backward()
    return loss.detach(), gradients(model)


def randomize_lora(model):
    """LoRA is zero at first; with other values every trained tensor has a gradient."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.train()


def largest_difference(found, expected) -> float:
    """Relative to the norm of each gradient, or to 1e-3 of the largest for those that are zero up to rounding."""
    assert found.keys() == expected.keys()
    floor = 1e-3 * max(grad.norm() for grad in expected.values())
    return max(float((found[name] - grad).norm() / grad.norm().clamp(min=floor)) for name, grad in expected.items())


def assert_equal_up_to_rounding(found, expected):
    """(loss or log-probabilities, gradients) of two ways to add up the same numbers."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert largest_difference(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_packed_training_has_the_loss_and_gradients_of_padded_training_for_every_llm(llm, bases, lora):
    model, processor = build(tiny.tiny_spec({**bases, "llm": llm}, lora=lora))
    randomize_lora(model)
    rows = samples(processor)
    n_items = torch.tensor(77)
    padded = loss_and_gradients(model, processor.collate(rows), num_items_in_batch=n_items)
    packed = loss_and_gradients(model, processor.collate(rows, packed=True), num_items_in_batch=n_items)
    assert layers.supports(model.language_model)
    assert abs(packed[0] / padded[0] - 1) < 1e-6
    assert largest_difference(packed[1], padded[1]) < 1e-5


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_a_token_budget_changes_neither_loss_nor_gradients(bases, lora, budget):
    model, processor = build(tiny.tiny_spec(bases, lora=lora))
    randomize_lora(model)
    batch = processor.collate(samples(processor), packed=True)
    whole = loss_and_gradients(model, batch)
    model.token_budget = budget
    assert_equal_up_to_rounding(loss_and_gradients(model, batch), whole)


def test_a_token_budget_bounds_the_tokens_that_go_through_the_llm_at_once(fresh, monkeypatch):
    model, processor = fresh
    batch = processor.collate(samples(processor), packed=True)
    lengths = torch.diff(
        torch.cat([(batch["position_ids"][0] == 0).nonzero()[:, 0], torch.tensor([batch["labels"].numel()])])
    )
    seen = []
    layer = layers.decoder_layer
    monkeypatch.setattr(
        layers, "decoder_layer", lambda *args, **more: seen.append(len(args[2])) or layer(*args, **more)
    )
    model.token_budget = int(lengths[:2].sum())
    model(**batch).loss.backward()
    assert len(seen) > 2
    assert max(seen) <= model.token_budget
    assert sum(seen) == 2 * lengths.sum()  # two layers, every token once, no second pass


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads for tiny samples; yields (thread, its number of torch threads, tokens) of each layer call."""
    seen, layer, n_before = [], layers.decoder_layer, torch.get_num_threads()

    def recorded(*args, **more):
        seen.append((threading.current_thread().name, torch.get_num_threads(), len(args[2])))
        return layer(*args, **more)

    monkeypatch.setattr(layers, "decoder_layer", recorded)
    monkeypatch.setattr(cpu, "_THREAD_TOKENS", 1)
    torch.set_num_threads(2)
    yield seen
    torch.set_num_threads(n_before)


@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_packs_in_parallel_threads_give_loss_and_gradients_of_one_pack(bases, lora, two_threads):
    model, processor = build(tiny.tiny_spec(bases, lora=lora))
    randomize_lora(model)
    batch = processor.collate(samples(processor), packed=True)
    torch.set_num_threads(1)
    alone = loss_and_gradients(model, batch)
    assert {name for name, *_ in two_threads} == {"MainThread"}
    two_threads.clear()
    torch.set_num_threads(2)
    together = loss_and_gradients(model, batch)
    assert_equal_up_to_rounding(together, alone)
    assert {name.split("_")[0] for name, *_ in two_threads} == {"pack"}
    assert {n_threads for _, n_threads, _ in two_threads} == {1}
    assert torch.get_num_threads() == 2
    torch.testing.assert_close(loss_and_gradients(model, batch), together, rtol=0, atol=0)  # whichever finishes first
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, together[0])


def test_packs_in_parallel_share_the_token_budget_and_the_work(fresh, two_threads):
    model, processor = fresh
    batch = processor.collate(samples(processor), packed=True)
    spans, marks = find_spans(batch["position_ids"], batch["labels"][0] != -100)
    longest, n_tokens = max(stop - start for start, stop in spans), len(marks)
    for budget in (n_tokens, 2 * longest + 1, 2 * longest, longest):
        n_workers, limit = cpu.split_work(spans, budget, 2)
        packs = make_packs(spans, marks, limit)
        assert n_workers == (1 if budget == longest else 2)
        assert n_workers * max(pack.stop - pack.start for pack in packs) <= budget
        assert [length for pack in packs for length in pack.lengths] == [stop - start for start, stop in spans]
        model.token_budget = budget
        two_threads.clear()
        model(**batch).loss.backward()
        assert len({name for name, *_ in two_threads}) <= n_workers
        assert max(n for *_, n in two_threads) <= limit


def test_dropout_of_lora_runs_in_threads_and_depends_on_the_seed_alone(bases, two_threads):
    model, processor = build(tiny.tiny_spec(bases, lora=dataclasses.replace(LORA, dropout=0.5)))
    batch = processor.collate(samples(processor), packed=True)
    randomize_lora(model)

    def of_seed(seed):
        torch.manual_seed(seed)
        return loss_and_gradients(model, batch)

    together = of_seed(0)
    assert {name.split("_")[0] for name, *_ in two_threads} == {"pack"}
    torch.testing.assert_close(of_seed(0), together, rtol=0, atol=0)
    assert abs(of_seed(1)[0] - together[0]) > 1e-3
    torch.set_num_threads(1)
    for model.token_budget in (None, 80):  # packs of other samples, one after the other
        assert_equal_up_to_rounding(of_seed(0), together)
    model.checkpoint_layers()
    assert_equal_up_to_rounding(of_seed(0), together)


def test_other_layers_that_draw_random_numbers_do_not_run_in_threads(bases, two_threads):
    model, processor = build(tiny.tiny_spec(bases, lora=LORA))
    batch = processor.collate(samples(processor), packed=True)
    model.language_model.add_module("noise", nn.Dropout(0.5))
    randomize_lora(model)(**batch).loss.backward()
    assert {name for name, *_ in two_threads} == {"MainThread"}
    two_threads.clear()
    model.eval()(**batch).loss.backward()
    assert "MainThread" not in {name for name, *_ in two_threads}


def test_weights_that_zero3_has_split_are_not_gathered_by_threads(fresh, two_threads):
    model, processor = fresh
    next(model.language_model.parameters()).ds_id = 0
    model(**processor.collate(samples(processor), packed=True)).loss.backward()
    assert {name for name, *_ in two_threads} == {"MainThread"}


def test_an_error_in_a_thread_is_raised_by_the_step(fresh, two_threads, monkeypatch):
    model, processor = fresh

    def fails(*args, **more):
        raise RuntimeError(f"no memory in {threading.current_thread().name.split('_')[0]}")

    monkeypatch.setattr(layers, "decoder_layer", fails)
    with pytest.raises(RuntimeError, match="no memory in pack"):
        model(**processor.collate(samples(processor), packed=True))


@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_gradient_checkpointing_changes_no_gradient_of_a_packed_batch_and_recomputes_each_layer(
    bases, lora, monkeypatch
):
    model, processor = build(tiny.tiny_spec(bases, lora=lora))
    randomize_lora(model)
    batch = processor.collate(samples(processor), packed=True)
    plain = loss_and_gradients(model, batch)
    calls = []
    layer = layers.decoder_layer
    monkeypatch.setattr(layers, "decoder_layer", lambda *args, **more: calls.append(1) or layer(*args, **more))
    model.checkpoint_layers()
    torch.testing.assert_close(loss_and_gradients(model, batch), plain, rtol=0, atol=0)
    assert len(calls) == 4


def test_accumulating_packed_batches_gives_the_gradient_of_one(fresh):
    model, processor = fresh
    model.train()
    rows = samples(processor)
    n_items = torch.tensor(sum(int((row["labels"] != -100).sum()) for row in rows))
    once = loss_and_gradients(model, processor.collate(rows, packed=True), num_items_in_batch=n_items)
    model.zero_grad()
    losses = [
        model(**processor.collate(part, packed=True), num_items_in_batch=n_items).loss for part in (rows[:1], rows[1:])
    ]
    sum(losses).backward()
    assert_equal_up_to_rounding((sum(losses).detach(), gradients(model)), once)


def test_samples_of_a_pack_do_not_see_each_other(fresh):
    model, processor = fresh
    rows = samples(processor)
    alone = [model(**processor.collate([row], packed=True), num_items_in_batch=1).loss for row in rows]
    together = model(**processor.collate(rows, packed=True), num_items_in_batch=1).loss
    torch.testing.assert_close(together, torch.stack(alone).sum())


def test_a_bf16_llm_has_nearly_the_packed_loss_of_fp32_and_fp32_gradients(bases):
    losses = []
    for dtype in ("float32", "bfloat16"):
        model, processor = build(tiny.tiny_spec(bases, dtype=dtype))
        loss, grads = loss_and_gradients(model.train(), processor.collate(samples(processor), packed=True))
        losses.append(loss)
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


def test_an_llm_of_another_family_trains_packed_by_its_own_forward_method(fresh, monkeypatch):
    model, processor = fresh
    rows = samples(processor)
    fast = loss_and_gradients(model, processor.collate(rows, packed=True))
    monkeypatch.setattr(layers, "FAMILIES", ())
    torch.testing.assert_close(
        loss_and_gradients(model, processor.collate(rows, packed=True)), fast, rtol=1e-3, atol=2e-6
    )


# ---------------------------------------------------------------- log-probabilities


def log_probs_and_gradients(model, batch, weights):
    """[n_i] log-probabilities per sample, and the gradients of their sum weighted by `weights`."""
    model.zero_grad()
    found = model(**batch, log_probs=True).log_probs
    (torch.cat(found) * weights).sum().backward()
    return [each.detach() for each in found], gradients(model)


@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_log_probs_and_their_gradients_are_those_of_transformers_logits_for_every_llm(llm, bases, lora):
    model, processor = build(tiny.tiny_spec({**bases, "llm": llm}, lora=lora))
    randomize_lora(model)
    rows = samples(processor)
    batch = processor.collate(rows)
    n_labels = [int((row["labels"] != -100).sum()) for row in rows]
    weights = torch.randn(sum(n_labels), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    embeds = model.embed(batch["input_ids"], batch)
    logits = model.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    reference = logits.log_softmax(dim=-1)[targets != -100].gather(1, targets[targets != -100][:, None])[:, 0]
    (reference * weights).sum().backward()
    expected = [each.detach() for each in reference.split(n_labels)], gradients(model)
    for packed in (True, False):
        found = log_probs_and_gradients(model, processor.collate(rows, packed=packed), weights)
        assert_equal_up_to_rounding(found, expected)


@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_a_token_budget_changes_neither_log_probs_nor_gradients_and_bounds_the_tokens_at_once(bases, lora, monkeypatch):
    model, processor = build(tiny.tiny_spec(bases, lora=lora))
    randomize_lora(model)
    batch = processor.collate(samples(processor), packed=True)
    weights = torch.randn(int((batch["labels"] != -100).sum()), generator=torch.Generator().manual_seed(0))
    together = log_probs_and_gradients(model, batch, weights)
    seen, layer = [], layers.decoder_layer
    monkeypatch.setattr(
        layers, "decoder_layer", lambda *args, **more: seen.append(len(args[2])) or layer(*args, **more)
    )
    model.token_budget = 90
    assert_equal_up_to_rounding(log_probs_and_gradients(model, batch, weights), together)
    assert max(seen) <= 90
    assert sum(seen) == 2 * 2 * batch["labels"].numel()  # two layers, forward and again in the backward pass


def test_log_probs_with_dropout_are_recomputed_with_the_same_random_numbers(bases):
    model, processor = build(tiny.tiny_spec(bases, lora=dataclasses.replace(LORA, dropout=0.5)))
    randomize_lora(model)
    model.token_budget = 80
    batch = processor.collate(samples(processor), packed=True)
    lora = next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)

    def total() -> torch.Tensor:
        torch.manual_seed(0)
        return torch.cat(model(**batch, log_probs=True).log_probs).sum()

    total().backward()
    slope = lora.grad / lora.grad.norm()
    step = 2e-3
    with torch.no_grad():
        lora += step * slope
        above = total()
        lora -= 2 * step * slope
        below = total()
    assert float((above - below) / (2 * step)) == pytest.approx(float(lora.grad.norm()), rel=1e-2)


def test_log_probs_of_packed_samples_are_those_of_each_sample_alone(fresh):
    model, processor = fresh
    rows = samples(processor)
    together = model(**processor.collate(rows, packed=True), log_probs=True).log_probs
    for row, found in zip(rows, together, strict=True):
        (alone,) = model(**processor.collate([row], packed=True), log_probs=True).log_probs
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_the_supervised_loss_is_minus_the_mean_of_the_log_probs(fresh):
    model, processor = fresh
    for packed in (True, False):
        batch = processor.collate(samples(processor), packed=packed)
        found = torch.cat(model(**batch, log_probs=True).log_probs)
        torch.testing.assert_close(model(**batch).loss, -found.mean())


@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_a_loss_of_single_tokens_has_the_gradients_of_the_log_probs_and_goes_forward_once(bases, lora, monkeypatch):
    model, processor = build(tiny.tiny_spec(bases, lora=lora))
    randomize_lora(model)
    rows = samples(processor)
    batch = processor.collate(rows, packed=True)
    weights = torch.randn(int((batch["labels"] != -100).sum()), generator=torch.Generator().manual_seed(0))

    def token_loss(new: torch.Tensor, at: slice) -> torch.Tensor:
        return weights[at] * new.exp() - new**2

    model.zero_grad()
    log_probs = torch.cat(model(**batch, log_probs=True).log_probs)
    loss = token_loss(log_probs, slice(0, len(weights))).sum()
    loss.backward()
    expected = gradients(model)
    seen, layer = [], layers.decoder_layer
    monkeypatch.setattr(
        layers, "decoder_layer", lambda *args, **more: seen.append(len(args[2])) or layer(*args, **more)
    )
    for budget, packed in ((None, True), (90, True), (None, False)):
        model.zero_grad()
        seen.clear()
        model.token_budget = budget
        found = model(**processor.collate(rows, packed=packed), token_loss=token_loss)
        found.loss.backward()
        torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat(found.log_probs), log_probs.detach(), rtol=1e-5, atol=1e-5)
        assert largest_difference(gradients(model), expected) < 1e-5
        assert sum(seen) == packed * 2 * batch["labels"].numel()  # two layers; padded batches do not run here


# ---------------------------------------------------------------- the LLM alone


LENGTHS = (3, 130, 1, 97)


def small_llm(kind=LlamaForCausalLM, config=LlamaConfig, **changes):
    torch.manual_seed(0)
    values = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
    }  # fmt: skip
    return kind(config(**{**values, **changes})).requires_grad_(False).double().train()


def packed_row():
    """embeds [1, T, 32], positions [1, T] and labels [1, T] of four samples; one has no label, one of them a gap."""
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(1, sum(LENGTHS), 32, generator=generator, dtype=torch.float64)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    labels = torch.full((1, sum(LENGTHS)), -100)
    labels[0, 2], labels[0, 50:133], labels[0, 70:75] = 7, 9, -100
    labels[0, 150:231] = torch.randint(0, 50, (81,), generator=generator)
    return embeds, positions, labels


@pytest.mark.parametrize("saved", [0, 1000], ids=["recomputed", "saved"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_packed_loss_is_that_of_transformers_on_each_sample_in_double_precision(kv_heads, saved, monkeypatch):
    monkeypatch.setattr(cpu, "_SAVED", saved)
    llm = small_llm(num_key_value_heads=kv_heads)
    embeds, positions, labels = packed_row()
    ours, theirs = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    loss = packed_loss(llm, ours, positions, labels)
    loss.backward()
    start, total = 0, 0.0
    for length in LENGTHS:
        part = slice(start, start + length)
        logits = llm(inputs_embeds=theirs[:, part]).logits[0]
        shifted = functional.pad(labels[0, part], (0, 1), value=-100)[1:]
        total = total + functional.cross_entropy(logits, shifted, ignore_index=-100, reduction="sum")
        start += length
    reference = total / int((labels != -100).sum())
    reference.backward()
    # The loss is summed in fp32, whatever the LLM's precision.
    torch.testing.assert_close(loss.double(), reference, rtol=1e-6, atol=0)
    assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-6


def test_a_sliding_window_shorter_than_a_sample_is_an_error_and_a_longer_one_is_not():
    embeds, positions, labels = packed_row()
    config = {"kind": MistralForCausalLM, "config": MistralConfig}
    with pytest.raises(ValueError, match=r"a sample has 130 tokens, the LLM's sliding window 129"):
        packed_loss(small_llm(**config, sliding_window=129), embeds, positions, labels)
    losses = [
        packed_loss(small_llm(**config, sliding_window=window), embeds, positions, labels) for window in (130, None)
    ]
    assert torch.equal(*losses)


def test_a_row_that_does_not_start_with_a_sample_is_an_error():
    embeds, positions, labels = packed_row()
    with pytest.raises(ValueError, match="must start with position 0"):
        packed_loss(small_llm(), embeds, positions + 1, labels)


def test_torchs_attention_on_each_sample_equals_the_blocks_of_the_cpu():
    """A GPU without FlashAttention runs the former."""
    generator = torch.Generator().manual_seed(0)
    predicts = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    predicts[40:60] = True
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    (answers,) = make_packs(*find_spans(positions, predicts), limit=sum(LENGTHS))
    for pack in (answers, answers.with_all_queries()):
        rows = pack.queries()
        query = torch.randn(len(rows), 4, 8, generator=generator)
        key, value = torch.randn(2, sum(LENGTHS), 2, 8, generator=generator)
        angles = torch.rand(sum(LENGTHS), 4, generator=generator)
        cos, sin = angles.cos(), angles.sin()
        by_sample = kernels.attend_per_sample(
            kernels.rotate(query, cos[rows], sin[rows]), kernels.rotate(key, cos, sin), value, pack, 0.3
        )
        blocks = layers.attend(query.flatten(1), key.flatten(1), value.flatten(1), cos, sin, rows, pack, 8, 0.3)
        torch.testing.assert_close(by_sample.flatten(1), blocks, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("kind", ["frozen", "trained", "biased"])
def test_a_loss_of_single_tokens_in_chunks_has_value_and_gradient_of_the_log_probs(kind, monkeypatch):
    monkeypatch.setattr(kernels, "_rows_at_once", lambda *_: 3)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=kind == "biased").double().requires_grad_(kind == "trained")
    states, targets = torch.randn(10, 6, dtype=torch.float64), torch.randint(0, 11, (10,))
    weights = torch.randn(14, dtype=torch.float64)
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    loss, own = kernels.summed_loss(head, ours, targets, lambda new, at: weights[at] * new.exp(), 4)
    (3 * loss).backward()
    grad, head.weight.grad = head.weight.grad, None
    log_probs = -functional.cross_entropy(head(theirs), targets, reduction="none")
    (3 * weights[4:] * log_probs.exp()).sum().backward()
    torch.testing.assert_close(own.double(), log_probs.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, head.weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["frozen", "trained", "biased"])
def test_the_loss_in_chunks_has_value_and_gradient_of_cross_entropy(kind, monkeypatch):
    monkeypatch.setattr(kernels, "_rows_at_once", lambda *_: 3)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=kind == "biased").double().requires_grad_(kind == "trained")
    states, targets = torch.randn(10, 6, dtype=torch.float64), torch.randint(0, 11, (10,))
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    (3 * kernels.summed_loss(head, ours, targets)[0]).backward()
    grad, head.weight.grad = head.weight.grad, None
    (3 * functional.cross_entropy(head(theirs), targets, reduction="sum")).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(grad, head.weight.grad, rtol=1e-5, atol=1e-7)


def test_logits_never_exist_for_all_answers_at_once(monkeypatch):
    monkeypatch.setattr(kernels, "_rows_at_once", lambda *_: 4)
    sizes = []
    linear = functional.linear
    monkeypatch.setattr(functional, "linear", lambda *args: sizes.append(len(args[0])) or linear(*args))
    head = nn.Linear(8, 100, bias=False).requires_grad_(False)
    states, targets = torch.randn(10, 8, requires_grad=True), torch.zeros(10, dtype=torch.long)
    kernels.summed_loss(head, states, targets)[0].backward()
    assert sizes == [4, 4, 2]
    sizes.clear()
    kernels.log_probs(head, states, targets).sum().backward()
    assert sizes == [4, 4, 2, 2, 4, 4]  # and again in the backward pass


def test_no_more_is_saved_for_the_backward_pass_than_needed():
    """Less than two thirds of what transformers saves."""
    llm, (embeds, positions, labels) = small_llm().float(), packed_row()
    embeds = embeds.float()
    kept = {}
    for name in ("ours", "theirs"):
        found = kept.setdefault(name, {})

        def keep(tensor, found=found):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in llm.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            embeds_in = embeds.clone().requires_grad_()
            if name == "ours":
                alive = packed_loss(llm, embeds_in, positions, labels)
            else:
                alive = llm(inputs_embeds=embeds_in, position_ids=positions, labels=labels, use_cache=False).loss
        kept[name] = sum(size for place, size in found.items() if place not in weights)
        del alive
    assert kept["ours"] < kept["theirs"] * 2 / 3, kept


# With AVX-512 one row is doubled and seventeen go through the module; without it one row and eight do.
@pytest.mark.parametrize(("avx512", "rows"), [(True, [2, 2, 16]), (False, [2, 7])])
@pytest.mark.parametrize("bias", [False, True])
def test_products_of_few_rows_equal_those_of_the_module(bias, avx512, rows, monkeypatch):
    monkeypatch.setattr(cpu, "_HAS_AVX512", avx512)
    linear = nn.Linear(40, 24, bias=bias)
    products, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args: products.append(len(args[1][0])) or mm(*args))
    with torch.no_grad():
        for n in (1, 2, 16, 17) if avx512 else (1, 2, 7, 8):
            states = torch.randn(40, n).t()  # column-major
            ours = layers.linear_layer(linear, states)
            assert ours.is_contiguous()
            torch.testing.assert_close(ours, linear(states))
    assert products == rows
    assert layers.linear_layer(linear, torch.randn(2, 40)).requires_grad  # the module runs where gradients are needed


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_rows_of_logits_shrink_with_the_vocabulary_to_a_minimum(device):
    rows = [kernels._rows_at_once(vocabulary, torch.device(device)) for vocabulary in (1_000, 2_000, 10_000_000)]
    assert rows[0] >= 2 * rows[1] > 2 * rows[2] == 128
