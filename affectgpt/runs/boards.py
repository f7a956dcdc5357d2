"""wandb and TensorBoard for everything that makes a number: what is shown there, and where its media lie.

All media are files in the folder of the run (`wandb/<run>/files/media`, `tensorboard/`), so an offline run can be
copied to another machine and synchronized there. wandb keeps the media of its tables in the home folder instead,
under absolute paths; rows of text are therefore logged as HTML, and pictures and videos as media of their own.
"""

from __future__ import annotations

import html
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.config import LoggingConfig
from affectgpt.runtime import InputError, MissingLibrary, redacted, write_text_atomic

MODES = ("disabled", "offline", "online")
_VIDEOS = (".mp4", ".webm")  # what wandb shows without converting it


@contextmanager
def boards(
    logging: LoggingConfig, folder: Path, *, job: str, group: str, tags: Sequence[str] = (), config: Mapping[str, Any]
) -> Iterator[list[Any]]:
    """The boards that the settings ask for, closed at the end; none by default.

    Args:
        job: what makes the numbers: eval, benchmark, compare, study, annotate.
        group: of runs that belong together, unless the settings name another.
    """
    found: list[Any] = []
    if logging.wandb != "disabled":
        found.append(WandbBoard(start_wandb(logging, folder, job=job, group=group, tags=tags, config=config)))
    if logging.tensorboard:
        found.append(TensorBoard(tensorboard_writer()(str(folder / "tensorboard" / job))))
    try:
        yield found
    finally:
        for board in found:
            board.close()


def start_wandb(
    logging: LoggingConfig, folder: Path, *, job: str, group: str, tags: Sequence[str], config: Mapping[str, Any]
) -> Any:
    """A wandb run in `folder`; a second one of the same job there continues it.

    Raises:
        InputError: an unknown mode.
    """
    if logging.wandb not in MODES:
        raise InputError(f"logging.wandb={logging.wandb}: expected one of {list(MODES)}")
    import wandb

    id_file = folder / ("wandb_id.txt" if job.startswith("train") else f"wandb_id_{job}.txt")
    run_id = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else secrets.token_hex(4)
    write_text_atomic(id_file, run_id + "\n")
    return wandb.init(
        project=logging.project,
        name=folder.name,
        id=run_id,
        group=logging.group or group,
        job_type=job,
        tags=list(dict.fromkeys(tag[:64] for tag in (*tags, *logging.tags) if tag)),  # wandb takes up to 64 characters
        resume="allow",
        mode=logging.wandb,
        dir=str(folder),
        config=redacted(dict(config)),
        settings=wandb.Settings(console="off", silent=True),
    )


def tensorboard_writer() -> Any:
    """The class of TensorBoard's writer.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingLibrary(
            "logging.tensorboard=true needs tensorboard: pip install 'affectgpt[tensorboard]'"
        ) from error
    return SummaryWriter


class WandbBoard:
    """Figures, rows of text, pictures and videos of a wandb run."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def figures(self, values: Mapping[str, float], step: int = 0) -> None:
        self.run.log(dict(values), step=step)

    def rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int = 0) -> None:
        import wandb

        self.run.log({name: wandb.Html(html_table(columns, rows), inject=False)}, step=step, commit=False)

    def pictures(self, name: str, pictures: Mapping[str, Path | np.ndarray], step: int = 0) -> None:
        """Files, or uint8 [H,W,3], by caption."""
        import wandb

        shown = [
            wandb.Image(str(picture) if isinstance(picture, Path) else picture, caption=caption)
            for caption, picture in pictures.items()
        ]
        if shown:
            self.run.log({name: shown}, step=step, commit=False)

    def videos(self, name: str, files: Mapping[str, str], step: int = 0) -> None:
        """Files by caption; wandb copies them into the run. Other formats than mp4 and webm are left out."""
        import wandb

        shown = [
            wandb.Video(file, caption=caption)
            for caption, file in files.items()
            if file.lower().endswith(_VIDEOS) and Path(file).is_file()
        ]
        if shown:
            self.run.log({name: shown}, step=step, commit=False)

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """The same for TensorBoard, which shows no videos."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def figures(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int = 0) -> None:
        # TensorBoard renders Markdown, in which HTML passes through its own sanitizer; text is escaped all the same.
        self.writer.add_text(name, markdown_table(columns, rows), step)

    def pictures(self, name: str, pictures: Mapping[str, Path | np.ndarray], step: int = 0) -> None:
        from PIL import Image

        for caption, picture in pictures.items():
            image = np.asarray(Image.open(picture).convert("RGB")) if isinstance(picture, Path) else picture
            self.writer.add_image(f"{name}/{caption}", image, step, dataformats="HWC")

    def videos(self, name: str, files: Mapping[str, str], step: int = 0) -> None:
        """Not shown."""

    def close(self) -> None:
        self.writer.close()


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a table of escaped text.

    >>> html_table(["id"], [["<b>"]]).partition("<tr>")[2]
    '<th>id</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """
    lines = [("th", columns), *(("td", row) for row in rows)]
    body = "".join(f"<tr>{''.join(f'<{tag}>{_cell(cell)}</{tag}>' for cell in row)}</tr>" for tag, row in lines)
    return f'<meta charset="utf-8"><table border="1" cellpadding="4" style="border-collapse:collapse">{body}</table>'


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a Markdown table of escaped text.

    >>> print(markdown_table(["id", "n"], [["a|b", 1]]))
    | id | n |
    |---|---|
    | a&#124;b | 1 |
    """
    lines = [columns, *rows]
    texts = ["| " + " | ".join(_cell(cell).replace("|", "&#124;") for cell in row) + " |" for row in lines]
    return "\n".join([texts[0], "|" + "---|" * len(columns), *texts[1:]])


def _cell(value: object) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    return html.escape("" if value is None else str(value)).replace("\n", "<br>")
