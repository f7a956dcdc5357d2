"""Emotion lexicons: synonyms, and their positions on the five emotion wheels.

`load_lexicon("builtin")` needs no external files; `load_lexicon("/path/to/emotion_wheel")` reads the tables published
by the MER challenges, for scores comparable with the literature. Every report names its lexicon and the checksum.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from affectgpt.metrics.lexicon.builtin import load_builtin
from affectgpt.metrics.lexicon.published import CellLabels, load_published, split_published, split_published_2024
from affectgpt.metrics.lexicon.tables import NEUTRAL_WORDS, Lexicon, Wheel
from affectgpt.runtime import InputError

LABEL_READINGS = ("auto", "published", "exact")

__all__ = [
    "LABEL_READINGS",
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


def load_lexicon(source: str | Path | Lexicon = "builtin", label_reading: str = "auto") -> Lexicon:
    """The lexicon of `"builtin"`, or of a folder (or its table of forms) with the published tables.

    Args:
        source: a Lexicon is returned unchanged.
        label_reading: how label text is split: "published" as the published code does, "exact" by our parser, "auto" as
            published for the published tables and exact for others.
    """
    if label_reading not in LABEL_READINGS:
        raise InputError(f"label_reading is {label_reading!r}; expected one of {list(LABEL_READINGS)}")
    lexicon = _load(source)
    return lexicon if label_reading == "auto" else replace(lexicon, label_splitting=label_reading)


def _load(source: str | Path | Lexicon) -> Lexicon:
    if isinstance(source, Lexicon):
        return source
    if source == "builtin":
        return load_builtin()
    if not Path(source).exists():
        raise InputError(f"lexicon {str(source)!r} is neither 'builtin' nor an existing folder; see docs/metrics.md")
    return load_published(source)
