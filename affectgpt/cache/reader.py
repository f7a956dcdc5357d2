"""The cache of frozen encoder states, addressed by content.

A frozen encoder is a pure function of the file, so its states are computed once and shared by all runs and processes.
The address holds the sha256 of the media, the encoder's fingerprint and the sampling; a change of any of them is
another address, never a stale hit. How they lie on disk is `affectgpt.cache.store`' business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affectgpt.cache.store import Room, StateStore
from affectgpt.config import SAMPLED, SamplingConfig
from affectgpt.data.clips import load_clip
from affectgpt.data.facts import MediaFacts, facts_in
from affectgpt.data.sources import check_each
from affectgpt.runtime import InputError, n_cores, stable_hash, without_collector
from affectgpt.schema import BadSample, Sample

log = logging.getLogger("affectgpt")

FORMAT = 2
"""Raise when decoding, preprocessing or the file layout changes: old entries are then simply not found."""


CACHE_MODES = ("ahead", "first_epoch", "off")


def cache_mode(value: bool | str) -> str:
    """`data.cache_features` as one of `CACHE_MODES`; true is "ahead", false is "off"."""
    mode = {True: "ahead", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if mode not in CACHE_MODES:
        raise InputError(f"data.cache_features is {value!r}; expected one of {list(CACHE_MODES)}, true or false")
    return mode


@dataclass(frozen=True)
class Place:
    """Where states that are not in the cache yet belong, and the facts that go with them."""

    sha256: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Features:
    """What the processor takes of one sample: decoded arrays, or encoder states [T,E], by modality; and the facts.

    `missing` says for which of them the cache would take states, see `ClipReader.stored`.
    """

    media: dict[str, Any]
    facts: dict[str, Any]
    missing: dict[str, Place] = field(default_factory=dict)


class FeatureCache:
    """States by (modality, media sha256): one store for each modality and way of encoding it.

    Args:
        folder: shared by all runs.
        fingerprints: what decides each modality's states beside the file: the encoder (weights, layers, pooling,
            precision), sampling and preprocessing.
        about: the same for people: what is written beside each modality's states.
        limit_bytes: what the folder may hold, other encoders' states included; None = no limit. States that find no
            room are not kept.

    Attributes:
        n_refused: states that found no room.
    """

    def __init__(
        self,
        folder: Path,
        fingerprints: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        *,
        limit_bytes: int | None = None,
    ) -> None:
        self.n_refused = 0
        self._room = None if limit_bytes is None else Room(folder, limit_bytes)
        self._stores = {
            name: StateStore(
                folder / name / stable_hash([FORMAT, fingerprint])[:16],
                {"format": FORMAT, "encoder": (about or {}).get(name), "made_by": fingerprint},
                self._room,
            )
            for name, fingerprint in fingerprints.items()
        }

    @property
    def is_full(self) -> bool:
        return self._room is not None and self._room.is_full

    def has(self, modality: str, sha256: str) -> bool:
        return sha256 in self._stores[modality]

    def read(self, modality: str, sha256: str) -> tuple[Tensor, dict[str, Any]] | None:
        """States [T,E] and facts, or None; damaged ones are reported and count as absent."""
        return self._stores[modality].read(sha256)

    def write(self, modality: str, sha256: str, states: Tensor, facts: Mapping[str, Any]) -> bool:
        """Keep states; False (counted, and said once) if there is no room for them."""
        if self._stores[modality].write(sha256, states, facts):
            return True
        if not self.n_refused:
            log.warning(
                "the cache is full (paths.cache_limit_gb): states of further clips are not kept, but made each time "
                "they are needed; allow more, or free space with `python -m affectgpt.cache gc`"
            )
        self.n_refused += 1
        return False


@dataclass(frozen=True)
class Prepared:
    """Samples that can be used, those that cannot, and how many of the former the cache does not hold whole."""

    good: list[Sample]
    bad: list[BadSample]
    n_uncached: int

    @property
    def summary(self) -> tuple[list[BadSample], int]:
        """(bad samples, number that the cache lacks): what processes tell each other."""
        return self.bad, self.n_uncached


class ClipReader:
    """Gives the media of a sample to training and inference alike: from the cache if there is one, else decoded.

    Args:
        sampling: how clips are cut.
        encode: turns decoded media into encoder states, one sample at a time; needed with a cache only.
        cache: None = always decode, and let the model run its encoders in the batch.
        facts: hashes of files that are known already.
        n_threads: clips that `prepare` works on at once. Decoding releases the interpreter lock, so that one clip is
            decoded while another is encoded.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        *,
        backend: str = "pyav",
        cache: FeatureCache | None = None,
        encode: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] | None = None,
        facts: MediaFacts | None = None,
        n_threads: int = 2,
    ) -> None:
        if cache is not None and encode is None:
            raise InputError("a feature cache needs `encode`, to fill what it lacks")
        self._sampling = sampling
        self._backend = backend
        self._cache = cache
        self._encode = encode
        self._facts = facts or MediaFacts()
        self._n_threads = n_threads

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None}  # what encodes, a model, does not travel to loader processes

    def __call__(self, sample: Sample, modalities: Sequence[str]) -> Features:
        """Media of `sample` for `modalities`, with a cache always as states, which are made here if there are none.

        Raises MediaError if they cannot be decoded whole.
        """
        found = self.stored(sample, modalities)
        if not found.missing:
            return found
        assert self._encode is not None
        states = self._encode({name: found.media[name] for name in found.missing})
        self.keep(found.missing, states)
        return Features({**found.media, **{name: state.cpu() for name, state in states.items()}}, found.facts)

    def stored(self, sample: Sample, modalities: Sequence[str]) -> Features:
        """Like calling it, but nothing is encoded: what the cache lacks comes decoded, with its place in `missing`."""
        media: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        places: dict[str, str] = {}
        for name in modalities:
            if self._cache is not None:
                places[name] = self._sha256(sample, name)
                if (known := self._cache.read(name, places[name])) is not None:
                    media[name], facts[name] = known
        if lacking := [name for name in modalities if name not in media]:
            clip = load_clip(sample, lacking, self._sampling, backend=self._backend)
            media, facts = {**media, **clip.arrays}, {**facts, **clip.facts}
        self._facts.save()
        return Features(
            {name: media[name] for name in modalities},
            {name: facts[name] for name in modalities},
            {name: Place(places[name], facts[name]) for name in lacking if name in places},
        )

    def keep(self, missing: Mapping[str, Place], states: Mapping[str, Tensor]) -> bool:
        """Write states to their places; False if there is no room for all of them."""
        assert self._cache is not None
        return all(self._cache.write(name, place.sha256, states[name], place.facts) for name, place in missing.items())

    def prepare(
        self,
        samples: Sequence[Sample],
        modalities: Sequence[str],
        *,
        on_bad: str,
        encode: bool = True,
        what: str = "reading clips",
        progress: bool = True,
    ) -> Prepared:
        """Go once over all samples before training: fill the cache, or only decode, so that bad media show up now.

        What is not encoded is decoded only with `on_bad="skip"`; else a bad clip stops the run when it comes up.

        Args:
            encode: False = leave the cache as it is.
        """
        with without_collector():  # of the lookup alone: who decodes and encodes leaves cycles behind
            lacking = [sample for sample in samples if self._lacks(sample, modalities)]
        encode = encode and self._cache is not None
        if not lacking or (not encode and on_bad == "raise"):
            self._facts.save()
            return Prepared(list(samples), [], len(lacking))
        kept: list[bool] = []

        def check(sample: Sample) -> Sample:
            wanted = [name for name in sample.modalities or () if name in modalities]
            if encode and self._cache is not None and not self._cache.is_full:
                found = self.stored(sample, wanted)
                assert self._encode is not None
                states = self._encode({name: found.media[name] for name in found.missing})
                kept.append(self.keep(found.missing, states))
            elif on_bad == "skip":
                load_clip(sample, wanted, self._sampling, backend=self._backend)
            return sample

        checked, bad = check_each(
            lacking,
            check,
            on_bad=on_bad,
            what=what,
            n_threads=self._n_threads,
            progress=progress,
        )
        self._facts.save()
        left_out = {id(sample) for sample in lacking} - {id(sample) for sample in checked}
        good = [sample for sample in samples if id(sample) not in left_out]
        return Prepared(good, bad, len(lacking) - len(bad) - sum(kept))

    def _lacks(self, sample: Sample, modalities: Sequence[str]) -> bool:
        """Whether the cache lacks anything of `sample`; also where it cannot be known, since a file is missing."""
        if self._cache is None:
            return True
        wanted = [name for name in sample.modalities or () if name in modalities]
        try:
            hashes: dict[str | None, str] = {}  # by file, since several modalities come from one
            for name in wanted:
                file = self._file(sample, name)
                if file not in hashes:
                    hashes[file] = self._sha256(sample, name)
                if not self._cache.has(name, hashes[file]):
                    return True
            return False
        except OSError:
            return True

    def _sha256(self, sample: Sample, modality: str) -> str:
        """Identity of the medium: the hash of its file, for face crops in RGB order with the order."""
        path = self._file(sample, modality)
        assert path is not None, f"sample {sample.id!r} lists {modality} without a file"
        digest = self._facts.sha256(path)
        is_bgr = path != sample.face or sample.face_order == "bgr"
        return digest if is_bgr else stable_hash([digest, sample.face_order])

    @staticmethod
    def _file(sample: Sample, modality: str) -> str | None:
        if modality == "audio" and sample.audio is not None:
            return sample.audio
        return sample.face if modality in ("face", "face_motion") else sample.video


def clip_reader(
    model: Any,
    processor: Any,
    *,
    backend: str = "pyav",
    cache_folder: Path | None = None,
    limit_gb: float | None = None,
) -> ClipReader:
    """The reader that gives `processor.encode` its media; with a cache folder, as encoder states.

    Args:
        limit_gb: maximum size of the encoder states in the folder; None = no limit.
    """
    sampled = {  # branch settings have the sampling's names, but `n_frames` for each kind of image
        field: settings["n_frames"] if field.startswith("n_") else settings[field]
        for name, settings in processor.branches.items()
        for field in SAMPLED.get(name, ())
    }
    sampling = SamplingConfig(**sampled)
    if cache_folder is None:
        return ClipReader(sampling, backend=backend)

    def encode(media: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, value in media.items():
            tensors |= processor.media(name, value)
        return model.encode(tensors)

    # The processor's settings (sizes, normalisation, audio windows) decide what the encoder's input is.
    inputs = {
        name: {key: value for key, value in settings.items() if key != "unless"} | {"n_tokens": None}
        for name, settings in processor.branches.items()
    }
    fingerprints = {name: [model.encoder_fingerprint(name), inputs[name], backend] for name in model.modalities}
    cache = FeatureCache(
        cache_folder / "features",
        fingerprints,
        about=model.config.spec["encoders"],
        limit_bytes=None if limit_gb is None else round(limit_gb * 1e9),
    )
    on_gpu = any(next(encoder.parameters()).is_cuda for encoder in model.encoders.values())
    # A GPU encodes faster than one thread decodes; on the CPU both share the cores.
    n_threads = min(16, max(2, n_cores() // torch.cuda.device_count())) if on_gpu else 2
    return ClipReader(
        sampling, backend=backend, cache=cache, encode=encode, facts=facts_in(cache_folder), n_threads=n_threads
    )
