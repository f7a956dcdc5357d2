"""Published files in small shapes, and what they are converted to."""

from pathlib import Path

import pytest
import torch

from affectgpt.convert.conversion import convert
from tests.models import foreign


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def states():
    return {
        "eva": foreign.eva(n_blocks=40),
        "blip2": foreign.blip2(),
        "video": foreign.video_branch(),
        "audio": foreign.audio_branch(),
    }


@pytest.fixture(scope="session")
def files(states, tmp_path_factory) -> dict[str, Path]:
    """Under names that lie about their content, two of them exchanged."""
    folder = tmp_path_factory.mktemp("published")
    return {
        "eva": foreign.save(states["eva"], folder / "blip2_pretrained_flant5xxl.pth", key=None),
        "blip2": foreign.save(states["blip2"], folder / "eva_vit_g.pth"),
        "video": foreign.save(states["video"], folder / "video_llama_audio.pth", optimizer={"lr": 0.1}, epoch=3),
        "audio": foreign.save(states["audio"], folder / "video_llama_video.pth"),
    }


@pytest.fixture(scope="session")
def base(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "base"
    report = convert(list(files.values()), folder)
    assert report["complete"]
    return folder
