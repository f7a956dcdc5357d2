"""Benchmarks as tasks of lmms-eval: the folder, its functions, and that its score is the one of eval.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from affectgpt.cli import run
from affectgpt.config import BenchmarkConfig
from affectgpt.metrics.benchmarks import run_benchmark
from affectgpt.othertools.lmms_eval import process_results
from affectgpt.schema import Sample, write_jsonl
from tests.data.conftest import write_clip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        write_clip(folder / f"{number}.mp4", seed=number)
    truths = (("happy", "proud"), ("sad",), ("angry", "hurt"))
    samples = [Sample(f"c{number}", f"{number}.mp4", labels=truth) for number, truth in enumerate(truths)]
    write_jsonl(folder / "m.jsonl", samples)
    return folder / "m.jsonl"


def functions_of(folder: Path):
    spec = importlib.util.spec_from_file_location("task_utils", folder / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scored(folder: Path, name: str, answers: list[str]) -> float:
    docs = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    items = [process_results(doc, [answer])["score"] for doc, answer in zip(docs, answers, strict=True)]
    return functions_of(folder).score(items)


ANSWERS = ["joyful", "Emotions: angry, sad", ""]


def test_a_task_asks_for_labels_and_is_scored_as_eval_scores(manifest, tmp_path, capsys):
    assert run("data", ["export", str(manifest), "to=lmms-eval", f"out={tmp_path}", "name=mine"]) == 0
    doc = json.loads((tmp_path / "mine.jsonl").read_text().splitlines()[0])
    functions = functions_of(tmp_path)
    assert functions.doc_to_visual(doc) == [str(manifest.parent / "0.mp4")]
    (message,) = functions.doc_to_messages(doc)
    assert [part["type"] for part in message["content"]] == ["video", "text"]
    assert message["content"][1]["text"] == functions.doc_to_text(doc)
    assert "emotion words only" in functions.doc_to_text(doc)
    assert "<video>" not in functions.doc_to_text(doc)
    assert doc["target"] == "happy, proud"
    config = BenchmarkConfig(name="mine", folder=str(manifest.parent), references="m.jsonl")
    expected = run_benchmark(config, dict(zip(("c0", "c1", "c2"), ANSWERS, strict=True)))
    assert 0 < expected.value < 1
    assert scored(tmp_path, "mine", ANSWERS) == pytest.approx(100 * expected.value)
    assert "F_S" in capsys.readouterr().out


def test_a_published_benchmark_keeps_its_question_and_score(manifest, tmp_path, capsys):
    (tmp_path / "truth.csv").write_text("name,label\nc0,happy\nc1,sad\nc2,angry\nc3,sad\n")
    given = ["benchmark=mer2023_semi", f"benchmark.folder={tmp_path}", "benchmark.references=truth.csv"]
    assert run("data", ["export", str(manifest), "to=lmms-eval", f"out={tmp_path}/t", "name=semi", *given]) == 0
    assert "1 clips of the benchmark are not in the data" in capsys.readouterr().out
    doc = json.loads((tmp_path / "t/semi.jsonl").read_text().splitlines()[0])
    assert "Which one of these emotions" in doc["question"]
    assert scored(tmp_path / "t", "semi", ["happy", "sad", "angry"]) < 100, "c3 has no answer"


def test_what_is_no_single_task_is_refused(manifest, tmp_path, capsys):
    given = [str(manifest), "to=lmms-eval", f"out={tmp_path}"]
    assert run("data", ["export", *given, "benchmark=mer_unibench", f"benchmark.folder={tmp_path}"]) == 2
    assert "is a mean; write one of its members" in capsys.readouterr().err
    assert run("data", ["export", *given, "benchmark=mer2023_multi", f"benchmark.folder={tmp_path}"]) == 2
    assert "scores a valence" in capsys.readouterr().err
    assert run("data", ["export", *given, "pairs=[judged]"]) == 2
    assert "pairs are for training" in capsys.readouterr().err
