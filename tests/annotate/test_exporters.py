"""Exports, read back by the readers of the published formats."""

from __future__ import annotations

import json

import pytest

from affectgpt.annotate.exporters import LOSES, records_in, write_export, write_manifest
from affectgpt.annotate.review.labelstudio import clue_from_text
from affectgpt.data.formats import read_format
from affectgpt.demo.performance import Identity, Performance, Voice
from affectgpt.demo.voice import render_voice
from affectgpt.runtime import UserError
from affectgpt.schema import read_samples
from tests.annotate.conftest import LINE, write_sound
from tests.annotate.toy import DROPPED, HEARD, SEEN, VOICE, au, record, write_records


@pytest.fixture
def records(tmp_path):
    """Two videos (with arbitrary bytes), an audio file, and a dropped record."""
    (tmp_path / "media").mkdir()
    for name in ("a b.mp4", "b.mp4"):
        (tmp_path / "media" / name).write_bytes(b"video")
    write_sound(tmp_path / "media" / "c.wav", render_voice(Performance(0.3, Identity(1), voice=Voice(), text=LINE)))
    where = tmp_path / "media"
    return [
        record(
            "a",
            media={"video": str(where / "a b.mp4")},
            ranking=("happy",),
            valence=2.5,
            evidence=(VOICE, *au(6, 12)),
            description={"en": 'Glad, "very" glad,\nand so on.', "zh": "很高兴。"},
        ),
        record("b", media={"video": str(where / "b.mp4")}, transcript=None),
        record("c", media={"audio": str(where / "c.wav")}, clues=(HEARD,)),
        record("d", media={"video": str(where / "b.mp4")}, checks=DROPPED),
    ]


def test_a_manifest_reads_back_with_all_its_fields(records, tmp_path):
    found = write_export(records, "manifest", tmp_path / "out")
    assert found == {"written": 3, "left out: dropped by a check": 1}
    samples, bad = read_samples(tmp_path / "out" / "manifest.jsonl")
    assert not bad
    first = samples[0]
    assert (first.labels, first.label, first.valence) == (("confused", "puzzled"), "happy", 2.5)
    assert first.in_language("zh").description == "很高兴。"


def test_what_the_manifest_already_said_is_kept_unless_people_reviewed_the_record(tmp_path):
    given = {
        "en": {"labels": ["own"], "label": "calm", "description": "Their text."},
        "zh": {"labels": ["自己"]},
        "valence": -1.0,
    }
    reviewed = tuple({"check": f"human_labels_round_{n}", "verdict": "keep", "reason": ""} for n in (1, 2))
    records = [
        record("a", given=given, ranking=("happy",), valence=2.5),
        record("b", given={"en": {"labels": ["own"]}}),
        record("c", given=given, checks=reviewed),
        record("d"),
    ]
    assert write_manifest(tmp_path / "m.jsonl", records) == 4
    first, second, third, last = read_samples(tmp_path / "m.jsonl")[0]
    assert (first.labels, first.label, first.valence) == (("own",), "calm", -1.0)
    assert (first.description, first.clauses) == ("Their text.", None)
    assert first.in_language("zh").labels == ("自己",)
    assert (second.labels, second.description) == (("own",), last.description)
    assert third.labels == last.labels == ("confused", "puzzled")


def test_merr_reads_back_through_its_reader(records, tmp_path):
    assert write_export(records, "merr", tmp_path / "out")["written"] == 3
    samples, _ = read_format("merr", tmp_path / "out", {})
    by_id = {sample.id: sample for sample in samples}
    assert set(by_id) == {"a", "b", "c"}
    assert by_id["a"].description == records[0].description["en"]
    assert (by_id["a"].label, by_id["a"].valence, by_id["a"].subtitle) == ("happy", 2.5, records[0].transcript)
    assert (by_id["b"].label, by_id["b"].subtitle) == (None, None)
    assert by_id["c"].audio.endswith("audio/c.wav")
    entry = json.loads((tmp_path / "out" / "MERR_fine_grained.json").read_text())["a"]
    assert entry["AU_list"] == entry["peak_AU_list"] == ["AU06", "AU12"]
    assert entry["visual_prior_list"] == ["cheeks raised", "lip corners pulled up"]
    assert (tmp_path / "out" / "video" / "a.mp4").read_bytes() == b"video"


@pytest.mark.parametrize(("name", "emotion", "what"), [("my clip", "happy", "id"), ("e", "very\u3000sad", "emotion")])
def test_white_space_costs_a_row_of_the_index_and_nothing_else(records, tmp_path, name, emotion, what):
    added = record(name, media=records[0].media, ranking=(emotion,))
    found = write_export([*records, added], "merr", tmp_path / "out")
    assert found[f"without a row in the index: the {what} has a space"] == 1
    samples, _ = read_format("merr", tmp_path / "out", {})
    assert {sample.id: sample.label for sample in samples} == {"a": "happy", "b": None, "c": None, name: emotion}


def test_sharegpt_reads_back_through_its_reader_as_descriptions_or_labels(records, tmp_path):
    assert write_export(records, "sharegpt", tmp_path / "out")["written"] == 3
    samples, _ = read_format("llava", tmp_path / "out", {"file": "sharegpt.json"})
    assert [(sample.id, sample.description) for sample in samples] == [
        (item.id, item.description["en"]) for item in records[:3]
    ]
    assert samples[2].audio.endswith("audio/c.wav")
    turns = json.loads((tmp_path / "out" / "sharegpt.json").read_text())[0]["conversations"]
    assert turns[3]["value"] == "confused, puzzled"


def test_label_studio_tasks_hold_clues_and_labels(records, tmp_path):
    write_export(records, "labelstudio", tmp_path / "out")
    (task, _) = json.loads((tmp_path / "out" / "clues.video.json").read_text())
    back = [
        clue_from_text(result["from_name"], text, "toy")
        for result in task["predictions"][0]["result"]
        for text in result["value"]["text"]
    ]
    assert back == [SEEN, HEARD]
    assert task["data"]["clip"].endswith("media/a%20b.mp4")
    (task,) = json.loads((tmp_path / "out" / "labels.audio.json").read_text())
    assert [row["value"] for row in task["data"]["candidates"]] == ["confused", "puzzled"]


def test_a_file_of_records_gives_the_newest_of_each_clip_as_its_folder_does(tmp_path):
    written = [record(name, labels=(label,)) for name, label in (("a", "old"), ("b", "calm"), ("a", "new"))]
    folder = write_records(tmp_path / "out", written)
    of_folder, of_file = (list(records_in(path)) for path in (folder, folder / "records.jsonl"))
    assert of_file == of_folder
    assert [(one.id, one.labels) for one in of_file] == [("b", ("calm",)), ("a", ("new",))]


def test_exports_can_be_repeated_and_an_unknown_format_is_an_error(records, tmp_path):
    for to in LOSES:
        write_export(records, to, tmp_path / to)
        write_export(records, to, tmp_path / to)
    with pytest.raises(UserError, match="to is 'coco'; expected one of"):
        write_export(records, "coco", tmp_path)
    with pytest.raises(UserError, match="give a folder that"):
        list(records_in(tmp_path))
