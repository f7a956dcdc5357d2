"""Does a model know how sure it can be? Stated confidence against correctness: ECE, Brier score and ROC AUC.

EmoCaliber (arXiv 2512.15528) lets a model end its answer with <confidence>0.85</confidence>. `published_confidence`
reads it as its public code does, `parse_confidence` also in other forms that models write. The published ECE has ten
equal bins that include their lower end only, so a confidence of 1 is in none of them and adds no error; `ece_closed`
puts it into the last bin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from affectgpt.metrics.classification import to_class
from affectgpt.metrics.extract import read_labels
from affectgpt.metrics.lexicon import Lexicon
from affectgpt.questions import answer_span
from affectgpt.runtime import InputError

N_BINS = 10
_SPAN = re.compile(r"<confidence>(.*?)</confidence>", re.IGNORECASE | re.DOTALL)
_STATED = re.compile(
    r"(?:\bconfidence\b(?:\s+(?:score|level))?|置信度|把握)[\s:：=*\"']*(?:is|of|为|是)?[\s:：=*\"']*(\d+(?:\.\d+)?|\.\d+)\s*(%)?",
    re.IGNORECASE,
)


def parse_confidence(text: str) -> float | None:
    """The confidence that an answer states, from 0 to 1; None without one, or for a number outside.

    The last statement counts; a percentage, and a number above 1 up to 100, is divided by 100.

    >>> answers = ("<answer>sad</answer><confidence>{0.85}</confidence>", "Confidence: 90%", "置信度：0.7", "very sure")
    >>> [parse_confidence(text) for text in answers]
    [0.85, 0.9, 0.7, None]
    """
    spans = _SPAN.findall(text)
    cell = spans[-1].replace("{", "").replace("}", "").strip() if spans else ""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%)?", cell) if spans else None
    if found is None and not spans:
        matches = list(_STATED.finditer(text))
        found = matches[-1] if matches else None
    if found is None:
        return None
    value = float(found.group(1))
    if found.group(2) or value > 1:
        value /= 100
    return value if 0 <= value <= 1 else None


def published_confidence(text: str) -> float | None:
    """The confidence as EmoCaliber's code reads it: the first span on one line, cut to 0 to 1, so that 85 is 1.

    None without a span, and for one without a number: its code leaves such answers out.

    >>> [published_confidence(f"<confidence>{cell}</confidence>") for cell in ("{0.85}", "85", "high")]
    [0.85, 1.0, None]
    """
    match = re.search(r"<confidence>(.*?)</confidence>", text)
    try:
        value = float(match.group(1).replace("{", "").replace("}", "")) if match else math.nan
    except ValueError:
        return None
    return None if math.isnan(value) else min(max(value, 0.0), 1.0)


def published_class(text: str, classes: Sequence[str]) -> str:
    """The class of an answer in EmoCaliber's code: the first of `classes` that occurs in the span of the answer, or
    without one in the whole text; "unknown" if there is none.

    >>> published_class("<answer>Very sad</answer>", ["happy", "sad"]), published_class("unhappy", ["happy", "sad"])
    ('sad', 'happy')
    """
    text = text.lower()
    match = re.search(r"<answer>(.*?)</answer>", text)
    where = match.group(1) if match and match.group(1) else text
    return next((name.lower() for name in classes if name.lower() in where), "unknown")


@dataclass(frozen=True)
class Bin:
    """The answers with a confidence from `low` to `high`: how many, their mean confidence, the share that is right."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Scores of stated confidence over n answers.

    Attributes:
        ece: expected calibration error as published, without answers of confidence 1 (`n_in_no_bin`).
        ece_closed: with those in the last bin.
        brier: mean squared difference of confidence and correctness.
        roc_auc: of confidence as a score for correctness; None if all answers are right, or all wrong.
        bins: with the last one closed, for the reliability diagram.
    """

    ece: float
    ece_closed: float
    brier: float
    roc_auc: float | None
    accuracy: float
    mean_confidence: float
    n: int
    n_in_no_bin: int
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibration(confidences: Sequence[float], correct: Sequence[bool], *, n_bins: int = N_BINS) -> Calibration:
    """ECE, Brier score and ROC AUC of stated confidence.

    >>> found = calibration([0.9, 0.9, 0.3, 1.0], [True, False, False, True])
    >>> round(found.ece, 3), round(found.ece_closed, 3), round(found.brier, 3), found.roc_auc
    (0.275, 0.275, 0.228, 0.875)

    Raises:
        InputError: no answers, different numbers of them, or a confidence outside 0 to 1.
    """
    if len(confidences) != len(correct) or not len(confidences):
        raise InputError(f"{len(confidences)} confidences and {len(correct)} answers; expected as many, at least 1")
    stated, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=bool)
    if odd := [value for value in stated.tolist() if not 0 <= value <= 1]:
        raise InputError(f"a confidence is {odd[0]}; expected a number from 0 to 1")
    edges = np.linspace(0, 1, n_bins + 1)
    half_open = [(stated >= low) & (stated < high) for low, high in pairwise(edges)]
    closed = [*half_open[:-1], half_open[-1] | (stated == 1)]
    bins = tuple(
        Bin(float(low), float(high), int(inside.sum()), *_means(stated, right, inside))
        for (low, high), inside in zip(pairwise(edges), closed, strict=True)
    )
    return Calibration(
        ece=_ece(stated, right, half_open),
        ece_closed=_ece(stated, right, closed),
        brier=float(np.mean((stated - right) ** 2)),
        roc_auc=_roc_auc(stated, right),
        accuracy=float(right.mean()),
        mean_confidence=float(stated.mean()),
        n=len(stated),
        n_in_no_bin=int((stated == 1).sum()),
        bins=bins,
    )


def _means(stated: np.ndarray, right: np.ndarray, inside: np.ndarray) -> tuple[float | None, float | None]:
    return (float(stated[inside].mean()), float(right[inside].mean())) if inside.any() else (None, None)


def _ece(stated: np.ndarray, right: np.ndarray, bins: Sequence[np.ndarray]) -> float:
    error = 0.0
    for inside in bins:
        share = np.mean(inside)
        if share > 0:
            error += np.abs(np.mean(right[inside]) - np.mean(stated[inside])) * share
    return float(error)


def _roc_auc(stated: np.ndarray, right: np.ndarray) -> float | None:
    """The share of pairs of a right and a wrong answer in which the right one is surer; equal counts half."""
    n_right = int(right.sum())
    n_pairs = n_right * (len(right) - n_right)
    if not n_pairs:
        return None
    ordered = np.sort(stated[~right])
    below = np.searchsorted(ordered, stated[right], side="left")
    equal = np.searchsorted(ordered, stated[right], side="right") - below
    return float((below.sum() + equal.sum() / 2) / n_pairs)


@dataclass(frozen=True)
class StatedConfidence:
    """Calibration of answers to questions with one right class; None where no answer states a confidence.

    Attributes:
        published: confidence and correctness as EmoCaliber's code reads them.
        ours: as `parse_confidence` and the classes of the benchmarks read them.
        n: answers with a true class; `without` of them state no confidence that we read.
    """

    published: Calibration | None
    ours: Calibration | None
    n: int
    without: int
    without_published: int


def score_confidence(
    texts: Mapping[str, str], truths: Mapping[str, str], classes: Sequence[str], lexicon: Lexicon
) -> StatedConfidence:
    """Compare the confidence that answers state with whether they are right.

    Args:
        texts: id -> answer; those without a truth are left out.
        truths: id -> the true class.

    Raises:
        InputError: no answer has a truth.
    """
    known = [name for name in texts if name in truths]
    if not known:
        raise InputError("no answer has a true class; are both files of the same data set?")
    published = [(published_confidence(texts[name]), name) for name in known]
    ours = [(parse_confidence(texts[name]), name) for name in known]

    def is_right(name: str) -> bool:
        said = _SPAN.sub("", answer_span(texts[name]) or texts[name])
        words = [word.strip(" .").lower() for word in read_labels(said).labels] or [said.strip(" .\n").lower()]
        return to_class(words, classes, lexicon) == truths[name].lower()

    def calibrated(stated: Sequence[tuple[float | None, str]], right: Callable[[str], bool]) -> Calibration | None:
        kept = [(value, right(name)) for value, name in stated if value is not None]
        return calibration(*zip(*kept, strict=True)) if kept else None

    return StatedConfidence(
        calibrated(published, lambda name: published_class(texts[name], classes) == truths[name].lower()),
        calibrated(ours, is_right),
        len(known),
        sum(value is None for value, _ in ours),
        sum(value is None for value, _ in published),
    )
