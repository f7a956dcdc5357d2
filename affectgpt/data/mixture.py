"""The sources of a data configuration: read, probed, checked for the texts that training asks for, and weighted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from affectgpt.clauses import shown_clues
from affectgpt.config import DataConfig, SourceConfig, StageConfig
from affectgpt.data.faces import FaceNeeds
from affectgpt.data.facts import MediaFacts
from affectgpt.data.sources import SourceRows, probe_samples, read_source
from affectgpt.prompts import says_something, target_text
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import TASKS, BadSample, Sample

WEIGHTS = ("given", "proportional")
TARGETS = ("shown", "complete")


@dataclass(frozen=True)
class Source:
    """One source of a training mixture and what is asked about its samples.

    Attributes:
        samples: with probed `modalities` and the texts that `tasks` need in `langs`.
        weight: share of the draws relative to other sources.
        tasks, langs: weights, which need not sum to 1.
        candidates: task fixed: the labels to choose from.
        drop_candidates: candidate -> share of the questions with another answer that leave it out.
        files: the tables that the samples come from.
    """

    samples: Sequence[Sample]
    weight: float = 1.0
    tasks: Mapping[str, float] = field(default_factory=lambda: {"both": 1.0})
    langs: Mapping[str, float] = field(default_factory=lambda: {"en": 1.0})
    candidates: Sequence[str] = ()
    files: Sequence[str] = ()
    drop_candidates: Mapping[str, float] = field(default_factory=dict)


def read_samples(
    sources: Sequence[SourceConfig],
    data: DataConfig,
    facts: MediaFacts | None = None,
    faces: FaceNeeds | None = None,
) -> tuple[list[Sample], list[BadSample]]:
    """All samples of the sources with probed modalities, and the bad ones.

    Raises:
        UserError: a source cannot be read, or nothing of it is usable; with data.on_bad "raise" also any bad sample.
    """
    rows = [_read(source, data, facts, faces) for source in sources]
    return [sample for each in rows for sample in each.samples], [row for each in rows for row in each.bad]


def read_unprobed(
    sources: Sequence[SourceConfig], data: DataConfig, facts: MediaFacts, faces: FaceNeeds | None
) -> tuple[list[Sample], list[BadSample]]:
    """All samples of the sources as they are in the tables, for `probe_sample` with `faces`, and the bad ones.

    Their files are opened, but not decoded. Errors are those of `read_samples`.
    """
    found: list[Sample] = []
    bad: list[BadSample] = []
    for source in sources:
        rows = read_source(source, data.folder, on_bad=data.on_bad)
        usable, lacking = probe_samples(rows.samples, on_bad=data.on_bad, facts=facts, faces=faces, later=True)
        _check_not_empty(rows.name, usable, [*rows.bad, *lacking])
        ids = {sample.id for sample in usable}
        found += [sample for sample in rows.samples if sample.id in ids]
        bad += [*rows.bad, *lacking]
    return found, bad


def read_mixture(
    sources: Sequence[SourceConfig],
    data: DataConfig,
    stage: StageConfig,
    facts: MediaFacts | None = None,
    faces: FaceNeeds | None = None,
) -> tuple[list[Source], list[BadSample]]:
    """The sources of a stage; tasks, languages, candidates and limit are the source's own, else those of the stage.

    Raises:
        UserError: as `read_samples`, where a sample without the texts that are asked for is bad, too.
    """
    if data.weights not in WEIGHTS:
        raise InputError(f"data.weights is {data.weights!r}; expected one of {list(WEIGHTS)}")
    mixture: list[Source] = []
    bad: list[BadSample] = []
    for source in sources:
        limited = replace(source, limit=stage.limit) if source.limit is None else source
        rows = _read(limited, data, facts, faces)
        tasks = {task: weight for task, weight in (source.tasks or stage.tasks).items() if weight != 0}
        langs = {lang: weight for lang, weight in (source.langs or stage.langs).items() if weight != 0}
        candidates: Sequence[str] = ()
        if "fixed" in tasks:
            labels = sorted({sample.label for sample in rows.samples if sample.label})
            candidates = tuple(source.candidates or stage.candidates or labels)
        _check_dropped(source.drop_candidates, candidates, rows.name)
        fit = stage.targets == "shown"
        samples, lacking = with_texts(rows.samples, tasks, langs, candidates, fit=fit, on_bad=data.on_bad)
        bad += [*rows.bad, *lacking]
        _check_not_empty(rows.name, samples, [*rows.bad, *lacking])
        weight = source.weight * (len(samples) if data.weights == "proportional" else 1)
        files = tuple(map(str, rows.files))
        mixture.append(Source(samples, weight, tasks, langs, candidates, files, dict(source.drop_candidates)))
    return mixture, bad


def _check_dropped(dropped: Mapping[str, float], candidates: Sequence[str], name: str) -> None:
    for candidate, share in dropped.items():
        if candidate not in candidates or not 0 <= share <= 1:
            raise InputError(
                f"{name}: drop_candidates={{{candidate}: {share}}}; expected shares from 0 to 1 of candidates of task "
                f"fixed, which are {list(candidates)}"
            )


def _read(
    source: SourceConfig, data: DataConfig, facts: MediaFacts | None, faces: FaceNeeds | None = None
) -> SourceRows:
    rows = read_source(source, data.folder, on_bad=data.on_bad)
    samples, bad = probe_samples(rows.samples, on_bad=data.on_bad, facts=facts, faces=faces)
    _check_not_empty(rows.name, samples, [*rows.bad, *bad])
    return SourceRows(rows.name, samples, [*rows.bad, *bad], rows.files)


def _check_not_empty(name: str, samples: Sequence[Sample], bad: Sequence[BadSample]) -> None:
    if not samples:
        reason = f"the first of {len(bad)} bad ones: {bad[0].reason}" if bad else "it is empty"
        raise UserError(f"{name}: no usable sample; {reason}")


# ---------------------------------------------------------------- texts

_BOTH = ("description", "labels")
_NEEDS = {"description": _BOTH[:1], "labels": _BOTH[1:], "both": _BOTH, "think": _BOTH, "fixed": ("label",)}


def with_texts(
    samples: Sequence[Sample],
    tasks: Iterable[str],
    langs: Iterable[str],
    candidates: Sequence[str] = (),
    *,
    fit: bool = False,
    on_bad: str = "raise",
) -> tuple[list[Sample], list[BadSample]]:
    """Split `samples` into those with the texts for all `tasks` in all `langs`, and the others with the reason.

    With `fit`, a description must say something about what its clip has.

    Raises:
        InputError: an unknown task; with on_bad "raise", samples that lack texts (one named, with the count).
    """
    tasks, langs = list(tasks), list(langs)
    if unknown := [task for task in tasks if task not in TASKS]:
        raise InputError(f"unknown tasks {unknown}; expected some of {list(TASKS)}")
    good: list[Sample] = []
    bad: list[BadSample] = []
    for sample in samples:
        reasons = [_missing_text(sample, task, lang, candidates, fit) for lang in langs for task in tasks]
        if reason := next(filter(None, reasons), None):
            bad.append(BadSample(sample.id, str(sample.video or sample.audio or sample.id), reason))
        else:
            good.append(sample)
    if bad and on_bad == "raise":
        raise InputError(
            f"{bad[0].reason}; {len(bad)} samples lack texts for tasks {tasks} in {langs}. Ask a source only for what "
            "it has (tasks: {labels: 1.0} in its YAML), or leave such samples out with data.on_bad=skip"
        )
    return good, bad


def _missing_text(sample: Sample, task: str, lang: str, candidates: Sequence[str], fit: bool) -> str | None:
    """What `sample` lacks for a task, or None."""
    if lang != sample.lang or not all(getattr(sample, name) for name in _NEEDS[task]):
        try:
            target_text(sample, task, lang)
        except InputError as error:
            return str(error)
    if fit and task == "description" and sample.modalities is not None:
        shown = shown_clues(sample.modalities, subtitle=bool(sample.in_language(lang, strict=False).subtitle))
        if not says_something(sample, lang, shown):
            return f"sample {sample.id!r}: its description in {lang!r} says nothing about what the clip has"
    if task == "fixed" and (label := target_text(sample, task, lang)) not in candidates:
        return f"sample {sample.id!r}: its label {label!r} is none of the candidates {list(candidates)}"
    return None
