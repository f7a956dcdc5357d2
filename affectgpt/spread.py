"""Run many tasks at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, n_threads: int, n_ahead: int = 1000
) -> Iterator[Result]:
    """`map(function, tasks)` in threads: results in order, at most `n_ahead` of them before they are asked for.

    An exception is raised when its result is due. Closing the iterator drops the tasks that have not started.
    """
    source, waiting = iter(tasks), deque[Future[Result]]()
    pool = ThreadPoolExecutor(n_threads)
    try:
        while True:
            waiting.extend(pool.submit(function, task) for task in islice(source, n_ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
