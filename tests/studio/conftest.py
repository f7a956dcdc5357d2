"""A studio in a thread, over twelve small clips and the predictions of two made-up systems."""

import contextlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from affectgpt.config import PathsConfig, StudioConfig
from affectgpt.schema import Prediction, read_samples, write_jsonl
from affectgpt.serve.command import bind
from affectgpt.serve.connections import http_server
from affectgpt.studio.app import build_app
from affectgpt.studio.command import make_studio
from tests.models import tiny
from tests.serve.conftest import trained  # noqa: F401

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
ATTACK = "<img src=x onerror=\"document.title='attacked'\"><script>document.title='attacked'</script>"


@contextlib.contextmanager
def running(studio, *, key=None):
    """The address of a studio that answers in a thread."""
    listener = bind("127.0.0.1", 0)
    server = http_server(build_app(studio, api_key=key), studio.config, log_level="error")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def predictions(manifest, tmp_path_factory) -> list[Path]:
    """System "a" repeats the true labels, except for one clip; "b" says happy everywhere. Texts try to be markup."""
    folder = tmp_path_factory.mktemp("predictions")
    samples, _ = read_samples(manifest)
    for name in ("a", "b"):
        rows = []
        for number, sample in enumerate(samples):
            labels = sample.labels if name == "a" and number != 3 else ("happy",)
            text = f"The brows rise. The voice trembles. {ATTACK if number == 0 else '他看起来很高兴。'}"
            rows.append(Prediction(sample.id, text, labels=labels, task="both", modalities=("frames",)))
        write_jsonl(folder / f"{name}.jsonl", rows)
    return [folder / "a.jsonl", folder / "b.jsonl"]


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> Path:
    """Tables of action units: of clip0, where the face is lost in between, and a damaged one of clip1."""
    folder = tmp_path_factory.mktemp("openface")
    header = "frame, timestamp, confidence, success, AU04_r, AU12_r"
    rows = [f"{n}, {n / 10}, 0.98, {int(n != 3)}, 0.2, {n}" for n in range(5)]
    (folder / "clip0.csv").write_text("\n".join([header, *rows]))
    (folder / "clip1.csv").write_text("frame\n1")
    return folder


@pytest.fixture(scope="session")
def studio_config(manifest, predictions, tables, tmp_path_factory):
    """Of two predictions files, with a folder of runs of its own: the checkout may have runs of a demo."""
    files = list(map(str, predictions))
    paths = PathsConfig(runs=str(tmp_path_factory.mktemp("no-runs")))
    return StudioConfig(predictions=files, references=str(manifest), openface=str(tables), browser=False, paths=paths)


@pytest.fixture(scope="session")
def address(studio_config):
    with running(make_studio(studio_config)) as url:
        yield url


@pytest.fixture(scope="session")
def whisper(tmp_path_factory) -> Path:
    """A tiny Whisper that hears some letters in anything."""
    folder = tiny.write_whisper(tmp_path_factory.mktemp("whisper"))
    tiny.write_bpe_tokenizer(folder, ["<|endoftext|>"], eos_token="<|endoftext|>")
    file = folder / "generation_config.json"
    settings = {"max_new_tokens": 8, "_from_model_config": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.fixture(scope="session")
def trying(trained, studio_config, whisper):  # noqa: F811
    """The address of a studio with a tiny trained model, twice, the predictions, and a tiny Whisper."""
    config = replace(studio_config, checkpoints=[str(trained), str(trained)], max_new_tokens=6, device="cpu")
    with running(make_studio(replace(config, transcriber=str(whisper)))) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    """One Chromium for a module."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--mute-audio",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        yield started
        started.close()


class Requests:
    """The addresses that a page asks for, and its errors."""

    def __init__(self, page, url):
        self.others, self.errors = [], []
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:", "blob:")) or self.others.append(request.url),
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))


@contextlib.contextmanager
def opened(browser, url, path="/", **context):
    """A page at `path` that has started."""
    with contextlib.closing(browser.new_context(**context)) as own:
        page = own.new_page()
        page.set_default_timeout(60_000)  # as long as a machine with other work needs
        page.requests = Requests(page, url)
        page.goto(url + path)
        page.wait_for_selector("html[data-ready=yes]")
        yield page
