"""Damage that FFmpeg conceals or skips is an error; files that are only unusual are read."""

import contextlib
from fractions import Fraction

import av
import numpy as np
import pytest

from affectgpt.media import DamagedMedia, EmptyMedia, MediaError, probe, read_audio, read_frames
from affectgpt.media.structure import _ogg_checksum
from tests.media.media_files import cut, numbered_clip, sine, write_media

FORMATS = {
    "mp4": ("libx264", "aac"),
    "mov": ("mpeg4", "aac"),
    "mkv": ("libx264", "ac3"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "ts": ("libx264", "aac"),
    "mp3": (None, "libmp3lame"),
    "aac": (None, "aac"),
    "flac": (None, "flac"),
    "ogg": (None, "libopus"),
}


def speech(duration_s=2.0, rate_hz=48000):
    """Sines and noise, which no codec codes as silence."""
    noise = np.random.default_rng(2).normal(scale=0.05, size=round(duration_s * rate_hz))
    return (sine(duration_s, rate_hz=rate_hz) + noise).astype(np.float32)


def textured(n_frames=50):
    rng = np.random.default_rng(1)
    still = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return [np.roll(still, i, axis=1) for i in range(n_frames)]


def clip(folder, suffix, name="clip", **options):
    video, audio = FORMATS[suffix]
    frames = textured() if video else ()
    return write_media(
        folder / f"{name}.{suffix}",
        frames,
        video_codec=video,
        sound=speech(),
        sound_rate_hz=48000,
        audio_codec=audio,
        gop_size=12,
        **options,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {suffix: clip(folder, suffix) for suffix in FORMATS}


def read(path):
    """Everything that is in a file: (number of frames, number of samples)."""
    info = probe(path)
    return (
        read_frames(path, 8).n_source_frames if info.has_video else 0,
        len(read_audio(path).samples) if info.has_audio else 0,
    )


@pytest.mark.parametrize("filler", ["zeros", "noise"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_hole_of_three_percent_is_an_error_with_the_files_name(clips, tmp_path, suffix, filler):
    data = bytearray(clips[suffix].read_bytes())
    at, size = len(data) * 45 // 100, len(data) * 3 // 100
    data[at : at + size] = bytes(size) if filler == "zeros" else np.random.default_rng(3).bytes(size)
    path = tmp_path / f"hole.{suffix}"
    path.write_bytes(data)
    with pytest.raises(DamagedMedia, match=rf"hole\.{suffix}: .*"):
        read(path)


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        ("mkv", r"a\.mkv: wrong checksum of the cluster at byte \d+; the file is damaged"),
        ("ogg", r"a\.ogg: wrong checksum of the page at byte \d+"),
        ("webm", r"a\.webm: \d+ of 50 packets of its video stream cannot be decoded without errors"),
        (
            "flac",
            r"a\.flac: (0\.\d+ s of its audio are missing|1 of \d+ packets of its audio stream cannot be decoded)",
        ),
    ],
)
def test_a_changed_byte_is_noticed_where_the_format_or_the_decoder_allows_it(clips, tmp_path, suffix, expected):
    data = bytearray(clips[suffix].read_bytes())
    data[len(data) // 3] ^= 0x55
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    with pytest.raises(DamagedMedia, match=expected):
        read(path)


def test_a_damaged_picture_is_an_error_although_the_decoder_repairs_it(clips, tmp_path):
    """One of 50 pictures, and those that refer to it."""
    with av.open(str(clips["mp4"])) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
    data = bytearray(clips["mp4"].read_bytes())
    data[packet.pos + packet.size // 2 : packet.pos + packet.size] = bytes(packet.size - packet.size // 2)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(
        DamagedMedia, match=r"a\.mp4: \d+ of 50 packets of its video stream .* by converting it \(ffmpeg"
    ):
        read_frames(path, 8)
    assert len(read_audio(path).samples) > 0


@pytest.mark.parametrize("suffix", ["ogg", "ts"])
def test_a_file_that_ends_in_the_middle_of_a_packet_is_truncated(clips, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(clips[suffix].read_bytes()[:-300])
    with pytest.raises(MediaError, match=rf"a\.{suffix}: .*truncated"):
        read(path)


def test_an_mp3_with_fewer_frames_than_its_header_states_is_damaged(clips):
    with pytest.raises(DamagedMedia, match=r"cut-clip\.mp3: \d+ frames found, its header states 8\d"):
        read(cut(clips["mp3"], 0.8))


def test_the_checksum_of_ogg_pages_is_that_of_rfc_3533():
    value = 0
    data = b"OggS and some bytes \x80\xff\x00\x01"
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    assert _ogg_checksum(data) == value


def copied(path, out, *, from_s):
    """As `ffmpeg -ss from_s -c copy` does."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        source.seek(round(from_s * av.time_base))
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return out


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_clip_cut_without_encoding_is_read(clips, tmp_path, suffix):
    n_frames, n_samples = read(copied(clips[suffix], tmp_path / f"part.{suffix}", from_s=1.0))
    assert (n_frames > 0) == (FORMATS[suffix][0] is not None)
    assert n_samples > 8000


def test_a_broadcast_that_begins_between_key_pictures_is_read(tmp_path):
    path = write_media(tmp_path / "a.ts", textured(60), options={}, sound=speech(), sound_rate_hz=48000, gop_size=20)
    data = path.read_bytes()
    late = tmp_path / "late.ts"
    late.write_bytes(data[:564] + data[len(data) // 188 // 4 * 188 :])  # tables, then the last three quarters
    n_frames, n_samples = read(late)
    assert 20 <= n_frames < 60
    assert 16000 < n_samples < 32000


@pytest.mark.parametrize(
    "options",
    [{"bf": "3", "x264-params": "open-gop=1:keyint=20"}, {"x264-params": "intra-refresh=1:keyint=20"}, {"slices": "4"}],
    ids=str,
)
def test_unusual_pictures_are_no_damage(tmp_path, options):
    path = write_media(tmp_path / "a.mp4", textured(), video_options=options, sound=speech(), sound_rate_hz=48000)
    assert read(path)[0] == 50
    assert read(copied(path, tmp_path / "part.mp4", from_s=1.0))[0] > 10


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_a_variable_rate_with_long_pauses_is_no_damage(tmp_path, suffix):
    times_s = np.cumsum([0.04, 0.5, 0.04, 3.0, 0.1] * 4).tolist()
    path = write_media(
        tmp_path / f"a.{suffix}",
        numbered_clip(20),
        times_s=times_s,
        video_codec=FORMATS[suffix][0],
        sound=speech(),
        sound_rate_hz=48000,
        audio_codec=FORMATS[suffix][1],
    )
    assert read(path)[0] == 20


def test_a_second_program_that_appears_midway_is_ignored(tmp_path):
    first = clip(tmp_path, "ts", "first")
    other = clip(tmp_path, "ts", "other")
    with (
        av.open(str(other)) as source,
        av.open(str(tmp_path / "moved.ts"), "w", options={"mpegts_start_pid": "600"}) as target,
    ):
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + (tmp_path / "moved.ts").read_bytes())
    assert read(path)[0] >= 50


def test_tags_and_up_to_half_a_percent_of_other_bytes_between_mp3_frames_are_accepted(clips, tmp_path):
    data = clips["mp3"].read_bytes()
    path = tmp_path / "joined.mp3"
    path.write_bytes(b"ID3\x04\0\0\0\0\1\0" + bytes(128) + data + b"TAG" + bytes(125) + data + b"TAG" + bytes(125))
    assert read_audio(path).duration_s == pytest.approx(4, abs=0.2)
    path.write_bytes(data + bytes(500) + data)
    with pytest.raises(DamagedMedia, match="500 bytes that belong to no frame"):
        read_audio(path)


def test_a_picture_that_grows_midway_is_an_error_before_memory_is_used(tmp_path):
    small = write_media(tmp_path / "small.mkv", textured(10), video_codec="mpeg4")
    large = write_media(tmp_path / "large.mkv", [np.zeros((3456, 4096, 3), np.uint8)] * 2, video_codec="mpeg4")
    path = tmp_path / "grows.mkv"
    with av.open(str(path), "w") as target, av.open(str(small)) as first, av.open(str(large)) as second:
        stream = target.add_stream_from_template(first.streams.video[0])
        for number, packet in enumerate(
            packet for source in (first, second) for packet in source.demux(video=0) if packet.size
        ):
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 25)
            target.mux(packet)
    with pytest.raises(DamagedMedia, match=r"grows\.mkv: "):
        read_frames(path, 8)


@pytest.mark.parametrize("size", [2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("box", [b"mdat", b"moov", b"trak"])
def test_an_mp4_box_of_any_size_is_an_error_with_the_files_name(clips, tmp_path, box, size):
    data = clips["mp4"].read_bytes()
    at = data.index(box) - 4
    path = tmp_path / "box.mp4"
    path.write_bytes(data[:at] + b"\0\0\0\1" + box + size.to_bytes(8, "big") + data[at + 8 :])
    with pytest.raises(MediaError, match=r"box\.mp4: "):
        read(path)


def test_a_wav_header_that_lies_costs_no_memory(tmp_path):
    path = write_media(tmp_path / "a.wav", sound=sine(1), audio_codec="pcm_s16le")
    data = path.read_bytes()
    for offset, value in ((24, 1), (24, 2**31), (22, 65535), (34, 1), (4, 2**31 - 9), (40, 2**32 - 1)):
        size = 2 if offset in (22, 34) else 4
        path.write_bytes(data[:offset] + value.to_bytes(size, "little") + data[offset + size :])
        with contextlib.suppress(MediaError):
            assert len(read_audio(path).samples) < 48000


def test_a_track_without_packets_is_empty_and_not_damaged(tmp_path):
    path, pictures = tmp_path / "a.webm", write_media(tmp_path / "v.webm", textured(10), video_codec="libvpx")
    with av.open(str(pictures)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        target.add_stream("libopus", rate=48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    assert read_frames(path, 2).n_source_frames == 10
    with pytest.raises(EmptyMedia, match=r"a\.webm: its audio stream has no samples"):
        read_audio(path)
