"""Open media files, read their headers, decode their streams, and detect missing, truncated and damaged files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
from av.stream import Disposition

from affectgpt.runtime import InputError

if TYPE_CHECKING:
    from av.container import InputContainer

log = logging.getLogger("affectgpt")

PathLike = str | os.PathLike[str]

# Some writers misstate a RIFF length by the size of a header; a real truncation is longer.
_LENGTH_SLACK_BYTES = 64

MAX_PIXELS = 8192 * 4320
"""Largest picture that is decoded; damaged headers claim larger ones."""

_DECODER_LIMITS = {"max_pixels": str(MAX_PIXELS), "max_samples": str(2**22)}
"""FFmpeg checks these before it allocates a picture or an audio frame, also when a size changes mid-stream."""


class MediaError(InputError):
    """A media file cannot be used; the message names the file, the problem and what to do."""


class MissingMedia(MediaError, FileNotFoundError):
    """The file does not exist."""


class EmptyMedia(MediaError):
    """The file has 0 bytes, or a stream has no frames or samples."""


class TruncatedMedia(MediaError):
    """The file or one of its streams is shorter than its container states."""


class DamagedMedia(MediaError):
    """Parts of the file cannot be decoded."""


class NoVideoStream(MediaError):
    """The file has no video stream (cover art does not count)."""


class NoAudioStream(MediaError):
    """The file has no audio stream, which is not the same as silence."""


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
        options = {"protocol_whitelist": "file"} | _DECODER_LIMITS
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
        stated, has_index = _stated_length(stream)
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


def _stated_length(stream: BinaryIO) -> tuple[int | None, bool]:
    """(stated length in bytes or None, False if an mp4 lacks its index)."""
    head = stream.read(12)
    if head[:4] == b"RIFF":
        return _riff_length(stream), True
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _mp4_length(stream)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_length(stream), True
    return None, True


def _riff_length(stream: BinaryIO) -> int | None:
    """wav and avi: chunks of 'RIFF' and a length; long avi files have several."""
    end = 0
    while True:
        stream.seek(end)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        # A file written to a pipe has length 0, or a value near 2^31 or 2^32.
        if head[:4] != b"RIFF" or length == 0 or length % 2**31 >= 0x7FFF0000:
            return end or None
        end += 8 + length + length % 2


def _mp4_length(stream: BinaryIO) -> tuple[int | None, bool]:
    """mp4 and mov: a sequence of boxes (length, kind), ISO/IEC 14496-12 section 4.2."""
    end, kinds = 0, set()
    while True:
        stream.seek(end)
        head = stream.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if len(kind) == 4 and all(32 <= letter < 127 for letter in kind):
            kinds.add(kind)
            if length >= 8:
                end += length
                continue
        return end or None, not kinds.isdisjoint({b"moov", b"moof"})  # length 0 = up to the end of the file


def _matroska_length(stream: BinaryIO) -> int | None:
    """mkv and webm: an EBML header element, then one Segment; lengths are RFC 8794 variable-size integers."""

    def read_length() -> int | None:
        first = stream.read(1)
        if not first or not first[0]:
            return None
        n_more = 8 - first[0].bit_length()
        bits = 7 * (n_more + 1)
        value = int.from_bytes(first + stream.read(n_more), "big") & ((1 << bits) - 1)
        return None if value == (1 << bits) - 1 else value  # all ones: unknown, a live recording

    stream.seek(4)
    header = read_length()
    if header is None:
        return None
    stream.seek(header, os.SEEK_CUR)
    if stream.read(4) != b"\x18\x53\x80\x67":
        return None
    length = read_length()
    return None if length is None else stream.tell() + length


def decode(container: InputContainer, stream: Any, path: PathLike) -> Iterator[Any]:
    """All frames of `stream` in presentation order.

    Packets that cannot be decoded are skipped with a warning (mp3 files often begin or end with other data); more than
    1 % of them are an error. Packets and frames that FFmpeg marks as corrupt count too.

    Raises:
        MediaError: no decoder for this codec. DamagedMedia: too many packets fail, or the file cannot be read.
    """
    if stream.codec_context is None:
        raise MediaError(f"{path}: no decoder for its {stream.type} stream; convert it (ffmpeg -i IN OUT.mp4)")
    if stream.type == "video" and stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        size = f"{stream.codec_context.width} x {stream.codec_context.height}"
        raise DamagedMedia(f"{path}: claims pictures of {size} pixels; the limit is {MAX_PIXELS} pixels")
    stream.codec_context.options = dict(_DECODER_LIMITS)
    n_packets = n_lost = 0
    try:
        for packet in container.demux(stream):
            if not packet.size:  # avi has empty packets, which the decoder would take for the end
                continue
            n_packets += 1
            try:
                frames = stream.decode(packet)
            except av.InvalidDataError:
                n_lost += 1
                continue
            n_lost += packet.is_corrupt or any(frame.is_corrupt for frame in frames)
            yield from frames
        try:
            yield from stream.decode(None)
        except av.InvalidDataError:
            n_lost += 1
    except av.FFmpegError as error:
        reason = "it claims a size beyond memory" if isinstance(error, MemoryError) else error.strerror
        raise DamagedMedia(
            f"{path}: reading its {stream.type} stream failed ({reason}); copy or download it again, or leave it out"
        ) from error
    if n_lost > max(1, n_packets // 100):
        raise DamagedMedia(
            f"{path}: {n_lost} of {n_packets} packets of its {stream.type} stream cannot be decoded; "
            "copy or download it again, or leave it out"
        )
    if n_lost:
        log.warning("%s: skipped %d of %d packets that cannot be decoded (%s)", path, n_lost, n_packets, stream.type)


def check_end(path: PathLike, stream: Any, decoded_s: float) -> None:
    """Raise TruncatedMedia if the `decoded_s` seconds of `stream` are shorter than its header states."""
    # Only these formats state exact stream lengths; mp3 and ogg estimate them, mkv and avi only state the file's.
    if stream.container.format.name not in ("mov,mp4,m4a,3gp,3g2,mj2", "flac", "wav"):
        return
    stated_s = stated_duration_s(stream)
    # Codec delay and padding amount to up to 0.1 s.
    if stated_s is not None and decoded_s < stated_s - 0.25:
        raise TruncatedMedia(
            f"{path}: its {stream.type} stream ends after {decoded_s:.2f} s, the container states {stated_s:.2f} s; "
            "copy or download it again, or leave it out"
        )
