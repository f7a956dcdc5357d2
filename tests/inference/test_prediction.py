"""Predictions do not depend on how fast, in which batch or by which loop they are made."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch._inductor import config as inductor

from affectgpt.cache.reader import Features
from affectgpt.engine import generation
from affectgpt.inference import prediction as inference
from affectgpt.inference.prediction import Asking, Decoding, answers, generate_texts, predict, prompt_embeds
from affectgpt.media import MediaError
from affectgpt.models import build
from affectgpt.runtime import UserError
from affectgpt.schema import Sample
from affectgpt.spread import in_threads
from tests.models import tiny

SHOWN = (("audio", "frames", "motion"), ("frames",), ("audio", "motion"), ("audio",), ("frames", "motion"))


@pytest.fixture(scope="module", params=[tiny.write_llama, tiny.write_qwen3], ids=["llama", "qwen3"])
def built(request, tmp_path_factory):
    paths = tiny.write_base_models(tmp_path_factory.mktemp("base"), request.param)
    model, processor = build(tiny.tiny_spec(paths))
    return model.eval(), processor


SAMPLES = [
    Sample(
        id=f"s{i}",
        video=f"s{i}.mp4",
        subtitle="I see. " * (i % 4) or None,
        modalities=SHOWN[i % len(SHOWN)],
    )
    for i in range(20)
]


class Reader:
    """Gives random media without files; counts what is read, and when."""

    def __init__(self, bad: str | None = None) -> None:
        self.read: list[str] = []
        self.bad = bad

    def __call__(self, sample, modalities) -> Features:
        self.read.append(sample.id)
        if sample.id == self.bad:
            raise MediaError("cut short")
        seed = int(sample.id[1:])
        time.sleep(0.002 * (seed % 3))  # threads finish out of order
        return Features(tiny.media(*modalities, seed=seed, duration_s=0.1 + 0.01 * seed), {})


def predicted(built, decoding: Decoding, **more):
    return list(predict(*built, SAMPLES, more.pop("reader", Reader()), asking=Asking(), decoding=decoding, **more))


def stopping_early(model, processor, monkeypatch):
    """Let some tokens that this model likes end an answer, so that answers have different lengths."""
    rows = [
        processor.encode(tiny.question(*SHOWN[i]), tiny.media(*SHOWN[i], seed=i, duration_s=0.15)) for i in range(4)
    ]
    texts = [processor.collate([row], for_generation=True) for row in rows]
    new = [model.generate(**batch, max_new_tokens=8)[0, batch["input_ids"].shape[1] :].tolist() for batch in texts]
    stops = sorted({new[0][4], new[2][6], *processor.stop_token_ids})
    monkeypatch.setattr(type(processor), "stop_token_ids", property(lambda self: stops))
    monkeypatch.setattr(model.generation_config, "eos_token_id", stops)


def test_answers_are_those_of_transformers_one_by_one_at_every_batch_size(built, monkeypatch):
    stopping_early(*built, monkeypatch)
    plain = predicted(built, Decoding(1, 12), engine=inference._by_transformers)
    assert {row.finish for row in plain} == {"eos", "length"}
    assert [row.id for row in plain] == [sample.id for sample in SAMPLES]
    for batch_size in (1, 3, 16):
        assert predicted(built, Decoding(batch_size, 12)) == plain, f"batch size {batch_size}"
        assert predicted(built, Decoding(batch_size, 12), engine=inference._by_transformers) == plain


def test_greedy_answers_come_from_the_own_loop_and_sampled_ones_from_transformers(built, monkeypatch):
    used = []
    for name in ("_by_own_loop", "_by_transformers"):
        monkeypatch.setattr(inference, name, lambda *args, name=name: used.append(name) or iter(()))
    for decoding in (Decoding(), Decoding(do_sample=True), Decoding(num_beams=2)):
        list(answers(*built, [], decoding))
    monkeypatch.setattr(built[0].generation_config, "repetition_penalty", 1.3)
    list(answers(*built, [], Decoding()))
    assert used == ["_by_own_loop", "_by_transformers", "_by_transformers", "_by_transformers"]


def test_sampled_answers_repeat_with_the_seed(built):
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append([row.text for row in predicted(built, Decoding(4, 5, do_sample=True))])
    assert made[0] == made[1]
    assert len(set(made[0])) > 1


def test_the_prompts_of_a_batch_are_the_embeddings_that_each_has_alone(built):
    model, processor = built
    rows = [
        processor.encode(tiny.question(*shown), tiny.media(*shown, seed=i, duration_s=0.1 + 0.05 * i))
        for i, shown in enumerate(SHOWN)
    ]
    for row, together in zip(rows, prompt_embeds(model, processor, rows), strict=True):
        batch = processor.collate([row], for_generation=True)
        alone = model.embed(batch.pop("input_ids"), batch)[0]
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_encoders_run_once_a_clip(built, monkeypatch):
    model, _ = built
    calls = []
    for name, encoder in model.encoders.items():
        forward = encoder.forward
        monkeypatch.setattr(encoder, "forward", lambda *a, f=forward, name=name: calls.append(name) or f(*a))
    predicted(built, Decoding(3, 6))
    assert len(calls) == sum(len(sample.modalities) for sample in SAMPLES)


def test_a_clip_that_cannot_be_read_is_left_out_or_ends_the_run_after_what_came_before(built):
    bad = []
    rows = predicted(built, Decoding(3, 4), reader=Reader(bad="s7"), on_bad="skip", bad=bad)
    assert [row.id for row in rows] == [sample.id for sample in SAMPLES if sample.id != "s7"]
    assert [(item.id, item.reason) for item in bad] == [("s7", "cut short")]
    with pytest.raises(ValueError, match=r"sample 's7': cut short\. .*on_bad=skip"):
        predicted(built, Decoding(3, 4), reader=Reader(bad="s7"))


def test_clips_are_read_a_bounded_number_ahead(built, monkeypatch):
    monkeypatch.setattr(inference.os, "cpu_count", lambda: 2)
    reader, most = Reader(), 0
    for n_given, _ in enumerate(predict(*built, SAMPLES, reader, asking=Asking(), decoding=Decoding(2, 4))):
        most = max(most, len(reader.read) - n_given)
    # Two in the batch, two that have replaced ended ones, and what is read ahead: batch size and threads.
    assert most <= 2 + 2 + 2 + 2
    assert sorted(reader.read) == sorted(sample.id for sample in SAMPLES)


def test_leaving_early_reads_no_further_and_ends_the_threads(built):
    before = threading.active_count()
    reader = Reader()
    rows = predict(*built, SAMPLES, reader, asking=Asking(), decoding=Decoding(2, 4))
    next(rows)
    rows.close()
    n_read = len(reader.read)
    time.sleep(0.05)
    assert len(reader.read) == n_read < len(SAMPLES)
    assert threading.active_count() == before


def test_prompts_are_tokenised_alike_in_many_threads(built):
    _, processor = built
    messages = [tiny.question(text=f"Question {i}: " + "why " * i) for i in range(40)]
    alone = [processor.encode(each)["input_ids"].tolist() for each in messages]
    together = list(
        in_threads(lambda each: processor.encode(each)["input_ids"].tolist(), messages * 5, n_threads=8, n_ahead=50)
    )
    assert together == alone * 5


def test_an_answer_is_cut_at_the_first_stop_token(built):
    _, processor = built
    words = processor.tokenizer("sad, calm", add_special_tokens=False)["input_ids"]
    stop = processor.stop_token_ids[0]
    assert inference.answer_of(processor, [*words, stop, stop]) == ("sad, calm", len(words) + 1, "eos")
    assert inference.answer_of(processor, words) == ("sad, calm", len(words), "length")


def test_no_samples_give_no_answers(built):
    assert generate_texts(*built, [], Decoding()) == []
    assert list(predict(*built, [], Reader(), asking=Asking(), decoding=Decoding())) == []
    assert generation.knows(built[0])


def encoded(processor, n: int) -> list:
    return [
        processor.encode(tiny.question(*SHOWN[i % 5]), tiny.media(*SHOWN[i % 5], seed=i, duration_s=0.15))
        for i in range(n)
    ]


def test_compiling_is_refused_where_it_would_do_nothing_or_cannot_be_done(built):
    model, processor = built
    for decoding in (Decoding(do_sample=True, compile=True), Decoding(num_beams=2, compile=True)):
        with pytest.raises(UserError, match=r"greedy answers \(do_sample=false, num_beams=1\) of LLMs of the families"):
            next(answers(model, processor, [], decoding))
    expected = r"there is no no-such-compiler on the PATH; install one or name another by .* CXX"
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(UserError, match=expected):
        next(answers(model, processor, [], Decoding(compile=True)))


@pytest.mark.parametrize("decoding", [Decoding(3, 12), Decoding(3, 12, do_sample=True), Decoding(3, 12, num_beams=2)])
def test_listeners_hear_beginnings_of_their_answers_and_change_none(built, monkeypatch, decoding):
    model, processor = built
    stopping_early(model, processor, monkeypatch)
    rows = encoded(processor, 7)
    torch.manual_seed(0)
    plain = generate_texts(model, processor, rows, decoding)
    heard = {number: [] for number in (0, 2, 3, 6)}
    torch.manual_seed(0)
    listeners = {number: texts.append for number, texts in heard.items()}
    assert generate_texts(model, processor, rows, decoding, listeners) == plain
    assert decoding.num_beams > 1 or len({answer.n_tokens for answer in plain}) > 1
    for number, texts in heard.items():
        assert all(plain[number].text.startswith(text) for text in texts)
        assert texts == sorted(texts, key=len)
        if plain[number].finish == "eos" and plain[number].text and decoding.num_beams == 1:
            assert texts[-1] == plain[number].text
    assert bool(sum(map(len, heard.values()))) == (decoding.num_beams == 1)


@pytest.mark.parametrize("own_loop", [True, False])
def test_the_first_words_are_heard_after_a_few_of_many_steps(built, monkeypatch, own_loop):
    model, processor = built
    place, name = (generation._Rows, "step") if own_loop else (type(model.language_model), "forward")
    step, steps, heard_at = getattr(place, name), [], []
    monkeypatch.setattr(place, name, lambda self, *args, **more: steps.append(1) or step(self, *args, **more))
    monkeypatch.setattr(generation, "knows", lambda model: own_loop)
    listeners = {0: lambda text: heard_at.append(len(steps))}
    (answer,) = generate_texts(model, processor, encoded(processor, 1), Decoding(1, 40), listeners)
    assert answer.n_tokens == 40
    assert len(steps) >= 39
    assert heard_at[0] < 10
    assert len(set(heard_at)) > 10
