"""Records in the formats of other tools. `LOSES` lists what a format cannot hold; dropped records are left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectgpt.annotate.checks import likeness, verdict
from affectgpt.annotate.evidence import phrase
from affectgpt.annotate.prompts import other_language
from affectgpt.annotate.record import Annotation, read_records, record_from_row
from affectgpt.annotate.review.labelstudio import SCREENS, local_url, make_task, medium_of, screen_config
from affectgpt.annotate.review.votes import is_reviewed
from affectgpt.clauses import split
from affectgpt.journal import Journal
from affectgpt.media import MediaError, probe
from affectgpt.prompts import LABEL_SEPARATOR, task_question
from affectgpt.runtime import UserError, write_text_atomic
from affectgpt.schema import LANGUAGES, Clause, Sample, write_jsonl
from affectgpt.tables import write_csv

LOSES = {
    "manifest": "clues and facts that no clause uses, confidence, checks, provenance, all but the first of the ranking",
    "merr": "open-vocabulary labels, times of clues, confidence, checks, provenance, and texts in the other language",
    "sharegpt": "all but one description, and the labels as a second turn",
    "labelstudio": "measured facts, descriptions, valence, ranking, confidence, checks, provenance",
}


def records_in(path: Path) -> Iterator[Annotation]:
    """The newest record of each clip of an output folder, or of a single records.jsonl file, in file order."""
    file = path / "records.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a folder that `python -m affectgpt.annotate` wrote")
    if file is path:
        newest = {record.id: number for number, record in enumerate(read_records(path))}
        yield from (record for number, record in enumerate(read_records(path)) if newest.get(record.id) == number)
        return
    log = Journal(file, name=lambda row: row["id"])
    try:
        for row in log.rows():
            yield record_from_row(row)
    finally:
        log.close()


# ---- manifest --------------------------------------------------------------------------------------------------------


def to_samples(records: Iterable[Annotation]) -> Iterator[Sample]:
    """One sample per record that no check drops, as training and evaluation read it. A description in the other
    language becomes a translation; description, translation and labels may each be missing. What the clip's manifest
    already said takes the place of what was annotated, unless people have reviewed the record."""
    for record in records:
        if verdict(record) == "drop":
            continue
        other = other_language(record.lang)
        translations: dict[str, dict[str, Any]] = {
            lang: {"description": text, "clauses": clauses_of(record, lang)}
            for lang, text in record.description.items()
            if lang == other
        }
        given: Mapping[str, Any] = {} if is_reviewed(record) else record.given
        own = given.get(record.lang, {})
        for lang in sorted(set(given) & set(LANGUAGES) - {record.lang}):
            made = {} if "description" in given[lang] else translations.get(lang, {})
            translations[lang] = {**made, **given[lang]}
        annotated = record.lang in record.description and "description" not in own
        yield Sample(
            id=record.id,
            video=record.media.get("video"),
            audio=record.media.get("audio"),
            face=record.media.get("face"),
            subtitle=record.transcript,
            description=own.get("description") or record.description.get(record.lang),
            clauses=clauses_of(record, record.lang) if annotated else None,
            labels=tuple(own.get("labels") or record.labels) or None,
            label=own.get("label") or (record.ranking[0] if record.ranking else None),
            valence=given.get("valence", record.valence),
            person=record.person,
            lang=record.lang,
            translations=translations,
        )


def clauses_of(record: Annotation, lang: str) -> tuple[Clause, ...]:
    """The clauses of a record's description, with time and evidence of the clue that each is closest to.

    Clues are in the language of the record: a translated description has the times only where a modality has one clue.
    """
    clauses = []
    for clause in split(record.description[lang].strip(), lang):
        clues = [clue for clue in record.clues if clue.modality == clause.modality]
        best = max(clues, key=lambda clue: likeness(clue.text, clause.text, lang), default=None)
        if best is not None and (
            len(clues) == 1 or (lang == record.lang and likeness(best.text, clause.text, lang) > 0)
        ):
            clause = replace(clause, start_s=best.start_s, end_s=best.end_s, evidence=best.evidence)
        clauses.append(clause)
    return tuple(clauses)


def write_manifest(path: Path, records: Iterable[Annotation]) -> int:
    """Write a manifest atomically; returns the number of rows."""
    n = 0

    def counted() -> Iterator[Sample]:
        nonlocal n
        for sample in to_samples(records):
            n += 1
            yield sample

    write_jsonl(path, counted())
    return n


# ---- other formats ---------------------------------------------------------------------------------------------------


def write_export(records: Iterable[Annotation], to: str, out: Path, media_root: Path | None = None) -> Counter[str]:
    """Write `records` in the format `to` below `out`; returns counts of records written and left out.

    Args:
        media_root: labelstudio only: the folder that Label Studio serves files from.
    """
    if to not in LOSES:
        raise UserError(f"to is {to!r}; expected one of {list(LOSES)}")
    out.mkdir(parents=True, exist_ok=True)
    found: Counter[str] = Counter()
    write: Callable[[Iterator[Annotation]], None] = {
        "manifest": lambda kept: found.update(written=write_manifest(out / "manifest.jsonl", kept)),
        "merr": lambda kept: _merr(kept, out, found),
        "sharegpt": lambda kept: _sharegpt(kept, out, found),
        "labelstudio": lambda kept: _labelstudio(kept, out, found, media_root),
    }[to]
    write(_not_dropped(records, found))
    return found


def _not_dropped(records: Iterable[Annotation], found: Counter[str]) -> Iterator[Annotation]:
    for record in records:
        if verdict(record) == "drop":
            found["left out: dropped by a check"] += 1
        else:
            yield record


def _link_media(record: Annotation, out: Path) -> dict[str, str]:
    """Link a clip's files to where published data sets have them; returns their paths below `out`, by medium."""
    places = {
        "video": lambda path: f"video/{record.id}{Path(path).suffix}",
        "audio": lambda path: f"audio/{record.id}{Path(path).suffix}",
        "face": lambda path: f"openface_face/{record.id}/{record.id}.npy",
    }
    linked = {}
    for name, place in places.items():
        if source := record.media.get(name):
            linked[name] = place(source)
            link = out / linked[name]
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            elif link.exists():
                raise UserError(f"{link}: exists already; export to an empty folder")
            os.symlink(Path(source).resolve(), link)
    return linked


def _merr(records: Iterator[Annotation], out: Path, found: Counter[str]) -> None:
    """MERR_fine_grained.json, its index, transcription_en_all.csv, and links to the media."""
    entries: dict[str, Any] = {}
    index = []
    transcripts: list[tuple[str, str]] = [("name", "sentence")]
    for record in records:
        _link_media(record, out)
        units = [fact for fact in record.evidence if fact.name.startswith("AU")]
        by_modality = {
            name: " ".join(clue.text for clue in record.clues if clue.modality == name)
            for name in ("visual", "acoustic")
        }
        entry: dict[str, Any] = {
            "AU_list": [fact.name for fact in units],
            "visual_prior_list": [words for fact in units if (words := phrase(fact, record.lang))],
            "audio_prior_list": by_modality["acoustic"],
            "peak_AU_list": [fact.name for fact in units],
            "visual_objective": by_modality["visual"],
            "text": record.transcript or "",
            "smp_reason_caption": record.description.get(record.lang, ""),
        }
        if times := [fact.value for fact in record.evidence if fact.name == "peak_s"]:
            entry["peak_s"] = times[0]
        emotion = record.ranking[0] if record.ranking else None
        if emotion:
            entry["pseu_emotion"] = emotion
            if spaced := [what for what, text in (("id", record.id), ("emotion", emotion)) if len(text.split()) != 1]:
                found[f"without a row in the index: the {spaced[0]} has a space"] += 1
            else:
                valence = -10 if record.valence is None else record.valence
                index.append(f"{record.id} {_n_frames(record)} {emotion} {valence:g}\n")
        if record.transcript:
            transcripts.append((record.id, record.transcript))
        entries[record.id] = entry
        found["written"] += 1
    write_text_atomic(out / "MERR_fine_grained.json", json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    write_text_atomic(out / "MERR_fine_grained.txt", "".join(index))
    write_csv(out / "transcription_en_all.csv", transcripts)


def _n_frames(record: Annotation) -> int:
    """Number of frames according to the file's header; 0 where it has none, or the file is missing."""
    try:
        return probe(record.media["video"]).n_frames if record.media.get("video") else 0
    except MediaError:
        return 0


def _sharegpt(records: Iterator[Annotation], out: Path, found: Counter[str]) -> None:
    """sharegpt.json: a list of conversations, and links to the media. Audio files are under "video", too: it is the
    only media field that all readers of the format know."""
    entries = []
    for record in records:
        medium = medium_of(record)
        text = record.description.get(record.lang)
        if medium is None or text is None:
            found[f"left out: no {'clip' if medium is None else 'description'}"] += 1
            continue
        asked = task_question("description", record.lang)
        turns = [{"from": "human", "value": f"<video>\n{asked}"}, {"from": "gpt", "value": text}]
        if record.labels:
            labels = LABEL_SEPARATOR[record.lang].join(record.labels)
            turns += [
                {"from": "human", "value": task_question("labels", record.lang)},
                {"from": "gpt", "value": labels},
            ]
        entries.append({"id": record.id, "video": _link_media(record, out)[medium], "conversations": turns})
        found["written"] += 1
    write_text_atomic(out / "sharegpt.json", json.dumps(entries, ensure_ascii=False, indent=1) + "\n")


def _labelstudio(records: Iterator[Annotation], out: Path, found: Counter[str], root: Path | None) -> None:
    """Both screens for one person, without rounds; `annotate review` sets up rounds."""
    root = root or Path("/")
    files: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        medium = medium_of(record)
        if medium is None:
            found["left out: nothing to play"] += 1
            continue
        url = local_url(record.media[medium], root)
        for screen in SCREENS:
            one = make_task(screen, record, url, record.clues, record.labels)
            files.setdefault((screen, medium), []).append(one)
            write_text_atomic(out / f"{screen}.{medium}.xml", screen_config(screen, medium, record.lang))
        found["written"] += 1
    for (screen, medium), tasks in files.items():
        write_text_atomic(out / f"{screen}.{medium}.json", json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
