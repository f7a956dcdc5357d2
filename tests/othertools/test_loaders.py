"""What we write, read by the other tools themselves, each in the Python that a variable names, or in this one.

Skipped where a tool is not installed: ms-swift, LLaMA-Factory and lmms-eval need versions of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from affectgpt.cli import run
from affectgpt.metrics.rewards import NEEDS, Scorer
from affectgpt.othertools.rewards import NAMES, attempt_of
from affectgpt.schema import Sample, write_jsonl
from tests.annotate.conftest import write_sound
from tests.data.conftest import write_clip

ROOT = Path(__file__).parents[2]


def ask(module: str, script: str, *arguments: object) -> list:
    """The last line, as JSON, that a script prints in the Python that has `module`; skips if there is none."""
    variable = f"AFFECTGPT_{module.upper()}_PYTHON"
    python = os.environ.get(variable) or (sys.executable if importlib.util.find_spec(module) else None)
    if python is None:
        pytest.skip(f"{module} is not installed; {variable}= may name a Python that has it")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    text = "The corners of the mouth are raised. The voice is bright. The person seems happy."
    samples = []
    for number in range(3):
        write_clip(folder / f"{number}.mp4", seed=number)
        own = write_sound(folder / f"{number}.wav", np.zeros(1600)) if number else None
        samples.append(
            Sample(
                f"c{number}", f"{number}.mp4", own and own.name, subtitle="A <video>, I see.", description=text,
                labels=("happy",), rejected="Nothing is seen." if number else "Nothing at all.",
            )
        )  # fmt: skip
    write_jsonl(folder / "m.jsonl", samples)
    return folder / "m.jsonl"


def export(manifest: Path, out: Path, *settings: str) -> list[dict]:
    assert run("data", ["export", str(manifest), f"out={out}", *settings]) == 0
    return [json.loads(line) for line in (out / "affectgpt.jsonl").read_text().splitlines()]


SWIFT_ROWS = """
import json, sys
from swift.dataset import load_dataset
rows, _ = load_dataset(sys.argv[1], strict=True, load_from_cache_file=False, remove_unused_columns=False)
print(json.dumps([dict(row) for row in rows]))
"""
SWIFT_REWARDS = """
import json, sys
import torch
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import score_completions
from swift.rlhf_trainers.utils import resolve_reward_funcs
from swift.utils import import_external_file
import_external_file(sys.argv[1])
rows, answers, names = json.loads(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
found, logged = resolve_reward_funcs(names)
assert logged == names, logged
samples = []
for row, answer in zip(rows, answers):
    messages = [*row["messages"][:-1], {"role": "assistant", "content": answer}]
    samples.append(GRPOSample(messages=messages, extra={"affectgpt": row["affectgpt"]}))
scores = score_completions(samples, found, [None] * len(found), False, torch.device("cpu"))
print(json.dumps(scores.tolist()))
"""


def test_ms_swift_loads_the_rows_and_pairs(manifest, tmp_path):
    for number, settings in enumerate(((), ("task=description", "pairs=[judged]"))):
        rows = export(manifest, tmp_path / str(number), "to=ms-swift", *settings)
        loaded = ask("swift", SWIFT_ROWS, tmp_path / str(number) / "affectgpt.jsonl")
        for row, read in zip(rows, loaded, strict=True):
            assert {key: read[key] for key in row} == row


def test_ms_swift_scores_answers_with_our_rewards(manifest, tmp_path):
    rows = export(manifest, tmp_path, "to=ms-swift")
    answers = ["The mouth smiles.\nEmotions: happy", "Emotions: angry, happy", "no"]
    names = [f"affectgpt_{name}" for name in NAMES]
    given = [json.dumps(value) for value in (rows, answers, names)]
    found = ask("swift", SWIFT_REWARDS, tmp_path / "rewards.py", *given)
    attempts = [attempt_of(row["affectgpt"], answer) for row, answer in zip(rows, answers, strict=True)]
    ours = [Scorer().reward(name, attempts) for name in NAMES]
    assert len(NAMES) == len(NEEDS) - 2
    np.testing.assert_allclose(np.array(found).T, ours, atol=1e-6)


LLAMAFACTORY = """
import json, sys
from transformers import Seq2SeqTrainingArguments
from llamafactory.data.loader import _load_single_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import DataArguments, ModelArguments
(attributes,) = get_dataset_list(["affectgpt"], sys.argv[1])
data = DataArguments(dataset_dir=sys.argv[1], overwrite_cache=True)
model = ModelArguments(model_name_or_path="none")
training = Seq2SeqTrainingArguments(output_dir=sys.argv[1], use_cpu=True, report_to=[])
rows = _load_single_dataset(attributes, model, data, training)
print(json.dumps([dict(row) for row in rows]))
"""


def test_llamafactory_loads_the_rows_and_pairs(manifest, tmp_path):
    rows = export(manifest, tmp_path / "rows", "to=llamafactory")
    for row, read in zip(rows, ask("llamafactory", LLAMAFACTORY, tmp_path / "rows"), strict=True):
        assert [*read["_prompt"], *read["_response"]] == row["messages"]
        assert (read["_videos"], read["_audios"] or []) == (row["videos"], row["audios"])
    rows = export(manifest, tmp_path / "pairs", "to=llamafactory", "task=description", "pairs=[judged]")
    for row, read in zip(rows, ask("llamafactory", LLAMAFACTORY, tmp_path / "pairs"), strict=True):
        assert read["_prompt"] == row["messages"]
        assert read["_response"] == [row["chosen"], row["rejected"]]


LMMS = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
manager = TaskManager("ERROR", include_path=sys.argv[1])
answer = "response=Emotions: joyful"
results = simple_evaluate("dummy", model_args=answer, tasks=["affectgpt"], task_manager=manager, bootstrap_iters=0)
print()
print(json.dumps([results["results"]["affectgpt"]["score,none"], len(results["samples"]["affectgpt"])]))
"""


def test_lmms_eval_runs_the_task_and_gives_our_score(manifest, tmp_path):
    export(manifest, tmp_path, "to=lmms-eval")
    assert ask("lmms_eval", LMMS, tmp_path) == [100.0, 3]
