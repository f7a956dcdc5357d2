"""A small world for whole-run tests: tiny base models in the real format, twelve real clips, a manifest, a config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from affectgpt import config as conf
from affectgpt.demo import embedded
from affectgpt.schema import Sample, write_jsonl
from tests.data.conftest import write_clip
from tests.models import tiny

# One thread a test process: tiny models gain nothing from more, and processes side by side starve each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

LABELS = (("happy", "proud"), ("sad",), ("angry", "hurt"), ("afraid", "nervous"))


@pytest.fixture(scope="session", autouse=True)
def few_embedded_clips():
    """What composes a command with data=demo in this process draws 27 small clips instead of 1052."""

    def with_few(function):
        few = {"n_coarse": 12, "n_fine": 15, "size_px": 32}
        return lambda folder, **given: function(folder, **{**few, **given})

    with pytest.MonkeyPatch.context() as patch:
        for name in ("corpus_folder", "build_corpus"):
            patch.setattr(embedded, name, with_few(getattr(embedded, name)))
        yield


@pytest.fixture(scope="session")
def base_models(tmp_path_factory) -> dict[str, Path]:
    return tiny.write_base_models(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """Twelve clips with labels and descriptions; the last one has no sound."""
    folder = tmp_path_factory.mktemp("clips")
    samples = []
    for number in range(12):
        name = f"clip{number}"
        write_clip(folder / f"{name}.mp4", seed=number, sound=number != 11)
        labels = LABELS[number % len(LABELS)]
        samples.append(
            Sample(
                id=name,
                video=f"{name}.mp4",
                subtitle="I see.",
                description=f"The person looks {labels[0]}.",
                labels=labels,
                split="test" if number >= 9 else "train",
            )
        )
    write_jsonl(folder / "m.jsonl", samples)
    return folder / "m.jsonl"


@pytest.fixture
def train_config(base_models, manifest, tmp_path) -> conf.TrainConfig:
    """Six steps of batch 2 on the nine training clips, all three branches, checkpoints every two steps."""
    return make_train_config(base_models, manifest, tmp_path)


def make_train_config(base_models: dict[str, Path], manifest: Path, folder: Path, **stage: Any) -> conf.TrainConfig:
    projector = {"n_queries": 3, "hidden_size": 16, "n_layers": 2, "n_heads": 2}
    modalities = ("audio", "frames", "motion")
    sampling = tiny.SAMPLING
    values = {
        "name": "coarse",
        "epochs": 2,
        "iterations_per_epoch": 3,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "warmup_steps": 2,
        "tasks": {"both": 0.5, "labels": 0.5},
        "modality_dropout": 0.2,
        "n_validation": 2,
        "validate_every": 3,
        "save_every": 2,
        "log_every": 1,
        "n_workers": 0,
    }
    return conf.TrainConfig(
        stage=conf.StageConfig(**{**values, **stage}),
        model=conf.ModelConfig(
            name="tiny",
            llm=conf.LLMConfig(path=str(base_models["llm"])),
            encoders={name: conf.EncoderConfig(path=str(base_models[name])) for name in modalities},
            projectors={name: conf.ProjectorConfig(**projector) for name in modalities},
            sampling=conf.SamplingConfig(
                n_frames=sampling.n_frames,
                n_motion_frames=sampling.n_motion_frames,
                window_s=sampling.window_s,
                max_windows=sampling.max_windows,
            ),
        ),
        data=conf.DataConfig(
            name="toy",
            coarse=[conf.SourceConfig(manifest=str(manifest), split="train")],
            fine=[conf.SourceConfig(manifest=str(manifest), split="train")],
            test=[conf.SourceConfig(manifest=str(manifest), split="test")],
        ),
        generate=conf.GenerateConfig(max_new_tokens=8),
        paths=conf.PathsConfig(cache=str(folder / "cache"), runs=str(folder / "runs")),
        device="cpu",
    )
