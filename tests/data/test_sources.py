import json
import os
import shutil

import pytest

from affectgpt.config import SamplingConfig
from affectgpt.data.clips import load_clip
from affectgpt.data.facts import MediaFacts, facts_in
from affectgpt.data.formats import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from affectgpt.data.sources import (
    attempt,
    check_each,
    probe_sample,
    probe_samples,
    read_manifest,
    report_bad,
    samples_from_paths,
)
from affectgpt.data.splits import hold_out
from affectgpt.media import MediaError
from affectgpt.runtime import InputError, MissingLibrary, UserError
from affectgpt.schema import BadSample, Sample, write_jsonl
from tests.data.conftest import write_clip


def test_a_folder_gives_its_media_files_sorted_with_their_names_as_ids(tmp_path):
    for name in ("b.mp4", "a.webm", "notes.txt", "c.wav"):
        (tmp_path / name).touch()
    samples = samples_from_paths([tmp_path], subtitle="Hi.")
    assert [(sample.id, sample.subtitle) for sample in samples] == [("a", "Hi."), ("b", "Hi."), ("c", "Hi.")]
    assert samples[2].audio == str(tmp_path / "c.wav")
    assert samples[2].video is None


def test_files_that_share_a_stem_keep_their_suffix(tmp_path):
    for name in ("a.mp4", "a.wav"):
        (tmp_path / name).touch()
    assert [sample.id for sample in samples_from_paths([tmp_path])] == ["a.mp4", "a.wav"]


def test_a_folder_takes_every_media_suffix_and_names_what_it_leaves_out(tmp_path, caplog):
    media = [f"{i:02d}{suffix}" for i, suffix in enumerate(VIDEO_SUFFIXES + AUDIO_SUFFIXES)]
    for name in [*media, "UPPER.TS", "notes.txt", ".hidden"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert len(samples_from_paths([tmp_path])) == len(media) + 1
    n = len(media) + 3
    assert f"left out 2 of {n}: 'folder.mp4' (a folder), 'notes.txt' (not a media suffix)" in caplog.text


def test_odd_file_names_get_a_valid_id(tmp_path):
    for name in ("a .mp4", " b.mp4", "c\nd.mp4", "e.mp4 ", "-dash.mp4", 240 * "x" + ".mp4", " .mp4"):
        (tmp_path / name).touch()
    ids = {sample.id for sample in samples_from_paths([tmp_path])}
    assert ids == {"a", "b", "c_d", "e", "-dash", 200 * "x", "_"}
    assert samples_from_paths([tmp_path / "-dash.mp4"])[0].id == "-dash"


def test_file_names_that_are_not_utf8_get_ids_of_their_own_and_are_decoded(tmp_path, clip):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("你好.mp4".encode("gbk"), "再见.mp4".encode("gbk"), b"x\xff\xfe.mp4"):
        shutil.copy(clip, os.fsencode(folder) + b"/" + name)
    samples = samples_from_paths([folder])
    assert sorted(sample.id for sample in samples) == ["x%FF%FE", "你好", "再见"]
    good, bad = probe_samples(samples, on_bad="skip", facts=facts_in(tmp_path / "cache"))
    assert (len(good), bad) == (3, [])
    assert all(load_clip(sample, sample.modalities, SamplingConfig()) for sample in good)
    write_jsonl(tmp_path / "m.jsonl", samples)
    assert read_manifest(tmp_path / "m.jsonl")[0] == samples
    (folder / os.fsdecode("空.mp4".encode("gbk"))).touch()
    _, bad = probe_samples(samples_from_paths([folder]), on_bad="skip")
    assert report_bad(bad, tmp_path) == 1
    assert json.loads((tmp_path / "bad_samples.jsonl").read_text(encoding="utf-8"))["id"] == "空"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [("gone.mp4", FileNotFoundError, "no such file"), ("x.txt", ValueError, "expected a media file")],
)
def test_a_path_that_is_not_a_media_file_is_named(tmp_path, name, error, words):
    (tmp_path / "x.txt").touch()
    with pytest.raises(error, match=words) as caught:
        samples_from_paths([tmp_path / name])
    assert name in str(caught.value)


def test_the_error_for_an_empty_folder_lists_the_expected_suffixes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no media file in this folder.*\.mp4"):
        samples_from_paths([tmp_path])


def test_two_files_with_one_name_need_a_manifest(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"several files are named 'a\.mp4'"):
        samples_from_paths([tmp_path / "x", tmp_path / "y"])


def test_hold_out_takes_exactly_n_in_any_order():
    samples = [Sample(id=f"s{number}") for number in range(20)]
    rest, held = hold_out(samples, n=5, seed=3)
    assert len(held) == 5
    assert {s.id for s in rest + held} == {s.id for s in samples}
    assert {s.id for s in hold_out(samples[::-1], n=5, seed=3)[1]} == {s.id for s in held}


def test_holding_out_all_samples_is_refused():
    with pytest.raises(ValueError, match="cannot hold out 2 of 2"):
        hold_out([Sample(id="a"), Sample(id="b")], n=2, seed=0)


def test_modalities_are_those_of_the_file(tmp_path, clip):
    silent = write_clip(tmp_path / "silent.mp4", sound=False)
    assert probe_sample(Sample(id="a", video=str(clip))).modalities == ("audio", "frames", "motion")
    assert probe_sample(Sample(id="b", video=str(silent))).modalities == ("frames", "motion")
    assert probe_sample(Sample(id="c", subtitle="hi")).modalities == ()


def test_a_separate_audio_file_completes_a_silent_video(tmp_path, clip):
    silent = write_clip(tmp_path / "silent.mp4", sound=False)
    assert "audio" in probe_sample(Sample(id="a", video=str(silent), audio=str(clip))).modalities


def test_a_listed_subset_is_respected_and_a_missing_modality_is_an_error(tmp_path, clip):
    assert probe_sample(Sample(id="a", video=str(clip), modalities=("motion",))).modalities == ("motion",)
    silent = write_clip(tmp_path / "silent.mp4", sound=False)
    with pytest.raises(ValueError, match=r"lists \['audio'\], but the media hold only \['frames', 'motion'\]"):
        probe_sample(Sample(id="b", video=str(silent), modalities=("audio",)))


def test_raise_names_the_sample_and_skip_returns_it_without_a_substitute(tmp_path, clip):
    broken = tmp_path / "broken.mp4"
    broken.touch()
    samples = [Sample(id="good", video=str(clip)), Sample(id="bad", video=str(broken))]
    with pytest.raises(ValueError, match=r"sample 'bad'.*broken\.mp4.*on_bad=skip"):
        probe_samples(samples)
    good, bad = probe_samples(samples, on_bad="skip")
    assert [sample.id for sample in good] == ["good"]
    assert [(item.id, item.where) for item in bad] == [("bad", str(broken))]


def test_left_out_samples_are_written_with_their_reason(tmp_path, caplog):
    assert report_bad([BadSample("v1", "m.csv:2", "zero bytes")], tmp_path) == 1
    assert "zero bytes" in (tmp_path / "bad_samples.jsonl").read_text()
    assert "left out 1 bad samples" in caplog.text
    assert report_bad([], tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()


def test_the_error_for_an_unknown_split_lists_the_splits(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("id,video,split\na,a.mp4,train\nb,b.mp4,test\n")
    assert [sample.id for sample in read_manifest(path, split="test")[0]] == ["b"]
    with pytest.raises(ValueError, match=r"no sample has split 'dev'; it holds \{'train': 1, 'test': 1\}"):
        read_manifest(path, split="dev")


@pytest.mark.parametrize("n_threads", [0, 3])
@pytest.mark.parametrize(
    "bug",
    [
        ValueError("not enough values to unpack"),
        TypeError("no str"),
        RuntimeError("odd"),
        MissingLibrary("no decord"),
        UserError("disk full"),
    ],
)
def test_a_bug_in_a_check_is_not_a_bad_sample(bug, n_threads):
    def check(sample):
        if sample.id == "s2":
            raise bug
        return sample

    with pytest.raises(type(bug)) as caught:
        check_each([Sample(id=f"s{n}") for n in range(4)], check, on_bad="skip", what="checking", n_threads=n_threads)
    assert caught.value is bug
    assert caught.traceback[-1].name == "check"


def test_a_bad_sample_is_located_by_its_first_file():
    def check(sample):
        raise InputError("no")

    files = ({"video": "v.mp4", "audio": "a.wav"}, {"audio": "a.wav"}, {"face": "f.npy"})
    bad = [attempt(check, Sample(id="x", **each), on_bad="skip") for each in files]
    assert [row.where for row in bad] == ["v.mp4", "a.wav", "f.npy"]


def test_a_file_that_cannot_be_read_is_a_bad_sample_with_its_name(tmp_path):
    samples = [Sample(id="folder", video=str(tmp_path)), Sample(id="long", video=str(tmp_path / ("x" * 300)))]
    facts = MediaFacts()
    good, bad = probe_samples(samples, on_bad="skip", facts=facts)
    assert not good
    assert all(sample.video in row.reason for sample, row in zip(samples, bad, strict=True))
    with pytest.raises(MediaError, match=r"cannot be read \(Is a directory\)"):
        facts.sha256(str(tmp_path))
    with pytest.raises(MediaError, match=r"xxx: cannot be read \(File name too long\)"):
        facts.sha256(samples[1].video)
