"""Many asyncio tasks at once, and the signal that stops them in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")


class Stopped(Exception):
    """No new request is sent: an interrupt, an exhausted budget, or an error that every request would meet."""


@dataclass
class StopSignal:
    """Tells all tasks of a run to finish; `reason` is "" while it runs, then the first reason that was given."""

    reason: str = ""
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._event.set()

    def check(self) -> None:
        if self.reason:
            raise Stopped(self.reason)

    async def sleep(self, seconds: float) -> None:
        """Sleep; raise Stopped as soon as the signal is set."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self.check()


async def for_each(
    items: Iterator[Item], handle: Callable[[Item], Awaitable[None]], *, n_workers: int, stop: StopSignal
) -> None:
    """Call `handle` for every item, `n_workers` at a time; an item is drawn only when a worker is free.

    Stopped ends the run quietly. Any other exception ends it after the items in progress, and is raised.
    """

    async def worker() -> None:
        for item in items:
            if stop.reason:
                return
            try:
                await handle(item)
            except Stopped:
                return
            except BaseException:
                stop.set("error")
                raise

    results = await asyncio.gather(*(worker() for _ in range(n_workers)), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
