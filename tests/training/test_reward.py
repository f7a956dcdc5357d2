"""Learning from rewards: whole runs on tiny models, and the loss against its formula."""

import copy
import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from affectgpt.config import LoraConfig
from affectgpt.journal import read_journal
from affectgpt.models import build, model_spec
from affectgpt.runs import complete_checkpoints
from affectgpt.runtime import InputError
from affectgpt.training import objectives, rollouts
from affectgpt.training.callbacks import BoardLog, shown_rollouts
from affectgpt.training.objectives.reward import Objective, policy_loss
from affectgpt.training.reference import Reference
from affectgpt.training.rollouts import RewardLimit
from affectgpt.training.stages import run_stage
from affectgpt.training.trainer import StageTrainer
from tests.conftest import make_train_config
from tests.data.conftest import write_clip
from tests.media.media_files import sine, write_media

WALL_CLOCK = {"samples_per_s", "tokens_per_s", "data_wait_share", "train_runtime", "train_samples_per_second",
              "train_steps_per_second", "sampled_s", "scored_s"}  # fmt: skip


def letters(attempts):
    """A reward that a model soon raises: ASCII characters."""
    return [sum(letter.isascii() for letter in attempt.text) for attempt in attempts]


def reward_config(base_models, manifest, folder, options=None, **stage):
    """Six steps of two prompts with four answers each, from random projectors."""
    fields = {
        "objective": "reward",
        "rewards": {"wheel": 1.0, "tests.training.test_reward.letters": 0.1},
        "group_size": 4,
        "tasks": {"labels": 1.0},
        "modality_dropout": 0.0,
        "init_from": None,
        "objective_options": {"max_new_tokens": 6, **(options or {})},
        "n_validation": 0,
    }
    return make_train_config(base_models, manifest, folder, **{**fields, **stage})


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def outcome(run):
    return {
        "log": [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in logged(run)],
        "rollouts": (run / "rollouts.jsonl").read_text(),
        "weights": (complete_checkpoints(run)[-1] / "trained.safetensors").read_bytes(),
    }


@pytest.fixture(scope="module")
def finished(base_models, manifest, tmp_path_factory):
    config = reward_config(base_models, manifest, tmp_path_factory.mktemp("finished"), {"passes": 2, "kl": 0.1})
    return config, run_stage(copy.deepcopy(config)).run


def test_a_run_keeps_every_answer_with_its_rewards_and_logs_what_is_watched(finished):
    run = finished[1]
    rows = read_journal(run / "rollouts.jsonl")
    assert [row["step"] for row in rows] == [step for step in (1, 3, 5) for _ in range(8)]
    for _, group in itertools.groupby(rows, key=lambda row: (row["step"], row["id"])):
        group = list(group)
        assert [row["answer"] for row in group] == [0, 1, 2, 3]
        assert len({row["seed"] for row in group}) == 4
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-9)
        for row in group:
            assert row["reward"] == pytest.approx(
                row["rewards"]["wheel"] + 0.1 * row["rewards"]["tests.training.test_reward.letters"]
            )
    watched = {"n_labels", "n_tokens", "repetition", "in_format", "truncated", "absent_claims"}
    log = logged(run)
    assert {"reward", "reward_wheel", "equal_groups", *watched} <= log[0].keys()
    assert 0 < log[4]["kl"] < 1  # per token
    assert 0 <= log[4]["clipped"] < 1


def test_answers_and_rewards_are_shown_on_wandb_and_tensorboard_and_drawn(base_models, manifest, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = reward_config(base_models, manifest, tmp_path, epochs=1, validate_every=2)
    config.logging.wandb, config.logging.tensorboard, config.logging.n_sample_generations = "offline", True, 1
    run = run_stage(config).run
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tables = events.Tensors("rollouts/text_summary")
    assert [table.step for table in tables] == [1, 2]
    text, rows = tables[0].tensor_proto.string_val[0].decode(), read_journal(run / "rollouts.jsonl")
    assert text.count("\n") == 1 + config.stage.group_size
    assert f"| {', '.join(rows[0]['truth'])} |" in text
    assert "| wheel | tests.training.test_reward.letters | reward | advantage |" in text
    assert any(tag.endswith(rows[0]["id"]) for tag in events.Tags()["images"])
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert (run / "rollouts.png").stat().st_size > 0


def test_a_video_file_that_holds_only_sound_is_shown_without_frames(base_models, manifest, tmp_path):
    heard, seen = write_media(tmp_path / "sound.mp4", sound=sine(0.5)), write_clip(tmp_path / "seen.mp4")
    shown = []

    class Board(BoardLog):
        def show_rollouts(self, step, rows, frames):
            shown.append((step, [row["id"] for row in rows], {name: image.shape for name, image in frames.items()}))

    config = reward_config(base_models, manifest, tmp_path)
    show = shown_rollouts(config, [Board()])
    show(1, [{"id": "a", "video": str(heard)}, {"id": "b", "video": str(seen)}, {"id": "c", "video": None}])
    assert shown == [(1, ["a", "b", "c"], {"b": (32, 32, 3)})]


class Killed(Exception):
    pass


def dies_at(monkeypatch, owner, name, number):
    """Make the `number`-th call of a function end the process; what it wrote so far stays."""
    function, n_calls = getattr(owner, name), itertools.count(1)

    def counted(*args, **kwargs):
        if next(n_calls) == number:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (rollouts, "sample_groups", 2),  # the rollout of step 3, after the checkpoint of step 2
        (rollouts.Scorer, "reward", 4),  # the second reward of step 3
        (objectives.reward, "policy_loss", 4),  # the update of step 4, the second with these answers
        (rollouts, "append_rows", 3),  # between the rollout of step 5 and its rows
    ],
)
def test_a_run_killed_in_rollout_scoring_or_update_resumes_bit_identical(
    base_models, manifest, finished, tmp_path, monkeypatch, owner, name, number
):
    config = reward_config(base_models, manifest, tmp_path, {"passes": 2, "kl": 0.1})
    with monkeypatch.context() as patch:
        dies_at(patch, owner, name, number)
        with pytest.raises(Killed):
            run_stage(copy.deepcopy(config))
    config.resume = True
    assert outcome(run_stage(config).run) == outcome(finished[1])


def test_a_kill_while_a_run_resumes_loses_no_answers(base_models, manifest, finished, tmp_path, monkeypatch):
    config = reward_config(base_models, manifest, tmp_path, {"passes": 2, "kl": 0.1})
    with monkeypatch.context() as patch:
        dies_at(patch, rollouts, "sample_groups", 2)
        with pytest.raises(Killed):
            run_stage(copy.deepcopy(config))
    config.resume = True
    (file,) = tmp_path.glob("runs/*/rollouts.jsonl")
    before = file.read_text()
    with monkeypatch.context() as patch:
        dies_at(patch, rollouts, "append_rows", 1)
        dies_at(patch, rollouts, "write_lines_atomic", 1)
        with pytest.raises(Killed):
            run_stage(copy.deepcopy(config))
    assert before
    assert file.read_text() == before
    assert outcome(run_stage(config).run) == outcome(finished[1])


def test_a_run_stopped_between_two_passes_resumes_bit_identical(base_models, manifest, finished, tmp_path, monkeypatch):
    config = reward_config(base_models, manifest, tmp_path, {"passes": 2, "kl": 0.1})
    train, n_steps = StageTrainer.training_step, itertools.count(1)

    def stopping(self, *args, **kwargs):
        if next(n_steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", stopping)
        assert run_stage(copy.deepcopy(config)).exit_code == 143
    config.resume = True
    assert outcome(run_stage(config).run) == outcome(finished[1])


def test_rewards_rise(base_models, manifest, tmp_path):
    fast = {"iterations_per_epoch": 10, "learning_rate": 5e-2, "min_learning_rate": 5e-2, "trainable": ["lora"]}
    rewards = {"tests.training.test_reward.letters": 1.0}
    config = reward_config(base_models, manifest, tmp_path, {"kl": 0.0}, rewards=rewards, group_size=16, **fast)
    config.model.llm.lora = LoraConfig(r=4, alpha=16, target_modules=["down_proj", "o_proj"])
    rows = read_journal(run_stage(config).run / "rollouts.jsonl")
    first, last = ([row["reward"] for row in rows if row["step"] in steps] for steps in ((1, 2, 3), (18, 19, 20)))
    assert np.mean(last) > np.mean(first) + 2


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": True, "dtype": "bfloat16", "stage": {"trainable": ["lora"]}},
        {"lora": True, "stage": {"trainable": ["projectors", "lora"], "accumulation": 2, "batch_size": 1}},
        {"stage": {"packing": False, "tasks": {"think": 1.0}, "modality_dropout": 0.3}},
        {"stage": {"n_workers": 1, "token_budget": 40}, "cache": "first_epoch"},
        {"cache": "off"},
    ],
    ids=[
        "lora, bf16",
        "projectors and lora, accumulated",
        "padded, think",
        "cached in the first epoch, token budget",
        "encoders in every step",
    ],
)
def test_it_trains_every_kind_of_model(base_models, manifest, tmp_path, changes):
    config = reward_config(base_models, manifest, tmp_path, epochs=1, **changes.get("stage", {}))
    config.model.llm.dtype = changes.get("dtype", "float32")
    if changes.get("lora"):
        config.model.llm.lora = LoraConfig(r=2, alpha=4)
    config.data.cache_features = changes.get("cache", "ahead")
    run = run_stage(config).run
    trained = load_file(complete_checkpoints(run)[-1] / "trained.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    rows = read_journal(run / "rollouts.jsonl")
    assert len(rows) == 3 * 8
    assert len({row["text"] for row in rows}) > 1


# ---- loss ------------------------------------------------------------------------------------------------------------


def test_the_first_pass_has_the_gradient_of_reinforce_and_clipping_stops_later_ones():
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([2.0, -1.0])
    losses, clipped, divergence = policy_loss(new, new.detach(), advantages, None, 0.2, 0.2, 0.0)
    losses.sum().backward()
    assert torch.equal(new.grad, -advantages)
    assert not clipped.any()
    assert not divergence.any()
    far = torch.tensor([-1.0, -2.0], requires_grad=True)
    losses, clipped, _ = policy_loss(far, far.detach() + torch.tensor([-1.0, 1.0]), advantages, None, 0.2, 0.3, 0.0)
    losses.sum().backward()
    assert clipped.all()
    assert not far.grad.any()
    assert losses.tolist() == pytest.approx([-1.3 * 2, 0.8])


def test_the_divergence_is_zero_at_the_reference_and_positive_elsewhere():
    new, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.0, -1.0, -3.0])
    _, _, divergence = policy_loss(new, new, torch.zeros(3), reference, 0.2, 0.2, 1.0)
    assert divergence.tolist() == pytest.approx([0.0, np.exp(1) - 2, np.exp(-2.5) + 1.5])


@pytest.mark.parametrize(
    ("reduction", "expected"), [("grpo", [1 / 2, 1 / 2]), ("dr_grpo", [1 / 16, 3 / 16]), ("dapo", [1 / 4, 3 / 4])]
)
def test_reductions_weigh_answers_of_one_and_three_tokens(reduction, expected):
    weights = objectives.reward.token_weights(reduction, [1, 3], n_answers=2, n_tokens=4, longest=8)
    assert [part.sum().item() for part in weights.split([1, 3])] == pytest.approx(expected)


# ---- reference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "is_copy"), [(["lora"], False), (["projectors", "lora"], True)])
def test_the_reference_is_the_model_at_its_start_and_leaves_no_trace(base_models, manifest, tmp_path, parts, is_copy):
    config = make_train_config(base_models, manifest, tmp_path)
    config.model.llm.lora = LoraConfig(r=2, alpha=4)
    model, processor = build(model_spec(config.model, 0))
    model.set_trainable(parts)
    model.eval()
    ids = torch.tensor([processor.tokenizer("USER: sad ASSISTANT: calm")["input_ids"]])
    before = model(ids).logits
    reference = Reference(model)
    assert reference.is_copy == is_copy
    for tensor in model.parameters():
        if tensor.requires_grad:
            tensor.data += 0.1
    after = model(ids).logits
    assert not torch.equal(after, before)
    with reference.inside(model):
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, after)


def test_new_dora_is_copied_because_its_norms_do_not_start_at_0(base_models, manifest, tmp_path):
    config = make_train_config(base_models, manifest, tmp_path)
    config.model.llm.lora = LoraConfig(r=2, alpha=4, use_dora=True)
    model, processor = build(model_spec(config.model, 0))
    model.set_trainable(["lora"])
    model.eval()
    ids = torch.tensor([processor.tokenizer("USER: sad ASSISTANT: calm")["input_ids"]])
    before, reference = model(ids).logits, Reference(model)
    for tensor in model.own_parts()["lora"].values():
        tensor.data += 0.1
    with reference.inside(model):
        assert torch.equal(model(ids).logits, before)


def test_adapters_that_were_trained_before_are_copied(base_models, manifest, tmp_path):
    config = make_train_config(base_models, manifest, tmp_path)
    config.model.llm.lora = LoraConfig(r=2, alpha=4)
    model, _ = build(model_spec(config.model, 0))
    model.set_trainable(["lora"])
    next(tensor for name, tensor in model.named_parameters() if ".lora_B." in name).data += 1.0
    assert Reference(model).is_copy


# ---- settings and limits ---------------------------------------------------------------------------------------------


def test_a_gamed_reward_stops_the_run_and_says_why(base_models, manifest, tmp_path):
    options = {"limits": {"in_format": 1.0}, "limit_steps": 2}
    config = reward_config(base_models, manifest, tmp_path, options)
    with pytest.raises(RewardLimit, match=r"step 2: the share of answers in format is .* limit 1 .*rollouts\.jsonl"):
        run_stage(copy.deepcopy(config))
    config.resume, config.stage.objective_options["limits"] = True, {"in_format": 0.0}
    assert len(read_journal(run_stage(config).run / "rollouts.jsonl")) == 6 * 8


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"group_size": 1}, r"stage\.group_size is 1; expected at least 2; an answer is compared"),
        ({"group_size": 0}, r"stage\.group_size is 0; expected at least 2"),
        ({"objective_options": {"max_new_tokens": 0}}, r"max_new_tokens is 0; expected at least 1"),
        (
            {"rewards": {"judge": 1.0}, "objective_options": {"judge": {"model": "m", "timeout": 3}}},
            "a chat model on a server has no setting 'timeout'; expected some of .*'timeout_s'",
        ),
        (
            {"rewards": {"model": 1.0}, "objective_options": {"reward_model": "no/such/run"}},
            "no/such/run",
        ),
        ({"rewards": {"whel": 1.0}}, "no reward is named 'whel'; expected some of"),
        ({"rewards": {"wheel": 0.0}}, "at least one reward needs a weight other than 0"),
        ({"rewards": {"wheel": float("nan")}}, "expected finite numbers"),
        ({"rewards": {"judge": 1.0}}, r"needs a chat model: stage\.objective_options\.judge\.model="),
        ({"rewards": {"alignment": 1.0}}, "alignment needs an explanation, which answers to task labels do not have"),
        ({"tasks": {"description": 1.0}}, "wheel needs labels in the answer"),
        ({"objective_options": {"reduction": "mean"}}, r"reduction is 'mean'; expected one of \['grpo'"),
        ({"objective_options": {"temperature": 0.0}}, "equal answers teach nothing"),
        ({"objective_options": {"limits": {"labels": 3}}}, r"limits has \['labels'\]; expected some of"),
        ({"objective_options": {"betta": 3}}, r"objective_options has \['betta'\]"),
        ({"objective": "supervised", "objective_options": {}}, r"stage\.rewards is for stage\.objective=reward"),
    ],
)
def test_bad_settings_are_refused_by_name(base_models, manifest, tmp_path, stage, message):
    config = reward_config(base_models, manifest, tmp_path, **stage)
    with pytest.raises(InputError, match=message):
        run_stage(config)
    assert not list((tmp_path / "runs").glob("*"))


def test_a_reward_that_needs_a_description_names_the_sample_without_one(base_models, manifest, tmp_path):
    folder = manifest.parent
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[2]["description"] = None
    list_ = folder / "without.jsonl"
    list_.write_text("".join(json.dumps(row) + "\n" for row in rows))
    objective = Objective(rewards={"clues": 1.0})
    config = reward_config(base_models, list_, tmp_path, tasks={"labels": 1.0})
    from affectgpt.training.samples import training_sources

    sources, _ = training_sources(config)
    for source in sources:
        object.__setattr__(source, "tasks", {"both": 1.0})
    with pytest.raises(InputError, match=f"reward clues needs description .* which sample '{rows[2]['id']}'"):
        objective.check(config, sources)
