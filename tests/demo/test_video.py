from fractions import Fraction

import av
import numpy as np
import pytest

from affectgpt.demo.face import render_face
from affectgpt.demo.performance import Identity, Performance, Voice
from affectgpt.demo.video import write_mp4
from affectgpt.demo.voice import render_voice


@pytest.fixture(scope="module")
def clip() -> tuple[np.ndarray, np.ndarray]:
    performance = Performance(2.0, Identity(4), {"AU12": ((0.0, 0.0), (1.0, 1.0))}, voice=Voice(), text="Hello there.")
    sound = render_voice(performance)
    assert sound is not None
    return render_face(performance), sound


def decode_frames(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def decode_sound(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def test_frames_survive_the_round_trip_in_number_rate_duration_and_content(tmp_path, clip):
    frames, sound = clip
    write_mp4(tmp_path / "clip.mp4", frames, rate_hz=12.5, waveform=sound)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.average_rate, video.frames) == (Fraction(25, 2), 25)
        assert container.duration / av.time_base == pytest.approx(2.0, abs=0.08)
    decoded = decode_frames(tmp_path / "clip.mp4")
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 5


def test_audio_survives_the_round_trip_in_time_shape_and_loudness(tmp_path, clip):
    frames, sound = clip
    write_mp4(tmp_path / "clip.mp4", frames, rate_hz=12.5, waveform=sound)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        audio = container.streams.audio[0]
        assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 16000, 1)
    decoded = decode_sound(tmp_path / "clip.mp4")
    assert len(sound) <= len(decoded) < len(sound) + 2048  # whole aac frames
    decoded = decoded[: len(sound)]
    assert np.corrcoef(decoded, sound)[0, 1] > 0.99
    assert np.sqrt(np.mean(decoded**2)) == pytest.approx(np.sqrt(np.mean(sound**2)), rel=0.03)


def test_without_a_waveform_there_is_no_audio_stream(tmp_path, clip):
    write_mp4(tmp_path / "mute.mp4", clip[0], rate_hz=12.5)
    with av.open(str(tmp_path / "mute.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_the_same_clip_gives_the_same_bytes(tmp_path, clip):
    frames, sound = clip
    for name in ("a", "b", "c"):
        write_mp4(tmp_path / f"{name}.mp4", frames, rate_hz=12.5, waveform=sound)
    contents = {(tmp_path / f"{name}.mp4").read_bytes() for name in ("a", "b", "c")}
    assert len(contents) == 1


def test_a_failure_leaves_no_partial_file_and_keeps_an_existing_one(tmp_path, clip):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(av.FFmpegError):
        write_mp4(path, clip[0], rate_hz=12.5, waveform=clip[1], sample_rate_hz=12345)  # no such rate in aac
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_arrays_are_refused_with_what_was_found_and_expected(tmp_path):
    path = tmp_path / "clip.mp4"
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"clip.mp4: frames are float64 \[2, 16, 16, 3\]; expected uint8"):
        write_mp4(path, frames.astype(float), rate_hz=10)
    with pytest.raises(ValueError, match="frames are 15x16; h264 needs even"):
        write_mp4(path, frames[:, :, :15], rate_hz=10)
    with pytest.raises(ValueError, match=r"waveform is float64 \[5\]; expected float32"):
        write_mp4(path, frames, rate_hz=10, waveform=np.zeros(5))
    assert not path.exists()
