"""The steps: each takes one clip and what earlier steps found, and returns parts of its record.

A step is a function `(work, spec, about) -> part`. `about` holds the parts of the steps it needs, put together, and the
part that it returns is put into the record: {"clues": [...]}, {"description": {...}}, {"labels": [...]} ... A step that
has nothing to look at returns {}. Functions without `async` run in a thread. A pipeline names a function of this
module, or "package.module:function" of your own.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from affectgpt.annotate import checks as record_checks
from affectgpt.annotate import evidence, local, prompts
from affectgpt.annotate.annotators import Annotator, Local, Question
from affectgpt.annotate.clips import Clip
from affectgpt.annotate.prompts import BadAnswer
from affectgpt.annotate.record import Annotation, Clue, Fact, Provenance
from affectgpt.annotate.transcribe import Transcriber
from affectgpt.config import StepConfig
from affectgpt.runtime import UserError

StepOutput = dict[str, Any]


class StepFailed(UserError):
    """A step could not be done for one clip, after all that was tried."""


class Dropped(UserError):
    """A clip that holds nothing to annotate; counted by reason, and no failure of the machinery."""


@dataclass
class Work:
    """One clip on its way.

    Attributes:
        lang: language of the prompts and answers.
        annotators: by role.
        usual: what is usual for the speaker, by name of fact.
        notes: what was done, in the order in which it ended.
        calls, repaired: answers asked for now, and answers that had to be asked for again.
    """

    clip: Clip
    lang: str
    annotators: Mapping[str, Annotator]
    transcriber: Transcriber | None = None
    usual: Mapping[str, float] = field(default_factory=dict)
    notes: list[Provenance] = field(default_factory=list)
    calls: int = 0
    repaired: int = 0

    def note_local(self, step: str, model: str, version: str, seconds: float, **parameters: Any) -> None:
        self.notes.append(Provenance(step, model, version, None, parameters, seconds=round(seconds, 3)))


def function_of(spec: StepConfig) -> Callable[..., Any]:
    """The function of a step of a pipeline."""
    name = spec.step or spec.name
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"step {spec.name!r}: {name} cannot be imported ({error})") from error
    if name not in STEPS:
        raise UserError(f"step {spec.name!r}: there is no {name!r}; there are {sorted(STEPS)}, or module:function")
    return STEPS[name]


async def run_step(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Do one step."""
    function = function_of(spec)
    if inspect.iscoroutinefunction(function):
        return await function(work, spec, about)
    return await asyncio.to_thread(function, work, spec, about)


# ---- without a model -------------------------------------------------------------------------------------------------


def measure(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Measured evidence: the voice; action units where OpenFace's table is given; face crops where they are."""
    started, clip = time.monotonic(), work.clip
    facts: list[Fact] = []
    if (units := clip.action_units()) is not None:
        facts += evidence.face_facts(units)
    if (crops := clip.face_crops()) is not None:
        facts += evidence.crop_facts(crops)
    if "sound" in clip.sees:
        sound = clip.sound()
        facts += evidence.sound_facts(sound.samples, sound.rate_hz)
        facts += evidence.speaker_facts(facts, work.usual)
    work.note_local(spec.name, "measured", evidence.VERSION, time.monotonic() - started)
    return {"evidence": facts}


async def transcribe(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """What is said: the subtitle if there is one, else what a speech recogniser hears, else nothing."""
    sample = work.clip.sample
    subtitle = sample.in_language(work.lang, strict=False).subtitle
    if subtitle:
        return {"transcript": subtitle}
    if work.transcriber is None or "sound" not in work.clip.sees:
        return {}
    row, is_new = await work.transcriber.answer(spec.name, work.clip, sample.lang)
    work.calls += is_new
    parameters = {"language": sample.lang}
    work.notes.append(
        Provenance(spec.name, row["model"], None, None, parameters, row["tokens_in"], row["tokens_out"], row["seconds"])
    )
    return {"transcript": row["text"].strip()} if row["text"].strip() else {}


# ---- questions -------------------------------------------------------------------------------------------------------


async def ask(
    work: Work,
    spec: StepConfig,
    about: StepOutput,
    prompt: str,
    *,
    shows: Mapping[str, Mapping[str, Any]] | None = None,
    lang: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Ask the step's annotator; an answer of the wrong form is objected to once.

    Returns:
        the fields of the answer ({} = the local annotator has nothing to say) and the name of the model.

    Raises:
        StepFailed: the second answer has the wrong form too.
    """
    annotator, lang, shows = _annotator(work, spec), lang or work.lang, shows or {}
    if isinstance(annotator, Local):
        started = time.monotonic()
        values = local.answer(prompt, lang, about)
        work.note_local(spec.name, local.NAME, local.VERSION, time.monotonic() - started, lang=lang)
        return values, local.NAME
    if unseen := sorted(set(shows) - annotator.sees):
        raise UserError(
            f"step {spec.name!r} shows {unseen}, but annotator {spec.annotator!r} ({annotator.name}) sees only "
            f"{sorted(annotator.sees)}; choose another with annotator@{spec.annotator}=, such as local, or, if "
            f"the model "
            f"does take them, say so: annotator.sees=[images,sound]"
        )
    text = prompts.render(prompt, lang, about, structured=annotator.structured)
    question = Question(spec.name, text, prompts.schema(prompt, about, lang), work.clip, shows)
    for attempt in range(2):
        row, is_new = await annotator.answer(question)
        work.calls += is_new
        parameters = {"lang": lang, **annotator.parameters(), **({"repair": True} if attempt else {})}
        if shows:
            parameters["shows"] = {name: dict(sampling) for name, sampling in shows.items()}
        work.notes.append(
            Provenance(
                spec.name,
                annotator.name,
                prompts.VERSION,
                prompts.sha256(text),
                parameters,
                row["tokens_in"] or 0,
                row["tokens_out"] or 0,
                row["seconds"],
            )
        )
        try:
            return prompts.parse(prompt, row["text"], about, lang, structured=annotator.structured), annotator.name
        except BadAnswer as error:
            if attempt:
                raise StepFailed(f"no usable answer of {annotator.name} in two attempts: {error}") from None
            work.repaired += 1
            question = replace(question, turns=((row["text"], prompts.repair(error, lang)),))
    raise AssertionError("unreachable")


def _annotator(work: Work, spec: StepConfig) -> Annotator:
    if spec.annotator not in work.annotators:
        raise UserError(f"step {spec.name!r}: annotator {spec.annotator!r} is none of {sorted(work.annotators)}")
    return work.annotators[spec.annotator]


async def visual(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Visual clues: frames of the beginning, middle and end. options: n_frames (3)."""
    if "images" not in work.clip.sees:
        return {}
    shows = {"images": {"n_frames": int(spec.options.get("n_frames", 3))}}
    values, model = await ask(work, spec, about, spec.prompt or "visual", shows=shows)
    return await asyncio.to_thread(_visual_clues, work.clip, values, model, shows["images"]["n_frames"])


def _visual_clues(clip: Clip, values: Mapping[str, Any], model: str, n_frames: int) -> StepOutput:
    if not values:
        return {}
    names = tuple(values.get("evidence", ()))
    if "clue" in values:
        return {"clues": [Clue("visual", values["clue"], source=model, evidence=names)]}
    clues = []
    times = clip.frames(n_frames).times_s
    thirds = [part for part in _three(list(times)) if part]
    for key, part in zip(("beginning", "middle", "end"), thirds, strict=False):
        if text := values.get(key):
            span = round(float(part[0]), 3), round(float(part[-1]), 3)
            clues.append(Clue("visual", text, *span, source=model, evidence=names))
    told = {clue.text for clue in clues}
    # With one or two frames there are fewer parts than texts: what was said of the rest stands without a time.
    rest = [values[key] for key in ("beginning", "middle", "end") if values.get(key) and values[key] not in told]
    return {"clues": clues + [Clue("visual", text, source=model, evidence=names) for text in rest]}


def _three(items: list[Any]) -> list[list[Any]]:
    edges = [round(len(items) * part / 3) for part in range(4)]
    return [items[start:stop] for start, stop in itertools.pairwise(edges)]


async def peak(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """A sober description of the frame at which the face moves most; needs action units."""
    times = [fact.value for fact in about.get("evidence", ()) if fact.name == "peak_s"]
    if not times:
        raise Dropped("no peak frame: no OpenFace table, or no face tracked")
    values, model = await ask(
        work, spec, about, spec.prompt or "peak", shows={"images": {"n_frames": 1, "at_s": times[0]}}
    )
    if not values:
        return {}
    clue = Clue("visual", values["clue"], times[0], times[0], model, tuple(values.get("evidence", ())))
    return {"clues": [clue]}


async def acoustic(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """How the voice sounds."""
    if "sound" not in work.clip.sees:
        return {}
    values, model = await ask(work, spec, about, spec.prompt or "acoustic", shows={"sound": {}})
    if not values:
        return {}
    return {"clues": [Clue("acoustic", values["clue"], source=model, evidence=tuple(values.get("evidence", ())))]}


async def disambiguate(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """What the words mean, given what was seen and heard."""
    if not about.get("transcript"):
        return {}
    values, model = await ask(work, spec, _plain(about), spec.prompt or "disambiguate")
    return {"clues": [Clue("lexical", values["clue"], source=model)]} if values else {}


async def merge(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """One description out of clues, words and measured facts (or, in s2, out of a description and the words)."""
    if not about.get("clues") and not about.get("description"):
        raise Dropped("no clue: nothing was seen, heard or said that could be described")
    if about.get("description") and not about.get("transcript"):
        return {}  # s2 without words: the description stays as it is
    return await _description(work, spec, about, "merge")


async def rewrite(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The description as reasoning."""
    return await _description(work, spec, about, "rewrite")


async def _description(work: Work, spec: StepConfig, about: StepOutput, prompt: str) -> StepOutput:
    values, _ = await ask(work, spec, _plain(about), spec.prompt or prompt)
    if not values:
        raise Dropped("no evidence: nothing was measured from which a description could be made")
    return {"description": {work.lang: values["description"]}}


def join(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The clues and the words, one behind the other: MERR's coarse caption, without any model."""
    texts = [clue.text.rstrip(".。") for clue in about.get("clues", ())]
    if about.get("transcript"):
        texts.append(local.says(about["transcript"], work.lang))
    if not texts:
        raise Dropped("no clue: nothing was seen, heard or said that could be described")
    work.note_local(spec.name, "template", prompts.VERSION, 0.0)
    return {"description": {work.lang: (". " if work.lang == "en" else "。").join(texts)}}


async def translate(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The description in the other language."""
    target = prompts.other_language(work.lang)
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "translate", lang=target)
    return {"description": {target: values["translation"]}} if values else {}


async def labels(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Open-vocabulary labels that the description supports. options: read = translation: the one in the other language;
    the labels are in the language of the work all the same."""
    if spec.options.get("read") == "translation":
        other = prompts.other_language(work.lang)
        if other not in about.get("description", {}):
            return {}
        about = {**about, "description": {work.lang: about["description"][other]}}
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "labels")
    confidence = {"confidence": values["confidence"]} if "confidence" in values else {}
    return {"labels": values["labels"], **confidence} if values else {}


async def ranking(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Words of a fixed set, the best first."""
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "ranking")
    return {"ranking": values["ranking"]} if values else {}


async def valence(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """How pleasant the feeling is, -5 to 5."""
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "valence")
    return {"valence": values["valence"]} if values else {}


async def explain(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """One multimodal model explains the clip. options: n_frames (8), subtitle (false: strategy S0)."""
    annotator = _annotator(work, spec)
    seen = {name for name in ("images", "sound") if name in work.clip.sees and name in annotator.sees}
    if not seen:
        raise Dropped(f"nothing to show: the clip holds {sorted(work.clip.sees)}")
    shows = {"images": {"n_frames": int(spec.options.get("n_frames", 8))}, "sound": {}}
    told = about if spec.options.get("subtitle", False) else {**about, "transcript": None}
    values, _ = await ask(
        work, spec, told, spec.prompt or "explain", shows={name: shows[name] for name in shows if name in seen}
    )
    if not values:
        raise Dropped("no evidence: nothing was measured from which a description could be made")
    return {"description": {work.lang: values["description"]}, "labels": values.get("labels", [])}


def checks(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """What is wrong with what the steps before found. options: policy = {check: keep | ask | drop}."""
    started, clip = time.monotonic(), work.clip
    media = {name: path for name in ("video", "audio", "face") if (path := getattr(clip.sample, name))}
    parts = {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}
    record = Annotation(clip.sample.id, clip.sha256, media=media, lang=work.lang, provenance=tuple(work.notes), **parts)
    policy = record_checks.policy_of(spec.options.get("policy", {}))
    rows = record_checks.rows_of(record_checks.check_record(record, clip.sees), policy)
    work.note_local(spec.name, "rules", record_checks.VERSION, time.monotonic() - started)
    return {"checks": list(rows)}


def _plain(about: StepOutput) -> StepOutput:
    """`about` with clues as mappings, as prompts read them."""
    return {
        **about,
        "clues": [{"modality": clue.modality, "text": clue.text} for clue in about.get("clues", ())],
    }


STEPS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(measure, transcribe, visual, peak, acoustic, disambiguate, merge, rewrite, join, translate),
        *(labels, ranking, valence, explain, checks),
    )
}
