"""What `python -m affectgpt.data` does: check data sets, convert them, list the formats that can be read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from affectgpt.config import DataCheckConfig, DataConfig, DataConvertConfig, DataFormatsConfig, SourceConfig
from affectgpt.runtime import InputError


def formats(config: DataFormatsConfig) -> int:
    """Print the formats."""
    import inspect

    from affectgpt.data.formats import FORMATS, PREFERENCE, options_of, read_preferences

    for name, reader in {**FORMATS, PREFERENCE: read_preferences}.items():
        print(f"{name:<16}{(reader.__doc__ or '').strip().splitlines()[0]}")
        for option, default in options_of(name).items():
            if option not in ("video", "audio", "faces", "face_order"):
                shown = "must be given" if default is inspect.Parameter.empty else f"[{json.dumps(default)}]"
                print(f"{'':<18}{option} {shown}")
    print('\nall: video ["video"], audio ["audio"], faces ["openface_face"] (subfolders), face_order ["bgr"]')
    return 0


def check(config: DataCheckConfig, data: DataConfig | None = None) -> int:
    """Print the health report of one source, or of all sources of a data configuration with the leak check."""
    from affectgpt.data import health, leaks
    from affectgpt.data.facts import MediaFacts, facts_in

    if data is not None:
        named, folder = {**data.training(), "test": data.test}, data.folder
    else:
        source = _source_of(config)
        if source.format == "preference":
            return _check_preferences(source)
        named, folder = {"data": [source]}, None
    facts = facts_in(Path(config.cache).expanduser()) if config.cache else MediaFacts()
    reports, leaked = [], []
    sides: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    seen: dict[str, int] = {}
    for group, sources in named.items():
        for source in sources:
            key = repr(source)
            if key not in seen:
                seen[key] = len(reports)
                rows = _read(source, folder)
                title = f"{group}: {rows.name}{f', split {source.split}' if source.split else ''}"
                reports.append(health.examine(title, rows.samples, rows.bad, facts=facts, decode=config.decode))
                print(reports[-1].table(), flush=True)
            side = sides[group == "test"]
            side |= {sample.id: sample for sample in reports[seen[key]].samples}
    if sides[True] and sides[False]:
        training, test = list(sides[False].values()), list(sides[True].values())
        found = leaks.find_leaks(training, test, facts)
        leaked = [str(leak) for leak in found]
        n = f"{len(training)} training samples against {len(test)} test samples, by id and content"
        print(f"WRONG: {leaks.describe(found, len(training), len(test))}" if found else f"no leak: {n}")
    if config.out:
        files = health.write(Path(config.out), reports, leaked)
        print(f"written: {', '.join(map(str, files))}")
    is_sound = all(report.is_sound for report in reports) and not leaked
    print("sound" if is_sound else "NOT SOUND: see the lines that begin with WRONG")
    return 0 if is_sound else 1


def convert(config: DataConvertConfig) -> int:
    """Write a data set as a manifest; rows that cannot be used are listed and left out."""
    from dataclasses import replace

    from affectgpt.data.formats import PREFERENCE, Preference
    from affectgpt.schema import BadSample, write_jsonl

    source = _source_of(config)
    if not config.out or not config.out.endswith(".jsonl"):
        raise InputError(f"convert writes a manifest: out=manifest.jsonl, found out={config.out!r}")
    out = Path(config.out)
    items: list[Any]
    if source.format == PREFERENCE:
        rows = _preferences(source)
        items = [row for row in rows if isinstance(row, Preference)]
        bad = [row for row in rows if isinstance(row, BadSample)]
    else:
        read = _read(source, None)
        bad = read.bad
        items = read.samples
    base = out.resolve().parent

    def relative(path: str | None) -> str | None:
        return None if path is None else os.path.relpath(Path(path).resolve(), base)

    paths = ("video", "audio") if source.format == PREFERENCE else ("video", "audio", "face")
    items = [replace(item, **{key: relative(getattr(item, key)) for key in paths}) for item in items]
    write_jsonl(out, items)
    print(f"{out}: {len(items)} rows, {len(bad)} left out")
    for row in bad[:20]:
        print(f"  left out {row.id!r} ({row.where}): {row.reason}", file=sys.stderr)
    return 1 if bad else 0


def _preferences(source: Any) -> list[Any]:
    from affectgpt.data.formats import open_folder, read_preferences

    folder, options = open_folder(source.format, Path(source.folder).expanduser(), source.options)
    return list(read_preferences(folder, **options))


def _check_preferences(source: Any) -> int:
    from collections import Counter

    from affectgpt.data.formats import Preference

    rows = _preferences(source)
    pairs = [row for row in rows if isinstance(row, Preference)]
    bad = [row for row in rows if not isinstance(row, Preference)]
    missing = {pair.video for pair in pairs if pair.video and not Path(pair.video).is_file()}
    counts = ", ".join(f"{name} {count}" for name, count in Counter(pair.preference for pair in pairs).most_common())
    print(f"{source.folder}: {len(pairs)} pairs of {len({pair.id for pair in pairs})} clips; preferred: {counts}")
    for row in bad[:20]:
        print(f"  WRONG: {row.where}: {row.id!r}: {row.reason}")
    if missing:
        print(f"  WRONG: {len(missing)} missing files, for example {sorted(missing)[0]}")
    return 1 if bad or missing else 0


def _read(source: Any, folder: str | None) -> Any:
    from affectgpt.data.sources import read_source

    return read_source(source, folder, on_bad="skip")


def _source_of(config: DataCheckConfig | DataConvertConfig) -> SourceConfig:
    if config.manifest is None and config.format is None:
        raise InputError("name a manifest, or format=... folder=...; --help shows examples")
    if config.format is not None and config.folder is None:
        raise InputError(f"format={config.format}: say where the data set is: folder=/path/to/it")
    names = ("manifest", "format", "folder", "split", "split_file", "limit", "options")
    return SourceConfig(**{name: getattr(config, name) for name in names})
