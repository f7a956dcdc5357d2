"""conf/data: every ready name, through the configuration and the reader that training uses."""

from pathlib import Path

import pytest

from affectgpt.cli import compose
from affectgpt.data.stream import TrainingStream
from affectgpt.training.samples import training_sources
from tests.data import layouts
from tests.data.layouts import NAMES

NAMES_OF_DATA = sorted(path.stem for path in Path("conf/data").resolve().glob("*.yaml") if path.stem != "demo")
TASKS = "stage.tasks={description:1.0}"


def configure(data, tmp_path, stage="fine"):
    return compose("train", ["model=affectgpt", f"stage={stage}", f"data={data}", f"data.folder={tmp_path}", TASKS])


@pytest.mark.parametrize("name", NAMES_OF_DATA)
def test_every_ready_name_is_a_valid_configuration(name):
    data = compose("eval", [f"data={name}"]).data
    assert data.name == name
    assert data.coarse or data.fine or data.train or data.test


@pytest.mark.parametrize(
    ("data", "make"),
    [
        ("emer_fine", layouts.emer_fine),
        ("merr", layouts.merr),
        ("mer2025_semi", layouts.onehot),
    ],
)
def test_a_published_set_trains_by_name_and_folder(tmp_path, data, make):
    make(tmp_path)
    for path in (tmp_path / "video").iterdir():
        path.unlink()
    layouts.media(tmp_path, NAMES, real=True)
    config = configure(data, tmp_path)
    config.paths.cache = str(tmp_path / "cache")
    sources, bad = training_sources(config)
    assert not bad
    assert sources[0].files
    stream = TrainingStream(sources, modalities=("audio", "frames"), length=20, seed=1)
    draws = [stream[n] for n in range(20)]
    assert all(draw.modalities == ("audio", "frames") for draw in draws)
    expected = {"emer_fine": {"description"}, "merr": {"description", "fixed"}, "mer2025_semi": {"fixed"}}
    assert {draw.task for draw in draws} == expected[data]
