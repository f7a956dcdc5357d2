"""A store of encoder states: shards that are appended to and mapped into memory, with an index of fixed-size records.

    <folder>/about.json                     whose states these are, for people and for `python -m affectgpt.cache`
    <folder>/<time>-<process>.states        tensors, one after the other, each with its facts as JSON behind it
    <folder>/<time>-<process>.index         one 72-byte record an entry: address, place, shape, precision, checksums

Each process appends to shards of its own, so any number may read and write one store. An entry exists once its record
is written, which happens after its bytes: a killed process leaves no half entry, at worst bytes that no record points
to. Bytes are checked against their checksum when a process first reads them; what does not fit is reported and counts
as absent, so that it is made again.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from affectgpt.runtime import InputError, write_json_atomic

log = logging.getLogger("affectgpt")

ABOUT = "about.json"
SHARD_BYTES = 256 << 20
_ALIGNMENT = 64
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # a record holds the place in this tuple: append only
_RECORD = struct.Struct("<32sQQIIIII")  # `_Record`
_CHECK = struct.Struct("<I")  # behind each record: crc32 of it
_RECORD_BYTES = _RECORD.size + _CHECK.size


class _Record(NamedTuple):
    """Where an entry lies in its shard and what it is."""

    sha256: bytes
    offset: int
    n_bytes: int
    rows: int
    width: int
    dtype: int  # place in _DTYPES
    facts_bytes: int
    crc32: int  # of tensor and facts

    @property
    def end(self) -> int:
        return self.offset + self.n_bytes + self.facts_bytes


class Room:
    """What the stores below a folder may hold together; several processes keep to it side by side.

    Args:
        folder: of all stores.
        limit_bytes: what all its files may hold. Each process looks at the files again after every thousandth of it
            that it has written, so that n of them exceed it by less than n thousandths.
    """

    _AGAIN_S = 60.0  # how long "full" holds before the files are looked at again

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._measured: int | None = None
        self._since = 0
        self._full_since_s: float | None = None

    @property
    def is_full(self) -> bool:
        """Whether something was refused a moment ago."""
        return self._full_since_s is not None and time.monotonic() - self._full_since_s < self._AGAIN_S

    def take(self, n_bytes: int) -> bool:
        """Whether there is room for `n_bytes`, which then counts as used."""
        if self.is_full:
            return False
        if self._measured is None or self._full_since_s is not None or self._since > self._limit // 1000:
            self._measured, self._since, self._full_since_s = folder_bytes(self._folder), 0, None
        if self._measured + self._since + n_bytes > self._limit:
            self._full_since_s = time.monotonic()
            return False
        self._since += n_bytes
        return True


def folder_bytes(folder: Path) -> int:
    """Size of all files below `folder`, which other processes may be changing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                total += path.stat().st_size
    return total


class StateStore:
    """States [T, E] and facts by the sha256 of the medium they came from.

    Args:
        folder: made when something is first written.
        about: what decides the states, written to about.json.
        room: how much may be written; None = any amount.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None, room: Room | None = None) -> None:
        self.folder = folder
        self._about = about
        self._room = room
        self._entries: dict[bytes, tuple[str, bytes]] = {}  # address -> (shard, its record)
        self._seen: dict[str, int] = {}  # shard -> bytes of its index that were read
        self._forget()

    def _forget(self) -> None:
        """What must not travel to another process."""
        self._maps: dict[str, mmap.mmap] = {}
        self._checked: set[bytes] = set()
        self._writer: _Writer | None = None
        self._inherited: _Writer | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("folder", "_about", "_room", "_entries", "_seen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

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
        """Take up what this and other processes have written since."""
        for shard, size in self._indices():
            known = self._seen.get(shard, 0)
            if size < known + _RECORD_BYTES:
                continue
            path = self.folder / f"{shard}.index"
            with suppress(FileNotFoundError), path.open("rb") as file:  # it may have been compacted away meanwhile
                file.seek(known)
                data = file.read()
                whole = len(data) - len(data) % _RECORD_BYTES  # the rest is half a record: its writer was killed
                for start in range(0, whole, _RECORD_BYTES):
                    record = data[start : start + _RECORD.size]
                    if zlib.crc32(record) != _CHECK.unpack_from(data, start + _RECORD.size)[0]:
                        log.warning("%s: a damaged record is left out; its clip is encoded again", path)
                        continue
                    self._entries[record[:32]] = (shard, record)
                self._seen[shard] = known + whole

    def _indices(self) -> list[tuple[str, int]]:
        """(shard, bytes of its index), in the order in which the shards were begun."""
        with suppress(FileNotFoundError), os.scandir(self.folder) as files:
            return sorted((file.name[:-6], file.stat().st_size) for file in files if file.name.endswith(".index"))
        return []

    def _record(self, key: bytes) -> tuple[str, _Record]:
        shard, record = self._entries[key]
        return shard, _Record._make(_RECORD.unpack(record))

    def read(self, sha256: str) -> tuple[Tensor, dict[str, Any]] | None:
        """States [T, E], mapped from disk, and facts; None if there are none, or (with a warning) damaged ones."""
        if sha256 not in self:
            return None
        if not self._maps:
            with suppress(OSError):  # a cache on read-only storage has no last use
                os.utime(self.folder / ABOUT)
        key = bytes.fromhex(sha256)
        shard, record = self._record(key)
        buffer = self._map(shard, record.end)
        if buffer is None and not (self.folder / f"{shard}.index").exists():  # compacted away: it lies elsewhere now
            del self._entries[key]
            return self.read(sha256)
        if buffer is None or not self._is_sound(record, buffer):
            log.warning("%s: the states of %s are damaged and will be made again", self.folder / shard, sha256)
            del self._entries[key]
            return None
        dtype, count = _DTYPES[record.dtype], record.rows * record.width
        states = torch.frombuffer(buffer, dtype=dtype, count=count, offset=record.offset) if count else torch.empty(0)
        facts = json.loads(buffer[record.offset + record.n_bytes : record.end])
        return states.to(dtype).view(record.rows, record.width), facts

    def write(self, sha256: str, states: Tensor, facts: Mapping[str, Any]) -> bool:
        """Append states [T, E] and their facts; False if there is no room for them."""
        states = states.detach().cpu().contiguous()
        if states.ndim != 2 or states.dtype not in _DTYPES:
            raise InputError(f"states must be [T, E] in one of {_DTYPES}, found {states.dtype} {list(states.shape)}")
        payload = states.view(torch.uint8).numpy().tobytes() if states.numel() else b""
        described = json.dumps(facts).encode()
        if self._room is not None and not self._room.take(len(payload) + len(described) + _ALIGNMENT + _RECORD_BYTES):
            return False
        with self._lock:
            if self._pid != os.getpid():  # forked: the parent's shard, and the lock on it, are the parent's
                self._inherited, self._writer, self._pid = self._writer, None, os.getpid()
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
        """The shard's bytes; a private mapping, so that nobody can change the file through a tensor."""
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

    def _is_sound(self, record: _Record, buffer: mmap.mmap) -> bool:
        if record.sha256 in self._checked:
            return True
        with memoryview(buffer) as view:
            sound = zlib.crc32(view[record.offset : record.end]) == record.crc32
        if sound:
            self._checked.add(record.sha256)
        return sound

    @property
    def last_used_s(self) -> float:
        """When a process last began to read or write here, in seconds since 1970."""
        path = self.folder / ABOUT
        return path.stat().st_mtime if path.exists() else 0.0

    # ---- care --------------------------------------------------------------------------------------------------------

    @property
    def n_bytes(self) -> int:
        """Size on disk."""
        return folder_bytes(self.folder)

    def damaged(self) -> list[str]:
        """Read everything; the addresses whose bytes do not fit their checksum."""
        self.refresh()
        bad = []
        for key in list(self._entries):
            shard, record = self._record(key)
            buffer = self._map(shard, record.end)
            self._checked.discard(key)
            if buffer is None or not self._is_sound(record, buffer):
                bad.append(key.hex())
        return bad

    def compact(self) -> int:
        """Rewrite shards without damaged and doubled entries, small ones as few; returns the bytes that became free.

        Shards that a living process appends to are left alone.
        """
        before = self.n_bytes
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
                for name in held:  # a copy first: at no moment is an entry nowhere
                    if (found := self.read(name)) is not None:
                        self.write(name, *found)
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
        return before - self.n_bytes

    def close(self) -> None:
        """End this process's shard; writing again begins another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _Writer:
    """The shard that this process appends to; its lock tells others that it is not finished."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        self._lock.acquire(timeout=0)
        self._states = open(path.with_name(f"{path.name}.states"), "ab", buffering=0)  # noqa: SIM115
        self._index = open(path.with_name(f"{path.name}.index"), "ab", buffering=0)  # noqa: SIM115
        self.position = 0

    def append(self, data: bytes) -> int:
        """Write `data` at the next aligned place, and return that place."""
        padding = -self.position % _ALIGNMENT
        _write_all(self._states.fileno(), b"\0" * padding + data)
        start = self.position + padding
        self.position = start + len(data)
        return start

    def append_record(self, record: bytes) -> None:
        _write_all(self._index.fileno(), record)

    def close(self) -> None:
        self._states.close()
        self._index.close()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
