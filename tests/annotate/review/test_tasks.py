"""Tasks: which clips a round reviews and what it is shown."""

from __future__ import annotations

import json

import pytest

from affectgpt.annotate.review.labelstudio import ReviewError
from affectgpt.annotate.review.tasks import set_up_round
from affectgpt.runtime import UserError
from tests.annotate.review.rounds import EXPORTS, RECORDS, both_rounds, run
from tests.annotate.toy import record, write_records


def test_round_2_is_shown_what_round_1_left(tmp_path):
    fine = both_rounds(tmp_path)
    (task, _) = json.loads((fine / "round2" / "clues.video.cleo.json").read_text())
    assert task["data"]["given"]["visual"] == ["[0.5-1.25 s] The eyes are wide open.", "The person looks around."]
    assert task["predictions"][0]["result"][1]["value"]["text"] == ["The voice breaks off once."]
    (task, _) = json.loads((fine / "round2" / "labels.video.dan.json").read_text())
    assert {row["value"] for row in task["data"]["candidates"]} == {"confused", "anxious", "puzzled"}
    assert "predictions" not in task  # nothing is preselected


def test_the_default_folder_of_a_review_is_emer_fine(tmp_path, monkeypatch):
    source = write_records(tmp_path / "coarse", RECORDS)
    monkeypatch.chdir(tmp_path)
    assert run("review", source, "round=1", "annotators=ann,bob") == 0
    assert run("import", EXPORTS[0]) == 0
    assert (tmp_path / "emer_fine" / "changes.jsonl").is_file()


def test_a_clip_outside_the_served_folder_is_an_error(tmp_path):
    source = write_records(tmp_path / "coarse", RECORDS)
    with pytest.raises(ReviewError, match=r"clip1\.mp4: is outside media_root="):
        set_up_round(RECORDS, source, tmp_path / "f", number=1, annotators=["a"], media_root=tmp_path)


def test_a_round_can_be_restricted_to_clips_with_a_finding_that_asks_for_a_human(tmp_path):
    ask = {"check": "refusal", "verdict": "ask", "reason": ""}
    drop = {"check": "refusal", "verdict": "drop", "reason": ""}
    records = [
        record("a"),
        record("b", checks=(ask,)),
        record("c", checks=(drop,)),
        record("d", checks=(ask,), media={}),
    ]
    made = set_up_round(records, tmp_path, tmp_path / "f", number=1, annotators=["x"], which="ask")
    assert made.left_out == {"no check asks for a human": 1, "dropped by a check": 1, "nothing to play": 1}
    with pytest.raises(UserError, match="no clip to review"):
        set_up_round(records[:1], tmp_path, tmp_path / "g", number=1, annotators=["x"], which="ask")
