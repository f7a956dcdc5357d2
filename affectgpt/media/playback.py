"""What a browser plays, and copies that it plays: mp4 with h264 and aac."""

from __future__ import annotations

import math
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from affectgpt.media.audio import read_audio
from affectgpt.media.container import EmptyMedia, PathLike, audio_stream, decode, open_media, video_stream
from affectgpt.media.isolated import isolatable
from affectgpt.media.video import upright_frame

# Containers and codecs that both Chromium and Firefox play; by suffix, because a server names the type by it.
# https://developer.mozilla.org/en-US/docs/Web/Media/Guides/Formats
_MP4 = {"h264", "av1", "vp9", "aac", "mp3", "flac", "opus"}
_PLAYED = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".m4a": _MP4,
    ".webm": {"vp8", "vp9", "av1", "vorbis", "opus"},
    ".ogg": {"vorbis", "opus", "flac"},
    ".oga": {"vorbis", "opus", "flac"},
    ".opus": {"opus"},
    ".mp3": {"mp3", "mp3float"},
    ".flac": {"flac"},
    ".aac": {"aac"},
    ".wav": {"pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"},
}
_PIXELS = {"yuv420p", "yuvj420p"}
"""Of h264; browsers do not play its 4:2:2, 4:4:4 and 10-bit profiles everywhere."""
_NAMES = {"mp3float": "mp3", "libdav1d": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9", "libopus": "opus"}
_RATE_HZ, _AAC_BIT_RATE = 48_000, 128_000
_CLOCK_HZ = 90_000


@isolatable
def why_not_played(path: PathLike) -> str | None:
    """Why browsers do not play a file, such as "avi" or "mpeg4 in mp4"; None if they do.

    Raises:
        MediaError: the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
    with open_media(path) as container:
        video, audio = video_stream(container), audio_stream(container)
        codecs = [(stream, stream.codec_context.name) for stream in (video, audio) if stream and stream.codec_context]
        if suffix not in _PLAYED:
            return suffix.removeprefix(".") or "no suffix"
        for stream, codec in codecs:
            name = _NAMES.get(codec, codec)
            if name not in _PLAYED[suffix]:
                return f"{name} in {suffix[1:]}"
            if name == "h264" and stream.codec_context.pix_fmt not in _PIXELS:
                return f"h264 with {stream.codec_context.pix_fmt}"
    return None


@isolatable
def write_playable(source: PathLike, target: Path) -> None:
    """Write a copy of a clip that browsers play, atomically: mp4 with h264 and aac, upright and with square pixels.

    Frames keep their times, also against the sound. The audio is what the models hear (`read_audio`), mono at 48 kHz.

    Raises:
        MediaError: the clip cannot be decoded; nothing is written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".draft-") as folder:
        draft = Path(folder) / "draft.mp4"
        _write(source, draft)
        os.replace(draft, target)


def _write(source: PathLike, draft: Path) -> None:
    with open_media(source) as container:
        has_video, has_audio = video_stream(container) is not None, audio_stream(container) is not None
    waveform = read_audio(source, _RATE_HZ) if has_audio else None
    start_s = math.inf if waveform is None else waveform.start_s  # of the copy, in the source's time
    with av.open(str(draft), "w", options={"movflags": "+faststart"}) as out:
        encoder: Any = out.add_stream("libx264", options={"preset": "veryfast", "crf": "20"}) if has_video else None
        sound: Any = out.add_stream("aac", rate=_RATE_HZ, layout="mono") if waveform is not None else None
        if sound is not None:
            sound.bit_rate = _AAC_BIT_RATE
        if encoder is not None:
            start_s = _write_video(source, out, encoder, start_s)
        if waveform is not None:
            frame = av.AudioFrame.from_ndarray(waveform.samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = _RATE_HZ, round((waveform.start_s - start_s) * _RATE_HZ)
            frame.time_base = Fraction(1, _RATE_HZ)
            out.mux(sound.encode(frame))
            out.mux(sound.encode())


def _write_video(source: PathLike, out: Any, encoder: Any, sound_s: float) -> float:
    """Write the frames, the first one at 0 or as much later as the sound starts earlier (at `sound_s` in the source).

    Returns:
        the time in the source that is 0 in the copy.
    """
    clock = Fraction(1, _CLOCK_HZ)
    first_s, delay_s, last = 0.0, 0.0, -1
    with open_media(source) as container:
        stream = video_stream(container)
        assert stream is not None  # the caller has found it
        stream.thread_type = "AUTO"
        rate_hz = float(stream.average_rate or stream.guessed_rate or 25)
        for index, frame in enumerate(decode(container, stream, source)):
            image = upright_frame(frame, stream)
            height, width = (size - size % 2 for size in image.shape[:2])  # h264 in 4:2:0 needs even sizes
            if index == 0:
                encoder.width, encoder.height, encoder.pix_fmt = max(width, 2), max(height, 2), "yuv420p"
                encoder.codec_context.time_base = clock
                first_s = float(frame.pts * stream.time_base) if frame.pts is not None else 0.0
                delay_s = max(0.0, first_s - sound_s)
            time_s = float(frame.pts * stream.time_base) - first_s if frame.pts is not None else index / rate_hz
            last = max(last + 1, round((delay_s + time_s) * _CLOCK_HZ))  # an encoder refuses times that do not grow
            fresh = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            fresh = fresh.reformat(width=encoder.width, height=encoder.height, format="yuv420p")
            fresh.pts, fresh.time_base = last, clock
            out.mux(encoder.encode(fresh))
        if last < 0:
            raise EmptyMedia(f"{source}: its video stream has no frames; copy or download it again, or leave it out")
        out.mux(encoder.encode())
    return first_s - delay_s
