"""The plots of a data report: durations, labels, labels per clip, and which media and texts the clips have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt.plots import COLOURS, figure_file

_COLOUR, _N_LABELS = COLOURS[0], 20


def draw_data(
    path: Path,
    *,
    title: str,
    durations_s: Sequence[float],
    labels: Counter[str],
    labels_per_clip: Counter[int],
    contents: Mapping[str, int],
) -> None:
    """Write `path`.png, .svg and .pdf; `contents` counts the clips that have each medium and each text."""
    with figure_file(path, 9.6, 6.8) as figure:
        figure.suptitle(title, x=0.02, ha="left")
        durations, frequencies, per_clip, has = figure.subplots(2, 2).flat
        if durations_s:
            durations.hist(durations_s, bins=min(30, max(5, round(2 * len(durations_s) ** 0.5))), color=_COLOUR)
        durations.set(title="duration", xlabel="seconds", ylabel="clips")
        top = labels.most_common(_N_LABELS)
        _bars(frequencies, dict(top), f"labels ({len(top)} most frequent of {len(labels)})")
        clips = sorted(labels_per_clip.items())
        per_clip.bar([str(n) for n, _ in clips], [count for _, count in clips], color=_COLOUR)
        per_clip.set(title="open-vocabulary labels per clip", xlabel="labels", ylabel="clips")
        _bars(has, contents, "what the clips have")
        for axes in (durations, frequencies, per_clip, has):
            axes.tick_params(labelsize=7)
            axes.grid(axis="y" if axes in (durations, per_clip) else "x")


def _bars(axes: Any, counts: Mapping[str, int], title: str) -> None:
    """Horizontal bars with their counts, the first at the top."""
    bars = axes.barh(list(counts)[::-1], list(counts.values())[::-1], color=_COLOUR)
    axes.bar_label(bars, fontsize=6, padding=2)
    axes.set(title=title, xlabel="clips")
