"""Journals and named locks: complete lines and one writer of each answer, whichever process is killed."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from affectgpt.annotate.store import Store
from affectgpt.journal import Journal, append_rows, get_or_make, read_journal
from affectgpt.journal.locks import NamedLocks
from affectgpt.runtime import UserError

# fork: the children need nothing but this module, and a spawned one would import torch through the tests' package.
processes = multiprocessing.get_context("fork")


def test_rows_are_found_by_key_and_the_newest_by_name(tmp_path):
    rows = Journal(tmp_path / "a.jsonl", name=lambda row: row["id"])
    for number, key in enumerate("abcab"):
        rows.append({"key": key, "id": "xyx"[number % 3], "n": number, "text": "ü\u2028\n"})
    assert rows.get("a")["n"] == 3
    assert rows.get("z") is None
    assert rows.latest("x")["n"] == 3
    assert [row["n"] for row in rows.rows()] == [3, 4]
    again = Journal(tmp_path / "a.jsonl", name=lambda row: row["id"])
    assert again.get("a") == rows.get("a")
    assert again.count("x") == 3


def test_the_next_writer_cuts_off_an_incomplete_last_line(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    Journal(path).append({"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "b", "te')
    rows = Journal(path)
    assert rows.get("b") is None
    with caplog.at_level(logging.WARNING):
        rows.append({"key": "c"})
    assert "cut off an incomplete last line (16 bytes)" in caplog.text
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert rows.get("c")


ROWS = ({"key": "a", "text": "ü\u2028}"}, {"key": "b", "n": [1, {"c": 2}]}, {"key": "\udcff", "text": ""}, {"key": "d"})


def _lines(rows) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        append_rows(Path(folder) / "a.jsonl", rows)
        return (Path(folder) / "a.jsonl").read_bytes()


def _check_start(path, acknowledged):
    """What must hold after any interruption: all acknowledged rows are there, in order, and a next start writes."""
    before = [row["key"] for row in read_journal(path)]
    journal = Journal(path)
    found = [row["key"] for row in journal.rows()]
    assert found == before
    assert found[: len(acknowledged)] == [row["key"] for row in acknowledged]
    assert set(found) <= {row["key"] for row in ROWS}
    journal.append({"key": "next"})
    assert [row["key"] for row in journal.rows()] == [*found, "next"]
    journal.close()
    assert [row["key"] for row in read_journal(path)] == [*found, "next"]
    return found


def test_a_file_cut_at_any_byte_keeps_all_complete_rows_and_continues(tmp_path, caplog):
    data = _lines(ROWS)
    for end in range(len(data) + 1):
        path = tmp_path / f"{end}.jsonl"
        path.write_bytes(data[:end])
        n_complete = data[:end].count(b"\n")
        found = _check_start(path, ROWS[:n_complete])
        # A row that lacks only its line end is complete, too.
        assert len(found) == n_complete + (data[end : end + 1] == b"\n" and data[end - 1 : end] != b"\n")


def test_a_file_whose_end_did_not_reach_the_disk_at_a_power_failure_keeps_all_rows_before(tmp_path, caplog):
    data = _lines(ROWS)
    for end in range(len(data) + 1):
        path = tmp_path / f"{end}.jsonl"
        path.write_bytes(data[:end] + bytes(len(data) - end))
        _check_start(path, ROWS[: data[:end].count(b"\n")])
    assert "left out an incomplete last line" in caplog.text


def test_a_block_that_did_not_reach_the_disk_costs_its_own_rows_only(tmp_path, caplog):
    data = _lines(ROWS)
    path = tmp_path / "a.jsonl"
    start, end = data.index(b'"b"'), data.index(b'"d"') - 12  # from the second row into the third
    path.write_bytes(data[:start] + bytes(end - start) + data[end:])
    assert [row["key"] for row in Journal(path).rows()] == ["a", "d"]
    assert [row["key"] for row in read_journal(path)] == ["a", "d"]
    assert "a.jsonl:2: left out a line with zero bytes" in caplog.text
    _check_start(path, ROWS[:1])


def _fill_at_every_byte(folder, queue):
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(len(_lines(ROWS)) + 1):
        for fsync in (False, True):
            path, acknowledged = folder / f"{size}-{fsync}.jsonl", []
            journal = Journal(path, fsync=fsync)
            journal.refresh()
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            for row in ROWS:
                try:
                    journal.append(row)
                    acknowledged.append(row["key"])
                except UserError:
                    pass
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            queue.put((path, acknowledged, [row["key"] for row in journal.rows()]))
            journal.close()
    queue.put(None)


def test_a_disk_that_is_full_at_any_byte_takes_exactly_the_acknowledged_rows(tmp_path):
    queue = processes.Queue()
    child = processes.Process(target=_fill_at_every_byte, args=(tmp_path, queue))
    child.start()
    n_full = 0
    while (item := queue.get(timeout=20)) is not None:
        path, acknowledged, shown = item
        assert shown == acknowledged
        assert _check_start(path, [{"key": key} for key in acknowledged]) == acknowledged
        n_full += len(acknowledged) < len(ROWS)
    child.join()
    assert n_full == 2 * len(_lines(ROWS))


def test_a_row_that_an_editor_left_without_a_line_end_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b"}')
    rows = Journal(path)
    assert rows.get("b")
    rows.append({"key": "c"})
    assert path.read_text() == '{"key": "a"}\n{"key": "b"}\n{"key": "c"}\n'


def test_without_file_locks_a_journal_refuses_by_name(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    rows, claims = Journal(tmp_path / "a.jsonl"), NamedLocks(tmp_path / "claims")
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    for call in (lambda: rows.append({"key": "a"}), lambda: read_journal(rows.path), lambda: claims.acquire("x")):
        with pytest.raises(UserError, match=f"{tmp_path}/.*: its file system has no file locks"):
            call()


def test_a_disk_that_can_not_even_shorten_the_file_again_reports_the_first_error(tmp_path, monkeypatch):
    rows = Journal(tmp_path / "a.jsonl")
    rows.append({"key": "a"})
    write = os.write
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(os, "write", lambda file, data: write(file, data[:5]) if len(data) > 10 else fail())
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(UserError, match=r"a\.jsonl: cannot be written \(Input/output error\)"):
            rows.append({"key": "b"})
    assert [row["key"] for row in rows.rows()] == ["a"]
    rows.append({"key": "c"})
    assert [row["key"] for row in read_journal(rows.path)] == ["a", "c"]


def test_a_file_that_was_removed_while_it_is_written_is_named(tmp_path):
    rows = Journal(tmp_path / "a.jsonl")
    rows.append({"key": "a"})
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"a\.jsonl was removed while it was written"):
        rows.append({"key": "b"})


def test_a_full_folder_of_temporary_files_is_named_and_counts_no_row_twice(tmp_path):
    seen = []
    rows = Journal(tmp_path / "a.jsonl", on_row=lambda row: seen.append(row["key"]))
    rows.append({"key": "a"})
    rows._index.execute("PRAGMA max_page_count = 1")  # no smaller than the index is
    with pytest.raises(UserError, match=r"temporary index cannot be written \(database or disk is full\)"):
        rows.append(*({"key": f"{number:0200d}"} for number in range(200)))
    rows.append({"key": "b"})
    assert rows.get("b")
    assert seen == ["a", *(f"{number:0200d}" for number in range(200)), "b"]
    assert [row["key"] for row in rows.rows()] == seen


def test_a_broken_line_in_the_middle_is_an_error_with_its_line_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON .*correct or remove the line"):
        Journal(path).refresh()
    path.write_text('{"key": "a"}\n{"kay": "b"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not an object with the text 'key'"):
        Journal(path).refresh()


def test_rows_of_another_writer_are_found_immediately(tmp_path):
    mine, other = Journal(tmp_path / "a.jsonl"), Journal(tmp_path / "a.jsonl")
    other.append({"key": "b", "from": "other"})
    assert mine.get("b")["from"] == "other"
    mine.append({"key": "c"})
    assert other.get("c")


def _append_many(path, letter, n):
    rows = Journal(path)
    for number in range(n):
        rows.append({"key": f"{letter}{number}", "text": letter * 5000})


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "a.jsonl"
    writers = [processes.Process(target=_append_many, args=(path, letter, 60)) for letter in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 180
    assert all(set(row["text"]) == {row["key"][0]} for row in rows)


def test_a_writer_killed_at_any_time_leaves_complete_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    for wait_s in (0.05, 0.08, 0.11):
        writer = processes.Process(target=_append_many, args=(path, str(wait_s), 100_000))
        writer.start()
        time.sleep(wait_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    rows = Journal(path)
    rows.append({"key": "end"})
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 1
    assert all(line.endswith(b"\n") and json.loads(line)["key"] for line in lines)


def _append_to_a_full_disk(path, queue):
    import resource  # in a process of its own, since a hard limit cannot be raised again

    rows = Journal(path)
    rows.append({"key": "a"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for row in ({"key": "b", "text": "x" * 2000}, {"key": "c", "text": "x" * 500}, {"key": "d", "text": "x" * 900}):
        try:
            rows.append(row)
        except UserError as error:
            queue.put(str(error))
        queue.put(path.read_text())
    queue.put([row["key"] for row in rows.rows()])


def test_a_full_disk_is_an_error_and_leaves_the_file_unchanged(tmp_path):
    queue = processes.Queue()
    child = processes.Process(target=_append_to_a_full_disk, args=(tmp_path / "a.jsonl", queue))
    child.start()
    found = [queue.get(timeout=10) for _ in range(6)]
    child.join()
    first, second = '{"key": "a"}\n', '{"key": "c", "text": "' + "x" * 500 + '"}\n'
    assert found[1:3] == [first, first + second]
    assert found[4:] == [first + second, ["a", "c"]]
    for message in (found[0], found[3]):
        assert "a.jsonl: cannot be written (File too large); is the disk full?" in message


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    rows = Journal(tmp_path / "a.jsonl")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    rows.append({"key": "a"}, {"key": "b"})
    assert (tmp_path / "a.jsonl").read_text() == '{"key": "a"}\n{"key": "b"}\n'


@pytest.mark.parametrize("is_indexed", [True, False])
def test_lines_of_any_length_are_read_and_later_appends_delete_nothing(tmp_path, is_indexed):
    path = tmp_path / "a.jsonl"
    mine, other = Journal(path), Journal(path)
    if is_indexed:
        mine.refresh()
    other.append({"key": "long", "text": "x" * ((1 << 24) + 100)})
    other.append({"key": "after"})
    mine.append({"key": "mine"})
    assert [row["key"] for row in mine.rows()] == ["long", "after", "mine"]
    assert len(mine.get("long")["text"]) == (1 << 24) + 100
    with path.open("a") as file:
        file.write('{"key": "torn", "text": "' + "y" * (1 << 25))
    assert Journal(path).get("mine")
    mine.append({"key": "last"})
    assert [row["key"] for row in read_journal(path)] == ["long", "after", "mine", "last"]


def test_rows_are_found_by_another_field_than_key(tmp_path):
    rows = Journal(tmp_path / "a.jsonl", key="id")
    rows.append({"id": "a", "n": 1}, {"id": "b"}, {"id": "a", "n": 2})
    assert rows.get("a")["n"] == 2
    assert [row["id"] for row in rows.rows()] == ["b", "a"]
    with pytest.raises(KeyError, match=r"a row needs 'id', found \['key'\]"):
        rows.append({"key": "a"})


def test_half_a_surrogate_pair_and_names_that_are_not_utf8_survive(tmp_path):
    rows = Journal(tmp_path / "a.jsonl")
    for key in ("cut \ud83d", "file \udcff", "whole 😀"):
        rows.append({"key": key, "text": key})
        assert rows.get(key)["text"] == rows.latest(key)["text"] == key
    assert (tmp_path / "a.jsonl").read_text().endswith('"whole 😀"}\n')


def test_rows_that_arrive_during_a_write_are_written_together(tmp_path, monkeypatch):
    writes = []
    real = os.write

    def slow(file: int, data: memoryview) -> int:
        writes.append(bytes(data).count(b"\n"))
        time.sleep(0.02)
        return real(file, data)

    monkeypatch.setattr(os, "write", slow)
    rows = Journal(tmp_path / "a.jsonl")

    async def all_at_once() -> None:
        async def one(number: int) -> None:
            await rows.put({"key": str(number)})
            assert f'"{number}"' in (tmp_path / "a.jsonl").read_text()  # it is in the file when put returns

        await asyncio.gather(*(one(number) for number in range(50)))

    asyncio.run(all_at_once())
    assert sum(writes) == 50
    assert len(writes) <= 2
    assert [rows.get(str(number)) for number in range(50)] == [{"key": str(number)} for number in range(50)]
    rows.close()


def test_any_exception_of_a_write_reaches_every_waiting_caller(tmp_path, monkeypatch):
    rows = Journal(tmp_path / "a.jsonl")

    def fail(*_):
        time.sleep(0.05)
        raise RuntimeError("odd")

    async def three() -> list:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            tasks = [rows.put({"key": key}) for key in "abc"]
            found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        await rows.put({"key": "d"})
        return found

    assert [str(error) for error in asyncio.run(three())] == ["odd"] * 3
    assert [row["key"] for row in read_journal(rows.path)] == ["d"]


def test_an_unserializable_row_fails_alone_and_a_cancelled_caller_does_not_stop_others(tmp_path):
    rows = Journal(tmp_path / "a.jsonl")

    async def several() -> list:
        first = asyncio.create_task(rows.put({"key": "first"}))
        others = [asyncio.create_task(rows.put(row)) for row in ({"key": "bad", "no": {1, 2}}, {"key": "good"})]
        await asyncio.sleep(0)
        first.cancel()
        return await asyncio.wait_for(asyncio.gather(first, *others, return_exceptions=True), 10)

    assert [type(found) for found in asyncio.run(several())] == [asyncio.CancelledError, TypeError, type(None)]
    assert {row["key"] for row in read_journal(rows.path)} == {"first", "good"}


def test_reading_ignores_an_incomplete_last_line_and_appending_cuts_it_off(tmp_path, caplog):
    path = tmp_path / "p.jsonl"
    assert read_journal(path) == []
    path.write_text('{"id": "a"}\n{"id": "b"}\n{"id": "c", "te')
    assert [row["id"] for row in read_journal(path)] == ["a", "b"]
    assert "left out an incomplete last line (15 bytes)" in caplog.text
    assert path.read_text().endswith('"te')
    append_rows(path, [{"id": "d"}, [1, 2]])
    assert path.read_text() == '{"id": "a"}\n{"id": "b"}\n{"id": "d"}\n[1, 2]\n'
    path.write_text('{"id": "a"}\n{oops\n{"id": "c"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: not JSON"):
        read_journal(path)


def test_rows_are_synced_to_disk_only_on_request(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    Journal(tmp_path / "a.jsonl").append({"key": "a"})
    assert not forced
    Journal(tmp_path / "a.jsonl", fsync=True).append({"key": "b"})
    assert forced


def _hold(path, name, taken, free):
    claims = NamedLocks(path)
    assert claims.acquire(name)
    taken.set()
    free.wait()


def test_a_lock_is_held_by_one_process_and_released_when_it_is_killed(tmp_path):
    taken, free = processes.Event(), processes.Event()
    holder = processes.Process(target=_hold, args=(tmp_path / "claims", "work", taken, free))
    holder.start()
    taken.wait()
    claims = NamedLocks(tmp_path / "claims")
    assert not claims.acquire("work")
    assert claims.acquire("other work")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert claims.acquire("work")
    assert not claims.acquire("work")  # not twice by ourselves either
    claims.release("work")
    assert claims.acquire("work")


def test_concurrent_tasks_make_one_row_once_and_failures_are_not_stored(tmp_path):
    made = []

    async def scenario():
        rows, claims = Journal(tmp_path / "a.jsonl"), NamedLocks(tmp_path / "claims")

        async def make():
            made.append(1)
            await asyncio.sleep(0.02)
            if len(made) == 1:
                raise ValueError("no luck")
            return {"text": "answer"}

        results = await asyncio.gather(
            *(get_or_make(rows, claims, "k", make, wait_s=0.01) for _ in range(5)), return_exceptions=True
        )
        assert sum(isinstance(result, ValueError) for result in results) == 1
        good = [result for result in results if not isinstance(result, ValueError)]
        assert all(row == {"key": "k", "text": "answer"} for row, _ in good)
        assert sum(is_new for _, is_new in good) == 1

    asyncio.run(scenario())
    assert len(made) == 2
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


def _answer_all(folder, letter, n_made):
    async def scenario():
        store = Store(folder)

        async def make():
            with n_made.get_lock():
                n_made.value += 1
            await asyncio.sleep(0.002)
            return {"step": "s", "model": "m", "media_sha256": "0", "by": letter, "tokens_in": 1, "tokens_out": 2}

        for number in range(50):
            await get_or_make(store.answers, store.claims, f"k{number}", make, wait_s=0.001)

    asyncio.run(scenario())


def test_two_processes_make_each_row_once(tmp_path):
    n_made = processes.Value("i", 0)
    both = [processes.Process(target=_answer_all, args=(tmp_path, letter, n_made)) for letter in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert n_made.value == 50
    store = Store(tmp_path)
    assert (store.n_answers, store.tokens_in, store.tokens_out) == (50, 50, 100)
    assert store.by_call == {("s", "m"): [50, 50, 100]}
    assert store.answered("0", "s", "m") == 50


def test_the_index_of_a_hundred_thousand_lines_is_not_in_memory(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(100_000):
            file.write(f'{{"key": "{number:064d}", "text": "{"x" * 200}"}}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = Journal(path)
    rows.refresh()
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert rows.get(f"{99_999:064d}")
    assert grown_mib < 120  # 16 MiB blocks while reading; the file is 29 MiB, its parsed rows would be over 60
