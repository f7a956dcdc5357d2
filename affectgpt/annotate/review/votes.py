"""Several annotators' answers folded into one: the clues and labels that a round leaves, and what two rounds confirm.

As in the OV-MER paper, round 2 reviews what round 1 leaves, the labels of a round are united, and a label is kept if
somebody chose it in each round. Of a clue, the version of most annotators counts (on a tie, a correction wins over the
given text); a clue that nobody kept is removed, and one that somebody added is added.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from affectgpt.annotate.record import CLUE_MODALITIES, Annotation, Clue, Provenance
from affectgpt.annotate.review.answers import ReviewAnswers
from affectgpt.annotate.review.labelstudio import SCREENS, clue_from_text
from affectgpt.annotate.review.setup import ROUNDS, Review
from affectgpt.runtime import stable_hash

SAME_CLUE = 0.5
"""Similarity (difflib's ratio over words; Chinese: characters) from which two texts are versions of one clue; of less
similar ones, one was removed and the other added."""
SAME_ADDITION = 0.8
"""Similarity from which an added clue counts as one that is in the list already."""


@dataclass(frozen=True)
class Change:
    """What one annotator did with one text; `kind` is "kept", "edited", "removed" or "added"."""

    kind: str
    before: str
    after: str


def changes_between(given: Sequence[str], answer: Sequence[str]) -> list[Change]:
    """Align the given texts with an annotator's: equal texts first, then the most similar ones.

    The first len(given) changes are those of the given texts, in order.

    >>> [c.kind for c in changes_between(["He smiles.", "He frowns."], ["He smiles a little.", "A door slams."])]
    ['edited', 'removed', 'added']
    """
    rest = list(answer)
    after: dict[int, str] = {}
    for place, text in enumerate(given):
        if text in rest:
            after[place] = text
            rest.remove(text)
    open_places = [place for place in range(len(given)) if place not in after]
    # Negative indices: among equal similarities, the first texts are aligned first.
    scored = [(_similarity(given[place], text), -place, -n) for place in open_places for n, text in enumerate(rest)]
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


def _similarity(a: str, b: str) -> float:
    first, second = (re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower()) for text in (a, b))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def merge_clue_texts(given: Sequence[str], answers: Sequence[Sequence[str]]) -> list[str]:
    """One list of texts out of several annotators' versions of `given`, by the rule of this module.

    >>> given = ["He smiles.", "He waves."]
    >>> merge_clue_texts(given, [["He smiles a bit."], ["He smiles a bit.", "A nod."], ["He smiles."]])
    ['He smiles a bit.', 'A nod.']
    """
    changes = [changes_between(given, answer) for answer in answers]
    merged: list[str] = []
    for place, text in enumerate(given):
        versions = Counter(change[place].after for change in changes if change[place].kind != "removed")
        if versions:
            most = max(versions.values())
            best = [version for version, n in versions.items() if n == most]
            merged.append(next((version for version in best if version != text), text))
    for change in changes:
        for added in change:
            if added.kind == "added" and all(_similarity(added.after, other) < SAME_ADDITION for other in merged):
                merged.append(added.after)
    return list(dict.fromkeys(merged))


def unite_labels(sets: Iterable[Iterable[str]]) -> list[str]:
    """The union of label lists, case aside, each label in the spelling of its first occurrence.

    >>> unite_labels([["Sad", "tired"], ["sad", "angry"]])
    ['Sad', 'tired', 'angry']
    """
    first: dict[str, str] = {}
    for labels in sets:
        for label in labels:
            first.setdefault(label.strip().lower(), label.strip())
    return list(first.values())


def outcome_of(record: Annotation, answers: ReviewAnswers, number: int) -> tuple[tuple[Clue, ...], tuple[str, ...]]:
    """The clues and labels of a record after a round; what the round did not review is unchanged."""
    clues, labels = record.clues, record.labels
    if reviewed := answers.of(number, "clues", record.id):
        by_text = {(clue.modality, clue.text): clue for clue in record.clues}
        fresh = []
        for modality in CLUE_MODALITIES:
            given = next(iter(reviewed.values()))["given"].get(modality, [])
            for text in merge_clue_texts(given, [row["clues"].get(modality, []) for row in reviewed.values()]):
                clue = clue_from_text(modality, text, f"human round {number}")
                old = by_text.get((modality, clue.text))
                fresh.append(replace(clue, source=old.source, evidence=old.evidence) if old else clue)
        clues = tuple(fresh)
    if ticked := answers.of(number, "labels", record.id):
        labels = tuple(unite_labels(row["labels"] for row in ticked.values()))
    return clues, labels


def confirmed(record: Annotation, review: Review, answers: ReviewAnswers) -> Annotation | str:
    """The record with what both rounds confirmed, or the reason why its review is not finished.

    Round 2 is shown what round 1 left, so what round 2 leaves has passed both. What round 2 adds has not: its new clues
    and labels are left out.
    """
    if set(review.rounds) != {str(number) for number in ROUNDS}:
        return "round 2 is not set up"
    for name, setup in review.rounds.items():
        if record.id not in setup["assignment"]:
            return f"not in round {name}"
        for screen in setup["screens"]:
            if not answers.of(int(name), screen, record.id):
                return f"no answer in round {name}"
    first_clues, first_labels = outcome_of(record, answers, 1)
    between = replace(record, clues=first_clues, labels=first_labels)
    clues, labels = outcome_of(between, answers, 2)
    shown = [clue.text for clue in first_clues]
    if answers.of(2, "clues", record.id):
        # A clue that resembles one that was shown is an edit of it; any other is new.
        clues = tuple(clue for clue in clues if any(_similarity(clue.text, text) >= SAME_CLUE for text in shown))
    if answers.of(2, "labels", record.id):
        second = {label.lower() for label in labels}
        labels = tuple(label for label in first_labels if label.lower() in second)
    rows, steps = [], []
    for number in ROUNDS:
        setup = review.rounds[str(number)]
        for screen in setup["screens"]:
            given = answers.of(number, screen, record.id)
            reason = f"{len(given)} of {len(setup['assignment'][record.id])}"
            rows.append({"check": f"human_{screen}_round_{number}", "verdict": "keep", "reason": reason})
            seconds = sum(row["seconds"] or 0.0 for row in given.values())
            parameters = {"annotators": list(given)}
            steps.append(Provenance(f"human_{screen}_{number}", "human", parameters=parameters, seconds=seconds))
    if stale := why_stale(record, clues, labels):
        rows.append({"check": STALE_DESCRIPTION, "verdict": "ask", "reason": stale})
    kept = tuple(row for row in record.checks if row["verdict"] == "keep")  # the questions to humans are answered
    result = replace(record, clues=clues, labels=labels, checks=(*kept, *rows), provenance=(*record.provenance, *steps))
    return replace(result, key=stable_hash([record.key, "review", asdict(result)]))


STALE_DESCRIPTION = "description_before_review"
"""The check that marks a reviewed record whose description was written for other clues or labels."""


def why_stale(record: Annotation, clues: Sequence[Clue], labels: Sequence[str]) -> str:
    """How these reviewed clues and labels differ from those that the record's description was written for; "" = not.

    >>> record = Annotation("a", "", labels=("sad", "tired"), description={"en": "She is sad and tired."})
    >>> why_stale(record, (), ("sad", "shy"))
    'labels added: shy; labels removed: tired (still in the description: tired)'
    """
    if not record.description:
        return ""
    before, after = ({label.lower(): label for label in found} for found in (record.labels, labels))
    added = [label for key, label in after.items() if key not in before]
    removed = [label for key, label in before.items() if key not in after]
    reasons = [f"labels added: {', '.join(added)}"] if added else []
    if removed:
        text = " ".join(record.description.values()).lower()
        named = [label for label in removed if label.lower() in text]
        still = f" (still in the description: {', '.join(named)})" if named else ""
        reasons.append(f"labels removed: {', '.join(removed)}{still}")
    if {(clue.modality, clue.text) for clue in clues} != {(clue.modality, clue.text) for clue in record.clues}:
        reasons.append("clues changed")
    return "; ".join(reasons)


def is_reviewed(record: Annotation) -> bool:
    """Whether both rounds have confirmed the record."""
    names = {row["check"] for row in record.checks}
    return any({f"human_{screen}_round_{number}" for number in ROUNDS} <= names for screen in SCREENS)
