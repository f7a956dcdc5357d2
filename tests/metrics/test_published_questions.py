"""Scores of answers to questions equal those of the published code, run as it is in a process of its own.

Set the variables of CODE to checkouts, and PUBLISHED_PYTHON to an interpreter with torch, scikit-learn and matplotlib
if this environment lacks one of them. Nothing of that code is part of this project.
"""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from affectgpt.metrics.answers import contains_answer, label_scores, pair_scores, published_reward
from affectgpt.metrics.confidence import calibration, published_class, published_confidence
from affectgpt.metrics.steps import ratings, step_means, step_score
from affectgpt.questions import MME_MULTIPLE, MME_TASKS

CODE = {
    "MME_EMOTION": "FunAudioLLM/MME-Emotion",
    "EMOBENCH_M": "Emo-gml/EmoBench-M",
    "HUMANOMNI_V2": "HumanMLLM/HumanOmniV2",
    "EMOCALIBER": "wdqqdw/EmoCaliber",
    "VIDEOHALLUCER": "patrick-tssn/VideoHallucer",
}
PYTHON = os.environ.get("PUBLISHED_PYTHON", sys.executable)

# What plays no part in scoring is replaced.
START = """
import contextlib, importlib.util, io, json, sys, unittest.mock
NAMES = "av bert_score cv2 nltk openai qwen_omni_utils rouge_score transformers wandb".split()
class Absent:
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name.split(".")[0] in NAMES else None
    def create_module(self, spec):
        return unittest.mock.MagicMock(__path__=[], __spec__=spec, __name__=spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Absent())
given = json.load(open(sys.argv[1]))
def load(path):
    spec = importlib.util.spec_from_file_location("published", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
log = io.StringIO()
with contextlib.redirect_stdout(log):
{body}
print(json.dumps(found))
"""


def published(variable, body, given, tmp_path):
    """What `found` is after `body` has run in the checkout; skipped without one."""
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"{variable} is not the path of a checkout of {CODE[variable]}")
    path, script = tmp_path / "given.json", tmp_path / "run.py"
    path.write_text(json.dumps(given), encoding="utf-8")
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    script.write_text(START.replace("{body}", lines), encoding="utf-8")
    done = subprocess.run(
        [PYTHON, str(script), str(path)], cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_steps_of_mme_emotion_in_every_task_and_overall(tmp_path):
    rng = random.Random(0)
    odd = ["", "None", "<score></score>", "<score>Step 1: 1/1,\nStep 2: 0/1</score>", "<score>Step 1:1/1</score>"]
    odd += ["<score>Step 1: 1/0, Step 2: 3/2</score>", "Step 1: 1/1", "<score>Step 1: 1/1</score><score>2: 0/1</score>"]

    def reply():
        if rng.random() < 0.2:
            return rng.choice(odd)
        steps = [f"Step {n}: {rng.randint(0, 1)}/1" for n in range(1, rng.randint(1, 6))]
        last = f"Step {len(steps) + 1}:{rng.choice(['', ' ', '  '])}{rng.randint(0, 3)}/{rng.randint(1, 4)}"
        return f"Sure. <score>{', '.join([*steps, last])}</score>"

    labels = ["angry", "anger", "happy", "sad", "surprised", "disgusted", "neutral"]
    rows = {task: [{"score": reply(), "ground_truth": rng.choice(labels)} for _ in range(200)] for task in MME_TASKS}
    body = """
found = {}
for task, rows in given.items():
    open(sys.argv[1] + task, "w").write(json.dumps(rows))
    found[task] = load(f"eval_cot/{task}/metrics/cal_metrics.py").process_data(sys.argv[1] + task)
everything = [row for rows in given.values() for row in rows]
found["all"] = load("eval_cot/Overall/metrics/cal_metrics.py").process_data(everything)
"""
    found = published("MME_EMOTION", body, rows, tmp_path)
    for task, several in [(task, task in MME_MULTIPLE) for task in MME_TASKS] + [("all", True)]:
        of_task = [row for each in rows.values() for row in each] if task == "all" else rows[task]
        read = [ratings(row["score"], several=several) for row in of_task]
        ours, theirs = step_means([step_score(values) for values in read if values], 0.5), found[task]["total"]
        assert ours.n == theirs["count"]
        means = [theirs[name] / theirs["count"] for name in ("acc", "reason", "step")]
        assert [ours.recognition, ours.reasoning, ours.steps] == pytest.approx(means, abs=1e-12)
    assert set(found["ER-Wild"]["categories"]) == {"anger", "disgust", "happiness", "neutral", "sadness", "surprise"}


def test_labels_of_emobench_m(tmp_path):
    rng = random.Random(1)
    labels = ["positive", "negative", "neutral", "other", ""]
    rows = [{"expected_value": rng.choice(labels[:3]), "predicted_value": rng.choice(labels)} for _ in range(300)]
    body = """
code = load("EmoBench-M_eval.py")
code.evaluate_classification([sys.argv[1]], sys.argv[1] + ".out")
found = json.load(open(sys.argv[1] + ".out"))
"""
    found = published("EMOBENCH_M", body, rows, tmp_path)
    kept = [row for row in rows if row["predicted_value"]]
    ours = label_scores([row["expected_value"] for row in kept], [row["predicted_value"] for row in kept])
    theirs = [found[name] for name in ("accuracy", "precision", "recall", "f1_score")]
    assert [ours.accuracy, ours.precision, ours.recall, ours.f1] == pytest.approx(theirs, abs=1e-12)


def test_every_kind_of_answer_of_intentbench(tmp_path):
    texts = [
        "A",
        "B",
        "A,E",
        "A, E",
        "E,A",
        "A,A",
        "",
        "Yes",
        "no",
        "I know",
        "yes or no",
        "3",
        "3.0",
        "3.004",
        "1,000",
    ]
    texts += ["10", "8.0", "-4", "0", "x"]
    kinds = ["multiple choice", "numerical", "regression", "emer_ov_mc", "judge", "OCR"]
    rows = [[answer, truth, kind] for kind in kinds for answer in texts for truth in texts]
    rows += [[str(value / 7), str(true), "regression"] for value in range(-20, 120) for true in (5, 10, -3)]
    body = """
code = load("src/open-r1-multimodal/eval/eval_humanomniv2.py")
found = [code.reward_fn(*row) for row in given]
"""
    found = published("HUMANOMNI_V2", body, rows, tmp_path)
    ours = [published_reward(*row) for row in rows]
    assert [round(value, 6) for value in ours] == [round(value, 6) for value in found]
    assert ours == pytest.approx(found, abs=1e-7)  # float32


def test_stated_confidence_of_emocaliber(tmp_path):
    rng = random.Random(2)
    classes = ["sad", "happy", "angry"]
    rows = []
    for task in ("FI-2", "FI-8", "Artphoto-8"):
        for _ in range(200):
            stated = rng.choice(["<confidence>{0.5}</confidence>", "", "<confidence>85</confidence>"])
            if rng.random() < 0.8:
                stated = f"<confidence>{rng.choice([0, 0.1, 0.3, 0.6, 0.77, 0.9, 1.0])}</confidence>"
            said = rng.choice(
                ["<answer>Sad</answer>", "<answer>very happy</answer>", "angry, not sad", "<answer></answer>"]
            )
            row = {"task": task, "ground_truth": rng.choice(classes), "candidates": classes}
            rows.append({**row, "response": said + stated})
    body = """
read = load("inference/extract_verb_confidence.py").extract_confidence
data = [{**row, "confidence": read(row["response"])} for row in given]
groups = load("inference/evaluate_multi_task_conf_from_merged.py").calculate_group_calibration_metrics(data)
found = {name: {key: float(value) for key, value in group.items()} for name, group in groups.items()}
"""
    found = published("EMOCALIBER", body, rows, tmp_path)
    for task, group in (("FI-2", "ID VSA"), ("FI-8", "ID VER"), ("Artphoto-8", "OOD VER")):
        of_task = [row for row in rows if row["task"] == task]
        stated = [(published_confidence(row["response"]), row) for row in of_task]
        kept = [(value, row) for value, row in stated if value is not None]
        right = [published_class(row["response"], classes) == row["ground_truth"] for _, row in kept]
        ours = calibration([value for value, _ in kept], right)
        theirs = [found[group][name] for name in ("ece", "brier_score", "roc_auc", "valid_samples")]
        assert [ours.ece, ours.brier, ours.roc_auc, ours.n] == pytest.approx(theirs, abs=1e-12)


def test_pairs_of_videohallucer(tmp_path):
    rng = random.Random(3)
    texts = ["Yes.", "no", "No, he is not.", "yes or no", "unclear", "Nothing"]
    sides = (("basic", "yes"), ("hallucination", "no"))
    rows = [{side: {"answer": answer, "predict": rng.choice(texts)} for side, answer in sides} for _ in range(200)]
    body = """
found = load("evaluations/evaluation_utils.py").cal_score(given)
"""
    found = published("VIDEOHALLUCER", body, rows, tmp_path)
    hits = [[contains_answer(row[side]["predict"], row[side]["answer"]) for row in rows] for side, _ in sides]
    ours = pair_scores(*hits)
    theirs = [found[name] for name in ("basic_accuracy", "halluc_accuracy", "accuracy")]
    assert [ours.basic.value, ours.hallucinated.value, ours.pairs.value] == theirs
    assert np.isfinite(theirs).all()
