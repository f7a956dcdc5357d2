"""The command `python -m affectgpt.annotate`: check the settings, then plan or annotate."""

from __future__ import annotations

import logging

from affectgpt.annotate.clips import Clips, openface_of
from affectgpt.annotate.pipeline import ROLES, check_pipeline
from affectgpt.annotate.plan import print_plan
from affectgpt.annotate.shards import run_sharded
from affectgpt.annotate.single import run_single
from affectgpt.annotate.steps import needs_openface
from affectgpt.config import AnnotateConfig
from affectgpt.media import isolated_media
from affectgpt.media.faces.tracks import HEARD
from affectgpt.media.speech import DETECTORS
from affectgpt.runtime import UserError
from affectgpt.schema import LANGUAGES, Sample

log = logging.getLogger("affectgpt")


def run_annotation(config: AnnotateConfig) -> int:
    """Annotate; exit code 0 (all complete), 3 (some failed or dropped), 4 (budget), 130 or 143 (interrupted)."""
    check_settings(config)
    clips = Clips(config)
    check_tables(config, clips)
    if config.plan:
        with isolated_media():
            return print_plan(config, clips)
    return run_single(config, clips) if config.engine == "single" else run_sharded(config, clips)


def check_tables(config: AnnotateConfig, clips: Clips) -> None:
    """Raise UserError if a pipeline needs tables of OpenFace and no clip has one; warn if some have none."""
    if not needs_openface(config):
        return
    samples = [item for item in clips if isinstance(item, Sample)]
    without = [sample.id for sample in samples if openface_of(sample, config.openface) is None]
    found = f"openface={config.openface}: {len(without)} of {len(samples)} clips have no table there, such as "
    found += f"{without[0]}.csv" if without else ""
    if len(without) == len(samples):
        raise UserError(f"{found}; without its table a clip is dropped: give the folder with <id>.csv for each clip")
    if without:
        log.warning("%s; they are dropped before any call", found)


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
    if config.speech not in DETECTORS:
        raise UserError(f"speech is {config.speech!r}; expected one of {list(DETECTORS)}")
    if config.speech == "none" and config.faces.detector != "none" and config.faces.person in HEARD:
        raise UserError(
            f"faces.person={config.faces.person} is told by the speech, but with speech=none, none is looked for; set "
            "speech=silero, or another faces.person"
        )
    check_pipeline(config.pipeline)
    if needs_openface(config) and config.openface is None:
        raise UserError(
            f"pipeline {config.pipeline.name!r} needs the peak of a face: with faces.detector=none, give openface=, "
            "the folder with a table <id>.csv of OpenFace for each clip; without its table a clip is dropped"
        )
    if unknown := sorted({spec.annotator for spec in config.pipeline.steps} - set(ROLES)):
        raise UserError(f"pipeline {config.pipeline.name!r} names annotators {unknown}; expected some of {list(ROLES)}")
