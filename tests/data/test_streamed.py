"""Data sets of the library `datasets` as data of training; with a stand-in, and the library where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from affectgpt.config import SourceConfig
from affectgpt.data.sources import read_source
from affectgpt.runtime import InputError, MissingLibrary
from tests.data.conftest import write_clip

ROWS = (
    {"clip": "a", "mp4": 0, "emotions": ["sad"], "label": 1, "thumbnail": {"bytes": b"x", "path": None}, "size": 3},
    {"clip": "b", "mp4": 1, "emotions": ["happy"], "label": 0, "thumbnail": None, "size": 4},
    {"clip": "c", "mp4": 2, "emotions": ["happy"], "label": None, "thumbnail": None, "size": 5},
)


class Stream:
    """An IterableDataset, as far as it is used: rows, features, and media that are not decoded."""

    features = {"label": SimpleNamespace(int2str=["happy", "sad"].__getitem__)}  # noqa: RUF012

    def __init__(self, rows, read):
        self.rows, self.read = rows, read

    def decode(self, enable):
        assert enable is False
        return self

    def __iter__(self):
        for row in self.rows:
            self.read.append(row["clip"])
            yield row


@pytest.fixture
def library(monkeypatch, tmp_path):
    """The ids of the rows that were read."""
    read: list[str] = []
    clips = [write_clip(tmp_path / f"{number}.mp4", seed=number).read_bytes() for number in range(3)]
    rows = [row | {"mp4": {"bytes": clips[row["mp4"]], "path": "x.mp4"}} for row in ROWS]

    def load_dataset(path, name, *, split, revision, streaming):
        assert streaming
        if split != "train":
            raise ValueError(f"Bad split: {split}. Available splits: ['train']")
        return Stream(rows, read)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return read


COLUMNS = {"id": "clip", "video": "mp4", "labels": "emotions"}


def source(folder: Path, **options) -> SourceConfig:
    return SourceConfig(
        format="datasets", folder=str(folder), options={"path": "user/clips", **options}, columns=COLUMNS
    )


def test_rows_become_samples_and_their_media_files_once(library, tmp_path, monkeypatch):
    (out := tmp_path / "out").mkdir()
    rows = read_source(source(out))
    assert [(each.id, each.labels, each.label) for each in rows.samples] == [
        ("a", ("sad",), "sad"), ("b", ("happy",), "happy"), ("c", ("happy",), None),
    ]  # fmt: skip
    for number, sample in enumerate(rows.samples):
        assert Path(sample.video).read_bytes() == (tmp_path / f"{number}.mp4").read_bytes()
    assert library == ["a", "b", "c"]
    monkeypatch.setitem(sys.modules, "datasets", None)  # a run that is resumed reads the files, without the library
    assert read_source(source(out)).samples == rows.samples
    with pytest.raises(MissingLibrary, match=r"pip install 'affectgpt\[datasets\]'"):
        read_source(source(out, revision="v2"))


def test_no_more_rows_are_read_than_asked_for_and_a_wrong_split_is_named(library, tmp_path):
    (out := tmp_path / "out").mkdir()
    assert [each.id for each in read_source(source(out, n_rows=2)).samples] == ["a", "b"]
    assert library == ["a", "b"]
    with pytest.raises(InputError, match=r"cannot open 'user/clips', split 'test': Bad split: test"):
        read_source(source(out, split="test"))


SCRIPT = """
import json, sys
from pathlib import Path
import datasets
folder = Path(sys.argv[1])
columns = {"clip": ["a", "b"], "mp4": [str(folder / "0.mp4"), str(folder / "1.mp4")], "emotions": [["sad"], ["happy"]]}
features = datasets.Features({"clip": datasets.Value("string"), "mp4": datasets.Video(),
    "emotions": datasets.List(datasets.Value("string"))})
table = datasets.Dataset.from_dict(columns, features=features)
(folder / "data").mkdir()
(folder / "out").mkdir()
table.to_parquet(folder / "data" / "train.parquet")
from affectgpt.config import SourceConfig
from affectgpt.data.sources import read_source
columns = {"id": "clip", "video": "mp4", "labels": "emotions"}
options = {"path": str(folder / "data")}
found = read_source(SourceConfig(format="datasets", folder=str(folder / "out"), options=options, columns=columns))
print(json.dumps([[each.id, each.labels, each.video] for each in found.samples]))
"""


def test_the_library_streams_a_folder_of_parquet_files(tmp_path):
    python = os.environ.get("AFFECTGPT_DATASETS_PYTHON", sys.executable)
    asked = subprocess.run([python, "-c", "import datasets"], capture_output=True, check=False)
    if asked.returncode:
        pytest.skip("datasets is not installed; AFFECTGPT_DATASETS_PYTHON= may name a Python that has it")
    for number in range(2):
        write_clip(tmp_path / f"{number}.mp4", seed=number)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(
        [python, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert [(name, labels) for name, labels, _ in found] == [("a", ["sad"]), ("b", ["happy"])]
    for number, (_, _, video) in enumerate(found):
        assert Path(video).read_bytes() == (tmp_path / f"{number}.mp4").read_bytes()
