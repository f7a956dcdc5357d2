"""Speakers: whose clip it is, by a pattern over ids, and the usual values of each speaker's voice."""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Iterable

from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.record import Fact
from affectgpt.annotate.sound import RELATIVE, sound_facts
from affectgpt.chat.concurrency import StopSignal, for_each
from affectgpt.data.sources import probe_sample
from affectgpt.runtime import MissingLibrary, UserError, n_cores
from affectgpt.schema import Sample


def speaker_of(sample: Sample, pattern: str | None) -> str | None:
    """The first group of `pattern` in the sample's id; None where it does not match.

    >>> speaker_of(Sample("anna_07", subtitle="Hi."), "^([^_]+)_")
    'anna'
    """
    match = re.search(pattern, sample.id) if pattern else None
    return match.group(1) if match else None


class Speakers:
    """The medians of measured facts over the clips of each speaker with several clips."""

    def __init__(self, pattern: str | None, detector: str = "silero") -> None:
        self._pattern, self._detector = pattern, detector
        self._usual: dict[str, dict[str, float]] = {}

    def usual_of(self, sample: Sample) -> dict[str, float]:
        """The usual values of the sample's speaker, by name of fact; {} = unknown."""
        return self._usual.get(speaker_of(sample, self._pattern) or "", {})

    async def learn(self, samples: Iterable[Sample], stop: StopSignal) -> None:
        """Measure the sound of every clip once; unreadable clips are skipped here and fail when they are annotated."""
        if not self._pattern:
            return
        found: dict[str, dict[str, list[float]]] = {}

        async def measure(sample: Sample) -> None:
            if (speaker := speaker_of(sample, self._pattern)) is None:
                return
            try:
                facts = await asyncio.to_thread(_sound_facts, sample, self._detector)
            except MissingLibrary:
                raise
            except UserError:
                return
            for fact in facts:
                if fact.name in RELATIVE:
                    found.setdefault(speaker, {}).setdefault(fact.name, []).append(fact.value)

        await for_each(iter(samples), measure, n_workers=n_cores(), stop=stop)
        for speaker, values in found.items():
            medians = {name: round(statistics.median(all_), 3) for name, all_ in values.items() if len(all_) > 1}
            if medians:
                self._usual[speaker] = medians


def _sound_facts(sample: Sample, detector: str) -> list[Fact]:
    clip = ClipMedia(probe_sample(sample), "", detector=detector)
    if "sound" not in clip.sees:
        return []
    speech = clip.speech()
    return [] if speech is None else sound_facts(clip.sound(), speech)
