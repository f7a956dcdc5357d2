import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from affectgpt.cli import compose
from affectgpt.demo.emotions import CHINESE, FEELINGS
from affectgpt.demo.models import build_base_models
from affectgpt.demo.performance import sample_curve
from affectgpt.demo.projectors import PEOPLE, Settings, build_projectors, demo_spec, draw_clip, render_media
from affectgpt.models import build, model_spec
from affectgpt.models.pretrained import start_from

SHORT = Settings(people=6, steps=3, batch=2, held_out=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "models"
    build_base_models(folder, n_processes=1)
    return folder


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    target = tmp_path_factory.mktemp("cache") / "projectors"
    build_projectors(target, models, effort=SHORT)
    return target


def clips(n=60):
    rng = np.random.default_rng(0)
    return [draw_clip(PEOPLE * 1_000_000 + number, rng) for number in range(n)]


def test_no_caption_names_a_feeling():
    rng = np.random.default_rng(1)
    words = {
        word for clip in clips(200) for word in re.findall(r"[a-z]+", clip.caption(("audio", "frames"), rng).lower())
    }
    feelings = {word for label in (*CHINESE, *FEELINGS) for word in label.lower().split()}
    assert not words & feelings
    assert "feels" not in words
    assert "seems" not in words


def test_captions_describe_only_the_given_modalities():
    rng = np.random.default_rng(0)
    for clip in clips():
        assert "voice" not in clip.caption(("frames", "motion"), rng)
        assert "clip" not in clip.caption(("audio",), rng)
        both = clip.caption(("audio", "frames"), rng)
        assert "voice" in both
        assert "clip" in both


def test_the_clip_matches_its_caption():
    for clip in clips():
        _, up = (sample_curve(curve, np.array([1.9]))[0] for curve in clip.performance.gaze)
        assert (up < -0.4) == ("lowered gaze" in clip.seen)
        loud = sample_curve(clip.performance.voice.loudness_db, np.array([0.5]))[0]
        assert (loud > 4) == ("loud" in clip.heard)
        assert (loud < -4) == ("quiet" in clip.heard)


def test_a_clip_is_rendered_as_audio_frames_and_motion_frames():
    media = render_media(clips(1)[0])
    assert media["frames"].shape == (8, 112, 112, 3)
    assert media["motion"].shape == (16, 112, 112, 3)
    assert len(media["audio"].samples) > 1.5 * 16000


def test_the_projectors_are_those_of_the_demo_preset(models, monkeypatch):
    names = {"demo:llm": "llm", "demo:hubert": "hubert", "demo:eva": "eva", "demo:videomae": "videomae"}
    monkeypatch.setattr(
        "affectgpt.cli.parser.embedded", lambda text, cache: str(models / names[text]) if text in names else text
    )
    spec = model_spec(compose("train", ["model=demo"]).model, seed=0)
    ours = demo_spec(models, seed=0)
    assert ours.encoders == dict(spec.encoders)
    assert ours.projectors == dict(spec.projectors)
    assert ours.sampling == spec.sampling


def test_a_model_is_initialised_from_them_strictly_and_they_are_trained(folder, models):
    model, _ = build(demo_spec(models, seed=3))
    before = model.projectors["frames"].project.output.weight.detach().clone()
    started = start_from(model, folder)
    assert started["pretrained"] == ["projectors.audio", "projectors.frames", "projectors.motion"]
    assert started["random"] == []
    assert not torch.equal(before, model.projectors["frames"].project.output.weight)
    losses = json.loads((folder / "projectors.json").read_text())["held_out_loss"]
    assert losses["pretrained"] < losses["random"]


def test_the_same_arguments_give_the_same_projectors_and_existing_ones_are_not_rebuilt(folder, models, tmp_path):
    changed = (folder / "projectors.safetensors").stat().st_mtime_ns
    build_projectors(folder, models, effort=SHORT)
    assert (folder / "projectors.safetensors").stat().st_mtime_ns == changed
    build_projectors(tmp_path / "again", models, effort=SHORT)
    once, again = load_file(folder / "projectors.safetensors"), load_file(tmp_path / "again" / "projectors.safetensors")
    assert all(torch.equal(once[name], again[name]) for name in once)
    shutil.rmtree(tmp_path / "again")


def test_without_model_init_pretrained_nothing_is_built(monkeypatch):
    asked = []
    monkeypatch.setattr("affectgpt.cli.parser.embedded", lambda text, cache: asked.append(text) or text)
    compose("train", ["model=demo"])
    assert "demo:projectors" not in asked
    compose("train", ["model=demo", "model.init=pretrained"])
    assert "demo:projectors" in asked
