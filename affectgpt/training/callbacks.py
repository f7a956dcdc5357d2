"""Callbacks of the training loop: progress bar, metrics.jsonl, wandb, TensorBoard, marking and removing checkpoints,
and a clean stop on SIGTERM and Ctrl-C."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from affectgpt.config import LoggingConfig, TrainConfig
from affectgpt.journal import append_rows
from affectgpt.media import NoVideoStream, read_frames
from affectgpt.runs import COMPLETE, complete_checkpoints, mark_complete, remove_leftovers
from affectgpt.runs.boards import TensorBoard, WandbBoard, start_wandb, tensorboard_writer
from affectgpt.runtime import write_text_atomic
from affectgpt.schema import Prediction, Sample

log = logging.getLogger("affectgpt")

Logs = Mapping[str, float]
Shown = tuple[Sample, Prediction, Any]
"""A sample, its prediction, and frames uint8 [T,H,W,3] or None."""
_SHOWN = {
    "loss": "loss {:.3f}",
    "learning_rate": "lr {:.1e}",
    "samples_per_s": "{:.1f} samples/s",
}


class ProgressBar(TrainerCallback):
    """One bar with the latest loss, learning rate, speed and validation score, whose name is `metric`."""

    def __init__(self, title: str, metric: str) -> None:
        self._title = title
        self._metric = metric
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self._title, disable=not state.is_world_process_zero
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        for key, form in _SHOWN.items():
            if key in (logs or {}):
                self._shown[key] = form.format(logs[key])
        if logs and "eval_score" in logs:
            self._shown["eval_score"] = f"{self._metric} {100 * logs['eval_score']:.1f}"
        self._bar.set_postfix_str(", ".join(self._shown.values()), refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


class MetricsFile(TrainerCallback):
    """metrics.jsonl: one line per log event. A run that starts or resumes first restores the lines of its checkpoint,
    so that what was logged after it is dropped, and what a power failure took away comes back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            rows = [{"step": row["step"], **row} for row in state.log_history]  # the step first, as in `on_log`
            write_text_atomic(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            append_rows(self._path, [{"step": state.global_step, **(logs or {})}])


class BoardLog(TrainerCallback):
    """Scalars, and sample generations and rollouts, for a dashboard that `_open` starts in the first process."""

    _board: WandbBoard | TensorBoard | None = None

    def _open(self, step: int) -> WandbBoard | TensorBoard:
        """The dashboard of a run that starts or resumes after `step`."""
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._board = self._open(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        if self._board is not None:
            self._board.figures({_grouped(key): value for key, value in (logs or {}).items()}, state.global_step)

    def show_generations(self, step: int, rows: Sequence[Shown]) -> None:
        """Texts, middle frames and, where the dashboard plays them, videos of validation clips."""
        if self._board is not None:
            _show_generations(self._board, step, rows)

    def show_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]], frames: Mapping[str, Any]) -> None:
        """Answers with their rewards and advantage, frames uint8 [H,W,3] by id, and videos as above."""
        if self._board is not None:
            _show_rollouts(self._board, step, rows, frames)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._board is not None:
            self._board.close()


class TensorBoardLog(BoardLog):
    """For TensorBoard, under the run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer_class = tensorboard_writer()

    def _open(self, step: int) -> TensorBoard:
        # TensorBoard hides events after the step that a run resumes from.
        return TensorBoard(self._writer_class(str(self._folder), purge_step=step + 1))


class WandbLog(BoardLog):
    """For wandb.

    The settings say "online" or "offline"; offline needs no account and can be synchronized later. The run folder
    stores the wandb id, so that a resumed run continues the same wandb run.

    Args:
        folder: the run folder.
    """

    def __init__(self, logging: LoggingConfig, folder: Path, config: Mapping[str, Any], **about: Any) -> None:
        self._start = partial(start_wandb, logging, folder, config=config, **about)

    def _open(self, step: int) -> WandbBoard:
        return WandbBoard(self._start())


def _show_generations(board: WandbBoard | TensorBoard, step: int, rows: Sequence[Shown]) -> None:
    columns = ["id", "subtitle", "used", "generated", "labels", "true description", "true labels"]
    texts = [
        (
            sample.id,
            sample.subtitle,
            " ".join(prediction.modalities),
            prediction.text,
            ", ".join(prediction.labels or ()),
            sample.description,
            ", ".join(sample.labels or ()),
        )
        for sample, prediction, _ in rows
    ]
    board.rows("generations", columns, texts, step)
    middle = {sample.id: frames[len(frames) // 2] for sample, _, frames in rows if frames is not None}
    board.pictures("generations/frames", middle, step)
    board.videos("generations/videos", {sample.id: sample.video for sample, _, _ in rows if sample.video}, step)


def _show_rollouts(
    board: WandbBoard | TensorBoard, step: int, rows: Sequence[Mapping[str, Any]], frames: Mapping[str, Any]
) -> None:
    names = list(rows[0]["rewards"])
    texts = [
        (row["id"], row["text"], ", ".join(row["truth"]), *(row["rewards"][name] for name in names), row["reward"],
         row["advantage"])
        for row in rows
    ]  # fmt: skip
    board.rows("rollouts", ["id", "text", "truth", *names, "reward", "advantage"], texts, step)
    board.pictures("rollouts/frames", frames, step)
    board.videos("rollouts/videos", {row["id"]: row["video"] for row in rows if row["video"]}, step)


def shown_frames(video: str | None) -> Any:
    """Three frames of a clip, uint8 [3, H, W, 3]; None without a video, or of a file that holds only sound."""
    try:
        return None if video is None else read_frames(video, 3).images
    except NoVideoStream:
        return None


def shown_generations(callbacks: Sequence[Any]) -> Callable[[int, Sequence[Shown]], None] | None:
    """Shows answers to validation clips on the dashboards; None = there are none."""
    boards = [board for board in callbacks if isinstance(board, BoardLog)]

    def show(step: int, rows: Sequence[Shown]) -> None:
        for board in boards:
            board.show_generations(step, rows)

    return show if boards else None


def shown_rollouts(
    config: TrainConfig, callbacks: Sequence[Any]
) -> Callable[[int, Sequence[Mapping[str, Any]]], None] | None:
    """Shows rows of rollouts.jsonl on the dashboards, at the first step and at steps with a validation; None = none."""
    boards = [board for board in callbacks if isinstance(board, BoardLog)]
    every, n_prompts = config.stage.validate_every, config.logging.n_sample_generations
    if not boards or not n_prompts:
        return None

    def show(step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if step != 1 and step % every:
            return
        ids = list(dict.fromkeys(row["id"] for row in rows))[:n_prompts]
        videos = {row["id"]: row["video"] for row in rows if row["id"] in ids}
        found = {name: shown_frames(video) for name, video in videos.items()}
        frames = {name: images[len(images) // 2] for name, images in found.items() if images is not None}
        for board in boards:
            board.show_rollouts(step, [row for row in rows if row["id"] in ids], frames)

    return show


def _grouped(key: str) -> str:
    """eval_score -> eval/score, loss -> train/loss."""
    return f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint as complete, then removes the oldest ones.

    Checkpoints are written in place, so a folder without the marker is incomplete.

    Args:
        keep_last: number of checkpoints to keep.
        wait: waits until all processes have written their part.
    """

    def __init__(self, run: Path, keep_last: int, wait: Callable[[], None]) -> None:
        self._run = run
        self._keep_last = keep_last
        self._wait = wait

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            remove_leftovers(self._run)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._wait()
        if not state.is_world_process_zero:
            return
        mark_complete(self._run / f"checkpoint-{state.global_step}", f"step {state.global_step}")
        for old in complete_checkpoints(self._run)[: -self._keep_last]:
            # The marker first: a kill during the removal must not leave a folder that looks complete.
            (old / COMPLETE).unlink()
            shutil.rmtree(old)


class StopOnSignal(TrainerCallback):
    """On SIGTERM (from a scheduler, `timeout`, `docker stop`) or Ctrl-C, save after the current step and stop.

    A validation that is due at this step is left to the resumed run, because a scheduler gives little time. A second
    signal ends the process at once, and so does any signal before and after training. Processes agree on the step, so
    that none is left waiting in a collective call.

    Args:
        agree: returns whether a flag is true in any process.
    """

    EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR2: 143}  # noqa: RUF012
    # One stop may arrive twice: `timeout` signals its child and then the group of its child, torchrun forwards a Ctrl-C
    # that its processes have already received from the terminal.
    _ECHO_S = {signal.SIGTERM: 2.0, signal.SIGINT: 0.2, signal.SIGUSR2: 2.0}  # noqa: RUF012

    def __init__(self, agree: Callable[[bool], bool]) -> None:
        self._agree = agree
        self.received: signal.Signals | None = None
        self.stopped = False
        self._training = False
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}
        self._last, self._since = 0, 0.0  # number and time of the last signal

    @property
    def exit_code(self) -> int:
        """For the shell: 0 if training was not stopped, else 128 + the signal (SIGTERM if another process got it)."""
        return self.EXIT_CODES[self.received or signal.SIGTERM] if self.stopped else 0

    def __enter__(self) -> StopOnSignal:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if "SUBMITIT_EXECUTOR" in os.environ:
            numbers.append(signal.SIGUSR2)  # submitit's notice that the time limit is near
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if os.getpid() != self._owner:
            return  # a process that was forked from this one; this one ends it
        now, echo_s = time.monotonic(), self._ECHO_S[signal.Signals(number)]
        if "TORCHELASTIC_RUN_ID" in os.environ:
            echo_s = 2.0
        if number == self._last and now - self._since < echo_s:
            return
        self._last, self._since = number, now
        if not self._training or self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(self.EXIT_CODES[signal.Signals(number)])
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: saving after this step, then stopping (again: stop at once)", file=sys.stderr)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._agree(self.received is not None):
            self.stopped = True
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
