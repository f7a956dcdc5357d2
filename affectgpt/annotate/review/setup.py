"""review.json: the rounds of a review, and which annotators review which clip."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affectgpt.annotate.review.labelstudio import SCREENS
from affectgpt.runtime import UserError, write_json_atomic
from affectgpt.schema import check_id

ROUNDS = (1, 2)


def assign(ids: Sequence[str], annotators: Sequence[str], per_clip: int, seed: int) -> dict[str, list[str]]:
    """Draw `per_clip` annotators for each clip; their numbers of clips differ by at most one.

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
    """The content of review.json.

    Attributes:
        source: folder of the records under review.
        rounds: by number as text: annotators, per_clip, seed, screens, and assignment (clip -> annotators).
    """

    source: str
    rounds: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Review:
        path = folder / "review.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; start with `annotate review <records>/ to={folder} round=1 ...`")
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        write_json_atomic(folder / "review.json", asdict(self))

    def add_round(
        self,
        number: int,
        annotators: Sequence[str],
        per_clip: int | None,
        seed: int,
        screens: Sequence[str],
        ids: Sequence[str],
    ) -> None:
        """Set up a round; setting it up again with the same settings and clips changes nothing.

        Raises:
            UserError: wrong settings, other settings than before, or annotators who took part in another round.
        """
        if number not in ROUNDS:
            raise UserError(f"round is {number}; expected one of {list(ROUNDS)}")
        if not annotators or len(set(annotators)) < len(annotators):
            raise UserError(f"annotators are {list(annotators)}; expected different names: annotators=a,b,c,d")
        for name in annotators:
            check_id(name)
        for other, setup in self.rounds.items():
            if other == str(number):
                continue
            if both := sorted(set(annotators) & set(setup["annotators"])):
                raise UserError(f"{both} reviewed in round {other} already; a second round needs other people")
        per_clip = per_clip or len(annotators)
        if not 1 <= per_clip <= len(annotators):
            raise UserError(f"per_clip is {per_clip}; expected 1 to {len(annotators)}, the number of annotators")
        if wrong := sorted(set(screens) - set(SCREENS)):
            raise UserError(f"screens {wrong}; expected some of {list(SCREENS)}")
        setup = {
            "annotators": list(annotators),
            "per_clip": per_clip,
            "seed": seed,
            "screens": list(screens),
            "assignment": assign(ids, annotators, per_clip, seed),
        }
        if self.rounds.setdefault(str(number), setup) != setup:  # the same again only writes the same tasks again
            raise UserError(
                f"round {number} is set up already, with other settings or clips; its tasks are in round{number}/"
            )
