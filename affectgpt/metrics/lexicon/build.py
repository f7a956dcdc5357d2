"""Generate the built-in lexicon: python -m affectgpt.metrics.lexicon.build [--check]

Sources, all in this folder and written for this project: wheels.txt (the five published wheels), synonyms.txt (wheel
word -> synonyms), families.txt with morphology.py (word -> forms), chinese.txt. The result, builtin.tsv, has one line
per synonym key: the key, its wheel words, its forms. `--check` compares instead of writing.

Four rules keep words in the right cluster:
1. A wheel word keeps its own cluster: it gets no wheel word of another level-2 cluster of that wheel that precedes it
   alphabetically (M3 takes the alphabetically first).
2. A form that is also a key belongs to another key only if the two share a wheel word and rule 1 holds: "threatening"
   (hostile) is not a form of "threatened", and "fearless" (brave) is unrelated to "fear".
3. A word that is not on a wheel gets a broader term there, if it has one: from the cluster to which most of the parents
   of its wheel words on the other wheels, and their synonyms, belong. Rule 1 holds here, too.
4. Words in -less and un- participles are not forms of the word without the affix (morphology.py does not create them).
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter

from affectgpt.metrics.lexicon.builtin import FOLDER, parse_wheels
from affectgpt.metrics.lexicon.morphology import Families, forms_of
from affectgpt.metrics.lexicon.tables import Wheel

LEXICON_VERSION = "1.0"
AMBIGUOUS = frozenset({"surprised", "excited", "pity"})
"""Never broader terms, because wheels place them under opposite emotions (W4: surprise: fear, pity: disgust)."""


def _lines(name: str) -> list[str]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _changes_cluster(wheels: tuple[Wheel, ...], word: str, other: str) -> bool:
    """Whether `other` as a wheel word of the wheel word `word` would change its cluster on a wheel (rule 1)."""
    return any(
        other < word and word in wheel.level2 and other in wheel.level2 and wheel.level2[word] != wheel.level2[other]
        for wheel in wheels
    )


def _cluster(wheel: Wheel, words: set[str]) -> str | None:
    """Level-2 cluster of a word with these wheel words (M3's rule)."""
    return next((wheel.level2[word] for word in sorted(words) if word in wheel.level2), None)


def _add_broader(wheels: tuple[Wheel, ...], words: set[str], own: dict[str, set[str]]) -> set[str]:
    """`words`, and one broader term for every wheel that has none of them (rule 3)."""
    levels = [level for wheel in wheels for level in (wheel.level2, wheel.level1)]
    parents = {level[word] for level in levels for word in words - AMBIGUOUS if word in level} - AMBIGUOUS
    broader = {word for parent in parents for word in own[parent]} - words - AMBIGUOUS
    for wheel in wheels:
        if _cluster(wheel, words) is not None:
            continue
        candidates = sorted(broader & wheel.level1.keys())
        votes = Counter(wheel.level1[word] for word in candidates)
        for word in sorted(candidates, key=lambda word: (-votes[wheel.level1[word]], word not in parents, word)):
            if all(_cluster(other, words) in (None, _cluster(other, words | {word})) for other in wheels):
                words = words | {word}
                break
    return words


def lexicon_text() -> str:
    """The text of builtin.tsv."""
    wheels_text = (FOLDER / "wheels.txt").read_text(encoding="utf-8")
    wheels = parse_wheels(wheels_text)
    on_wheels = set().union(*(wheel.level1 for wheel in wheels))
    wheel_words: dict[str, set[str]] = {word: {word} for word in on_wheels}
    for line in _lines("synonyms.txt"):
        word, _, synonyms = line.partition(":")
        if word not in on_wheels:
            raise ValueError(f"synonyms.txt: {word!r} is on no wheel")
        for synonym in synonyms.split(","):
            wheel_words.setdefault(synonym.strip(), set()).add(word)
    for key in on_wheels:
        wheel_words[key] -= {other for other in wheel_words[key] if _changes_cluster(wheels, key, other)}
    own = {word: set(wheel_words[word]) for word in on_wheels}
    wheel_words = {key: _add_broader(wheels, words, own) for key, words in wheel_words.items()}

    families = Families.parse(_lines("families.txt"))
    if unknown := set(families.extra) - set(wheel_words):
        raise ValueError(f"families.txt: no such synonym keys: {sorted(unknown)}")
    forms: dict[str, set[str]] = {key: forms_of(key, families) for key in wheel_words}

    def belongs(form: str, key: str) -> bool:
        if form == key or form not in wheel_words:
            return True
        if not wheel_words[form] & wheel_words[key]:
            return False
        return form not in on_wheels or not any(_changes_cluster(wheels, form, word) for word in wheel_words[key])

    forms = {key: {form for form in found if belongs(form, key)} for key, found in forms.items()}
    for line in _lines("chinese.txt"):
        english, _, words = line.partition(":")
        keys = [key for key, found in forms.items() if english in found]
        if not keys:
            raise ValueError(f"chinese.txt: {english!r} is not a form of the lexicon")
        for key in keys:
            forms[key] |= set(words.split())

    rows = [
        f"{key}\t{','.join(sorted(wheel_words[key]))}\t{','.join(sorted(forms[key]))}" for key in sorted(wheel_words)
    ]
    body = "\n".join(rows) + "\n"
    checksum = hashlib.sha256((wheels_text + body).encode()).hexdigest()
    return f"affectgpt-lexicon\t{LEXICON_VERSION}\t{checksum}\n{body}"


def main() -> int:
    path = FOLDER / "builtin.tsv"
    text = lexicon_text()
    if "--check" in sys.argv[1:]:
        if path.read_text(encoding="utf-8") != text:
            print(f"{path.name} is out of date: run python -m affectgpt.metrics.lexicon.build")
            return 1
        return 0
    path.write_text(text, encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    forms = {form for row in rows for form in row[2].split(",")}
    print(f"wrote {path.name}: {len(rows)} synonym keys, {len(forms)} forms, sha256 {text.splitlines()[0][-64:]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
