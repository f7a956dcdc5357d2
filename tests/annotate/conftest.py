"""Small clips, and the command as a function."""

from __future__ import annotations

import contextlib
import csv
import json
import wave
from pathlib import Path

import numpy as np
import pytest

from affectgpt.annotate.run import run_annotation
from affectgpt.cli import compose
from affectgpt.demo.performance import Identity, Performance, Voice
from affectgpt.demo.voice import render_voice
from affectgpt.schema import Sample, write_jsonl
from tests.data.conftest import write_clip

QUIET = ("speech=none", "faces.detector=none")
"""Nothing is looked for in the media, so that processes of tests with another subject do not load torch."""

LINE = "I can not believe that you really told him"


def write_sound(path: Path, samples: np.ndarray, rate_hz: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_clips(folder: Path, n: int, *, seconds: float = 0.6, subtitle: str | None = "You told him.") -> Path:
    """A manifest of `n` short audio files that all differ."""
    voice = render_voice(Performance(seconds, Identity(1), voice=Voice(), text=LINE))
    samples = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        name = f"clip{number:05d}"
        voice[-1] = (3 * number + 1) / 32767  # one sample makes the file differ, also when sent as 16 bit
        write_sound(folder / f"{name}.wav", voice)
        samples.append(Sample(id=name, audio=f"{name}.wav", subtitle=subtitle))
    write_jsonl(folder / "clips.jsonl", samples)
    return folder / "clips.jsonl"


@pytest.fixture(autouse=True)
def decoding_in_this_process(request, monkeypatch) -> None:
    """Starting processes for the decoder takes longer than these clips; tests of them are marked `isolated`."""
    if "isolated" not in request.keywords:
        monkeypatch.setattr("affectgpt.annotate.single.isolated_media", contextlib.nullcontext)


@pytest.fixture
def clips(tmp_path) -> Path:
    return write_clips(tmp_path / "clips", 4)


@pytest.fixture
def films(tmp_path) -> Path:
    """Two clips with pictures and sound and one without sound; the first has an OpenFace table."""
    samples = []
    for number in range(3):
        write_clip(tmp_path / f"film{number}.mp4", seed=number, n_frames=12, seconds=1.2, sound=number != 2)
        samples.append(Sample(id=f"film{number}", video=f"film{number}.mp4", subtitle="You told him."))
    write_jsonl(tmp_path / "films.jsonl", samples)
    (tmp_path / "openface").mkdir()
    with (tmp_path / "openface" / "film0.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["frame", " timestamp", " confidence", " success", " AU06_r", " AU12_r", " AU45_r"])
        for frame in range(12):
            out.writerow([frame + 1, frame / 10, 0.97, 1, 2.0 if frame > 5 else 0.0, 3.0 if frame == 8 else 1.0, 0.1])
    return tmp_path / "films.jsonl"


def settings(manifest: Path, out: Path, *more: str) -> list[str]:
    return [f"input=['{manifest}']", f"out='{out}'", *more]


def served(url: str, *more: str) -> list[str]:
    """Settings that ask the test server for everything."""
    return [
        "annotator=openai",
        "annotator.model=toy",
        f"annotator.base_url={url}",
        "annotator.sees=[images,sound]",
        "annotator.backoff_s=0.01",
        *more,
    ]


def annotate(manifest: Path, out: Path, *more: str) -> int:
    """python -m affectgpt.annotate <manifest> out=<out> ..."""
    return run_annotation(compose("annotate", settings(manifest, out, *more)))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
