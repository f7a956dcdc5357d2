"""With the folder affectgpt/engine deleted, everything gives the same results through transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import affectgpt
from affectgpt import config as conf
from affectgpt.models import backend, build
from affectgpt.runtime import UserError
from tests.conftest import make_train_config
from tests.models import tiny
from tests.models.test_modeling import gradients, rows

ROOT = Path(__file__).parent.parent.parent
LORA = conf.LoraConfig(4, 8, 0.0, ["q_proj", "v_proj"])


def use(folder: Path, llm: str, manifest: Path) -> None:
    """Train and predict as commands do; losses, gradients, weights, answers and streamed texts go to files in `folder`.

    A process without the engine calls it, too.
    """
    from affectgpt.inference.answers import answers
    from affectgpt.inference.infer import run_inference
    from affectgpt.training.stages import run_stage

    paths = tiny.write_base_models(folder / "base", getattr(tiny, llm))
    model, processor = build(tiny.tiny_spec(paths, lora=LORA))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    model.train()
    model.token_budget = 100
    found = {}
    for packed in (True, False):
        for name in ("loss", "log_probs"):
            model.zero_grad()
            values = model(**processor.collate(rows(processor), packed=packed), log_probs=name == "log_probs")[name]
            values = values if name == "loss" else torch.cat(values)
            values.sum().backward()
            found[name, packed] = values.detach(), gradients(model)
    torch.save(found, folder / "tensors.pt")

    shown = (("audio", "frames"), (), ("frames", "motion"))
    inputs = [processor.encode(tiny.question(*names), tiny.media(*names, seed=i)) for i, names in enumerate(shown)]
    streamed: list[str] = []
    written = answers(model.eval(), processor, inputs, conf.GenerateConfig(2, 12), {0: streamed.append})
    (folder / "answers.json").write_text(json.dumps([list(written), streamed]))

    config = make_train_config(paths, manifest, folder, n_workers=0)
    config.stage.packing = True
    run = run_stage(config).run
    infer = conf.InferConfig(input=[str(manifest)], checkpoint=str(run), out=str(folder / "p.jsonl"), device="cpu")
    infer.generate, infer.paths = conf.GenerateConfig(4, 12), config.paths
    assert run_inference(infer) == 0


def without_engine(tmp_path: Path, code: str) -> None:
    """Run `code` in a process with a copy of the package that has no engine."""
    copy = tmp_path / "copy"
    if not copy.exists():
        shutil.copytree(ROOT / "affectgpt", copy / "affectgpt", ignore=shutil.ignore_patterns("engine", "__pycache__"))
        (copy / "affectgpt" / "engine" / "__pycache__").mkdir(parents=True)  # left over from the deleted files
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(ROOT)])}
    check = f"import affectgpt; assert affectgpt.__path__ == [{str(copy / 'affectgpt')!r}]\n"
    check += "from affectgpt.models import backend; assert backend.engine is None\n"
    subprocess.run([sys.executable, "-c", check + code], env=environment, check=True, timeout=600, cwd=tmp_path)


LLMS = ("write_llama3", "write_qwen3")


@pytest.fixture(scope="module")
def without(manifest, tmp_path_factory):
    """The folder with what `use` writes without the engine for each LLM, in one process."""
    folder = tmp_path_factory.mktemp("without")
    calls = [f"use(Path({str(folder / llm)!r}), {llm!r}, Path({str(manifest)!r}))" for llm in LLMS]
    start = ["from pathlib import Path", "from tests.models.test_backend import use"]
    without_engine(folder, "\n".join(start + calls))
    return folder


@pytest.mark.parametrize("llm", LLMS)
def test_without_the_engine_losses_gradients_training_and_answers_are_the_same(llm, manifest, without, tmp_path):
    folders = [tmp_path / "with", without / llm]
    use(folders[0], llm, manifest)
    mine, theirs = (torch.load(folder / "tensors.pt") for folder in folders)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=5e-6)
    assert (folders[0] / "answers.json").read_text() == (folders[1] / "answers.json").read_text()
    losses = []
    for folder in folders:
        lines = (folder / "runs" / "coarse" / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    texts = [[json.loads(line)["text"] for line in (folder / "p.jsonl").read_text().splitlines()] for folder in folders]
    assert texts[0] == texts[1]


def test_features_that_need_the_engine_are_refused_by_name(monkeypatch):
    from affectgpt.inference.answers import answers
    from affectgpt.plan.command import make_plan
    from affectgpt.training.memory import check_activation_gb

    monkeypatch.setattr(backend, "engine", None)
    with pytest.raises(UserError, match=r"stage\.activation_gb needs the folder affectgpt/engine, which is missing"):
        check_activation_gb(conf.StageConfig(name="coarse", activation_gb=1), "single")
    with pytest.raises(UserError, match=r"generate\.compile=true needs the folder affectgpt/engine"):
        answers(None, None, [], conf.GenerateConfig(compile=True))
    with pytest.raises(UserError, match=r"python -m affectgpt\.plan needs the folder affectgpt/engine"):
        make_plan(conf.PlanConfig())


def test_the_engine_is_there_in_a_checkout():
    assert backend.engine.__name__ == "affectgpt.engine"
    assert Path(affectgpt.__path__[0]) == ROOT / "affectgpt"
