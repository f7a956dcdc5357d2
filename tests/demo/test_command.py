import re
from pathlib import Path
from types import SimpleNamespace

from affectgpt.demo.command import table

README = Path(__file__).parents[2] / "README.md"


def test_the_table_is_printed_as_in_the_readme():
    shown = re.search(r"^test split.+?(?=^```)", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[
        0
    ].strip()
    rows = []
    for line in shown.splitlines()[1:]:
        title, f_score, precision, recall, n, low, high = re.fullmatch(
            r"(.+?) +([\d.]+) +([\d.]+) +([\d.]+) +(\d+) +([\d.]+) to ([\d.]+)", line
        ).groups()
        interval = SimpleNamespace(low=float(low) / 100, high=float(high) / 100)
        score = SimpleNamespace(
            f_score=float(f_score) / 100, precision=float(precision) / 100, recall=float(recall) / 100, n=int(n),
            interval=interval,
        )  # fmt: skip
        rows.append((title, SimpleNamespace(primary=score)))
    assert len(rows) == 8
    assert table(rows) == shown
