"""Label Studio's formats: screens, text fields, exports."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from affectgpt.annotate.review import labelstudio
from affectgpt.annotate.review.labelstudio import ReviewError, clue_from_text, clue_to_text, read_export, screen_config
from tests.annotate.review.rounds import RECORDS, clue


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "expected a list of tasks, found dict"),
        ("[", "not JSON"),
        ("[" * 100_000, "nested more than 64 levels"),
        ('[{"id": 1, "clip": "x", "emotions": "sad"}]', "not as JSON-MIN"),
        ('[{"annotations": [], "data": {"clip": "x"}}]', "was it made by `annotate review`"),
    ],
)
def test_other_files_are_errors_that_say_what_to_export(tmp_path, content, said):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(ReviewError, match=said):
        list(read_export(tmp_path / "export.json"))


def test_the_clip_stays_in_view_only_within_its_column():
    # Seen in a browser: a column that itself sticks lies over the fields where these are below it.
    root = ET.fromstring(screen_config("clues", "video", "en"))
    clip_column, fields = root.findall("View/View")
    assert "sticky" not in clip_column.get("style") + fields.get("style")
    assert "sticky" in clip_column.find("View[Video]").get("style")
    assert "align-items" not in root.find("View").get("style")  # the column is as high as the fields


def test_the_names_in_both_screens_are_those_of_answers_and_tasks():
    for screen in labelstudio.SCREENS:
        for medium, lang in (("video", "en"), ("audio", "zh")):
            root = ET.fromstring(screen_config(screen, medium, lang))
            names = {item.get("name") for item in root.iter() if item.get("name")}
            assert root.find(f".//{medium.capitalize()}").get("value") == "$clip"
            assert names == {
                "clip",
                "said",
                *(labelstudio.CLUE_MODALITIES if screen == "clues" else ("emotions", "other")),
            }
            values = {value[1:] for item in root.iter() if (value := item.get("value", "")).startswith("$")}
            task = labelstudio.make_task(screen, RECORDS[0], "/x", RECORDS[0].clues, RECORDS[0].labels)
            assert values <= set(task["data"])


@pytest.mark.parametrize("span", [(), (0.0, 1.25), (3.0, 3.0)])
def test_a_clue_survives_the_round_trip_through_its_text_field(span):
    item = clue("visual", "Looks up: [again].", *span)
    assert clue_from_text("visual", clue_to_text(item), "toy") == item
    assert clue_from_text("visual", "[2-1 s] odd", "toy").text == "[2-1 s] odd"


def test_all_tasks_have_predictions_of_one_version_as_label_studio_prefills_no_other():
    tasks = [labelstudio.make_task("clues", one, "/x", one.clues, one.labels) for one in RECORDS]
    assert len({task["predictions"][0]["model_version"] for task in tasks}) == 1
