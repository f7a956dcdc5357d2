"""Answers: real exports of Label Studio, each answer imported once, from the right people."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from affectgpt.annotate.review import answers
from affectgpt.annotate.review.labelstudio import ReviewError
from tests.annotate.conftest import rows_of
from tests.annotate.review.rounds import EXPORTS, RECORDS, both_rounds, run
from tests.annotate.toy import write_records


def test_changes_are_recorded_by_annotator_and_a_second_import_changes_nothing(tmp_path, capsys):
    fine = both_rounds(tmp_path)
    changes = rows_of(fine / "changes.jsonl")
    bob = [row for row in changes if row["annotator"] == "bob" and row["screen"] == "clues" and row["change"] != "kept"]
    assert [(row["change"], row["before"], row["after"]) for row in bob] == [
        ("removed", "The person waves at somebody.", ""),
        ("edited", "The voice breaks off twice.", "The voice breaks off once."),
    ]
    before = {path.name: path.read_bytes() for path in fine.glob("*.jsonl")}
    capsys.readouterr()
    assert run("import", *EXPORTS, f"to={fine}") == 0
    assert {path.name: path.read_bytes() for path in fine.glob("*.jsonl")} == before
    assert "16  known already" in capsys.readouterr().out
    assert not any("example.com" in text.decode() for text in before.values())


def test_one_person_cannot_be_two_annotators(tmp_path):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run("review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    tasks = json.loads(EXPORTS[0].read_text())
    for task in tasks:
        for answer in task["annotations"]:
            answer["completed_by"] = {"id": 7, "email": "somebody@example.com"}
    (tmp_path / "same.json").write_text(json.dumps(tasks))
    with pytest.raises(ReviewError, match="person 7 answered as 'ann' and as 'bob'"):
        answers.import_exports([tmp_path / "same.json"], fine)
    assert not (fine / "answers.jsonl").read_text()  # a file with an error adds nothing


def test_an_answer_to_a_task_that_was_not_assigned_is_an_error(tmp_path):
    source, fine = write_records(tmp_path / "coarse", RECORDS[:1]), tmp_path / "fine"
    run("review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    with pytest.raises(ReviewError, match="clip 'clip2', screen 'clues' was not given to 'ann'"):
        answers.import_exports(EXPORTS[:1], fine)


def test_skipped_tasks_are_counted_and_the_newest_answer_counts(tmp_path):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run("review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    tasks = [task for task in json.loads(EXPORTS[0].read_text()) if task["data"]["about"]["screen"] == "labels"][:3]
    tasks[0]["annotations"].append({**tasks[0]["annotations"][0], "updated_at": "2099", "result": []})
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"] = []
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = answers.import_exports([tmp_path / "export.json"], fine)
    assert found == Counter(
        {"older answers to the same task": 1, "skipped by the annotator": 1, "not answered": 1, "new": 1}
    )
    assert rows_of(fine / "answers.jsonl")[0]["labels"] == []


def test_an_older_export_never_takes_the_place_of_a_newer_answer(tmp_path):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run("review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    task = next(task for task in json.loads(EXPORTS[0].read_text()) if task["data"]["about"]["screen"] == "labels")
    (answer,) = task["annotations"]
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, word, day in zip(paths, ("sad", "happy"), ("2026-01-01", "2026-02-01"), strict=True):
        choice = {"from_name": "emotions", "type": "choices", "value": {"choices": [word]}}
        path.write_text(json.dumps([{**task, "annotations": [{**answer, "updated_at": day, "result": [choice]}]}]))
    found = [answers.import_exports([path], fine) for path in (*paths, paths[0])]
    assert found == [{"new": 1}, {"new": 1}, {"older answers to the same task": 1}]
    assert rows_of(fine / "answers.jsonl")[-1]["labels"] == ["happy"]


def test_answers_of_a_deleted_user_and_with_relations_are_imported_and_counted(tmp_path):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run("review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    tasks = json.loads(EXPORTS[0].read_text())
    (tmp_path / "before.json").write_text(json.dumps(tasks[:1]))
    answers.import_exports([tmp_path / "before.json"], fine)
    (known,) = rows_of(fine / "answers.jsonl")
    for task in tasks[:2]:
        task["annotations"][0]["completed_by"] = None
        relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
        task["annotations"][0]["result"].append(relation)
    (tmp_path / "after.json").write_text(json.dumps(tasks[:2]))
    found = answers.import_exports([tmp_path / "after.json"], fine)
    assert found == Counter(
        {
            "known already": 1,  # with the person that the first export named
            "new": 1,
            "answers of users who have been deleted in Label Studio": 2,
            "relations drawn between fields (left out)": 2,
        }
    )
    assert [row["person"] for row in rows_of(fine / "answers.jsonl")] == [known["person"], ""]
