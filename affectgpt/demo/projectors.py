"""Pretrained projectors of the embedded demo (`demo:projectors`), for model=demo model.init=pretrained.

The counterpart of Video-LLaMA's pretraining on WebVid captions: clips of further people with a resting face, random
gaze and head pose and a random voice. Captions describe only these and name no emotion: "In the clip the gaze drops and
the head tilts. The voice is high and fast." The projectors learn to convey this to the frozen LLM.

Hair, clothes and background are not described, because the small LLM has no words for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from affectgpt import prompts
from affectgpt.config import EncoderConfig, LLMConfig, ProjectorConfig, SamplingConfig
from affectgpt.demo.corpus import build_once, processes_for
from affectgpt.demo.emotions import GESTURES, N_RESTING, RESTING_LEVEL, RESTING_UNITS
from affectgpt.demo.face import render_face
from affectgpt.demo.models import CODE_VERSION as MODELS_VERSION
from affectgpt.demo.models import RATE_HZ, in_one_thread, train
from affectgpt.demo.performance import Identity, Performance, Voice
from affectgpt.demo.text import LINES, gesture_words
from affectgpt.demo.voice import render_voice
from affectgpt.media import Waveform
from affectgpt.models import ModelSpec, build
from affectgpt.models.pretrained import save_start
from affectgpt.runtime import stable_hash
from affectgpt.schema import Sample

CODE_VERSION = "1"
"""Increased when the same parameters give different projectors."""

PEOPLE = 5  # first person, in millions; the corpus uses 2 and 3, the encoders' training data 4
POSES = ("lowered gaze", "averted gaze", "upward gaze", "bowed head", "raised chin", "tilted head", "turned head")
VOICES = {"pitch": ("low", "", "high"), "loudness": ("quiet", "", "loud"), "rate": ("slow", "", "fast")}
_SIZE_PX = 112
_N_FRAMES, _N_MOTION_FRAMES = 8, 16


@dataclass(frozen=True)
class Settings:
    """Amount of training; the defaults take about two minutes on two cores."""

    people: int = 400
    steps: int = 200
    batch: int = 8
    held_out: int = 48  # further people, used only to compute the loss


@dataclass(frozen=True)
class CaptionedClip:
    """A clip without emotion. `seen` and `heard` are clues for the caption; `spoken` is the subtitle."""

    performance: Performance
    seen: tuple[str, ...]
    heard: tuple[str, ...]
    spoken: str

    def caption(self, modalities: tuple[str, ...], rng: np.random.Generator) -> str:
        """A caption of the given modalities, in EMER style.

        >>> draw_clip(5_000_000, np.random.default_rng(0)).caption(("audio",), np.random.default_rng(0))
        'The voice ...'
        """
        parts = []
        if set(modalities) - {"audio"}:
            words = [gesture_words(name, rng) for name in self.seen] or ["the face stays still"]
            parts.append(f"In the clip {' and '.join(words)}.")
        if "audio" in modalities:
            parts.append(f"The voice is {' and '.join(self.heard)}." if self.heard else "The voice is even.")
        return " ".join(parts)


def projectors_folder(cache: str | os.PathLike[str], *, seed: int = 0, effort: Settings | None = None) -> Path:
    """Folder of the projectors with these parameters below `cache`."""
    return Path(cache) / f"projectors-{stable_hash(_parameters(seed, effort))[:12]}"


def build_projectors(
    folder: str | os.PathLike[str],
    models: str | os.PathLike[str],
    *,
    seed: int = 0,
    effort: Settings | None = None,
) -> None:
    """Train the projectors of conf/model/demo.yaml on captions and write them like a conversion, unless they exist.

    The same arguments give the same weights on the same machine.

    Args:
        models: folder of the base models (`affectgpt.demo.models.build_base_models`).
    """
    with build_once(Path(folder), _parameters(seed, effort)) as target:
        if target is not None:
            in_one_thread(partial(make_projectors, target, Path(models), seed=seed, effort=effort or Settings()))


def _parameters(seed: int, effort: Settings | None) -> dict[str, Any]:
    return {"code": CODE_VERSION, "models": MODELS_VERSION, "seed": seed, "effort": asdict(effort or Settings())}


def make_projectors(folder: Path, models: Path, *, seed: int, effort: Settings) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, PEOPLE])
    model, processor = build(demo_spec(models, seed))
    model.set_trainable(["projectors"])
    model.train()
    first = (seed * 10 + PEOPLE) * 1_000_000
    clips = [draw_clip(first + number, rng) for number in range(effort.people + effort.held_out)]
    rendered = processes_for(len(clips)).map(render_media, clips)
    media = tqdm(rendered, desc="drawing clips", unit="clip", total=len(clips), mininterval=1.0)
    states = [encode(model, processor, each) for each in media]
    held_out = range(effort.people, len(clips))

    def batch_of(numbers: np.ndarray | range, rng: np.random.Generator, shown: tuple[str, ...] | None = None) -> Any:
        rows = []
        for number in numbers:
            modalities = shown or _SHOWN[rng.choice(len(_SHOWN), p=_SHARES)]
            sample = Sample(id="caption", subtitle=clips[number].spoken, description="", modalities=modalities)
            (question,) = prompts.render(sample, task="description", modalities=modalities)
            media = {name: states[number][name] for name in modalities}
            rows.append(processor.encode([question], media, answer=clips[number].caption(modalities, rng)))
        return processor.collate(rows)

    def losses() -> Iterator[Tensor]:
        while True:
            yield model(**batch_of(rng.integers(effort.people, size=effort.batch), rng)).loss

    def held_out_loss() -> float:
        model.eval()
        with torch.no_grad():
            loss = float(model(**batch_of(held_out, np.random.default_rng(seed), model.modalities)).loss)
        model.train()
        return round(loss, 4)

    before = held_out_loss()
    train("projectors", [p for p in model.parameters() if p.requires_grad], losses(), effort.steps, rate=2e-3)
    losses_of_held_out = {"random": before, "pretrained": held_out_loss(), "clips": effort.held_out}
    save_start(model, folder, "captions of drawn people", "demo:projectors", held_out_loss=losses_of_held_out)


_SHOWN = (("audio", "frames", "motion"), ("audio",), ("frames",), ("motion",), ("audio", "frames"))
_SHARES = (0.4, 0.15, 0.15, 0.15, 0.15)


def demo_spec(models: Path, seed: int) -> ModelSpec:
    """The model of conf/model/demo.yaml."""
    encoders = {"audio": "hubert", "frames": "eva", "motion": "videomae"}
    qformer = ProjectorConfig(n_queries=8, n_layers=2, hidden_size=128, n_heads=4)
    return ModelSpec(
        llm=LLMConfig(path=str(models / "llm")),
        encoders={name: EncoderConfig(str(models / folder)) for name, folder in encoders.items()},
        projectors=dict.fromkeys(encoders, qformer),
        sampling=SamplingConfig(_N_FRAMES, _N_MOTION_FRAMES, rate_hz=RATE_HZ, window_s=10.0, max_windows=3),
        seed=seed,
    )


def draw_clip(person: int, rng: np.random.Generator) -> CaptionedClip:
    """A person with a resting face, a random head pose and gaze, who reads a line aloud."""
    duration_s = float(rng.uniform(2.0, 3.0))
    own = np.random.default_rng((person, 3))
    units = {
        str(unit): ((0.0, float(own.uniform(*RESTING_LEVEL))),)
        for unit in own.choice(RESTING_UNITS, N_RESTING, replace=False)
    }
    gazes, heads = (tuple(name for name in POSES if ("gaze" in name) == is_gaze) for is_gaze in (True, False))
    seen = tuple(options[rng.integers(len(options))] for options in (gazes, heads) if rng.random() < 0.65)
    side, onset_s = rng.choice((-1.0, 1.0)), float(rng.uniform(0.0, 0.4))
    gaze, head = own.uniform(-0.05, 0.05, size=2), own.uniform(-3, 3, size=3)
    gaze_end, head_end = gaze.copy(), head.copy()
    for name in seen:
        strength = rng.uniform(0.6, 1.1)
        gaze_end += np.array([side, 1.0]) * GESTURES[name].gaze * strength
        head_end += np.array([side, 1.0, side]) * GESTURES[name].head * strength

    def held(start: float, end: float, limit: float) -> tuple[tuple[float, float], ...]:
        return ((onset_s, float(start)), (onset_s + 0.3, float(np.clip(end, -limit, limit))))

    degrees = {name: int(rng.integers(3)) for name in VOICES}
    heard = tuple(VOICES[name][degree] for name, degree in degrees.items() if VOICES[name][degree])
    voice = Voice(
        pitch_ratio=((0.0, (0.78, 1.0, 1.32)[degrees["pitch"]] * float(rng.uniform(0.96, 1.04))),),
        loudness_db=((0.0, (-8.0, 0.0, 7.0)[degrees["loudness"]] + float(rng.uniform(-1, 1))),),
        syllable_rate_hz=(3.0, 4.2, 5.8)[degrees["rate"]] * float(rng.uniform(0.95, 1.05)),
    )
    lines = [english for situation in LINES.values() for english, _ in situation]
    spoken = lines[rng.integers(len(lines))]
    performance = Performance(
        duration_s=duration_s,
        identity=Identity(person),
        action_units=units,
        gaze=(held(gaze[0], gaze_end[0], 1.0), held(gaze[1], gaze_end[1], 1.0)),
        head=(held(head[0], head_end[0], 25), held(head[1], head_end[1], 25), held(head[2], head_end[2], 25)),
        voice=voice,
        text=spoken,
    )
    return CaptionedClip(performance, seen, heard, spoken)


def render_media(clip: CaptionedClip) -> dict[str, Any]:
    """Render audio, 8 frames and 16 motion frames of a clip."""
    rate_hz = _N_MOTION_FRAMES / clip.performance.duration_s
    motion = render_face(clip.performance, size_px=_SIZE_PX, rate_hz=rate_hz)[:_N_MOTION_FRAMES]  # [16, H, W, 3]
    samples = render_voice(clip.performance)
    audio = Waveform(samples, RATE_HZ, len(samples) / RATE_HZ, RATE_HZ, 1)
    return {"audio": audio, "frames": motion[:: _N_MOTION_FRAMES // _N_FRAMES], "motion": motion}


def encode(model: Any, processor: Any, media: dict[str, Any]) -> dict[str, Tensor]:
    """Encoder states of one clip."""
    tensors: dict[str, Tensor] = {}
    for name, value in media.items():
        tensors |= processor.media(name, value)
    return model.encode(tensors)
