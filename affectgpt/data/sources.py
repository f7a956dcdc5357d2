"""Samples from manifests, data sets in published formats and folders of media files; probing what their media hold."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from affectgpt.config import SourceConfig
from affectgpt.data.faces import FACE_MODALITIES, FaceNeeds
from affectgpt.data.facts import MediaFacts
from affectgpt.data.formats import AUDIO_SUFFIXES, VIDEO_SUFFIXES, read_format
from affectgpt.data.splits import hold_out
from affectgpt.media import MediaError
from affectgpt.runtime import InputError, NotFound
from affectgpt.schema import MODALITIES, BadSample, Sample, bad_rows_error, check_id, listed, read_samples, write_jsonl
from affectgpt.spread import in_threads
from affectgpt.tables import read_names

log = logging.getLogger("affectgpt")

Result = TypeVar("Result")


def samples_from_paths(paths: Sequence[str | Path], subtitle: str | None = None) -> list[Sample]:
    """One sample per media file; a folder gives the media files in it (sorted, not recursive) and logs the others.

    The id is the file's name without its suffix; where two files share it, the suffix is added ("a.mp4", "a.wav").
    Characters that an id cannot have become "_".

    Raises:
        NotFound: a path does not exist, or a folder holds no media file.
        InputError: a file of an unknown kind, an unreadable folder, or two files of the same name.
    """
    files: list[Path] = []
    kinds = " ".join(VIDEO_SUFFIXES + AUDIO_SUFFIXES)
    for path in map(Path, paths):
        if path.is_dir():
            if not (inside := _media_inside(path)):
                raise NotFound(f"{path}: no media file in this folder; expected one of {kinds}")
            files += inside
        elif not path.exists():
            raise NotFound(f"{path}: no such file or folder")
        elif path.suffix.strip().lower() not in VIDEO_SUFFIXES + AUDIO_SUFFIXES:
            raise InputError(f"{path}: expected a media file ({kinds}), a folder of them, or a .jsonl / .csv manifest")
        else:
            files.append(path)
    files = list(dict.fromkeys(files))
    stems = Counter(_id_of(file.stem) for file in files)
    samples = []
    for file in files:
        name = check_id(_id_of(file.stem if stems[_id_of(file.stem)] == 1 else file.name))
        key = "audio" if file.suffix.strip().lower() in AUDIO_SUFFIXES else "video"
        samples.append(Sample(id=name, subtitle=subtitle, **{key: str(file)}))
    if doubled := [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]:
        raise InputError(f"several files are named {doubled[0]!r}; give each an id of its own in a manifest")
    return samples


def _media_inside(folder: Path) -> list[Path]:
    """The media files in `folder`, sorted; everything else except hidden files is logged with the reason."""
    media, others = [], []
    try:
        for item in sorted(folder.iterdir()):
            if item.suffix.strip().lower() in VIDEO_SUFFIXES + AUDIO_SUFFIXES and item.is_file():
                media.append(item)
            elif not item.name.startswith("."):
                reason = "a folder" if item.is_dir() else "not a media suffix" if item.is_file() else "not a file"
                others.append(f"{item.name!r} ({reason})")
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    if media and others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        log.warning(
            "%s: left out %d of %d: %s", folder, len(others), len(media) + len(others), ", ".join(others[:5]) + more
        )
    return media


def _id_of(name: str) -> str:
    """A valid sample id from a file name; bytes that are not UTF-8 are read as GB18030, else written as hex digits."""
    try:
        name.encode()
    except UnicodeEncodeError:
        data = os.fsencode(name)
        try:
            name = data.decode("gb18030")
        except UnicodeDecodeError:
            name = "".join(chr(byte) if 32 <= byte < 127 else f"%{byte:02X}" for byte in data)
    return re.sub(r"[\x00-\x1f\x7f/\\]", "_", name).strip()[:200].strip() or "_"


def read_manifest(
    path: str | Path, *, split: str | None = None, on_bad: str = "raise", columns: Mapping[str, str] | None = None
) -> tuple[list[Sample], list[BadSample]]:
    """Read a manifest and keep the rows of `split` (None = all); an empty split is an error that lists the splits."""
    samples, bad = read_samples(path, on_bad=on_bad, columns=columns)
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
    """The content of one source of conf/data: samples that are not probed yet, bad rows, and the files read."""

    name: str
    samples: list[Sample]
    bad: list[BadSample]
    files: list[Path]


def read_source(source: SourceConfig, folder: str | None = None, *, on_bad: str = "raise") -> SourceRows:
    """Read a manifest or a data set in a published format, and keep the split that the source names.

    Args:
        folder: root of the data sets; the folder of a source with a format is relative to it.

    Raises:
        InputError: unknown format, missing files, an empty split, names of `split_file` that are not in the data; with
            on_bad "raise" also any bad row.
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
        samples, bad = read_samples(source.manifest, on_bad=on_bad, columns=source.columns)
    else:
        assert source.format is not None
        if source.folder is None and folder is None:
            raise InputError(f"format {source.format!r}: set the root of the data sets: data.folder=/path/to/it")
        base = Path(folder or "").expanduser() / Path(source.folder or "").expanduser()
        name = f"{source.format} in {base}"
        rows, files = read_format(source.format, base, source.options, source.columns)
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
    samples = with_person(samples, source.person)
    if bad and on_bad == "raise":
        raise bad_rows_error(bad)
    if source.limit is not None and source.limit < 1:
        raise InputError(f"{name}: limit is {source.limit}; expected 1 or more, or null for all samples")
    if source.limit is not None and source.limit < len(samples):
        samples = hold_out(samples, n=source.limit, seed=0)[1]
    return SourceRows(name, samples, bad, files)


def with_person(samples: Sequence[Sample], person: str | None) -> list[Sample]:
    """The samples, those without a person of their own about this one."""
    if person is None:
        return list(samples)
    return [replace(sample, person=person) if sample.person is None else sample for sample in samples]


def probe_sample(
    sample: Sample, facts: MediaFacts | None = None, faces: FaceNeeds | None = None, *, later: bool = False
) -> Sample:
    """Set `modalities` to what the media contain (by their headers); a subset listed in the manifest is respected.

    Args:
        facts: known facts about files; None = open each file.
        faces: look for faces in videos without a file of face crops; None = such samples have no faces.
        later: faces are looked for later; until then, every such video may show some.

    Raises:
        MediaError: a file is missing or unreadable.
        InputError: the manifest lists a modality that the media lack.
    """
    facts = facts or MediaFacts()
    found: set[str] = set()
    no_face = ""
    if sample.video is not None:
        info = facts.info(sample.video)
        if info.has_video:
            found |= {"frames", "motion"}
        if info.has_audio:
            found.add("audio")
    if sample.audio is not None:
        if not facts.info(sample.audio).has_audio:
            raise InputError(f"{sample.audio}: has no audio stream, but is the audio of sample {sample.id!r}")
        found.add("audio")
    if sample.face is not None:
        facts.faces(sample.face)
        found |= set(FACE_MODALITIES)
    elif faces is not None and "frames" in found and _may_show_faces(sample):
        assert sample.video is not None
        needs = faces.of(sample.person)
        if later or facts.faces_in(sample.video, needs, sound=sample.audio, read_ahead=True).crops.n:
            found |= set(FACE_MODALITIES)
        else:
            no_face = f" ({facts.why_no_face(sample.video, needs, sample.audio)})"
    if sample.modalities is not None:
        if lacking := [name for name in sample.modalities if name not in found]:
            raise InputError(f"the manifest lists {lacking}, but the media hold only {sorted(found)}{no_face}")
        found &= set(sample.modalities)
    return sample.with_modalities(tuple(name for name in MODALITIES if name in found))


def _may_show_faces(sample: Sample) -> bool:
    return sample.modalities is None or bool({*FACE_MODALITIES} & {*sample.modalities})


def attempt(work: Callable[[Sample], Result], sample: Sample, *, on_bad: str) -> Result | BadSample:
    """`work(sample)`; an InputError makes the sample bad.

    Other exceptions pass through: bugs, and what is not the sample's fault, such as a missing library or a full disk.

    Args:
        on_bad: "raise" raises an InputError that names the sample; "skip" returns a BadSample. Nothing replaces it.
    """
    try:
        return work(sample)
    except InputError as error:
        if on_bad == "raise":
            raise InputError(
                f"sample {sample.id!r}: {error}. Fix or remove it, or leave out bad samples with on_bad=skip"
            ) from error
        return BadSample(sample.id, str(sample.video or sample.audio or sample.face), str(error))


def check_each(
    samples: Sequence[Sample],
    check: Callable[[Sample], Sample],
    *,
    on_bad: str,
    what: str,
    n_threads: int = 4,
    progress: bool = True,
) -> tuple[list[Sample], list[BadSample]]:
    """`attempt` to check each sample, several in threads and with a progress bar; (results in order, bad samples).

    Args:
        n_threads: 0 = in this thread, for checks that are faster than passing them to another.
    """
    function = partial(attempt, check, on_bad=on_bad)
    many = len(samples) > 1
    results = in_threads(function, samples, n_threads=n_threads) if many and n_threads else map(function, samples)
    checked = list(tqdm(results, what, len(samples), leave=False, delay=1, disable=not (many and progress)))
    good = [result for result in checked if not isinstance(result, BadSample)]
    return good, [result for result in checked if isinstance(result, BadSample)]


def probe_samples(
    samples: Sequence[Sample],
    *,
    on_bad: str = "raise",
    facts: MediaFacts | None = None,
    faces: FaceNeeds | None = None,
    later: bool = False,
) -> tuple[list[Sample], list[BadSample]]:
    """`probe_sample` for many, in order, with the policy of `attempt`. New facts are saved.

    With `faces`, it is logged how many videos give no face crops, and why.
    """
    facts = facts or MediaFacts()
    check = partial(probe_sample, facts=facts, faces=faces, later=later)
    faces = None if later else faces
    unknown = [sample for sample in samples if not _is_known(sample, facts, faces)]
    if unknown:  # files are opened in threads; then all facts are known, and threads would only slow the rest down
        check_each(unknown, check, on_bad="skip", what="probing media" if faces is None else "looking for faces")
    facts.save()
    good, bad = check_each(samples, check, on_bad=on_bad, what="probing media", n_threads=0)
    if faces is not None:
        looked_at = {sample.id for sample in samples if sample.video and not sample.face and _may_show_faces(sample)}
        asked = [sample for sample in good if sample.id in looked_at and "frames" in (sample.modalities or ())]
        without: dict[str, list[str]] = {}
        for sample in asked:
            if sample.video and not {*FACE_MODALITIES} & {*(sample.modalities or ())}:
                why = facts.why_no_face(sample.video, faces.of(sample.person), sample.audio)
                without.setdefault(why, []).append(sample.id)
        for why, ids in without.items():
            log.info("%s in %d of %d videos, for example %s", why, len(ids), len(asked), ids[:3])
    return good, bad


def _is_known(sample: Sample, facts: MediaFacts, faces: FaceNeeds | None) -> bool:
    """Whether everything that probing reads is stored."""
    read = [(sample.video, "info"), (sample.audio, "info"), (sample.face, "faces")]
    if not all(facts.lists(path, fact) for path, fact in read if path is not None):
        return False
    if faces is None or sample.video is None or sample.face is not None or not _may_show_faces(sample):
        return True
    needs, sound = faces.of(sample.person), sample.audio
    if needs.by_speech and sound is not None and not facts.lists(sound, "sha256"):
        return False  # hashed in threads, not here
    try:
        return facts.lists(sample.video, facts.fact_of(needs, sound))
    except MediaError:  # the sound is gone
        return False


def report_bad(bad: Iterable[BadSample], folder: Path) -> int:
    """Write `bad_samples.jsonl` into `folder` and log how many samples were left out; returns the count."""
    bad = list(bad)
    if bad:
        path = folder / "bad_samples.jsonl"
        write_jsonl(path, bad)
        log.warning("left out %d bad samples, listed with reasons in %s%s", len(bad), path, listed(bad, 3))
    return len(bad)
