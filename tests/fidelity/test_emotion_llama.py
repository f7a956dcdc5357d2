"""Prompts of emotion_llama next to the published code: EMOTION_LLAMA=/path/to/Emotion-LLaMA PUBLISHED_PYTHON=..."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from affectgpt.models import AffectGPTProcessor
from affectgpt.prompts import PUBLISHED, render
from affectgpt.schema import Sample
from tests.models import tiny

ROOT, PYTHON = os.environ.get("EMOTION_LLAMA"), os.environ.get("PUBLISHED_PYTHON")
pytestmark = pytest.mark.skipif(
    not (ROOT and PYTHON), reason="runs the published code: set EMOTION_LLAMA and PUBLISHED_PYTHON (docs/fidelity.md)"
)
LABELS = ("happy", "sad", "neutral", "angry", "worried", "surprise", "fear", "contempt", "doubt")
SAMPLE = Sample(
    id="a", subtitle="Fine, so be it", description="Her voice Trembles (a lot)! Sad.", label="sad",
    modalities=("audio", "frames", "face", "face_motion"),
)  # fmt: skip
TASKS = {"emotion": "fixed", "reason": "description"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny.write_llama(tmp_path_factory.mktemp("llm") / "llm")


@pytest.fixture(scope="module")
def processor(llm) -> AffectGPTProcessor:
    branches = {name: {"n_tokens": 1} for name in ("audio", "face", "face_motion")}
    branches["frames"] = {"n_tokens": 257, "n_class": 1}
    return AffectGPTProcessor(AutoTokenizer.from_pretrained(llm), branches=branches, prompt_format="emotion_llama")


def messages_of(task: str):
    candidates = LABELS if task == "fixed" else ()
    return render(SAMPLE, task=task, candidates=candidates, prompt_format="emotion_llama", with_answer=True)


@pytest.fixture(scope="module")
def theirs(llm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    source = (Path(str(ROOT)) / "minigpt4/datasets/datasets/first_face.py").read_text()
    for question in PUBLISHED["emotion_llama"].questions["description"]:
        assert f'"{question}"' in source
    (ours,) = re.findall(r"\[reason\] (.*)", messages_of("description")[0].content)
    asked = PUBLISHED["emotion_llama"].questions["fixed"][0].format(candidates=", ".join(LABELS))
    assert f'"{asked}"' in source
    values = {"llm": str(llm), "label": SAMPLE.label, "description": SAMPLE.description, "subtitle": SAMPLE.subtitle}
    values |= {"emotion_questions": [asked], "reason_questions": [ours]}
    (folder / "task.json").write_text(json.dumps(values))
    command = [PYTHON, str(Path(__file__).with_name("published_emotion_llama.py")), str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_token_ids_and_places_of_soft_tokens_are_those_of_the_published_code(theirs, processor, task):
    row = processor.encode(messages_of(TASKS[task]), {name: torch.zeros(1, 1) for name in SAMPLE.modalities})
    ids = processor.placeholder_token_ids
    places = [*[ids["frames"]] * 256, ids["face"], ids["face_motion"], ids["audio"], ids["frames"]]
    prompt = [places[-token - 1] if token < 0 else token for token in theirs[task]["prompt"]]
    assert row["input_ids"].tolist() == prompt + theirs[task]["answer"]
    assert row["labels"].tolist() == [-100] * len(prompt) + theirs[task]["answer"]
