"""Damaged media: python benchmarks/damaged_media.py [--n 1000] [--seed 0] [--source CLIP] [--keep FOLDER]

Small clips in ten formats are written with PyAV (or, with --source, converted from a clip of your own) and damaged:
bytes flipped, cut off, chunks swapped, header fields overwritten, 2 to 50 % of the bytes zeroed or random. Each damaged
file is read like a clip of a data set (probe, frames, audio) in a process of its own. A file is "named" if reading it
raises a MediaError with its name, else it is answered; an answer is "equal" if it is the answer to the undamaged file,
and "wrong" if not (1 grey level, 2 % of the sound): damage that nobody was told about. Any other exception, a crash
(the process that reads ends) and a hang (--timeout-s) are failures. Then undamaged files are read in the variants that
real files come in: cut without re-encoding, with a variable frame rate, with an open GOP, as fragments, live.
None of them may be refused.
"""

from __future__ import annotations

import argparse
import collections
import logging
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from affectgpt.media import (
    DecoderCrashed,
    MediaError,
    isolatable,
    isolated_media,
    probe,
    read_audio,
    read_frames,
)

RATE_HZ, FRAME_RATE_HZ, CLIP_S = 48000, 25, 4.0
HEIGHT, WIDTH = 120, 160
FORMATS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "pcm_s16le"),
    "mkv": ("libx264", "ac3"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "ts": ("libx264", "aac"),
    "mp3": (None, "libmp3lame"),
    "wav": (None, "pcm_s16le"),
    "flac": (None, "flac"),
    "ogg": (None, "libopus"),
}
"""Container -> codecs of video and audio."""

KINDS = ("flip", "cut", "swap", "header", "zeros", "noise")


@dataclass(frozen=True)
class Answer:
    """What reading a file gave: images uint8 [T,H,W,3], samples float32 [S], peak memory of the process so far."""

    images: np.ndarray | None
    n_frames: int
    samples: np.ndarray | None
    peak_mb: float


@isolatable
def read_clip(path: str) -> Answer:
    info = probe(path)
    frames = read_frames(path, 16) if info.has_video else None
    samples = read_audio(path).samples if info.has_audio else None
    if frames is None and samples is None:
        raise MediaError(f"{path}: holds neither video nor audio")
    return Answer(frames.images if frames else None, frames.n_source_frames if frames else 0, samples, peak_memory_mb())


def peak_memory_mb() -> float:
    """Of this process (Linux; elsewhere also of the process that started it)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pictures(n: int) -> Iterator[np.ndarray]:
    """A textured disc that moves before a moving pattern, uint8 [H,W,3]."""
    rng = np.random.default_rng(7)
    texture = rng.integers(-40, 40, (HEIGHT, WIDTH, 3))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for i in range(n):
        waves = 128 + 60 * np.sin((x + 2 * i) / 9) * np.cos((y - i) / 13)
        image = waves[..., None] + np.roll(texture, i, axis=1) * 0.5
        disc = (x - 80 - 40 * np.sin(i / 9)) ** 2 + (y - 60) ** 2 < 900
        image[disc] = image[disc] * 0.3 + np.array([200, 140, 110]) * 0.7
        yield image.clip(0, 255).astype(np.uint8)


def voice() -> np.ndarray:
    """Harmonics with a moving pitch and syllables, float32 [S]."""
    t = np.arange(round(CLIP_S * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE_HZ
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(3).normal(size=len(t)) * 0.02
    return (0.2 * tone * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)) + noise).astype(np.float32)


def source_media(source: str | None) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames and audio at RATE_HZ of the clips to be written."""
    n = round(CLIP_S * FRAME_RATE_HZ)
    if source is None:
        return list(pictures(n)), voice()
    frames = read_frames(source, n).images
    height, width = (side // 2 * 2 for side in (frames.shape[1] * 320 // frames.shape[2], 320))
    resized = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(width, height) for image in frames]
    samples = read_audio(source, RATE_HZ).samples if probe(source).has_audio else voice()
    return [frame.to_ndarray(format="rgb24") for frame in resized], samples[: round(CLIP_S * RATE_HZ)]


def write_clip(
    path: Path,
    frames: list[np.ndarray],
    samples: np.ndarray,
    codecs: tuple[str | None, str],
    *,
    options: dict[str, str] | None = None,
    video_options: dict[str, str] | None = None,
    times: list[int] | None = None,
) -> Path:
    """`times`: of the frames in units of 1 / FRAME_RATE_HZ; None = 0, 1, 2 ..."""
    video_codec, audio_codec = codecs
    with av.open(str(path), "w", options={"fflags": "+bitexact", **(options or {})}) as container:
        video: Any = None
        if video_codec:
            video = container.add_stream(video_codec, rate=FRAME_RATE_HZ)
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "yuv420p"
            video.codec_context.gop_size = 25
            fast = {"libx264": {"preset": "veryfast"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}
            video.options = {**fast.get(video_codec, {}), **(video_options or {})}
        audio: Any = container.add_stream(audio_codec, rate=RATE_HZ, layout="mono")
        if video is not None:
            for i, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = (times[i] if times else i), Fraction(1, FRAME_RATE_HZ)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        resampler = av.AudioResampler(audio.format, audio.layout, RATE_HZ, frame_size=audio.frame_size or 0)
        sound = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        sound.sample_rate = RATE_HZ
        for piece in [*resampler.resample(sound), *resampler.resample(None)]:
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))
    return path


def copied(path: Path, out: Path, *, from_s: float = 0.0, options: dict[str, str] | None = None) -> Path:
    """The packets of `path` from `from_s` on (video from the key frame before), as `ffmpeg -ss ... -c copy` does."""
    with av.open(str(path)) as source, av.open(str(out), "w", options=options or {}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        if from_s:
            source.seek(round(from_s * av.time_base))
        started = not source.streams.video
        for packet in source.demux():
            if packet.dts is None:
                continue
            started = started or (packet.stream.type == "video" and packet.is_keyframe)
            if started:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return out


def damaged(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A damaged copy of the bytes of a file."""
    n, work = len(data), bytearray(data)

    def at(size: int = 1) -> int:
        return int(rng.integers(0, max(1, n - size)))

    if kind == "flip":
        for _ in range(int(rng.integers(1, 50))):
            work[at()] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del work[at() :]
    elif kind == "swap":
        size = int(rng.integers(16, max(17, n // 8)))
        first, second = at(size), at(size)
        work[first : first + size], work[second : second + size] = (
            data[second : second + size],
            data[first : first + size],
        )
        del work[n:]
    elif kind == "header":
        values = [
            bytes(4),
            b"\xff" * 4,
            b"\x7f\xff\xff\xff",
            b"\xff\xff\xff\x7f",
            b"\x80\0\0\0",
            b"\1\0\0\0",
            rng.bytes(4),
        ]
        for _ in range(int(rng.integers(1, 6))):
            # Most headers are at the front; mp4 and avi have indices at the back.
            place = int(rng.integers(0, min(n, 800)))
            if rng.random() < 0.3:
                place = n - 4 - place
            work[place : place + 4] = values[int(rng.integers(len(values)))]
    else:
        share = float(rng.uniform(0.02, 0.5))
        n_holes = int(rng.integers(1, 4))
        for _ in range(n_holes):
            size = max(1, round(n * share / n_holes))
            start = at(size)
            work[start : start + size] = bytes(size) if kind == "zeros" else rng.bytes(size)
    return bytes(work)


def distance(found: Answer, true: Answer) -> tuple[float, float]:
    """(mean grey levels between the worst frame and the true one, RMS of the audio error relative to the audio)."""
    levels = error = 0.0
    if true.images is not None:
        levels = 255.0
        if found.images is not None and found.images.shape == true.images.shape:
            levels = float(np.abs(found.images.astype(int) - true.images).mean(axis=(1, 2, 3)).max())
    if true.samples is not None:
        error = 1.0
        if found.samples is not None and abs(len(found.samples) - len(true.samples)) < 800:  # 0.05 s
            n = min(len(found.samples), len(true.samples))
            difference = found.samples[:n] - true.samples[:n]
            error = float(np.sqrt(np.square(difference).mean() / np.square(true.samples[:n]).mean()))
    return levels, error


@dataclass
class Row:
    tried: int = 0
    named: int = 0
    equal: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)
    crashes: int = 0
    hangs: int = 0
    levels: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def judge(path: Path, true: Answer, row: Row) -> tuple[str, float]:
    """Read one damaged file and count the outcome; returns it with the peak memory in MB."""
    row.tried += 1
    try:
        found = read_clip(str(path))
    except DecoderCrashed as error:
        hang = " took more than " in str(error)
        row.hangs += hang
        row.crashes += not hang
        return f"{'hang' if hang else 'crash'}: {error}", 0.0
    except MediaError as error:
        if str(path) not in str(error):
            row.failures.append(f"no name: {error}")
            return row.failures[-1], 0.0
        row.named += 1
        return f"named: {error}", 0.0
    except Exception as error:  # noqa: BLE001 - a failure to be reported
        row.failures.append(f"{type(error).__name__}: {error}")
        return row.failures[-1], 0.0
    levels, error = distance(found, true)
    if levels < 1 and error < 0.02:
        row.equal += 1
        return "equal", found.peak_mb
    row.wrong += 1
    row.levels.append(levels)
    row.errors.append(error)
    return f"wrong: {levels:.1f} grey levels, audio error {error:.2f}", found.peak_mb


def variants(folder: Path, frames: list[np.ndarray], samples: np.ndarray) -> dict[str, Path]:
    """Undamaged files as real ones are."""

    def write(name: str, codecs: tuple[str | None, str], **settings: Any) -> Path:
        return write_clip(folder / name, frames, samples, codecs, **settings)

    h264, vp9 = ("libx264", "aac"), ("libvpx-vp9", "libopus")
    made: dict[str, Callable[[], Path]] = {
        "mp4, index first": lambda: write("front.mp4", h264, options={"movflags": "faststart"}),
        "mp4, fragments": lambda: write("frag.mp4", h264, options={"movflags": "frag_keyframe+empty_moov"}),
        "mp4, B frames, open GOP": lambda: write(
            "open.mp4", h264, video_options={"x264-params": "open-gop=1:bframes=3"}
        ),
        "mp4, intra refresh": lambda: write("refresh.mp4", h264, video_options={"x264-params": "intra-refresh=1"}),
        "mp4, slices": lambda: write("slices.mp4", h264, video_options={"x264-params": "slices=4"}),
        "mp4, one key frame": lambda: write("long.mp4", h264, video_options={"g": "1000"}),
        "mp4, hevc": lambda: write("hevc.mp4", ("libx265", "aac"), video_options={"x265-params": "log-level=none"}),
        "mp4, hevc, open GOP": lambda: write(
            "hevc-open.mp4", ("libx265", "aac"), video_options={"x265-params": "log-level=none:open-gop=1:keyint=20"}
        ),
        "mp4, mpeg4": lambda: write("mpeg4.mp4", ("mpeg4", "aac")),
        "webm, vp8": lambda: write("vp8.webm", ("libvpx", "libopus"), video_options={"deadline": "realtime"}),
        "webm, vp9, hidden frames": lambda: write(
            "arf.webm", vp9, video_options={"deadline": "good", "lag-in-frames": "16", "auto-alt-ref": "1"}
        ),
        "webm, live": lambda: write("live.webm", vp9, options={"live": "1"}),
        "webm, vorbis": lambda: write("vorbis.webm", ("libvpx", "libvorbis")),
        "mkv, live": lambda: write("live.mkv", h264, options={"live": "1"}),
        "avi, mjpeg": lambda: write("mjpeg.avi", ("mjpeg", "pcm_s16le")),
        "mpg": lambda: write("a.mpg", ("mpeg2video", "mp2")),
        "wmv": lambda: write("a.wmv", ("wmv2", "wmav2")),
        "flv": lambda: write("a.flv", ("flv", "libmp3lame")),
        "m4a": lambda: write("a.m4a", (None, "aac")),
        "ogg, vorbis": lambda: write("vorbis.ogg", (None, "libvorbis")),
        "ogg, flac": lambda: write("flac.ogg", (None, "flac")),
        "aac": lambda: write("a.aac", (None, "aac")),
        "aiff": lambda: write("a.aiff", (None, "pcm_s16be")),
        "mka, opus": lambda: write("a.mka", (None, "libopus")),
    }
    times = np.cumsum(np.random.default_rng(5).integers(1, 5, len(frames))).tolist()
    for suffix in ("mp4", "mkv", "webm"):
        made[f"{suffix}, variable rate"] = lambda suffix=suffix: write(f"vfr.{suffix}", FORMATS[suffix], times=times)
    paths = {}
    for name, make in made.items():
        try:
            paths[name] = make()
        except (av.FFmpegError, ValueError) as error:
            print(f"not written: {name} ({error})", file=sys.stderr)
    for name, codecs in FORMATS.items():
        paths[name] = write(f"plain.{name}", codecs)
    for name, path in list(paths.items()):
        if name in ("aiff",):
            continue
        try:
            paths[f"{name}, cut from 1.5 s"] = copied(path, folder / f"cut-{path.name}", from_s=1.5)
        except (av.FFmpegError, ValueError) as error:
            print(f"not cut: {name} ({error})", file=sys.stderr)
        for other in ("mkv", "ts"):
            # In a transport stream, H.264 can only begin with an IDR picture.
            if path.suffix == ".mp4" and (other != "ts" or path.stem in ("plain", "front", "frag", "slices", "hevc")):
                try:
                    paths[f"{name}, cut to {other}"] = copied(path, folder / f"cut-{path.stem}.{other}", from_s=1.5)
                except (av.FFmpegError, ValueError) as error:
                    print(f"not cut: {name} to {other} ({error})", file=sys.stderr)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", help="a clip to convert instead of made pictures and sound")
    parser.add_argument("--keep", type=Path, help="folder for files that were answered wrongly, crashed or hung")
    parser.add_argument("--timeout-s", type=float, default=30.0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--intact", nargs="*", default=[], help="further undamaged files that must be answered")
    settings = parser.parse_args()
    logging.getLogger("affectgpt").setLevel(logging.ERROR)
    av.logging.set_level(av.logging.PANIC)
    frames, samples = source_media(settings.source)
    rng = np.random.default_rng(settings.seed)
    rows: dict[str, Row] = collections.defaultdict(Row)
    kinds: dict[str, Row] = collections.defaultdict(Row)
    peak_mb = 0.0
    if settings.keep:
        settings.keep.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, isolated_media(1, timeout_s=settings.timeout_s):
        folder = Path(name)
        true = {}
        for suffix in settings.formats:
            path = write_clip(folder / f"clip.{suffix}", frames, samples, FORMATS[suffix])
            true[suffix] = (path.read_bytes(), read_clip(str(path)))
        for i in range(settings.n):
            suffix = settings.formats[i % len(settings.formats)]
            kind = settings.kinds[i // len(settings.formats) % len(settings.kinds)]
            data, answer = true[suffix]
            path = folder / f"{i}-{kind}.{suffix}"
            path.write_bytes(damaged(data, kind, rng))
            outcome, memory_mb = judge(path, answer, rows[suffix])
            judge_kind = kinds[kind]
            judge_kind.tried += 1
            key = outcome.partition(":")[0]
            for counted in ("named", "equal", "wrong"):
                setattr(judge_kind, counted, getattr(judge_kind, counted) + (key == counted))
            judge_kind.crashes += key == "crash"
            judge_kind.hangs += key == "hang"
            if key not in ("named", "equal"):
                if settings.keep:
                    (settings.keep / path.name).write_bytes(path.read_bytes())
                print(f"{path.name}: {outcome}", flush=True)
            peak_mb = max(peak_mb, memory_mb)
            path.unlink()
        refused = []
        intact = variants(folder, frames, samples) | {file: Path(file) for file in settings.intact}
        for what, path in intact.items():
            try:
                read_clip(str(path))
            except MediaError as error:
                refused.append(f"{what}: {error}")
    print(
        f"\n{'':<8}{'tried':>6}{'named':>7}{'equal':>7}{'wrong':>7}{'noticed':>9}{'crashes':>9}{'hangs':>7}{'other':>7}"
    )
    total = Row()
    for name, row in [*rows.items(), *kinds.items()]:
        noticed = row.named / (row.named + row.wrong) if row.named + row.wrong else 1.0
        print(
            f"{name:<8}{row.tried:>6}{row.named:>7}{row.equal:>7}{row.wrong:>7}{noticed:>9.1%}{row.crashes:>9}"
            f"{row.hangs:>7}{len(row.failures):>7}"
        )
        if name in rows:
            for key in ("tried", "named", "equal", "wrong", "crashes", "hangs"):
                setattr(total, key, getattr(total, key) + getattr(row, key))
            total.failures += row.failures
    noticed = total.named / max(1, total.named + total.wrong)
    print(
        f"{'all':<8}{total.tried:>6}{total.named:>7}{total.equal:>7}{total.wrong:>7}{noticed:>9.1%}{total.crashes:>9}"
        f"{total.hangs:>7}{len(total.failures):>7}"
    )
    print(f"peak memory {peak_mb:.0f} MB; {time.monotonic() - started:.0f} s")
    print(f"undamaged: {len(intact)} files, {len(refused)} refused")
    for line in refused:
        print(f"  {line}")
    return bool(total.crashes or total.hangs or total.failures or refused)


if __name__ == "__main__":
    raise SystemExit(main())
