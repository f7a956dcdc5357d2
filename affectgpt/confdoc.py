"""Writes docs/configuration.md and the --help texts from the dataclasses of `conf_schema` and their comments.

python -m affectgpt.confdoc > docs/configuration.md
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator

from affectgpt import config as conf_schema
from affectgpt.runtime import InputError

_FIELD = re.compile(r"    (\w+): (.+?) = (.+?)  # (.+)")


def fields_of(schema: type) -> Iterator[tuple[str, str, str | None, str]]:
    """(name, type, default or None where it is a group or must be given, comment) of each field, in order.

    Raises:
        ValueError: a field has no comment.
    """
    found = {match[1]: match for line in inspect.getsource(schema).splitlines() if (match := _FIELD.match(line))}
    for field in dataclasses.fields(schema):
        if field.name not in found:
            raise InputError(f"{schema.__name__}.{field.name} has no comment; write `name: type = default  # meaning`")
        _, kind, default, comment = found[field.name].groups()
        if match := re.search(r"default_factory=lambda: (.+)\)$", default):
            default = match[1]
        elif "default_factory" in default:
            default = {"list": "[]", "dict": "{}"}.get(default.split("default_factory=")[1].rstrip(")"))
        elif default == '"???"':
            default = None
        else:
            default = "null" if default == "None" else str(ast.literal_eval(default))
            default = {"True": "true", "False": "false"}.get(default, default)
        yield field.name, kind, default, comment


def settings_of(schema: type, prefix: str = "") -> Iterator[tuple[str, str | None, str]]:
    """(dotted name, default, comment) of every setting; groups stand as their own settings."""
    for name, kind, default, comment in fields_of(schema):
        group = getattr(conf_schema, kind, None)
        if dataclasses.is_dataclass(group):
            assert isinstance(group, type)
            yield from settings_of(group, f"{prefix}{name}.")
        else:
            yield prefix + name, default, comment


def document() -> str:
    """The whole page, in Markdown."""
    lines = [
        "# Configuration",
        "",
        "Every setting, generated from `affectgpt/config.py` by `python -m affectgpt.confdoc`. Values stand in",
        "the YAML files under `conf/`; anything can be set on the command line as `key=value`, nested with dots",
        "(`stage.batch_size=8`). A misspelt key or a value of the wrong type is refused before anything runs.",
        "`--cfg job` prints the composed configuration.",
        "",
    ]
    classes = [item for item in vars(conf_schema).values() if isinstance(item, type)]
    schemas = [item for item in classes if dataclasses.is_dataclass(item)]
    commands = {schema for schema in schemas if (inspect.getdoc(schema) or "").startswith("python ")}
    for schema in sorted(schemas, key=lambda item: item not in commands):
        title = (inspect.getdoc(schema) or schema.__name__).rstrip(".")
        heading = f"`{title}`" if schema in commands else schema.__name__.removesuffix("Config")
        lines += [f"## {heading}", ""]
        if schema not in commands:
            lines += [f"{title}.", ""]
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for name, kind, default, comment in fields_of(schema):
            kind = kind.replace("|", "or")
            shown = "" if default is None else f"`{default}`"
            lines.append(f"| `{name}` | {kind} | {shown} | {comment.replace('|', 'or')} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")
