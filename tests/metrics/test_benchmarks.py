"""Benchmarks: every shipped file composes, every kind is scored, and missing files are named."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from affectgpt import config as conf
from affectgpt.cli import compose, composed
from affectgpt.data.splits import hold_out
from affectgpt.metrics.benchmarks import BENCHMARK_KINDS, mean_result, read_true_values, run_benchmark
from affectgpt.metrics.clip_scores import read_scores
from affectgpt.metrics.io import ScoreFileError
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import Prediction, Sample

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
        assert row.get("certainty", "primary") in ("primary", "secondary")


def test_the_page_of_published_results_is_that_of_the_shipped_files():
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = runpy.run_path(str(docs / "make_leaderboard.py"))
    assert page["page"](page["shipped"]()) == (docs / "leaderboard.md").read_text(encoding="utf-8"), (
        "docs/leaderboard.md is out of date: python docs/make_leaderboard.py"
    )


def test_the_benchmarks_of_the_field_are_included():
    wanted = {"emer_fine", "ovmerd", "ovmerd_plus", "mer2023_semi", "mer2024", "mer2025_ov", "mer2026_ov", "meld"}
    wanted |= {
        "mafw",
        "caer",
        "ravdess",
        "emotiontalk",
        "iemocap4",
        "cmu_mosi",
        "cmu_mosei",
        "ch_sims",
        "ch_sims_v2",
        "dfew",
        "mer_unibench",
    }
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
    write(tmp_path, "scores.csv", "name,val\na,1.5\na,-0.5\n")
    with pytest.raises(ScoreFileError, match=r"scores\.csv:3: duplicate id 'a'"):
        run_benchmark(benchmark(tmp_path, "sentiment", scores), {"a": ["happy"]})


def test_the_split_of_a_benchmark_may_be_a_number(tmp_path):
    rows = '{"id": "a", "val": 1, "split": 1}\n{"id": "b", "val": 1, "split": 2}\n'
    scores = benchmark(tmp_path, "sentiment", write(tmp_path, "scores.jsonl", rows), split="1")
    assert run_benchmark(scores, {"a": ["happy"], "b": ["happy"]}).n == 1


def test_the_rule_of_emotion_llama_is_reported_beside_ours_and_takes_an_unreadable_answer_for_neutral(tmp_path):
    labels = write(tmp_path, "label.csv", "name,discrete\na,happy\nb,angry\nc,neutral\n")
    config = benchmark(tmp_path, "classes", labels, classes=["happy", "angry", "neutral"])
    texts = {"a": "The person looks happy", "b": "He is furious.", "c": "I cannot tell."}
    rows = [Prediction(name, text, task="fixed") for name, text in texts.items()]
    result = run_benchmark(config, rows)
    key = "weighted F1, last word or else neutral (code of Emotion-LLaMA)"
    assert result.details[key] == pytest.approx((1 + 0 + 2 / 3) / 3)  # b and c are read as neutral
    assert result.value == pytest.approx((1 + 1 + 0) / 3)  # "furious" is angry, c has no class
    assert run_benchmark(config, texts).details[key] == result.details[key]


def test_a_pickled_label_file_needs_the_right_array_and_for_unknown_classes_of_objects_trust(tmp_path):
    corpus = {"a": {"emo": 0, "val": np.float32(1.0)}, "b": {"emo": np.int64(1), "val": -1.0}}
    np.savez(tmp_path / "label.npz", test_corpus=np.array(corpus, dtype=object))
    config = benchmark(tmp_path, "hit_rate", "label.npz", classes=["happy", "sad"])
    assert run_benchmark(config, {"a": ["glad"], "b": ["sad"]}).value == 1.0
    corpus["b"]["note"] = Path("x")
    np.savez(tmp_path / "odd.npz", test_corpus=np.array(corpus, dtype=object))
    config.references = "odd.npz"
    with pytest.raises(ScoreFileError, match=r"pickled objects \(.*Path\).*set benchmark\.trust_pickle=true"):
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
    return composed.evaluate(compose("eval", list(overrides)), overrides)


def test_eval_scores_a_benchmark_and_prints_published_results(tmp_path, capsys):
    write(tmp_path, "track2_train_ovmerd.csv", "name,openset\na,['happy']\n")
    write(tmp_path, "p.csv", "name,openset\na,['glad']\n")
    assert evaluate("benchmark=ovmerd", f"benchmark.folder={tmp_path}", f"predictions={tmp_path / 'p.csv'}") == 0
    shown = capsys.readouterr().out
    assert "OV-MERD: F_S, level 1 mean 100.00" in shown
    assert "Chat-UniVi" in shown
    assert json.loads((tmp_path / "benchmark-ovmerd.json").read_text(encoding="utf-8"))["value"] == 1.0


def test_emer_fine_is_scored_on_the_published_tables_alone(tmp_path, capsys):
    ids = [f"sample_{number:08d}" for number in range(332)]
    rows = "".join(f"{name},['happy']\n" for name in ids)
    write(tmp_path, "check-openset.csv", "name,openset\n" + rows)
    write(tmp_path, "p.csv", "name,openset\n" + "".join(f"{name},['glad']\n" for name in ids))
    call = ["benchmark=emer_fine", f"benchmark.folder={tmp_path}", f"predictions={tmp_path / 'p.csv'}", "n_bootstrap=0"]
    _, test = hold_out([Sample(name, f"{name}.mp4") for name in ids], n=66, seed=0)  # the split of data=emer_fine

    def scored(*more):
        assert evaluate(*call, *more) == 0, capsys.readouterr().err
        report = json.loads((tmp_path / "benchmark-emer_fine.json").read_text(encoding="utf-8"))
        return report["n"], capsys.readouterr().out

    n, shown = scored()
    assert n == 66
    assert "coarse 50 epochs then fine, random" in shown
    assert "GPT-4V" not in shown  # published for all 332 clips
    n, shown = scored("benchmark.split=null")
    assert n == 332
    assert "GPT-4V" in shown
    assert "coarse 50 epochs" not in shown
    assert scored("benchmark.split=train")[0] == 266
    write(tmp_path, "list.txt", "\n".join(ids[:3]))
    assert scored("benchmark.split_file=list.txt")[0] == 3
    config = compose("eval", call).benchmark
    found = read_true_values(tmp_path / "check-openset.csv", config, ("openset",), None)
    assert set(found) == {sample.id for sample in test}


def test_a_split_that_cannot_be_made_is_named(tmp_path):
    name = write(tmp_path, "gt.csv", "name,openset\na,['happy']\nb,['angry']\n")
    write(tmp_path, "list.txt", "a\nz\n")
    for values, message in (
        ({"n_test": 2, "split": "test"}, r"gt\.csv: 2 clips; expected more than benchmark\.n_test=2"),
        ({"n_test": 1, "split": "dev"}, "benchmark.split is 'dev'; expected test, train, or null"),
        ({"split_file": "list.txt"}, r"list\.txt: 1 of 2 ids are not in .*gt\.csv, first 'z'"),
    ):
        with pytest.raises(InputError, match=message):
            run_benchmark(benchmark(tmp_path, "openset", name, **values), {"a": ["happy"]}, n_bootstrap=0)


def test_scores_of_different_metrics_are_never_in_one_column(tmp_path):
    name = write(tmp_path, "gt.csv", "name,openset\na,['happy']\nb,['angry']\n")
    published = [
        {"system": "theirs", "value": 12.5, "metric": "Avg by LLM grouping", "source": "a paper"},
        {"system": "ours", "value": 25.0, "source": "another"},
    ]
    np.save(tmp_path / "a.npy", np.array("[['happy', 'glad']]"))
    np.save(tmp_path / "b.npy", np.array("[['angry'], ['sad']]"))
    config = benchmark(tmp_path, "openset", name, published=published)
    predictions = {"a": ["glad"], "b": ["sad"]}
    table = run_benchmark(config, predictions, n_bootstrap=0, groups=tmp_path).beside_published().splitlines()
    assert [line.split() for line in table] == [
        ["F_S,", "level", "1", "mean", "Avg", "by", "LLM", "grouping", "source"],
        ["these", "predictions", "50.00", "50.00"],
        ["theirs", "-", "12.50", "a", "paper"],
        ["ours", "25.00", "-", "another"],
    ]
    alone = run_benchmark(config, predictions, n_bootstrap=0).beside_published().splitlines()
    assert alone[1].split() == ["these", "predictions", "50.00", "-"]  # not measured without a model


def label_npz(folder, references, array, entries):
    """Add an array to a label.npz in the layout of MERBench: name -> {emo, val}."""
    path = folder / references
    path.parent.mkdir(parents=True, exist_ok=True)
    before = dict(np.load(path, allow_pickle=True)) if path.exists() else {}
    corpus = {name: {"emo": emo, "val": val} for name, (emo, val) in entries.items()}
    np.savez(path, **before, **{array: np.array(corpus, dtype=object)})


def test_a_label_npz_has_emotions_and_valences_and_no_texts(tmp_path):
    label_npz(tmp_path, "label.npz", "test_corpus", {"a": ("happy", 1.5)})
    config, path = benchmark(tmp_path, "hit_rate", "label.npz"), tmp_path / "label.npz"
    assert read_true_values(path, config, ("anything",), "emo") == {"a": "happy"}
    assert read_true_values(path, config, ("anything",), "val") == {"a": 1.5}
    with pytest.raises(ScoreFileError, match=r"label\.npz has emo and val only; expected a table .*'description'"):
        read_true_values(path, config, ("description",), None)


# As in the published files: MELD and IEMOCAP number their classes, MER2023 and MER2024 name them, sentiment sets have 0
# as class, and -10 stands for no valence. Each set: (labels, predictions, score by hand).
EMOTIONS = {"x": ("happy", 1.5), "y": ("worried", -1.0), "z": ("neutral", 0.0)}
ANSWERS = {"x": "glad", "y": "angry", "z": "sad"}  # x hits; y misses; z is not scored, since neutral is on no wheel
SCORES = {"x": (0, 1.2), "y": (0, np.float32(-0.8)), "z": (0, 0.0), "v": (0, -0.2)}
SIGNS = {"x": "joyful", "y": "delighted", "z": "sad", "v": "calm, furious, sad"}  # y is wrong, z dropped: F1 by hand
SETS = {
    "mer2023_hit": (EMOTIONS, ANSWERS, 1 / 2),
    "mer2024": (EMOTIONS, {**ANSWERS, "y": "anxious"}, 1.0),
    "meld": ({"test_dia0_utt0": (1, -10), "test_dia0_utt1": (0, -10), "test_dia1_utt0": (3, -10)},
             {"test_dia0_utt0": "joyful", "test_dia0_utt1": "happy", "test_dia1_utt0": "sad"}, 1 / 2),
    "iemocap4": ({"Ses01F_a": (0, -10), "Ses05F_a": (0, -10), "Ses05F_b": (1, -10), "Ses05M_c": (3, -10)},
                 {"Ses01F_a": "sad", "Ses05F_a": "happy", "Ses05F_b": "sad", "Ses05M_c": "happy"}, 2 / 3),
    "cmu_mosi": (SCORES, SIGNS, 2 / 3),
    "cmu_mosei": (SCORES, {**SIGNS, "y": "angry"}, 1.0),
    "ch_sims": (SCORES, SIGNS, 2 / 3),
    "ch_sims_v2": (SCORES, {**SIGNS, "y": "angry"}, 1.0),
}  # fmt: skip


def test_mer_unibench_is_the_mean_of_its_nine_members_on_files_of_the_published_layout(tmp_path, capsys):
    answers = tmp_path / "answers"
    answers.mkdir()
    names = compose("eval", ["benchmark=mer_unibench"]).benchmark.members
    assert {*SETS, "ovmerd_plus"} == set(names)
    for name, (truths, predictions, _) in SETS.items():
        member = compose("eval", [f"benchmark={name}"]).benchmark
        label_npz(tmp_path, member.references, member.array, truths)
        write(answers, f"{name}.csv", "name,openset\n" + "".join(f'{x},"[{y}]"\n' for x, y in predictions.items()))
    (tmp_path / "ovmerdplus-process").mkdir()
    write(tmp_path / "ovmerdplus-process", "ovlabel.csv", "name,openset\na,['happy']\nb,['angry']\n")
    write(answers, "ovmerd_plus.csv", "name,openset\na,['glad']\nb,\"['furious', 'sad']\"\n")
    options = [f"benchmark.folder={tmp_path}", "n_bootstrap=0"]
    assert evaluate("benchmark=mer_unibench", f"predictions={answers}", *options) == 0
    shown = capsys.readouterr().out
    assert "AffectGPT (ICML 2025)" in shown
    assert "sentiment of the labels by: sign of the lexicon (published: Qwen2.5)" in shown
    result = {path.stem[10:]: json.loads(path.read_text(encoding="utf-8")) for path in answers.glob("benchmark-*.json")}
    by_hand = {name: score for name, (_, _, score) in SETS.items()} | {"ovmerd_plus": 2 * 0.75 / 1.75}
    assert {name: result[name]["value"] for name in by_hand} == pytest.approx(by_hand)
    assert [result[name]["n"] for name in ("meld", "iemocap4", "cmu_mosi")] == [2, 3, 3]
    assert result["mer_unibench"]["value"] == pytest.approx(sum(by_hand.values()) / 9)
    assert result["mer_unibench"]["n"] == 9
    clips = {path.stem[7:]: read_scores(path) for path in answers.glob("scores-*.jsonl")}
    assert set(clips) == set(names)
    for name in ("cmu_mosi", "ch_sims_v2"):  # z has the true score 0
        assert [row.id for row in clips[name] if row.f is None] == ["z"]
        right = [row.f for row in clips[name] if row.f is not None]
        assert sum(right) / len(right) == pytest.approx(result[name]["details"]["accuracy"])
    for name in ("meld", "iemocap4", "mer2024"):  # a hit is a recall of 1 on a wheel
        hits = [[row.recall_by_wheel[k] for row in clips[name] if row.recall_by_wheel[k] is not None] for k in range(5)]
        assert sum(sum(each) / len(each) for each in hits) / 5 == pytest.approx(result[name]["value"])
    (answers / "meld.csv").unlink()
    with pytest.raises(UserError, match=r"no predictions for meld: expected meld\.jsonl, \.csv or \.npz"):
        evaluate("benchmark=mer_unibench", f"predictions={answers}", *options)
    capsys.readouterr()


def test_a_label_file_of_placeholders_is_an_error_and_not_a_score_of_0(tmp_path):
    labels = write(tmp_path, "label.csv", "name,discrete\na,neutral\nb,neutral\n")
    with pytest.raises(InputError, match=r"none of the 2 true labels is on an emotion wheel, they are \['neutral'\]"):
        run_benchmark(benchmark(tmp_path, "hit_rate", labels), {"a": ["sad"], "b": ["happy"]})


def test_iemocap_without_clips_of_session_5_is_an_error(tmp_path):
    member = compose("eval", ["benchmark=iemocap4", f"benchmark.folder={tmp_path}"]).benchmark
    label_npz(tmp_path, member.references, member.array, {"Ses01F_a": (0, -10)})
    with pytest.raises(ScoreFileError, match=r"no id starts with 'Ses05' .*ids are like 'Ses01F_a'"):
        run_benchmark(member, {"Ses01F_a": ["happy"]})


def test_mer2023_combines_the_f1_of_the_emotion_with_the_error_of_the_valence(tmp_path, capsys):
    truths = {"x": ("happy", 1.5), "y": ("worried", -1.0), "z": ("neutral", 0.0), "v": ("happy", 2.0)}
    member = compose("eval", ["benchmark=mer2023_multi"]).benchmark
    label_npz(tmp_path, member.references, member.array, truths)
    write(tmp_path, "p.csv", "name,discrete,valence\nx,happy,0.5\ny,worried,-1\nz,neutral,2\nv,sad,2\n")
    options = ("benchmark=mer2023_multi", f"benchmark.folder={tmp_path}", f"predictions={tmp_path / 'p.csv'}")
    assert evaluate(*options) == 0
    result = json.loads((tmp_path / "benchmark-mer2023_multi.json").read_text(encoding="utf-8"))
    f1 = (2 * (2 / 3) + 1 + 1) / 4  # happy has precision 1 and recall 1/2
    assert result["details"]["weighted F1"] == pytest.approx(f1)
    assert result["details"]["MSE of the valence"] == (1.0**2 + 2.0**2) / 4
    assert result["value"] == pytest.approx(f1 - 0.25 * 5 / 4)
    clips = read_scores(tmp_path / "scores-mer2023_multi.jsonl")
    assert sum(row.f for row in clips) / 4 == result["details"]["WAR"] == 3 / 4
    assert "MSE of the valence: 1.25" in capsys.readouterr().out
    write(tmp_path, "p.csv", "name,discrete,valence\nx,happy,0.5\ny,worried,-1\n")
    with pytest.raises(InputError, match="2 of 4 samples have no predicted score, the first is 'z'"):
        evaluate(*options)
    write(tmp_path, "p.csv", "name,discrete\nx,happy\n")
    with pytest.raises(ScoreFileError, match="expected a value in one of"):
        evaluate(*options)


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
