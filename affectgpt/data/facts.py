"""Facts about media files, stored on disk so that a large data set is opened and hashed once, not at every start.

A fact belongs to (path, size, modification time): a file that has changed is read again. The facts are a journal of
rows `[path, size, mtime_ns, facts]`; of several rows with one path the last counts.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from affectgpt.data.faces import FaceNeeds, FaceReading, read_faces_of
from affectgpt.journal import append_rows
from affectgpt.media import MediaError, MediaInfo, MissingMedia, probe, probe_faces
from affectgpt.media.ahead import ReadAhead
from affectgpt.media.faces.tracks import ABSENT
from affectgpt.runtime import sha256_of_file

log = logging.getLogger("affectgpt")

FILE = "media-facts.jsonl"


_loading = threading.Lock()  # not an attribute, because objects are sent to loader processes


class MediaFacts:
    """Header facts and content hashes by file.

    Args:
        file: where facts are stored; None = in memory only. Read at the first query, written by `save`.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, tuple[int, int, dict[str, Any]]] | None = None
        self._changed: dict[str, None] = {}
        self._ahead: ReadAhead[FaceReading] = ReadAhead()

    def info(self, path: str) -> MediaInfo:
        """`media.probe`, stored; its errors are not."""
        facts = self._facts(path)
        if "info" not in facts:
            found = {key: value for key, value in asdict(probe(path)).items() if key != "path" and value is not None}
            self._remember(path, facts, "info", found)
        return MediaInfo(path, **{"duration_s": None, **facts["info"]})

    def faces(self, path: str) -> tuple[int, int, int]:
        """`media.probe_faces`, stored; its errors are not."""
        facts = self._facts(path)
        if "faces" not in facts:
            self._remember(path, facts, "faces", list(probe_faces(path)))
        n, height, width = facts["faces"]
        return n, height, width

    def faces_in(
        self, path: str, needs: FaceNeeds, *, sound: str | None = None, read_ahead: bool = False
    ) -> FaceReading:
        """Where the face crops of a video are, stored; and its pictures and sound, if they are in memory.

        Args:
            sound: the file with the sound; None = the video.
            read_ahead: keep pictures and sound in memory, within limits, until `faces_in` asks for them, which is soon.

        Raises:
            MediaError: the video cannot be decoded completely.
        """
        facts = self._facts(path)
        if not read_ahead and (reading := self.read_ahead(path, needs, sound)) is not None:
            return reading
        if (name := self.fact_of(needs, sound)) in facts:
            return FaceReading.from_fact(facts[name])
        reading = read_faces_of(path, needs, sound)
        self._remember(path, facts, name, reading.to_fact())
        if read_ahead:
            self._ahead.put(self._address(path, needs, sound), reading, reading.n_bytes)
        return reading

    def why_no_face(self, path: str, needs: FaceNeeds, sound: str | None = None) -> str:
        """Why `faces_in` has found no crops, in words; what was forgotten since is looked for again."""
        return ABSENT[self.faces_in(path, needs, sound=sound, read_ahead=True).crops.absent or "no_face"]

    def read_ahead(self, path: str, needs: FaceNeeds, sound: str | None = None) -> FaceReading | None:
        """What `faces_in` has decoded ahead of a video, once; None if there is nothing."""
        return self._ahead.pop(self._address(path, needs, sound))

    def fact_of(self, needs: FaceNeeds, sound: str | None) -> str:
        """The name under which `faces_in` stores where the crops are.

        With a sound of its own that tells the person, where they are depends on that file, too.

        Raises:
            MediaError: that file is missing or cannot be read.
        """
        return f"{needs.fact} {self.sha256(sound)}" if sound is not None and needs.by_speech else needs.fact

    def _address(self, path: str, needs: FaceNeeds, sound: str | None) -> tuple[Any, ...]:
        return (path, *self._entry(path)[:2], self.fact_of(needs, sound))

    def forget(self, path: str) -> None:
        """Drop what is known about a file, for files that exist for a moment."""
        size, mtime_ns, facts = (self._known or {}).pop(path, (0, 0, {}))
        for fact in list(facts):  # another request for the file may be adding some
            self._ahead.pop((path, size, mtime_ns, fact))
        self._changed.pop(path, None)

    def sha256(self, path: str) -> str:
        """Content hash of the file, hex.

        Raises:
            MediaError: the file is missing or cannot be read.
        """
        facts = self._facts(path)
        if "sha256" not in facts:
            try:
                digest = sha256_of_file(path)
            except OSError as error:
                raise _unreadable(path, error) from error
            self._remember(path, facts, "sha256", digest)
        return facts["sha256"]

    def lists(self, path: str, fact: str) -> bool:
        """Whether `fact` ("info", "faces", "sha256", `fact_of`) is stored for this path.

        The file may have changed since.
        """
        self._load()
        assert self._known is not None
        known = self._known.get(path)
        return known is not None and fact in known[2]

    def save(self) -> None:
        """Append new facts to the file; several processes may do so."""
        if self._file is None or not self._changed or self._known is None:
            return
        paths = list(self._changed)  # other threads may be adding to it
        rows = [[path, *self._known[path][:2], dict(self._known[path][2])] for path in paths]
        append_rows(self._file, rows)
        for path in paths:
            self._changed.pop(path, None)

    def _facts(self, path: str) -> dict[str, Any]:
        """The facts of the file as it is now; a new dictionary if it has changed."""
        return self._entry(path)[2]

    def _entry(self, path: str) -> tuple[int, int, dict[str, Any]]:
        """(size, mtime_ns, facts) of the file as it is now; another thread may forget it at any time."""
        self._load()
        assert self._known is not None
        try:
            status = os.stat(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        known = self._known.get(path)
        if known is None or known[0] != status.st_size or known[1] != status.st_mtime_ns:
            known = self._known[path] = (status.st_size, status.st_mtime_ns, {})
        return known

    def _load(self) -> None:
        if self._known is None:
            with _loading:  # a second thread that loads would drop what the first one has added since
                if self._known is None:
                    self._known = {} if self._file is None else _read(self._file)

    def _remember(self, path: str, facts: dict[str, Any], name: str, value: Any) -> None:
        facts[name] = value
        self._changed[path] = None


@functools.cache
def facts_in(cache: Path) -> MediaFacts:
    """The facts stored in the folder `cache`; one object per process, so that the file is read once."""
    return MediaFacts(cache / FILE)


def _read(file: Path) -> dict[str, tuple[int, int, dict[str, Any]]]:
    known: dict[str, tuple[int, int, dict[str, Any]]] = {}
    n_damaged = 0
    if not file.exists():
        return known
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    try:
        rows = json.loads(f"[{','.join(filter(None, lines))}]")  # twice as fast as line by line
    except ValueError:
        rows = [_parsed(line) for line in lines if line]
    for row in rows:
        try:
            path, size, mtime_ns, facts = row
            known[path] = (int(size), int(mtime_ns), dict(facts))
        except (ValueError, TypeError):
            n_damaged += 1
    if n_damaged:
        log.warning("%s: %d damaged lines are ignored; those files are read again", file, n_damaged)
    return known


def _unreadable(path: str, error: OSError) -> MediaError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return MissingMedia(f"{path}: no such file; check the path in the manifest, or the folder")
    return MediaError(f"{path}: cannot be read ({error.strerror}); check its permissions")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
