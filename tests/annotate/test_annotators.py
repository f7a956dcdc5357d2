"""Keys of stored answers, and models that refuse a parameter or fail in this process."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import numpy as np
import pytest

from affectgpt.annotate import annotators
from affectgpt.annotate.annotators import Budget, Question, make_annotator
from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.store import Store
from affectgpt.chat.concurrency import Stopped, StopSignal
from affectgpt.chat.request import Reply
from affectgpt.config import AnnotatorConfig
from affectgpt.runtime import InputError, MissingLibrary, UserError
from affectgpt.schema import Sample
from tests.annotate.conftest import annotate, rows_of, served, write_sound
from tests.chat.chat_server import ChatServer, fill_in
from tests.chat.test_transport import newer

CLIP = ClipMedia(Sample(id="a", video="a.mp4"), "f" * 64)
SHOWN = Question(
    "visual", "What?", {"type": "object"}, CLIP, {"images": {"n_frames": 3}, "sound": {}}, (("no", "JSON"),)
)
PLAIN = Question("merge", "What?", {"type": "object"}, CLIP)


@pytest.mark.parametrize(
    ("question", "settings", "key"),
    [
        (PLAIN, {"kind": "openai", "seed": 1, "extra": {"top_p": 1}}, "5ac3fcec"),
        (PLAIN, {"kind": "openai", "seed": 1, "extra": {"top_p": 1}, "structured": "json_object"}, "d4122295"),
        (PLAIN, {"kind": "openai", "seed": 1, "extra": {"top_p": 1}, "structured": "prompt"}, "4750697e"),
        (SHOWN, {"kind": "openai"}, "922084a0"),
        (SHOWN, {"kind": "transformers", "structured": "prompt"}, "b8cfc8f4"),
        (SHOWN, {"kind": "transformers"}, "d59f1a6b"),
    ],
)
def test_a_question_has_the_key_of_earlier_releases(question, settings, key, tmp_path, monkeypatch):
    """With changed keys, paid questions would be asked again; those about pictures are, since the pictures changed."""
    found = []

    async def get_or_make(rows, claims, key, make):
        found.append(key)
        return {}, False

    async def main():
        store, stop = Store(tmp_path), StopSignal()
        config = AnnotatorConfig(model="m", base_url="http://x", **settings)
        await make_annotator(config, store, stop, Budget(None, store, stop)).answer(question)

    monkeypatch.setattr(annotators, "get_or_make", get_or_make)
    asyncio.run(main())
    assert found[0].startswith(key)


@pytest.mark.parametrize(("seconds", "budget", "is_asked"), [(5, 400, True), (60, 400, False), (60, 2000, True)])
def test_the_most_that_a_call_can_cost_depends_on_how_long_its_sound_is(seconds, budget, is_asked, tmp_path):
    path = write_sound(tmp_path / "a.wav", np.zeros(16000 * seconds))
    clip = ClipMedia(Sample("a", audio=str(path), modalities=("audio",)), "f" * 64)
    prices = {"price_in": 1e6, "price_out": 0.0}  # the cost is the number of tokens: 25 for a second, and the text
    with ChatServer() as server:
        server.answer = lambda body: "{}"

        async def main():
            store, stop = Store(tmp_path / "out"), StopSignal()
            config = AnnotatorConfig(kind="openai", model="m", base_url=server.url, **prices)
            annotator = make_annotator(config, store, stop, Budget(budget, store, stop))
            question = Question("acoustic", "What?", {"type": "object"}, clip, {"sound": {}})
            with contextlib.nullcontext() if is_asked else pytest.raises(Stopped, match="budget"):
                await annotator.answer(question)
            await annotator.close()

        asyncio.run(main())
        assert len(server.requests) == is_asked


def test_a_model_that_refuses_parameters_is_asked_without_them_under_the_same_keys(clips, tmp_path):
    out = tmp_path / "out"
    with ChatServer(fill_in, choose=newer) as server:
        assert annotate(clips, out, *served(server.url)) == 0
        assert server.n_answered == len(rows_of(out / "store" / "answers.jsonl"))
        n = len(server.requests)
        assert annotate(clips, out, *served(server.url)) == 0
        assert len(server.requests) == n
    for row in rows_of(out / "store" / "answers.jsonl"):
        assert row["request"]["max_tokens"] == 1024
        assert row["adapted"] == {"max_tokens": "max_completion_tokens", "temperature": None}
    assert len(list(records_in(out))) == 4


def in_process(tmp_path, *questions, answer):
    """Answers or errors to questions that wait together; `answer` stands in for the model."""

    class Fake:
        sees, n_frames, rate_hz, max_sound_s = frozenset(), None, None, None

        def answer(self, requests, max_new_tokens):
            return [answer(request) for request in requests]

    async def main():
        store, stop = Store(tmp_path), StopSignal()
        config = AnnotatorConfig(kind="transformers", model="m", structured="prompt")
        annotator = make_annotator(config, store, stop, Budget(None, store, stop))
        annotator._chat = Fake()
        rows = await asyncio.gather(*map(annotator.answer, questions), return_exceptions=True)
        await annotator.close()
        return rows

    return asyncio.run(main())


def test_one_bad_question_of_a_batch_fails_alone_and_a_bug_stays_a_bug(tmp_path):
    def answer(request):
        if request.prompt == "bad":
            raise InputError("a bad clip")
        return Reply(request.prompt.upper() + str({}["key"]) if request.prompt == "bug" else "fine", 1, 1, "eos")

    asked = [Question("merge", text, {}, CLIP) for text in ("good", "bad", "bug")]
    good, bad, bug = in_process(tmp_path, *asked, answer=answer)
    assert good[0]["text"] == "fine"
    assert isinstance(bad, InputError)
    assert isinstance(bug, KeyError)
    assert len(rows_of(tmp_path / "store" / "answers.jsonl")) == 1


def test_a_model_in_this_process_needs_the_library_of_its_form_before_anything_is_asked(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    asked = ("annotator=transformers", "annotator.model=m")
    with pytest.raises(
        MissingLibrary, match=r"annotator.structured=json_schema needs llguidance .*affectgpt\[structured"
    ):
        annotate(clips, tmp_path / "out", *asked)
    with pytest.raises(UserError, match=r"annotator.structured is 'yaml'; expected one of"):
        annotate(clips, tmp_path / "out", *asked, "annotator.structured=yaml")


def test_a_user_annotator_is_named_by_module_and_class(clips, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_annotators.py").write_text(
        """
from affectgpt.annotate.annotators import Local


class Echo(Local):
    asks_model = True
    name = "echo"

    async def answer(self, question):
        text = '{"clue": "The voice is low.", "evidence": []}'
        return {"text": text, "tokens_in": 1, "tokens_out": 1, "seconds": 0.0}, True
""",
        encoding="utf-8",
    )
    steps = "pipeline.steps=[{name: measure}, {name: acoustic, annotator: audio, needs: [measure]}]"
    assert annotate(clips, tmp_path / "out", "annotator.kind=my_annotators:Echo", steps) == 0
    assert {clue.source for record in records_in(tmp_path / "out") for clue in record.clues} == {"echo"}
    with pytest.raises(UserError, match=r"annotator.kind is 'gpt'; expected one of \['local', 'openai', 'tran"):
        annotate(clips, tmp_path / "other", "annotator.kind=gpt")
