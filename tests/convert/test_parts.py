"""A file is what its tensors say."""

import torch
from safetensors.torch import load_file

from affectgpt.cli import run
from affectgpt.convert.conversion import convert
from tests.models import foreign


def test_files_are_recognised_by_their_tensors_in_any_order_whatever_they_are_called(files, base, tmp_path):
    convert(list(reversed(files.values())), tmp_path / "again")
    for name in ("projectors.safetensors", "eva_qformer/model.safetensors"):
        once, again = load_file(base / name), load_file(tmp_path / "again" / name)
        assert once.keys() == again.keys()
        assert all(torch.equal(once[key], again[key]) for key in once)


def test_an_unknown_file_is_refused_with_what_it_holds_and_what_is_known(tmp_path, capsys):
    path = foreign.save({"conv1.weight": torch.zeros(2, 3)}, tmp_path / "resnet.pth")
    assert run("convert", [str(path), f"out={tmp_path / 'base'}"]) == 2
    error = capsys.readouterr().err
    assert "is not recognised; it has 1 tensors: conv1.weight [2, 3]" in error
    assert "Q-Former projector of the frames (Video-LLaMA visual branch): video_query_tokens" in error
