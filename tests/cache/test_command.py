import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from affectgpt import config as conf
from affectgpt.cache import command as module
from affectgpt.cache.command import Done, collect, list_stores, on_ray, run_build, stores
from affectgpt.cache.store import folder_bytes
from affectgpt.cli import run
from affectgpt.models import AffectGPTForConditionalGeneration
from affectgpt.runtime import UserError
from affectgpt.schema import BadSample, Sample, read_samples, write_jsonl
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config

N_CLIPS, N_STATES = 12, 35  # the last clip has no sound


def build_config(base_models, manifest, folder: Path, **fields) -> conf.CacheConfig:
    train = make_train_config(base_models, manifest, folder)
    return conf.CacheConfig(train.model, train.data, train.paths, n_processes=1, device="cpu", **fields)


def records(cache: Path) -> int:
    """Entries that stand in the indices, those that stand there twice counted twice."""
    return sum(path.stat().st_size // 72 for path in (cache / "features").rglob("*.index"))


@pytest.fixture(scope="module")
def built(base_models, manifest, tmp_path_factory):
    """A cache that two processes have filled."""
    config = build_config(base_models, manifest, tmp_path_factory.mktemp("built"))
    config.n_processes = 2
    module._CLIPS_A_TASK["cpu"], before = 4, module._CLIPS_A_TASK["cpu"]
    assert run_build(config) == 0
    module._CLIPS_A_TASK["cpu"] = before
    return config


@pytest.fixture
def cache(built, tmp_path):
    """A copy of that cache."""
    shutil.copytree(built.paths.cache, tmp_path / "copy")
    return tmp_path / "copy"


def test_processes_encode_each_clip_once_and_a_second_build_encodes_none(built, monkeypatch):
    folder = Path(built.paths.cache)
    assert records(folder) == sum(len(store) for store in stores(folder)) == N_STATES
    monkeypatch.setattr(AffectGPTForConditionalGeneration, "_encoder", lambda *args: pytest.fail("encoded again"))
    again = copy.deepcopy(built)
    again.n_processes = 1
    assert run_build(again) == 0


def test_training_on_a_built_cache_takes_the_steps_of_training_online(base_models, manifest, cache, tmp_path):
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
from affectgpt.cache.command import run_build
from affectgpt.cache.reader import ClipReader
from tests.cache.test_command import build_config
keep = ClipReader.keep
ClipReader.keep = lambda *args: (keep(*args), time.sleep(0.3))[0]
base, manifest, folder = json.loads(sys.argv[1])
run_build(build_config({k: Path(v) for k, v in base.items()}, Path(manifest), Path(folder)))
"""


def test_a_build_that_was_killed_goes_on_and_encodes_nothing_twice(base_models, manifest, tmp_path):
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


def test_encoding_neither_fetches_nor_reads_the_llm(base_models, manifest, tmp_path):
    config = build_config(base_models, manifest, tmp_path)
    llm = tmp_path / "llm"
    shutil.copytree(base_models["llm"], llm)
    (llm / "model.safetensors").unlink()
    config.model.llm.path = str(llm)
    assert run_build(config) == 0
    assert records(tmp_path / "cache") == N_STATES


def test_what_finds_no_room_is_counted_and_the_limit_holds(base_models, manifest, tmp_path, caplog):
    config = build_config(base_models, manifest, tmp_path)
    config.paths.cache_limit_gb = 12e-6
    assert run_build(config) == 3
    assert 0 < folder_bytes(tmp_path / "cache" / "features") <= 12_000 + 3 * 2000  # and the three about.json
    assert "clips found no room under paths.cache_limit_gb" in caplog.text
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


def test_a_mistake_in_the_processes_ends_the_build(base_models, manifest, tmp_path):
    config = build_config(base_models, manifest, tmp_path)
    config.n_processes = 2
    config.model.encoders["audio"].path = str(tmp_path / "nowhere")
    module._CLIPS_A_TASK["cpu"], before = 4, module._CLIPS_A_TASK["cpu"]
    with pytest.raises(FileNotFoundError, match=r"audio: base model folder .*nowhere"):
        run_build(config)
    module._CLIPS_A_TASK["cpu"] = before


def test_an_unknown_engine_is_named(base_models, manifest, tmp_path):
    with pytest.raises(UserError, match="engine is 'spark'; expected processes or ray"):
        run_build(build_config(base_models, manifest, tmp_path, engine="spark"))


def test_a_ray_cluster_fills_the_same_cache_and_lists_bad_clips(base_models, manifest, built, tmp_path, monkeypatch):
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    samples, _ = read_samples(manifest)
    torn = tmp_path / "torn.mp4"
    data = bytearray(Path(samples[0].video).read_bytes())
    data[len(data) // 4 : -3000] = bytes(len(data[len(data) // 4 : -3000]))  # its header is sound: actors find it out
    torn.write_bytes(data)
    own = tmp_path / "m.jsonl"
    write_jsonl(own, [*samples, replace(samples[0], id="torn", video=str(torn))])
    config = build_config(base_models, own, tmp_path, engine="ray")
    config.data.coarse, config.data.fine, config.data.test = [conf.SourceConfig(manifest=str(own))], [], []
    config.data.on_bad = "skip"
    monkeypatch.setitem(module._CLIPS_A_TASK, "cpu", 4)
    assert run_build(config) == 3
    (row,) = (tmp_path / "cache" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "torn"
    assert "torn.mp4" in json.loads(row)["reason"]
    ours = {store.folder.name: store for store in stores(tmp_path / "cache")}
    for store in stores(Path(built.paths.cache)):
        assert sorted(ours[store.folder.name]) == sorted(store)
        assert all(torch.equal(ours[store.folder.name].read(name)[0], store.read(name)[0]) for name in store)


@pytest.fixture(scope="module")
def ray_session():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(num_cpus=4, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        yield
        ray.shutdown()


def on_one_actor(encode, n_tasks: int):
    """What comes of `n_tasks` tasks of two clips, v<task> and w<task>, by an actor that does `encode` for encoders."""

    class Actor(module._Actor):
        def _new_encoder(self):
            return encode

    tasks = [[Sample(id=f"{letter}{task}", video="clip.mp4") for letter in "vw"] for task in range(n_tasks)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_Actor", Actor)
        yield from on_ray(SimpleNamespace(device="cpu"), tasks, 1)


def test_a_task_whose_actor_is_killed_is_done_by_the_next_one(ray_session, tmp_path):
    def encode(samples):
        mark = tmp_path / samples[0].id
        if samples[0].id == "v1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Done(len(samples), [BadSample(samples[1].id, "here", "torn")], 0)

    done = list(on_one_actor(encode, n_tasks=4))
    assert (tmp_path / "v1").exists()
    assert sum(item.n_cached for item in done) == 8
    assert sorted(item.bad[0].id for item in done) == ["w0", "w1", "w2", "w3"]


def test_clips_that_kill_every_actor_end_the_build_and_are_named(ray_session, tmp_path):
    def encode(samples):
        if samples[0].id == "v2":
            (tmp_path / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Done(len(samples), [], 0)

    with pytest.raises(UserError, match="3 processes of the Ray cluster ended over the clips 'v2' to 'w2'"):
        list(on_one_actor(encode, n_tasks=4))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_mistake_in_an_actor_ends_the_build_in_its_own_words(ray_session):
    def encode(samples):
        raise FileNotFoundError("audio: no base model folder")

    with pytest.raises(UserError, match=r"^audio: no base model folder$"):
        list(on_one_actor(encode, n_tasks=2))


def test_a_build_on_a_ray_cluster_that_is_left_begins_no_more_tasks(ray_session, tmp_path):
    def encode(samples):
        (tmp_path / samples[0].id).touch()
        time.sleep(0.1)
        return Done(len(samples), [], 0)

    build = on_one_actor(encode, n_tasks=30)
    assert next(build).n_cached == 2
    build.close()
    n_begun = len(list(tmp_path.iterdir()))
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= n_begun + 1 < 30


def test_the_list_names_modality_encoder_clips_and_size(cache):
    lines = list_stores(cache).splitlines()
    assert [line.split()[0] for line in lines] == ["modality", "audio", "frames", "motion", "all"]
    assert lines[1].split()[-5] == "tokens" and lines[1].split()[-4] == "11"  # noqa: PT018
    assert lines[2].split()[-4] == "12"


def test_damage_is_found_dropped_and_made_again(cache, built, capsys):
    shard = sorted((cache / "features" / "audio").rglob("*.states"))[0]
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    arguments = ["verify", f"paths.cache={cache}"]
    assert run("cache", arguments) == 1
    assert "audio" in capsys.readouterr().out
    assert run("cache", [*arguments, "repair=true"]) == 0
    assert run("cache", arguments) == 0
    assert sum(len(store) for store in stores(cache)) == N_STATES - 1
    again = copy.deepcopy(built)
    again.paths.cache, again.n_processes = str(cache), 1
    assert run_build(again) == 0
    assert sum(len(store) for store in stores(cache)) == N_STATES


def test_collecting_removes_old_layouts_and_what_was_used_least_recently(cache):
    old = cache / "features" / "audio" / "0123456789abcdef" / "ab" / "abcd.safetensors"
    other = cache / "features" / "mine" / "notes" / "diary.txt"
    for path in (old, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 100)
    now = time.time()
    for store, days in zip(stores(cache), (3, 2, 1), strict=True):
        os.utime(store.folder / "about.json", (now - days * 86400,) * 2)
    said = collect(cache, max_gb=None, unused_days=None, now_s=now)
    assert "an old layout" in said
    assert not old.exists()
    assert other.exists()
    assert collect(cache, max_gb=None, unused_days=None, now_s=now) == "nothing to do"
    collect(cache, max_gb=None, unused_days=2.5, now_s=now)
    assert [store.folder.parent.name for store in stores(cache)] == ["frames", "motion"]
    size = sum(store.n_bytes for store in stores(cache)) / 1e9
    assert "least recently used" in collect(cache, max_gb=size - 1e-9, unused_days=None, now_s=now)
    assert [store.folder.parent.name for store in stores(cache)] == ["motion"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "max_gb=3"], "unknown setting 'max_gb'"),
        (["gc", "max_gb=much"], "max_gb: Value 'much' of type 'str' could not be converted to Float"),
        (["gc", "max_gb=-1"], "max_gb is -1.0; expected a number of at least 0"),
        (["verify", "repair=often"], "repair: Value 'often' is not a valid bool"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments, said, capsys):
    assert run("cache", arguments) == 2
    assert said in capsys.readouterr().err
