"""Is an explanation about what the model was shown, about what is in the clip, and about its own labels?

- `absent_modality`: answers that make a statement about a modality that was not shown.
- `clue_scores`: precision (faithfulness) and recall (utilisation, in the sense of MEP-Bench) of the clues of an answer
  against those of a reference description, per modality.
- `consistency`: labels that the explanation does not mention, and emotions in it that contradict the labels.

None needs a model: statements are found by the rules of `affectgpt.clauses`, in English and Chinese, and clues are
matched by their words; `clue_scores` also takes another matcher, such as `by_similarity` for sentence embeddings or
`metrics.judge.match_by_llm`. docs/faithfulness.md describes what the scores do not show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from affectgpt.clauses import claims, fit, shown_clues, split, unsupported
from affectgpt.metrics.lexicon import Lexicon
from affectgpt.metrics.stats import Interval, Rate, resampling_weights
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping
from affectgpt.prompts import LABEL_LINE
from affectgpt.schema import CLUES, Clause, Prediction

RULES_VERSION = "1"


def explanation_of(text: str) -> str:
    """An answer without its line of labels."""
    heads = tuple(head.strip() for head in LABEL_LINE.values())
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith(heads)).strip()


def shown_to(prediction: Prediction) -> frozenset[str]:
    """The clue modalities that a prediction was made from; sound counts as a source of words, as it may be speech."""
    return shown_clues(prediction.modalities, hears_words=True)


def absent_claims(prediction: Prediction) -> dict[str, bool] | None:
    """Clue modality that was not shown -> whether the explanation makes a statement about it.

    None for predictions that do not record their inputs, that were shown everything, and without an explanation.
    """
    text, shown = explanation_of(prediction.text), shown_to(prediction)
    absent = [name for name in CLUES if name not in shown]
    if not shown or not absent or not text or prediction.task in ("labels", "fixed"):
        return None
    found = claims(text, prediction.lang)
    return {name: name in found for name in absent}


def absent_modality(predictions: Iterable[Prediction]) -> dict[str, Rate]:
    """Share of explanations that make a statement about a modality that was not shown.

    Returns:
        per clue modality: of the explanations that were made without it; "any": of those made without at least one.
        Predictions for which `absent_claims` is None are not counted.
    """
    counts = {name: [0, 0] for name in (*CLUES, "any")}
    for prediction in predictions:
        if (stated := absent_claims(prediction)) is None:
            continue
        for name, found in (*stated.items(), ("any", any(stated.values()))):
            counts[name][0] += found
            counts[name][1] += 1
    return {name: Rate(*pair) for name, pair in counts.items()}


def marked(prediction: Prediction) -> Prediction:
    """The prediction with its `unsupported` sentences: those about a modality that the model was not shown."""
    text, shown = explanation_of(prediction.text), shown_to(prediction)
    if not shown or not text or prediction.task in ("labels", "fixed"):
        return prediction
    found = unsupported(text, prediction.lang, shown)
    return replace(
        prediction,
        unsupported=tuple({"sentence": sentence, "modality": modality} for sentence, modality in found),
    )


# ---- clues -----------------------------------------------------------------------------------------------------------


class CluePair(NamedTuple):
    """The clues of one modality in an answer and in its reference."""

    predicted: Sequence[str]
    reference: Sequence[str]
    lang: str


Matches = tuple[list[bool], list[bool]]
"""Which predicted clues are in the reference, and which reference clues are in the prediction."""

Matcher = Callable[[Sequence[CluePair]], Sequence[Matches]]


@dataclass(frozen=True)
class ClueScore:
    """Micro-averaged over the clues of `n` clips; intervals are percentile bootstrap intervals over clips."""

    precision: float | None
    recall: float | None
    n_predicted: int
    n_reference: int
    n: int
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None


def clue_scores(
    predictions: Iterable[Prediction],
    references: Mapping[str, str | Sequence[Clause]],
    *,
    match: Matcher | None = None,
    n_bootstrap: int = 1000,
    seed: int = 42,
) -> dict[str, ClueScore]:
    """Precision and recall of clues per clue modality, and over all ("all").

    Args:
        references: id -> a description in the language of the prediction, or its clauses. A prediction is compared with
            the clues of the modalities that it was shown (all, if it does not record them).
        match: decides which clues are the same; None = `by_words`.

    Returns:
        precision None without a predicted clue, recall None without a reference clue.
    """
    counts = clue_counts(predictions, references, match)
    everything = [row for rows in counts.values() for row in rows]
    return {name: _clue_score(rows, n_bootstrap, seed) for name, rows in {**counts, "all": everything}.items()}


class ClueCounts(NamedTuple):
    """Clues of one prediction: `n_right` of `n_predicted` are in the reference, `n_found` of `n_reference` in it."""

    n_right: int
    n_predicted: int
    n_found: int
    n_reference: int


def clue_counts(
    predictions: Iterable[Prediction], references: Mapping[str, str | Sequence[Clause]], match: Matcher | None = None
) -> dict[str, list[tuple[str, ClueCounts]]]:
    """Per clue modality, the id and the counts of each prediction that was shown it; arguments as in `clue_scores`."""
    match = match or by_words
    ids: dict[str, list[str]] = {name: [] for name in CLUES}
    pairs: dict[str, list[CluePair]] = {name: [] for name in CLUES}
    for prediction in predictions:
        reference = references.get(prediction.id)
        if not reference or prediction.task in ("labels", "fixed"):
            continue
        lang = prediction.lang
        true = split(reference, lang) if isinstance(reference, str) else tuple(reference)
        shown = shown_clues(prediction.modalities) or frozenset(CLUES)
        answered = split(explanation_of(prediction.text), lang)
        for name in CLUES:
            if name not in shown:
                continue
            ids[name].append(prediction.id)
            pairs[name].append(CluePair(_clues_of(answered, name, lang), _clues_of(fit(true, shown), name, lang), lang))
    return {
        name: [(key, _counts(*found)) for key, found in zip(ids[name], match(pairs[name]), strict=True)]
        for name in CLUES
    }


def _counts(predicted: Sequence[bool], reference: Sequence[bool]) -> ClueCounts:
    return ClueCounts(sum(predicted), len(predicted), sum(reference), len(reference))


def _clues_of(clauses: Iterable[Clause], modality: str, lang: str) -> list[str]:
    return [clue for clause in clauses if clause.modality == modality for clue in phrases(clause.text, lang)]


def _clue_score(counts: Iterable[tuple[str, ClueCounts]], n_bootstrap: int, seed: int) -> ClueScore:
    """The counts of one clip are one row: resampling draws clips, and its modalities stay together."""
    by_clip: dict[str, np.ndarray] = {}
    for key, row in counts:
        by_clip[key] = by_clip.get(key, 0) + np.array(row)
    rows = np.array(list(by_clip.values())).reshape(-1, 4)  # [n_clips, 4]
    right, n_predicted, found, n_reference = map(int, rows.sum(axis=0))
    intervals: list[Interval | None] = [None, None]
    if n_bootstrap and len(rows):
        drawn = resampling_weights(len(rows), n_bootstrap=n_bootstrap, seed=seed)
        sums = np.concatenate([weights @ rows for weights in drawn])  # [n_bootstrap, 4]
        for place, (top, bottom) in enumerate(((0, 1), (2, 3))):
            values = sums[sums[:, bottom] > 0, top] / sums[sums[:, bottom] > 0, bottom]
            if len(values):
                low, high = np.quantile(values, [0.025, 0.975])
                intervals[place] = Interval(float(low), float(high), 0.95, n_bootstrap, seed)
    return ClueScore(
        right / n_predicted if n_predicted else None,
        found / n_reference if n_reference else None,
        n_predicted,
        n_reference,
        len(rows),
        *intervals,
    )


_LEAD_IN = {
    "en": re.compile(
        r"^(?:(?:in|at|from|throughout) the (?:\w+ )?(?:video|audio|text|clip|beginning|end|middle|start|opening|scene)"
        r"\w*(?: of the (?:video|clip|audio))?|soon|all the time|from the start|after [^,]*? look|then|"
        r"the voice (?:is|sounds))"
        r",?\s*",
        re.IGNORECASE,
    ),
    "zh": re.compile(r"^(?:在?(?:视频|音频|文本|画面)(?:中|里)|画面中|从一开始|从头到尾|很快|话音|声音)[，,]?"),
}
_SEPARATOR = {
    "en": re.compile(r"\s*(?:,|;|\band\b|\bthen\b)\s*"),
    "zh": re.compile(r"[，、；。]|以及|并且|和(?=[^气谐])"),
}
_STOP = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "his",
        "her",
        "their",
        "its",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "has",
        "have",
        "had",
        "he",
        "she",
        "they",
        "it",
        "i",
        "we",
        "you",
        "of",
        "in",
        "on",
        "at",
        "to",
        "with",
        "by",
        "for",
        "from",
        "as",
        "and",
        "or",
        "but",
        "so",
        "very",
        "quite",
        "somewhat",
        "slightly",
        "little",
        "bit",
        "more",
        "most",
        "some",
        "as",
        "if",
        "seems",
        "appears",
        "appear",
        "person",
        "character",
        "speaker",
        "man",
        "woman",
        "male",
        "female",
        "lady",
        "boy",
        "girl",
        "video",
        "audio",
        "voice",
        "tone",
    ]
)


@lru_cache(maxsize=8192)
def phrases(text: str, lang: str) -> tuple[str, ...]:
    """The single clues of a clause: its parts between commas and "and", without lead-ins.

    >>> phrases("In the clip the brows rise, the eyes widen and the jaw drops.", "en")
    ('the brows rise', 'the eyes widen', 'the jaw drops')
    """
    bare = _LEAD_IN[lang].sub("", text.strip()).rstrip(".。!！;；")
    return tuple(part for part in (piece.strip() for piece in _SEPARATOR[lang].split(bare)) if part)


@lru_cache(maxsize=16384)
def _content(phrase: str, lang: str) -> frozenset[str]:
    """Content words of a phrase with their common endings removed; in Chinese, pairs of characters."""
    if lang == "zh":
        plain = re.sub(r"[^\u4e00-\u9fff]|的|了|着|微微|明显|有些|略微|稍微|很", "", phrase)
        return frozenset(plain[n : n + 2] for n in range(max(len(plain) - 1, 1))) - {""}
    words = (word.lower() for word in re.findall(r"[^\W\d_]+", phrase))
    return frozenset(re.sub(r"(?:ing|ed|ly|es|s)$", "", word) for word in words if word not in _STOP)


def by_words(pairs: Sequence[CluePair]) -> list[Matches]:
    """Clues are the same if half of their content words are (Jaccard similarity of at least 0.5)."""

    def same(a: str, b: str, lang: str) -> bool:
        first, second = _content(a, lang), _content(b, lang)
        return bool(first & second) and 2 * len(first & second) >= len(first | second)

    return [
        _from_table([[same(a, b, pair.lang) for b in pair.reference] for a in pair.predicted], len(pair.reference))
        for pair in pairs
    ]


def by_similarity(embed: Callable[[list[str]], np.ndarray], threshold: float = 0.5) -> Matcher:
    """A matcher that compares sentence embeddings: clues are the same from a cosine of `threshold` on.

    Args:
        embed: n texts -> [n, D], for example `SentenceTransformer(...).encode`; called once.
    """

    def match(pairs: Sequence[CluePair]) -> list[Matches]:
        texts = sorted({clue for pair in pairs for clue in (*pair.predicted, *pair.reference)})
        if not texts:
            return [([], []) for _ in pairs]
        vectors = np.asarray(embed(texts), dtype=float)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        place = {text: n for n, text in enumerate(texts)}
        found = []
        for pair in pairs:
            ours, theirs = (vectors[[place[clue] for clue in side]] for side in (pair.predicted, pair.reference))
            similarity = ours.reshape(-1, vectors.shape[1]) @ theirs.reshape(-1, vectors.shape[1]).T
            found.append(_from_table((similarity >= threshold).tolist(), len(pair.reference)))
        return found

    return match


def _from_table(table: Sequence[Sequence[bool]], n_reference: int) -> Matches:
    """Matches from [predicted, reference] equalities."""
    return [any(row) for row in table], [any(row[n] for row in table) for n in range(n_reference)]


# ---- explanation and labels ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consistency:
    """`unsupported`: predicted labels that share no wheel category with an emotion of the explanation, of all labels.
    `contradicting`: explanations with an emotion that shares no category with any label. Explanations without a known
    emotion word are in `silent` and counted in neither; predictions without labels are left out."""

    unsupported: Rate
    contradicting: Rate
    silent: Rate


def consistency(
    predictions: Iterable[Prediction], labels: Mapping[str, Sequence[str]], lexicon: Lexicon
) -> Consistency:
    """Whether explanations and labels name the same emotions, by the level-1 categories of the five wheels.

    Args:
        labels: id -> predicted labels, from `evaluate.labels_by_id`.
    """
    grouping = WheelGrouping(lexicon)
    n_unsupported, n_labels, contradicting, silent, n = 0, 0, 0, 0, 0
    for prediction in predictions:
        found = label_support(prediction, labels.get(prediction.id, ()), grouping)
        if found is None:
            continue
        n += 1
        if found.unsupported is None:
            silent += 1
            continue
        n_unsupported += len(found.unsupported)
        n_labels += found.n_labels
        contradicting += bool(found.contradicting)
    return Consistency(Rate(n_unsupported, n_labels), Rate(contradicting, n - silent), Rate(silent, n))


class LabelSupport(NamedTuple):
    """Predicted labels that the explanation does not support, of `n_labels` on the wheels; emotions in it that share no
    category with any label. None if the explanation names no known emotion."""

    unsupported: tuple[str, ...] | None
    contradicting: tuple[str, ...] | None
    n_labels: int


def label_support(prediction: Prediction, labels: Sequence[str], grouping: WheelGrouping) -> LabelSupport | None:
    """The labels of one prediction against its explanation; None without an explanation or a label on the wheels."""

    def categories(word: str) -> set[tuple[str, str]]:
        return {(name, group) for name, group in grouping.groups(word).items() if name in LEVEL1}

    given = [label for label in labels if categories(label)]
    text = explanation_of(prediction.text)
    if not given or not text or prediction.task in ("labels", "fixed"):
        return None
    mentioned = emotion_words(text, prediction.lang, grouping.lexicon)
    if not mentioned:
        return LabelSupport(None, None, len(given))
    stated = set().union(*map(categories, mentioned))
    labelled = set().union(*map(categories, given))
    return LabelSupport(
        tuple(label for label in given if not categories(label) & stated),
        tuple(word for word in mentioned if not categories(word) & labelled),
        len(given),
    )


def emotion_words(text: str, lang: str, lexicon: Lexicon) -> tuple[str, ...]:
    """The emotion words of a text that are on the wheels, without negated ones, the longest match first.

    Only conclusions and clauses that name an emotion count: words such as "low" or "soft" in a description of a voice
    are no emotions, so clues are searched only after "indicating", "seems" and the like.
    """
    found: dict[str, None] = {}
    for clause in split(text, lang):
        part = clause.text if clause.modality == "inference" else _after_interpretation(clause.text, lang)
        for word in _known_words(part, lang, lexicon):
            found.setdefault(word)
    return tuple(found)


_GENERIC = frozenset(
    ("feeling", "feelings", "feel", "feels", "emotion", "emotions", "emotional", "mood", "情绪", "感觉")
)
_INTERPRETS = {
    "en": re.compile(
        r"\b(?:indicat|suggest|show|express|reveal|convey|reflect|seem|appear|imply|implie|feel)\w*\b", re.I
    ),
    "zh": re.compile(r"表明|显示出|表现出|表达|流露|透露|似乎|显得|感到|意味着|暗示"),
}


def _after_interpretation(text: str, lang: str) -> str:
    match = _INTERPRETS[lang].search(text)
    return text[match.end() :] if match else ""


def _known_words(text: str, lang: str, lexicon: Lexicon) -> Iterable[str]:
    if lang == "zh":
        place, units, joint, longest = 0, list(text), "", 6
    else:
        place, units, joint, longest = 0, re.findall(r"[\w'’-]+", text.lower()), " ", 3
    while place < len(units):
        for size in range(min(longest, len(units) - place), 0, -1):
            word = joint.join(units[place : place + size])
            if size == 1 and (lang == "zh" or word in _STOP):
                continue
            if word not in _GENERIC and (word in lexicon.forms if size > 1 else lexicon.find(word) is not None):
                before = joint.join(units[max(0, place - 2) : place])
                if not re.search(r"\b(?:not|no|without|never|n't)\b|不|没|无|非", before):
                    yield word
                place += size - 1
                break
        place += 1


def faithfulness(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Sequence[str]],
    references: Mapping[str, str | Sequence[Clause]],
    lexicon: Lexicon,
    *,
    match: Matcher | None = None,
    n_bootstrap: int = 1000,
    seed: int = 42,
) -> dict[str, Any]:
    """All scores of this module as a dictionary for a report; see the functions above for the arguments.

    Scores that the predictions do not allow (no explanations, no recorded inputs, no references) have n = 0.
    """
    clues = clue_scores(predictions, references, match=match, n_bootstrap=n_bootstrap, seed=seed)
    agreement = consistency(predictions, labels, lexicon)
    return {
        "absent_modality": {name: rate.to_dict() for name, rate in absent_modality(predictions).items()},
        "clues": {name: asdict(score) for name, score in clues.items()},
        "consistency": {
            name: getattr(agreement, name).to_dict() for name in ("unsupported", "contradicting", "silent")
        },
        "rules_version": RULES_VERSION,
    }
