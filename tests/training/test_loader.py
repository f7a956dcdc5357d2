"""Batches whose media are not encoded yet, and texts that are tokenised once."""

from dataclasses import replace

import pytest
import torch
from accelerate.utils import send_to_device

from affectgpt.cache.reader import Features
from affectgpt.data.mixture import Source
from affectgpt.models import build
from affectgpt.prompts import render
from affectgpt.runtime import InputError
from affectgpt.schema import Sample
from affectgpt.training.loader import Batches, Uncollated
from affectgpt.training.objectives import Hooks, preference, reward
from affectgpt.training.samples import check_texts
from tests.models import tiny


@pytest.mark.parametrize("prompt_format", ["vicuna", "affectgpt_v2"])
@pytest.mark.parametrize("subtitle", [None, "Oh."])
def test_a_text_that_was_tokenised_before_is_the_text_that_is_asked_for(base_models, prompt_format, subtitle):
    spec = tiny.tiny_spec(base_models)
    _, processor = build(replace(spec, llm=replace(spec.llm, prompt_format=prompt_format)))
    batches = Batches(None, processor, None, None, packed=False)
    sample = Sample(id="a", subtitle=subtitle, description="She is sad.", modalities=())
    for _ in range(2):
        for with_subtitle in (True, False):
            for answer in ("She is sad.", None):
                prompt = render(sample, task="description", with_subtitle=with_subtitle, prompt_format=prompt_format)
                found = batches._row(prompt, Features({}, {}), answer)["input_ids"]
                assert torch.equal(found.long(), processor.encode(prompt, {}, answer=answer)["input_ids"])


def test_the_texts_that_an_objective_trains_on_are_checked(base_models):
    _, processor = build(tiny.tiny_spec(base_models))
    long = "word " * 20_000
    explained = Sample(id="explained", description=long, modalities=())
    judged = Sample(id="judged", description="Sad.", rejected=long, modalities=())
    told = Sample(id="told", description="Sad.", subtitle=long, modalities=())
    short = Sample(id="short", description="Sad.", modalities=())
    source = Source([explained, judged, told, short], tasks={"description": 1.0})
    for objective, refused in (
        (Hooks(), ["explained", "told"]),
        (preference.Objective(), ["explained", "judged", "told"]),
        (reward.Objective(), ["told"]),
    ):
        _, bad = check_texts([source, Source([])], processor, objective.answers, "skip")
        assert [row.id for row in bad] == refused
    with pytest.raises(InputError, match=r"no sample .* the first: the text has"):
        check_texts([source, Source([told], tasks={"description": 1.0})], processor, Hooks().answers, "skip")


def test_an_uncollated_batch_is_not_moved_to_the_gpu():
    # It would move rows with cached states and leave new states on the CPU, which then cannot be collated.
    batch = Uncollated([[{"input_ids": torch.zeros(1)}]], [{}])
    moved = send_to_device(batch, torch.device("meta"))
    assert moved.rows[0][0]["input_ids"].device.type == "cpu"
