"""Plots and frames as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from affectgpt.media import MediaError, read_frames
from affectgpt.plots import picture
from affectgpt.report.html import Html, el, join
from affectgpt.schema import Sample

FRAME_PX = 176
"""Width of a frame in the report."""


def plot(draw: Callable[..., None], *values: Any, alt: str, **options: Any) -> Html:
    """The picture that a function of `affectgpt.plots` draws, as an SVG image.

    Args:
        alt: what the picture shows, for readers who do not see it.
    """
    drawn = picture(draw, *values, **options)
    return el("img", src=_data_uri("image/svg+xml", drawn.svg), alt=alt, class_="plot")


def frames(sample: Sample | None, n_frames: int) -> Html:
    """Evenly spaced frames of a clip, each with its time; a sentence instead if it has none."""
    if sample is None or sample.video is None:
        return el("p", "No video.", class_="quiet")
    try:
        found = read_frames(sample.video, n_frames)
    except MediaError as error:
        return el("p", f"No frames: {error}", class_="quiet")
    pictures = []
    for image, time_s in zip(found.images, found.times_s, strict=True):
        small = Image.fromarray(image)
        small.thumbnail((FRAME_PX, 2 * FRAME_PX))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=70, optimize=True)
        alt = f"Clip {sample.id} at {time_s:.1f} seconds"
        width, height = small.size
        uri = _data_uri("image/jpeg", file.getvalue())
        pictures.append(
            el("figure", el("img", src=uri, alt=alt, width=width, height=height), el("figcaption", f"{time_s:.1f} s"))
        )
    return el("div", join(*pictures), class_="frames")


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
