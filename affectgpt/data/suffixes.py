"""File name suffixes of media, and the field of a sample that a medium listed by its path belongs to."""

from __future__ import annotations

from pathlib import Path

from affectgpt.questions import inside

VIDEO_SUFFIXES = (
    ".mp4",
    ".avi",
    ".webm",
    ".mkv",
    ".mov",
    ".m4v",
    ".ts",
    ".mts",
    ".m2ts",
    ".wmv",
    ".asf",
    ".mpg",
    ".mpeg",
    ".vob",
    ".flv",
    ".f4v",
    ".3gp",
    ".3g2",
    ".ogv",
    ".mxf",
)
AUDIO_SUFFIXES = (
    ".wav",
    ".mp3",
    ".flac",
    ".m4a",
    ".ogg",
    ".opus",
    ".oga",
    ".mka",
    ".aac",
    ".ac3",
    ".wma",
    ".amr",
    ".aif",
    ".aiff",
    ".caf",
    ".mp2",
    ".au",
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def medium_field(folder: Path, medium: str) -> dict[str, str]:
    """The media field of a listed path, which must be inside the folder."""
    path = Path(inside(medium))
    return {"audio" if path.suffix.lower() in AUDIO_SUFFIXES else "video": str(folder / path)}
