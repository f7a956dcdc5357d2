"""Tables as people bring them: separators, encodings, headers, quotes, spreadsheets; unreadable files; aligned text."""

import csv
import json
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest

from affectgpt import tables
from affectgpt.runtime import InputError
from affectgpt.tables import (
    TableError,
    cell_id,
    format_table,
    is_blank,
    read_names,
    read_pickled_mapping,
    read_rows,
    sheets,
    write_csv,
)

ROWS = [{"id": "00001", "text": "Hi, you", "labels": "开心，难过"}, {"id": "00002", "text": "", "labels": "['sad']"}]


def rows_of(path, content, **arguments):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return [row for _, row in read_rows(path, **arguments)]


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
        ("t.json", b"{}", "expected .jsonl, .csv, .tsv, .xlsx or .npz, found '.json'"),
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


PLAIN = 'id,text,labels\n00001,"Hi, you","开心，难过"\n00002,,[\'sad\']\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", PLAIN),
        ("a.CSV", PLAIN),
        ("a.csv", PLAIN.replace("\n", "\r\n")),
        ("a.csv", "\ufeff" + PLAIN),
        ("a.csv", PLAIN.encode("gb18030")),
        ("a.csv", PLAIN.encode("utf-16")),
        ("a.csv", "id;text;labels\n00001;Hi, you;开心，难过\n00002;;['sad']\n"),
        ("a.csv", '"id";"text";"labels"\n00001;"Hi, you";开心，难过\n00002;;"[\'sad\']"\n'),
        ("a.csv", "text\tid\tlabels\nHi, you\t00001\t开心，难过\n\t00002\t['sad']\n"),
        ("a.tsv", "id\ttext\tlabels\n00001\tHi, you\t开心，难过\n00002\t\t['sad']\n"),
        ("a.csv", "id, text, labels\n00001, \"Hi, you\", 开心，难过\n00002, , ['sad']\n"),
        ("a.csv", "ID,Text,LABELS\n00001,\"Hi, you\",开心，难过\n00002,,['sad']\n"),
        ("a.csv", ",id,text,labels\n0,00001,\"Hi, you\",开心，难过\n1,00002,,['sad']\n"),
        ("a.csv", "Unnamed: 0,id,text,labels\n0,00001,\"Hi, you\",开心，难过\n1,00002,,['sad']\n"),
        ("a.csv", PLAIN.replace("['sad']", "['sad'],,")),
        ("a.csv", "id,text,labels\n\n00001,\"Hi, you\",开心，难过\n\n00002,,['sad']\n\n"),
    ],
)
def test_a_table_as_other_programs_write_it_has_the_same_rows(tmp_path, name, content, caplog):
    assert rows_of(tmp_path / name, content, known=("text", "labels")) == ROWS
    assert ("read as GB18030" in caplog.text) == (isinstance(content, bytes) and content[:1] == b"i")


def test_a_spreadsheet_has_the_rows_of_its_first_sheet(tmp_path, caplog):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["ID", "text", "labels", "score"], ["00001", "Hi, you", "开心，难过", 0.5], [7, None, "['sad']", 2.0]):
        book.active.append(row)
    book.create_sheet("notes")
    book.save(tmp_path / "a.xlsx")
    first, second = (row for _, row in read_rows(tmp_path / "a.xlsx"))
    assert first == ROWS[0] | {"score": "0.5"}
    assert second == {"id": "7", "text": "", "labels": "['sad']", "score": "2"}
    assert "read the first of 2 sheets" in caplog.text


# openpyxl ignores definitions of entities, and refuses them where defusedxml is installed.
ENTITIES = "not an xlsx table" if find_spec("defusedxml") else None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"</sheetData>", b"<row>" + b"<c/>" * 2000 + b"</row></sheetData>", "a row has more than 1000 cells"),
        (b"</sheetData>", b"<x:row>" + b"<x:c/>" * 2000 + b"</x:row></sheetData>", "a row has more than 1000 cells"),
        (b"</sheetData>", b"", "not an xlsx table"),
        (b"<worksheet", b'<!DOCTYPE w [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><worksheet', ENTITIES),
        (
            b"</sheetData>",
            b'<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>y</t></is></c></row></sheetData>',
            "expected 2 cells, found 16384",
        ),
    ],
)
def test_a_spreadsheet_that_claims_more_than_it_holds_is_refused(tmp_path, old, new, words):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["id", "text"], ["a", "x"]):
        book.active.append(row)
    book.save(tmp_path / "plain.xlsx")
    with zipfile.ZipFile(tmp_path / "plain.xlsx") as plain, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as changed:
        for name in plain.namelist():
            data = plain.read(name)
            changed.writestr(name, data.replace(old, new, 1) if name == "xl/worksheets/sheet1.xml" else data)
    if words is None:
        assert [row for _, row in read_rows(tmp_path / "a.xlsx")] == [{"id": "a", "text": "x"}]
    else:
        with pytest.raises(TableError, match=words):
            list(read_rows(tmp_path / "a.xlsx"))


def test_a_spreadsheet_that_unpacks_to_more_than_the_limit_is_not_unpacked(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b" " * 100_000)
    with pytest.raises(TableError, match=r"a\.xlsx: not an xlsx table"):
        list(read_rows(tmp_path / "a.xlsx"))
    monkeypatch.setattr(sheets, "MAX_XLSX", 99_999)
    with pytest.raises(TableError, match="unpacks to 100000 bytes; expected at most 99999"):
        list(read_rows(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("columns", ["id,text,labels", "text,id,labels", "text,labels,id"])
@pytest.mark.parametrize("n_swallowed", [1, 2, 5])
@pytest.mark.parametrize("cell", ["text", "labels"])
def test_a_quote_that_closes_in_a_later_row_is_an_error_that_names_its_line(tmp_path, columns, n_swallowed, cell):
    rows = [{"id": f"clip_{n}", "text": "yes", "labels": "sad"} for n in range(9)]
    rows[2][cell] = '"' + rows[2][cell]
    rows[2 + n_swallowed][cell] += '"'
    names = columns.split(",")
    text = "\n".join([columns, *(",".join(row[name] for name in names) for row in rows)])
    with pytest.raises(TableError, match=r"a\.csv: cannot be read \(line 4: .*a quote that opens here is not closed"):
        rows_of(tmp_path / "a.csv", text)


@pytest.mark.parametrize(
    "text",
    [
        "他笑了,眼睛弯着,\n声音,轻快,而且,高",
        "他笑了,声音轻\n然后,走了",
        "He smiles.\nSad, tired",
        "1,2\n3,4\n5",
        "one\ntwo\nthree",
        'He says "yes",\nthen leaves, slowly',
        "a\r\nb\rc",
    ],
)
@pytest.mark.parametrize("columns", [("id", "text"), ("id", "text", "labels"), ("text", "labels", "id")])
def test_a_text_of_several_lines_is_one_cell(tmp_path, text, columns):
    rows = [{"id": f"clip_{n}", "text": text, "labels": "sad"} for n in range(3)]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert [row["text"] for _, row in read_rows(tmp_path / "a.csv")] == [text] * 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,ID\na,b\n", r"a\.csv:1: several columns are named \['id'\]"),
        ("id,\na,x\n", r"a\.csv:2: found 'x' in column 2, which has no name"),
        ("id,text\na,b,c\n", r"a\.csv:2: expected 2 cells, found 3"),
        ('id,text\na,"b" c\n', r"a\.csv: cannot be read \(line 2: "),
        (b"id,text\na,tr\xe8s\n", r"a\.csv: is not UTF-8 text \(line 2: byte 0xe8\); save it as UTF-8"),
        ("id,text\na,悲しい\n".encode("shift-jis"), r"a\.csv: is not UTF-8 text \(line 2: "),
        ("id,text\na,難過\n".encode("big5"), r"a\.csv: is not UTF-8 text \(line 2: "),
        ("id,text\n".encode("utf-16-le"), r"a\.csv: is UTF-16 without a byte order mark"),
    ],
)
def test_what_is_no_table_names_the_line_and_what_was_found(tmp_path, content, words):
    with pytest.raises(TableError, match=words):
        rows_of(tmp_path / "a.csv", content)


def test_columns_rename_what_the_file_has_and_a_missing_one_is_an_error(tmp_path):
    columns = {"id": "clip", "text": "words"}
    assert rows_of(tmp_path / "a.csv", "clip;words;id\na;x;1\n", columns=columns) == [
        {"id": "a", "text": "x", "id (of the file)": "1"}
    ]
    assert rows_of(tmp_path / "a.jsonl", '{"clip": "a", "words": "x"}\n', columns=columns) == [{"id": "a", "text": "x"}]
    for name, content in (("a.csv", "clip,word\na,x\n"), ("a.jsonl", '{"clip": "a"}\n')):
        with pytest.raises(TableError, match=r"no column 'words', which columns= names for text"):
            rows_of(tmp_path / name, content, columns=columns)
    used = set()
    assert rows_of(tmp_path / "b.csv", "clip,other\na,x\n", columns=columns, used=used) == [{"id": "a", "other": "x"}]
    assert used == {"clip"}


@pytest.mark.parametrize("value", [None, "", "  ", "nan", "NaN", "None", "null", "N/A", "NA", "<NA>", float("nan")])
def test_these_cells_hold_no_value(value):
    assert is_blank(value)
    with pytest.raises(InputError, match="id must be"):
        cell_id(value)


def test_words_and_numbers_are_values():
    assert not any(map(is_blank, ["none of it", "0", 0, 0.0, False, "Nan said so", "."]))


@pytest.mark.parametrize(
    ("value", "expected"), [("00001", "00001"), (" a ", "a"), (7, "7"), (7.0, "7"), (np.int64(7), "7"), ("7.0", "7.0")]
)
def test_an_id_is_its_text_or_its_whole_number(value, expected):
    assert cell_id(value) == expected


@pytest.mark.parametrize("value", [True, 1.5, [], {}, b"a", float("inf")])
def test_other_values_are_no_ids(value):
    with pytest.raises(InputError, match="id must be"):
        cell_id(value)


def test_hostile_lines_are_bad_rows_and_the_lines_after_them_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "MAX_LINE", 200_000)
    lines = ["[" * 100_000, '{"a":' * 90 + "1" + "}" * 90, "9" * 5000, '{"id": "' + "x" * 500_000 + '"}', '{"id": "a"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = list(tables.stream_rows(tmp_path / "a.jsonl"))
    assert [line for line, _ in found] == [1, 2, 3, 4, 5]
    assert [str(row)[:40] for _, row in found[:4]] == [
        "not JSON that can be read: nested more t",
        "nested more than 64 levels",
        "not JSON (Exceeds the limit (4300 digits",
        "a line of more than 200000 characters",
    ]
    assert found[4][1] == {"id": "a"}
    (tmp_path / "a.csv").write_text("id,text\na," + "x" * 500_000 + "\n")
    with pytest.raises(TableError, match="line 2: a line of more than 200000 characters"):
        list(read_rows(tmp_path / "a.csv"))


def test_names_are_read_from_text_files_in_the_encodings_of_tables(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "gb18030"):
        (tmp_path / "a.TXT").write_bytes("片段一\n\n片段二\n".encode(encoding))
        assert read_names(tmp_path / "a.TXT") == ["片段一", "片段二"]


def test_jsonl_reads_back_what_json_writes(tmp_path):
    rows = [{"id": "a", "text": "one\u2028two\x85three", "n": [1, {"b": None}]}, {"id": "b"}]
    assert rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))) == rows


def test_cells_that_a_spreadsheet_runs_as_formulas_are_kept_and_counted(tmp_path, caplog):
    rows = [("name", "sentence"), ("a", '=HYPERLINK("http://x")'), ("@b", "-1.5"), ("+c", -2)]
    write_csv(tmp_path / "t.csv", rows)
    assert "t.csv: a spreadsheet would run 3 cells as formulas, the first one '=HYPERLINK" in caplog.text
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [[str(cell) for cell in row] for row in rows]
    caplog.clear()
    write_csv(tmp_path / "t.csv", [("happy, sad", -1.5, "-3", "")])
    assert not caplog.text
