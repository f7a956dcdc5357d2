"""Bodies of requests, read up to limits of size and time, and the comparison of keys."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from affectgpt.runtime import UserError
from affectgpt.serve.errors import APIError

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest

KEY_VARIABLE = "AFFECTGPT_API_KEY"
BODY_TIMEOUT_S = 60.0


def key_in_environment() -> str | None:
    """The key that requests need, without white space around it, such as the end of a file's line; None = none.

    Raises:
        UserError: the variable is set but empty.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return None
    if not key.strip():
        raise UserError(f"the environment variable {KEY_VARIABLE} is set but empty; set it to a key, or unset it")
    return key.strip()


def is_bearer(header: bytes, key: str) -> bool:
    """Whether an Authorization header holds this key; the time it takes does not depend on where they differ."""
    scheme, _, given = header.partition(b" ")
    return hmac.compare_digest(given.strip(), key.encode()) and scheme.lower() == b"bearer"


async def chunks_of(request: HttpRequest, max_mb: float, *, timeout_s: float = BODY_TIMEOUT_S) -> AsyncIterator[bytes]:
    """The body of a request in pieces.

    Raises:
        APIError: it is longer than `max_mb`, or does not arrive within `timeout_s`.
    """
    max_bytes, n_bytes = int(max_mb * 1e6), 0
    too_long = APIError(413, f"the body is longer than {max_mb:g} MB (max_request_mb); send less media")
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise too_long
    end_s = time.monotonic() + timeout_s
    chunks = request.stream().__aiter__()
    while True:
        try:
            chunk = await asyncio.wait_for(chunks.__anext__(), max(0.0, end_s - time.monotonic()))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise APIError(408, f"the body did not arrive within {timeout_s:g} s") from None
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise too_long
        yield chunk


async def read_json(request: HttpRequest, max_mb: float) -> Any:
    """The JSON of a request, read up to the limit."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # browsers send other types across origins without a preflight request
        raise APIError(415, f"Content-Type is {kind!r}; expected application/json")
    data = bytearray()
    async for chunk in chunks_of(request, max_mb, timeout_s=BODY_TIMEOUT_S):
        data += chunk
    try:
        return json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is not JSON ({error})") from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")
