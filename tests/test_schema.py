import json
import os
from pathlib import Path

import pytest

from affectgpt.runtime import MAX_TEXT, InputError
from affectgpt.schema import (
    ManifestError,
    Prediction,
    Sample,
    check_id,
    parse_label_list,
    prediction_from_row,
    read_samples,
    sample_from_row,
    to_json,
    write_jsonl,
)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("bad", ["../x", "a/b", "a\\b", "", " a", ".", "..", "a\nb", "x" * 201, 7, None])
def test_an_id_that_could_leave_a_folder_or_break_a_line_is_an_error(bad):
    with pytest.raises(ValueError, match="id"):
        check_id(bad)


def test_jsonl_and_csv_of_the_same_rows_give_the_same_samples(tmp_path):
    row = {
        "id": "v1",
        "video": "clips/a.mp4",
        "subtitle": "Well, fine.",
        "description": "d",
        "labels": ["sad", "tired"],
    }
    jsonl = write(tmp_path / "m.jsonl", json.dumps(row) + "\n")
    csv = write(
        tmp_path / "m.csv",
        "id,video,subtitle,description,labels\nv1,clips/a.mp4,\"Well, fine.\",d,\"['sad', 'tired']\"\n",
    )
    assert read_samples(jsonl) == read_samples(csv)
    assert read_samples(jsonl)[0][0].video == str(tmp_path / "clips/a.mp4")


def test_a_written_manifest_reads_back_unchanged(tmp_path):
    samples = [
        Sample(
            id="v1",
            video=str(tmp_path / "a.mp4"),
            labels=("sad",),
            translations={"zh": {"description": "难过", "labels": ("难过",), "subtitle": None, "label": None}},
            modalities=("audio", "frames"),
        )
    ]
    write_jsonl(tmp_path / "m.jsonl", samples)
    assert read_samples(tmp_path / "m.jsonl")[0] == samples


def test_language_columns_become_translations(tmp_path):
    path = write(tmp_path / "m.csv", "name,video,subtitle_en,subtitle_zh,labels_zh\nv1,a.mp4,Hello,你好,难过，疲惫\n")
    (sample,), _ = read_samples(path)
    assert (sample.id, sample.subtitle) == ("v1", "Hello")
    assert sample.in_language("zh").labels == ("难过", "疲惫")
    assert sample.in_language("zh").subtitle == "你好"


def test_a_missing_translation_names_the_sample_and_its_languages():
    with pytest.raises(ValueError, match=r"'v1' has no texts in 'zh', only in \['en'\]"):
        Sample(id="v1", description="x").in_language("zh")


def test_every_bad_row_is_listed_with_its_line_and_id_and_what_was_expected(tmp_path):
    rows = [
        '{"id": "ok", "video": "a.mp4"}',
        '{"id": "v1", "subtitel": "x", "video": "a.mp4"}',
        "{oops",
        '{"id": "v2"}',
    ]
    path = write(tmp_path / "m.jsonl", "\n".join(rows))
    with pytest.raises(ManifestError) as error:
        read_samples(path)
    text = str(error.value)
    assert f"{path}:2: sample 'v1': unknown columns ['subtitel']; expected some of" in text
    assert f"{path}:3: sample '?': not JSON" in text
    assert f"{path}:4: sample 'v2': no video, audio, face or subtitle" in text
    assert "3 bad rows" in text
    assert "'ok'" not in text


def test_skip_leaves_bad_rows_out_and_returns_them_without_a_substitute(tmp_path):
    path = write(tmp_path / "m.jsonl", '{"id": "a", "video": "a.mp4"}\n{"id": "a", "video": "b.mp4"}\n{"id": "b"}\n')
    samples, bad = read_samples(path, on_bad="skip")
    assert [sample.id for sample in samples] == ["a"]
    assert [(item.id, item.where) for item in bad] == [("a", f"{path}:2"), ("b", f"{path}:3")]
    assert "already used in line 1" in bad[0].reason


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("valence", "high", "'high'"),
        ("labels", 3, "3"),
        ("lang", "fr", "'fr'"),
        ("video", 5, "5"),
        ("modalities", ["smell"], "smell"),
        ("translations", "x", "'x'"),
        ("translations", {"zh": "x"}, "'x'"),
        ("translations", {"zh": {"labls": "x"}}, "labls"),
        ("description", 7, "7"),
    ],
)
def test_a_value_of_the_wrong_type_names_field_and_value(tmp_path, field, value, found):
    path = write(tmp_path / "m.jsonl", json.dumps({"id": "v1", "video": "a.mp4", field: value}))
    with pytest.raises(ManifestError, match=field) as error:
        read_samples(path)
    assert found in str(error.value)


def test_a_table_without_an_id_column_names_the_columns_it_has(tmp_path):
    with pytest.raises(ManifestError, match=r"no id: expected a column or key 'id'.*found \['key', 'video'\]"):
        read_samples(write(tmp_path / "a.csv", "key,video\na,b.mp4\n"))


def test_a_file_in_another_encoding_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.csv").write_bytes("id,video,labels\na,b.mp4,très\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"a\.csv: is not UTF-8 text .*save it as UTF-8"):
        read_samples(tmp_path / "a.csv")


def test_missing_file_wrong_suffix_and_empty_manifest_say_so(tmp_path):
    for path, words in [
        (tmp_path / "none.jsonl", "no such manifest"),
        (write(tmp_path / "m.txt", "x"), r"expected a manifest \(\.jsonl \.csv"),
        (write(tmp_path / "e.jsonl", ""), "no usable sample"),
    ]:
        with pytest.raises(ManifestError, match=words):
            read_samples(path)


def test_a_bug_while_a_row_is_read_is_not_reported_as_a_bad_row(tmp_path, monkeypatch):
    bug = ValueError("not enough values to unpack")

    def fail(*arguments):
        raise bug

    path = write(tmp_path / "m.jsonl", '{"id": "a", "video": "a.mp4"}')
    monkeypatch.setattr("affectgpt.schema._below", fail)
    with pytest.raises(ValueError, match="not enough") as caught:
        read_samples(path, on_bad="skip")
    assert caught.value is bug


@pytest.mark.parametrize(
    "field", ["subtitle", "description", "label", "labels", "split", "video", "id", "translations"]
)
def test_half_of_a_surrogate_pair_is_a_bad_row_that_can_be_listed(tmp_path, field):
    half = "Great \ud83d"
    value = {"labels": [half], "translations": {"zh": {"subtitle": half}}}.get(field, half)
    rows = [{"id": "a", "video": "a.mp4"}, {"id": "b", "video": "b.mp4", field: value}]
    path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    samples, bad = read_samples(path, on_bad="skip")
    assert [sample.id for sample in samples] == ["a"]
    write_jsonl(tmp_path / "bad.jsonl", bad)
    assert "\\ud83d" in (tmp_path / "bad.jsonl").read_text(encoding="utf-8")


def test_a_whole_emoji_is_text(tmp_path):
    path = write(tmp_path / "m.jsonl", '{"id": "a", "video": "a.mp4", "subtitle": "Great \\ud83d\\ude00"}')
    assert read_samples(path)[0][0].subtitle == "Great \U0001f600"


def test_a_sample_and_a_prediction_take_no_text_that_no_tokenizer_takes():
    for make in (lambda text: Sample(id="a", subtitle=text), lambda text: Prediction("a", text)):
        for text in ("x \udcc4", "x" * (MAX_TEXT + 1)):
            with pytest.raises(InputError, match=r"half of a surrogate pair|characters; expected at most"):
                make(text)
        make("x" * MAX_TEXT)


def test_a_file_name_that_is_not_utf8_is_written_and_read_back(tmp_path):
    samples = [Sample(id="a", video=os.fsdecode(str(tmp_path).encode() + "/你好.mp4".encode("gbk")))]
    write_jsonl(tmp_path / "m.jsonl", samples)
    assert read_samples(tmp_path / "m.jsonl")[0] == samples


@pytest.mark.parametrize("value", ["1e999", 10**4000, "x", [1], "-inf"])
def test_a_valence_that_is_no_finite_number_is_an_error(value):
    with pytest.raises(InputError, match="valence must be a number, found") as error:
        sample_from_row({"id": "a", "video": "a.mp4", "valence": value})
    assert len(str(error.value)) < 120


def test_cells_without_a_value_and_whole_numbers_mean_the_same_in_csv_and_json(tmp_path):
    write(
        tmp_path / "m.csv",
        "id,video,subtitle,description,labels,label,valence,split\n00001,a.mp4,nan,None, ,null,NaN,1\n",
    )
    row = {"id": "00001", "video": "a.mp4", "subtitle": "nan", "description": "None", "labels": " ", "split": 1}
    write(tmp_path / "m.jsonl", json.dumps(row | {"label": None, "valence": "nan"}) + '\n{"id": 2, "video": "b.mp4"}')
    (one,), (other, second) = (read_samples(tmp_path / name)[0] for name in ("m.csv", "m.jsonl"))
    assert one == other == Sample(id="00001", video=str(tmp_path / "a.mp4"), split="1")
    assert second.id == "2"


def test_a_mapping_names_the_columns_and_the_others_are_left_out_and_listed(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(tmp_path / "m.csv", "name;text;speaker;file\na;Hi;Ann;a.mp4\n")
    (sample,), _ = read_samples(path, columns={"id": "name", "subtitle": "text", "video": "file"})
    assert sample == Sample(id="a", subtitle="Hi", video=str(tmp_path / "a.mp4"))
    assert "left out the columns ['speaker']" in caplog.text
    with pytest.raises(InputError, match=r"columns= names \['speaker'\]; expected some of"):
        read_samples(path, columns={"speaker": "speaker"})
    with pytest.raises(ManifestError, match=r"no column 'words', which columns= names for subtitle, found \['file'"):
        read_samples(path, columns={"subtitle": "words"})


def test_a_manifest_without_a_usable_row_says_why(tmp_path):
    path = write(tmp_path / "m.csv", "id,video,lang\na,a.mp4,fr\nb,b.mp4,fr\n")
    with pytest.raises(ManifestError, match=r"no usable sample \(2 bad rows\)\n.*m\.csv:2: sample 'a': lang 'fr'"):
        read_samples(path, on_bad="skip")


@pytest.mark.parametrize("line", [1000 * "[", '{"id": ' + 5000 * "1" + "}"])
def test_json_that_python_refuses_to_parse_is_a_bad_row(tmp_path, line):
    path = write(tmp_path / "m.jsonl", f'{{"id": "a", "video": "a.mp4"}}\n{line}\n')
    assert [row.where for row in read_samples(path, on_bad="skip")[1]] == [f"{path}:2"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['a', 'b']", ("a", "b")),
        ("[a, b]", ("a", "b")),
        ('["don\'t know", "sad"]', ("don't know", "sad")),
        ("[don't know, sad]", ("don't know", "sad")),
        ("a; b", ("a", "b")),
        ("开心，自豪、平静", ("开心", "自豪", "平静")),
        (["a", "a", " b "], ("a", "b")),
        ("", None),
        ("nan", None),
        (float("nan"), None),
        (None, None),
        ("[]", None),
        ("['a' 'b']", ("a", "b")),
        ("['calm'\n 'don\\'t know']", ("calm", "don't know")),
        ("array(['a', 'b'], dtype=object)", ("a", "b")),
        ("[np.str_('a'), np.str_('b')]", ("a", "b")),
        ("{'a', 'b'}", ("a", "b")),
        ("('a',)", ("a",)),
        ("(a, b)", ("a", "b")),
        ("【平静、开心】", ("平静", "开心")),
        ("［平静，开心］", ("平静", "开心")),
        ("“平静”，“开心”", ("平静", "开心")),
        ("「平静」「开心」", ("平静", "开心")),
        ("a|b", ("a", "b")),
        ("a\r\nb", ("a", "b")),
        ("\ufeffa", ("a",)),
        ('["a", null]', ("a",)),
        ("[nan]", None),
        ("null", None),
        ("N/A", None),
        ("None", None),
        ("set()", None),
        ("a (0.9), b: 0.2", ("a", "b")),
        ('["\\u5e73\\u9759"]', ("平静",)),
        ("frozenset({'a', 'b'})", ("a", "b")),
        ("dict_keys(['a', 'b'])", ("a", "b")),
        ("[b'a', b'b']", ("a", "b")),
        ("['a', 'b'].", ("a", "b")),
        ("- a\n- b", ("a", "b")),
        ("1. a\n2. b", ("a", "b")),
        ("«a», «b»", ("a", "b")),
        ("[\u200b'a']", ("a",)),
        ("a\u202eb", ("ab",)),
        ("#N/A", None),
        ("['None', 'nan']", None),
        ("angry/displeased, sad", ("angry/displeased", "sad")),
        ("don't know, o'clock", ("don't know", "o'clock")),
    ],
)
def test_label_cells_of_every_known_form_are_parsed(cell, words):
    assert parse_label_list(cell) == words


@pytest.mark.parametrize(
    "cell",
    [
        "[{[]: 1}]",
        "[1, 2]",
        "9**9**9**9",
        "9" * 5000,
        "(" * 100_000,
        "[" * 10_000 + "]" * 10_000,
        "1+" * 9_000 + "1",
        "[[a], [b]]",
        "<b>sad</b>",
        "['a' 'b' ... 'z']",
        ["a", ["b"]],
        {"a": 1},
    ],
    ids=lambda cell: repr(cell)[:20],
)
def test_a_label_cell_without_words_is_an_error_with_a_short_message(cell):
    with pytest.raises(InputError, match="labels") as error:
        parse_label_list(cell)
    assert len(str(error.value)) < 250


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path):
    samples = [Sample(id="v1", subtitle="one\u2028two\x85three")]
    write_jsonl(tmp_path / "m.jsonl", samples)
    assert read_samples(tmp_path / "m.jsonl")[0] == samples


def test_a_prediction_reads_back_unchanged_and_unknown_keys_are_ignored():
    prediction = Prediction(id="v1", text="He is sad.", labels=("sad",), modalities=("audio", "text"), n_tokens=4)
    assert prediction_from_row({**json.loads(to_json(prediction)), "other": 1}) == prediction


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "n_tokens": 4}, r"a prediction without id, found \['n_tokens', 'text'\]"),
        ({"id": None, "text": "x"}, "a prediction without id"),
        ({"id": "a", "text": "x", "labels": ["sad", None]}, r"labels must be a list of words, found \['sad', None\]"),
        ({"id": "a", "text": "x", "modalities": [1]}, r"modalities must be a list of words, found \[1\]"),
        ({"id": "a", "text": "x", "media": 5}, "prediction 'a': media must be an object, found 5"),
    ],
)
def test_a_prediction_that_is_none_names_what_was_found(row, message):
    with pytest.raises(InputError, match=message):
        prediction_from_row(row)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.jsonl"
    write_jsonl(path, [Sample(id="old")])

    def items():
        yield Sample(id="new")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_jsonl(path, items())
    assert "old" in path.read_text()


@pytest.mark.parametrize("folder", [".", "/", "/data", "sets/mine"])
@pytest.mark.parametrize(
    "entry", ["a.mp4", "x/a.mp4", "./a.mp4", "x//a.mp4", "../a.mp4", "/b/a.mp4", "x/./a.mp4", ".a", "x/"]
)
def test_media_paths_are_joined_as_by_pathlib(folder, entry):
    found = sample_from_row({"id": "a", "video": entry}, Path(folder)).video
    assert found == str(Path(folder) / entry)
