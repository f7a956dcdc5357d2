"""Encoding ahead of training: each clip once, in processes and on a cluster, killed or not."""

import copy
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from affectgpt import config as conf
from affectgpt.cache import build as module
from affectgpt.cache.build import run_build
from affectgpt.cache.care import stores
from affectgpt.cache.reader import ClipReader
from affectgpt.cache.store import folder_bytes
from affectgpt.models import AffectGPTForConditionalGeneration
from affectgpt.runtime import UserError
from affectgpt.schema import read_samples, write_jsonl
from affectgpt.training.stages import run_stage
from tests.cache.conftest import N_STATES, build_config, records
from tests.conftest import make_train_config


def test_processes_encode_each_clip_once_and_a_second_build_encodes_none(built, monkeypatch):
    folder = Path(built.paths.cache)
    assert records(folder) == sum(len(store) for store in stores(folder)) == N_STATES
    monkeypatch.setattr(AffectGPTForConditionalGeneration, "_encoder", lambda *args: pytest.fail("encoded again"))
    again = copy.deepcopy(built)
    again.n_processes = 1
    assert run_build(again) == 0


def test_training_from_the_cache_equals_training_with_online_encoders(base_models, manifest, cache, tmp_path):
    """Bit for bit; and with the cache no encoder runs."""
    weights = []
    for name, caching in (("cached", "ahead"), ("online", "off")):
        config = make_train_config(base_models, manifest, tmp_path / name)
        config.paths.cache, config.data.cache_features = str(cache), caching
        with pytest.MonkeyPatch.context() as patch:
            if caching == "ahead":
                patch.setattr(AffectGPTForConditionalGeneration, "_encoder", lambda *args: pytest.fail("encoded again"))
            run = run_stage(config).run
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        weights.append((load_file(run / "checkpoint-6" / "trained.safetensors"), [row.get("loss") for row in rows]))
    (cached, cached_losses), (online, online_losses) = weights
    assert cached_losses == online_losses
    assert cached.keys() == online.keys()
    assert all(torch.equal(cached[name], online[name]) for name in cached)


SLOW_BUILD = """
import json, sys, time
from pathlib import Path
from affectgpt.cache.build import run_build
from affectgpt.cache.reader import ClipReader
from tests.cache.conftest import build_config
write = ClipReader.write
ClipReader.write = lambda *args: (write(*args), time.sleep(0.3))[0]
base, manifest, folder = json.loads(sys.argv[1])
run_build(build_config({k: Path(v) for k, v in base.items()}, Path(manifest), Path(folder)))
"""


def test_a_killed_build_resumes_and_encodes_nothing_twice(base_models, manifest, tmp_path):
    arguments = json.dumps([{k: str(v) for k, v in base_models.items()}, str(manifest), str(tmp_path)])
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, arguments], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
    )
    start = time.monotonic()
    while records(tmp_path / "cache") < 6 and time.monotonic() - start < 100:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    before = records(tmp_path / "cache")
    assert 6 <= before < N_STATES
    assert run_build(build_config(base_models, manifest, tmp_path)) == 0
    assert records(tmp_path / "cache") == sum(len(store) for store in stores(tmp_path / "cache")) == N_STATES


def _build(config):
    torch.set_num_threads(1)  # after a fork torch makes its pool anew, in which two threads at once fail
    run_build(config)


def _builds(config):
    context = multiprocessing.get_context("fork")  # of a process that has imported torch
    builds = [context.Process(target=_build, args=(config,)) for _ in range(2)]
    for build in builds:
        build.start()
    return builds


def test_two_builds_at_once_share_the_work(base_models, manifest, tmp_path, monkeypatch):
    both, prepare = multiprocessing.get_context("fork").Barrier(2), ClipReader.prepare

    def at_once(*arguments, **more):
        both.wait(60)
        return prepare(*arguments, **more)

    monkeypatch.setattr(ClipReader, "prepare", at_once)
    builds = _builds(build_config(base_models, manifest, tmp_path))
    for build in builds:
        build.join()
    assert [build.exitcode for build in builds] == [0, 0]
    assert records(tmp_path / "cache") == N_STATES
    used = {path.name.split("-")[1] for path in (tmp_path / "cache").rglob("*.states")}
    assert used == {str(build.pid) for build in builds}


def test_a_killed_build_leaves_its_clips_to_another_that_runs(base_models, manifest, tmp_path):
    first, second = _builds(build_config(base_models, manifest, tmp_path))
    while not records(tmp_path / "cache"):
        time.sleep(0.005)
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0
    assert records(tmp_path / "cache") == N_STATES


def test_a_file_system_without_locks_fills_the_cache_with_a_warning(
    base_models, manifest, tmp_path, monkeypatch, caplog
):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert run_build(build_config(base_models, manifest, tmp_path)) == 0
    assert records(tmp_path / "cache") == N_STATES
    assert "claims: its file system has no file locks" in caplog.text


def test_encoding_neither_downloads_nor_reads_the_llm(base_models, manifest, tmp_path):
    config = build_config(base_models, manifest, tmp_path)
    llm = tmp_path / "llm"
    shutil.copytree(base_models["llm"], llm)
    (llm / "model.safetensors").unlink()
    config.model.llm.path = str(llm)
    assert run_build(config) == 0
    assert records(tmp_path / "cache") == N_STATES


def test_clips_beyond_the_size_limit_are_counted_and_the_limit_holds(base_models, manifest, tmp_path, caplog):
    config = build_config(base_models, manifest, tmp_path)
    config.paths.cache_limit_gb = 12e-6
    assert run_build(config) == 3
    assert 0 < folder_bytes(tmp_path / "cache" / "features") <= 12_000 + 3 * 2000  # and the three about.json
    assert "clips do not fit paths.cache_limit_gb" in caplog.text
    assert caplog.text.count("the cache is full") == 1


def test_bad_clips_stop_the_build_or_are_counted_and_listed(base_models, manifest, tmp_path):
    samples, _ = read_samples(manifest)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(Path(samples[0].video).read_bytes()[:-400])
    own = tmp_path / "m.jsonl"
    write_jsonl(own, [*samples[1:3], replace(samples[0], video=str(cut))])
    config = build_config(base_models, own, tmp_path)
    config.data.coarse, config.data.fine, config.data.test = [conf.SourceConfig(manifest=str(own))], [], []
    with pytest.raises(ValueError, match="clip0"):
        run_build(config)
    config.data.on_bad = "skip"
    assert run_build(config) == 3
    (row,) = (tmp_path / "cache" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "clip0"
    assert records(tmp_path / "cache") == 6


def test_a_user_error_in_a_process_ends_the_build(base_models, manifest, tmp_path):
    config = build_config(base_models, manifest, tmp_path)
    config.n_processes = 2
    config.model.encoders["audio"].path = str(tmp_path / "nowhere")
    module._CLIPS_PER_TASK["cpu"], before = 4, module._CLIPS_PER_TASK["cpu"]
    with pytest.raises(FileNotFoundError, match=r"audio: base model folder .*nowhere"):
        run_build(config)
    module._CLIPS_PER_TASK["cpu"] = before


def test_an_unknown_engine_is_named(base_models, manifest, tmp_path):
    with pytest.raises(UserError, match="engine is 'spark'; expected processes or ray"):
        run_build(build_config(base_models, manifest, tmp_path, engine="spark"))


def test_a_ray_cluster_fills_the_same_cache_and_lists_bad_clips(base_models, manifest, built, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    samples, _ = read_samples(manifest)
    torn = tmp_path / "torn.mp4"
    data = bytearray(Path(samples[0].video).read_bytes())
    data[len(data) // 4 : -3000] = bytes(len(data[len(data) // 4 : -3000]))  # the header is intact: only decoding fails
    torn.write_bytes(data)
    own = tmp_path / "m.jsonl"
    write_jsonl(own, [*samples, replace(samples[0], id="torn", video=str(torn))])
    config = build_config(base_models, own, tmp_path, engine="ray")
    config.data.coarse, config.data.fine, config.data.test = [conf.SourceConfig(manifest=str(own))], [], []
    config.data.on_bad = "skip"
    monkeypatch.setitem(module._CLIPS_PER_TASK, "cpu", 4)
    assert run_build(config) == 3
    (row,) = (tmp_path / "cache" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "torn"
    assert "torn.mp4" in json.loads(row)["reason"]
    ours = {store.folder.name: store for store in stores(tmp_path / "cache")}
    for store in stores(Path(built.paths.cache)):
        assert sorted(ours[store.folder.name]) == sorted(store)
        assert all(torch.equal(ours[store.folder.name].read(name)[0], store.read(name)[0]) for name in store)
