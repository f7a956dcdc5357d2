"""Pickled arrays are read without running code: plain objects equal numpy's, anything else is refused."""

import pickle
import subprocess
import zipfile

import numpy as np
import pytest

from affectgpt.tables import TableError, read_pickled_mapping, read_rows
from affectgpt.tables.arrays import ArrayError, NotPlain, array_names, read_array, read_array_folder

PLAIN = {
    "a": {"emo": 3, "val": np.float32(0.5), "text": np.str_("he’s glad"), "none": None, "flags": (True, [b"x", -1])},
    "b": {"emo": np.int64(2), "val": -10, "text": np.str_(""), "none": np.array([[1, 2], [3, 4]]), "flags": []},
}


def save(path, version=None, **arrays):
    """Save as numpy does, or with a pickle protocol of our choice."""
    if version is None:
        np.savez_compressed(path, **arrays)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                pickle.dump(array, file, protocol=version)
    return path


@pytest.mark.parametrize("protocol", [None, 0, 2, 3, 4])
def test_plain_objects_equal_those_that_numpy_unpickles(tmp_path, protocol):
    path = save(tmp_path / "t.npz", protocol, corpus=np.array(PLAIN, dtype=object))
    found = read_array(path, "corpus")
    expected = np.load(path, allow_pickle=True)["corpus"].tolist()
    expected["b"]["none"] = expected["b"]["none"].tolist()
    assert found == expected
    assert type(found["a"]["val"]) is float
    assert type(found["b"]["emo"]) is int


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(["sad", "开心"]),
        np.array("[['a'], ['b']]"),
        np.array([True, False]),
        np.array([]),
        np.array([["sad"], None], dtype=object),
        np.array([["a", 1], ["b", None]], dtype=object),
    ],
)
def test_arrays_equal_those_of_numpy(tmp_path, array):
    path = save(tmp_path / "t.npz", x=array)
    assert array_names(path) == ["x"]
    assert read_array(path, "x") == array.tolist()


class Bad:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.path)],)


def test_a_pickle_that_calls_a_program_is_refused_and_names_it(tmp_path):
    path = save(tmp_path / "t.npz", corpus=np.array({"a": Bad(tmp_path / "ran")}, dtype=object))
    with pytest.raises(NotPlain, match=r"array 'corpus': subprocess\.call"):
        read_array(path, "corpus")
    message = r"contains pickled objects \(array 'corpus': subprocess\.call\), which can run code.*set trust=true"
    with pytest.raises(TableError, match=message):
        read_pickled_mapping(path, "corpus", trust_pickle=False, setting="trust=true")
    assert not (tmp_path / "ran").exists()
    read_pickled_mapping(path, "corpus", trust_pickle=True, setting="trust=true")
    assert (tmp_path / "ran").exists()  # what the flag permits


def raw(path, body, header="{'descr': '|O', 'fortran_order': False, 'shape': ()}"):
    text = header.encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body)
    return path


def reduce(module, name, arguments):
    return f"c{module}\n{name}\n".encode() + arguments + b"R."


BIG = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"
NUMBER = b"cnumpy\ndtype\n(S'f8'\ntR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(tR"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b".", "damaged"),  # claims a bytearray of 1 TiB
        (b"\x80\x04r\xff\xff\xff\x7f.", "damaged"),  # a memo index that would need 16 GiB
        (b"\x80\x04N", "damaged"),  # no end
        (reduce("builtins", "eval", b"(S'1'\nt"), "builtins.eval"),
        (reduce("numpy", "load", b"(S'x'\nt"), "numpy.load"),
        (b"\x80\x02cnumpy\ndtype\n}S'x'\nS'y'\nsb.", "a function is changed"),
        (NUMBER + b".", "a function or a dtype"),
        (b"(" + ARRAY + b"(I1\n(I1000000000000\nt" + NUMBER + b"I00\nS''\ntbt.", "0 bytes, expected 8000000000000"),
        (b"(" + ARRAY + b"(I1\n(I3\ntcnumpy\ndtype\n(S'O8'\ntRI00\n(ltbt.", "another number of items"),
        (b"]q\x00h\x00a.", "nested too deeply"),  # a list that contains itself
    ],
)
def test_a_damaged_or_hostile_pickle_is_an_error_and_takes_no_memory(tmp_path, body, words):
    with pytest.raises(ArrayError, match=words):
        read_array(raw(tmp_path / "t.npz", body), "x")


def test_one_text_in_the_file_is_not_copied_a_thousand_times(tmp_path):
    scalar = b"cnumpy.core.multiarray\nscalar\np2\n(g0\ng1\ntR"
    start = b"(cnumpy\ndtype\n(S'S4000'\ntRp0\n0S'" + b"a" * 4000 + b"'\np1\n0"
    assert read_array(raw(tmp_path / "one.npz", start + scalar + b"l."), "x") == [b"a" * 4000]
    with pytest.raises(ArrayError, match="its arrays hold more than the file"):
        read_array(raw(tmp_path / "many.npz", start + scalar * 1000 + b"l."), "x")


def test_a_header_that_claims_more_than_the_file_has_is_an_error(tmp_path):
    with pytest.raises(ArrayError, match="8 bytes, expected 8000000000000"):
        read_array(raw(tmp_path / "t.npz", b"12345678", BIG), "x")
    with pytest.raises(ArrayError, match="texts without characters"):
        read_array(raw(tmp_path / "t.npz", b"", BIG.replace("f8", "U0")), "x")
    with pytest.raises(ArrayError, match=r"shape \(1000000000, 0\)"):
        read_array(raw(tmp_path / "t.npz", b"", BIG.replace("1000000000000,", "1000000000, 0")), "x")
    with pytest.raises(NotPlain, match="dtype"):
        read_array(raw(tmp_path / "t.npz", b"12345678", BIG.replace("'<f8'", "[('a', '<f8')]")), "x")


def test_a_folder_and_a_zip_of_arrays_are_read_alike(tmp_path):
    folder = tmp_path / "groups"
    folder.mkdir()
    for name in ("b", "a"):
        np.save(folder / f"{name}.npy", np.array(f"[['{name}']]"))
    with zipfile.ZipFile(tmp_path / "groups.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"groups/{file.name}")
    expected = [("a", "[['a']]"), ("b", "[['b']]")]
    assert list(read_array_folder(folder)) == list(read_array_folder(tmp_path / "groups.zip")) == expected


def test_published_descriptions_are_rows(tmp_path):
    path = save(tmp_path / "t.npz", name2reason=np.array({"a": "He is glad."}, dtype=object))
    assert list(read_rows(path)) == [(f"{path}[a]", {"name": "a", "reason": "He is glad."})]
    save(path, name2reason=np.array(["a"], dtype=object))
    with pytest.raises(TableError, match="expected a dictionary id -> text in name2reason, found list"):
        list(read_rows(path))
