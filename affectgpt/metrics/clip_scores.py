"""Scores of single clips: what eval.py writes to scores.jsonl, how to sort and filter them, confusion between the
sectors of a wheel, numbers of labels and lengths, and where two systems differ.

**The sector of a clip.** Labels are mapped to the level-1 clusters ("sectors") of a wheel as for the scores. A clip
with several labels belongs to the sector that most of its labels are in; with equal numbers, to that of the label that
comes first. A clip without a label on the wheel is in no sector (`NO_SECTOR` in matrices). This holds for the true and
for the predicted labels. `ClipScore` lists all sectors of both sides, the clip's own first.

**The F of a clip** is the harmonic mean of its precision and recall on one wheel, then averaged over the wheels that
the clip is scored on. F_S of a report is computed from averages over clips instead, so it is not the mean of these.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.metrics.evaluate import labels_by_id, split_labels
from affectgpt.metrics.faithfulness import (
    Matcher,
    absent_claims,
    clue_counts,
    explanation_of,
    label_support,
)
from affectgpt.metrics.lexicon import Lexicon, load_lexicon
from affectgpt.metrics.sets import harmonic_mean
from affectgpt.metrics.stats import MIN_RESAMPLES, PairedTest, Rate, paired_test
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping, score_samples
from affectgpt.runtime import InputError, check_text, json_line, write_lines_atomic
from affectgpt.schema import Clause, Prediction, check_id
from affectgpt.tables import TableError, read_rows

SCORES = "scores.jsonl"
NO_SECTOR = "none"
WHEELS = tuple(range(1, len(LEVEL1) + 1))


@dataclass(frozen=True)
class ClipFaithfulness:
    """Faithfulness of one explanation; None = not measurable for this clip.

    Attributes:
        absent: modalities that were not shown and that the explanation makes a statement about.
        clue_precision, clue_recall: of its clues against those of the reference, over all modalities that were shown.
        n_clues, n_true_clues: their denominators; 0 without a reference description.
        unsupported: predicted labels that the explanation does not support.
        contradicting: emotions of the explanation that share no category with any predicted label.
    """

    absent: tuple[str, ...] | None = None
    clue_precision: float | None = None
    clue_recall: float | None = None
    n_clues: int = 0
    n_true_clues: int = 0
    unsupported: tuple[str, ...] | None = None
    contradicting: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ClipScore:
    """The scores of one clip: a line of scores.jsonl. Scores are fractions of 1.

    Attributes:
        f, precision, recall: means over the wheels that the clip is scored on (level 1); None = the clip is not scored,
            because none of its true labels is on a wheel.
        f_by_wheel, precision_by_wheel, recall_by_wheel: of wheels 1 to 5; None = not scored on this wheel, as in
            benchmarks with classes.
        true_labels, predicted_labels: as they were scored.
        true_sectors, predicted_sectors: for each wheel, the sectors of the labels, the clip's own first.
        reading: how the labels were read from the answer ("given" = they came with it); None = no prediction.
        missing: the clip has no prediction; unparsed: it has one, without labels. Both are scored 0.
        n_characters: of the explanation, without the line of labels; n_tokens: of the answer, if recorded.
        modalities: the inputs that the model was shown, if recorded.
        faithfulness: None = the prediction has no explanation, or faithfulness was not computed.
    """

    id: str
    f: float | None
    precision: float | None
    recall: float | None
    f_by_wheel: tuple[float | None, ...]
    precision_by_wheel: tuple[float | None, ...]
    recall_by_wheel: tuple[float | None, ...]
    true_labels: tuple[str, ...]
    predicted_labels: tuple[str, ...]
    true_sectors: tuple[tuple[str, ...], ...]
    predicted_sectors: tuple[tuple[str, ...], ...]
    reading: str | None
    missing: bool
    unparsed: bool
    task: str | None = None
    lang: str | None = None
    modalities: tuple[str, ...] = ()
    n_characters: int = 0
    n_tokens: int | None = None
    faithfulness: ClipFaithfulness | None = None

    @property
    def n_true(self) -> int:
        return len(self.true_labels)

    @property
    def n_predicted(self) -> int:
        return len(self.predicted_labels)

    def true_sector(self, wheel: int = 1) -> str:
        """The sector of the true labels on a wheel (1 to 5), or NO_SECTOR."""
        return next(iter(self.true_sectors[_place(wheel)]), NO_SECTOR)

    def predicted_sector(self, wheel: int = 1) -> str:
        """The sector of the predicted labels on a wheel (1 to 5), or NO_SECTOR."""
        return next(iter(self.predicted_sectors[_place(wheel)]), NO_SECTOR)

    def to_dict(self) -> dict[str, Any]:
        """The line of scores.jsonl, with the numbers of labels."""
        return {**asdict(self), "n_true": self.n_true, "n_predicted": self.n_predicted}


def _place(wheel: int) -> int:
    if wheel not in WHEELS:
        raise InputError(f"wheel {wheel!r}: expected the number of a wheel, 1 to {len(WHEELS)}")
    return wheel - 1


def sectors_of(labels: Iterable[str], wheel: int, grouping: WheelGrouping) -> tuple[str, ...]:
    """The level-1 sectors of labels on a wheel: most labels first, then in the order in which the labels are listed.

    >>> sectors_of(["proud", "angry", "furious", "neutral"], 1, WheelGrouping(load_lexicon("builtin")))
    ('mad', 'happy')
    """
    name = LEVEL1[_place(wheel)]
    found = Counter(sector for label in labels if (sector := grouping.groups(label).get(name)) is not None)
    return tuple(sector for sector, _ in found.most_common())  # equal counts stay in the order of their first label


def wheel_order(lexicon: Lexicon, wheel: int = 1) -> tuple[str, ...]:
    """The sectors of a wheel in the order of the wheel, in which neighbours are related emotions."""
    return tuple(dict.fromkeys(lexicon.wheels[_place(wheel)].level1.values()))


def score_clips(
    predictions: Sequence[Prediction],
    references: Mapping[str, Sequence[str]],
    *,
    lexicon: str | Path | Lexicon = "builtin",
    descriptions: Mapping[str, str | Sequence[Clause]] | None = None,
    match: Matcher | None = None,
) -> list[ClipScore]:
    """The score of every reference, in their order.

    Args:
        references: id -> true labels. A clip without a prediction is scored 0 and marked as missing; a prediction
            without a reference is left out (the report counts it).
        descriptions: id -> true description or clauses, for faithfulness; None = faithfulness is not computed.
        match: decides which clues are the same, as in `faithfulness.clue_scores`.

    >>> rows = score_clips([Prediction("a", "", labels=("furious", "proud"))], {"a": ["angry"], "b": ["sad"]})
    >>> [(row.id, row.precision, row.recall, row.missing) for row in rows]
    [('a', 0.5, 1.0, False), ('b', 0.0, 0.0, True)]
    """
    lexicon = load_lexicon(lexicon)
    grouping = WheelGrouping(lexicon)
    labels, readings = labels_by_id(predictions, lexicon)
    given = {prediction.id: prediction for prediction in predictions}
    truths = [split_labels(references[key], lexicon) for key in references]
    answers = [labels.get(key, ()) for key in references]
    scores = score_samples(truths, answers, grouping, LEVEL1)
    faith = {} if descriptions is None else _faithfulness(predictions, labels, descriptions, grouping, match)
    sectors: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {}  # label sets recur

    def on_wheels(words: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        if words not in sectors:
            sectors[words] = tuple(sectors_of(words, wheel, grouping) for wheel in WHEELS)
        return sectors[words]

    rows = []
    for key, truth, answer, score in zip(references, truths, answers, scores, strict=True):
        precision, recall = ([None if np.isnan(x) else float(x) for x in score[:, side]] for side in (0, 1))
        f_scores = [
            None if p is None or r is None else harmonic_mean(p, r) for p, r in zip(precision, recall, strict=True)
        ]
        prediction = given.get(key)
        rows.append(
            ClipScore(
                id=key,
                f=_mean(f_scores),
                precision=_mean(precision),
                recall=_mean(recall),
                f_by_wheel=tuple(f_scores),
                precision_by_wheel=tuple(precision),
                recall_by_wheel=tuple(recall),
                true_labels=tuple(truth),
                predicted_labels=tuple(answer),
                true_sectors=on_wheels(tuple(truth)),
                predicted_sectors=on_wheels(tuple(answer)),
                reading=readings.get(key),
                missing=prediction is None,
                unparsed=prediction is not None and not answer,
                faithfulness=faith.get(key),
                **({} if prediction is None else _facts(prediction)),
            )
        )
    return rows


def score_classes(
    predictions: Sequence[Prediction],
    truths: Mapping[str, Sequence[str]],
    answers: Mapping[str, Sequence[str]],
    *,
    dropped: Container[str] = (),
    lexicon: str | Path | Lexicon = "builtin",
) -> list[ClipScore]:
    """The score of every truth in a benchmark with classes, where labels must be equal and no wheel is used.

    Args:
        truths, answers: id -> classes; a clip without an answer is scored 0.
        predictions: what the answers were read from; a clip without one is marked as missing.
        dropped: ids that the benchmark does not score.

    >>> truths, answers = {"a": ["sad"], "b": ["sad"]}, {"a": ["sad"], "b": ["happy"]}
    >>> [row.f for row in score_classes([Prediction("a", "sad"), Prediction("b", "happy")], truths, answers)]
    [1.0, 0.0]
    """
    grouping = WheelGrouping(load_lexicon(lexicon))
    given = {prediction.id: prediction for prediction in predictions}
    none = (None,) * len(WHEELS)
    rows = []
    for key, truth in truths.items():
        answer = tuple(answers.get(key, ()))
        n_right, is_scored = len(set(truth) & set(answer)), key not in dropped
        precision, recall = n_right / max(len(answer), 1), n_right / len(truth)
        true_sectors, predicted_sectors = (
            tuple(sectors_of(words, wheel, grouping) for wheel in WHEELS) for words in (truth, answer)
        )
        rows.append(
            ClipScore(
                id=key,
                f=harmonic_mean(precision, recall) if is_scored else None,
                precision=precision if is_scored else None,
                recall=recall if is_scored else None,
                f_by_wheel=none,
                precision_by_wheel=none,
                recall_by_wheel=none,
                true_labels=tuple(truth),
                predicted_labels=answer,
                true_sectors=true_sectors,
                predicted_sectors=predicted_sectors,
                reading=None,
                missing=key not in given,
                unparsed=key in given and not answer,
                **(_facts(given[key]) if key in given else {}),
            )
        )
    return rows


def _facts(prediction: Prediction) -> dict[str, Any]:
    return {
        "task": prediction.task,
        "lang": prediction.lang,
        "modalities": prediction.modalities,
        "n_characters": len(explanation_of(prediction.text)),
        "n_tokens": prediction.n_tokens,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored) if scored else None


def _faithfulness(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Sequence[str]],
    descriptions: Mapping[str, str | Sequence[Clause]],
    grouping: WheelGrouping,
    match: Matcher | None,
) -> dict[str, ClipFaithfulness]:
    """id -> faithfulness of every prediction with an explanation."""
    explained = [row for row in predictions if row.task not in ("labels", "fixed") and explanation_of(row.text)]
    clues: dict[str, np.ndarray] = {}
    for found in clue_counts(explained, descriptions, match).values():
        for key, counts in found:
            clues[key] = clues.get(key, np.zeros(4, dtype=int)) + np.array(counts)
    rows = {}
    for prediction in explained:
        stated = absent_claims(prediction)
        support = label_support(prediction, labels.get(prediction.id, ()), grouping)
        n_right, n_clues, n_found, n_true = map(int, clues.get(prediction.id, np.zeros(4)))
        rows[prediction.id] = ClipFaithfulness(
            absent=None if stated is None else tuple(name for name, found in stated.items() if found),
            clue_precision=n_right / n_clues if n_clues else None,
            clue_recall=n_found / n_true if n_true else None,
            n_clues=n_clues,
            n_true_clues=n_true,
            unsupported=None if support is None else support.unsupported,
            contradicting=None if support is None else support.contradicting,
        )
    return rows


def benchmark_scores(folder: Path, name: str) -> Path:
    """Where the scores of the clips of a benchmark are."""
    return folder / f"scores-{name}.jsonl"


def write_scores(path: str | Path, rows: Iterable[ClipScore]) -> None:
    """Write scores.jsonl atomically."""
    write_lines_atomic(Path(path), (json_line(row.to_dict()) for row in rows))


def read_scores(path: str | Path) -> list[ClipScore]:
    """Read scores.jsonl.

    Raises:
        TableError: the file cannot be read, or a line is no score of a clip; the message names file and line.
    """
    rows = []
    for where, row in read_rows(Path(path)):
        try:
            rows.append(_clip_score(row))
        except (KeyError, TypeError, InputError) as error:
            raise TableError(f"{where}: not the score of a clip ({error}); eval.py writes this file anew") from None
    return rows


_BY_WHEEL = ("f_by_wheel", "precision_by_wheel", "recall_by_wheel")


def _clip_score(row: Mapping[str, Any]) -> ClipScore:
    values = {key: row[key] for key in ClipScore.__dataclass_fields__ if key in row}
    check_id(values["id"])
    for key in (*_BY_WHEEL, "true_sectors", "predicted_sectors"):
        if len(values[key]) != len(WHEELS):
            raise InputError(f"{key} has {len(values[key])} items, expected one for each of {len(WHEELS)} wheels")
        values[key] = tuple(tuple(item) if isinstance(item, list) else item for item in values[key])
    for key in ("true_labels", "predicted_labels", "modalities"):
        values[key] = tuple(check_text(item, key) for item in values.get(key, ()))
    numbers = [values.get(key) for key in ("f", "precision", "recall", "n_characters", "n_tokens")]
    for value in [*numbers, *(value for key in _BY_WHEEL for value in values[key])]:
        if value is not None and not isinstance(value, (int, float)):
            raise InputError(f"expected a number or null, found {value!r}")
    if (faithfulness := values.get("faithfulness")) is not None:
        found: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in faithfulness.items()
        }
        values["faithfulness"] = ClipFaithfulness(**found)
    return ClipScore(**values)


# ---- sort and filter -------------------------------------------------------------------------------------------------

Value = float | str | None


def _of_faithfulness(name: str) -> Callable[[ClipScore], Value]:
    return lambda row: None if row.faithfulness is None else getattr(row.faithfulness, name)


def _n_of_faithfulness(name: str) -> Callable[[ClipScore], Value]:
    def count(row: ClipScore) -> Value:
        found = None if row.faithfulness is None else getattr(row.faithfulness, name)
        return None if found is None else len(found)

    return count


SORT_KEYS: dict[str, Callable[[ClipScore], Value]] = {
    "f": lambda row: row.f,
    "precision": lambda row: row.precision,
    "recall": lambda row: row.recall,
    "n_true": lambda row: row.n_true,
    "n_predicted": lambda row: row.n_predicted,
    "n_characters": lambda row: row.n_characters,
    "n_tokens": lambda row: row.n_tokens,
    "clue_precision": _of_faithfulness("clue_precision"),
    "clue_recall": _of_faithfulness("clue_recall"),
    "absent": _n_of_faithfulness("absent"),
    "unsupported": _n_of_faithfulness("unsupported"),
    "contradicting": _n_of_faithfulness("contradicting"),
    "id": lambda row: row.id,
}
"""What clips can be sorted by."""

STATES: dict[str, Callable[[ClipScore], bool]] = {
    "scored": lambda row: row.f is not None,
    "not scored": lambda row: row.f is None,
    "missing": lambda row: row.missing,
    "unparsed": lambda row: row.unparsed,
    "right": lambda row: row.f is not None and row.f == 1,
    "wrong": lambda row: row.f is not None and row.f == 0,
}
"""States of a clip to filter by."""

FAULTS: dict[str, Callable[[ClipScore], bool]] = {
    name: lambda row, name=name: bool(row.faithfulness and getattr(row.faithfulness, name))  # type: ignore[misc]
    for name in ("absent", "unsupported", "contradicting")
}
"""Faults of an explanation to filter by, named as the fields of `ClipFaithfulness`."""


def in_order(rows: Iterable[ClipScore], key: str = "f", *, descending: bool = False) -> list[ClipScore]:
    """Clips sorted by one of `SORT_KEYS`, those without this value last, equal ones in their order before."""
    if key not in SORT_KEYS:
        raise InputError(f"cannot sort by {key!r}; expected one of {list(SORT_KEYS)}")
    return sorted_by(SORT_KEYS[key], rows, descending=descending)


def sorted_by(
    value: Callable[[ClipScore], Any], rows: Iterable[ClipScore], *, descending: bool = False
) -> list[ClipScore]:
    """Clips sorted by a value, those without it (None) last, equal ones in their order before."""
    known: list[ClipScore] = []
    unknown: list[ClipScore] = []
    for row in rows:
        (unknown if value(row) is None else known).append(row)
    return sorted(known, key=value, reverse=descending) + unknown


def select(
    rows: Iterable[ClipScore],
    *,
    wheel: int = 1,
    true_sector: str | None = None,
    predicted_sector: str | None = None,
    label: str | None = None,
    modalities: Iterable[str] | None = None,
    state: str | None = None,
    fault: str | None = None,
    lowest: float | None = None,
    highest: float | None = None,
) -> list[ClipScore]:
    """Clips that meet all given conditions, in their order.

    Args:
        true_sector, predicted_sector: the clip's own sector on `wheel`, or NO_SECTOR: a cell of `sector_confusion`.
        label: among the true or the predicted labels, in any case.
        modalities: exactly the inputs that the model was shown, in any order.
        state, fault: of `STATES`, `FAULTS`.
        lowest, highest: limits of F, inclusive; clips that are not scored meet neither.
    """
    for value, known in ((state, STATES), (fault, FAULTS)):
        if value is not None and value not in known:
            raise InputError(f"cannot filter by {value!r}; expected one of {list(known)}")
    word = None if label is None else label.lower().strip()
    inputs = None if modalities is None else set(modalities)
    return [
        row
        for row in rows
        if (true_sector is None or row.true_sector(wheel) == true_sector)
        and (predicted_sector is None or row.predicted_sector(wheel) == predicted_sector)
        and (word is None or any(word == given.lower() for given in (*row.true_labels, *row.predicted_labels)))
        and (inputs is None or set(row.modalities) == inputs)
        and (state is None or STATES[state](row))
        and (fault is None or FAULTS[fault](row))
        and (lowest is None or (row.f is not None and row.f >= lowest))
        and (highest is None or (row.f is not None and row.f <= highest))
    ]


# ---- confusion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SectorConfusion:
    """Clips by true (rows) and predicted (columns) sector of one wheel.

    Attributes:
        sectors: of the rows and of the columns; the last is NO_SECTOR.
        counts: [n_sectors, n_sectors]; their sum is the number of clips.
    """

    wheel: int
    sectors: tuple[str, ...]
    counts: np.ndarray

    @property
    def agreement(self) -> Rate:
        """Clips whose predicted sector is the true one, of those with a true sector."""
        scored = self.counts[:-1]
        return Rate(int(np.trace(scored)), int(scored.sum()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "wheel": self.wheel, "sectors": list(self.sectors), "counts": self.counts.tolist(),
            "agreement": self.agreement.to_dict(),
        }  # fmt: skip


def sector_confusion(rows: Sequence[ClipScore], wheel: int = 1, order: Sequence[str] | None = None) -> SectorConfusion:
    """Confusion between the sectors of a wheel; each clip counts once, in its own true and predicted sector.

    Args:
        order: of the sectors, such as `wheel_order(lexicon, wheel)`, which may also name sectors without a clip; None =
            the sectors that occur, by name. Sectors that it does not name follow by name.
    """
    found = {sector for row in rows for sector in (row.true_sector(wheel), row.predicted_sector(wheel))} - {NO_SECTOR}
    sectors = (*dict.fromkeys([*(order or ()), *sorted(found)]), NO_SECTOR)
    place = {sector: n for n, sector in enumerate(sectors)}
    counts = np.zeros((len(sectors), len(sectors)), dtype=int)
    for row in rows:
        counts[place[row.true_sector(wheel)], place[row.predicted_sector(wheel)]] += 1
    return SectorConfusion(wheel, sectors, counts)


# ---- labels and lengths ----------------------------------------------------------------------------------------------

MAX_BARS = 12


@dataclass(frozen=True)
class Extents:
    """How many labels the clips have, and how long the explanations of some systems are, in clips.

    Attributes:
        true: clips with 0, 1, 2 ... true labels; the last one also counts those with more, if there are MAX_BARS + 1.
        predicted: the same of each system's predictions.
        width: characters of a bar of `lengths`, of which the first begins at 0.
        lengths: for each system, its explanations by length.
    """

    true: tuple[int, ...]
    predicted: tuple[tuple[int, ...], ...]
    width: int
    lengths: tuple[tuple[int, ...], ...]

    def numbers(self) -> list[str]:
        """What the bars of `true` and `predicted` are called."""
        names = [str(n) for n in range(len(self.true))]
        return [*names[:-1], f"{names[-1]}+"] if len(names) > MAX_BARS else names

    def spans(self) -> list[str]:
        """What the bars of `lengths` are called."""
        n_bars = len(self.lengths[0]) if self.lengths else 0
        return [f"{n * self.width}–{(n + 1) * self.width - 1}" for n in range(n_bars)]


def extents(systems: Sequence[Sequence[ClipScore]]) -> Extents:
    """Numbers of labels and lengths of systems on the same clips; answers without an explanation have no length."""
    given = [[row for row in rows if not row.missing] for rows in systems]
    written = [[row.n_characters for row in rows if row.n_characters] for rows in given]
    longest = max((length for lengths in written for length in lengths), default=0)
    width = next(w for k in itertools.count(1) for w in (10**k, 2 * 10**k, 5 * 10**k) if longest < w * MAX_BARS)
    true = [row.n_true for row in systems[0]] if systems else []
    predicted = [[row.n_predicted for row in rows] for rows in given]
    most = min(MAX_BARS, max([*true, *(n for numbers in predicted for n in numbers)], default=0))

    def bars(values: Iterable[int], last: int) -> tuple[int, ...]:
        found = Counter(min(value, last) for value in values)
        return tuple(found[n] for n in range(last + 1))

    last = longest // width
    lengths = tuple(bars((length // width for length in each), last) if longest else () for each in written)
    return Extents(bars(true, most), tuple(bars(numbers, most) for numbers in predicted), width, lengths)


# ---- two systems -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipDifference:
    """One clip in two systems; `difference` is the F of the first minus the F of the second, None = not scored."""

    id: str
    difference: float | None
    first: ClipScore
    second: ClipScore


@dataclass(frozen=True)
class SystemDifference:
    """Where two systems differ.

    Attributes:
        test: the paired test of eval.py's comparison: of the level-1 mean F_S, not of the mean of the clips' F.
        clips: all clips, the largest difference (in either direction) first, those that are not scored last.
        n_first_better, n_second_better, n_equal: scored clips by the sign of their difference.
    """

    test: PairedTest
    clips: tuple[ClipDifference, ...]
    n_first_better: int
    n_second_better: int
    n_equal: int


def differences(
    first: Sequence[ClipScore], second: Sequence[ClipScore], *, n_resamples: int = 1000, seed: int = 42
) -> SystemDifference:
    """Compare two systems clip by clip.

    Raises:
        InputError: the systems were not scored on the same references.
    """
    by_id = {row.id: row for row in second}
    if [row.id for row in first] != [row.id for row in second] and {row.id for row in first} != set(by_id):
        lacking = sorted({row.id for row in first} ^ set(by_id))
        raise InputError(f"the systems were scored on different clips ({lacking[0]!r} is in one only); score them anew")
    pairs = [(row, by_id[row.id]) for row in first]
    for ours, theirs in pairs:
        if ours.true_labels != theirs.true_labels:
            raise InputError(f"clip {ours.id!r} has other true labels in the second system; score them anew")
    test = paired_test(
        _array(first), _array([theirs for _, theirs in pairs]), n_resamples=max(n_resamples, MIN_RESAMPLES), seed=seed
    )
    clips = [ClipDifference(a.id, None if a.f is None or b.f is None else _rounded(a.f - b.f), a, b) for a, b in pairs]
    clips.sort(key=lambda clip: (clip.difference is None, -abs(clip.difference or 0)))
    signs = Counter(int(np.sign(clip.difference)) for clip in clips if clip.difference is not None)
    return SystemDifference(test, tuple(clips), signs[1], signs[-1], signs[0])


def _rounded(difference: float) -> float:
    """Without the rounding errors of means, so that equal scores are equal."""
    return round(difference, 12) + 0.0


def _array(rows: Sequence[ClipScore]) -> np.ndarray:
    """Precision and recall by wheel, [n_clips, 5, 2]; NaN = not scored."""
    values = [
        list(zip(row.precision_by_wheel, row.recall_by_wheel, strict=True))
        if any(value is not None for value in row.precision_by_wheel)
        else [(row.precision, row.recall)] * len(WHEELS)  # of a benchmark with classes
        for row in rows
    ]
    return np.array(values, dtype=float).reshape(-1, len(WHEELS), 2)
