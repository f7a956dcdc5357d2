"""Many tasks at once: order, bounds, errors and killed workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import count, takewhile
from pathlib import Path

import pytest

from affectgpt.runtime import InputError, UserError
from affectgpt.spread import Processes, Ray, Threads, in_threads


def test_read_ahead_overlaps_keeps_the_order_and_raises_when_due():
    running, most = 0, 0
    lock = threading.Lock()

    def read(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01 * (3 - item % 3))
        with lock:
            running -= 1
        if item == 9:
            raise OSError("gone")
        return item * item

    rows = in_threads(read, range(20), n_threads=3, n_ahead=4)
    assert [next(rows) for _ in range(9)] == [item * item for item in range(9)]
    assert 2 <= most <= 3
    with pytest.raises(OSError, match="gone"):
        next(rows)


def square(worker):
    return lambda task: (worker, task * task)


@pytest.mark.parametrize("workers", [Threads(3), Processes(1), Processes(2)], ids=["threads", "here", "processes"])
def test_every_task_runs_once_on_one_of_the_workers(workers):
    ended = list(workers.run(square, range(20)))
    assert sorted((task, result) for task, (_, result) in ended) == [(n, n * n) for n in range(20)]
    assert {worker for _, (worker, _) in ended} <= set(range(workers.n))


def slow_first(task):
    time.sleep(0.2 if task == 0 else 0.0)
    return -task


def test_map_returns_results_in_order():
    assert list(Processes(2).map(slow_first, range(8))) == [-n for n in range(8)]
    assert list(Threads(3).map(slow_first, range(8))) == [-n for n in range(8)]
    assert list(Threads(3).map(slow_first, [])) == []


def test_tasks_are_taken_by_idle_workers_and_ticks_are_yielded_while_none_ends():
    asked, release = [], threading.Event()

    def tasks():
        for number in count():
            asked.append(number)
            yield number

    run = Threads(2).run(lambda worker: lambda task: release.wait(10) and task, tasks(), tick_s=0.01)
    assert [next(run), next(run)] == [None, None]
    assert asked == [0, 1]
    release.set()
    assert next(ended for ended in run if ended) in ((0, 0), (1, 1))
    run.close()
    assert len(asked) <= 4


def test_no_task_starts_after_the_source_has_ended():
    stop, done = [], []
    for ended in Threads(2).run(lambda worker: lambda task: task, takewhile(lambda _: not stop, count())):
        done.append(ended[0])
        if len(done) == 5:
            stop.append(True)
    assert 5 <= len(done) <= 7


def makes_an_error(error, worker):
    raise error


def raises(error, worker):
    def work(task):
        if task == 3:
            raise error
        return task

    return work


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("make", [makes_an_error, raises])
@pytest.mark.parametrize("error", [InputError("no base model folder"), ValueError("a bug")])
def test_exceptions_of_a_worker_are_raised_in_the_caller(n, make, error):
    with pytest.raises(type(error), match=f"^{error}$"):
        list(Processes(n).run(partial(make, error), range(8)))


def killed_by_three(worker):
    def work(task):
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return task

    return work


def test_a_killed_process_is_an_error_that_names_the_running_tasks():
    with pytest.raises(UserError, match=r"a worker process was killed.*these were running: .*clip 3.*\(it was 2\)"):
        list(Processes(2).run(killed_by_three, range(8), name="clip {}".format))


def test_a_process_killed_between_tasks_is_the_same_error():
    def tasks():
        yield from range(2)
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        time.sleep(0.5)  # for the pool to notice
        yield from range(2, 8)

    with pytest.raises(UserError, match="a worker process was killed"):
        list(Processes(2).run(square, tasks()))


def test_threads_of_an_abandoned_run_do_not_keep_the_process_alive(tmp_path):
    before = set(threading.enumerate())  # other tests leave threads of their own
    run = Threads(2).run(lambda worker: lambda task: time.sleep(task), [0, 100])
    assert next(run) == (0, None)
    run.close()
    left = set(threading.enumerate()) - before
    assert left
    assert all(thread.daemon for thread in left)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        yield
        ray.shutdown()


def test_actors_run_every_task_and_make_room_for_pending_actors(cluster):
    workers = Ray(5, gpu=True)  # more than the two cores, and no GPU
    ended = list(workers.run(square, range(12)))
    assert sorted((task, result) for task, (_, result) in ended) == [(n, n * n) for n in range(12)]
    assert Ray(None, gpu=False).n == 2


def killed_once(folder, worker):
    def work(task):
        if task == 1 and not (folder / "mark").exists():
            (folder / "mark").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    return work


def test_a_task_whose_actor_is_killed_is_repeated(cluster, tmp_path):
    ended = list(Ray(1, gpu=False).run(partial(killed_once, tmp_path), range(4)))
    assert sorted(task for task, _ in ended) == [0, 1, 2, 3]
    assert (tmp_path / "mark").exists()


def always_killed(folder, worker):
    def work(task):
        if task == 2:
            (folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    return work


def test_a_task_that_kills_every_actor_ends_the_run_and_is_named(cluster, tmp_path):
    with pytest.raises(UserError, match="3 processes of the Ray cluster ended while they worked on clip 2, perhaps"):
        list(Ray(1, gpu=False).run(partial(always_killed, tmp_path), range(4), name="clip {}".format))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("make", [makes_an_error, raises])
def test_a_user_error_of_an_actor_keeps_its_message_and_a_bug_its_traceback(cluster, make):
    with pytest.raises(InputError, match=r"^no base model folder$"):
        list(Ray(1, gpu=False).run(partial(make, InputError("no base model folder")), range(4)))
    with pytest.raises(ValueError, match=r"(?s)in (work|makes_an_error).*a bug"):
        list(Ray(1, gpu=False).run(partial(make, ValueError("a bug")), range(4)))


def marks(folder, worker):
    def work(task):
        (folder / str(task)).touch()
        time.sleep(0.1)

    return work


def test_an_abandoned_run_on_a_cluster_starts_no_more_tasks(cluster, tmp_path):
    run = Ray(1, gpu=False).run(partial(marks, tmp_path), range(30))
    next(run)
    run.close()
    n_started = len(list(tmp_path.iterdir()))
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= n_started + 1 < 30


ENDLESS = """
import multiprocessing, os, sys, time
from affectgpt.spread import Processes
def make(worker):
    os.write(1, b"ready\\n")  # one call: two workers share this pipe
    return time.sleep
if __name__ == "__main__":
    list(Processes(2).run(make, [600, 600]))
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    with subprocess.Popen([sys.executable, tmp_path / "endless.py"], stdout=subprocess.PIPE, text=True) as parent:
        for _ in range(2):
            assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.communicate(timeout=30)[0] == ""  # ends when the last worker has closed what it inherited
