"""The commands of `python -m affectgpt.data`: check data sets, convert them, list the supported formats."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from affectgpt.config import (
    DataCheckConfig,
    DataConfig,
    DataConvertConfig,
    DataFormatsConfig,
    DataInputConfig,
    SourceConfig,
)
from affectgpt.data import health, leaks
from affectgpt.data.facts import MediaFacts, facts_in
from affectgpt.data.formats import (
    FOLDER_OPTIONS,
    FORMATS,
    PREFERENCE,
    Preference,
    open_folder,
    options_of,
    read_preferences,
)
from affectgpt.data.sources import read_source
from affectgpt.runtime import InputError
from affectgpt.schema import BadSample, write_jsonl


def list_formats(config: DataFormatsConfig) -> int:
    """Print the formats with their options."""
    for name, reader in {**FORMATS, PREFERENCE: read_preferences}.items():
        print(f"{name:<16}{(reader.__doc__ or '').strip().splitlines()[0]}")
        for option, default in options_of(name).items():
            if option not in FOLDER_OPTIONS:
                shown = "required" if default is inspect.Parameter.empty else f"[{json.dumps(default)}]"
                print(f"{'':<18}{option} {shown}")
    print('\nall: video ["video"], audio ["audio"], faces ["openface_face"] (subfolders), face_order ["bgr"]')
    return 0


def check_data(config: DataCheckConfig, data: DataConfig | None = None) -> int:
    """Print a report on one source, or on all sources of a data configuration, and check the latter for leaks."""
    if data is not None:
        groups, folder = {**data.training(), "test": data.test}, data.folder
    else:
        source = source_of(config)
        if source.format == PREFERENCE:
            return _check_preferences(source)
        groups, folder = {"data": [source]}, None
    facts = facts_in(Path(config.cache).expanduser()) if config.cache else MediaFacts()
    reports: dict[str, health.DataReport] = {}  # by source, because training stages may share sources
    training: dict[str, Any] = {}
    test: dict[str, Any] = {}
    for group, sources in groups.items():
        for source in sources:
            key = repr(source)
            if key not in reports:
                rows = read_source(source, folder, on_bad="skip")
                title = f"{group}: {rows.name}{f', split {source.split}' if source.split else ''}"
                reports[key] = health.check_samples(title, rows.samples, rows.bad, facts=facts, decode=config.decode)
                print(reports[key].table(), flush=True)
            side = test if group == "test" else training
            side |= {sample.id: sample for sample in reports[key].samples}
    found = leaks.find_leaks(list(training.values()), list(test.values()), facts) if training and test else []
    if found:
        print(f"problem: {leaks.describe(found, len(training), len(test))}")
    elif training and test:
        print(f"no leak: {len(training)} training samples against {len(test)} test samples, by id and content")
    if config.out:
        files = health.write_reports(Path(config.out), list(reports.values()), [str(leak) for leak in found])
        print(f"written: {', '.join(map(str, files))}")
    return _verdict(sum(len(report.problems()) for report in reports.values()) + bool(found))


def _verdict(n_problems: int) -> int:
    """Print the result of a check; returns the exit code."""
    print(f"PROBLEMS FOUND: {n_problems}, see the lines above" if n_problems else "ok: no problems found")
    return 1 if n_problems else 0


def convert_data(config: DataConvertConfig) -> int:
    """Write a data set as a manifest; rows that cannot be used are printed and left out."""
    source = source_of(config)
    if not config.out or not config.out.endswith(".jsonl"):
        raise InputError(f"convert writes a manifest: expected out=manifest.jsonl, found out={config.out!r}")
    out = Path(config.out)
    items: list[Any]
    if source.format == PREFERENCE:
        items, bad = _preferences(source)
    else:
        rows = read_source(source, None, on_bad="skip")
        items, bad = rows.samples, rows.bad
    write_jsonl(out, [with_relative_paths(item, out.resolve().parent) for item in items])
    print(f"{out}: {len(items)} rows, {len(bad)} left out")
    for row in bad[:20]:
        print(f"  left out {row.id!r} ({row.where}): {row.reason}", file=sys.stderr)
    return 1 if bad else 0


def with_relative_paths(item: Any, folder: Path) -> Any:
    """A sample or preference whose media paths are relative to `folder`, for a manifest in it."""
    paths = {key: path for key in ("video", "audio", "face") if (path := getattr(item, key, None)) is not None}
    return replace(item, **{key: os.path.relpath(Path(path).resolve(), folder) for key, path in paths.items()})


def _preferences(source: SourceConfig) -> tuple[list[Preference], list[BadSample]]:
    assert source.format is not None
    assert source.folder is not None
    folder, options = open_folder(source.format, Path(source.folder).expanduser(), source.options, source.columns)
    rows = list(read_preferences(folder, **options))
    pairs = [row for row in rows if isinstance(row, Preference)]
    return pairs, [row for row in rows if isinstance(row, BadSample)]


def _check_preferences(source: SourceConfig) -> int:
    pairs, bad = _preferences(source)
    missing = {pair.video for pair in pairs if pair.video and not Path(pair.video).is_file()}
    counts = ", ".join(f"{name} {count}" for name, count in Counter(pair.preference for pair in pairs).most_common())
    print(f"{source.folder}: {len(pairs)} pairs of {len({pair.id for pair in pairs})} clips; preferred: {counts}")
    for row in bad[:20]:
        print(f"  problem: {row.where}: {row.id!r}: {row.reason}")
    if missing:
        print(f"  problem: {len(missing)} missing files, for example {sorted(missing)[0]}")
    return _verdict(len(bad) + bool(missing))


def source_of(config: DataInputConfig) -> SourceConfig:
    if config.manifest is None and config.format is None:
        raise InputError("name a manifest, or format=... folder=...; --help shows examples")
    if config.format is not None and config.folder is None:
        raise InputError(f"format={config.format}: set the folder of the data set: folder=/path/to/it")
    return SourceConfig(**{item.name: getattr(config, item.name) for item in fields(DataInputConfig)})
