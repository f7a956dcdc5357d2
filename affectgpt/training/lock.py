"""One process trains a run: a second `train.py resume=true` is refused as long as the first one lives."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affectgpt.runtime import UserError, write_json_atomic

LOCK, OWNER = ".lock", ".owner.json"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the run folder for this process.

    The kernel releases the lock when the process ends, however it ends, so a killed process leaves nothing to remove.
    On a file system without locks the owner's file decides: host, process and when that process started. It is void if
    that process is gone; if it was on another host nobody can tell, and the message names the file to remove.

    Raises:
        UserError: another process trains this run.
    """
    # A POSIX lock belongs to the process: one of flock would also be held by loader processes that outlive a kill.
    file = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    owner = run / OWNER
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, depending on the system
            raise UserError(_refusal(run, _read(owner), "")) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _claim(run, owner)
        write_json_atomic(owner, _this_process())
        yield
        owner.unlink(missing_ok=True)
    finally:
        os.close(file)  # POSIX: this releases the lock


def _claim(run: Path, owner: Path) -> None:
    """Become the owner without a lock; of two processes that try at once only one creates the file."""
    found = _read(owner)
    if owner.exists() and _lives(found):
        advice = f"; if it has ended, remove {owner}" if found.get("host") != socket.gethostname() else ""
        raise UserError(_refusal(run, found, advice))
    owner.unlink(missing_ok=True)
    try:
        os.close(os.open(owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError as error:
        raise UserError(_refusal(run, _read(owner), "")) from error


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the owner may still be there; a process with its number that started at another time is not it."""
    if owner.get("host") != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(owner.get("started") == _started(owner["pid"]))


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since the machine did, which no change of the clock affects; None if the
    system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]  # proc(5): field 22, counted after the name in parentheses


def _read(owner: Path) -> dict[str, Any]:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not written yet, or half of it
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(run: Path, owner: dict[str, Any], advice: str) -> str:
    who = f"process {owner['pid']} on {owner['host']}" if "pid" in owner else "another process"
    return f"{run} is being trained by {who}; wait until it ends, or stop it, and repeat the command{advice}"
