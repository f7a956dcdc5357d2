"""What a stage trains on: its sources read, checked, encoded and parted from what validates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from affectgpt.cache.reader import ClipReader, cache_mode
from affectgpt.config import DataConfig, SourceConfig, StageConfig, TrainConfig
from affectgpt.data import leaks
from affectgpt.data.facts import MediaFacts, facts_in
from affectgpt.data.sources import probe_samples, read_source
from affectgpt.data.splits import hold_out
from affectgpt.data.stream import Part, Recipe, weighted, with_texts
from affectgpt.runtime import UserError
from affectgpt.schema import BadSample, Sample
from affectgpt.training.distributed import Processes


def recipe_of(stage: StageConfig) -> Recipe:
    """What the stage asks for and shows."""
    return Recipe(stage.tasks, stage.langs, stage.modality_dropout, stage.subtitle_dropout, tuple(stage.candidates))


def training_parts(config: TrainConfig, sources: Sequence[SourceConfig]) -> tuple[list[Part], list[BadSample]]:
    """The training data with the texts that the stage asks for, and without what the test set holds."""
    facts = facts_in(Path(config.paths.cache))
    parts, bad = read_sources(sources, config.data, facts=facts, recipe=recipe_of(config.stage))
    parts, leaked = leaks.keep_apart(parts, config.data, facts)
    return parts, [*bad, *leaked]


def read_sources(
    sources: Sequence[SourceConfig],
    data: DataConfig,
    *,
    facts: MediaFacts | None = None,
    recipe: Recipe | None = None,
) -> tuple[list[Part], list[BadSample]]:
    """Read the sources and look at the headers of their media; the parts, and what was left out.

    Args:
        recipe: if given, samples must have the texts that it (or their source) asks for.
    """
    parts: list[Part] = []
    bad: list[BadSample] = []
    for source in sources:
        rows = read_source(source, data.folder, on_bad=data.on_bad)
        samples, bad_media = probe_samples(rows.samples, on_bad=data.on_bad, facts=facts)
        bad += rows.bad + bad_media
        files = tuple(str(file) for file in rows.files)
        part = Part(samples, source.weight, source.tasks, source.langs, tuple(source.candidates), files)
        if recipe is not None:
            tasks, langs, candidates = part.asked(recipe)
            samples, lacking = with_texts(samples, tasks, langs, candidates, on_bad=data.on_bad)
            bad += lacking
            part = replace(part, samples=samples, candidates=candidates)
        if not samples:
            raise UserError(f"{rows.name}: no usable sample is left; the first of {len(bad)}: {bad[0].reason}")
        parts.append(part)
    return weighted(parts, data.weights), bad


def prepare_training(
    parts: Sequence[Part],
    stage: StageConfig,
    data: DataConfig,
    seed: int,
    reader: ClipReader,
    modalities: Sequence[str],
    processes: Processes,
) -> tuple[list[Part], list[Sample], list[BadSample], int]:
    """Encode the training data (with a cache that is filled ahead; each process its share) and hold out validation.

    Returns:
        training parts, validation samples (out of the training data, never the test split), bad clips, and how many
        clips will need encoders in the steps.
    """
    usable: list[Part] = []
    bad: list[BadSample] = []
    n_uncached = 0
    ahead = cache_mode(data.cache_features) == "ahead"
    for part in parts:
        samples = part.samples
        mine = processes.share(samples)
        prepared = processes.together(
            lambda mine=mine: (
                reader.prepare(
                    mine,
                    modalities,
                    on_bad=data.on_bad,
                    encode=ahead,
                    what="encoding clips" if ahead else "reading clips",
                ).summary
            )
        )
        bad_clips = [row for rows, _ in prepared for row in rows]
        n_uncached += sum(count for _, count in prepared)
        bad += bad_clips
        bad_ids = {row.id for row in bad_clips}
        good = [sample for sample in samples if sample.id not in bad_ids]
        if not good:
            raise UserError(f"none of {len(samples)} clips can be decoded; the first: {bad[0].id!r}: {bad[0].reason}")
        usable.append(replace(part, samples=good))
    parts = usable
    n_all = sum(len(part.samples) for part in parts)
    if stage.n_validation >= n_all:
        raise UserError(
            f"stage.n_validation={stage.n_validation} would hold out all of {n_all} usable training samples; lower it "
            "(0 = no validation) or add samples"
        )
    validation: list[Sample] = []
    training: list[Part] = []
    for part in parts:
        share = round(stage.n_validation * len(part.samples) / n_all)
        rest, held = hold_out(part.samples, n=share, seed=seed)
        training.append(replace(part, samples=rest))
        validation += held
    return training, validation, bad, n_uncached
