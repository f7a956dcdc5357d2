"""The picture of a health report: durations, labels, labels per clip, and what the clips have. Grey, for print."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.runtime import UserError

if TYPE_CHECKING:
    from affectgpt.data.health import Health

INSTALL = "pip install 'affectgpt[evaluation]'"
_GREY, _N_LABELS = "0.45", 20


class NoMatplotlib(UserError):
    """matplotlib is not installed; the message says how to get it."""


def draw(path: Path, health: Health) -> None:
    """Write `path`.png and `path`.svg."""
    try:
        from matplotlib import font_manager, rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise NoMatplotlib(f"drawing needs matplotlib: {INSTALL}") from None
    known = {font.name for font in font_manager.fontManager.ttflist}
    chinese = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei")
    fonts = ["DejaVu Sans", *(name for name in chinese if name in known)]
    with (
        warnings.catch_warnings(),
        rc_context({"svg.hashsalt": "affectgpt", "font.sans-serif": fonts, "axes.unicode_minus": False}),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no font here has it: an empty box is drawn
        figure = Figure(figsize=(9.6, 6.8), layout="constrained")  # no pyplot: no window, no global state
        figure.suptitle(f"{health.name}: {len(health.samples)} of {health.n_rows} rows usable", fontsize=10)
        durations, labels, per_clip, has = figure.subplots(2, 2).flat
        _histogram(durations, health)
        counts = health.labels() or health.fixed_labels()
        top = counts.most_common(_N_LABELS)[::-1]
        _bars(labels, dict(top), f"labels ({len(top)} most frequent of {len(counts)})", "clips")
        clips = sorted(health.labels_per_clip().items())
        per_clip.bar([str(n) for n, _ in clips], [count for _, count in clips], color=_GREY)
        per_clip.set(title="open-vocabulary labels per clip", xlabel="labels", ylabel="clips")
        _bars(has, dict([*health.modalities().items(), *health.texts().items()][::-1]), "what the clips have", "clips")
        for axes in (durations, labels, per_clip, has):
            axes.title.set_fontsize(9)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _histogram(axes: Any, health: Health) -> None:
    if health.duration_s:
        axes.hist(health.duration_s, bins=min(30, max(5, round(2 * len(health.duration_s) ** 0.5))), color=_GREY)
    axes.set(title="duration", xlabel="seconds", ylabel="clips")


def _bars(axes: Any, counts: dict[str, int], title: str, unit: str) -> None:
    """Horizontal bars with their numbers."""
    bars = axes.barh(list(counts), list(counts.values()), color=_GREY)
    axes.bar_label(bars, fontsize=6, padding=2)
    axes.set(title=title, xlabel=unit)
