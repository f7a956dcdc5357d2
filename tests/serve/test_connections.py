"""Clients that send headers or bodies slowly, or read nothing, cannot lock out others: real sockets, a real process."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from affectgpt.serve import bodies, connections
from tests.serve.conftest import Slow, ask, asking, running, text

ROOT = Path(__file__).parents[2]
HALF = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "
# The command, with a model that needs no loading and a shorter time-out.
SERVER = """
import sys
from affectgpt.cli import main
from affectgpt.serve import command, connections
from tests.serve.conftest import Slow
connections.HEADER_TIMEOUT_S = float(sys.argv.pop(1))
command.load_served = lambda config: (served := Slow(), served.go.set())[0]
main("serve")
"""


def address_of(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def connect(url: str, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address_of(url), timeout=60)
    connection.sendall(data)
    return connection


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    data = b""
    try:
        while part := connection.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


def send_until_closed(connection: socket.socket, byte: bytes) -> None:
    """A byte each tenth of a second, until the server closes the connection."""
    for _ in range(300):
        time.sleep(0.1)
        try:
            connection.sendall(byte)
        except (BrokenPipeError, ConnectionResetError):
            return
    pytest.fail("the connection was still open after 30 s")


def test_1300_half_sent_headers_do_not_lock_out_a_client():
    def few_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    environment = {**os.environ, "AFFECTGPT_API_KEY": "k"}
    command = [sys.executable, "-c", SERVER, "600", "port=0", "max_connections=2000"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=few_files
    )
    attack = []
    try:
        lines = []
        while not lines or not lines[-1].startswith("next: curl "):
            lines.append(next(process.stderr))
        url = lines[-1].split()[2].removesuffix("/health;")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 1500:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1500, hard))
        for number in range(1300):
            attack.append(connect(url, HALF))
            if number % 100 == 99:
                assert httpx.get(f"{url}/health", timeout=5).status_code == 200
        body = asking(text("hello"))
        headers = {"Authorization": "Bearer k"}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=20)
        assert reply.json()["choices"][0]["message"]["content"] == "HELLO"
        assert 800 < len(os.listdir(f"/proc/{process.pid}/fd")) <= 1024
        assert "only 896 connections instead of max_connections=2000: this process may open 1024 files" in "".join(
            lines
        )
    finally:
        for connection in attack:
            connection.close()
        process.kill()
        process.communicate()


def test_headers_that_do_not_end_are_answered_with_408_also_if_a_byte_arrives_now_and_then(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_S", 0.6)
    with running(Slow()) as (_, url):
        silent, slow = connect(url), connect(url, HALF)
        send_until_closed(slow, b"x")
        assert received(silent) == b""  # closed: browsers open connections before they have a request
        for connection in (silent, slow):
            connection.close()


def test_a_second_request_on_a_connection_has_the_same_limit(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_S", 0.4)
    with running(Slow()) as (_, url):
        connection = connect(url, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(HALF)
        assert received(connection) == b""
        connection.close()


def test_a_body_that_does_not_end_is_answered_with_408_and_the_connection_is_closed(monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_S", 0.4)
    head = b"Host: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with running(Slow()) as (_, url):
        for path, status in ((b"/v1/chat/completions", b"408"), (b"/health", b"405"), (b"/no", b"404")):
            connection = connect(url, b"POST " + path + b" HTTP/1.1\r\n" + head)
            send_until_closed(connection, b" ")
            connection.close()
            answer = connect(url, b"POST " + path + b" HTTP/1.1\r\nConnection: close\r\n" + head)
            assert received(answer).startswith(b"HTTP/1.1 " + status)
            answer.close()


def test_a_request_that_is_being_answered_is_kept_when_connections_run_out():
    slow = Slow()
    with running(slow, config={"max_connections": 3}) as (client, url):
        body = json.dumps(asking(text("first"))).encode()
        head = f"Host: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        first = connect(url, b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\n" + head + body)
        time.sleep(0.2)
        idle = [connect(url, HALF) for _ in range(6)]
        assert received(idle[0]) == b""  # closed for later ones
        slow.go.set()
        assert b'"content":"FIRST"' in received(first)
        assert ask(client, text("second")).choices[0].message.content == "SECOND"
        for connection in (first, *idle):
            connection.close()


def test_without_a_connection_to_close_a_client_is_told_to_come_back():
    slow = Slow()
    with running(slow, config={"max_connections": 1}) as (_, url):
        body = json.dumps(asking(text("first"))).encode()
        head = f"Host: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        first = connect(url, b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\n" + head + body)
        time.sleep(0.2)
        second = connect(url)
        assert received(second).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        slow.go.set()
        assert b'"content":"FIRST"' in received(first)


@pytest.mark.parametrize(
    "request_line",
    [b"\xff\xfe\x00\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /%ff%00 HTTP/1.1\r\nHost: a\r\n\r\n"],
)
def test_a_request_line_that_is_no_text_gets_a_4xx(request_line):
    with running(Slow()) as (_, url):
        connection = connect(url, request_line)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 4")
        connection.close()
