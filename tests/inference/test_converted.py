"""infer.py and eval.py with a folder of converted weights and a preset, without a training run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from affectgpt.cli import compose
from affectgpt.convert.conversion import convert
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.inference.infer import run_inference
from affectgpt.models import CheckpointError
from affectgpt.runtime import UserError
from tests.convert.test_presets import CLIP, HUBERT, V2_LAYERS
from tests.data.conftest import write_clip
from tests.models import foreign, tiny


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(arguments that select the tiny bases, the folder of converted weights, a manifest of two clips)"""
    folder = tmp_path_factory.mktemp("converted")
    bases = {
        "llm": tiny.write_qwen2(folder / "qwen2"),
        "audio": tiny.write_hubert(folder / "hubert", n_layers=4),
        "clip": tiny.write_clip(folder / "clip"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "SEEN_WIDTH", CLIP)
        patch.setattr(foreign, "HEARD_WIDTH", HUBERT)
        patch.setattr(foreign.lora, "__defaults__", (2, 16, ".default"))
        state = foreign.affectgpt_2025(targets=V2_LAYERS)
    assert convert([foreign.save(state, folder / "run.pth")], folder / "base")["complete"]
    rows = []
    for number in range(2):
        write_clip(folder / f"{number}.mp4", seed=number)
        crops = np.random.default_rng(number).integers(0, 256, (5, 30, 30, 3), dtype=np.uint8)
        np.save(folder / f"{number}.npy", crops)
        rows.append({"id": f"c{number}", "video": f"{number}.mp4", "face": f"{number}.npy", "labels": ["sad"]})
    (folder / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    selected = [
        "model=affectgpt_v2", f"checkpoint={folder / 'base'}", "device=cpu", f"paths.cache={folder / 'cache'}",
        f"model.llm.path={bases['llm']}", "model.llm.dtype=float32", f"model.encoders.audio.path={bases['audio']}",
        f"model.encoders.face.path={bases['clip']}", f"model.encoders.frames.path={bases['clip']}",
        *(f"model.encoders.{name}.dtype=float32" for name in ("audio", "face", "frames")), "generate.max_new_tokens=5",
    ]  # fmt: skip
    return selected, folder


def test_infer_answers_with_converted_weights_and_a_second_run_continues(setting, tmp_path):
    selected, folder = setting
    arguments = [*selected, f"input=[{folder / 'm.jsonl'}]", "task=labels", f"out={tmp_path / 'p.jsonl'}"]
    for _ in range(2):
        assert run_inference(compose("infer", arguments)) == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [(row["id"], row["model"], row["modalities"]) for row in rows] == [
        (f"c{number}", "base/affectgpt_v2", ["audio", "face"]) for number in range(2)
    ]


def test_eval_scores_converted_weights(setting, tmp_path):
    selected, folder = setting
    arguments = [*selected, f"references={folder / 'm.jsonl'}", "task=labels", f"out={tmp_path}", "n_bootstrap=10"]
    assert run_evaluation(compose("eval", arguments)) == 0
    assert json.loads((tmp_path / "report.json").read_text())


def test_weights_and_preset_need_each_other(setting):
    selected, folder = setting
    clips = f"input=[{folder / 'm.jsonl'}]"
    with pytest.raises(UserError, match="holds converted weights, which need a model: add model=affectgpt_v1"):
        run_inference(compose("infer", [f"checkpoint={folder / 'base'}", clips, "device=cpu"]))
    without = [setting for setting in selected if not setting.startswith("checkpoint=")]
    with pytest.raises(UserError, match=r"model=affectgpt_v2 is for a folder of .*; checkpoint is None"):
        run_inference(compose("infer", [*without, clips]))


def test_a_part_without_weights_is_named_instead_of_answering_at_random(setting, tmp_path):
    selected, folder = setting
    state = {name: each for name, each in torch.load(folder / "run.pth")["model"].items() if "image" not in name}
    convert([foreign.save(state, tmp_path / "run.pth")], tmp_path / "base")
    arguments = [*selected, f"input=[{folder / 'm.jsonl'}]", f"checkpoint={tmp_path / 'base'}"]
    with pytest.raises(
        CheckpointError, match=r"has no weights of projectors\.frames, without which model=affectgpt_v2"
    ):
        run_inference(compose("infer", arguments))
