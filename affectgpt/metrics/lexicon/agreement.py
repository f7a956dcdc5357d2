"""Compare the built-in lexicon with published tables:

python -m affectgpt.metrics.lexicon.agreement /path/to/emotion_wheel [docs/lexicon-report.md]

The report says how far the two agree on the words they share, and lists the words on which they differ, so that nobody
has to believe that a score with the built-in lexicon is close to a published one: it can be read off.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from affectgpt.metrics.lexicon.builtin import load_builtin
from affectgpt.metrics.lexicon.published import load_published
from affectgpt.metrics.lexicon.tables import Lexicon
from affectgpt.metrics.wheel import GROUPINGS, LEVEL1, WheelGrouping


@dataclass(frozen=True)
class Agreement:
    """How two lexicons treat their shared forms under one grouping."""

    grouping: str
    same: int
    different: int
    only_first: int
    only_second: int
    neither: int

    @property
    def rate(self) -> float:
        """Share of equal groups where both have one; 0 where they share nothing."""
        both = self.same + self.different
        return self.same / both if both else 0.0


def compare(first: Lexicon, second: Lexicon) -> list[Agreement]:
    """Agreement under the twelve groupings, over the forms that both lexicons list."""
    one, other = WheelGrouping(first), WheelGrouping(second)
    shared = sorted(set(first.keys) & set(second.keys))
    rows = []
    for name in GROUPINGS:
        counts = Counter(_relation(one.groups(form).get(name), other.groups(form).get(name)) for form in shared)
        rows.append(Agreement(name, *(counts[key] for key in ("same", "different", "first", "second", "neither"))))
    return rows


def _relation(a: str | None, b: str | None) -> str:
    if a is None or b is None:
        return "neither" if a is b else ("first" if b is None else "second")
    return "same" if a == b else "different"


def differing(first: Lexicon, second: Lexicon, at_least: int = 3) -> dict[str, tuple[list[str], list[str]]]:
    """Synonym keys of both whose level-1 groups differ on `at_least` wheels: key -> groups on W1..W5 of either."""
    one, other = WheelGrouping(first), WheelGrouping(second)
    found = {}
    for key in sorted(set(first.wheel_words) & set(second.wheel_words)):
        a, b = ([grouping.groups(key).get(name, "-") for name in LEVEL1] for grouping in (one, other))
        if sum(x != y and "-" not in (x, y) for x, y in zip(a, b, strict=True)) >= at_least:
            found[key] = a, b
    return found


def to_markdown(ours: Lexicon, theirs: Lexicon) -> str:
    rows = compare(ours, theirs)
    shared = set(ours.keys) & set(theirs.keys)
    differences = differing(ours, theirs)
    lines = [
        "# The built-in lexicon beside the published one",
        "",
        "Written by `python -m affectgpt.metrics.lexicon.agreement`; do not edit. Built-in: "
        f"{ours.describe()}. Published: {theirs.describe()}.",
        "",
        "| | built-in | published |",
        "|---|---|---|",
        f"| wheel words | {_n_wheel_words(ours)} | {_n_wheel_words(theirs)} |",
        f"| synonym keys | {len(ours.wheel_words)} | {len(theirs.wheel_words)} |",
        f"| forms | {len(ours.keys)} | {len(theirs.keys)} |",
        f"| Chinese forms | {_n_chinese(ours)} | {_n_chinese(theirs)} |",
        "",
        f"They share {len(shared)} forms and {len(set(ours.wheel_words) & set(theirs.wheel_words))} synonym keys. "
        "The rest of either is mostly word formation:",
        "the published table lists forms that no rule of ours makes (`embracery`), ours has phrases, British spellings",
        "and Chinese.",
        "",
        "## Agreement on the shared forms",
        "",
        "*Agreement* is the share of equal groups among the forms that both place. *Only built-in* / *only published*",
        "are forms that one of the two does not place under that grouping.",
        "",
        "| grouping | agreement | same | different | only built-in | only published | neither |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.grouping} | {100 * row.rate:.1f} % | {row.same} | {row.different} | {row.only_first} | "
            f"{row.only_second} | {row.neither} |"
            for row in rows
        ),
        "",
        "M2 names one wheel word out of several near-synonyms, so it differs most and matters least. Where a wheel",
        "word stands on a wheel, ours always keeps it there; the published tables move it to the cluster of an",
        "alphabetically earlier synonym. Where no wheel word of a form stands on a wheel, ours takes a broader term;",
        "the published tables leave the word out.",
        "",
        f"## The {len(differences)} synonym keys that differ on three wheels or more",
        "",
        "Level-1 clusters on W1 to W5; `-` = not placed.",
        "",
        "| word | built-in | published |",
        "|---|---|---|",
        *(f"| {key} | {', '.join(a)} | {', '.join(b)} |" for key, (a, b) in differences.items()),
    ]
    return "\n".join(lines) + "\n"


def _n_wheel_words(lexicon: Lexicon) -> int:
    return len({word for wheel in lexicon.wheels for word in wheel.level1})


def _n_chinese(lexicon: Lexicon) -> int:
    return sum("\u4e00" <= form[0] <= "\u9fff" for form in lexicon.keys)


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m affectgpt.metrics.lexicon.agreement TABLES [REPORT.md]", file=sys.stderr)
        return 2
    text = to_markdown(load_builtin(), load_published(arguments[0]))
    if len(arguments) == 2:
        Path(arguments[1]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
