"""Text matching scores of descriptions: BLEU-1, BLEU-4, METEOR and ROUGE-L, in English and Chinese.

Computed by libraries of the `evaluation` extra: sacrebleu, rouge-score, nltk (METEOR, with the synonyms of
`affectgpt.metrics.wordnet`), and jieba for Chinese word segmentation. A score whose library or data is missing is
listed in `unavailable`, never replaced by another. Emotion papers report these scores next to set-based ones, with
which they correlate weakly (OV-MER paper, section 6).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from affectgpt.metrics.wordnet import Thesaurus, find_wordnet
from affectgpt.runtime import InputError, MissingLibrary

CHINESE_METEOR = "METEOR, Chinese synonyms"


@dataclass(frozen=True)
class MatchingScores:
    """Scores in percent, the versions of the libraries (and the place of WordNet), and why scores are unavailable.

    `intervals` are 95 % percentile bootstrap intervals over samples, (low, high) in percent.
    """

    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    n: int
    libraries: Mapping[str, str]
    unavailable: Mapping[str, str] = field(default_factory=dict)


def match_texts(
    truths: Mapping[str, str],
    predictions: Mapping[str, str],
    *,
    lang: str = "en",
    n_bootstrap: int = 1000,
    seed: int = 42,
    wordnet: str | Path | None = None,
) -> MatchingScores:
    """Compare descriptions; a missing prediction counts as an empty text.

    BLEU is corpus BLEU (sacrebleu with tokenizers 13a and zh); ROUGE-L and METEOR are averaged over samples. ROUGE-L
    is the F-measure with rouge-score's default tokenizer for English (lower case, cut at everything but a-z and 0-9,
    no stemming), and with jieba's words for Chinese, which the default would drop. METEOR is nltk's (alpha 0.9, beta 3,
    gamma 0.5). In English a word matches one with its Porter stem or a synonym. In Chinese words match exactly, as with
    the English WordNet, which knows none of them; the synonyms of the Chinese Open Wordnet make a score of its own.

    Args:
        wordnet: folder of WordNet, or for Chinese the table of the Chinese Open Wordnet; None = `find_wordnet` looks.

    Raises:
        InputError: no truths, or an unknown language.
    """
    if lang not in ("en", "zh"):
        raise InputError(f"lang is {lang!r}; expected 'en' or 'zh'")
    if not truths:
        raise InputError("no descriptions to compare with")
    pairs = [(truth, predictions.get(sample_id, "")) for sample_id, truth in truths.items()]
    scores: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    unavailable: dict[str, str] = {}
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(n_bootstrap, len(pairs)))
    libraries: dict[str, str] = {}
    scorers: list[tuple[str, str, Callable[..., _Found]]] = [
        ("BLEU", "sacrebleu", _bleu),
        ("ROUGE-L", "rouge-score", _rouge),
        *(
            (name, "nltk", partial(_meteor, name=name, wordnet=wordnet))
            for name in (("METEOR",) if lang == "en" else ("METEOR", CHINESE_METEOR))
        ),
    ]
    for name, library, make in scorers:
        try:
            found = make(pairs, lang, drawn)
        except MissingLibrary as error:
            unavailable[name] = str(error)
        else:
            for title, (score, resampled) in found.items():
                scores[title] = score
                if n_bootstrap:
                    low, high = np.quantile(resampled, [0.025, 0.975])
                    intervals[title] = float(low), float(high)
            libraries[library] = importlib.metadata.version(library)
            if _has_synonyms(name, lang):
                libraries["WordNet"] = find_wordnet(lang, wordnet).place
            if lang == "zh" and library != "sacrebleu":  # sacrebleu tokenizes Chinese into characters
                libraries["jieba"] = importlib.metadata.version("jieba")
    return MatchingScores(scores, intervals, len(pairs), libraries, unavailable)


_Found = dict[str, tuple[float, "np.ndarray"]]  # score, and the scores of the resamples [n_bootstrap]


def _mean(name: str, values: Sequence[float], drawn: np.ndarray) -> _Found:
    """A score that is a mean over samples, in percent."""
    each = 100 * np.array(values, dtype=float)
    return {name: (float(each.mean()), each[drawn].mean(axis=1))}


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingLibrary(f"{name.split('.')[0]} is not installed: pip install 'affectgpt[evaluation]'") from None


def words_of(text: str, lang: str) -> list[str]:
    """The words of a text: by jieba for Chinese, else lower-cased runs of letters and digits.

    Raises:
        MissingLibrary: Chinese without jieba.
    """
    if lang == "zh":
        jieba = _import("jieba")
        jieba.setLogLevel("ERROR")  # it logs to stderr while it loads its dictionary
        return [word for word in jieba.lcut(text) if word.strip() and any(c.isalnum() for c in word)]
    return "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()


def _bleu(pairs: Sequence[tuple[str, str]], lang: str, drawn: np.ndarray) -> _Found:
    metrics = _import("sacrebleu.metrics")
    tokenize = "zh" if lang == "zh" else "13a"
    truths, predictions = [truth for truth, _ in pairs], [prediction for _, prediction in pairs]
    found = {}
    for order in (1, 4):
        bleu = metrics.BLEU(tokenize=tokenize, max_ngram_order=order)
        # BLEU is no mean over samples: a resample adds up the n-grams of its samples.
        each = metrics.BLEU(tokenize=tokenize, max_ngram_order=order, effective_order=True)
        parts = [each.sentence_score(prediction, [truth]) for truth, prediction in pairs]
        rows = np.array([[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts])
        resampled = [
            bleu.compute_bleu(
                correct=[*sums[:order]], total=[*sums[order : 2 * order]], sys_len=sums[-2], ref_len=sums[-1],
                smooth_method=bleu.smooth_method, max_ngram_order=order,
            ).score
            for sums in (rows[places].sum(axis=0).tolist() for places in drawn)
        ]  # fmt: skip
        found[f"BLEU-{order}"] = bleu.corpus_score(predictions, [truths]).score, np.array(resampled)
    return found


class _ChineseWords:
    """The tokenizer interface of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text, "zh")


def _rouge(pairs: Sequence[tuple[str, str]], lang: str, drawn: np.ndarray) -> _Found:
    tokenizer = _ChineseWords() if lang == "zh" else None
    rouge = _import("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=tokenizer)
    values = [rouge.score(truth, prediction)["rougeL"].fmeasure for truth, prediction in pairs]
    return _mean("ROUGE-L", values, drawn)


def _meteor(
    pairs: Sequence[tuple[str, str]], lang: str, drawn: np.ndarray, *, name: str, wordnet: str | Path | None
) -> _Found:
    meteor = _import("nltk.translate.meteor_score").meteor_score
    options: dict[str, object] = {"wordnet": find_wordnet(lang, wordnet) if _has_synonyms(name, lang) else Thesaurus()}
    if lang == "zh":  # nothing to stem
        options["stemmer"] = _Identity()
    values = [meteor([words_of(truth, lang)], words_of(answer, lang), **options) for truth, answer in pairs]
    return _mean(name, values, drawn)


def _has_synonyms(name: str, lang: str) -> bool:
    return name == CHINESE_METEOR or (name == "METEOR" and lang == "en")


class _Identity:
    def stem(self, word: str) -> str:
        return word
