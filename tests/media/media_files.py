"""Small media files for tests, written with PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RED, GREEN, BLUE, WHITE = (230, 20, 20), (20, 200, 20), (20, 20, 230), (235, 235, 235)


def numbered_clip(n_frames: int, *, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frame i shows i as eight black or white bars, lowest bit on the left, which survives any codec."""
    bits = [np.array([i >> bit & 1 for bit in range(8)], dtype=np.uint8) for i in range(n_frames)]
    return [np.tile((255 * bit).repeat(width // 8)[:, None], (height, 1, 3)) for bit in bits]


def frame_numbers(images: np.ndarray) -> list[int]:
    """Which frames of `numbered_clip` these are.  [T,H,W,3] -> T numbers"""
    width = images.shape[2]
    bars = images[:, :, width // 16 :: width // 8].mean(axis=(1, 3)) > 128  # [T,8]
    return [int(number) for number in bars @ (1 << np.arange(8))]


def four_corners(*, height: int = 64, width: int = 96) -> np.ndarray:
    """Upper left red, upper right green, lower left blue, lower right white."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = BLUE, WHITE
    return image


def corner_colours(image: np.ndarray) -> list[tuple[int, int, int]]:
    """The colours of `four_corners`, in reading order, as seen in the image."""
    height, width = image.shape[:2]
    palette = np.array([RED, GREEN, BLUE, WHITE])
    found = []
    for y, x in ((height // 4, width // 4), (height // 4, -width // 4), (-height // 4, width // 4)):
        found.append(image[y, x])
    found.append(image[-height // 4, -width // 4])
    return [tuple(palette[np.abs(palette - colour.astype(int)).sum(axis=1).argmin()].tolist()) for colour in found]


def sine(duration_s: float, *, amplitude: float = 0.5, frequency_hz: float = 440.0, rate_hz: int = 44100) -> np.ndarray:
    """float32 [S]"""
    times = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def write_media(
    path: Path,
    frames: Iterable[np.ndarray] = (),
    *,
    rate_hz: int = 25,
    times_s: Sequence[float] | None = None,
    video_codec: str = "libx264",
    display: dict | None = None,
    pixel_aspect: Fraction | None = None,
    sound: np.ndarray | None = None,
    sound_rate_hz: int = 44100,
    audio_codec: str = "aac",
    options: dict[str, str] | None = None,
    video_options: dict[str, str] | None = None,
    gop_size: int | None = None,
) -> Path:
    """Write frames (uint8 [H,W,3]) and audio (float32 [S] or [C,S]) to `path`; the suffix selects the container."""
    frames = iter(frames)
    first = next(frames, None)
    with av.open(str(path), "w", options=options or {}) as container:
        video = audio = None
        if first is not None:
            video = container.add_stream(video_codec, rate=rate_hz)
            video.height, video.width = first.shape[:2]
            video.pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
            fast = {"libx264": {"preset": "ultrafast"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}
            video.options = fast.get(video_codec, {}) | (video_options or {})
            if gop_size:
                video.codec_context.gop_size = gop_size
            if times_s is not None:
                video.codec_context.time_base = video.time_base = Fraction(1, 1000)
            if pixel_aspect:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if display:
                video.set_display_rotation(**display)
        if sound is not None:
            sound = np.atleast_2d(sound)
            layout = {1: "mono", 2: "stereo", 6: "5.1"}.get(len(sound), f"{len(sound)} channels")
            audio = container.add_stream(audio_codec, rate=sound_rate_hz, layout=layout)
        if video is not None:
            index = 0
            while first is not None:
                frame = av.VideoFrame.from_ndarray(first, format="rgb24")
                if times_s is not None:
                    frame.pts, frame.time_base = round(times_s[index] * 1000), Fraction(1, 1000)
                container.mux(video.encode(frame))
                first, index = next(frames, None), index + 1
            container.mux(video.encode(None))
        if audio is not None:
            resampler = av.AudioResampler(audio.format, audio.layout, sound_rate_hz, frame_size=audio.frame_size or 0)
            frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate = sound_rate_hz
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path


def remuxed(path: Path, *sources: tuple[Path, float]) -> Path:
    """The first streams of some files in one, each as many seconds later as is given with it."""
    inputs = [(av.open(str(source)), later_s) for source, later_s in sources]
    with av.open(str(path), "w") as container:
        outputs = [container.add_stream_from_template(source.streams[0]) for source, _ in inputs]
        for (source, later_s), output in zip(inputs, outputs, strict=True):
            for packet in source.demux(source.streams[0]):
                if packet.size:
                    later = round(later_s / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, output
                    container.mux(packet)
            source.close()
    return path


def cut(path: Path, share: float) -> Path:
    """The first `share` of a file's bytes, as a file next to it."""
    data = path.read_bytes()
    short = path.with_name(f"cut-{path.name}")
    short.write_bytes(data[: int(len(data) * share)])
    return short
