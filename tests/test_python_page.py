"""docs/python.md and docs/tour.ipynb: their blocks and cells run, one after the other, on a tiny model."""

import copy
import json
import re
from functools import partial
from pathlib import Path

import pytest

from affectgpt.cli import parser
from affectgpt.config import GenerateConfig, SourceConfig
from affectgpt.demo.corpus import build_corpus
from affectgpt.hub.export import export
from affectgpt.inference import loading
from affectgpt.plots import Picture
from affectgpt.runs import checkpoint_to_use
from affectgpt.training.stages import run_stage
from docs.make_tour import NOTEBOOK, code_cells, run_cells, sources
from tests.conftest import make_train_config

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.fixture(scope="module")
def trained(base_models, manifest, tmp_path_factory):
    """The settings of a run `fine` that has finished."""
    folder = tmp_path_factory.mktemp("page")
    config = make_train_config(base_models, manifest, folder, name="fine", epochs=1, n_validation=0)
    run_stage(copy.deepcopy(config))
    return config


@pytest.fixture
def settings_of_the_tiny_model(trained, monkeypatch):
    """In the folder that holds its `runs`, the settings of the pages are on the tiny model and its clips."""
    monkeypatch.chdir(Path(trained.paths.runs).parent)
    monkeypatch.setattr(loading, "GenerateConfig", partial(GenerateConfig, max_new_tokens=8))
    compose = parser.compose

    def with_tiny_model(name, overrides=()):
        if name == "eval":
            return copy.deepcopy(trained)  # whose data have a test set
        given = compose(name, overrides)
        if name != "train":
            return given
        tiny = copy.deepcopy(trained)
        tiny.name, tiny.stage.epochs = given.name, given.stage.epochs
        return tiny

    monkeypatch.setattr(parser, "compose", with_tiny_model)


def test_the_blocks_of_the_page_run(manifest, settings_of_the_tiny_model):
    export(checkpoint_to_use(Path("runs"), "fine"), Path("release"))
    Path("clips").mkdir()
    for target in (Path("clips/a.mp4"), Path("video.mp4")):
        target.symlink_to(manifest.parent / "clip0.mp4")
    Path("test.csv").write_text("id,video,labels\na,video.mp4,happy\n")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    printed = [text for text, _ in run_cells(blocks, names, f"{PAGE.name}, block")]
    assert names["report"].counts.references == 1
    assert Path("runs/mine").is_dir()
    assert Path("emer_coarse/manifest.jsonl").is_file()
    assert "trainable params" in printed[-1]


def test_the_cells_of_the_tour_run_and_draw_what_the_stored_page_shows(trained, settings_of_the_tiny_model, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("silero_vad")
    build_corpus(tmp_path / "corpus", n_coarse=1, n_fine=2, n_processes=1)  # with faces and voices to annotate
    trained.data.test[:] = [SourceConfig(manifest=str(tmp_path / "corpus" / "fine.jsonl"))]
    cells = code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    stored = [{kind for output in cell["outputs"] for kind in output.get("data", ())} for cell in cells]
    made = list(run_cells(sources(cells), title=f"{NOTEBOOK.name}, code cell"))
    assert [isinstance(value, Picture) for _, value in made] == ["image/png" in kinds for kinds in stored]
    assert sum("image/png" in kinds for kinds in stored) >= 5
    for cell, (printed, value) in zip(cells, made, strict=True):
        assert bool(cell["outputs"]) == bool(printed or value), "".join(cell["source"])
    assert NOTEBOOK.stat().st_size < 300_000
