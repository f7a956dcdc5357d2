"""Human rounds: who checks what, what they changed, and what is left when two rounds have confirmed it.

As in the OV-MER paper: each round has its own annotators; what the first leaves is what the second is shown; within a
round the labels of all are united, and a label is kept that somebody confirmed in each round. Of a clue, the version
of most annotators counts (on a tie, a correction before the text as it was given); one that nobody kept is gone, one
that somebody added is there. The folder of a review:

    review.json           the rounds: annotators, seed, who checks which clip
    round1/               what Label Studio is given: <screen>.<medium>.xml and <screen>.<medium>.<annotator>.json
    answers.jsonl         one line an answer; the newest of a (round, screen, clip, annotator) counts
    changes.jsonl         who changed what
    review_report.json    counts and agreement
    records.jsonl, manifest.jsonl     the result, once each clip's rounds are done
"""

from __future__ import annotations

import difflib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from affectgpt.annotate.checks import verdict
from affectgpt.annotate.record import MODALITIES, Annotation, Clue, Provenance, read_records
from affectgpt.annotate.review.agreement import Agreement, agreement
from affectgpt.annotate.review.labelstudio import (
    SCREENS,
    Answer,
    ReviewError,
    clue_from_text,
    local_url,
    medium_of,
    read_export,
    screen_config,
    task,
)
from affectgpt.annotate.steps import Dropped, Part, Work
from affectgpt.config import StepConfig
from affectgpt.journal import Journal
from affectgpt.runtime import UserError, stable_hash, write_json_atomic, write_text_atomic
from affectgpt.schema import check_id

ROUNDS = (1, 2)
SAME_CLUE = 0.5
"""Texts that share so many of their words (difflib's ratio; Chinese: characters) are one clue that was edited; of those
that share fewer, one was removed and another added."""


# ---- who checks what -------------------------------------------------------------------------------------------------


def assign(ids: Sequence[str], annotators: Sequence[str], per_clip: int, seed: int) -> dict[str, list[str]]:
    """For each clip `per_clip` of the annotators, drawn by seed; nobody gets over one clip more than another.

    >>> assign(["x", "y"], ["a", "b"], 1, seed=0)
    {'x': ['a'], 'y': ['b']}
    """
    rng = random.Random(seed)
    order, people = sorted(ids), list(annotators)
    rng.shuffle(order)
    rng.shuffle(people)
    chosen = {}
    for place, name in enumerate(order):
        start = place * per_clip
        chosen[name] = sorted(people[(start + shift) % len(people)] for shift in range(per_clip))
    return {name: chosen[name] for name in ids}


@dataclass
class Review:
    """What review.json holds.

    Attributes:
        source: folder of the records that are checked.
        rounds: by number as text: annotators, per_clip, seed, screens, and assignment (clip -> annotators).
    """

    source: str
    rounds: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Review:
        path = folder / "review.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; begin with `annotate review <records>/ to={folder} round=1 ...`")
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        write_json_atomic(folder / "review.json", asdict(self))

    def add(self, number: int, annotators: Sequence[str], per_clip: int | None, seed: int, screens: Sequence[str],
            ids: Sequence[str]) -> None:  # fmt: skip
        """Set up a round; raises UserError if its annotators are not its own."""
        if number not in ROUNDS:
            raise UserError(f"round is {number}; expected one of {list(ROUNDS)}")
        if str(number) in self.rounds:
            raise UserError(f"round {number} is set up already; its tasks are in round{number}/")
        if not annotators or len(set(annotators)) < len(annotators):
            raise UserError(f"annotators are {list(annotators)}; expected different names: annotators=a,b,c,d")
        for name in annotators:
            check_id(name)
        for other, setup in self.rounds.items():
            if both := sorted(set(annotators) & set(setup["annotators"])):
                raise UserError(f"{both} checked in round {other} already; a second round needs other people")
        per_clip = per_clip or len(annotators)
        if not 1 <= per_clip <= len(annotators):
            raise UserError(f"per_clip is {per_clip}; expected 1 to {len(annotators)}, the number of annotators")
        if wrong := sorted(set(screens) - set(SCREENS)):
            raise UserError(f"screens {wrong}; expected some of {list(SCREENS)}")
        self.rounds[str(number)] = {
            "annotators": list(annotators),
            "per_clip": per_clip,
            "seed": seed,
            "screens": list(screens),
            "assignment": assign(ids, annotators, per_clip, seed),
        }


def set_up_round(
    records: Iterable[Annotation],
    source: Path,
    folder: Path,
    *,
    number: int,
    annotators: Sequence[str],
    per_clip: int | None = None,
    seed: int = 0,
    screens: Sequence[str] = SCREENS,
    which: str = "all",
    media_root: Path | None = None,
) -> tuple[list[Path], Counter[str]]:
    """Write a round's files; the second round is shown what the first one left.

    Args:
        which: "all" clips, or "ask": those that a check wants a human to look at.

    Returns:
        the task files, and what was left out by reason.
    """
    left_out: Counter[str] = Counter()
    review = Review.read(folder) if (folder / "review.json").is_file() else Review(str(source.resolve()))
    if review.source != str(source.resolve()):
        raise UserError(f"{folder} is a review of {review.source}, not of {source}; give another to=")
    before = None
    if number == 2:
        if "1" not in review.rounds:
            raise UserError("round 1 comes first: `annotate review ... round=1`")
        before = Answers(folder)
    chosen: dict[str, tuple[Annotation, Sequence[Clue], Sequence[str]]] = {}
    for record in records:
        reason = _left_out(record, which) if before is None else ""
        if before is not None and record.id not in review.rounds["1"]["assignment"]:
            reason = "not in round 1"
        elif before is not None and any(not before.of(1, screen, record.id) for screen in screens):
            reason = "no answer in round 1"
        if reason:
            left_out[reason] += 1
        elif before is None:
            chosen[record.id] = (record, record.clues, record.labels)
        else:
            chosen[record.id] = (record, *_after(record, before, 1))
    if not chosen:
        raise UserError(f"no clip to check: {dict(left_out)}")
    review.add(number, annotators, per_clip, seed, screens, list(chosen))
    root = media_root or _common_folder(record for record, _, _ in chosen.values())
    files: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for name, people in review.rounds[str(number)]["assignment"].items():
        record, clues, labels = chosen[name]
        medium = medium_of(record)
        assert medium is not None
        url = local_url(record.media[medium], root)
        for screen in screens:
            for person in people:
                one = task(screen, record, url, clues, labels, round=number, annotator=person)
                files.setdefault((screen, medium, person), []).append(one)
    target = folder / f"round{number}"
    written = []
    for (screen, medium, person), tasks in sorted(files.items()):
        path = target / f"{screen}.{medium}.{person}.json"
        write_text_atomic(path, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
        lang = tasks[0]["data"]["about"]["lang"]
        write_text_atomic(target / f"{screen}.{medium}.xml", screen_config(screen, medium, lang))
        written.append(path)
    review.write(folder)
    return written, left_out


def _left_out(record: Annotation, which: str) -> str:
    if verdict(record) == "drop":
        return "dropped by a check"
    if which == "ask" and verdict(record) != "ask":
        return "no check asks for a human"
    return "" if medium_of(record) else "nothing to play"


def _common_folder(records: Iterable[Annotation]) -> Path:
    folders = {Path(path).resolve().parent for record in records for path in record.media.values()}
    first, *rest = sorted(folders)
    while not all(folder.is_relative_to(first) for folder in rest):
        first = first.parent
    return first


# ---- what they changed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What one annotator did with one text: "kept", "edited", "removed" or "added"."""

    kind: str
    before: str
    after: str


def diff(given: Sequence[str], answer: Sequence[str]) -> list[Change]:
    """Align what was given with what came back: equal texts first, then the most similar ones.

    >>> [change.kind for change in diff(["He smiles.", "He frowns."], ["He smiles a little.", "A door slams."])]
    ['edited', 'removed', 'added']
    """
    rest = list(answer)
    after: dict[int, str] = {}
    for place, text in enumerate(given):
        if text in rest:
            after[place] = text
            rest.remove(text)
    open_places = [place for place in range(len(given)) if place not in after]
    scored = [(_alike(given[place], text), -place, -n) for place in open_places for n, text in enumerate(rest)]
    used: set[int] = set()
    for ratio, place, n in sorted(scored, reverse=True):
        if ratio >= SAME_CLUE and -place not in after and -n not in used:
            after[-place] = rest[-n]
            used.add(-n)
    changes = []
    for place, text in enumerate(given):
        new = after.get(place)
        kind = "removed" if new is None else "kept" if new == text else "edited"
        changes.append(Change(kind, text, new or ""))
    return changes + [Change("added", "", text) for n, text in enumerate(rest) if n not in used]


def _alike(a: str, b: str) -> float:
    first, second = (re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower()) for text in (a, b))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def merge_clues(given: Sequence[str], answers: Sequence[Sequence[str]]) -> list[str]:
    """One list of texts from several annotators' versions of one list, by the rule of this module.

    >>> merge_clues(["He smiles.", "He waves."], [["He smiles a bit."], ["He smiles a bit.", "A nod."], ["He smiles."]])
    ['He smiles a bit.', 'A nod.']
    """
    changes = [diff(given, answer) for answer in answers]
    merged: list[str] = []
    for place, text in enumerate(given):
        versions = Counter(change[place].after for change in changes if change[place].kind != "removed")
        if versions:
            most = max(versions.values())
            best = [version for version, n in versions.items() if n == most]
            merged.append(next((version for version in best if version != text), text))
    for change in changes:
        for added in change:
            if added.kind == "added" and all(_alike(added.after, other) < 0.8 for other in merged):
                merged.append(added.after)
    return list(dict.fromkeys(merged))


def unite(sets: Iterable[Iterable[str]]) -> list[str]:
    """The labels of all, each in the spelling in which it came first.

    >>> unite([["Sad", "tired"], ["sad", "angry"]])
    ['Sad', 'tired', 'angry']
    """
    first: dict[str, str] = {}
    for labels in sets:
        for label in labels:
            first.setdefault(label.strip().lower(), label.strip())
    return list(first.values())


# ---- answers ---------------------------------------------------------------------------------------------------------


class Answers:
    """The answers of a review, read from its folder."""

    def __init__(self, folder: Path) -> None:
        self._by: dict[tuple[int, str, str], dict[str, dict[str, Any]]] = {}
        log = _log(folder)
        try:
            for row in log.rows():
                self._by.setdefault((row["round"], row["screen"], row["id"]), {})[row["annotator"]] = row
        finally:
            log.close()

    def of(self, number: int, screen: str, name: str) -> dict[str, dict[str, Any]]:
        """annotator -> answer, in the order of their names."""
        return dict(sorted(self._by.get((number, screen, name), {}).items()))


def _log(folder: Path) -> Journal:
    return Journal(folder / "answers.jsonl")


def import_exports(paths: Sequence[Path], folder: Path) -> Counter[str]:
    """Take up what Label Studio exported; reading a file twice changes nothing.

    Raises:
        ReviewError: an answer to a task that nobody was given, or by somebody who may not: each annotator of the review
            is one person, and nobody is two of them, in one round or across both.
    """
    review = Review.read(folder)
    found: Counter[str] = Counter()
    newest: dict[str, Answer] = {}
    for path in paths:
        for answer in read_export(path):
            if isinstance(answer, str):
                found[answer] += 1
                continue
            key = _key_of(answer, review, path)
            if key in newest:
                found["older answers to the same task"] += 1
            if key not in newest or answer.at >= newest[key].at:
                newest[key] = answer
    log = _log(folder)
    try:
        old = {row["key"]: row for row in log.rows()}
        people = {row["annotator"]: row["person"] for row in old.values()}
        rows = []
        for key, answer in newest.items():
            name = answer.about["annotator"]
            _only_one(people, name, answer.person)
            row = {
                "key": key,
                **{part: answer.about[part] for part in ("round", "screen", "id", "annotator")},
                "person": answer.person,
                "given": {part: list(texts) for part, texts in answer.given.items()},
                "clues": {part: list(texts) for part, texts in answer.clues.items()},
                "labels": list(answer.labels),
                "other": list(answer.other),
                "seconds": answer.seconds,
                "at": answer.at,
            }
            if old.get(key) == row:
                found["known already"] += 1
            else:
                rows.append(row)
        for row in rows:  # only now, so that a file with a mistake leaves nothing behind
            log.append(row)
            found["new"] += 1
    finally:
        log.close()
    return found


def _key_of(answer: Answer, review: Review, path: Path) -> str:
    about = answer.about
    number, name, person = str(about.get("round")), about["id"], about.get("annotator")
    if number not in review.rounds:
        raise ReviewError(f"{path}: clip {name!r} is of round {number}; this review has {sorted(review.rounds)}")
    setup = review.rounds[number]
    if person not in setup["assignment"].get(name, ()) or about["screen"] not in setup["screens"]:
        raise ReviewError(
            f"{path}: clip {name!r}, screen {about['screen']!r} was not given to {person!r} in this review"
        )
    return f"{number} {about['screen']} {person} {name}"


def _only_one(people: dict[str, str], name: str, person: str) -> None:
    """Note that annotator `name` is `person`; raise if that was somebody else, or the person is another annotator."""
    if people.setdefault(name, person) != person:
        raise ReviewError(
            f"tasks of annotator {name!r} were answered by persons {people[name]} and {person}; expected one"
        )
    if others := [other for other, known in people.items() if known == person and other != name]:
        raise ReviewError(
            f"person {person} answered as {others[0]!r} and as {name!r}; rounds need different people: have one redo it"
        )


# ---- results ---------------------------------------------------------------------------------------------------------


def _after(record: Annotation, answers: Answers, number: int) -> tuple[tuple[Clue, ...], tuple[str, ...]]:
    """Clues and labels of a record as a round leaves them; what it did not check stays."""
    clues, labels = record.clues, record.labels
    if checked := answers.of(number, "clues", record.id):
        made_by = {(clue.modality, clue.text): clue for clue in record.clues}
        fresh = []
        for modality in MODALITIES:
            given = next(iter(checked.values()))["given"].get(modality, [])
            for text in merge_clues(given, [row["clues"].get(modality, []) for row in checked.values()]):
                clue = clue_from_text(modality, text, f"human round {number}")
                old = made_by.get((modality, clue.text))
                fresh.append(replace(clue, source=old.source, evidence=old.evidence) if old else clue)
        clues = tuple(fresh)
    if ticked := answers.of(number, "labels", record.id):
        labels = tuple(unite(row["labels"] for row in ticked.values()))
    return clues, labels


def finished(record: Annotation, review: Review, answers: Answers) -> Annotation | str:
    """The record with what both rounds confirmed, or the reason why it is not finished.

    A clue is confirmed by a round that leaves it; the second round is shown what the first one left, so what it leaves
    has passed both, and what it adds has not: added clues of round 2 are left out, like labels new in round 2.
    """
    if set(review.rounds) != {str(number) for number in ROUNDS}:
        return "round 2 is not set up"
    for name, setup in review.rounds.items():
        if record.id not in setup["assignment"]:
            return f"not in round {name}"
        for screen in setup["screens"]:
            if not answers.of(int(name), screen, record.id):
                return f"no answer in round {name}"
    first_clues, first_labels = _after(record, answers, 1)
    between = replace(record, clues=first_clues, labels=first_labels)
    clues, labels = _after(between, answers, 2)
    shown = [clue.text for clue in first_clues]
    if answers.of(2, "clues", record.id):
        # An edited clue goes back to one that was shown; one that goes back to none is new.
        clues = tuple(clue for clue in clues if any(_alike(clue.text, text) >= SAME_CLUE for text in shown))
    if answers.of(2, "labels", record.id):
        second = {label.lower() for label in labels}
        labels = tuple(label for label in first_labels if label.lower() in second)
    rows, steps = [], []
    for number in ROUNDS:
        for screen in review.rounds[str(number)]["screens"]:
            given = answers.of(number, screen, record.id)
            of = len(review.rounds[str(number)]["assignment"][record.id])
            rows.append(
                {"check": f"human_{screen}_round_{number}", "verdict": "keep", "reason": f"{len(given)} of {of}"}
            )
            seconds = sum(row["seconds"] or 0.0 for row in given.values())
            parameters = {"annotators": list(given)}
            steps.append(Provenance(f"human_{screen}_{number}", "human", parameters=parameters, seconds=seconds))
    kept = tuple(row for row in record.checks if row["verdict"] == "keep")  # whoever was to be asked, has been
    result = replace(record, clues=clues, labels=labels, checks=(*kept, *rows), provenance=(*record.provenance, *steps))
    return replace(result, key=stable_hash([record.key, "review", asdict(result)]))


def is_checked(record: Annotation) -> bool:
    """Whether people checked it in both rounds."""
    names = {row["check"] for row in record.checks}
    return any({f"human_{screen}_round_{number}" for number in ROUNDS} <= names for screen in SCREENS)


@dataclass
class RoundReport:
    """What happened in one screen of one round.

    Attributes:
        answered, asked: answers that are there, and that were asked for.
        changes: annotator -> kind of change -> count.
        agreement: on label sets; None for clues.
        seconds: median time of an answer, or None.
    """

    round: int
    screen: str
    answered: int
    asked: int
    changes: dict[str, dict[str, int]]
    agreement: Agreement | None
    seconds: float | None


def report_rounds(review: Review, answers: Answers) -> tuple[list[RoundReport], list[dict[str, Any]]]:
    """A report for each screen of each round, and one row for each change."""
    reports, rows = [], []
    for number, setup in sorted(review.rounds.items()):
        for screen in setup["screens"]:
            changes: dict[str, Counter[str]] = {name: Counter() for name in setup["annotators"]}
            clips, seconds, asked = [], [], 0
            for name, people in setup["assignment"].items():
                asked += len(people)
                given = answers.of(int(number), screen, name)
                seconds += [row["seconds"] for row in given.values() if row["seconds"] is not None]
                clips.append({person: row["labels"] for person, row in given.items()})
                for person, row in given.items():
                    about = {"round": int(number), "screen": screen, "id": name, "annotator": person}
                    for change in _changes(row, screen):
                        changes[person][change["change"]] += 1
                        rows.append({**about, **change})
            seconds.sort()
            reports.append(
                RoundReport(
                    int(number),
                    screen,
                    sum(len(clip) for clip in clips),
                    asked,
                    {person: dict(counts) for person, counts in changes.items()},
                    agreement(clips) if screen == "labels" else None,
                    seconds[len(seconds) // 2] if seconds else None,
                )
            )
    return reports, rows


def line_of(row: Mapping[str, Any]) -> str:
    """A row of changes.jsonl."""
    return json.dumps(row, ensure_ascii=False)


def _changes(row: Mapping[str, Any], screen: str) -> list[dict[str, str]]:
    if screen == "labels":
        other = {label.lower() for label in row["other"]}
        return [{"change": "added" if label.lower() in other else "ticked", "after": label} for label in row["labels"]]
    return [
        {"modality": modality, "change": change.kind, "before": change.before, "after": change.after}
        for modality in MODALITIES
        for change in diff(row["given"].get(modality, []), row["clues"].get(modality, []))
    ]


# ---- a description from checked clues --------------------------------------------------------------------------------


def checked_clues(work: Work, spec: StepConfig, about: Part) -> Part:
    """Step: the clues that people checked instead of a model's. options: records = records.jsonl of a review."""
    path = Path(str(spec.options.get("records") or ""))
    if not path.is_file():
        raise UserError(f"step {spec.name!r}: {path}: no such file; give checked=<folder of a finished review>")
    record = _checked(path, path.stat().st_mtime_ns).get(work.clip.sample.id)
    if record is None:
        raise Dropped("not among the checked records")
    work.note_local(spec.name, "human", "review-1", 0.0, key=record.key)
    human = [dict(row) for row in record.checks if row["check"].startswith("human_")]
    return {"clues": list(record.clues), "checks": human}


@lru_cache(maxsize=2)
def _checked(path: Path, changed_ns: int) -> dict[str, Annotation]:
    return {record.id: record for record in read_records(path)}
