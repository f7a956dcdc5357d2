"""A stream has the text of the same request without streaming, and sends final text early."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from affectgpt import config as conf
from affectgpt.chat.local import load
from affectgpt.chat.request import Reply
from affectgpt.engine import generation
from affectgpt.serve.models import ChatModel
from tests.chat import tiny_chat
from tests.serve.conftest import Slow, ask, asking, running, text, video

ANSWERS = ("她笑了，也许他很累😀。 还好 …", "sad", "She smiles: 她笑了。\n\n It is a naïve smile, I think. ", "")


def pieces_of(chunks) -> list[str]:
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]


def test_a_stream_has_the_same_answer_in_events(client):
    whole = ask(client, video("clip0.mp4"))
    chunks = list(ask(client, video("clip0.mp4"), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(pieces_of(chunks)) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].affectgpt == whole.affectgpt
    assert chunks[-1].usage == whole.usage


@pytest.fixture
def scripted(served, monkeypatch):
    """Lets the model write `ANSWERS`, by the length of the prompt; the fourth step of a batch waits for `go`."""
    go, tokenizer = threading.Event(), served._processor.tokenizer
    head = served._model.language_model.get_output_embeddings()
    scripts = [
        [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for answer in ANSWERS
    ]
    read, step, product = generation._Rows.prefill, generation._Rows.step, generation.layers.linear_layer
    by_key, following, n_steps = {}, [], [0]

    def read_scripted(self, prompts):
        n_steps[0] = 0
        by_key.update({prompt.key: scripts[len(prompt.embeds) % len(scripts)] for prompt in prompts})
        states = read(self, prompts)
        following[:] = [by_key[prompt.key][0] for prompt in prompts]
        return states

    def step_scripted(self, *args):
        n_steps[0] += 1
        assert n_steps[0] != 4 or go.wait(20)
        states = step(self, *args)
        following[:] = [by_key[row.key][len(row.tokens)] for row in self.active]
        return states

    def product_scripted(linear, states):
        if linear is not head:
            return product(linear, states)
        return torch.nn.functional.one_hot(torch.tensor(following), linear.weight.shape[0]).float()

    monkeypatch.setattr(generation._Rows, "prefill", read_scripted)
    monkeypatch.setattr(generation._Rows, "step", step_scripted)
    monkeypatch.setattr(generation.layers, "linear_layer", product_scripted)
    return go


def test_answers_of_a_batch_arrive_in_whole_characters_before_they_are_complete(served, scripted):
    questions = ["Hm?" + " a" * n for n in range(8)]

    def stream(question):
        """The pieces; `scripted` goes on once every client that gets a text at all has read of it."""
        pieces = []
        for chunk in ask(client, text(question), stream=True):
            if new := pieces_of([chunk]):
                pieces += new
                if len(pieces) == 1:
                    begun.release()
        return pieces

    begun = threading.Semaphore(0)
    config = {"max_new_tokens": 100, "max_wait_ms": 5000, "max_batch": len(questions)}
    with running(served, config=config) as (client, url), ThreadPoolExecutor(len(questions)) as pool:
        streams = [pool.submit(stream, question) for question in questions]
        for _ in range(3):  # some of at least two answers
            assert begun.acquire(timeout=20)
        assert httpx.get(f"{url}/health").json()["answered"] == 0  # the model waits in its fourth step
        scripted.set()
        streamed = [each.result() for each in streams]
        plain = list(pool.map(lambda question: ask(client, text(question)).choices[0].message.content, questions))
    assert set(plain) == {answer.strip() for answer in ANSWERS}
    assert ["".join(pieces) for pieces in streamed] == plain
    assert all(len(pieces) > 2 for pieces, whole in zip(streamed, plain, strict=True) if len(whole) > 5)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(plain)


def test_a_sampled_stream_has_the_text_of_its_seed(client):
    how = {"temperature": 1.5, "seed": 5, "max_tokens": 40}
    whole = ask(client, video("clip0.mp4"), **how).choices[0].message.content
    pieces = pieces_of(ask(client, video("clip0.mp4"), stream=True, **how))
    assert "".join(pieces) == whole
    assert len(pieces) > 3


def test_another_chat_model_streams_too(tmp_path):
    chat = load(tiny_chat.write_qwen2_5_omni(tmp_path), device="cpu")
    config = {"name": "tiny", "max_new_tokens": 40}
    questions = ["How is she?", "Why?"]
    with (
        running(ChatModel(chat, conf.ServeConfig(**config)), config=config) as (client, _),
        ThreadPoolExecutor(2) as pool,
    ):
        whole = list(pool.map(lambda words: ask(client, text(words)).choices[0].message.content, questions))
        streamed = list(pool.map(lambda words: pieces_of(ask(client, text(words), stream=True)), questions))
    assert ["".join(pieces) for pieces in streamed] == whole
    assert all(len(pieces) > 3 for pieces in streamed)


def test_a_failure_in_a_stream_is_an_error_of_the_client():
    slow = Slow()
    slow.go.set()
    with running(slow) as (client, _), pytest.raises(openai.APIError, match="a bad question"):
        list(ask(client, text("bad"), stream=True))


class Stumbling(Slow):
    """Tells a first word of each answer, then fails where several are asked together; alone it answers `answer`."""

    answer = "calm, happy"

    def generate(self, items):
        for item in items:
            item.on_text("calm," if len(items) > 1 else "ca")
        time.sleep(0.1)  # so that it is sent
        if len(items) > 1:
            raise ValueError("stumbled")
        return [Reply(self.answer, 1, 1, "eos", {})]


@pytest.mark.parametrize("answer", ["calm, happy", "sad"])
def test_a_retried_batch_repeats_nothing_and_reports_another_answer(answer):
    served = Stumbling()
    served.answer = answer
    with running(served, config={"max_batch": 2, "max_wait_ms": 5000}) as (_, url), ThreadPoolExecutor(2) as pool:
        post = lambda word: httpx.post(f"{url}/v1/chat/completions", json=asking(text(word), stream=True)).text  # noqa: E731
        for events in pool.map(post, ("a", "b")):
            lines = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
            said = "".join(row["choices"][0]["delta"].get("content", "") for row in lines if "choices" in row)
            if answer == "sad":
                assert said == "calm,"
                assert "gave another answer; send the request again" in lines[-1]["error"]["message"]
            else:
                assert said == answer
                assert lines[-1]["choices"][0]["finish_reason"] == "stop"
            assert events.endswith("data: [DONE]\n\n")
