"""Training that is killed again and again: does it end with what an uninterrupted run ends with?

    python benchmarks/kills_training.py                      # 100 kills, 100 stops of the process group
    python benchmarks/kills_training.py --kills 20 --seed 7

A tiny model with real encoders, clips and loader processes trains 36 steps with validation and checkpoints. Once it
runs undisturbed. Then each trial starts it in a process group of its own, ends it at a random moment, resumes it, and
so on up to five times; the last process completes the run. SIGKILL goes to the training process alone (its loader
processes notice), SIGTERM to the group. After every signal all complete checkpoints are compared with their checksums;
after every trial the last weights, `best/`, `generations/` and `metrics.jsonl` (except for speeds and times) with those
of the undisturbed run.

Processes are forked from one that has imported everything, so that the moment of a signal is one of training, not of
`import torch`. The validation score is a number that the answers decide: that of an untrained model is always 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from affectgpt.config import TrainConfig  # noqa: E402
from affectgpt.runs import BEST, COMPLETE, changed_files, complete_checkpoints, runs_named  # noqa: E402
from affectgpt.runtime import quiet_libraries, set_up_logging  # noqa: E402
from affectgpt.schema import Sample, write_jsonl  # noqa: E402
from affectgpt.training.stages import run_stage  # noqa: E402
from affectgpt.training.validation import Validation  # noqa: E402
from tests.conftest import LABELS, make_train_config  # noqa: E402
from tests.data.conftest import write_clip  # noqa: E402
from tests.models import tiny  # noqa: E402

WALL_CLOCK = {"samples_per_s", "tokens_per_s", "data_wait_share", "train_runtime", "train_samples_per_second",
              "train_steps_per_second"}  # fmt: skip
KILLS_PER_TRIAL = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs")
    parser.add_argument("--stops", type=int, default=100, help="SIGTERMs to the process group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        figures = {}
        for name, number, n in (("SIGKILL", signal.SIGKILL, options.kills), ("SIGTERM", signal.SIGTERM, options.stops)):
            figures[name] = campaign(world, number, n, random.Random(f"{options.seed} {name}"))
            print(json.dumps({name: figures[name]}, indent=1), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(any(found["differences"] for found in figures.values()))


@dataclass
class World:
    """Base models, clips, and the outcome and duration of a run that nothing disturbed."""

    folder: Path
    base: dict[str, Path] = field(init=False)
    expected: dict[str, Any] = field(init=False)
    duration_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.base = tiny.write_base_models(self.folder / "base")
        samples = []
        for number in range(12):
            write_clip(self.folder / f"clip{number}.mp4", seed=number)
            labels = LABELS[number % len(LABELS)]
            description = f"The person looks {labels[0]}."
            samples.append(Sample(f"clip{number}", f"clip{number}.mp4", description=description, labels=labels))
        write_jsonl(self.folder / "clips.jsonl", samples)
        for folder in ("warm-up", "undisturbed"):  # the first one fills the cache of encoder states
            start = time.monotonic()
            code, said = started(self.config(self.folder / folder, resume=False)).wait()
            assert code == 0, said
            self.duration_s = time.monotonic() - start
        self.expected = outcome(self.folder / "undisturbed")

    def config(self, folder: Path, *, resume: bool) -> TrainConfig:
        config = make_train_config(
            self.base, self.folder / "clips.jsonl", folder, epochs=12, log_every=2, save_every=4, validate_every=3,
            keep_last=2, n_workers=2,
        )  # fmt: skip
        config.data.coarse[0].split, config.data.test = None, []
        config.paths.cache = str(self.folder / "cache")
        config.resume = resume
        return config


def campaign(world: World, number: signal.Signals, n: int, rng: random.Random) -> dict[str, Any]:
    """Trials until `n` signals have been sent; returns the figures."""
    moments: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    differences: list[str] = []
    n_sent = n_trials = 0
    while n_sent < n:
        folder = world.folder / f"{number.name}-{n_trials}"
        n_trials += 1
        for _ in range(min(KILLS_PER_TRIAL, n - n_sent)):  # until the run ends before its signal
            process = started(world.config(folder, resume=bool(runs_named(folder / "runs", "coarse"))))
            time.sleep(rng.uniform(0, 0.5 * world.duration_s))  # a resumed run is shorter
            when = moment(folder)
            process.signal(number)
            code, said = process.wait()
            if code == 0:
                break
            moments[when] += 1
            n_sent += 1
            codes[str(code)] += 1
            # A loader process may complain that the killed process is gone.
            if code not in (-number, 128 + number) or (number == signal.SIGTERM and "Traceback" in said):
                differences.append(f"{folder.name}: exit code {code}\n{said[-2000:]}")
            differences += damaged(folder)
        code, said = started(world.config(folder, resume=bool(runs_named(folder / "runs", "coarse")))).wait()
        if code != 0:
            differences.append(f"{folder.name}: resuming ended with {code}\n{said[-2000:]}")
            continue
        found = outcome(folder)
        differences += [f"{folder.name}: {key} differs" for key in found if found[key] != world.expected[key]]
    return {
        "signals": n_sent, "trials": n_trials, "uninterrupted_s": round(world.duration_s, 1), "moments": dict(moments),
        "exit_codes": dict(codes), "differences": differences,
    }  # fmt: skip


def moment(folder: Path) -> str:
    """How far the run is when the signal is sent."""
    runs = runs_named(folder / "runs", "coarse")
    if not runs:
        return "before the run folder"
    return "with a checkpoint" if complete_checkpoints(runs[-1]) else "before the first checkpoint"


def damaged(folder: Path) -> list[str]:
    """What is wrong with the checkpoints that are marked as complete."""
    found = []
    for run in runs_named(folder / "runs", "coarse"):
        folders = [*complete_checkpoints(run), *([run / BEST] if (run / BEST / COMPLETE).exists() else [])]
        found += [f"{path}: {text}" for path in folders for text in changed_files(path)]
        if not (run / BEST).exists() and list((run / "generations").glob("step-*")) and complete_checkpoints(run)[1:]:
            found.append(f"{run} has no best checkpoint")
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on whether the run was disturbed."""
    run = runs_named(folder / "runs", "coarse")[-1]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "weights": sha256(complete_checkpoints(run)[-1] / "trained.safetensors"),
        "best": (run / BEST / COMPLETE).read_text(encoding="utf-8"),
        "best weights": sha256(run / BEST / "trained.safetensors"),
        "metrics.jsonl": [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows],
        "generations": {path.name: sha256(path) for path in sorted((run / "generations").iterdir())},
        "files": sorted(path.name for path in run.iterdir() if not path.name.startswith("checkpoint-")),
        "loss": json.loads((run / "run.json").read_text(encoding="utf-8"))["loss"],
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Started:
    """A forked training process, the leader of its process group."""

    pid: int
    stderr: Path

    def signal(self, number: signal.Signals) -> None:
        if number == signal.SIGKILL:
            os.kill(self.pid, number)
        else:
            os.killpg(self.pid, number)

    def wait(self) -> tuple[int, str]:
        """(exit code, or minus the number of the signal; what it wrote to stderr)."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self.stderr.read_text(encoding="utf-8", errors="replace")


def started(config: TrainConfig) -> Started:
    stderr = Path(config.paths.runs).with_name("stderr.txt")
    stderr.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        while os.getpgid(pid) != pid:  # only a moment: until the child leads its group
            time.sleep(0.001)
        return Started(pid, stderr)
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        set_up_logging()
        with scores_from_answers():
            code = run_stage(config).exit_code
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - a forked process must never return into the loop of its parent
        traceback.print_exc()
    finally:
        os._exit(code)


@contextmanager
def scores_from_answers() -> Iterator[None]:
    """Let the score be a number that the answers decide, so that the best step is any step."""
    validate = Validation.__call__

    def scored(self: Validation, model: Any, step: int) -> dict[str, float]:
        scores = validate(self, model, step)
        answers = (self._folder / f"step-{step:06d}.jsonl").read_bytes()
        return {**scores, "f_s": int(hashlib.sha256(answers).hexdigest()[:6], 16) / 16**6}

    Validation.__call__ = scored  # type: ignore[method-assign]
    yield


if __name__ == "__main__":
    sys.exit(main())
