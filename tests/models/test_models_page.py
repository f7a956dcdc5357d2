"""docs/models.md: every command in it composes to a model that can be built."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from affectgpt.cli import compose
from affectgpt.models import build_hollow, model_spec, trainable_table
from tests.models.test_presets import PUBLISHED, hollow

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    python train\.py (.+)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--config-dir" not in command])
@pytest.mark.usefixtures("few_layers")
def test_a_command_of_the_page_builds_a_model_and_trains_what_it_has(command):
    config = compose("train", shlex.split(command))
    model = build_hollow(model_spec(config.model, seed=42))
    assert model.set_trainable(config.stage.trainable) > 0


def test_the_table_of_presets_holds_the_counted_numbers():
    for preset, (tokens, n_trained, n_lora) in PUBLISHED.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{preset}` |"))
        assert f"| {sum(tokens.values())} = " in row
        assert f"| {n_trained:,} | {f'{n_lora:,}' if n_lora else '–'} |" in row


def test_the_printed_table_is_what_the_code_above_it_prints():
    printed = re.search(r"```\n(part .+?)\n```", PAGE, flags=re.DOTALL)
    assert printed[1] == trainable_table(hollow("affectgpt_v1"))
