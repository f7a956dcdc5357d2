import importlib
import re
import sys
from pathlib import Path

import pytest

from affectgpt.cli.table import COMMANDS

tomllib = pytest.importorskip("tomllib") if sys.version_info < (3, 11) else __import__("tomllib")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_folder_is_installed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "affectgpt").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"affectgpt.conf"}


def test_every_console_script_points_to_a_function():
    for target in PROJECT["project"]["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), target


def test_every_command_has_a_console_script():
    commands = {name.partition(" ")[0] for name in COMMANDS}
    assert {f"affectgpt-{name}" for name in commands} == set(PROJECT["project"]["scripts"])


def test_the_core_depends_on_no_package_whose_wheels_need_cuda():
    core = {re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert not core & {"torchvision", "torchaudio", "deepspeed", "decord", "timm"}
    torch = next(line for line in PROJECT["project"]["dependencies"] if line.startswith("torch>"))
    assert torch == "torch>=2.6,<2.14"


def test_links_in_the_docs_point_to_existing_files():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
