"""Whole runs on tiny base models and twelve real clips."""

import contextlib
import copy
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerControl

from affectgpt.config import LoraConfig, ProjectorConfig, SourceConfig
from affectgpt.data.mixture import Source
from affectgpt.engine import kept_bytes, layers
from affectgpt.journal.locks import held
from affectgpt.models.checkpoint import CheckpointError
from affectgpt.runs import (
    COMPLETE,
    RunRecord,
    checkpoint_to_start_from,
    checkpoint_to_use,
    complete_checkpoints,
    last_complete_run,
)
from affectgpt.runtime import UserError
from affectgpt.schema import ManifestError, Prediction, Sample
from affectgpt.training.callbacks import StopOnSignal
from affectgpt.training.run_folder import changed_inputs, changed_settings
from affectgpt.training.samples import hold_out_validation
from affectgpt.training.setup import starting_model
from affectgpt.training.stages import next_commands, run_stage
from affectgpt.training.trainer import StageTrainer
from affectgpt.training.validation import Validation, validation_scores
from tests.conftest import make_train_config


def weights(folder):
    return load_file(folder / "trained.safetensors")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(base_models, manifest, tmp_path_factory):
    """A run of six steps that nothing disturbed: (its configuration, its folder)."""
    config = make_train_config(base_models, manifest, tmp_path_factory.mktemp("finished"))
    return config, run_stage(copy.deepcopy(config)).run


def in_folder(config, folder):
    """The same configuration with other folders, so that runs do not meet."""
    changed = copy.deepcopy(config)
    changed.paths.runs = str(folder / "runs")
    changed.paths.cache = str(folder / "cache")
    return changed


def test_a_run_folder_contains_checkpoints_config_record_and_generations(finished):
    _, run = finished
    assert [path.name for path in complete_checkpoints(run)] == ["checkpoint-4", "checkpoint-6"]
    assert (run / "best" / COMPLETE).exists()
    record = RunRecord.read(run).values
    assert (record["status"], record["steps"], record["n_bad_samples"]) == ("finished", 6, 0)
    assert yaml.safe_load((run / "config.yaml").read_text())["stage"]["batch_size"] == 2
    assert len(list((run / "generations").glob("step-*.jsonl"))) == 2


def test_metrics_hold_loss_rate_norm_speed_padding_and_validation(finished):
    rows = metrics(finished[1])
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert {"learning_rate", "grad_norm", "samples_per_s", "tokens_per_s", "padding_share", "data_wait_share"} <= steps[
        0
    ].keys()
    assert [row["step"] for row in rows if "eval_f_s" in row] == [3, 6]
    assert all(row["eval_n"] == 2 for row in rows if "eval_n" in row)
    assert all(row["eval_score"] == row["eval_f_s"] for row in rows if "eval_f_s" in row)


def test_logged_learning_rates_are_those_of_the_schedule(finished):
    steps = [row for row in metrics(finished[1]) if "loss" in row]
    assert steps[0]["learning_rate"] == pytest.approx(1e-6)
    assert steps[2]["learning_rate"] == pytest.approx(1e-2)
    assert steps[5]["learning_rate"] == pytest.approx(1e-3)


def test_the_same_seed_gives_the_same_weights(finished, tmp_path):
    config, run = finished
    again = run_stage(in_folder(config, tmp_path)).run
    assert same(weights(again / "checkpoint-6"), weights(run / "checkpoint-6"))


def test_cached_and_online_features_train_the_same_weights(finished, tmp_path):
    config, run = finished
    online = in_folder(config, tmp_path)
    online.data.cache_features = False
    assert same(weights(run_stage(online).run / "checkpoint-6"), weights(run / "checkpoint-6"))


@pytest.mark.parametrize(("limit_gb", "n_workers"), [(None, 0), (None, 1), (1e-5, 0)])
def test_states_cached_in_the_first_epoch_or_not_at_all_train_the_same_weights(finished, tmp_path, limit_gb, n_workers):
    config, run = finished
    filled = in_folder(config, tmp_path)
    filled.paths.cache, filled.paths.cache_limit_gb = str(tmp_path / "cache"), limit_gb
    filled.data.cache_features = "first_epoch" if limit_gb is None else "ahead"
    filled.stage.n_workers = n_workers
    assert same(weights(run_stage(filled).run / "checkpoint-6"), weights(run / "checkpoint-6"))
    n_states = len(list((tmp_path / "cache").rglob("about.json")))
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "cache" / "features").rglob("*.states"))
    assert n_states == 3
    assert n_bytes
    assert limit_gb is None or n_bytes < limit_gb * 1e9


def test_resumed_from_any_checkpoint_equals_uninterrupted(finished, tmp_path):
    config, run = finished
    interrupted = in_folder(config, tmp_path)
    first = run_stage(copy.deepcopy(interrupted)).run
    # What a kill between step 3 and the end of saving step 4 leaves: a folder without its marker, and no result.
    (first / "checkpoint-6" / COMPLETE).unlink()
    record = RunRecord.read(first)
    record.values["status"] = "running"
    record.finish("running")
    interrupted.resume = True
    resumed = run_stage(interrupted)
    assert resumed.run == first
    assert same(weights(first / "checkpoint-6"), weights(run / "checkpoint-6"))
    assert [row["step"] for row in metrics(first) if "loss" in row] == [1, 2, 3, 4, 5, 6]


WALL_CLOCK = {"samples_per_s", "tokens_per_s", "data_wait_share", "train_runtime", "train_samples_per_second",
              "train_steps_per_second"}  # fmt: skip


def outcome(run):
    """What must not depend on whether a run was interrupted: last weights, best, log and answers."""
    return {
        "log": [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in metrics(run)],
        "generations": {path.name: path.read_text() for path in (run / "generations").iterdir()},
        "best": (run / "best" / COMPLETE).read_text(),
        "best weights": (run / "best" / "trained.safetensors").read_bytes(),
        "weights": (complete_checkpoints(run)[-1] / "trained.safetensors").read_bytes(),
        "loss": RunRecord.read(run).values["loss"],
    }


def stop_in_step(monkeypatch, number):
    """Send this process a SIGTERM in the step of that number."""
    train, n_steps = StageTrainer.training_step, itertools.count(1)

    def counted(self, *args, **more):
        if next(n_steps) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *args, **more)

    monkeypatch.setattr(StageTrainer, "training_step", counted)


def score_best_at(monkeypatch, step):
    """Validation scores of a model that is best at one step; answers of untrained models would all score 0."""
    validate = Validation.__call__
    monkeypatch.setattr(
        Validation,
        "__call__",
        lambda self, model, now: validate(self, model, now) | {"score": 0.9 if now == step else 0.5},
    )


@pytest.mark.parametrize("step", [1, 3, 5, 6])
def test_a_run_stopped_at_any_step_and_resumed_equals_the_uninterrupted_one(
    base_models, manifest, tmp_path, monkeypatch, step
):
    # Steps 3 and 6 are validated, steps 2, 4 and 6 logged, step 4 and the last saved.
    fields = {"log_every": 2, "save_every": 4, "modality_dropout": 0.0, "n_workers": 0, "keep_last": 9}
    score_best_at(monkeypatch, step)
    whole = run_stage(make_train_config(base_models, manifest, tmp_path / "whole", **fields)).run
    config = make_train_config(base_models, manifest, tmp_path, **fields)
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        stopped = run_stage(copy.deepcopy(config))
    assert stopped.exit_code == 143
    assert complete_checkpoints(stopped.run)[-1].name == f"checkpoint-{step}"
    assert not (stopped.run / "generations" / f"step-{step:06d}.jsonl").exists()
    config.resume = True
    assert run_stage(config).run == stopped.run
    assert outcome(stopped.run) == outcome(whole)


SCRIPT = """
import json, sys
from pathlib import Path
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config
base, manifest, folder, fields = json.loads(sys.argv[1])
base = {name: Path(path) for name, path in base.items()}
config = make_train_config(base, Path(manifest), Path(folder), **{"epochs": 8, **fields})
sys.exit(run_stage(config).exit_code)
"""


def start_run(base_models, manifest, folder, *, before=(), **fields):
    """A run in a process group of its own, as the child of the command `before`."""
    base = {name: str(path) for name, path in base_models.items()}
    argument = json.dumps([base, str(manifest), str(folder), fields])
    root = Path(__file__).parent.parent.parent
    return subprocess.Popen(
        [*before, sys.executable, "-c", SCRIPT, argument],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_step(folder, step, process):
    file = folder / "runs" / "coarse" / "metrics.jsonl"
    for _ in range(4800):  # a start takes a minute on a busy machine
        if file.exists() and f'"step": {step},' in file.read_text():
            return
        assert process.poll() is None, f"the run ended with {process.returncode} before step {step}"
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


def living(session):
    """Processes of a session that are not zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            found += [int(path.parent.name)] * (its_session == str(session) and state != "Z")
    return found


@pytest.fixture(scope="module")
def whole(base_models, manifest, tmp_path_factory):
    """24 steps that nothing disturbed."""
    return run_stage(make_train_config(base_models, manifest, tmp_path_factory.mktemp("whole"), epochs=8)).run


# SIGKILL to the training process alone; the others to the group, in which there are two loader processes.
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_or_stopped_process_group_resumes_to_what_was_uninterrupted(
    base_models, manifest, whole, tmp_path, how, code
):
    process = start_run(base_models, manifest, tmp_path, n_workers=2)
    wait_for_step(tmp_path, 5, process)
    if how == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, how)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert RunRecord.read(tmp_path / "runs" / "coarse").values["status"] == {-9: "running"}.get(code, "stopped")
    # After SIGKILL, loader processes live on for some seconds: they do not hold the run.
    config = make_train_config(base_models, manifest, tmp_path, epochs=8, n_workers=2)
    config.resume = True
    assert run_stage(config).exit_code == 0
    assert outcome(tmp_path / "runs" / "coarse") == outcome(whole)
    for _ in range(600):
        if not living(process.pid):
            break
        time.sleep(0.1)
    assert not living(process.pid)


def test_a_time_limit_stops_a_run_with_loader_processes_cleanly_although_it_signals_twice(
    base_models, manifest, tmp_path
):
    limit = ("timeout", "--verbose", "600")
    process = start_run(base_models, manifest, tmp_path, before=limit, n_workers=2, epochs=1000)
    wait_for_step(tmp_path, 5, process)
    process.send_signal(signal.SIGTERM)  # timeout passes it to its child, and then to the group of its child
    _, said = process.communicate(timeout=300)
    assert "saving after this step" in said
    assert "Traceback" not in said
    run = tmp_path / "runs" / "coarse"
    assert RunRecord.read(run).values["status"] == "stopped"
    assert complete_checkpoints(run)


def test_a_second_process_on_a_run_is_refused_by_name_until_the_first_one_ends(base_models, manifest, tmp_path):
    first = start_run(base_models, manifest, tmp_path, epochs=1000)
    wait_for_step(tmp_path, 1, first)
    second = make_train_config(base_models, manifest, tmp_path, epochs=1000)
    second.resume = True
    run = tmp_path / "runs" / "coarse"
    with pytest.raises(UserError, match=f"{run} is being trained by process {first.pid} on {socket.gethostname()}"):
        run_stage(second)
    first.kill()
    first.communicate(timeout=60)
    with held(run / ".lock", what="it is held"):
        pass


def test_the_first_ctrl_c_requests_a_stop_and_a_second_or_any_outside_of_training_ends_at_once():
    with StopOnSignal(lambda flag: flag) as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 0
        stop.on_train_begin(None, None, None)
        time.sleep(0.3)
        signal.raise_signal(signal.SIGINT)
        control = TrainerControl()
        stop.on_step_end(None, None, control)
        assert (control.should_save, control.should_training_stop, stop.exit_code) == (True, True, 130)
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_gradient_checkpointing_recomputes_the_blocks_of_the_llm_and_trains_the_same_weights(
    finished, tmp_path, monkeypatch
):
    calls = []
    block = layers.decoder_layer
    monkeypatch.setattr(layers, "decoder_layer", lambda *args, **more: calls.append(args[0]) or block(*args, **more))
    counts, weights_of = {}, {}
    for checkpointing in (False, True):
        config = in_folder(finished[0], tmp_path / str(checkpointing))
        config.stage.gradient_checkpointing = checkpointing
        config.stage.n_validation = 0
        calls.clear()
        weights_of[checkpointing] = weights(run_stage(config).run / "checkpoint-6")
        counts[checkpointing] = len(calls)
    # Two blocks, six steps: once forward, and once more on the way back.
    assert counts == {False: 12, True: 24}
    for name, tensor in weights_of[True].items():
        torch.testing.assert_close(tensor, weights_of[False][name], rtol=1e-4, atol=1e-6)


def test_a_limit_on_activations_recomputes_as_many_blocks_as_necessary_and_trains_the_same_weights(
    finished, tmp_path, monkeypatch, caplog
):
    calls = []
    block = layers.decoder_layer
    config = in_folder(finished[0], tmp_path)
    config.stage.n_validation = 0
    config.stage.token_budget = 1000
    model, _ = starting_model(config)
    kept = kept_bytes(model.train().language_model)
    config.stage.activation_gb = 1000 * (kept.input_bytes + kept.layer_bytes) / 1e9  # one of the two blocks
    monkeypatch.setattr(layers, "decoder_layer", lambda *args, **more: calls.append(args[0]) or block(*args, **more))
    with caplog.at_level(logging.INFO, logger="affectgpt"):
        run = run_stage(config).run
    assert "gradient checkpointing in 1 of 2 layers: 1000 tokens at once keep" in caplog.text
    # The probe of one block, and in each of six steps two blocks and the first one once more.
    assert len(calls) == 1 + 6 * 3
    limited = weights(run / "checkpoint-6")
    calls.clear()
    config = in_folder(finished[0], tmp_path / "plain")
    config.stage.n_validation = 0
    plain = weights(run_stage(config).run / "checkpoint-6")
    for name, tensor in limited.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-6)


def test_a_bf16_llm_trains_fp32_projectors_with_nearly_the_losses_of_fp32(finished, tmp_path):
    config = in_folder(finished[0], tmp_path)
    config.model.llm.dtype = "bfloat16"
    run = run_stage(config).run
    assert {tensor.dtype for tensor in weights(run / "checkpoint-6").values()} == {torch.float32}
    losses = [[row["loss"] for row in metrics(folder) if "loss" in row] for folder in (run, finished[1])]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_resuming_with_other_settings_is_refused_with_their_names(finished, tmp_path):
    config, _ = finished
    stopped = in_folder(config, tmp_path)
    run = run_stage(copy.deepcopy(stopped)).run
    RunRecord.read(run).finish("stopped")
    stopped.resume = True
    stopped.stage.learning_rate = 0.5
    with pytest.raises(UserError, match=r"stage\.learning_rate: was 0\.01, now 0\.5"):
        run_stage(stopped)


def test_a_run_is_not_resumed_from_a_state_that_changed(base_models, manifest, tmp_path, monkeypatch):
    config = make_train_config(base_models, manifest, tmp_path)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)
        run = run_stage(copy.deepcopy(config)).run
    state = run / "checkpoint-4" / "optimizer.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    config.resume = True
    with pytest.raises(UserError, match=r"checkpoint-4 cannot be resumed: optimizer\.pt has changed"):
        run_stage(copy.deepcopy(config))
    shutil.rmtree(state.parent)
    assert run_stage(config).exit_code == 0


def test_a_run_is_not_resumed_on_data_that_changed(base_models, manifest, tmp_path, monkeypatch):
    own = shutil.copytree(manifest.parent, tmp_path / "clips") / manifest.name
    config = make_train_config(base_models, own, tmp_path)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)
        run_stage(copy.deepcopy(config))
    config.resume, text = True, own.read_text()
    own.write_text(text.replace('"labels"', '"labels" ', 1))
    with pytest.raises(UserError, match=rf"{own} has changed\. Restore it, or start another run"):
        run_stage(copy.deepcopy(config))
    own.write_text(text)
    assert run_stage(config).exit_code == 0


def test_inputs_are_compared_by_content_wherever_they_are(tmp_path):
    for name in ("a", "b", "new"):
        (tmp_path / name).write_text(name)
    paths = [str(tmp_path / name) for name in ("a", "b")]
    record = RunRecord.start(tmp_path / "run", kind="train", config={}, inputs=paths)
    assert changed_inputs(record, paths) == []
    assert changed_inputs(RunRecord(tmp_path, {}), paths) == []  # of an older version
    moved = shutil.move(paths[0], tmp_path / "moved")
    assert changed_inputs(record, [moved, paths[1]]) == []
    new = str(tmp_path / "new")
    assert changed_inputs(record, [paths[1], new]) == [f"{new} is new", f"{paths[0]} is missing"]


def test_what_decides_neither_weights_nor_answers_may_change_when_a_run_is_resumed(finished):
    config, run = finished
    record, now = RunRecord.read(run), copy.deepcopy(config)
    now.offline, now.generate.batch_size, now.generate.compile = True, 3, True
    assert changed_settings(record, now) == ""
    now.generate.max_new_tokens = 9
    assert changed_settings(record, now) == "  generate.max_new_tokens: was 8, now 9"


def test_resuming_a_finished_run_changes_nothing_and_is_no_error(finished, caplog):
    config, run = finished
    done = copy.deepcopy(config)
    done.resume = True
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    with caplog.at_level(logging.INFO, logger="affectgpt"):
        result = run_stage(done)
    assert (result.run, result.exit_code) == (run, 0)
    assert f"{run} is finished: there is nothing to resume" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}.keys() == before.keys()
    done.stage.epochs = 9
    with pytest.raises(UserError, match=r"stage\.epochs: was 2, now 9"):
        run_stage(done)


def test_resuming_without_a_run_is_refused(finished, tmp_path):
    nothing = in_folder(finished[0], tmp_path)
    nothing.resume = True
    with pytest.raises(UserError, match="holds no run named 'coarse'"):
        run_stage(nothing)


def test_a_stage_starts_from_the_end_of_the_last_complete_run(finished, base_models, manifest, tmp_path):
    _, run = finished
    fine = make_train_config(base_models, manifest, tmp_path, name="fine", init_from=str(run))
    fine.stage.epochs, fine.stage.iterations_per_epoch, fine.stage.warmup_steps = 1, 1, 0
    # A step with a rate of almost nothing: what the stage ends with is what it started from.
    fine.stage.learning_rate = fine.stage.min_learning_rate = 1e-30
    fine.stage.warmup_learning_rate = 0.0
    result = run_stage(fine)
    assert same(weights(result.run / "checkpoint-1"), weights(run / "checkpoint-6"))
    assert RunRecord.read(result.run).values["init_from"] == str(run / "checkpoint-6")


def test_an_llm_too_narrow_to_answer_in_nf4_is_refused_before_the_first_step(
    base_models, manifest, tmp_path, monkeypatch
):
    pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    narrow = make_train_config(base_models, manifest, tmp_path)
    narrow.device, narrow.model.llm.quantization = "cpu", "nf4"
    with pytest.raises(ValueError, match=r"q_proj is \[32, 32\] .* on this CPU rows must be a multiple of 32"):
        run_stage(narrow)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_projectors_of_another_shape_are_refused_with_the_name_of_the_tensor(finished, base_models, manifest, tmp_path):
    wrong = make_train_config(base_models, manifest, tmp_path, name="fine", init_from=str(finished[1]))
    wrong.model.projectors["audio"] = ProjectorConfig(n_queries=5, hidden_size=16, n_layers=2, n_heads=2)
    with pytest.raises(ValueError, match=r"projectors\.audio"):
        run_stage(wrong)
    assert RunRecord.read(tmp_path / "runs" / "fine").values["status"] == "failed"


def test_an_error_in_a_manifest_leaves_no_run_folder(finished, tmp_path):
    config = in_folder(finished[0], tmp_path)
    (tmp_path / "m.csv").write_text("id,vid\na,b.mp4\n")
    config.data.coarse = [SourceConfig(manifest=str(tmp_path / "m.csv"))]
    with pytest.raises(ManifestError, match=r"unknown columns \['vid'\]"):
        run_stage(config)
    assert not Path(config.paths.runs).exists()


def test_a_warm_up_longer_than_the_run_leaves_no_run_folder(finished, tmp_path):
    config = in_folder(finished[0], tmp_path)
    config.stage.warmup_steps = 99
    with pytest.raises(UserError, match=r"stage\.warmup_steps=99 must be smaller than the \d+ steps"):
        run_stage(config)
    assert not Path(config.paths.runs).exists()


def test_holding_out_all_samples_is_refused_with_the_setting(finished, tmp_path):
    config = in_folder(finished[0], tmp_path)
    config.stage.n_validation = 64
    with pytest.raises(UserError, match=r"stage\.n_validation=64 would hold out all of 9 usable"):
        run_stage(config)


def test_holding_out_most_samples_is_a_warning_with_the_numbers(caplog):
    source = Source([Sample(id=str(number), labels=("sad",)) for number in range(29)])
    hold_out_validation([source], 9, seed=0)
    assert not caplog.text
    training, held = hold_out_validation([source], 24, seed=0)
    assert (len(training[0].samples), len(held[0].samples)) == (5, 24)
    assert "24 of 29 training samples are held out for validation, so only 5 are trained on" in caplog.text


def test_a_stage_ends_with_the_next_commands(finished, tmp_path):
    config, run = finished
    given = ["stage=coarse", "stage.batch_size=4", "data=mine", "model=affectgpt_v1", "resume=true"]
    assert next_commands(config, run, given).splitlines() == [
        "next:",
        "  python train.py stage=fine data=mine model=affectgpt_v1",
        f"  python eval.py checkpoint={run} data=mine",
        f"  python infer.py video.mp4 checkpoint={run}",
    ]
    assert f"stage=fine stage.init_from={tmp_path / 'coarse-2'}" in next_commands(config, tmp_path / "coarse-2", [])
    fine = copy.deepcopy(config)
    fine.stage.name = "fine"
    assert "train.py" not in next_commands(fine, run, given)


def test_a_reward_model_is_followed_by_learning_from_it(finished):
    config, run = copy.deepcopy(finished[0]), finished[1]
    config.stage.name, config.stage.objective_options = "reward_model", {"variant": "bradley_terry"}
    given = ["stage=reward_model", "data=emoprefer", "data.folder=pairs", "model.llm.lora.r=16"]
    assert next_commands(config, run, given).splitlines() == [
        "next:",
        "  python train.py stage=reward 'stage.rewards={model: 1.0, format: 0.1}' "
        f"stage.objective_options.reward_model={run} model.llm.lora.r=16",
    ]


def test_adapters_of_the_earlier_stage_are_loaded_or_the_difference_is_reported(
    finished, base_models, manifest, tmp_path
):
    config, coarse = finished
    first = in_folder(config, tmp_path)
    first.stage.init_from = str(coarse)  # without adapters: this stage adds them
    first.model.llm.lora = LoraConfig(r=2)
    first.stage.trainable = ["projectors", "lora"]
    run = run_stage(copy.deepcopy(first)).run
    second = copy.deepcopy(first)
    second.stage.init_from = str(run)
    second.stage.trainable = ["projectors"]
    before, after = weights(run / "checkpoint-6"), weights(run_stage(second).run / "checkpoint-6")
    adapters = [name for name in before if ".lora_" in name]
    assert adapters
    assert all(torch.equal(before[name], after[name]) for name in adapters)
    second.model.llm.lora = LoraConfig()
    with pytest.raises(CheckpointError, match=r"not in the model: .*lora"):
        run_stage(second)


def test_without_a_coarse_run_the_fine_stage_reports_the_command_that_trains_one(tmp_path):
    with pytest.raises(UserError, match=r"python train\.py stage=coarse"):
        checkpoint_to_start_from(tmp_path / "runs", "coarse")
    with pytest.raises(UserError, match=r"python train\.py stage=coarse"):
        checkpoint_to_use(tmp_path / "runs", None)


def test_a_missing_video_or_earlier_stage_leaves_no_run_folder(base_models, manifest, tmp_path):
    gone = tmp_path / "m.jsonl"
    gone.write_text('{"id": "a", "video": "gone.mp4", "description": "d", "labels": ["sad"], "split": "train"}\n')
    with pytest.raises(ValueError, match=r"sample 'a'.*gone\.mp4"):
        run_stage(make_train_config(base_models, gone, tmp_path))
    with pytest.raises(UserError, match="init_from is 'coarse'"):
        run_stage(make_train_config(base_models, manifest, tmp_path, name="fine", init_from="coarse"))
    assert not (tmp_path / "runs").exists()


def test_the_last_complete_run_skips_unfinished_ones(tmp_path):
    for name, status in (("coarse", "finished"), ("coarse-2", "finished"), ("coarse-3", "failed")):
        RunRecord.start(tmp_path / name, kind="train", config={}).finish(status)
        (tmp_path / name / "checkpoint-9").mkdir()
        (tmp_path / name / "checkpoint-9" / COMPLETE).touch()
    (tmp_path / "coarse-2" / "checkpoint-10").mkdir()  # without a marker: a kill left it
    assert last_complete_run(tmp_path, "coarse") == tmp_path / "coarse-2"
    assert checkpoint_to_start_from(tmp_path, "coarse") == tmp_path / "coarse-2" / "checkpoint-9"


def test_inference_uses_the_best_checkpoint_of_a_run_and_a_stage_starts_from_the_last_one(tmp_path):
    run = tmp_path / "fine"
    RunRecord.start(run, kind="train fine", config={}).finish("finished")
    for name in ("best", "checkpoint-2", "checkpoint-10"):
        (run / name).mkdir()
        (run / name / COMPLETE).touch()
    assert checkpoint_to_use(tmp_path, None) == run / "best"
    assert checkpoint_to_use(tmp_path, "fine") == run / "best"
    assert checkpoint_to_start_from(tmp_path, "fine") == run / "checkpoint-10"


def test_accumulating_equals_one_large_batch(base_models, manifest, tmp_path):
    logs = {}
    for name, batch, accumulation in (("large", 4, 1), ("accumulated", 1, 4)):
        config = make_train_config(
            base_models, manifest, tmp_path / name, batch_size=batch, accumulation=accumulation, n_validation=0
        )
        for projector in config.model.projectors.values():
            projector.dropout = 0.0
        logs[name] = [row for row in metrics(run_stage(config).run) if "loss" in row]
    # Answers differ in length, so a mean of means would show in the loss, and a wrong scale in the gradient norm.
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in logs["accumulated"]] == pytest.approx([row[key] for row in logs["large"]], rel=2e-3)


def test_bad_clips_are_left_out_counted_and_listed(base_models, manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["video"] = str(manifest.parent / row["video"])
    (tmp_path / "cut.mp4").write_bytes(Path(rows[0]["video"]).read_bytes()[:-300])
    rows[0]["video"] = str(tmp_path / "cut.mp4")
    broken = tmp_path / "m.jsonl"
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_train_config(base_models, broken, tmp_path)
    with pytest.raises(ValueError, match=r"sample 'clip0'.*cut\.mp4"):
        run_stage(copy.deepcopy(config))
    config.data.on_bad = "skip"
    run = run_stage(config).run
    assert RunRecord.read(run).values["n_bad_samples"] == 1
    assert json.loads((run / "bad_samples.jsonl").read_text())["id"] == "clip0"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("sound", "audio: 50 samples .* are too few"), ("text", r"the text has \d+ tokens, the LLM takes")],
)
@pytest.mark.parametrize("mode", ["off", "first_epoch"])
def test_what_the_model_cannot_take_is_found_before_the_first_step(
    base_models, manifest, tmp_path, fault, reason, mode
):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["video"] = str(manifest.parent / row["video"])
    with wave.open(str(tmp_path / "short.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 50, "NONE", ""))
        file.writeframes(bytes(100))
    rows[0] |= {"audio": str(tmp_path / "short.wav")} if fault == "sound" else {"subtitle": "word " * 20_000}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_train_config(base_models, tmp_path / "m.jsonl", tmp_path, n_validation=0, modality_dropout=0.0)
    config.data.cache_features, config.stage.epochs = mode, 4
    with pytest.raises(UserError, match=f"sample 'clip0': {reason}"):
        run_stage(copy.deepcopy(config))
    config.data.on_bad = "skip"
    (bad,) = (json.loads(line) for line in (run_stage(config).run / "bad_samples.jsonl").read_text().splitlines())
    assert bad["id"] == "clip0"
    assert re.search(reason, bad["reason"])


def wandb_log(path, expected, timeout_s=60):
    """The bytes of an offline run once they hold `expected`: a process of wandb writes them after the run has ended."""
    deadline = time.monotonic() + timeout_s
    while expected not in (data := path.read_bytes()):
        assert time.monotonic() < deadline, data[-200:]
        time.sleep(0.05)
    return data


def test_tensorboard_and_offline_wandb_need_no_account(finished, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = in_folder(finished[0], tmp_path)
    config.logging.wandb = "offline"
    config.logging.tensorboard = True
    config.stage.epochs = 1
    run = run_stage(config).run
    assert list((run / "tensorboard").glob("events*"))
    (logged,) = (run / "wandb").glob("offline-run-*/*.wandb")
    data = wandb_log(logged, b"train coarse")
    assert f"seed {config.seed}".encode() in data
    assert b"artifacts/staging" not in data  # media under absolute paths of this machine
    kinds = {path.suffix for path in logged.parent.glob("files/media/**/*") if path.is_file()}
    assert kinds >= {".html", ".mp4", ".png"}


def test_a_run_in_one_process_prints_no_library_warnings(base_models, manifest, tmp_path):
    process = start_run(base_models, manifest, tmp_path, epochs=1)
    printed, said = process.communicate(timeout=300)
    assert (process.returncode, printed) == (0, ""), said
    assert "arning" not in said


def test_validation_scores_count_unparsed_answers():
    samples = [Sample(id="a", labels=("happy",)), Sample(id="b", labels=("sad",))]
    predictions = [Prediction(id="a", text="happy", labels=("happy",)), Prediction(id="b", text="...", labels=None)]
    scores = validation_scores(predictions, samples)
    assert (scores["precision"], scores["recall"], scores["n"], scores["unparsed"]) == (0.5, 0.5, 2, 1)
