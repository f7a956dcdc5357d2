"""python -m affectgpt.studio: check the settings, read the predictions, show the pages until a signal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt.config import PagesConfig, StudioConfig, StudioReviewConfig
from affectgpt.media import isolated_media
from affectgpt.runs import checkpoint_to_use
from affectgpt.runtime import MissingLibrary, UserError
from affectgpt.schema import LANGUAGES
from affectgpt.studio.door import LOOPBACK

if TYPE_CHECKING:
    from affectgpt.studio.app import Studio

log = logging.getLogger("affectgpt")


def run_studio(config: StudioConfig) -> int:
    """Show predictions and models until SIGTERM or Ctrl-C."""
    key = check(config)
    from affectgpt.serve.command import bind

    with contextlib.closing(bind(config.host, config.port)) as listener:
        serve_pages(make_studio(config), listener, key)
    return 0


def run_review(config: StudioReviewConfig) -> int:
    """Set up a round if it is asked for, then show the review until SIGTERM or Ctrl-C."""
    key = check(config)
    from affectgpt.annotate.verbs import REVIEW_FOLDER
    from affectgpt.serve.command import bind
    from affectgpt.studio.app import Studio
    from affectgpt.studio.reviewing import ReviewRoom, set_up_round

    folder = Path(config.to or REVIEW_FOLDER)
    if config.round is not None:
        if config.records is None:
            raise UserError("name the folder of records: python -m affectgpt.studio review emer_coarse/ round=1 ...")
        set_up_round(config, Path(config.records), folder)
    elif config.annotators:
        raise UserError("annotators= sets up a round: add round=1 or round=2")
    room = ReviewRoom(folder)
    if config.records is not None and str(Path(config.records).resolve()) != room.review.source:
        raise UserError(f"{folder} is a review of {room.review.source}, not of {config.records}; give another to=")
    with contextlib.closing(bind(config.host, config.port)) as listener:
        serve_pages(Studio(config, review=room), listener, key)
    return 0


def make_studio(config: StudioConfig) -> Studio:
    """Read the predictions, and start loading the models."""
    from affectgpt.studio.app import Studio
    from affectgpt.studio.asking import Models
    from affectgpt.studio.gallery import read_gallery
    from affectgpt.studio.watching import Watch

    checkpoints: list[str | None] = list(config.checkpoints)
    if not checkpoints and config.predictions is None:
        checkpoints = [None]
    runs = [checkpoint_to_use(Path(config.paths.runs), name).parent for name in checkpoints if not _is_hub_id(name)]
    gallery = read_gallery(config, list(dict.fromkeys(runs)))
    roots = list(dict.fromkeys([*(run.resolve().parent for run in runs), Path(config.paths.runs).resolve()]))
    watch = Watch(roots) if checkpoints else None
    models = Models(config, checkpoints) if checkpoints else None
    return Studio(config, gallery, models, transcriber=config.transcriber, watch=watch)


def _is_hub_id(name: str | None) -> bool:
    return name is not None and name.count("/") == 1 and not Path(name).exists()


def check(config: PagesConfig) -> str | None:
    """The key that requests need; UserError for settings out of range, a missing library, or an open door."""
    from affectgpt.serve.bodies import KEY_VARIABLE, key_in_environment

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingLibrary(f"the studio needs {error.name}; pip install 'affectgpt[studio]'") from None
    for name in ("max_requests", "max_request_mb", "max_media_s", "max_megapixels", "keep_minutes"):
        if getattr(config, name) <= 0:
            raise UserError(f"{name} is {getattr(config, name)}; expected above 0")
    for name in ("max_connections", "max_uploads", "max_new_tokens", "n_decoders"):
        if getattr(config, name, 1) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; expected at least 1")
    if isinstance(config, StudioConfig) and config.lang not in LANGUAGES:
        raise UserError(f"lang is {config.lang!r}; expected one of {list(LANGUAGES)}")
    key = key_in_environment()
    if key is None and config.host not in LOOPBACK and not config.public:
        raise UserError(
            f"host={config.host} is reachable from other machines, whose users would see the clips: set {KEY_VARIABLE} "
            "to a key that they must enter, or public=true if anybody may"
        )
    return None if config.public else key


def serve_pages(studio: Studio, listener: object, key: str | None) -> None:
    """Answer requests at a listening socket until a signal."""
    from affectgpt.serve.command import exit_with
    from affectgpt.serve.connections import http_server
    from affectgpt.studio.app import build_app

    config = studio.config
    server = http_server(build_app(studio, api_key=key), config)
    server.config.timeout_graceful_shutdown = 5  # streams of answers and media
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{listener.getsockname()[1]}"  # type: ignore[attr-defined]
    log.info("studio at %s%s; Ctrl-C stops it", address, " (asks for the key)" if key else "")
    if studio.review is not None:
        from affectgpt.studio.reviewing import links

        log.info("give each annotator their own link:\n%s", "\n".join(links(studio.review, address)))
    if config.browser and _has_screen():
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    signal.signal(signal.SIGTERM, lambda *_: exit_with(143))  # uvicorn raises it again after the last answer
    with isolated_media(config.n_decoders, max_pixels=round(config.max_megapixels * 1e6)):
        server.run(sockets=[listener])  # type: ignore[list-item]


def _has_screen() -> bool:
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
