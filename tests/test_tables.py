"""Aligned text and unreadable files; the formats themselves are tested in data and metrics."""

import numpy as np
import pytest

from affectgpt.tables import TableError, format_table, read_pickled_mapping, read_rows


def test_columns_align_keep_indentation_and_lines_do_not_end_in_spaces():
    rows = [("a title", "n", "note"), ("  part", "12", "x"), ("all", "345")]
    assert format_table(rows, "lrl").split("\n") == ["a title    n  note", "  part    12  x", "all      345"]
    assert format_table(rows).split("\n") == ["a title    n  note", "  part    12     x", "all      345"]


def test_no_rows_are_no_text():
    assert format_table([]) == ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.npz", b"no archive", "not an npz file"),
        ("t.npz", b"PK\x03\x04", "t.npz: cannot be read"),
        ("t.csv", b'id,a,b\n1,x,y\n2,"x,y\n3,x,y\n', "t.csv: cannot be read .line 3: "),
        ("t.csv", b'id,a,b\n1,"x,y\n3,"x" z,y\n', "t.csv: cannot be read .line 2: "),
        ("t.csv", b"id,a,a\n1,x,y\n", r"several columns are named \['a'\]"),
        ("t.csv", "id\ntrès\n".encode("latin-1"), "is not UTF-8 text"),
        ("t.jsonl", b"{}\n[", "t.jsonl:2: not JSON"),
        ("t.json", b"{}", "expected .jsonl, .csv or .npz, found '.json'"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=words):
        list(read_rows(tmp_path / name))


def test_items_without_a_name_are_an_error(tmp_path):
    np.savez(tmp_path / "t.npz", filenames=np.array(["a"]), fileitems=np.array(["x", "y"]))
    with pytest.raises(TableError, match="expected one item per filename"):
        list(read_rows(tmp_path / "t.npz"))


def test_a_pickled_array_must_be_a_dictionary(tmp_path):
    np.savez(tmp_path / "t.npz", corpus=np.array([1, "a"], dtype=object))
    with pytest.raises(TableError, match="expected a dictionary in array 'corpus', found list"):
        read_pickled_mapping(tmp_path / "t.npz", "corpus", trust_pickle=True, setting="trust_pickle=true")


def test_a_cell_may_be_long_and_have_several_lines(tmp_path):
    text = "word, " * 40_000 + "\nand, on the next line, more"
    (tmp_path / "t.csv").write_text(f'id,text,labels\na,"{text}",sad\n', encoding="utf-8")
    assert [row["text"] for _, row in read_rows(tmp_path / "t.csv")] == [text]
