"""Pairs of answers to one prompt, of which the first is better: judged by people, or made from the clues of a clip.

A pair is made by changing one clause of the true description that states a clue: it is left out ("deleted"), or a clue
of the same modality from another clip, which has none of the same labels, takes its place ("contradicted"). Which
clause and which clip is a function of the seed and the clip, so every process and every pass makes the same pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from affectgpt.clauses import join
from affectgpt.data.stream import Draw
from affectgpt.prompts import target_clauses, target_text
from affectgpt.schema import CLUES, Clause, Sample

KINDS = ("deleted", "contradicted")


@dataclass(frozen=True)
class Pair:
    """Two answers.

    Attributes:
        made: how `rejected` was made, "deleted" or "contradicted"; None = people preferred `chosen`.
        clause: the clause of `chosen` that was changed.
    """

    chosen: str
    rejected: str
    made: str | None = None
    clause: str | None = None


class PairMaker:
    """Makes the pair of each draw.

    Args:
        samples: whose clues may contradict those of others.
        kinds: how pairs are made for samples without `rejected`.
    """

    def __init__(self, samples: Iterable[Sample], langs: Collection[str], kinds: Sequence[str], seed: int) -> None:
        self._kinds, self._seed = list(kinds), seed
        self._clues: dict[tuple[str, str], list[tuple[str, frozenset[str], Clause]]] = {}
        if "contradicted" in kinds:
            for sample in samples:
                for lang in langs:
                    if not sample.in_language(lang, strict=False).description:
                        continue
                    labels = _labels(sample)
                    for clause in target_clauses(sample, lang):
                        if clause.modality in CLUES:
                            self._clues.setdefault((lang, clause.modality), []).append((sample.id, labels, clause))

    def pair(self, draw: Draw) -> Pair | None:
        """The pair of a draw; None if the sample has none and its description has no clue to change."""
        sample, lang = draw.sample, draw.lang
        if sample.rejected is not None:
            other = replace(sample, description=sample.rejected, clauses=None, rejected=None)
            chosen, rejected = (
                target_text(each, draw.task, lang, None, draw.prompt_format) for each in (sample, other)
            )
            return Pair(chosen, rejected)
        clauses = target_clauses(sample, lang, draw.clues)
        places = [place for place, clause in enumerate(clauses) if clause.modality in CLUES]
        if not places or not self._kinds:
            return None
        number = int.from_bytes(
            hashlib.blake2b(f"{self._seed} {sample.id} {lang}".encode(), digest_size=8).digest(), "big"
        )
        place = places[number % len(places)]
        first = (number >> 16) % len(self._kinds)
        for kind in self._kinds[first:] + self._kinds[:first]:
            new = [] if kind == "deleted" else self._contradiction(sample, lang, clauses[place], number >> 24)
            if new is None or (kind == "deleted" and len(clauses) == 1):
                continue
            changed = (*clauses[:place], *new, *clauses[place + 1 :])
            return Pair(self._text(draw, clauses), self._text(draw, changed), kind, clauses[place].text)
        return None

    def _text(self, draw: Draw, clauses: Sequence[Clause]) -> str:
        """The target with these clauses; labels are those of the true target, so that only the clues differ."""
        sample = draw.sample.in_language(draw.lang)
        changed = replace(sample, description=join(clauses, draw.lang), clauses=tuple(clauses), labels=draw.labels)
        return target_text(changed, draw.task, draw.lang, None, draw.prompt_format)

    def _contradiction(self, sample: Sample, lang: str, clause: Clause, number: int) -> list[Clause] | None:
        """A clue of the same modality from another clip without a common label."""
        found = self._clues.get((lang, clause.modality), [])
        labels = _labels(sample)
        for step in range(len(found)):
            name, others, other = found[(number + step) % len(found)]
            if name != sample.id and other.text != clause.text and not labels & others:
                return [other]
        return None


def _labels(sample: Sample) -> frozenset[str]:
    return frozenset(label.strip().lower() for label in sample.labels or (sample.label or "",))
