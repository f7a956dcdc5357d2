"""Absent branches in a format that masks them (Emotion-LLaMA v2): left out, with the positions of all others kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from affectgpt.cache.reader import Features
from affectgpt.config import GenerateConfig
from affectgpt.data.mixture import Source
from affectgpt.data.stream import TrainingStream
from affectgpt.inference.answers import answers, prompt_embeds
from affectgpt.models import build
from affectgpt.prompts import render
from affectgpt.runtime import InputError
from affectgpt.schema import Sample
from affectgpt.training.loader import Batches
from affectgpt.training.objectives.supervised import Objective
from affectgpt.training.rollouts import Rollout
from tests.models import tiny

MEDIA = tiny.media("audio", "frames")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    paths = tiny.write_base_models(tmp_path_factory.mktemp("bases"), modalities=("audio", "frames"))
    spec = tiny.tiny_spec(paths, ("audio", "frames"))
    model, processor = build(replace(spec, llm=replace(spec.llm, prompt_format="emotion_llama_v2")))
    return model.eval(), processor


def row_of(processor, *shown: str, answer: str | None = "sad", task: str = "labels"):
    sample = Sample(id="a", subtitle="Fine.", modalities=shown)
    messages = render(sample, task=task, prompt_format="emotion_llama_v2")
    return processor.encode(messages, {name: MEDIA[name] for name in shown}, answer)


def masked(model, processor, answer: str | None = "sad"):
    """(embeddings, mask, labels) of a prompt with both branches in which the picture is masked."""
    batch = processor.collate([row_of(processor, "audio", "frames", answer=answer)])
    ids = batch.pop("input_ids")
    mask = (ids != processor.placeholder_token_ids["frames"]).long()
    labels = batch.pop("labels", None)
    return model.embed(ids, batch), mask, labels


@torch.no_grad()
def test_leaving_a_branch_out_is_masking_it(built):
    model, processor = built
    batch = processor.collate([row_of(processor, "audio")])
    assert batch["position_ids"][0].diff().max() == 1 + processor.branches["frames"]["n_tokens"]
    embeds, mask, labels = masked(model, processor)
    expected = model.language_model(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(model(**batch).loss, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_packed_and_padded_batches_have_the_same_loss(built):
    model, processor = built
    rows = [row_of(processor, "audio"), row_of(processor, "audio", "frames"), row_of(processor)]
    padded, packed = (model(**processor.collate(rows, packed=packed)).loss for packed in (False, True))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_answers_are_those_of_the_masked_prompt(built):
    model, processor = built
    embeds, mask, _ = masked(model, processor, answer=None)
    greedy = []
    for _ in range(5):
        token = model.language_model(inputs_embeds=embeds, attention_mask=mask).logits[:, -1].argmax(dim=-1)
        greedy.append(int(token))
        embeds = torch.cat([embeds, model.get_input_embeddings()(token[None])], dim=1)
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
    rows = [row_of(processor, *shown, answer=None) for shown in (("audio", "frames"), ("audio",))]
    found = list(answers(model, processor, rows, GenerateConfig(max_new_tokens=5, batch_size=2)))[1]
    assert list(found.tokens) == greedy[: len(found.tokens)]


def test_a_text_that_is_kept_between_draws_keeps_its_positions(built):
    model, processor = built
    sample = Sample(id="a", subtitle="Fine.", labels=("sad",), modalities=("audio", "frames"))
    reader = SimpleNamespace(load=lambda sample, shown: Features({n: MEDIA[n] for n in shown}, {}))
    batches = Batches(Objective(), processor, reader, model=model, packed=False)
    stream = TrainingStream([Source([sample], tasks={"labels": 1.0})], modalities=("audio",), length=2, seed=0)
    draws = [replace(stream[n], prompt_format="emotion_llama_v2") for n in range(2)]
    first, second = (batches([draw])["position_ids"] for draw in draws)
    assert first[0].diff().max() > 1
    assert torch.equal(first, second)


def test_written_answers_continue_the_positions(built):
    prompt = row_of(built[1], "audio", answer=None)
    tokens = (5, 6, 7)
    (row,) = Rollout([tokens], [1.0]).texts(SimpleNamespace(rows=[prompt]))
    assert len(row["position_ids"]) == len(row["input_ids"])
    assert row["position_ids"][-4:].diff().tolist() == [1, 1, 1]


def test_generation_from_embeddings_refuses_them(built):
    model, processor = built
    with pytest.raises(InputError, match="masks absent modalities"):
        prompt_embeds(model, processor, [row_of(processor, "audio", answer=None)])


def test_one_stream_asks_for_its_clues(built):
    """The perception tasks: sound alone and picture alone have tags of their own."""
    for shown, tag in ((("audio",), "[audio]"), (("frames",), "[image]"), (("audio", "frames"), "[reason]")):
        sample = Sample(id="a", subtitle="Fine.", modalities=shown)
        text = built[1].prompt_text(render(sample, task="description", prompt_format="emotion_llama_v2"))
        assert tag in text
        assert text.startswith("[INST] <Vid><")
        assert "</Vid> The person in video says: Fine..  [" in text
