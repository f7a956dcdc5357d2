"""Speakers: whose clip it is, by a pattern over ids, and the usual values of each speaker's voice."""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from affectgpt.annotate.clips import ClipMedia, media_sha256
from affectgpt.annotate.evidence import EVIDENCE_VERSION
from affectgpt.annotate.sound import RELATIVE
from affectgpt.annotate.store import Store
from affectgpt.chat.concurrency import StopSignal, for_each
from affectgpt.data.sources import probe_sample
from affectgpt.media.ahead import ReadAhead
from affectgpt.media.speech import detector_name
from affectgpt.runtime import MissingLibrary, UserError, n_cores, stable_hash
from affectgpt.schema import Sample, hears_other


def speaker_of(sample: Sample, pattern: str | None) -> str | None:
    """The first group of `pattern` in the sample's id; None where it does not match.

    >>> speaker_of(Sample("anna_07", subtitle="Hi."), "^([^_]+)_")
    'anna'
    """
    match = re.search(pattern, sample.id) if pattern else None
    return match.group(1) if match else None


class Speakers:
    """The medians of measured facts over the clips of each speaker with several clips.

    What was measured is stored, so that a resumed run measures nothing again. What was decoded is kept, within the
    limit of `ReadAhead`, until the clip is annotated.

    Args:
        pattern: see `speaker_of`; None = there are no speakers.
        detector: of speech.
        any_rate: see `ClipMedia`.
    """

    def __init__(self, pattern: str | None, store: Store, detector: str = "silero", *, any_rate: bool = False) -> None:
        self._pattern, self._store, self._detector, self._any_rate = pattern, store, detector, any_rate
        self._usual: dict[str, dict[str, float]] = {}
        self._ahead: ReadAhead[dict[Any, Any]] = ReadAhead()

    def usual_of(self, sample: Sample) -> dict[str, float]:
        """The usual values of the sample's speaker, by name of fact; {} = unknown."""
        return self._usual.get(speaker_of(sample, self._pattern) or "", {})

    def heard(self, sample: Sample) -> dict[Any, Any]:
        """What was decoded of the sample's sound, once; {} = nothing, or it is no longer in memory."""
        return self._ahead.pop(sample.id) or {}

    async def learn(self, samples: Iterable[Sample], stop: StopSignal) -> None:
        """Measure the sound of every clip once, except of listeners, who are not heard.

        Unreadable clips are skipped here and fail when they are annotated.
        """
        if not self._pattern:
            return
        found: dict[str, dict[str, list[float]]] = {}

        async def measure(sample: Sample) -> None:
            if (speaker := speaker_of(sample, self._pattern)) is None or hears_other(sample.person):
                return
            try:
                values = await asyncio.to_thread(self._values, sample)
            except MissingLibrary:
                raise
            except UserError:
                return
            for name, value in values.items():
                found.setdefault(speaker, {}).setdefault(name, []).append(value)

        await for_each(iter(samples), measure, n_workers=n_cores(), stop=stop)
        for speaker, each in found.items():
            medians = {name: round(statistics.median(all_), 3) for name, all_ in each.items() if len(all_) > 1}
            if medians:
                self._usual[speaker] = medians

    def _values(self, sample: Sample) -> dict[str, float]:
        """The facts in `RELATIVE` of a clip."""
        sha256 = media_sha256([Path(sample.audio or sample.video or "")], self._store.hashes)
        key = stable_hash([EVIDENCE_VERSION, detector_name(self._detector), sha256])
        if (row := self._store.voices.get(key)) is not None:
            return row["values"]
        clip = ClipMedia(probe_sample(sample), sha256, detector=self._detector, any_rate=self._any_rate)
        voice = clip.voice() if "sound" in clip.sees else None
        values = {fact.name: fact.value for fact in voice[0] if fact.name in RELATIVE} if voice else {}
        self._store.voices.append({"key": key, "values": values})
        if heard := clip.heard():
            sounds = heard["sounds"].values()
            self._ahead.put(sample.id, heard, sum(sound.samples.nbytes for sound in sounds))
        return values
