"""Probes on clues: does a model find what is in a clip more likely than what is in another one?

POPE asks yes/no questions about objects that are or are not in an image. A model that only explains does not answer
questions, so here each probe is a pair of clauses of one modality, the clip's own and that of a clip with other
emotions, and the model's choice is the clause with the higher log-probability per token. The same without that modality
shows what it guesses from the rest: a model that looks is right with the modality and near chance without it. Systems
that answer questions are scored by `metrics.reasoning.probe_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from affectgpt.cache.reader import ClipReader
from affectgpt.clauses import BRANCHES, fit, shown_clues, split
from affectgpt.config import QuestionConfig
from affectgpt.inference.attribution import encode_answer, encoder_states, log_probs
from affectgpt.inference.prediction import shown_modalities
from affectgpt.metrics.stats import Rate
from affectgpt.schema import CLUES, Clause, Sample


def probe_clues(
    model: Any,
    processor: Any,
    reader: ClipReader,
    samples: Sequence[Sample],
    references: Mapping[str, str | Sequence[Clause]],
    others: Mapping[str, str],
    question: QuestionConfig,
) -> dict[str, dict[str, Rate]]:
    """Share of pairs in which the clip's own clause is more likely: modality -> {"shown", "hidden"} -> rate.

    Args:
        references: id -> description or clauses in the language of the question.
        others: id -> id of the clip that gives the false clause; pairs of equal clauses are left out.
    """
    question = replace(question, task="description")
    counts = {name: {"shown": [0, 0], "hidden": [0, 0]} for name in CLUES}
    for sample in samples:
        own, other = (_clues(references.get(key), question.lang) for key in (sample.id, others[sample.id]))
        pairs = {name: (own[name], other[name]) for name in own.keys() & other.keys() if own[name] != other[name]}
        if not pairs:
            continue
        shown = processor.visible(shown_modalities(sample, model.modalities, question))
        states = encoder_states(model, processor, reader(sample, shown).media)
        subtitle = question.use_subtitle and bool(sample.in_language(question.lang, strict=False).subtitle)
        known = shown_clues(states, subtitle=subtitle)
        for name in sorted(pairs.keys() & known):
            rest = {key: value for key, value in states.items() if key not in BRANCHES.get(name, ())}
            for case, inputs in (("shown", states), ("hidden", rest)):
                words = subtitle and (case == "shown" or name != "lexical")
                rows = [encode_answer(processor, sample, inputs, text, question, words) for text in pairs[name]]
                with torch.no_grad():
                    right, wrong = (float(log_probs(model, processor, row).mean()) for row in rows)
                counts[name][case][0] += right > wrong
                counts[name][case][1] += 1
    return {name: {case: Rate(*count) for case, count in cases.items()} for name, cases in counts.items()}


def _clues(reference: str | Sequence[Clause] | None, lang: str) -> dict[str, str]:
    """Clue modality -> the first clause of it."""
    clauses = split(reference, lang) if isinstance(reference, str) else fit(reference or (), CLUES)
    return {clause.modality: clause.text for clause in reversed(clauses) if clause.modality in CLUES}
