"""Write docs/leaderboard.md from the published results in conf/benchmark: python docs/make_leaderboard.py"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without installation

from omegaconf import OmegaConf

from affectgpt.config import BenchmarkConfig

HERE = Path(__file__).resolve().parent
METRIC = {  # of kinds without a `metric`
    "openset": "F_S, level 1 mean over the five wheels",
    "hit_rate": "hit rate, level 1 mean over the five wheels",
    "sentiment": "weighted F1 of two classes",
    "classes": "weighted F1",
    "classes_valence": "weighted F1 - 0.25 MSE of the valence",
}
JUDGED = ("mme_emotion", "emobench_m")  # kinds that a chat model scores, or scores a part of
HEAD = """\
# What is published on each test set

Every number below is somebody else's, as printed in the source named beside it. None is a result of this project: no
model of this size was trained or run here. `python docs/make_leaderboard.py` makes this page of `conf/benchmark`.

- **primary**: read in the paper, or in the code or README of its authors. **secondary**: read in notes on a paper or in
  another paper's table; look it up before you cite it.
- A score under another metric than the set's own stands in a table of its own: such numbers are not comparable.
- Our score under the set's own metric, with a 95 % interval, comes from the command under the title. `DATA` is the
  folder with your copy of the files; `answers.jsonl` comes from `python infer.py DATA/clips.csv checkpoint=runs/fine
  out=answers.jsonl` or from any other system ([baselines](baselines.md), [score and submit](score-and-submit.md)). With
  the published wheel tables, add `lexicon=DATA/emotion_wheel`. Sets with questions of their own are asked by name, and
  some need a chat model as judge: [benchmarks with questions](question-benchmarks.md).
"""


def page(benchmarks: list[BenchmarkConfig]) -> str:
    with_results = [benchmark for benchmark in benchmarks if benchmark.published]
    parts = [HEAD, *("\n".join(section(benchmark)) for benchmark in with_results)]
    others = [f"`{benchmark.name}`" for benchmark in benchmarks if not benchmark.published]
    parts.append("## Sets without a published result here\n\n" + ", ".join(others) + ".")
    return "\n".join(parts) + "\n"


def section(benchmark: BenchmarkConfig) -> Iterator[str]:
    own = metric_of(benchmark)
    answers = "answers/" if benchmark.members else "answers.jsonl"
    yield f"## {benchmark.title}\n"
    yield f"Its metric: {own}.\n"
    judge = " llm.model=..." if benchmark.kind in JUDGED else ""
    yield f"    python eval.py benchmark={benchmark.name} benchmark.folder=DATA predictions={answers}{judge}\n"
    scored = [(row.get("metric"), row.get("split", benchmark.split)) for row in benchmark.published]
    for metric, split in sorted(dict.fromkeys(scored), key=lambda key: key[0] is not None):
        rows = [row for row, key in zip(benchmark.published, scored, strict=True) if key == (metric, split)]
        of_all = ", all clips" if benchmark.split and not split else ""
        yield f"| system | {metric or 'its metric'}{of_all} | source | certainty |"
        yield "|---|---|---|---|"
        for row in sorted(rows, key=lambda row: -row["value"]):
            yield f"| {row['system']} | {row['value']:.2f} | {row['source']} | {row.get('certainty', 'primary')} |"
        yield ""


def metric_of(benchmark: BenchmarkConfig) -> str:
    if benchmark.members:
        return f"mean of the primary scores of {len(benchmark.members)} sets (`{'`, `'.join(benchmark.members)}`)"
    return benchmark.metric or METRIC[benchmark.kind]


def shipped() -> list[BenchmarkConfig]:
    files = sorted((HERE.parent / "conf" / "benchmark").glob("*.yaml"))
    return [OmegaConf.to_object(OmegaConf.merge(BenchmarkConfig, OmegaConf.load(file))) for file in files]


if __name__ == "__main__":
    (HERE / "leaderboard.md").write_text(page(shipped()), encoding="utf-8")
