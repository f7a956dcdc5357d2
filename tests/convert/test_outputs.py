"""What is not whole does not pass; what is whole has the published sizes."""

from pathlib import Path

import pytest
import torch
from transformers import Blip2QFormerModel, Blip2VisionModel

from affectgpt.cli import run
from affectgpt.convert.conversion import outputs_of
from affectgpt.convert.files import Weights
from affectgpt.convert.parts import recognise
from affectgpt.models.shapes import published_config
from tests.models import foreign


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda s: s.pop("video_Qformer.bert.encoder.layer.1.crossattention.self.key.weight"),
         "missing  1: projectors.frames.project.qformer.encoder.layer.1.crossattention.attention.key.weight"),
        (lambda s: s.update({"video_query_tokens": torch.zeros(1, 4, 36)}),
         "misshapen  55"),
        (lambda s: s.update({"llama_proj.bias": torch.zeros(7)}),
         "projectors.frames.project.output.bias is [7], not [32]"),
        (lambda s: s.update({"video_Qformer.bert.extra": torch.zeros(1)}), "UNEXPECTED  1: video_Qformer.bert.extra"),
    ],
    ids=["missing", "other width", "other shape", "unexpected"],
)  # fmt: skip
def test_a_tensor_that_is_missing_surplus_or_misshapen_fails_the_conversion(tmp_path, capsys, change, shown):
    state = foreign.video_branch()
    change(state)
    code = run("convert", [str(foreign.save(state, tmp_path / "v.pth")), f"out={tmp_path / 'base'}"])
    out = capsys.readouterr().out
    assert code == 1
    assert shown in out


# ---- published sizes


def written(*states) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that would be written for tensors that take no memory."""
    files = []
    for number, state in enumerate(states):
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        dtypes = {name: tensor.dtype for name, tensor in state.items()}
        weights = Weights(Path(f"hollow{number}.pth"), shapes, dtypes, state.__getitem__)
        weights.__dict__["sha256"] = "none"  # there is no file
        files.append(recognise(weights))
    outputs = outputs_of(files)
    assert not any(file.unexpected for file in files)
    assert all(output.is_complete for output in outputs)
    return {entry.name: entry.shape for output in outputs for entry in output.entries}


def n_parameters(shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.fixture
def hollow(monkeypatch):
    monkeypatch.setattr(foreign.Draw, "__call__", lambda self, *shape: torch.empty(*shape, device="meta"))

    def sizes(**values):
        for name, value in values.items():
            monkeypatch.setattr(foreign, name, value)

    return sizes


def test_both_branches_of_video_llama_have_the_published_44959744_parameters(hollow):
    hollow(QFORMER_WIDTH=768, LLM_WIDTH=4096, N_QUERIES=32)
    video = n_parameters(written(foreign.video_branch()))
    hollow(SOUND_WIDTH=1024, N_QUERIES=8)
    assert video + n_parameters(written(foreign.audio_branch())) == 44_959_744


def test_eva_and_blip2_in_published_sizes_become_the_image_side_of_the_published_blip2(hollow):
    hollow(EVA_WIDTH=1408, EVA_MLP=6144, QFORMER_WIDTH=768, N_QUERIES=32)
    shapes = written(foreign.eva(n_blocks=40, side=16), foreign.blip2())
    config = published_config("Salesforce/blip2-opt-2.7b")
    with torch.device("meta"):
        parts = {
            "vision_model": Blip2VisionModel(config.vision_config),
            "qformer": Blip2QFormerModel(config.qformer_config),
        }
    expected = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, model in parts.items()
        for name, tensor in model.state_dict().items()
    }
    assert shapes == expected | {"query_tokens": (1, 32, 768)}
    qformer = {name: shape for name, shape in shapes.items() if name.startswith("qformer.")}
    assert n_parameters(qformer) == 105_137_664


def test_an_affectgpt_run_of_2025_has_the_published_57168644_parameters(hollow, monkeypatch):
    hollow(SEEN_WIDTH=768, HEARD_WIDTH=1024)
    attention = {"q_proj": (3584, 3584), "k_proj": (3584, 512), "v_proj": (3584, 512), "o_proj": (3584, 3584)}
    targets = {f"self_attn.{name}": sizes for name, sizes in attention.items()}
    targets |= {"mlp.gate_proj": (3584, 18944), "mlp.up_proj": (3584, 18944), "mlp.down_proj": (18944, 3584)}
    monkeypatch.setattr(foreign.lora, "__defaults__", (28, 16, ".default"))
    state = foreign.affectgpt_2025(width=3584, targets=targets)
    assert n_parameters({name: tensor.shape for name, tensor in state.items()}) == 57_168_644
    assert n_parameters(written(state)) == 57_168_644


def test_emotion_llama_has_the_published_74993664_parameters(hollow, monkeypatch):
    hollow(EVA_WIDTH=1408, HEARD_WIDTH=1024)
    monkeypatch.setattr(foreign.lora, "__defaults__", (32, 64, ".default"))
    assert n_parameters(written(foreign.emotion_llama(width=4096))) == 74_993_664
