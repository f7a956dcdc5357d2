"""The web application: authentication, limits and routes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from affectgpt.chat.batches import Batcher
from affectgpt.config import ServeConfig
from affectgpt.serve.bodies import KEY_VARIABLE, is_bearer, read_json
from affectgpt.serve.errors import APIError
from affectgpt.serve.models import Served, may_share_batch, prepare
from affectgpt.serve.replies import PartialText, completion, events, reply_of
from affectgpt.serve.request import read_request

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response


class Admission:
    """ASGI middleware: requires the key, and limits the number of open requests for answers.

    A request counts from its headers to the last byte of its answer, so that bodies cannot pile up in memory.
    """

    def __init__(
        self, app: Any, api_key: str | None, max_open: int, retry_s: Callable[[], int], counts: dict[str, int]
    ) -> None:
        self._app = app
        self._key = api_key
        self._max_open = max_open
        self._retry_s = retry_s
        self._counts = counts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        if self._key is not None and not is_bearer(dict(scope["headers"]).get(b"authorization", b""), self._key):
            text = f"no valid key: expected the header 'Authorization: Bearer <the server's {KEY_VARIABLE}>'"
            await APIError(401, text, code="invalid_api_key").response()(scope, receive, send)
            return
        if scope["path"] != "/v1/chat/completions":
            await self._app(scope, receive, send)
            return
        if self._counts["open"] >= self._max_open:
            text = f"{self._counts['open']} open requests, the limit is {self._max_open} (max_requests); retry later"
            error = APIError(429, text, code="queue_full", retry_s=self._retry_s())
            await error.response()(scope, receive, send)
            return
        self._counts["open"] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._counts["open"] -= 1


def build_app(served: Served, config: ServeConfig, *, api_key: str | None = None) -> Starlette:
    """The web application: /v1/chat/completions, /v1/models and /health."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    counts = {"open": 0}
    created = int(time.time())
    decoders = ThreadPoolExecutor(config.n_decoders, "decoder")
    wait_s = config.max_wait_ms / 1000
    batcher = Batcher(served.generate, max_batch=config.max_batch, max_wait_s=wait_s, fit=may_share_batch)

    def retry_s() -> int:
        n_batches = len(batcher.waiting) / config.max_batch + 1
        return min(60, max(1, math.ceil(n_batches * batcher.last_s)))

    async def chat(request: HttpRequest) -> Response:
        asked = read_request(await read_json(request, config.max_request_mb), served.name, config)
        prepared = await asyncio.get_running_loop().run_in_executor(decoders, partial(prepare, served, asked, config))
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        if asked.stream:
            text = PartialText()
            future = batcher.put(replace(prepared, on_text=text.write))
            rows = events(head, future, text, asked.include_usage)
            return StreamingResponse(rows, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        future = batcher.put(prepared)
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait([future, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not future.done():
            future.cancel()
            return Response(status_code=499)  # the client has disconnected
        return JSONResponse(completion(head, reply_of(future)))

    def describe() -> dict[str, Any]:
        return {
            "id": served.name,
            "object": "model",
            "created": created,
            "owned_by": "affectgpt",
            "sees": list(served.sees),
        }

    async def models(request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [describe()]})

    async def model(request: HttpRequest) -> Response:
        if (name := request.path_params["name"]) != served.name:
            raise APIError(404, f"model {name!r} is not served here; expected {served.name!r}", code="model_not_found")
        return JSONResponse(describe())

    async def health(request: HttpRequest) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "model": served.name,
                "requests": counts["open"],
                "waiting": len(batcher.waiting),
                "answered": batcher.n_answered,
                "batches": batcher.n_batches,
                "largest_batch": batcher.largest,
            }
        )

    async def api_error(request: HttpRequest, error: APIError) -> Response:
        return error.response()

    async def http_error(request: HttpRequest, error: HTTPException) -> Response:
        known = "GET /health, GET /v1/models, POST /v1/chat/completions"
        text = f"{request.method} {request.url.path}: {error.detail}; expected one of {known}"
        return APIError(error.status_code, text).response()

    async def failure(request: HttpRequest, error: Exception) -> Response:
        return APIError(500, "internal error; see the log of the server").response()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        work = asyncio.ensure_future(batcher.run())
        yield
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        decoders.shutdown()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
        ],
        middleware=[Middleware(Admission, api_key, config.max_requests, retry_s, counts)],
        exception_handlers={APIError: api_error, HTTPException: http_error, Exception: failure},
        lifespan=lifespan,
    )


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
