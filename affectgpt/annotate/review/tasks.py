"""Tasks out: the files of a round for Label Studio."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectgpt.annotate.checks import verdict
from affectgpt.annotate.record import Annotation, Clue
from affectgpt.annotate.review.answers import ReviewAnswers
from affectgpt.annotate.review.labelstudio import SCREENS, local_url, make_task, medium_of, screen_config
from affectgpt.annotate.review.served import Served, playable_files, served_from
from affectgpt.annotate.review.setup import Review
from affectgpt.annotate.review.votes import outcome_of
from affectgpt.runtime import UserError, write_text_atomic


@dataclass(frozen=True)
class RoundFiles:
    """What `set_up_round` wrote.

    Attributes:
        tasks: the task files.
        left_out: clips that are not in the round, by reason.
        served: where Label Studio finds the clips.
        unplayed: clips in a format that browsers do not play, by format.
        copies: folder with copies of those that browsers play; None without `transcode`.
    """

    tasks: list[Path]
    left_out: Counter[str]
    served: Served
    unplayed: Counter[str]
    copies: Path | None


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
    transcode: bool = False,
) -> RoundFiles:
    """Write the files of a round; round 2 is shown what round 1 left.

    Args:
        which: "all" clips, or "ask": those with a finding that asks for a human.
        media_root: the document root of Label Studio; None = the folder above all clips.
        transcode: write copies of clips that browsers do not play to `folder`/media, and show those.
    """
    review, chosen, left_out = clips_of_round(records, source, folder, number, screens, which)
    copies = (folder / "media").resolve()
    shown = [record for record, _, _ in chosen.values()]
    media, unplayed, failed = playable_files(shown, copies, transcode=transcode)
    left_out += failed
    chosen = {name: item for name, item in chosen.items() if name in media}
    if not chosen:
        raise UserError(f"no clip to review: {dict(left_out)}")
    served = served_from(media, copies, media_root)
    review.add_round(number, annotators, per_clip, seed, screens, list(chosen))
    files: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for name, people in review.rounds[str(number)]["assignment"].items():
        record, clues, labels = chosen[name]
        medium = medium_of(record)
        assert medium is not None
        url = local_url(media[name], served.root)
        for screen in screens:
            for person in people:
                task = make_task(screen, record, url, clues, labels, round=number, annotator=person)
                files.setdefault((screen, medium, person), []).append(task)
    target = folder / f"round{number}"
    written = []
    for (screen, medium, person), tasks in sorted(files.items()):
        path = target / f"{screen}.{medium}.{person}.json"
        write_text_atomic(path, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
        lang = tasks[0]["data"]["about"]["lang"]
        write_text_atomic(target / f"{screen}.{medium}.xml", screen_config(screen, medium, lang))
        written.append(path)
    review.write(folder)
    used = copies if any(path.is_relative_to(copies) for path in media.values()) else None
    return RoundFiles(written, left_out, served, unplayed, used)


Shown = tuple[Annotation, Sequence[Clue], Sequence[str]]
"""A record, and the clues and labels that a round shows of it."""


def clips_of_round(
    records: Iterable[Annotation], source: Path, folder: Path, number: int, screens: Sequence[str], which: str = "all"
) -> tuple[Review, dict[str, Shown], Counter[str]]:
    """The review in `folder` (a new one if there is none), the clips for a round by id, and those left out by reason.

    Raises:
        UserError: `folder` is a review of another source, or round 1 is missing.
    """
    left_out: Counter[str] = Counter()
    review = Review.read(folder) if (folder / "review.json").is_file() else Review(str(source.resolve()))
    if review.source != str(source.resolve()):
        raise UserError(f"{folder} is a review of {review.source}, not of {source}; give another to=")
    before = None
    if number == 2:
        if "1" not in review.rounds:
            raise UserError("round 1 comes first: `annotate review ... round=1`")
        before = ReviewAnswers(folder)
    chosen: dict[str, Shown] = {}
    for record in records:
        if before is None:
            reason = _why_not_in_round_1(record, which)
        elif record.id not in review.rounds["1"]["assignment"]:
            reason = "not in round 1"
        else:
            answered = all(before.of(1, screen, record.id) for screen in screens)
            reason = "" if answered else "no answer in round 1"
        if reason:
            left_out[reason] += 1
        elif before is None:
            chosen[record.id] = (record, record.clues, record.labels)
        else:
            chosen[record.id] = (record, *outcome_of(record, before, 1))
    return review, chosen, left_out


def _why_not_in_round_1(record: Annotation, which: str) -> str:
    if verdict(record) == "drop":
        return "dropped by a check"
    if which == "ask" and verdict(record) != "ask":
        return "no check asks for a human"
    return "" if medium_of(record) else "nothing to play"
