"""Plots as PNG, SVG and PDF, in one style: colours that colour-blind readers can tell apart, values on bars and cells.

The colours are those of Okabe and Ito (2008), "Color Universal Design", in an order in which neighbours also differ in
lightness; matrices use matplotlib's cividis. A value of None or NaN was not measured: it is marked as such and nothing
is drawn for it. Counts are printed as integers, everything else with one decimal, fractions in matrices with two.

Text stays text in the vector files: PDF files have their fonts embedded (as TrueType, which journals ask for), and SVG
files name their fonts, so that a browser without them takes its own.

Needs matplotlib (the `evaluation` extra), which is imported only when something is drawn.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectgpt.runtime import MissingLibrary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("affectgpt")

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Blue, orange, green, purple, sky blue, vermilion."""
INK, GRID = "#1f2933", "#d9dee3"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.titlesize": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "affectgpt",
    "pdf.fonttype": 42,
}
"""matplotlib's settings for every plot."""
NOT_MEASURED = "n/a"
SMOOTH_FROM = 20
"""A curve with more points is smoothed, as loss curves are; one with fewer joins its points."""
_NEIGHBOURS = 15  # points that a smoothed value is fitted to
_MOST_DRAWN = 2000  # points of a curve: more than a panel has pixels across; 4,000 made an SVG file of 0.64 MB
_CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "SimHei",
    "Arial Unicode MS",
)


@contextmanager
def figure_file(path: Path, width_in: float, height_in: float) -> Iterator[Any]:
    """An empty matplotlib figure, saved as `path`.png, .svg and .pdf when the block ends.

    Raises:
        MissingLibrary: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingLibrary("drawing needs matplotlib: pip install 'affectgpt[evaluation]'") from None
    # matplotlib looks for missing glyphs along `font.family` only, never along `font.sans-serif`.
    fonts = {"font.family": ["DejaVu Sans", *_chinese_fonts(), "sans-serif"]}
    with warnings.catch_warnings(record=True) as caught, rc_context({**STYLE, **fonts}):
        warnings.simplefilter("always")
        figure = Figure(figsize=(width_in, height_in), layout="constrained")  # no pyplot: no window, no global state
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    boxes = [warning for warning in caught if "missing from" in str(warning.message)]
    if boxes:
        log.warning(
            "%s: some characters are drawn as boxes, because no installed font has them; for Chinese, install one "
            "(Debian and Ubuntu: apt install fonts-noto-cjk)",
            path.with_suffix(".png"),
        )
    for warning in caught:
        if warning not in boxes:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@cache
def _chinese_fonts() -> tuple[str, ...]:
    """The installed font with Chinese glyphs, if there is one: a known one, else any.

    matplotlib lists fonts once and keeps the list on disk, so a font that was installed later is searched for.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    manager = font_manager.fontManager
    known = {font.name for font in manager.ttflist}
    for name in _CHINESE_FONTS:
        if name in known:
            return (name,)
    for file in sorted(font_manager.findSystemFonts()):
        try:
            font = FT2Font(file)
        except (RuntimeError, OSError):  # a damaged font, or a format that freetype does not read
            continue
        if font.get_char_index(ord("难")) and font.get_char_index(ord("愤")):
            manager.addfont(file)
            return (font.family_name,)
    return ()


def number(value: float | None) -> str:
    """A value as it is printed on a bar.

    >>> number(12), number(12.0), number(12.34), number(None)
    ('12', '12.0', '12.3', 'n/a')
    """
    if value is None or math.isnan(value):
        return NOT_MEASURED
    return str(value) if isinstance(value, int) else f"{value:.1f}"


Range = tuple[float, float]


def draw_bars(
    path: Path, names: Sequence[str], series: Mapping[str, Sequence[float | None]], *, title: str, unit: str,
    intervals: Mapping[str, Sequence[Range | None]] | None = None, horizontal: bool = False,
) -> None:  # fmt: skip
    """Grouped bars: one group per name, one colour per series.

    Args:
        series: label -> one value per name; integers are counts.
        intervals: label -> (low, high) of each bar, where there is one.
    """
    size = max(5.0, 0.35 * len(names) * len(series) + 2)
    shape = (6.5, max(3.0, 0.24 * len(names) + 1)) if horizontal else (min(size, 14), 4.0)
    with figure_file(path, *shape) as figure:
        axes = figure.add_subplot()
        positions = np.arange(len(names))
        width = 0.8 / len(series)
        for i, (label, values) in enumerate(series.items()):
            style = {"facecolor": COLOURS[i % len(COLOURS)], "edgecolor": INK, "linewidth": 0.5, "label": label}
            style["error_kw"] = {"ecolor": INK, "elinewidth": 1.0}
            offset = positions + (i - (len(series) - 1) / 2) * width
            heights = np.array([math.nan if value is None else value for value in values], dtype=float)
            error = None if intervals is None else _error_bars(heights, intervals[label])
            if horizontal:
                bars = axes.barh(offset, np.nan_to_num(heights), width, xerr=error, capsize=2, **style)
            else:
                bars = axes.bar(offset, np.nan_to_num(heights), width, yerr=error, capsize=3, **style)
            shown = [number(value) for value in values]
            if len(names) * len(series) > 40:  # no room; what is missing is marked all the same
                shown = [text if text == NOT_MEASURED else "" for text in shown]
            axes.bar_label(bars, shown, fontsize=7, padding=2)
        axes.grid(axis="x" if horizontal else "y")
        if horizontal:
            axes.set_yticks(positions, names)
            axes.invert_yaxis()
            axes.set_xlabel(unit)
        else:
            few = len(names) <= 8
            axes.set_xticks(positions, names, rotation=0 if few else 60, ha="center" if few else "right")
            axes.set_ylabel(unit)
        axes.set_title(title)
        if len(series) > 1:
            figure.legend(loc="outside right upper")  # next to the axes, where it covers no bar


def _error_bars(values: np.ndarray, intervals: Sequence[Range | None]) -> np.ndarray:
    """Distances of the ends of the intervals from the values, NaN without an interval.  [2, n_bars]"""
    ends = np.array([(math.nan, math.nan) if interval is None else interval for interval in intervals], dtype=float).T
    # A percentile interval need not contain the value; matplotlib takes no negative distances.
    return np.maximum(np.stack([values - ends[0], ends[1] - values]), 0)


def draw_reliability(path: Path, bins: Sequence[tuple[float, float, int]], *, title: str) -> None:
    """A reliability diagram: the share of right answers over the stated confidence, with the number of answers.

    Args:
        bins: mean confidence, share of right answers and number of answers of each bin with answers.
    """
    with figure_file(path, 5.0, 4.5) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="as sure as right")
        stated, right, counts = zip(*bins, strict=True)
        axes.plot(stated, right, color=COLOURS[0], marker="o", label="answers")
        for x, y, n in zip(stated, right, counts, strict=True):
            axes.annotate(str(n), (x, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7)
        axes.set(
            xlim=(0, 1.02), ylim=(0, 1.05), xlabel="stated confidence", ylabel="share of right answers", title=title
        )
        axes.grid()
        axes.legend(loc="upper left")


def draw_heat_map(
    path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str, fmt: str = "{:.2f}",
    low: float | None = None, high: float | None = None, labels: tuple[str, str] | None = None,
) -> None:  # fmt: skip
    """A matrix [n_rows, n_columns] in colour with its values; NaN cells stay white, with a dash.

    Args:
        low, high: values of the ends of the colour scale; None = those of `values`.
        labels: what the rows and what the columns are, such as ("true", "predicted").
    """
    size = 0.55 * len(columns) + 2.2
    with figure_file(path, size, 0.45 * len(rows) + 1.6) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=low, vmax=high, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        for i, j in np.ndindex(values.shape):
            missing = math.isnan(values[i, j])
            dark = not missing and _luminance(image.cmap(image.norm(values[i, j]))) < 0.18  # equal contrast to both
            colour = "white" if dark else "black"
            text = "–" if missing else fmt.format(values[i, j])
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
        if labels is not None:
            axes.set_ylabel(labels[0])
            axes.set_xlabel(labels[1])
        axes.set_title(title)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of WCAG 2 of an sRGB colour with components of 0 to 1.

    >>> round(_luminance((1, 1, 1)), 6), round(_luminance((0, 0.4470588, 0.6980392)), 3)
    (1.0, 0.152)
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def draw_wheel(
    path: Path, true: Mapping[str, float], predicted: Mapping[str, float], *, title: str,
    intervals: tuple[Mapping[str, Range], Mapping[str, Range]] | None = None, order: Sequence[str] = (),
) -> None:  # fmt: skip
    """The level-1 sectors of a wheel, clockwise from the top: their shares of all true and of all predicted labels.

    Args:
        intervals: of the true and of the predicted shares, by sector.
        order: of the sectors, such as that of the wheel; those that it does not name follow by name.
    """
    sectors = list(dict.fromkeys([*order, *sorted(set(true) | set(predicted))]))
    with figure_file(path, 5.2, 5.6) as figure:
        axes = figure.add_subplot(projection="polar", theta_offset=math.pi / 2, theta_direction=-1)
        width = 2 * math.pi / max(len(sectors), 1)
        angles = np.arange(len(sectors)) * width
        highest = 0.0
        for side, (label, values) in enumerate({"true": true, "predicted": predicted}.items()):
            places = angles + (side - 0.5) * 0.42 * width
            heights = np.array([100 * values.get(name, 0.0) for name in sectors])
            style = {"facecolor": COLOURS[side], "edgecolor": INK, "linewidth": 0.5, "label": label}
            axes.bar(places, heights, 0.42 * width, **style)
            highest = max(highest, *heights, 0.0)
            if intervals is not None:
                ends = [tuple(100 * end for end in intervals[side].get(name, (math.nan,) * 2)) for name in sectors]
                error = {"ecolor": INK, "elinewidth": 1.0, "capsize": 2}
                axes.errorbar(places, heights, _error_bars(heights, ends), fmt="none", **error)
                highest = max([highest, *(end for _, end in ends if not math.isnan(end))])
        axes.set_ylim(0, 1.05 * highest or 1)
        axes.set_xticks(angles, [""] * len(sectors))
        axes.set_thetagrids(np.degrees(angles + width / 2), [""] * len(sectors))  # lines between the sectors
        for angle, name in zip(angles, sectors, strict=True):  # text that grows away from the circle
            sine, cosine = math.sin(angle), math.cos(angle)
            across = "center" if abs(sine) < 0.2 else "left" if sine > 0 else "right"
            along = "center" if abs(cosine) < 0.2 else "bottom" if cosine > 0 else "top"
            axes.text(angle, 1.1 * highest or 1, name, ha=across, va=along, fontsize=9)
        axes.set_rlabel_position(math.degrees(width / 2))
        axes.yaxis.set_major_formatter("{x:g} %")
        axes.tick_params(axis="y", labelsize=7)
        axes.spines["polar"].set_color(GRID)
        figure.suptitle(f"{title} (share of labels)", x=0.02, ha="left")
        figure.legend(loc="outside lower center", ncols=2)


def draw_clip(
    path: Path, images: np.ndarray, times_s: np.ndarray, samples: np.ndarray, rate_hz: int, *, title: str,
    speech: Sequence[Range] = (),
) -> None:  # fmt: skip
    """Frames of a clip above its waveform on one time axis; seconds with speech are shaded.

    Args:
        images, times_s: uint8 [T, H, W, 3] and their times [T], as `media.read_frames` returns them.
        samples: [S] in -1..1, as `media.read_audio` returns them.
        speech: (start, end) in seconds, as `media.speech.find_speech` finds them.
    """
    with figure_file(path, 7.0, 2.9) as figure:
        rows = figure.subplots(2, len(images), height_ratios=(3, 2), squeeze=False)
        for axes, image, time_s in zip(rows[0], images, times_s, strict=True):
            axes.imshow(image)
            axes.axis("off")
            axes.set_title(f"{time_s:.1f} s", fontsize=8, loc="center", pad=3)
        for axes in rows[1]:
            axes.remove()
        sound = figure.add_subplot(rows[1, 0].get_gridspec()[1, :])
        n_bins = min(600, len(samples))
        edges = np.linspace(0, len(samples), n_bins + 1).astype(int)[:-1]
        low, high = (find.reduceat(samples, edges) for find in (np.minimum, np.maximum))
        for number, (start_s, end_s) in enumerate(speech):
            sound.axvspan(start_s, end_s, color=COLOURS[1], alpha=0.3, lw=0, label="_" * (number > 0) + "speech")
        sound.fill_between(edges / rate_hz, low, high, color=COLOURS[0], lw=0.5)
        sound.set_xlim(0, len(samples) / rate_hz)
        sound.set_xlabel("s")
        sound.set_ylabel("sound")
        if speech:
            sound.legend(loc="lower right", bbox_to_anchor=(1, 0.96))
        figure.suptitle(title, x=0.02, ha="left")


@dataclass(frozen=True)
class Picture:
    """A plot that was drawn; a notebook shows it where it is the last value of a cell."""

    png: bytes = field(repr=False)
    svg: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


def picture(draw: Callable[..., None], *values: Any, **options: Any) -> Picture:
    """What a function of this module draws, kept in memory: `picture(draw_bars, names, series, title=...)`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot"
        draw(path, *values, **options)
        return Picture(path.with_suffix(".png").read_bytes(), path.with_suffix(".svg").read_bytes())


@dataclass(frozen=True)
class Panel:
    """One set of axes with its curves: label -> (x, values)."""

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def draw_curves(path: Path, panels: Sequence[Panel], *, n_columns: int) -> None:
    """Panels of curves, every measured value a point; one colour, line style and marker per label.

    The line joins the points; with more than `SMOOTH_FROM` points it is their `local_fit`. Of more than
    `_MOST_DRAWN` points, as many are drawn and all are fitted. Panels with the same y label share their y axis.
    """
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    styles = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
    with figure_file(path, 3.6 * n_columns + 0.4, 2.8 * n_rows + 0.2) as figure:
        first: dict[str, Any] = {}
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(n_rows, n_columns, place + 1, sharey=first.get(panel.y_label))
            first.setdefault(panel.y_label, axes)
            for i, (label, (x, values)) in enumerate(panel.curves.items()):
                line, marker = styles[i % len(styles)]
                colour = COLOURS[i % len(COLOURS)]
                if len(x) > SMOOTH_FROM:
                    # About 2,000 points stay, spread evenly and with both ends: all of a long run lie on one another.
                    kept = np.linspace(0, len(x) - 1, min(len(x), _MOST_DRAWN)).round().astype(int)
                    at, points, fitted = (np.asarray(each)[kept] for each in (x, values, local_fit(x, values)))
                    axes.plot(at, points, color=colour, linestyle="", marker=".", markersize=2.5, alpha=0.35)
                    axes.plot(at, fitted, color=colour, linestyle=line, linewidth=1.6, label=label)
                else:
                    axes.plot(x, values, color=colour, linestyle=line, marker=marker, markersize=3.5, label=label)
            axes.grid(axis="y")
            axes.set_title(panel.title)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            if len(panel.curves) > 1:
                axes.legend()


def local_fit(x: Sequence[float], values: Sequence[float], n_neighbours: int = _NEIGHBOURS) -> np.ndarray:
    """Local linear regression: at each x, the value of a line fitted to the nearest points, near ones weighing more.

    Cleveland (1979), "Robust Locally Weighted Regression", degree 1, tricube weights, without his robust steps. Unlike
    a moving mean it does not bend towards the middle at the ends: a straight line stays one.  [n], [n] -> [n]
    In the order of x the nearest points are neighbours, so that the time grows with n, not with n².

    >>> local_fit([0, 1, 2, 3], [1.0, 3.0, 5.0, 7.0], n_neighbours=3).round(6).tolist()
    [1.0, 3.0, 5.0, 7.0]
    """
    order = np.argsort(np.asarray(x, dtype=float), kind="stable")
    places, heights = np.asarray(x, dtype=float)[order], np.asarray(values, dtype=float)[order]
    n_nearest = min(n_neighbours, len(places))
    reaches = np.empty_like(places)
    start = 0
    for at, place in enumerate(places):
        while start + n_nearest < len(places) and places[start + n_nearest] - place < place - places[start]:
            start += 1
        reaches[at] = 1.001 * max(place - places[start], places[start + n_nearest - 1] - place)
    firsts, lasts = np.searchsorted(places, places - reaches), np.searchsorted(places, places + reaches, side="right")
    fitted = np.empty_like(heights)
    for at, (place, reach, first, last) in enumerate(zip(places, reaches, firsts, lasts, strict=True)):
        near, high = places[first:last], heights[first:last]
        weights = np.clip(1 - (np.abs(near - place) / reach) ** 3, 0, None) ** 3 if reach > 0 else np.ones(len(near))
        weights = weights / weights.sum()
        mean_x, mean = weights @ near, weights @ high
        spread = weights @ (near - mean_x) ** 2
        slope = weights @ ((near - mean_x) * (high - mean)) / spread if spread > 0 else 0.0
        fitted[order[at]] = mean + slope * (place - mean_x)
    return fitted
