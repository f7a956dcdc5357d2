"""Benchmarks: every shipped file composes, every kind is scored, and missing files are named."""

import json
from pathlib import Path

import numpy as np
import pytest

from affectgpt import config as conf
from affectgpt.cli import compose
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.metrics.benchmarks import BENCHMARK_KINDS, mean_result, run_benchmark
from affectgpt.metrics.io import ScoreFileError
from affectgpt.runtime import UserError

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "benchmark").glob("*.yaml"))
NAMES = [path.stem for path in FILES]


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_benchmark_composes_and_is_complete(name):
    benchmark = compose("eval", [f"benchmark={name}", "benchmark.folder=/data"]).benchmark
    assert benchmark.name == name
    assert benchmark.title
    assert set(benchmark.members) <= set(NAMES)
    if not benchmark.members:
        assert benchmark.references
        assert benchmark.kind in BENCHMARK_KINDS
        assert bool(benchmark.classes) or benchmark.kind != "classes"
    for row in benchmark.published:
        assert {"system", "value", "source"} <= set(row)
        assert 0 < row["value"] < 100


def test_the_benchmarks_of_the_field_are_included():
    wanted = {"emer_fine", "ovmerd", "ovmerd_plus", "mer2023_semi", "mer2024", "mer2025_ov", "mer2026_ov", "meld"}
    wanted |= {"iemocap4", "cmu_mosi", "cmu_mosei", "ch_sims", "ch_sims_v2", "dfew", "mer_unibench"}
    assert wanted <= set(NAMES)


def test_no_benchmark_is_the_default():
    assert compose("eval").benchmark.name == ""


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return name


def benchmark(folder, kind, references, **values):
    return conf.BenchmarkConfig(name="toy", title="Toy", folder=str(folder), kind=kind, references=references, **values)


def test_openset(tmp_path):
    name = write(tmp_path, "gt.csv", "name,openset\na,['happy']\nb,['angry']\n")
    result = run_benchmark(benchmark(tmp_path, "openset", name), {"a": ["glad"], "b": ["sad"]}, n_bootstrap=0)
    assert (result.metric, result.n) == ("F_S, level 1 mean", 2)
    assert result.value == result.report.primary.f_score


def test_hit_rate_classes_and_sentiment(tmp_path):
    labels = write(tmp_path, "label.csv", "name,discrete\na,happy\nb,angry\nc,neutral\n")
    predictions = {"a": ["joyful"], "b": "I cannot tell.", "c": ["neutral"]}
    hits = run_benchmark(benchmark(tmp_path, "hit_rate", labels), predictions)
    assert (hits.value, hits.n, hits.details["without labels"]) == (0.5, 2, 1)
    classes = ["happy", "angry", "neutral"]
    scored = run_benchmark(benchmark(tmp_path, "classes", labels, classes=classes, metric="WAR"), predictions)
    assert (scored.metric, scored.value) == ("WAR", pytest.approx(2 / 3))
    assert scored.details["unparsed or none of the classes"] == 1
    bad = write(tmp_path, "bad.csv", "name,val\na,high\n")
    with pytest.raises(ScoreFileError, match=r"bad\.csv: the score of 'a' must be a number, found 'high'"):
        run_benchmark(benchmark(tmp_path, "sentiment", bad), {"a": ["happy"]})
    scores = write(tmp_path, "scores.csv", "name,val\na,1.5\nb,-0.5\nc,0\n")
    sentiment = run_benchmark(benchmark(tmp_path, "sentiment", scores), {"a": ["happy"], "b": ["furious"]})
    assert (sentiment.value, sentiment.n, sentiment.details["dropped, true score 0"]) == (1.0, 2, 1)


def test_a_pickled_label_file_needs_trust_and_the_right_array(tmp_path):
    corpus = {"a": {"emo": 0, "val": 1.0}, "b": {"emo": 1, "val": -1.0}}
    np.savez(tmp_path / "label.npz", test_corpus=np.array(corpus, dtype=object))
    config = benchmark(tmp_path, "hit_rate", "label.npz", classes=["happy", "sad"])
    with pytest.raises(ScoreFileError, match=r"pickled objects.*set benchmark\.trust_pickle=true"):
        run_benchmark(config, {"a": ["glad"]})
    config.trust_pickle = True
    assert run_benchmark(config, {"a": ["glad"], "b": ["sad"]}).value == 1.0
    config.classes = ["happy"]
    with pytest.raises(ScoreFileError, match=r"'b' has class number 1, benchmark\.classes names \['happy'\]"):
        run_benchmark(config, {"a": ["glad"]})
    config.array = "other"
    with pytest.raises(ScoreFileError, match=r"no array 'other', only \['test_corpus'\]"):
        run_benchmark(config, {"a": ["glad"]})


def test_a_missing_folder_or_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="set the folder of your copy"):
        run_benchmark(conf.BenchmarkConfig(name="toy", references="x.csv"), {})
    with pytest.raises(ScoreFileError, match=r"no 'x\.csv' in"):
        run_benchmark(benchmark(tmp_path, "openset", "x.csv"), {})
    with pytest.raises(ValueError, match="kind 'x' is not one of"):
        run_benchmark(benchmark(tmp_path, "x", "x.csv"), {})


def evaluate(*overrides):
    config = compose("eval", list(overrides))
    members = [compose("eval", [f"benchmark={name}"]).benchmark for name in config.benchmark.members]
    for member in members:
        member.folder, member.trust_pickle = config.benchmark.folder, config.benchmark.trust_pickle
    return run_evaluation(config, members)


def test_eval_scores_a_benchmark_and_prints_published_results(tmp_path, capsys):
    write(tmp_path, "track2_train_ovmerd.csv", "name,openset\na,['happy']\n")
    write(tmp_path, "p.csv", "name,openset\na,['glad']\n")
    assert evaluate("benchmark=ovmerd", f"benchmark.folder={tmp_path}", f"predictions={tmp_path / 'p.csv'}") == 0
    shown = capsys.readouterr().out
    assert "OV-MERD: F_S, level 1 mean 100.00" in shown
    assert "Chat-UniVi" in shown
    assert json.loads((tmp_path / "benchmark-ovmerd.json").read_text(encoding="utf-8"))["value"] == 1.0


def test_mer_unibench_is_the_mean_of_its_members(tmp_path, capsys):
    answers = tmp_path / "answers"
    answers.mkdir()
    for name in compose("eval", ["benchmark=mer_unibench"]).benchmark.members:
        member = compose("eval", [f"benchmark={name}"]).benchmark
        path = tmp_path / member.references
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            path.write_text("name,openset\na,['happy']\n", encoding="utf-8")
        else:
            corpus = {"a": {"emo": "happy", "val": 1.0}}
            before = dict(np.load(path, allow_pickle=True)) if path.exists() else {}
            np.savez(path, **before, **{member.array: np.array(corpus, dtype=object)})
        write(answers, f"{name}.csv", "name,openset\na,['sad']\n" if name == "meld" else "name,openset\na,['glad']\n")
    options = [f"benchmark.folder={tmp_path}", "benchmark.trust_pickle=true", "n_bootstrap=0"]
    assert evaluate("benchmark=mer_unibench", f"predictions={answers}", *options) == 0
    mean = json.loads((answers / "benchmark-mer_unibench.json").read_text(encoding="utf-8"))
    assert mean["value"] == pytest.approx(8 / 9)
    assert mean["n"] == 9
    (answers / "meld.csv").unlink()
    with pytest.raises(UserError, match=r"no predictions for meld: expected meld\.jsonl, \.csv or \.npz"):
        evaluate("benchmark=mer_unibench", f"predictions={answers}", *options)
    capsys.readouterr()


def test_eval_compares_files_and_one_file_is_an_error(tmp_path, capsys):
    write(tmp_path, "gt.csv", "name,openset\na,['happy']\nb,['sad']\n")
    write(tmp_path, "one.csv", "name,openset\na,['glad']\nb,['sad']\n")
    write(tmp_path, "two.csv", "name,openset\na,['angry']\nb,['sad']\n")
    files = f"predictions=[{tmp_path / 'one.csv'},{tmp_path / 'two.csv'}]"
    assert evaluate(files, f"references={tmp_path / 'gt.csv'}", "compare=true", "n_bootstrap=50") == 0
    assert "one - two: +" in capsys.readouterr().out
    assert (tmp_path / "comparison.json").is_file()
    with pytest.raises(UserError, match="two or more predictions files"):
        evaluate(f"predictions={tmp_path / 'one.csv'}", f"references={tmp_path / 'gt.csv'}", "compare=true")


def test_an_empty_mean_is_an_error():
    with pytest.raises(ValueError, match="no benchmark results"):
        mean_result([], "x", "X")
