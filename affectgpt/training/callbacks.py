"""What a person sees of a run: a progress bar, metrics.jsonl, wandb, TensorBoard; and a clean stop on SIGTERM."""

from __future__ import annotations

import json
import logging
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from affectgpt.runtime import UserError, append_jsonl_records, write_text_atomic
from affectgpt.schema import Prediction, Sample

log = logging.getLogger("affectgpt")

Logs = Mapping[str, float]
_SHOWN = {
    "loss": "loss {:.3f}",
    "learning_rate": "lr {:.1e}",
    "samples_per_s": "{:.1f} samples/s",
    "eval_f_s": "F_S {:.1f}",
}


class ProgressBar(TrainerCallback):
    """One bar with the latest loss, learning rate, speed and validation score."""

    def __init__(self, title: str) -> None:
        self._title = title
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
                self._shown[key] = form.format(logs[key] * 100 if key == "eval_f_s" else logs[key])
        self._bar.set_postfix_str(", ".join(self._shown.values()), refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


class MetricsFile(TrainerCallback):
    """metrics.jsonl: one line a log event. A resumed run first drops the lines behind the step it goes on from."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            kept = [row for row in append_jsonl_records(self._path) if row["step"] <= state.global_step]
            write_text_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


class TensorBoardLog(TrainerCallback):
    """Scalars for TensorBoard, under the run folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logging.tensorboard=true needs tensorboard: pip install 'affectgpt[tensorboard]'"
            ) from error
        self._folder = folder
        self._writer_class = SummaryWriter

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            # Events behind the step that a resumed run goes on from are hidden by TensorBoard itself.
            self._writer = self._writer_class(str(self._folder), purge_step=state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for key, value in (logs or {}).items():
                self._writer.add_scalar(_grouped(key), value, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._writer.close()


class WandbLog(TrainerCallback):
    """Scalars and a table of sample generations with video, frames and text for wandb.

    Args:
        mode: "online" or "offline"; offline needs no account and can be synchronized later.
        folder: the run folder; the wandb id is kept there, so a resumed run goes on in the same wandb run.
    """

    def __init__(self, mode: str, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._mode = mode
        self._project = project
        self._folder = folder
        self._config = config
        self._run: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        import wandb

        id_file = self._folder / "wandb_id.txt"
        run_id = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else secrets.token_hex(4)
        write_text_atomic(id_file, run_id + "\n")
        self._run = wandb.init(
            project=self._project,
            name=self._folder.name,
            id=run_id,
            resume="allow",
            mode=self._mode,
            dir=str(self._folder),
            config=dict(self._config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.log({_grouped(key): value for key, value in (logs or {}).items()}, step=state.global_step)

    def show_generations(self, step: int, rows: Sequence[tuple[Sample, Prediction, Any]]) -> None:
        """Log a table: id, video, middle frame, what was used, the true and the generated text and labels.

        Args:
            rows: (sample, prediction, frames uint8 [T,H,W,3] or None).
        """
        if self._run is None:
            return
        import wandb

        table = wandb.Table(
            columns=[
                "id",
                "media",
                "frame",
                "subtitle",
                "used",
                "generated",
                "labels",
                "true description",
                "true labels",
            ]
        )
        for sample, prediction, frames in rows:
            table.add_data(
                sample.id,
                wandb.Video(sample.video) if sample.video and sample.video.endswith((".mp4", ".webm")) else None,
                None if frames is None else wandb.Image(frames[len(frames) // 2]),
                sample.subtitle or "",
                " ".join(prediction.modalities),
                prediction.text,
                ", ".join(prediction.labels or ()),
                sample.description or "",
                ", ".join(sample.labels or ()),
            )
        self._run.log({"generations": table}, step=step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.finish()


def _grouped(key: str) -> str:
    """eval_f_s -> eval/f_s, loss -> train/loss."""
    return f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"


class StopOnSignal(TrainerCallback):
    """SIGTERM (a scheduler's notice, `timeout`, `docker stop`): save after the current step and stop.

    All ranks agree on the step through an all-reduce, so that none is left waiting in a collective call.
    """

    EXIT_CODE = 143

    def __init__(self) -> None:
        self.received = False
        self.stopped = False
        self._before: Any = None

    def __enter__(self) -> StopOnSignal:
        self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _receive(self, number: int, frame: object) -> None:
        self.received = True
        print("\nSIGTERM: saving after this step, then stopping", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        received = self.received
        if args.world_size > 1:
            flag = torch.tensor([float(received)], device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            received = bool(flag.item())
        if received:
            self.stopped = True
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
