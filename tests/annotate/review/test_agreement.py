"""Agreement: against published and hand-worked examples; merging by union and majority."""

from __future__ import annotations

import doctest

import pytest

from affectgpt.annotate import merge, verify
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.merge import merge_labels, merged_record
from affectgpt.annotate.record import Clue, RecordError
from affectgpt.annotate.review import agreement
from affectgpt.annotate.review.agreement import alpha, jaccard_distance, masi_distance
from affectgpt.cli import run as run_command
from tests.annotate.conftest import annotate, rows_of, served
from tests.annotate.toy import HEARD, SEEN, record, write_records
from tests.chat.chat_server import ChatServer, fill_in

# Krippendorff (2011), section on nominal data with four observers, and the three-coder example of the same text.
FOUR = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
THREE = (".....34121133.3", "1.213343.......", "..21344.21133.4")


def singletons(rows):
    return [[{value} for value in unit if value != "."] for unit in zip(*rows, strict=True)]


@pytest.mark.parametrize("distance", [jaccard_distance, masi_distance])
def test_with_one_label_each_alpha_is_the_published_nominal_one(distance):
    assert alpha(singletons(FOUR), distance) == pytest.approx(0.743, abs=5e-4)
    assert alpha(singletons(THREE), distance) == pytest.approx(0.691, abs=5e-4)


def test_alpha_on_sets_is_as_worked_by_hand():
    # Two clips, two annotators: {a,b} {a} | {b} {b}. Jaccard: observed = 2 * (1/2) / 4 = 1/4. Ordered pairs of the four
    # values: ab-a 1/2, ab-b 1/2 twice, a-b 1 twice, b-b 0; expected = 2 * (1/2 + 1 + 2) / 12 = 7/12; 1 - 3/7 = 4/7.
    units = [[{"a", "b"}, {"a"}], [{"b"}, {"b"}]]
    assert alpha(units, jaccard_distance) == pytest.approx(4 / 7)
    # MASI: 1 - 1/2 * 2/3 = 2/3 for a subset: observed = 2 * (2/3) / 4 = 1/3; expected = 2 * (2/3 + 4/3 + 2) / 12 = 2/3.
    assert alpha(units, masi_distance) == pytest.approx(1 / 2)


def test_alpha_is_one_for_equal_sets_not_defined_without_pairs_and_estimated_for_many(monkeypatch):
    assert alpha([[{"a"}, {"a"}], [{"b"}, {"b"}]]) == 1.0
    assert alpha([[{"a"}], [{"b"}]]) is None
    assert alpha([[{"a"}, {"a"}]]) is None
    units = [[{str(n)}, {str(n), "x"}] for n in range(60)]
    exact = alpha(units)
    monkeypatch.setattr(agreement, "MAX_PAIRS", 5000)
    assert alpha(units) == pytest.approx(exact, abs=0.02)


def test_an_annotator_who_goes_alone_agrees_least():
    clips = [{"a": ["Sad"], "b": ["sad "], "c": ["happy"]}, {"a": ["calm"], "b": ["calm"], "c": ["angry"]}]
    result = agreement.label_agreement(clips)
    assert result.by_annotator == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert result.overlap == pytest.approx(1 / 3)
    assert "2 clips" in result.line()


def test_a_majority_is_more_than_half_and_a_union_is_all():
    sets = [["sad", "tired"], ["Sad"], ["angry"], ["tired", "sad"]]
    assert merge_labels(sets, "union") == ["sad", "tired", "angry"]
    assert merge_labels(sets, "majority") == ["sad"]


def test_merged_records_hold_each_clue_once_and_the_nearest_description():
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


def test_the_command_merges_folders_and_tells_agreement_and_what_is_missing(tmp_path, capsys, monkeypatch):
    a = write_records(tmp_path / "a", [record("x"), record("y"), record("z")])
    b = write_records(tmp_path / "b", [record("x", labels=("confused",)), record("y", labels=("happy",))])
    code = run_command("annotate", ["merge", str(a), str(b), f"out={tmp_path / 'm'}", "how=union"])
    assert code == 0
    said = capsys.readouterr().out
    assert "2 records of 2 annotators merged by union" in said
    assert "1  no record in b" in said
    assert "alpha (Jaccard)" in said
    assert rows_of(tmp_path / "m" / "manifest.jsonl")[1]["labels"] == ["confused", "puzzled", "happy"]


def test_the_blind_verifier_sees_clues_only_and_its_agreement_stands_in_the_record(clips, tmp_path):
    with ChatServer(fill_in) as server:
        assert annotate(clips, tmp_path / "out", *served(server.url, "pipeline=emer_verified", "limit=1")) == 0
        texts = [str(request["body"]["messages"] if "body" in request else request) for request in server.requests]
    asked = [text for text in texts if "follows from these notes alone" in text]
    assert len(asked) == 1
    assert "something plain" in asked[0]
    assert "You told him" not in asked[0]
    (row,) = [row for row in next(records_in(tmp_path / "out")).checks if row["check"] == "blind_verifier"]
    assert (row["labels"], row["score"], row["verdict"]) == ("calm, tired", "1.000", "keep")


def test_labels_that_do_not_follow_are_for_a_human():
    assert verify.wheel_f(["happy"], ["sad"]) == 0.0
    assert verify.wheel_f(["happy"], []) == 0.0


def test_examples_in_docstrings_hold():
    assert sum(doctest.testmod(module).failed for module in (agreement, merge, verify)) == 0
