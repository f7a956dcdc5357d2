"""Emotion lexicons: which words mean the same, and where they stand on the five emotion wheels.

`load_lexicon("builtin")` needs no file of the user's; `load_lexicon("/path/to/emotion_wheel")` reads the tables that
the MER challenges publish, for scores that compare with the literature. Every report names its lexicon and
checksum.
"""

from __future__ import annotations

from pathlib import Path

from affectgpt.metrics.lexicon.builtin import load_builtin
from affectgpt.metrics.lexicon.published import load_published, split_published
from affectgpt.metrics.lexicon.tables import NEUTRAL_WORDS, Lexicon, Wheel
from affectgpt.runtime import InputError

__all__ = ["NEUTRAL_WORDS", "Lexicon", "Wheel", "load_builtin", "load_lexicon", "load_published", "split_published"]


def load_lexicon(source: str | Path | Lexicon = "builtin") -> Lexicon:
    """`"builtin"`, or a folder (or its table of forms) with the published tables; a Lexicon is passed through."""
    if isinstance(source, Lexicon):
        return source
    if source == "builtin":
        return load_builtin()
    if not Path(source).exists():
        raise InputError(f"lexicon {str(source)!r} is neither 'builtin' nor an existing folder; see docs/metrics.md")
    return load_published(source)
