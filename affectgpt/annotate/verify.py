"""The blind verifier: a model that is shown the clues alone names emotions, which are compared with the labels.

It is a step of a pipeline (`{name: verify, step: "affectgpt.annotate.verify:verify", needs: [...]}`), answered by the
text annotator. The record's checks get its labels and their agreement with the record's on the emotion wheels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from affectgpt.annotate.steps import StepOutput, Work, annotator_of, ask
from affectgpt.config import StepConfig
from affectgpt.metrics.lexicon import load_lexicon
from affectgpt.metrics.sets import harmonic_mean
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping, score_samples

AGREES_FROM = 0.34
"""Mean F over the wheels from which labels count as confirmed; a third: one of three labels is named again."""


async def verify(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Ask for labels from the clues alone and compare. options: agrees_from (0.34).

    The local annotator reads no clues, so with it this step does nothing.
    """
    if not about.get("labels") or not about.get("clues") or not annotator_of(work, spec).asks_model:
        return {}
    clues = [{"modality": clue.modality, "text": clue.text} for clue in about["clues"]]
    values, model = await ask(work, spec, {"clues": clues}, spec.prompt or "verify")
    score = wheel_f(about["labels"], values["labels"])
    row = {
        "check": "blind_verifier",
        "verdict": "keep" if score is None or score >= float(spec.options.get("agrees_from", AGREES_FROM)) else "ask",
        "reason": f"{model} read from the clues: {', '.join(values['labels'])}",
        "labels": ", ".join(values["labels"]),
        "score": "" if score is None else f"{score:.3f}",
    }
    return {"checks": [row]}


def wheel_f(truth: Sequence[str], predicted: Sequence[str]) -> float | None:
    """Mean F of the two label sets over the inner circles of the five emotion wheels (M3-Wk-L1); 0 to 1.

    None if the wheels list no word of `truth`.

    >>> wheel_f(["sad", "tired"], ["sorrowful"]), wheel_f(["neutral"], ["sad"])
    (0.933333, None)
    """
    scores = score_samples([truth], [predicted], _grouping(), LEVEL1)[0]
    known = scores[~np.isnan(scores[:, 0])]
    if not len(known):
        return None
    return round(sum(harmonic_mean(float(p), float(r)) for p, r in known) / len(known), 6)


@lru_cache(maxsize=1)
def _grouping() -> WheelGrouping:
    return WheelGrouping(load_lexicon("builtin"))
