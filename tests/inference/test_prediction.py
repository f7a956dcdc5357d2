"""Predictions depend neither on the batch nor on the order in which threads finish; bad clips follow `on_bad`."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
import torch

from affectgpt.cache.reader import Features
from affectgpt.config import GenerateConfig, QuestionConfig
from affectgpt.inference import answers as answering
from affectgpt.inference import prediction
from affectgpt.inference.prediction import predict, predict_to_file
from affectgpt.media import MediaError
from affectgpt.runtime import UserError
from affectgpt.schema import Prediction, Sample
from affectgpt.spread import in_threads
from tests.inference.test_answers import SHOWN, stop_early
from tests.models import tiny

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
    """Returns random media without files; counts what is read, and when."""

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


def predicted(built, generate: GenerateConfig, samples=SAMPLES, reader=None, **more):
    return predict(*built, samples, reader or Reader(), question=QuestionConfig(), generate=generate, **more)


def test_predictions_are_those_of_transformers_one_by_one_at_every_batch_size(built, monkeypatch):
    stop_early(*built, monkeypatch)
    plain = list(predicted(built, GenerateConfig(1, 12), answer=answering._by_transformers))
    assert {row.finish for row in plain} == {"eos", "length"}
    assert [row.id for row in plain] == [sample.id for sample in SAMPLES]
    for batch_size in (1, 3, 16):
        assert list(predicted(built, GenerateConfig(batch_size, 12))) == plain, f"batch size {batch_size}"
    for sample, row in zip(SAMPLES[:2], plain, strict=False):
        assert list(predicted(built, GenerateConfig(4, 12), [sample])) == [row]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_constrained_predictions_of_a_fixed_task_are_candidates(built, lang):
    words = {"en": ["very sad", "sad"], "zh": ["难过", "高兴"]}[lang]
    question = QuestionConfig(task="fixed", lang=lang, candidates=words)
    options = {"question": question, "generate": GenerateConfig(4, 40, constrain=True)}
    found = list(predict(*built, SAMPLES[:3], Reader(), **options))
    assert {row.text for row in found} <= set(words)
    assert all(list(row.labels) == [row.text] and row.finish == "eos" for row in found)


def test_sampled_answers_repeat_with_the_seed(built):
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append([row.text for row in predicted(built, GenerateConfig(4, 5, do_sample=True))])
    assert made[0] == made[1]
    assert len(set(made[0])) > 1


def test_encoders_run_once_per_clip(built, monkeypatch):
    model, _ = built
    calls = []
    for name, encoder in model.encoders.items():
        forward = encoder.forward
        monkeypatch.setattr(encoder, "forward", lambda *a, f=forward, name=name: calls.append(name) or f(*a))
    list(predicted(built, GenerateConfig(3, 6)))
    assert len(calls) == sum(len(sample.modalities) for sample in SAMPLES)


def test_a_clip_that_cannot_be_read_is_left_out_or_ends_the_run_after_the_clips_before_it(built):
    bad = []
    rows = list(predicted(built, GenerateConfig(3, 4), reader=Reader(bad="s7"), on_bad="skip", bad=bad))
    assert [row.id for row in rows] == [sample.id for sample in SAMPLES if sample.id != "s7"]
    assert [(item.id, item.reason) for item in bad] == [("s7", "cut short")]
    with pytest.raises(ValueError, match=r"sample 's7': cut short\. .*on_bad=skip"):
        list(predicted(built, GenerateConfig(3, 4), reader=Reader(bad="s7")))


def test_a_single_clip_is_read_without_threads(built, monkeypatch):
    monkeypatch.setattr(prediction, "in_threads", None)
    (row,) = predicted(built, GenerateConfig(3, 4), SAMPLES[:1])
    assert row.id == "s0"


def test_clips_are_read_a_bounded_number_ahead(built, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # of the machine, of which this process may use two
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    reader, most = Reader(), 0
    for n_given, _ in enumerate(predicted(built, GenerateConfig(2, 4), reader=reader)):
        most = max(most, len(reader.read) - n_given)
    # Two in the batch, two that have replaced finished ones, and those read ahead: batch size and threads.
    assert most <= 2 + 2 + 2 + 2
    assert sorted(reader.read) == sorted(sample.id for sample in SAMPLES)


def test_closing_early_reads_no_further_and_ends_the_threads(built):
    before = threading.active_count()
    reader = Reader()
    rows = predicted(built, GenerateConfig(2, 4), reader=reader)
    next(rows)
    rows.close()
    n_read = len(reader.read)
    time.sleep(0.05)
    assert len(reader.read) == n_read < len(SAMPLES)
    assert threading.active_count() == before


def test_prompts_are_tokenized_alike_in_many_threads(built):
    _, processor = built
    messages = [tiny.question(text=f"Question {i}: " + "why " * i) for i in range(40)]
    alone = [processor.encode(each)["input_ids"].tolist() for each in messages]
    together = list(
        in_threads(lambda each: processor.encode(each)["input_ids"].tolist(), messages * 5, n_threads=8, n_ahead=50)
    )
    assert together == alone * 5


def test_a_subtitle_in_the_asked_language_alone_is_shown(built):
    sample = Sample("s0", video="s0.mp4", modalities=(), translations={"zh": {"subtitle": "你好"}})
    settings = {"question": QuestionConfig(lang="zh"), "generate": GenerateConfig(1, 4)}
    (row,) = predict(*built, [sample], Reader(), **settings)
    assert (row.modalities, row.subtitle) == (("text",), "你好")
    with pytest.raises(UserError, match=r"nothing to show: .* it has no subtitle"):
        list(predicted(built, GenerateConfig(1, 4), [sample]))


def test_no_samples_give_no_predictions(built):
    assert list(predicted(built, GenerateConfig(), [])) == []


def into_file(out, asked=None, **settings):
    """The rows of three clips, answered by rule into `out`; adds to `asked` the clips that were asked about."""

    def answer(samples):
        for sample in samples:
            if asked is not None:
                asked.append(sample.id)
            yield Prediction(sample.id, f"I am {sample.id}.")

    return predict_to_file(answer, SAMPLES[:3], out, settings=settings)


def test_a_predictions_file_is_continued_with_its_own_settings_alone(tmp_path):
    out, asked = tmp_path / "p.jsonl", []
    out.touch()  # an empty file is none
    whole = into_file(out, seed=1)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + lines[1][:9])
    assert into_file(out, asked, seed=1) == whole
    assert asked == ["s1", "s2"]
    assert out.read_text() == "".join(lines)
    with pytest.raises(UserError, match=r"made with other settings \(seed\)"):
        into_file(out, seed=2)


def test_a_file_that_does_not_tell_its_precision_is_continued_and_one_that_does_is_not_mixed(tmp_path):
    out = tmp_path / "p.jsonl"
    into_file(out, seed=1)
    into_file(out, seed=1, dtype="bfloat16", backend="decord")  # older versions did not write them
    with pytest.raises(UserError, match=r"made with other settings \(backend, dtype\)"):
        into_file(out, seed=1, dtype=None, backend="pyav")


@pytest.mark.parametrize("row", [{"id": "s0", "text": "Mine."}, {"name": "s0", "text": "Of another tool."}])
def test_rows_without_the_settings_that_made_them_are_neither_continued_nor_changed(tmp_path, row):
    out = tmp_path / "p.jsonl"
    out.write_text(json.dumps(row))
    for _ in range(2):
        with pytest.raises(UserError, match=r"p\.jsonl has rows, but no p\.jsonl\.settings\.json .*restore .*out="):
            into_file(out, seed=1)
    assert out.read_text() == json.dumps(row)
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_line_that_is_no_prediction_is_named_before_anything_is_asked(tmp_path):
    out, asked = tmp_path / "p.jsonl", []
    into_file(out, seed=1)
    before = out.read_text().splitlines(keepends=True)
    out.write_text(before[0] + '{"name": "s1", "text": "?"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: not an object with the text 'id'"):
        into_file(out, asked, seed=1)
    assert not asked
