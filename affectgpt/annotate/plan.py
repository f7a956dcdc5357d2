"""The plan of a run: how many calls it would make and what they would cost; no model is asked, nothing is written.

Calls are counted exactly from the media of the clips; answers that must be requested again are not included. Tokens are
the mean of this folder's answers to the same step, or, without any, an estimate from the prompt, the settings
`tokens_per_image` and `tokens_per_second`, and the usual length of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from affectgpt.annotate import prompts
from affectgpt.annotate.annotators import annotator_class, estimate_tokens
from affectgpt.annotate.clips import Clips, files_of, media_sha256, openface_of
from affectgpt.annotate.pipeline import annotators_of
from affectgpt.annotate.steps import needs_openface
from affectgpt.annotate.store import Store
from affectgpt.config import AnnotateConfig, AnnotatorConfig, StepConfig
from affectgpt.data.sources import probe_sample
from affectgpt.media import probe
from affectgpt.runtime import UserError
from affectgpt.schema import Sample, hears_other
from affectgpt.tables import format_table

_NEEDS = {"visual": "images", "peak": "images", "acoustic": "sound", "disambiguate": "transcript", "explain": "any"}
_USUAL_TOKENS = {"evidence": 150, "clues": 250, "description": 200, "transcript": 20}
"""Of the parts of a record that a question contains."""
_MAX_DURATIONS = 200
"""Clips whose duration is read: their mean is accurate enough."""


@dataclass
class PlannedStep:
    """The calls of one step; `tokens_in` and `tokens_out` are of one call.

    Attributes:
        calls, answered: calls to make, and answers that the folder has already.
        measured: whether the tokens are a mean of answers; else they are estimated.
        cost: of all calls, in the currency of the prices; None = no prices.
    """

    step: str
    model: str
    calls: int
    answered: int
    tokens_in: float
    tokens_out: float
    measured: bool
    cost: float | None

    def cells(self) -> list[str]:
        """The row of the table."""
        mark = "" if self.measured else "~"
        cost = "no price" if self.cost is None else f"{mark}{self.cost:.2f}"
        tokens = f"{mark}{self.tokens_in:.0f}", f"{mark}{self.tokens_out:.0f}"
        return [self.step, self.model[:32], str(self.calls), str(self.answered), *tokens, cost]


def plan_calls(
    config: AnnotateConfig, samples: Sequence[Sample], annotators: Mapping[str, AnnotatorConfig], store: Store | None
) -> tuple[list[PlannedStep], int, int]:
    """The calls of each step that asks a model, the number of complete clips, and of unreadable ones."""
    asking = [spec for spec in config.pipeline.steps if _has_prompt(spec)]
    asking = [spec for spec in asking if annotator_class(annotators[spec.annotator].kind).asks_model]
    needs_table = needs_openface(config)
    n_calls = {spec.name: 0 for spec in asking}
    n_answered = dict(n_calls)
    n_complete = n_unreadable = 0
    durations_s: list[float] = []
    for sample in tqdm(samples, "reading clips", leave=False, delay=1):
        try:
            sample = probe_sample(sample)
            sha256 = (
                media_sha256(list(files_of(sample, openface_of(sample, config.openface))), store.hashes)
                if store
                else ""
            )
            if "audio" in (sample.modalities or ()) and len(durations_s) < _MAX_DURATIONS:
                durations_s.append(probe(sample.audio or sample.video or "").duration_s or 0.0)
        except UserError:
            n_unreadable += 1
            continue
        # The record's key depends on more than the plan knows: a newest record of the same files counts as complete.
        row = store.records.latest(sample.id) if store else None
        n_complete += row is not None and row["media_sha256"] == sha256
        is_dropped = needs_table and openface_of(sample, config.openface) is None
        for spec in asking:
            if _applies(spec, sample, config) and not is_dropped:
                known = bool(store and store.answered(sha256, spec.name, annotators[spec.annotator].model or ""))
                n_answered[spec.name] += known
                n_calls[spec.name] += not known
    mean_s = sum(durations_s) / len(durations_s) if durations_s else 0.0
    planned = []
    for spec in asking:
        annotator, n = annotators[spec.annotator], n_calls[spec.name]
        n_used, used_in, used_out = (store.by_call.get((spec.name, annotator.model or "")) if store else None) or (
            0,
            0,
            0,
        )
        if n_used:
            tokens_in, tokens_out = used_in / n_used, used_out / n_used
        else:
            tokens_in, tokens_out = _estimate(spec, annotator, config, mean_s)
        cost = None
        if annotator.price_in is not None and annotator.price_out is not None:
            cost = n * (tokens_in * annotator.price_in + tokens_out * annotator.price_out) / 1e6
        model = annotator.model or "?"
        planned.append(
            PlannedStep(spec.name, model, n, n_answered[spec.name], tokens_in, tokens_out, bool(n_used), cost)
        )
    return planned, n_complete, n_unreadable


def _has_prompt(spec: StepConfig) -> bool:
    """Whether a step asks an annotator. A step of your own that asks must name its prompt in the pipeline."""
    return (spec.prompt or spec.step or spec.name) in prompts.PROMPTS


def _applies(spec: StepConfig, sample: Sample, config: AnnotateConfig) -> bool:
    """Whether a step would ask about this clip."""
    has = sample.modalities or ()
    speaks = bool(sample.in_language(config.lang, strict=False).subtitle or (config.transcriber and "audio" in has))
    there = {
        "images": "frames" in has,
        "sound": "audio" in has and not hears_other(sample.person),
        "transcript": speaks,
        "any": bool(has),
    }
    return there.get(_NEEDS.get(spec.step or spec.name, ""), True)


def _estimate(
    spec: StepConfig, annotator: AnnotatorConfig, config: AnnotateConfig, sound_s: float
) -> tuple[float, float]:
    """Estimated (input, output) tokens of one call."""
    step = spec.step or spec.name
    name = spec.prompt or step
    prompt = prompts.PROMPTS[name]
    lang = prompts.other_language(config.lang) if step == "translate" else config.lang
    n_in = estimate_tokens(prompts.render_question(name, lang, {}))
    n_in += sum(_USUAL_TOKENS[part.partition(":")[0]] for part in prompt.gives)
    if _NEEDS.get(step) in ("images", "any"):
        n_in += annotator.tokens_per_image * (1 if step == "peak" else spec.options.get("n_frames", 3))
    if _NEEDS.get(step) in ("sound", "any") and "sound" in annotator.sees:
        n_in += round(annotator.tokens_per_second * sound_s)
    return float(n_in), prompt.n_words * 1.4 + 10


def print_plan(config: AnnotateConfig, clips: Clips) -> int:
    """Print the plan; exit code 0."""
    samples = [item for item in clips if isinstance(item, Sample)]
    out = Path(config.out) if config.out else None
    store = Store(out) if out and (out / "store" / "answers.jsonl").is_file() else None
    try:
        planned, n_complete, n_unreadable = plan_calls(config, samples, annotators_of(config), store)
    finally:
        if store:
            store.close()
    print(f"{len(samples)} clips, pipeline {config.pipeline.name}; no model is asked")
    if n_unreadable:
        print(f"{n_unreadable} clips cannot be read and would fail")
    if n_complete:
        print(f"{n_complete} clips have a record of these files already")
    if not planned:
        print("all steps are measured or answered by the local annotator; cost 0")
        print("next: the same command without plan=true")
        return 0
    head = ["step", "model", "to call", "answered", "tokens in", "out", "cost"]
    print(format_table([head, *(step.cells() for step in planned)], "ll"))
    n_calls = sum(step.calls for step in planned)
    n_in = sum(step.calls * step.tokens_in for step in planned)
    n_out = sum(step.calls * step.tokens_out for step in planned)
    priced = [step.cost for step in planned if step.cost is not None]
    cost = f", cost {sum(priced):.2f}" if len(priced) == len(planned) else ""
    print(f"total: {n_calls} calls, {n_in:,.0f} tokens in, {n_out:,.0f} out{cost}; the table shows tokens per call")
    if not all(step.measured for step in planned):
        print("~ estimated; for steps with answers in this folder, their mean is used")
    if len(priced) < len(planned):
        print("no price: set price_in and price_out (per million tokens) of the annotator from your price list")
    print("next: the same command without plan=true")
    return 0
