"""Merging the records of several annotators by union and majority."""

from __future__ import annotations

import pytest

from affectgpt.annotate.merge import merge_labels, merged_record
from affectgpt.annotate.record import Clue, RecordError
from affectgpt.cli import run as run_command
from tests.annotate.conftest import rows_of
from tests.annotate.toy import HEARD, SEEN, record, write_records


def test_a_majority_is_more_than_half_and_a_union_is_all():
    sets = [["sad", "tired"], ["Sad"], ["angry"], ["tired", "sad"]]
    assert merge_labels(sets, "union") == ["sad", "tired", "angry"]
    assert merge_labels(sets, "majority") == ["sad"]


def test_a_merged_record_has_each_clue_once_and_the_nearest_description():
    other = record(labels=("confused",), clues=(SEEN, Clue("visual", "A hand is raised.", source="b")),
                   description={"en": "The nearest."}, valence=-3)  # fmt: skip
    merged = merged_record({"a": record(valence=-1), "b": other, "c": record(labels=("confused",))}, "majority")
    assert merged.labels == ("confused",)
    assert [clue.text for clue in merged.clues] == [SEEN.text, HEARD.text, "A hand is raised."]
    assert merged.description == {"en": "The nearest."}
    assert merged.valence == -2
    assert [step.step for step in merged.provenance] == ["a/measure", "b/measure", "c/measure"]
    with pytest.raises(RecordError, match="different files"):
        merged_record({"a": record(), "b": record(media_sha256="1" * 64)}, "union")


def test_the_command_merges_folders_and_reports_agreement_and_missing_records(tmp_path, capsys, monkeypatch):
    a = write_records(tmp_path / "a", [record("x"), record("y"), record("z")])
    b = write_records(tmp_path / "b", [record("x", labels=("confused",)), record("y", labels=("happy",))])
    code = run_command("annotate", ["merge", str(a), str(b), f"out={tmp_path / 'm'}", "how=union"])
    assert code == 0
    said = capsys.readouterr().out
    assert "2 records of 2 annotators merged by union" in said
    assert "1  no record in b" in said
    assert "alpha (Jaccard)" in said
    assert rows_of(tmp_path / "m" / "manifest.jsonl")[1]["labels"] == ["confused", "puzzled", "happy"]
