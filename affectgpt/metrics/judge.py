"""LLM-based scores: grouping of synonyms, label extraction from descriptions, and an LLM as a judge.

Every question is asked at temperature 0 through `affectgpt.chat`, whose log of answers makes the score reproducible
without a request. Prompts contain their version, so a changed prompt never gets an old answer. A question that the
server refuses counts as an answer that cannot be parsed.

- LLM grouping (EMER, OV-MER and AffectGPT papers; MER2024): the union of the true and predicted labels of one sample is
  grouped by meaning, then scored as sets.
- Published answers of an LLM to the same question, such as openset-synonym.zip of MER2024, are scored without a model.
- Extraction: labels from a description in which the parser finds no list.
- Sentiment of a set of labels, for which MER-UniBench asks Qwen2.5.
- Judge (Emotion-LLaMA paper): clue overlap and label overlap of two descriptions, 1 to 10.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
from affectgpt.metrics.extract import Reading, read_labels
from affectgpt.metrics.faithfulness import CluePair, Matcher, Matches
from affectgpt.metrics.lexicon import split_published_2024
from affectgpt.metrics.sets import Pair, SetScore, sample_score, set_score
from affectgpt.metrics.stats import Statistic, bootstrap_interval, mean_f_statistic
from affectgpt.runtime import InputError, parse_json
from affectgpt.schema import Prediction
from affectgpt.tables import table_errors
from affectgpt.tables.arrays import read_array_folder

GROUPING_VERSION = "1"
EXTRACTION_VERSION = "1"
SENTIMENT_VERSION = "1"
JUDGE_VERSION = "1"
CLUES_VERSION = "1"
_MAX_LITERAL = 100_000  # characters; Python's parser needs much memory for long texts

_GROUPING_PROMPT = """\
You sort emotion words by meaning (task version {version}).
Put words that express the same or nearly the same emotion into one group. Every word belongs to exactly one group. \
Answer with a JSON list of lists and nothing else, for example [["glad", "happy"], ["upset"]].
Words: {words}"""

_EXTRACTION_PROMPT = """\
Below is a description of a person in a video (task version {version}).
List every emotion that it attributes to the person, in the words of the description, as a JSON list of short \
lower-case words or phrases, for example ["angry", "let down"]. \
Answer [] if it names no emotion. Answer with the list only.
Description: {text}"""

_SENTIMENT_PROMPT = """\
The words below describe what a person feels (task version {version}).
Is the feeling as a whole positive, negative or neutral? No words mean neutral. Answer with this one word only.
Words: {words}"""

_CLUES_PROMPT = """\
You compare clues about a person in a video (task version {version}). Which clues of list A say the same as a clue of \
list B, in other words or in more or less detail? Answer with a JSON list of pairs [number in A, number in B] and \
nothing else, for example [[1, 2]]. Answer [] if there is none.
A:
{predicted}
B:
{reference}"""

_JUDGE_PROMPT = """\
You compare a predicted description of a person's emotions with the reference (task version {version}).
Reference: {truth}
Prediction: {prediction}
How much do the two overlap in {aspect}? 1 = nothing in common, 10 = the same. Answer as JSON: \
{{"score": <integer from 1 to 10>, "reason": "<one sentence>"}}"""

JUDGE_ASPECTS = {
    "clue overlap": "the clues they name (face, gestures, voice, words, situation)",
    "label overlap": "the emotions that they attribute to the person",
}


@dataclass(frozen=True)
class LlmGrouping:
    """Set scores under LLM grouping; where an answer is `unparsed` or `missing`, every word is its own group.

    Attributes:
        refused: those of the unparsed answers that the model or its server refused.
        by_sample: precision and recall, [N, 1, 2]; NaN = not scored.
    """

    score: SetScore
    model: str
    prompt_version: str
    n_questions: int
    unparsed: int
    missing: int = 0
    refused: int = 0
    by_sample: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 2)), repr=False, compare=False)

    def intervals(self, *, n_bootstrap: int, seed: int) -> dict[str, tuple[float, float]]:
        """The 95 % bootstrap intervals over samples of `f_score` and `avg`; {} without samples or resamples."""
        statistics: dict[str, Statistic] = {"f_score": mean_f_statistic, "avg": lambda means: means.mean(axis=(-2, -1))}
        found = {}
        for name, statistic in statistics.items():
            interval = bootstrap_interval(self.by_sample, statistic, n_bootstrap=n_bootstrap, seed=seed)
            if interval is not None:
                found[name] = (interval.low, interval.high)
        return found


def _by_sample(pairs: Sequence[Pair]) -> np.ndarray:
    return np.array([sample_score(*pair) or (np.nan, np.nan) for pair in pairs]).reshape(-1, 1, 2)


def group_by_llm(words: Sequence[Sequence[str]], client: ChatClient) -> tuple[list[dict[str, str]], int]:
    """For each list of words: word -> group id; and the number of answers that could not be parsed.

    Words are lower-cased, stripped and sorted, so that the order of labels does not change the question. A word missing
    from the answer is its own group; a word in two groups belongs to the first.
    """
    prepared = [sorted({word.lower().strip() for word in group} - {""}) for group in words]
    asked = [group for group in prepared if len(group) > 1]  # one word needs no grouping
    answers = iter(client.answer([Request(grouping_question(group)) for group in asked], refused_is_empty=True))
    n_unparsed = 0
    maps = []
    for group in prepared:
        mapping = {word: word for word in group}
        if len(group) > 1:
            groups = parse_groups(next(answers).text)
            n_unparsed += groups is None
            seen: set[str] = set()
            for members in groups or ():
                known = [word for word in members if word in mapping and word not in seen]
                mapping.update(dict.fromkeys(known, known[0]) if known else {})
                seen.update(known)
        maps.append(mapping)
    return maps, n_unparsed


def grouping_question(words: Sequence[str]) -> str:
    return _GROUPING_PROMPT.format(version=GROUPING_VERSION, words=json.dumps(list(words), ensure_ascii=False))


def parse_groups(text: str) -> list[list[str]] | None:
    """Parse a list of lists of words, as JSON or as Python writes it; None if there is none.

    >>> parse_groups('Here: [["Glad", "happy"], ["upset"]]'), parse_groups("[['glad'], ['upset']]")
    ([['glad', 'happy'], ['upset']], [['glad'], ['upset']])
    >>> parse_groups("glad and happy") is None
    True
    """
    value = _find_json(text, "[", "]")
    if value is None:
        value = _find_python_list(text)
    if not isinstance(value, list) or not all(isinstance(group, list) for group in value):
        return None
    return [[word.lower().strip() for word in group if isinstance(word, str)] for group in value]


def llm_grouping_score(
    truths: Mapping[str, Sequence[str]], predictions: Mapping[str, Sequence[str]], client: ChatClient
) -> LlmGrouping:
    """Set scores with synonyms grouped by an LLM, sample by sample; a missing prediction is the empty set."""
    pairs = [(list(truth), list(predictions.get(sample_id, ()))) for sample_id, truth in truths.items()]
    n_before = client.n_refused
    maps, n_unparsed = group_by_llm([truth + prediction for truth, prediction in pairs], client)
    mapped = []
    for pair, mapping in zip(pairs, maps, strict=True):
        truth, prediction = ({mapping[w] for word in side if (w := word.lower().strip())} for side in pair)
        mapped.append((truth, prediction))
    return LlmGrouping(
        score=set_score(mapped),
        model=client.name,
        prompt_version=GROUPING_VERSION,
        n_questions=sum(len(mapping) > 1 for mapping in maps),
        unparsed=n_unparsed,
        refused=client.n_refused - n_before,
        by_sample=_by_sample(mapped),
    )


def published_groups(answer: str) -> dict[str, str]:
    """word -> group in an answer that was stored by the code of MER2024, by the rules of that code.

    The text is cut at square brackets and then at quotes. The first word of a group names it; a word in several groups
    belongs to the last.

    >>> published_groups("[['joyful', 'happy'], ['calm'], ['happy']]")
    {'joyful': 'joyful', 'happy': 'happy', 'calm': 'calm'}
    """
    groups: dict[str, str] = {}
    if "[" not in answer:
        return groups
    for inner in re.split(r"[\[\]]", answer):
        words = [word for word in re.split(r"['\"]", inner) if word.strip() not in ("", ",")]
        if inner.strip() not in ("", ","):
            groups.update(dict.fromkeys(words, words[0]) if words else {})
    return groups


def read_stored_answers(path: str | Path) -> dict[str, str]:
    """id -> stored answer, from a folder or zip file of <id>.npy, each with one text (openset-synonym.zip of MER2024).

    Raises:
        InputError: no such folder or file, no .npy file in it, or one with something else.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"llm.groups={path}: no such folder or file")
    with table_errors(path) if path.is_file() else nullcontext():
        answers = dict(read_array_folder(path))
    if not answers or (odd := [name for name, answer in answers.items() if not isinstance(answer, str)]):
        found = f"{odd[0]}.npy holds {type(answers[odd[0]]).__name__}" if answers else "no .npy file"
        raise InputError(f"llm.groups={path}: expected <id>.npy files with one text each, found {found}")
    return answers


def labels_as_published(
    predictions: Iterable[Prediction], labels: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """`labels`, but lists of labels that were given as text are split as in MER2024: stored groups hold such words."""
    return {**labels} | {
        row.id: split_published_2024(row.text)
        for row in predictions
        if row.task == "labels" and row.labels is None and "[" in row.text
    }


def published_grouping_score(
    truths: Mapping[str, Sequence[str]],
    predictions: Mapping[str, Sequence[str]],
    answers: Mapping[str, str],
    *,
    source: str = "published answers",
) -> LlmGrouping:
    """Set scores with the words of each sample grouped by a published answer: id -> text with a list of lists.

    The code of MER2024 scores the samples that have an answer, and stops at one without true labels; here all samples
    with true labels are scored, and those without an answer are counted as `missing`.
    """
    maps = {sample_id: published_groups(answers[sample_id]) for sample_id in truths if sample_id in answers}
    no_words: dict[str, str] = {}

    def groups(sample_id: str, labels: Sequence[str]) -> set[str]:
        mapping = maps.get(sample_id, no_words)
        return {mapping.get(word, word) for word in (label.lower() for label in labels)}

    mapped = [
        (groups(sample_id, truth), groups(sample_id, predictions.get(sample_id, ())))
        for sample_id, truth in truths.items()
    ]
    return LlmGrouping(
        score=set_score(mapped),
        model=source,
        prompt_version="published",
        n_questions=len(maps),
        unparsed=sum(not mapping for mapping in maps.values()),
        missing=len(truths) - len(maps),
        by_sample=_by_sample(mapped),
    )


def sentiment_by_llm(labels: Mapping[str, Sequence[str]], client: ChatClient) -> tuple[dict[str, str | None], int]:
    """id -> positive, negative, neutral, or None for an unreadable answer; and the number of questions.

    Samples with the same labels share a question; without labels, the sentiment is neutral, as the published prompt
    says. The published code samples from Qwen2.5-7B-Instruct at temperature 0.7 with a prompt of its own.
    """
    words = {
        sample_id: tuple(sorted({w for x in found if (w := x.lower().strip())})) for sample_id, found in labels.items()
    }
    asked = list(dict.fromkeys(found for found in words.values() if found))
    replies = client.answer([Request(sentiment_question(found)) for found in asked], refused_is_empty=True)
    read = {found: parse_sentiment(reply.text) for found, reply in zip(asked, replies, strict=True)}
    return {sample_id: read[found] if found else "neutral" for sample_id, found in words.items()}, len(asked)


def sentiment_question(words: Sequence[str]) -> str:
    return _SENTIMENT_PROMPT.format(version=SENTIMENT_VERSION, words=json.dumps(list(words), ensure_ascii=False))


def parse_sentiment(text: str) -> str | None:
    """The only one of positive, negative and neutral in a text; None if there is none or several.

    >>> parse_sentiment("**Positive**."), parse_sentiment("neither positive nor negative")
    ('positive', None)
    """
    found = set(re.findall(r"\b(positive|negative|neutral)\b", text.lower()))
    return found.pop() if len(found) == 1 else None


def extract_by_llm(texts: Mapping[str, str], client: ChatClient) -> dict[str, Reading]:
    """Labels of descriptions; `how` is "llm", "empty" for an empty text, or "nothing" if no labels were found."""
    asked = {sample_id: text for sample_id, text in texts.items() if text.strip()}
    answers = client.answer([Request(extraction_question(text)) for text in asked.values()], refused_is_empty=True)
    readings = dict.fromkeys(texts, Reading((), "empty"))
    for sample_id, answer in zip(asked, answers, strict=True):
        labels = read_labels(answer.text).labels
        readings[sample_id] = Reading(labels, "llm" if labels else "nothing")
    return readings


def extraction_question(text: str) -> str:
    return _EXTRACTION_PROMPT.format(version=EXTRACTION_VERSION, text=text.strip())


def match_by_llm(client: ChatClient) -> Matcher:
    """A matcher for `faithfulness.clue_scores` that asks an LLM which clues say the same.

    An unreadable answer counts as no match; `client` logs all answers.
    """

    def match(pairs: Sequence[CluePair]) -> list[Matches]:
        asked = [pair for pair in pairs if pair.predicted and pair.reference]
        answers = iter(client.answer([Request(clue_question(pair)) for pair in asked], refused_is_empty=True))
        found: list[Matches] = []
        for pair in pairs:
            same = _parse_pairs(next(answers).text, pair) if pair.predicted and pair.reference else frozenset()
            ours, theirs = ({numbers[side] for numbers in same} for side in (0, 1))
            found.append(
                (
                    [n in ours for n in range(1, len(pair.predicted) + 1)],
                    [n in theirs for n in range(1, len(pair.reference) + 1)],
                )
            )
        return found

    return match


def clue_question(pair: CluePair) -> str:
    lists = ["\n".join(f"{n}. {clue}" for n, clue in enumerate(side, 1)) for side in (pair.predicted, pair.reference)]
    return _CLUES_PROMPT.format(version=CLUES_VERSION, predicted=lists[0], reference=lists[1])


def _parse_pairs(text: str, pair: CluePair) -> frozenset[tuple[int, int]]:
    numbers = re.findall(r"\[\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\]", text)
    found = {(int(ours), int(theirs)) for ours, theirs in numbers}
    return frozenset(
        (ours, theirs)
        for ours, theirs in found
        if 1 <= ours <= len(pair.predicted) and 1 <= theirs <= len(pair.reference)
    )


@dataclass(frozen=True)
class Judgement:
    """Mean score of one aspect (1 to 10) over the `n` parsed answers; `refused` are part of the `unparsed` ones."""

    aspect: str
    mean: float | None
    n: int
    unparsed: int
    model: str
    prompt_version: str
    by_id: Mapping[str, int] = field(default_factory=dict, repr=False)
    refused: int = 0


def judge(truths: Mapping[str, str], predictions: Mapping[str, str], client: ChatClient, aspect: str) -> Judgement:
    """Let an LLM rate the overlap of two descriptions in one aspect; samples without a prediction score 1.

    Raises:
        ValueError: an unknown aspect.
    """
    if aspect not in JUDGE_ASPECTS:
        raise ValueError(f"unknown aspect {aspect!r}; expected one of {list(JUDGE_ASPECTS)}")
    present = {key: truth for key, truth in truths.items() if predictions.get(key, "").strip()}
    questions = [Request(judge_question(truth, predictions[key], aspect)) for key, truth in present.items()]
    scores: dict[str, int] = dict.fromkeys(set(truths) - set(present), 1)
    unparsed = 0
    n_before = client.n_refused
    for key, answer in zip(present, client.answer(questions, refused_is_empty=True), strict=True):
        if (score := parse_score(answer.text)) is None:
            unparsed += 1
        else:
            scores[key] = score
    mean = sum(scores.values()) / len(scores) if scores else None
    return Judgement(
        aspect, mean, len(scores), unparsed, client.name, JUDGE_VERSION, scores, client.n_refused - n_before
    )


def judge_question(truth: str, prediction: str, aspect: str) -> str:
    return _JUDGE_PROMPT.format(version=JUDGE_VERSION, truth=truth, prediction=prediction, aspect=JUDGE_ASPECTS[aspect])


def parse_score(text: str) -> int | None:
    """An integer from 1 to 10 from JSON, "Score: 7", "7/10" or a bare number; None for anything else.

    >>> [parse_score(text) for text in ('{"score": 7, "reason": "x"}', "Score: 8.", "9/10", "10", "11", "great")]
    [7, 8, 9, 10, None, None]
    >>> parse_score('{"score": "8"}')
    8
    """
    value = _find_json(text, "{", "}")
    found: Any = value.get("score") if isinstance(value, dict) else None
    if isinstance(found, str) and re.fullmatch(r"[0-9]{1,2}", found):
        found = int(found)
    if found is None:
        named = re.search(r"score\W{0,4}(\d+)\b", text, re.IGNORECASE)
        match = named or re.fullmatch(r"\s*(\d+)\s*(?:/\s*10)?\.?\s*", text)
        found = float(match.group(1)) if match else None  # int() raises on thousands of digits
    return int(found) if not isinstance(found, bool) and found in range(1, 11) else None


def _find_python_list(text: str) -> object:
    """The Python literal between the first and the last square bracket; None if it is not one."""
    start, stop = text.find("["), text.rfind("]")
    if start < 0 or stop < start or stop - start > _MAX_LITERAL:
        return None
    try:
        return ast.literal_eval(text[start : stop + 1])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: a set of lists
        return None


def _find_json(text: str, opening: str, closing: str) -> object:
    """The JSON value between the first opening and the last closing bracket; None if it is not valid."""
    start, stop = text.find(opening), text.rfind(closing)
    if start < 0 or stop < start:
        return None
    try:
        return parse_json(text[start : stop + 1])
    except InputError:
        return None
