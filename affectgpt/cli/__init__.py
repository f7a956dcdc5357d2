"""The command line: `main` runs a command of `cli.table`.

It imports no room that does the work: functions are named by text and loaded when their command starts, so --help
answers at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from affectgpt.cli.parser import (
    compose,
    composed_settings,
    conf_folder,
    explained,
    parse,
    register_schemas,
    resolved,
)
from affectgpt.cli.table import COMMANDS, Command, load
from affectgpt.cli.words import from_hydra, options_first, quoted_values
from affectgpt.runtime import InputError, UserError, set_up_logging

__all__ = ["compose", "main", "run", "script", "set_environment"]


def main(name: str) -> NoReturn:
    """Run the command with the arguments of this process, and exit with its code."""
    try:
        code = run(name, sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def script() -> NoReturn:
    """Entry point of the console scripts: affectgpt-train and so on."""
    main(Path(sys.argv[0]).stem.removeprefix("affectgpt-"))


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C, else the command's own.

    A user's mistake is one message (AFFECTGPT_TRACEBACK=1 adds where it came from); anything else keeps its traceback.
    """
    verbs = [key.partition(" ")[2] for key in COMMANDS if key.startswith(f"{name} ")]
    words = list(arguments)
    if words and words[0] in verbs:
        name = f"{name} {words.pop(0)}"
    asks_for_help = bool({"-h", "--help"} & set(words))
    if name not in COMMANDS:  # a verb is missing
        usages = [COMMANDS[f"{name} {verb}"].usage for verb in verbs]
        text = "\n\n".join([*usages, f"{' | '.join(verbs)}: with --help, each lists its settings."])
        print(text, file=sys.stdout if asks_for_help else sys.stderr)
        return 0 if asks_for_help else 2
    if asks_for_help:
        print(help_text(COMMANDS[name]))
        return 0
    set_environment()
    set_up_logging()
    command = COMMANDS[name]
    try:
        if command.rewrite:
            words = load(command.rewrite)(words)
        if command.conf and any(word.startswith("-") and not Path(word).exists() for word in words):
            return _run_by_hydra(command, options_first(composed_settings(command, words)))
        return _run_job(command, parse(command, words), words)
    except UserError as error:
        return _report(error)
    except KeyboardInterrupt:
        if os.environ.get("AFFECTGPT_TRACEBACK"):
            raise
        print("\ninterrupted", file=sys.stderr)
        return 130


def help_text(command: Command) -> str:
    """Usage, examples and every setting with its default and meaning."""
    from affectgpt.confdoc import settings_of

    lines = [command.usage, "", "Settings (key=value) [default]:", ""]
    for name, default, comment in settings_of(command.schema):
        if name == command.others:
            continue
        shown = "" if default in (None, "null", "[]", "{}") else f" [{default}]"
        lines.append(f"  {name:<30} {comment}{shown}")
    composed = "--cfg job prints the composed configuration; " if command.conf else ""
    return "\n".join([*lines, "", f"{composed}docs/configuration.md describes all settings."])


def set_environment() -> None:
    """Environment of libraries that must be set before they are imported; what the user has set stays."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # On a CPU it reports at import, asked for or not, that a kernel for GPUs' 4-bit products could not be fetched.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if os.environ.get("RANK", "0") != "0":
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the first process only
    # Threads that wait by spinning take cores from others that need them: with one other busy process on two cores,
    # small matrix products ran 1.1 to 1.2 times as fast with sleeping threads (two paired runs of 6 s, 2026-11).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _run_job(command: Command, settings: Any, given: Sequence[str]) -> int:
    for finding in load("affectgpt.doctor:known_mismatches")():
        print(finding, file=sys.stderr)
    if getattr(settings, "offline", False) and hasattr(settings, "device"):
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
    function = load(command.run)
    code = function(settings, given) if command.run.startswith("affectgpt.cli.composed:") else function(settings)
    if command.next and code == 0 and (text := _next(command.next, settings)):
        logging.getLogger("affectgpt").info("next: %s", text)
    return code


def _next(text: str, settings: Any) -> str:
    """The next command with the values of settings; empty if one of them is not set."""
    values = {name: getattr(settings, name) for name in re.findall(r"{(\w+)}", text)}
    return (
        ""
        if None in values.values()
        else text.format(**{key: shlex.quote(str(value)) for key, value in values.items()})
    )


def _report(error: UserError) -> int:
    if os.environ.get("AFFECTGPT_TRACEBACK"):
        raise error
    print(f"error: {error}", file=sys.stderr)
    print("(AFFECTGPT_TRACEBACK=1 shows where)", file=sys.stderr)
    return 2


def _run_by_hydra(command: Command, settings: Sequence[str]) -> int:
    """Sweeps (-m) with their launchers, and Hydra's own options such as --cfg job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_schemas()
    codes: list[int] = []
    studies: dict[Path, None] = {}

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command.conf)
    def job(composed: DictConfig) -> None:
        given = from_hydra(HydraConfig.get().overrides.task)
        config: Any = OmegaConf.to_object(composed)
        try:
            codes.append(_run_job(command, resolved(config), given))
        except UserError as error:
            codes.append(_report(error))
        # A signal ends the whole sweep, an error only its own job; a job that SLURM runs must end with its own code.
        if codes[-1] >= 128 or (codes[-1] and "SUBMITIT_EXECUTOR" in os.environ):
            sys.exit(codes[-1])
        if command.conf == "train" and config.study.name and codes[-1] == 0:
            studies[Path(config.paths.runs) / config.study.name] = None

    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [before[0], *quoted_values(settings, command.schema)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors, which Hydra would otherwise print in its own words
    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explained(error, command, settings)) from error
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
    for folder in studies:
        print(f"\n{load('affectgpt.training.study:report')(folder)}")
    return max(codes, default=0)
