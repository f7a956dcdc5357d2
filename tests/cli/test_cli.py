import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import affectgpt.cli as cli
from affectgpt.cli import compose
from affectgpt.cli.parser import composed_settings, parse, replace_strings
from affectgpt.cli.table import COMMANDS, load
from affectgpt.cli.words import quoted_items
from affectgpt.config import DataConfig, EncoderConfig, SourceConfig, TrainConfig

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def run(script, *arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(autouse=True)
def no_building(monkeypatch):
    """The embedded default is not built here: its names stand for themselves."""
    monkeypatch.setattr("affectgpt.cli.parser.embedded", lambda text, cache: text)


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


def test_scoring_against_own_references_does_not_build_the_embedded_corpus(tmp_path):
    own = [f"paths.cache={tmp_path}", "predictions=[p.jsonl]"]
    for settings in (["references=test.csv"], ["benchmark=meld"]):
        assert compose("eval", [*own, *settings]).data.test[0].manifest.startswith("demo:")
    assert list(tmp_path.iterdir()) == []


def test_commands_build_only_the_clips_that_they_use(monkeypatch):
    monkeypatch.setattr("affectgpt.cli.parser.embedded", lambda text, cache: text.replace("demo:", "built:"))

    def manifests(command, *settings):
        data = compose(command, settings).data
        return [source.manifest for source in (*data.coarse, *data.fine, *data.test)]

    assert manifests("train", "stage=coarse") == [
        "built:coarse",
        "demo:fine",
        "built:fine",
    ]
    assert manifests("train", "stage=fine") == ["demo:coarse", "built:fine", "built:fine"]
    assert manifests("train", "stage=fine", "stage.data=[coarse,fine]") == ["built:coarse", "built:fine", "built:fine"]
    assert manifests("eval") == ["demo:coarse", "demo:fine", "built:fine"]
    assert manifests("eval", "benchmark=meld") == ["demo:coarse", "demo:fine", "demo:fine"]
    assert manifests("zeroshot") == ["demo:coarse", "demo:fine", "built:fine"]
    assert manifests("zeroshot", "manifest=own.jsonl") == ["demo:coarse", "demo:fine", "demo:fine"]
    assert manifests("cache") == ["built:coarse", "built:fine", "built:fine"]


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
                elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
                    for item, given in zip(value, whole[key], strict=True):
                        check(item, given)
                elif "${" not in str(value):
                    assert whole[key] == value, f"{file.name}: {key}"

        check(wanted, composed)


def test_a_misspelt_key_is_refused_before_anything_runs(tmp_path):
    result = run("train.py", "stage.batchsize=4", cwd=tmp_path)
    assert result.returncode == 2
    assert "unknown setting 'stage.batchsize'; did you mean stage.batch_size" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_users_mistake_is_a_message_and_exit_code_2(tmp_path):
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
    assert composed_settings(COMMANDS["infer"], arguments) == expected


def test_an_existing_file_with_an_equals_sign_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.mp4").touch()
    assert parse(COMMANDS["infer"], ["a=b.mp4", "task=labels"]).input == ["a=b.mp4"]


def test_awkward_names_survive_the_way_through_hydra():
    names = ["it's.mp4", "a,b.mp4", "x [1].mp4", "ü 你好.mp4", "c:\\d.mp4", "$x{y}.mp4", "${x}.mp4", "50%.mp4"]
    assert parse(COMMANDS["infer"], names).input == names


def _raising(error):
    def job(*arguments):
        raise error

    return job


def test_ctrl_c_ends_with_one_line_and_130(capsys, monkeypatch):
    monkeypatch.setattr("affectgpt.submit.submit", _raising(KeyboardInterrupt()))
    assert cli.run("submit", ["a", "b"]) == 130
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
    assert compose("infer", [f"subtitle={text}"]).subtitle == text


def test_the_command_takes_a_subtitle_that_looks_like_an_interpolation(tmp_path):
    result = run("infer.py", "nowhere.mp4", "subtitle=I owe ${x}, he said", f"paths.runs={tmp_path}", cwd=tmp_path)
    assert "nowhere.mp4: no such file" in result.stderr


def test_settings_quoted_for_hydra_interpolations_in_them_and_null_stay_as_hydra_reads_them():
    arguments = ["subtitle=null", "checkpoint='I\\'m, well'", "out=${paths.runs}/p.jsonl", "split=null"]
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


@pytest.mark.parametrize(
    "error", [ValueError("not enough values to unpack"), TypeError("t"), OSError("o"), KeyError("k")]
)
def test_a_bug_of_ours_keeps_its_traceback_in_every_command(error, monkeypatch):
    monkeypatch.setattr("affectgpt.submit.submit", _raising(error))
    with pytest.raises(type(error)):
        cli.run("submit", ["a", "b"])


CHINESE = [
    ("train", "name=实验一", "name", "实验一"),
    ("train", "paths.runs=../运行", "paths.runs", "../运行"),
    ("train", "data.folder=../数据", "data.folder", "../数据"),
    ("train", "stage.init_from=粗,一", "stage.init_from", "粗,一"),
    ("train", "data.coarse=[{manifest:测试.csv}]", "data.coarse.0.manifest", "测试.csv"),
    ("train", "model.encoders.audio.path=模型/声音 (1)", "model.encoders.audio.path", "模型/声音 (1)"),
    ("infer", "candidates=[高兴,悲伤]", "candidates", ["高兴", "悲伤"]),
    ("infer", "base_models={llm:/数据/模型}", "base_models.llm", "/数据/模型"),
    ("eval", "predictions=预测.jsonl", "predictions", "预测.jsonl"),
    ("eval", "predictions=[预测,一.jsonl,b (2).jsonl]", "predictions", ["预测", "一.jsonl", "b (2).jsonl"]),
]


@pytest.mark.parametrize(("command", "argument", "name", "value"), CHINESE)
def test_any_value_takes_any_text(command, argument, name, value):
    found = compose(command, [argument])
    for part in name.split("."):
        found = found[int(part)] if part.isdigit() else found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_only_items_that_need_quotes_get_them():
    assert (
        quoted_items("[{manifest:a.csv,tasks:{labels:1.0},split:测}]")
        == "[{manifest:a.csv,tasks:{labels:1.0},split:'测'}]"
    )
    assert quoted_items("${paths.runs}/x") == "${paths.runs}/x"
    assert quoted_items("['已',\"引\"]") == "['已',\"引\"]"


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("train", ["model=foo"], "model=foo: conf/model has no such file; it has affectgpt, "),
        ("train", ["stage.batch_size=many"], "stage.batch_size: Value 'many' of type 'str' could not be converted"),
        ("export", ["a", "b"], "expected one checkpoint, found ['a', 'b']"),
        ("serve", ["prt=1"], "unknown setting 'prt'; did you mean port"),
        ("doctor", ["x"], "unexpected argument 'x'"),
        ("analyze", ["wheels"], "expected an analysis, one of"),
    ],
)
def test_wrong_arguments_are_one_message_and_exit_code_2(command, arguments, expected, capsys):
    assert cli.run(command, arguments) == 2
    assert f"error: {expected}" in capsys.readouterr().err


def test_everything_that_the_command_line_names_by_text_is_there():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "affectgpt" / "cli").glob("*.py"))
    names = set(re.findall(r"affectgpt\.[\w.]+:\w+", sources))
    assert len(names) > 20
    assert all(callable(load(name)) for name in names)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_there_and_has_help(name, capsys):
    module, _, _ = COMMANDS[name].run.partition(":")
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    first, *verb = name.split()
    assert cli.run(first, [*verb, "--help"]) == 0
    assert "Settings" in capsys.readouterr().out


def test_a_group_of_commands_without_a_verb_shows_what_there_is(capsys):
    assert cli.run("hub", []) == 2
    assert "hub fetch" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error():
    command = ["bash", "-c", f"set -o pipefail; {sys.executable} train.py --help | head -1"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_hydras_own_options_still_work(tmp_path):
    shown = run("infer.py", "clip.mp4", "task=labels", "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "- clip.mp4" in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_chinese_values_and_reports_a_misspelt_key_in_one_message(capsys):
    from affectgpt.cli import run as run_command

    assert run_command("plan", ["-m", "stage.bach_size=4,8"]) == 2
    said = capsys.readouterr().err
    assert "unknown setting 'stage.bach_size'; did you mean stage.batch_size" in said
    assert "HYDRA_FULL_ERROR" not in said
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert run_command("eval", ["--cfg", "job", "data.folder=../数据", "out=结果"]) == 0
    assert "folder: ../数据" in capsys.readouterr().out


def test_each_job_of_a_shipped_sweep_gets_the_values_as_they_are_written(monkeypatch, tmp_path):
    from affectgpt.cli import run as run_command
    from affectgpt.training import study

    jobs = []
    monkeypatch.setattr(study, "run_sweep_job", lambda *stages: jobs.append(stages) or 0)
    monkeypatch.setattr(study, "report", lambda folder: folder.name)
    names = ["name=it's,x y", f"paths.runs={tmp_path}"]
    assert run_command("train", ["-m", "experiment=llms", *names]) == 0
    assert [(stage1.model.llm.path, stage1.study.variant) for stage1, _ in jobs] == [
        (path, path) for path in ("demo:llm", "demo:llm_qwen2") for _ in range(2)
    ]
    assert {stage1.name for stage1, _ in jobs} == {"it's", "x y"}
    assert {(stage1.stage.name, stage2.stage.name) for stage1, stage2 in jobs} == {("coarse", "fine")}


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        ("data export", ["a.jsonl"], "error: to= is missing: the other tool: ms-swift, llamafactory or lmms-eval\n"),
        ("data export", ["a.jsonl", "to=ms-swift"], "error: out= is missing: output folder\n"),
        ("hub push", ["runs/fine"], "error: repo= is missing: user/name on the hub\n"),
    ],
)
def test_a_missing_setting_is_named_with_what_it_means(command, given, said, capsys):
    from affectgpt.cli import run as run_command

    assert run_command(command, given) == 2
    assert said in capsys.readouterr().err


def test_after_each_job_of_a_sweep_the_next_commands_have_its_own_settings(monkeypatch, tmp_path, caplog):
    from affectgpt.cli import run as run_command
    from affectgpt.training import stages

    caplog.set_level("INFO", "affectgpt")
    results = iter([stages.StageResult(tmp_path / "a", 0), stages.StageResult(tmp_path / "b", 0)])
    monkeypatch.setattr(stages, "run_stage", lambda config: next(results))
    given = ["stage=coarse", "seed=1,2", "data.folder=/my data", "name=x", "hydra.sweep.dir=" + str(tmp_path)]
    assert run_command("train", ["-m", *given]) == 0
    for run, seed in (("a", 1), ("b", 2)):
        start = f"stage.init_from={tmp_path / run}"
        assert f"python train.py stage=fine {start} seed={seed} 'data.folder=/my data'\n" in caplog.text
        assert f"python eval.py checkpoint={tmp_path / run} 'data.folder=/my data'\n" in caplog.text


@pytest.mark.parametrize("model", ["demo", "affectgpt_v1"])
@pytest.mark.parametrize("experiment", ["table4", "llms"])
def test_the_points_of_a_shipped_study_are_checkpoints_of_its_stages(experiment, model):
    sweep = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml").hydra.sweeper.params
    shares = [float(share) for share in str(sweep.get("study.stage1_share", 1)).split(",")]
    for stage in ("coarse", "fine"):
        config = compose("train", [f"experiment={experiment}", f"model={model}", f"stage={stage}"])
        assert config.stage.epochs * config.stage.iterations_per_epoch % config.study.n_points == 0
        assert all((share * config.study.n_points).is_integer() for share in shares)


@pytest.mark.parametrize("command", sorted({command.conf for command in COMMANDS.values() if command.conf}))
def test_a_sweep_writes_to_no_folder_of_hydras_own(command):
    sweep = OmegaConf.to_container(OmegaConf.load(CONF / f"{command}.yaml"))["hydra"]["sweep"]
    assert sweep["dir"] in ("runs/sweeps", "${paths.runs}/${study.name}")  # not in the folder of the user
    assert sweep["subdir"] == "."
