"""A store of encoder states: append-only shards that are memory-mapped, with an index of fixed-size records.

    <folder>/about.json                     the encoder, for humans and for `python -m affectgpt.cache`
    <folder>/<time>-<process>.states        tensors one after another, each followed by its facts as JSON
    <folder>/<time>-<process>.index         a 72-byte record per entry: address, offset, shape, precision, checksums

Each process appends to its own shards, so any number of processes can read and write one store. An entry exists once
its record is written, which is after its bytes: a killed process leaves no partial entry, at worst bytes without a
record. A process checks the checksum when it first reads an entry; a damaged entry is logged and counts as missing, so
that it is recomputed; so does an entry with NaN or infinity. After a power failure, bytes that did not reach the disk
are found in the same way.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from affectgpt.runtime import UserError, sync, write_json_atomic

log = logging.getLogger("affectgpt")

ABOUT = "about.json"
SHARD_BYTES = 256 << 20
_ALIGNMENT = 64
_TOUCH_S = 3600.0
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # a record stores the index in this tuple: append only
_RECORD = struct.Struct("<32sQQIIIII")  # `_Record`
_CHECK = struct.Struct("<I")  # after each record: its crc32
_RECORD_BYTES = _RECORD.size + _CHECK.size


class _Record(NamedTuple):
    """Position, shape and precision of an entry."""

    sha256: bytes
    offset: int
    n_bytes: int
    rows: int
    width: int
    dtype: int  # index in _DTYPES
    facts_bytes: int
    crc32: int  # of tensor and facts

    @property
    def end(self) -> int:
        return self.offset + self.n_bytes + self.facts_bytes


class Quota:
    """The size limit of all stores in a folder, respected by several processes at once.

    Args:
        limit_bytes: of all files in the folder. A process measures the folder again after writing a thousandth of the
            limit, so that n processes exceed the limit by less than n thousandths.

    Attributes:
        lock: held from `reserve` to the end of the write: a measurement in between would miss what is not yet written.
    """

    _FULL_S = 60.0  # a full folder is measured again after this time

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._measured: int | None = None
        self._written = 0  # by this process since the measurement
        self._full_since_s: float | None = None
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.Lock())

    @property
    def is_full(self) -> bool:
        """Whether something was refused recently."""
        return self._full_since_s is not None and time.monotonic() - self._full_since_s < self._FULL_S

    def reserve(self, n_bytes: int) -> bool:
        """Count `n_bytes` as used; False if they exceed the limit."""
        if self.is_full:
            return False
        if self._measured is None or self._full_since_s is not None or self._written > self._limit // 1000:
            self._measured, self._written, self._full_since_s = folder_bytes(self._folder), 0, None
        if self._measured + self._written + n_bytes > self._limit:
            self._full_since_s = time.monotonic()
            return False
        self._written += n_bytes
        return True


def folder_bytes(folder: Path) -> int:
    """Size of all files in `folder` and its subfolders, which other processes may be changing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                total += path.stat().st_size
    return total


class StateStore:
    """States [T, E] and facts by the sha256 of the media file.

    Args:
        folder: created by the first write.
        about: everything that determines the states, for about.json.
        quota: size limit; None = none.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None, quota: Quota | None = None) -> None:
        self.folder = folder
        self._about = about
        self._quota = quota
        self._entries: dict[bytes, tuple[str, bytes]] = {}  # address -> (shard, record)
        self._seen: dict[str, int] = {}  # shard -> number of bytes read of its index
        self._reset()

    def _reset(self) -> None:
        """Set everything that cannot be pickled."""
        self._maps: dict[str, mmap.mmap] = {}
        self._checked: set[bytes] = set()
        self._writer: _Writer | None = None
        self._inherited: _Writer | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._touched_s = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("folder", "_about", "_quota", "_entries", "_seen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        self.refresh()
        return len(self._entries)

    def __contains__(self, sha256: str) -> bool:
        key = bytes.fromhex(sha256)
        if key not in self._entries:
            self.refresh()
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        self.refresh()
        return iter([key.hex() for key in self._entries])

    def refresh(self) -> None:
        """Read the entries that this and other processes have written since the last call."""
        for shard, size in self._indices():
            known = self._seen.get(shard, 0)
            if size < known + _RECORD_BYTES:
                continue
            path = self.folder / f"{shard}.index"
            with suppress(FileNotFoundError), path.open("rb") as file:  # it may have been compacted
                file.seek(known)
                data = file.read()
                whole = len(data) - len(data) % _RECORD_BYTES  # the rest is an incomplete record of a killed process
                for start in range(0, whole, _RECORD_BYTES):
                    record = data[start : start + _RECORD.size]
                    if zlib.crc32(record) != _CHECK.unpack_from(data, start + _RECORD.size)[0]:
                        log.warning("%s: a damaged record is ignored; its clip will be encoded again", path)
                        continue
                    self._entries[record[:32]] = (shard, record)
                self._seen[shard] = known + whole

    def _indices(self) -> list[tuple[str, int]]:
        """(shard, size of its index in bytes), in order of creation."""
        with suppress(FileNotFoundError), os.scandir(self.folder) as files:
            return sorted((file.name[:-6], file.stat().st_size) for file in files if file.name.endswith(".index"))
        return []

    def _record(self, key: bytes) -> tuple[str, _Record]:
        shard, record = self._entries[key]
        return shard, _Record._make(_RECORD.unpack(record))

    def read(self, sha256: str) -> tuple[Tensor, dict[str, Any]] | None:
        """States [T, E], memory-mapped, and facts; None if there are none or they are damaged, which is logged."""
        if sha256 not in self:
            return None
        self._touch()
        key = bytes.fromhex(sha256)
        shard, record = self._record(key)
        buffer = self._map(shard, record.end)
        if buffer is None and not (self.folder / f"{shard}.index").exists():  # compacted: it is in another shard
            del self._entries[key]
            return self.read(sha256)
        if buffer is None or not self._is_intact(record, buffer):
            log.warning("%s: the states of %s are damaged and will be recomputed", self.folder / shard, sha256)
            del self._entries[key]
            return None
        return _states(record, buffer), json.loads(buffer[record.offset + record.n_bytes : record.end])

    def write(self, sha256: str, states: Tensor, facts: Mapping[str, Any]) -> bool:
        """Append states [T, E] and their facts; False if the quota does not allow it."""
        states = states.detach().cpu().contiguous()
        if states.ndim != 2 or states.dtype not in _DTYPES:
            raise ValueError(f"states must be [T, E] in one of {_DTYPES}, found {states.dtype} {list(states.shape)}")
        payload = states.view(torch.uint8).numpy().tobytes() if states.numel() else b""
        described = json.dumps(facts).encode()
        n_bytes = len(payload) + len(described) + _ALIGNMENT + _RECORD_BYTES
        with self._lock, self._quota.lock if self._quota else nullcontext():
            if self._quota is not None and not self._quota.reserve(n_bytes):
                return False
            if self._pid != os.getpid():  # forked: the shard and its lock belong to the parent
                self._inherited, self._writer, self._pid = self._writer, None, os.getpid()
            try:
                if self._writer is None or self._writer.position >= SHARD_BYTES:
                    self._open_shard()
                assert self._writer is not None
                record = _RECORD.pack(
                    *_Record(
                        sha256=bytes.fromhex(sha256),
                        offset=self._writer.append(payload + described),
                        n_bytes=len(payload),
                        rows=states.shape[0],
                        width=states.shape[1],
                        dtype=_DTYPES.index(states.dtype),
                        facts_bytes=len(described),
                        crc32=zlib.crc32(described, zlib.crc32(payload)),
                    )
                )
                self._writer.append_record(record + _CHECK.pack(zlib.crc32(record)))
                self._touch()
            except OSError as error:
                self.close()  # an incomplete write may be at the end of the shard
                raise UserError(
                    f"{self.folder}: states cannot be stored ({error.strerror}); free disk space and set "
                    "paths.cache_limit_gb, or name another folder with paths.cache"
                ) from error
        return True

    def _open_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._about is not None and not (self.folder / ABOUT).exists():
            write_json_atomic(self.folder / ABOUT, dict(self._about))
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(3)}"
        self._writer = _Writer(self.folder / name)

    def _map(self, shard: str, needed: int) -> mmap.mmap | None:
        """The bytes of a shard; a private mapping, so that writing to a tensor does not change the file."""
        found = self._maps.get(shard)
        if found is not None and len(found) >= needed:
            return found
        try:
            with (self.folder / f"{shard}.states").open("rb") as file:
                if os.fstat(file.fileno()).st_size < needed:
                    return None
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            return None
        return self._maps[shard]

    def _is_intact(self, record: _Record, buffer: mmap.mmap) -> bool:
        if record.sha256 in self._checked:
            return True
        with memoryview(buffer) as view:
            intact = zlib.crc32(view[record.offset : record.end]) == record.crc32
        intact = intact and is_finite(_states(record, buffer))
        if intact:
            self._checked.add(record.sha256)
        return intact

    def _touch(self) -> None:
        """Record that the store is used now, at most once in `_TOUCH_S`."""
        if time.monotonic() - self._touched_s >= _TOUCH_S:
            self._touched_s = time.monotonic()
            with suppress(OSError):  # read-only storage: the time of last use is not recorded
                os.utime(self.folder / ABOUT)

    @property
    def last_used_s(self) -> float:
        """When a process last used the store, in seconds since 1970; of a running one up to `_TOUCH_S` earlier."""
        path = self.folder / ABOUT
        return path.stat().st_mtime if path.exists() else 0.0

    # ---- maintenance -------------------------------------------------------------------------------------------------

    @property
    def n_bytes(self) -> int:
        """Size on disk."""
        return folder_bytes(self.folder)

    def damaged(self) -> list[str]:
        """Read all entries; return the addresses of those that do not match their checksum, or hold NaN or infinity."""
        self.refresh()
        bad = []
        for key in list(self._entries):
            shard, record = self._record(key)
            buffer = self._map(shard, record.end)
            self._checked.discard(key)
            if buffer is None or not self._is_intact(record, buffer):
                bad.append(key.hex())
        return bad

    def compact(self) -> int:
        """Rewrite shards without damaged and duplicate entries, and merge small shards; returns the bytes freed.

        Shards to which a running process appends are skipped.
        """
        before = self.n_bytes
        touched_s, self._touched_s = self._touched_s, math.inf  # compacting is no use
        bad = set(self.damaged())
        small = [path.stem for path in self.folder.glob("*.states") if path.stat().st_size < SHARD_BYTES // 2]
        if len(small) == 1:
            small = []
        shards = {path.stem for path in self.folder.glob("*.index")} | {p.stem for p in self.folder.glob("*.states")}
        for shard in sorted(shards):
            lock = FileLock(self.folder / f"{shard}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                held = [key.hex() for key, (place, _) in self._entries.items() if place == shard]
                records = [self._record(bytes.fromhex(name))[1] for name in held]
                n_bytes = sum(record.n_bytes + record.facts_bytes for record in records)
                path = self.folder / f"{shard}.states"
                is_tight = path.exists() and path.stat().st_size <= n_bytes + _ALIGNMENT * len(held)
                if is_tight and shard not in small and not bad.intersection(held):
                    continue
                for name in held:  # copied before it is deleted, so that it always exists
                    if (found := self.read(name)) is not None:
                        self.write(name, *found)
                if self._writer is not None:
                    self._writer.sync()
                self._maps.pop(shard, None)
                for suffix in ("index", "states"):
                    (self.folder / f"{shard}.{suffix}").unlink(missing_ok=True)
                self._seen.pop(shard, None)
            finally:
                lock.release()
                (self.folder / f"{shard}.lock").unlink(missing_ok=True)
        self.close()
        self._entries = {key: found for key, found in self._entries.items() if key.hex() not in bad}
        self.refresh()
        self._touched_s = touched_s
        return before - self.n_bytes

    @property
    def is_written(self) -> bool:
        """Whether a running process appends to one of the shards."""
        for path in self.folder.glob("*.states"):  # made after its lock: taking a new lock stops its writer
            if (held := path.with_suffix(".lock")).exists():
                lock = FileLock(held)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    return True
                lock.release()
        return False

    def close(self) -> None:
        """Close the shard of this process; the next write opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def is_finite(states: Tensor) -> bool:
    """Whether no value is NaN or infinite; takes a tenth of the time of `isfinite().all()`."""
    return not states.numel() or all(math.isfinite(edge) for edge in states.aminmax())


def _states(record: _Record, buffer: mmap.mmap) -> Tensor:
    """The states of an entry [T, E], without a copy."""
    dtype, count = _DTYPES[record.dtype], record.rows * record.width
    states = torch.frombuffer(buffer, dtype=dtype, count=count, offset=record.offset) if count else torch.empty(0)
    return states.to(dtype).view(record.rows, record.width)


class _Writer:
    """The shard to which this process appends; its lock shows other processes that it is in use."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        self._lock.acquire(timeout=0)
        self._states = open(path.with_name(f"{path.name}.states"), "ab", buffering=0)  # noqa: SIM115
        self._index = open(path.with_name(f"{path.name}.index"), "ab", buffering=0)  # noqa: SIM115
        self.position = 0

    def append(self, data: bytes) -> int:
        """Write `data` at the next aligned offset, and return the offset."""
        padding = -self.position % _ALIGNMENT
        _write_all(self._states.fileno(), b"\0" * padding + data)
        start = self.position + padding
        self.position = start + len(data)
        return start

    def append_record(self, record: bytes) -> None:
        _write_all(self._index.fileno(), record)

    def sync(self) -> None:
        """Force everything to the disk."""
        os.fsync(self._states.fileno())
        os.fsync(self._index.fileno())
        sync(Path(self._index.name).parent)

    def close(self) -> None:
        self._states.close()
        self._index.close()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
