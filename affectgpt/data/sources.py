"""Manifests, folders of videos and splits: lists of samples whose media have been looked at."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from affectgpt.media import MediaError, probe
from affectgpt.prompts import MODALITIES
from affectgpt.schema import BadSample, Sample, check_id, read_samples, write_jsonl

log = logging.getLogger("affectgpt")

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v")
SOUND_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a", ".ogg")

Item = TypeVar("Item")


def samples_from_paths(paths: Sequence[str | Path], subtitle: str | None = None) -> list[Sample]:
    """One sample a media file; a folder stands for the media files in it (sorted, not recursive).

    The id is the file's name without its suffix; where two files share it, the suffix is added ("a.mp4", "a.wav").

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no media file.
        ValueError: a file of an unknown kind.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if item.suffix.lower() in VIDEO_SUFFIXES + SOUND_SUFFIXES)
            if not inside:
                kinds = " ".join(VIDEO_SUFFIXES + SOUND_SUFFIXES)
                raise FileNotFoundError(f"{path}: no media file in this folder; expected one of {kinds}")
            files += inside
        elif not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        elif path.suffix.lower() not in VIDEO_SUFFIXES + SOUND_SUFFIXES:
            kinds = " ".join(VIDEO_SUFFIXES + SOUND_SUFFIXES)
            raise ValueError(f"{path}: expected a media file ({kinds}), a folder of them, or a .jsonl / .csv manifest")
        else:
            files.append(path)
    files = list(dict.fromkeys(files))
    stems = Counter(file.stem for file in files)
    samples = []
    for file in files:
        name = check_id(file.stem if stems[file.stem] == 1 else file.name)
        key = "audio" if file.suffix.lower() in SOUND_SUFFIXES else "video"
        samples.append(Sample(id=name, subtitle=subtitle, **{key: str(file)}))
    if doubled := [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]:
        raise ValueError(f"several files are named {doubled[0]!r}; give a manifest with ids of your own")
    return samples


def split_by_hash(sample_id: str, *, seed: int, share: float) -> bool:
    """Whether `sample_id` belongs to the held-out part of expected size `share`: a seeded hash of the id alone.

    Adding or removing other samples never moves one from one side to the other.
    """
    digest = hashlib.sha256(f"{seed}:{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def hold_out(samples: Sequence[Sample], *, n: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split into (rest, held out): the `n` samples with the smallest seeded hash of their id, both in file order."""
    if not 0 <= n < len(samples):
        raise ValueError(f"cannot hold out {n} of {len(samples)} samples")
    ranked = sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}:{sample.id}".encode()).digest())
    chosen = {sample.id for sample in ranked[:n]}
    return [item for item in samples if item.id not in chosen], [item for item in samples if item.id in chosen]


def read_manifest(
    path: str | Path, *, split: str | None = None, on_bad: str = "raise"
) -> tuple[list[Sample], list[BadSample]]:
    """Read a manifest and keep the rows of `split` (None = all); an empty split is an error that lists the splits."""
    samples, bad = read_samples(path, on_bad=on_bad)
    if split is None:
        return samples, bad
    chosen = [sample for sample in samples if sample.split == split]
    if not chosen:
        have = dict(Counter(sample.split for sample in samples))
        raise ValueError(f"{path}: no sample has split {split!r}; the manifest holds {have}")
    return chosen, bad


def probe_sample(sample: Sample) -> Sample:
    """Fill `modalities` with what the media really contain (headers only); a listed subset is respected.

    Raises:
        MediaError: a file is missing or unreadable.
        ValueError: the manifest lists a modality that the media lack.
    """
    found: set[str] = set()
    if sample.video is not None:
        info = probe(sample.video)
        if info.has_video:
            found |= {"frames", "motion"}
        if info.has_audio:
            found.add("audio")
    if sample.audio is not None:
        if not probe(sample.audio).has_audio:
            raise ValueError(f"{sample.audio}: holds no sound, but sample {sample.id!r} names it as audio")
        found.add("audio")
    if sample.modalities is not None:
        if lacking := [name for name in sample.modalities if name not in found]:
            raise ValueError(f"the manifest lists {lacking}, but the media hold only {sorted(found)}")
        found &= set(sample.modalities)
    return replace(sample, modalities=tuple(name for name in MODALITIES if name in found))


def check_each(
    items: Sequence[Item],
    check: Callable[[Item], Item],
    *,
    name: Callable[[Item], str],
    where: Callable[[Item], str],
    on_bad: str,
    what: str,
    n_threads: int = 4,
    progress: bool = True,
) -> tuple[list[Item], list[BadSample]]:
    """Run `check` over `items` in threads, in order, with a progress bar.

    An item that fails with MediaError, OSError or ValueError is bad: with `on_bad="raise"` the first one stops the run
    with its id, with "skip" it is left out and returned in the second list. Nothing takes its place.
    """

    def attempt(item: Item) -> Item | Exception:
        try:
            return check(item)
        except (MediaError, OSError, ValueError) as error:
            if on_bad == "raise":
                raise ValueError(
                    f"sample {name(item)!r}: {error}. Mend or remove it, or leave out such samples with on_bad=skip"
                ) from error
            return error

    good: list[Item] = []
    bad: list[BadSample] = []
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            bar = tqdm(pool.map(attempt, items), what, len(items), leave=False, delay=1, disable=not progress)
            for item, result in zip(items, bar, strict=True):
                if isinstance(result, Exception):
                    bad.append(BadSample(name(item), where(item), str(result)))
                else:
                    good.append(result)
        except ValueError:
            pool.shutdown(cancel_futures=True)
            raise
    return good, bad


def probe_samples(samples: Sequence[Sample], *, on_bad: str = "raise") -> tuple[list[Sample], list[BadSample]]:
    """`probe_sample` for many; see `check_each` for the policy."""
    return check_each(
        samples,
        probe_sample,
        name=lambda sample: sample.id,
        where=lambda sample: str(sample.video or sample.audio),
        on_bad=on_bad,
        what="probing media",
    )


def report_bad(bad: Iterable[BadSample], folder: Path) -> int:
    """Write `bad_samples.jsonl` into `folder` and say how many were left out; returns the count."""
    bad = list(bad)
    if bad:
        path = folder / "bad_samples.jsonl"
        write_jsonl(path, bad)
        log.warning("left out %d bad samples, listed with reasons in %s", len(bad), path)
    return len(bad)
