"""Data sets of the library `datasets` as manifests: rows are streamed once, media that they hold are saved as files.

Training draws samples in an order that it computes from their number, so it needs all rows; media are read from files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from affectgpt.runtime import InputError, MissingLibrary, json_line, stable_hash, write_lines_atomic

log = logging.getLogger("affectgpt")

SUFFIX = {"video": ".mp4", "audio": ".wav"}  # of media without a name


def manifest_of(
    path: str, media: Path, *, split: str, name: str | None, revision: str | None, n_rows: int | None,
    columns: Mapping[str, str],
) -> Path:  # fmt: skip
    """The manifest of a data set, in the folder `media`; it is written on first use, and then read without the library.

    Args:
        path: hub id, or a folder of Parquet, JSONL or CSV files, as of `datasets.load_dataset`; also split, name and
            revision.
        media: folder that media in the rows are saved to, in `media/`, each under the hash of its bytes.
        n_rows: only the first rows; no more are downloaded.
        columns: our names `video` and `audio` -> their names in the data set.

    Raises:
        MissingLibrary: the library is not installed.
        InputError: there is no such data set, split or revision, or no row.
    """
    key = stable_hash([path, split, name, revision, n_rows, *sorted(columns.items())])[:8]
    manifest = media / f"{Path(path).name}-{split}-{key}.jsonl"
    if manifest.is_file():
        return manifest
    try:
        import datasets
    except ImportError as error:
        raise MissingLibrary("format datasets needs the library: pip install 'affectgpt[datasets]'") from error
    try:
        rows = datasets.load_dataset(path, name, split=split, revision=revision, streaming=True)
    except (OSError, ValueError) as error:
        raise InputError(f"datasets cannot open {path!r}, split {split!r}: {error}") from error
    rows = rows.decode(False)
    features = rows.features or {}
    names = {column: kind.int2str for column, kind in features.items() if hasattr(kind, "int2str")}
    kinds = {columns.get(kind, kind): kind for kind in SUFFIX}
    n = 0

    def lines() -> Iterator[str]:
        nonlocal n
        for n, row in enumerate(islice(rows, n_rows), start=1):  # noqa: B007  its last value is the count
            texts = {key: value for key, value in row.items() if not _is_medium(value)}
            texts |= {key: names[key](texts[key]) for key in names if texts.get(key) is not None}
            files = {key: _saved(row[key], kind, media) for key, kind in kinds.items() if _is_medium(row.get(key))}
            yield json_line(texts | files)

    write_lines_atomic(manifest, lines())
    if not n:
        manifest.unlink()
        raise InputError(f"{path!r}, split {split!r}: no rows")
    log.info("%s: %d rows of %s; delete it to read the data set again", manifest, n, path)
    return manifest


def _is_medium(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"bytes", "path"}


def _saved(medium: Mapping[str, Any], kind: str, media: Path) -> str:
    """The file of a medium, its path relative to `media` if its bytes are saved there."""
    data, path = medium["bytes"], medium["path"] or ""
    if data is None:
        if "://" not in path:
            return str(path)
        import fsspec  # comes with datasets

        with fsspec.open(path) as remote:
            data = remote.read()
    suffix = Path(path).suffix or SUFFIX[kind]
    file = media / "media" / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    if not file.is_file() or file.stat().st_size != len(data):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(data)
        temporary.replace(file)
    return str(file.relative_to(media))
