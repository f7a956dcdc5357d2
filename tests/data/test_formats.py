import json

import numpy as np
import pytest

from affectgpt.config import SamplingConfig, SourceConfig
from affectgpt.data.clips import load_clip
from affectgpt.data.formats import FORMATS, FormatError, open_folder, options_of, read_format, read_preferences
from affectgpt.data.sources import probe_sample, read_source
from affectgpt.schema import BadSample, ManifestError, Sample
from tests.data import layouts
from tests.data.layouts import NAMES


def read(folder, format, **options):
    """Samples by id; any bad row fails the test."""
    rows, _ = read_format(format, folder, options)
    assert not [row for row in rows if isinstance(row, BadSample)]
    return {row.id: row for row in rows}


def test_emer_v1_has_both_languages_and_avi_files(tmp_path):
    layouts.emer_v1(tmp_path)
    samples = read(tmp_path, "emer_v1")
    first = samples[NAMES[0]]
    assert first.video == str(tmp_path / "video" / f"{NAMES[0]}.avi")
    assert first.labels == ("happy", "calm")
    assert first.description == 'He smiles, "a lot".'
    assert first.subtitle == "Hi, you."
    assert first.in_language("zh").labels == ("开心",)
    assert first.in_language("zh").subtitle == "你好。"
    assert samples[NAMES[1]].translations == {}


def test_emer_fine_joins_two_languages_labels_and_subtitles(tmp_path):
    layouts.emer_fine(tmp_path)
    samples = read(tmp_path, "emer_fine")
    first, second, third = (samples[name] for name in NAMES)
    assert first.description == f"He smiles {NAMES[0]}."
    assert first.in_language("zh").description == f"他笑了 {NAMES[0]}"
    assert first.labels == ("don't know", "sad")
    assert first.subtitle == "I'm fine."
    assert (second.labels, second.subtitle) == (("happy", "calm"), "真的吗？")
    assert (third.labels, third.subtitle) == (None, None)


def test_emer_fine_is_split_into_266_and_66_by_the_id_alone(tmp_path):
    names = [f"sample_{number:05d}" for number in range(332)]
    layouts.media(tmp_path, names)
    tests = []
    for rows in (names, names[::-1]):
        table = tmp_path / "final-EMER-reason.csv"
        layouts.write_csv(table, ("name", "chinese", "english"), *((n, "a", "b") for n in rows))
        samples = read(tmp_path, "emer_fine").values()
        test = {sample.id for sample in samples if sample.split == "test"}
        assert (len(test), sum(sample.split == "train" for sample in samples)) == (66, 266)
        tests.append(test)
    assert tests[0] == tests[1]


@pytest.mark.parametrize("format", ["ovmerd", "mercaptionplus"])
def test_labels_and_descriptions_of_two_files_become_one_sample(tmp_path, format):
    layouts.openset(tmp_path, format)
    samples = read(tmp_path, format)
    assert samples[NAMES[0]].labels == ("don't know", "sad")
    assert samples[NAMES[0]].description == "She frowns."
    assert samples[NAMES[1]].labels is None
    assert samples[NAMES[1]].description == "Her voice\nshakes, and she looks away."
    assert samples[NAMES[2]] == read(tmp_path, format)[NAMES[2]]
    assert (samples[NAMES[2]].labels, samples[NAMES[2]].description) == (None, None)


def test_human_labels_need_no_descriptions(tmp_path):
    layouts.openset(tmp_path, "human")
    assert read(tmp_path, "mer_human")[NAMES[0]].labels == ("don't know", "sad")


def test_one_hot_labels_are_the_fixed_label(tmp_path):
    layouts.onehot(tmp_path)
    assert [sample.label for sample in read(tmp_path, "mer_onehot").values()] == ["neutral", "worried", "surprise"]


def test_test_share_is_the_share_of_test_samples_up_to_all_of_them(tmp_path):
    layouts.onehot(tmp_path)
    for share, n_test in ((0, 0), (0.3, 1), (0.96, 3), (1.0, 3)):
        samples = read(tmp_path, "mer_onehot", test_share=share).values()
        assert sum(sample.split == "test" for sample in samples) == n_test, share
    for share in (1.5, -0.1, float("nan")):
        with pytest.raises(FormatError, match=f"test_share is {share}; expected a share from 0 to 1"):
            read(tmp_path, "mer_onehot", test_share=share)


def test_candidates_have_media_and_subtitles_and_no_truth(tmp_path):
    layouts.candidates(tmp_path)
    samples = read(tmp_path, "candidates")
    assert list(samples) == list(NAMES)
    assert (samples[NAMES[0]].subtitle, samples[NAMES[0]].labels) == ("I'm fine.", None)


def test_a_tie_of_a_preference_pair_is_read_as_same(tmp_path):
    layouts.preferences(tmp_path)
    pairs = list(read_preferences(open_folder("preference", tmp_path, {})[0]))
    assert [pair.preference for pair in pairs] == ["a1", "same", "same"]
    assert [pair.id for pair in pairs] == [NAMES[0], NAMES[0], NAMES[1]]
    layouts.write_csv(tmp_path / "p.csv", ("name", "a1", "a2", "preference"), (NAMES[0], "A", "B", "left"))
    (bad,) = read_preferences(open_folder("preference", tmp_path, {})[0], file="p.csv")
    assert "preference is 'left'; expected a1, a2 or same" in bad.reason


@pytest.mark.parametrize("level", ["fine", "coarse"])
def test_merr_joins_its_index_and_subtitles(tmp_path, level):
    layouts.merr(tmp_path, level)
    samples = read(tmp_path, "merr", file=f"MERR_{level}_grained.json")
    first, second, third = (samples[name] for name in NAMES)
    assert first.description == f"The lip corners rise in {NAMES[0]}."
    assert (first.label, first.valence, first.subtitle) == ("happy", 3.4, "Well, I'm fine.")
    assert (second.label, second.valence, second.subtitle) == ("sad", None, "I'm fine.")
    assert (third.label, third.valence) == ("doubt", None)


def test_an_index_gives_emotions_and_minus_ten_is_no_valence(tmp_path):
    layouts.merr(tmp_path)
    samples = read(tmp_path, "merr_index", file="MERR_fine_grained.txt")
    assert [(sample.label, sample.valence) for sample in samples.values()] == [
        ("happy", 3.4),
        ("sad", None),
        ("doubt", None),
    ]
    (tmp_path / "odd.txt").write_text("a 3 happy much\n")
    with pytest.raises(FormatError, match=r"odd\.txt:1: expected 'name n_frames emotion valence', found 'a 3"):
        read(tmp_path, "merr_index", file="odd.txt")


def test_pickled_labels_of_other_classes_are_only_read_if_they_are_trusted(tmp_path):
    layouts.merbench(tmp_path)
    odd = {NAMES[0]: {"emo": Sample("a", video="a.mp4"), "val": 1.0}}
    np.savez(tmp_path / "odd.npz", test_corpus=np.array(odd, dtype=object))
    with pytest.raises(FormatError, match=r"odd\.npz: contains pickled objects.*trust_pickle: true"):
        read(tmp_path, "merbench_npz", file="odd.npz")
    samples = read(tmp_path, "merbench_npz")
    assert [(sample.label, sample.valence) for sample in samples.values()] == [
        ("neutral", 0.0),
        ("happy", 0.5),
        ("sad", 1.0),
    ]


def test_numbered_emotions_need_their_names(tmp_path):
    layouts.merbench(tmp_path, numbered=True)
    with pytest.raises(FormatError, match="has emotion number 0, but classes has 0 names"):
        read(tmp_path, "merbench_npz")
    samples = read(tmp_path, "merbench_npz", classes=["neutral", "sad", "happy"])
    assert [sample.label for sample in samples.values()] == ["neutral", "happy", "sad"]


def test_only_the_first_answer_of_a_llava_conversation_is_used_and_the_others_are_counted(tmp_path, caplog):
    layouts.llava(tmp_path)
    samples = read(tmp_path, "llava", file="train.json")
    assert samples["0"].description == "He's glad."
    assert samples["0"].video == str(tmp_path / "video" / f"{NAMES[0]}.mp4")
    assert "3 further turns" in caplog.text


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ("<video>\nHow does he feel?", "How does he feel?"),
        (
            [{"type": "video"}, {"type": "text", "text": "<video>Look."}, {"type": "text", "text": "Why?"}],
            "Look.\nWhy?",
        ),
        ([{"type": "video"}], None),
        (None, None),
        (7, None),
    ],
)
def test_a_question_is_text_or_the_row_is_bad(tmp_path, content, question):
    layouts.llava(tmp_path)
    entries = json.loads((tmp_path / "train.json").read_text())
    entries[0]["conversations"][0] = {"from": "human", "value": content}
    (tmp_path / "train.json").write_text(json.dumps(entries))
    first = read_format("llava", tmp_path, {"file": "train.json", "questions": True})[0][0]
    if question is None:
        assert first.reason == "conversations have no question (from: human, value: text)"
    else:
        assert first.question == question


def test_sharegpt_answers_can_be_labels(tmp_path):
    layouts.sharegpt(tmp_path)
    samples = read(tmp_path, "sharegpt", file="share.jsonl", answer="labels")
    assert samples[NAMES[1]].labels == ("glad", "calm")


@pytest.mark.parametrize("path", ["/etc/passwd.mp4", "../x.mp4"])
def test_a_listed_path_must_be_inside_the_folder(tmp_path, path):
    layouts.llava(tmp_path)
    entries = json.loads((tmp_path / "train.json").read_text())
    entries[0]["video"] = path
    (tmp_path / "train.json").write_text(json.dumps(entries))
    rows, _ = read_format("llava", tmp_path, {"file": "train.json"})
    assert "is outside the folder of the data set" in rows[0].reason


def test_predictions_of_others_are_training_data(tmp_path):
    layouts.predictions(tmp_path)
    samples = read(tmp_path, "predictions", file="x-openset.npz")
    assert [sample.labels for sample in samples.values()] == [("sad", "tired"), ("happy",), None]
    samples = read(tmp_path, "predictions", file="reasons.npz")
    assert samples[NAMES[0]].description == "He is tired."


def test_our_manifest_is_also_a_format(tmp_path):
    layouts.ours(tmp_path)
    assert read(tmp_path, "manifest")[NAMES[0]].labels == ("sad",)


def test_audio_and_faces_are_found_in_their_subfolders_and_faces_become_rgb(tmp_path):
    layouts.candidates(tmp_path)
    for path in (tmp_path / "video").iterdir():
        path.unlink()
    layouts.media(tmp_path, NAMES[:1], faces=True, audio=True, real=True)
    layouts.write_clip(tmp_path / "audio" / f"{NAMES[0]}.wav".replace(".wav", ".m4a"))
    (tmp_path / "audio" / f"{NAMES[0]}.wav").unlink()
    sample = read(tmp_path, "candidates")[NAMES[0]]
    assert sample.audio == str(tmp_path / "audio" / f"{NAMES[0]}.m4a")
    probed = probe_sample(sample)
    assert probed.modalities == ("audio", "frames", "motion", "face", "face_motion")
    clip = load_clip(probed, ("face", "face_motion"), SamplingConfig(n_faces=2, n_motion_faces=3))
    assert clip.arrays["face"].shape == (2, 112, 112, 3)
    assert clip.arrays["face_motion"].shape == (3, 112, 112, 3)
    assert clip.arrays["face"][0, 0, 0].tolist() == [200, 0, 0]
    blue = read(tmp_path, "candidates", face_order="rgb")[NAMES[0]]
    assert load_clip(blue, ("face",), SamplingConfig()).arrays["face"][0, 0, 0].tolist() == [0, 0, 200]


def test_face_crops_are_spaced_like_frames(tmp_path):
    np.save(tmp_path / "f.npy", np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 8, 8, 3)))
    clip = load_clip(Sample(id="a", face=str(tmp_path / "f.npy")), ("face",), SamplingConfig(n_faces=4))
    assert clip.arrays["face"][:, 0, 0, 0].tolist() == [0, 2, 5, 7]  # floor(i * 10 / 4)


def test_a_missing_clip_keeps_its_path_so_that_probing_names_it(tmp_path):
    layouts.onehot(tmp_path)
    (tmp_path / "video" / f"{NAMES[1]}.mp4").unlink()
    sample = read(tmp_path, "mer_onehot")[NAMES[1]]
    with pytest.raises(FileNotFoundError, match=rf"video/{NAMES[1]}\.mp4: no such file"):
        probe_sample(sample)


def test_two_files_of_one_name_and_ids_that_are_paths_are_bad_rows(tmp_path):
    layouts.onehot(tmp_path)
    (tmp_path / "video" / f"{NAMES[1]}.avi").touch()
    layouts.write_csv(tmp_path / "t.csv", ("name", "discrete"), (NAMES[1], "sad"), ("../x", "sad"), (NAMES[0], "sad"))
    rows, _ = read_format("mer_onehot", tmp_path, {"labels": "t.csv"})
    assert "2 files have this name" in rows[0].reason
    assert "invalid id '../x'" in rows[1].reason
    assert rows[2].id == NAMES[0]


def test_a_second_row_of_an_id_is_bad_not_silently_the_last(tmp_path):
    layouts.onehot(tmp_path)
    layouts.write_csv(tmp_path / "t.csv", ("name", "discrete"), (NAMES[0], "sad"), (NAMES[0], "happy"))
    rows, _ = read_format("mer_onehot", tmp_path, {"labels": "t.csv"})
    assert rows[0].label == "sad"
    assert "ids must be unique" in rows[1].reason


def test_a_bug_in_a_reader_is_not_reported_as_a_bad_row(tmp_path, monkeypatch):
    bug = ValueError("not enough values to unpack")

    def fail(*arguments):
        raise bug

    layouts.openset(tmp_path, "ovmerd")
    monkeypatch.setattr("affectgpt.data.formats.parse_label_list", fail)
    with pytest.raises(ValueError, match="not enough") as caught:
        read_format("ovmerd", tmp_path, {})
    assert caught.value is bug


@pytest.mark.parametrize("turns", ["yes", ["yes"], [{"from": "gpt", "value": 3}]])
def test_conversations_of_another_form_are_bad_rows(tmp_path, turns):
    layouts.llava(tmp_path)
    entries = json.loads((tmp_path / "train.json").read_text())
    entries[0]["conversations"] = turns
    (tmp_path / "train.json").write_text(json.dumps(entries))
    rows, _ = read_format("llava", tmp_path, {"file": "train.json"})
    assert rows[0].reason.startswith("conversations ")


@pytest.mark.parametrize(
    ("format", "options", "words"),
    [
        ("mer2040", {}, r"unknown format 'mer2040'; expected one of \['manifest', 'datasets', 'emer_v1'"),
        ("ovmerd", {}, r"track2_train_ovmerd\.csv: no such file; the folder has \['track1_train\.csv'\]"),
        ("mer_onehot", {"label": "x"}, "has no option 'label'; its options are .*'labels'"),
        ("mer_onehot", {"video": "clips"}, r"no video in 'clips'.* found folders \['video'\].*options: \{video"),
        ("llava", {}, r"format 'llava' needs options: \{file: \.\.\.\}"),
        ("mer_onehot", {"face_order": "grb"}, r"face_order must be one of \['bgr', 'rgb'\], found 'grb'"),
    ],
)
def test_a_mismatch_names_what_was_found_and_expected(tmp_path, format, options, words):
    layouts.onehot(tmp_path)
    with pytest.raises(FormatError, match=words):
        read(tmp_path, format, **options)


def test_an_unquoted_comma_does_not_cut_a_description_short(tmp_path):
    layouts.openset(tmp_path, "ovmerd")
    (tmp_path / "track3_train_ovmerd.csv").write_text(f"name,reason\n{NAMES[0]},She frowns, then leaves\n")
    with pytest.raises(FormatError, match=r"ovmerd\.csv:2: expected 2 cells, found 3; quote cells that contain"):
        read(tmp_path, "ovmerd")


def test_every_format_has_a_description_and_options():
    for name, reader in FORMATS.items():
        assert reader.__doc__
        assert {"video", "audio", "faces", "face_order"} <= set(options_of(name))


# ---- sources ---------------------------------------------------------------------------------------------------------


def source(folder, **values):
    return read_source(SourceConfig(format="mer_onehot", folder=str(folder), **values))


def test_a_split_file_selects_the_listed_samples(tmp_path):
    layouts.onehot(tmp_path)
    (tmp_path / "test.txt").write_text(f"{NAMES[2]}\n\n{NAMES[0]}\n")
    rows = source(tmp_path, split_file="test.txt")
    assert [sample.id for sample in rows.samples] == [NAMES[0], NAMES[2]]
    assert [path.name for path in rows.files] == ["track1_train.csv", "test.txt"]
    (tmp_path / "test.txt").write_text(f"{NAMES[2]}\nother\n")
    with pytest.raises(ValueError, match=r"test\.txt: 1 of 2 names are not in mer_onehot.*\['other'\]"):
        source(tmp_path, split_file="test.txt")


def test_a_limit_selects_the_same_samples_every_time_and_smaller_limits_are_subsets(tmp_path):
    layouts.onehot(tmp_path)
    chosen = [{sample.id for sample in source(tmp_path, limit=n).samples} for n in (1, 2, 3, 9)]
    assert [len(ids) for ids in chosen] == [1, 2, 3, 3]
    assert chosen[0] < chosen[1] < chosen[2]


def test_bad_rows_raise_with_their_line_or_are_returned(tmp_path):
    layouts.onehot(tmp_path)
    layouts.write_csv(tmp_path / "t.csv", ("name", "discrete"), (NAMES[0], "sad"), ("a/b", "sad"))
    config = SourceConfig(format="mer_onehot", folder=str(tmp_path), options={"labels": "t.csv"})
    with pytest.raises(ManifestError, match=r"t\.csv:3: sample 'a/b'.*\n1 bad rows.*on_bad=skip"):
        read_source(config)
    rows = read_source(config, on_bad="skip")
    assert (len(rows.samples), [row.id for row in rows.bad]) == (1, ["a/b"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "names either a manifest, or a format with its folder; found manifest=None and format=None"),
        ({"manifest": "m.csv", "format": "ovmerd"}, "names either a manifest, or a format"),
        ({"format": "ovmerd"}, "set the root of the data sets: data.folder="),
        ({"format": "ovmerd", "split": "a", "split_file": "b"}, "takes split='a' or split_file='b', not both"),
    ],
)
def test_an_incomplete_or_contradictory_source_is_an_error(values, words):
    with pytest.raises(ValueError, match=words):
        read_source(SourceConfig(**values))
