"""Scores for open-vocabulary emotion recognition, without torch.

Most users need three calls::

    report = evaluate(read_predictions("predictions.jsonl"), read_references("test.csv"), lexicon="builtin")
    print(report.table())      # all twelve groupings, level means, M-avg, n, intervals, counts of what was left out
    report.write("report.json")

Signatures:

- ``evaluate(predictions, references, *, lexicon="builtin", groupings=GROUPINGS, seed=42, n_bootstrap=1000) -> Report``;
  `predictions` is ``{id: labels or text}`` or an iterable of `schema.Prediction`; `references` is ``{id: labels}``.
- ``Report.primary`` (a `Score`: f_score, precision, recall, n, n_max, interval.low / .high; scores are fractions of 1),
  ``.scores[name]``, ``.m_avg``, ``.counts``, ``.headline()``, ``.table()``, ``.to_dict()``, ``.write(path)``.
- ``read_predictions(path) -> list[Prediction]``, ``read_references(path, *, split=None, lang=None) -> {id: labels}``.
- ``read_labels(text) -> Reading(labels, how)``: the labels in one answer; `how` is one of `extract.READINGS`.
- ``load_lexicon("builtin" | folder | table of forms) -> Lexicon``.
- ``empty(ids)``, ``random_labels(ids, vocabulary, *, n_labels=1, seed=42)``: heuristic baselines as ``{id: labels}``.
- ``paired_test(scores_a, scores_b)``, ``bootstrap_interval(scores)`` on arrays from `wheel.score_samples`.
"""

from affectgpt.metrics.baselines import MER2023_EMOTIONS, empty, random_labels
from affectgpt.metrics.evaluate import evaluate
from affectgpt.metrics.extract import Reading, read_labels
from affectgpt.metrics.io import ScoreFileError, read_predictions, read_references
from affectgpt.metrics.lexicon import Lexicon, load_lexicon
from affectgpt.metrics.report import Counts, Report, Score
from affectgpt.metrics.sets import SetScore, jaccard, set_score
from affectgpt.metrics.stats import Interval, bootstrap_interval, paired_test
from affectgpt.metrics.wheel import GROUPINGS, WheelGrouping

__all__ = [
    "GROUPINGS",
    "MER2023_EMOTIONS",
    "Counts",
    "Interval",
    "Lexicon",
    "Reading",
    "Report",
    "Score",
    "ScoreFileError",
    "SetScore",
    "WheelGrouping",
    "bootstrap_interval",
    "empty",
    "evaluate",
    "jaccard",
    "load_lexicon",
    "paired_test",
    "random_labels",
    "read_labels",
    "read_predictions",
    "read_references",
    "set_score",
]
