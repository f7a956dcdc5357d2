"""Many requests to a real local server: order, log, kill and resume."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
from affectgpt.chat.transport import ChatError
from affectgpt.media import Waveform
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


def texts(chat, *prompts):
    return [reply.text for reply in chat.answer([Request(prompt) for prompt in prompts])]


def ask(chat, prompt):
    return texts(chat, prompt)[0]


def rows(tmp_path):
    return [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_answers_come_in_the_order_of_the_questions(server, tmp_path):
    server.delay_s = 0.01
    assert texts(client(server, tmp_path), *(f"q{i}" for i in range(20))) == [f"Q{i}" for i in range(20)]
    assert server.requests[0]["temperature"] == 0.0


def test_equal_requests_are_made_once_and_a_second_run_makes_none(server, tmp_path):
    one = client(server, tmp_path)
    assert texts(one, "a", "b", "a") == ["A", "B", "A"]
    again = client(server, tmp_path)
    assert texts(again, "b", "a") == ["B", "A"]
    assert len(server.requests) == 2
    assert (one.n_asked, again.n_asked, again.n_cached) == (2, 0, 2)


def test_another_limit_is_another_key(server, tmp_path):
    chat = client(server, tmp_path)
    for n in (None, 7, 512):  # 512 is the default
        chat.answer([Request("a")], n)
    assert [body["max_tokens"] for body in server.requests] == [512, 7]


def test_a_row_has_the_key_and_the_fields_of_earlier_releases(server, tmp_path):
    """A changed key would ask paid questions again."""
    ask(client(server, tmp_path), "What is this?")
    (row,) = rows(tmp_path)
    assert row["key"] == "74a6a84a3a9b11d691fbf7ad7d2899b21873fc22abcf4b5cc4a39cb683f5a073"
    assert row["request"] == server.requests[0]
    assert set(row["request"]) == {"model", "messages", "temperature", "max_tokens"}
    assert list(row) == ["key", "request", "text", "finish", "answered_by", "server", "time"]
    assert (row["text"], row["finish"], row["answered_by"]) == ("WHAT IS THIS?", "stop", "toy-served")
    assert row["server"] == f"toy at {server.url}"


def test_a_request_that_keeps_failing_is_counted_and_the_other_answers_are_kept(server, tmp_path):
    server.faults = [500] * 3
    asking = client(server, tmp_path, max_retries=2, concurrency=1)
    with pytest.raises(
        ChatError, match=r"1 of 3 requests to toy at http://127.* failed; first: HTTP 500: .* \(3 attempts\)"
    ) as error:
        texts(asking, "a", "b", "c")
    assert "2 new answers are in" in str(error.value)
    assert texts(client(server, tmp_path), "a", "b", "c") == ["A", "B", "C"]
    assert [body["messages"][0]["content"] for body in server.requests] == ["a", "a", "a", "b", "c", "a"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_error_of_every_request_is_not_retried_and_stops_the_rest(server, tmp_path, status):
    server.faults = [status]
    with pytest.raises(ChatError, match=rf"toy at .*HTTP {status}.*check model, base_url and \$OPENAI_API_KEY"):
        texts(client(server, tmp_path, concurrency=1), *map(str, range(20)))
    assert len(server.requests) == 1


def test_a_request_that_the_server_refuses_fails_alone(server, tmp_path):
    server.faults = [400]
    with pytest.raises(ChatError, match=r"1 of 3 requests .* first: HTTP 400: fault 400 for .* \(1 attempt\)"):
        texts(client(server, tmp_path, concurrency=1), "a", "b", "c")
    assert [row["text"] for row in rows(tmp_path)] == ["B", "C"]


def test_requests_run_concurrently_up_to_the_limit(server, tmp_path):
    server.delay_s = 0.05
    texts(client(server, tmp_path, concurrency=4), *map(str, range(16)))
    assert server.most_in_flight == 4


def test_the_key_is_sent_and_never_written_or_shown(server, tmp_path, caplog):
    caplog.set_level("DEBUG")
    caplog.set_level("DEBUG", logger="affectgpt")
    server.faults = [500, 401]  # the server's message repeats the key
    with pytest.raises(ChatError) as error:
        ask(client(server, tmp_path), "a")
    assert server.keys[0] == f"Bearer {SECRET}"
    assert SECRET not in str(error.value)
    ask(client(server, tmp_path), "a")
    assert SECRET not in (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert "fault 500 for Bearer ***" in caplog.text
    assert SECRET not in caplog.text


def test_no_key_is_fine_for_a_local_server_and_an_error_for_openai(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(client(server, tmp_path), "a") == "A"
    with pytest.raises(ChatError, match="OPENAI_API_KEY is not set; set it, or name a server by base_url"):
        ask(ChatClient("m", cache=tmp_path / "answers.jsonl"), "a")


def test_offline_answers_from_the_file_only(server, tmp_path):
    ask(client(server, tmp_path), "a")
    offline = ChatClient("toy", cache=tmp_path / "answers.jsonl", offline=True)
    assert ask(offline, "a") == "A"
    with pytest.raises(ChatError, match=r"1 of 1 answers of 'toy' are not in .* and offline is set"):
        ask(offline, "b")
    with pytest.raises(ChatError, match="offline is set"):
        ask(ChatClient("toy", cache=tmp_path / "other" / "answers.jsonl", offline=True), "a")
    assert not (tmp_path / "other").exists()


def test_a_half_written_last_line_is_cut_off_and_asked_again(server, tmp_path):
    texts(client(server, tmp_path, concurrency=1), "a", "b")
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    asking = client(server, tmp_path)
    assert texts(asking, "a", "b") == ["A", "B"]
    assert (asking.n_cached, asking.n_asked) == (1, 1)
    assert len(rows(tmp_path)) == 2


def test_it_works_inside_a_running_event_loop_as_in_a_notebook(server, tmp_path):
    import asyncio

    async def cell():
        return ask(client(server, tmp_path), "a")

    assert asyncio.run(cell()) == "A"


def test_an_interrupt_awaits_the_requests_in_flight_and_sends_no_more(server, tmp_path):
    main = threading.get_ident()
    all_in_flight = threading.Barrier(4, action=lambda: signal.pthread_kill(main, signal.SIGINT))
    server.answer = lambda body: str(all_in_flight.wait(60))
    with pytest.raises(KeyboardInterrupt):
        texts(client(server, tmp_path, concurrency=4), *map(str, range(40)))
    assert len(rows(tmp_path)) == len(server.requests) == 4


SCRIPT = """
import sys
from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
chat = ChatClient("toy", base_url=sys.argv[1], cache=sys.argv[2], concurrency=2)
chat.answer([Request(f"question {i}") for i in range(40)])
"""


def test_killed_and_resumed_makes_exactly_the_missing_calls(server, tmp_path):
    stored = threading.Semaphore(12)  # requests that are answered before the kill
    server.answer = lambda body: str(stored.acquire(timeout=60))
    cache = tmp_path / "answers.jsonl"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT, server.url, str(cache)]
    process = subprocess.Popen(command, cwd=root)
    while not cache.exists() or len(cache.read_bytes().splitlines()) < 10:
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stored.release(100)
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
        first = texts(chat, "hello", "bye")
        assert texts(chat, "hello", "bye") == first
        assert (chat.n_asked, chat.n_cached) == (2, 2)
    finally:
        process.terminate()
        process.wait()


def test_images_and_sound_are_sent_as_parts_and_kept_as_hashes(server, tmp_path):
    frame = np.full((40, 60, 3), 200, np.uint8)
    tone = Waveform(np.sin(np.arange(1600) / 5).astype(np.float32) * 2, 16000, 0.1, 16000, 1)  # beyond full scale
    server.answer = lambda body: "+".join(part["type"] for part in body["messages"][0]["content"])
    one = client(server, tmp_path, longest_px=30)
    request = Request("What is this?", images=frame[None], sound=tone)
    assert [one.answer([request])[0].text for _ in range(2)] == ["image_url+input_audio+text"] * 2
    assert one.n_cached == 1

    image, sound, text = server.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (30, 20)
    with wave.open(io.BytesIO(base64.b64decode(sound["input_audio"]["data"]))) as heard:
        assert (heard.getframerate(), heard.getnchannels(), heard.getnframes()) == (16000, 1, 1600)

    written = (tmp_path / "answers.jsonl").read_text()
    assert data not in written
    assert '"sha256"' in written
    client(server, tmp_path, longest_px=30).answer([Request("What is this?", images=frame[None] // 2, sound=tone)])
    assert len(server.requests) == 2
    client(server, tmp_path, longest_px=30, offline=True).answer([request])


def test_a_system_message_and_earlier_turns_are_sent_in_their_roles(server, tmp_path):
    client(server, tmp_path).answer([Request("One?", system="Be brief.", turns=("1", "Two?"))])
    sent = [(message["role"], message["content"]) for message in server.requests[0]["messages"]]
    assert sent == [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?")]
