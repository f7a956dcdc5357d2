"""The preset affectgpt_v2 next to the published code: MERTOOLS=/path/to/MERTools PUBLISHED_PYTHON=/env/bin/python.

The environment needs torch, transformers 4.49, peft 0.13, timm, omegaconf, einops, pandas, ftfy, torchvision
and OpenCV.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from affectgpt.cli import compose
from affectgpt.config import GenerateConfig, SamplingConfig
from affectgpt.convert.conversion import convert
from affectgpt.data.clips import load_clip
from affectgpt.inference.answers import answers
from affectgpt.media import audio_windows
from affectgpt.models import AffectGPTProcessor, build, model_spec
from affectgpt.models.pretrained import start_from
from affectgpt.prompts import render
from affectgpt.schema import SLOTS, Sample
from tests.models import tiny

ROOT, PYTHON = os.environ.get("MERTOOLS"), os.environ.get("PUBLISHED_PYTHON")
CODE = Path(ROOT or ".") / "MER2025" / "MER2025_Track23"
pytestmark = pytest.mark.skipif(
    not (ROOT and PYTHON), reason="runs the published code: set MERTOOLS and PUBLISHED_PYTHON (docs/fidelity.md)"
)
SAMPLE = {
    "subtitle": 'So "fine" ... <audio', "description": "Her voice trembles (a lot)! Sad.", "ovlabel": "sad, nervous",
}  # fmt: skip
SHOWN = {
    "multiface_audio_face_text": ("audio", "face"),
    "multiface_audio_face_frame_text": ("audio", "frames", "face"),
    "frame": ("audio", "frames"),
    "textonly": (),
}
TASKS = {"description": "description", "ovlabel": "labels"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = size | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    vision = size | {"image_size": 224, "patch_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(
            folder / "clip"
        )
    settings = {
        "image_processor_type": "CLIPImageProcessor", "feature_extractor_type": "CLIPFeatureExtractor",
        "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    llm = tiny.write_qwen2(folder / "llm")
    tokenizer = json.loads((llm / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (llm / "tokenizer_config.json").write_text(json.dumps(tokenizer))  # a name that transformers 4.49 knows, too
    return {
        "llm": llm,
        "hubert": tiny.write_hubert(folder / "hubert", n_layers=4),
        "clip": folder / "clip",
    }


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=70_001) * np.linspace(0.1, 1, 70_001)).astype(np.float32)


@pytest.fixture(scope="module")
def theirs(bases, sound, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    smooth = np.kron(np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3)), np.ones((1, 14, 14, 1)))
    np.save(folder / "face.npy", smooth.astype(np.uint8))  # five crops of 126 px, blue-green-red
    large = np.random.default_rng(1).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    np.save(folder / "large.npy", large)  # of CLIP's size, so that nothing is resized
    ranges = audio_windows(len(sound), 16000, window_s=2.0, max_windows=8, mode="published")
    torch.save({"windows": torch.from_numpy(np.stack([sound[a:b] for a, b in ranges]))}, folder / "inputs.pt")
    values = {name: str(path) for name, path in bases.items()}
    values |= {"sample": SAMPLE, "shown": list(SHOWN), "face": str(folder / "face.npy")}
    # Rows of the padded vocabulary that are our placeholders: no model with real weights writes them.
    n_words = len(AutoTokenizer.from_pretrained(bases["llm"]))
    values["suppressed"] = list(range(n_words, n_words + len(SLOTS)))
    values["large_face"] = str(folder / "large.npy")
    (folder / "task.json").write_text(json.dumps(values))
    command = [PYTHON, str(Path(__file__).with_name("published_v2.py")), str(CODE), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "result.pt"), folder


@pytest.fixture(scope="module")
def ours(bases):
    arguments = ["model=affectgpt_v2", f"model.llm.path={bases['llm']}", f"model.encoders.audio.path={bases['hubert']}"]
    arguments += [f"model.encoders.{name}.path={bases['clip']}" for name in ("face", "frames")]
    arguments += [f"model.encoders.{name}.dtype=float32" for name in ("audio", "face", "frames")]
    spec = model_spec(compose("train", [*arguments, "model.llm.dtype=float32"]).model, seed=0)
    return build(spec)


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("task", TASKS)
def test_token_ids_of_prompt_and_answer_are_those_of_the_published_data_set(theirs, bases, task, shown):
    tokenizer = AutoTokenizer.from_pretrained(bases["llm"])
    branches = {name: {"n_tokens": 1} for name in ("audio", "frames", "face", "multi")}
    branches["multi"]["sources"] = ["face", "audio"]
    processor = AffectGPTProcessor(tokenizer, branches=branches, prompt_format="affectgpt_v2")
    labels = tuple(SAMPLE["ovlabel"].split(", "))
    sample = Sample(
        id="a", subtitle=SAMPLE["subtitle"], description=SAMPLE["description"], labels=labels, modalities=SHOWN[shown]
    )
    messages = render(sample, task=TASKS[task], prompt_format="affectgpt_v2", with_answer=True)
    row = processor.encode(messages, {name: torch.zeros(1, 1) for name in SHOWN[shown]})
    ids, wanted = theirs[0]["ids"][f"{task} {shown}"]
    same = {place: processor.placeholder_token_ids[name] for name, place in theirs[0]["placeholders"].items()}
    assert row["input_ids"].tolist() == [same.get(token, token) for token in ids.tolist()]
    assert row["labels"].tolist() == wanted.tolist()


def test_sound_states_are_the_published_ones(theirs, ours, sound):
    model, processor = ours
    states = model.encode(processor.media("audio", tiny.Sound(sound)))["audio"]
    print(f"largest difference {(states - theirs[0]['audio']).abs().max():.2g} of {states.abs().max():.3g}")
    torch.testing.assert_close(states, theirs[0]["audio"], rtol=1e-4, atol=1e-4)


def test_face_states_are_the_published_ones(theirs, ours):
    model, processor = ours
    sample = Sample(id="a", face=str(theirs[1] / "face.npy"))
    crops = load_clip(sample, ("face",), SamplingConfig(short_clips="last")).arrays["face"]
    states = model.encode(processor.media("face", crops))["face"]
    scale = theirs[0]["face"].abs().max()
    print(f"largest difference {(states - theirs[0]['face']).abs().max():.2g} of {scale:.3g}")
    assert (states - theirs[0]["face"]).abs().max() / scale < 0.02  # OpenCV rounds some pixels to the next value


@pytest.fixture(scope="module")
def converted(theirs, ours):
    """Our model with the weights of the published one, and its input for the clip."""
    folder = theirs[1]
    assert convert([folder / "run.pth"], folder / "base")["complete"]
    model, processor = ours
    assert start_from(model, folder / "base")["random"] == []
    return model.eval(), processor


def row_of(processor, theirs, sound, answer: str | None):
    sample = Sample(
        id="a", subtitle=SAMPLE["subtitle"], face=str(theirs[1] / "large.npy"), modalities=("audio", "face"),
        description="", labels=tuple(SAMPLE["ovlabel"].split(", ")),
    )  # fmt: skip
    crops = load_clip(sample, ("face",), SamplingConfig(short_clips="last")).arrays["face"]
    messages = render(sample, task="labels", prompt_format="affectgpt_v2")
    return processor.encode(messages, {"audio": tiny.Sound(sound), "face": crops}, answer)


def test_soft_tokens_and_loss_are_those_of_the_published_model(theirs, converted, sound):
    model, processor = converted
    answer = f"The character's emotional state is {SAMPLE['ovlabel']}."
    batch = processor.collate([row_of(processor, theirs, sound, answer)])
    with torch.no_grad():
        loss = model(**batch).loss
        batch.pop("labels")
        embeds = model.embed(batch.pop("input_ids"), batch)[0]
    prompt = theirs[0]["prompt"]
    difference = (embeds[: len(prompt)] - prompt).abs().max()
    print(f"embeddings {difference:.2g} of {prompt.abs().max():.3g}; loss {loss:.6f}, theirs {theirs[0]['loss']:.6f}")
    torch.testing.assert_close(embeds[: len(prompt)], prompt, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, theirs[0]["loss"], rtol=1e-5, atol=1e-5)


def test_the_written_answer_is_that_of_the_published_model(theirs, converted, sound):
    model, processor = converted
    (answer,) = answers(model, processor, [row_of(processor, theirs, sound, None)], GenerateConfig(max_new_tokens=12))
    assert list(answer.tokens) == theirs[0]["answer"][: len(answer.tokens)]
