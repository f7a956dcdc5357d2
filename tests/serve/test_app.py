"""The server over HTTP: authentication, limits, batches, and the clients of this project."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest

from affectgpt import config as conf
from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
from affectgpt.media import Waveform, read_frames
from tests.serve.conftest import N, Slow, ask, asking, error_of, running, text, video, wait_for


def test_models_and_health_are_reported(server):
    client, url = server
    (model,) = client.models.list().data
    assert (model.id, model.sees) == ("tiny", ["audio", "frames", "motion"])
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'huge' is not served here; expected 'tiny'"):
        client.models.retrieve("huge")
    assert httpx.get(f"{url}/health").json()["status"] == "ok"


def test_other_content_types_and_addresses_get_errors_of_the_same_form(server):
    status, error = error_of(server[1], asking(text("a")), **{"Content-Type": "text/plain"})
    assert (status, error["message"]) == (415, "Content-Type is 'text/plain'; expected application/json")
    reply = httpx.get(f"{server[1]}/v1/completions")
    assert reply.status_code == 404
    assert "POST /v1/chat/completions" in reply.json()["error"]["message"]


def test_with_a_key_only_clients_that_send_it_are_answered(served):
    with running(served, api_key="säcret") as (_, url):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic säcret".encode()}):
            assert httpx.get(f"{url}/v1/models", headers=header).status_code == 401
        status, error = error_of(url, asking(text("a")))
        assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
        assert "AFFECTGPT_API_KEY" in error["message"]
        reply = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer säcret".encode()})
        assert reply.status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_full_server_says_when_to_retry_and_the_client_does(tmp_path):
    slow = Slow()
    with running(slow, config={"max_requests": 2}) as (client, url), ThreadPoolExecutor(3) as pool:
        first = [pool.submit(ask, client, text(word)) for word in ("a", "b")]
        wait_for(url, requests=2)
        reply = httpx.post(f"{url}/v1/chat/completions", json=asking(text("c")))
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        assert reply.json()["error"]["type"] == "rate_limit_error"
        patient = ChatClient("tiny", base_url=f"{url}/v1", cache=tmp_path / "c.jsonl", backoff_s=0.05)
        third = pool.submit(patient.answer, [Request("c")])
        time.sleep(0.2)
        slow.go.set()
        assert [item.result().choices[0].message.content for item in first] == ["A", "B"]
        assert third.result()[0].text == "C"
        wait_for(url, requests=0)


def test_a_request_whose_client_has_disconnected_is_not_generated():
    slow = Slow()
    with running(slow, config={"max_batch": 1}) as (client, url), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, client, text("first"))
        wait_for(url, requests=1, waiting=0)
        with pytest.raises(openai.APITimeoutError):
            ask(client, text("gone"), timeout=0.3)
        wait_for(url, requests=1)
        slow.go.set()
        first.result()
    assert slow.batches == [["first"]]


def test_the_chat_client_of_this_project_is_answered(server, manifest, tmp_path):
    client = ChatClient("tiny", base_url=f"{server[1]}/v1", cache=tmp_path / "c.jsonl", max_tokens=N)
    images = read_frames(manifest.parent / "clip0.mp4", 1).images
    sound = Waveform(np.zeros(4000, np.float32), 16000, 0.25, 16000, 1)
    answers = client.answer([Request(f"Question {number}?", images, sound=sound) for number in range(4)])
    assert len(answers) == client.n_asked == 4
    assert {answer.finish for answer in answers} <= {"eos", "length"}


def test_the_zero_shot_command_asks_it_like_any_server(server, manifest, tmp_path):
    from affectgpt.zeroshot.run import run

    config = conf.ZeroShotConfig(manifest=str(manifest), split="test", out=str(tmp_path / "p.jsonl"))
    config.ask = conf.AskConfig(model="tiny", base_url=f"{server[1]}/v1", max_new_tokens=N, n_frames=2)
    config.paths = conf.PathsConfig(cache=str(tmp_path))
    assert run(config) == 0
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 3


def test_the_annotation_command_asks_it_for_clues(server, manifest, tmp_path):
    from affectgpt.annotate.run import run_annotation
    from affectgpt.cli import compose

    out = tmp_path / "out"
    steps = "[{name: measure}, {name: visual, annotator: vision, needs: [measure]}]"
    settings = [f"input=['{manifest}']", f"out='{out}'", "limit=2", f"pipeline.steps={steps}", "annotator=openai"]
    settings += ["annotator.model=tiny", f"annotator.base_url={server[1]}/v1", "annotator.structured=none"]
    run_annotation(compose("annotate", [*settings, f"annotator.max_tokens={N}"]))
    answers = [json.loads(line) for line in (out / "store" / "answers.jsonl").read_text().splitlines()]
    assert {row["step"] for row in answers} >= {"visual"}
    assert all(row["answered_by"] == "tiny" and row["tokens_out"] > 0 for row in answers)
    assert "HTTP" not in "".join(path.read_text() for path in out.glob("failed.jsonl"))


def test_requests_that_arrive_together_share_batches_and_get_the_answers_they_get_alone(server, inferred):
    client, url = server
    before = httpx.get(f"{url}/health").json()
    with ThreadPoolExecutor(12) as pool:
        names = [f"clip{number}" for number in range(12)]
        answers = pool.map(lambda name: ask(client, video(f"{name}.mp4"), affectgpt={"subtitle": "I see."}), names)
        texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [inferred[name]["text"] for name in names]
    after = httpx.get(f"{url}/health").json()
    assert after["answered"] - before["answered"] == 12
    assert after["batches"] - before["batches"] < 12
    assert 1 < after["largest_batch"] <= 8


def test_one_bad_request_of_a_batch_fails_alone():
    slow = Slow()
    with running(slow, config={"max_wait_ms": 300}) as (client, _), ThreadPoolExecutor(3) as pool:
        slow.go.set()
        answers = [pool.submit(ask, client, text(word)) for word in ("good", "bad", "broken")]
        assert answers[0].result().choices[0].message.content == "GOOD"
        with pytest.raises(openai.BadRequestError, match="a bad question"):
            answers[1].result()
        with pytest.raises(openai.InternalServerError, match="see the log of the server"):
            answers[2].result()
    assert max(map(len, slow.batches)) == 3


class Buggy(Slow):
    def prepare(self, ask, files):
        raise ValueError("too many values to unpack")


def test_a_bug_while_a_request_is_prepared_is_an_internal_error_not_a_bad_request(caplog):
    with running(Buggy()) as (client, _), pytest.raises(openai.InternalServerError, match="see the log of the server"):
        ask(client, text("a"))
