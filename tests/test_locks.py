"""Who may write an output. A POSIX lock does not hold against its own process, so the other one is a real process."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from affectgpt.journal import locks
from affectgpt.runtime import UserError

HOLD = """
import sys, pathlib, time
from affectgpt.journal.locks import held
with held(pathlib.Path(sys.argv[1]) / ".lock", what="it is held"):
  """
OWNER = ".owner.json"


def held(run):
    return locks.held(run / ".lock", what=f"{run} is being trained")


@contextlib.contextmanager
def holder(run):
    """A process that holds the run until it is killed."""
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); time.sleep(600)", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_run_is_refused_by_name_and_free_again_after_a_kill(tmp_path):
    with holder(tmp_path) as other:
        named = f"being trained by process {other.pid} on {socket.gethostname()}; wait until it ends"
        with pytest.raises(UserError, match=named), held(tmp_path):
            pass
        other.kill()
        other.wait()
        with held(tmp_path):
            pass
    assert not (tmp_path / OWNER).exists()


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks, as some network file systems are mounted."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_without_locks_a_living_owner_is_refused_and_a_dead_one_is_not(tmp_path, without_locks):
    with holder(tmp_path) as other:
        with pytest.raises(UserError, match=f"process {other.pid} on"), held(tmp_path):
            pass
        other.kill()
        other.wait()
        with held(tmp_path):
            pass


def test_without_locks_a_new_process_with_the_number_of_a_dead_owner_does_not_hold_the_run(tmp_path, without_locks):
    dead = {"host": socket.gethostname(), "pid": os.getpid(), "started": "1"}  # this process started later
    (tmp_path / OWNER).write_text(json.dumps(dead))
    with held(tmp_path):
        pass


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 7, "started": "1"}', ""])
def test_without_locks_an_owner_that_cannot_be_asked_is_named_with_the_file_to_remove(tmp_path, without_locks, content):
    (tmp_path / OWNER).write_text(content)
    with pytest.raises(UserError, match=rf"if it has ended, remove .*{OWNER}"), held(tmp_path):
        pass
    (tmp_path / OWNER).unlink()
    with held(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), held(tmp_path):
        pass
