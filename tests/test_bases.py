"""Base models on disk: what is downloaded, and when two folders hold the same model."""

import pytest

from affectgpt.bases import fingerprint, is_local, resolve, wanted_files
from affectgpt.runtime import NotFound


def folder_with(path, weights: bytes):
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "hubert"}')
    (path / "model.safetensors").write_bytes(weights)
    return str(path)


def test_of_two_formats_of_weights_only_safetensors_are_wanted():
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "README.md"]
    assert sorted(wanted_files(files)) == ["config.json", "model.safetensors"]
    assert "pytorch_model.bin" in wanted_files(["config.json", "pytorch_model.bin"])


def test_the_fingerprint_is_that_of_the_content_not_of_the_place(tmp_path):
    one, same, other = (
        folder_with(tmp_path / name, weights) for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2"))
    )
    assert fingerprint(one, "audio") == fingerprint(same, "audio") != fingerprint(other, "audio")


def test_a_missing_folder_is_named_with_its_use(tmp_path):
    assert not is_local(str(tmp_path / "no model"))
    with pytest.raises(NotFound, match=r"audio: base model folder .*no model.* does not exist"):
        resolve(str(tmp_path / "no model"), "audio")
