"""Human rounds: who checks what, what they changed, and what two rounds leave.

`data/label_studio_round1.json` and `round2.json` are what a Label Studio 1.23.2 exported after its own import of the
tasks that `set_up_round` wrote (four users, eight projects, made-up clips), word for word.
"""

from __future__ import annotations

import doctest
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.record import Clue
from affectgpt.annotate.review import answers, labelstudio, setup, votes
from affectgpt.annotate.review.labelstudio import ReviewError, clue_from_text, clue_to_text, read_export, screen_config
from affectgpt.annotate.review.tasks import set_up_round
from affectgpt.cli import run as run_command
from affectgpt.runtime import UserError
from affectgpt.schema import read_samples
from tests.annotate.conftest import annotate, rows_of
from tests.annotate.toy import record, write_records

EXPORTS = [Path(__file__).parent / "data" / f"label_studio_round{number}.json" for number in (1, 2)]
PEOPLE = {1: ("ann", "bob"), 2: ("cleo", "dan")}


def clue(modality: str, text: str, *span: float) -> Clue:
    return Clue(modality, text, *(span or (None, None)), source="toy")


RECORDS = [
    record(
        "clip1",
        clues=(
            clue("visual", "The eyes are wide open.", 0.5, 1.25),
            clue("visual", "The person waves at somebody."),
            clue("acoustic", "The voice breaks off twice."),
        ),
        labels=("confused", "puzzled"),
    ),
    record(
        "clip2",
        clues=(
            clue("visual", "The mouth corners go up."),
            clue("acoustic", "Quiet, even speech."),
            clue("lexical", "The words are a greeting."),
        ),
        labels=("happy",),
    ),
]


def run(monkeypatch, *arguments: object) -> int:
    code = run_command("annotate", [*map(str, arguments)])
    return code


def both_rounds(tmp_path, monkeypatch) -> Path:
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    for number in (1, 2):
        names = ",".join(PEOPLE[number])
        assert run(monkeypatch, "review", source, f"to={fine}", f"round={number}", f"annotators={names}") == 0
        assert run(monkeypatch, "import", EXPORTS[number - 1], f"to={fine}") == 0
    return fine


def test_what_a_real_label_studio_exported_becomes_a_manifest_confirmed_in_both_rounds(tmp_path, capsys, monkeypatch):
    fine = both_rounds(tmp_path, monkeypatch)
    one, two = review_records(fine)
    # bob corrected the break and removed the wave, ann put something else in its place; round 2 left it so.
    assert [clue_to_text(item) for item in one.clues] == [
        "[0.5-1.25 s] The eyes are wide open.",
        "The person looks around.",
        "The voice breaks off once.",
    ]
    assert [item.source for item in one.clues] == ["toy", "human round 1", "human round 1"]
    # Round 1 left confused, anxious, puzzled; round 2 ticked each of them once and added shy, which round 1 never saw.
    assert set(one.labels) == {"confused", "anxious", "puzzled"}
    assert two.labels == ("happy",)
    assert two.clues == RECORDS[1].clues
    assert votes.is_reviewed(one)
    samples, bad = read_samples(fine / "manifest.jsonl")
    assert not bad
    assert samples[1].labels == ("happy",)
    said = " ".join(capsys.readouterr().out.split())
    assert "round 1, labels: 4 of 4 answers" in said
    assert "alpha (Jaccard) 0.571" in said
    assert "2 clips confirmed in both rounds" in said


def review_records(folder: Path):
    return sorted(records_in(folder), key=lambda item: item.id)


def test_who_changed_what_is_written_and_a_second_import_changes_nothing(tmp_path, capsys, monkeypatch):
    fine = both_rounds(tmp_path, monkeypatch)
    changes = rows_of(fine / "changes.jsonl")
    bob = [row for row in changes if row["annotator"] == "bob" and row["screen"] == "clues" and row["change"] != "kept"]
    assert [(row["change"], row["before"], row["after"]) for row in bob] == [
        ("removed", "The person waves at somebody.", ""),
        ("edited", "The voice breaks off twice.", "The voice breaks off once."),
    ]
    before = {path.name: path.read_bytes() for path in fine.glob("*.jsonl")}
    capsys.readouterr()
    assert run(monkeypatch, "import", *EXPORTS, f"to={fine}") == 0
    assert {path.name: path.read_bytes() for path in fine.glob("*.jsonl")} == before
    assert "16  known already" in capsys.readouterr().out
    assert not any("example.com" in text.decode() for text in before.values())


def test_the_second_round_is_shown_what_the_first_one_left(tmp_path, monkeypatch):
    fine = both_rounds(tmp_path, monkeypatch)
    (task, _) = json.loads((fine / "round2" / "clues.video.cleo.json").read_text())
    assert task["data"]["given"]["visual"] == ["[0.5-1.25 s] The eyes are wide open.", "The person looks around."]
    assert task["predictions"][0]["result"][1]["value"]["text"] == ["The voice breaks off once."]
    (task, _) = json.loads((fine / "round2" / "labels.video.dan.json").read_text())
    assert {row["value"] for row in task["data"]["candidates"]} == {"confused", "anxious", "puzzled"}
    assert "predictions" not in task  # nothing is ticked beforehand


def test_after_one_round_nothing_is_finished(tmp_path, capsys, monkeypatch):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run(monkeypatch, "review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    assert run(monkeypatch, "import", EXPORTS[0], f"to={fine}") == 0
    assert "2  round 2 is not set up" in capsys.readouterr().out
    assert not (fine / "manifest.jsonl").exists()


def test_without_a_folder_the_review_lies_in_emer_fine(tmp_path, monkeypatch):
    source = write_records(tmp_path / "coarse", RECORDS)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "review", source, "round=1", "annotators=ann,bob") == 0
    assert run(monkeypatch, "import", EXPORTS[0]) == 0
    assert (tmp_path / "emer_fine" / "changes.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["round=2", "annotators=bob,eve"], r"\['bob'\] reviewed in round 1 already"),
        (["round=1", "annotators=x,y"], "round 1 is set up already"),
        (["round=3", "annotators=x,y"], "round is 3; expected one of"),
        (["round=2", "annotators=x,x"], "expected different names"),
        (["round=2", "annotators=x,y", "per_clip=3"], "per_clip is 3; expected 1 to 2"),
        (["round=2", "annotators=../x"], "slash"),
    ],
)
def test_rounds_have_their_own_people(tmp_path, capsys, monkeypatch, arguments, said):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run(monkeypatch, "review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    run(monkeypatch, "import", EXPORTS[0], f"to={fine}")
    capsys.readouterr()
    assert run(monkeypatch, "review", source, f"to={fine}", *arguments) == 2
    assert re.search(said, capsys.readouterr().err)


def test_one_person_cannot_be_two_annotators(tmp_path, monkeypatch):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run(monkeypatch, "review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    tasks = json.loads(EXPORTS[0].read_text())
    for task in tasks:
        for answer in task["annotations"]:
            answer["completed_by"] = {"id": 7, "email": "somebody@example.com"}
    (tmp_path / "same.json").write_text(json.dumps(tasks))
    with pytest.raises(ReviewError, match="person 7 answered as 'ann' and as 'bob'"):
        answers.import_exports([tmp_path / "same.json"], fine)
    assert not (fine / "answers.jsonl").read_text()  # a file with a mistake leaves nothing behind


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "expected a list of tasks, found dict"),
        ("[", "not JSON"),
        ('[{"id": 1, "clip": "x", "emotions": "sad"}]', "not as JSON-MIN"),
        ('[{"annotations": [], "data": {"clip": "x"}}]', "was it made by `annotate review`"),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path, content, said):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(ReviewError, match=said):
        list(read_export(tmp_path / "export.json"))


def test_an_answer_to_a_task_that_nobody_was_given_is_refused(tmp_path, monkeypatch):
    source, fine = write_records(tmp_path / "coarse", RECORDS[:1]), tmp_path / "fine"
    run(monkeypatch, "review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    with pytest.raises(ReviewError, match="clip 'clip2', screen 'clues' was not given to 'ann'"):
        answers.import_exports(EXPORTS[:1], fine)


def test_skipped_tasks_are_counted_and_the_newest_answer_counts(tmp_path, monkeypatch):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run(monkeypatch, "review", source, f"to={fine}", "round=1", "annotators=ann,bob")
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


def test_the_load_is_shared_within_one_clip_and_a_seed_draws_it():
    ids = [f"c{number}" for number in range(10)]
    drawn = setup.assign(ids, ["a", "b", "c", "d"], 3, seed=1)
    load = Counter(name for people in drawn.values() for name in people)
    assert max(load.values()) - min(load.values()) <= 1
    assert all(len(set(people)) == 3 for people in drawn.values())
    assert drawn == setup.assign(ids, ["a", "b", "c", "d"], 3, seed=1)
    assert drawn != setup.assign(ids, ["a", "b", "c", "d"], 3, seed=2)


def test_of_a_clue_the_version_of_most_counts_and_a_tie_goes_to_the_correction():
    given = ["The man smiles at her.", "A dog barks."]
    edited = "The man smiles faintly at her."
    assert votes.merge_clue_texts(given, [[given[0]], [edited]]) == [edited]
    assert votes.merge_clue_texts(given, [[given[0]], [given[0]], [edited]]) == [given[0]]
    assert votes.merge_clue_texts(given, [given, []]) == given  # one who keeps it is enough
    added = votes.merge_clue_texts(given, [[*given, "He nods twice."], [*given, "He nods twice!"]])
    assert added == [*given, "He nods twice."]


def test_both_screens_are_xml_whose_names_answers_and_tasks_use():
    for screen in labelstudio.SCREENS:
        for medium, lang in (("video", "en"), ("audio", "zh")):
            root = ET.fromstring(screen_config(screen, medium, lang))
            names = {item.get("name") for item in root.iter() if item.get("name")}
            assert root.find(medium.capitalize()).get("value") == "$clip"
            assert names == {
                "clip",
                "said",
                *(labelstudio.CLUE_MODALITIES if screen == "clues" else ("emotions", "other")),
            }
            values = {value[1:] for item in root.iter() if (value := item.get("value", "")).startswith("$")}
            task = labelstudio.make_task(screen, RECORDS[0], "/x", RECORDS[0].clues, RECORDS[0].labels)
            assert values <= set(task["data"])


@pytest.mark.parametrize("span", [(), (0.0, 1.25), (3.0, 3.0)])
def test_a_clue_survives_its_text_field(span):
    item = clue("visual", "Looks up: [again].", *span)
    assert clue_from_text("visual", clue_to_text(item), "toy") == item
    assert clue_from_text("visual", "[2-1 s] odd", "toy").text == "[2-1 s] odd"


def test_clips_outside_the_served_folder_are_named(tmp_path):
    source = write_records(tmp_path / "coarse", RECORDS)
    with pytest.raises(ReviewError, match=r"clip1\.mp4: is outside media_root="):
        set_up_round(RECORDS, source, tmp_path / "f", number=1, annotators=["a"], media_root=tmp_path)


def test_only_clips_that_a_check_wants_looked_at_can_be_chosen(tmp_path):
    ask = {"check": "refusal", "verdict": "ask", "reason": ""}
    drop = {"check": "refusal", "verdict": "drop", "reason": ""}
    records = [
        record("a"),
        record("b", checks=(ask,)),
        record("c", checks=(drop,)),
        record("d", checks=(ask,), media={}),
    ]
    _, left = set_up_round(records, tmp_path, tmp_path / "f", number=1, annotators=["x"], which="ask")
    assert left == {"no check asks for a human": 1, "dropped by a check": 1, "nothing to play": 1}
    with pytest.raises(UserError, match="no clip to review"):
        set_up_round(records[:1], tmp_path, tmp_path / "g", number=1, annotators=["x"], which="ask")


def test_descriptions_are_made_from_checked_clues(clips, tmp_path):
    human = {"check": "human_clues_round_2", "verdict": "keep", "reason": "4 of 4"}
    folder = write_records(
        tmp_path / "fine", [record("clip00000", clues=(clue("visual", "A hand waves."),), checks=(human,))]
    )
    out = tmp_path / "out"
    assert annotate(clips, out, "pipeline=emer_checked", f"checked='{folder / 'records.jsonl'}'") == 3
    (made,) = records_in(out)
    assert [item.text for item in made.clues] == ["A hand waves."]
    assert human in made.checks
    assert made.labels
    assert {row["reason"] for row in rows_of(out / "failed.jsonl")} == {"not among the checked records"}


def test_examples_in_docstrings_hold():
    assert sum(doctest.testmod(module).failed for module in (setup, votes, labelstudio)) == 0
