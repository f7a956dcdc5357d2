"""Many tasks at once: order, bounds, errors and workers that die."""

import threading
import time

import pytest

from affectgpt.spread import in_threads


def test_reading_ahead_overlaps_keeps_the_order_and_raises_in_turn():
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
