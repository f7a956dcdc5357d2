"""The Lexicon: five emotion wheels, synonym keys and word forms, and how a word is looked up in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

WheelRow = tuple[str, str, str]
"""A path on a wheel from the inner to the outer ring: (level 1, level 2, level 3)."""


@dataclass(frozen=True)
class Wheel:
    """One emotion wheel: the level-1 and the level-2 cluster of each of its words.

    Level 2 of a level-1 word is its alphabetically first level-2 child. If a word occurs twice, its last position wins,
    in a traversal of the tree in the order level 1 -> level 2 -> level 3.
    """

    level1: Mapping[str, str]
    level2: Mapping[str, str]

    @classmethod
    def from_rows(cls, rows: Iterable[WheelRow]) -> Wheel:
        """
        >>> wheel = Wheel.from_rows([("sad", "tired", "numb"), ("sad", "hurt", "forgotten")])
        >>> wheel.level1["numb"], wheel.level2["numb"], wheel.level2["sad"]
        ('sad', 'tired', 'hurt')
        """
        tree: dict[str, dict[str, list[str]]] = {}
        for inner, middle, outer in rows:
            tree.setdefault(inner, {}).setdefault(middle, []).append(outer)
        level1: dict[str, str] = {}
        level2: dict[str, str] = {}
        for inner, children in tree.items():
            level1[inner], level2[inner] = inner, min(children)
            for middle, leaves in children.items():
                for word in (middle, *leaves):
                    level1[word], level2[word] = inner, middle
        return cls(level1, level2)


@dataclass(frozen=True)
class Lexicon:
    """The tables that map words to groups; built-in or published.

    Attributes:
        name, version, checksum: as printed in reports; the checksum is the SHA-256 of the tables.
        wheels: W1..W5.
        wheel_words: synonym key -> its wheel words, sorted.
        forms: form -> its synonym keys, sorted.
        lenient: ignore degree words ("very sad"), articles, the kind of apostrophe and Chinese particles. In the
            published tables, words are looked up verbatim, as in the published implementation.
        label_splitting: "exact" keeps apostrophes inside labels; "published" splits label text at every quote and
            comma, as the published implementation does ("don't know" becomes "don" and "t know").
    """

    name: str
    version: str
    checksum: str
    wheels: tuple[Wheel, ...]
    wheel_words: Mapping[str, tuple[str, ...]]
    forms: Mapping[str, tuple[str, ...]]
    lenient: bool = False
    label_splitting: str = "exact"
    _found: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)

    def find(self, word: str) -> str | None:
        """The form of the tables that matches `word`, or None.

        Case and surrounding spaces are ignored. A lenient lexicon also finds "Very sad." and "a sense of loss".
        """
        if word not in self._found:
            self._found[word] = self._find(word)
        return self._found[word]

    def _find(self, word: str) -> str | None:
        plain = word.lower().strip()
        if plain in self.forms or not self.lenient:
            return plain if plain in self.forms else None
        plain = _normalise(plain)
        if plain in self.forms:
            return plain
        if is_negated(plain):
            return None
        bare = _strip_degree(plain)
        for tried in (bare, _strip_chinese(bare), bare.replace("-", " "), bare.replace(" ", "-")):
            if tried in self.forms:
                return tried
        return None

    def synonym_keys(self, word: str) -> tuple[str, ...]:
        """The synonym keys of a form, sorted; empty for an unknown word."""
        form = self.find(word)
        return () if form is None else self.forms[form]

    def kind(self, word: str) -> str:
        """ "known", "neutral", "negated" or "unknown"; only known words are on the wheels.

        A word of the tables is known even if it looks like a negation ("don't care").
        """
        if self.find(word) is not None:
            return "known"
        plain = _normalise(word)
        bare = _strip_degree(plain)
        if NEUTRAL_WORDS & {plain, bare, _strip_chinese(bare)}:
            return "neutral"
        return "negated" if is_negated(plain) or is_negated(bare) else "unknown"

    def describe(self) -> str:
        return f"{self.name} {self.version} ({self.checksum[:12]})"


NEUTRAL_WORDS = frozenset(
    {
        *("neutral", "neutrality", "neutrally", "neutral emotion", "emotionally neutral", "ordinary", "normal"),
        *("no emotion", "no emotions", "no obvious emotion", "no strong emotion", "no clear emotion"),
        *("no apparent emotion", "no particular emotion"),
        *("中性", "中立", "无情绪", "没有情绪", "无明显情绪", "没有明显情绪", "情绪中性"),
        *("无特别情绪", "正常", "普通", "一般"),
    }
)
"""Words for "no emotion": they are on no wheel; reports count them separately from unknown words."""

_NEGATED = re.compile(r"(not|no|never|without|lack of|lacking|absence of|isn't|doesn't|don't|cannot|can't|free of)\s")
_NEGATED_CHINESE = re.compile(r"不|没|無|无|非(?!常)|未|毫无|缺乏|别")
_DEGREE = re.compile(
    r"(an?|the|some|very|quite|rather|somewhat|slightly|mildly|a bit|a little|bit|little|extremely|deeply|highly|so|"
    r"too|really|truly|fairly|pretty|moderately|strongly|intensely|increasingly|obviously|seemingly|apparently|"
    r"genuinely|utterly|completely|totally|absolutely|profoundly|subtly|subtle|visibly|clearly|mild|slight|strong|intense|deep|"
    r"great|extreme|genuine|inner|overall|generally|initially|possibly|perhaps|probably|likely|feelings? of|sense of|"
    r"feelings?|feels?|being|emotionally|state of|hints? of|touch of|degree of|moment of|tone of|air of|look of|"
    r"expression of)\s+"
)
_DEGREE_AFTER = re.compile(r"\s+(emotions?|feelings?|mood|state|tone|expression|attitude)$")
_CHINESE_BEFORE = re.compile(
    r"^(很|非常|有点儿?|有些|略微|略带|略显|十分|特别|极其|极度|比较|相当|稍微|一丝|"
    r"些许|感到|感觉|觉得|显得|充满|内心|轻微|轻度|强烈的?)"
)
_CHINESE_AFTER = re.compile(r"(的情绪|之情|情绪|心情|心理|的|地|感)$")


def _normalise(word: str) -> str:
    """Lower-case, with straight apostrophes and single spaces, without surrounding punctuation.

    >>> _normalise(" Don’t  care. ")
    "don't care"
    """
    word = word.lower().replace("’", "'").replace("‘", "'").replace("_", " ")
    return " ".join(word.split()).strip(" .,;:!?\"'*()[]。，！？“”《》")


def _strip_degree(word: str) -> str:
    """Remove degree words and words such as `feeling`: `a bit sad`, `a sense of loss`, `angry mood`.

    >>> _strip_degree("a strong sense of loss"), _strip_degree("slightly sad"), _strip_degree("deep")
    ('loss', 'sad', 'deep')
    """
    while match := _DEGREE.match(word):
        word = word[match.end() :]
    return _DEGREE_AFTER.sub("", word) or word


def _strip_chinese(word: str) -> str:
    """Remove particles and degree words from a Chinese word: `有点难过的` -> `难过`."""
    if not re.search(r"[\u4e00-\u9fff]", word):
        return word
    bare = _CHINESE_BEFORE.sub("", word)
    return _CHINESE_AFTER.sub("", bare) or word


def is_negated(word: str) -> bool:
    """Whether a word or phrase negates an emotion: `not happy`, `no fear`, `不害怕`.

    >>> is_negated("not happy"), is_negated("fearless"), is_negated("notable")
    (True, False, False)
    """
    return bool(_NEGATED.match(word) or _NEGATED_CHINESE.match(word))
