"""The command `python -m affectgpt.annotate`: check the settings, then plan or annotate."""

from __future__ import annotations

from affectgpt.annotate.clips import Clips
from affectgpt.annotate.pipeline import ROLES, check_pipeline
from affectgpt.annotate.plan import print_plan
from affectgpt.annotate.shards import run_sharded
from affectgpt.annotate.single import run_single
from affectgpt.config import AnnotateConfig
from affectgpt.media import isolated_media
from affectgpt.runtime import UserError
from affectgpt.schema import LANGUAGES


def run_annotation(config: AnnotateConfig) -> int:
    """Annotate; exit code 0 (all complete), 3 (some failed or dropped), 4 (budget), 130 or 143 (interrupted)."""
    check_settings(config)
    clips = Clips(config)
    if config.plan:
        with isolated_media():
            return print_plan(config, clips)
    return run_single(config, clips) if config.engine == "single" else run_sharded(config, clips)


def check_settings(config: AnnotateConfig) -> None:
    """Raise UserError where settings are missing or contradict each other."""
    if not config.input:
        raise UserError(
            "no input given: python -m affectgpt.annotate videos/ out=emer_coarse/ (a folder, media files or a "
            "manifest; demo:coarse is the embedded corpus)"
        )
    if config.out is None and not config.plan:
        raise UserError("out= is missing: the folder for records, answers and the manifest")
    if config.lang not in LANGUAGES:
        raise UserError(f"lang is {config.lang!r}; expected one of {list(LANGUAGES)}")
    check_pipeline(config.pipeline)
    if unknown := sorted({spec.annotator for spec in config.pipeline.steps} - set(ROLES)):
        raise UserError(f"pipeline {config.pipeline.name!r} names annotators {unknown}; expected some of {list(ROLES)}")
