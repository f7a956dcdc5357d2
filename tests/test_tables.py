"""Aligned text; reading is tested where the formats are (data, metrics)."""

from affectgpt.tables import format_table


def test_columns_align_keep_indentation_and_lines_do_not_end_in_spaces():
    rows = [("a title", "n", "note"), ("  part", "12", "x"), ("all", "345")]
    assert format_table(rows, "lrl").split("\n") == ["a title    n  note", "  part    12  x", "all      345"]
    assert format_table(rows).split("\n") == ["a title    n  note", "  part    12     x", "all      345"]


def test_no_rows_are_no_text():
    assert format_table([]) == ""
