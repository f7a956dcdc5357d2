"""Submissions have every candidate once and nothing that was not predicted."""

import zipfile

import numpy as np
import pytest

from affectgpt.cli import run
from affectgpt.metrics import read_predictions
from affectgpt.runtime import UserError
from affectgpt.submit import build_submission, problems, read_candidates


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


def track(number, *files, folder, **settings):
    settings = {"candidates": folder / "candidates.csv"} | settings
    return run("submit", [f"track={number}", *map(str, files), *(f"{key}={value}" for key, value in settings.items())])


def test_track_1_has_the_six_labels_and_counts_other_words(predictions, tmp_path, capsys):
    out = tmp_path / "t.csv"
    predictions.write_text("name,discrete\nb,surprised\na,happy\n", encoding="utf-8")
    assert track(1, predictions, out, folder=tmp_path) == 0
    assert out.read_text(encoding="utf-8") == "name,discrete\na,happy\nb,surprise\n"
    assert "2 rows, 1 other words mapped to the six labels" in capsys.readouterr().out
    predictions.write_text("name,discrete\nb,frobnicated\na,happy\n", encoding="utf-8")
    assert track(1, predictions, out, folder=tmp_path) == 2
    assert track(1, predictions, out, folder=tmp_path, empty="calm") == 2
    assert track(1, predictions, out, folder=tmp_path, empty="sad") == 0
    assert out.read_text(encoding="utf-8").endswith("b,sad\n")


def test_track_2_is_one_csv_in_a_zip_with_empty_lists(predictions, tmp_path, capsys):
    out = tmp_path / "answer.zip"
    predictions.write_text("name,openset\nb,\"['sad', 'tired']\"\na,[]\nx,[angry]\n", encoding="utf-8")
    assert track(2, predictions, out, folder=tmp_path) == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["answer.csv"]
        assert archive.read("answer.csv").decode() == 'name,openset\na,[]\nb,"[sad, tired]"\n'
    assert "1 without a label, 1 predictions left out" in capsys.readouterr().out
    assert track(2, out, folder=tmp_path) == 0
    assert track(2, predictions, tmp_path / "answer.csv", folder=tmp_path) == 2
    assert "track 2 takes a .zip file" in capsys.readouterr().err
    (tmp_path / "candidates.csv").write_text("name\na\nc\n", encoding="utf-8")
    assert track(2, predictions, out, folder=tmp_path) == 2
    assert "1 of 2 candidates have no prediction: c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "rows", "reasons"),
    [
        (
            1,
            "a,Happy\na,sad\nx,sad\n",
            ["row 1 ('a'): discrete is 'Happy'", "row 2 ('a'): the name is in row 1", "row 3"],
        ),
        (1, "a,sad,1\nb,sad\n", ["row 1: 3 cells, expected 2"]),
        (1, "a,sad\n", ["no row of candidate 'b'"]),
        (
            2,
            'a,sad\nb,"[sad, , x]"\n',
            ["row 1 ('a'): openset is 'sad'", "row 2 ('b'): openset '[sad, , x]' has an empty"],
        ),
    ],
)
def test_a_check_names_row_and_reason(tmp_path, number, rows, reasons):
    path = tmp_path / "s.csv"
    path.write_text(("name,discrete\n" if number == 1 else "name,openset\n") + rows, encoding="utf-8")
    found = problems(number, path, [("a",), ("b",)])
    assert all(reason in "\n".join(found) for reason in reasons)
    path.write_text(rows, encoding="utf-8")
    assert "header: expected name," in problems(number, path, [("a",), ("b",)])[0]


PAIRS = 'name,a1,a2\nv,"He, sad",Calm\nv,Calm,"He, sad"\nw,X,Y\n'


def test_track_3_goes_by_rows_since_names_repeat(tmp_path, capsys):
    (tmp_path / "candidates.csv").write_text(PAIRS, encoding="utf-8")
    answers, out = tmp_path / "answers.csv", tmp_path / "answer.zip"
    answers.write_text("name,text\nv,a1\nv,Better is A2.\nw,neither\n", encoding="utf-8")
    assert track(3, answers, out, folder=tmp_path) == 0
    with zipfile.ZipFile(out) as archive:
        lines = archive.read("answer.csv").decode().splitlines()
    assert lines[1:] == ['v,"He, sad",Calm,a1', 'v,Calm,"He, sad",a2', "w,X,Y,same"]
    assert "2 choices read from longer answers, 1 of them without a choice" in capsys.readouterr().out
    swapped = tmp_path / "swapped.csv"
    swapped.write_text("\n".join([lines[0].strip(), lines[2], lines[1], lines[3]]) + "\n", encoding="utf-8")
    assert track(3, swapped, folder=tmp_path) == 1
    assert "row 1 ('v'): a1 and a2 not as in row 1 of the candidates" in capsys.readouterr().out
    assert problems(3, swapped, read_candidates(3, tmp_path / "candidates.csv")[:2])[-1] == "3 rows, but 2 candidates"
    answers.write_text("name,preference\nv,a1\nw,a2\nv,a1\n", encoding="utf-8")
    assert track(3, answers, out, folder=tmp_path) == 2
    assert "row 2 is of 'w', and not row 2 of the candidates, 'v'" in capsys.readouterr().err.replace("\n", " ")


def test_a_track_needs_its_candidates_and_a_readable_file(tmp_path, capsys):
    assert run("submit", ["track=2", "answer.zip"]) == 2
    assert "needs candidates=track1_track2_candidate.csv" in capsys.readouterr().err
    (tmp_path / "candidates.csv").write_text("name\na\n", encoding="utf-8")
    assert track(4, "answer.zip", folder=tmp_path) == 2
    assert track(2, tmp_path / "none.zip", folder=tmp_path) == 2
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    assert track(2, tmp_path / "bad.zip", folder=tmp_path) == 2
    assert "not a readable zip file" in capsys.readouterr().err


def test_a_folder_in_place_of_a_file_is_named(predictions, tmp_path, capsys):
    for name in ("s.zip", "s.csv", "s.npz"):
        (tmp_path / name).mkdir()
    calls = [
        lambda: track(2, tmp_path / "s.zip", folder=tmp_path),
        lambda: track(2, predictions, tmp_path / "s.zip", folder=tmp_path),
        lambda: track(3, tmp_path / "t.csv", folder=tmp_path, candidates=tmp_path / "s.csv"),
        lambda: run("submit", [str(predictions), str(tmp_path / "s.npz")]),
    ]
    for name, call in zip(("s.zip", "s.zip", "s.csv", "s.npz"), calls, strict=True):
        assert call() == 2
        assert str(tmp_path / name) in capsys.readouterr().err
