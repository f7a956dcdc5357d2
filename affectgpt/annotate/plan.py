"""What a run would call, how often and at what cost; nothing is called and nothing is written.

Calls are counted exactly from what the clips hold; an answer that may have to be asked for again is not in it. Tokens
are the mean of what this folder's answers to the same step have used, or, before there are any, an estimate from the
prompt, the settings `tokens_per_image` and `tokens_per_second`, and the usual length of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from affectgpt.annotate import prompts
from affectgpt.annotate.annotators import estimate_tokens
from affectgpt.annotate.clips import Clips, files_of, media_sha256, openface_of
from affectgpt.annotate.pipeline import annotators_of
from affectgpt.annotate.store import Store
from affectgpt.config import AnnotateConfig, AnnotatorConfig, StepConfig
from affectgpt.data.sources import probe_sample
from affectgpt.media import probe
from affectgpt.runtime import UserError
from affectgpt.schema import Sample

_NEEDS = {"visual": "images", "peak": "images", "acoustic": "sound", "disambiguate": "transcript", "explain": "any"}


@dataclass
class Line:
    """One step of the plan; `tokens_in` and `tokens_out` are of one call."""

    step: str
    model: str
    calls: int
    answered: int
    tokens_in: float
    tokens_out: float
    measured: bool
    cost: float | None


def plan(
    config: AnnotateConfig, samples: Sequence[Sample], annotators: Mapping[str, AnnotatorConfig], store: Store | None
) -> tuple[list[Line], int, int]:
    """The lines of the plan, the number of clips that are complete, and of those that cannot be read."""
    asked = {spec.name: 0 for spec in config.pipeline.steps}
    answered = dict(asked)
    n_complete = n_unreadable = 0
    sound_s: list[float] = []
    for sample in tqdm(samples, "looking at clips", leave=False, delay=1):
        try:
            sample = probe_sample(sample)
            files = list(files_of(sample, openface_of(sample, config.openface)))
            sha256 = media_sha256(files, store.hashes) if store else ""
        except UserError:
            n_unreadable += 1
            continue
        if "audio" in (sample.modalities or ()) and len(sound_s) < 200:  # a mean needs no more
            sound_s.append(probe(sample.audio or sample.video or "").duration_s or 0.0)
        # Without the record's key at hand, a clip counts as complete if its newest record is of the same files.
        row = store.records.latest(sample.id) if store else None
        n_complete += row is not None and row["media_sha256"] == sha256
        for spec in config.pipeline.steps:
            if annotators[spec.annotator].kind == "local" or not _applies(spec, sample, config):
                continue
            known = bool(store and store.answered(sha256, spec.name, annotators[spec.annotator].model or ""))
            answered[spec.name] += known
            asked[spec.name] += not known
    mean_s = sum(sound_s) / len(sound_s) if sound_s else 0.0
    lines = []
    for spec in config.pipeline.steps:
        annotator = annotators[spec.annotator]
        if not _asks(spec) or annotator.kind == "local":
            continue
        used = store.by_call.get((spec.name, annotator.model or "")) if store else None
        n, tokens_in, tokens_out = used or (0, 0, 0)
        each = (tokens_in / n, tokens_out / n) if n else _estimate(spec, annotator, config, mean_s)
        cost = None
        if annotator.price_in is not None and annotator.price_out is not None:
            cost = asked[spec.name] * (each[0] * annotator.price_in + each[1] * annotator.price_out) / 1e6
        model = annotator.model or "?"
        lines.append(Line(spec.name, model, asked[spec.name], answered[spec.name], *each, bool(n), cost))
    return lines, n_complete, n_unreadable


def _asks(spec: StepConfig) -> bool:
    """Whether a step asks an annotator: it has a prompt. A step of your own that asks says which one it takes."""
    return (spec.prompt or spec.step or spec.name) in prompts.PROMPTS


def _applies(spec: StepConfig, sample: Sample, config: AnnotateConfig) -> bool:
    """Whether a step would ask about this clip."""
    step = spec.step or spec.name
    if not _asks(spec):
        return False
    has = sample.modalities or ()
    speaks = bool(sample.in_language(config.lang, strict=False).subtitle or (config.transcriber and "audio" in has))
    there = {"images": "frames" in has, "sound": "audio" in has, "transcript": speaks, "any": bool(has)}
    return there.get(_NEEDS.get(step, ""), True)


def _estimate(
    spec: StepConfig, annotator: AnnotatorConfig, config: AnnotateConfig, sound_s: float
) -> tuple[float, float]:
    """Tokens of one call before any was made."""
    step = spec.step or spec.name
    prompt = prompts.PROMPTS[spec.prompt or step]
    lang = prompts.other_language(config.lang) if step == "translate" else config.lang
    n_in = estimate_tokens(prompts.render(spec.prompt or step, lang, {}))
    usual = {"evidence": 150, "clues": 250, "description": 200, "transcript": 20}
    n_in += sum(usual[part.partition(":")[0]] for part in prompt.gives)
    if _NEEDS.get(step) in ("images", "any"):
        n_in += annotator.tokens_per_image * (1 if step == "peak" else spec.options.get("n_frames", 3))
    if _NEEDS.get(step) in ("sound", "any") and "sound" in annotator.sees:
        n_in += round(annotator.tokens_per_second * sound_s)
    return float(n_in), prompt.n_words * 1.4 + 10


def print_plan(config: AnnotateConfig, clips: Clips) -> int:
    """Print the table; exit code 0."""
    samples, annotators = [item for item in clips if isinstance(item, Sample)], annotators_of(config)
    out = Path(config.out) if config.out else None
    store = Store(out) if out and (out / "store" / "answers.jsonl").is_file() else None
    try:
        lines, n_complete, n_unreadable = plan(config, samples, annotators, store)
    finally:
        if store:
            store.close()
    print(f"{len(samples)} clips, pipeline {config.pipeline.name}; nothing is called")
    if n_unreadable:
        print(f"{n_unreadable} clips cannot be read and would be named as failed")
    if n_complete:
        print(f"{n_complete} clips have a record of these files already")
    if not lines:
        print("no model is asked: every step is measured or answered by the local annotator; cost 0")
        return 0
    print(f"{'step':<14}{'model':<34}{'to call':>8}{'answered':>10}{'tokens in':>11}{'out':>7}{'cost':>12}")
    for line in lines:
        mark = "" if line.measured else "~"
        cost = "no price" if line.cost is None else f"{mark}{line.cost:.2f}"
        tokens = f"{f'{mark}{line.tokens_in:.0f}':>11}{f'{mark}{line.tokens_out:.0f}':>7}"
        print(f"{line.step:<14}{line.model[:32]:<34}{line.calls:>8}{line.answered:>10}{tokens}{cost:>12}")
    calls = sum(line.calls for line in lines)
    n_in = sum(line.calls * line.tokens_in for line in lines)
    n_out = sum(line.calls * line.tokens_out for line in lines)
    priced = [line.cost for line in lines if line.cost is not None]
    total = f", cost {sum(priced):.2f}" if len(priced) == len(lines) else ""
    print(f"in all {calls} calls, {n_in:,.0f} tokens in, {n_out:,.0f} out{total}; tokens are of one call")
    if not all(line.measured for line in lines):
        print("~ estimated; where a step has answers in this folder, their mean is used")
    if len(priced) < len(lines):
        print("no price: set price_in and price_out (per million tokens) of the annotator from your price list")
    return 0
