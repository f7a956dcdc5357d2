"""A pipeline: an ordered list of steps, each run for a clip as soon as its inputs are complete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from affectgpt.annotate import evidence, prompts
from affectgpt.annotate.annotators import CODE_VERSION, annotator_class, decides
from affectgpt.annotate.record import merge_fields
from affectgpt.annotate.steps import Dropped, StepOutput, Work, function_of, run_step
from affectgpt.config import AnnotateConfig, AnnotatorConfig, PipelineConfig, StepConfig
from affectgpt.runtime import UserError, stable_hash

ROLES = ("vision", "audio", "text", "translator", "reader")
_TEXT_ROLES = ("translator", "reader")  # served by the annotator for text unless they have their own


def annotators_of(config: AnnotateConfig) -> dict[str, AnnotatorConfig]:
    """The configuration of each role's annotator: its own, or the common one."""
    own = {role: getattr(config, role) or (config.text if role in _TEXT_ROLES else None) for role in ROLES}
    return {role: annotator or config.annotator for role, annotator in own.items()}


def loads_models(config: AnnotateConfig) -> bool:
    """Whether the annotator of a step loads a model into the process that asks it."""
    used = {spec.annotator for spec in config.pipeline.steps}
    return any(annotator_class(own.kind).in_process for role, own in annotators_of(config).items() if role in used)


def check_pipeline(pipeline: PipelineConfig) -> None:
    """Raise UserError where steps are unknown, share a name, or need a step that does not precede them."""
    if not pipeline.steps:
        raise UserError(f"pipeline {pipeline.name!r} has no steps; see conf/pipeline for examples")
    before: list[str] = []
    for spec in pipeline.steps:
        function_of(spec)
        if spec.name in before:
            raise UserError(f"pipeline {pipeline.name!r}: two steps are named {spec.name!r}")
        if missing := sorted(set(spec.needs) - set(before)):
            raise UserError(
                f"pipeline {pipeline.name!r}: step {spec.name!r} needs {missing}; the steps before it are {before}"
            )
        if spec.prompt and spec.prompt not in prompts.PROMPTS:
            raise UserError(f"step {spec.name!r}: no prompt {spec.prompt!r}; expected one of {sorted(prompts.PROMPTS)}")
        before.append(spec.name)


def ancestors(steps: Sequence[StepConfig], spec: StepConfig) -> list[str]:
    """The steps that `spec` needs, directly or not, in pipeline order."""
    needs = {step.name: step.needs for step in steps}
    found, todo = set(), list(spec.needs)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += needs[name]
    return [step.name for step in steps if step.name in found]


def settings_hash(pipeline: PipelineConfig, annotators: dict[str, AnnotatorConfig], lang: str, **more: object) -> str:
    """Hash of all settings that decide the content of a record; `more` are those outside the pipeline."""
    used = {spec.annotator for spec in pipeline.steps}
    return stable_hash(
        {
            "steps": [asdict(spec) for spec in pipeline.steps],
            "annotators": {role: decides(config) for role, config in annotators.items() if role in used},
            "versions": [CODE_VERSION, prompts.PROMPTS_VERSION, evidence.EVIDENCE_VERSION],
            "lang": lang,
            **more,
        }
    )


async def annotate_clip(work: Work, steps: Sequence[StepConfig]) -> StepOutput:
    """The merged output of all steps for one clip, in pipeline order.

    Independent steps run concurrently. If one fails, the steps in progress are finished (their calls are paid for),
    those that need it are not started, and its error is raised. If one drops the clip, no other step is started.
    """
    dropped: list[Dropped] = []
    tasks: dict[str, asyncio.Task[StepOutput]] = {}

    async def one(spec: StepConfig) -> StepOutput:
        about = merge_fields([await tasks[name] for name in ancestors(steps, spec)])
        if dropped:
            raise dropped[0]
        try:
            return await run_step(work, spec, about)
        except Dropped as reason:
            dropped.append(reason)
            raise

    for spec in steps:
        tasks[spec.name] = asyncio.create_task(one(spec))
    parts = await asyncio.gather(*tasks.values(), return_exceptions=True)
    good: list[StepOutput] = []
    for part in parts:  # in pipeline order, so that the first error is the cause of the later ones
        if isinstance(part, BaseException):
            raise part
        good.append(part)
    return merge_fields(good)
