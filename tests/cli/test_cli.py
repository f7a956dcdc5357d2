import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from affectgpt.cli import _guarded, compose, positional_to_overrides, quote_texts, replace_strings
from affectgpt.confdoc import document, fields_of, settings_of
from affectgpt.config import DataConfig, EncoderConfig, InferConfig, SourceConfig, TrainConfig

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def run(script, *arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(autouse=True)
def no_building(monkeypatch):
    """The embedded default is not built here: its names stand for themselves."""
    monkeypatch.setattr("affectgpt.cli._embedded", lambda text, cache: text)


@pytest.mark.parametrize("script", ["train.py", "infer.py", "eval.py"])
def test_help_shows_examples_and_every_setting(script):
    shown = run(script, "--help")
    assert shown.returncode == 0
    assert f"python {script}" in shown.stdout
    schema = {"train.py": "generate.max_new_tokens", "infer.py": "subtitle", "eval.py": "lexicon"}[script]
    assert schema in shown.stdout


def test_the_coarse_and_fine_stages_hold_the_papers_numbers():
    for stage, iterations, init_from in (("coarse", 1000, None), ("fine", 88, "coarse")):
        config = compose("train", [f"stage={stage}", "model=affectgpt"]).stage
        assert (config.epochs, config.iterations_per_epoch, config.batch_size) == (100, iterations, 3)
        assert (config.warmup_learning_rate, config.learning_rate, config.min_learning_rate) == (1e-6, 3e-5, 1e-5)
        assert (config.weight_decay, config.betas) == (0.05, [0.9, 0.999])
        assert config.init_from == init_from
    assert compose("train").seed == 42


def test_the_embedded_default_changes_numbers_through_its_recipe_alone():
    demo, paper = compose("train", ["stage=fine"]), compose("train", ["stage=fine", "model=affectgpt"])
    recipe = OmegaConf.load(CONF / "recipe" / "demo_fine.yaml").stage
    for name in vars(demo.stage):
        if name in recipe:
            assert getattr(demo.stage, name) == recipe[name]
        else:
            assert getattr(demo.stage, name) == getattr(paper.stage, name)


def test_the_command_line_wins_over_stage_and_recipe():
    assert compose("train", ["stage=fine", "stage.batch_size=7"]).stage.batch_size == 7


@pytest.mark.parametrize("group", ["model", "data", "stage"])
def test_every_shipped_file_of_a_group_composes(group):
    files = sorted((CONF / group).glob("*.yaml"))
    assert files
    for file in files:
        assert getattr(compose("train", [f"{group}={file.stem}"]), group).name == file.stem


@pytest.mark.parametrize("folder", ["experiment", "debug"])
def test_every_value_of_an_experiment_arrives(folder):
    """A defaults list in the wrong order would let the primary file win silently."""
    files = sorted((CONF / folder).glob("*.yaml"))
    assert files
    for file in files:
        wanted = OmegaConf.to_container(OmegaConf.load(file))
        wanted.pop("defaults", None)
        wanted.pop("hydra", None)  # of the sweep, not of a job
        composed = OmegaConf.to_container(OmegaConf.structured(compose("train", [f"{folder}={file.stem}"])))

        def check(part, whole, file=file):
            for key, value in part.items():
                if isinstance(value, dict):
                    check(value, whole[key])
                elif "${" not in str(value):
                    assert whole[key] == value, f"{file.name}: {key}"

        check(wanted, composed)


def test_a_misspelt_key_is_refused_before_anything_runs(tmp_path):
    result = run("train.py", "stage.batchsize=4", cwd=tmp_path)
    assert result.returncode == 1
    assert "batchsize" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_user_can_mend_is_a_message_and_exit_code_2(tmp_path):
    result = run("infer.py", "nowhere.mp4", f"paths.runs={tmp_path}", cwd=tmp_path)
    assert result.returncode == 2
    assert "nowhere.mp4: no such file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.mp4"], ["input=['a.mp4']"]),
        (["a b.mp4", "task=labels", "c.mp4"], ["task=labels", "input=['a b.mp4','c.mp4']"]),
        (["--cfg", "job"], ["--cfg", "job"]),
        (["task=labels"], ["task=labels"]),
    ],
)
def test_plain_arguments_become_the_input(arguments, expected):
    assert positional_to_overrides(arguments, "input") == expected


def test_an_existing_file_with_an_equals_sign_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.mp4").touch()
    assert positional_to_overrides(["a=b.mp4", "task=labels"], "input") == ["task=labels", "input=['a=b.mp4']"]


def test_awkward_names_survive_the_way_through_hydra():
    names = ["it's.mp4", "a,b.mp4", "x [1].mp4", "ü 你好.mp4", "c:\\d.mp4", "$x{y}.mp4", "${x}.mp4", "50%.mp4"]
    assert compose("infer", positional_to_overrides(names, "input")).input == names


def test_ctrl_c_ends_with_one_line_and_130(capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    assert _guarded(interrupted, compose("infer")) == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n")


@pytest.mark.parametrize(
    "text",
    [
        "I'm fine.", 'It\'s "ok", a=b, {好的} [x]', "trailing\\", "a: b", "7", "'tis", '"All of it in quotes."',
        "'Oh.'", "costs ${price}, said ${oc.env:HOME}", "${", r"\${x} \\${y} '${z}'", "}{", "a\\\n", "true", "~x @y #z",
        "long " * 200,
    ],
)  # fmt: skip
def test_a_subtitle_is_taken_as_it_is_written(text):
    arguments = quote_texts([f"subtitle={text}"], InferConfig)
    assert compose("infer", arguments).subtitle == text


def test_the_command_takes_a_subtitle_that_looks_like_an_interpolation(tmp_path):
    result = run("infer.py", "nowhere.mp4", "subtitle=I owe ${x}, he said", f"paths.runs={tmp_path}", cwd=tmp_path)
    assert "nowhere.mp4: no such file" in result.stderr


def test_settings_quoted_for_hydra_interpolations_in_them_and_null_stay_as_hydra_reads_them():
    arguments = quote_texts(
        ["subtitle=null", "checkpoint='I\\'m, well'", "out=${paths.runs}/p.jsonl", "split=null"], InferConfig
    )
    config = compose("infer", [*arguments, "paths.runs=here"])
    assert (config.subtitle, config.checkpoint, config.out, config.split) == (None, "I'm, well", "here/p.jsonl", None)


def test_tasks_given_on_the_command_line_replace_those_of_the_recipe():
    tasks = compose("train", ["stage.tasks={labels:1.0}"]).stage.tasks
    assert {name: weight for name, weight in tasks.items() if weight} == {"labels": 1.0}


@pytest.mark.parametrize("override", ["model.llm.lora={r:4}", "model.llm.lora.r=4"])
def test_lora_is_switched_on_by_its_rank(override):
    assert compose("train").model.llm.lora.r == 0
    assert compose("train", [override]).model.llm.lora.r == 4


def test_strings_are_replaced_wherever_they_stand():
    config = TrainConfig()
    config.model.encoders = {"audio": EncoderConfig(path="demo:x")}
    config.data = DataConfig(name="d", fine=[SourceConfig(manifest="demo:y")])
    replace_strings(config, lambda text: text.replace("demo:", "/"))
    assert config.model.encoders["audio"].path == "/x"
    assert config.data.fine[0].manifest == "/y"


def test_the_configuration_page_is_the_one_that_the_schema_gives():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == document()


def test_every_field_of_every_schema_is_documented():
    for schema in (TrainConfig, DataConfig, EncoderConfig):
        assert all(comment for *_, comment in fields_of(schema))
    assert "stage.batch_size" in {name for name, _, _ in settings_of(TrainConfig)}
