"""Run many tasks at once: in threads, in processes of this machine, or on a Ray cluster.

`in_threads` is `map` with read-ahead, for short tasks that release the interpreter lock. `Threads`, `Processes` and
`Ray` are sets of workers with one interface, `Workers.run`: each worker creates its function once, for example with a
loaded model, and calls it on one task after another.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from itertools import islice
from typing import Any, TypeVar

from affectgpt.runtime import UserError, set_up_logging

Task = TypeVar("Task")
Result = TypeVar("Result")
Submit = Callable[[Any], Future[Any]]

_TRIES = 3  # on a Ray cluster, until a task whose workers are killed ends the run


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


class Workers:
    """`n` workers that run tasks; see `Threads`, `Processes` and `Ray`."""

    n: int

    def run(
        self,
        make: Callable[[int], Callable[[Task], Result]],
        tasks: Iterable[Task],
        *,
        name: Callable[[Task], str] = str,
        tick_s: float | None = None,
    ) -> Iterator[tuple[Task, Result] | None]:
        """Yield (task, result) as tasks end. A task is taken from `tasks` only when a worker is idle.

        Args:
            make: called once in each worker with the worker's number; returns the function that is called on tasks.
                Picklable, as are tasks and results.
            name: describes a task in the error if its worker is killed.
            tick_s: yield None if no task has ended for this time.

        Raises:
            UserError: a worker was killed. Exceptions of `make` and of tasks are raised here, too.
        """
        source, running = iter(tasks), dict[Future[Result], tuple[Submit, Task]]()
        with self._started(make) as idle:
            while True:
                for task in islice(source, len(idle)):
                    future = idle[-1](task)
                    running[future] = idle.pop(), task
                idle.clear()  # no task is left for these workers: in a cluster they make room for others
                if not running:
                    return
                ended = wait(running, tick_s, FIRST_COMPLETED).done
                for future in ended:
                    try:
                        result = future.result()
                    except Exception as error:
                        names = [f"{name(task):.100}" for _, task in (running[future], *running.values())]
                        if message := self._death(error, names):
                            raise UserError(message) from error
                        raise
                    if isinstance(result, UserError):
                        raise result
                    task = running[future][1]
                    idle.append(running.pop(future)[0])
                    yield task, result
                if not ended:
                    yield None

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """`map(function, tasks)`: results in order."""
        ready, due = dict[int, Result](), 0
        for ended in self.run(partial(_of_numbered, function), enumerate(tasks)):
            assert ended is not None
            (number, _), ready[number] = ended
            while due in ready:
                yield ready.pop(due)
                due += 1

    def _started(self, make: Callable[[int], Any]) -> AbstractContextManager[list[Submit]]:
        """For each worker a function that submits a task to it; the workers end with the context."""
        raise NotImplementedError

    def _death(self, error: Exception, names: Sequence[str]) -> str | None:
        """The error message if `error` means that a worker was killed; `names`: its task, then all running tasks."""
        return None


def _of_numbered(function: Callable[[Task], Result], worker: int) -> Callable[[tuple[int, Task]], Result]:
    return lambda numbered: function(numbered[1])


class Threads(Workers):
    """Daemon threads of this process, for tasks that wait for something else."""

    def __init__(self, n: int) -> None:
        self.n = n

    @contextmanager
    def _started(self, make: Callable[[int], Any]) -> Iterator[list[Submit]]:
        yield [partial(_in_thread, make(number)) for number in range(self.n)]


def _in_thread(function: Callable[[Task], Result], task: Task) -> Future[Result]:
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(function(task))
        except BaseException as error:  # noqa: BLE001 - raised where the result is read
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


class Processes(Workers):
    """Processes of this machine, which ignore Ctrl-C; with n=1 this process."""

    def __init__(self, n: int) -> None:
        self.n = n

    @contextmanager
    def _started(self, make: Callable[[int], Any]) -> Iterator[list[Submit]]:
        if self.n == 1:
            yield [partial(_here, make(0))]
            return
        context = multiprocessing.get_context("spawn")  # a fork of a process with torch threads can hang
        numbers = context.SimpleQueue()
        for number in range(self.n):
            numbers.put(number)
        pool = ProcessPoolExecutor(self.n, context, _start_process, (make, numbers))
        try:
            yield [partial(_submit, pool)] * self.n
        finally:
            pool.shutdown(cancel_futures=True)

    def _death(self, error: Exception, names: Sequence[str]) -> str | None:
        if not isinstance(error, BrokenProcessPool):
            return None
        return (
            f"a worker process was killed, perhaps because memory ran out; these were running: {', '.join(names[1:])}. "
            f"Run the same command again, with a smaller n_processes (it was {self.n})"
        )


def _here(function: Callable[[Task], Result], task: Task) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(function(task))
    return future


def _submit(pool: ProcessPoolExecutor, task: Any) -> Future[Any]:
    try:
        return pool.submit(_run_in_process, task)
    except BrokenProcessPool as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


_function: Callable[[], Any] | None = None
"""In a worker process: returns the function of this worker, which the first call creates."""


def _start_process(make: Callable[[int], Any], numbers: Any) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_up_logging()
    _function = cache(partial(make, numbers.get()))


def _end_with_parent() -> None:
    """End this process when its parent is gone: it would wait for tasks forever, with its models in memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # as a kill: what is written is complete or does not count


def _run_in_process(task: Any) -> Any:
    assert _function is not None
    return _function()(task)  # not created before the first task, whose caller gets what `make` raises


class Ray(Workers):
    """Actors of a Ray cluster, one per GPU or core. A killed actor is restarted and repeats its task.

    RAY_ADDRESS names the cluster to join; without it, one is started on this machine.

    Args:
        n: None = one for each GPU or core of the cluster.
        gpu: use GPUs if the cluster has any.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, n: int | None, *, gpu: bool) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(f"engine=ray needs Ray ({error}): pip install 'affectgpt[cluster]'") from error
        self._is_ours = not ray.is_initialized()
        try:
            ray.init(
                ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False
            )
        except ConnectionError as error:
            raise UserError(
                f"{error}; RAY_ADDRESS names the cluster, RAY_ADDRESS=local starts one on this machine, and "
                "RAY_BACKEND_LOG_LEVEL=warning shows why it did not answer"
            ) from error
        resources = ray.cluster_resources()
        gpu = gpu and bool(resources.get("GPU"))
        self._share = {"num_gpus": 1} if gpu else {"num_cpus": 1}
        self.n = n or int(resources.get("GPU" if gpu else "CPU", 1))

    @contextmanager
    def _started(self, make: Callable[[int], Any]) -> Iterator[list[Submit]]:
        import ray

        options = {**self._share, "max_restarts": -1, "max_task_retries": _TRIES - 1}
        actor = ray.remote(**options)(_Actor)
        try:
            yield [partial(_on_actor, cache(partial(actor.remote, make, number))) for number in range(self.n)]
        finally:
            if self._is_ours:
                ray.shutdown()

    def _death(self, error: Exception, names: Sequence[str]) -> str | None:
        from ray.exceptions import RayError, RayTaskError

        if not isinstance(error, RayError) or isinstance(error, RayTaskError):
            return None
        return (
            f"{_TRIES} processes of the Ray cluster ended while they worked on {names[0]}, perhaps because memory ran "
            f"out ({error}); run the same command again"
        )


class _Actor:
    """A worker on a Ray cluster."""

    def __init__(self, make: Callable[[int], Any], number: int) -> None:
        self._function = cache(partial(make, number))

    def run(self, task: Any) -> Any:
        try:
            return self._function()(task)
        except UserError as error:
            return error  # if it were raised, Ray would replace its message with a traceback


def _on_actor(actor: Callable[[], Any], task: Any) -> Future[Any]:
    """Submit a task to an actor, which the first call starts."""
    return actor().run.remote(task).future()
