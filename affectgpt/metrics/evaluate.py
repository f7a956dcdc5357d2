"""Score open-vocabulary predictions against references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.metrics.extract import read_labels
from affectgpt.metrics.lexicon import CellLabels, Lexicon, load_lexicon, split_published
from affectgpt.metrics.report import PRIMARY, Counts, Report, Score
from affectgpt.metrics.sets import SetScore, set_score
from affectgpt.metrics.stats import mean_f_statistic, percentile_interval, resampled_means, weighted_means
from affectgpt.metrics.wheel import GROUPINGS, LEVEL1, LEVEL2, WheelGrouping, mean_f, score_samples
from affectgpt.runtime import InputError
from affectgpt.schema import Prediction

Predictions = Mapping[str, "str | Sequence[str]"] | Iterable[Prediction]
_MEANS = {PRIMARY: LEVEL1, "level 2 mean": LEVEL2, "level 1+2 mean": LEVEL1 + LEVEL2}


def evaluate(
    predictions: Predictions,
    references: Mapping[str, Sequence[str]],
    *,
    lexicon: str | Path | Lexicon = "builtin",
    groupings: Sequence[str] = GROUPINGS,
    seed: int = 42,
    n_bootstrap: int = 1000,
    extras: Mapping[str, Any] | None = None,
) -> Report:
    """Set-based scores of open-vocabulary labels under the emotion-wheel groupings.

    Args:
        predictions: id -> labels or text, or Predictions. The labels of a text, and of a Prediction whose labels are
            None, are read by `affectgpt.metrics.extract`.
        references: id -> true labels. References without labels are counted, not scored.
        lexicon: "builtin", a folder with the published tables, or a Lexicon.
        groupings: a subset of GROUPINGS; a mean is only reported if it includes all its groupings.
        seed, n_bootstrap: of the 95 % interval of F_S; n_bootstrap=0 leaves it out.
        extras: additional results to store in the report (LLM grouping ...).

    Returns:
        A Report. A missing prediction scores 0 like an empty one, a prediction without a reference is left out; both
        are counted.

    Raises:
        InputError: no references, an unknown grouping, or no prediction that has a reference.

    >>> references = {"a": ["angry"], "b": ["sad", "happy"]}
    >>> report = evaluate({"a": ["furious"], "b": "calm, happy"}, references, n_bootstrap=0)
    >>> round(report.primary.precision, 3), round(report.primary.recall, 3), report.primary.n
    (0.9, 0.75, 2)
    """
    report, _ = evaluate_samples(
        predictions, references, lexicon=lexicon, groupings=groupings, seed=seed, n_bootstrap=n_bootstrap
    )
    return replace(report, extras=extras) if extras else report


def evaluate_samples(
    predictions: Predictions,
    references: Mapping[str, Sequence[str]],
    *,
    lexicon: str | Path | Lexicon = "builtin",
    groupings: Sequence[str] = GROUPINGS,
    seed: int = 42,
    n_bootstrap: int = 1000,
) -> tuple[Report, np.ndarray]:
    """Like `evaluate`; also returns precision and recall per sample [n_references, n_groupings, 2], NaN = not scored.

    The rows are in the order of `references`. Paired tests and error analyses start from them.
    """
    if unknown := [name for name in groupings if name not in GROUPINGS]:
        raise InputError(f"unknown groupings {unknown}; expected some of {list(GROUPINGS)}")
    if not references:
        raise InputError("no references to score against")
    lexicon = load_lexicon(lexicon)
    predicted, readings = labels_by_id(predictions, lexicon)
    if predicted and not set(predicted) & set(references):
        raise InputError(
            f"no prediction has a reference: predictions have ids like {next(iter(predicted))!r}, "
            f"references like {next(iter(references))!r}; are both files of the same data set?"
        )
    ids = list(references)
    truths = [split_labels(references[sample_id], lexicon) for sample_id in ids]
    answers = [predicted.get(sample_id, ()) for sample_id in ids]
    scores = score_samples(truths, answers, WheelGrouping(lexicon), groupings)
    report = Report(
        scores=_score_rows(scores, list(groupings), n_bootstrap, seed),
        m_avg=_m_avg(scores) if tuple(groupings) == GROUPINGS else None,
        counts=_count(ids, truths, predicted, readings, lexicon),
        lexicon=f"{lexicon.name} {lexicon.version}",
        lexicon_checksum=lexicon.checksum,
        seed=seed,
        n_bootstrap=n_bootstrap,
        label_reading=lexicon.label_splitting,
    )
    return report, scores


def neutral_aware(
    predictions: Predictions, references: Mapping[str, Sequence[str]], *, lexicon: str | Path | Lexicon = "builtin"
) -> dict[str, SetScore]:
    """Level-1 scores in which "neutral" is a cluster on every wheel: strict, and not comparable with papers.

    Neutral truths are then scored, and a neutral prediction for an angry person is wrong instead of ignored.
    """
    lexicon = load_lexicon(lexicon)
    grouping = WheelGrouping(lexicon)
    predicted, _ = labels_by_id(predictions, lexicon)

    def clusters(labels: Sequence[str], name: str) -> frozenset[str]:
        neutral = {"neutral"} if any(lexicon.kind(label) == "neutral" for label in labels) else set()
        return grouping.map(labels, name) | neutral

    return {
        name: set_score(
            (clusters(truth, name), clusters(predicted.get(sample_id, ()), name))
            for sample_id, truth in references.items()
        )
        for name in LEVEL1
    }


def mean_sample_f(scores: np.ndarray) -> float:
    """F of every sample, averaged over samples and groupings, ignoring NaN.  [N, G, 2] (not comparable with papers)"""
    total = np.nansum(scores, axis=-1)
    f_scores = np.divide(2 * scores[..., 0] * scores[..., 1], total, out=np.zeros_like(total), where=total > 0)
    scored = ~np.isnan(scores[..., 0])  # [N, G]
    by_grouping = [f_scores[known, column].mean() for column, known in enumerate(scored.T) if known.any()]
    return float(np.mean(by_grouping)) if by_grouping else 0.0


def strict_extras(
    predictions: Predictions, references: Mapping[str, Sequence[str]], *, lexicon: str | Path | Lexicon = "builtin"
) -> dict[str, float]:
    """Strict scores that no paper reports, as level-1 means over the five wheels.

    `neutral_aware_f_s`: F_S with neutral as a cluster; `sample_mean_f`: F of every sample, averaged.
    """
    _, scores = evaluate_samples(predictions, references, lexicon=lexicon, groupings=LEVEL1, n_bootstrap=0)
    aware = neutral_aware(predictions, references, lexicon=lexicon)
    return {
        "neutral_aware_f_s": float(np.mean([score.f_score for score in aware.values()])),
        "sample_mean_f": mean_sample_f(scores),
    }


def labels_by_id(predictions: Predictions, lexicon: Lexicon) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Predictions in any accepted form as id -> labels, split as in the lexicon, and id -> how they were read."""
    labels: dict[str, tuple[str, ...]] = {}
    readings: dict[str, str] = {}
    items: Iterable[tuple[str, str | Sequence[str] | None, str, str]]
    if isinstance(predictions, Mapping):
        items = (
            (sample_id, None if isinstance(value, str) else value, value if isinstance(value, str) else "", "both")
            for sample_id, value in predictions.items()
        )
    else:
        items = ((item.id, item.labels, item.text, item.task) for item in predictions)
    for sample_id, given, text, task in items:
        if sample_id in labels:
            raise InputError(f"two predictions for sample {sample_id!r}; expected one per sample")
        if given is not None:
            labels[sample_id], readings[sample_id] = split_labels(given, lexicon), _how_given(given, text)
        elif lexicon.label_splitting == "published" and task == "labels":
            labels[sample_id], readings[sample_id] = tuple(split_published(text)), "published list"
        else:
            reading = read_labels(text)
            labels[sample_id], readings[sample_id] = split_labels(reading.labels, lexicon), reading.how
    return labels, readings


def _how_given(given: Sequence[str], text: str) -> str:
    """How the labels were read from `text` if they equal those of `text`, else "given"."""
    reading = read_labels(text)
    return reading.how if text and reading.labels == tuple(given) else "given"


def split_labels(labels: Sequence[str], lexicon: Lexicon) -> tuple[str, ...]:
    """Labels as the lexicon's label reading splits them."""
    if lexicon.label_splitting == "published" and not isinstance(labels, CellLabels):
        return tuple(split_published(", ".join(labels)))
    return tuple(labels)


def _score_rows(scores: np.ndarray, names: list[str], n_bootstrap: int, seed: int) -> dict[str, Score]:
    means = weighted_means(scores, np.ones((1, len(scores))))[0]  # [G, 2]
    n_scored = (~np.isnan(scores[:, :, 0])).sum(axis=0)  # [G]
    resamples = resampled_means(scores, n_bootstrap=n_bootstrap, seed=seed) if n_bootstrap else None  # [K, G, 2]
    rows: dict[str, Score] = {}
    means_of = {title: members for title, members in _MEANS.items() if set(members) <= set(names)}
    for title, members in {**means_of, **{name: (name,) for name in names}}.items():
        columns = [names.index(name) for name in members]
        precision, recall = means[columns].mean(axis=0)
        n_low, n_high = int(n_scored[columns].min()), int(n_scored[columns].max())
        rows[title] = Score(
            f_score=mean_f(map(tuple, means[columns])),
            precision=float(precision),
            recall=float(recall),
            n=n_low,
            n_max=n_high if len(columns) > 1 else None,
            interval=None if resamples is None else percentile_interval(mean_f_statistic(resamples[:, columns]), seed),
        )
    return rows


def _m_avg(scores: np.ndarray) -> float:
    return mean_f(map(tuple, weighted_means(scores, np.ones((1, len(scores))))[0]))


def _count(
    ids: list[str], truths: list[tuple[str, ...]], predicted: dict[str, tuple[str, ...]], readings: dict[str, str],
    lexicon: Lexicon,
) -> Counts:  # fmt: skip
    known = set(ids)
    answers = [labels for sample_id, labels in predicted.items() if sample_id in known]
    kinds: dict[str, str] = {}
    found: dict[str, dict[str, Counter[str]]] = {}
    for side, labelled in (("truth", truths), ("prediction", answers)):
        words = Counter(word.lower().strip() for labels in labelled for word in labels)
        found[side] = {kind: Counter() for kind in ("known", "unknown", "neutral", "negated")}
        for word, n in words.most_common():
            kinds.setdefault(word, lexicon.kind(word))
            found[side][kinds[word]][word] = n
    return Counts(
        references=len(ids),
        without_labels=sum(not labels for labels in truths),
        predictions=len(predicted),
        extra=len(predicted) - len(answers),
        missing=len(known - set(predicted)),
        unparsed=sum(not labels for labels in answers),
        readings=dict(Counter(readings[sample_id] for sample_id in predicted if sample_id in known).most_common()),
        tokens_truth=sum(map(len, truths)),
        tokens_prediction=sum(map(len, answers)),
        unknown_truth=dict(found["truth"]["unknown"]),
        unknown_prediction=dict(found["prediction"]["unknown"]),
        neutral_truth=found["truth"]["neutral"].total(),
        neutral_prediction=found["prediction"]["neutral"].total(),
        negated_truth=found["truth"]["negated"].total(),
        negated_prediction=found["prediction"]["negated"].total(),
    )
