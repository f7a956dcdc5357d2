"""Requests that arrive together are answered together."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

log = logging.getLogger("affectgpt")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Job(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    arrived_s: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Result]):
    """Collects requests and answers one batch at a time, in one thread.

    A batch starts when `max_batch` requests are there, or `max_wait_s` after its oldest one arrived. While it runs,
    others collect, so that batches grow with the load.

    Args:
        generate: the results of a batch, in its order.
        fit: whether two requests may share a batch; None = any two.

    Attributes:
        waiting: requests that are in no batch yet.
        n_answered, n_batches, largest, last_s: requests answered, batches, size of the largest, seconds of the last.
    """

    def __init__(
        self,
        generate: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        max_batch: int,
        max_wait_s: float,
        fit: Callable[[Item, Item], bool] | None = None,
    ) -> None:
        self.waiting: list[_Job[Item, Result]] = []
        self.n_answered = self.n_batches = self.largest = 0
        self.last_s = 0.0
        self._generate = generate
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._fit = fit or (lambda one, other: True)
        self._arrived = asyncio.Event()

    def put(self, item: Item) -> asyncio.Future[Result]:
        """The result to come. Cancelling it withdraws the request, unless its batch runs already."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.waiting.append(_Job(item, future))
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

    async def _next(self) -> list[_Job[Item, Result]]:
        while True:
            self.waiting = [job for job in self.waiting if not job.future.cancelled()]
            left_s: float | None = None
            if self.waiting:
                oldest = self.waiting[0]
                fitting = (job for job in self.waiting if job is oldest or self._fit(job.item, oldest.item))
                batch = list(itertools.islice(fitting, self._max_batch))
                left_s = oldest.arrived_s + self._max_wait_s - time.monotonic()
                if len(batch) == self._max_batch or left_s <= 0:
                    self.waiting = [job for job in self.waiting if job not in batch]
                    return batch
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left_s)

    async def _answer(self, batch: Sequence[_Job[Item, Result]], thread: ThreadPoolExecutor) -> None:
        work = asyncio.get_running_loop().run_in_executor(thread, self._generate, [job.item for job in batch])
        await asyncio.wait([work])
        error = work.exception()
        if error is not None and len(batch) > 1:  # a bad request must not fail the others of its batch
            log.warning("a batch of %d failed (%s); its requests are tried one by one", len(batch), error)
            for job in batch:
                await self._answer([job], thread)
            return
        self.n_batches += 1
        self.largest = max(self.largest, len(batch))
        for job, result in zip(batch, [None] if error else work.result(), strict=True):
            if job.future.cancelled():
                continue
            if error is not None:
                job.future.set_exception(error)
            else:
                self.n_answered += 1
                job.future.set_result(result)
