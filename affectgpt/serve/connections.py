"""Limits of connections: their number, and how long a client may take for headers and for reading an answer.

uvicorn waits for headers without a limit and accepts connections until the descriptors run out, so that a client
without a key could lock out all others with headers that it never completes. Here a connection beyond the limit closes
the one that has waited longest for a request; a connection whose request is being answered is never closed for another.
"""

from __future__ import annotations

import logging
import resource
from typing import TYPE_CHECKING, Any

from affectgpt.config import ServeConfig

if TYPE_CHECKING:
    import asyncio

    import uvicorn

log = logging.getLogger("affectgpt")

HEADER_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 60.0  # with a full buffer of which the client reads nothing
_OTHER_FILES = 128  # descriptors for everything that is not a connection: model, media, libraries
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


def http_server(app: Any, config: ServeConfig, *, log_level: str = "warning") -> uvicorn.Server:
    """uvicorn with the limits of this module."""
    import uvicorn

    protocol = _protocol(connection_limit(config.max_connections))
    return uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", log_level=log_level, access_log=False))


def connection_limit(wanted: int) -> int:
    """`wanted`, or what the descriptors allow, with a warning; the process's own limit is raised if it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = max(1, soft - _OTHER_FILES)
    log.warning(
        "only %d connections instead of max_connections=%d: this process may open %d files; raise the limit to %d "
        "(ulimit -n)",
        allowed,
        wanted,
        soft,
        needed,
    )
    return allowed


def _protocol(max_connections: int) -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    waiting: dict[Connection, None] = {}  # for the headers of a request, the longest first

    class Connection(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None
        _has_data = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()
            if len(self.connections) > max_connections:
                oldest = next(iter(waiting))
                if oldest is self:
                    transport.write(_FULL)
                    transport.close()
                else:
                    oldest.transport.abort()
                del waiting[oldest]

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_waiting()
            self._stop_write_timer()

        def data_received(self, data: bytes) -> None:
            self._has_data = True
            super().data_received(data)
            if self._is_answering():
                self._stop_waiting()
            elif self._header_timer is None:
                self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._is_answering() and not self.transport.is_closing():
                waiting[self] = None  # uvicorn's own timer runs until the first byte of the next request

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop_write_timer()
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_write_timer()

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            waiting[self] = None
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

        def _give_up(self) -> None:
            if not self._is_answering() and not self.transport.is_closing():
                # Browsers open connections ahead of requests; an answer on one would be taken for that of its request.
                if self.cycle is None and self._has_data:
                    self.transport.write(_TOO_SLOW)
                self.transport.close()

        def _stop_waiting(self) -> None:
            waiting.pop(self, None)
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return Connection
