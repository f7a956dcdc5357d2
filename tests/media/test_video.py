import gc
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from affectgpt.media import (
    DamagedMedia,
    EmptyMedia,
    NoVideoStream,
    probe,
    read_frame_sets,
    read_frames,
    uniform_indices,
)
from tests.media.media_files import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    corner_colours,
    four_corners,
    frame_numbers,
    numbered_clip,
    sine,
    write_media,
)

CONTAINERS = [("mp4", "libx264"), ("mkv", "libx264"), ("mov", "mpeg4"), ("avi", "mpeg4"), ("webm", "libvpx")]


@pytest.mark.parametrize("n_source", [1, 2, 7, 8, 9, 100, 12345])
@pytest.mark.parametrize("n", [1, 8, 16])
def test_uniform_indices_are_the_floor_of_i_n_over_count_without_floating_point(n_source, n):
    assert uniform_indices(n_source, n).tolist() == [i * n_source // n for i in range(n)]


@pytest.mark.parametrize(("n_source", "n"), [(0, 8), (8, 0)])
def test_selecting_from_no_frames_is_an_error(n_source, n):
    with pytest.raises(ValueError, match="both numbers must be at least 1"):
        uniform_indices(n_source, n)


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_every_container_gives_the_frames_asked_for_and_their_times(tmp_path, suffix, codec):
    path = write_media(tmp_path / f"clip.{suffix}", numbered_clip(50), video_codec=codec)
    frames = read_frames(path, 8)
    assert frames.images.shape == (8, 48, 64, 3)
    assert frames.images.dtype == np.uint8
    assert frames.n_source_frames == 50
    assert frames.indices.tolist() == [0, 6, 12, 18, 25, 31, 37, 43]
    assert frame_numbers(frames.images) == frames.indices.tolist()
    np.testing.assert_allclose(frames.times_s, frames.indices / 25, atol=2e-3)  # webm and mkv count milliseconds


def test_several_sets_in_one_pass_equal_one_set_at_a_time(tmp_path):
    path = write_media(tmp_path / "clip.mp4", numbered_clip(50))
    sets = read_frame_sets(path, {"frames": 8, "motion": 16})
    for name, n in (("frames", 8), ("motion", 16)):
        alone = read_frames(path, n)
        for field in ("images", "times_s", "indices", "n_source_frames"):
            np.testing.assert_array_equal(getattr(sets[name], field), getattr(alone, field))


def test_frames_are_counted_while_decoding_where_the_header_is_wrong(tmp_path):
    path = write_media(tmp_path / "clip.avi", numbered_clip(50), video_codec="mpeg4")
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(data[at : at + 4], "little") == 50
    data[at : at + 4] = (80).to_bytes(4, "little")
    path.write_bytes(data)
    assert probe(path).n_frames == 80
    frames = read_frames(path, 8)
    assert frames.n_source_frames == 50
    assert frame_numbers(frames.images) == frames.indices.tolist()


def test_packets_without_a_frame_are_found_while_decoding(tmp_path, monkeypatch):
    from affectgpt.media import video

    path = write_media(tmp_path / "clip.mp4", numbered_clip(50))
    right = read_frames(path, 8)
    monkeypatch.setattr(video, "_count_packets", lambda path: 64)
    np.testing.assert_array_equal(read_frames(path, 8).images, right.images)


def test_times_of_a_variable_rate_video_come_from_its_timestamps_and_start_at_zero(tmp_path):
    times_s = [0.5, 0.54, 0.6, 1.0, 1.04, 2.5]
    path = write_media(tmp_path / "clip.mkv", numbered_clip(6), times_s=times_s)
    frames = read_frames(path, 6)
    np.testing.assert_allclose(frames.times_s, np.array(times_s) - 0.5, atol=1e-3)


def test_one_frame_is_repeated_as_often_as_asked(tmp_path):
    frames = read_frames(write_media(tmp_path / "clip.mp4", numbered_clip(1)), 8)
    assert frames.n_source_frames == 1
    assert frames.indices.tolist() == [0] * 8
    assert frames.times_s.tolist() == [0.0] * 8


@pytest.mark.skipif(not hasattr(VideoStream, "set_display_rotation"), reason="this PyAV cannot write rotated files")
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("display", "corners"),
    [
        ({"degrees": 90}, [GREEN, WHITE, RED, BLUE]),  # counter-clockwise
        ({"degrees": 180}, [WHITE, BLUE, GREEN, RED]),
        ({"degrees": -90}, [BLUE, RED, WHITE, GREEN]),
        ({"degrees": 0, "hflip": True}, [GREEN, RED, WHITE, BLUE]),
        ({"degrees": 90, "hflip": True}, [WHITE, GREEN, BLUE, RED]),
    ],
)
def test_rotation_and_mirroring_of_the_display_matrix_are_applied(tmp_path, suffix, display, corners):
    path = write_media(tmp_path / f"clip.{suffix}", [four_corners()] * 3, display=display)
    image = read_frames(path, 1).images[0]
    assert image.shape == ((96, 64, 3) if abs(display["degrees"]) == 90 else (64, 96, 3))
    assert corner_colours(image) == corners


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        ("2", (48, 128)),
        ("1/2", (96, 64)),
        ("3/2", (48, 96)),
        ("1", (48, 64)),
        ("201/200", (48, 64)),
        ("100", (48, 64)),
    ],
)
def test_pixels_that_are_not_square_are_stretched(tmp_path, aspect, shape):
    path = write_media(tmp_path / "clip.mp4", numbered_clip(10), pixel_aspect=Fraction(aspect))
    images = read_frames(path, 10).images
    assert images.shape == (10, *shape, 3)
    assert frame_numbers(images) == list(range(10))
    if shape == (48, 64):
        plain = read_frames(write_media(tmp_path / "plain.mp4", numbered_clip(10)), 10).images
        np.testing.assert_array_equal(images, plain)


def test_pixels_are_stretched_before_the_picture_is_turned(tmp_path):
    options = {"pixel_aspect": Fraction(2), "display": {"degrees": 90}}
    image = read_frames(write_media(tmp_path / "clip.mp4", [four_corners()] * 3, **options), 1).images[0]
    assert image.shape == (192, 64, 3)
    assert corner_colours(image) == [GREEN, WHITE, RED, BLUE]


def test_pictures_above_the_limit_are_refused_by_name(tmp_path, monkeypatch):
    path = write_media(tmp_path / "clip.mp4", numbered_clip(3))
    monkeypatch.setattr("affectgpt.media.limits.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(DamagedMedia, match=r"clip\.mp4: claims pictures of 64 x 48 pixels; the limit is 3071 pixels"):
        read_frames(path, 2)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted by Linux")
def test_decoding_leaves_no_threads_without_garbage_collection(tmp_path):
    path = write_media(tmp_path / "clip.mp4", numbered_clip(12))
    read_frames(path, 8)
    gc.collect()
    n_threads = len(os.listdir("/proc/self/task"))
    gc.disable()
    try:
        for _ in range(3):
            read_frames(path, 8)
        assert len(os.listdir("/proc/self/task")) <= n_threads
    finally:
        gc.enable()


def test_channels_are_in_rgb_order(tmp_path):
    path = write_media(tmp_path / "clip.mp4", [four_corners()] * 3)
    assert corner_colours(read_frames(path, 1).images[0]) == [RED, GREEN, BLUE, WHITE]


def test_size_px_resizes_with_bicubic_interpolation(tmp_path):
    from PIL import Image

    path = write_media(tmp_path / "clip.mp4", [four_corners()] * 2)
    stored = Image.fromarray(read_frames(path, 1).images[0])
    expected = np.asarray(stored.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(read_frames(path, 1, size_px=32).images[0], expected)


def test_frames_of_an_audio_file_are_an_error_that_lists_its_streams(tmp_path):
    path = write_media(tmp_path / "voice.wav", sound=sine(0.5), audio_codec="pcm_s16le")
    with pytest.raises(NoVideoStream, match=r"voice\.wav: no video stream, found audio; pass it as audio"):
        read_frames(path, 8)


def test_cover_art_is_not_a_video(tmp_path):
    picture = write_media(tmp_path / "cover.jpg", [four_corners()], video_codec="mjpeg")
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container, av.open(str(picture)) as source:
        audio = container.add_stream("libmp3lame", rate=44100)
        cover = container.add_stream_from_template(source.streams.video[0])
        cover.disposition = av.stream.Disposition.attached_pic.value
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = cover
                container.mux(packet)
        frame = av.AudioFrame.from_ndarray(sine(0.5)[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    info = probe(path)
    assert (info.has_video, info.has_audio) == (False, True)
    with pytest.raises(NoVideoStream, match="found audio, cover art"):
        read_frames(path, 8)


def test_a_video_stream_without_frames_is_empty(tmp_path, monkeypatch):
    from affectgpt.media import video

    path = write_media(tmp_path / "clip.mp4", numbered_clip(5))
    monkeypatch.setattr(video, "decode", lambda *arguments: iter(()))
    with pytest.raises(EmptyMedia, match=r"clip\.mp4: its video stream has no frames"):
        read_frames(path, 8)


def test_an_unknown_backend_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown video backend 'opencv'; expected one of \['decord', 'pyav'"):
        read_frames(tmp_path / "clip.mp4", 8, backend="opencv")


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_a_backend_gives_the_same_frames_as_pyav_or_an_error_with_the_install_command(tmp_path, backend):
    path = write_media(tmp_path / "clip.mp4", numbered_clip(50))
    try:
        frames = read_frames(path, 8, backend=backend)
    except ImportError as error:
        assert "install it (pip install" in str(error)  # noqa: PT017 - installed or not, one of the two must hold
        assert "or use backend pyav" in str(error)  # noqa: PT017
        return
    right = read_frames(path, 8)
    np.testing.assert_array_equal(frames.indices, right.indices)
    np.testing.assert_allclose(frames.times_s, right.times_s, atol=1e-3)
    assert frame_numbers(frames.images) == frame_numbers(right.images)


MEMORY = """
import resource, sys
from affectgpt.media import read_frame_sets

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

read_frame_sets(sys.argv[1], {"frames": 8, "motion": 16}, size_px=64)
before = peak_mb()
sets = read_frame_sets(sys.argv[2], {"frames": 8, "motion": 16}, size_px=64)
print(peak_mb() - before, sets["frames"].n_source_frames)
"""


def test_memory_stays_flat_over_ten_minutes(tmp_path):
    """All decoded frames of the long video are 520 MB."""
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    clips = [
        write_media(tmp_path / name, (image for _ in range(n)), rate_hz=15)
        for name, n in (("short.mp4", 60), ("long.mp4", 9000))
    ]
    run = subprocess.run([sys.executable, "-c", MEMORY, *map(str, clips)], capture_output=True, text=True, check=True)
    growth_mb, n_source = run.stdout.split()
    assert int(n_source) == 9000
    assert float(growth_mb) < 30
