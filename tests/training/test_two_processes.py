"""Rewards and preferences in two processes, with DDP and with ZeRO-2, against one process."""

from dataclasses import asdict

import pytest

from affectgpt.config import SourceConfig
from affectgpt.journal import read_journal
from affectgpt.training.stages import run_stage
from tests.training import test_preference
from tests.training.test_distributed import launch
from tests.training.test_reward import logged, outcome, reward_config

OPTIONS = {"passes": 2, "kl": 0.1}
SHORT = {"iterations_per_epoch": 2, "group_size": 2}
NAMES = ("objective", "rewards", "group_size", "tasks", "modality_dropout", "subtitle_dropout", "objective_options",
         "n_validation", "iterations_per_epoch", "data")  # fmt: skip
STRATEGIES = ("ddp", "zero2")


def reward(base_models, manifest, folder):
    """Two processes take 2 prompts a step each, one process takes 4."""
    return reward_config(base_models, manifest, folder, OPTIONS, batch_size=4, **SHORT)


def preference(base_models, pairs, folder):
    config = test_preference.config_of(base_models, pairs, folder, batch_size=4, iterations_per_epoch=2)
    config.data.coarse, config.data.train, config.stage.data = [SourceConfig(manifest=str(pairs))], {}, ["coarse"]
    return config


@pytest.fixture(scope="module")
def pairs(manifest):
    return test_preference.judged_pairs(manifest)


@pytest.fixture(scope="module")
def together(base_models, manifest, pairs, tmp_path_factory):
    """Folder and answers of all runs in two processes, which are started once: importing takes longer than a run."""
    pytest.importorskip("deepspeed", reason="zero2 needs the deepspeed extra")
    folder = tmp_path_factory.mktemp("two")

    def fields(config, strategy):
        found = {f"stage.{name}": value for name, value in asdict(config.stage).items() if name in NAMES}
        return found | {"stage.keep_last": 9, "strategy.name": strategy}

    rewards = {name: fields(reward(base_models, manifest, folder), name) for name in STRATEGIES}
    stopped = {"folder": folder / "stopped", "manifest": manifest}
    jobs = [{"folder": folder / name, "manifest": manifest, "fields": rewards[name]} for name in STRATEGIES]
    jobs += [
        {**stopped, "fields": rewards["zero2"], "stop_rank": 1, "stop_at": 5},
        {**stopped, "fields": {**rewards["zero2"], "resume": True}},
    ]
    for name in STRATEGIES:
        wanted = fields(preference(base_models, pairs, folder), name)
        jobs.append({"folder": folder / f"pairs-{name}", "manifest": pairs, "fields": {**wanted, "data.test": []}})
    answers = launch(2, base_models, manifest, jobs)
    return folder, [[answer.get("exit_code", answer) for answer in each] for each in answers]


def test_two_processes_sample_and_train_what_one_does(base_models, manifest, tmp_path, together):
    folder, codes = together
    assert codes[:2] == [[0, 0], [0, 0]]
    run = run_stage(reward(base_models, manifest, tmp_path)).run
    alone = read_journal(run / "rollouts.jsonl")
    for name in STRATEGIES:
        rows = read_journal(folder / name / "runs" / "coarse" / "rollouts.jsonl")
        keys = ("step", "id", "answer", "seed", "text", "rewards")
        first = [{key: row[key] for key in keys} for row in rows if row["step"] == 1]
        assert first == [{key: row[key] for key in keys} for row in alone if row["step"] == 1]
        assert [(row["id"], row["seed"]) for row in rows] == [(row["id"], row["seed"]) for row in alone]
        mine, theirs = logged(folder / name / "runs" / "coarse"), logged(run)
        for step in (0, 1):
            for key in ("loss", "grad_norm", "reward", "n_tokens"):
                assert mine[step].get(key) == pytest.approx(theirs[step].get(key), abs=1e-3), (name, step, key)


def test_two_processes_resume_bit_identical_between_passes(together):
    folder, codes = together
    assert codes[2:4] == [[143, 143], [0, 0]]
    assert outcome(folder / "stopped" / "runs" / "coarse") == outcome(folder / "zero2" / "runs" / "coarse")


def test_two_processes_learn_from_the_pairs_of_one(base_models, pairs, tmp_path, together):
    folder, codes = together
    assert codes[4:] == [[0, 0], [0, 0]]
    run = run_stage(preference(base_models, pairs, tmp_path)).run
    theirs = [row for row in logged(run) if "margin" in row]
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.01
    for name in STRATEGIES:
        other = folder / f"pairs-{name}" / "runs" / "coarse"
        assert (other / "pairs.jsonl").read_bytes() == (run / "pairs.jsonl").read_bytes()
        mine = [row for row in logged(other) if "margin" in row]
        assert len(mine) == len(theirs) == 4
        for key in ("loss", "grad_norm"):
            assert [row[key] for row in mine] == pytest.approx([row[key] for row in theirs], rel=1e-3, abs=1e-4), key
