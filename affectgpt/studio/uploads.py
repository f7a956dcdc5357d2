"""Uploaded clips: temporary files with limits of number, size and time, removed with the server."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from affectgpt.config import PagesConfig
from affectgpt.runtime import disk_full_named
from affectgpt.serve.errors import APIError
from affectgpt.serve.media import check_media
from affectgpt.serve.request import MediaPart

log = logging.getLogger("affectgpt")

PREFIX = "affectgpt-studio-"
_SUFFIXES = {
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/quicktime": ".mov",
    "video/x-matroska": ".mkv",
    "video/x-msvideo": ".avi",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/mpeg": ".mp3",
    "audio/webm": ".webm",
    "audio/ogg": ".ogg",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "application/octet-stream": ".bin",
}


@dataclass
class Upload:
    """An uploaded clip; `path` is below the studio's own folder and never named by the client."""

    key: str
    path: Path
    name: str
    used_s: float = field(default_factory=time.monotonic)


class Uploads:
    """The uploads of one server.

    Raises:
        APIError: for what is refused.
    """

    def __init__(self, config: PagesConfig) -> None:
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._config = config
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    async def receive(self, chunks: AsyncIterator[bytes], kind: str, name: str) -> Upload:
        """Write an upload to a file of its own; it is not checked yet, see `check`."""
        suffix = _SUFFIXES.get(kind)
        if suffix is None:
            raise APIError(415, f"Content-Type is {kind!r}; expected a video or sound: {', '.join(_SUFFIXES)}")
        key = secrets.token_hex(16)
        path = self.folder / key / f"clip{suffix}"
        path.parent.mkdir()
        try:
            with disk_full_named(self.folder, "free space for uploads"), path.open("wb") as file:
                async for chunk in chunks:
                    file.write(chunk)
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        return Upload(key, path, name[:200])

    def check(self, upload: Upload) -> None:
        """Keep an upload that holds media within the limits; remove any other, and the oldest beyond the limit."""
        part = MediaPart(upload.name or "the upload")
        try:
            if not upload.path.stat().st_size:
                raise APIError(400, f"{part.where}: 0 bytes; expected a media file")
            check_media(upload.path, part, self._config)
        except BaseException:
            shutil.rmtree(upload.path.parent, ignore_errors=True)
            raise
        with self._lock:
            self._kept[upload.key] = upload
            while len(self._kept) > self._config.max_uploads:
                self._drop(next(iter(self._kept)))

    def path(self, key: str) -> Path:
        """The file of an upload."""
        with self._lock:
            upload = self._kept.get(key)
            if upload is None:
                raise APIError(404, "this clip is no longer here; uploaded clips are kept for a while only")
            upload.used_s = time.monotonic()
            self._kept.move_to_end(key)
            return upload.path

    def remove(self, key: str) -> None:
        with self._lock:
            if key in self._kept:
                self._drop(key)

    def remove_old(self) -> None:
        """Remove what has not been used for `keep_minutes`."""
        oldest_s = time.monotonic() - 60 * self._config.keep_minutes
        with self._lock:
            for key in [key for key, upload in self._kept.items() if upload.used_s < oldest_s]:
                self._drop(key)

    def close(self) -> None:
        """Remove all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _drop(self, key: str) -> None:
        shutil.rmtree(self._kept.pop(key).path.parent, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the folders of servers that were killed: their process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not pid.isdigit() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            log.info("removed %s, which a killed studio left", folder)
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue
