"""Listing, verifying and cleaning the cache."""

import copy
import os
import time

import pytest
import torch

from affectgpt.cache.build import run_build
from affectgpt.cache.care import collect, list_stores, stores
from affectgpt.cache.store import StateStore
from affectgpt.cli import run
from tests.cache.conftest import N_STATES


def test_the_list_shows_modality_encoder_clips_and_size(cache):
    lines = list_stores(cache).splitlines()
    assert [line.split()[0] for line in lines] == ["modality", "audio", "frames", "motion", "all"]
    assert lines[1].split()[-5] == "tokens" and lines[1].split()[-4] == "11"  # noqa: PT018
    assert lines[2].split()[-4] == "12"


def test_damage_is_found_deleted_and_recomputed(cache, built, capsys):
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


def test_gc_removes_old_layouts_and_the_least_recently_used_stores(cache):
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


def test_gc_keeps_a_store_to_which_a_process_writes_and_says_so(tmp_path):
    names = ("audio", "frames")
    written, idle = (StateStore(tmp_path / "features" / name / "abc", {"encoder": None}) for name in names)
    for store in (written, idle):
        store.write("00" * 32, torch.zeros(2, 3), {})
        os.utime(store.folder / "about.json", (1, 1))
    idle.close()
    said = collect(tmp_path, max_gb=0, unused_days=None).splitlines()
    assert [line.split(":")[0] for line in said] == [
        f"kept {written.folder}, to which a running process writes", f"removed {idle.folder}"
    ]  # fmt: skip
    os.utime(written.folder / "about.json", (1, 1))
    assert "to which a running process writes: unused for" in collect(tmp_path, max_gb=None, unused_days=30)
    assert written.write("11" * 32, torch.zeros(2, 3), {})
    assert len(StateStore(written.folder)) == 2
    written.close()
    assert "removed" in collect(tmp_path, max_gb=None, unused_days=30)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "max_gb=3"], "unknown setting 'max_gb'"),
        (["gc", "max_gb=much"], "max_gb: Value 'much' of type 'str' could not be converted to Float"),
        (["gc", "max_gb=-1"], "max_gb is -1.0; expected a number of at least 0"),
        (["verify", "repair=often"], "repair: Value 'often' is not a valid bool"),
    ],
)
def test_invalid_arguments_are_named(arguments, said, capsys):
    assert run("cache", arguments) == 2
    assert said in capsys.readouterr().err
