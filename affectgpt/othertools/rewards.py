"""Our rewards in ms-swift: `register()` adds those that need no other model to its table `orms`.

`python -m affectgpt.data export to=ms-swift` writes a plug-in file that calls it, and the column that it reads. Nothing
here needs torch or a decoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from affectgpt.metrics.rewards import NEEDS, Attempt, Scorer
from affectgpt.runtime import InputError, MissingLibrary
from affectgpt.schema import Clause

REWARD_COLUMN = "affectgpt"
"""The column of rows for ms-swift that says what an answer is scored against."""
NAMES = tuple(name for name, needs in NEEDS.items() if not {*needs} & {"judge", "reward_model"})


def attempt_of(facts: str, text: str, truncated: bool = False) -> Attempt:
    """The attempt of a row's facts (`rows.reward_facts`) and a sampled answer."""
    values = json.loads(facts)
    values |= {
        "truth": tuple(values["truth"]),
        "reference": tuple(Clause(**{**each, "needs": tuple(each["needs"])}) for each in values["reference"]),
        "shown": frozenset(values["shown"]),
    }
    return Attempt(text=text, finish="length" if truncated else "eos", **values)


def score(scorer: Scorer, name: str, completions: Sequence[str], columns: dict[str, Any]) -> list[float]:
    """The reward `name` of each completion.

    Args:
        columns: further columns of the rows, by name.

    Raises:
        InputError: the rows were not written by `data export to=ms-swift`.
    """
    facts = columns.get(REWARD_COLUMN)
    if facts is None or len(facts) != len(completions):
        raise InputError(
            f"reward affectgpt_{name}: the rows have no column {REWARD_COLUMN!r}, only {sorted(columns)}; write them "
            "with `python -m affectgpt.data export to=ms-swift`"
        )
    truncated = columns.get("is_truncated") or [False] * len(facts)
    rows = zip(facts, completions, truncated, strict=True)
    return scorer.reward(name, [attempt_of(each, text, bool(cut)) for each, text, cut in rows])


def register(*, penalty: str = "none") -> list[str]:
    """Add `affectgpt_<reward>` to ms-swift's rewards; returns their names.

    Args:
        penalty: length penalty of wheel and dual, see docs/rewards.md.
    """
    try:
        from swift.rewards import ORM, orms
    except ImportError as error:
        raise MissingLibrary("these rewards are for ms-swift: pip install ms-swift") from error
    scorer = Scorer(penalty=penalty)

    def reward(name: str) -> type:
        def call(self: Any, completions: Sequence[str], **columns: Any) -> list[float]:
            return score(scorer, name, completions, columns)

        # ms-swift logs a reward under the name of its class.
        return type(f"affectgpt_{name}", (ORM,), {"__call__": call})

    added = {f"affectgpt_{name}": reward(name) for name in NAMES}
    orms.update(added)
    return list(added)
