"""The assembled model: properties that training and inference rely on."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from affectgpt.config import LoraConfig
from affectgpt.models import build, trainable_table
from tests.models import tiny
from tests.models.tiny import MODALITIES

LORA = LoraConfig(r=2, alpha=4, dropout=0.0, target_modules=["q_proj", "v_proj"])
ANSWERS = ("sad", "happy, calm, surprised", "ironic; the voice is flat", "calm")
SHOWN = (("audio", "frames", "motion"), ("frames",), (), ("audio", "motion"))


def rows(processor, answers=ANSWERS, shown=SHOWN):
    """Four samples with different modalities and answers of different length."""
    return [
        processor.encode(tiny.question(*names), tiny.media(*names, seed=i, duration_s=0.05 + 0.1 * i), answer=answer)
        for i, (names, answer) in enumerate(zip(shown, answers, strict=True))
    ]


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- modalities


def test_any_subset_of_modalities_within_a_batch_gives_the_logits_of_each_sample_alone(built):
    model, processor = built
    samples = rows(processor)
    batch = processor.collate(samples)
    together = model(**batch, logits_to_keep=0).logits
    for i, row in enumerate(samples):
        alone = model(**processor.collate([row]), logits_to_keep=0).logits[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("absent", MODALITIES)
def test_an_absent_modality_gives_the_logits_of_a_model_without_that_branch(built, bases, absent):
    rest = tuple(name for name in MODALITIES if name != absent)
    smaller, its_processor = build(tiny.tiny_spec(bases, rest))
    assert absent not in smaller.encoders
    assert absent not in smaller.projectors
    row = its_processor.encode(tiny.question(*rest), tiny.media(*rest))
    batch = its_processor.collate([row], for_generation=True)
    assert torch.equal(smaller.eval()(**batch).logits, built[0](**batch).logits)


def test_media_change_the_logits(built):
    model, processor = built
    for name in MODALITIES:
        first, second = (
            processor.collate([processor.encode(tiny.question(name), tiny.media(name, seed=seed), "sad")])
            for seed in (0, 1)
        )
        assert not torch.allclose(model(**first).logits, model(**second).logits)


def test_soft_tokens_land_in_their_samples_placeholders_in_order(built):
    model, processor = built
    samples = rows(processor)
    batch = processor.collate(samples)
    embeds = model.embed(batch["input_ids"], batch)
    for name in MODALITIES:
        token = processor.placeholder_token_ids[name]
        having = [i for i, names in enumerate(SHOWN) if name in names]
        for row, tokens in zip(having, model.soft_tokens(name, batch), strict=True):
            torch.testing.assert_close(embeds[row][batch["input_ids"][row] == token], tokens)


def test_placeholders_that_do_not_match_the_media_are_an_error_with_both_numbers(built):
    model, processor = built
    batch = processor.collate(rows(processor))
    fewer = {**batch, "pixel_values": batch["pixel_values"][:1]}
    with pytest.raises(ValueError, match=r"frames: the text has 6 placeholder tokens, the media give 3 \(1 samples"):
        model(**fewer)
    del fewer["pixel_values"]
    with pytest.raises(ValueError, match="frames: the text has 6 placeholder tokens, the media give 0"):
        model(**fewer)


def test_a_branch_that_the_model_lacks_is_named(bases, built):
    model, _ = build(tiny.tiny_spec(bases, ("audio",)))
    batch = built[1].collate(rows(built[1])[:1])
    with pytest.raises(ValueError, match=r"frames: the batch has media, .* no such branch .*\['audio'\]"):
        model(**batch)


# ---------------------------------------------------------------- cached states


def test_cached_states_equal_those_of_a_batch_to_the_bit(built):
    model, processor = built
    samples = rows(processor)
    batch = processor.collate(samples)
    cached = [{**{k: row[k] for k in ("input_ids", "labels")}, **_cached(model, row)} for row in samples]
    from_cache = processor.collate(cached)
    for name in MODALITIES:
        assert from_cache[f"{name}_states"].shape[0] == sum(name in names for names in SHOWN)
    assert torch.equal(model(**from_cache).logits, model(**batch).logits)
    assert torch.equal(model(**from_cache).loss, model(**batch).loss)


def _cached(model, row):
    return {f"{name}_states": states for name, states in model.encode(row).items()}


def test_a_model_without_encoders_trains_from_cached_states_and_refuses_media(bases, built):
    hollow, processor = build(tiny.tiny_spec(bases), load_encoders=False)
    row = rows(processor)[0]
    cached = processor.collate([{**{k: row[k] for k in ("input_ids", "labels")}, **_cached(built[0], row)}])
    assert torch.equal(hollow.eval()(**cached).loss, built[0](**processor.collate([row])).loss)
    with pytest.raises(ValueError, match=r"audio: .* was built without encoders .* pass cached audio_states"):
        hollow(**processor.collate([row]))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("lora", [None, LORA])
def test_accumulating_four_single_samples_gives_the_gradient_of_one_batch_of_four(bases, lora):
    model, processor = build(tiny.tiny_spec(bases, lora=lora))
    model.train()
    samples = rows(processor)
    n_labels = sum(int((row["labels"] != -100).sum()) for row in samples)
    model(**processor.collate(samples), num_items_in_batch=torch.tensor(n_labels)).loss.backward()
    once = gradients(model)
    model.zero_grad()
    for row in samples:  # answers differ in length: a mean of means would fail
        model(**processor.collate([row]), num_items_in_batch=torch.tensor(n_labels)).loss.backward()
    assert once.keys() == gradients(model).keys()
    torch.testing.assert_close(gradients(model), once, atol=2e-6, rtol=1e-3)


def test_a_packed_batch_has_the_loss_and_gradient_of_the_padded_one(fresh):
    model, processor = fresh
    model.train()
    samples = rows(processor)
    found = []
    for packed in (False, True):
        model.zero_grad()
        loss = model(**processor.collate(samples, packed=packed)).loss
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(found[0], found[1], atol=2e-6, rtol=1e-3)


def test_the_loss_is_that_of_the_plain_llm_on_the_same_embeddings(built):
    """Reference: transformers' own loss over all logits of the language model."""
    model, processor = built
    batch = processor.collate(rows(processor))
    text = {key: batch[key] for key in ("attention_mask", "labels")}
    theirs = model.language_model(inputs_embeds=model.embed(batch["input_ids"], batch), **text).loss
    torch.testing.assert_close(model(**batch).loss, theirs)
    torch.testing.assert_close(model(**batch, logits_to_keep=0).loss, theirs)


def test_the_loss_is_that_of_all_labels_whatever_logits_are_kept(built):
    model, processor = built
    batch = processor.collate(rows(processor))
    expected = model(**batch)
    predicting = batch["labels"].ne(-100).any(dim=0).nonzero()[:, 0] - 1  # [K]
    length = batch["labels"].shape[1]
    for kept in (predicting, torch.arange(length), length - int(predicting[0]), length):
        found = model(**batch, logits_to_keep=kept)
        torch.testing.assert_close(found.loss, expected.loss)
        torch.testing.assert_close(model(**batch, logits_to_keep=kept, log_probs=True).log_probs[1],
                                   model(**batch, log_probs=True).log_probs[1])  # fmt: skip
        assert found.logits.shape[1] == (kept if isinstance(kept, int) else len(kept))
    for kept in (2, predicting[1:]):
        with pytest.raises(ValueError, match=r"logits_to_keep keeps the positions that predict \d+ of \d+ labels"):
            model(**batch, logits_to_keep=kept)


def test_a_tuple_has_what_the_output_has(built):
    model, processor = built
    batch = processor.collate(rows(processor))
    output = model(**batch, return_dict=True)
    loss, logits = model(**batch, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_frozen_parts_are_bit_identical_after_training_and_encoders_stay_in_eval_mode(bases):
    model, processor = build(tiny.tiny_spec(bases, lora=LORA))
    model.train()
    batch = processor.collate(rows(processor))
    state_before = copy.deepcopy(model.state_dict())
    features_before = model.encode(rows(processor)[0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.05)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
    # The bias of cross-attention's keys begins at zero, and nothing depends on it (`CrossAttention`).
    trained = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and not name.endswith("crossattention.attention.key.bias")
    }
    for name, value in model.state_dict().items():
        assert torch.equal(value, state_before[name]) == (name not in trained), name
    assert not any(module.training for module in model.encoders.modules() if module is not model.encoders)
    for name, states in model.encode(rows(processor)[0]).items():
        assert torch.equal(states, features_before[name])


def test_a_batch_of_text_alone_can_be_differentiated_and_leaves_no_parameter_out(fresh):
    """Distributed training needs a gradient, if zero, for each trained parameter in each step."""
    model, processor = fresh
    model.train()
    model(**processor.collate([processor.encode(tiny.question(), answer="sad")])).loss.backward()
    found = gradients(model)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all((grad == 0).all() for grad in found.values())


@pytest.mark.parametrize("asked", [False, True])
def test_gradient_checkpointing_runs_in_the_frozen_llm_when_asked_and_changes_no_gradient(fresh, monkeypatch, asked):
    model, processor = fresh
    model.train()
    batch = processor.collate(rows(processor))
    model(**batch).loss.backward()
    plain = gradients(model)
    model.zero_grad()
    calls = []
    genuine = torch.utils.checkpoint.checkpoint
    counted = lambda *args, **kwargs: (calls.append(args[0]), genuine(*args, **kwargs))[1]  # noqa: E731
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    if asked:
        model.checkpoint_layers()
    model(**batch).loss.backward()
    in_llm = [call for call in calls if "DecoderLayer" in str(call)]
    assert len(in_llm) == (model.config.text_config.num_hidden_layers if asked else 0)
    torch.testing.assert_close(gradients(model), plain)


def test_gradient_checkpointing_with_lora_alone_and_no_soft_token_still_trains(bases):
    """Nothing but the adapters asks for a gradient: reentrant checkpointing would lose it in silence."""
    model, processor = build(tiny.tiny_spec(bases, lora=LORA))
    model.set_trainable(["lora"])
    model.train()
    batch = processor.collate([processor.encode(tiny.question(), answer="sad")])
    model(**batch).loss.backward()
    plain = gradients(model)
    model.zero_grad()
    model.checkpoint_layers()
    model(**batch).loss.backward()
    torch.testing.assert_close(gradients(model), plain)
    assert sum(float(grad.abs().sum()) for grad in plain.values()) > 0


def test_set_trainable_takes_parts_by_name(bases):
    model, _ = build(tiny.tiny_spec(bases, lora=LORA))
    sizes = {part: sum(p.numel() for p in tensors.values()) for part, tensors in model.parts().items()}
    assert model.set_trainable(["projectors.audio"]) == sizes["projectors.audio"]
    assert model.set_trainable(["lora"]) == sizes["lora"]
    projectors = sum(size for part, size in sizes.items() if part.startswith("projectors."))
    assert model.set_trainable(["projectors", "lora"]) == projectors + sizes["lora"]
    with pytest.raises(ValueError, match=r"\['language_model'\] are unknown; expected some of \['projectors', 'lora'"):
        model.set_trainable(["language_model"])


def test_the_table_counts_every_parameter_once(bases):
    model, _ = build(tiny.tiny_spec(bases, lora=LORA))
    model.set_trainable(["projectors.frames"])
    table = trainable_table(model)
    rows_ = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    number = lambda text: int(text.replace(",", ""))  # noqa: E731
    assert number(rows_["all"][0]) == sum(p.numel() for p in model.parameters())
    assert number(rows_["all"][1]) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert rows_["encoders.audio"][0] == "HubertModel"
    assert rows_["projectors.frames"][0] == "qformer"
    assert rows_["projectors.frames"][1] == rows_["projectors.frames"][2]
    assert rows_["projectors.audio"][2] == rows_["language_model"][2] == "0"


# ---------------------------------------------------------------- LoRA and precision


def test_fresh_lora_changes_no_logit(bases, built):
    model, processor = build(tiny.tiny_spec(bases, lora=LORA))
    batch = processor.collate(rows(processor))
    assert torch.equal(model.eval()(**batch).logits, built[0](**batch).logits)


def test_first_weights_depend_on_the_seed_alone(bases, built):
    torch.manual_seed(123)
    again, _ = build(tiny.tiny_spec(bases))
    other, _ = build(tiny.tiny_spec(bases, seed=7))
    mine, theirs, others = (m.projectors.state_dict() for m in (built[0], again, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(mine["audio.project.queries"], others["audio.project.queries"])


def test_building_leaves_the_random_state_alone(bases):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build(tiny.tiny_spec(bases, lora=LORA))
    assert torch.equal(torch.rand(1), expected)


def test_trained_parts_stay_in_fp32_beside_a_bf16_llm(bases):
    model, processor = build(tiny.tiny_spec(bases, lora=LORA, dtype="bfloat16"))
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert next(model.encoders.parameters()).dtype == torch.float32
    model.train()
    loss = model(**processor.collate(rows(processor))).loss
    assert loss.dtype == torch.float32
    loss.backward()
    grads = gradients(model)
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    assert sum(float(grad.abs().sum()) for grad in grads.values()) > 0


def test_the_base_models_are_loaded_and_not_drawn_anew(bases, built):
    from transformers import AutoModelForCausalLM, HubertModel

    theirs = AutoModelForCausalLM.from_pretrained(bases["llm"]).state_dict()
    ours = built[0].language_model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    theirs = HubertModel.from_pretrained(bases["audio"]).state_dict()
    ours = built[0].encoders["audio"].model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


# ---------------------------------------------------------------- every LLM, and generation


def test_every_llm_trains_and_generates(llm, bases):
    model, processor = build(tiny.tiny_spec(bases | {"llm": llm}, lora=LORA))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    assert vocabulary == model.config.text_config.vocab_size  # the frozen embedding did not grow
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    batch = processor.collate(rows(processor, answers=["calm"] * 4))
    model.train()
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    prompts = [processor.encode(tiny.question(*names), tiny.media(*names)) for names in SHOWN]
    inputs = processor.collate(prompts, for_generation=True)
    output = model.eval().generate(**inputs, max_new_tokens=4)
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def test_one_call_of_the_processor_makes_what_the_model_takes(built):
    model, processor = built
    inputs = processor(tiny.question("audio"), tiny.media("audio"))
    assert model.generate(**inputs, max_new_tokens=2).shape == (1, inputs["input_ids"].shape[1] + 2)
    assert model(**processor(tiny.question("audio"), tiny.media("audio"), "sad")).loss > 0


def test_generation_stops_on_the_end_of_turn(fresh):
    """The LLM's output layer is set so that it wants to end the turn at once."""
    model, processor = fresh
    row = processor.encode(tiny.question("audio"), tiny.media("audio"))
    inputs = processor.collate([row], for_generation=True)
    head = model.get_output_embeddings()
    hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    with torch.no_grad():
        head.weight.zero_()
        head.weight[processor.end_ids[0]] = hidden
    new = model.eval().generate(**inputs, max_new_tokens=9)[0, inputs["input_ids"].shape[1] :]
    assert new.tolist() == processor.end_ids


def test_left_padding_generates_what_the_sample_alone_generates(built):
    model, processor = built
    prompts = [
        processor.encode(tiny.question(*names, text="why " * i), tiny.media(*names)) for i, names in enumerate(SHOWN)
    ]
    together = processor.collate(prompts, for_generation=True)
    width = together["input_ids"].shape[1]
    answers = model.generate(**together, max_new_tokens=6)[:, width:]
    for prompt, answer in zip(prompts, answers, strict=True):
        inputs = processor.collate([prompt], for_generation=True)
        alone = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert answer[: len(alone)].tolist() == alone.tolist()


def test_a_loop_of_ones_own_over_a_cache_gives_each_sample_of_a_padded_batch_its_own_logits(built):
    model, processor = built
    prompts = [processor.encode(tiny.question(*names), tiny.media(*names)) for names in SHOWN]
    steps = torch.tensor([[5, 6, 7], [8, 9, 10]])

    def decode(batch):
        mask = batch["attention_mask"]
        output = model(**batch, use_cache=True)
        logits = [output.logits[:, -1:]]
        for new in steps:
            mask = torch.cat([mask, torch.ones(len(mask), len(new), dtype=mask.dtype)], dim=1)
            key = "cache" if "cache" in output else "past_key_values"  # the name before transformers 5.24
            cache = {key: output[key], "use_cache": True}
            output = model(new.expand(len(mask), -1), attention_mask=mask, **cache)
            logits.append(output.logits)
        return torch.cat(logits, dim=1)  # [B, 7, V]

    together = decode(processor.collate(prompts, for_generation=True))
    for prompt, found in zip(prompts, together, strict=True):
        alone = decode(processor.collate([prompt], for_generation=True))[0]
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


def test_generating_with_a_cache_equals_taking_the_best_token_step_by_step(built):
    model, processor = built
    batch = processor.collate([processor.encode(tiny.question("frames"), tiny.media("frames"))], for_generation=True)
    n = batch["input_ids"].shape[1]
    generated = model.generate(**batch, max_new_tokens=4)[0, n:].tolist()
    for i in range(len(generated)):
        logits = model(**batch).logits[0, -1].clone()
        assert int(logits.argmax()) == generated[i]
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[generated[i]]])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generating_and_training_use_nothing_that_transformers_deprecates(fresh, num_beams):
    model, processor = fresh
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        inputs = processor.collate(
            [processor.encode(tiny.question("frames"), tiny.media("frames"))], for_generation=True
        )
        model.eval().generate(**inputs, max_new_tokens=3, num_beams=num_beams)
        model.train().checkpoint_layers()
        model(**processor.collate(rows(processor))).loss.backward()


def test_encoders_run_once_a_sample_whatever_the_beams(built, monkeypatch):
    model, processor = built
    calls = []
    genuine = model.encoders["audio"].forward
    monkeypatch.setattr(model.encoders["audio"], "forward", lambda *a: (calls.append(1), genuine(*a))[1])
    prompts = [processor.encode(tiny.question("audio"), tiny.media("audio", seed=seed)) for seed in (0, 1)]
    inputs = processor.collate(prompts, for_generation=True)
    output = model.generate(**inputs, max_new_tokens=5, num_beams=3, num_return_sequences=2)
    assert len(calls) == 2
    assert output.shape[0] == 4
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"].repeat_interleave(2, dim=0))


def test_generation_works_from_cached_states_and_with_logits_processors(built):
    model, processor = built
    row = processor.encode(tiny.question(*MODALITIES), tiny.media(*MODALITIES))
    cached = {"input_ids": row["input_ids"], **_cached(model, row)}
    inputs, from_cache = (processor.collate([r], for_generation=True) for r in (row, cached))
    assert torch.equal(model.generate(**inputs, max_new_tokens=5), model.generate(**from_cache, max_new_tokens=5))
    # Placeholder ids lie beyond the vocabulary; processors that look prompts up in it must not see them.
    model.generate(**inputs, max_new_tokens=3, repetition_penalty=1.3, no_repeat_ngram_size=2)


def test_generation_never_writes_a_placeholder(llms, bases):
    """Qwen's vocabulary is padded: rows exist at the placeholders' ids."""
    model, processor = build(tiny.tiny_spec(bases | {"llm": llms["qwen3"]}, ("audio",)))
    head = model.get_output_embeddings()
    inputs = processor.collate([processor.encode(tiny.question())], for_generation=True)
    hidden = model.eval()(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    with torch.no_grad():
        head.weight[processor.placeholder_token_ids["audio"]] = hidden
    output = model.generate(**inputs, max_new_tokens=3)
    assert not set(output[0].tolist()) & set(processor.placeholder_token_ids.values())


def test_a_linear_and_an_attention_projector_train_too(bases):
    from affectgpt.config import EncoderConfig, ProjectorConfig

    spec = tiny.tiny_spec(bases, ("audio", "frames"))
    spec = replace(
        spec,
        encoders={
            "audio": EncoderConfig(str(bases["audio"]), layers="last2_mean", pool="window"),
            "frames": EncoderConfig(str(bases["frames"]), pool="mean"),
        },
        projectors={
            "audio": ProjectorConfig("attention", n_queries=1),
            "frames": ProjectorConfig("linear", n_queries=1),
        },
    )
    model, processor = build(spec)
    model.train()
    batch = processor.collate(
        [processor.encode(tiny.question("audio", "frames"), tiny.media("audio", "frames"), answer="sad")]
    )
    model(**batch).loss.backward()
    used = {name: float(grad.abs().sum()) for name, grad in gradients(model).items()}
    assert used["projectors.audio.project.score.weight"] > 0
    assert used["projectors.frames.project.output.weight"] > 0


def test_an_encoder_of_another_library_keeps_its_weights_when_the_model_is_assembled(bases):
    model, _ = build(tiny.tiny_spec(bases, ("frames",)))
    foreign = nn.Linear(3, 3)
    weights = foreign.weight.clone()
    type(model)(model.config, language_model=model.language_model, encoders={"frames": foreign})
    assert torch.equal(foreign.weight, weights)


def test_models_that_are_loaded_in_threads_at_the_same_time_leave_later_ones_tied(bases, llms):
    from concurrent.futures import ThreadPoolExecutor

    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    tie_weights = PreTrainedModel.tie_weights
    spec = tiny.tiny_spec(bases | {"llm": llms["qwen2"]}, ("audio",))  # qwen2's embeddings are tied
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: build(spec), range(8)))
    assert PreTrainedModel.tie_weights is tie_weights
    later = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llms["qwen2"]))
    assert later.get_input_embeddings().weight is later.get_output_embeddings().weight
