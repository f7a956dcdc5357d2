import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from affectgpt import doctor
from affectgpt.cli.table import COMMANDS
from tests.test_layering import LEVELS

tomllib = pytest.importorskip("tomllib") if sys.version_info < (3, 11) else __import__("tomllib")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_folder_is_installed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "affectgpt").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"affectgpt.conf"}


def test_every_data_file_of_a_package_is_installed():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    folders = {name: ROOT / "conf" if name == "affectgpt.conf" else ROOT / Path(*name.split(".")) for name in patterns}
    installed = {path for name, folder in folders.items() for glob in patterns[name] for path in folder.glob(glob)}
    found = {path for room in ("affectgpt", "conf") for path in (ROOT / room).rglob("*.*") if path.is_file()}
    assert not {path for path in found - installed if path.suffix != ".py" and "__pycache__" not in path.parts}
    for needed in ("conf/train.yaml", "affectgpt/studio/static/index.html", "affectgpt/metrics/lexicon/builtin.tsv"):
        assert ROOT / needed in installed


def test_the_tested_versions_are_within_the_bounds_and_cover_the_core():
    lines = (ROOT / "docs" / "install" / "tested-versions.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(doctor.CORE) <= tested.keys()
    versions = {"python": "3.11", **tested}
    assert doctor.known_mismatches(versions) == []
    for extra in ("serve", "tensorboard", "deepspeed", "quantization", "speech", "structured"):
        assert set(doctor.EXTRAS[extra][1]) <= tested.keys(), extra


def test_docker_and_conda_name_extras_that_exist_and_files_that_exist():
    folder = ROOT / "docs" / "install"
    docker = (folder / "Dockerfile").read_text(encoding="utf-8")
    conda = (folder / "environment.yml").read_text(encoding="utf-8")
    (named,) = re.findall(r"ARG EXTRAS=(\S+)", docker)
    assert re.findall(r"-e ../../\.\[(\S+)\]", conda) == [named]
    assert set(named.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    for line in re.findall(r"^COPY (.+) \S+$", docker, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split()), line


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
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_python_files_named_in_the_docs_exist():
    for page in PAGES:
        for name in re.findall(r"`([\w.]+/[\w./]+\.py)`", page.read_text(encoding="utf-8")):
            found = (ROOT / name).is_file() or (ROOT / "affectgpt" / name).is_file()
            assert found, f"{page.name} names {name}, which does not exist"


def test_architecture_lists_every_room_at_its_level():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    levels: list[set[str]] = []
    for level, names in re.findall(r"^\| ?(\d*) \| ((?:`\w+`,? ?)+) \|", text, re.MULTILINE):
        if level:
            assert int(level) == len(levels) + 1
            levels.append(set())
        levels[-1] |= set(re.findall(r"`(\w+)`", names))
    assert levels == [set(names) for names in LEVELS]


def test_every_room_with_functions_has_tests_and_every_folder_of_tests_belongs_to_a_room():
    package, tests = ROOT / "affectgpt", ROOT / "tests"
    rooms = {path.name: path for path in package.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem: path for path in package.glob("*.py") if path.stem != "__init__" and has_functions(path)}
    for name in rooms:
        found = [*(tests / name).glob("test_*.py"), *tests.glob(f"test_{name}.py")]
        assert found, f"affectgpt/{name} has neither tests/{name}/test_*.py nor tests/test_{name}.py"
    folders = {path.name for path in tests.iterdir() if (path / "__init__.py").is_file()}
    assert folders - {"fidelity"} <= rooms.keys()  # which compares several rooms with the published code


def has_functions(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) for node in ast.parse(path.read_text(encoding="utf-8")).body)
