"""Manifests, folders of videos and splits: lists of samples whose media have been looked at."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from affectgpt.config import SourceConfig
from affectgpt.data.facts import MediaFacts
from affectgpt.data.formats import SOUND_SUFFIXES, VIDEO_SUFFIXES, read_format
from affectgpt.data.splits import hold_out
from affectgpt.runtime import InputError, NotFound, UserError
from affectgpt.schema import MODALITIES, BadSample, ManifestError, Sample, check_id, read_samples, write_jsonl
from affectgpt.tables import read_names

log = logging.getLogger("affectgpt")

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
                raise NotFound(f"{path}: no media file in this folder; expected one of {kinds}")
            files += inside
        elif not path.exists():
            raise NotFound(f"{path}: no such file or folder")
        elif path.suffix.lower() not in VIDEO_SUFFIXES + SOUND_SUFFIXES:
            kinds = " ".join(VIDEO_SUFFIXES + SOUND_SUFFIXES)
            raise InputError(f"{path}: expected a media file ({kinds}), a folder of them, or a .jsonl / .csv manifest")
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
        raise InputError(f"several files are named {doubled[0]!r}; give a manifest with ids of your own")
    return samples


def read_manifest(
    path: str | Path, *, split: str | None = None, on_bad: str = "raise"
) -> tuple[list[Sample], list[BadSample]]:
    """Read a manifest and keep the rows of `split` (None = all); an empty split is an error that lists the splits."""
    samples, bad = read_samples(path, on_bad=on_bad)
    if split is None:
        return samples, bad
    return _of_split(samples, split, str(path)), bad


def _of_split(samples: Sequence[Sample], split: str, name: str) -> list[Sample]:
    chosen = [sample for sample in samples if sample.split == split]
    if not chosen:
        have = dict(Counter(sample.split for sample in samples))
        raise InputError(f"{name}: no sample has split {split!r}; it holds {have}")
    return chosen


@dataclass(frozen=True)
class SourceRows:
    """What a source of conf/data holds: samples that are not probed yet, rows left out, and the files read."""

    name: str
    samples: list[Sample]
    bad: list[BadSample]
    files: list[Path]


def read_source(source: SourceConfig, folder: str | None = None, *, on_bad: str = "raise") -> SourceRows:
    """Read a manifest, or a data set in a published format, and keep the part that the source names.

    Args:
        folder: where data sets lie: the folder of a source with a format is looked for below it.

    Raises:
        ValueError: unknown format, missing files, an empty part, names of `split_file` that are not there; with
            on_bad "raise" also any row that cannot be used.
    """
    if (source.manifest is None) == (source.format is None):
        raise InputError(
            f"a data source names either a manifest, or a format with its folder; found manifest={source.manifest!r} "
            f"and format={source.format!r}; see docs/data-sets.md"
        )
    if source.split is not None and source.split_file is not None:
        raise InputError(f"a data source takes split={source.split!r} or split_file={source.split_file!r}, not both")
    if source.manifest is not None:
        name, base, files = source.manifest, Path(source.manifest).parent, [Path(source.manifest)]
        samples, bad = read_samples(source.manifest, on_bad=on_bad)
    else:
        assert source.format is not None
        if source.folder is None and folder is None:
            raise InputError(f"format {source.format!r}: say where the data set lies: data.folder=/path/to/it")
        base = Path(folder or "").expanduser() / Path(source.folder or "").expanduser()
        name = f"{source.format} in {base}"
        rows, files = read_format(source.format, base, source.options)
        samples = [row for row in rows if isinstance(row, Sample)]
        bad = [row for row in rows if isinstance(row, BadSample)]
    if source.split_file is not None:
        path = Path(source.split_file).expanduser()
        path = path if path.is_absolute() else base / path
        listed = set(read_names(path))
        if gone := sorted(listed - {sample.id for sample in samples} - {row.id for row in bad}):
            raise InputError(f"{path}: {len(gone)} of {len(listed)} names are not in {name}, for example {gone[:3]}")
        samples, bad = [item for item in samples if item.id in listed], [row for row in bad if row.id in listed]
        files = [*files, path]
    elif source.split is not None:
        samples = _of_split(samples, source.split, name)
    if bad and on_bad == "raise":
        shown = "\n".join(f"{row.where}: sample {row.id!r}: {row.reason}" for row in bad[:20])
        more = f"\n... and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise ManifestError(f"{shown}{more}\n{len(bad)} bad rows; mend them, or leave them out with on_bad=skip")
    if source.limit is not None and source.limit < len(samples):
        samples = hold_out(samples, n=source.limit, seed=0)[1]
    return SourceRows(name, samples, bad, files)


def probe_sample(sample: Sample, facts: MediaFacts | None = None) -> Sample:
    """Fill `modalities` with what the media really contain (headers only); a listed subset is respected.

    Args:
        facts: what is known of files already; None = look into each.

    Raises:
        MediaError: a file is missing or unreadable.
        ValueError: the manifest lists a modality that the media lack.
    """
    facts = facts or MediaFacts()
    found: set[str] = set()
    if sample.video is not None:
        info = facts.info(sample.video)
        if info.has_video:
            found |= {"frames", "motion"}
        if info.has_audio:
            found.add("audio")
    if sample.audio is not None:
        if not facts.info(sample.audio).has_audio:
            raise InputError(f"{sample.audio}: holds no sound, but sample {sample.id!r} names it as audio")
        found.add("audio")
    if sample.face is not None:
        facts.faces(sample.face)
        found |= {"face", "face_motion"}
    if sample.modalities is not None:
        if lacking := [name for name in sample.modalities if name not in found]:
            raise InputError(f"the manifest lists {lacking}, but the media hold only {sorted(found)}")
        found &= set(sample.modalities)
    return sample.with_modalities(tuple(name for name in MODALITIES if name in found))


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

    An item that fails with a UserError is bad: with `on_bad="raise"` the first one stops the run
    with its id, with "skip" it is left out and returned in the second list. Nothing takes its place. `n_threads=0` is
    for checks that are quicker than handing them to a thread.
    """

    def attempt(item: Item) -> Item | Exception:
        try:
            return check(item)
        except UserError as error:
            if on_bad == "raise":
                raise InputError(
                    f"sample {name(item)!r}: {error}. Mend or remove it, or leave out such samples with on_bad=skip"
                ) from error
            return error

    good: list[Item] = []
    bad: list[BadSample] = []
    with ThreadPoolExecutor(max(1, n_threads)) as pool:
        try:
            results = pool.map(attempt, items) if n_threads else map(attempt, items)
            bar = tqdm(results, what, len(items), leave=False, delay=1, disable=not progress)
            for item, result in zip(items, bar, strict=True):
                if isinstance(result, Exception):
                    bad.append(BadSample(name(item), where(item), str(result)))
                else:
                    good.append(result)
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    return good, bad


def probe_samples(
    samples: Sequence[Sample], *, on_bad: str = "raise", facts: MediaFacts | None = None
) -> tuple[list[Sample], list[BadSample]]:
    """`probe_sample` for many, in order; see `check_each` for the policy. New facts are saved."""
    facts = facts or MediaFacts()
    unknown = [sample for sample in samples if not all(facts.lists(path, fact) for path, fact in _files(sample))]

    def check(todo: Sequence[Sample], **options: Any) -> tuple[list[Sample], list[BadSample]]:
        return check_each(
            todo,
            lambda sample: probe_sample(sample, facts),
            name=lambda sample: sample.id,
            where=lambda sample: str(sample.video or sample.audio or sample.face),
            what="probing media",
            **options,
        )

    if unknown:  # opened in threads; what then is known of all of them is quicker to go through without
        check(unknown, on_bad="skip", n_threads=4)
    facts.save()
    return check(samples, on_bad=on_bad, n_threads=0)


def _files(sample: Sample) -> list[tuple[str, str]]:
    """(path, fact) of what probing has to know."""
    found = ((sample.video, "info"), (sample.audio, "info"), (sample.face, "faces"))
    return [(path, fact) for path, fact in found if path is not None]


def report_bad(bad: Iterable[BadSample], folder: Path) -> int:
    """Write `bad_samples.jsonl` into `folder` and say how many were left out; returns the count."""
    bad = list(bad)
    if bad:
        path = folder / "bad_samples.jsonl"
        write_jsonl(path, bad)
        log.warning("left out %d bad samples, listed with reasons in %s", len(bad), path)
    return len(bad)
