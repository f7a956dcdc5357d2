"""Generate the built-in lexicon: python -m affectgpt.metrics.lexicon.build [--check]

Sources, all in this folder and written for this project: wheels.txt (the five wheels, facts), synonyms.txt (wheel word
-> synonyms), families.txt with morphology.py (word -> forms), chinese.txt. The result, builtin.tsv, has one line a
synonym key: the key, its wheel words, its forms. `--check` compares instead of writing.

Four rules keep words in their place:
1. A wheel word is never moved on a wheel where it stands: it does not take a wheel word from another level-2 cluster
   that comes earlier in the alphabet (M3 takes the alphabetically first).
2. A form that is a key of its own belongs to another key only if the two share a wheel word, and rule 1 holds: so
   "threatening" (hostile) does not become "threatened", and "fearless" (brave) has nothing to do with fear.
3. A word with no place on a wheel is put under a broader term, if it has one: the cluster that most of the inner
   neighbours of its wheel words on the other wheels (and their synonyms) belong to; rule 1 holds here as well.
4. Words in -less and un- participles never lead to the word without it (morphology.py makes no such forms).
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path

from affectgpt.metrics.lexicon.builtin import FOLDER, parse_wheels
from affectgpt.metrics.lexicon.morphology import Families, forms_of
from affectgpt.metrics.lexicon.tables import Wheel
from affectgpt.runtime import InputError

VERSION = "1.0"
UNSTEADY = frozenset({"surprised", "excited", "pity"})
"""Words that the wheels set under opposite feelings (W4: surprise under fear, pity under disgust): no broader terms."""


def _lines(name: str) -> list[str]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _moves(wheels: tuple[Wheel, ...], word: str, other: str) -> bool:
    """Whether giving `other` to the wheel word `word` would change its cluster on a wheel (rule 1)."""
    return any(
        other < word and word in wheel.level2 and other in wheel.level2 and wheel.level2[word] != wheel.level2[other]
        for wheel in wheels
    )


def _place(wheel: Wheel, words: set[str]) -> str | None:
    """Level-2 cluster of a word with these wheel words (M3's rule)."""
    return next((wheel.level2[word] for word in sorted(words) if word in wheel.level2), None)


def _add_broader(wheels: tuple[Wheel, ...], words: set[str], own: dict[str, set[str]]) -> set[str]:
    """`words` and, for every wheel on which none of them stands, one broader term that does (rule 3)."""
    levels = [level for wheel in wheels for level in (wheel.level2, wheel.level1)]
    parents = {level[word] for level in levels for word in words - UNSTEADY if word in level} - UNSTEADY
    broader = {word for parent in parents for word in own[parent]} - words - UNSTEADY
    for wheel in wheels:
        if _place(wheel, words) is not None:
            continue
        candidates = sorted(broader & wheel.level1.keys())
        votes = Counter(wheel.level1[word] for word in candidates)
        for word in sorted(candidates, key=lambda word: (-votes[wheel.level1[word]], word not in parents, word)):
            if all(_place(other, words) in (None, _place(other, words | {word})) for other in wheels):
                words = words | {word}
                break
    return words


def build() -> str:
    """The text of builtin.tsv."""
    wheels_text = (FOLDER / "wheels.txt").read_text(encoding="utf-8")
    wheels = parse_wheels(wheels_text)
    on_wheels = set().union(*(wheel.level1 for wheel in wheels))
    wheel_words: dict[str, set[str]] = {word: {word} for word in on_wheels}
    for line in _lines("synonyms.txt"):
        word, _, synonyms = line.partition(":")
        if word not in on_wheels:
            raise InputError(f"synonyms.txt: {word!r} stands on no wheel")
        for synonym in synonyms.split(","):
            wheel_words.setdefault(synonym.strip(), set()).add(word)
    for key in on_wheels:
        wheel_words[key] -= {other for other in wheel_words[key] if _moves(wheels, key, other)}
    own = {word: set(wheel_words[word]) for word in on_wheels}
    wheel_words = {key: _add_broader(wheels, words, own) for key, words in wheel_words.items()}

    families = Families.parse(_lines("families.txt"))
    if unknown := set(families.extra) - set(wheel_words):
        raise InputError(f"families.txt: no such synonym keys: {sorted(unknown)}")
    forms: dict[str, set[str]] = {key: forms_of(key, families) for key in wheel_words}

    def belongs(form: str, key: str) -> bool:
        if form == key or form not in wheel_words:
            return True
        if not wheel_words[form] & wheel_words[key]:
            return False
        return form not in on_wheels or not any(_moves(wheels, form, word) for word in wheel_words[key])

    forms = {key: {form for form in found if belongs(form, key)} for key, found in forms.items()}
    for line in _lines("chinese.txt"):
        english, _, words = line.partition(":")
        keys = [key for key, found in forms.items() if english in found]
        if not keys:
            raise InputError(f"chinese.txt: {english!r} is no form of the lexicon")
        for key in keys:
            forms[key] |= set(words.split())

    rows = [
        f"{key}\t{','.join(sorted(wheel_words[key]))}\t{','.join(sorted(forms[key]))}" for key in sorted(wheel_words)
    ]
    body = "\n".join(rows) + "\n"
    checksum = hashlib.sha256((wheels_text + body).encode()).hexdigest()
    return f"affectgpt-lexicon\t{VERSION}\t{checksum}\n{body}"


def main() -> int:
    path = Path(FOLDER / "builtin.tsv")
    text = build()
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
