"""The report: counts worked by hand, on screen, as JSON and as plots."""

from __future__ import annotations

import json

from affectgpt.annotate import report
from affectgpt.annotate.record import Clue
from affectgpt.cli import run as run_command
from tests.annotate.toy import DROPPED, record, write_records


def test_the_report_has_the_right_counts_fits_the_screen_and_is_plotted(tmp_path, capsys, monkeypatch):
    ask = {"check": "near_duplicate", "verdict": "ask", "reason": ""}
    blind = {"check": "blind_verifier", "verdict": "ask", "reason": "", "labels": "sad", "score": "0.200"}
    items = [
        record("a", valence=-2, checks=(ask, blind)),
        record("b", labels=("Confused",), clues=(Clue("visual", "One two three four.", source="x"),)),
        record("c", checks=DROPPED),
        *(record(f"l{n}", labels=(f"a rather long label {n}",)) for n in range(20)),
    ]
    folder = write_records(tmp_path / "r", items)
    code = run_command("annotate", ["report", str(folder)])
    assert code == 0
    said = capsys.readouterr().out
    assert "23 records: keep 21, ask 1, drop 1" in said
    assert "ask          1    4.3 %  near_duplicate" in said
    assert "blind verifier: 1 records, mean F on the wheels 0.200; 1 below 0.34" in said
    assert all(len(line) <= 100 for line in said.splitlines() if str(tmp_path) not in line)
    row = json.loads((folder / "report" / "report.json").read_text())
    assert row["labels"]["confused"] == 2
    assert row["labels_per_clip"] == {"1": 21, "2": 1}
    assert row["records_with_clue"] == {"visual": 22, "acoustic": 21}
    assert row["median_clue_words"] == {"visual": 5, "acoustic": 5}
    assert row["valence"] == {"-2": 1}
    for name in ("checks", "labels", "sectors", "labels_per_clip", "valence", "clue_lengths"):
        assert (folder / "report" / f"{name}.png").stat().st_size > 1000
        assert "<svg" in (folder / "report" / f"{name}.svg").read_text()


def test_own_labels_are_compared_with_the_annotated_ones(tmp_path, capsys):
    own = [("happy",), ("furious",), ("zxcv",)]
    items = [
        record(f"c{n}", labels=("happy",), given={"en": {"labels": list(labels)}, "zh": {"labels": ["难过"]}})
        for n, labels in enumerate(own)
    ]
    folder = write_records(tmp_path / "r", [*items, record("d", labels=("happy",))])
    assert run_command("annotate", ["report", str(folder), "pictures=false"]) == 0
    said = capsys.readouterr().out
    assert "labels of your manifest, kept: 3 records, mean F of the annotated ones on the wheels 0.500 (2)" in said
    row = json.loads((folder / "report" / "report.json").read_text())
    assert row["own_labels"] == {"records": 3, "scored": 2, "mean": 0.5}


def test_a_folder_without_records_is_an_error_that_names_failed_jsonl(tmp_path, capsys, monkeypatch):
    folder = write_records(tmp_path / "r", [])
    code = run_command("annotate", ["report", str(folder)])
    assert code == 2
    assert "no records; failed.jsonl lists the reasons" in capsys.readouterr().err


def test_the_lower_median_is_a_value_that_occurs():
    assert report.median_of(report.Counter({1: 1, 4: 1})) == 1
