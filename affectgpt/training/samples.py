"""The samples of a stage: read, checked against the test set, decoded or encoded once, and split for validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from affectgpt.cache.reader import ClipReader, cache_mode
from affectgpt.config import DataConfig, SourceConfig, TrainConfig
from affectgpt.data import leaks
from affectgpt.data.faces import face_needs
from affectgpt.data.facts import facts_in
from affectgpt.data.mixture import Source, read_mixture
from affectgpt.data.splits import hold_out
from affectgpt.runtime import UserError
from affectgpt.schema import BadSample, Sample
from affectgpt.training.distributed import Processes

_LARGE_SHARE = 1 / 3  # of the training data, held out for validation without being a mistake

log = logging.getLogger("affectgpt")


def sources_of_stage(config: TrainConfig) -> list[SourceConfig]:
    """The sources that the stage names with `stage.data`, or with its own name."""
    stage, known = config.stage, config.data.training()
    names = stage.data or [stage.name]
    if missing := [name for name in names if not known.get(name)]:
        raise UserError(
            f"stage {stage.name!r} trains on {missing}, which data {config.data.name!r} does not have; it has "
            f"{[name for name, sources in known.items() if sources]}. Choose some of them with stage.data, or see "
            "docs/stages.md"
        )
    return [source for name in names for source in known[name]]


def training_sources(config: TrainConfig) -> tuple[list[Source], list[BadSample]]:
    """The training data of the stage without samples of the test set, and what was left out."""
    facts = facts_in(Path(config.paths.cache))
    faces = face_needs(config.model.encoders, config.model.sampling, backend=config.data.backend)
    sources, bad = read_mixture(sources_of_stage(config), config.data, config.stage, facts, faces)
    sources, leaked = leaks.remove_leaks(sources, config.data, facts)
    return sources, [*bad, *leaked]


def prepare_clips(
    sources: Sequence[Source], data: DataConfig, reader: ClipReader, modalities: Sequence[str], processes: Processes
) -> tuple[list[Source], list[BadSample], int]:
    """Find bad clips before the first step, and fill the cache if it is filled ahead; each process takes its share.

    Returns:
        sources without bad clips, the bad clips, and the number of clips that still need encoders while training.
    """
    usable: list[Source] = []
    bad: list[BadSample] = []
    n_uncached = 0
    ahead = cache_mode(data.cache_features) == "ahead"
    what = "encoding clips" if ahead else "reading clips"
    for source in sources:
        mine = processes.share(source.samples)
        prepared = processes.together(
            lambda mine=mine: reader.prepare(mine, modalities, on_bad=data.on_bad, encode=ahead, what=what).summary
        )
        bad_clips = [row for rows, _ in prepared for row in rows]
        n_uncached += sum(count for _, count in prepared)
        bad += bad_clips
        bad_ids = {row.id for row in bad_clips}
        good = [sample for sample in source.samples if sample.id not in bad_ids]
        if not good:
            raise UserError(
                f"none of {len(source.samples)} clips can be decoded; the first: {bad_clips[0].id!r}: "
                f"{bad_clips[0].reason}"
            )
        usable.append(replace(source, samples=good))
    return usable, bad, n_uncached


def hold_out_validation(sources: Sequence[Source], n: int, seed: int) -> tuple[list[Source], list[Sample]]:
    """(training sources, validation samples): `n` samples in all, from each source in proportion to its size."""
    n_all = sum(len(source.samples) for source in sources)
    if n >= n_all:
        raise UserError(
            f"stage.n_validation={n} would hold out all of {n_all} usable training samples; lower it (0 = no "
            "validation) or add samples"
        )
    if n > n_all * _LARGE_SHARE:
        log.warning(
            "%d of %d training samples are held out for validation, so only %d are trained on; lower "
            "stage.n_validation=%d (0 = no validation), or add samples",
            n, n_all, n_all - n, n,
        )  # fmt: skip
    training: list[Source] = []
    validation: list[Sample] = []
    for source in sources:
        rest, held = hold_out(source.samples, n=round(n * len(source.samples) / n_all), seed=seed)
        training.append(replace(source, samples=rest))
        validation += held
    return training, validation
