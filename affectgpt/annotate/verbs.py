"""Commands on records: check, merge, export, review, import and report. Each returns the exit code."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from affectgpt.annotate import checks, report
from affectgpt.annotate.duplicates import Duplicates, add_texts, duplicate_findings
from affectgpt.annotate.exporters import LOSES, records_in, write_export, write_manifest
from affectgpt.annotate.merge import HOW, aligned_records, merged_record
from affectgpt.annotate.record import record_from_row, record_to_row
from affectgpt.annotate.review.agreement import label_agreement
from affectgpt.annotate.review.answers import import_exports
from affectgpt.annotate.review.finish import append_if_new, write_outcome
from affectgpt.annotate.review.labelstudio import SCREENS
from affectgpt.annotate.review.setup import Review
from affectgpt.annotate.review.tasks import set_up_round
from affectgpt.annotate.review.votes import STALE_DESCRIPTION
from affectgpt.annotate.store import Store
from affectgpt.config import RecordsConfig
from affectgpt.journal import Journal
from affectgpt.runs.boards import boards
from affectgpt.runtime import UserError, write_json_atomic

REVIEW_FOLDER = "emer_fine"
"""Folder of a review unless to= names another."""


def check_records(config: RecordsConfig) -> int:
    """Check all records again, near-duplicates included; append changed records and rewrite the manifest."""
    folder, policy = _folder(config, "check"), checks.policy_of(config.policy)
    if not (folder / "records.jsonl").is_file():
        raise UserError(f"{folder / 'records.jsonl'}: no such file; give a folder that annotate wrote")
    store, duplicates = Store(folder), Duplicates(config.threshold)
    try:
        add_texts((record_from_row(row) for row in store.records.rows()), duplicates)
        n_changed = _check_again(store, policy, duplicates)
        verdicts, by_check = checks.count_verdicts(record_from_row(row) for row in store.records.rows())
        n_rows = write_manifest(folder / "manifest.jsonl", (record_from_row(row) for row in store.records.rows()))
    finally:
        store.close()
        duplicates.close()
    shown = ", ".join(f"{name} {verdicts[name]}" for name in checks.VERDICTS)
    print(f"{verdicts.total()} records: {shown}; {n_changed} changed")
    for (name, way), n in checks.worst_first(by_check):
        print(f"  {way:<6}{n:>8}  {name}")
    print(f"{folder}: records.jsonl, manifest.jsonl ({n_rows} rows)")
    print(f"next: python -m affectgpt.annotate report {folder}")
    return 0


def _check_again(store: Store, policy: Mapping[str, str], duplicates: Duplicates) -> int:
    """Append the records whose findings changed; returns their number."""
    n = 0
    for row in store.records.rows():
        claim = f"clip {row['id']}"
        if not store.claims.acquire(claim):
            continue  # a run is replacing this record, and checks the new one itself
        try:
            record = record_from_row(store.records.latest(row["id"]) or row)
            if not duplicates.knows(record):
                continue  # it was written after the first pass
            found = checks.check_record(record) + duplicate_findings(record, duplicates)
            fresh = (*checks.other_checks(record.checks), *checks.rows_of(found, policy))
            if list(map(dict, fresh)) != list(map(dict, record.checks)):
                store.records.append(record_to_row(replace(record, checks=fresh)))
                n += 1
        finally:
            store.claims.release(claim)
    return n


def merge_records(config: RecordsConfig) -> int:
    """Merge the records of several annotators and measure their agreement."""
    folders = _inputs(config, "merge")
    if config.how not in HOW:
        raise UserError(f"how is {config.how!r}; expected one of {list(HOW)}")
    out = Path(_required(config.out, "out", "the folder of the merged records"))
    left_out: Counter[str] = Counter()
    label_sets: list[dict[str, tuple[str, ...]]] = []
    merged = Journal(out / "records.jsonl", name=lambda row: row["id"])
    try:
        for found in aligned_records(folders, left_out):
            label_sets.append({name: record.labels for name, record in found.items()})
            append_if_new(merged, merged_record(found, config.how))
    finally:
        merged.close()
    agreement = label_agreement(label_sets)
    lines = [agreement.line()]
    lines += [f"  {value:.3f}  {name} with the others" for name, value in agreement.by_annotator.items()]
    write_json_atomic(out / "agreement.json", {**asdict(agreement), "told": lines})
    n_rows = write_manifest(out / "manifest.jsonl", records_in(out))
    print(f"{len(label_sets)} records of {len(folders)} annotators merged by {config.how}")
    _print_counts(left_out)
    print("\n".join(lines))
    print(f"{out}: records.jsonl, agreement.json, manifest.jsonl ({n_rows} rows)")
    print(f"next: python -m affectgpt.annotate report {out}")
    return 0


def export_records(config: RecordsConfig) -> int:
    """Write records in another format."""
    folder = _folder(config, "export")
    to = _required(config.to, "to", f"the format, one of {', '.join(LOSES)}")
    out = Path(config.out) if config.out else (folder if folder.is_dir() else folder.parent) / f"export_{to}"
    counts = write_export(records_in(folder), to, out, _media_root(config))
    print(f"{counts.pop('written', 0)} records written to {out}")
    _print_counts(counts)
    _print_wrapped(f"{to} does not hold: {LOSES[to]}")
    read = {"manifest": f"python train.py stage=coarse data={out}", "labelstudio": "import the files into Label Studio"}
    print(f"next: {read.get(to, 'docs/data-sets.md shows how to train on this format')}")
    return 0


def review_records(config: RecordsConfig) -> int:
    """Write the files of one review round for Label Studio."""
    source = _folder(config, "review")
    folder = Path(config.to or REVIEW_FOLDER)
    if config.which not in ("all", "ask"):
        raise UserError(f"which is {config.which!r}; expected all or ask")
    names = [name.strip() for name in config.annotators.split(",") if name.strip()]
    screens = [name.strip() for name in config.screens.split(",") if name.strip()]
    made = set_up_round(
        records_in(source),
        source,
        folder,
        number=config.round,
        annotators=names,
        per_clip=config.per_clip,
        seed=config.seed,
        screens=screens or SCREENS,
        which=config.which,
        media_root=_media_root(config),
        transcode=config.transcode,
    )
    setup = Review.read(folder).rounds[str(config.round)]
    load = Counter(name for people in setup["assignment"].values() for name in people)
    print(f"round {config.round}: {len(setup['assignment'])} clips, {setup['per_clip']} annotators each")
    for name in names:
        print(f"  {load[name]:>8}  clips for {name}")
    _print_counts({f"left out: {reason}": n for reason, n in made.left_out.items()})
    if made.unplayed:
        found = ", ".join(f"{n} {reason}" for reason, n in made.unplayed.most_common())
        if made.copies:
            _print_wrapped(f"not played by browsers: {found}; copies as mp4 are in {made.copies}")
        else:
            _print_wrapped(
                f"NOT PLAYED by browsers: {found}; repeat this command with transcode=true, which writes mp4 copies to "
                f"{folder / 'media'}"
            )
    round_folder = folder / f"round{config.round}"
    _print_wrapped(f"files for Label Studio, one project each ({len(made.tasks)}), in {round_folder}:")
    for path in made.tasks:
        screen, medium, _ = path.stem.split(".", 2)
        print(f"  {path.name}   with labeling interface {screen}.{medium}.xml")
    print("start the server:")
    print("  LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true \\")
    print(f"  LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(str(made.served.root))} label-studio start")
    print("in each project, add local storage (Settings > Cloud Storage > Add Source Storage > Local Files) with path:")
    for storage in made.served.storages:
        print(f"  {storage}")
    _print_wrapped(
        f"then export each project as JSON: python -m affectgpt.annotate import exports/*.json to={folder} "
        "(docs/human-review.md)"
    )
    return 0


def import_records(config: RecordsConfig) -> int:
    """Import the answers of a review; records and manifest hold the clips that both rounds have confirmed."""
    exports, folder = _inputs(config, "import"), Path(config.to or REVIEW_FOLDER)
    counts = import_exports(exports, folder)
    outcome = write_outcome(folder)
    review, unfinished, n_finished = Review.read(folder), outcome.unfinished, outcome.n_finished
    print("answers:")
    _print_counts(counts)
    print("\n".join(outcome.lines()))
    if unfinished:
        print("not finished:")
        _print_counts(unfinished)
    if n_finished:
        _print_wrapped(
            f"{folder}: manifest.jsonl ({outcome.n_rows} clips confirmed in both rounds), records.jsonl, changes.jsonl"
        )
        if outcome.n_stale:
            again = f"{folder / 'manifest.jsonl'} out=emer/ pipeline=emer_checked checked={folder / 'records.jsonl'}"
            _print_wrapped(
                f"descriptions of {outcome.n_stale} clips were written for other clues or labels "
                f"(marked {STALE_DESCRIPTION} in records.jsonl); "
                "write them again, then have the new labels reviewed: "
                f"python -m affectgpt.annotate {again} annotator=..."
            )
    else:
        _print_wrapped(f"{folder}: changes.jsonl; no clip has passed both rounds yet")
    if n_finished and not unfinished:
        print(f"next: python train.py stage=fine data={folder}")
    else:
        number = max(map(int, review.rounds))
        more = "finish the open tasks and import again" if number > 1 else "finish round 1 and import again, or"
        command = f" python -m affectgpt.annotate review {review.source} to={folder} round=2 annotators=..."
        _print_wrapped(f"next: {more}{command if number == 1 else ''}")
    return 0


def report_records(config: RecordsConfig) -> int:
    """Print counts; write report/report.json and plots."""
    folder = _folder(config, "report")
    result = report.report_of(records_in(folder))
    if not result.n:
        raise UserError(f"{folder}: no records; failed.jsonl lists the reasons")
    print(report.format_report(result, folder))
    plots = report.write_report(result, folder, config.pictures)
    name = folder.resolve().name
    with boards(config.logging, folder / "report", job="annotate", group=name, config=asdict(config)) as shown:
        for board in shown:
            board.figures(report.figures(result))
            board.pictures("annotate", {path.name: path.with_suffix(".png") for path in plots})
    names = f", {', '.join(path.name for path in plots)} (.png, .svg, .pdf)" if plots else ""
    _print_wrapped(f"{folder / 'report'}: report.json{names}")
    print(f"next: python train.py stage=coarse data={folder}")
    _print_wrapped(
        f"or human checks: python -m affectgpt.annotate review {folder} to={REVIEW_FOLDER} round=1 annotators=..."
    )
    return 0


# ---- settings and output ---------------------------------------------------------------------------------------------


def _inputs(config: RecordsConfig, verb: str) -> list[Path]:
    if not config.input:
        raise UserError(f"nothing to {verb}: python -m affectgpt.annotate {verb} folder/ ...; --help shows examples")
    return [Path(name) for name in config.input]


def _folder(config: RecordsConfig, verb: str) -> Path:
    folder, *more = _inputs(config, verb)
    if more:
        raise UserError(f"expected one folder, found {config.input}")
    return folder


def _required(value: str | None, name: str, meaning: str) -> str:
    if not value:
        raise UserError(f"{name}= is missing: {meaning}")
    return value


def _media_root(config: RecordsConfig) -> Path | None:
    return Path(config.media_root) if config.media_root else None


def _print_counts(counts: Mapping[str, int]) -> None:
    for name, n in sorted(counts.items()):
        print(f"  {n:>8}  {name}")


def _print_wrapped(text: str) -> None:
    """Print, wrapped at 100 columns; paths are not broken, so that they can be copied."""
    print(textwrap.fill(text, report.WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
