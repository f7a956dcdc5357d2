"""Proposals for subtitles: what the speech recogniser of the annotation hears in a clip."""

from __future__ import annotations

import asyncio
from pathlib import Path

from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.store import Store
from affectgpt.annotate.transcribe import Transcriber
from affectgpt.runtime import sha256_of_file
from affectgpt.schema import Sample


class Hearing:
    """A speech recogniser by hub id or folder, loaded on its first clip.

    Args:
        folder: of the transcripts, which are removed with it.
    """

    def __init__(self, name: str, folder: Path, device: str) -> None:
        self._transcriber = Transcriber(name, Store(folder), device=device)

    async def subtitle(self, path: Path, lang: str) -> str:
        """What is said in a clip; "" = nothing was heard.

        Raises:
            MediaError: the clip has no sound, or it cannot be decoded.
            UserError: there is no such recogniser.
        """
        sha256 = await asyncio.to_thread(sha256_of_file, path)
        clip = ClipMedia(Sample("clip", video=str(path)), sha256, detector="none")
        row, _ = await self._transcriber.answer("transcribe", clip, lang)
        return str(row["text"]).strip()
