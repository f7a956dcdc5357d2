"""Plots as PNG and SVG, readable in black and white: shades of grey, hatching, values printed on bars and cells.

Needs matplotlib (the `evaluation` extra), which is imported only when something is drawn.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectgpt.runtime import MissingLibrary

if TYPE_CHECKING:
    from collections.abc import Iterator

_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")
_GREYS = ("0.35", "0.75", "0.9", "0.55", "0.65", "0.85")


@contextmanager
def figure_file(path: Path, width_in: float, height_in: float) -> Iterator[Any]:
    """An empty matplotlib figure, saved as `path`.png and `path`.svg when the block ends.

    Raises:
        MissingLibrary: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingLibrary("drawing needs matplotlib: pip install 'affectgpt[evaluation]'") from None
    with (
        warnings.catch_warnings(),
        rc_context({"svg.hashsalt": "affectgpt", "font.sans-serif": _fonts(), "axes.unicode_minus": False}),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # without a Chinese font, a box is drawn
        figure = Figure(figsize=(width_in, height_in), layout="constrained")  # no pyplot: no window, no global state
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _fonts() -> list[str]:
    """The default font family, then the installed ones with Chinese glyphs."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    chinese = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei")
    return ["DejaVu Sans", *(name for name in chinese if name in known)]


def draw_bars(
    path: Path, names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, unit: str,
    errors: Mapping[str, Sequence[tuple[float, float]]] | None = None, horizontal: bool = False,
) -> None:  # fmt: skip
    """Grouped bars: one group per name, one hatch per series; `errors` gives (below, above) for each bar."""
    size = max(5.0, 0.35 * len(names) * len(series) + 2)
    shape = (6.5, max(3.0, 0.24 * len(names) + 1)) if horizontal else (min(size, 14), 4.0)
    with figure_file(path, *shape) as figure:
        axes = figure.add_subplot()
        positions = np.arange(len(names))
        width = 0.8 / len(series)
        for i, (label, values) in enumerate(series.items()):
            style = {"facecolor": _GREYS[i % 6], "hatch": _HATCHES[i % 6], "edgecolor": "black", "linewidth": 0.6}
            style["label"] = label
            offset = positions + (i - (len(series) - 1) / 2) * width
            error = None if errors is None else np.array(errors[label]).T
            if horizontal:
                bars = axes.barh(offset, values, width, xerr=error, **style)
            else:
                bars = axes.bar(offset, values, width, yerr=error, capsize=3, **style)
            if len(names) * len(series) <= 40:
                axes.bar_label(bars, fmt="%.4g", fontsize=7, padding=2)
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
            axes.legend()
        axes.spines[["top", "right"]].set_visible(False)


def draw_heat_map(
    path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str, fmt: str = "{:.2f}",
    low: float | None = None, high: float | None = None,
) -> None:  # fmt: skip
    """A matrix [n_rows, n_columns] in shades of grey with its values; NaN cells stay white."""
    size = 0.55 * len(columns) + 2.2
    with figure_file(path, size, 0.45 * len(rows) + 1.6) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap="Greys", vmin=low, vmax=high, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        darkest = image.norm.vmin + 0.6 * (image.norm.vmax - image.norm.vmin)
        for i, j in np.ndindex(values.shape):
            if not math.isnan(values[i, j]):
                colour = "white" if values[i, j] > darkest else "black"
                axes.text(j, i, fmt.format(values[i, j]), ha="center", va="center", color=colour, fontsize=7)
        axes.set_title(title)


def draw_wheel(path: Path, true: Mapping[str, float], predicted: Mapping[str, float], *, title: str) -> None:
    """The level-1 sectors of a wheel: shares of all true labels (outlined) and of all predicted labels (hatched)."""
    sectors = sorted(set(true) | set(predicted))
    with figure_file(path, 6, 6) as figure:
        axes = figure.add_subplot(projection="polar")
        width = 2 * math.pi / max(len(sectors), 1)
        angles = np.arange(len(sectors)) * width
        for values, style in (
            (predicted, {"facecolor": "0.8", "hatch": "///", "linewidth": 0.5, "label": "predicted"}),
            (true, {"fill": False, "linewidth": 2.2, "label": "true"}),
        ):
            heights = [100 * values.get(name, 0.0) for name in sectors]
            axes.bar(angles, heights, width * 0.94, edgecolor="black", **style)
        axes.tick_params(axis="x", pad=14)
        axes.set_xticks(angles, sectors)
        axes.set_rlabel_position(math.degrees(width / 2))
        axes.set_title(f"{title}\n(% of labels)")
        axes.legend(loc="upper right", bbox_to_anchor=(1.12, 1.1))


@dataclass(frozen=True)
class Panel:
    """One set of axes with its curves: label -> (x, values, smoothed values)."""

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]


def draw_curves(path: Path, panels: Sequence[Panel], *, n_columns: int) -> None:
    """Panels of curves: raw values thin and grey, smoothed values in black, one line style and marker per label.

    Panels with the same y label share their y axis.
    """
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    styles = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
    with figure_file(path, 3.6 * n_columns + 0.4, 2.8 * n_rows + 0.2) as figure:
        first: dict[str, Any] = {}
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(n_rows, n_columns, number + 1, sharey=first.get(panel.y_label))
            first.setdefault(panel.y_label, axes)
            for i, (label, (x, values, smooth)) in enumerate(panel.curves.items()):
                line, marker = styles[i % len(styles)]
                axes.plot(x, values, color="0.7", linestyle=line, linewidth=0.8)
                marked = marker if len(x) <= 30 else None
                axes.plot(x, smooth, color="black", linestyle=line, marker=marked, markersize=3.5, label=label)
            axes.set_title(panel.title, fontsize=10)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            axes.spines[["top", "right"]].set_visible(False)
            if len(panel.curves) > 1:
                axes.legend(fontsize=8)
