"""The chat client against a real local server: retries, back-off, cache, kill and resume, secrets."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectgpt.chat.served import ChatClient, ChatError, Media
from affectgpt.prompts import Message
from tests.chat.chat_server import ChatServer

SECRET = "sk-test-0123456789abcdef"


@pytest.fixture
def server():
    with ChatServer() as running:
        yield running


@pytest.fixture(autouse=True)
def no_proxy_and_a_key(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def client(server, tmp_path, **options):
    options = {"backoff_s": 0.01, "timeout_s": 5.0, **options}
    return ChatClient("toy", base_url=server.url, cache=tmp_path / "answers.jsonl", **options)


def ask(text):
    return [Message("user", text)]


def test_answers_come_in_the_order_of_the_questions(server, tmp_path):
    server.delay_s = 0.01
    answers = client(server, tmp_path).ask_all([ask(f"q{i}") for i in range(20)])
    assert [answer.text for answer in answers] == [f"Q{i}" for i in range(20)]
    assert server.requests[0]["temperature"] == 0.0


def test_equal_requests_are_made_once_and_a_second_run_makes_none(server, tmp_path):
    one = client(server, tmp_path)
    one.ask_all([ask("a"), ask("b"), ask("a")])
    again = client(server, tmp_path)
    assert [answer.cached for answer in again.ask_all([ask("b"), ask("a")])] == [True, True]
    assert len(server.requests) == 2
    assert (one.stats.calls, again.stats.calls, again.stats.cached) == (2, 0, 2)
    assert (one.stats.prompt_tokens, one.stats.completion_tokens) == (6, 4)


@pytest.mark.parametrize(
    "change", [{"temperature": 0.5}, {"max_tokens": 7}, {"seed": 1}], ids=["temperature", "max_tokens", "seed"]
)
def test_any_change_of_the_request_is_another_key(server, tmp_path, change):
    client(server, tmp_path).ask(ask("a"))
    client(server, tmp_path, **change).ask(ask("a"))
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, 408, "hang up", "no json", "no choices"])
def test_a_passing_fault_is_retried(server, tmp_path, fault):
    server.faults = [fault, fault]
    asking = client(server, tmp_path)
    assert asking.ask(ask("a")).text == "A"
    assert asking.stats.retries == 2
    assert len(server.requests) == 3


def test_a_time_out_is_retried(server, tmp_path):
    server.faults = ["slow"]
    assert client(server, tmp_path, timeout_s=0.2).ask(ask("a")).text == "A"
    assert len(server.requests) == 2


def test_waits_grow_and_retry_after_is_obeyed(server, tmp_path):
    server.faults = [500, 500, 500]
    client(server, tmp_path, backoff_s=0.1).ask(ask("a"))
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert waits[0] >= 0.05
    assert waits[2] >= 0.2
    server.times.clear()
    server.faults = [("retry-after", 0.4)]
    client(server, tmp_path).ask(ask("b"))
    assert server.times[1] - server.times[0] >= 0.4


def test_a_lasting_fault_is_an_error_that_counts_and_keeps_the_other_answers(server, tmp_path):
    server.answer = lambda body: body["messages"][0]["content"]
    server.faults = [500] * 3
    asking = client(server, tmp_path, max_retries=2, concurrency=1)
    with pytest.raises(
        ChatError, match=r"1 of 3 requests to toy at http://127.* failed; first: HTTP 500.* after 3 attempts"
    ) as error:
        asking.ask_all([ask("a"), ask("b"), ask("c")])
    assert "2 new answers are in" in str(error.value)
    assert client(server, tmp_path).ask_all([ask("a"), ask("b"), ask("c")])[1].cached
    assert [body["messages"][0]["content"] for body in server.requests] == ["a", "a", "a", "b", "c", "a"]


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_hopeless_fault_is_not_retried_and_stops_the_rest(server, tmp_path, status):
    server.faults = [status]
    with pytest.raises(ChatError, match=rf"HTTP {status}.*check model, base_url and \$OPENAI_API_KEY"):
        client(server, tmp_path, concurrency=1).ask_all([ask(str(i)) for i in range(20)])
    assert len(server.requests) == 1


def test_requests_run_concurrently_but_not_more_than_asked(server, tmp_path):
    server.delay_s = 0.05
    client(server, tmp_path, concurrency=4).ask_all([ask(str(i)) for i in range(16)])
    assert server.most_in_flight == 4


def test_the_key_is_sent_and_never_written_or_shown(server, tmp_path, caplog):
    caplog.set_level("DEBUG")
    server.faults = [401]  # the server's message repeats the key
    with pytest.raises(ChatError) as error:
        client(server, tmp_path).ask(ask("a"))
    assert server.keys[0] == f"Bearer {SECRET}"
    assert SECRET not in str(error.value)
    client(server, tmp_path).ask(ask("a"))
    assert SECRET not in (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert SECRET not in caplog.text


def test_no_key_is_fine_for_a_local_server_and_an_error_for_openai(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert client(server, tmp_path).ask(ask("a")).text == "A"
    with pytest.raises(ChatError, match="OPENAI_API_KEY is not set; set it, or name a server by base_url"):
        ChatClient("m", cache=None).ask(ask("a"))


def test_offline_answers_from_the_file_only(server, tmp_path):
    client(server, tmp_path).ask(ask("a"))
    offline = ChatClient("toy", cache=tmp_path / "answers.jsonl", offline=True)
    assert offline.ask(ask("a")).text == "A"
    with pytest.raises(ChatError, match=r"1 of 1 answers of 'toy' are not in .* and offline is set"):
        offline.ask(ask("b"))


def test_a_half_written_last_line_is_cut_off_and_asked_again(server, tmp_path):
    client(server, tmp_path, concurrency=1).ask_all([ask("a"), ask("b")])
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    answers = client(server, tmp_path).ask_all([ask("a"), ask("b")])
    assert [answer.cached for answer in answers] == [True, False]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


SCRIPT = """
import sys
from affectgpt.chat.served import ChatClient
from affectgpt.prompts import Message
chat = ChatClient("toy", base_url=sys.argv[1], cache=sys.argv[2], concurrency=2)
chat.ask_all([[Message("user", f"question {i}")] for i in range(40)])
"""


def test_killed_and_resumed_makes_exactly_the_missing_calls(server, tmp_path):
    server.delay_s = 0.03
    cache = tmp_path / "answers.jsonl"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT, server.url, str(cache)]
    process = subprocess.Popen(command, cwd=root)
    while not cache.exists() or len(cache.read_bytes().splitlines()) < 10:
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    kept = {json.loads(line)["request"]["messages"][0]["content"] for line in cache.read_text().splitlines()}
    assert 10 <= len(kept) < 40
    before = len(server.requests)
    subprocess.run(command, cwd=root, check=True)
    asked = [body["messages"][0]["content"] for body in server.requests[before:]]
    assert sorted(asked) == sorted({f"question {i}" for i in range(40)} - kept)
    assert len(cache.read_text().splitlines()) == 40


def test_a_small_model_behind_the_server_of_transformers_answers(tmp_path):
    pytest.importorskip(
        "fastapi", reason="`transformers serve` needs fastapi and uvicorn: pip install transformers[serving]"
    )
    pytest.importorskip("uvicorn")
    from tests.models.tiny import write_qwen2

    model = str(write_qwen2(tmp_path / "model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        chat = ChatClient(
            model, base_url=f"http://127.0.0.1:{port}/v1", cache=tmp_path / "a.jsonl", max_tokens=4, timeout_s=60
        )
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        first = chat.ask_all([ask("hello"), ask("bye")])
        assert [answer.cached for answer in first] == [False, False]
        assert [answer.text for answer in chat.ask_all([ask("hello"), ask("bye")])] == [a.text for a in first]
        assert chat.stats.calls == 2
    finally:
        process.terminate()
        process.wait()


def test_pictures_and_sound_are_sent_as_parts_and_kept_as_hashes(server, tmp_path):
    frame = np.full((40, 60, 3), 200, np.uint8)
    tone = np.sin(np.arange(1600) / 5).astype(np.float32) * 2  # beyond full scale
    turn = ("user", [Media.picture(frame, longest_px=30), "What is this?", Media.sound(tone, 16000)])
    server.answer = lambda body: "+".join(part["type"] for part in body["messages"][0]["content"])
    one = client(server, tmp_path)
    assert one.ask([turn]).text == "image_url+text+input_audio"
    assert one.ask([turn]).cached

    image, text, sound = server.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (30, 20)
    with wave.open(io.BytesIO(base64.b64decode(sound["input_audio"]["data"]))) as heard:
        assert (heard.getframerate(), heard.getnchannels(), heard.getnframes()) == (16000, 1, 1600)

    written = (tmp_path / "answers.jsonl").read_text()
    assert data not in written
    assert '"sha256"' in written
    other = ("user", [Media.picture(frame // 2, longest_px=30), *turn[1][1:]])
    assert not client(server, tmp_path).ask([other]).cached
    assert client(server, tmp_path, offline=True).ask([turn]).cached
