"""Errors of media files; each message names the file, what was found and what to do."""

from __future__ import annotations

from affectgpt.runtime import InputError


class MediaError(InputError):
    """A media file cannot be used; the message names the file, the problem and what to do."""


class MissingMedia(MediaError, FileNotFoundError):
    """The file does not exist."""


class EmptyMedia(MediaError):
    """The file has 0 bytes, or a stream has no frames or samples."""


class TruncatedMedia(MediaError):
    """The file or one of its streams is shorter than its container states."""


class DamagedMedia(MediaError):
    """Parts of the file cannot be decoded."""


class NoVideoStream(MediaError):
    """The file has no video stream (cover art does not count)."""


class NoAudioStream(MediaError):
    """The file has no audio stream, which is not the same as silence."""
