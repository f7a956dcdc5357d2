"""Benchmarks as tasks of lmms-eval, scored by `metrics.benchmarks` as eval.py scores them.

A task is a folder: <name>.yaml, <name>.jsonl (its clips and questions), <name>.json (what it is scored against) and
utils.py, which takes the functions below. They need no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.config import BenchmarkConfig
from affectgpt.metrics.benchmarks import run_benchmark
from affectgpt.runtime import InputError, json_line, write_json_atomic, write_lines_atomic, write_text_atomic

if TYPE_CHECKING:
    from affectgpt.data.stream import Draw

TASK_YAML = """\
# Written by `python -m affectgpt.data export to=lmms-eval`: lmms_eval --include_path {folder} --tasks {name}
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {table}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_messages: !function utils.doc_to_messages
doc_to_target: target
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 256
  temperature: 0
  do_sample: false
metric_list:
  - metric: score
    aggregation: !function utils.score
    higher_is_better: true
metadata:
  - version: 1.0
"""
UTILS = '''"""Functions of the tasks in this folder; written by `python -m affectgpt.data export to=lmms-eval`."""

from pathlib import Path

from affectgpt.othertools.lmms_eval import doc_to_messages, doc_to_text, doc_to_visual, process_results, score_answers


def score(items):
    return score_answers(items, Path(__file__).parent)
'''


# ---- what lmms-eval calls --------------------------------------------------------------------------------------------


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The question, with the subtitle."""
    return str(doc["question"])


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video, for models that take no messages."""
    return [doc["video"]] if doc["video"] else []


def doc_to_messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One user message: the video, the audio file if the clip has one of its own, the question."""
    media = [{"type": kind, "url": doc[kind]} for kind in ("video", "audio") if doc[kind]]
    return [{"role": "user", "content": [*media, {"type": "text", "text": doc["question"]}]}]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The answer to one clip, for `score_answers`."""
    return {"score": {"id": doc["id"], "task": doc["task"], "answer": results[0]}}


def score_answers(items: Sequence[Mapping[str, Any]], folder: Path) -> float:
    """The benchmark's primary score in percent; prints its table. Clips without an answer count as answered wrong.

    Args:
        items: the values of `process_results`.
        folder: of the task.
    """
    config = BenchmarkConfig(**json.loads((folder / f"{items[0]['task']}.json").read_text(encoding="utf-8")))
    result = run_benchmark(config, {item["id"]: item["answer"] for item in items})
    print(result.table())
    return 100 * result.value


# ---- writing ---------------------------------------------------------------------------------------------------------


def benchmark_of_labels(name: str, out: Path, draws: Sequence[Draw]) -> BenchmarkConfig:
    """Open-vocabulary scores against the labels of the samples themselves, which are written as its references."""
    references = out / f"{name}-references.jsonl"
    write_lines_atomic(references, [json_line({"id": each.sample.id, "labels": each.labels}) for each in draws])
    return BenchmarkConfig(name=name, title=name, folder=str(out), references=references.name)


def write_task(out: Path, name: str, draws: Sequence[Draw], benchmark: BenchmarkConfig | None) -> list[Path]:
    """Write the folder of a task, whose references are read once, as a check; returns the files.

    Raises:
        InputError: a mean of benchmarks, one that scores valences, references that cannot be read, or none of a clip.
    """
    from affectgpt.othertools.rows import media_of, text_of  # needs decoders, which a run of lmms-eval does not

    out = out.resolve()
    if benchmark is None:
        benchmark = benchmark_of_labels(name, out, draws)
    if benchmark.members:
        raise InputError(f"benchmark={benchmark.name} is a mean; write one of its members: {benchmark.members}")
    if benchmark.kind == "classes_valence":
        raise InputError(f"benchmark={benchmark.name} scores a valence, which answers in words do not have")
    benchmark = replace(benchmark, folder=str(Path(benchmark.folder).resolve()) if benchmark.folder else None)
    ids = {draw.sample.id for draw in draws}
    scored = run_benchmark(benchmark, dict.fromkeys(ids, ""), n_bootstrap=0)
    missing = scored.report.counts.missing if scored.report else scored.details["missing"]
    if missing:
        print(f"{missing} clips of the benchmark are not in the data; they count as answered wrong")
    rows = []
    for draw in draws:
        media = {column[:-1]: "".join(paths) for column, paths in media_of(draw).items()}
        row = {"id": draw.sample.id, "task": name, "question": text_of(draw), **media}
        rows.append(json_line(row | {"target": ", ".join(draw.labels) or draw.sample.label or ""}))
    table = out / f"{name}.jsonl"
    write_lines_atomic(table, rows)
    write_json_atomic(out / f"{name}.json", asdict(benchmark))
    write_text_atomic(out / f"{name}.yaml", TASK_YAML.format(name=name, folder=out, table=json.dumps(str(table))))
    write_text_atomic(out / "utils.py", UTILS)
    return [out / f"{name}.yaml", table, out / f"{name}.json", out / "utils.py"]
