"""Requests that wait, and the batches in which they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from affectgpt.serve.models import Prepared, Reply

log = logging.getLogger("affectgpt")


@dataclass(eq=False)
class Job:
    """A request that waits for its answer."""

    item: Prepared
    future: asyncio.Future[Reply]
    arrived_s: float = field(default_factory=time.monotonic)

    def fits(self, other: Job) -> bool:
        """Whether both can be generated together; a seeded draw would depend on its neighbours."""
        return self is other or (self.item.wish == other.item.wish and self.item.wish.seed is None)


class Batcher:
    """Collects requests and generates for those with equal wishes together, one batch at a time.

    A batch starts when `max_batch` requests are there, or `max_wait_s` after its oldest one arrived. While it runs,
    others collect, so that the batches grow with the load.

    Attributes:
        waiting: requests that are in no batch yet.
        n_answered, n_batches, largest, last_s: for /health, and for what to tell those who must come again.
    """

    def __init__(
        self, generate: Callable[[Sequence[Prepared]], list[Reply]], *, max_batch: int, max_wait_s: float
    ) -> None:
        self.waiting: list[Job] = []
        self.n_answered = self.n_batches = self.largest = 0
        self.last_s = 0.0
        self._generate = generate
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._arrived = asyncio.Event()

    def put(self, item: Prepared) -> asyncio.Future[Reply]:
        """The answer to come; cancelling it takes the request out, if its batch does not run yet."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.waiting.append(Job(item, future))
        self._arrived.set()
        return future

    async def run(self) -> None:
        """Work until cancelled."""
        with ThreadPoolExecutor(1, "model") as thread:
            while True:
                batch = await self._next()
                started_s = time.monotonic()
                await self._answer(batch, thread)
                self.last_s = time.monotonic() - started_s

    async def _next(self) -> list[Job]:
        while True:
            self.waiting = [job for job in self.waiting if not job.future.cancelled()]
            left_s: float | None = None
            if self.waiting:
                oldest = self.waiting[0]
                batch = [job for job in self.waiting if job.fits(oldest)][: self._max_batch]
                left_s = oldest.arrived_s + self._max_wait_s - time.monotonic()
                if len(batch) == self._max_batch or left_s <= 0:
                    self.waiting = [job for job in self.waiting if job not in batch]
                    return batch
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left_s)

    async def _answer(self, batch: Sequence[Job], thread: ThreadPoolExecutor) -> None:
        work = asyncio.get_running_loop().run_in_executor(thread, self._generate, [job.item for job in batch])
        await asyncio.wait([work])
        error = work.exception()
        if error is not None and len(batch) > 1:  # one bad request shall not fail its neighbours
            log.warning("a batch of %d failed (%s); its requests are tried one by one", len(batch), error)
            for job in batch:
                await self._answer([job], thread)
            return
        self.n_batches += 1
        self.largest = max(self.largest, len(batch))
        for job, reply in zip(batch, [None] if error else work.result(), strict=True):
            if job.future.cancelled():
                continue
            if reply is None:
                assert error is not None
                job.future.set_exception(error)
            else:
                self.n_answered += 1
                job.future.set_result(reply)
