"""A real local HTTP server of the chat-completions protocol that fails on demand."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address):
        # Clients may be killed, also during a request.
        if not isinstance(sys.exc_info()[1], (ConnectionError, json.JSONDecodeError)):
            super().handle_error(request, client_address)


class ChatServer:
    """`answer(body)` makes the text; `faults` are the faults of the next requests, in order.

    Faults: an int = that HTTP status, ("retry-after", seconds) = 429 with the header, "slow", "drip" (a byte now and
    then, without end), "hang up", "cut" (in the middle of the answer), "no json", "no choices", a dict = arguments of
    `send`. `choose(body)` names the fault of requests for which the list is empty. `n_answered` counts complete
    answers.
    """

    def __init__(
        self,
        answer: Callable[[dict], str] = lambda body: body["messages"][-1]["content"].upper(),
        choose: Callable[[dict], object] = lambda body: None,
    ) -> None:
        self.answer = answer
        self.choose = choose
        self.n_answered = 0
        self.faults: list = []
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.delay_s = 0.0
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer.times.append(time.monotonic())
                    outer.in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer.in_flight)
                    fault = outer.faults.pop(0) if outer.faults else outer.choose(body)
                try:
                    time.sleep(outer.delay_s)
                    self.reply(fault, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with outer.lock:
                        outer.in_flight -= 1

            def reply(self, fault, body):
                if fault == "hang up":
                    self.close_connection = True
                    self.connection.close()
                elif isinstance(fault, int):
                    self.send(fault, {"error": {"message": f"fault {fault} for {outer.keys[-1]}"}})
                elif isinstance(fault, tuple):
                    self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": str(fault[1])})
                elif isinstance(fault, dict):
                    self.send(**{"status": 200, "value": {}, **fault})
                elif fault == "drip":
                    self.send_response(200)
                    self.end_headers()
                    while True:
                        self.wfile.write(b" ")
                        time.sleep(0.02)
                elif fault == "no json":
                    self.send(200, b"<html>not json</html>")
                elif fault == "no choices":
                    self.send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []})
                else:
                    if fault == "slow":
                        time.sleep(3)
                    choice = {"index": 0, "finish_reason": "stop"}
                    choice["message"] = {"role": "assistant", "content": outer.answer(body)}
                    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
                    head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"] + "-served"}
                    self.send(200, {**head, "choices": [choice], "usage": usage}, cut=fault == "cut")
                    with outer.lock:
                        outer.n_answered += fault != "cut"

            def send(self, status, value, headers=None, cut=False):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if cut:
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "ChatServer":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()


def fill_in(body: dict) -> str:
    """An answer of the JSON schema of a request; its texts differ between requests."""
    schema = body["response_format"]["json_schema"]["schema"]
    mark = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
    made = {"string": lambda kind: f"something plain, {mark}", "number": lambda kind: 0.5}
    made["array"] = lambda kind: kind["items"].get("enum", ["calm", "tired"])[:2]
    return json.dumps({name: made[kind["type"]](kind) for name, kind in schema["properties"].items()})
