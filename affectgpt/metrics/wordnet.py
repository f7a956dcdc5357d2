"""Synonyms for METEOR from the files of WordNet that Debian or nltk installs; nothing is downloaded.

METEOR asks only which words share a synset with a word. nltk's reader answers that for nltk's own folder, and with the
files `lexnames` and `index.sense`, which Debian's wordnet-base lacks; so the database files (wndb(5WN)) are read here,
with base forms as by morphy(7WN). Chinese is read from the table of the Chinese Open Wordnet.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from affectgpt.runtime import MissingLibrary

DEBIAN = Path("/usr/share/wordnet")
ENGLISH_HELP = (
    "METEOR needs WordNet, which is never downloaded: install the package wordnet-base of Debian or Ubuntu, "
    "or run `python -m nltk.downloader wordnet` once, or set wordnet= to a folder with its files (index.noun ...)"
)
CHINESE_HELP = (
    "METEOR with synonyms needs the Chinese Open Wordnet: run `python -m nltk.downloader omw-1.4` once, or set "
    "wordnet= to its table wn-data-cmn.tab"
)
_ENDINGS: dict[str, Sequence[tuple[str, str]]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
        ("men", "man"), ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
CHINESE_TABLE = "wn-data-cmn.tab"


@dataclass(frozen=True)
class _Word:
    text: str

    def name(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Synonyms:
    words: frozenset[str]

    def lemmas(self) -> list[_Word]:
        return [_Word(text) for text in self.words]


class Thesaurus:
    """What nltk's METEOR asks of a WordNet reader: `synsets(word)`, whose `lemmas()` have a `name()`.

    This one knows no word. `place` is where its files are.
    """

    place = ""

    def synonyms(self, word: str) -> frozenset[str]:
        """The words that share a meaning with `word`, itself included; empty if it is unknown."""
        return frozenset()

    def synsets(self, word: str) -> list[_Synonyms]:
        return [_Synonyms(self.synonyms(word))]


class WordNet(Thesaurus):
    """English; `folder` holds the database files: a path, or a `zipfile.Path` inside an archive."""

    def __init__(self, folder: Any) -> None:
        self._folder, self.place = folder, str(folder)
        self._known: dict[str, frozenset[str]] = {}

    def synonyms(self, word: str) -> frozenset[str]:
        found = self._known.get(word)
        if found is None:
            found = self._known[word] = frozenset(
                name
                for part in _ENDINGS
                for base in self._bases(word, part)
                for offset in self._offsets[part][base]
                for name in _names(self._data[part], offset)
            )
        return found

    def _bases(self, word: str, part: str) -> list[str]:
        """The word itself and its base forms, as far as they are in the index; listed exceptions replace the rules."""
        forms = self._exceptions[part].get(word)
        if forms is None:
            forms = [word[: -len(old)] + new for old, new in _ENDINGS[part] if word.endswith(old)]
        return [form for form in dict.fromkeys((word, *forms)) if form in self._offsets[part]]

    @cached_property
    def _offsets(self) -> dict[str, dict[str, list[int]]]:
        """Part of speech -> lemma -> offsets of its synsets in the data file: the last fields of a line."""
        found: dict[str, dict[str, list[int]]] = {}
        for part in _ENDINGS:
            rows = (line.split() for line in self._lines(f"index.{part}") if not line.startswith(" "))
            found[part] = {row[0]: [int(offset) for offset in row[-int(row[2]) :]] for row in rows}
        return found

    @cached_property
    def _exceptions(self) -> dict[str, dict[str, list[str]]]:
        return {part: {form: bases for form, *bases in map(str.split, self._lines(f"{part}.exc"))} for part in _ENDINGS}

    @cached_property
    def _data(self) -> dict[str, bytes]:
        return {part: (self._folder / f"data.{part}").read_bytes() for part in _ENDINGS}

    def _lines(self, name: str) -> Iterable[str]:
        return (self._folder / name).read_bytes().decode("utf-8").splitlines()


def _names(data: bytes, offset: int) -> list[str]:
    """The words of the synset at `offset`: after three fields, their number in hexadecimal and word, sense pairs.

    An adjective may end in a marker of its position, such as "(a)".
    """
    row = data[offset : data.index(b"|", offset)].decode("utf-8").split()
    return [word.partition("(")[0] for word in row[4 : 4 + 2 * int(row[3], 16) : 2]]


class ChineseWordNet(Thesaurus):
    """The Chinese Open Wordnet; `table` is its wn-data-cmn.tab, rows of synset, `cmn:lemma`, word."""

    def __init__(self, table: Any) -> None:
        self.place = str(table)
        self._words: dict[str, set[str]] = defaultdict(set)
        self._synsets: dict[str, set[str]] = defaultdict(set)
        for line in table.read_bytes().decode("utf-8").splitlines():
            cells = line.split("\t")
            if len(cells) == 3 and cells[1].endswith(":lemma"):
                word = cells[2].strip()
                self._words[cells[0]].add(word)
                self._synsets[word].add(cells[0])

    def synonyms(self, word: str) -> frozenset[str]:
        return frozenset(name for synset in self._synsets.get(word, ()) for name in self._words[synset])


@cache
def find_wordnet(lang: str, given: str | Path | None = None) -> Thesaurus:
    """The synonyms of a language (en, zh): those of `given`, or of nltk's data, or in English Debian's.

    Raises:
        MissingLibrary: there are none; the message says what to install.
    """
    if lang == "en":
        places = [Path(given)] if given else [*_places("wordnet", ""), DEBIAN]
        for place in places:
            if all((place / f"{kind}.{part}").is_file() for part in _ENDINGS for kind in ("index", "data")):
                return WordNet(place)
    else:
        places = [Path(given)] if given else _places("omw-1.4", "cmn")
        for place in places:
            table = place if place.is_file() else place / CHINESE_TABLE
            if table.is_file():
                return ChineseWordNet(table)
    looked = f"; wordnet={given} does not have its files" if given else ""
    raise MissingLibrary((ENGLISH_HELP if lang == "en" else CHINESE_HELP) + looked)


def _places(corpus: str, inside: str) -> list[Any]:
    """The folders of a corpus in nltk's data, unpacked or in its zip file (the downloader leaves some packed)."""
    try:
        import nltk.data
    except ImportError:
        return []
    found: list[Any] = []
    for folder in (Path(name) / "corpora" for name in nltk.data.path):
        found.append(folder / corpus / inside)
        if (archive := folder / f"{corpus}.zip").is_file():
            found.append(zipfile.Path(archive, f"{corpus}/{inside}/" if inside else f"{corpus}/"))
    return found
