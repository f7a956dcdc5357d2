"""The cache of frozen encoder states, addressed by content.

A frozen encoder is a pure function of the file, so its states are computed once and shared by all runs and processes.
The address is a hash of the media file, the encoder's fingerprint and the sampling; if any of them changes, so does the
address, and a stale hit is impossible. For the layout on disk see `affectgpt.cache.store`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affectgpt.cache.store import Quota, StateStore, is_finite
from affectgpt.config import SAMPLED, FacesConfig, SamplingConfig
from affectgpt.data.clips import load_clip
from affectgpt.data.faces import FACE_MODALITIES, FaceNeeds, face_needs
from affectgpt.data.facts import MediaFacts, facts_in
from affectgpt.data.sources import check_each
from affectgpt.journal.locks import NamedLocks
from affectgpt.media.errors import DamagedMedia
from affectgpt.runtime import InputError, gc_paused, n_cores, stable_hash
from affectgpt.schema import PERSONS, BadSample, Sample

log = logging.getLogger("affectgpt")

FORMAT = 2
"""Increment when decoding, preprocessing or the file layout changes: old entries are then no longer found."""


_LOOK_AGAIN_S = 0.05  # for a clip that another process is encoding

CACHE_MODES = ("ahead", "first_epoch", "off")


def cache_mode(value: bool | str) -> str:
    """`data.cache_features` as one of `CACHE_MODES`; true is "ahead", false is "off"."""
    mode = {True: "ahead", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if mode not in CACHE_MODES:
        raise InputError(f"data.cache_features is {value!r}; expected one of {list(CACHE_MODES)}, true or false")
    return mode


@dataclass(frozen=True)
class CacheKey:
    """The address of states that are not in the cache yet, the facts to store with them, and the media file."""

    sha256: str
    facts: dict[str, Any]
    file: str | None


@dataclass(frozen=True)
class Features:
    """The processor's input for one sample by modality: decoded arrays, or encoder states [T,E]; and the facts.

    Attributes:
        missing: keys of the media whose states the cache lacks, see `ClipReader.load`.
    """

    media: dict[str, Any]
    facts: dict[str, Any]
    missing: dict[str, CacheKey] = field(default_factory=dict)


class FeatureCache:
    """States by (modality, media sha256): one store for each modality and way of encoding it.

    Args:
        folder: shared by all runs.
        fingerprints: everything that determines a modality's states apart from the file: the encoder (weights, layers,
            pooling, precision), sampling and preprocessing.
        about: a description of the encoder for each modality, stored for humans.
        limit_bytes: maximum size of the folder, including other encoders' states; None = no limit. States beyond it are
            not stored.

    Attributes:
        n_refused: states that were not stored because of the limit.
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
        self._folder = folder
        self._claims: NamedLocks | None = None
        self._quota = None if limit_bytes is None else Quota(folder, limit_bytes)
        self._stores = {
            name: StateStore(
                folder / name / stable_hash([FORMAT, fingerprint])[:16],
                {"format": FORMAT, "encoder": (about or {}).get(name), "made_by": fingerprint},
                self._quota,
            )
            for name, fingerprint in fingerprints.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_claims": None}

    @property
    def is_full(self) -> bool:
        return self._quota is not None and self._quota.is_full

    @property
    def claims(self) -> NamedLocks:
        """Locks of the clips that a process is encoding; without locks on the file system, work is not shared."""
        if self._claims is None:
            self._claims = NamedLocks(self._folder / "claims", optional=True)
        return self._claims

    def claim_of(self, hashes: Mapping[str, str]) -> str:
        """The name of the claim to encode these media: modality -> sha256."""
        return stable_hash([(name, self._stores[name].folder.name, sha256) for name, sha256 in sorted(hashes.items())])

    def __contains__(self, modality: str) -> bool:
        """Whether states of this modality are cached."""
        return modality in self._stores

    def has(self, modality: str, sha256: str) -> bool:
        return sha256 in self._stores[modality]

    def read(self, modality: str, sha256: str) -> tuple[Tensor, dict[str, Any]] | None:
        """States [T,E] and facts, or None; damaged entries are logged and count as missing."""
        return self._stores[modality].read(sha256)

    def write(self, modality: str, sha256: str, states: Tensor, facts: Mapping[str, Any]) -> bool:
        """Store states; False if the cache is full, which is counted and logged once."""
        if self._stores[modality].write(sha256, states, facts):
            return True
        assert self._quota is not None
        with self._quota.lock:
            self.n_refused += 1
            first = self.n_refused == 1
        if first:
            log.warning(
                "the cache is full (paths.cache_limit_gb): states of further clips are not stored, but recomputed each "
                "time they are needed; raise the limit, or free space with `python -m affectgpt.cache gc`"
            )
        return False


@dataclass(frozen=True)
class PreparedClips:
    """Usable samples, bad samples, and how many of the usable ones are not completely in the cache."""

    good: list[Sample]
    bad: list[BadSample]
    n_uncached: int

    @property
    def summary(self) -> tuple[list[BadSample], int]:
        """(bad samples, number not in the cache): what processes exchange."""
        return self.bad, self.n_uncached


class ClipReader:
    """Reads the media of a sample, for training and inference alike: from the cache if there is one, else decoded.

    Args:
        sampling: how many frames and audio windows are taken of a clip.
        encode: decoded media of one sample -> encoder states; only with a cache.
        check: raises InputError for decoded media that the model cannot take; `encode` does, too.
        cache: None = always decode; the model then runs its encoders in the batch.
        facts: known hashes of files.
        n_threads: number of clips that `prepare` processes at once. Decoding releases the interpreter lock, so one clip
            is decoded while another is encoded.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        *,
        backend: str = "pyav",
        cache: FeatureCache | None = None,
        encode: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] | None = None,
        check: Callable[[Mapping[str, Any]], object] | None = None,
        facts: MediaFacts | None = None,
        n_threads: int = 2,
    ) -> None:
        assert cache is None or encode is not None, "a cache needs `encode`"
        self._sampling = sampling
        self._backend = backend
        self._cache = cache
        self._encode = encode
        self._check = check
        self._facts = facts or MediaFacts()
        self._n_threads = n_threads
        self._faces = {person: FaceNeeds(sampling.faces).of(person) for person in (None, *PERSONS)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None, "_check": None}  # loader processes have no model

    def __call__(self, sample: Sample, modalities: Sequence[str]) -> Features:
        """Media of `sample` for `modalities`; with a cache as states, which are computed and stored if missing.

        Raises:
            MediaError: the media cannot be decoded completely, or their states are not finite.
        """
        found = self.load(sample, modalities)
        if not found.missing:
            return found
        assert self._encode is not None
        states = self._encode({name: found.media[name] for name in found.missing})
        self.write(found.missing, states)
        return Features({**found.media, **{name: state.cpu() for name, state in states.items()}}, found.facts)

    def load(self, sample: Sample, modalities: Sequence[str]) -> Features:
        """Media of `sample` without encoding: states from the cache; the rest decoded, with their keys in `missing`."""
        media: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        hashes: dict[str, str] = {}
        for name in modalities:
            if self._cache is not None and name in self._cache:
                hashes[name] = self._sha256(sample, name)
                if (known := self._cache.read(name, hashes[name])) is not None:
                    media[name], facts[name] = known
        if lacking := [name for name in modalities if name not in media]:
            clip = load_clip(sample, lacking, self._sampling, backend=self._backend, facts=self._facts)
            media, facts = {**media, **clip.arrays}, {**facts, **clip.facts}
        self._facts.save()
        return Features(
            {name: media[name] for name in modalities},
            {name: facts[name] for name in modalities},
            {name: CacheKey(hashes[name], facts[name], self._file(sample, name)) for name in lacking if name in hashes},
        )

    def write(self, missing: Mapping[str, CacheKey], states: Mapping[str, Tensor]) -> bool:
        """Store states under their keys; False if the cache is full.

        Raises:
            DamagedMedia: states are not finite; nothing is stored.
        """
        assert self._cache is not None
        for name, key in missing.items():
            if not is_finite(states[name]):
                raise DamagedMedia(
                    f"{key.file}: the encoder of {name} gives NaN or infinity for it; if other clips fail too, the "
                    "weights of the encoder or its dtype are at fault, else leave the clip out"
                )
        return all(self._cache.write(name, key.sha256, states[name], key.facts) for name, key in missing.items())

    def prepare(
        self,
        samples: Sequence[Sample],
        modalities: Sequence[str],
        *,
        on_bad: str,
        encode: bool = True,
        what: str = "reading clips",
        progress: bool = True,
        probe: Callable[[Sample], Sample] | None = None,
    ) -> PreparedClips:
        """Go through all samples before training: fill the cache, or only decode, so that bad media are found now.

        Several processes share the work: each encodes the clips that no other is encoding, and waits for the rest.

        Clips that are not encoded are decoded only with `on_bad="skip"`; else a bad clip raises when it is drawn.

        Args:
            encode: False = do not fill the cache.
            probe: for samples that are not probed: does it, right before they are decoded, so that what it decodes is
                still in memory; only to fill the cache.
        """
        every = on_bad == "skip"
        with gc_paused():  # only for the lookup: decoding and encoding leave reference cycles
            lacking = [
                sample for sample in samples if probe is not None or self._lacks(sample, modalities, every=every)
            ]
        encode = encode and self._cache is not None
        if not lacking or (not encode and on_bad == "raise"):
            self._facts.save()
            return PreparedClips(list(samples), [], len(lacking))
        written: list[bool] = []
        elsewhere: list[Sample] = []  # another process, or another thread of this one, is encoding them
        probed: dict[int, Sample] = {}

        def check(given: Sample, wait: bool = False) -> Sample:
            sample = given
            if probe is not None:
                sample = probed[id(given)] = probe(given)
                if not self._lacks(sample, modalities, every=every):
                    written.append(True)
                    return given
            wanted = [name for name in sample.modalities or () if name in modalities]
            stored = [name for name in wanted if self._cache is not None and name in self._cache]
            if encode and self._cache is not None and stored and not self._cache.is_full:
                claims = self._cache.claims
                claim = self._cache.claim_of({name: self._sha256(sample, name) for name in stored})
                while not claims.acquire(claim):
                    if not wait:
                        elsewhere.append(given)
                        return given
                    time.sleep(_LOOK_AGAIN_S)
                try:
                    found = self.load(sample, wanted)
                    if found.missing:
                        assert self._encode is not None
                        states = self._encode({name: found.media[name] for name in found.missing})
                    written.append(not found.missing or self.write(found.missing, states))
                finally:
                    claims.release(claim)
            elif on_bad == "skip":
                clip = load_clip(sample, wanted, self._sampling, backend=self._backend, facts=self._facts)
                if self._check is not None:
                    self._check(clip.arrays)
                written.extend([True] * (encode and not stored))  # nothing of it is ever in the cache
            return given

        check_all = partial(check_each, on_bad=on_bad, n_threads=self._n_threads, progress=progress)
        checked, bad = check_all(lacking, check, what=what)
        done = {id(sample) for sample in checked} - {id(sample) for sample in elsewhere}
        if elsewhere:
            checked, more_bad = check_all(elsewhere, partial(check, wait=True), what="clips of another process")
            done |= {id(sample) for sample in checked}
            bad += more_bad
        self._facts.save()
        left_out = {id(sample) for sample in lacking} - done
        good = [probed.get(id(sample), sample) for sample in samples if id(sample) not in left_out]
        return PreparedClips(good, bad, len(lacking) - len(bad) - sum(written))

    def _lacks(self, sample: Sample, modalities: Sequence[str], *, every: bool = False) -> bool:
        """Whether the cache lacks anything of `sample`; True if a file cannot be read, which is then reported.

        Args:
            every: also of modalities that are not cached.
        """
        if self._cache is None:
            return True
        wanted = [name for name in sample.modalities or () if name in modalities]
        if every and any(name not in self._cache for name in wanted):
            return True
        wanted = [name for name in wanted if name in self._cache]
        try:
            hashes: dict[Any, str] = {}  # by file and use, since several modalities come from one
            for name in wanted:
                file = self._file(sample, name), self._is_cut(sample, name)
                if file not in hashes:
                    hashes[file] = self._sha256(sample, name)
                if not self._cache.has(name, hashes[file]):
                    return True
            return False
        except InputError:
            return True

    def _sha256(self, sample: Sample, modality: str) -> str:
        """Hash of the media file; for faces of a video combined with what decides its crops (if the speech does, with
        the file of the sound), for saved crops in RGB order with the order.
        """
        path = self._file(sample, modality)
        assert path is not None, f"sample {sample.id!r} lists {modality} without a file"
        digest = self._facts.sha256(path)
        if self._is_cut(sample, modality):
            faces = self._faces[sample.person]
            by_sound = [self._facts.sha256(sample.audio)] if sample.audio and faces.by_speech else []
            return stable_hash([digest, faces.key, *by_sound])
        is_bgr = path != sample.face or sample.face_order == "bgr"
        return digest if is_bgr else stable_hash([digest, sample.face_order])

    @staticmethod
    def _file(sample: Sample, modality: str) -> str | None:
        if modality == "audio" and sample.audio is not None:
            return sample.audio
        return sample.face if modality in FACE_MODALITIES and sample.face is not None else sample.video

    @staticmethod
    def _is_cut(sample: Sample, modality: str) -> bool:
        """Whether the crops of this modality are cut out of the video."""
        return modality in FACE_MODALITIES and sample.face is None


def clip_reader(
    model: Any,
    processor: Any,
    *,
    backend: str = "pyav",
    cache_folder: Path | None = None,
    limit_gb: float | None = None,
    facts: MediaFacts | None = None,
) -> ClipReader:
    """The reader that gives `processor.encode` its media; with a cache folder, as encoder states.

    States of an encoder that trains, and of an omni model, are never cached: the media of its modality are decoded.

    Args:
        limit_gb: maximum size of the encoder states in the folder; None = no limit.
        facts: known facts about files; None = those in the cache folder, if there is one.
    """
    sampled = {  # branch settings have the sampling's names, but `n_frames` for each kind of image
        field: settings["n_frames"] if field.startswith("n_") else settings[field]
        for name, settings in processor.branches.items()
        for field in SAMPLED.get(name, ())
    }
    if short := {settings["short_clips"] for settings in processor.branches.values() if "short_clips" in settings}:
        (sampled["short_clips"],) = short
    sampling = SamplingConfig(**sampled, faces=faces_of(processor))
    if not model.cacheable:
        return ClipReader(sampling, backend=backend, facts=facts)

    def tensors_of(media: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, value in media.items():
            tensors |= processor.media(name, value)
        return tensors

    if cache_folder is None:
        return ClipReader(sampling, backend=backend, check=tensors_of, facts=facts)

    def encode(media: Mapping[str, Any]) -> dict[str, Tensor]:
        return model.encode(tensors_of(media))

    # The processor's settings (sizes, normalisation, audio windows) decide what the encoder's input is.
    inputs = {
        name: {key: value for key, value in settings.items() if key not in ("unless", "n_class", "faces")}
        | {"n_tokens": None}
        for name, settings in processor.branches.items()
    }
    cached = [name for name in model.modalities if name not in model.training_encoders()]
    fingerprints = {name: [model.encoder_fingerprint(name), inputs[name], backend] for name in cached}
    cache = FeatureCache(
        cache_folder / "features",
        fingerprints,
        about=model.config.spec["encoders"],
        limit_bytes=None if limit_gb is None else round(limit_gb * 1e9),
    )
    on_gpu = any(next(encoder.parameters()).is_cuda for encoder in model.every_encoder().values())
    # A GPU encodes faster than one thread decodes; on the CPU both share the cores.
    n_threads = min(16, max(2, n_cores() // torch.cuda.device_count())) if on_gpu else 2
    return ClipReader(
        sampling,
        backend=backend,
        cache=cache,
        encode=encode,
        check=tensors_of,
        facts=facts or facts_in(cache_folder),
        n_threads=n_threads,
    )


def faces_of(processor: Any) -> FacesConfig:
    """How a model's face crops are cut out of videos."""
    for name in FACE_MODALITIES:
        if settings := processor.branches.get(name, {}).get("faces"):
            return FacesConfig(**settings)
    return FacesConfig()


def face_needs_of(model: Any, processor: Any, *, backend: str = "pyav") -> FaceNeeds | None:
    """What probing needs to know to find faces for a model; None if it takes none."""
    sampled = {
        SAMPLED[name][0]: settings["n_frames"]
        for name, settings in processor.branches.items()
        if name in ("frames", "motion")
    }
    if "audio" in processor.branches:
        sampled["rate_hz"] = processor.branches["audio"]["rate_hz"]
    return face_needs(model.modalities, SamplingConfig(**sampled, faces=faces_of(processor)), backend=backend)
