"""Our scores equal those of the published code, run as it is in a process of its own.

Set MERTOOLS to a checkout of github.com/zeroQiaoba/MERTools and, if this environment has no pandas, openpyxl and
scikit-learn, MERTOOLS_PYTHON to an interpreter that has them. Nothing of that code is part of this project.
"""

import csv
import json
import math
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from affectgpt.cli import compose, composed
from affectgpt.metrics import evaluate, load_lexicon, read_predictions, read_references
from affectgpt.metrics.classification import classify, hit_rate, mean_squared_error, score_sentiment
from affectgpt.metrics.lexicon import split_published
from affectgpt.metrics.wheel import LEVEL1
from affectgpt.tables.arrays import array_names, read_array

MERTOOLS = Path(os.environ.get("MERTOOLS", "-"))
PYTHON = os.environ.get("MERTOOLS_PYTHON", sys.executable)
pytestmark = pytest.mark.skipif(
    not (MERTOOLS / "MER2025").is_dir(), reason="MERTOOLS is not the path of a checkout of zeroQiaoba/MERTools"
)

# Run in the published folder: what is not installed (cv2, torch, openai ...) and plays no part in scoring is replaced.
START = """
import csv, importlib.util, json, re, sys, unittest.mock
import numpy as np
import pandas as pd
NAMES = "cv2 torch torchaudio torchvision openai matplotlib PIL tqdm transformers fire decord moviepy".split()
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NAMES:
            return importlib.util.spec_from_loader(name, self)
        return None
    def create_module(self, spec):
        module = unittest.mock.MagicMock(__path__=[], __spec__=spec, __all__=[])
        module.__name__ = spec.name
        return module
    def exec_module(self, module):
        pass
sys.meta_path.append(Absent())
sys.path.insert(0, ".")
given = json.load(open(sys.argv[1]))
def load(path):
    spec = importlib.util.spec_from_file_location("published", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
WHEEL = """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()):
    wheel = load("my_affectgpt/evaluation/wheel.py")
found = {}
tables = ("format_mapping", "raw_mapping")  # MER2026 reads them from wheel_mapping.npz
tables = {name: getattr(wheel, name) for name in tables if hasattr(wheel, name)}
for name in given["groupings"]:
    scores = wheel.calculate_openset_overlap_rate(
        name2gt=given["truths"], name2pred=given["predictions"], metric=name, inter_print=False, **tables)
    found[name] = [float(score) for score in scores]
print(json.dumps(found))
"""
FORMULAS = """
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error
from toolkit.utils.metric import overall_metric
emotion = f1_score(given["emotion"], given["emotion_read"], average="weighted")
error = mean_squared_error(given["valence"], given["valence_read"])
truth, read = np.array(given["sentiment"]), np.array(given["sentiment_read"])
kept = np.array([i for i, value in enumerate(truth) if value != 0])
f1 = f1_score(truth[kept] > 0, read[kept] > 0, average="weighted")
accuracy = accuracy_score(truth[kept] > 0, read[kept] > 0)
print(json.dumps([float(x) for x in (emotion, error, overall_metric(emotion, error), f1, accuracy)]))
"""
GROUPS = """
score = load("main-ov.py").calculate_openset_overlap_rate_mer2024
found = score(given["truths"], given["predictions"], given["groups"])
print(json.dumps([float(score) for score in found]))
"""


def published(folder, script, tmp_path, **given):
    """What a script prints as its last line, run in a folder of the published code."""
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    (tmp_path / "script.py").write_text(START + script, encoding="utf-8")
    command = [PYTHON, str(tmp_path / "script.py"), str(tmp_path / "given.json")]
    result = subprocess.run(command, cwd=MERTOOLS / folder, capture_output=True, text=True, timeout=300)
    if "No module named 'pandas'" in result.stderr:
        pytest.skip("MERTOOLS_PYTHON is not an interpreter with pandas, openpyxl and scikit-learn")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def real_cells(column="openset"):
    for name in ("check-openset.csv", "predict-openset.csv"):
        with (MERTOOLS / "MER2024" / "ov_store" / name).open(encoding="utf-8", newline="") as file:
            yield {row["name"]: row[column] for row in csv.DictReader(file)}


ODD = [
    *(
        "['sad; angry']",
        "[sad，angry]",
        "happy、sad",
        r"['sad\t']",
        "[[]]",
        "[['sad'], ['angry']]",
        "[don't know, sad]",
    ),
    *("['fear', 'neutral']", "Sad , ANGRY", "", "[]", "['surprise']", '["disgust", "happy"]'),
]
NAMES = {f"M3-W{wheel}-L{level}": f"case3_wheel{wheel}_level{level}" for wheel in range(1, 6) for level in (1, 2)}


def cells(lexicon):
    """Texts of label cells: those of MER2024, odd ones, and random ones from the published words."""
    truths, predictions = real_cells()
    rng = random.Random(3)
    words = [*rng.sample(sorted(lexicon.forms), 200), "neutral", "fear", "surprise", "frobnicated"]
    for n, odd in enumerate([*ODD, *[""] * 600]):
        made = [str(rng.choices(words, k=rng.randint(0, 4))) for _ in range(2)]
        truths[f"made{n}"], predictions[f"made{n}"] = (odd, rng.choice(ODD)) if odd else made
    return truths, predictions


def table(path, column, values):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("name", column), *values.items()])
    return path


@pytest.mark.parametrize("folder", ["MER2025/MER2025_Track23", "MER2026/MER2026_Track2"])
def test_all_twelve_groupings_of_label_files_equal_the_published_code(tmp_path, folder):
    lexicon = load_lexicon(MERTOOLS / folder / "emotion_wheel")
    truths, predictions = cells(lexicon)
    names = {"M1": "case1", "M2": "case2", **NAMES}
    theirs = published(folder, WHEEL, tmp_path, truths=truths, predictions=predictions, groupings=[*names.values()])
    references = read_references(table(tmp_path / "gt.csv", "openset", truths), split_text=split_published)
    rows = read_predictions(table(tmp_path / "p.csv", "openset", predictions))
    report = evaluate(rows, references, lexicon=lexicon, n_bootstrap=0)
    assert report.label_reading == "published"
    for ours, name in names.items():
        score = report.scores[ours]
        assert [score.precision, score.recall] == pytest.approx(theirs[name], abs=1e-12), ours


def test_the_hit_rate_equals_the_recall_of_the_published_code_for_one_true_label(tmp_path):
    folder = "MER2025/MER2025_Track23"
    lexicon = load_lexicon(MERTOOLS / folder / "emotion_wheel")
    _, predictions = cells(lexicon)
    rng = random.Random(5)
    emotions = ["anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"]
    truths = {name: rng.choice(emotions) for name in predictions}
    by_wheel = [NAMES[name] for name in LEVEL1]
    theirs = published(folder, WHEEL, tmp_path, truths=truths, predictions=predictions, groupings=by_wheel)
    ours = hit_rate(truths, {name: split_published(cell) for name, cell in predictions.items()}, lexicon)
    assert ours.by_wheel == pytest.approx({name: theirs[NAMES[name]][1] for name in LEVEL1}, abs=1e-12)


def test_the_stored_groups_of_mer2024_give_the_published_figures(tmp_path):
    folder = MERTOOLS / "MER2024" / "ov_store"
    files = {"truths": str(folder / "check-openset.csv"), "predictions": str(folder / "predict-openset.csv")}
    with zipfile.ZipFile(folder / "openset-synonym.zip") as archive:
        archive.extractall(tmp_path)
    theirs = published("MER2024", GROUPS, tmp_path, **files, groups=str(tmp_path / "openset-synonym"))
    options = [f"references={files['truths']}", f"predictions={files['predictions']}", "n_bootstrap=0"]
    options += [f"llm.groups={folder / 'openset-synonym.zip'}", f"out={tmp_path / 'out'}"]
    assert composed.evaluate(compose("eval", options), options) == 0
    ours = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["extras"]["llm_grouping"]
    assert [ours["precision"], ours["recall"]] == pytest.approx(theirs, abs=1e-12)
    assert (ours["n"], ours["unparsed"], ours["missing"]) == (332, 0, 0)
    figures = [round(ours[name], 6) for name in ("precision", "recall", "avg")]
    assert figures == [0.581777, 0.497791, 0.539784]


def test_sentiment_and_the_combined_score_of_mer2023_equal_the_published_formulas(tmp_path):
    rng = random.Random(11)
    emotions = ["neutral", "angry", "happy", "sad", "worried", "surprise"]
    given = {
        "emotion": rng.choices(emotions, k=300), "emotion_read": rng.choices(emotions, k=300),
        "valence": [rng.uniform(-5, 5) for _ in range(300)], "valence_read": [rng.uniform(-5, 5) for _ in range(300)],
        "sentiment": [rng.choice((-1.4, -0.2, 0.0, 0.6, 3.0)) for _ in range(300)],
        "sentiment_read": rng.choices((-1, 0, 1), k=300),
    }  # fmt: skip
    theirs = published("MERBench", FORMULAS, tmp_path, **given)
    emotion = classify(given["emotion"], given["emotion_read"], emotions).weighted_f1
    error = mean_squared_error(*(dict(enumerate(given[key])) for key in ("valence", "valence_read")))
    names = {-1: "negative", 0: "neutral", 1: "positive"}
    read = {n: names[value] for n, value in enumerate(given["sentiment_read"])}
    sentiment = score_sentiment(dict(enumerate(given["sentiment"])), read).published
    ours = [emotion, error, emotion - 0.25 * error, sentiment.weighted_f1, sentiment.accuracy]
    assert ours == pytest.approx(theirs, abs=1e-12)


COUNTS = {  # clips and those of each class, in the published label files
    "meld": (2610, {"anger": 345, "joy": 402, "sadness": 208, "neutral": 1256, "disgust": 68, "fear": 50,
                    "surprise": 281}),
    "iemocap4": (1241, {"happy": 442, "sad": 245, "neutral": 384, "anger": 170}),
    "mer2023_hit": (411, {"worried": 57, "happy": 93, "neutral": 88, "angry": 105, "surprise": 18, "sad": 50}),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_label_files_are_read_with_their_classes(name, tmp_path, capsys):
    from collections import Counter

    from affectgpt.metrics.benchmarks import _LABEL_COLUMNS, read_true_values, truth_path

    options = [f"benchmark={name}", f"benchmark.folder={MERTOOLS / 'MERBench' / 'dataset'}", "n_bootstrap=0"]
    member = compose("eval", options).benchmark
    truths = read_true_values(truth_path(member), member, _LABEL_COLUMNS, "emo")
    assert (len(truths), dict(Counter(truths.values()))) == COUNTS[name]
    perfect = table(tmp_path / "p.csv", "discrete", truths)
    options.append(f"predictions={perfect}")
    assert composed.evaluate(compose("eval", options), options) == 0
    result = json.loads((tmp_path / f"benchmark-{name}.json").read_text(encoding="utf-8"))
    assert math.isclose(result["value"], 1.0)
    assert result["n"] == COUNTS[name][0] - COUNTS[name][1]["neutral"]
    capsys.readouterr()


def test_published_pickled_arrays_are_read_as_numpy_unpickles_them():
    files = [*MERTOOLS.glob("MERBench/dataset/*/label*.npz"), *MERTOOLS.glob("MER2026/*/*/wheel_mapping.npz")]
    assert len(files) >= 9
    for file in files:
        with np.load(file, allow_pickle=True) as expected:
            for name in array_names(file):
                assert read_array(file, name) == expected[name].tolist(), (file, name)
