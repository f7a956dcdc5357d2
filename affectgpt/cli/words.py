"""Arguments as people type them -> `key=value` settings that the parser takes. Texts in, texts out; nothing is read."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from affectgpt import config
from affectgpt.schema import LANGUAGES, TASKS

HYDRA_OPTIONS = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--config-dir",
    "-cd",
)
"""Options of Hydra that take a value."""
_SPOKEN = ("subtitle",)  # settings that hold what people said: quotes and ${...} in them are text
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_PLAIN = re.compile(r"[A-Za-z0-9_/\-\\+.$%*@?|: ]*")  # what Hydra's grammar takes without quotes


# ---------------------------------------------------------------- one command's own spellings


def train(arguments: Sequence[str]) -> list[str]:
    # The deepspeed launcher adds --local_rank=n, which is in the environment too.
    given = [argument for argument in arguments if not argument.startswith("--local_rank=")]
    return whole_weights(folders_as_data(given))


def infer(arguments: Sequence[str]) -> list[str]:
    """Accept model.llm.quantization=, as in training; inference has no group model, since a checkpoint brings it."""
    return [re.sub(r"^model\.llm\.(?=quantization=)", "", argument) for argument in arguments]


def zeroshot(arguments: Sequence[str]) -> list[str]:
    """`export`, `import FILE`, the name of a file in conf/zeroshot, and settings of `ask` without it, as overrides.

    >>> zeroshot(["import", "answers.jsonl", "out=p.jsonl"])
    ['action=import', 'ask.model=answers.jsonl', 'out=p.jsonl']
    >>> zeroshot(["qwen2_5_vl", "strategy=s0"])
    ['zeroshot=qwen2_5_vl', 'ask.strategy=s0']
    """
    changed = []
    asked = {field.name for field in dataclasses.fields(config.AskConfig)}
    for before, text in zip(["", *arguments], arguments, strict=False):
        if text.endswith(".jsonl") and "=" not in text:
            text = f"model={text}"
        if text.startswith("-") or before in HYDRA_OPTIONS or (text.partition("=")[0] not in asked and "=" in text):
            changed.append(text)
        elif "=" in text:
            changed.append(f"ask.{text}")
        else:
            changed.append(f"action={text}" if text in ("run", "export", "import") else f"zeroshot={text}")
    return changed


def analyze(arguments: Sequence[str]) -> list[str]:
    """Files given by name, and classes separated by commas.

    >>> analyze(["wheel", "S0=a.jsonl", "classes=happy,sad", "k=2"])
    ['wheel', 'named.S0=a.jsonl', 'classes=[happy,sad]', 'k=2']
    """
    known = {field.name for field in dataclasses.fields(config.AnalyzeConfig)}
    changed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "classes" and not value.startswith("["):
            argument = f"classes=[{value}]"
        elif equals and not name.startswith("-") and name.partition(".")[0] not in known and not is_file(argument):
            argument = f"named.{argument}"
        changed.append(argument)
    return changed


def folders_as_data(arguments: Sequence[str]) -> list[str]:
    """`data=FOLDER` for a folder with a manifest.jsonl, such as annotation writes: training data of both stages.

    A folder that exists wins over a file of conf/data of that name.

    >>> folders_as_data(["stage=coarse", "data=demo"])
    ['stage=coarse', 'data=demo']
    """
    changed: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        manifest = Path(value) / "manifest.jsonl"
        if key != "data" or not value or not manifest.is_file():
            changed.append(argument)
            continue
        sources = f"[{{manifest:{literal(str(manifest))}}}]"
        changed += ["data=own_manifest", f"data.name={literal(manifest.parent.name)}"]
        changed += [f"data.coarse={sources}", f"data.fine={sources}", "data.test=[]"]
    return changed


def whole_weights(arguments: Sequence[str]) -> list[str]:
    """Make `stage.tasks={labels:1}` mean these tasks and no others; Hydra alone would add them to those of the stage.

    >>> whole_weights(["stage.langs={zh:1}"])
    ['++stage.langs={en:0,zh:0}', 'stage.langs={zh:1}']
    """
    changed = []
    for argument in arguments:
        for key, names in (("stage.tasks", TASKS), ("stage.langs", LANGUAGES)):
            if argument.startswith(f"{key}={{"):
                changed.append(f"++{key}={{{','.join(f'{name}:0' for name in names)}}}")
        changed.append(argument)
    return changed


# ---------------------------------------------------------------- plain arguments and options


def is_file(text: str) -> bool:
    """Whether a file of that name exists. os.path, because Path.exists raises for a text too long for a file name."""
    return os.path.exists(text)


def split_plain(arguments: Sequence[str], schema: type) -> tuple[list[str], list[str]]:
    """(plain arguments, settings and options). A file wins over a setting or an option of that spelling.

    >>> split_plain(["it's.mp4", "task=labels", "--cfg", "job"], config.InferConfig)
    (["it's.mp4"], ['task=labels', '--cfg', 'job'])
    """
    plain: list[str] = []
    rest: list[str] = []
    takes_value = (*HYDRA_OPTIONS, *(f"--{name}" for name in _valued(schema)))
    for before, text in zip(["", *arguments], arguments, strict=False):
        is_option = before in takes_value or (not is_file(text) and (text.startswith("-") or "=" in text))
        (rest if is_option else plain).append(text)
    return plain, rest


def options_first(arguments: Sequence[str]) -> list[str]:
    """Options of Hydra before the settings, which its parser takes in one piece.

    >>> options_first(["stage=fine", "--cfg", "job", "seed=1", "-m"])
    ['--cfg', 'job', '-m', 'stage=fine', 'seed=1']
    """
    options: list[str] = []
    rest: list[str] = []
    for before, text in zip(["", *arguments], arguments, strict=False):
        (options if text.startswith("-") or before in HYDRA_OPTIONS else rest).append(text)
    return [*options, *rest]


def options_as_settings(arguments: Sequence[str], schema: type) -> list[str]:
    """`--json`, `--runs DIR` and `--runs=DIR` as settings, for names that the schema has.

    >>> options_as_settings(["--brief", "--runs", "r"], config.DemoConfig)
    ['brief=true', 'runs=r']
    """
    names = {field.name for field in dataclasses.fields(schema)}
    valued, changed, words = set(_valued(schema)), [], list(arguments)
    while words:
        word = words.pop(0)
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in names:
            changed.append(word)
        elif equals:
            changed.append(word[2:])
        elif name in valued and words:
            changed.append(f"{name}={words.pop(0)}")
        else:
            changed.append(f"{name}=true")
    return changed


def _valued(schema: type) -> Iterator[str]:
    return (field.name for field in dataclasses.fields(schema) if field.type != "bool")


# ---------------------------------------------------------------- values for Hydra


def kind_of(schema: type, key: str) -> str | None:
    """The type, as text, of the setting with a dotted name; None if the schema has no such setting.

    >>> kind_of(config.TrainConfig, "model.encoders.audio.path"), kind_of(config.TrainConfig, "stage.bach_size")
    ('str', None)
    """
    kind: str | None = schema.__name__
    for name in key.lstrip("+~").partition("@")[0].split("."):
        owner: Any = getattr(config, kind or "", None)
        if dataclasses.is_dataclass(owner):
            kind = next((str(field.type) for field in dataclasses.fields(owner) if field.name == name), None)
        elif kind and (match := re.fullmatch(r"dict\[str, (.+)\]", kind)):
            kind = match[1]
        else:
            return None
        if kind:
            kind = kind.removesuffix(" | None")
    return kind


def _is_open(schema: type, key: str) -> bool:
    """Whether the setting is a dictionary, or inside one, whose keys the user chooses."""
    parts = key.split(".")
    kinds = (kind_of(schema, ".".join(parts[: n + 1])) for n in range(len(parts)))
    return any((kind or "").startswith("dict[") for kind in kinds)


def quoted_values(arguments: Sequence[str], schema: type) -> list[str]:
    """Quote values for Hydra, in whose grammar quotes, commas, braces and all but ASCII letters have a meaning or none.

    A text setting takes its whole value as text; in other settings, each item of a list or dictionary that needs quotes
    gets them. `null` and what is quoted already stay. What people said is taken verbatim: quotes around it and `${...}`
    in it are text, too.

    >>> quoted_values(["subtitle=It's ok, a=b", "split=null", "candidates=[高兴,悲伤]"], config.InferConfig)
    ["subtitle='It\\\\'s ok, a=b'", 'split=null', "candidates=['高兴','悲伤']"]
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))  # in a sweep, commas separate values
    changed = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if sweep and equals and not key.startswith("-"):
            changed.append(f"{key}={_swept(value)}")
            continue
        if not equals or key.startswith("-") or value in ("", "null"):
            changed.append(argument)
            continue
        if key[0] not in "+~" and _is_open(schema, key):
            key = f"++{key}"  # Hydra would refuse keys that the configuration does not have yet
        if key in _SPOKEN:
            changed.append(f"{key}={literal(value)}")
        elif kind_of(schema, key) == "str":
            changed.append(f"{key}={value if _QUOTED.fullmatch(value) else quoted(value)}")
        else:
            changed.append(f"{key}={quoted_items(value)}")
    return changed


def from_hydra(overrides: Sequence[str]) -> list[str]:
    r"""The overrides of one job of a sweep as arguments: Hydra escapes values that come from a file.

    >>> from_hydra([r"model.llm.path=demo\:llm", "stage.epochs=2", "stage.tasks={both:1.0}", r"x=[a\:b,null]"])
    ["model.llm.path='demo:llm'", 'stage.epochs=2', 'stage.tasks={both:1.0}', "x=['a:b',null]"]
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = []
    for line, parsed in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        value = parsed.value()
        found.append(f"{line.partition('=')[0]}={_written(value)}" if isinstance(value, str | list | dict) else line)
    return found


def _written(value: Any) -> str:
    """A parsed value in Hydra's syntax, its texts quoted."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(each)}" for key, each in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _swept(value: str) -> str:
    """The values of a sweep, separated by commas, with quotes where Hydra needs them; functions of it stay.

    >>> _swept("实验一,b"), _swept("range(1,4)"), _swept("[1,2],[3]")
    ("'实验一',b", 'range(1,4)', '[1,2],[3]')
    """
    if _PLAIN.fullmatch(value.replace(",", "")) or re.match(r"\w+\(", value):
        return value
    return quoted_items(f"[{value}]")[1:-1]


def quoted_items(value: str) -> str:
    """`value` with quotes around each item that Hydra's grammar would not take as it is.

    >>> quoted_items("[{manifest:测试.csv,tasks:{labels:1}}]")
    "[{manifest:'测试.csv',tasks:{labels:1}}]"
    >>> quoted_items("[{name: mine, step: 'my_steps:mine'}]")
    "[{name: mine, step: 'my_steps:mine'}]"
    """
    if not value.startswith(("[", "{")):
        return value if _PLAIN.fullmatch(value) or _QUOTED.fullmatch(value) or "${" in value else quoted(value)
    done: list[str] = []
    open_brackets: list[str] = []
    at, in_key = 0, False
    while at < len(value):
        char = value[at]
        if (match := _QUOTED.match(value, at)) or (match := re.compile(r"\$\{[^}]*\}").match(value, at)):
            done.append(match[0])
            at = match.end()
            continue
        if char == " ":
            done.append(char)
            at += 1
            continue
        if char in "[{":
            open_brackets.append(char)
        elif char in "]}" and open_brackets:
            open_brackets.pop()
        if char in "[{]},":
            in_key = bool(open_brackets) and open_brackets[-1] == "{" and char in "{,"
            done.append(char)
            at += 1
            continue
        stop = re.compile(r"[\[\]{},:]" if in_key else r"[\[\]{},]").search(value, at)
        end = stop.start() if stop else len(value)
        item = value[at:end]
        done.append(item if in_key or _PLAIN.fullmatch(item) else quoted(item.strip()))
        at = end
        if in_key and at < len(value) and value[at] == ":":
            done.append(":")
            at, in_key = at + 1, False
    return "".join(done)


def quoted(text: str) -> str:
    """`text` as a quoted string of Hydra: there a backslash means itself, except in front of a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", _escape, text) + "'"


def unquoted(text: str) -> str:
    """`text` without quotes around the whole.

    >>> unquoted("'It\\\\'s'"), unquoted("It's")
    ("It's", "It's")
    """
    return re.sub(r"\\(['\"])", r"\1", text[1:-1]) if _QUOTED.fullmatch(text) else text


def literal(text: str) -> str:
    """`text` as a quoted string of Hydra in which `${` is no interpolation: OmegaConf wants a backslash before it."""
    return quoted(re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", text))


def _escape(match: re.Match[str]) -> str:
    return match[1] * 2 + match[2].replace("'", "\\'")
