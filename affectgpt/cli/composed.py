"""Commands that need further configurations than their own, which are composed here.

As in `cli.table`, functions of other rooms are named by text and loaded when the command starts: the command line
depends on no room, and every room may start it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from affectgpt import config
from affectgpt.cli.parser import compose, composed_settings, embedded, replace_strings
from affectgpt.cli.table import COMMANDS, load
from affectgpt.cli.words import literal, unquoted

log = logging.getLogger("affectgpt")

Settings = Sequence[str]
COLUMNS = ("audio", "video", "merge", "translate")  # settings of a study of annotators that name models


def train(settings: config.TrainConfig, given: Settings) -> int:
    """One stage, or with a study's name one cell of the study: each of its stages, configured like this command."""
    if not settings.study.name:
        result = load("affectgpt.training.stages:run_stage")(settings)
        if result.exit_code == 0:
            parts = [item.partition("=") for item in given]
            plain = [key + equals + unquoted(value) for key, equals, value in parts]
            log.info("%s", load("affectgpt.training.stages:next_commands")(settings, result.run, plain))
        return result.exit_code
    others = [item for item in given if not item.startswith("stage=")]
    names = load("affectgpt.training.study:stage_names")(settings.study)
    configs = [compose("train", [*others, f"stage={name}"]) for name in names]
    return load("affectgpt.training.study:run_sweep_job")(*configs)


def evaluate(settings: config.EvalConfig, given: Settings) -> int:
    """A benchmark that is a mean brings the configurations of its members, with its own folder and trust."""
    whole = settings.benchmark
    members = [compose("eval", [f"benchmark={name}"]).benchmark for name in whole.members]
    own = {"folder": whole.folder, "trust_pickle": whole.trust_pickle}
    return load("affectgpt.inference.evaluate:run_evaluation")(
        settings, [dataclasses.replace(member, **own) for member in members]
    )


def fetch_models(settings: config.PlanConfig, given: Settings) -> int:
    return load("affectgpt.hub.push:fetch_models")(settings.model)


def demo(settings: config.DemoConfig, given: Settings) -> int:
    return load("affectgpt.demo.command:run")(settings, compose)


def check_data(settings: config.DataCheckConfig, given: Settings) -> int:
    """With data=NAME, all sources of conf/data/NAME.yaml by their use; else the one source that is described."""
    return load("affectgpt.data.command:check_data")(settings, _all_data(settings.overrides))


def export_data(settings: config.DataExportConfig, given: Settings) -> int:
    """As `check_data`, with the benchmark that a task of another tool is scored by."""
    # Apart, because an evaluation with a benchmark leaves the sources of its data as they are.
    scored = [item for item in settings.overrides if item.startswith("benchmark")]
    others = [item for item in settings.overrides if item not in scored]
    data = _all_data(others)
    benchmark = compose("eval", scored).benchmark if scored else None
    return load("affectgpt.othertools.command:export_data")(settings, data, benchmark)


def _all_data(given: Settings) -> config.DataConfig | None:
    """The data of these settings, of training and test; None without settings."""
    if not given:
        return None
    composed = compose("eval", given)  # train would also build the base models
    return replace_strings(composed.data, embedded, Path(composed.paths.cache))


def annotator_study(settings: config.StudyOfAnnotatorsConfig, given: Settings) -> int:
    """Own settings, and those of annotate for all rows."""
    common = composed_settings(COMMANDS["annotate"], settings.common)
    base = compose("annotate", common)
    columns = {name: {text: candidate(text, name, common) for text in getattr(settings, name)} for name in COLUMNS}
    if settings.references:
        settings.references = embedded(settings.references, Path(base.paths.cache))
    return load("affectgpt.annotate.study:run_study")(settings, base, columns)


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
