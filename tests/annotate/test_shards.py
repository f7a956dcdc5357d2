"""Many clips: shards that add up to one run, and memory that does not grow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import pytest

from affectgpt.annotate import shards as scale
from affectgpt.annotate.clips import Clips
from affectgpt.annotate.exporters import records_in
from affectgpt.cli import compose
from affectgpt.runtime import UserError
from affectgpt.schema import Sample, write_jsonl
from tests.annotate.conftest import QUIET, annotate, rows_of, served, settings, write_clips
from tests.chat.chat_server import ChatServer, fill_in

ROOT = Path(__file__).parents[2]
SHARDED = ("engine=processes", "shards=2", "n_processes=2")
WORDS = (  # a pipeline without decoding and without model calls
    "pipeline.name=words",
    "pipeline.steps=[{name: transcribe}, {name: join, needs: [transcribe]}]",
)


def write_words(folder: Path, n: int) -> Path:
    """A manifest of `n` clips with the same audio and different subtitles."""
    with wave.open(str(folder / "clip.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(640))
    samples = (Sample(id=f"clip{number:05d}", audio="clip.wav", subtitle=f"Line {number}.") for number in range(n))
    write_jsonl(folder / "clips.jsonl", samples)
    return folder / "clips.jsonl"


def plain(record) -> dict:
    """A record without the fields that differ between runs."""
    row = dict(vars(record))
    row["provenance"] = [(note.step, note.model, note.prompt_sha256, note.parameters) for note in record.provenance]
    return row


def test_shards_make_the_records_of_a_single_process(tmp_path, capsys):
    clips = write_clips(tmp_path / "clips", 5)
    assert annotate(clips, tmp_path / "single") == 0
    assert annotate(clips, tmp_path / "many", *SHARDED) == 0
    said = capsys.readouterr().out
    assert "5 of 5 clips complete (5 now, 0 before)" in said
    single = {record.id: plain(record) for record in records_in(tmp_path / "single")}
    many = {record.id: plain(record) for record in records_in(tmp_path / "many")}
    assert single == many
    rows = [{row["id"]: row for row in rows_of(tmp_path / name / "manifest.jsonl")} for name in ("single", "many")]
    assert rows[0] == rows[1]
    assert len(list((tmp_path / "many" / "shards").glob("*/records.jsonl"))) > 1
    assert annotate(clips, tmp_path / "many", *SHARDED) == 0
    assert "(0 now, 5 before)" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "many" / "records.jsonl")) == 5


def test_a_folder_keeps_its_number_of_shards_and_its_kind_of_engine(tmp_path):
    clips = write_words(tmp_path, 4)
    assert annotate(clips, tmp_path / "many", *WORDS, *SHARDED) == 0
    with pytest.raises(UserError, match="has 2 shards, but shards=3"):
        annotate(clips, tmp_path / "many", *WORDS, "engine=processes", "shards=3")
    with pytest.raises(UserError, match="was made in shards; resume with engine=processes"):
        annotate(clips, tmp_path / "many", *WORDS)
    assert annotate(clips, tmp_path / "single", *WORDS) == 0
    with pytest.raises(UserError, match="was made by engine=single"):
        annotate(clips, tmp_path / "single", *WORDS, *SHARDED)
    with pytest.raises(UserError, match="expected single, processes or ray"):
        annotate(clips, tmp_path / "other", *WORDS, "engine=threads")


def test_unusable_rows_and_files_of_every_shard_are_listed(tmp_path):
    clips = write_clips(tmp_path / "clips", 4)
    (clips.parent / "clip00002.wav").unlink()
    with clips.open("a") as file:
        file.write('{"id": "a/b", "subtitle": "x"}\n{"id": "clip00000", "subtitle": "again"}\n')
    assert annotate(clips, tmp_path / "out", *WORDS, *SHARDED) == 3
    failed = {row["id"]: row["reason"] for row in rows_of(tmp_path / "out" / "failed.jsonl")}
    assert set(failed) == {"a/b", "clip00000", "clip00002"}
    assert "the id is already used in line 1" in failed["clip00000"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["n_clips"], report["made"], report["left"]) == (6, 3, 0)


def test_unusable_rows_are_listed_in_any_language_under_any_locale(tmp_path):
    code = (
        "import sys; from pathlib import Path; from affectgpt.annotate.shards import split_clips\n"
        "from affectgpt.schema import BadSample\n"
        "split_clips([BadSample('\\u7247\\u6bb5', 'line 1', 'no such file')], [Path(sys.argv[1], '00000')])"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ, **locale}, check=True)
    assert [row["id"] for row in rows_of(tmp_path / "bad.jsonl")] == ["片段"]


def test_the_error_of_a_shard_is_printed_and_fails_the_run(tmp_path):
    clips = write_clips(tmp_path / "clips", 2)
    with ChatServer(fill_in, choose=lambda body: 401) as server, pytest.raises(UserError, match=r"shard 0.*HTTP 401"):
        annotate(clips, tmp_path / "out", *served(server.url), *QUIET, *SHARDED)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_a_sharded_run_is_alone_in_its_folder_and_stopped_resumes_without_repeating_a_call(tmp_path):
    clips = write_clips(tmp_path / "clips", 12)
    out = tmp_path / "out"
    with ChatServer(fill_in) as server:
        server.delay_s = 0.1
        more = [*served(server.url, "annotator.concurrency=2"), *QUIET, "engine=processes", "shards=2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "affectgpt.annotate", *settings(clips, out, *more)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while len(server.requests) < 6 and process.poll() is None:
            time.sleep(0.02)
        with pytest.raises(UserError, match=rf"out is being annotated by process {process.pid} on .*; wait until"):
            annotate(clips, out, *more)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 143, said
        assert "stopped by SIGTERM" in said
        assert len(server.requests) < 60
        server.delay_s = 0.0
        assert annotate(clips, out, *more) == 0
        bodies = [json.dumps(body, sort_keys=True) for body in server.requests]
    assert len(bodies) == len(set(bodies)) == 12 * 5


def test_limits_are_divided_among_the_shards():
    config = compose("annotate", ["annotator=openai", "annotator.requests_per_min=60", "budget=8"])
    config.annotator.concurrency = 10
    job = scale.job_of(config, Path("/o/shards/0"), n_shards=4, n_at_once=2)
    assert (job.annotator.concurrency, job.annotator.requests_per_min, job.budget) == (5, 30, 2)
    assert scale.config_of(json.loads(json.dumps(scale.asdict(job)))) == job


def test_clips_of_one_speaker_stay_together():
    samples = [Sample(id=f"{person}_{number}", subtitle="x") for person in "abcdef" for number in range(5)]
    by_speaker = {sample.id[0]: set() for sample in samples}
    for sample in samples:
        by_speaker[sample.id[0]].add(scale.shard_of(sample, 4, "^([a-z])_"))
    assert all(len(shards) == 1 for shards in by_speaker.values())
    assert len(set.union(*by_speaker.values())) > 1


def test_a_manifest_is_streamed_and_counted(tmp_path):
    write_words(tmp_path, 10)
    clips = Clips(compose("annotate", settings(tmp_path / "clips.jsonl", tmp_path / "o", "limit=4")))
    assert clips.n == 4
    assert [clip.id for clip in clips] == [clip.id for clip in clips] == [f"clip{n:05d}" for n in range(4)]
    with pytest.raises(UserError, match="no usable sample of split 'test'"):
        Clips(compose("annotate", settings(tmp_path / "clips.jsonl", tmp_path / "o", "split=test")))


def peak_mb(folder: Path, n: int) -> float:
    """Peak memory of the command with `n` clips."""
    folder.mkdir()
    manifest = write_words(folder, n)
    code = (
        "import resource, sys; from affectgpt.cli import compose; from affectgpt.annotate.run import run_annotation;"
        "assert run_annotation(compose('annotate', sys.argv[1:])) == 0; assert 'torch' not in sys.modules;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    arguments = settings(manifest, folder / "out", *WORDS, "workers=8")
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(result.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    few, many = peak_mb(tmp_path / "few", 500), peak_mb(tmp_path / "many", 5_000)
    assert many < few + 4, f"{few:.0f} MB for 500 clips and {many:.0f} MB for 5,000"


def test_a_ray_cluster_makes_the_records_of_a_single_process(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    clips = write_words(tmp_path, 4)
    assert annotate(clips, tmp_path / "single", *WORDS) == 0
    assert annotate(clips, tmp_path / "ray", *WORDS, "engine=ray", "shards=2", "n_processes=1") == 0
    single, ray = ({record.id: plain(record) for record in records_in(tmp_path / name)} for name in ("single", "ray"))
    assert single == ray
