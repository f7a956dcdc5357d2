import copy
import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from affectgpt.cache import store as module
from affectgpt.cache.store import StateStore
from affectgpt.runtime import UserError


def address(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def some(number: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(number)).to(dtype)


@pytest.fixture
def store(tmp_path):
    return StateStore(tmp_path / "store", {"encoder": "toy"})


def fill(store, numbers):
    for number in numbers:
        store.write(address(number), some(number), {"number": number})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_read_as_they_were_written_bit_for_bit(store, dtype):
    store.write(address(1), some(1, dtype), {"times_s": [0.0, 0.5]})
    states, facts = StateStore(store.folder).read(address(1))
    assert states.dtype == dtype
    assert torch.equal(states, some(1, dtype))
    assert facts == {"times_s": [0.0, 0.5]}


def test_missing_states_differ_from_states_without_rows(store):
    store.write(address(1), torch.empty(0, 5), {})
    assert store.read(address(1))[0].shape == (0, 5)
    assert store.read(address(2)) is None


def test_a_reader_sees_what_others_write_after_it_was_opened(store):
    reader = StateStore(store.folder)
    assert reader.read(address(1)) is None
    fill(store, [1, 2])
    assert torch.equal(reader.read(address(2))[0], some(2))
    assert len(reader) == 2


def test_a_full_disk_is_an_error_and_later_entries_are_intact(store, monkeypatch):
    fill(store, [1])
    write = os.write

    def full(file, data):
        write(file, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"store: states cannot be stored \(No space left on device\)"):
            fill(store, [2])
    fill(store, [3])
    other = StateStore(store.folder)
    assert sorted(other) == sorted([address(1), address(3)])
    assert not other.damaged()
    assert torch.equal(other.read(address(3))[0], some(3))


def test_changing_a_tensor_that_was_read_changes_nothing_on_disk(store):
    fill(store, [1])
    store.read(address(1))[0].zero_()
    assert torch.equal(StateStore(store.folder).read(address(1))[0], some(1))


def test_a_later_entry_of_the_same_address_wins(store):
    fill(store, [1])
    store.write(address(1), some(7), {})
    assert torch.equal(StateStore(store.folder).read(address(1))[0], some(7))


def test_shards_are_closed_at_their_size_and_read_together(store, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 200)
    fill(store, range(10))
    assert len(list(store.folder.glob("*.states"))) > 2
    other = StateStore(store.folder)
    assert all(torch.equal(other.read(address(number))[0], some(number)) for number in range(10))


@pytest.mark.parametrize("where", ["tensor", "facts"])
def test_a_flipped_byte_is_noticed_and_the_entry_counts_as_missing(store, caplog, where):
    fill(store, [1, 2])
    (path,) = store.folder.glob("*.states")
    data = bytearray(path.read_bytes())
    data[10 if where == "tensor" else 62] ^= 1
    path.write_bytes(data)
    reader = StateStore(store.folder)
    assert reader.read(address(1)) is None
    assert "damaged" in caplog.text
    assert torch.equal(reader.read(address(2))[0], some(2))
    reader.write(address(1), some(1), {})
    assert torch.equal(StateStore(store.folder).read(address(1))[0], some(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stored_states_that_are_not_finite_count_as_missing_and_are_deleted(store, caplog, dtype, value):
    fill(store, [1])
    store.write(address(2), some(2, dtype).index_fill(1, torch.tensor([3]), value), {})
    store.close()
    assert StateStore(store.folder).read(address(2)) is None
    assert "are damaged and will be recomputed" in caplog.text
    assert StateStore(store.folder).damaged() == [address(2)]
    StateStore(store.folder).compact()
    assert list(StateStore(store.folder)) == [address(1)]


def test_a_damaged_record_is_ignored_and_the_others_are_found(store, caplog):
    fill(store, [1, 2, 3])
    (path,) = store.folder.glob("*.index")
    data = bytearray(path.read_bytes())
    data[72 + 40] ^= 1
    path.write_bytes(data)
    reader = StateStore(store.folder)
    assert [address(number) in reader for number in (1, 2, 3)] == [True, False, True]
    assert "damaged record" in caplog.text


@pytest.mark.parametrize("lost", [1, 71])
def test_an_incomplete_record_or_shard_loses_only_the_last_entry(store, lost):
    fill(store, [1, 2])
    (index,) = store.folder.glob("*.index")
    index.write_bytes(index.read_bytes()[:-lost])
    reader = StateStore(store.folder)
    assert [address(number) in reader for number in (1, 2)] == [True, False]
    (states,) = store.folder.glob("*.states")
    states.write_bytes(states.read_bytes()[:80])
    assert [StateStore(store.folder).read(address(number)) is None for number in (1, 2)] == [False, True]


def _write_some(folder, first):
    store = StateStore(folder)
    fill(store, range(first, first + 20))


def test_several_processes_write_one_store(store):
    context = multiprocessing.get_context("fork")
    fill(store, [0])  # the parent's shard is open when the children are forked
    workers = [context.Process(target=_write_some, args=(store.folder, 100 * n)) for n in (1, 2)]
    child = context.Process(target=fill, args=(store, range(300, 310)))
    for worker in (*workers, child):
        worker.start()
    fill(store, range(1, 20))
    for worker in (*workers, child):
        worker.join(60)
        assert worker.exitcode == 0
    numbers = [*range(20), *range(100, 120), *range(200, 220), *range(300, 310)]
    assert len(store) == len(numbers)
    assert all(torch.equal(store.read(address(number))[0], some(number)) for number in numbers)
    assert not store.damaged()


def test_threads_that_write_at_once_hold_the_limit_together(tmp_path, monkeypatch):
    fill(StateStore(tmp_path / "one"), [0])
    one_entry = module.folder_bytes(tmp_path / "one")
    measure = module.folder_bytes
    monkeypatch.setattr(module, "folder_bytes", lambda folder: (measure(folder), time.sleep(0.01))[0])
    store = StateStore(tmp_path / "many", quota=module.Quota(tmp_path / "many", 3 * one_entry + 50))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: fill(store, [number]), range(8)))
    assert 2 <= len(StateStore(tmp_path / "many")) <= 3
    assert measure(tmp_path / "many") <= 3 * one_entry + 50


KILLED = """
import sys
from pathlib import Path
from tests.cache.test_store import fill
from affectgpt.cache.store import StateStore
from affectgpt.runtime import UserError
store = StateStore(Path(sys.argv[1]))
number = 0
while True:
    fill(store, [number])
    number += 1
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_only_complete_entries(tmp_path):
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, env={**os.environ}
    )
    while int(process.stdout.readline()) < 50:
        time.sleep(0)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    store = StateStore(tmp_path)
    assert len(store) >= 50
    assert not store.damaged()
    assert all(torch.equal(store.read(address(number))[0], some(number)) for number in range(50))


def test_compacting_keeps_every_intact_entry_and_frees_the_rest(store, monkeypatch):
    fill(store, range(5))
    fill(store, range(5))  # twice
    (path,) = store.folder.glob("*.states")
    data = bytearray(path.read_bytes())
    data[len(data) - 40] ^= 1  # the second entry of number 4
    path.write_bytes(data)
    store.close()
    other = StateStore(store.folder)
    assert other.damaged() == [address(4)]
    assert other.compact() > 0
    fresh = StateStore(store.folder)
    assert sorted(fresh) == sorted(address(number) for number in range(4))
    assert all(torch.equal(fresh.read(address(number))[0], some(number)) for number in range(4))
    assert other.compact() == 0


def test_compacting_merges_small_shards_once(store):
    for number in range(4):  # as four runs leave them
        fill(store, [number])
        store.close()
    assert len(list(store.folder.glob("*.states"))) == 4
    reader = StateStore(store.folder)
    assert torch.equal(reader.read(address(1))[0], some(1))
    other = StateStore(store.folder)
    other.compact()
    (shard,) = store.folder.glob("*.states")
    for each in (reader, StateStore(store.folder)):  # also a store that was open before
        assert all(torch.equal(each.read(address(number))[0], some(number)) for number in range(4))
    assert other.compact() == 0
    assert list(store.folder.glob("*.states")) == [shard]


def test_a_shard_in_use_is_not_compacted(store):
    fill(store, [1, 1])
    assert StateStore(store.folder).compact() == 0
    fill(store, [2])
    assert torch.equal(StateStore(store.folder).read(address(2))[0], some(2))


def test_a_store_in_use_is_touched_now_and_then_and_compacting_is_no_use(store, monkeypatch):
    long_ago = 1e9

    def touched_by(use) -> bool:
        os.utime(store.folder / "about.json", (long_ago, long_ago))
        use()
        return store.last_used_s != long_ago

    fill(store, [1])
    reader = StateStore(store.folder)
    for use in (lambda: fill(store, [2]), lambda: reader.read(address(1))):
        with monkeypatch.context() as patch:
            patch.setattr(module, "_TOUCH_S", 0.0)
            assert touched_by(use)
        assert not touched_by(use)  # not each time
    fill(store, [1])
    store.close()
    other = StateStore(store.folder)
    assert not touched_by(other.compact)
    assert touched_by(lambda: other.read(address(1)))


def test_a_store_is_pickled_without_its_open_files(store):
    fill(store, [1])
    twin = copy.deepcopy(store)
    twin.write(address(2), some(2), {})
    assert torch.equal(store.read(address(2))[0], some(2))
    assert len(list(store.folder.glob("*.states"))) == 2


def test_states_of_another_shape_are_refused(store):
    with pytest.raises(ValueError, match=r"must be \[T, E\].*found torch.float64 \[3\]"):
        store.write(address(1), torch.zeros(3, dtype=torch.float64), {})


def test_after_a_power_failure_every_entry_is_intact_or_missing(store, tmp_path, caplog):
    fill(store, range(3))
    store.close()
    for suffix in ("index", "states"):
        (path,) = store.folder.glob(f"*.{suffix}")
        data = path.read_bytes()
        for end in range(0, len(data) + 1, 3):  # zeros where blocks did not reach the disk
            path.write_bytes(data[:end] + bytes(len(data) - end))
            after = StateStore(store.folder)
            found = [after.read(address(number)) for number in range(3)]
            assert all(one is None or torch.equal(one[0], some(number)) for number, one in enumerate(found))
            assert sum(one is not None for one in found) == (end // 72 if suffix == "index" else _n_within(data, end))
        path.write_bytes(data)
    assert "a damaged record is ignored" in caplog.text
    assert "are damaged and will be recomputed" in caplog.text


def _n_within(states: bytes, end: int) -> int:
    """How many of the entries are complete in the first `end` bytes of a shard."""
    ends = [states.index(f'{{"number": {number}}}'.encode()) + len('{"number": 0}') for number in range(3)]
    return sum(place <= end for place in ends)
