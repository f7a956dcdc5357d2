"""The command from clips to a folder: complete, resumable, shared by processes, no call paid twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.record import record_from_row, record_to_row
from affectgpt.cli import compose
from affectgpt.cli.words import folders_as_data
from affectgpt.runtime import UserError
from affectgpt.schema import read_samples
from tests.annotate.conftest import QUIET, annotate, rows_of, served, settings, write_clips
from tests.annotate.toy import record
from tests.chat.chat_server import ChatServer, fill_in
from tests.media.crashing import read_audio_at_or_crash

ROOT = Path(__file__).parents[2]
STEPS = ("acoustic", "disambiguate", "merge", "translate", "labels")  # calls of emer_coarse for a sound with a subtitle


def start(manifest: Path, out: Path, *more: str) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "affectgpt.annotate", *settings(manifest, out, *QUIET, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def identity(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def stored_requests(answers: Path) -> set[str]:
    """The identities of the requests with a complete line in the log."""
    whole = answers.read_bytes().split(b"\n")[:-1] if answers.is_file() else []
    return {identity(json.loads(line)["request"]) for line in whole}


def test_without_any_model_clips_become_a_manifest_that_training_reads(clips, tmp_path, capsys):
    out = tmp_path / "out"
    assert annotate(clips, out) == 0
    samples, bad = read_samples(out / "manifest.jsonl")
    assert not bad
    assert sorted(sample.id for sample in samples) == [f"clip{number:05d}" for number in range(4)]
    for sample in samples:
        assert sample.labels
        assert "In the sound" in sample.description
        assert "声音" in sample.translations["zh"]["description"]
        assert Path(sample.audio).is_file()
    said = capsys.readouterr().out
    assert "4 of 4 clips complete (4 now, 0 before)" in said
    assert "calls 0" in said


def test_a_second_run_makes_nothing_and_another_setting_makes_new_records(clips, tmp_path, capsys):
    out = tmp_path / "out"
    annotate(clips, out)
    before = (out / "records.jsonl").read_bytes()
    assert annotate(clips, out) == 0
    assert (out / "records.jsonl").read_bytes() == before
    assert "(0 now, 4 before)" in capsys.readouterr().out
    assert annotate(clips, out, "lang=zh") == 0
    assert len(rows_of(out / "records.jsonl")) == 8
    assert {record.lang for record in records_in(out)} == {"zh"}
    assert annotate(clips, out) == 0  # the first settings again: their records become the newest
    assert {record.lang for record in records_in(out)} == {"en"}


def test_own_labels_of_the_manifest_are_kept_and_their_number_is_said(clips, tmp_path, capsys):
    out, rows = tmp_path / "out", [json.loads(line) for line in clips.read_text(encoding="utf-8").splitlines()]
    annotate(clips, out)
    annotated = {sample.id: sample.labels for sample in read_samples(out / "manifest.jsonl")[0]}
    rows[0]["labels"], rows[1]["labels_zh"] = ["ours"], ["我们的"]
    own = clips.with_name("own.jsonl")
    own.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    capsys.readouterr()
    for _ in range(2):  # in a folder with finished records, then once more without a change
        assert annotate(own, out) == 0
        said = capsys.readouterr().out
        assert "(0 now, 4 before)" in said
        assert "own           1  labels of your manifest, kept in manifest.jsonl" in said
    assert len(rows_of(out / "records.jsonl")) == 6
    kept = {sample.id: sample for sample in read_samples(out / "manifest.jsonl")[0]}
    first, second, third, _ = (row["id"] for row in rows)
    assert kept[first].labels == ("ours",)
    assert (kept[second].labels, kept[second].in_language("zh").labels) == (annotated[second], ("我们的",))
    assert kept[third].labels == annotated[third]
    assert {record.id: record.labels for record in records_in(out)} == annotated
    assert annotate(own, out, "keep_own=false") == 0
    assert {sample.id: sample.labels for sample in read_samples(out / "manifest.jsonl")[0]} == annotated


def test_an_unreadable_or_missing_clip_fails_with_its_reason(tmp_path, capsys):
    clips = write_clips(tmp_path / "clips", 3)
    (clips.parent / "clip00001.wav").write_bytes(b"")
    (clips.parent / "clip00002.wav").unlink()
    out = tmp_path / "out"
    assert annotate(clips, out) == 3
    failed = {row["id"]: row for row in rows_of(out / "failed.jsonl")}
    assert set(failed) == {"clip00001", "clip00002"}
    assert "clip00002.wav" in failed["clip00002"]["reason"]
    assert "1 of 3 clips complete" in capsys.readouterr().out
    write_clips(tmp_path / "clips", 3)  # repaired
    assert annotate(clips, out) == 0
    assert rows_of(out / "failed.jsonl") == []
    assert len(rows_of(out / "manifest.jsonl")) == 3


def test_a_served_model_is_asked_once_per_step_and_its_tokens_are_reported(clips, tmp_path, capsys):
    with ChatServer(fill_in) as server:
        out = tmp_path / "out"
        prices = ("annotator.price_in=2", "annotator.price_out=10")
        assert annotate(clips, out, *served(server.url, *prices)) == 0
        assert len(server.requests) == 4 * len(STEPS)
        assert annotate(clips, out, *served(server.url, *prices)) == 0
        assert len(server.requests) == 4 * len(STEPS)
    record = next(iter(records_in(out)))
    assert Counter(note.step for note in record.provenance if note.prompt_sha256) == Counter(STEPS)
    assert {note.model for note in record.provenance} == {"measured", "toy", "rules"}
    assert all((note.tokens_in, note.tokens_out) == (3, 2) for note in record.provenance if note.prompt_sha256)
    assert {clue.source for clue in record.clues} == {"toy"}
    report = json.loads((out / "report.json").read_text())
    assert report["cost_of_folder"] == pytest.approx(20 * (3 * 2 + 2 * 10) / 1e6)
    assert "calls 20 (0 repairs" in capsys.readouterr().out


def test_media_are_sent_as_content_parts_and_never_stored(clips, tmp_path):
    with ChatServer(fill_in) as server:
        annotate(clips, tmp_path / "out", *served(server.url), "limit=1")
    (heard,) = [body for body in server.requests if isinstance(body["messages"][0]["content"], list)]
    sound, text = heard["messages"][0]["content"]
    assert sound["type"] == "input_audio"
    assert "pitch_hz: median pitch" in text["text"]
    assert len(max((tmp_path / "out" / "store" / "answers.jsonl").read_text().splitlines(), key=len)) < 5000


def test_an_answer_of_the_wrong_form_is_repaired_once_or_fails_for_good(clips, tmp_path, capsys):
    def stubborn(body: dict) -> str:
        step = body["response_format"]["json_schema"]["name"]
        wrong = step == "acoustic" and (len(body["messages"]) == 1 or "clip" in stubborn.never)
        return "I am not JSON" if wrong else fill_in(body)

    stubborn.never = ""
    with ChatServer(stubborn) as server:
        assert annotate(clips, tmp_path / "a", *served(server.url)) == 0  # the second answer is right
        assert len(server.requests) == 4 * (len(STEPS) + 1)
        repair = next(body for body in server.requests if len(body["messages"]) == 3)
        assert "no JSON object in it" in repair["messages"][2]["content"]
        assert "4 repairs" in capsys.readouterr().out
        stubborn.never = "clip"
        server.requests.clear()
        assert annotate(clips, tmp_path / "b", *served(server.url)) == 3
        assert len(server.requests) == 4 * 2  # acoustic twice; the steps that need it were not asked
        said = capsys.readouterr().out
        assert "4 clips failed by answers that are kept, and a repeat reads the same ones: a larger" in said
        assert "repeat the command" not in said
        assert annotate(clips, tmp_path / "b", *served(server.url)) == 3
        assert len(server.requests) == 4 * 2  # the unusable answers are kept
    failed = rows_of(tmp_path / "b" / "failed.jsonl")
    assert len(failed) == 4
    assert "no usable answer of toy in two attempts: no JSON object in it" in failed[0]["reason"]


def test_half_an_emoji_that_an_older_version_stored_is_read_as_a_replacement_character(tmp_path):
    row = record_to_row(record("a", description={"en": "She is sad X."}))
    line = json.dumps(row).replace("sad X", "sad \\ud83d")
    (tmp_path / "records.jsonl").write_text(line + "\n", encoding="utf-8")
    (found,) = records_in(tmp_path)
    assert found.description == {"en": "She is sad \ufffd."}
    record_to_row(found)  # it can be written


@pytest.mark.parametrize("step", ["acoustic", "labels"])  # a later step is asked about it, or none is
def test_an_answer_with_half_an_emoji_is_asked_for_again(clips, tmp_path, step):
    def cut(body: dict) -> str:
        wrong = body["response_format"]["json_schema"]["name"] == step and len(body["messages"]) == 1
        return re.sub(r'("clue|"labels)": (\[?)"', r'\1": \2"\\ud83d ', fill_in(body)) if wrong else fill_in(body)

    with ChatServer(cut) as server:
        assert annotate(clips, tmp_path / "out", *served(server.url)) == 0
        assert len(server.requests) == 4 * (len(STEPS) + 1)
    assert len(rows_of(tmp_path / "out" / "manifest.jsonl")) == 4


def test_evidence_that_was_not_measured_is_rejected(clips, tmp_path):
    def inventive(body: dict) -> str:
        values = json.loads(fill_in(body))
        if "evidence" in values:
            values["evidence"] = ["AU12"]
        return json.dumps(values)

    with ChatServer(inventive) as server:
        assert annotate(clips, tmp_path / "out", *served(server.url), "limit=1") == 3
    (failed,) = rows_of(tmp_path / "out" / "failed.jsonl")
    assert "['AU12'] are no measured facts" in failed["reason"]


def test_errors_are_retried_and_never_stored(clips, tmp_path):
    with ChatServer(fill_in) as server:
        server.faults = [500, "hang up", "cut", "no json", "no choices", ("retry-after", 0.05), 429, 503]
        out = tmp_path / "out"
        assert annotate(clips, out, *served(server.url, "annotator.max_retries=8")) == 0
        assert server.n_answered == 4 * len(STEPS)
    assert len(rows_of(out / "store" / "answers.jsonl")) == 4 * len(STEPS)


def test_a_refused_request_fails_its_clip_and_is_repeated_by_the_next_run(clips, tmp_path, capsys):
    with ChatServer(fill_in) as server:
        server.faults = [400]
        out = tmp_path / "out"
        assert annotate(clips, out, *served(server.url, "annotator.concurrency=1")) == 3
        assert "HTTP 400" in rows_of(out / "failed.jsonl")[0]["reason"]
        assert "next: repeat the command; then " in capsys.readouterr().out
        assert annotate(clips, out, *served(server.url)) == 0
        assert server.n_answered == 4 * len(STEPS)


def refusal(body):
    message = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
    return {"value": {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1e999}}}


def test_a_refusal_and_an_empty_answer_are_counted_as_such_and_a_refusal_is_not_asked_again(clips, tmp_path):
    with ChatServer(fill_in, choose=refusal) as server:
        out = tmp_path / "refused"
        assert annotate(clips, out, *served(server.url, "limit=1", "annotator.concurrency=1")) == 3
        assert len(server.requests) == 1
        (failed,) = rows_of(out / "failed.jsonl")
        assert failed["reason"] == "toy refuses an answer: I can't help with that."
        report = json.loads((out / "report.json").read_text())
        assert (report["failed"], report["cost_of_folder"]) == ({"refusal": 1}, 0.0)
    with ChatServer(lambda body: " ") as server:
        out = tmp_path / "empty"
        assert annotate(clips, out, *served(server.url, "limit=1", "annotator.concurrency=1")) == 3
        assert json.loads((out / "report.json").read_text())["failed"] == {"empty answer": 1}


def test_a_pipeline_that_would_drop_every_clip_is_refused_before_a_call(films, tmp_path, caplog):
    tables = films.parent / "openface"  # film0 alone has one
    with ChatServer(fill_in) as server:
        merr = served(server.url, "pipeline=merr", "annotator.concurrency=1", "faces.detector=none")
        for plan in ("plan=true", "plan=false"):
            with pytest.raises(UserError, match="give openface="):
                annotate(films, tmp_path / "out", *merr, plan)
            with pytest.raises(UserError, match=r"3 of 3 clips have no table there, such as film0.csv"):
                annotate(films, tmp_path / "out", *merr, plan, f"openface='{films.parent}'")
        assert not server.requests
        assert annotate(films, tmp_path / "out", *merr, f"openface='{tables}'") == 3
        assert "2 of 3 clips have no table there, such as film1.csv; they are dropped before any call" in caplog.text
    answers = rows_of(tmp_path / "out" / "store" / "answers.jsonl")
    assert len({row["media_sha256"] for row in answers}) == 1


@pytest.mark.parametrize("engine", ["single", "processes"])
def test_no_written_file_holds_a_secret(clips, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    with ChatServer(fill_in) as server:
        url = server.url.replace("://", "://me:in-address@")
        extra = "annotator.extra={api_key: in-extra, headers: {Authorization: Bearer in-header}, top_p: 0.5}"
        more = ["limit=1", extra, "annotator.concurrency=1", f"engine={engine}", *QUIET]
        monkeypatch.setattr("sys.argv", ["annotate", *served(url, *more)])
        annotate(clips, tmp_path / "out", *served(url, *more))
        assert server.requests[0]["api_key"] == "in-extra"
    written = {path: path.read_text(errors="replace") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    secrets = ("sk-environment", "in-address", "in-extra", "in-header")
    assert not [(path, secret) for path, text in written.items() for secret in secrets if secret in text]
    assert '"top_p": 0.5' in written[tmp_path / "out" / "run.json"]
    os.umask(umask := os.umask(0))
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~umask}


def test_a_price_that_is_no_number_is_refused(clips, tmp_path):
    for price in ("nan", "inf", "-1"):
        with pytest.raises(UserError, match=r"price_in is .*; expected a finite number of at least 0"):
            annotate(clips, tmp_path / "out", *served("http://a/v1", f"annotator.price_in={price}"))


def test_a_wrong_key_ends_the_run_at_once_and_says_what_to_check(clips, tmp_path):
    with ChatServer(fill_in, choose=lambda body: 401) as server:
        with pytest.raises(UserError, match=r"toy at .*HTTP 401.*check model, base_url and \$OPENAI_API_KEY"):
            annotate(clips, tmp_path / "out", *served(server.url, "annotator.concurrency=1"))
        assert len(server.requests) == 1


def test_a_server_that_always_fails_ends_the_run_after_twenty_requests(tmp_path):
    clips = write_clips(tmp_path / "clips", 40)
    with ChatServer(fill_in, choose=lambda body: 500) as server:
        with pytest.raises(UserError, match="20 requests in a row failed, the last with: HTTP 500"):
            annotate(clips, tmp_path / "out", *served(server.url, "annotator.max_retries=0", "annotator.concurrency=1"))
        assert len(server.requests) == 20


def test_the_budget_stops_the_run_cleanly_and_a_higher_one_resumes_it(clips, tmp_path, capsys):
    prices = ("annotator.price_in=0", "annotator.price_out=1000", "annotator.max_tokens=2", "annotator.concurrency=1")
    with ChatServer(fill_in) as server:
        out = tmp_path / "out"
        assert annotate(clips, out, *served(server.url, *prices), "budget=0.0131") == 4  # an answer costs 0.002
        assert len(server.requests) == 6
        assert "stopped: the next call could exceed budget=0.0131" in capsys.readouterr().out
        assert annotate(clips, out, *served(server.url, *prices), "budget=0.041") == 0
        assert len(server.requests) == 4 * len(STEPS)
    with pytest.raises(UserError, match="a budget needs prices"):
        annotate(clips, tmp_path / "other", *served("http://localhost:1/v1"), "budget=1")


def test_a_sufficient_budget_is_sufficient_with_many_calls_in_flight(clips, tmp_path):
    prices = ("annotator.price_in=0", "annotator.price_out=1000", "annotator.max_tokens=5")
    with ChatServer(fill_in) as server:  # an answer costs 0.002 and could cost 0.005
        assert annotate(clips, tmp_path / "out", *served(server.url, *prices), "budget=0.0431") == 0
        assert len(server.requests) == 4 * len(STEPS)


def test_despite_faults_every_clip_is_complete_or_failed_and_every_call_is_made_once(tmp_path):
    clips = write_clips(tmp_path / "clips", 200)
    faults = [429, 500, "hang up", "cut", ("retry-after", 0.01)]  # retried as often as `max_retries` allows
    dice = random.Random(0)

    def now_and_then(body: dict) -> object:
        return dice.choice(faults) if dice.random() < 0.3 else None

    def sometimes_wrong(body: dict) -> str:
        first = int(identity(body["messages"][0])[:2], 16)
        bad = first < 8 if len(body["messages"]) == 1 else first < 3
        return '{"clue": ' if bad else fill_in(body)

    with ChatServer(sometimes_wrong, now_and_then) as server:
        out = tmp_path / "out"
        code = annotate(clips, out, *served(server.url, "annotator.concurrency=16", "annotator.max_retries=30"), *QUIET)
        answered = server.n_answered
        asked = Counter(identity(body) for body in server.requests)
    records, failed = {record.id for record in records_in(out)}, rows_of(out / "failed.jsonl")
    assert code == (3 if failed else 0)
    assert len(records) + len(failed) == 200
    assert not records & {row["id"] for row in failed}
    assert not [row["reason"] for row in failed if "no usable answer" not in row["reason"]]
    assert answered == len(asked) == len(rows_of(out / "store" / "answers.jsonl"))
    for row in rows_of(out / "records.jsonl"):
        record_from_row(row)


def test_two_processes_on_one_folder_share_the_work_and_make_no_call_twice(tmp_path):
    clips = write_clips(tmp_path / "clips", 40)
    with ChatServer(fill_in) as server:
        server.delay_s = 0.1
        out = tmp_path / "out"
        both = [start(clips, out, *served(server.url, "annotator.concurrency=4")) for _ in range(2)]
        said = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        asked = Counter(identity(body) for body in server.requests)
    assert set(asked.values()) == {1}
    assert len(asked) == 40 * len(STEPS)
    assert len(rows_of(out / "records.jsonl")) == 40
    assert all("40 of 40 clips complete" in text for text in said)
    made = [int(re.search(r"\((\d+) now", text).group(1)) for text in said]
    assert sum(made) == 40
    assert min(made) > 0  # both did some of the work


def test_after_repeated_kills_no_stored_answer_is_requested_again(tmp_path):
    clips = write_clips(tmp_path / "clips", 40)
    out, concurrency, n_kills = tmp_path / "out", 4, 0
    answers = out / "store" / "answers.jsonl"
    asked_again: set[str] = set()

    with ChatServer(fill_in) as server:
        server.delay_s = 0.02
        while True:
            stored, n_asked = stored_requests(answers), len(server.requests)
            process = start(clips, out, *served(server.url, f"annotator.concurrency={concurrency}"))
            n_before = sum(1 for _ in answers.open("rb")) if answers.is_file() else 0
            while process.poll() is None and n_kills < 3:
                if answers.is_file() and sum(1 for _ in answers.open("rb")) > n_before + 30:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    n_kills += 1
                time.sleep(0.01)
            asked_now = {identity(body) for body in server.requests[n_asked:]}
            asked_again |= stored & asked_now
            said = process.communicate(timeout=120)[0]
            if process.returncode != -signal.SIGKILL:
                break
        assert process.returncode == 0, said
        asked = Counter(identity(body) for body in server.requests)
    assert n_kills == 3
    rows = rows_of(answers)
    assert len({row["key"] for row in rows}) == len(rows) == len(asked) == 40 * len(STEPS)
    # The next line is a real test: all requests but "acoustic", whose sound is stored as a hash, are stored as sent.
    assert len(stored_requests(answers) & set(asked)) == 40 * (len(STEPS) - 1)
    assert not asked_again
    # Calls in flight and answers being written when a process died: far fewer than the 30 that it had stored.
    assert sum(asked.values()) - len(asked) <= n_kills * 4 * concurrency
    assert len(rows_of(out / "records.jsonl")) == 40


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_finishes_the_calls_in_flight_and_sets_the_exit_code(tmp_path, name, code):
    clips = write_clips(tmp_path / "clips", 30)
    with ChatServer(fill_in) as server:
        server.delay_s = 0.1
        out = tmp_path / "out"
        process = start(clips, out, *served(server.url, "annotator.concurrency=4"))
        while len(server.requests) < 10 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        said = process.communicate(timeout=60)[0]
        assert process.returncode == code, said
        assert f"stopped by {name}" in said
        assert len(rows_of(out / "store" / "answers.jsonl")) == len(server.requests) < 30 * len(STEPS)


def test_a_signal_ends_a_run_whose_server_sends_a_byte_now_and_then(tmp_path):
    clips = write_clips(tmp_path / "clips", 2)
    with ChatServer(choose=lambda body: "drip") as server:
        process = start(clips, tmp_path / "out", *served(server.url, "annotator.timeout_s=1"))
        while not server.requests:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 143, said


@pytest.mark.parametrize("line", ["first, second = [1]", "[][0]", "{}['a']", "open('/no/such/file')"])
def test_a_bug_in_a_step_ends_the_run_and_is_no_failed_clip(clips, tmp_path, monkeypatch, line):
    monkeypatch.syspath_prepend(tmp_path)
    module = f"my_{abs(hash(line))}"
    (tmp_path / f"{module}.py").write_text(f"def broken(work, spec, about):\n    {line}\n")
    mine = f"pipeline.steps=[{{name: measure}}, {{name: broken, step: '{module}:broken'}}]"
    out = tmp_path / "out"
    with pytest.raises((ValueError, LookupError, OSError)) as caught:
        annotate(clips, out, mine)
    assert not isinstance(caught.value, UserError)
    assert caught.traceback[-1].name == "broken"
    assert not rows_of(out / "store" / "failures.jsonl")
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


def test_a_record_that_breaks_its_schema_is_a_failed_clip_and_nothing_else(clips, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    half = "{'labels': ['sad \\ud83d']}"
    (tmp_path / "my_labels.py").write_text(f"def cut(work, spec, about):\n    return {half}\n")
    out = tmp_path / "out"
    assert annotate(clips, out, "pipeline.steps=[{name: measure}, {name: cut, step: 'my_labels:cut'}]") == 3
    report = json.loads((out / "report.json").read_text())
    assert (report["failed"], report["without"]) == ({"record breaks its schema": 4}, {})
    assert "texts is not Unicode text: half of a surrogate pair" in rows_of(out / "failed.jsonl")[0]["reason"]


def test_a_manifest_row_that_contradicts_its_media_fails_its_clip_alone(clips, tmp_path):
    rows = rows_of(clips)
    rows[1]["modalities"] = ["frames", "audio"]
    clips.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert annotate(clips, tmp_path / "out") == 3
    (failed,) = rows_of(tmp_path / "out" / "failed.jsonl")
    assert (failed["id"], failed["where"]) == ("clip00001", "media")
    assert "the manifest lists ['frames']" in failed["reason"]


def test_training_reads_the_folder_as_data(clips, tmp_path):
    annotate(clips, tmp_path / "my clips, mine")
    overrides = folders_as_data(["stage=coarse", "model=affectgpt", f"data={tmp_path}/my clips, mine"])
    data = compose("train", overrides).data
    assert data.name == "my clips, mine"
    assert [source.manifest for source in data.coarse] == [str(tmp_path / "my clips, mine" / "manifest.jsonl")]
    assert not data.test


@pytest.mark.isolated
def test_a_decoder_that_crashes_costs_one_clip(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("affectgpt.annotate.clips.read_audio_at", read_audio_at_or_crash)
    out = tmp_path / "out"
    assert annotate(clips, out) == 3
    (failed,) = rows_of(out / "failed.jsonl")
    assert failed["id"] == "clip00001"
    assert "the decoder crashed (SIGSEGV); the file is probably damaged" in failed["reason"]
    assert len(rows_of(out / "records.jsonl")) == 3
