"""infer.py as a user runs it, on a checkpoint of a tiny run."""

import json
import shutil
import subprocess
import sys

import pytest

from affectgpt import config as conf
from affectgpt.inference.infer import format_prediction, run_inference
from affectgpt.runtime import UserError
from affectgpt.schema import Prediction, Sample
from tests.data.conftest import write_clip


@pytest.fixture
def infer_config(trained, tmp_path):
    config = conf.InferConfig(checkpoint=str(trained[1]), device="cpu")
    config.generate = conf.GenerateConfig(max_new_tokens=6, batch_size=3)
    config.paths = conf.PathsConfig(cache=str(tmp_path / "cache"), runs=str(trained[1].parent))
    return config


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_video_is_explained_in_text_with_what_the_model_saw_and_heard(infer_config, tmp_path, capsys):
    infer_config.input = [str(write_clip(tmp_path / "a.mp4", seconds=0.25, n_frames=8))]
    infer_config.subtitle = "I see."
    assert run_inference(infer_config) == 0
    shown = capsys.readouterr().out
    assert "saw    2 frames from 0.00 to" in shown
    assert "heard  0.3 of 0.3 s of sound" in shown
    assert "read   'I see.'" in shown


def test_json_output_is_one_prediction_a_line(infer_config, tmp_path, capsys):
    infer_config.input = [str(write_clip(tmp_path / "a.mp4"))]
    infer_config.json = True
    run_inference(infer_config)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["modalities"] == ["audio", "frames", "motion"]


def test_a_folder_goes_to_a_file_and_a_second_run_changes_nothing(infer_config, tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(3):
        write_clip(tmp_path / "clips" / f"c{number}.mp4")
    infer_config.input = [str(tmp_path / "clips")]
    infer_config.out = str(tmp_path / "p.jsonl")
    run_inference(infer_config)
    before = (tmp_path / "p.jsonl").read_bytes()
    run_inference(infer_config)
    assert (tmp_path / "p.jsonl").read_bytes() == before
    assert [row["id"] for row in rows(tmp_path / "p.jsonl")] == ["c0", "c1", "c2"]


def test_a_killed_run_resumes_and_ends_with_the_same_file(infer_config, manifest, tmp_path):
    infer_config.input = [str(manifest)]
    infer_config.out = str(tmp_path / "whole.jsonl")
    run_inference(infer_config)
    whole = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    # A killed run leaves some complete lines and a torn one.
    (tmp_path / "torn.jsonl").write_text("".join(whole[:5]) + whole[5][:30])
    shutil.copy(tmp_path / "whole.jsonl.settings.json", tmp_path / "torn.jsonl.settings.json")
    infer_config.out = str(tmp_path / "torn.jsonl")
    run_inference(infer_config)
    assert rows(tmp_path / "torn.jsonl") == rows(tmp_path / "whole.jsonl")


def test_an_output_that_another_process_writes_is_refused_by_name_and_taken_over_after_a_kill(infer_config, tmp_path):
    infer_config.input = [str(write_clip(tmp_path / "a.mp4"))]
    infer_config.out = str(tmp_path / "p.jsonl")
    hold = "import sys, time; from pathlib import Path; from affectgpt.journal.locks import held\n"
    hold += "with held(Path(sys.argv[1]), what=''): print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", hold, str(tmp_path / ".p.jsonl.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=rf"p\.jsonl is being written by process {other.pid} on .*wait until it ends"
        ):
            run_inference(infer_config)
        other.kill()
        other.wait()
    assert not (tmp_path / "p.jsonl").exists()
    for name in ("..p.jsonl.owner.json.7.tmp", ".p.jsonl.settings.json.7.tmp"):  # killed before renaming
        (tmp_path / name).write_text("{")
    run_inference(infer_config)
    assert len(rows(tmp_path / "p.jsonl")) == 1
    assert sorted(path.name for path in tmp_path.glob("*p.jsonl*")) == ["p.jsonl", "p.jsonl.settings.json"]


def test_an_output_that_cannot_be_written_is_one_message(infer_config, tmp_path):
    infer_config.input = [str(write_clip(tmp_path / "a.mp4"))]
    (tmp_path / "file").write_text("")
    infer_config.out = str(tmp_path / "file" / "p.jsonl")
    with pytest.raises(UserError, match=r"file: cannot be written \(.*\); choose a folder that you may write to"):
        run_inference(infer_config)
    infer_config.out = str(tmp_path)
    with pytest.raises(UserError, match="is a folder; name a file, such as"):
        run_inference(infer_config)


def test_continuing_with_another_question_is_refused(infer_config, manifest, tmp_path):
    infer_config.input = [str(manifest)]
    infer_config.out = str(tmp_path / "p.jsonl")
    run_inference(infer_config)
    infer_config.task = "labels"
    with pytest.raises(UserError, match=r"other settings \(task\)"):
        run_inference(infer_config)


def test_a_file_is_continued_only_in_the_precision_of_its_answers(infer_config, manifest, tmp_path):
    infer_config.input, infer_config.split, infer_config.out = [str(manifest)], "test", str(tmp_path / "p.jsonl")
    run_inference(infer_config)
    infer_config.dtype = "float32"  # as trained
    run_inference(infer_config)
    infer_config.dtype = "bfloat16"
    with pytest.raises(UserError, match=r"other settings \(dtype\)"):
        run_inference(infer_config)


def test_batch_size_and_cache_do_not_change_an_answer(infer_config, manifest, tmp_path):
    infer_config.input = [str(manifest)]
    answers = []
    for number, (batch, cache) in enumerate([(1, False), (5, False), (5, True), (1, True)]):
        infer_config.generate.batch_size, infer_config.cache_features = batch, cache
        infer_config.out = str(tmp_path / f"p{number}.jsonl")
        run_inference(infer_config)
        answers.append(rows(tmp_path / f"p{number}.jsonl"))
    assert answers[0] == answers[1] == answers[2] == answers[3]


def test_the_modalities_that_were_used_are_reported(infer_config, manifest, tmp_path):
    infer_config.input = [str(manifest)]
    infer_config.out = str(tmp_path / "p.jsonl")
    infer_config.modalities = ["audio", "frames"]
    run_inference(infer_config)
    used = {row["id"]: row["modalities"] for row in rows(tmp_path / "p.jsonl")}
    assert used["clip0"] == ["audio", "frames", "text"]
    assert used["clip11"] == ["frames", "text"]  # has no sound


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_modality_that_the_model_lacks_is_an_error_and_no_clip_is_at_fault(infer_config, manifest, tmp_path, on_bad):
    infer_config.input, infer_config.on_bad, infer_config.out = [str(manifest)], on_bad, str(tmp_path / "p.jsonl")
    infer_config.modalities = ["smell"]
    with pytest.raises(ValueError, match=r"^modalities \['smell'\] asked for, but this model has"):
        run_inference(infer_config)
    assert not (tmp_path / "p.jsonl").exists()


def test_bad_inputs_raise_or_are_left_out_with_exit_code_3(infer_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "good.mp4")
    (tmp_path / "empty.mp4").touch()
    infer_config.input = ["good.mp4", "empty.mp4"]
    infer_config.out = "p.jsonl"
    with pytest.raises(ValueError, match=r"sample 'empty'.*on_bad=skip"):
        run_inference(infer_config)
    infer_config.on_bad = "skip"
    assert run_inference(infer_config) == 3
    assert [row["id"] for row in rows(tmp_path / "p.jsonl")] == ["good"]
    assert [row["id"] for row in rows(tmp_path / "bad_samples.jsonl")] == ["empty"]


def test_without_an_output_file_bad_inputs_are_listed_and_nothing_is_written(infer_config, tmp_path, caplog):
    write_clip(tmp_path / "good.mp4")
    (tmp_path / "empty.mp4").touch()
    before = sorted(tmp_path.rglob("*.jsonl"))
    infer_config.input, infer_config.on_bad = [str(tmp_path)], "skip"
    assert run_inference(infer_config) == 3
    assert "left out 1 bad samples" in caplog.text
    assert "  empty: " in caplog.text
    assert sorted(tmp_path.rglob("*.jsonl")) == before


@pytest.mark.parametrize(
    ("inputs", "subtitle", "words"),
    [
        ([], None, "no input given"),
        (["m.csv", "a.mp4"], None, "one manifest, or media files"),
        (["m.csv"], "x", "manifest has its own subtitle"),
    ],
)
def test_contradictory_inputs_are_explained(infer_config, inputs, subtitle, words):
    infer_config.input, infer_config.subtitle = inputs, subtitle
    with pytest.raises(UserError, match=words):
        run_inference(infer_config)


def test_without_a_checkpoint_the_error_names_the_command_that_trains_one(infer_config, tmp_path):
    infer_config.input = [str(write_clip(tmp_path / "a.mp4"))]
    infer_config.checkpoint = None
    infer_config.paths.runs = str(tmp_path / "none")
    with pytest.raises(UserError, match=r"python train\.py stage=coarse"):
        run_inference(infer_config)


def test_an_answer_that_was_cut_is_marked():
    prediction = Prediction(id="a", text="He", finish="length", n_tokens=1, task="labels")
    assert "cut after 1 tokens; raise generate.max_new_tokens" in format_prediction(prediction, Sample(id="a"))


def test_labels_are_printed_once_below_the_explanation():
    prediction = Prediction(id="a", text="He frowns.\nEmotions: angry, hurt", labels=("angry", "hurt"))
    shown = format_prediction(prediction, Sample(id="a"))
    assert shown.count("angry") == 1
    assert "labels: angry, hurt" in shown


def test_an_unknown_task_is_named_before_a_model_is_loaded(infer_config):
    infer_config.task, infer_config.checkpoint = "foo", "/no/such/run"
    with pytest.raises(UserError, match="unknown task 'foo'; expected one of"):
        run_inference(infer_config)


def test_candidates_can_only_constrain_a_fixed_task(infer_config):
    infer_config.generate.constrain = True
    with pytest.raises(UserError, match="candidates= only, but task is 'both'; set task=fixed"):
        run_inference(infer_config)


def test_attribution_is_printed_stored_and_refused_with_another_engine(infer_config, tmp_path, capsys):
    infer_config.input = [str(write_clip(tmp_path / "a.mp4"))]
    infer_config.subtitle, infer_config.attribute = "Fine.", True
    infer_config.json = True
    run_inference(infer_config)
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(row["attribution"][0]["drop"]) <= {"visual", "acoustic", "lexical"}
    infer_config.json = False
    run_inference(infer_config)
    assert "rests on (nats per token)" in capsys.readouterr().out
    infer_config.engine = "vllm"
    with pytest.raises(UserError, match="attribute=true needs the model in this process"):
        run_inference(infer_config)


@pytest.mark.parametrize(
    ("heard", "expected"), [(True, "audio 5.4-6.0 s, frames 3.8-4.0 s"), (False, "frames 3.8-4.0 s")]
)
def test_the_printed_seconds_are_those_of_the_sound_and_of_the_film(heard, expected):
    media = {"frames": {"times_s": [0.0, 1.0, 2.0, 3.0]}}  # a film of 4 s
    shares = {"frames": [0.0] * 19 + [1.0]}
    if heard:
        media["audio"] = {"heard_s": 10.0, "duration_s": 12.0}
        shares = {"audio": [0.0] * 9 + [1.0] + [0.0] * 10, **shares}
    clause = {"text": "She smiles.", "drop": {"visual": 1.0, "acoustic": 1.0}, "over_time": shares}
    prediction = Prediction("a", "She smiles.", media=media, attribution=(clause,))
    assert format_prediction(prediction, Sample("a", video="a.mp4")).splitlines()[-1].endswith(f"1.00  {expected}")


def test_no_seconds_are_printed_for_crops_which_are_only_of_frames_with_the_face():
    media = {"face": {"n_crops": 2, "times_s": [2.0, 3.0]}, "frames": {"times_s": [0.0, 1.0]}}
    clause = {"text": "She smiles.", "drop": {"visual": 1.0}, "over_time": {"face": [0.0, 1.0]}}
    prediction = Prediction("a", "She smiles.", media=media, attribution=(clause,))
    assert format_prediction(prediction, Sample("a", video="a.mp4")).splitlines()[-1].endswith("1.00")


def test_a_statement_about_what_was_not_shown_is_printed_with_the_reason():
    row = {"sentence": "The voice trembles.", "modality": "acoustic"}
    prediction = Prediction("a", "The voice trembles.", modalities=("frames",), unsupported=(row,))
    shown = format_prediction(prediction, Sample("a", video="a.mp4"))
    assert "unsupported: The voice trembles. (the model was given no sound)" in shown
