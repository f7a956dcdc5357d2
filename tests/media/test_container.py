import logging

import numpy as np
import pytest

from affectgpt.media import (
    DamagedMedia,
    EmptyMedia,
    MediaError,
    MissingMedia,
    TruncatedMedia,
    probe,
    read_audio,
    read_frames,
)
from tests.media.media_files import cut, numbered_clip, sine, write_media

READERS = [probe, read_audio, lambda path: read_frames(path, 8)]


def clip(folder, name, **options):
    codecs = {
        "mp4": ("libx264", "aac"),
        "mkv": ("libx264", "aac"),
        "webm": ("libvpx", "libopus"),
        "avi": ("mpeg4", "pcm_s16le"),
    }
    video_codec, audio_codec = codecs[name.partition(".")[2]]
    rate_hz = 48000 if audio_codec == "libopus" else 44100
    noise = np.random.default_rng(0)
    frames = [noise.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(50)]
    return write_media(
        folder / name,
        frames,
        video_codec=video_codec,
        sound=sine(2, rate_hz=rate_hz),
        sound_rate_hz=rate_hz,
        audio_codec=audio_codec,
        **options,
    )


def test_probe_reads_the_headers_of_both_streams(tmp_path):
    info = probe(clip(tmp_path, "clip.mp4"))
    assert (info.has_video, info.has_audio) == (True, True)
    assert (info.n_frames, info.frame_rate_hz, info.width, info.height) == (50, 25.0, 64, 48)
    assert (info.sample_rate_hz, info.n_channels) == (44100, 1)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")
    assert info.duration_s == pytest.approx(2, abs=0.05)
    assert info.video_duration_s == pytest.approx(2, abs=0.01)
    assert info.audio_duration_s == pytest.approx(2, abs=0.05)


def test_probe_of_an_audio_file_finds_no_video(tmp_path):
    info = probe(write_media(tmp_path / "a.wav", sound=sine(1), audio_codec="pcm_s16le"))
    assert (info.has_video, info.has_audio, info.n_frames, info.width) == (False, True, 0, None)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_an_error_that_names_it(tmp_path, read):
    with pytest.raises(MissingMedia, match=r"gone\.mp4: no such file; check the path") as caught:
        read(tmp_path / "gone.mp4")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, MediaError)


@pytest.mark.parametrize("read", READERS)
def test_a_file_of_zero_bytes_is_empty(tmp_path, read):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(EmptyMedia, match=r"clip\.mp4: the file has 0 bytes"):
        read(tmp_path / "clip.mp4")


def test_a_folder_or_a_path_that_the_system_refuses_is_no_media_file(tmp_path):
    with pytest.raises(MediaError, match=r"x\.mp4: cannot be read as media \(File name too long\)"):
        probe(tmp_path / f"{300 * 'x'}.mp4")
    with pytest.raises(MediaError, match="expected a media file, found a folder"):
        probe(tmp_path)


@pytest.mark.parametrize("read", READERS)
def test_text_is_no_media_file(tmp_path, read):
    path = tmp_path / "clip.mp4"
    path.write_text("not a video\n" * 100)
    with pytest.raises(MediaError, match=r"clip\.mp4: cannot be read as media .*expected mp4"):
        read(path)


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug"), RuntimeError("a bug")], ids=repr)
@pytest.mark.parametrize("place", ["video._upright", "audio.check_end", "video.check_end"])
def test_a_bug_in_our_decoding_is_not_reported_as_a_bad_file(tmp_path, monkeypatch, place, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(f"affectgpt.media.{place}", fail)
    with pytest.raises(type(error), match="a bug") as caught:
        (read_audio if place.startswith("audio") else READERS[2])(clip(tmp_path, "clip.mp4"))
    assert caught.value is error


def test_an_input_output_error_while_decoding_is_a_media_error_with_the_file_name(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("affectgpt.media.container.stated_length", fail)
    with pytest.raises(MediaError, match=r"clip\.mp4: cannot be read as media \(Input/output error\)"):
        READERS[2](clip(tmp_path, "clip.mp4"))


def test_a_playlist_cannot_open_other_files(tmp_path):
    inside = clip(tmp_path, "clip.mp4")
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{inside}'\n")
    with pytest.raises(MediaError, match=r"list\.mp4: cannot be read as media"):
        probe(path)


@pytest.mark.parametrize("name", ["http:clip.mp4", "clip %03d [é].mp4"])
def test_a_file_name_is_never_taken_for_a_url_or_pattern(tmp_path, name, monkeypatch):
    clip(tmp_path, "clip.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read_frames(name, 8).n_source_frames == 50


def test_metadata_that_is_not_utf8_is_ignored(tmp_path):
    path = write_media(tmp_path / "clip.avi", numbered_clip(5), video_codec="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Lavf", b"Lav\xe9"))
    assert read_frames(path, 2).n_source_frames == 5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "clip.avi"])
@pytest.mark.parametrize("read", READERS)
def test_a_file_cut_anywhere_is_truncated(tmp_path, name, share, read):
    with pytest.raises(TruncatedMedia, match=r"cut-clip\..*: the file is truncated: \d+ bytes found, .* at least \d+"):
        read(cut(clip(tmp_path, name), share))


@pytest.mark.parametrize("share", [0.5, 0.97])
@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("read", READERS)
def test_an_mp4_with_its_index_in_front_is_truncated_too(tmp_path, flags, share, read):
    with pytest.raises(TruncatedMedia, match="the file is truncated"):
        read(cut(clip(tmp_path, "clip.mp4", options={"movflags": flags}), share))


def test_a_recording_without_an_index_is_truncated(tmp_path):
    path = clip(tmp_path, "clip.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(TruncatedMedia, match=r"clip\.mp4: the file has no index \(no moov box in \d+ bytes\)"):
        probe(path)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_wav_is_truncated_although_its_demuxer_shortens_the_duration(tmp_path, share):
    path = cut(write_media(tmp_path / "a.wav", sound=sine(2), audio_codec="pcm_s16le"), share)
    with pytest.raises(TruncatedMedia, match=r"cut-a\.wav: the file is truncated"):
        read_audio(path)


def test_a_cut_flac_ends_in_the_middle_of_a_packet(tmp_path):
    path = cut(write_media(tmp_path / "a.flac", sound=sine(8), audio_codec="flac"), 0.5)
    with pytest.raises(TruncatedMedia, match=r"cut-a\.flac: its audio stream ends in the middle of a packet"):
        read_audio(path)


@pytest.mark.parametrize("stated", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x24\xf0\xff\x7f"])
def test_a_wav_from_a_pipe_that_states_no_length_is_complete(tmp_path, stated):
    path = write_media(tmp_path / "a.wav", sound=sine(1), audio_codec="pcm_s16le")
    data = path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(data[:4] + stated + data[8:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    assert read_audio(path).duration_s == pytest.approx(1, abs=0.01)


def test_a_live_webm_of_unknown_length_is_complete(tmp_path):
    path = clip(tmp_path, "clip.webm", options={"live": "1"})
    assert read_frames(path, 8).n_source_frames == 50
    assert probe(path).n_frames == 0


def damage(path, start, stop):
    data = bytearray(path.read_bytes())
    first, last = int(start * len(data)), int(stop * len(data))
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def test_a_hole_of_zeros_is_damage(tmp_path):
    path = clip(tmp_path, "clip.mp4", options={"movflags": "faststart"})
    damage(path, 0.4, 0.8)
    with pytest.raises(DamagedMedia, match=r"\d+ of 50 packets of its video stream cannot be decoded"):
        read_frames(path, 8)


def test_other_data_after_an_mp3_is_skipped_with_a_warning(tmp_path, caplog):
    path = write_media(tmp_path / "a.mp3", sound=sine(2), audio_codec="libmp3lame")
    complete = read_audio(path)
    with path.open("ab") as file:
        file.write(np.random.default_rng(1).bytes(3000))
    with caplog.at_level(logging.WARNING, logger="affectgpt"):
        assert read_audio(path).duration_s == pytest.approx(complete.duration_s, abs=0.05)
