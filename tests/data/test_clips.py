"""Clips with fewer images than a model takes."""

import io

import numpy as np
import pytest
from PIL import Image

from affectgpt.config import SamplingConfig, ServeConfig
from affectgpt.data.clips import load_clip
from affectgpt.media import read_frames
from affectgpt.models.conversation import ClipMedia
from affectgpt.schema import Sample
from affectgpt.serve.media import read_images
from affectgpt.serve.request import MediaPart
from tests.data.conftest import write_clip
from tests.media.faces import scene
from tests.media.media_files import write_media


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


@pytest.mark.parametrize("short_clips", ["even", "last"])
def test_conversations_and_requests_sample_a_short_clip_as_training_does(tmp_path, short_clips):
    film = str(tmp_path / "film.mp4")
    write_media(film, [scene(20 + 3 * step) for step in range(3)])
    shown = ("frames", "face")
    sampling = SamplingConfig(n_frames=5, n_faces=5, short_clips=short_clips)
    trained = load_clip(Sample(id="a", video=film), shown, sampling).arrays
    branches = {name: {"n_frames": 5} | ({"short_clips": "last"} if short_clips == "last" else {}) for name in shown}
    asked = ClipMedia(film, None, branches).read(shown)
    for name in shown:
        assert len(np.unique(asked[name], axis=0)) > 1
        assert np.array_equal(asked[name], trained[name])
    images = read_frames(film, 3).images
    alone = ClipMedia(images, None, {"frames": branches["frames"]}).read(("frames",))["frames"]
    assert np.array_equal(alone, trained["frames"])
    parts = []
    for image in images:
        Image.fromarray(image).save(file := io.BytesIO(), "PNG")
        parts.append(MediaPart("image", data=file.getvalue()))
    requested, indices = read_images(parts, 5, ServeConfig(), short_clips)
    assert np.array_equal(requested, trained["frames"])
    assert indices == ([0, 1, 2, 2, 2] if short_clips == "last" else [0, 0, 1, 1, 2])
