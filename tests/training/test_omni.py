"""Whole runs of a tiny omni model: every objective, resumption, and what it answers without training."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from affectgpt import config as conf
from affectgpt.cli import compose
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.inference.infer import run_inference
from affectgpt.inference.loading import load
from affectgpt.journal import read_journal
from affectgpt.metrics import load_lexicon
from affectgpt.models.omni.modeling import Tower
from affectgpt.runs import complete_checkpoints
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import Sample
from affectgpt.studio.asking import Models
from affectgpt.training.stages import run_stage
from affectgpt.training.trainer import StageTrainer
from tests.conftest import make_train_config
from tests.models.tiny_omni import LORA, PIXELS, SAMPLING, write_omni


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    """The model's settings."""
    folder = write_omni(tmp_path_factory.mktemp("omni"))
    settings = conf.OmniConfig(**PIXELS)
    return conf.ModelConfig("tiny_omni", conf.LLMConfig(str(folder), lora=LORA), sampling=SAMPLING, omni=settings)


def omni_config(omni, manifest, folder, **stage):
    """Four steps of two clips, with sound and frames or a part of them."""
    fields = {"trainable": ["lora"], "iterations_per_epoch": 2, "validate_every": 4, "token_budget": 200}
    config = make_train_config(dict.fromkeys(("llm", "audio", "frames", "motion"), ""), manifest, folder)
    config = replace(config, model=copy.deepcopy(omni), stage=replace(config.stage, **{**fields, **stage}))
    config.generate.max_new_tokens = 3
    return config


@pytest.fixture(scope="module")
def finished(omni, manifest, tmp_path_factory):
    config = omni_config(omni, manifest, tmp_path_factory.mktemp("finished"))
    return config, run_stage(copy.deepcopy(config)).run


def tensors(run):
    return load_file(complete_checkpoints(run)[-1] / "trained.safetensors")


def test_a_supervised_run_trains_lora_alone_and_lowers_the_loss(finished):
    _, run = finished
    trained = tensors(run)
    assert trained
    assert all(name.startswith("language_model.model.layers.") and ".lora_" in name for name in trained)
    assert any(tensor.any() for name, tensor in trained.items() if ".lora_B" in name)
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0]
    assert any("eval_f_s" in row for row in log)


def test_an_interrupted_run_ends_bit_identical(omni, manifest, finished, tmp_path, monkeypatch):
    config = omni_config(omni, manifest, tmp_path)
    step = StageTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run_stage(copy.deepcopy(config))
    config.resume = True
    ours, theirs = tensors(run_stage(config).run), tensors(finished[1])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_checkpoint_is_evaluated_and_asked_like_any_other(finished, manifest, tmp_path, capsys):
    config, run = finished
    test = conf.EvalConfig(
        checkpoint=str(run), data=config.data, generate=config.generate, out=str(tmp_path), n_bootstrap=0,
        paths=config.paths, device="cpu",
    )  # fmt: skip
    assert run_evaluation(test) == 0
    assert "F_S" in capsys.readouterr().out
    rows = read_journal(tmp_path / "predictions.jsonl")
    assert [row["modalities"] for row in rows] == [["audio", "frames", "text"]] * 2 + [["frames", "text"]]
    alone = load(str(run), run.parent, device="cpu").ask(
        manifest.parent / "clip9.mp4", "I see.", generate=config.generate
    )
    assert alone.text == rows[0]["text"]


def test_the_studio_shows_its_answer_without_what_it_rests_on(finished, manifest):
    config, run = finished
    models = Models(conf.StudioConfig(device="cpu", max_new_tokens=3, paths=config.paths), [str(run)])
    sample = Sample("clip9", video=str(manifest.parent / "clip9.mp4"), subtitle="I see.")

    async def events():
        return [row async for row in models.answer(0, sample, conf.QuestionConfig(), load_lexicon("builtin"), {})]

    last = json.loads(asyncio.run(events())[-1].removeprefix("data: "))
    models.close()
    alone = load(str(run), run.parent, device="cpu").ask(sample, generate=conf.GenerateConfig(max_new_tokens=3))
    assert last["answer"]["text"] == alone.text
    assert last["answer"]["labels_rest_on"] is None
    assert not any("drop" in row for row in last["answer"]["sentences"])


def test_the_published_model_answers_without_training(omni, manifest, tmp_path):
    config = conf.InferConfig(
        input=[str(manifest)], split="test", model=omni, out=str(tmp_path / "p.jsonl"), device="cpu",
        generate=conf.GenerateConfig(max_new_tokens=3), paths=conf.PathsConfig(str(tmp_path), runs=str(tmp_path)),
    )  # fmt: skip
    assert run_inference(copy.deepcopy(config)) == 0
    rows = read_journal(tmp_path / "p.jsonl")
    assert [(row["id"], row["model"], row["n_tokens"]) for row in rows] == [
        (f"clip{n}", "tiny_omni", 3) for n in (9, 10, 11)
    ]
    with pytest.raises(UserError, match="attribute=true is not built for omni models"):
        run_inference(replace(config, attribute=True, out=None))
    with pytest.raises(UserError, match="or an omni model without a checkpoint"):
        run_inference(replace(config, checkpoint=str(tmp_path)))


@pytest.fixture
def n_encoded(monkeypatch):
    """How often a tower has run, in a list."""
    run, calls = Tower.forward, [0]

    def counted(self, *media):
        calls[0] += 1
        return run(self, *media)

    monkeypatch.setattr(Tower, "forward", counted)
    return calls


def test_rewards_train_lora_on_answers_to_shared_prompts(omni, manifest, finished, tmp_path, n_encoded):
    config = omni_config(
        omni, manifest, tmp_path, objective="reward", rewards={"tests.training.test_reward.letters": 1.0}, group_size=3,
        tasks={"labels": 1.0}, modality_dropout=0.0, n_validation=0, epochs=1, warmup_steps=0,
        init_from=str(complete_checkpoints(finished[1])[-1]), objective_options={"max_new_tokens": 4, "kl": 0.1},
    )  # fmt: skip
    run = run_stage(config).run
    rows = read_journal(run / "rollouts.jsonl")
    assert len(rows) == 2 * 2 * 3
    assert n_encoded == [2 * 4]  # sound and frames of four prompts, for three answers, their reference and the update
    assert len({row["text"] for row in rows}) > 1
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert log[1]["kl"] == pytest.approx(0, abs=1e-6)  # of the first update, before which nothing had moved
    assert any(not torch.equal(tensor, tensors(finished[1])[name]) for name, tensor in tensors(run).items())


def test_preferences_start_from_a_margin_of_0(omni, manifest, tmp_path, n_encoded):
    samples = [json.loads(line) for line in manifest.read_text().splitlines()]
    rejected = [
        {**row, "video": str(manifest.parent / row["video"]), "rejected": "Nobody is there."} for row in samples
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f"{json.dumps(row)}\n" for row in rejected))
    config = omni_config(
        omni, pairs, tmp_path, objective="preference", tasks={"description": 1.0}, modality_dropout=0.0,
        n_validation=0, epochs=1, warmup_steps=0,
    )  # fmt: skip
    run = run_stage(config).run
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert n_encoded == [2 * 2 * 4]  # of both answers of four pairs
    assert log[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert log[1]["margin"] > 0


def test_the_preset_trains_lora_in_every_stage_and_needs_no_coarse_stage():
    for stage, start in (("fine", None), ("reward", "fine"), ("preference", "fine"), ("reward_model", "fine")):
        found = compose("train", ["model=qwen2_5_omni", f"stage={stage}"]).stage
        assert (found.trainable, found.init_from) == (["lora"], start)


def test_states_of_an_omni_model_are_not_cached(omni):
    from affectgpt.cache.build import run_build

    with pytest.raises(InputError, match="states of omni models are not cached"):
        run_build(conf.CacheConfig(model=omni, data=conf.DataConfig(train={"x": conf.SourceConfig(manifest="x")})))
