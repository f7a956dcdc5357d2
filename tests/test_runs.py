import os
import subprocess
import threading

import pytest

from affectgpt import runs
from affectgpt.runs import (
    RunRecord,
    best_checkpoint,
    changed_files,
    checkpoint_to_start_from,
    chosen_checkpoint,
    mark_complete,
    new_run_folder,
    newest_run,
    next_order,
    remove_leftovers,
    replace_best,
    runs_named,
)
from affectgpt.runtime import UserError


def test_a_second_run_of_the_same_name_gets_a_number_and_overwrites_nothing(tmp_path):
    first, second, third = (new_run_folder(tmp_path, "fine") for _ in range(3))
    assert [path.name for path in (first, second, third)] == ["fine", "fine-2", "fine-3"]


@pytest.mark.parametrize("name", ["实验一", "a b", "lr=1e-3,seed=2", "été"])
def test_a_run_name_may_be_in_any_script(tmp_path, name):
    assert new_run_folder(tmp_path, name) == tmp_path / name
    assert new_run_folder(tmp_path, name) == tmp_path / f"{name}-2"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a ", "a*", "-x", "a\nb"])
def test_a_run_name_that_is_not_a_plain_folder_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="run name"):
        new_run_folder(tmp_path, name)


def test_runs_are_found_by_exact_name_in_the_order_of_their_numbers(tmp_path):
    for name in ("fine", "fine-2", "fine-10", "fine-only", "finer"):
        RunRecord.start(tmp_path / name, kind="train", config={})
    (tmp_path / "fine-3").mkdir()  # no record: not a run
    assert [path.name for path in runs_named(tmp_path, "fine")] == ["fine", "fine-2", "fine-10"]


@pytest.mark.parametrize("name", ["typo", "/no/such/typo", "a**b", "[", "../typo"])
def test_a_start_that_does_not_exist_is_one_message_whatever_its_name(tmp_path, name):
    RunRecord.start(tmp_path / "coarse", kind="train coarse", config={})
    with pytest.raises(UserError, match="has no complete run of that name, and it is not a checkpoint folder"):
        checkpoint_to_start_from(tmp_path, name)


@pytest.mark.parametrize(
    ("error", "status"), [(UserError, "failed"), (ZeroDivisionError, "failed"), (KeyboardInterrupt, "stopped"),
                          (SystemExit, "stopped")],
)  # fmt: skip
def test_a_record_says_how_a_command_ended_that_an_error_or_a_user_ends(tmp_path, error, status):
    with pytest.raises(error), RunRecord.start(tmp_path, kind="eval", config={}):
        raise error
    values = RunRecord.read(tmp_path).values
    assert (values["status"], values["ended"] >= values["started"]) == (status, True)


def test_an_error_after_the_end_of_a_run_leaves_its_record_and_one_of_the_record_does_not_hide_it(tmp_path, caplog):
    def fail(folder, before):
        with RunRecord.start(folder, kind="eval", config={}) as record:
            before(record)
            raise ZeroDivisionError

    def take_away(record):
        record.folder.rename(tmp_path / "elsewhere")
        record.folder.touch()  # a file, where the folder was

    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "ended", lambda record: record.finish("finished"))
    assert RunRecord.read(tmp_path / "ended").values["status"] == "finished"
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "gone", take_away)
    assert "run.json: cannot be written" in caplog.text


def test_a_record_contains_status_inputs_and_versions(tmp_path):
    source = tmp_path / "m.jsonl"
    source.write_text("x")
    record = RunRecord.start(tmp_path / "run", kind="train fine", config={"seed": 1}, inputs=[source])
    assert RunRecord.read(tmp_path / "run").values["status"] == "running"
    record.finish("finished", f_s=0.5)
    values = RunRecord.read(tmp_path / "run").values
    assert (values["status"], values["f_s"], values["config"]) == ("finished", 0.5, {"seed": 1})
    assert values["inputs"][str(source)].startswith("2d711642b726b044")  # sha256 of "x"
    assert {"python", "torch", "transformers"} <= values["versions"].keys()


def checkpoint(folder, content="x"):
    folder.mkdir(parents=True)
    (folder / "trained.safetensors").write_text(content)
    mark_complete(folder, "step 1")
    return folder


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_best_checkpoint_is_replaced_without_a_moment_in_which_there_is_none(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(runs, "_exchange", lambda one, other: False)
    checkpoint(tmp_path / "best", "0")
    found, done = [], threading.Event()

    def read():
        while not done.is_set():
            found.append(best_checkpoint(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 100):
        replace_best(tmp_path, checkpoint(tmp_path / ".best.new", str(number)))
        assert (tmp_path / "best" / "trained.safetensors").read_text() == str(number)
    done.set()
    reader.join()
    assert len(found) > 100
    assert None not in found
    assert set(found) <= {tmp_path / "best"} | ({tmp_path / ".best.old"} if not can_exchange else set())
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_a_kill_left_is_removed_and_a_best_checkpoint_set_aside_comes_back(tmp_path):
    checkpoint(tmp_path / ".best.old")
    checkpoint(tmp_path / ".best.new")
    checkpoint(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / ".run.json.7.tmp").touch()
    assert best_checkpoint(tmp_path) == tmp_path / ".best.old"
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-2"]


def test_the_marker_lists_checksums_and_names_what_changed(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-2")
    (folder / "more").mkdir()
    (folder / "more" / "state.pt").write_text("y")
    mark_complete(folder, "step 2")
    sums = (folder / "COMPLETE").read_text().split("\n", 1)[1]
    subprocess.run(["sha256sum", "--check", "--strict"], input=sums, text=True, cwd=folder, check=True)
    assert changed_files(folder) == []
    (folder / "more" / "state.pt").write_text("z")
    (folder / "trained.safetensors").unlink()
    assert changed_files(folder) == ["more/state.pt has changed since it was written", "trained.safetensors is missing"]


def test_every_file_is_on_the_disk_before_the_marker_and_the_marker_before_anything_else(tmp_path, monkeypatch):
    """What a power failure at any moment leaves: a marker only next to files that were forced to the disk before."""
    (tmp_path / "more").mkdir()
    for name in ("trained.safetensors", "more/optimizer.pt"):
        (tmp_path / name).write_text("x")
    done = []
    sync, rename = os.fsync, os.replace

    def path_of(file):
        return os.path.relpath(os.readlink(f"/proc/self/fd/{file}"), tmp_path)

    monkeypatch.setattr(os, "fsync", lambda file: done.append(path_of(file)) or sync(file))
    monkeypatch.setattr(os, "replace", lambda old, new: done.append(f"-> {os.path.basename(new)}") or rename(old, new))
    mark_complete(tmp_path, "step 1")
    renamed = done.index("-> COMPLETE")
    assert {"trained.safetensors", "more/optimizer.pt", "more", "."} <= set(done[:renamed])
    assert done[renamed - 1].startswith(".COMPLETE")  # its own content
    assert done[renamed + 1] == "."


def finished_run(folder, **values):
    RunRecord.start(folder, kind=f"train {folder.name.partition('-')[0]}", config={}, **values).finish("finished")
    checkpoint(folder / "checkpoint-1")
    return folder


def test_the_newest_run_is_the_one_that_was_started_last_although_the_clock_was_set_back(tmp_path):
    for name, year in (("fine", 2050), ("polish", 2020)):
        run = finished_run(tmp_path / name, order=next_order(tmp_path))
        record = RunRecord.read(run)
        record.values["started"] = f"{year}-01-01T00:00:00+00:00"
        record.finish("finished")
    assert newest_run(tmp_path) == tmp_path / "polish"


def test_runs_of_older_versions_are_older_and_ordered_by_their_clock(tmp_path):
    for name, year in (("polish", 2050), ("fine", 2020)):
        record = RunRecord.read(finished_run(tmp_path / name))
        record.values["started"] = f"{year}-01-01T00:00:00+00:00"
        record.finish("finished")
    assert newest_run(tmp_path) == tmp_path / "polish"
    finished_run(tmp_path / "third", order=next_order(tmp_path))
    assert newest_run(tmp_path) == tmp_path / "third"


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"kind": 7, "status": "finished"}', "[" * 100_000])
def test_a_damaged_record_of_another_run_is_left_out_by_name(tmp_path, caplog, damage):
    fine = finished_run(tmp_path / "fine", order=1)
    finished_run(tmp_path / "fine-2", order=2)
    finished_run(tmp_path / "polish", order=3)
    for name in ("fine-2", "polish"):
        (tmp_path / name / "run.json").write_text(damage)
    assert newest_run(tmp_path) == fine
    assert next_order(tmp_path) == 2
    for name in ("fine-2", "polish"):
        assert f"left out {tmp_path / name / 'run.json'}: not a run record" in caplog.text


def test_the_reason_for_a_checkpoint_names_its_run_and_why_it_was_taken(tmp_path):
    run = finished_run(tmp_path / "fine", order=1)
    why = f"last checkpoint of the newest complete run in {tmp_path}, which has no best by validation"
    assert chosen_checkpoint(tmp_path, None) == (run / "checkpoint-1", why)
    checkpoint(run / "best")
    assert chosen_checkpoint(tmp_path, "fine") == (run / "best", f"best by validation of run {run}")
    (run / "best" / "affectgpt.json").touch()
    assert chosen_checkpoint(tmp_path, str(run / "best")) == (run / "best", "as named")
