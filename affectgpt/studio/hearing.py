"""Proposals for subtitles: what the speech recogniser of the annotation hears in a clip."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.transcribe import Transcriber
from affectgpt.schema import Sample
from affectgpt.studio.clips import Kept, version_of


class Hearing:
    """A speech recogniser by hub id or folder, loaded on its first clip; the newest transcripts are kept in memory."""

    def __init__(self, name: str, device: str) -> None:
        self._transcriber = Transcriber(name, None, device=device)
        self._kept = Kept()
        self._one_at_a_time = threading.Lock()

    async def subtitle(self, path: Path, lang: str) -> str:
        """What is said in a clip; "" = nothing was heard.

        Raises:
            MediaError: the clip has no sound, or it cannot be decoded.
            UserError: there is no such recogniser.
        """

        def hear() -> str:
            clip = ClipMedia(Sample("clip", video=str(path)), "", detector="none")
            with self._one_at_a_time:
                return str(self._transcriber.transcribe(clip, lang)["text"]).strip()

        return await asyncio.to_thread(self._kept.get, (version_of(path), lang), hear)
