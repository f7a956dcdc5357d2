"""A server in a thread, with a tiny trained model or a fake one, and helpers for requests."""

import base64
import contextlib
import copy
import json
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from affectgpt import config as conf
from affectgpt.chat.request import Reply
from affectgpt.chat.served import image_part
from affectgpt.inference.infer import run_inference
from affectgpt.media import read_frames
from affectgpt.runtime import InputError
from affectgpt.serve.app import build_app
from affectgpt.serve.command import bind
from affectgpt.serve.connections import http_server
from affectgpt.serve.models import AffectGPT, Prepared
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config

N = 6  # new tokens


@contextlib.contextmanager
def running(served, **settings):
    """(OpenAI client, address) of a server in a thread."""
    config = conf.ServeConfig(**{"max_new_tokens": N, **settings.pop("config", {})})
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = http_server(build_app(served, config, **settings), config, log_level="error")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=30), url
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def trained(base_models, manifest, tmp_path_factory):
    """The run folder of a finished run."""
    config = make_train_config(base_models, manifest, tmp_path_factory.mktemp("trained"), n_validation=0)
    return run_stage(copy.deepcopy(config)).run


@pytest.fixture(scope="session")
def served(trained) -> AffectGPT:
    from affectgpt.inference.loading import load as load_checkpoint

    return AffectGPT(load_checkpoint(str(trained), trained.parent, device="cpu"), conf.ServeConfig(name="tiny"))


@pytest.fixture(scope="session")
def server(served, manifest):
    with running(served, config={"media_folder": str(manifest.parent), "max_wait_ms": 50}) as both:
        yield both


@pytest.fixture(scope="session")
def client(server):
    return server[0]


@pytest.fixture(scope="session")
def inferred(trained, manifest, tmp_path_factory):
    """What infer.py writes about the clips, by id."""
    out = tmp_path_factory.mktemp("inferred") / "p.jsonl"
    config = conf.InferConfig(input=[str(manifest)], checkpoint=str(trained), device="cpu", out=str(out))
    config.generate = conf.GenerateConfig(max_new_tokens=N, batch_size=3)
    run_inference(config)
    return {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}


def uri(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def video(url) -> dict:
    return {"type": "video_url", "video_url": {"url": str(url)}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def frames_of(path: Path, n: int) -> list[dict]:
    return [image_part(image) for image in read_frames(path, n).images]


def ask(client, *parts, affectgpt=None, **more):
    body = {"affectgpt": affectgpt} if affectgpt else None
    messages = more.pop("messages", None) or [{"role": "user", "content": list(parts)}]
    return client.chat.completions.create(model="tiny", messages=messages, extra_body=body, **more)


def error_of(url: str, body, **headers) -> tuple[int, dict]:
    """(status, the error) that a body gets."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(
        f"{url}/v1/chat/completions", content=data, headers={"Content-Type": "application/json", **headers}
    )
    return reply.status_code, reply.json()["error"]


def asking(*parts, **more) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(parts)}], **more}


class Slow:
    """Answers with the question in capitals, when `go` is set; `bad` in it is a user's error, `broken` a bug."""

    name, sees = "tiny", ()

    def __init__(self):
        self.go = threading.Event()
        self.batches = []

    def prepare(self, ask, files):
        return Prepared(ask.turns[0][1], ask.decoding, {})

    def generate(self, items):
        assert self.go.wait(20)
        self.batches.append([item.inputs for item in items])
        if any("bad" in item.inputs for item in items):
            raise InputError("a bad question")
        if any("broken" in item.inputs for item in items):
            raise KeyError("inside")
        return [Reply(item.inputs.upper(), 1, 1, "eos", {}) for item in items]


def wait_for(url: str, **values) -> None:
    for _ in range(500):
        if values.items() <= httpx.get(f"{url}/health").json().items():
            return
        time.sleep(0.01)
    raise AssertionError(httpx.get(f"{url}/health").json())
