"""Generate docs/configuration.md and the --help texts from the dataclasses of `affectgpt.config` and their comments.

python -m affectgpt.confdoc > docs/configuration.md
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator

from affectgpt import config

_FIELD = re.compile(r"    (\w+): (.+?) = (.+?)  # (.+)")


def fields_of(schema: type) -> Iterator[tuple[str, str, str | None, str]]:
    """(name, type, default, comment) of each field, in order; the default is None for groups and required settings.

    Raises:
        ValueError: a field has no comment.
    """
    lines = [line for owner in schema.__mro__[-2::-1] for line in inspect.getsource(owner).splitlines()]
    found = {match[1]: match for line in lines if (match := _FIELD.match(line))}
    for field in dataclasses.fields(schema):
        if field.name not in found:
            raise ValueError(f"{schema.__name__}.{field.name} has no comment; write `name: type = default  # meaning`")
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
    """(dotted name, default, comment) of every setting, with groups expanded."""
    for name, kind, default, comment in fields_of(schema):
        group = getattr(config, kind, None)
        if dataclasses.is_dataclass(group):
            assert isinstance(group, type)
            yield from settings_of(group, f"{prefix}{name}.")
        else:
            yield prefix + name, default, comment


def document() -> str:
    """The complete page in Markdown."""
    lines = [
        "# Configuration",
        "",
        "All settings, generated from `affectgpt/config.py` by `python -m affectgpt.confdoc`. Values are set in the",
        "YAML files under `conf/` or on the command line as `key=value`, with dots for nested keys",
        "(`stage.batch_size=8`). Misspelt keys and values of the wrong type are rejected before anything runs.",
        "`--cfg job` prints the composed configuration.",
        "",
    ]
    classes = [item for item in vars(config).values() if isinstance(item, type)]
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
