"""Who may import whom: a module imports its own package and lower levels only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "affectgpt"
LEVELS = {
    0: ("schema", "prompts"),
    1: ("conf_schema", "confdoc", "runtime", "llm", "media", "tables", "doctor", "mllm_video", "streaming"),
    2: ("metrics", "data", "models", "mllm"),
    3: ("training", "inference", "inference_vllm", "loading", "costs", "zeroshot", "annotate", "demo"),
    4: ("cli", "cache", "commands", "export", "hub", "plan", "study", "analyze", "submit", "convert", "serve"),
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
# One part may use another of the same level only where it is listed here.
SIDEWAYS = {
    ("prompts", "schema"),
    ("schema", "prompts"),
    ("confdoc", "conf_schema"),
    ("doctor", "runtime"),
    ("llm", "runtime"),
    ("doctor", "media"),
    ("training", "inference"),
    ("inference_vllm", "inference"),
    ("zeroshot", "inference"),
    ("training", "loading"),
    ("loading", "training"),
    ("cli", "commands"),
    ("cli", "export"),
    ("export", "cli"),
    ("cli", "hub"),
    ("hub", "cli"),
    ("hub", "export"),
    ("cli", "plan"),
    ("plan", "cli"),
    ("cli", "study"),
    ("cli", "cache"),
    ("cli", "serve"),
    ("cache", "cli"),
    ("study", "commands"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_its_own_part_and_lower_levels(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__" or path.name == "__main__.py":
        return
    assert own in LEVEL, f"{own} is on no level; add it to LEVELS"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module == "affectgpt":
                modules = [f"affectgpt.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module.split(".")[0] == "affectgpt" and (other := part_of(module)) and other != own:
                allowed = LEVEL[other] < LEVEL[own] or (own, other) in SIDEWAYS
                assert allowed, f"{path.relative_to(PACKAGE)}:{node.lineno} imports {module}"


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_schema_media_and_metrics_loads_no_torch():
    modules = (
        "affectgpt.schema, affectgpt.prompts, affectgpt.media, affectgpt.metrics, affectgpt.cli, affectgpt.confdoc"
    )
    loaded = loaded_after(f"import {modules}")
    assert not loaded & {"torch", "transformers", "hydra", "omegaconf"}
