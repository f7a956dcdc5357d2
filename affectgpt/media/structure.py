"""The outermost structure of media files: stated lengths, checksums, and bytes that belong to nothing.

FFmpeg resynchronises after damage without an error, decodes a truncated file as a shorter one, and checks few of the
checksums that containers carry. The bytes themselves show the damage.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

_CHUNK = 1 << 20


def stated_length(stream: BinaryIO, n_bytes: int) -> tuple[int | None, bool]:
    """(stated length in bytes or None, False if an mp4 lacks its index)."""
    head = stream.read(12)
    if head[:4] == b"RIFF":
        return _riff_length(stream, n_bytes), True
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _mp4_length(stream, n_bytes)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_length(stream), True
    return None, True


def _riff_length(stream: BinaryIO, n_bytes: int) -> int | None:
    """wav and avi: chunks of 'RIFF' and a length; long avi files have several."""
    end = 0
    while end <= n_bytes:
        stream.seek(end)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        # A file written to a pipe has length 0, or a value near 2^31 or 2^32.
        if head[:4] != b"RIFF" or length == 0 or length % 2**31 >= 0x7FFF0000:
            return end or None
        end += 8 + length + length % 2
    return end


def _mp4_length(stream: BinaryIO, n_bytes: int) -> tuple[int | None, bool]:
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
                if end <= n_bytes:
                    continue
        return end or None, not kinds.isdisjoint({b"moov", b"moof"})  # length 0 = up to the end of the file


def _matroska_length(stream: BinaryIO) -> int | None:
    """mkv and webm: an EBML header element, then one Segment; lengths are RFC 8794 variable-size integers."""
    stream.seek(4)
    header = _ebml_length(stream)
    if header is None:
        return None
    stream.seek(header, os.SEEK_CUR)
    if stream.read(4) != b"\x18\x53\x80\x67":
        return None
    length = _ebml_length(stream)
    return None if length is None else stream.tell() + length


def find_damage(stream: BinaryIO, n_bytes: int, format_name: str) -> str | None:
    """What is wrong with the structure of a file, in words; None if nothing is, or if its format has no checks.

    Args:
        format_name: FFmpeg's name of its demuxer.
    """
    stream.seek(0)
    head = stream.read(12)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_damage(stream, n_bytes)
    if head[:4] == b"OggS":
        return _ogg_damage(stream)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _avi_damage(stream, n_bytes)
    if head[:4] == b"fLaC":
        return _flac_damage(stream)
    if format_name == "mpegts":
        return _ts_damage(stream, n_bytes)
    if format_name in ("mp3", "aac"):
        return _elementary_damage(stream, n_bytes)
    return None


def _ebml_length(stream: BinaryIO) -> int | None:
    """A variable-size integer of RFC 8794; None if it is unknown (all ones: a live recording) or invalid."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    n_more = 8 - first[0].bit_length()
    bits = 7 * (n_more + 1)
    value = int.from_bytes(first + stream.read(n_more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


_EBML, _SEGMENT, _CLUSTER, _CRC, _VOID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\xbf", b"\xec"
_LEVEL_1 = {
    _CLUSTER: "cluster",
    b"\x11\x4d\x9b\x74": "seek head",
    b"\x15\x49\xa9\x66": "info",
    b"\x16\x54\xae\x6b": "tracks",
    b"\x1c\x53\xbb\x6b": "index",
    b"\x12\x54\xc3\x67": "tags",
    b"\x10\x43\xa7\x70": "chapters",
    b"\x19\x41\xa4\x69": "attachments",
}
_TRACKS = b"\x16\x54\xae\x6b"
_IN_CLUSTER = {b"\xe7", b"\x58\x54", b"\xa7", b"\xab", b"\xa3", b"\xa0", b"\xaf", _VOID, _CRC}


def _element_id(stream: BinaryIO) -> bytes:
    first = stream.read(1)
    return first + stream.read(8 - first[0].bit_length()) if first and first[0] >= 16 else first


def matroska_blocks(stream: BinaryIO, n_bytes: int) -> Counter[int]:
    """The number of blocks of each track number in the clusters that have no checksum."""
    found: Counter[int] = Counter()
    _matroska_damage(stream, n_bytes, found)
    return found


def _matroska_damage(stream: BinaryIO, n_bytes: int, n_blocks: Counter[int] | None = None) -> str | None:
    """mkv and webm: elements must follow each other, and checksums must be right where the writer stored them.

    `n_blocks` counts the blocks of each track in clusters without a checksum; the checksums are then left out.
    """
    position, end = 0, n_bytes
    while position < end:
        stream.seek(position)
        name, length = _element_id(stream), _ebml_length(stream)
        body = stream.tell()
        if name in (_EBML, _SEGMENT):
            if name == _SEGMENT:
                end = n_bytes if length is None else body + length  # what follows the segment is not ours
                length = 0
            position = body + (length or 0)
        elif name in (_VOID, _CRC) and length is not None:
            position = body + length
        elif name not in _LEVEL_1 or (length is None and name != _CLUSTER):
            return f"bytes that belong to no element at byte {position}"
        else:
            first = stream.read(2)
            # Of what is not decoded (tags, index ...), a wrong checksum does no harm; tools that edit them leave some.
            if first == b"\xbf\x84" and length is not None and name in (_CLUSTER, _TRACKS):
                stored = int.from_bytes(stream.read(4), "little")
                if n_blocks is None and _crc32(stream, length - 6) != stored:
                    return f"wrong checksum of the {_LEVEL_1[name]} at byte {position}"
                position = body + length
            elif name == _CLUSTER:
                stop = end if length is None else min(body + length, end)
                found = _walk_cluster(stream, body, stop, Counter() if n_blocks is None else n_blocks)
                if found is None:
                    return f"bytes that belong to no block in the cluster at byte {position}"
                position = found
            else:
                assert length is not None
                position = body + length
    return None


def _walk_cluster(stream: BinaryIO, position: int, stop: int, n_blocks: Counter[int]) -> int | None:
    """The end of a cluster without a checksum; None if its blocks do not follow each other."""
    while position < stop:
        stream.seek(position)
        name, length = _element_id(stream), _ebml_length(stream)
        if name in _LEVEL_1 or name in (_EBML, _SEGMENT):
            return position  # the end of a cluster of unknown length
        if name not in _IN_CLUSTER or length is None or stream.tell() + length > stop:
            return None
        position = stream.tell() + length
        if name == b"\xa0":  # a group, of which the first element is nearly always the block
            name, _ = _element_id(stream), _ebml_length(stream)
        if name in (b"\xa3", b"\xa1"):
            n_blocks[_ebml_length(stream) or 0] += 1
    return position


def _crc32(stream: BinaryIO, n_bytes: int) -> int:
    value = 0
    while n_bytes > 0 and (data := stream.read(min(_CHUNK, n_bytes))):
        value = zlib.crc32(data, value)
        n_bytes -= len(data)
    return value


_MIRRORED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def _ogg_checksum(page: bytes) -> int:
    """The CRC of RFC 3533: as zlib's with the bits of each byte and of the result in the other order, not inverted."""
    value = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


def _ogg_damage(stream: BinaryIO) -> str | None:
    """Pages must follow each other, in sequence, with the right checksums, up to the last page of each stream."""
    numbers: dict[bytes, int] = {}
    open_streams: set[bytes] = set()
    position = 0
    while True:
        stream.seek(position)
        head = stream.read(27)
        if not head or (not open_streams and head[:4] != b"OggS"):  # tags may follow the last page
            return None
        if len(head) < 27 and head[:4] == b"OggS"[: len(head)]:
            return f"the file is truncated: its last page, at byte {position}, is not complete"
        if head[:4] != b"OggS":
            return f"bytes that belong to no page at byte {position}"
        table = stream.read(head[26])
        body = stream.read(sum(table))
        if len(table) < head[26] or len(body) < sum(table):
            return f"the file is truncated: its last page, at byte {position}, is not complete"
        if _ogg_checksum(head[:22] + bytes(4) + head[26:] + table + body) != int.from_bytes(head[22:26], "little"):
            return f"wrong checksum of the page at byte {position}"
        serial, number = head[14:18], int.from_bytes(head[18:22], "little")
        if head[5] & 2:  # first page of a stream
            open_streams.add(serial)
        elif serial in numbers and number != (numbers[serial] + 1) % 2**32:
            return f"{number - numbers[serial] - 1} pages are missing before byte {position}"
        numbers[serial] = number
        if head[5] & 4:  # last page
            open_streams.discard(serial)
        position = stream.tell()


def avi_chunks(stream: BinaryIO, n_bytes: int) -> Counter[tuple[int, str]]:
    """The number of chunks of each (stream, kind); FFmpeg finds fewer if the index of the file is damaged."""
    found: Counter[tuple[int, str]] = Counter()
    _avi_damage(stream, n_bytes, found)
    return found


def _avi_damage(stream: BinaryIO, n_bytes: int, found: Counter[tuple[int, str]] | None = None) -> str | None:
    """The chunks of each 'movi' list must follow each other up to its end; `found` counts them."""
    position = end = 0
    while position + 12 <= n_bytes:
        stream.seek(position)
        head = stream.read(12)
        kind, length = head[:4], int.from_bytes(head[4:8], "little")
        if kind in (b"RIFF", b"LIST") and head[8:12] in (b"AVI ", b"AVIX", b"movi", b"rec "):
            if head[8:12] == b"movi":
                end = position + 8 + length
            position += 12
            continue
        known = kind in (b"LIST", b"JUNK", b"idx1", b"IDIT", b"JUNQ") or kind[:2] == b"ix"
        if not known and not (kind[:2].isdigit() and all(32 <= letter < 127 for letter in kind[2:])):
            # After the chunks, other data may follow.
            return f"bytes that belong to no chunk at byte {position}" if position < end or not end else None
        if position < end < position + 8 + length:
            return f"the chunk at byte {position} is longer than the list that it is in"
        if found is not None and not known and length and kind[:2].isdigit():
            found[int(kind[:2]), {b"dc": "video", b"db": "video", b"wb": "audio"}.get(kind[2:], "other")] += 1
        position += 8 + length + length % 2
    return None


def flac_starts_at_zero(stream: BinaryIO) -> bool:
    """Whether the first frame has the number 0: a file that was cut without re-encoding starts with another one."""
    return _flac_damage(stream) is None and stream.read(3)[2:] == b"\0"


def _flac_damage(stream: BinaryIO) -> str | None:
    """The first frame must follow the metadata. (FFmpeg checks what comes after it.)"""
    stream.seek(4)
    is_last = False
    while not is_last:
        head = stream.read(4)
        if len(head) < 4:
            return "the file is truncated: it ends in its metadata"
        is_last = head[0] >= 128
        stream.seek(int.from_bytes(head[1:], "big"), os.SEEK_CUR)
    position, sync = stream.tell(), stream.read(2)
    if sync and (len(sync) < 2 or sync[0] != 0xFF or sync[1] & 0xFC != 0xF8):
        return f"no frame after the metadata, at byte {position}"
    return None


def _ts_damage(stream: BinaryIO, n_bytes: int) -> str | None:
    """Every packet must begin with the sync byte, and be complete. (Missing packets are marked by FFmpeg.)

    Packets have 188 bytes, 192 with time stamps (m2ts), or 204 with error correction.
    """
    stream.seek(0)
    sample = np.frombuffer(stream.read(_CHUNK), np.uint8)
    found = []
    for size in (188, 192, 204):
        n = len(sample) // size
        share = (sample[: n * size].reshape(n, size) == 0x47).mean(axis=0) if n else np.zeros(1)
        found.append((float(share.max()), size, int(share.argmax())))
    _, size, phase = max(found)
    stream.seek(0)
    position = 0
    while data := stream.read(size * 4096):
        n = len(data) // size
        packets = np.frombuffer(data, np.uint8)[: n * size].reshape(n, size)
        wrong = np.flatnonzero(packets[:, phase] != 0x47)
        if len(wrong):
            return f"packets without a sync byte, the first at byte {position + int(wrong[0]) * size}"
        position += len(data)
    if n_bytes % size:
        return "the file is truncated: it ends in the middle of a packet"
    return None


_BIT_RATES = {  # kbit/s; ISO/IEC 11172-3 and 13818-3
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_audio_length(head: bytes) -> int:
    """Bytes of the MPEG audio frame that begins with `head`; 0 if none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = {0: 4, 2: 2, 3: 1}.get(head[1] >> 3 & 3, 0), 4 - (head[1] >> 1 & 3)  # version 4 is MPEG 2.5
    rate_index, bit_rate_index = head[2] >> 2 & 3, head[2] >> 4
    if not version or layer == 4 or rate_index == 3 or bit_rate_index in (0, 15):
        return 0
    rate_hz = (44100, 48000, 32000)[rate_index] // version
    bit_rate = 1000 * _BIT_RATES[min(version, 2), 2 if version > 1 and layer == 3 else layer][bit_rate_index - 1]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12 * bit_rate // rate_hz + padding) * 4
    return (72 if layer == 3 and version > 1 else 144) * bit_rate // rate_hz + padding


def _adts_length(head: bytes) -> int:
    """Bytes of the AAC frame with an ADTS header that begins with `head`; 0 if none does."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 6 else 0


def _tag_length(head: bytes) -> int:
    """Bytes of the ID3 or APE tag that begins with `head` (32 bytes); 0 if none does."""
    if head[:3] == b"ID3" and len(head) >= 10:
        size = sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        return 10 + size + 10 * (head[5] >> 4 & 1)
    if head[:3] == b"TAG":
        return 128
    if head[:8] == b"APETAGEX" and len(head) >= 32:
        return int.from_bytes(head[12:16], "little") + 32 * (head[23] >> 7)
    return 0


def _elementary_damage(stream: BinaryIO, n_bytes: int) -> str | None:
    """mp3 and aac: frames and tags must follow each other; what comes after the last frame is ignored.

    Up to 0.5 % of other bytes are accepted: files that were joined or edited have some.
    """
    length_of: Callable[[bytes], int] = _mpeg_audio_length

    def at(position: int) -> bytes:
        stream.seek(position)
        return stream.read(32)

    position = junk = pending = n_frames = 0
    first_head = b""
    first_junk: int | None = None
    stated: int | None = None
    while position < n_bytes:
        head = at(position)
        if tag := _tag_length(head):
            position += tag
            continue
        if not n_frames and not _mpeg_audio_length(head) and _adts_length(head):
            length_of = _adts_length
        length = length_of(head)
        same = bool(n_frames and length) and _same_stream(head, first_head)
        if pending and n_frames and not same:
            length = 0  # other bytes look like a header now and then
        follows = at(position + length) if length else b""
        expected = length_of(follows) or _tag_length(follows) or position + length == n_bytes or (same and not pending)
        if length and expected:
            junk, pending = junk + pending, 0
            if not n_frames:
                first_head = head
                stated = _stated_frames(stream, position, length)
                junk = 0  # what comes before the first frame
            n_frames += 1
            position += length
        else:
            if n_frames and first_junk is None:
                first_junk = position
            found = _next_sync(stream, position + 1)
            pending += found - position
            position = found
    if junk > 0.005 * n_bytes:
        return f"{junk} bytes that belong to no frame, the first at byte {first_junk}"
    if stated and n_frames - 1 < 0.97 * stated - 2:
        return f"{n_frames - 1} frames found, its header states {stated}"
    return None


def _same_stream(head: bytes, other: bytes) -> bool:
    """Whether two frames have the same version, layer and sampling rate."""
    return head[1] & 0xFE == other[1] & 0xFE and head[2] & 0x0C == other[2] & 0x0C


def _next_sync(stream: BinaryIO, position: int) -> int:
    """The next byte that may begin a frame or a tag, or the end of the file."""
    stream.seek(position)
    while data := stream.read(1 << 16):
        found = [at for letter in (b"\xff", b"ID3", b"TAG", b"APETAGEX") if (at := data.find(letter)) >= 0]
        if found:
            return position + min(found)
        position += len(data)
    return position


def _stated_frames(stream: BinaryIO, position: int, length: int) -> int | None:
    """The number of frames after the first one that a Xing or Info header, as LAME and FFmpeg write it, states."""
    stream.seek(position)
    frame = stream.read(min(length, 256))
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 12 or not frame[at + 7] & 1:
        return None
    return int.from_bytes(frame[at + 8 : at + 12], "big")
