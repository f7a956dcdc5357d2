"""Clips like those of tests/data, and a cache that a build has filled."""

import shutil
from pathlib import Path

import pytest

from affectgpt import config as conf
from affectgpt.cache import build as module
from affectgpt.cache.build import run_build
from tests.conftest import make_train_config
from tests.data.conftest import clip, write_clip

__all__ = ["clip", "write_clip"]

N_CLIPS, N_STATES = 12, 35  # the last clip has no sound


def build_config(base_models, manifest, folder: Path, **fields) -> conf.CacheConfig:
    train = make_train_config(base_models, manifest, folder)
    return conf.CacheConfig(train.model, train.data, train.paths, n_processes=1, device="cpu", **fields)


def records(cache: Path) -> int:
    """Number of records in the indices, duplicates included."""
    return sum(path.stat().st_size // 72 for path in (cache / "features").rglob("*.index"))


@pytest.fixture(scope="session")
def built(base_models, manifest, tmp_path_factory):
    """A cache filled by two processes."""
    config = build_config(base_models, manifest, tmp_path_factory.mktemp("built"))
    config.n_processes = 2
    module._CLIPS_PER_TASK["cpu"], before = 4, module._CLIPS_PER_TASK["cpu"]
    assert run_build(config) == 0
    module._CLIPS_PER_TASK["cpu"] = before
    return config


@pytest.fixture
def cache(built, tmp_path):
    """A copy of that cache."""
    shutil.copytree(built.paths.cache, tmp_path / "copy")
    return tmp_path / "copy"
