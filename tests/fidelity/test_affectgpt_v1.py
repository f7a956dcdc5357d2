"""The preset affectgpt_v1 next to the published code: AFFECTGPT_PUBLISHED=/path/to/AffectGPT PUBLISHED_PYTHON=..."""

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
from affectgpt.models.pretrained import start_from
from affectgpt.prompts import render
from affectgpt.schema import Sample
from tests.models import tiny

ROOT, PYTHON = os.environ.get("AFFECTGPT_PUBLISHED"), os.environ.get("PUBLISHED_PYTHON")
CODE = Path(ROOT or ".") / "AffectGPT"
pytestmark = pytest.mark.skipif(
    not (ROOT and PYTHON),
    reason="runs the published code: set AFFECTGPT_PUBLISHED and PUBLISHED_PYTHON (docs/fidelity.md)",
)
SAMPLE = Sample(
    id="a", subtitle='So "fine" ... <audio', description="Her voice trembles (a lot)! Sad.",
    modalities=("audio", "frames"),
)  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny.write_llama(tmp_path_factory.mktemp("llm") / "llm")


@pytest.fixture(scope="module")
def inputs():
    """Eight frames of the encoder's size, so that nothing is resized, and a vector for each of eight windows."""
    frames = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
    return {"frames": torch.from_numpy(frames), "audio": torch.randn(8, 32, generator=torch.manual_seed(0))}


@pytest.fixture(scope="module")
def theirs(llm, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.save(inputs, folder / "inputs.pt")
    values = {"llm": str(llm), "subtitle": SAMPLE.subtitle, "description": SAMPLE.description}
    (folder / "task.json").write_text(json.dumps(values))
    command = [PYTHON, str(Path(__file__).with_name("published_v1.py")), str(CODE), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "result.pt"), folder


@pytest.fixture(scope="module")
def ours(llm, theirs, tmp_path_factory):
    """The preset, with small sizes and the weights of the published model."""
    folder = theirs[1]
    assert convert([folder / "run.pth", folder / "blip2_run.pth", folder / "eva.pth"], folder / "base")["complete"]
    hubert = tiny.write_hubert(tmp_path_factory.mktemp("hubert") / "hubert")
    arguments = [f"model.encoders.frames.path={folder / 'base' / 'eva_qformer'}", f"model.llm.path={llm}"]
    arguments += [f"model.encoders.audio.path={hubert}", "model.llm.dtype=float32"]
    arguments += [f"model.encoders.{name}.dtype=float32" for name in ("audio", "frames")]
    arguments += [f"model.projectors.{name}.hidden_size=24" for name in ("audio", "frames")]
    model, processor = build(model_spec(compose("train", ["model=affectgpt_v1", *arguments]).model, seed=0))
    assert start_from(model, folder / "base")["random"] == []
    return model.eval(), processor


def row_of(processor, inputs, *, answered: bool):
    messages = render(SAMPLE, task="description", prompt_format="affectgpt_v1", with_answer=answered)
    return processor.encode(messages, {"audio": inputs["audio"], "frames": inputs["frames"].numpy()})


def test_token_ids_and_places_of_soft_tokens_are_those_of_the_published_data_set(theirs, ours, inputs):
    row = row_of(ours[1], inputs, answered=True)
    same = {place: ours[1].placeholder_token_ids[name] for name, place in theirs[0]["placeholders"].items()}
    eos = ours[1].tokenizer.eos_token_id
    assert row["input_ids"].tolist() == [*(same.get(token, token) for token in theirs[0]["ids"].tolist()), eos]
    assert row["labels"].tolist() == [*theirs[0]["labels"].tolist(), eos]


def test_states_of_the_image_qformer_are_the_published_ones(theirs, ours, inputs):
    model, processor = ours
    states = model.encode(processor.media("frames", inputs["frames"].numpy()))["frames"]
    print(f"largest difference {(states - theirs[0]['states']).abs().max():.2g} of {states.abs().max():.3g}")
    torch.testing.assert_close(states, theirs[0]["states"], rtol=1e-4, atol=1e-4)


def test_soft_tokens_and_loss_are_those_of_the_published_model(theirs, ours, inputs):
    model, processor = ours
    row = row_of(processor, inputs, answered=True)
    n_ids = len(theirs[0]["ids"])
    row |= {key: row[key][:n_ids] for key in ("input_ids", "labels")}
    batch = processor.collate([row])
    with torch.no_grad():
        loss = model(**batch).loss
        batch.pop("labels")
        embeds = model.embed(batch.pop("input_ids"), batch)[0]
    prompt = theirs[0]["prompt"]
    difference = (embeds[: len(prompt)] - prompt).abs().max()
    print(f"embeddings {difference:.2g} of {prompt.abs().max():.3g}; loss {loss:.6f}, theirs {theirs[0]['loss']:.6f}")
    torch.testing.assert_close(embeds[: len(prompt)], prompt, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, theirs[0]["loss"], rtol=1e-5, atol=1e-5)


def test_the_written_answer_is_that_of_the_published_model(theirs, ours, inputs):
    model, processor = ours
    row = row_of(processor, inputs, answered=False)
    (answer,) = answers(model, processor, [row], GenerateConfig(max_new_tokens=12))
    assert list(answer.tokens) == theirs[0]["answer"][: len(answer.tokens)]
