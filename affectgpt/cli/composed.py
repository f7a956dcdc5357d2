"""Commands that need more than their own configuration: what they run gets further ones, composed here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from affectgpt import config
from affectgpt.cli.parser import compose, composed_settings, embedded
from affectgpt.cli.table import COMMANDS
from affectgpt.cli.words import literal

Settings = Sequence[str]


def train(settings: config.TrainConfig, given: Settings) -> int:
    from affectgpt.runtime import gc_paused

    if settings.study.name:
        from affectgpt.training.study import Stopped, run_cell, stage_names

        others = [item for item in given if not item.startswith("stage=")]
        try:
            run_cell(*(compose("train", [*others, f"stage={name}"]) for name in stage_names(settings.study)))
        except Stopped as stopped:
            return stopped.exit_code
        return 0
    with gc_paused():  # a sixth of the time that importing the libraries takes
        from affectgpt.training.stages import run_stage

    return run_stage(settings).exit_code


def evaluate(settings: config.EvalConfig, given: Settings) -> int:
    """A benchmark that is a mean brings the configurations of its members, with its own folder and trust."""
    from affectgpt.runtime import gc_paused

    with gc_paused():
        from affectgpt.inference.evaluate import run_evaluation

    whole = settings.benchmark
    members = [compose("eval", [f"benchmark={name}"]).benchmark for name in whole.members]
    own = {"folder": whole.folder, "trust_pickle": whole.trust_pickle}
    return run_evaluation(settings, [dataclasses.replace(member, **own) for member in members])


def fetch_models(settings: config.TrainConfig, given: Settings) -> int:
    from affectgpt.hub.push import fetch_models

    return fetch_models(settings.model)


def demo(settings: config.DemoConfig, given: Settings) -> int:
    from affectgpt.demo.command import run

    return run(settings, compose)


def check_data(settings: config.DataCheckConfig, given: Settings) -> int:
    """With data=NAME, all sources of conf/data/NAME.yaml by their use; else the one source that is described."""
    from affectgpt.data import command

    if not settings.overrides:
        return command.check_data(settings)
    # As eval.py composes it: train would also make sure of the base models.
    return command.check_data(settings, compose("eval", settings.overrides).data)


def annotator_study(settings: config.StudyOfAnnotatorsConfig, given: Settings) -> int:
    """Own settings, and those of annotate for all rows."""
    from affectgpt.annotate.study import COLUMN_ROLES, run_study

    common = composed_settings(COMMANDS["annotate"], settings.common)
    base = compose("annotate", common)
    columns = {name: {text: candidate(text, name, common) for text in getattr(settings, name)} for name in COLUMN_ROLES}
    if settings.references:
        settings.references = embedded(settings.references, Path(base.paths.cache))
    return run_study(settings, base, columns)


def candidate(text: str, column: str, common: Settings) -> config.AnnotatorConfig | None:
    """The annotator that `kind:model@server` names, kind being a file of conf/annotator; None for "none"."""
    if text == "none":
        return None
    kind, _, rest = text.partition(":")
    model, _, server = rest.partition("@")
    shown = {"audio": "[sound]", "video": "[images]"}.get(column)
    given = [item for item in common if not item.startswith(("annotator=", "annotator.model=", "annotator.sees="))]
    chosen = [f"annotator={kind}"]
    chosen += [f"annotator.model={literal(model)}"] if model else []
    chosen += [f"annotator.base_url={literal(server)}"] if server else []
    chosen += [f"annotator.sees={shown}"] if shown and kind != "local" else []
    given = [item for item in given if not (server and item.startswith("annotator.base_url="))]
    return compose("annotate", [*given, *chosen]).annotator
