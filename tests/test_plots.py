import html
import io
import re
import time

import numpy as np
import pytest

from affectgpt import plots

pytest.importorskip("matplotlib")


def test_bars_and_heat_maps_are_written_as_png_svg_and_pdf(tmp_path):
    plots.draw_bars(tmp_path / "bars", ["sad", "难过"], {"a": [1, 2], "b": [3, 4]}, title="t", unit="clips")
    plots.draw_heat_map(tmp_path / "map", np.array([[0.5, np.nan]]), ["r"], ["c", "d"], title="t")
    names = [f"{name}.{suffix}" for name in ("bars", "map") for suffix in ("pdf", "png", "svg")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_the_same_values_give_the_same_vector_file(tmp_path, suffix):
    for name in ("first", "second"):
        plots.draw_bars(tmp_path / name, ["sad"], {"a": [1.0]}, title="t", unit="clips")
    assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()


def test_vector_files_hold_text_and_pdf_files_embed_truetype_fonts(tmp_path):
    plots.draw_bars(tmp_path / "bars", ["<script>", "b"], {"a": [1, 2]}, title="Emotions & labels", unit="clips")
    assert {"<script>", "Emotions & labels"} <= set(texts_of(tmp_path / "bars.svg"))
    assert "<script>" not in (tmp_path / "bars.svg").read_text()
    pdf = (tmp_path / "bars.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Subtype /Type3" not in pdf


@pytest.mark.parametrize("speech", [[], [(0.1, 0.4), (0.5, 0.9)]])
def test_a_clip_shows_the_times_of_its_frames_and_where_somebody_speaks(speech):
    frames, times = np.zeros((2, 8, 8, 3), np.uint8), np.array([0.0, 0.7])
    drawn = plots.picture(
        plots.draw_clip, frames, times, np.sin(np.arange(1000.0)), 1000, title="a clip", speech=speech
    )
    assert drawn._repr_png_().startswith(b"\x89PNG")
    found = re.findall(r">([^<>]+)</text>", drawn.svg.decode())
    assert {"a clip", "0.0 s", "0.7 s"} <= set(found)
    assert found.count("speech") == bool(speech)


def test_names_of_sectors_and_the_legend_of_a_wheel_do_not_touch(tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def boxes(figure, *args, **kwargs):
        renderer = FigureCanvasAgg(figure).get_renderer()
        items = [*figure.axes[0].texts, *figure.legends, figure._suptitle]
        found.extend(item.get_window_extent(renderer) for item in items)

    found = []
    sectors = ["mad", "disgusted", "sad", "happy", "surprised", "scared", "contemptuous", "bored"]
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *args, **kwargs: (save(*args, **kwargs), boxes(*args))[0])
    share = dict.fromkeys(sectors, 1 / 8)
    plots.draw_wheel(tmp_path / "wheel", share, {"odd": 0.5, **share}, title="t", order=sectors)
    n = len(found) // 3  # of each of the three files
    assert n == 9 + 2
    for i in range(n):
        assert not any(found[i].overlaps(found[j]) for j in range(i))
    assert {"mad", "odd", "true", "predicted"} <= set(texts_of(tmp_path / "wheel.svg"))


def test_values_in_a_matrix_contrast_with_their_cells():
    from matplotlib import colormaps

    for share in np.linspace(0, 1, 50):
        cell = plots._luminance(colormaps["cividis"](share))
        text = 1.0 if cell < 0.18 else 0.0
        light, dark = max(cell, text), min(cell, text)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


def texts_of(path):
    """The texts that a figure shows, in the order of the SVG file."""
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>(.+?)</text>", path.read_text(encoding="utf-8"))]


def test_chinese_is_drawn_with_a_font_that_has_it_even_one_that_matplotlib_has_not_listed(tmp_path, monkeypatch):
    from matplotlib import font_manager

    drawn_with = []
    monkeypatch.setattr(plots, "_CHINESE_FONTS", ())  # as with a font of an unknown name
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "chinese.ttf")])
    monkeypatch.setattr(font_manager.fontManager, "addfont", drawn_with.append)
    (tmp_path / "chinese.ttf").write_bytes(chinese_font())
    plots._chinese_fonts.cache_clear()
    try:
        assert plots._chinese_fonts() == ("Toy",)
        assert drawn_with == [str(tmp_path / "chinese.ttf")]
        (tmp_path / "chinese.ttf").write_bytes(b"damaged")
        plots._chinese_fonts.cache_clear()
        assert plots._chinese_fonts() == ()
    finally:
        plots._chinese_fonts.cache_clear()


def chinese_font():
    """A TrueType font with a square for each of two Chinese characters."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 900), (900, 900), (900, 0)):
        (pen.moveTo if place == (0, 0) else pen.lineTo)(place)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", "first", "second"]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord("难"): "first", ord("愤"): "second"})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Toy", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    file = io.BytesIO()
    builder.save(file)
    return file.getvalue()


def test_characters_that_no_font_has_are_reported_with_the_fix(tmp_path, caplog):
    plots.draw_bars(tmp_path / "bars", ["\U0001f9ff"], {"a": [1]}, title="t", unit="clips")
    assert "bars.png: some characters are drawn as boxes" in caplog.text
    assert "fonts-noto-cjk" in caplog.text


def test_what_was_not_measured_is_marked_and_not_drawn_as_zero(tmp_path):
    plots.draw_bars(tmp_path / "bars", ["a", "b", "c"], {"s": [None, 0.0, 2.5]}, title="t", unit="%")
    texts = texts_of(tmp_path / "bars.svg")
    assert [texts.count(text) for text in (plots.NOT_MEASURED, "0.0", "2.5")] >= [1, 1, 1]
    plots.draw_heat_map(tmp_path / "map", np.array([[0.5, np.nan]]), ["r"], ["c", "d"], title="t")
    assert {"0.50", "–"} <= set(texts_of(tmp_path / "map.svg"))


@pytest.mark.parametrize("horizontal", [False, True])
def test_intervals_are_drawn_where_there_are_some_and_reach_from_low_to_high(tmp_path, horizontal):
    values, intervals = {"a": [2.0, 3.0], "b": [1.0, None]}, {"a": [(1.0, 4.0), None], "b": [(2.0, 3.0), None]}
    plots.draw_bars(
        tmp_path / "bars", ["x", "y"], values, title="t", unit="%", intervals=intervals, horizontal=horizontal
    )
    errors = plots._error_bars(np.array([2.0, 3.0]), intervals["a"])
    np.testing.assert_array_equal(errors, [[1.0, np.nan], [2.0, np.nan]])
    # A percentile interval may lie beside its value.
    np.testing.assert_array_equal(plots._error_bars(np.array([1.0]), [(2.0, 3.0)]), [[0.0], [2.0]])


def test_a_local_fit_keeps_straight_lines_also_at_the_ends_where_a_moving_mean_bends():
    x = np.sort(np.random.default_rng(0).uniform(0, 100, 40))
    np.testing.assert_allclose(plots.local_fit(x, 3 * x - 5), 3 * x - 5)
    np.testing.assert_allclose(plots.local_fit([0, 1], [5.0, 1.0]), [5.0, 1.0])
    np.testing.assert_allclose(plots.local_fit([2], [5.0]), [5.0])
    np.testing.assert_allclose(plots.local_fit([1, 1, 1], [1.0, 2.0, 3.0]), [2.0] * 3)


def fit_over_all_points(x, values, n_neighbours=15):
    """The local fit by its definition, with the distances to all points."""
    places, heights = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    fitted = []
    for place in places:
        distance = np.abs(places - place)
        reach = np.sort(distance)[min(n_neighbours, len(places)) - 1]
        weights = np.clip(1 - (distance / (1.001 * reach)) ** 3, 0, None) ** 3 if reach > 0 else distance == 0
        mean_x, mean = np.average(places, weights=weights), np.average(heights, weights=weights)
        spread = np.average((places - mean_x) ** 2, weights=weights)
        slope = np.average((places - mean_x) * (heights - mean), weights=weights) / spread if spread > 0 else 0.0
        fitted.append(mean + slope * (place - mean_x))
    return fitted


@pytest.mark.parametrize("n_neighbours", [2, 15, 80])
@pytest.mark.parametrize("kind", ["even", "random", "tied", "gaps"])
def test_a_local_fit_in_a_window_is_that_over_all_points_in_any_order(kind, n_neighbours):
    rng = np.random.default_rng(0)
    x = {
        "even": np.arange(60.0),
        "random": rng.uniform(0, 1, 60),
        "tied": rng.integers(0, 5, 60),
        "gaps": np.concatenate([np.arange(20), 1000 + np.arange(20), [5000]]),
    }[kind]
    x = rng.permutation(x)
    values = rng.normal(size=len(x))
    expected = fit_over_all_points(x, values, n_neighbours)
    np.testing.assert_allclose(plots.local_fit(x, values, n_neighbours), expected, rtol=1e-6, atol=1e-8)


def test_a_local_fit_takes_time_that_grows_with_the_number_of_points():
    def seconds(n):
        began = time.process_time()
        plots.local_fit(np.arange(n), np.zeros(n))
        return time.process_time() - began

    assert seconds(20_000) < 25 * seconds(2_000)  # 10 times as many points; their squares are 100 times as many


def test_of_a_long_curve_some_points_are_drawn_and_all_are_fitted(tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(plots, "local_fit", lambda x, values: fitted.append(len(x)) or values)
    sizes = {}
    for n in (2_000, 20_000):
        panel = plots.Panel("loss", "step", "loss", {"a": (range(n), [1 / (step + 1) for step in range(n)])})
        sizes[n] = len(plots.picture(plots.draw_curves, [panel], n_columns=1).svg)
    assert fitted == [2_000, 20_000]
    assert sizes[20_000] < 1.2 * sizes[2_000]


def test_a_local_fit_reduces_noise():
    rng = np.random.default_rng(0)
    x = np.arange(300.0)
    noise = rng.normal(size=300)
    assert np.std(plots.local_fit(x, x + noise) - x) < 0.5 * np.std(noise)


def test_curves_join_few_points_as_they_are_and_smooth_many(tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(plots, "local_fit", lambda x, values: fitted.append(len(x)) or values)
    few, many = (list(range(5)), [15.0, 60.0, 64.0, 70.0, 71.0]), (list(range(50)), list(range(50)))
    panels = [plots.Panel("few", "step", "Avg", {"a": few}), plots.Panel("many", "step", "loss", {"a": many, "b": few})]
    plots.draw_curves(tmp_path / "curves", panels, n_columns=2)
    assert fitted == [50]
