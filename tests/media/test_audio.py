import logging

import numpy as np
import pytest

from affectgpt.media import DamagedMedia, EmptyMedia, MediaError, NoAudioStream, audio, audio_windows, probe, read_audio
from tests.media.media_files import numbered_clip, remuxed, sine, write_media


def amplitude_of(samples: np.ndarray, frequency_hz: float, rate_hz: int = 16000) -> float:
    """Amplitude of one frequency, by correlation over the middle of the audio (codecs fade at the ends)."""
    middle = samples[len(samples) // 4 : len(samples) // 4 + rate_hz]  # an integer number of periods
    turns = np.exp(-2j * np.pi * frequency_hz * np.arange(len(middle)) / rate_hz)
    return float(2 * np.abs((middle * turns).mean()))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.wav", "pcm_s16le"),
        ("a.flac", "flac"),
        ("a.mp3", "libmp3lame"),
        ("a.mp4", "aac"),
        ("a.mkv", "ac3"),
        ("a.avi", "pcm_s16le"),
    ],
)
def test_equal_stereo_channels_keep_their_amplitude(tmp_path, name, codec):
    """FFmpeg's downmix of floating-point audio gives 0.707 instead of 0.5."""
    path = write_media(tmp_path / name, sound=np.stack([sine(3)] * 2), audio_codec=codec)
    audio = read_audio(path)
    assert (audio.rate_hz, audio.source_rate_hz, audio.n_channels) == (16000, 44100, 2)
    assert audio.samples.dtype == np.float32
    assert audio.samples.ndim == 1
    expected = 0.475 if codec == "libmp3lame" else 0.5  # LAME scales by 0.95 before it encodes
    assert amplitude_of(audio.samples, 440) == pytest.approx(expected, rel=0.02)


def test_opus_in_webm_is_read(tmp_path):
    path = write_media(tmp_path / "a.webm", sound=sine(3, rate_hz=48000), sound_rate_hz=48000, audio_codec="libopus")
    assert amplitude_of(read_audio(path).samples, 440) == pytest.approx(0.5, rel=0.05)


def test_mono_is_the_average_of_the_channels(tmp_path):
    left, right = sine(3, amplitude=0.6, frequency_hz=440), sine(3, amplitude=0.3, frequency_hz=1000)
    path = write_media(tmp_path / "a.wav", sound=np.stack([left, right]), audio_codec="pcm_s16le")
    samples = read_audio(path).samples
    assert amplitude_of(samples, 440) == pytest.approx(0.3, rel=0.01)
    assert amplitude_of(samples, 1000) == pytest.approx(0.15, rel=0.01)


def test_six_channels_are_averaged_like_two(tmp_path):
    path = write_media(tmp_path / "a.wav", sound=np.stack([sine(3)] * 6), audio_codec="pcm_s16le")
    audio = read_audio(path)
    assert audio.n_channels == 6
    assert amplitude_of(audio.samples, 440) == pytest.approx(0.5, rel=0.01)


def test_resampling_equals_the_same_sine_sampled_at_the_new_rate(tmp_path):
    path = write_media(tmp_path / "a.wav", sound=sine(2), audio_codec="pcm_s16le")
    samples = read_audio(path).samples
    inner = slice(200, 2 * 16000 - 200)
    np.testing.assert_allclose(samples[inner], sine(2, rate_hz=16000)[inner], atol=2e-3)


def test_frequencies_above_half_the_new_rate_do_not_fold_back(tmp_path):
    path = write_media(tmp_path / "a.wav", sound=sine(3, frequency_hz=12000), audio_codec="pcm_s16le")
    assert amplitude_of(read_audio(path).samples, 4000) < 1e-3


def test_audio_at_the_right_rate_is_returned_unchanged(tmp_path):
    samples = sine(1, rate_hz=16000)
    path = write_media(tmp_path / "a.wav", sound=samples, sound_rate_hz=16000, audio_codec="pcm_f32le")
    np.testing.assert_array_equal(read_audio(path).samples, samples)


def test_sound_at_several_rates_is_decoded_once_and_equals_that_of_a_pass_each(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", sound=np.stack([sine(1), sine(1, frequency_hz=1000)]))
    alone = {rate_hz: read_audio(path, rate_hz or 44100) for rate_hz in (16000, 8000, None)}
    passes = []
    monkeypatch.setattr(audio, "decode", lambda *args, decode=audio.decode: passes.append(args) or decode(*args))
    together = audio.read_audio_at(path, (16000, 8000, None))
    assert len(passes) == 1
    assert together[None].rate_hz == 44100
    for rate_hz, expected in alone.items():
        np.testing.assert_array_equal(together[rate_hz].samples, expected.samples)


def test_a_waveform_is_resampled_like_a_file(tmp_path):
    sound = audio.read_audio_at(write_media(tmp_path / "a.wav", sound=sine(2), audio_codec="pcm_s16le"), (None, 24000))
    again = audio.resampled(sound[None], 24000)
    assert (again.rate_hz, again.source_rate_hz, again.duration_s) == (24000, 44100, len(again.samples) / 24000)
    np.testing.assert_allclose(again.samples, sound[24000].samples, atol=1e-6)
    assert audio.resampled(again, 24000) is again


@pytest.mark.parametrize("duration_s", [0.01, 0.3, 2.0])
def test_duration_is_that_of_the_decoded_audio(tmp_path, duration_s):
    path = write_media(tmp_path / "a.wav", sound=sine(duration_s), audio_codec="pcm_s16le")
    audio = read_audio(path)
    assert audio.duration_s == len(audio.samples) / 16000
    assert audio.duration_s == pytest.approx(duration_s, abs=1e-3)


def test_a_missing_audio_stream_is_reported_by_probe_and_an_error_to_read(tmp_path):
    path = write_media(tmp_path / "mute.mp4", numbered_clip(10))
    assert not probe(path).has_audio
    with pytest.raises(NoAudioStream, match=r"mute\.mp4: no audio stream, found video; use it without audio"):
        read_audio(path)


def test_silence_is_audio(tmp_path):
    path = write_media(tmp_path / "quiet.mp4", numbered_clip(10), sound=np.zeros(44100, dtype=np.float32))
    assert probe(path).has_audio
    assert np.abs(read_audio(path).samples).max() < 1e-4


def test_audio_shorter_than_the_video_is_no_error(tmp_path):
    path = write_media(tmp_path / "clip.mp4", numbered_clip(75), sound=sine(1))
    assert read_audio(path).duration_s == pytest.approx(1, abs=0.1)


def test_a_header_without_samples_is_empty(tmp_path):
    path = write_media(tmp_path / "a.wav", sound=sine(0.5), audio_codec="pcm_s16le")
    data = path.read_bytes()
    head = data[: data.index(b"data")] + b"data" + bytes(4)
    path.write_bytes(head[:4] + (len(head) - 8).to_bytes(4, "little") + head[8:])
    with pytest.raises(EmptyMedia, match=r"a\.wav: its audio stream has no samples"):
        read_audio(path)


def several_tracks(path, *tracks):
    """One mov with a PCM stream for each of `tracks` (float32 [S] or [C,S])."""
    inputs = [
        write_media(path.with_name(f"{i}.mov"), sound=sound, audio_codec="pcm_s16le") for i, sound in enumerate(tracks)
    ]
    return remuxed(path, *((source, 0.0) for source in inputs))


def test_a_track_without_a_decoder_does_not_hide_another(tmp_path):
    path = several_tracks(tmp_path / "a.mov", sine(1), np.stack([sine(1)] * 2))
    data = path.read_bytes()
    at = data.rindex(b"sowt")
    path.write_bytes(data[:at] + b"apac" + data[at + 4 :])
    assert probe(path).audio_codec == "pcm_s16le"
    assert amplitude_of(read_audio(path).samples, 440) == pytest.approx(0.5, rel=0.01)


def test_a_file_with_only_undecodable_audio_is_an_error(tmp_path):
    path = several_tracks(tmp_path / "a.mov", sine(1))
    path.write_bytes(path.read_bytes().replace(b"sowt", b"apac"))
    assert probe(path).has_audio
    with pytest.raises(MediaError, match="no decoder for its audio stream"):
        read_audio(path)


def test_a_silent_track_with_more_channels_does_not_win_over_speech(tmp_path):
    path = several_tracks(tmp_path / "a.mov", np.zeros((6, 44100), np.float32), sine(1))
    assert probe(path).n_channels == 6
    audio = read_audio(path)
    assert audio.n_channels == 1
    assert amplitude_of(audio.samples, 440) == pytest.approx(0.5, rel=0.01)


def test_tracks_that_are_all_silent_are_silence(tmp_path):
    path = several_tracks(tmp_path / "a.mov", np.zeros((6, 44100), np.float32), np.zeros(44100, np.float32))
    assert np.abs(read_audio(path).samples).max() == 0


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp4", "aac"), ("a.mp3", "libmp3lame")])
def test_channels_of_opposite_phase_do_not_cancel(tmp_path, name, codec, caplog):
    path = write_media(tmp_path / name, sound=np.stack([sine(3), -sine(3)]), audio_codec=codec)
    with caplog.at_level(logging.WARNING, logger="affectgpt"):
        audio = read_audio(path)
    assert "opposite phase and cancel; channel" in caplog.text
    assert audio.n_channels == 2
    assert amplitude_of(audio.samples, 440) == pytest.approx(0.5, rel=0.06)


def test_one_channel_with_sound_is_no_cancellation(tmp_path, caplog):
    sound = np.zeros((6, 44100 * 3), np.float32)
    sound[2] = sine(3)
    path = write_media(tmp_path / "a.wav", sound=sound, audio_codec="pcm_s16le")
    assert amplitude_of(read_audio(path).samples, 440) == pytest.approx(0.5 / 6, rel=0.01)
    assert not caplog.text


@pytest.mark.parametrize("n_channels", [8, 12, 16])
def test_eight_channels_and_more_are_averaged(tmp_path, n_channels):
    """PyAV reads pointers behind the planes of such frames."""
    path = write_media(tmp_path / "a.wav", sound=np.stack([sine(3)] * n_channels), audio_codec="pcm_s16le")
    audio = read_audio(path)
    assert audio.n_channels == n_channels
    assert amplitude_of(audio.samples, 440) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("rate_hz", [1, 1000, 10**6, 2**31 - 1, 2**31])
def test_a_header_with_an_implausible_rate_is_damage(tmp_path, rate_hz):
    path = write_media(tmp_path / "a.wav", sound=sine(1), audio_codec="pcm_s16le")
    data = path.read_bytes()
    path.write_bytes(data[:24] + rate_hz.to_bytes(4, "little") + data[28:])
    with pytest.raises(MediaError, match=r"a\.wav: ") as caught:
        read_audio(path)
    if rate_hz < 2**31:
        assert isinstance(caught.value, DamagedMedia)
        assert f"claims audio of {rate_hz} Hz; expected 2000 to 768000 Hz" in str(caught.value)


def test_audio_above_the_limit_is_not_decoded_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("affectgpt.media.audio.MAX_AUDIO_S", 1)
    with pytest.raises(MediaError, match=r"a\.wav: its audio is longer than the limit"):
        read_audio(write_media(tmp_path / "a.wav", sound=sine(2), audio_codec="pcm_s16le"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_samples_that_are_no_finite_numbers_are_damage(tmp_path, value, n_channels):
    sound = np.stack([sine(1)] * n_channels)
    sound[0, 30000] = value
    path = write_media(tmp_path / "a.wav", sound=sound, audio_codec="pcm_f32le")
    for rate_hz in (16000, 44100):
        with pytest.raises(DamagedMedia, match=r"a\.wav: its audio has samples that are NaN or infinite"):
            read_audio(path, rate_hz)


def test_the_start_of_the_sound_is_that_of_the_stream_which_is_read(tmp_path):
    loud = write_media(tmp_path / "loud.mov", sound=sine(1), audio_codec="pcm_s16le")
    silent = write_media(tmp_path / "silent.mov", sound=np.zeros((6, 44100), np.float32), audio_codec="pcm_s16le")
    path = remuxed(tmp_path / "a.mov", (silent, 0.0), (loud, 0.5))
    assert read_audio(path).start_s == pytest.approx(0.5, abs=0.001)
    assert read_audio(loud).start_s == 0


def test_short_audio_is_one_window_of_its_own_length():
    assert audio_windows(1600, 16000, window_s=10, max_windows=3) == [(0, 1600)]
    assert audio_windows(160000, 16000, window_s=10, max_windows=3) == [(0, 160000)]


def test_windows_cover_longer_audio_from_start_to_end():
    assert audio_windows(16000 * 12, 16000, window_s=10, max_windows=3) == [(0, 160000), (32000, 192000)]
    ranges = audio_windows(16000 * 600, 16000, window_s=10, max_windows=3)
    assert ranges == [(0, 160000), (4720000, 4880000), (9440000, 9600000)]


def test_a_single_window_is_the_middle_of_long_audio():
    assert audio_windows(60, 10, window_s=2, max_windows=1) == [(20, 40)]


def test_fixed_windows_start_at_i_times_spare_over_count():
    assert audio_windows(16000 * 10, 16000, window_s=2, max_windows=8, mode="fixed") == [
        (i * 16000, i * 16000 + 32000) for i in range(8)
    ]


def test_fixed_windows_of_short_audio_exceed_its_length_for_padding():
    assert audio_windows(16000, 16000, window_s=2, max_windows=8, mode="fixed") == [(0, 32000)] * 8


def test_published_windows_start_where_the_published_code_lets_them_start():
    """Its duration is a float of seconds: 2.00025 - 2 is a little less than 4 samples. 4,000 lengths agree with it."""
    starts = [start for start, _ in audio_windows(32004, 16000, window_s=2, max_windows=8, mode="published")]
    assert starts == [0, 0, 0, 1, 1, 2, 2, 3]  # and not [0, 0, 1, 1, 2, 2, 3, 3]
    for n_samples in (100, 32000, 32008, 99999):
        published = audio_windows(n_samples, 16000, window_s=2, max_windows=8, mode="published")
        fixed = audio_windows(n_samples, 16000, window_s=2, max_windows=8, mode="fixed")
        assert {stop - start for start, stop in published} == {32000}
        assert {ours[0] - theirs[0] for ours, theirs in zip(fixed, published, strict=True)} <= {0, 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"n_samples": 0}, "all must be at least 1"), ({"mode": "random"}, "unknown window mode 'random'")],
)
def test_impossible_windows_are_an_error(changed, message):
    values = {"n_samples": 100, "rate_hz": 10, "window_s": 2, "max_windows": 3, "mode": "cover"} | changed
    with pytest.raises(ValueError, match=message):
        audio_windows(values.pop("n_samples"), values.pop("rate_hz"), **values)
