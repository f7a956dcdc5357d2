"""Open media files, read their headers, decode their streams, and detect missing, truncated and damaged files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from av.stream import Disposition

from affectgpt.media import limits
from affectgpt.media.errors import (
    DamagedMedia,
    EmptyMedia,
    MediaError,
    MissingMedia,
    TruncatedMedia,
)
from affectgpt.media.isolated import isolatable
from affectgpt.media.structure import avi_chunks, find_damage, matroska_blocks, stated_length

if TYPE_CHECKING:
    from av.container import InputContainer

log = logging.getLogger("affectgpt")

PathLike = str | os.PathLike[str]

# Some writers misstate a RIFF length by the size of a header; a real truncation is longer.
_LENGTH_SLACK_BYTES = 64


def _decoder_limits() -> dict[str, str]:
    """FFmpeg checks these before it allocates a picture or an audio frame, also when a size changes mid-stream."""
    return {"max_pixels": str(limits.MAX_PIXELS), "max_samples": str(limits.MAX_AUDIO_FRAME)}


@dataclass(frozen=True)
class MediaInfo:
    """The headers of a media file; they can be wrong, only decoding is certain.

    `None` = not stated. `width` and `height` are as stored, before any rotation. `n_frames` is 0 if the header has no
    count, and is wrong in many avi files. Cover art does not count as video.
    """

    path: str
    has_video: bool
    has_audio: bool
    duration_s: float | None
    video_duration_s: float | None = None
    audio_duration_s: float | None = None
    n_frames: int = 0
    frame_rate_hz: float | None = None
    width: int | None = None
    height: int | None = None
    sample_rate_hz: int | None = None
    n_channels: int | None = None
    video_codec: str | None = None
    audio_codec: str | None = None


@isolatable
def probe(path: PathLike) -> MediaInfo:
    """Read the headers of `path` without decoding (about 5 ms).

    Raises:
        MissingMedia, EmptyMedia, TruncatedMedia: no file, 0 bytes, or fewer bytes than the container states.
        MediaError: the file cannot be read, or is not a media file.
    """
    with open_media(path) as container:
        facts: dict[str, Any] = {}
        if video := video_stream(container):
            facts |= {
                "video_duration_s": stated_duration_s(video),
                "n_frames": video.frames,
                "frame_rate_hz": float(video.average_rate) if video.average_rate else None,
                "video_codec": video.codec_context and video.codec_context.name,
                "width": video.codec_context and video.codec_context.width,
                "height": video.codec_context and video.codec_context.height,
            }
        if audio := audio_stream(container):
            facts |= {
                "audio_duration_s": stated_duration_s(audio),
                "sample_rate_hz": (audio.codec_context and audio.codec_context.sample_rate) or None,
                "n_channels": (audio.codec_context and audio.codec_context.layout.nb_channels) or None,
                "audio_codec": audio.codec_context and audio.codec_context.name,
            }
        duration_s = container.duration / av.time_base if container.duration is not None else None
        return MediaInfo(str(path), video is not None, audio is not None, duration_s, **facts)


@isolatable
def measure(path: PathLike, *, formats: str, max_s: float) -> tuple[str, list[tuple[int, int]], float]:
    """(format, sizes of the video streams, seconds of the longest stream) of media from strangers.

    The seconds are summed over the packets, up to `max_s`: headers may be wrong, packets show what there is to decode.

    Args:
        formats: the demuxers of FFmpeg that are allowed, separated by commas.

    Raises:
        MediaError: the file cannot be read as one of `formats`.
    """
    allowed = {"protocol_whitelist": "file", "format_whitelist": formats}
    try:
        with av.open(f"file:{path}", container_options=allowed, metadata_errors="ignore") as container:
            streams = [stream for stream in container.streams if stream.type in ("video", "audio")]
            contexts: list[Any] = [stream.codec_context for stream in streams if stream.type == "video"]
            sums, longest_s = dict.fromkeys((stream.index for stream in streams), 0.0), 0.0
            for packet in packets_of(container, streams) if streams else ():
                sums[packet.stream_index] += float((packet.duration or 0) * (packet.time_base or 0))
                longest_s = max(longest_s, sums[packet.stream_index])
                if longest_s > max_s:
                    break
            sizes = [(context.width, context.height) for context in contexts if context is not None]
            return container.format.name, sizes, longest_s
    except (av.FFmpegError, OSError) as error:
        expected = f"a media file that ffmpeg reads as one of {formats}"
        raise MediaError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from error


def stated_duration_s(stream: Any) -> float | None:
    return float(stream.duration * stream.time_base) if stream.duration is not None else None


def video_stream(container: InputContainer) -> Any | None:
    """The first video stream that is not cover art, preferably one that has a decoder."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    return next(filter(_has_decoder, streams), next(iter(streams), None))


def audio_streams(container: InputContainer) -> list[Any]:
    """All audio streams: those with a decoder first, of these the one that a player would choose first."""
    best = container.streams.best("audio")
    return sorted(container.streams.audio, key=lambda stream: (not _has_decoder(stream), stream is not best))


def audio_stream(container: InputContainer) -> Any | None:
    """The first of `audio_streams`."""
    return next(iter(audio_streams(container)), None)


def _has_decoder(stream: Any) -> bool:
    return stream.codec_context is not None  # phones write tracks that FFmpeg cannot decode, e.g. apac


def stream_kinds(container: InputContainer) -> str:
    """The types of the streams, for error messages."""
    kinds = ["cover art" if _is_cover(stream) else stream.type for stream in container.streams]
    return ", ".join(kinds) or "no streams"


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


@contextmanager
def open_media(path: PathLike) -> Iterator[InputContainer]:
    """Open `path` after checking that it exists, is not empty and is not truncated; see `probe` for the errors.

    Errors of FFmpeg and of the operating system become MediaError, also those raised inside the `with` block. Any
    other exception passes through.
    """
    try:
        file = Path(path).absolute()
        if not file.exists():
            raise MissingMedia(f"{path}: no such file; check the path in the manifest or on the command line")
        if not file.is_file():
            raise MediaError(f"{path}: expected a media file, found a folder or device")
        n_bytes = file.stat().st_size
        if n_bytes == 0:
            raise EmptyMedia(f"{path}: the file has 0 bytes; copy or download it again")
        _check_length(path, file, n_bytes)
        # "file:" keeps a colon in the name from being read as a protocol; the whitelist keeps playlists from opening
        # URLs. Metadata in old avi files is often not UTF-8 and is not used here.
        options = {"protocol_whitelist": "file"} | _decoder_limits()
        with av.open(f"file:{file}", options=options, metadata_errors="ignore") as container:
            yield container
    except MediaError:
        raise
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path}: cannot be read as media ({error.strerror}); expected mp4, mov, avi, webm, mkv, wav, flac, mp3 …; "
            "try to play it, then convert it (ffmpeg -i IN OUT.mp4) or leave it out"
        ) from error


def _check_length(path: PathLike, file: Path, n_bytes: int) -> None:
    """Raise TruncatedMedia if the outermost structure of the file states more bytes than the file has.

    FFmpeg decodes a truncated file as a shorter one without an error, and its avi and wav demuxers even shorten the
    stated duration. Only the byte counts reveal the truncation.
    """
    with file.open("rb") as stream:
        stated, has_index = stated_length(stream, n_bytes)
    if stated is not None and stated > n_bytes + _LENGTH_SLACK_BYTES:
        raise TruncatedMedia(
            f"{path}: the file is truncated: {n_bytes} bytes found, its container states at least {stated}; "
            "copy or download it again, or leave it out"
        )
    if not has_index:
        raise TruncatedMedia(
            f"{path}: the file has no index (no moov box in {n_bytes} bytes): it is truncated, or its recording was "
            "never finished; copy or download it again, or leave it out"
        )


def check_bytes(path: PathLike, container: InputContainer) -> None:
    """Raise DamagedMedia or TruncatedMedia if checksums are wrong or bytes belong to nothing, which FFmpeg skips."""
    with open(path, "rb") as stream:
        n_bytes = os.path.getsize(path)
        found = find_damage(stream, n_bytes, container.format.name)
        if not found and container.format.name == "avi":
            known = {(other.index, other.type) for other in container.streams}
            unknown = [key for key in avi_chunks(stream, n_bytes) if key not in known and key[1] != "other"]
            if unknown:
                number, kind = unknown[0]
                found = f"chunks of {kind} in stream {number}, of which its header says otherwise"
    if found and "truncated" in found:
        raise TruncatedMedia(f"{path}: {found}; copy or download it again, or leave it out")
    if found:
        raise DamagedMedia(f"{path}: {found}; {_DAMAGE_ADVICE}")


_DAMAGE_ADVICE = (
    "the file is damaged: copy or download it again, leave it out, or accept what can be decoded by converting it "
    "(ffmpeg -i IN OUT.mp4)"
)

_CUT_ANYWHERE = ("mpegts", "mpeg", "mpegvideo", "flv", "mp3", "aac")
"""Formats of broadcasts and streams: they may begin and end in the middle of a picture."""


def packets_of(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The packets of `stream` (or of a list of them), up to the end of the file.

    PyAV (18.1) raises an IndexError at the end if another stream has appeared midway, as in broadcasts.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:
            return
        if packet is None:
            return
        yield packet


def _checker(context: Any) -> Any | None:
    """A decoder that finds damage which FFmpeg's own does not; None if there is none.

    Of VP8 and VP9 any bytes are a picture; only libvpx reports that a picture has read beyond its end.
    """
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name)
    return av.CodecContext.create(name, "r") if name in av.codecs_available else None


def _n_stored(path: PathLike, stream: Any) -> int:
    """At least how many packets of `stream` the file holds, where it can be counted without FFmpeg."""
    name = stream.container.format.name
    with open(path, "rb") as file:
        if name == "avi":
            return avi_chunks(file, os.path.getsize(path))[stream.index, stream.type]
        if name == "matroska,webm":  # which track it is, is not known here
            return min(matroska_blocks(file, os.path.getsize(path)).values(), default=0)
    return 0


def _end_of_good(lost: set[int], n_sent: int) -> int:
    """The packet from which on all are lost."""
    end = n_sent + 1
    while end in lost or end - 1 in lost:
        end -= 1
    return end


def decode(container: InputContainer, stream: Any, path: PathLike) -> Iterator[Any]:
    """All frames of `stream` in presentation order.

    Damage that the decoder conceals is an error: a picture with errors, and those that follow it, show something else
    than what was recorded. Accepted, with a warning, are errors at the ends of a broadcast that was cut anywhere, in up
    to 0.5 % of the packets of audio, and up to 1 % of packets that only the container marks.

    Raises:
        MediaError: no decoder for this codec. DamagedMedia: packets fail, or the file cannot be read.
    """
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{path}: no decoder for its {stream.type} stream; convert it (ffmpeg -i IN OUT.mp4)")
    is_video, most = stream.type == "video", limits.MAX_PIXELS
    # Checksums and stricter parsing. Audio decoders conceal errors silently unless they "explode"; those of video mark
    # the picture.
    checks = {"err_detect": "crccheck+bitstream+buffer" + ("" if is_video else "+explode")}
    context.options = _decoder_limits() | checks
    if is_video:
        n_pixels = context.width * context.height
        if n_pixels > limits.MAX_PIXELS:
            size = f"{context.width} x {context.height}"
            raise DamagedMedia(f"{path}: claims pictures of {size} pixels; the limit is {limits.MAX_PIXELS} pixels")
        most = min(limits.MAX_PIXELS, max(limits.MAX_GROWTH * n_pixels, limits.ALWAYS_PIXELS))
        context.options |= {"max_pixels": str(most)}
        stream.thread_type = "AUTO"
        n_threads = limits.PICTURE_BYTES // (3 * n_pixels + 1)
        if n_threads < 17:  # FFmpeg uses one more than there are cores, at most 17
            context.thread_count = max(1, min(n_threads, (os.cpu_count() or 1) + 1))
    checker = _checker(context) if is_video else None
    if checker:
        stream.thread_type = "SLICE"  # the checker sees a picture after this decoder has accepted its size
    n_packets = n_marked = 0
    lost: list[int] = []
    first: int | None = None

    def decoded(packet: Any) -> Iterator[Any]:
        nonlocal first
        try:
            frames = stream.decode(packet)
            if checker and packet is not None:
                checker.decode(packet)
        except av.FFmpegError as error:
            if is_video and context.width * context.height > most:
                size = f"{context.width} x {context.height}"
                raise DamagedMedia(f"{path}: a picture midway has {size} pixels; the limit is {most} pixels") from error
            if not isinstance(error, av.InvalidDataError):
                raise
            lost.append(n_packets)
            return
        for frame in frames:
            first = n_packets if first is None else first
            if frame.is_corrupt:
                lost.append(n_packets)
            yield frame

    try:
        for packet in packets_of(container, stream):
            if not packet.size:  # avi has empty packets, which the decoder would take for the end
                continue
            n_packets += 1
            n_marked += packet.is_corrupt
            yield from decoded(packet)
        n_sent = n_packets
        n_packets += 1  # errors after the last packet belong to it
        yield from decoded(None)
    except av.FFmpegError as error:
        reason = "it claims a size beyond memory" if isinstance(error, MemoryError) else error.strerror
        if is_video and isinstance(error, av.ArgumentError):
            reason = f"invalid, or a picture has more than {most} pixels"
        raise DamagedMedia(f"{path}: reading its {stream.type} stream failed ({reason}); {_DAMAGE_ADVICE}") from error
    # A stream without packets is empty, not damaged: a clip may be cut where its sound has not begun.
    if n_sent and n_sent < 0.99 * (n_stored := _n_stored(path, stream)):
        raise DamagedMedia(
            f"{path}: FFmpeg finds {n_sent} of {n_stored} packets of its {stream.type} stream; {_DAMAGE_ADVICE}"
        )
    n_lost, accepted = len(lost), 0 if is_video or context.name == "flac" else n_sent // 200
    if container.format.name in _CUT_ANYWHERE:
        end = n_sent if is_video else _end_of_good(set(lost), n_sent)  # the last picture, or what comes after an mp3
        accepted += sum(number < (first or 0) or number >= end for number in lost)
    if n_lost > accepted and min(lost) >= n_sent and container.format.name == "flac":
        raise TruncatedMedia(f"{path}: its audio stream ends in the middle of a packet; copy or download it again")
    if n_lost > accepted or n_marked > max(1, n_sent // 100):
        raise DamagedMedia(
            f"{path}: {max(n_lost, n_marked)} of {n_sent} packets of its {stream.type} stream cannot be decoded "
            f"without errors; {_DAMAGE_ADVICE}"
        )
    if n_lost or n_marked:
        n = max(n_lost, n_marked)
        log.warning("%s: %d of %d packets cannot be decoded without errors (%s)", path, n, n_sent, stream.type)


def check_end(path: PathLike, stream: Any, first_s: float, end_s: float) -> None:
    """Raise TruncatedMedia if `stream`, decoded from `first_s` to `end_s`, is shorter than its header states."""
    # Only these formats state exact stream lengths; mp3 and ogg estimate them, mkv and avi only state the file's.
    name = stream.container.format.name
    stated_s = stated_duration_s(stream)
    if name not in ("mov,mp4,m4a,3gp,3g2,mj2", "flac", "wav") or stated_s is None:
        return
    # A clip that was cut without re-encoding may begin with packets that give no picture.
    start_s = min(first_s, float((stream.start_time or 0) * stream.time_base))
    decoded_s = end_s - start_s
    if decoded_s >= stated_s - 0.25:  # codec delay and padding amount to up to 0.1 s
        return
    found = f"its {stream.type} stream ends after {decoded_s:.2f} s, the container states {stated_s:.2f} s"
    if name == "flac":  # its frames are complete, see `decode`: it was cut without re-encoding, which keeps the header
        log.warning("%s: %s", path, found)
        return
    raise TruncatedMedia(f"{path}: {found}; copy or download it again, or leave it out")
