"""`set_trainable` beyond projectors: blocks of encoders, their LoRA, the LLM; in memory, on disk, in the cache."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from affectgpt.cache.reader import clip_reader
from affectgpt.config import EncoderConfig, EncoderLoraConfig, LoraConfig
from affectgpt.hub.export import export, probe_logits
from affectgpt.models import AffectGPTForConditionalGeneration, AffectGPTProcessor, build, load_trained, save_trained
from affectgpt.models.assemble import build_hollow
from affectgpt.models.checkpoint import CheckpointError, load_trained_tensors
from affectgpt.models.modeling_affectgpt import trainable_table
from affectgpt.plan.costs import parameters
from affectgpt.runtime import InputError
from tests.engine.test_packing import largest_difference, loss_and_gradients, samples
from tests.models import tiny

MIXED = ["projectors", "encoders.audio.last1", "llm"]
EVERY = {
    "blocks": ["encoders.audio.last1"],
    "encoder": ["encoders.frames", "encoders.motion.last2"],
    "adapters": ["encoders.audio.lora", "encoders.motion.lora"],
    "llm": ["llm"],
    "mixed": MIXED,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tiny.write_base_models(tmp_path_factory.mktemp("bases"))


def spec_of(bases, *, lora: int = 0, encoder_lora: int = 0, alpha: int = 8, dropout: float = 0.0, **settings):
    spec = tiny.tiny_spec(bases, lora=LoraConfig(r=lora, alpha=alpha, dropout=dropout), **settings)
    adapters = EncoderLoraConfig(r=encoder_lora, alpha=alpha, dropout=0.0)
    encoders = {name: dataclasses.replace(encoder, lora=adapters) for name, encoder in spec.encoders.items()}
    return dataclasses.replace(spec, encoders=encoders)


def built(bases, **settings):
    return build(spec_of(bases, **settings))


def values(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def moved(model, parts, steps: int = 2):
    """The model after some steps on `parts`: what trains is away from the base models."""
    model[0].set_trainable(parts)
    model[0].train()
    trained = [tensor for tensor in model[0].parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    batch = model[1].collate(samples(model[1]), packed=True)
    for _ in range(steps):
        model[0](**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model[0].eval()


# ---------------------------------------------------------------- steps and gradients


@pytest.mark.parametrize("parts", EVERY.values(), ids=EVERY)
def test_exactly_the_named_tensors_change_and_their_number_is_returned_and_planned(bases, parts):
    settings = {"encoder_lora": 2} if parts == EVERY["adapters"] else {}
    model, processor = built(bases, **settings)
    before, n_trainable = values(model), model.set_trainable(parts)
    expected = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    moved((model, processor), parts)
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed <= expected
    # A bias of keys adds the same to all scores of a query, so its gradient is 0.
    assert all(name.endswith("key.bias") for name in expected - changed)
    assert sum(before[name].numel() for name in expected) == n_trainable
    assert f"{n_trainable:,}" in trainable_table(model).splitlines()[-1].split()
    planned = build_hollow(spec_of(bases, **settings))
    assert planned.set_trainable(parts) == n_trainable == sum(part.trainable for part in parameters(planned))


def test_names_of_tensors_are_those_that_were_asked_for(bases):
    model, _ = built(bases, encoder_lora=2)

    def trained(*parts):
        model.set_trainable(parts)
        return {name for name, tensor in model.named_parameters() if tensor.requires_grad}

    assert all(name.startswith("encoders.audio.model.encoder.layers.1.") for name in trained("encoders.audio.last1"))
    assert len(trained("encoders.audio.last1")) == 16
    whole = trained("encoders.audio")
    assert "encoders.audio.model.masked_spec_embed" not in whole  # no state depends on it
    assert not any(".lora_" in name for name in whole)
    assert all(".lora_" in name and name.startswith("encoders.motion.") for name in trained("encoders.motion.lora"))
    assert trained("llm") == {name for name, _ in model.named_parameters() if name.startswith("language_model.")}


def test_the_last_blocks_are_those_that_the_states_pass_through(bases):
    """Of hidden state 1 of two layers, the second layer computes nothing."""
    spec = tiny.tiny_spec(bases)
    first = dataclasses.replace(spec.encoders["audio"], layers=1)
    model, _ = build(dataclasses.replace(spec, encoders={**spec.encoders, "audio": first}))
    model.set_trainable(["encoders.audio.last1"])
    trained = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert trained
    assert all(name.startswith("encoders.audio.model.encoder.layers.0.") for name in trained)
    with pytest.raises(InputError, match=r"encoders\.audio\.last2: the states of this encoder pass through 1 blocks"):
        model.set_trainable(["encoders.audio.last2"])


@pytest.mark.parametrize("token_budget", [None, 40], ids=["at once", "pack by pack"])
def test_gradients_are_those_of_plain_autograd_through_transformers(bases, token_budget):
    model, processor = built(bases)
    model.set_trainable(MIXED)
    model.train()
    model.token_budget = token_budget
    rows = samples(processor)
    loss, expected = loss_and_gradients(model, processor.collate(rows))  # padded: no line of the engine
    packed_loss, packed = loss_and_gradients(model, processor.collate(rows, packed=True))
    assert packed_loss.item() == pytest.approx(loss.item(), abs=1e-5)
    assert {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"} <= packed.keys()
    assert any(name.startswith("encoders.audio.") for name in packed)
    assert largest_difference(packed, expected) < 1e-4


def test_the_gradient_of_an_encoder_is_that_of_its_base_model(bases):
    model, processor = built(bases)
    model.set_trainable(["encoders.frames"])
    pixels = processor.encode(tiny.question("frames"), tiny.media("frames"))["pixel_values"]
    encoder = model.encoders["frames"]
    encoder(pixels).square().sum().backward()
    found = {name: tensor.grad for name, tensor in encoder.model.named_parameters()}
    encoder.zero_grad()
    plain = encoder.model.train()(pixels.float()).last_hidden_state  # no dropout in this one
    plain.square().sum().backward()
    for name, tensor in encoder.model.named_parameters():
        torch.testing.assert_close(found[name], tensor.grad, atol=1e-4, rtol=1e-4)


def test_without_the_modality_its_gradients_are_zero_instead_of_missing(bases):
    """Processes that train together would otherwise wait for each other."""
    model, processor = built(bases)
    model.set_trainable(["encoders.audio.last1"])
    model.train()
    model(**processor.collate([processor.encode(tiny.question(), answer="sad")], packed=True)).loss.backward()
    assert all(not tensor.grad.any() for tensor in model.parameters() if tensor.requires_grad)


def test_unknown_parts_are_refused_with_what_there_is(bases):
    model, _ = built(bases)
    for part in ("encoders.sound", "encoders.audio.lora", "lora", "encoders"):
        with pytest.raises(InputError, match=r"'llm'\], encoders\.audio, encoders\.audio\.last1 to last2, .*lora\.r"):
            model.set_trainable([part])
    spec = tiny.tiny_spec(bases)
    absent = EncoderConfig(spec.encoders["frames"].path, lora=EncoderLoraConfig(r=2, target_modules=["q"]))
    spec = dataclasses.replace(spec, encoders={**spec.encoders, "frames": absent})
    with pytest.raises(InputError, match=r"linear layers \['fc1', 'fc2', 'projection', 'qkv'\]"):
        build(spec)


# ---------------------------------------------------------------- disk


@pytest.mark.parametrize("parts", EVERY.values(), ids=EVERY)
def test_checkpoint_and_export_hold_what_was_trained_and_keep_the_logits(bases, parts, tmp_path):
    model, processor = built(bases, encoder_lora=2)
    moved((model, processor), parts)
    model.set_trainable(["projectors"])  # as in a later stage: what was trained stays in checkpoints
    expected = probe_logits(model, processor)
    assert not torch.equal(expected, probe_logits(*built(bases, encoder_lora=2)))
    save_trained(model, processor, tmp_path / "trained")
    loaded, _ = load_trained(tmp_path / "trained")
    assert torch.equal(probe_logits(loaded, processor), expected)
    assert loaded.config.tuned == model.config.tuned
    save_trained(loaded, processor, tmp_path / "again")
    first, second = (tmp_path / name / "trained.safetensors" for name in ("trained", "again"))
    assert first.read_bytes() == second.read_bytes()
    if parts not in (MIXED, EVERY["adapters"]):
        return  # exports take long, and differ no further
    out = export(tmp_path / "trained", tmp_path / "full")
    again = AffectGPTForConditionalGeneration.from_pretrained(out).eval()
    assert torch.equal(probe_logits(again, AffectGPTProcessor.from_pretrained(out)), expected)
    for name in model.modalities:
        assert again.encoder_sum(name) == model.encoder_sum(name)


def test_the_manifest_of_frozen_base_models_is_as_before(bases, tmp_path):
    model, processor = built(bases)
    save_trained(model, processor, tmp_path)
    manifest = json.loads((tmp_path / "affectgpt.json").read_text())
    assert "encoder_sums" not in manifest
    assert "lora" not in manifest["spec"]["encoders"]["audio"]


def test_adapters_can_be_added_to_an_llm_that_was_trained(bases, tmp_path):
    """The names of the tensors are those without adapters."""
    model, processor = built(bases)
    moved((model, processor), ["llm", "encoders.audio"])
    save_trained(model, processor, tmp_path)
    later, _ = built(bases, lora=2, encoder_lora=2)
    load_trained_tensors(later, tmp_path, parts=["projectors", "language_model", "encoders.audio"])
    torch.testing.assert_close(probe_logits(later.eval(), processor), probe_logits(model, processor))


def test_a_changed_scale_of_adapters_is_refused_and_a_changed_dropout_is_said(bases, tmp_path, caplog):
    model, processor = built(bases, lora=2, encoder_lora=2)
    save_trained(model, processor, tmp_path)
    with pytest.raises(CheckpointError, match=r"alpha=8, this model has 4; set model\.encoders\.audio\.lora\.alpha=8"):
        load_trained_tensors(built(bases, lora=2, encoder_lora=2, alpha=4)[0], tmp_path)
    with caplog.at_level("INFO", "affectgpt"):
        load_trained_tensors(built(bases, lora=2, encoder_lora=2, dropout=0.3)[0], tmp_path)
    assert "model.llm.lora.dropout was 0, and is 0.3 from now on" in caplog.text


def test_a_failed_load_leaves_the_model_as_it_was(bases, tmp_path):
    model, processor = built(bases, lora=2)
    moved((model, processor), ["encoders.audio"])
    save_trained(model, processor, tmp_path)
    other, _ = built(bases)
    before = values(other)
    with pytest.raises(CheckpointError, match="not in the model"):
        load_trained_tensors(other, tmp_path)
    assert other.config.tuned == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.named_parameters())


def test_without_encoders_the_identity_of_their_states_comes_from_the_checkpoint(bases, tmp_path):
    model, processor = built(bases)
    moved((model, processor), ["encoders.audio.last1"])
    save_trained(model, processor, tmp_path)
    hollow, _ = load_trained(tmp_path, load_encoders=False)
    model.set_trainable(["projectors"])
    assert hollow.encoder_fingerprint("audio") == model.encoder_fingerprint("audio")
    with pytest.raises(CheckpointError, match="loaded without encoders"):
        save_trained(hollow, processor, tmp_path / "again")


# ---------------------------------------------------------------- cache


def test_states_are_cached_under_the_weights_of_the_encoder_and_never_while_it_trains(bases, tmp_path):
    fresh = built(bases)[0]
    model, processor = built(bases)
    moved((model, processor), ["encoders.audio.last1"])
    with pytest.raises(InputError, match=r"audio: its encoder trains, .* leave encoders\.audio out of"):
        model.encoder_fingerprint("audio")
    assert model.encoder_fingerprint("frames") == fresh.encoder_fingerprint("frames")
    cache = clip_reader(model, processor, cache_folder=tmp_path)._cache
    assert [name for name in model.modalities if name in cache] == ["frames", "motion"]
    model.set_trainable(["projectors"])
    assert model.encoder_fingerprint("audio") != fresh.encoder_fingerprint("audio")
    cache = clip_reader(model, processor, cache_folder=tmp_path)._cache
    assert all(name in cache for name in model.modalities)


def test_states_of_an_encoder_that_trains_are_refused_in_a_batch(bases):
    model, processor = built(bases)
    model.set_trainable(["encoders.audio"])
    model.train()
    batch = processor.collate(samples(processor), packed=True)
    with torch.no_grad():
        batch = model.with_states(batch)
    with pytest.raises(ValueError, match="audio: its encoder trains, but the batch has states of it instead of media"):
        model(**batch)
