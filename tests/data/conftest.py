import numpy as np
import pytest

from affectgpt.demo.video import write_mp4


def write_clip(path, *, seed=0, n_frames=10, seconds=1.0, sound=True):
    """A small real mp4: noise frames and a tone whose pitch depends on the seed."""
    frames = np.random.default_rng(seed).integers(0, 255, (n_frames, 32, 32, 3), dtype=np.uint8)
    time = np.arange(int(16000 * seconds)) / 16000
    tone = (0.3 * np.sin(2 * np.pi * (200 + 40 * seed) * time)).astype(np.float32)
    write_mp4(path, frames, rate_hz=n_frames / seconds, waveform=tone if sound else None)
    return path


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4")
