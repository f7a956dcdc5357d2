"""docs/python.md: its blocks run, one after the other, on a tiny model."""

import copy
import re
from functools import partial
from pathlib import Path

from affectgpt.cli import parser
from affectgpt.config import GenerateConfig
from affectgpt.hub.export import export
from affectgpt.inference import loading
from affectgpt.runs import checkpoint_to_use
from affectgpt.training.stages import run_stage
from tests.conftest import make_train_config

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_blocks_of_the_page_run(base_models, manifest, tmp_path, monkeypatch, capsys):
    config = make_train_config(base_models, manifest, tmp_path, name="fine", epochs=1, n_validation=0)
    config.paths.runs = str(tmp_path / "runs")
    run_stage(copy.deepcopy(config))
    export(checkpoint_to_use(tmp_path / "runs", "fine"), tmp_path / "release")
    monkeypatch.chdir(tmp_path)
    clips = tmp_path / "clips"
    clips.mkdir()
    for target in (clips / "a.mp4", Path("video.mp4")):
        target.symlink_to(manifest.parent / "clip0.mp4")
    Path("test.csv").write_text("id,video,labels\na,video.mp4,happy\n")
    monkeypatch.setattr(loading, "GenerateConfig", partial(GenerateConfig, max_new_tokens=8))
    compose = parser.compose

    def with_tiny_model(name, overrides):
        """The page's settings on the tiny model and its clips."""
        if name != "train":
            return compose(name, overrides)
        given = compose(name, overrides)
        tiny = copy.deepcopy(config)
        tiny.name, tiny.stage.epochs = given.name, given.stage.epochs
        return tiny

    monkeypatch.setattr(parser, "compose", with_tiny_model)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)  # noqa: S102 (our own page)
    assert names["report"].counts.references == 1
    assert (tmp_path / "runs" / "mine").is_dir()
    assert (tmp_path / "emer_coarse" / "manifest.jsonl").is_file()
    assert "trainable params" in capsys.readouterr().out
