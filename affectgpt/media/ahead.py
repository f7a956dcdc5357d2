"""Decoded media that will soon be asked for again, within a limit of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

READ_AHEAD_BYTES = 256 << 20

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Items by address, each handed out once: at most `READ_AHEAD_BYTES`, the oldest are dropped.

    Sent to another process, it is empty there.
    """

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, tuple[Item, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadAhead, ()

    def put(self, address: Hashable, item: Item, n_bytes: int) -> None:
        with self._lock:
            self._items[address] = (item, n_bytes)
            while sum(size for _, size in self._items.values()) > READ_AHEAD_BYTES:
                self._items.popitem(last=False)

    def pop(self, address: Hashable) -> Item | None:
        with self._lock:
            return self._items.pop(address, (None, 0))[0]
