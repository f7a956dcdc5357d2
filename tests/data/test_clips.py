"""Clips with fewer images than a model takes."""

import numpy as np
import pytest

from affectgpt.config import SamplingConfig
from affectgpt.data.clips import load_clip
from affectgpt.media import read_frames
from affectgpt.schema import Sample
from tests.data.conftest import write_clip


def published(n_source: int, n: int = 8) -> list[int]:
    """The indices of the published AffectGPT code: numpy's range, and the last one until there are n."""
    indices = np.arange(0, n_source, n_source / min(n, n_source)).astype(int).tolist()
    return indices + indices[-1:] * (n - len(indices))


@pytest.mark.parametrize("n_source", [1, 3, 7, 8, 11, 100])
def test_short_clips_can_repeat_their_last_face_as_the_published_code_does(tmp_path, n_source):
    crops = np.arange(n_source, dtype=np.uint8)[:, None, None, None]
    np.save(tmp_path / "f.npy", np.broadcast_to(crops, (n_source, 8, 8, 3)))
    sample = Sample(id="a", face=str(tmp_path / "f.npy"))
    found = load_clip(sample, ("face",), SamplingConfig(short_clips="last")).arrays["face"][:, 0, 0, 0]
    assert found.tolist() == published(n_source)
    even = load_clip(sample, ("face",), SamplingConfig()).arrays["face"][:, 0, 0, 0]
    assert even.tolist() == [i * n_source // 8 for i in range(8)]


def test_short_videos_repeat_their_last_frame_and_its_time(tmp_path):
    path = write_clip(tmp_path / "a.mp4", n_frames=3, seconds=0.3)
    three = read_frames(path, 3)
    assert three.n_source_frames == 3
    clip = load_clip(Sample(id="a", video=str(path)), ("frames",), SamplingConfig(n_frames=5, short_clips="last"))
    assert np.array_equal(clip.arrays["frames"], three.images[[0, 1, 2, 2, 2]])
    assert clip.facts["frames"]["times_s"] == [0.0, 0.1, 0.2, 0.2, 0.2]
