import numpy as np
import pytest

from affectgpt import plots

pytest.importorskip("matplotlib")


def test_bars_and_heat_maps_are_written_as_png_and_svg(tmp_path):
    plots.draw_bars(tmp_path / "bars", ["sad", "难过"], {"a": [1, 2], "b": [3, 4]}, title="t", unit="clips")
    plots.draw_heat_map(tmp_path / "map", np.array([[0.5, np.nan]]), ["r"], ["c", "d"], title="t")
    names = ["bars.png", "bars.svg", "map.png", "map.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)


def test_the_same_values_give_the_same_svg(tmp_path):
    for name in ("first", "second"):
        plots.draw_bars(tmp_path / name, ["sad"], {"a": [1.0]}, title="t", unit="clips")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
