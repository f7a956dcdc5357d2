"""Submissions have every candidate once and nothing that was not predicted."""

import numpy as np
import pytest

from affectgpt.cli import run
from affectgpt.metrics import read_predictions
from affectgpt.runtime import UserError
from affectgpt.submit import build_submission


@pytest.fixture
def predictions(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("name,openset\nb,\"['sad', 'tired']\"\na,[happy]\nx,[angry]\n", encoding="utf-8")
    (tmp_path / "candidates.csv").write_text("name\na\nb\n", encoding="utf-8")
    return path


def test_npz_has_the_candidates_in_their_order_as_strings(predictions, tmp_path, capsys):
    out = tmp_path / "s.npz"
    assert run("submit", [str(predictions), str(out), f"candidates={tmp_path / 'candidates.csv'}"]) == 0
    assert "2 clips, 3 labels, 1 predictions left out" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as data:
        assert data["filenames"].tolist() == ["a", "b"]
        assert data["fileitems"].tolist() == ["[happy]", "[sad, tired]"]


@pytest.mark.parametrize("name", ["s.npz", "s.csv"])
def test_a_submission_reads_back_as_predictions(predictions, tmp_path, name):
    assert run("submit", [str(predictions), str(tmp_path / name)]) == 0
    again = {row.id: row.text for row in read_predictions(tmp_path / name)}
    assert again == {"a": "[happy]", "b": "[sad, tired]", "x": "[angry]"}


def test_missing_candidates_and_clips_without_labels_are_errors():
    with pytest.raises(UserError, match="2 of 3 candidates have no prediction: b, c"):
        build_submission({"a": ["happy"]}, ["a", "b", "c"])
    with pytest.raises(UserError, match=r"1 of 1 clips have no label: a; .*empty=neutral"):
        build_submission({"a": ()})
    assert build_submission({"a": ()}, empty="neutral") == {"a": ("neutral",)}


def test_the_command_reports_wrong_arguments(predictions, tmp_path, capsys):
    assert run("submit", ["only-one"]) == 2
    assert run("submit", [str(predictions), str(tmp_path / "s.txt")]) == 2
    assert "expected a .npz or .csv file to write, found '.txt'" in capsys.readouterr().err
