import json
import os
import subprocess
import sys

import pytest

from affectgpt.runtime import (
    UserError,
    disk_full_named,
    folder_at_once,
    stable_hash,
    write_json_atomic,
    write_text_atomic,
)


def test_stable_hash_ignores_key_order_and_sees_values():
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1}) != stable_hash({"a": 2, "b": 1})


def test_atomic_write_leaves_no_temporary_file(tmp_path):
    write_text_atomic(tmp_path / "a" / "x.json", json.dumps(1))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for text in ("old", "new"):
        with folder_at_once(folder) as target:
            (target / text).touch()
    with pytest.raises(KeyError), folder_at_once(folder) as target:
        (target / {}["third"]).touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert folder.stat().st_mode == tmp_path.joinpath("deep").stat().st_mode


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match=r"a\.json: cannot be written \(Is a directory\); free disk space, or"):
        write_json_atomic(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_replaced_file_and_its_folder_are_forced_to_the_disk(tmp_path, monkeypatch):
    forced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    write_json_atomic(tmp_path / "a.json", {})
    assert forced == [str(tmp_path / f".a.json.{os.getpid()}.tmp"), str(tmp_path)]


@pytest.mark.parametrize(
    "save", ["safetensors.torch.save_file({'a': x}, p)", "torch.save({'a': x}, p)", "open(p, 'wb').write(bytes(x))"]
)
def test_a_file_that_exceeds_a_limit_is_one_message_whatever_library_writes_it(tmp_path, save):
    code = f"""
import pathlib, resource, torch, safetensors.torch
from affectgpt.runtime import UserError, disk_full_named
x, p = torch.zeros(100_000, dtype=torch.uint8), {str(tmp_path / "file")!r}
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with disk_full_named(pathlib.Path(p).parent, "free some space"):
        {save}
except UserError as error:
    print("named:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "named:" in done.stdout, done.stderr
    assert "the disk is full or a limit is reached; free some space" in done.stdout


def test_another_error_passes_where_a_disk_could_be_full(tmp_path):
    with pytest.raises(ZeroDivisionError), disk_full_named(tmp_path, "free some space"):
        raise ZeroDivisionError
