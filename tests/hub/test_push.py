"""Hub ids, offline mode and releases, against a small hub on localhost; commands run as their own processes."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from affectgpt.cli.parser import parse
from affectgpt.cli.table import COMMANDS
from affectgpt.config import PathsConfig, PushConfig
from affectgpt.hub.push import model_card, push, release
from affectgpt.hub.space import write_space
from affectgpt.models import build, save_trained
from affectgpt.models.checkpoint import verified_manifest
from affectgpt.models.pretrained import start_of
from affectgpt.runs import COMPLETE, TRAINED_MANIFEST, RunRecord
from affectgpt.runtime import UserError, stable_hash
from tests.data.conftest import write_clip
from tests.hub.hub_server import Hub, serve
from tests.models import tiny

ROOT = Path(__file__).parents[2]
LLM, EYE = "team/llm", "team/eye"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("hub")) as hub:
        tiny.write_llama(hub.folder(LLM))
        (hub.folder(LLM) / "README.md").write_text("not needed")
        (hub.folder(LLM) / "pytorch_model.bin").write_bytes(b"the same weights in another format")
        tiny.write_eva(hub.folder(EYE))
        yield hub


def run(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a subprocess, because huggingface_hub reads its environment once."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "t", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=kept | settings | environment,
    )  # fmt: skip


MODEL = (
    "model=demo", "model.llm.path=team/llm", "~model.encoders.audio", "~model.encoders.motion",
    "~model.projectors.audio", "~model.projectors.motion", "model.encoders.frames.path=team/eye",
)  # fmt: skip

FETCH = ("-m", "affectgpt.hub", "fetch", *MODEL)
"""Like building it asks `bases.fetch`, whose errors are tested with it: it loads no torch."""


@pytest.fixture(scope="module")
def fetched(hub, tmp_path_factory):
    """(result of downloading both models, the cache)."""
    home = tmp_path_factory.mktemp("home")
    return run(hub, home, *FETCH, AFFECTGPT_CACHE=str(home / "embedded")), home


BUILD = """
import json
from affectgpt.config import EncoderConfig, LLMConfig, ProjectorConfig, SamplingConfig
from affectgpt.models import ModelSpec, build
spec = ModelSpec(
    llm=LLMConfig("team/llm"), encoders={"frames": EncoderConfig("team/eye")},
    projectors={"frames": ProjectorConfig(n_queries=3, hidden_size=16, n_heads=2)}, sampling=SamplingConfig(n_frames=2),
)
model, processor = build(spec)
print(json.dumps(model.config.spec))
"""


@pytest.fixture(scope="module")
def built(hub, fetched, tmp_path_factory):
    """(the spec of a model that was built from the hub, its checkpoint)."""
    checkpoint = tmp_path_factory.mktemp("runs") / "fine" / "best"
    save = f"from affectgpt.models import save_trained\nsave_trained(model, processor, {str(checkpoint)!r})\n"
    made = run(hub, fetched[1], "-c", BUILD + save)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1]), checkpoint


def test_fetch_downloads_the_base_models_of_a_preset_in_one_format(hub, fetched):
    result, home = fetched
    assert result.returncode == 0, result.stderr
    assert f"llm: team/llm at {hub.commit(LLM)}" in result.stdout
    snapshot = home / "hub" / "models--team--llm" / "snapshots" / hub.commit(LLM)
    names = {path.name for path in snapshot.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"} <= names
    assert not names & {"pytorch_model.bin", "README.md"}
    assert not (home / "embedded").exists()  # no corpus is built for it


def test_a_model_built_from_hub_ids_pins_their_commits_and_works_offline_afterwards(hub, fetched, built):
    spec = built[0]
    assert spec["llm_revision"] == hub.commit(LLM)
    assert spec["encoders"]["frames"]["revision"] == hub.commit(EYE)
    offline = run(hub, fetched[1], "-c", BUILD, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout.splitlines()[-1]) == spec


def test_offline_the_error_names_what_is_missing_and_the_command_that_fetches_it(hub, tmp_path):
    commit = hub.commit(LLM)
    result = run(hub, tmp_path, *FETCH, f"model.llm.revision={commit}", HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    for words in (f"llm: base model 'team/llm' at revision {commit}", "config.json missing", "offline mode is on",
                  f"`hf download team/llm --revision {commit}`", "python -m affectgpt.hub fetch model="):  # fmt: skip
        assert words in result.stderr, result.stderr


def test_offline_the_error_for_a_partly_downloaded_model_names_the_missing_file(hub, fetched, tmp_path):
    shutil.copytree(fetched[1], tmp_path / "home", symlinks=True)
    snapshot = tmp_path / "home" / "hub" / "models--team--llm" / "snapshots" / hub.commit(LLM)
    (snapshot / "model.safetensors").unlink()
    result = run(hub, tmp_path / "home", *FETCH, HF_HUB_OFFLINE="1")
    assert "model.safetensors missing, and offline mode is on" in result.stderr, result.stderr


def test_without_a_network_the_error_is_the_same(hub, tmp_path):
    result = run(hub, tmp_path, *FETCH, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 2
    assert "the hub http://127.0.0.1:9 did not answer" in result.stderr, result.stderr
    assert "`hf download team/llm`" in result.stderr


def test_a_gated_model_asks_for_a_login(hub, tmp_path):
    hub.gated.add(LLM)
    try:
        result = run(hub, tmp_path, *FETCH)
    finally:
        hub.gated.clear()
    assert f"is gated: request access at {hub.url}/team/llm, then run `hf auth login`" in result.stderr


# ---------------------------------------------------------------- releases


@pytest.fixture(scope="module")
def run_folder(built):
    """A scored run with base models from the hub."""
    checkpoint = built[1]
    folder = checkpoint.parent
    (checkpoint / COMPLETE).touch()
    manifest = folder / "train.jsonl"
    manifest.write_text('{"id": "a", "video": "a.mp4"}\n{"id": "b", "video": "b.mp4"}\n')
    config = {
        "seed": 42,
        "stage": {
            "name": "fine", "epochs": 2, "iterations_per_epoch": 5, "batch_size": 3, "accumulation": 1,
            "learning_rate": 3e-5, "warmup_steps": 5, "min_learning_rate": 1e-5, "weight_decay": 0.05,
            "trainable": ["projectors"], "tasks": {"both": 1.0}, "langs": {"en": 1.0},
        },
        "data": {"name": "toy", "fine": [{"manifest": str(manifest), "split": None, "weight": 1.0}]},
    }  # fmt: skip
    RunRecord.start(folder, kind="train fine", config=config).finish("finished")
    score = {"f_score": 0.5, "precision": 0.6, "recall": 0.4, "n": 7, "interval": {"low": 0.25, "high": 0.75}}
    report = {"scores": {"level 1 mean": score}, "counts": {"references": 7, "missing": 0, "unparsed": 1}}
    (folder / "eval-best").mkdir()
    (folder / "eval-best" / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def pushed(hub, fetched, run_folder, tmp_path_factory):
    """The result of pushing that run as user/feeling."""
    result = run(
        hub, fetched[1], "-m", "affectgpt.hub", "push", str(run_folder), "repo=user/feeling", "private=true",
        f"out={tmp_path_factory.mktemp('released') / 'release'}", "license=cc-by-nc-4.0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


def test_a_release_is_pushed_with_a_card_of_its_parts_data_scores_and_limits(hub, pushed):
    assert hub.private["user/feeling"]
    assert set(hub.files("user/feeling")) == {"README.md", TRAINED_MANIFEST, "trained.safetensors"}
    assert hub.commit("user/feeling") in pushed.stdout
    card = hub.files("user/feeling")["README.md"].decode()
    for words in (
        "license: cc-by-nc-4.0", "- team/llm", f"| llm | team/llm | {hub.commit(LLM)} |", "train.jsonl | all | 1 | 2 |",
        "10 steps of 3 samples", "| level 1 mean | 50.0 | 60.0 | 40.0 | 7 | 25.0 to 75.0 |", "## Intended use",
        "## Out of scope", "## Limits", "## Privacy and bias", "checkpoint=user/feeling", "Prompt version",
    ):  # fmt: skip
        assert words in card, card


def test_without_a_network_a_push_says_so_and_where_the_release_is(hub, fetched, run_folder, tmp_path):
    push = ("-m", "affectgpt.hub", "push", str(run_folder), "repo=user/feeling", f"out={tmp_path / 'out'}")
    result = run(hub, fetched[1], *push, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "could not be pushed to http://127.0.0.1:9" in result.stderr
    assert f"The release is in {tmp_path / 'out'}" in result.stderr


def test_a_release_of_an_older_checkpoint_reveals_no_path_and_is_verified(run_folder, tmp_path):
    shutil.copytree(run_folder / "best", tmp_path / "best")
    manifest = tmp_path / "best" / TRAINED_MANIFEST
    values = json.loads(manifest.read_text()) | {
        "init": {"init": "pretrained", "folder": str(tmp_path / "mine" / "base"), "sources": {}}
    }
    del values["manifest_sha256"]
    manifest.write_text(json.dumps(values | {"manifest_sha256": stable_hash(values)}))
    assert start_of(tmp_path / "best")["folder"] == "base"
    out = release(tmp_path / "best", tmp_path / "out", PushConfig(repo="user/x"))
    assert str(tmp_path) not in "".join(path.read_text() for path in out.iterdir() if path.suffix != ".safetensors")
    released = verified_manifest(out)
    assert released["init"] == values["init"] | {"folder": "base"}
    assert released["tensors"] == values["tensors"]


def test_a_changed_checkpoint_is_not_released(run_folder, tmp_path):
    shutil.copytree(run_folder / "best", tmp_path / "best")
    weights = tmp_path / "best" / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(UserError, match=r"trained\.safetensors has changed since it was written"):
        release(tmp_path / "best", tmp_path / "out", PushConfig(repo="user/x"))
    assert not (tmp_path / "out").exists()


def test_a_pushed_release_is_loaded_by_its_hub_id(hub, fetched, pushed, tmp_path):
    script = (
        "from pathlib import Path\nfrom affectgpt.loading import load\n"
        "loaded = load('user/feeling', Path('runs'), device='cpu')\nprint(loaded.name, loaded.model.modalities)"
    )
    result = run(hub, fetched[1], "-c", script)
    assert result.returncode == 0, result.stderr
    assert "user/feeling ('frames',)" in result.stdout
    write_clip(tmp_path / "x.mp4", seed=0)
    absent = run(
        hub, fetched[1], "infer.py", str(tmp_path / "x.mp4"), "checkpoint=user/nothing", "offline=true", "device=cpu"
    )
    assert absent.returncode == 2
    assert "run `hf download user/nothing`" in absent.stderr


def test_a_dry_run_pushes_nothing(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    config = PushConfig(
        checkpoint=str(run_folder), repo="user/dry", dry_run=True, out=str(tmp_path / "dry"), space=True
    )
    assert push(config) == 0
    assert (tmp_path / "dry" / "README.md").is_file()
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr("affectgpt.cli.run", lambda name, words: asked.append(parse(COMMANDS[name], words)) or 0)
        with pytest.raises(SystemExit):
            runpy.run_path(str(tmp_path / "dry-space" / "app.py"), run_name="__main__")
    assert (asked[0].checkpoints, asked[0].host, asked[0].public) == (["user/dry"], "0.0.0.0", False)


@pytest.mark.parametrize(
    ("package", "line", "needs_git"),
    [
        ("affectgpt", "affectgpt[studio]", False),
        ("affectgpt[studio]>=1", "affectgpt[studio]>=1", False),
        ("affectgpt[studio] @ git+https://e.org/a", "affectgpt[studio] @ git+https://e.org/a", True),
        ("git+https://example.org/a.git", "affectgpt[studio] @ git+https://example.org/a.git", True),
        ("https://example.org/a.whl", "affectgpt[studio] @ https://example.org/a.whl", False),
    ],
)
def test_a_space_installs_the_package_that_is_named_with_its_studio(tmp_path, package, line, needs_git):
    folder = write_space(tmp_path / "space", "user/model", package)
    assert Requirement((folder / "requirements.txt").read_text().strip()).extras == {"studio"}
    assert (folder / "requirements.txt").read_text() == f"{line}\n"
    steps = (folder / "Dockerfile").read_text().splitlines()
    assert any("install" in step and " git " in step for step in steps) == needs_git
    assert steps[0].startswith("FROM ")
    assert steps.index("USER user") > steps.index("RUN useradd --create-home --uid 1000 user") >= 1 + needs_git


def test_a_package_that_pip_cannot_install_is_refused_before_anything_is_written(run_folder, tmp_path):
    config = PushConfig(checkpoint=str(run_folder), repo="a/b", out=str(tmp_path / "new"), package="affect gpt")
    with pytest.raises(UserError, match=r"package=affect gpt: .*expected a name, or an address"):
        push(config)
    assert not list(tmp_path.iterdir())


def test_trained_tensors_with_local_base_models_are_not_published_alone(base_models, tmp_path):
    model, processor = build(tiny.tiny_spec(base_models))
    save_trained(model, processor, tmp_path / "fine" / "best")
    with pytest.raises(UserError, match=r"base models \['llm', 'audio', 'frames', 'motion'\] are local folders"):
        release(tmp_path / "fine" / "best", tmp_path / "out", PushConfig(repo="user/x"))
    config = PushConfig(repo="user/x", full=True, paths=PathsConfig())
    out = release(tmp_path / "fine" / "best", tmp_path / "out", config)
    card = (out / "README.md").read_text()
    assert (out / "model.safetensors").is_file()
    assert "Not scored" in card
    texts = [path.read_text() for path in out.iterdir() if path.suffix in (".md", ".json")]
    assert str(base_models["llm"].parent) not in "".join(texts)
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        release(tmp_path / "fine" / "best", out, config)


def test_a_card_without_a_run_record_asks_the_author_to_fill_in():
    spec = {"llm": "meta-llama/Llama-2-7b-hf", "llm_dtype": "bfloat16", "encoders": {}, "projectors": {}}
    card = model_card(
        {"spec": spec, "prompts": "1", "affectgpt": "0", "tensors": {}}, {}, None, PushConfig(repo="user/x")
    )
    assert "| llm | meta-llama/Llama-2-7b-hf | - | Llama 2 Community License |" in card
    assert card.count("please fill") == 2


def test_a_card_lists_the_sources_that_the_stage_names():
    spec = {"llm": "a/b", "llm_dtype": "float32", "encoders": {}, "projectors": {}}
    stage = {
        "name": "polish", "data": ["fine", "ours"], "epochs": 1, "iterations_per_epoch": 1, "batch_size": 1,
        "accumulation": 1, "learning_rate": 1e-5, "warmup_steps": 0, "min_learning_rate": 1e-5, "weight_decay": 0.0,
        "trainable": ["projectors"], "tasks": {"both": 1.0}, "langs": {"en": 1.0},
    }  # fmt: skip
    data = {
        "name": "toy", "coarse": [{"format": "merr"}], "fine": [{"format": "ovmerd"}],
        "train": {"ours": {"format": "llava", "weight": 0.5}},
    }  # fmt: skip
    record = {"config": {"seed": 1, "stage": stage, "data": data}}
    card = model_card(
        {"spec": spec, "prompts": "1", "affectgpt": "0", "tensors": {}}, record, None, PushConfig(repo="user/x")
    )
    assert "Stage polish, data `toy`:" in card
    assert "| ovmerd | all | 1 | not counted |" in card
    assert "| llava | all | 0.5 | not counted |" in card
    assert "merr" not in card
