"""Draw docs/overview.png, the figure of the README: python docs/make_picture.py

It shows one test clip of the embedded corpus: frames, pitch, waveform, subtitle and reference annotation.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without installation

from affectgpt.demo import corpus
from affectgpt.demo.emotions import perform
from affectgpt.demo.face import render_face
from affectgpt.demo.performance import Performance, sample_curve, syllables
from affectgpt.demo.text import checked_clues
from affectgpt.demo.voice import render_voice

CLIP = 278  # of the fine set: surprise, then a smile, but a weak, falling voice
WIDTH_PX, HEIGHT_PX, DPI = 1600, 830, 100
INK, GREY, LINE, PAPER, FROZEN = "#1f2933", "#5b6773", "#c3ccd5", "#fcfcfb", "#eef2f6"
FACE, MOTION, VOICE, WORDS = "#0067a5", "#00785a", "#c04f00", "#8a4a86"  # distinguishable with colour blindness


def main() -> None:
    scene = corpus.draw_scenes(0, corpus.N_COARSE, corpus.N_FINE)["fine"][CLIP]
    sample = corpus._sample("fine", CLIP, scene, checked_clues(scene), "test")
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH_PX), ylim=(HEIGHT_PX, 0), autoscale_on=False)  # in pixels
    axes.axis("off")
    draw_clip(axes, perform(scene, sample.subtitle), sample.subtitle)
    draw_model(axes)
    draw_answer(axes, sample.description, sample.labels)
    source = f"Clip {sample.id} of the embedded, synthetic corpus (test split). Explanation and labels are its"
    write(axes, 40, 796, f"{source} reference annotation, not a model’s output.", 19, GREY)
    figure.savefig(Path(__file__).with_name("overview.png"), metadata={"Software": None})  # same pixels, same file


def draw_clip(axes: Axes, performance: Performance, subtitle: str) -> None:
    """The frames, and below them pitch and waveform on the same time axis."""
    left, right, top = 40, 612, 104
    write(axes, left, 58, "A clip", 28, weight="bold")
    frames = render_face(performance, size_px=336)
    size = (right - left - 3 * 8) / 4
    for place in range(4):
        x = left + place * (size + 8)
        frame = frames[(2 * place + 1) * len(frames) // 8]  # the middle of this quarter of the clip
        picture = axes.imshow(frame, extent=(x, x + size, top + size, top), aspect="auto", zorder=2)
        picture.set_clip_path(box(axes, x, top, size, size, "none", "none", radius=10))
    times = np.linspace(0, performance.duration_s, 500)
    spoken = np.array([any(s.start_s <= t < s.stop_s for s in syllables(performance)) for t in times])
    pitch_hz = performance.identity.base_pitch_hz * sample_curve(performance.voice.pitch_ratio, times)
    height = np.interp(pitch_hz, np.sort(pitch_hz[spoken])[[0, -1]], (338, 286))
    height[~spoken] = np.nan
    axes.plot(np.linspace(left, right, len(times)), height, color=VOICE, lw=3, solid_capstyle="round")
    waveform = render_voice(performance)
    bins = np.array_split(402 - 40 * waveform / np.abs(waveform).max(), right - left)
    axes.fill_between(np.arange(left, right), [b.min() for b in bins], [b.max() for b in bins], fc=VOICE, alpha=0.65)
    write(axes, left, 462, "voice, pitch {:.0f} → {:.0f} Hz".format(*pitch_hz[spoken][[0, -1]]), 20, GREY)
    write(axes, right, 462, f"{performance.duration_s:.1f} s", 20, GREY, ha="right")
    box(axes, left, 510, right - left, 62, "white", WORDS)
    write(axes, (left + right) / 2, 541, f"“{subtitle}”", 25, ha="center")
    write(axes, left, 600, "subtitle", 20, GREY)


def draw_model(axes: Axes) -> None:
    """Frozen encoders, a trained Q-Former each, the frozen LLM; below them the stages with their embedded data."""
    write(axes, 652, 58, "AffectGPT", 28, weight="bold")
    write(axes, 1128, 59, "❄ frozen    ■ trained", 20, GREY, ha="right")
    branches = ((135, "EVA", "frames", FACE), (211, "VideoMAE", "motion", MOTION), (380, "HuBERT", "sound", VOICE))
    for y, encoder, what, colour in branches:
        arrow(axes, 620, 650, y, colour)
        box(axes, 652, y - 31, 160, 62, FROZEN, LINE)
        write(axes, 732, y - 10, encoder, 22, ha="center", weight="bold")
        write(axes, 732, y + 15, f"❄ {what}", 19, GREY, ha="center")
        arrow(axes, 814, 844, y, colour)
        box(axes, 846, y - 31, 138, 62, colour, colour)
        write(axes, 915, y, "Q-Former", 22, "white", ha="center", weight="bold")
        tokens(axes, y, colour)
    write(axes, 1040, 270, "soft tokens", 19, GREY, ha="right")
    arrow(axes, 620, 994, 541, WORDS)
    tokens(axes, 541, WORDS, fill="white")  # not learned
    write(axes, 1040, 600, "text tokens", 19, GREY, ha="right")
    box(axes, 1056, 104, 72, 482, FROZEN, LINE)
    write(axes, 1092, 134, "❄", 24, GREY, ha="center")
    write(axes, 1092, 345, "LLaMA-family LLM", 24, ha="center", va="center", weight="bold", rotation=90)
    arrow(axes, 1132, 1168, 345, INK)

    n_fine = round(corpus.N_FINE * (1 - corpus.TEST_SHARE))
    coarse = (40, "Coarse stage", f"{corpus.N_COARSE} clips, labelled automatically, with errors")
    fine = (828, "Fine stage", f"{n_fine} clips, described without errors")
    for x, name, data in (coarse, fine):
        box(axes, x, 690, 732, 62, "white", LINE)
        title = write(axes, x + 22, 721, name, 22, weight="bold")
        write(axes, title.get_window_extent().x1 + 20, 721, data, 21, GREY)
    arrow(axes, 776, 826, 721, INK)


def tokens(axes: Axes, y: float, colour: str, fill: str | None = None) -> None:
    for place in range(3):
        box(axes, 1002, y - 25 + 18 * place, 14, 14, fill or colour, colour, radius=4)
    arrow(axes, 1024, 1054, y, colour)


def draw_answer(axes: Axes, description: str, labels: tuple[str, ...]) -> None:
    """The explanation, each sentence marked by where its clue comes from, and the labels."""
    left, y = 1182, 104
    write(axes, left, 58, "Explanation and labels", 28, weight="bold")
    colours = (FACE, VOICE, WORDS, INK, INK)
    for sentence, colour in zip(description.replace(". ", ".\n").splitlines(), colours, strict=True):
        lines = textwrap.wrap(sentence, 33)
        box(axes, left, y, 5, 28 * len(lines), colour, colour, radius=2)
        for number, line in enumerate(lines):
            write(axes, left + 18, y + 14 + 28 * number, line, 21)
        y += 28 * len(lines) + 12
    x, y = left, y + 26
    for label in labels:
        pill = write(axes, x + 14, y, label, 21, "white")
        width = pill.get_window_extent().width + 28
        if x + width > WIDTH_PX - 32:
            x, y = left, y + 46
            pill.set_position((x + 14, y))
        box(axes, x, y - 18, width, 36, INK, INK, radius=18)
        x += width + 8


def write(axes: Axes, x: float, y: float, words: str, px: float, colour: str = INK, va="center_baseline", **style):
    return axes.text(x, y, words, size=px * 72 / DPI, color=colour, va=va, zorder=4, **style)


def box(axes: Axes, x: float, y: float, width: float, height: float, fill: str, edge: str, radius: float = 10):
    style = f"round,pad=0,rounding_size={radius}"
    return axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc=fill, ec=edge, lw=1.4, zorder=3))


def arrow(axes: Axes, start: float, stop: float, y: float, colour: str) -> None:
    style = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (stop, y), (start, y), arrowprops={**style, "color": colour})


if __name__ == "__main__":
    main()
