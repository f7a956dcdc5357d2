"""Locks between processes, which the kernel releases when a process ends, however it ends.

`NamedLocks` are for work that several processes share: each takes what no other has taken. `held` is for an output that
one process writes: a second command is refused by name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from affectgpt.runtime import UserError, remove_unfinished, write_json_atomic

log = logging.getLogger("affectgpt")

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system without locks answers."""


class NamedLocks:
    """Locks by name, shared by processes; a lock is released when the process that holds it ends.

    Args:
        optional: without locks on the file system only the tasks and threads of this process exclude each other, which
            is logged; else it is an error.
    """

    def __init__(self, path: Path, *, optional: bool = False) -> None:
        self._path = path
        self._optional = optional
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened for writing ({error.strerror})") from error
        self._held: set[str] = set()
        self._are_there = True  # locks, on this file system
        self._lock = threading.Lock()  # POSIX locks do not hold against threads of the same process

    def acquire(self, name: str) -> bool:
        """Take the lock, or return False if another process or another task or thread of this process holds it.

        Raises:
            UserError: the file system has no locks.
        """
        with self._lock:
            if name in self._held:
                return False
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(name))
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, depending on the system
                return False
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                message = f"{self._path}: its file system has no file locks ({error.strerror})"
                if not self._optional:
                    raise UserError(
                        f"{message}, without which two processes would do the same work; choose a folder on another "
                        "file system, or have it mounted with locks"
                    ) from error
                if self._are_there:
                    log.warning("%s; two processes at once do the same work twice", message)
                self._are_there = False
            self._held.add(name)
            return True

    def release(self, name: str) -> None:
        with self._lock:
            self._held.discard(name)
            if self._are_there:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte_of(name))

    def close(self) -> None:
        os.close(self._file)  # POSIX: this releases all locks of the process on the file


def _byte_of(name: str) -> int:
    """Offset in the lock file: 7 bytes of a hash. If two names share one (1 in 7e16), one waits for the other."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


@contextmanager
def held(lock: Path, *, what: str) -> Iterator[None]:
    """Hold an output for this process.

    The kernel releases the lock when the process ends, so a killed process leaves nothing to remove. On a file system
    without locks the owner's file decides: host, process and when that process started, in clock ticks since the
    machine did. It is void if that process is gone; if it was on another host nobody can tell, and the message names
    the file to remove.

    Args:
        lock: the file of the lock, which exists as long as it is held; `owner_of(lock)` names the process.
        what: "the run x is being trained", for the message.

    Raises:
        UserError: another process holds it, or its folder cannot be written.
    """
    # A POSIX lock belongs to the process: one of flock would also be held by loader processes that outlive a kill.
    owner = owner_of(lock)
    file = _open(lock)
    try:
        try:
            while True:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, lock):
                    break
                os.close(file)  # the holder before removed it in the meantime
                file = _open(lock)
        except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, depending on the system
            raise UserError(_refusal(what, _read(owner), "")) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _claim(what, owner)
        remove_unfinished(owner)
        write_json_atomic(owner, _this_process())
        try:
            yield
        finally:  # while it is held; who has opened the file in the meantime sees that it is gone, and opens it anew
            owner.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    finally:
        os.close(file)  # POSIX: this releases the lock


def is_owned(lock: Path) -> bool:
    """Whether a living process holds an output, as far as its owner's file tells; takes no lock.

    An owner on another host counts as living, because nobody can tell.
    """
    owner = owner_of(lock)
    return owner.is_file() and _lives(_read(owner))


def owner_of(lock: Path) -> Path:
    """The file that names the process that holds `lock`."""
    return lock.with_name(f"{lock.name.removesuffix('.lock')}.owner.json")


def _open(lock: Path) -> int:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"{lock.parent}: cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from error


def _is_at(file: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False


def _claim(what: str, owner: Path) -> None:
    """Become the owner without a lock; of two processes that try at once only one creates the file."""
    found = _read(owner)
    if owner.exists() and _lives(found):
        advice = f"; if it has ended, remove {owner}" if found.get("host") != socket.gethostname() else ""
        raise UserError(_refusal(what, found, advice))
    owner.unlink(missing_ok=True)
    try:
        os.close(os.open(owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError as error:
        raise UserError(_refusal(what, _read(owner), "")) from error


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


def _refusal(what: str, owner: dict[str, Any], advice: str) -> str:
    who = f"process {owner['pid']} on {owner['host']}" if "pid" in owner else "another process"
    return f"{what} by {who}; wait until it ends, or stop it, and repeat the command{advice}"
