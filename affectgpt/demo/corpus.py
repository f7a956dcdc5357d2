"""The embedded corpus: short talking-face clips as mp4 files, and their manifests.

    clips/<set>/<id>.mp4     h264 and aac
    coarse.jsonl             720 clips, annotated with the errors of automatic labelling
    fine.jsonl               332 correctly annotated clips: splits train (266) and test (66)
    truth.jsonl              scene and true labels of every clip, and the annotation errors in the coarse set
    complete.json            the parameters; written last

Every clip shows a different person, so sets share no identities. The same parameters give the same files, regardless of
the number of processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from affectgpt.clauses import fit, join
from affectgpt.demo.emotions import FEELINGS, Scene, draw_scene, perform
from affectgpt.demo.face import render_face
from affectgpt.demo.text import (
    N_LINES,
    Clues,
    automatic_clues,
    checked_clues,
    clauses_of,
    labels_in_chinese,
    subtitle_of,
)
from affectgpt.demo.video import write_mp4
from affectgpt.demo.voice import render_voice
from affectgpt.runtime import InputError, log, n_cores, stable_hash, write_json_atomic
from affectgpt.schema import Sample, write_jsonl
from affectgpt.spread import Processes

CODE_VERSION = "5"
"""Increased when the same parameters give different files."""

N_COARSE, N_FINE = 720, 332
TEST_SHARE = 66 / 332  # EMER-Fine: 266 training and 66 test samples
FRAME_RATE_HZ = 12.5
SIZE_PX = 112
UNVOICED_SHARE = 0.03
"""Fraction of the coarse clips without an audio stream."""

MARKER = "complete.json"
_PERSONS = {"coarse": 2, "fine": 3}  # first person of each set, in millions; the base models use 4


def corpus_folder(cache: str | os.PathLike[str], **parameters: int) -> Path:
    """Folder of a corpus with these parameters (those of `build_corpus` except n_processes) below `cache`."""
    return Path(cache) / f"corpus-{stable_hash([CODE_VERSION, _with_defaults(parameters)])[:12]}"


def build_corpus(folder: str | os.PathLike[str], *, n_processes: int | None = None, **parameters: int) -> None:
    """Render the corpus into `folder` unless it exists; about 1,050 clips of 2 to 3.5 s with the defaults.

    The folder is written atomically, and by one process if several need it. A set without clips has no manifest.

    Args:
        n_processes: None = one per available core.
        parameters: seed of all random choices, n_coarse and n_fine clips, size_px of the frames.

    Raises:
        InputError: the folder contains something else.
    """
    chosen = _with_defaults(parameters)
    seed, n_coarse, n_fine, size_px = (chosen[name] for name in ("seed", "n_coarse", "n_fine", "size_px"))
    with build_once(Path(folder), {"code": CODE_VERSION, **chosen}) as target:
        if target is None:
            return
        scenes = {name: part for name, part in draw_scenes(seed, n_coarse, n_fine).items() if part}
        for name in scenes:
            (target / "clips" / name).mkdir(parents=True)
        clips = [(scene, target / _clip(name, n)) for name, part in scenes.items() for n, scene in enumerate(part)]
        rendered = processes_for(len(clips), n_processes).map(partial(render_clip, size_px=size_px), clips)
        for _ in tqdm(rendered, total=len(clips), desc=f"rendering {' and '.join(scenes)} clips", unit="clip"):
            pass
        n_test = round(n_fine * TEST_SHARE)
        truth = []
        for name, part in scenes.items():
            observe = automatic_clues if name == "coarse" else checked_clues
            rows = []
            for number, scene in enumerate(part):
                split = "train"
                if name == "fine" and number >= n_fine - n_test:
                    split = "test"
                clues = observe(scene)
                rows.append(sample_of(name, number, scene, clues, split))
                scene_row = {"scene": asdict(scene), "labels": scene.labels, "errors": clues.errors}
                truth.append({"id": rows[-1].id, **scene_row})
            write_jsonl(target / f"{name}.jsonl", rows)
        lines = (json.dumps(row, ensure_ascii=False) for row in truth)
        (target / "truth.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def draw_scenes(seed: int, n_coarse: int, n_fine: int) -> dict[str, list[Scene]]:
    """The scenes of each set, each with a different person; in `fine`, training clips come before test clips."""
    n_test = round(n_fine * TEST_SHARE)
    scenes: dict[str, list[Scene]] = {}
    for name, counts in {"coarse": [n_coarse], "fine": [n_fine - n_test, n_test]}.items():
        rng = np.random.default_rng([seed, _PERSONS[name]])
        scenes[name] = []
        # Feelings are balanced within each split, so that the 66 test clips cover all of them.
        for feeling in (feeling for count in counts for feeling in _balanced(count, rng)):
            person = ((seed * 10) + _PERSONS[name]) * 1_000_000 + len(scenes[name])
            scene = draw_scene(rng, person=person, n_lines=N_LINES, feeling=feeling)
            if name == "coarse" and rng.random() < UNVOICED_SHARE:
                scene = Scene(**{**asdict(scene), "voiced": False})
            scenes[name].append(scene)
    return scenes


def render_clip(job: tuple[Scene, Path], *, size_px: int) -> None:
    """Write the mp4 file of one scene."""
    scene, path = job
    performance = perform(scene, subtitle_of(scene))
    frames = render_face(performance, size_px=size_px, rate_hz=FRAME_RATE_HZ)
    write_mp4(path, frames, rate_hz=FRAME_RATE_HZ, waveform=render_voice(performance))


@contextlib.contextmanager
def build_once(folder: Path, parameters: dict) -> Iterator[Path | None]:
    """Yield a temporary folder that becomes `folder` when it is filled, or None if `folder` was built already.

    A lock file next to the folder makes other processes wait. The marker with the parameters is written last, and an
    interrupted build leaves no folder of that name.

    Raises:
        InputError: `folder` exists, but was not built with these parameters.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is building %s; waiting for it", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            _check_built(folder, parameters)
            yield None
            return
        for leftover in folder.parent.glob(f".{folder.name}.tmp*"):  # left by a killed build; we hold the lock
            shutil.rmtree(leftover)
        target = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp", dir=folder.parent))
        try:
            yield target
            write_json_atomic(target / MARKER, parameters)
            os.chmod(target, 0o755)  # mkdtemp creates private folders
            os.replace(target, folder)
        finally:
            if target.exists():
                shutil.rmtree(target)


def _check_built(folder: Path, parameters: dict) -> None:
    marker = folder / MARKER
    if not marker.is_file():
        raise InputError(
            f"{folder} has no {MARKER}, so it was not built by this command; remove it or use another folder"
        )
    found = json.loads(marker.read_text())
    if found != parameters:
        raise InputError(f"{folder} was built with {found}, expected {parameters}; remove it or use another folder")


def _with_defaults(parameters: dict[str, int]) -> dict[str, int]:
    defaults = {"seed": 0, "n_coarse": N_COARSE, "n_fine": N_FINE, "size_px": SIZE_PX}
    if unknown := sorted(set(parameters) - set(defaults)):
        raise ValueError(f"unknown parameters {unknown}; expected some of {sorted(defaults)}")
    return {**defaults, **parameters}


def processes_for(n_tasks: int, n_processes: int | None = None) -> Processes:
    """`n_processes` (None = one per core), but at least 8 tasks for each, since starting one takes about a second."""
    return Processes(min(n_processes or n_cores(), max(1, n_tasks // 8)))


def _balanced(count: int, rng: np.random.Generator) -> list[str]:
    """`count` feelings in random order; the number of occurrences differs by at most one."""
    order: list[str] = []
    while len(order) < count:
        order += [list(FEELINGS)[place] for place in rng.permutation(len(FEELINGS))]
    return order[:count]


def _id(name: str, number: int) -> str:
    return f"{name}_{number:04d}"


def _clip(name: str, number: int) -> str:
    return f"clips/{name}/{_id(name, number)}.mp4"


def sample_of(name: str, number: int, scene: Scene, clues: Clues, split: str) -> Sample:
    rng = np.random.default_rng((scene.person, scene.take, 2))
    chinese = clauses_of(clues, "zh", rng)
    english = clauses_of(clues, "en", rng)
    translation = {
        "subtitle": subtitle_of(scene, "zh"),
        "description": join(fit(chinese, clues.known), "zh"),
        "labels": labels_in_chinese(clues.labels),
        "clauses": chinese,
    }
    return Sample(
        id=_id(name, number),
        video=_clip(name, number),
        subtitle=subtitle_of(scene),
        description=join(fit(english, clues.known), "en"),
        labels=clues.labels,
        clauses=english,
        label=clues.feeling.basic,
        valence=clues.feeling.valence if clues.errors else scene.valence,
        translations={"zh": translation},
        split=split,
    )
