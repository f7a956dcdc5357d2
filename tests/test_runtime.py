import json

from affectgpt.runtime import stable_hash, write_text_atomic


def test_stable_hash_ignores_key_order_and_sees_values():
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1}) != stable_hash({"a": 2, "b": 1})


def test_atomic_write_leaves_no_temporary_file(tmp_path):
    write_text_atomic(tmp_path / "a" / "x.json", json.dumps(1))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]
