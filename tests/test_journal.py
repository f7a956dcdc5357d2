"""Logs and claims: whole lines, one writer of each answer, whatever dies."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import time

import pytest

from affectgpt.annotate.store import Store
from affectgpt.journal import Claims, Log, once
from affectgpt.runtime import UserError

# fork: the children need nothing but this module, and a spawned one would import torch through the tests' package.
processes = multiprocessing.get_context("fork")


def test_what_was_appended_is_found_again_by_key_and_by_newest_of_a_name(tmp_path):
    rows = Log(tmp_path / "a.jsonl", name=lambda row: row["id"])
    for number, key in enumerate("abcab"):
        rows.append({"key": key, "id": "xyx"[number % 3], "n": number, "text": "ü\u2028\n"})
    assert rows.get("a")["n"] == 3
    assert rows.get("z") is None
    assert rows.latest("x")["n"] == 3
    assert [row["n"] for row in rows.rows()] == [3, 4]
    again = Log(tmp_path / "a.jsonl", name=lambda row: row["id"])
    assert again.get("a") == rows.get("a")
    assert again.named("x") == 3


def test_a_line_that_a_killed_writer_left_torn_is_cut_off_by_the_next_one(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    Log(path).append({"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "b", "te')
    rows = Log(path)
    assert rows.get("b") is None
    with caplog.at_level(logging.WARNING):
        rows.append({"key": "c"})
    assert "cut off a half-written last line (16 bytes)" in caplog.text
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert rows.get("c")


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON .*mend or remove the line"):
        Log(path)
    path.write_text('{"key": "a"}\n{"kay": "b"}\n')
    with pytest.raises(UserError, match=r'a\.jsonl:2: no object with a "key"'):
        Log(path)


def test_rows_of_another_process_are_found_at_once(tmp_path):
    mine, other = Log(tmp_path / "a.jsonl"), Log(tmp_path / "a.jsonl")
    other.append({"key": "b", "from": "other"})
    assert mine.get("b")["from"] == "other"
    mine.append({"key": "c"})
    assert other.get("c")


def _append_many(path, letter, n):
    rows = Log(path)
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


def test_a_writer_killed_at_any_moment_leaves_whole_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    for wait_s in (0.05, 0.08, 0.11):
        writer = processes.Process(target=_append_many, args=(path, str(wait_s), 100_000))
        writer.start()
        time.sleep(wait_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    rows = Log(path)
    rows.append({"key": "end"})
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 1
    assert all(line.endswith(b"\n") and json.loads(line)["key"] for line in lines)


def test_a_full_disk_is_an_error_and_the_file_ends_as_before(tmp_path, monkeypatch):
    rows = Log(tmp_path / "a.jsonl")
    rows.append({"key": "a"})
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with pytest.raises(OSError, match=r"only 5 of \d+ bytes could be written; is the disk full"):
        rows.append({"key": "b"})
    monkeypatch.undo()
    assert (tmp_path / "a.jsonl").read_text() == '{"key": "a"}\n'
    rows.append({"key": "b"})
    assert rows.get("b")


def test_what_stands_in_the_file_is_forced_to_the_disk_only_on_request(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    Log(tmp_path / "a.jsonl").append({"key": "a"})
    assert not forced
    Log(tmp_path / "a.jsonl", fsync=True).append({"key": "b"})
    assert forced


def _hold(path, name, taken, free):
    claims = Claims(path)
    assert claims.take(name)
    taken.set()
    free.wait()


def test_a_claim_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    taken, free = processes.Event(), processes.Event()
    holder = processes.Process(target=_hold, args=(tmp_path / "claims", "work", taken, free))
    holder.start()
    taken.wait()
    claims = Claims(tmp_path / "claims")
    assert not claims.take("work")
    assert claims.take("other work")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert claims.take("work")
    assert not claims.take("work")  # not twice by ourselves either
    claims.release("work")
    assert claims.take("work")


def test_many_tasks_that_want_one_answer_make_it_once_and_failures_are_not_kept(tmp_path):
    made = []

    async def scenario():
        rows, claims = Log(tmp_path / "a.jsonl"), Claims(tmp_path / "claims")

        async def make():
            made.append(1)
            await asyncio.sleep(0.02)
            if len(made) == 1:
                raise ValueError("no luck")
            return {"text": "answer"}

        results = await asyncio.gather(
            *(once(rows, claims, "k", make, wait_s=0.01) for _ in range(5)), return_exceptions=True
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
            await once(store.answers, store.claims, f"k{number}", make, wait_s=0.001)

    asyncio.run(scenario())


def test_two_processes_that_want_the_same_answers_make_each_once(tmp_path):
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


def test_the_index_of_a_hundred_thousand_lines_does_not_live_in_memory(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(100_000):
            file.write(f'{{"key": "{number:064d}", "text": "{"x" * 200}"}}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = Log(path)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert rows.get(f"{99_999:064d}")
    assert grown_mib < 120  # 16 MiB blocks while reading; the file is 29 MiB, its parsed rows would be over 60
