"""Look at data sets, convert them, and list the formats that are read:

  python -m affectgpt.data formats                                      every format with its options
  python -m affectgpt.data check manifest.csv                           a health report of a manifest
  python -m affectgpt.data check format=ovmerd folder=/data/mer2025     ... of a published data set
  python -m affectgpt.data check data=emer_fine data.folder=/data/emer  ... of all sources of conf/data/emer_fine.yaml
  python -m affectgpt.data convert format=merr folder=/data/merr out=manifest.jsonl

Settings of check and convert: options.<name>=... (of the format), split=, split_file=, limit=; of check also out=FOLDER
(health.json, bad_samples.jsonl, pictures), decode=true (decode every clip whole), cache=FOLDER.

`check` exits with 1 if anything is wrong: unusable rows, missing, truncated or unreadable files, one file under several
ids, texts in another language than stated, or training samples in the test set. 2 = it could not be done.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectgpt.runtime import InputError

COMMANDS = ("check", "convert", "formats")
_OWN = ("out", "decode", "cache")
_SOURCE = ("manifest", "format", "folder", "split", "split_file", "limit")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments) or arguments[0] not in COMMANDS:
        is_asked = bool(arguments) and bool({"-h", "--help"} & set(arguments))
        print((__doc__ or "").strip(), file=sys.stdout if is_asked else sys.stderr)
        return 0 if is_asked else 2
    from affectgpt.runtime import UserError, set_up_logging

    set_up_logging()
    command, rest = arguments[0], arguments[1:]
    try:
        return {"check": check, "convert": convert, "formats": formats}[command](rest)
    except UserError as error:
        if os.environ.get("AFFECTGPT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def formats(arguments: Sequence[str]) -> int:
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


def check(arguments: Sequence[str]) -> int:
    """Print the health report of one source, or of all sources of a data configuration with the leak check."""
    from affectgpt.data import health, leaks
    from affectgpt.data.facts import MediaFacts, facts_in

    own, rest = _split(arguments)
    if any(item.startswith("data=") for item in rest):
        named, folder = _configured(rest)
    else:
        source = source_of(rest)
        if source.format == "preference":
            return _check_preferences(source)
        named, folder = {"data": [source]}, None
    facts = facts_in(Path(own["cache"]).expanduser()) if "cache" in own else MediaFacts()
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
                decode = own.get("decode", "false") == "true"
                reports.append(health.examine(title, rows.samples, rows.bad, facts=facts, decode=decode))
                print(reports[-1].table(), flush=True)
            side = sides[group == "test"]
            side |= {sample.id: sample for sample in reports[seen[key]].samples}
    if sides[True] and sides[False]:
        training, test = list(sides[False].values()), list(sides[True].values())
        found = leaks.find_leaks(training, test, facts)
        leaked = [str(leak) for leak in found]
        n = f"{len(training)} training samples against {len(test)} test samples, by id and content"
        print(f"WRONG: {leaks.describe(found, len(training), len(test))}" if found else f"no leak: {n}")
    if "out" in own:
        files = health.write(Path(own["out"]), reports, leaked)
        print(f"written: {', '.join(map(str, files))}")
    is_sound = all(report.is_sound for report in reports) and not leaked
    print("sound" if is_sound else "NOT SOUND: see the lines that begin with WRONG")
    return 0 if is_sound else 1


def convert(arguments: Sequence[str]) -> int:
    """Write a data set as a manifest; rows that cannot be used are listed and left out."""
    from dataclasses import replace

    from affectgpt.data.formats import PREFERENCE, Preference
    from affectgpt.schema import BadSample, write_jsonl

    own, rest = _split(arguments)
    source = source_of(rest)
    if "out" not in own or not own["out"].endswith(".jsonl"):
        raise InputError(f"convert writes a manifest: out=manifest.jsonl, found out={own.get('out')!r}")
    out = Path(own["out"])
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


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(settings of the command itself, the others)."""
    own = dict(item.split("=", 1) for item in arguments if item.split("=", 1)[0] in _OWN and "=" in item)
    return own, [item for item in arguments if item.split("=", 1)[0] not in _OWN]


def source_of(arguments: Sequence[str]) -> Any:
    """A source out of `manifest.csv` or `format=... folder=... options.<name>=...`; values of options are JSON or text.

    >>> source_of(["format=merr", "folder=/d", "options.file=MERR_coarse_grained.json"]).options
    {'file': 'MERR_coarse_grained.json'}
    """
    from affectgpt.config import SourceConfig

    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for item in arguments:
        key, equals, value = item.partition("=")
        if not equals:
            values["manifest"] = item
        elif key.startswith("options."):
            options[key.removeprefix("options.")] = _value(value)
        elif key in _SOURCE:
            values[key] = int(value) if key == "limit" else value
        else:
            raise InputError(f"unknown setting {key!r}; expected some of {[*_SOURCE, 'options.<name>', *_OWN]}")
    if "format" in values and "folder" not in values:
        raise InputError(f"format={values['format']}: say where the data set lies: folder=/path/to/it")
    return SourceConfig(**values, options=options)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _configured(overrides: Sequence[str]) -> tuple[dict[str, list[Any]], str | None]:
    """The sources of data=... by what they are for, and data.folder."""
    from affectgpt.cli import compose

    data = compose("eval", list(overrides)).data  # not train, which would make sure of the base models too
    return {"coarse": data.coarse, "fine": data.fine, "test": data.test}, data.folder


if __name__ == "__main__":
    sys.exit(main())
