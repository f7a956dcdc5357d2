"""The cache of frozen encoder states, addressed by content.

A frozen encoder is a pure function of the file, so its states are computed once and shared by all runs and processes.
The address holds the sha256 of the media, the encoder's fingerprint and the sampling; a change of any of them is
another address, never a stale hit. How they lie on disk is `affectgpt.data.states`' business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from affectgpt.data.clips import Clip, Sampling, load_clip
from affectgpt.data.facts import MediaFacts
from affectgpt.data.sources import check_each
from affectgpt.data.states import StateStore
from affectgpt.runtime import stable_hash
from affectgpt.schema import BadSample, Sample

log = logging.getLogger("affectgpt")

FORMAT = 2
"""Raise when decoding, preprocessing or the file layout changes: old entries are then simply not found."""


@dataclass(frozen=True)
class Features:
    """What the processor takes of one sample: decoded arrays, or encoder states [T,E], by modality; and the facts."""

    media: dict[str, Any]
    facts: dict[str, Any]


class FeatureCache:
    """States by (modality, media sha256): one store for each modality and way of encoding it.

    Args:
        folder: shared by all runs.
        fingerprints: what decides each modality's states beside the file: the encoder (weights, layers, pooling,
            precision), sampling and preprocessing.
        about: the same for people: what is written beside each modality's states.
    """

    def __init__(self, folder: Path, fingerprints: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        self._stores = {
            name: StateStore(
                folder / name / stable_hash([FORMAT, fingerprint])[:16],
                {"format": FORMAT, "encoder": (about or {}).get(name), "made_by": fingerprint},
            )
            for name, fingerprint in fingerprints.items()
        }

    def has(self, modality: str, sha256: str) -> bool:
        return sha256 in self._stores[modality]

    def read(self, modality: str, sha256: str) -> tuple[Tensor, dict[str, Any]] | None:
        """States [T,E] and facts, or None; damaged ones are reported and count as absent."""
        return self._stores[modality].read(sha256)

    def write(self, modality: str, sha256: str, states: Tensor, facts: Mapping[str, Any]) -> None:
        self._stores[modality].write(sha256, states, facts)


class ClipReader:
    """Gives the media of a sample to training and inference alike: from the cache if there is one, else decoded.

    Args:
        sampling: how clips are cut.
        encode: turns decoded media into encoder states, one sample at a time; needed with a cache only.
        cache: None = always decode, and let the model run its encoders in the batch.
        facts: hashes of files that are known already.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        backend: str = "pyav",
        cache: FeatureCache | None = None,
        encode: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] | None = None,
        facts: MediaFacts | None = None,
    ) -> None:
        if cache is not None and encode is None:
            raise ValueError("a feature cache needs `encode`, to fill what it lacks")
        self._sampling = sampling
        self._backend = backend
        self._cache = cache
        self._encode = encode
        self._facts = facts or MediaFacts()

    def __call__(self, sample: Sample, modalities: Sequence[str]) -> Features:
        """Media of `sample` for `modalities`; raises MediaError if they cannot be decoded whole."""
        if self._cache is None:
            clip = load_clip(sample, modalities, self._sampling, backend=self._backend)
            return Features(clip.arrays, clip.facts)
        media: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        missing = []
        for name in modalities:
            if (found := self._cache.read(name, self._sha256(sample, name))) is None:
                missing.append(name)
            else:
                media[name], facts[name] = found
        if missing:
            clip = load_clip(sample, missing, self._sampling, backend=self._backend)
            self.store(sample, clip)
            for name in missing:
                found = self._cache.read(name, self._sha256(sample, name))
                assert found is not None
                media[name], facts[name] = found
        return Features({name: media[name] for name in modalities}, {name: facts[name] for name in modalities})

    def store(self, sample: Sample, clip: Clip) -> None:
        """Encode a decoded clip and write its states."""
        assert self._cache is not None
        assert self._encode is not None
        for name, states in self._encode(clip.arrays).items():
            self._cache.write(name, self._sha256(sample, name), states, clip.facts[name])

    def prepare(
        self,
        samples: Sequence[Sample],
        modalities: Sequence[str],
        *,
        on_bad: str,
        what: str = "reading clips",
        progress: bool = True,
    ) -> tuple[list[Sample], list[BadSample]]:
        """Go once over all samples before training: fill the cache, or only decode, so that bad media show up now.

        Without a cache and with `on_bad="raise"` nothing is done: a bad clip stops the run when it comes up.

        Returns:
            the usable samples and the bad ones; see `check_each` for the policy.
        """
        if self._cache is None and on_bad == "raise":
            return list(samples), []

        def check(sample: Sample) -> Sample:
            wanted = [name for name in sample.modalities or () if name in modalities]
            if self._cache is None:
                load_clip(sample, wanted, self._sampling, backend=self._backend)
            else:
                wanted = [name for name in wanted if not self._cache.has(name, self._sha256(sample, name))]
                if wanted:
                    self.store(sample, load_clip(sample, wanted, self._sampling, backend=self._backend))
            return sample

        # Decoding releases the interpreter lock, so two threads overlap one clip's decoding with another's encoding.
        checked = check_each(
            samples,
            check,
            name=lambda sample: sample.id,
            where=lambda sample: str(sample.video or sample.audio),
            on_bad=on_bad,
            what=what,
            n_threads=2,
            progress=progress,
        )
        self._facts.save()
        return checked

    def _sha256(self, sample: Sample, modality: str) -> str:
        """Identity of the medium: the hash of its file, for face crops in RGB order with the order."""
        own = {"audio": sample.audio, "face": sample.face, "face_motion": sample.face}.get(modality)
        path = own if own is not None else sample.video
        assert path is not None, f"sample {sample.id!r} lists {modality} without a file"
        digest = self._facts.sha256(path)
        is_bgr = path != sample.face or sample.face_order == "bgr"
        return digest if is_bgr else stable_hash([digest, sample.face_order])
