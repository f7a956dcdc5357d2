"""Files that survive killed processes and are shared by several: journals of JSON lines.

A `Journal` is an append-only JSONL file. Writers append complete lines under a file lock, so that the lines themselves
are the record of what is complete: JSON text contains no line end and no zero byte, and no beginning of an object is an
object. An incomplete last line, left by a writer that was killed, is therefore recognised, and the next writer cuts it
off; a line with zero bytes, which a power failure leaves where a block did not reach the disk, is left out with a
warning. docs/reliability.md says what is promised.

`affectgpt.journal.locks` has the locks with which processes share work, or refuse to.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affectgpt.journal.locks import NO_LOCKS, NamedLocks
from affectgpt.runtime import UserError, sync

log = logging.getLogger("affectgpt")

Row = dict[str, Any]


class Journal:
    """An append-only JSONL file with lookup by key.

    Lookups use an index (key -> offset) in a temporary database on disk, which is built at the first lookup and follows
    what other processes append, so that memory does not grow with the file. Appending alone reads nothing.

    Args:
        path: the file; it and its folder are created.
        key: the field that identifies a row; of several rows with one key the newest counts.
        name: a second name of a row, which several keys may share, such as the id of a sample; None = the key.
        on_row: called once with every row of the file, in file order, rows of other processes included.
        fsync: force every row to the disk, so that it also survives a power failure.

    Raises:
        UserError: the file cannot be opened or locked, or holds a line that is not a row.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: str = "key",
        name: Callable[[Row], str] | None = None,
        on_row: Callable[[Row], None] | None = None,
        fsync: bool = False,
    ) -> None:
        self.path = path
        self._key, self._name, self._on_row, self._fsync = key, name, on_row, fsync
        self._file = _open(path, fsync)
        self._lock = threading.RLock()
        self._index: sqlite3.Connection | None = None
        self._indexed_to = 0  # bytes of the file that the index covers
        self._shown_to = 0  # bytes of the file whose rows `on_row` has got
        self._waiting: list[tuple[Row, bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        if on_row is not None:
            self.refresh()

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
        os.close(self._file)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def append(self, *rows: Row) -> None:
        """Write rows; when this returns, their lines are complete in the file.

        Raises:
            UserError: the disk is full or gone; the file ends as before.
        """
        self._write([(row, self._line_of(row)) for row in rows])

    async def put(self, row: Row) -> None:
        """`append` off the event loop; rows that arrive while others are being written are written together."""
        line = self._line_of(row)  # a row that cannot be written fails here, alone
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((row, line, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        await done

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            write = asyncio.to_thread(self._write, [(row, line) for row, line, _ in batch])
            (error,) = await asyncio.gather(write, return_exceptions=True)  # no exception may leave a caller waiting
            for _, _, done in batch:
                if done.done():  # its caller was cancelled
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    def _line_of(self, row: Row) -> bytes:
        if self._key not in row:
            raise KeyError(f"{self.path}: a row needs {self._key!r}, found {sorted(row)}")
        return _line(row)

    def _write(self, rows: list[tuple[Row, bytes]]) -> None:
        with self._lock, _locked(self._file, self.path, fcntl.LOCK_EX):
            _check_there(self._file, self.path)
            _cut_incomplete_line(self._file, self.path)
            if self._index is not None:
                self._index_new_rows()
            _write_all(self._file, self.path, b"".join(line for _, line in rows), self._fsync)
            if self._index is not None:
                self._add_to_index((row, len(line)) for row, line in rows)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Row | None:
        """The newest row with this key, also if another process has just written it."""
        return self._newest("key", key)

    def latest(self, name: str) -> Row | None:
        """The newest row with this name."""
        return self._newest("name", name)

    def count(self, name: str) -> int:
        """The number of rows with this name."""
        with self._lock:
            found = self._indexed().execute("SELECT COUNT(*) FROM lines WHERE name = ?", (_indexable(name),)).fetchone()
            return int(found[0])

    def rows(self) -> Iterator[Row]:
        """The newest row of each name, in file order."""
        last = -1
        query = (
            "SELECT start FROM lines AS line WHERE start > ? AND start = "
            "(SELECT MAX(start) FROM lines WHERE name = line.name) ORDER BY start LIMIT 1000"
        )
        index = self._indexed()
        while True:
            with self._lock:
                starts = [row[0] for row in index.execute(query, (last,))]
            if not starts:
                return
            for last in starts:
                yield self._row(last)

    def refresh(self) -> None:
        """Read what was appended since, by this or another process."""
        self._indexed()

    def _indexed(self) -> sqlite3.Connection:
        """The index, which covers all complete lines of the file."""
        with self._lock:
            if self._index is None:
                # An empty name is a temporary database on disk that disappears with the process.
                self._index = sqlite3.connect("", check_same_thread=False, isolation_level=None)
                self._index.execute("PRAGMA journal_mode = OFF")
                self._index.execute("PRAGMA synchronous = OFF")
                self._index.execute("CREATE TABLE lines (start INTEGER PRIMARY KEY, key BLOB, name BLOB)")
                self._index.execute("CREATE INDEX by_key ON lines (key)")
                self._index.execute("CREATE INDEX by_name ON lines (name)")
            if os.fstat(self._file).st_size > self._indexed_to:
                with _locked(self._file, self.path, fcntl.LOCK_SH):  # rows of a write that fails are taken back
                    self._index_new_rows()
            return self._index

    def _index_new_rows(self) -> None:
        """Index what follows the indexed part; an incomplete last line is left for later. Needs the file lock."""
        size = os.fstat(self._file).st_size
        n_bytes = 1 << 24
        while self._indexed_to < size:
            block = os.pread(self._file, n_bytes, self._indexed_to)
            lines = block.split(b"\n")[:-1]
            if not lines:
                if self._indexed_to + len(block) >= size:
                    return
                n_bytes *= 2  # a line longer than the block
                continue
            start, found = self._indexed_to, []
            for line in lines:
                found.append((self._parse(line, start), len(line) + 1))
                if found[-1][0] is None:
                    log.warning("%s", _left_out(self.path, self._line_no(start)))
                start += len(line) + 1
            self._add_to_index(found)

    def _add_to_index(self, rows: Iterable[tuple[Row | None, int]]) -> None:
        """Index the next rows of the file, given with the lengths of their lines; None = a line that is left out."""
        assert self._index is not None
        entries, new, start = [], [], self._indexed_to
        for row, n_bytes in rows:
            if row is not None:
                key = row[self._key]
                entries.append((start, _indexable(key), _indexable(self._name(row) if self._name else key)))
                if start >= self._shown_to:
                    new.append(row)
            start += n_bytes
        try:
            self._index.execute("BEGIN")
            self._index.executemany("INSERT INTO lines VALUES (?, ?, ?)", entries)
            self._index.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._index.close()  # it cannot be rolled back: the next lookup builds it anew
            self._index, self._indexed_to = None, 0
            raise UserError(
                f"{self.path}: its temporary index cannot be written ({error}); free space in {tempfile.gettempdir()}, "
                "or name another folder with the environment variable SQLITE_TMPDIR"
            ) from error
        self._indexed_to = start
        self._shown_to = max(start, self._shown_to)
        if self._on_row is not None:
            for row in new:
                self._on_row(row)

    def _newest(self, column: str, value: str) -> Row | None:
        with self._lock:
            found = (
                self._indexed()
                .execute(f"SELECT MAX(start) FROM lines WHERE {column} = ?", (_indexable(value),))
                .fetchone()
            )
            return None if found[0] is None else self._row(found[0])

    def _row(self, start: int) -> Row:
        data = b""
        while b"\n" not in data:
            data += os.pread(self._file, max(1 << 16, len(data)), start + len(data))
        row = self._parse(data[: data.index(b"\n")], start)
        assert row is not None, "such a line is not indexed"
        return row

    def _parse(self, line: bytes, start: int) -> Row | None:
        """The row of a line; None if a power failure left it."""
        try:
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get(self._key), str):
                return row
            problem = f"not an object with the text {self._key!r}"
        except (ValueError, RecursionError) as error:
            if b"\0" in line:
                return None
            problem = f"not JSON ({error})"
        raise UserError(_broken(self.path, self._line_no(start), problem))

    def _line_no(self, start: int) -> int:
        size = 1 << 20
        return 1 + sum(os.pread(self._file, min(size, start - at), at).count(b"\n") for at in range(0, start, size))


def _indexable(text: str) -> bytes:
    """A key or name as the index stores it; halves of surrogate pairs, as in odd file names, included."""
    return text.encode("utf-8", "surrogatepass")


def append_rows(path: Path, values: Iterable[Any]) -> None:
    """Append JSON values, a line each, as `Journal.append` does; for files without keys."""
    file = _open(path)
    try:
        with _locked(file, path, fcntl.LOCK_EX):
            _cut_incomplete_line(file, path)
            _write_all(file, path, b"".join(map(_line, values)))
    finally:
        os.close(file)


def read_journal(path: Path) -> list[Any]:
    """All rows of a journal, in file order; none without the file. Lines that a killed process or a power failure left
    incomplete are left out, with a warning.

    Raises:
        UserError: the file cannot be read, or another line is not JSON.
    """
    if not path.exists():
        return []
    try:
        with path.open("rb") as file, _locked(file.fileno(), path, fcntl.LOCK_SH):
            *lines, rest = file.read().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if _is_complete(rest):
        lines.append(rest)
    elif rest:
        log.warning("%s: left out an incomplete last line (%d bytes)", path, len(rest))
    rows = []
    for line_no, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if b"\0" not in line:
                raise UserError(_broken(path, line_no, f"not JSON ({error})")) from None
            log.warning("%s", _left_out(path, line_no))
    return rows


def _broken(path: Path, line_no: int, problem: str) -> str:
    return f"{path}:{line_no}: {problem}; an interrupted write does not leave this: correct or remove the line"


def _left_out(path: Path, line_no: int) -> str:
    return f"{path}:{line_no}: left out a line with zero bytes, which a power failure leaves; its row is lost"


def _line(value: Any) -> bytes:
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, or a file name that is not UTF-8: only escapes can hold it
        return (json.dumps(value) + "\n").encode()


def _open(path: Path, fsync: bool = False) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        if fsync:
            sync(path.parent)  # the name of a new file
    except OSError as error:
        raise UserError(f"{path}: cannot be opened for appending ({error.strerror})") from error
    if (size := os.fstat(file).st_size) and os.pread(file, 1, size - 1) != b"\n":
        with _locked(file, path, fcntl.LOCK_EX):
            _cut_incomplete_line(file, path, cut=False)
    return file


@contextmanager
def _locked(file: int, path: Path, kind: int) -> Iterator[None]:
    """Hold the file lock: LOCK_SH to read, LOCK_EX to write."""
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{path}: its file system has no file locks ({error.strerror}), without which two processes could mix "
            "their lines; choose a folder on another file system, or have it mounted with locks (Lustre: -o flock)"
        ) from error
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _check_there(file: int, path: Path) -> None:
    if os.fstat(file).st_nlink == 0 and not path.exists():
        raise UserError(f"{path} was removed while it was written; run the same command again to start it anew")


def _is_complete(tail: bytes) -> bool:
    """Whether a last line without a line end is a complete row: the end of a kill, or of an editor."""
    if tail[-1:] not in (b"}", b"]"):
        return False
    try:
        json.loads(tail)
    except (ValueError, RecursionError):
        return False
    return True


def _cut_incomplete_line(file: int, path: Path, *, cut: bool = True) -> None:
    """Make the file end with a complete line: a row that lacks its line end gets it, part of a row is cut off.

    Args:
        cut: False = leave part of a row as it is, for the next writer.
    """
    size = end = os.fstat(file).st_size
    n_bytes = 1  # nearly always the last byte is a line end
    while end:
        start = max(0, end - n_bytes)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end, n_bytes = start, 1 << 16
    if end == size:
        return
    if _is_complete(_read_at(file, end, size)):
        _write_all(file, path, b"\n")
    elif cut:
        log.warning("%s: cut off an incomplete last line (%d bytes)", path, size - end)
        os.ftruncate(file, end)


def _read_at(file: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(file, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _write_all(file: int, path: Path, data: bytes, fsync: bool = False) -> None:
    """Append `data`, all of it or, with an exception, nothing."""
    size = os.fstat(file).st_size
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(file, left) :]
        if fsync:
            os.fsync(file)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a broken disk: the next writer cuts off what was written
            os.ftruncate(file, size)
        if isinstance(error, OSError):
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); is the disk full? What was written before is complete: "
                "free space and repeat the command"
            ) from error
        raise


class SeenIdsOnDisk:
    """The first line of each id of a manifest, in a temporary database: memory does not grow with the manifest."""

    def __init__(self) -> None:
        self._index = sqlite3.connect("", isolation_level=None)
        self._index.execute("PRAGMA journal_mode = OFF")
        self._index.execute("CREATE TABLE first (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")

    def setdefault(self, key: str, default: int, /) -> int:
        """As of a dict."""
        self._index.execute("INSERT OR IGNORE INTO first VALUES (?, ?)", (key, default))
        return int(self._index.execute("SELECT line FROM first WHERE id = ?", (key,)).fetchone()[0])


async def get_or_make(
    journal: Journal, locks: NamedLocks, key: str, make: Callable[[], Awaitable[Row]], *, wait_s: float = 0.1
) -> tuple[Row, bool]:
    """The row with `key`: from the journal, else from `make`, which runs in one task of one process only.

    The row is in the file before this returns. If `make` raises, nothing is kept and the next waiting task tries.

    Returns:
        the row, and whether `make` was called here.
    """
    while True:
        if (row := journal.get(key)) is not None:
            return row, False
        if locks.acquire(key):
            try:
                if (row := journal.get(key)) is not None:  # written between the lookup and the lock
                    return row, False
                row = {"key": key, **await make()}
                await journal.put(row)
                return row, True
            finally:
                locks.release(key)
        await asyncio.sleep(wait_s)
