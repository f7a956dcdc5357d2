"""Read untrusted media in processes of their own: a crash, a hang or exhausted memory of a decoder costs one file.

Within `isolated_media()`, the functions marked `isolatable` run in such processes, and whatever happens there is an
exception here: FFmpeg is written in C, and a damaged file can find a bug of it that ends its process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from affectgpt.media import limits
from affectgpt.media.errors import DamagedMedia
from affectgpt.runtime import InputError, UserError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

log = logging.getLogger("affectgpt")

Params = ParamSpec("Params")
Result = TypeVar("Result")

TIMEOUT_S = 900.0
"""Limit for one file; a film of two hours is decoded in less."""
MEMORY_BYTES = 8 << 30
"""Address space of a process; more is an error of that file instead of a machine without memory."""

_STOPS = (-signal.SIGTERM, -signal.SIGINT, -getattr(signal, "SIGHUP", signal.SIGTERM))
"""Exit codes that are not the file's fault: all processes of the command got a signal. The call is repeated."""

_Answer = tuple[Any, BaseException | None, list[logging.LogRecord]]
"""Result, exception, log records."""


class DecoderCrashed(DamagedMedia):
    """The process that read the file crashed, hung or ran out of memory."""


@contextlib.contextmanager
def isolated_media(
    n_processes: int = 4, *, timeout_s: float = TIMEOUT_S, max_pixels: int | None = None
) -> Iterator[None]:
    """Within this context, read media in up to `n_processes` processes, in all threads of this process.

    Processes start when they are needed and are kept. Contexts may be nested or overlap, as those of two servers do:
    they share the processes of the first, which end with the last. Processes that are forked from this one, and
    daemonic processes, which may have no children, read in themselves.

    Args:
        timeout_s: limit for one call.
        max_pixels: limit for a picture, instead of `limits.MAX_PIXELS`.

    Raises:
        InputError: a context that is open has another `max_pixels`.
    """
    if multiprocessing.current_process().daemon or (_pool is not None and _pool.owner != os.getpid()):
        yield
        return
    pool = _enter(n_processes, timeout_s, max_pixels)
    try:
        yield
    finally:
        _leave(pool)


def _enter(n_processes: int, timeout_s: float, max_pixels: int | None) -> _Pool:
    global _pool
    with _entering:
        if _pool is None:
            _pool = _Pool(n_processes, timeout_s, max_pixels)
            atexit.register(_pool.close)
        elif max_pixels not in (None, _pool.max_pixels):
            raise InputError(
                f"pictures of up to {max_pixels} pixels cannot be read next to a server of this process with the limit "
                f"{_pool.max_pixels or limits.MAX_PIXELS}; give both the same (max_megapixels), or each its own process"
            )
        _pool.n_users += 1
        return _pool


def _leave(pool: _Pool) -> None:
    global _pool
    with _entering:
        pool.n_users -= 1
        if pool.n_users:
            return
        _pool = None
    atexit.unregister(pool.close)
    pool.close()


def isolatable(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """A function of this module's users whose first argument is a path: isolated if `isolated_media` is active.

    It is called by its name in the other process; arguments and result are pickled. Warnings are logged here.
    """

    @functools.wraps(function)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        pool = _pool
        if pool is None or pool.owner != os.getpid():
            return function(*args, **kwargs)
        return pool.call(call, args, kwargs)

    return call


class _Ended(Exception):
    """The process ended (exit code), or took too long (None)."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class _Pool:
    def __init__(self, n: int, timeout_s: float, max_pixels: int | None) -> None:
        self.owner = os.getpid()
        self.max_pixels = max_pixels
        self.n_users = 0  # open contexts
        self._timeout_s = timeout_s
        self._slots = threading.Semaphore(n)
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()
        self._closed = False

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._slots:
            result, error, records = self._answer((log.getEffectiveLevel(), function, args, kwargs), args[0])
        for record in records:
            logging.getLogger(record.name).handle(record)
        if error is not None:
            raise error
        return result

    def _answer(self, task: Any, path: Any, n_tries: int = 3) -> _Answer:
        reader = self._idle_reader() or _Reader(self.max_pixels)
        try:
            answer = reader.ask(task, self._timeout_s)
        except _Ended as ended:
            reader.close()
            if ended.exit_code in _STOPS and n_tries > 1:
                return self._answer(task, path, n_tries - 1)
            raise DecoderCrashed(f"{path}: {_describe(ended.exit_code, self._timeout_s)}; {_ADVICE}") from None
        except BaseException:  # in the middle of an answer, for example Ctrl-C
            reader.close()
            raise
        with self._lock:
            closed = self._closed
            if not closed:
                self._idle.append(reader)
        if closed:
            reader.close()
        return answer

    def _idle_reader(self) -> _Reader | None:
        """One that waits for a file; those that ended meanwhile, killed from outside, are not the next file's fault."""
        while True:
            with self._lock:
                reader = self._idle.pop() if self._idle else None
            if reader is None or reader.is_alive:
                return reader
            reader.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            readers, self._idle = self._idle, []
        for reader in readers:
            reader.close()


_pool: _Pool | None = None
_entering = threading.Lock()

_ADVICE = "the file is probably damaged: copy or download it again, convert it (ffmpeg -i IN OUT.mp4), or leave it out"


def _describe(exit_code: int | None, timeout_s: float) -> str:
    if exit_code is None:
        return f"reading it took more than {timeout_s:g} s and was stopped"
    if exit_code == -getattr(signal, "SIGKILL", 9):
        return "the process that read it was killed, perhaps because memory ran out"
    if exit_code < 0:
        return f"the decoder crashed ({signal.Signals(-exit_code).name})"
    return f"the process that read it ended with exit code {exit_code}"


class _Reader:
    """One process and the connection to it."""

    def __init__(self, max_pixels: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, max_pixels), daemon=True)
        self._process.start()
        there.close()
        self._started = False

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def ask(self, task: Any, timeout_s: float) -> _Answer:
        try:
            if not self._started:
                self._started = bool(self._here.recv())
            self._here.send(task)
            if self._here.poll(timeout_s):
                answer: _Answer = self._here.recv()
                return answer
        except (EOFError, ConnectionError):
            self._process.join()
            raise _Ended(self._process.exitcode) from None
        raise _Ended(None)

    def close(self) -> None:
        self._here.close()
        self._process.kill()
        self._process.join()


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None  # what is formatted can be pickled
        self.records.append(record)


def _work(connection: Connection, max_pixels: int | None) -> None:
    """Answer calls until the other end is closed."""
    limits.MAX_PIXELS = max_pixels or limits.MAX_PIXELS
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the command decides
    _limit_memory()
    handler = _Records()
    log.handlers, log.propagate = [handler], False
    connection.send(True)  # importing is not part of the time limit
    while True:
        try:
            level, function, args, kwargs = connection.recv()
        except EOFError:
            return
        log.setLevel(level)
        handler.records = []
        result: Any = None
        error: Exception | None = None
        try:
            result = function(*args, **kwargs)
        except MemoryError:
            limit = f"{MEMORY_BYTES >> 30} GiB"
            error = DecoderCrashed(f"{args[0]}: reading it takes more than {limit} of memory; {_ADVICE}")
        except Exception as raised:  # noqa: BLE001 - raised in the process that asked
            error = raised
            if not isinstance(raised, UserError):
                raised.add_note("".join(traceback.format_exception(raised)))
        try:
            connection.send((result, error, handler.records))
        except ConnectionError:
            return


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS does not take it
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
