import pytest

from affectgpt.runs import RunRecord, new_run_folder, runs_named
from affectgpt.runtime import UserError


def test_a_second_run_of_the_same_name_gets_a_number_and_overwrites_nothing(tmp_path):
    first, second, third = (new_run_folder(tmp_path, "fine") for _ in range(3))
    assert [path.name for path in (first, second, third)] == ["fine", "fine-2", "fine-3"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_run_name_that_is_not_a_plain_folder_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="run name"):
        new_run_folder(tmp_path, name)


def test_runs_are_found_by_exact_name_in_the_order_of_their_numbers(tmp_path):
    for name in ("fine", "fine-2", "fine-10", "fine-only", "finer"):
        RunRecord.start(tmp_path / name, kind="train", config={})
    (tmp_path / "fine-3").mkdir()  # no record: not a run
    assert [path.name for path in runs_named(tmp_path, "fine")] == ["fine", "fine-2", "fine-10"]


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
