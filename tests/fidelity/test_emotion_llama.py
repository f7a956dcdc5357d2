"""The preset emotion_llama next to the published code: EMOTION_LLAMA=/path/to/Emotion-LLaMA PUBLISHED_PYTHON=..."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from affectgpt.cli import compose
from affectgpt.config import GenerateConfig
from affectgpt.convert.conversion import convert
from affectgpt.inference.answers import answers
from affectgpt.models import AffectGPTProcessor, build, model_spec
from affectgpt.models.assemble import CLIP_MEAN, CLIP_STD
from affectgpt.models.pretrained import start_from
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
def media():
    """One frame of the encoder's size, so that nothing is resized, and the vector of each of the other encoders."""
    vectors = torch.randn(3, 1, 32, generator=torch.manual_seed(0))
    frame = np.random.default_rng(0).integers(0, 256, (1, 448, 448, 3), dtype=np.uint8)
    return {"frames": frame, "face": vectors[0], "face_motion": vectors[1], "audio": vectors[2]}


@pytest.fixture(scope="module")
def theirs(llm, media, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    image = (torch.from_numpy(media["frames"]).permute(0, 3, 1, 2) / 255 - mean) / std
    vectors = torch.stack([media[name][0] for name in ("face", "face_motion", "audio")])[None]
    torch.save({"image": image, "vectors": vectors}, folder / "inputs.pt")
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
    return json.loads((folder / "result.json").read_text()), torch.load(folder / "result.pt"), folder


@pytest.fixture(scope="module")
def ours(llm, theirs, tmp_path_factory):
    """The preset, with small base models and the weights of the published model."""
    folder, bases = theirs[2], tmp_path_factory.mktemp("bases")
    assert convert([folder / "run.pth", folder / "eva.pth"], folder / "base")["complete"]
    paths = {
        "frames": folder / "base" / "eva", "audio": tiny.write_hubert(bases / "hubert"),
        "face": tiny.write_vit_mae(bases / "mae"), "face_motion": tiny.write_videomae(bases / "videomae"),
    }  # fmt: skip
    arguments = [f"model.encoders.{name}.path={path}" for name, path in paths.items()]
    arguments += [f"model.encoders.{name}.dtype=float32" for name in paths]
    arguments += [f"model.llm.path={llm}", "model.llm.dtype=float32", "model.sampling.n_motion_faces=4"]
    model, processor = build(model_spec(compose("train", ["model=emotion_llama", *arguments]).model, seed=0))
    assert start_from(model, folder / "base")["random"] == []
    processor.max_tokens = None  # the small LLM takes 512; its small vocabulary makes this text longer
    return model.eval(), processor


@pytest.mark.parametrize("task", TASKS)
def test_token_ids_and_places_of_soft_tokens_are_those_of_the_published_code(theirs, processor, task):
    row = processor.encode(messages_of(TASKS[task]), {name: torch.zeros(1, 1) for name in SAMPLE.modalities})
    ids = processor.placeholder_token_ids
    places = [*[ids["frames"]] * 256, ids["face"], ids["face_motion"], ids["audio"], ids["frames"]]
    prompt = [places[-token - 1] if token < 0 else token for token in theirs[0][task]["prompt"]]
    assert row["input_ids"].tolist() == prompt + theirs[0][task]["answer"]
    assert row["labels"].tolist() == [-100] * len(prompt) + theirs[0][task]["answer"]


def test_soft_tokens_and_loss_are_those_of_the_published_model(theirs, ours, media):
    model, processor = ours
    batch = processor.collate([processor.encode(messages_of("description"), media)])
    with torch.no_grad():
        loss = model(**batch).loss
        batch.pop("labels")
        embeds = model.embed(batch.pop("input_ids"), batch)[0]
    prompt = theirs[1]["prompt"]
    difference = (embeds[: len(prompt)] - prompt).abs().max()
    print(f"embeddings {difference:.2g} of {prompt.abs().max():.3g}; loss {loss:.6f}, theirs {theirs[1]['loss']:.6f}")
    torch.testing.assert_close(embeds[: len(prompt)], prompt, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, theirs[1]["loss"], rtol=1e-5, atol=1e-5)


def test_the_written_answer_is_that_of_the_published_model(theirs, ours, media):
    model, processor = ours
    row = processor.encode(messages_of("description")[:-1], media)
    (answer,) = answers(model, processor, [row], GenerateConfig(max_new_tokens=12))
    assert list(answer.tokens) == theirs[1]["answer"][: len(answer.tokens)]
