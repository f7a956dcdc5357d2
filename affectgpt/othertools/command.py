"""The command `python -m affectgpt.data export`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from affectgpt.config import BenchmarkConfig, DataConfig, DataExportConfig, SourceConfig
from affectgpt.data.command import source_of
from affectgpt.data.mixture import TARGETS, read_samples, with_texts
from affectgpt.data.pairs import KINDS, PairMaker
from affectgpt.data.stream import Draw
from affectgpt.othertools.lmms_eval import write_task
from affectgpt.othertools.rows import draw_of, rows_of, write_llamafactory, write_ms_swift
from affectgpt.runtime import InputError
from affectgpt.schema import LANGUAGES, Sample

WRITERS = {"ms-swift": write_ms_swift, "llamafactory": write_llamafactory}
TOOLS = (*WRITERS, "lmms-eval")
PAIRS = ("judged", *KINDS)


def export_data(
    config: DataExportConfig, data: DataConfig | None = None, benchmark: BenchmarkConfig | None = None
) -> int:
    """Write rows or a task; returns 1 if clips were left out.

    Args:
        data: of data=NAME, instead of a manifest.
        benchmark: of benchmark=NAME, what a task of lmms-eval is scored against; None = the labels of the data.

    Raises:
        InputError: an unknown tool, language, kind of pairs or part of the data; no clip is left.
    """
    for name, value, known in (
        ("to", config.to, TOOLS),
        ("targets", config.targets, TARGETS),
        ("lang", config.lang, LANGUAGES),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}; expected one of {list(known)}")
    if unknown := sorted({*config.pairs} - {*PAIRS}):
        raise InputError(f"pairs has {unknown}; expected some of {list(PAIRS)}")
    sources = _sources(config, data)
    samples, bad = read_samples(sources, DataConfig(folder=data.folder if data else None, on_bad="skip"))
    if not config.sound:
        samples = [sample.with_modalities(_without_sound(sample)) for sample in samples]
    if config.to == "lmms-eval":
        files = _export_task(config, samples, benchmark)
    else:
        candidates = config.candidates or sorted({sample.label for sample in samples if sample.label})
        fit = config.targets == "shown"
        task = config.task or "both"
        samples, lacking = with_texts(samples, [task], [config.lang], candidates, fit=fit, on_bad="skip")
        bad += lacking
        files = _export_rows(
            config, samples, [draw_of(each, task, config.lang, candidates, not fit) for each in samples]
        )
    for row in bad[:20]:
        print(f"  left out {row.id!r} ({row.where}): {row.reason}", file=sys.stderr)
    print(f"written: {', '.join(map(str, files))}; {len(bad)} clips left out")
    return 1 if bad else 0


def _export_rows(config: DataExportConfig, samples: Sequence[Sample], draws: Sequence[Draw]) -> list[Path]:
    made = [kind for kind in config.pairs if kind != "judged"]
    maker = PairMaker(samples, [config.lang], made, seed=0) if config.pairs else None
    if config.pairs and "judged" not in config.pairs:
        draws = [draw for draw in draws if draw.sample.rejected is None]
    rows = list(rows_of(draws, maker))
    if not rows:
        lacks = "pair" if samples else f"text for task {config.task or 'both'}"
        raise InputError(f"nothing to write: no clip has a {lacks} in {config.lang!r}; see --help")
    media = Counter("".join(f"<{key[:-1]}>" for key in ("videos", "audios") if row[key]) or "text" for _, row in rows)
    counts = ", ".join(f"{count} with {kind}" for kind, count in media.most_common())
    print(f"{len(rows)} rows ({counts})" + (f"; {len(draws) - len(rows)} without a pair" if maker else ""))
    return WRITERS[config.to](Path(config.out), config.name, rows)


def _export_task(config: DataExportConfig, samples: Sequence[Sample], benchmark: BenchmarkConfig | None) -> list[Path]:
    if config.pairs:
        raise InputError("pairs are for training: leave pairs out, or export to ms-swift or llamafactory")
    one_of = benchmark is not None and benchmark.kind in ("classes", "multilabel")
    task = config.task or ("fixed" if one_of else "labels")
    candidates = config.candidates or (benchmark.classes if benchmark else [])
    draws = [draw_of(each, task, config.lang, candidates, True) for each in samples]
    print(f"{len(draws)} clips, task {task}")
    return write_task(Path(config.out), config.name, draws, benchmark)


def _sources(config: DataExportConfig, data: DataConfig | None) -> list[SourceConfig]:
    """The manifest or data set that the command names, or the part of `data` that `use` names."""
    if data is None:
        return [source_of(config)]
    if config.manifest or config.format:
        given = ", ".join(config.overrides)
        raise InputError(f"name {config.manifest or config.format!r} or data=, not both; found {given}")
    known = {**data.training(), "test": data.test}
    use = config.use or ("test" if config.to == "lmms-eval" else "fine")
    if not known.get(use):
        raise InputError(f"use is {use!r}; data={data.name} has {[name for name, found in known.items() if found]}")
    return known[use]


def _without_sound(sample: Sample) -> tuple[str, ...]:
    return tuple(name for name in sample.modalities or () if name != "audio")
