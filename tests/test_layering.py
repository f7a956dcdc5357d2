"""Who may import whom: a room of the package imports itself and lower rooms, nothing else. There are no exceptions.

Every file is read, `__main__` files and imports inside functions too. Rooms of one line of `LEVELS` do not import each
other. The command line names what commands run by text (`cli.table.load`): it is below the rooms that start commands.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "affectgpt"
LEVELS = (
    ("runtime", "config", "engine", "autoclasses"),
    ("tables", "journal", "plots", "spread", "confdoc", "media", "bases"),
    ("schema",),
    ("questions", "clauses", "cli"),
    ("prompts", "runs"),
    ("chat",),
    ("data", "metrics", "models"),
    ("cache",),
    ("inference",),
    ("training", "zeroshot", "serve"),
    (
        "annotate",
        "plan",
        "convert",
        "hub",
        "doctor",
        "analyze",
        "report",
        "submit",
        "export",
        "study",
        "loading",
        "othertools",
        "prefer",
        "ensemble",
    ),
    ("demo", "studio"),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, module) of everything that a file imports, wherever it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write imports in full"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_its_own_room_and_lower_ones(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        own_modules = {module.split(".")[1] for _, module in imported(path) if module.startswith("affectgpt")}
        assert own_modules == {"autoclasses"}
        return
    assert own in LEVEL, f"{own} is on no level; add it to LEVELS"
    for line, module in imported(path):
        room = module.split(".")[1] if module.startswith("affectgpt.") else own
        if room == "__version__":
            continue
        assert room == own or LEVEL[room] < LEVEL[own], f"{path.relative_to(PACKAGE)}:{line} imports {module}"


def test_files_import_each_other_in_no_circle():
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}

    def targets(path: Path) -> set[str]:
        found = set()
        for _, module in imported(path):
            name = module
            while name and name not in files:
                name = name.rpartition(".")[0]
            if name and name != "affectgpt":
                found.add(name)
        return found

    graph = {name: targets(path) - {name} for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_annotating_from_stored_answers_and_fetching_base_models_import_no_torch():
    loaded = loaded_after(
        "import affectgpt.annotate.run, affectgpt.annotate.verbs, affectgpt.hub.push, affectgpt.bases"
    )
    assert not loaded & {"torch", "transformers"}


def test_importing_the_package_schema_media_and_metrics_loads_no_torch():
    modules = (
        "affectgpt.schema, affectgpt.prompts, affectgpt.media, affectgpt.metrics, affectgpt.cli, affectgpt.confdoc"
    )
    loaded = loaded_after(f"import {modules}")
    assert not loaded & {"torch", "transformers", "hydra", "omegaconf"}
