"""The preset emotion_llama_v2 next to the published code: EMOTION_LLAMA_V2=/path/to/it PUBLISHED_PYTHON=..."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from affectgpt.cli import compose
from affectgpt.config import GenerateConfig
from affectgpt.convert.conversion import convert
from affectgpt.inference.answers import answers
from affectgpt.models import build, model_spec
from affectgpt.models.assemble import CLIP_MEAN, CLIP_STD
from affectgpt.models.pretrained import start_from
from affectgpt.prompts import render
from affectgpt.schema import Sample
from tests.models import tiny

ROOT, PYTHON = os.environ.get("EMOTION_LLAMA_V2"), os.environ.get("PUBLISHED_PYTHON")
pytestmark = pytest.mark.skipif(
    not (ROOT and PYTHON),
    reason="runs the published code: set EMOTION_LLAMA_V2 and PUBLISHED_PYTHON (docs/fidelity.md)",
)
LABELS = ("happy", "sad", "neutral", "angry", "worried", "surprise")
SAMPLE = Sample(
    id="a", subtitle="Fine, so be it", description="", label="sad", modalities=("audio", "frames", "motion")
)  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny.write_llama(tmp_path_factory.mktemp("llm") / "llm")


@pytest.fixture(scope="module")
def media():
    """One frame of the encoder's size, so that nothing is resized, and the pooled states of the other encoders."""
    states = torch.randn(2, 64, 32, generator=torch.manual_seed(0))
    frame = np.random.default_rng(0).integers(0, 256, (1, 448, 448, 3), dtype=np.uint8)
    return {"frames": frame, "audio": states[0], "motion": states[1]}


def messages(shown=SAMPLE.modalities):
    return render(SAMPLE, task="fixed", candidates=LABELS, prompt_format="emotion_llama_v2", modalities=shown)


@pytest.fixture(scope="module")
def theirs(llm, media, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    source = (Path(str(ROOT)) / "minigpt4/datasets/datasets/mer_datasets.py").read_text()
    asked = f"Please determine which emotion label in the video represents: {', '.join(LABELS)}."
    said, layout = "The person in video says: {}. ", "<Vid><VideoHere></Vid> {} [{}] {} "
    assert all(f'"{text}"' in source for text in (asked, said, layout))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    image = (torch.from_numpy(media["frames"]).permute(0, 3, 1, 2) / 255 - mean) / std
    inputs = {"image": image, "audio": media["audio"][None, None], "video": media["motion"][None, None]}
    torch.save(inputs, folder / "inputs.pt")
    instruction = layout.format(said.format(SAMPLE.subtitle), "emotion", asked)
    (folder / "task.json").write_text(json.dumps({"llm": str(llm), "instruction": instruction, "answer": "sad"}))
    command = [PYTHON, str(Path(__file__).with_name("published_emotion_llama.py")), str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "result.pt"), folder


@pytest.fixture(scope="module")
def ours(llm, theirs, tmp_path_factory):
    """The preset, with small base models and the weights of the published model."""
    folder, bases = theirs[1], tmp_path_factory.mktemp("bases")
    (folder / "frames").mkdir()
    report = convert([folder / "run.pth", folder / "eva.pth"], folder / "base")
    assert [output["name"] for output in report["outputs"] if not output["complete"]] == ["eva_video"]  # 39 blocks only
    paths = {"frames": folder / "base" / "eva", "motion": folder / "base" / "eva"}
    paths |= {"audio": tiny.write_whisper(bases / "whisper")}
    arguments = [f"model.encoders.{name}.path={path}" for name, path in paths.items()]
    arguments += [f"model.encoders.{name}.dtype=float32" for name in paths]
    arguments += [f"model.llm.path={llm}", "model.llm.dtype=float32"]
    model, processor = build(model_spec(compose("train", ["model=emotion_llama_v2", *arguments]).model, seed=0))
    assert start_from(model, folder / "base")["random"] == []
    processor.max_tokens = None  # the small LLM takes 512; its small vocabulary makes this text longer
    return model.eval(), processor


def loss_of(model, processor, media, shown):
    row = processor.encode(messages(shown), {name: media[name] for name in shown}, "sad")
    with torch.no_grad():
        return model(**processor.collate([row])).loss


def test_soft_tokens_and_loss_are_those_of_the_published_model(theirs, ours, media):
    model, processor = ours
    batch = processor.collate([processor.encode(messages(), media, "sad")])
    with torch.no_grad():
        batch.pop("labels")
        embeds = model.embed(batch.pop("input_ids"), batch)[0]
    prompt, loss = theirs[0]["prompt"], loss_of(model, processor, media, SAMPLE.modalities)
    difference = (embeds[: len(prompt)] - prompt).abs().max()
    print(f"embeddings {difference:.2g} of {prompt.abs().max():.3g}; loss {loss:.6f}, theirs {theirs[0]['loss']:.6f}")
    torch.testing.assert_close(embeds[: len(prompt)], prompt, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, theirs[0]["loss"], rtol=1e-5, atol=1e-5)


def test_an_absent_stream_gives_the_loss_of_the_published_mask(theirs, ours, media):
    """Where that mask is used: the published `prompt_wrap` drops it, so that projections of zeros are seen instead."""
    model, processor = ours
    loss, expected = loss_of(model, processor, media, ("audio", "frames")), theirs[0]["loss without video"]
    others = {name: float(value) for name, value in theirs[0].items() if name.startswith("loss")}
    print(f"loss {loss:.6f}, theirs {others}")
    assert abs(expected - theirs[0]["loss"]) > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_the_written_answer_is_that_of_the_published_model(theirs, ours, media):
    model, processor = ours
    row = processor.encode(messages(), media)
    (answer,) = answers(model, processor, [row], GenerateConfig(max_new_tokens=12))
    assert list(answer.tokens) == theirs[0]["answer"][: len(answer.tokens)]
