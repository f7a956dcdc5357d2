"""The setup of rounds: their annotators and the assignment of clips."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from affectgpt.annotate.review import setup
from tests.annotate.review.rounds import EXPORTS, RECORDS, run
from tests.annotate.toy import write_records


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["round=2", "annotators=bob,eve"], r"\['bob'\] reviewed in round 1 already"),
        (["round=1", "annotators=x,y"], "round 1 is set up already, with other settings"),
        (["round=3", "annotators=x,y"], "round is 3; expected one of"),
        (["round=2", "annotators=x,x"], "expected different names"),
        (["round=2", "annotators=x,y", "per_clip=3"], "per_clip is 3; expected 1 to 2"),
        (["round=2", "annotators=../x"], "slash"),
    ],
)
def test_wrong_settings_of_a_round_are_errors(tmp_path, capsys, arguments, said):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    run("review", source, f"to={fine}", "round=1", "annotators=ann,bob")
    run("import", EXPORTS[0], f"to={fine}")
    capsys.readouterr()
    assert run("review", source, f"to={fine}", *arguments) == 2
    assert re.search(said, capsys.readouterr().err)


def test_setting_up_the_same_round_again_changes_nothing(tmp_path):
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    assert run("review", source, f"to={fine}", "round=1", "annotators=ann,bob") == 0
    before = {path: path.read_bytes() for path in fine.rglob("*.*")}
    assert run("review", source, f"to={fine}", "round=1", "annotators=ann,bob") == 0
    assert {path: path.read_bytes() for path in fine.rglob("*.*")} == before


def test_numbers_of_clips_differ_by_at_most_one_and_depend_on_the_seed():
    ids = [f"c{number}" for number in range(10)]
    drawn = setup.assign(ids, ["a", "b", "c", "d"], 3, seed=1)
    load = Counter(name for people in drawn.values() for name in people)
    assert max(load.values()) - min(load.values()) <= 1
    assert all(len(set(people)) == 3 for people in drawn.values())
    assert drawn == setup.assign(ids, ["a", "b", "c", "d"], 3, seed=1)
    assert drawn != setup.assign(ids, ["a", "b", "c", "d"], 3, seed=2)
