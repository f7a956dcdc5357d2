"""The files that Label Studio serves: copies that a browser plays, its document root and the storages of a project.

Label Studio 1.23 serves a file only if it lies below the document root of the server, and in a local storage of the
project, which must be a folder below that root, not the root itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from affectgpt.annotate.record import Annotation
from affectgpt.annotate.review.labelstudio import ReviewError, medium_of
from affectgpt.media import MediaError, why_not_played, write_playable
from affectgpt.runtime import stable_hash

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class Served:
    """What Label Studio has to be told.

    Attributes:
        root: document root of the server.
        storages: paths of the local storages that each project needs.
    """

    root: Path
    storages: tuple[Path, ...]


def playable_files(
    records: Iterable[Annotation], copies: Path, *, transcode: bool
) -> tuple[dict[str, Path], Counter[str], Counter[str]]:
    """The file to show of each clip that can be played.

    Args:
        copies: folder of the copies that `transcode` writes; those that are there already are used in any case.

    Returns:
        id -> file; why files are not played by browsers (transcoded or not); and clips that cannot be decoded, by
        reason, which have no file.
    """
    files: dict[str, Path] = {}
    unplayed: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for record in records:
        medium = medium_of(record)
        if medium is None:
            continue
        path = Path(record.media[medium]).resolve()
        try:
            reason = why_not_played(path) if path.is_file() else None
            if reason:
                unplayed[reason] += 1
                facts = path.stat()
                key = stable_hash([str(path), facts.st_size, facts.st_mtime_ns])[:12]
                copy = copies / f"{path.stem[:40]}-{key}.{'mp4' if medium == 'video' else 'm4a'}"
                if transcode and not copy.is_file():
                    write_playable(path, copy)
                path = copy if copy.is_file() else path
        except MediaError as error:
            log.warning("%s", error)
            failed["cannot be played: " + type(error).__name__] += 1
            continue
        files[record.id] = path
    return files, unplayed, failed


def served_from(files: Mapping[str, Path], copies: Path, media_root: Path | None) -> Served:
    """Document root and storages for these files; with `media_root`, that is the root.

    Raises:
        ReviewError: a file lies outside `media_root`, or directly in the root, where no storage can hold it.
    """
    own = [path for path in files.values() if not path.is_relative_to(copies)]
    storages = {_common([path.parent for path in own])} if own else set()
    if len(own) < len(files):
        storages.add(copies)
    storages = {one for one in storages if not any(one != other and one.is_relative_to(other) for other in storages)}
    if media_root is None:
        root = _common(sorted(storages))
        root = root.parent if root in storages else root
    else:
        root = media_root.resolve()
    for path in files.values():
        if not path.is_relative_to(root):
            raise ReviewError(f"{path}: is outside media_root={root}; give a folder that contains all clips")
    if root in storages:  # as where clips lie in several folders of the root: one storage for each
        storages = {root / path.relative_to(root).parts[0] for path in files.values()}
        if direct := [path for path in files.values() if path.parent == root]:
            raise ReviewError(
                f"{direct[0]}: lies directly in media_root={root}; Label Studio serves only folders below its document "
                f"root, so give the folder above it: media_root={root.parent}"
            )
    return Served(root, tuple(sorted(storages)))


def _common(folders: list[Path]) -> Path:
    first, *rest = folders
    while not all(folder.is_relative_to(first) for folder in rest):
        first = first.parent
    return first
