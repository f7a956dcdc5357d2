"""Files that survive being killed and shared: append-only logs of JSON lines, and claims on work.

A `Log` is a JSONL file. Writers append whole lines under a file lock; a line that a killed writer left torn is cut off
by the next one. The index (key -> place in the file) is private, lies on disk, and follows what other processes append,
so memory does not grow with the file.

A `Claims` file holds no data: its bytes are locks. The kernel frees them when a process ends in whatever way, so
nothing has to expire and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from affectgpt.runtime import UserError

log = logging.getLogger("affectgpt")


class Log:
    """An append-only JSONL file whose rows are found by `key`, and the newest of a `name`.

    Args:
        path: the file; it and its folder are made if need be.
        name: gives a row's second, not unique name, such as the id of a sample.
        on_row: called once with every row of the file, also those that others append, in file order.
        fsync: force every line to the disk: it then survives a power cut, not only the end of the process.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: Callable[[dict[str, Any]], str] = lambda row: "",
        on_row: Callable[[dict[str, Any]], None] = lambda row: None,
        fsync: bool = False,
    ) -> None:
        self.path = path
        self._name, self._on_row, self._fsync = name, on_row, fsync
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._read_to = 0  # bytes of the file that stand in the index
        self._lock = threading.RLock()
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._writing = False
        # An empty name is a temporary database on disk that vanishes with the process.
        self._index = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._index.execute("PRAGMA journal_mode = OFF")
        self._index.execute("PRAGMA synchronous = OFF")
        self._index.execute("CREATE TABLE lines (start INTEGER PRIMARY KEY, key TEXT, name TEXT)")
        self._index.execute("CREATE INDEX by_key ON lines (key)")
        self._index.execute("CREATE INDEX by_name ON lines (name)")
        self.refresh()

    def close(self) -> None:
        self._index.close()
        os.close(self._file)

    def append(self, *rows: dict[str, Any]) -> None:
        """Write rows, each with a "key"; when this returns, their lines are in the file, whole.

        Raises:
            OSError: the disk is full or gone; the file then ends as before.
        """
        data = [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows]
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._cut_torn_line()
                self.refresh()
                size = os.fstat(self._file).st_size
                n_bytes = sum(map(len, data))
                written = os.write(self._file, b"".join(data))
                if written != n_bytes:
                    os.ftruncate(self._file, size)
                    raise OSError(f"{self.path}: only {written} of {n_bytes} bytes could be written; is the disk full?")
                if self._fsync:
                    os.fsync(self._file)
                self._take_up(zip(rows, map(len, data), strict=True))
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    async def put(self, row: dict[str, Any]) -> None:
        """As `append`, off the event loop; rows that come while others are being written are written together."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        if len(self._waiting) > 1 or self._writing:
            await done
            return
        self._writing = True
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self.append, *(item for item, _ in batch))
                except (OSError, UserError) as error:
                    for _, waiter in batch:
                        waiter.set_exception(error)
                else:
                    for _, waiter in batch:
                        waiter.set_result(None)
        finally:
            self._writing = False
        await done

    def get(self, key: str) -> dict[str, Any] | None:
        """The newest row with this key, also if another process wrote it a moment ago."""
        return self._newest("key", key)

    def latest(self, name: str) -> dict[str, Any] | None:
        """The newest row with this name."""
        return self._newest("name", name)

    def named(self, name: str) -> int:
        """How many rows have this name."""
        with self._lock:
            self.refresh()
            return int(self._index.execute("SELECT COUNT(*) FROM lines WHERE name = ?", (name,)).fetchone()[0])

    def rows(self) -> Iterator[dict[str, Any]]:
        """The newest row of each name, in file order."""
        self.refresh()
        last = -1
        query = (
            "SELECT start FROM lines AS line WHERE start > ? AND start = "
            "(SELECT MAX(start) FROM lines WHERE name = line.name) ORDER BY start LIMIT 1000"
        )
        while True:
            with self._lock:
                starts = [row[0] for row in self._index.execute(query, (last,))]
            if not starts:
                return
            for last in starts:
                yield self._row(last)

    def refresh(self) -> None:
        """Take up what has been appended since, by whomever; an unfinished last line waits."""
        with self._lock:
            size = os.fstat(self._file).st_size
            while self._read_to < size:
                block = os.pread(self._file, 1 << 24, self._read_to)
                whole = block[: block.rfind(b"\n") + 1]
                if not whole:
                    return
                lines, start = [], self._read_to
                for line in whole.splitlines(keepends=True):
                    lines.append((self._parse(line, start), len(line)))
                    start += len(line)
                self._take_up(lines)

    def _take_up(self, lines: Iterable[tuple[dict[str, Any], int]]) -> None:
        """Put the next lines of the file, as rows and numbers of bytes, into the index."""
        entries, start = [], self._read_to
        for row, n_bytes in lines:
            entries.append((start, row["key"], self._name(row)))
            self._on_row(row)
            start += n_bytes
        self._index.execute("BEGIN")
        self._index.executemany("INSERT INTO lines VALUES (?, ?, ?)", entries)
        self._index.execute("COMMIT")
        self._read_to = start

    def _newest(self, column: str, value: str) -> dict[str, Any] | None:
        with self._lock:
            self.refresh()
            found = self._index.execute(f"SELECT MAX(start) FROM lines WHERE {column} = ?", (value,)).fetchone()
            return None if found[0] is None else self._row(found[0])

    def _row(self, start: int) -> dict[str, Any]:
        data = b""
        while b"\n" not in data:
            data += os.pread(self._file, 1 << 16, start + len(data))
        return self._parse(data[: data.index(b"\n") + 1], start)

    def _parse(self, line: bytes, start: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("key"), str):
                return row
            problem = 'no object with a "key"'
        except ValueError as error:
            problem = f"not JSON ({error})"
        line_no = os.pread(self._file, start, 0).count(b"\n") + 1
        raise UserError(f"{self.path}:{line_no}: {problem}; no interrupted write leaves this: mend or remove the line")

    def _cut_torn_line(self) -> None:
        """With the lock in hand, whatever stands behind the last line end was left by a writer that died."""
        size = os.fstat(self._file).st_size
        if size == self._read_to or os.pread(self._file, 1, size - 1) == b"\n":
            return
        self.refresh()
        log.warning("%s: cut off a half-written last line (%d bytes)", self.path, size - self._read_to)
        os.ftruncate(self._file, self._read_to)


class FirstLines:
    """Where each id of a manifest first stood; on disk, so that memory does not grow with the manifest."""

    def __init__(self) -> None:
        self._index = sqlite3.connect("", isolation_level=None)
        self._index.execute("PRAGMA journal_mode = OFF")
        self._index.execute("CREATE TABLE first (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")

    def setdefault(self, key: str, default: int, /) -> int:
        """The line that stands for `key`; `default` if none did."""
        self._index.execute("INSERT OR IGNORE INTO first VALUES (?, ?)", (key, default))
        return int(self._index.execute("SELECT line FROM first WHERE id = ?", (key,)).fetchone()[0])


class Claims:
    """Locks by name, shared by processes and gone with the process that holds them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._held: set[str] = set()

    def take(self, name: str) -> bool:
        """Whether the claim is now ours; False = somebody else (or another task of this process) holds it."""
        if name in self._held:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(name))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return False
        self._held.add(name)
        return True

    def release(self, name: str) -> None:
        self._held.discard(name)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte_of(name))

    def close(self) -> None:
        os.close(self._file)  # POSIX: closing the file frees every lock of this process on it


def _byte_of(name: str) -> int:
    """A place in the lock file, 7 bytes of a hash: two names meet once in 7e16 pairs, and then only wait in turn."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


async def once(
    rows: Log, claims: Claims, key: str, make: Callable[[], Awaitable[dict[str, Any]]], *, wait_s: float = 0.1
) -> tuple[dict[str, Any], bool]:
    """The row with `key`: from the log, else from `make`, which runs for one task of one process only.

    The row is in the file before this returns. If `make` raises, nothing is kept and the next one in line tries.

    Returns:
        the row, and whether `make` was called for it here.
    """
    while True:
        if (row := rows.get(key)) is not None:
            return row, False
        if claims.take(key):
            try:
                if (row := rows.get(key)) is not None:  # it came between the look and the claim
                    return row, False
                row = {"key": key, **await make()}
                await rows.put(row)
                return row, True
            finally:
                claims.release(key)
        await asyncio.sleep(wait_s)


def append_jsonl_records(path: Path) -> list[dict[str, Any]]:
    """Read an append-only JSONL file for continuing it: a half-written last line is cut off with a warning.

    Raises:
        UserError: a line that is not the last is broken; that is no interrupted write, so nothing is cut.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        log.warning("%s: cut off a half-written last line (%d bytes)", path, len(data) - len(whole))
        with path.open("rb+") as file:
            file.truncate(len(whole))
    rows = []
    for line_no, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{line_no}: not JSON ({error}); mend or delete the file") from None
    return rows
