"""How figures are written: percent, intervals, counts, durations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODALITIES = {"visual": "pictures", "acoustic": "sound", "lexical": "words", "any": "any of them", "all": "all"}
LANGS = {"en": "en", "zh": "zh-Hans"}


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def range_of(interval: Mapping[str, Any] | None) -> str:
    return (
        "–"
        if not interval or interval.get("low") is None
        else f"{percent(interval['low'])} to {percent(interval['high'])}"
    )


def n_of(score: Mapping[str, Any]) -> str:
    return str(score["n"]) if score.get("n_max") in (None, score["n"]) else f"{score['n']}–{score['n_max']}"


def duration(seconds: object) -> str:
    if not isinstance(seconds, (int, float)):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
