"""The steps of pipelines: each takes one clip and the output of earlier steps, and returns fields of the clip's record.

A step is a function `(work, spec, about) -> StepOutput`. `about` is the merged output of the steps that it needs; what
it returns is merged into the record: {"clues": [...]}, {"description": {...}}, {"labels": [...]} ... A step without
input returns {}. Functions that are not `async` run in a thread. A pipeline names a function of this module, or
"package.module:function" of your own.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from affectgpt.annotate import checks as record_checks
from affectgpt.annotate import evidence, face, local, prompts, sound
from affectgpt.annotate.annotators import Annotator, Question, named_object
from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.prompts import BadAnswer
from affectgpt.annotate.record import Annotation, Clue, Fact, Provenance
from affectgpt.annotate.transcribe import Transcriber
from affectgpt.annotate.words import WORD_FACTS, Word, word_facts
from affectgpt.chat.completion import REFUSED
from affectgpt.config import AnnotateConfig, StepConfig
from affectgpt.media.faces.tracks import ABSENT
from affectgpt.runtime import UserError, redacted
from affectgpt.schema import hears_other

StepOutput = dict[str, Any]
"""Fields of `Annotation`, lists in place of tuples."""

NO_CLUE = "no clue: nothing was seen, heard or said that could be described"
NO_EVIDENCE = "no evidence: nothing was measured from which a description could be made"
_NOBODY = ("face_tracked_share", *face.NOT_TOLD, "speech_s", "music_like_share")

NO_PEAK = "no peak frame: no face is seen, or it does not move"


class StepFailed(UserError):
    """A step has no usable answer for one clip, after all attempts; `kind` is the reason under which it is counted."""

    def __init__(self, message: str, kind: str = "unusable answer") -> None:
        super().__init__(message)
        self.kind = kind


class Dropped(UserError):
    """A clip without content to annotate; counted by reason, separately from failures."""


@dataclass
class Work:
    """One clip being annotated.

    Attributes:
        lang: language of the prompts and answers.
        annotators: by role.
        usual: the speaker's usual values, by name of fact.
        notes: provenance of the steps, in the order in which they ended.
        calls, repaired: answers that were requested, and answers that were requested again because of their form.
    """

    clip: ClipMedia
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
        return named_object(name, f"step {spec.name!r}")
    if name not in STEPS:
        raise UserError(f"step {spec.name!r}: no step {name!r}; expected one of {sorted(STEPS)}, or module:function")
    return STEPS[name]


def needs_openface(config: AnnotateConfig) -> bool:
    """Whether clips without a table of OpenFace are dropped: a step needs a peak, and no face is looked for."""
    return config.faces.detector == "none" and any(function_of(spec) is peak for spec in config.pipeline.steps)


def shown_by(steps: Sequence[StepConfig], annotators: Mapping[str, Annotator]) -> face.Shown:
    """The pictures that the steps show to models, as far as it is known before; local rules are shown none."""
    seeing = {role for role, one in annotators.items() if one.asks_model and "images" in one.sees}
    asking = [spec for spec in steps if spec.annotator in seeing]
    counts: set[int] = set()
    of_face: set[int | None] = set()
    for spec in asking:
        function, n = function_of(spec), _n_frames_of(annotators[spec.annotator])
        if (default := _N_FRAMES.get(function)) is not None:
            counts.add(n or int(spec.options.get("n_frames", default)))
        if function in (visual, peak):
            of_face.add(n)
    return face.Shown(None in of_face, tuple(sorted(counts)), tuple(sorted(n for n in of_face if n is not None)))


def _n_frames_of(annotator: Annotator) -> int | None:
    """The one number of pictures that a model takes; None = any."""
    return getattr(annotator, "n_frames", None)


def _sampling(work: Work, spec: StepConfig, n_frames: int, at_s: float | Sequence[float] | None = None) -> StepOutput:
    """What a step shows: evenly spaced frames, or those at these times; as many as its model takes. option: crop."""
    n = _n_frames_of(annotator_of(work, spec))
    sampling: dict[str, Any] = {"n_frames": n or n_frames}
    if at_s is not None:
        times_s = [at_s] if isinstance(at_s, float) else list(at_s)
        sampling["at_s"] = at_s if n is None else face.as_many(times_s, n)
    if spec.options.get("crop", False):
        sampling["crop"] = True
    return sampling


async def run_step(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Run one step."""
    function = function_of(spec)
    if inspect.iscoroutinefunction(function):
        return await function(work, spec, about)
    return await asyncio.to_thread(function, work, spec, about)


# ---- without a model -------------------------------------------------------------------------------------------------


def measure(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Measured evidence: the voice, and the face by OpenFace's table, or else followed in the video."""
    started, clip = time.monotonic(), work.clip
    facts: list[Fact] = []
    how: dict[str, Any] = {}
    if (units := clip.action_units()) is not None:
        facts += evidence.face_facts(units)
    if (tracks := clip.tracks()) is not None:
        seen, how_seen = face.track_facts(tracks)
        facts += seen
        how |= how_seen
    if (crops := clip.face_crops()) is not None:
        facts += evidence.crop_facts(crops)
    if hears_other(clip.sample.person):
        how["left_out"] = ["the voice, which is the other person's"]
    elif "sound" in clip.sees and (speech := clip.speech()) is not None and (voice := clip.voice()) is not None:
        heard, unreliable = voice
        facts += heard + sound.speaker_facts(heard, work.usual)
        how |= sound.method(speech) | ({"left_out": unreliable} if unreliable else {})
    work.note_local(spec.name, "measured", evidence.EVIDENCE_VERSION, time.monotonic() - started, **how)
    return {"evidence": facts}


async def transcribe(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The transcript: the subtitle if there is one, else a speech recogniser's output, else none.

    With the recogniser's times of words: words per second and pauses between words as facts.
    """
    sample = work.clip.sample
    subtitle = sample.in_language(work.lang, strict=False).subtitle
    if subtitle:
        return {"transcript": subtitle}
    if work.transcriber is None or "sound" not in work.clip.sees:
        return {}
    row, is_new = await work.transcriber.answer(spec.name, work.clip, sample.lang)
    work.calls += is_new
    parameters: dict[str, Any] = {"language": sample.lang}
    facts: list[Fact] = []
    speech = await asyncio.to_thread(work.clip.speech)
    reasons = {
        "the other person's words": hears_other(sample.person),
        "speech=none": speech is None,
        "no times of words": row.get("words") is None,
    }
    if why := next((reason for reason, holds in reasons.items() if holds), None):
        parameters |= {"left_out": list(WORD_FACTS), "why": why}
    else:
        facts, n_outside = word_facts([Word(*word) for word in row["words"]], speech, sample.lang)
        parameters |= {"word_times": "alignment heads", "speech": speech.detector}
        if n_outside:
            parameters["words_without_speech"] = n_outside
    work.notes.append(
        Provenance(spec.name, row["model"], None, None, parameters, row["tokens_in"], row["tokens_out"], row["seconds"])
    )
    return {"transcript": row["text"].strip(), "evidence": facts} if row["text"].strip() else {}


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
    """Ask the step's annotator; after an answer of the wrong form, ask once more with the objection.

    Args:
        shows: "images" and "sound" -> how they are sampled, for example {"n_frames": 3}.
        lang: language of prompt and answer; None = that of the work.

    Returns:
        the fields of the answer ({} = the local annotator has no evidence to answer from) and the name of the model.

    Raises:
        StepFailed: the second answer has the wrong form, too.
    """
    annotator, lang, shows = annotator_of(work, spec), lang or work.lang, shows or {}
    about = {**about, "person": work.clip.sample.person}
    if not annotator.asks_model:
        started = time.monotonic()
        values = local.answer_by_rules(prompt, lang, about)
        work.note_local(spec.name, local.NAME, local.RULES_VERSION, time.monotonic() - started, lang=lang)
        return values, local.NAME
    if unseen := sorted(set(shows) - annotator.sees):
        raise UserError(
            f"step {spec.name!r} shows {unseen}, but annotator {spec.annotator!r} ({annotator.name}) sees only "
            f"{sorted(annotator.sees)}; choose another with annotator@{spec.annotator}=, such as local, or, if the "
            "model takes them, set annotator.sees=[images,sound]"
        )
    enforced = getattr(annotator, "enforces_schema", False)
    text = prompts.render_question(prompt, lang, about, structured=annotator.structured, enforced=enforced)
    schema = prompts.answer_schema(prompt, about, lang, within_limits=enforced)
    question = Question(spec.name, text, schema, work.clip, shows)
    for attempt in range(2):
        row, is_new = await annotator.answer(question)
        work.calls += is_new
        parameters = {"lang": lang, **redacted(annotator.parameters()), **({"repair": True} if attempt else {})}
        if shows:
            parameters["shows"] = {name: dict(sampling) for name, sampling in shows.items()}
        work.notes.append(
            Provenance(
                spec.name,
                annotator.name,
                prompts.PROMPTS_VERSION,
                prompts.sha256_of_text(text),
                parameters,
                row["tokens_in"] or 0,
                row["tokens_out"] or 0,
                row["seconds"],
            )
        )
        is_empty = not row["text"].strip()
        if is_empty and row.get("finish") in REFUSED:
            words = row.get("refusal") or f"finish reason {row['finish']}"
            raise StepFailed(f"{annotator.name} refuses an answer: {words}", kind="refusal")
        try:
            values = prompts.parse_answer(prompt, row["text"], about, lang, structured=annotator.structured)
        except BadAnswer as error:
            if attempt:
                kind = "empty answer" if is_empty else "unusable answer"
                raise StepFailed(f"no usable answer of {annotator.name} in two attempts: {error}", kind) from None
            work.repaired += 1
            question = replace(question, turns=((row["text"], prompts.repair(error, lang)),))
        else:
            return values, annotator.name
    raise AssertionError("unreachable")


def annotator_of(work: Work, spec: StepConfig) -> Annotator:
    """The annotator of the role that the step names."""
    if spec.annotator not in work.annotators:
        raise UserError(
            f"step {spec.name!r}: annotator is {spec.annotator!r}; expected one of {sorted(work.annotators)}"
        )
    return work.annotators[spec.annotator]


async def visual(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Visual clues: frames of the beginning, middle and end.

    Three frames are those at the start, the peak and the end of the main person's track, if a face was found; others
    are evenly spaced. options: n_frames (3), crop (false: complete frames; true: cut out the main person).
    """
    if "images" not in work.clip.sees:
        return {}
    n_frames = int(spec.options.get("n_frames", _N_FRAMES[visual]))
    tracks = await asyncio.to_thread(work.clip.tracks)
    times = face.three_times(tracks, _peak_s(about)) if n_frames == 3 and tracks is not None else None
    sampling = _sampling(work, spec, n_frames, times)
    values, model = await ask(work, spec, about, spec.prompt or "visual", shows={"images": sampling})
    return await asyncio.to_thread(_visual_clues, work.clip, values, model, sampling)


def _peak_s(about: StepOutput) -> float | None:
    return next((fact.value for fact in about.get("evidence", ()) if fact.name == "peak_s"), None)


def _visual_clues(clip: ClipMedia, values: Mapping[str, Any], model: str, sampling: Mapping[str, Any]) -> StepOutput:
    if not values:
        return {}
    names = tuple(values.get("evidence", ()))
    if "clue" in values:
        return {"clues": [Clue("visual", values["clue"], source=model, evidence=names)]}
    clues = []
    times = clip.frames(sampling["n_frames"], sampling.get("at_s")).times_s
    thirds = [part for part in _three(list(times)) if part]
    for key, part in zip(("beginning", "middle", "end"), thirds, strict=False):
        if text := values.get(key):
            span = round(float(part[0]), 3), round(float(part[-1]), 3)
            clues.append(Clue("visual", text, *span, source=model, evidence=names))
    timed = {clue.text for clue in clues}
    # With one or two frames there are fewer parts than texts: the remaining texts get no time.
    rest = [values[key] for key in ("beginning", "middle", "end") if values.get(key) and values[key] not in timed]
    return {"clues": clues + [Clue("visual", text, source=model, evidence=names) for text in rest]}


def _three(items: list[Any]) -> list[list[Any]]:
    edges = [round(len(items) * part / 3) for part in range(4)]
    return [items[start:stop] for start, stop in itertools.pairwise(edges)]


async def peak(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """An objective description of the frame at which the face moves most. options: crop (false), as in `visual`."""
    peak_s = _peak_s(about)
    if peak_s is None:
        names = [fact.name for fact in about.get("evidence", ()) if fact.name in face.NOT_TOLD]
        raise Dropped(f"no peak frame: {ABSENT[names[0]]}" if names else NO_PEAK)
    sampling = _sampling(work, spec, 1, peak_s)
    values, model = await ask(work, spec, about, spec.prompt or "peak", shows={"images": sampling})
    if not values:
        return {}
    clue = Clue("visual", values["clue"], peak_s, peak_s, model, tuple(values.get("evidence", ())))
    return {"clues": [clue]}


async def acoustic(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The acoustic clue: how the voice sounds. None of a listener, whose voice is not heard."""
    if "sound" not in work.clip.sees or hears_other(work.clip.sample.person):
        return {}
    values, model = await ask(work, spec, about, spec.prompt or "acoustic", shows={"sound": {}})
    if not values:
        return {}
    return {"clues": [Clue("acoustic", values["clue"], source=model, evidence=tuple(values.get("evidence", ())))]}


async def disambiguate(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The lexical clue: what the words mean, given what was seen and heard."""
    if not about.get("transcript"):
        return {}
    values, model = await ask(work, spec, _plain(about), spec.prompt or "disambiguate")
    return {"clues": [Clue("lexical", values["clue"], source=model)]} if values else {}


async def merge(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """One description from clues, transcript and measured facts (in s2, from a description and the transcript)."""
    if not about.get("clues") and not about.get("description"):
        raise Dropped(NO_CLUE)
    if about.get("description") and not about.get("transcript"):
        return {}  # s2 without a transcript: the description is final
    return await _description(work, spec, about, "merge")


async def rewrite(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The description, rewritten as reasoning."""
    return await _description(work, spec, about, "rewrite")


async def _description(work: Work, spec: StepConfig, about: StepOutput, prompt: str) -> StepOutput:
    values, _ = await ask(work, spec, _plain(about), spec.prompt or prompt)
    if not values:
        raise Dropped(_no_evidence(about))
    return {"description": {work.lang: values["description"]}}


def _no_evidence(about: StepOutput) -> str:
    """Why nothing can be described, with what was measured instead of a person."""
    facts = {fact.name: fact for fact in about.get("evidence", ())}
    found = [words for name in _NOBODY if name in facts and (words := evidence.phrase(facts[name]))]
    return f"no evidence: {', '.join(found)}" if found else NO_EVIDENCE


def join(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Clues and transcript joined into one text without a model, as MERR's coarse caption."""
    texts = [clue.text.rstrip(".。") for clue in about.get("clues", ())]
    if about.get("transcript"):
        texts.append(local.quoted_transcript(about["transcript"], work.lang, work.clip.sample.person))
    if not texts:
        raise Dropped(NO_CLUE)
    work.note_local(spec.name, "template", prompts.PROMPTS_VERSION, 0.0)
    return {"description": {work.lang: (". " if work.lang == "en" else "。").join(texts)}}


async def translate(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The description in the other language."""
    target = prompts.other_language(work.lang)
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "translate", lang=target)
    return {"description": {target: values["translation"]}} if values else {}


async def labels(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Open-vocabulary labels that the description supports, in the language of the work.

    options: read = translation: read the description in the other language.
    """
    if spec.options.get("read") == "translation":
        other = prompts.other_language(work.lang)
        if other not in about.get("description", {}):
            return {}
        about = {**about, "description": {work.lang: about["description"][other]}}
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "labels")
    confidence = {"confidence": values["confidence"]} if "confidence" in values else {}
    return {"labels": values["labels"], **confidence} if values else {}


async def ranking(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Words of a fixed set, the best match first."""
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "ranking")
    return {"ranking": values["ranking"]} if values else {}


async def valence(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Valence, -5 (unpleasant) to 5 (pleasant)."""
    values, _ = await ask(work, spec, _plain(about), spec.prompt or "valence")
    return {"valence": values["valence"]} if values else {}


async def explain(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """One multimodal model explains the clip. options: n_frames (8), subtitle (false: strategy S0)."""
    annotator = annotator_of(work, spec)
    seen = {name for name in ("images", "sound") if name in work.clip.sees and name in annotator.sees}
    if not seen:
        raise Dropped(f"nothing to show: the clip holds {sorted(work.clip.sees)}")
    images = _sampling(work, spec, int(spec.options.get("n_frames", _N_FRAMES[explain])))
    shows: dict[str, StepOutput] = {"images": images, "sound": {}}
    known = about if spec.options.get("subtitle", False) else {**about, "transcript": None}
    values, _ = await ask(
        work, spec, known, spec.prompt or "explain", shows={name: shows[name] for name in shows if name in seen}
    )
    if not values:
        raise Dropped(NO_EVIDENCE)
    return {"description": {work.lang: values["description"]}, "labels": values.get("labels", [])}


def checks(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """Checks of the output of the earlier steps. options: policy = {check: keep | ask | drop}."""
    started, clip = time.monotonic(), work.clip
    media = {name: path for name in ("video", "audio", "face") if (path := getattr(clip.sample, name))}
    parts = {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}
    record = Annotation(clip.sample.id, clip.sha256, media=media, lang=work.lang, provenance=tuple(work.notes), **parts)
    policy = record_checks.policy_of(spec.options.get("policy", {}))
    rows = record_checks.rows_of(record_checks.check_record(record, clip.sees), policy)
    work.note_local(spec.name, "rules", record_checks.CHECKS_VERSION, time.monotonic() - started)
    return {"checks": list(rows)}


def _plain(about: StepOutput) -> StepOutput:
    """`about` with its clues as mappings, as prompts take them."""
    return {
        **about,
        "clues": [{"modality": clue.modality, "text": clue.text} for clue in about.get("clues", ())],
    }


_N_FRAMES = {visual: 3, explain: 8}
"""Evenly spaced frames that a step shows by default."""

STEPS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(measure, transcribe, visual, peak, acoustic, disambiguate, merge, rewrite, join, translate),
        *(labels, ranking, valence, explain, checks),
    )
}
