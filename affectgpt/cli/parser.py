"""One parser for all commands: settings given as `key=value` -> the configuration object of a command.

A command with a file in conf/ is composed by Hydra, with its groups; the others are their dataclass with the given
values. Only this package knows Hydra.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from affectgpt import config
from affectgpt.cli.table import COMMANDS, Command, load
from affectgpt.cli.words import (
    kind_of,
    literal,
    options_as_settings,
    quoted_values,
    split_plain,
    unquoted,
    whole_weights,
)
from affectgpt.runtime import InputError, NotFound


def parse(command: Command, arguments: Sequence[str]) -> Any:
    """The configuration object that the arguments describe, paths and names of the embedded default resolved.

    Raises:
        InputError: an unknown setting (with the nearest one), a value of another type, an unknown file of a group.
    """
    settings = composed_settings(command, arguments) if command.conf else None
    return resolved(_flat(command, arguments) if settings is None else _composed(command, settings))


def composed_settings(command: Command, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command that Hydra composes, plain ones as a setting."""
    plain, rest = split_plain(arguments, command.schema) if command.plain else ([], list(arguments))
    rest = options_as_settings(rest, command.schema)
    return [*rest, f"{command.plain}=[{','.join(map(literal, plain))}]"] if plain else rest


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration object that the command would run with, for use from Python.

    >>> compose("infer", ["task=labels"]).task
    'labels'
    """
    return parse(COMMANDS[name], whole_weights(overrides))


def _composed(command: Command, settings: Sequence[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_schemas()
    running = GlobalHydra.instance().hydra  # inside a job of a sweep
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return OmegaConf.to_object(hydra_compose(command.conf, overrides=quoted_values(settings, command.schema)))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explained(error, command, settings)) from error
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)


def _flat(command: Command, arguments: Sequence[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = OmegaConf.structured(command.schema)
    known = {field.name for field in dataclasses.fields(command.schema)}
    if "paths" in known:
        node.paths.cache = cache_folder()
    plain, rest = split_plain(arguments, command.schema) if command.plain else ([], list(arguments))
    others: list[str] = []
    try:
        for setting in options_as_settings(rest, command.schema):
            key, equals, value = setting.partition("=")
            if command.others and (not equals or key.lstrip("+").partition(".")[0].partition("@")[0] not in known):
                others.append(setting)
            elif not equals:
                raise InputError(f"unexpected argument {setting!r}; --help lists the settings")
            elif kind_of(command.schema, key) == "str" and value != "null":
                OmegaConf.update(node, key, unquoted(value).replace("${", "\\${"))
            else:
                node = OmegaConf.merge(node, OmegaConf.from_dotlist([setting]))
        if command.plain and plain:
            is_list = kind_of(command.schema, command.plain) != "str"
            if not is_list and len(plain) > 1:
                raise InputError(f"expected one {command.plain}, found {plain}; --help shows examples")
            texts = [text.replace("${", "\\${") for text in plain]
            OmegaConf.update(node, command.plain, texts if is_list else texts[0])
        if command.others:
            OmegaConf.update(node, command.others, [text.replace("${", "\\${") for text in others])
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise InputError(explained(error, command, arguments)) from error


# ---------------------------------------------------------------- errors of Hydra and OmegaConf


def explained(error: Exception, command: Command, settings: Sequence[str]) -> str:
    """One message in the place of Hydra's: which setting, what is wrong, the nearest names."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 4:
        texts.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(texts)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = match[1], match[2]
        names = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
        return f"{group}={name}: conf/{group} has no such file; it has {', '.join(names)}{_nearest(name, names)}"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' not in '(\w+)'\s+full_key: (\S+)", text):
        key = match[1] or match[4]
        return f"unknown setting {key!r}{_nearest(key, _names(command))}; --help and docs/configuration.md list them"
    if match := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        meaning = next((comment for name, _, comment in _documented(command) if name == match[1]), "")
        return f"{match[1]}= is missing{meaning and f': {meaning}'}"
    found = re.search(r"full_key: (\S+)", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if line.startswith("Value '")), lines[0]).rstrip(".")
    where = f"{found[1]}: " if found else ""
    if not found and len(settings) == 1:
        where = f"{settings[0]}: "
    return f"{where}{first}; --help and docs/configuration.md list what each setting takes"


def _documented(command: Command) -> Iterator[tuple[str, str | None, str]]:
    from affectgpt.confdoc import settings_of

    return settings_of(command.schema)


def _names(command: Command) -> list[str]:
    names = {name for name, _, _ in _documented(command)}
    return sorted({*names, *(field.name for field in dataclasses.fields(command.schema))})


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


# ---------------------------------------------------------------- what configurations refer to


def register_schemas() -> None:
    from hydra.core.config_store import ConfigStore

    for command in COMMANDS.values():
        if command.conf:
            ConfigStore.instance().store(name=f"{command.conf}_schema", node=command.schema)


def conf_folder() -> Path:
    """conf/ next to the package in a checkout, affectgpt/conf in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise NotFound(f"no conf/ next to {package} or inside it; reinstall affectgpt")


def cache_folder() -> str:
    return os.environ.get("AFFECTGPT_CACHE") or config.PathsConfig().cache


def resolved(settings: Any) -> Any:
    """`settings` with the cache folder expanded and names of the embedded default (demo:...) replaced by paths, except
    those of data that the command does not use (`_unused_data`), which are not built.

    An LLM in a GGUF file is replaced by the folder to which it is converted on first use.
    """
    cache = Path(settings.paths.cache if hasattr(settings, "paths") else cache_folder()).expanduser()
    if hasattr(settings, "paths"):
        settings.paths.cache = str(cache)
    if isinstance(getattr(settings, "model", None), config.ModelConfig) and settings.model.init != "pretrained":
        settings.model.init_from = None  # unused, so what it names is not built
    unused = [(source, source.manifest) for source in _unused_data(settings)]
    for source, _ in unused:
        source.manifest = None
    settings = replace_strings(settings, embedded, cache)
    for source, manifest in unused:
        source.manifest = manifest
    model = getattr(settings, "model", None)
    if isinstance(model, config.ModelConfig) and model.llm.path.endswith(".gguf"):
        model.llm.path = load("affectgpt.convert.gguf:base_model")(model.llm.path, cache)
    return settings


def _unused_data(settings: Any) -> list[config.SourceConfig]:
    """The sources of training data of other stages; in an evaluation and zero-shot those of all, and of the test data
    if references, or a manifest, take their place."""
    if isinstance(settings, config.TrainConfig):
        used = settings.stage.data or [settings.stage.name]
        return [row for name, rows in settings.data.training().items() if name not in used for row in rows]
    if isinstance(settings, config.EvalConfig):
        needs_no_test = bool(settings.references or settings.benchmark.name)
    elif isinstance(settings, config.ZeroShotConfig):
        needs_no_test = settings.manifest is not None
    else:
        return []
    test = settings.data.test if needs_no_test else []
    return [*(row for rows in settings.data.training().values() for row in rows), *test]


def embedded(text: str, cache: Path) -> str:
    """The path of what `demo:NAME` names, built on first use; any other text as it is."""
    if not text.startswith("demo:"):
        return text
    return str(load("affectgpt.demo.embedded:path_of")(text.removeprefix("demo:"), cache))


def replace_strings(value: Any, replace: Callable[..., str], *arguments: Any) -> Any:
    """Apply `replace(text, *arguments)` to every string in dataclasses, lists and dictionaries."""
    if isinstance(value, str):
        return replace(value, *arguments)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            setattr(value, field.name, replace_strings(getattr(value, field.name), replace, *arguments))
        return value
    if isinstance(value, list):
        return [replace_strings(item, replace, *arguments) for item in value]
    if isinstance(value, dict):
        return {key: replace_strings(item, replace, *arguments) for key, item in value.items()}
    return value
