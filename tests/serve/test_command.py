"""python -m affectgpt.serve shuts down cleanly and checks its settings before a model is loaded."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from affectgpt import config as conf
from affectgpt.runtime import UserError
from affectgpt.serve.bodies import is_bearer, key_in_environment
from affectgpt.serve.command import bind, run_server
from tests.serve.conftest import N, ask, video

ROOT = Path(__file__).parents[2]


def test_sigterm_finishes_accepted_requests(trained, manifest):
    command = [sys.executable, "-m", "affectgpt.serve", str(trained), "port=0", "device=cpu", "name=tiny"]
    command += [f"media_folder={manifest.parent}", "max_wait_ms=1500", f"max_new_tokens={N}"]
    environment = {**os.environ, "AFFECTGPT_API_KEY": "k", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    with process, ThreadPoolExecutor(1) as pool:
        try:
            line = next(line for line in process.stderr if line.startswith("serving"))
            assert line.startswith("serving tiny (audio, frames, motion) at http://127.0.0.1:")
            url = line.split(" at ")[1].strip()
            client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
            answer = pool.submit(ask, client, video("clip0.mp4"))
            for _ in range(1000):
                if httpx.get(f"{url.removesuffix('/v1')}/health", timeout=30).json()["waiting"]:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert answer.result().choices[0].message.content
            assert process.wait(30) == 143
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_batch": 0}, "max_batch is 0; expected above 0"),
        ({"media_folder": "/no/such"}, "media_folder=/no/such: no such folder"),
        ({"model": "x", "quantization": "nf4"}, "model= serves another chat model"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words, monkeypatch):
    monkeypatch.delenv("AFFECTGPT_API_KEY", raising=False)
    with pytest.raises(UserError, match=words):
        run_server(conf.ServeConfig(port=0, **settings))


def test_a_port_in_use_and_an_empty_key_are_errors_before_anything_is_loaded(monkeypatch):
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: cannot listen there"):
            run_server(conf.ServeConfig(port=port))
    monkeypatch.setenv("AFFECTGPT_API_KEY", " ")
    with pytest.raises(UserError, match="AFFECTGPT_API_KEY is set but empty"):
        run_server(conf.ServeConfig(port=0))


@pytest.mark.parametrize("key", ["k", "k\n", " k\t"])
def test_white_space_around_the_key_of_the_environment_is_no_part_of_it(key, monkeypatch):
    monkeypatch.setenv("AFFECTGPT_API_KEY", key)
    given = key_in_environment()
    assert given is not None
    assert is_bearer(b"Bearer k", given)


def test_without_the_extra_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"serving needs uvicorn; pip install 'affectgpt\[serve\]'"):
        run_server(conf.ServeConfig(port=0))


def test_help_needs_no_torch():
    code = (
        "import runpy, sys; sys.argv = ['serve', '--help']\n"
        "try: runpy.run_module('affectgpt.serve', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "max_wait_ms" in shown.stdout
    assert shown.stdout.endswith("False\n")
