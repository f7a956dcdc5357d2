"""python -m affectgpt.serve: check the settings, load the model, answer requests until a signal."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from pathlib import Path

from affectgpt.config import ServeConfig
from affectgpt.media import isolated_media
from affectgpt.runtime import UserError
from affectgpt.serve.app import build_app
from affectgpt.serve.bodies import KEY_VARIABLE, key_in_environment
from affectgpt.serve.connections import http_server
from affectgpt.serve.models import load_served

log = logging.getLogger("affectgpt")


def run_server(config: ServeConfig) -> int:
    """Load the model and answer requests until SIGTERM or Ctrl-C; accepted requests are finished first."""
    check(config)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serving needs {error.name}; pip install 'affectgpt[serve]'") from None
    api_key = key_in_environment()
    listener = bind(config.host, config.port)
    with contextlib.closing(listener):
        served = load_served(config)
        if api_key is None and config.host not in ("127.0.0.1", "localhost", "::1"):
            log.warning("%s: clients that reach %s need no key; set %s", served.name, config.host, KEY_VARIABLE)
        server = http_server(build_app(served, config, api_key=api_key), config)
        host = f"[{config.host}]" if ":" in config.host else config.host
        sees = ", ".join(served.sees) or "text only"
        address = f"http://{host}:{listener.getsockname()[1]}"
        log.info("serving %s (%s) at %s/v1", served.name, sees, address)
        log.info("next: curl %s/health; docs/serve.md shows requests; Ctrl-C stops it", address)
        signal.signal(signal.SIGTERM, lambda *_: exit_with(143))  # uvicorn raises it again after the last answer
        with isolated_media(config.n_decoders, max_pixels=round(config.max_megapixels * 1e6)):
            server.run(sockets=[listener])
    return 0


def exit_with(code: int) -> None:
    raise SystemExit(code)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the model is loaded: a port in use is reported at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # connections are queued while the model is loaded
    except (OSError, OverflowError) as error:
        raise UserError(f"host={host} port={port}: cannot listen there ({error}); try another port=") from error
    return listener


def check(config: ServeConfig) -> None:
    """Raise UserError for settings out of range."""
    for name in ("max_batch", "max_requests", "max_request_mb", "max_media_s", "max_images", "max_megapixels"):
        if getattr(config, name) <= 0:
            raise UserError(f"{name} is {getattr(config, name)}; expected above 0")
    for name in ("max_connections", "max_new_tokens", "max_tokens_limit", "n_frames", "n_decoders"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; expected at least 1")
    if config.max_wait_ms < 0:
        raise UserError(f"max_wait_ms is {config.max_wait_ms}; expected 0 or more")
    if config.media_folder is not None and not Path(config.media_folder).expanduser().is_dir():
        raise UserError(f"media_folder={config.media_folder}: no such folder")
