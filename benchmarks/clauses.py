"""How often the rules of `affectgpt.clauses` agree with the sections of published EMER descriptions.

    python benchmarks/clauses.py final-EMER-reason.csv

The file has the columns name, chinese and english, as in the EMER release. Its descriptions have sections ("In the
video, ...", "In the audio, ...", "In the text, ..."), which serve as the truth: the sentences of the first two sections
are visual and acoustic. Section markers are removed from the sentences before the rules see them one by one, so that
only the words of a sentence decide. Sentences that conclude belong to no modality and are counted separately.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter

from affectgpt.clauses import sentences, split
from affectgpt.tables import format_table

STARTS = {
    "en": {"visual": r"In the video,?", "acoustic": r"In the audio,?", "lexical": r"In the text,?"},
    "zh": {"visual": "在视频中，?", "acoustic": "在音频中，?", "lexical": "在文本中，?"},
}


def sections(text: str, lang: str) -> dict[str, str]:
    """Modality -> its section, of a description in which the three sections occur once and in order."""
    places = [(name, re.search(start, text)) for name, start in STARTS[lang].items()]
    if not all(match for _, match in places):
        return {}
    starts = [match.start() for _, match in places if match]
    if starts != sorted(starts):
        return {}
    bounds = [*[match.end() for _, match in places if match]], [*starts[1:], len(text)]
    return {name: text[low:high] for (name, _), low, high in zip(places, *bounds, strict=True)}


def main(path: str) -> None:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [("language", "section", "sentences", "same", "mixed", "conclusion", "other", "agreement, %")]
    for lang, column in (("en", "english"), ("zh", "chinese")):
        used = 0
        counts: dict[str, Counter[str]] = {"visual": Counter(), "acoustic": Counter()}
        for row in rows:
            found = sections(row[column], lang)
            used += bool(found)
            for name in counts if found else ():
                for sentence in sentences(found[name], lang):
                    (first, *rest) = split(sentence.strip("；;"), lang) or [None]
                    modalities = {clause.modality for clause in (first, *rest) if clause}
                    verdict = "mixed" if len(modalities) > 1 else next(iter(modalities), "inference")
                    counts[name]["same" if verdict == name else verdict] += 1
        for name, count in counts.items():
            n = count.total()
            other = n - count["same"] - count["mixed"] - count["inference"]
            decided = n - count["inference"]
            shown = (n, count["same"], count["mixed"], count["inference"], other)
            lines.append((lang, name, *map(str, shown), f"{100 * count['same'] / max(decided, 1):.1f}"))
        print(f"{lang}: {used} of {len(rows)} descriptions have the three sections", file=sys.stderr)
    print(format_table(lines, "llrrrrrr"))


if __name__ == "__main__":
    main(sys.argv[1])
