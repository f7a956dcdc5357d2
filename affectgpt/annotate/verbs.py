"""What is done with records once they are there: check, merge, export, review, import, report."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt.annotate import checks, report
from affectgpt.annotate.exporters import LOSES, export, records_in, write_manifest
from affectgpt.annotate.merge import HOW, merge_records, together
from affectgpt.annotate.record import Annotation, from_row, to_row
from affectgpt.annotate.review import rounds as review
from affectgpt.annotate.review.agreement import agreement
from affectgpt.annotate.review.labelstudio import SCREENS
from affectgpt.annotate.store import Store
from affectgpt.config import RecordsConfig
from affectgpt.journal import Journal
from affectgpt.runtime import UserError, write_json_atomic, write_text_atomic


def run_verb(verb: str, config: RecordsConfig) -> int:
    """Do one of `VERBS`; returns the exit code."""
    if not config.input:
        raise UserError(f"nothing to {verb}: python -m affectgpt.annotate {verb} folder/ ...; --help shows examples")
    return VERBS[verb](config)


def _one(config: RecordsConfig) -> Path:
    if len(config.input) > 1:
        raise UserError(f"expected one folder, found {config.input}")
    return Path(config.input[0])


REVIEW_FOLDER = "emer_fine"
"""Where people's answers are gathered unless to= says otherwise."""


def _needed(value: str | None, name: str, meaning: str) -> str:
    if not value:
        raise UserError(f"{name}= is missing: {meaning}")
    return value


def _print(text: str) -> None:
    """Print, wrapped at 100 columns."""
    for line in text.splitlines():
        # A path is never broken: it is there to be copied.
        print(textwrap.fill(line, report.WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


# ---- check -----------------------------------------------------------------------------------------------------------


def check(config: RecordsConfig) -> int:
    """Check all records anew, near-duplicates included; changed ones are appended, and the manifest is written."""
    folder, policy = _one(config), checks.policy_of(config.policy)
    if not (folder / "records.jsonl").is_file():
        raise UserError(f"{folder / 'records.jsonl'}: no such file; give a folder that annotate wrote")
    duplicates = checks.Duplicates(config.threshold)
    store = Store(folder)
    try:
        checks.learn_duplicates((from_row(row) for row in store.records.rows()), duplicates)
        n_changed = _check_each(store, policy, duplicates)
        verdicts, by_check = checks.count(from_row(row) for row in store.records.rows())
        n_rows = write_manifest(folder / "manifest.jsonl", (from_row(row) for row in store.records.rows()))
    finally:
        store.close()
        duplicates.close()
    shown = ", ".join(f"{name} {verdicts[name]}" for name in checks.VERDICTS)
    print(f"{verdicts.total()} records: {shown}; {n_changed} changed")
    for (name, way), n in sorted(by_check.items(), key=lambda item: (-checks.VERDICTS.index(item[0][1]), -item[1])):
        print(f"  {way:<6}{n:>8}  {name}")
    print(f"{folder}: records.jsonl, manifest.jsonl ({n_rows} rows)")
    return 0


def _check_each(store: Store, policy: Mapping[str, str], duplicates: checks.Duplicates) -> int:
    n = 0
    for row in store.records.rows():
        claim = f"clip {row['id']}"
        if not store.claims.acquire(claim):
            continue  # a run is making this record anew, and checks it itself
        try:
            record = from_row(store.records.latest(row["id"]) or row)
            if not duplicates.knows(record):
                continue  # it came while we were looking
            found = checks.check_record(record) + checks.duplicate_findings(record, duplicates)
            fresh = (*checks.own_checks(record.checks), *checks.rows_of(found, policy))
            if list(map(dict, fresh)) != list(map(dict, record.checks)):
                store.records.append(to_row(replace(record, checks=fresh)))
                n += 1
        finally:
            store.claims.release(claim)
    return n


# ---- merge -----------------------------------------------------------------------------------------------------------


def merge(config: RecordsConfig) -> int:
    """Several annotators' folders into one, with agreement."""
    if config.how not in HOW:
        raise UserError(f"how is {config.how!r}; expected one of {list(HOW)}")
    out = Path(_needed(config.out, "out", "the folder of the merged records"))
    left_out: Counter[str] = Counter()
    label_sets: list[dict[str, tuple[str, ...]]] = []
    log = Journal(out / "records.jsonl", name=lambda row: row["id"])
    try:
        n = 0
        for found in together([Path(name) for name in config.input], left_out):
            label_sets.append({name: record.labels for name, record in found.items()})
            _append_if_new(log, merge_records(found, config.how))
            n += 1
    finally:
        log.close()
    result = agreement(label_sets)
    lines = [result.told(), *(f"  {value:.3f}  {name} with the others" for name, value in result.by_annotator.items())]
    write_json_atomic(out / "agreement.json", {**asdict(result), "told": lines})
    n_rows = write_manifest(out / "manifest.jsonl", records_in(out))
    print(f"{n} records of {len(config.input)} annotators merged by {config.how}")
    _print_counts(left_out)
    print("\n".join(lines))
    print(f"{out}: records.jsonl, agreement.json, manifest.jsonl ({n_rows} rows)")
    return 0


def _append_if_new(log: Journal, record: Annotation) -> None:
    row = json.loads(json.dumps(to_row(record)))  # as it is read back: tuples are lists there
    if log.latest(record.id) != row:
        log.append(row)


def _print_counts(counts: Mapping[str, int]) -> None:
    for name, n in sorted(counts.items()):
        print(f"  {n:>8}  {name}")


# ---- export ----------------------------------------------------------------------------------------------------------


def export_records(config: RecordsConfig) -> int:
    """Records in another form."""
    folder = _one(config)
    to = _needed(config.to, "to", f"the form, one of {', '.join(LOSES)}")
    out = Path(config.out) if config.out else (folder if folder.is_dir() else folder.parent) / f"export_{to}"
    root = Path(config.media_root) if config.media_root else None
    found = export(records_in(folder), to, out, root)
    print(f"{found.pop('written', 0)} records written to {out}")
    _print_counts(found)
    _print(f"{to} does not hold: {LOSES[to]}")
    return 0


# ---- human rounds ----------------------------------------------------------------------------------------------------


def set_up_review(config: RecordsConfig) -> int:
    """Label Studio's files for one round."""
    source = _one(config)
    folder = Path(config.to or REVIEW_FOLDER)
    if config.which not in ("all", "ask"):
        raise UserError(f"which is {config.which!r}; expected all or ask")
    names = [name.strip() for name in config.annotators.split(",") if name.strip()]
    screens = [name.strip() for name in config.screens.split(",") if name.strip()]
    root = Path(config.media_root) if config.media_root else None
    written, left_out = review.set_up_round(
        records_in(source),
        source,
        folder,
        number=config.round,
        annotators=names,
        per_clip=config.per_clip,
        seed=config.seed,
        screens=screens or SCREENS,
        which=config.which,
        media_root=root,
    )
    setup = review.Review.read(folder).rounds[str(config.round)]
    load = Counter(name for people in setup["assignment"].values() for name in people)
    print(f"round {config.round}: {len(setup['assignment'])} clips, {setup['per_clip']} annotators each")
    for name in names:
        print(f"  {load[name]:>8}  clips for {name}")
    _print_counts({f"left out: {reason}": n for reason, n in left_out.items()})
    _print(f"files for Label Studio, one project each ({len(written)}), in {folder / f'round{config.round}'}:")
    for path in written:
        screen, medium, _ = path.stem.split(".", 2)
        print(f"  {path.name}   with labeling interface {screen}.{medium}.xml")
    _print(
        f"then export each project as JSON: python -m affectgpt.annotate import exports/*.json to={folder} "
        "(docs/human-review.md)"
    )
    return 0


def import_review(config: RecordsConfig) -> int:
    """Answers of people into a review; once both rounds are done, its records and manifest."""
    folder = Path(config.to or REVIEW_FOLDER)
    found = review.import_exports([Path(name) for name in config.input], folder)
    setup, answers = review.Review.read(folder), review.Answers(folder)
    reports, changes = review.report_rounds(setup, answers)
    lines = [line for one in reports for line in _told_round(one)]
    print("answers:")
    _print_counts(found)
    print("\n".join(lines))
    unfinished: Counter[str] = Counter()
    done = list(_finished(setup, answers, unfinished))
    log = Journal(folder / "records.jsonl", name=lambda row: row["id"])
    try:
        for record in done:
            _append_if_new(log, record)
    finally:
        log.close()
    write_text_atomic(folder / "changes.jsonl", "".join(f"{review.line_of(row)}\n" for row in changes))
    rounds = [asdict(one) for one in reports]
    write_json_atomic(folder / "review_report.json", {"rounds": rounds, "unfinished": unfinished, "told": lines})
    if unfinished:
        print("not finished:")
        _print_counts(unfinished)
    if done:
        n_rows = write_manifest(folder / "manifest.jsonl", records_in(folder))
        _print(f"{folder}: manifest.jsonl ({n_rows} clips confirmed in both rounds), records.jsonl, changes.jsonl")
    else:
        _print(f"{folder}: changes.jsonl; no clip is through both rounds yet")
    return 0


def _finished(setup: review.Review, answers: review.Answers, unfinished: Counter[str]) -> Iterable[Annotation]:
    asked = setup.rounds["1"]["assignment"]
    for record in records_in(Path(setup.source)):
        if record.id in asked:
            result = review.finished(record, setup, answers)
            if isinstance(result, str):
                unfinished[result] += 1
            else:
                yield result


def _told_round(one: review.RoundReport) -> list[str]:
    time = f", median {one.seconds:.0f} s" if one.seconds is not None else ""
    lines = [f"round {one.round}, {one.screen}: {one.answered} of {one.asked} answers{time}"]
    kinds = ("kept", "edited", "removed", "added") if one.screen == "clues" else ("ticked", "added")
    for name, counts in one.changes.items():
        lines.append(f"  {name:<16}" + "  ".join(f"{kind} {counts.get(kind, 0)}" for kind in kinds))
    return [*lines, f"  {one.agreement.told()}"] if one.agreement else lines


# ---- report ----------------------------------------------------------------------------------------------------------


def show_report(config: RecordsConfig) -> int:
    """Counts on screen, report/report.json and pictures."""
    folder = _one(config)
    result = report.report_of(records_in(folder))
    if not result.n:
        raise UserError(f"{folder}: no records; a run that made none says why in failed.jsonl")
    print(report.told(result, folder))
    pictures = report.write(result, folder, config.pictures)
    names = f", {', '.join(path.name for path in pictures)} (.png, .svg)" if pictures else ""
    _print(f"{folder / 'report'}: report.json{names}")
    return 0


VERBS: dict[str, Callable[[Any], int]] = {
    "check": check,
    "merge": merge,
    "export": export_records,
    "review": set_up_review,
    "import": import_review,
    "report": show_report,
}
run_check, run_merge, run_export, run_review, run_import, run_report = (partial(run_verb, verb) for verb in VERBS)
