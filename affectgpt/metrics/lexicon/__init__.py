"""Emotion lexicons: synonyms, and their positions on the five emotion wheels.

`load_lexicon("builtin")` needs no external files; `load_lexicon("/path/to/emotion_wheel")` reads the tables published
by the MER challenges, for scores comparable with the literature. Every report names its lexicon and the checksum.
"""

from __future__ import annotations

from pathlib import Path

from affectgpt.metrics.lexicon.builtin import load_builtin
from affectgpt.metrics.lexicon.published import CellLabels, load_published, split_published, split_published_2024
from affectgpt.metrics.lexicon.tables import NEUTRAL_WORDS, Lexicon, Wheel
from affectgpt.runtime import InputError

__all__ = [
    "NEUTRAL_WORDS",
    "CellLabels",
    "Lexicon",
    "Wheel",
    "load_builtin",
    "load_lexicon",
    "load_published",
    "split_published",
    "split_published_2024",
]


def load_lexicon(source: str | Path | Lexicon = "builtin") -> Lexicon:
    """The lexicon of `"builtin"`, or of a folder (or its table of forms) with the published tables.

    A Lexicon is returned unchanged.
    """
    if isinstance(source, Lexicon):
        return source
    if source == "builtin":
        return load_builtin()
    if not Path(source).exists():
        raise InputError(f"lexicon {str(source)!r} is neither 'builtin' nor an existing folder; see docs/metrics.md")
    return load_published(source)
