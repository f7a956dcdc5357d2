"""Votes: the outcome of a round, and what two rounds confirm."""

from __future__ import annotations

from dataclasses import replace

from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.review import votes
from affectgpt.annotate.review.labelstudio import clue_to_text
from affectgpt.schema import read_samples
from tests.annotate.conftest import annotate, rows_of
from tests.annotate.review.rounds import EXPORTS, RECORDS, both_rounds, clue, review_records, run
from tests.annotate.toy import record, write_records

DESCRIPTION = {"en": "She waves and is confused and puzzled."}


def test_real_exports_become_a_manifest_confirmed_in_both_rounds(tmp_path, capsys):
    fine = both_rounds(tmp_path)
    one, two = review_records(fine)
    # bob corrected the break and removed the wave, ann replaced the wave; round 2 changed nothing.
    assert [clue_to_text(item) for item in one.clues] == [
        "[0.5-1.25 s] The eyes are wide open.",
        "The person looks around.",
        "The voice breaks off once.",
    ]
    assert [item.source for item in one.clues] == ["toy", "human round 1", "human round 1"]
    # Round 1 left confused, anxious, puzzled; round 2 ticked each once and added shy, which is not confirmed.
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


def test_a_description_that_was_written_for_other_labels_or_clues_is_marked(tmp_path, capsys):
    source, fine = (
        write_records(tmp_path / "coarse", [replace(one, description=DESCRIPTION) for one in RECORDS]),
        tmp_path / "fine",
    )
    for number, people in ((1, "ann,bob"), (2, "cleo,dan")):
        run("review", source, f"to={fine}", f"round={number}", f"annotators={people}")
        run("import", EXPORTS[number - 1], f"to={fine}")
    one, two = review_records(fine)
    (mark,) = [row for row in one.checks if row["check"] == votes.STALE_DESCRIPTION]
    assert mark["verdict"] == "ask"
    assert mark["reason"] == "labels added: anxious; clues changed"
    assert not [row for row in two.checks if row["check"] == votes.STALE_DESCRIPTION]  # the review changed nothing
    told = " ".join(capsys.readouterr().out.split())
    assert "descriptions of 1 clips were written for other clues or labels" in told
    assert "annotator=..." in told  # the local one does not read clues


def test_after_one_round_nothing_is_confirmed(tmp_path, capsys):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run("review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    assert run("import", EXPORTS[0], f"to={fine}") == 0
    assert "2  round 2 is not set up" in capsys.readouterr().out
    assert not (fine / "manifest.jsonl").exists()


def test_the_majority_version_of_a_clue_counts_and_a_correction_wins_a_tie():
    given = ["The man smiles at her.", "A dog barks."]
    edited = "The man smiles faintly at her."
    assert votes.merge_clue_texts(given, [[given[0]], [edited]]) == [edited]
    assert votes.merge_clue_texts(given, [[given[0]], [given[0]], [edited]]) == [given[0]]
    assert votes.merge_clue_texts(given, [given, []]) == given  # one annotator who keeps it is enough
    added = votes.merge_clue_texts(given, [[*given, "He nods twice."], [*given, "He nods twice!"]])
    assert added == [*given, "He nods twice."]


def test_the_pipeline_emer_checked_uses_the_reviewed_clues(clips, tmp_path):
    human = {"check": "human_clues_round_2", "verdict": "keep", "reason": "4 of 4"}
    labels = {**human, "check": "human_labels_round_2"}
    folder = write_records(
        tmp_path / "fine", [record("clip00000", clues=(clue("visual", "A hand waves."),), checks=(human, labels))]
    )
    out = tmp_path / "out"
    assert annotate(clips, out, "pipeline=emer_checked", f"checked='{folder / 'records.jsonl'}'") == 3
    (made,) = records_in(out)
    assert [item.text for item in made.clues] == ["A hand waves."]
    assert human in made.checks
    assert made.labels
    assert labels not in made.checks  # nobody has reviewed these
    assert {row["reason"] for row in rows_of(out / "failed.jsonl")} == {"not among the checked records"}
