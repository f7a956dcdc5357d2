"""The samples of a stage: read, checked against the test set, decoded or encoded once, and split for validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectgpt.cache.reader import ClipReader, cache_mode
from affectgpt.config import DataConfig, QuestionConfig, SourceConfig, TrainConfig
from affectgpt.data import leaks
from affectgpt.data.faces import face_needs
from affectgpt.data.facts import facts_in
from affectgpt.data.mixture import Source, read_mixture
from affectgpt.data.splits import hold_out
from affectgpt.prompts import render
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import BadSample, Sample, true_labels
from affectgpt.training.distributed import Processes

_OF_PROMPT = 1000  # tokens of a prompt besides the texts of its sample: the question, the system's words
_LARGE_SHARE = 1 / 3  # of the training data, held out for validation without being a mistake

log = logging.getLogger("affectgpt")

Answers = Callable[[Sample, str, str, str], Sequence[str | None]]


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


def check_texts(
    sources: Sequence[Source], processor: Any, answers: Answers, on_bad: str
) -> tuple[list[Source], list[BadSample]]:
    """Find texts that the LLM cannot take before the first step: (sources without them, their samples).

    Args:
        answers: sample, task, language -> the answers that are trained on, None for a prompt alone.

    Raises:
        InputError: such a text, with `on_bad="raise"`; or no sample of a source is left.
    """
    usable: list[Source] = []
    bad: list[BadSample] = []
    for source in sources:
        good, n_before = [], len(bad)
        for sample in source.samples:
            try:
                _check_text(sample, source, processor, answers)
                good.append(sample)
            except InputError as error:
                if on_bad == "raise":
                    raise InputError(f"sample {sample.id!r}: {error}") from error
                bad.append(BadSample(sample.id, "text", str(error)))
        if source.samples and not good:
            raise InputError(
                f"no sample of a source has a text that the LLM can take; the first: {bad[n_before].reason}"
            )
        usable.append(replace(source, samples=good))
    return usable, bad


def _check_text(sample: Sample, source: Source, processor: Any, answers: Answers) -> None:
    if processor.max_tokens is None:
        return
    n_soft = sum(branch["n_tokens"] for branch in processor.branches.values())
    shown = processor.visible(name for name in sample.modalities or () if name in processor.branches)
    for lang in source.langs:
        own = sample.in_language(lang, strict=False)
        texts = (own.subtitle, own.description, sample.rejected, *(own.labels or ()), own.question, *source.candidates)
        # A token has at least one byte: what is much shorter than the limit need not be counted.
        n_bytes = sum(len(text.encode()) for text in texts if text)
        if n_bytes + n_soft + _OF_PROMPT < processor.max_tokens:
            continue
        for task in source.tasks:
            prompt = render(
                sample,
                task=task,
                lang=lang,
                candidates=source.candidates if task == "fixed" else (),
                modalities=shown,
                prompt_format=processor.prompt_format,
            )
            for answer in answers(sample, task, lang, processor.prompt_format):
                processor.check_length(prompt, answer)


def question_of(source: Source) -> QuestionConfig:
    """What held-out samples of `source` are asked: the first task that its training has of both, think, labels and
    fixed; labels if it trains descriptions only. In the language that it trains most."""
    task = next((task for task in ("both", "think", "labels", "fixed") if source.tasks.get(task)), "labels")
    lang = max(source.langs, key=lambda lang: source.langs[lang])
    return QuestionConfig(task=task, lang=lang, candidates=list(source.candidates) if task == "fixed" else [])


def hold_out_validation(sources: Sequence[Source], n: int, seed: int) -> tuple[list[Source], list[Source]]:
    """(training sources, held-out sources): `n` samples in all, from each source in proportion to its size.

    Only samples with labels are held out, since others cannot be scored.
    """
    scored = [_scored(source) for source in sources]
    n_all = sum(map(len, scored))
    if n and n >= n_all:
        raise UserError(
            f"stage.n_validation={n} would hold out all of {n_all} usable training samples with labels; lower it (0 = "
            "no validation) or add samples"
        )
    if n > n_all * _LARGE_SHARE:
        log.warning(
            "%d of %d training samples are held out for validation, so only %d are trained on; lower "
            "stage.n_validation=%d (0 = no validation), or add samples",
            n, n_all, n_all - n, n,
        )  # fmt: skip
    shares = _shares(n, [len(each) for each in scored])
    if sum(shares) < n:
        log.warning(
            "%d samples are held out for validation, not stage.n_validation=%d: every source keeps one", sum(shares), n
        )
    training: list[Source] = []
    validation: list[Source] = []
    for source, labelled, share in zip(sources, scored, shares, strict=True):
        held = hold_out(labelled, n=share, seed=seed)[1] if share else []
        ids = {sample.id for sample in held}
        training.append(replace(source, samples=[sample for sample in source.samples if sample.id not in ids]))
        if held:
            validation.append(replace(source, samples=held))
    return training, validation


def _scored(source: Source) -> list[Sample]:
    """The samples whose answers to `question_of` can be scored."""
    question = question_of(source)
    return [sample for sample in source.samples if question.task == "fixed" or true_labels(sample, question.lang)]


def _shares(n: int, sizes: Sequence[int]) -> list[int]:
    """`n` divided in proportion to `sizes`, the rest to the largest remainders; every part keeps one of its own.

    >>> _shares(3, [10, 10, 10, 10]), _shares(4, [90, 6, 4])
    ([1, 1, 1, 0], [4, 0, 0])
    """
    exact = [n * size / max(sum(sizes), 1) for size in sizes]
    shares = [min(int(part), max(size - 1, 0)) for part, size in zip(exact, sizes, strict=True)]
    for place in sorted(range(len(sizes)), key=lambda place: shares[place] - exact[place]):
        if sum(shares) < n and shares[place] < sizes[place] - 1:
            shares[place] += 1
    return shares
