"""Run docs/tour.ipynb and store its outputs: python docs/make_tour.py runs (the folder that `make demo` filled).

Cells run one after the other in one namespace, without Jupyter. Pictures are reduced to 64 colours.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without installation

NOTEBOOK = Path(__file__).resolve().with_name("tour.ipynb")


def main(runs: Path) -> None:
    runs = runs.resolve()
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.symlink(runs, "runs")
        for number, (cell, (printed, value)) in enumerate(zip(cells, run_cells(sources(cells)), strict=True), 1):
            cell["execution_count"] = number
            cell["outputs"] = list(outputs(printed.replace(folder, "."), value, number))
    NOTEBOOK.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def sources(cells: Iterable[dict[str, Any]]) -> list[str]:
    return ["".join(cell["source"]) for cell in cells]


def run_cells(
    cells: Iterable[str], names: dict[str, Any] | None = None, title: str = "cell"
) -> Iterator[tuple[str, Any]]:
    """Run each cell in the namespace `names`; yield what it printed, and the value of its last expression, if any."""
    names = {} if names is None else names
    for number, cell in enumerate(cells, 1):
        tree = ast.parse(cell, f"{title} {number}")
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"{title} {number}", "exec"), names)  # noqa: S102 (our own pages)
            value = None if last is None else eval(compile(last, f"{title} {number}", "eval"), names)
        yield printed.getvalue(), value


def outputs(printed: str, value: Any, number: int) -> Iterator[dict[str, Any]]:
    """The outputs of a cell as notebooks store them (nbformat 4)."""
    if printed:
        yield {"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)}
    if value is not None:
        data = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(reduced(value._repr_png_())).decode("ascii") + "\n"
        yield {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}


def reduced(png: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((800, 800))
    image.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
