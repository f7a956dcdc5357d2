"""Pipelines: order, concurrency, errors; every shipped pipeline and every kind of annotator on real clips."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter

import pytest

from affectgpt.annotate import steps
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.pipeline import ancestors, annotate_clip, check_pipeline
from affectgpt.annotate.steps import STEPS, StepFailed, Work
from affectgpt.chat.concurrency import StopSignal, for_each
from affectgpt.cli import compose
from affectgpt.config import PipelineConfig, StepConfig
from affectgpt.runtime import UserError
from tests.annotate.conftest import annotate, rows_of, served, write_clips
from tests.chat import tiny_chat
from tests.chat.chat_server import ChatServer, fill_in
from tests.models import tiny

PIPELINES = ("emer_coarse", "emer", "ov_merd", "merr", "s0", "s1", "s2")


def spec(name: str, *needs: str, **more: object) -> StepConfig:
    return StepConfig(name=name, needs=list(needs), **more)


def work() -> Work:
    return Work(clip=None, lang="en", annotators={})


def test_steps_run_concurrently_once_their_inputs_are_complete(monkeypatch):
    spans = {}

    def step(name):
        async def run(work, spec, about):
            begun = time.monotonic()
            await asyncio.sleep(0.1)
            spans[name] = (begun, time.monotonic(), sorted(about.get("labels", ())))
            return {"labels": [name]}

        return run

    for name in "abcd":
        monkeypatch.setitem(STEPS, name, step(name))
    found = asyncio.run(annotate_clip(work(), [spec("a"), spec("b"), spec("c", "a"), spec("d", "b", "c")]))
    assert found == {"labels": ["a", "b", "c", "d"]}  # in pipeline order, not in order of completion
    assert spans["b"][0] < spans["a"][1]  # a and b run concurrently
    assert spans["c"][0] >= spans["a"][1]
    assert spans["d"][2] == ["a", "b", "c"]  # includes what the needed steps need


def test_a_failing_step_lets_steps_in_progress_finish_and_is_the_reported_error(monkeypatch):
    ended = []

    async def fails(work, spec, about):
        raise StepFailed("broken")

    async def slow(work, spec, about):
        await asyncio.sleep(0.05)
        ended.append("slow")
        return {}

    async def after(work, spec, about):
        ended.append("after")
        return {}

    for function in (fails, slow, after):
        monkeypatch.setitem(STEPS, function.__name__, function)
    with pytest.raises(StepFailed, match="broken"):
        asyncio.run(annotate_clip(work(), [spec("slow"), spec("fails"), spec("after", "fails")]))
    assert ended == ["slow"]


def test_items_are_drawn_only_when_a_worker_is_free():
    drawn, under_way, most = [], [0], [0]

    def items():
        for number in range(50):
            drawn.append(number)
            yield number

    async def handle(item):
        under_way[0] += 1
        most[0] = max(most[0], len(drawn) - item + under_way[0])
        await asyncio.sleep(0.001)
        under_way[0] -= 1

    asyncio.run(for_each(items(), handle, n_workers=4, stop=StopSignal()))
    assert len(drawn) == 50
    assert most[0] <= 8


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        ([], "has no steps"),
        ([spec("labels", "merge"), spec("merge")], r"'labels' needs \['merge'\]; the steps before it are \[\]"),
        ([spec("merge"), spec("merge")], "two steps are named 'merge'"),
        ([spec("smell")], "no step 'smell'; expected one of .*acoustic"),
        ([spec("mine", step="no.such.module:step")], "no.such.module:step cannot be imported"),
        ([spec("merge", prompt="poem")], "no prompt 'poem'"),
    ],
)
def test_an_invalid_pipeline_is_an_error_with_the_reason(pipeline, problem):
    with pytest.raises(UserError, match=problem):
        check_pipeline(PipelineConfig(name="toy", steps=pipeline))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_shipped_pipeline_is_valid(name):
    pipeline = compose("annotate", [f"pipeline={name}"]).pipeline
    check_pipeline(pipeline)
    assert pipeline.name == name
    last = pipeline.steps[-1]
    assert ancestors(pipeline.steps, last)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_shipped_pipeline_makes_records_with_a_served_model(name, films, tmp_path):
    with ChatServer(fill_in) as server:
        out = tmp_path / "out"
        code = annotate(films, out, *served(server.url), f"pipeline={name}", f"openface='{films.parent / 'openface'}'")
    records = {record.id: record for record in records_in(out)}
    if name == "merr":  # only one clip has a table, so the others have no peak
        assert code == 3
        assert set(records) == {"film0"}
        assert {row["reason"] for row in rows_of(out / "failed.jsonl")} == {
            "no peak frame: no face is seen, or it does not move"
        }
    else:
        assert code == 0
        assert set(records) == {"film0", "film1", "film2"}
    record = records["film0"]
    assert record.labels
    assert record.description["en"]
    facts = {fact.name: fact.value for fact in record.evidence}
    assert facts["peak_s"] == 0.8
    assert facts["AU12"] == 3.0
    seen = [clue for clue in record.clues if clue.modality == "visual"]
    if name == "merr":
        assert (seen[0].start_s, seen[0].end_s) == (0.8, 0.8)
    elif name.startswith("s"):
        assert not seen
    else:
        assert [clue.start_s for clue in seen] == sorted(clue.start_s for clue in seen)
        assert len(seen) == 3
        assert "zh" in record.description
        assert not [clue for clue in records["film2"].clues if clue.modality == "acoustic"]  # it has no sound


def test_a_user_step_is_named_by_module_and_function(clips, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_steps.py").write_text(
        "def loudest(work, spec, about):\n    return {'labels': [spec.options['word']]}\n", encoding="utf-8"
    )
    mine = "pipeline.steps=[{name: measure}, {name: loudest, step: 'my_steps:loudest', options: {word: loud}}]"
    assert annotate(clips, tmp_path / "out", mine) == 0
    assert {record.labels for record in records_in(tmp_path / "out")} == {("loud",)}


def test_sound_for_a_model_without_audio_input_is_an_error_with_a_fix(clips, tmp_path):
    with pytest.raises(UserError, match=r"'acoustic' shows \['sound'\].*sees only \['images'\].*annotator@audio="):
        annotate(clips, tmp_path / "out", *served("http://127.0.0.1:9/v1"), "annotator.sees=[images]")


def test_a_role_can_have_its_own_annotator(films, tmp_path):
    with ChatServer(fill_in) as server:
        out = tmp_path / "out"
        assert annotate(films, out, *served(server.url), "annotator@audio=local", "annotator.sees=[images]") == 0
    steps_asked = Counter(body["response_format"]["json_schema"]["name"] for body in server.requests)
    assert steps_asked["visual"] == 3
    assert "acoustic" not in steps_asked
    record = next(record for record in records_in(out) if record.id == "film0")
    assert {clue.modality: clue.source for clue in record.clues}["acoustic"] == "local-rules"


def test_the_clips_of_a_speaker_give_the_usual_values(tmp_path):
    clips = write_clips(tmp_path / "clips", 3, seconds=1.6)
    annotate(clips, tmp_path / "out", "speaker='^(clip)'")
    records = list(records_in(tmp_path / "out"))
    assert len(records) == 3
    for record in records:
        relative = {fact.name: fact.value for fact in record.evidence if "speaker" in fact.name}
        assert relative == {"pitch_vs_speaker_st": 0.0, "loudness_vs_speaker_db": 0.0, "rate_vs_speaker": 1.0}


# ---- models in this process ------------------------------------------------------------------------------------------


def test_models_in_process_answer_in_batches_and_their_answers_are_stored(films, tmp_path, monkeypatch):
    vision = tiny_chat.write_llava_onevision(tmp_path / "onevision")
    audio = tiny_chat.write_qwen2_audio(tmp_path / "qwen2-audio")
    asked = []

    from affectgpt.chat.batches import Batcher
    from affectgpt.chat.local import TransformersChat

    answer, put = TransformersChat.answer, Batcher.put
    all_there = threading.Event()
    n_put = Counter()

    def counted(self, question):
        n_put[question.step] += 1
        if n_put["visual"] == 3:
            all_there.set()
        return put(self, question)

    def watched(self, requests, max_new_tokens):
        if self.name == str(vision):  # the first batch lasts until every clip has asked, on however slow a machine
            assert all_there.wait(60)
        asked.append((self.name, len(requests), {request.sound is not None for request in requests}))
        return answer(self, requests, max_new_tokens)

    monkeypatch.setattr(Batcher, "put", counted)
    monkeypatch.setattr(TransformersChat, "answer", watched)
    more = (
        "annotator=transformers",
        f"annotator.model='{vision}'",
        "annotator.structured=none",
        "annotator.max_tokens=4",
        "annotator.device=cpu",
        "annotator@audio=transformers",
        f"audio.model='{audio}'",
        "audio.sees=[sound]",
        "audio.structured=none",
        "audio.max_tokens=4",
        "audio.device=cpu",
        "pipeline.steps=[{name: measure}, {name: visual, annotator: vision, needs: [measure]}, "
        "{name: acoustic, annotator: audio, needs: [measure]}, {name: merge, needs: [visual, acoustic]}]",
    )
    out = tmp_path / "out"
    annotate(films, out, *more)
    answers = rows_of(out / "store" / "answers.jsonl")
    by_step = Counter(row["step"] for row in answers)
    assert by_step["visual"] >= 3
    assert by_step["acoustic"] >= 2
    assert {name for name, _, sound in asked if sound == {True}} == {str(audio)}
    assert max(n for _, n, _ in asked) > 1
    assert all(row["tokens_in"] > 0 for row in answers)
    n_before = len(asked)
    annotate(films, out, *more)
    assert len(asked) == n_before  # unusable answers are kept, too
    failed = {row["id"] for row in rows_of(out / "failed.jsonl")}
    assert {record.id for record in records_in(out)} | failed == {"film0", "film1", "film2"}


def test_a_model_of_random_weights_gives_every_clip_a_record_by_the_schema(films, tmp_path):
    pytest.importorskip("llguidance")
    out = tmp_path / "out"
    status = annotate(
        films,
        out,
        "annotator=transformers",
        f"annotator.model='{tiny_chat.write_llava_onevision(tmp_path / 'onevision')}'",
        "annotator.max_tokens=96",
        "annotator.device=cpu",
        "pipeline.steps=[{name: visual, annotator: vision}, {name: merge, needs: [visual]}, "
        "{name: labels, needs: [merge]}, {name: valence, needs: [merge]}]",
    )
    assert status == 0
    records = list(records_in(out))
    assert {record.id for record in records} == {"film0", "film1", "film2"}
    assert all(record.description["en"] and -5 <= record.valence <= 5 for record in records)
    answers = rows_of(out / "store" / "answers.jsonl")
    assert len(answers) == 4 * 3  # none had to be asked again
    assert all(isinstance(json.loads(row["text"]), dict) for row in answers)


def test_a_speech_recogniser_transcribes_clips_without_a_subtitle(tmp_path):
    whisper = tiny.write_whisper(tmp_path / "whisper")
    tiny.write_bpe_tokenizer(whisper, ["<|endoftext|>"], eos_token="<|endoftext|>")
    clips = write_clips(tmp_path / "clips", 2, subtitle=None)
    out = tmp_path / "out"
    annotate(clips, out, f"transcriber='{whisper}'")
    answers = rows_of(out / "store" / "answers.jsonl")
    assert [row["step"] for row in answers] == ["transcribe"] * 2
    for record in records_in(out):
        assert next(note for note in record.provenance if note.step == "transcribe").model == str(whisper)
        heard = next(row["text"] for row in answers if row["media_sha256"] == record.media_sha256)
        assert record.transcript == (heard.strip() or None)
    annotate(clips, out, f"transcriber='{whisper}'")
    assert len(rows_of(out / "store" / "answers.jsonl")) == 2


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_files_without_a_manifest_are_heard_in_the_language_of_the_run(tmp_path, lang):
    whisper = tiny.write_whisper(tmp_path / "whisper")
    tiny.write_bpe_tokenizer(whisper, ["<|endoftext|>"], eos_token="<|endoftext|>")
    folder = write_clips(tmp_path / "clips", 1).parent
    annotate(folder, tmp_path / "out", f"transcriber='{whisper}'", f"lang={lang}")
    (answer,) = rows_of(tmp_path / "out" / "store" / "answers.jsonl")
    assert answer["request"]["language"] == lang


def test_without_a_subtitle_and_a_recogniser_the_transcript_is_missing_and_counted(tmp_path, capsys):
    clips = write_clips(tmp_path / "clips", 2, subtitle=None)
    assert annotate(clips, tmp_path / "out") == 0
    assert "without       2  transcript" in capsys.readouterr().out
    assert {record.transcript for record in records_in(tmp_path / "out")} == {None}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["without"]["transcript"] == 2
    assert steps.STEPS["transcribe"] is steps.transcribe
