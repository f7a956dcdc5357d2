"""Two processes on the CPU for each strategy, against one process."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from affectgpt.config import StrategyConfig
from affectgpt.runs import RunRecord
from affectgpt.runtime import InputError, UserError
from affectgpt.training.distributed import Processes, check_strategy, deepspeed_config
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config

ROOT = Path(__file__).parent.parent.parent
STRATEGIES = ("ddp", "zero2", "zero3")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(n_processes, base_models, manifest, jobs, timeout_s=900):  # a busy machine takes minutes
    """Run `jobs` in n processes; returns for each job what its processes wrote."""
    for job in jobs:
        Path(job["folder"]).mkdir(parents=True, exist_ok=True)
    argument = {
        "base": {name: str(path) for name, path in base_models.items()},
        "manifest": str(manifest),
        "jobs": jobs,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n_processes), "--master_port"]
    command += [str(free_port()), "-m", "tests.training.processes", json.dumps(argument, default=str)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{n_processes} processes were not done after {timeout_s} s:\n{output[-3000:]}")
    assert process.returncode == 0, output[-4000:]
    return [
        [json.loads((Path(job["folder"]) / f"result-{number}-{rank}.json").read_text()) for rank in range(n_processes)]
        for number, job in enumerate(jobs)
    ]


def column(folder, key):
    rows = [json.loads(line) for line in (folder / "runs" / "coarse" / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def weights(folder, checkpoint="checkpoint-6"):
    return load_file(folder / "runs" / "coarse" / checkpoint / "trained.safetensors")


def generated(folder):
    return [path.read_text() for path in sorted((folder / "runs" / "coarse" / "generations").glob("*.jsonl"))]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def alone(base_models, manifest, tmp_path_factory):
    """Six steps of batch 4 in one process."""
    folder = tmp_path_factory.mktemp("alone")
    config = make_train_config(base_models, manifest, folder, batch_size=4)
    for projector in config.model.projectors.values():
        projector.dropout = 0.0
    run_stage(config)
    return folder


@pytest.fixture(scope="module")
def pairs(base_models, manifest, tmp_path_factory):
    """For each strategy that is installed: folder and answers of the same six steps in two processes of batch size 2
    (whole/), and with dropout, uninterrupted and resumed. They are started once: importing takes longer than a run.
    """
    folders, jobs = {}, []
    for name in STRATEGIES if find_spec("deepspeed") else ("ddp",):
        folders[name] = folder = tmp_path_factory.mktemp(name)
        # A clip without sound and dropped media: the two processes do not show the same branches in a step.
        fields = {"strategy.name": name, "strategy.num_processes": 2}
        noisy = {
            "folder": folder / "noisy",
            "dropout": 0.3,
            "fields": {**fields, "stage.keep_last": 9, "stage.log_every": 2},
        }
        stopped = {**noisy, "folder": folder / "stopped"}
        jobs += [
            {"folder": folder / "whole", "fields": fields},
            noisy,
            # Two draws a step, and the loader is one batch ahead: the signal comes within step 3, no multiple of 2.
            {**stopped, "stop_rank": 1, "stop_at": 7},
            {**stopped, "fields": {**noisy["fields"], "resume": True}},
            {"folder": folder / "other", "fields": {**fields, "strategy.num_processes": 3}},
            {"folder": folder / "rarely", "fields": {**fields, "stage.log_every": 4}},
        ]
    answers = launch(2, base_models, manifest, jobs)
    n_each = len(jobs) // len(folders)
    return {name: (folder, answers[n_each * at :][:n_each]) for at, (name, folder) in enumerate(folders.items())}


@pytest.fixture(scope="module", params=STRATEGIES)
def pair(request, pairs):
    if request.param not in pairs:
        pytest.skip("zero2 and zero3 need the deepspeed extra")
    return pairs[request.param]


def test_two_processes_log_the_losses_of_one(alone, pair):
    folder, answers = pair
    assert [answer["exit_code"] for answer in answers[0]] == [0, 0]
    for key in ("loss", "grad_norm", "learning_rate"):
        assert column(folder / "whole", key) == pytest.approx(column(alone, key), abs=1e-5)


def test_the_mean_loss_of_a_run_is_that_of_all_processes_also_after_the_last_line_of_the_log(pair):
    folder, _ = pair
    losses = [RunRecord.read(folder / name / "runs" / "coarse").values["loss"] for name in ("whole", "rarely")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0] == pytest.approx(sum(column(folder / "whole", "loss")) / 6, rel=1e-6)


def test_two_processes_validate_like_one(alone, pair):
    folder, _ = pair
    assert generated(folder / "whole") == generated(alone)
    for key in ("eval_score", "eval_f_s", "eval_precision", "eval_recall", "eval_n", "eval_unparsed"):
        assert column(folder / "whole", key) == column(alone, key)


def test_two_processes_train_the_weights_of_one(alone, pair):
    folder, _ = pair
    for checkpoint in ("best", "checkpoint-6"):
        mine, theirs = weights(folder / "whole", checkpoint), weights(alone, checkpoint)
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-3)  # six steps of 1e-2


def test_a_run_folder_is_written_once_and_records_the_number_of_processes(pair):
    folder, answers = pair
    assert [path.name for path in (folder / "whole" / "runs").iterdir()] == ["coarse"]
    assert {answer["run"] for answer in answers[0]} == {str(folder / "whole" / "runs" / "coarse")}
    record = RunRecord.read(folder / "whole" / "runs" / "coarse").values
    assert (record["status"], record["num_processes"], record["steps"]) == ("finished", 2, 6)
    assert len(column(folder / "whole", "loss")) == 6


def test_a_signal_to_one_process_stops_both_after_the_same_step(pair):
    folder, answers = pair
    assert [answer["exit_code"] for answer in answers[2]] == [143, 143]
    every = {path.parent.name for path in (folder / "stopped" / "runs" / "coarse").glob("checkpoint-*/COMPLETE")}
    assert every - {"checkpoint-2", "checkpoint-4", "checkpoint-6"} == {"checkpoint-3"}


def test_stopped_and_resumed_equals_uninterrupted(pair):
    folder, answers = pair
    assert [answer["exit_code"] for answer in answers[3]] == [0, 0]
    assert same(weights(folder / "stopped"), weights(folder / "noisy"))
    # Stopped in step 3, between two lines of the log and before a validation.
    assert column(folder / "stopped", "step") == column(folder / "noisy", "step")
    assert column(folder / "stopped", "loss") == column(folder / "noisy", "loss")
    assert generated(folder / "stopped") == generated(folder / "noisy")


def test_a_wrong_number_of_processes_is_refused(pair):
    _, answers = pair
    assert all("strategy.num_processes is 3, but 2 were started" in answer["error"] for answer in answers[4])


def test_checkpoints_of_deepspeed_hold_no_frozen_weights(pair):
    run = pair[0] / "whole" / "runs" / "coarse"
    states = list((run / "checkpoint-6").glob("global_step6/*model_states.pt"))
    assert bool(states) == RunRecord.read(run).values["config"]["strategy"]["name"].startswith("zero")
    for path in states:
        names = torch.load(path, weights_only=False, map_location="cpu")["module"]  # written above by this test
        assert names
        assert all(name.startswith("projectors.") for name in names)


def test_resuming_with_another_number_of_processes_is_refused(base_models, manifest, tmp_path):
    config = make_train_config(base_models, manifest, tmp_path)
    RunRecord.start(tmp_path / "runs" / "coarse", kind="train", config=asdict(config), num_processes=2)
    config.resume = True
    with pytest.raises(UserError, match=r"was trained by 2 processes, now there are 1: .*stage\.init_from="):
        run_stage(config)


@pytest.mark.parametrize(
    ("strategy", "world_size", "message"),
    [
        (StrategyConfig("single"), 2, "2 processes were started, but strategy=single trains in one; add strategy=ddp"),
        (StrategyConfig("ddp"), None, "strategy=ddp needs processes started by a launcher: torchrun"),
        (StrategyConfig("zero3", num_processes=4), 2, "num_processes is 4, but 2 were started"),
        (StrategyConfig("fsdp"), 2, r"strategy\.name is 'fsdp'; expected one of \['single'"),
        (
            StrategyConfig("ddp", offload_optimizer=True),
            2,
            "offload_optimizer works with zero2 and zero3, not with ddp",
        ),
        (StrategyConfig("zero2", offload_parameters=True), 2, "offload_parameters works with zero3, not with zero2"),
    ],
)
def test_an_invalid_combination_is_refused_with_the_fix(strategy, world_size, message, monkeypatch):
    if world_size is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(UserError, match=message):
        check_strategy(strategy, world_size or 1)


def test_missing_deepspeed_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"strategy=zero2 needs DeepSpeed: pip install 'affectgpt\[deepspeed\]'"):
        check_strategy(StrategyConfig("zero2"), 2)


def test_offloading_is_passed_to_deepspeed_and_its_precision_settings_stay_off():
    found = deepspeed_config(StrategyConfig("zero3", offload_optimizer=True, offload_parameters=True), 1000)
    assert found["zero_optimization"]["offload_optimizer"] == found["zero_optimization"]["offload_param"]
    assert not {"bf16", "fp16"} & found.keys()
    assert deepspeed_config(StrategyConfig("ddp"), 1000) is None


def test_shares_cover_all_items_once_and_equal_shares_are_equally_long():
    shares, equal = [], []
    for rank in range(3):
        processes = Processes(StrategyConfig(), torch.device("cpu"))
        processes.rank, processes.world_size = rank, 3
        shares += processes.share("abcde")
        equal.append(processes.equal_share("abcd"))
    assert sorted(shares) == list("abcde")
    assert {len(share) for share in equal} == {2}
    assert {item for share in equal for item in share} == set("abcd")


@pytest.mark.parametrize(
    ("bug", "raised_here", "raised_there"),
    [(InputError("m.csv: no column id"), InputError, UserError), (KeyError("id"), KeyError, RuntimeError)],
)
def test_an_exception_keeps_type_and_traceback_in_its_process_and_ends_the_others(
    bug, raised_here, raised_there, monkeypatch
):
    written = []

    def gather(results, mine, group):
        written.append(mine)
        results[:] = [written[0], mine]  # process 0 calls first

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)

    def fail():
        raise bug

    first, second = Processes(StrategyConfig(), torch.device("cpu")), Processes(StrategyConfig(), torch.device("cpu"))
    for processes in (first, second):
        processes.world_size, processes._group = 2, object()
    with pytest.raises(raised_here) as here:
        first.together(fail)
    assert here.value is bug
    assert here.traceback[-1].name == "fail"
    with pytest.raises(raised_there, match=f"process 0 failed: {type(bug).__name__}: ") as there:
        second.together(lambda: 1)
    assert isinstance(there.value, UserError) == isinstance(bug, UserError)


def test_the_slurm_launcher_composes_with_one_task_per_gpu():
    pytest.importorskip("submitit", reason="needs the slurm extra")
    command = [sys.executable, "train.py", "hydra/launcher=slurm", "strategy=ddp", "hydra.launcher.tasks_per_node=8"]
    shown = subprocess.run(
        [*command, "--cfg", "hydra", "-p", "hydra.launcher"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert shown.returncode == 0, shown.stderr
    assert "SlurmLauncher" in shown.stdout
    assert "gpus_per_node: 8" in shown.stdout or "gpus_per_node: ${.tasks_per_node}" in shown.stdout


def test_zero3_refuses_a_quantized_llm(base_models, manifest, tmp_path):
    config = make_train_config(base_models, manifest, tmp_path)
    config.strategy = StrategyConfig("zero3")
    config.model.llm.quantization = "nf4"
    with pytest.raises(UserError, match="zero3 cannot partition a quantized LLM"):
        run_stage(config)
