"""Who may send what: host, origin, key, the number of open requests, and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from affectgpt.serve.bodies import KEY_VARIABLE, is_bearer
from affectgpt.serve.errors import APIError

COOKIE = "affectgpt_studio"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/health", "/api/login")
"""Paths that need no key: they show nothing of the data; so do those of /static/."""
COSTLY = ("/api/ask", "/api/upload")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors {frames}"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self)",
}


class Door:
    """ASGI middleware.

    Without a key only this machine is answered, and only under its own name: a page of another site whose name was
    pointed at 127.0.0.1 (DNS rebinding) sends that name. Requests that change something must come from our own pages.

    Args:
        key: the key that requests need, as a bearer token or in the cookie of `/api/login`; None = none.
        guest: whether headers carry another right to this path, such as an annotator's.
        any_host: answer under any name: there is a key, or the studio is public.
        framed: may be shown inside a page of another site, as on a Space.
    """

    def __init__(
        self,
        app: Any,
        key: str | None,
        max_open: int,
        guest: Callable[[str, Mapping[str, str]], bool],
        any_host: bool,
        framed: bool = False,
    ) -> None:
        self._app = app
        self._key = key
        self._max_open = max_open
        self._guest = guest
        self._any_host = any_host or key is not None
        self._n_open = 0
        policy = _POLICY.format(frames="https://huggingface.co" if framed else "'none'")
        headers = {**_HEADERS, "Content-Security-Policy": policy}
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send_with_headers)
            return
        costly = _is_costly(scope)
        self._n_open += costly
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._n_open -= costly

    def _refusal(self, scope: Any) -> APIError | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, host = scope["path"], headers.get("host", "")
        if not self._any_host and _name_of(host) not in LOOPBACK:
            return APIError(403, f"host {host!r}: expected 127.0.0.1 or localhost; other names need a key", code="host")
        if scope["method"] not in ("GET", "HEAD") and not _from_own_page(headers, host):
            return APIError(403, "the request came from another site", code="origin")
        opened = path in OPEN_PATHS or path.startswith("/static/")
        if self._key is not None and not opened and not self._knows(headers) and not self._guest(path, headers):
            return APIError(401, f"no valid key: log in with the server's {KEY_VARIABLE}", code="invalid_api_key")
        if _is_costly(scope) and self._n_open >= self._max_open:
            text = f"{self._n_open} uploads and answers at a time, the limit is {self._max_open} (max_requests)"
            return APIError(429, f"{text}; retry later", code="queue_full", retry_s=2)
        return None

    def _knows(self, headers: Mapping[str, str]) -> bool:
        assert self._key is not None
        if is_bearer(headers.get("authorization", "").encode("latin-1"), self._key):
            return True
        return hmac.compare_digest(cookie_of(headers, COOKIE).encode(), cookie_value(self._key).encode())


def _is_costly(scope: Any) -> bool:
    path = scope["path"]
    return scope["method"] == "POST" and (path in COSTLY or path.startswith("/media/"))  # transcripts


def cookie_value(key: str) -> str:
    """What the cookie holds instead of the key."""
    return hmac.new(key.encode(), b"affectgpt studio", hashlib.sha256).hexdigest()


def cookie_of(headers: Mapping[str, str], name: str) -> str:
    """The value of a cookie, "" without it."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _from_own_page(headers: Mapping[str, str], host: str) -> bool:
    """Whether a request comes from our own page, or from a program (which sends neither header)."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    return origin is None or urlsplit(origin).netloc == host
