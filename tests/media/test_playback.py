"""What a browser plays, and copies that it plays: same frames, times and loudness, upright, with square pixels."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from affectgpt.media import MediaError, probe, read_audio, read_frames, why_not_played, write_playable
from tests.media.media_files import (
    corner_colours,
    four_corners,
    frame_numbers,
    numbered_clip,
    remuxed,
    sine,
    write_media,
)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("a.mp4", {}, None),
        ("a.mkv", {}, "mkv"),
        ("a.AVI", {"video_codec": "mpeg4", "audio_codec": "libmp3lame"}, "avi"),
        ("a.mp4", {"video_codec": "mpeg4"}, "mpeg4 in mp4"),
        ("a.webm", {"video_codec": "libvpx", "audio_codec": "libopus", "sound_rate_hz": 48000}, None),
    ],
)
def test_files_are_judged_by_container_and_codec(tmp_path, name, options, reason):
    options = {"sound": sine(0.5, rate_hz=options.get("sound_rate_hz", 44100)), **options}
    assert why_not_played(write_media(tmp_path / name, numbered_clip(10), **options)) == reason


def test_a_copy_has_the_frames_at_their_times_and_the_audio(tmp_path):
    times = [0.0, 0.04, 0.12, 0.5, 0.9, 1.0]  # variable frame rate
    sound = sine(1.0)
    source = write_media(tmp_path / "a.mkv", numbered_clip(6), times_s=times, sound=sound)
    copy = tmp_path / "media" / "copy.mp4"
    write_playable(source, copy)
    assert why_not_played(copy) is None
    assert [path.name for path in copy.parent.iterdir()] == ["copy.mp4"]
    frames = read_frames(copy, 6)
    assert frame_numbers(frames.images) == list(range(6))
    np.testing.assert_allclose(frames.times_s, times, atol=0.002)
    heard = read_audio(copy).samples
    assert np.sqrt((heard**2).mean()) == pytest.approx(np.sqrt((sound**2).mean()), rel=0.05)
    assert probe(copy).audio_duration_s == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("video_s", [0.0, 1.0])
@pytest.mark.parametrize("sound_s", [0.0, 0.4])
@pytest.mark.parametrize("has_silent_track", [False, True])
def test_sound_and_picture_of_a_copy_start_as_far_apart_as_those_of_the_clip(
    tmp_path, video_s, sound_s, has_silent_track
):
    video = write_media(tmp_path / "video.mkv", numbered_clip(10))
    sound = write_media(tmp_path / "sound.mkv", sound=sine(2.0), audio_codec="pcm_s16le")
    tracks = [(video, video_s), (sound, sound_s)]
    if has_silent_track:  # which a player would choose, and `read_audio` does not
        silent = write_media(tmp_path / "silent.mkv", sound=np.zeros((6, 88200), np.float32), audio_codec="pcm_s16le")
        tracks.insert(1, (silent, 0.0))
    copy = tmp_path / "copy.mp4"
    write_playable(remuxed(tmp_path / "a.mkv", *tracks), copy)
    assert frame_numbers(read_frames(copy, 10).images) == list(range(10))
    picture_s, heard_s = starts_of(copy)
    first_s = min(video_s, sound_s)
    assert (picture_s, heard_s) == pytest.approx((video_s - first_s, sound_s - first_s), abs=0.03)


def starts_of(path) -> tuple[float, float]:
    """When the first picture is shown, and the first sample above a tenth of full scale."""
    with av.open(str(path)) as container:
        picture_s = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.1)
            if len(loud):
                return picture_s, frame.time + loud[0] / frame.sample_rate
    raise AssertionError("no sound")


@pytest.mark.skipif(not hasattr(VideoStream, "set_display_rotation"), reason="this PyAV cannot write rotated files")
def test_a_copy_is_upright_with_square_pixels_and_even_sizes(tmp_path):
    frames = [four_corners(height=64, width=96)] * 5
    source = write_media(tmp_path / "a.mov", frames, display={"degrees": 90}, pixel_aspect=Fraction(4, 3))
    seen = read_frames(source, 1).images[0]
    write_playable(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        stored = next(container.decode(video=0))
    assert abs(stored.height - seen.shape[0]) <= 1
    assert abs(stored.width - seen.shape[1]) <= 1
    assert corner_colours(stored.to_ndarray(format="rgb24")) == corner_colours(seen)


def test_audio_alone_becomes_audio_alone(tmp_path):
    source = write_media(tmp_path / "a.mka", sound=sine(0.5))
    write_playable(source, tmp_path / "copy.m4a")
    assert why_not_played(tmp_path / "copy.m4a") is None
    assert not probe(tmp_path / "copy.m4a").has_video


def test_of_a_damaged_file_nothing_is_written(tmp_path):
    (tmp_path / "a.avi").write_bytes(b"RIFF damaged")
    with pytest.raises(MediaError):
        write_playable(tmp_path / "a.avi", tmp_path / "media" / "copy.mp4")
    assert not list((tmp_path / "media").iterdir())
