"""Write frames and sound as mp4 (h264 and aac)."""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags

_X264 = {
    "preset": "veryfast",
    "crf": "20",
    "threads": "1",
    # Without it, macroblock-tree rate control is not reproducible (measured with PyAV 18.1).
    "x264-params": "cpu-independent=1",
}
_AAC_BIT_RATE = 64_000


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    *,
    rate_hz: float,
    waveform: np.ndarray | None = None,
    sample_rate_hz: int = 16000,
) -> None:
    """Write uint8 frames [T,H,W,3] and a float32 waveform [S] in -1..1; waveform None = no audio stream.

    The file is written atomically. The same input gives the same bytes.
    """
    path = Path(path)
    _check(path, frames, waveform)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        draft = Path(folder, path.name)
        _write(draft, frames, Fraction(rate_hz).limit_denominator(1001), waveform, sample_rate_hz)
        os.replace(draft, path)


def _check(path: Path, frames: np.ndarray, waveform: np.ndarray | None) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"{path}: frames are {frames.dtype} {list(frames.shape)}; expected uint8 [T,H,W,3] with T > 0")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"{path}: frames are {frames.shape[2]}x{frames.shape[1]}; h264 needs even width and height")
    if waveform is not None and (waveform.dtype != np.float32 or waveform.ndim != 1):
        raise ValueError(f"{path}: waveform is {waveform.dtype} {list(waveform.shape)}; expected float32 [S]")


def _write(path: Path, frames: np.ndarray, rate: Fraction, waveform: np.ndarray | None, sample_rate_hz: int) -> None:
    # "bitexact" omits the encoder version and the creation time.
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=rate, options=_X264)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.codec_context.flags |= Flags.bitexact
        if waveform is not None:
            audio = container.add_stream("aac", rate=sample_rate_hz, layout="mono")
            audio.bit_rate = _AAC_BIT_RATE
            audio.codec_context.flags |= Flags.bitexact
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        if waveform is not None:
            sound = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            # With timestamps from 0, the muxer marks the encoder delay of 1,024 samples, which players then skip.
            sound.sample_rate, sound.pts = sample_rate_hz, 0
            container.mux(audio.encode(sound))
            container.mux(audio.encode())
