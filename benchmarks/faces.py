"""Faces and speech of a clip: python benchmarks/faces.py [--clips FOLDER_OR_CLIP ...] [--rounds 3] [--detectors ...]

Times each step on one core, as the median of the rounds: decoding alone (8 frames), decoding and faces in one pass,
measuring, and speech (silero-vad, if installed). Without --clips, it writes a 4-s clip of 1280 x 720 at 25 frames/s
with the portrait that matplotlib carries, which moves, and a tone. The aim is faces and speech of such a clip in 1.5 s
on one core. With several clips it also times them in processes, one for each core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from affectgpt.annotate.clips import read_nearest
from affectgpt.annotate.face import Shown, evenly
from affectgpt.config import FacesConfig
from affectgpt.data.sources import samples_from_paths
from affectgpt.demo.video import write_mp4
from affectgpt.media import NoAudioStream, probe, read_audio, read_frames
from affectgpt.media.faces import FaceTracks, measure_face, read_with_faces, track, track_and_keep
from affectgpt.runtime import MissingLibrary, n_cores
from affectgpt.tables import format_table

AIM_S = 1.5


def write_clip(path: Path) -> Path:
    """The portrait of Grace Hopper (US Navy) moves over a grey 720p picture for 4 s."""
    import matplotlib

    picture = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    frames = np.full((100, 720, 1280, 3), 110, np.uint8)
    for number, frame in enumerate(frames):
        frame[60:660, 200 + 3 * number : 712 + 3 * number] = np.asarray(picture.resize((512, 600)))
    times_s = np.arange(4 * 16000) / 16000
    write_mp4(path, frames, rate_hz=25, waveform=(0.2 * np.sin(2 * np.pi * 220 * times_s)).astype(np.float32))
    return path


def timed(work: Callable[[], Any], rounds: int, *, warm: bool = True) -> tuple[float, float, Any]:
    """Medians of wall clock and CPU time in seconds, and the last result; with `warm`, after a round more."""
    result = work() if warm else None
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus), result


def speech_of(path: Path) -> float | None:
    """The share of speech; None without sound or without the detector."""
    from affectgpt.media.speech import RATE_HZ, find_speech

    try:
        return find_speech(read_audio(path, RATE_HZ)).share
    except (NoAudioStream, MissingLibrary):
        return None


def one(path: Path, rounds: int, detectors: list[str]) -> None:
    info = probe(path)
    print(f"\n{path.name}: {info.duration_s or 0:.1f} s, {n_cores()} cores, load {os.getloadavg()[0]:.1f}")
    rows = [("step", "wall [s]", "CPU [s]", "found")]
    wall, cpu, _ = timed(lambda: read_frames(path, 8), rounds)
    rows.append(("decode, 8 frames", f"{wall:.2f}", f"{cpu:.2f}", ""))
    total_s = 0.0
    for detector in detectors:
        settings = FacesConfig(detector=detector)
        wall, cpu, tracks = timed(lambda settings=settings: track(path, settings), rounds)
        rows.append((f"decode and faces, {detector}", f"{wall:.2f}", f"{cpu:.2f}", found_in(tracks)))
        total_s = total_s or cpu
        if detector == detectors[0]:
            wall, cpu, _ = timed(lambda settings=settings: read_with_faces(path, {}, settings), rounds)
            rows.append(("decode, faces and crops, without irises", f"{wall:.2f}", f"{cpu:.2f}", ""))
            wall, cpu, measures = timed(lambda tracks=tracks: measure_face(tracks), rounds)
            n = 0 if measures is None else len(measures.movements)
            rows.append(("measures", f"{wall:.2f}", f"{cpu:.2f}", f"{n} movements"))
            total_s += cpu
            rows += pictures(path, settings, rounds)
    wall, cpu, share = timed(lambda: speech_of(path), rounds)
    rows.append(
        ("speech", f"{wall:.2f}", f"{cpu:.2f}", "no sound, or no detector" if share is None else f"{share:.0%}")
    )
    print(format_table(rows))
    print(f"faces and speech with {detectors[0]}: {total_s + cpu:.2f} s CPU (aim for 4 s of 720p: {AIM_S} s)")


def pictures(path: Path, settings: FacesConfig, rounds: int) -> list[tuple[str, str, str, str]]:
    """Rows: the pictures that annotation shows, from the pass that finds the faces, and from a second one; in turns."""
    shown = Shown(of_face=True, counts=(3,))
    tracks, kept = track_and_keep(path, settings, (), shown)
    times_s = [time_s for time_s in kept if time_s not in evenly(tracks, 3)] or evenly(tracks, 3)
    ways = {
        "faces and pictures to show, one pass": lambda: track_and_keep(path, settings, (), shown),
        "faces and pictures to show, two passes": lambda: (track(path, settings), read_nearest(path, times_s)),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(timed(way, 1, warm=False)[:2])
    rows = []
    for name, pairs in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append((name, f"{wall:.2f}", f"{cpu:.2f}", f"{len(times_s)} pictures"))
    return rows


def found_in(tracks: FaceTracks) -> str:
    seen = ", ".join(f"{len(person)}" for person in tracks.persons)
    return f"{len(tracks.persons)} persons in {seen or 0} of {tracks.n_frames} frames"


def folder(paths: list[Path]) -> None:
    print(f"\n{len(paths)} clips")
    for n in sorted({1, n_cores()}):
        with ProcessPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(track, paths[:n]))  # imports
            start = time.perf_counter()
            list(pool.map(track, paths))
            print(f"  {n} processes: {time.perf_counter() - start:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", nargs="*", type=Path, default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--detectors", nargs="*", default=["blazeface", "dlib"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        samples = samples_from_paths(options.clips)
        paths = [Path(sample.video) for sample in samples if sample.video]
        if options.clips and not paths:
            parser.error("no video among --clips")
        paths = paths or [write_clip(Path(temporary) / "portrait_720p.mp4")]
        for path in paths:
            one(path, options.rounds, options.detectors)
        if len(paths) > 1:
            folder(paths)


if __name__ == "__main__":
    main()
