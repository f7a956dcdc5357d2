"""Commands that are killed, stopped, doubled or short of disk: is anything lost, doubled or different?

    python benchmarks/kills.py                                        # everything, 100 times each
    python benchmarks/kills.py --what infer --how kill --n 20 --seed 7

`--what`: a cache build, infer.py on a folder with `out=`, annotation by a served model. `--how`:

- kill: SIGKILL at a random moment, up to five times in a row; then the command is repeated until it ends.
- term: the same with SIGTERM to the process group.
- full: a limit on the size of files, as a full disk, anywhere below the size of the largest file. Expected: one
  message, exit code 2, and after the limit is gone a complete result.
- readonly: a folder without permission to write (once; as root without the capability to override permissions).
  Expected: one message, exit code 2.
- two: two processes at once on one output. Expected: each ends with 0 or is refused by name.

Every trial ends with a comparison with an undisturbed run: cached states bit for bit, the predictions file byte for
byte, records without times, the rows of every file. What was in a file after a signal must still be there at the end.
Processes are forked from one that has imported everything, so that moments are those of the work. For annotation the
server counts requests: `repeated` are those that it got more than once, per signal.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":  # not in the processes that decode media for annotation, which import this file, too
    from affectgpt import config as conf
    from affectgpt.annotate.record import record_from_row
    from affectgpt.annotate.run import run_annotation
    from affectgpt.cache.build import run_build
    from affectgpt.cache.care import stores
    from affectgpt.cli import compose
    from affectgpt.inference import answers, loading, prediction, vllm  # noqa: F401
    from affectgpt.inference.infer import run_inference
    from affectgpt.runtime import UserError, quiet_libraries, set_up_logging
    from affectgpt.schema import Sample, write_jsonl
    from affectgpt.training.stages import run_stage
    from tests.annotate.conftest import served, settings
    from tests.annotate.conftest import write_clips as write_sounds
    from tests.chat.chat_server import ChatServer, fill_in
    from tests.conftest import LABELS, make_train_config
    from tests.data.conftest import write_clip
    from tests.models import tiny

N_CLIPS = 24
SIGNALS_PER_TRIAL = 5
IN_FLIGHT = 16  # requests of annotation
CAP_DAC_OVERRIDE = 1  # capabilities(7)
REFUSED = 2
HOW = ("kill", "term", "full", "readonly", "two")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--how", nargs="*", default=list(HOW), choices=HOW)
    parser.add_argument("--n", type=int, default=100, help="signals, or trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    quiet_libraries()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # for `readonly`
        write_clips(folder / "clips")
        for what in options.what:
            command = COMMANDS[what](folder / what)
            for how in options.how:
                rng = random.Random(f"{options.seed} {what} {how}")
                rows.append({"what": what, "how": how, **campaign(command, how, options.n, rng)})
                print(json.dumps(rows[-1]), flush=True)
            command.close()
    print(f"{'':<18}{'tried':>8}{'held':>8}{'failed':>8}")
    for row in rows:
        print(f"{row['what'] + ' ' + row['how']:<18}{row['tried']:>8}{row['held']:>8}{row['failed']:>8}")
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(row["failed"] for row in rows))


def write_clips(folder: Path) -> None:
    """Clips, a manifest with subtitles, and one with labels and descriptions for training."""
    folder.mkdir()
    samples = []
    for number in range(N_CLIPS):
        write_clip(folder / f"clip{number:02d}.mp4", seed=number)
        samples.append(Sample(f"clip{number:02d}", f"clip{number:02d}.mp4", subtitle=f"I told you {number} times."))
    write_jsonl(folder / "clips.jsonl", samples)
    labels, description = LABELS[0], "The person looks happy."
    write_jsonl(folder / "train.jsonl", [replace(each, labels=labels, description=description) for each in samples])


# ---- commands --------------------------------------------------------------------------------------------------------


class Command:
    """A command with its outputs: run it with `out`, and read what it made."""

    largest_bytes: int  # of the largest file of an undisturbed run
    duration_s: float

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clips = folder.parent / "clips"
        folder.mkdir(exist_ok=True)
        self.prepare()
        for _ in range(2):  # the first one warms up
            out = folder / f"undisturbed{_}"
            start = time.monotonic()
            code, said = Started(self, out).wait()
            assert code == 0, said
            self.duration_s = time.monotonic() - start
        self.expected = self.outcome(out)
        self.largest_bytes = max(path.stat().st_size for path in out.rglob("*") if path.is_file())

    def prepare(self) -> None:
        """Make what the command needs."""

    def run(self, out: Path) -> int:
        raise NotImplementedError

    def outcome(self, out: Path) -> dict[str, Any]:
        """What must not depend on whether the run was disturbed."""
        raise NotImplementedError

    def kept(self, out: Path) -> Counter[str]:
        """What is complete in the output now, and must be there at the end exactly as often."""
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """More to report of the trials since the last call."""
        return {}

    def close(self) -> None:
        """End what `prepare` started."""


class CacheBuild(Command):
    def prepare(self) -> None:
        self.base = tiny.write_base_models(self.folder / "base")

    def run(self, out: Path) -> int:
        train = make_train_config(self.base, self.clips / "clips.jsonl", out)
        for sources in (train.data.coarse, train.data.fine):
            sources[0].split = None
        train.data.test = []
        return run_build(conf.CacheConfig(train.model, train.data, train.paths, n_processes=1, device="cpu"))

    def outcome(self, out: Path) -> dict[str, Any]:
        found = {"states": self.kept(out), "records": 0, "damaged": []}
        for store in stores(out / "cache"):
            found["records"] += sum(path.stat().st_size // 72 for path in store.folder.glob("*.index"))
            found["damaged"] += store.damaged()
        return found

    def kept(self, out: Path) -> Counter[str]:
        found: Counter[str] = Counter()
        for store in stores(out / "cache"):
            for sha256 in store:
                states, facts = store.read(sha256) or (None, None)
                digest = "damaged" if states is None else hashlib.sha256(states.numpy().tobytes()).hexdigest()
                found[f"{store.folder.name} {sha256} {digest} {json.dumps(facts)}"] += 1
        return found


class Inference(Command):
    def prepare(self) -> None:
        base = tiny.write_base_models(self.folder / "base")
        train = make_train_config(base, self.clips / "train.jsonl", self.folder, n_validation=0)
        train.data.coarse[0].split, train.data.test = None, []
        self.checkpoint = run_in_child(lambda: str(run_stage(train).run))

    def run(self, out: Path) -> int:
        config = conf.InferConfig(checkpoint=self.checkpoint, device="cpu")
        config.input = [str(self.clips)]
        config.generate = conf.GenerateConfig(max_new_tokens=8, batch_size=3)
        config.paths = conf.PathsConfig(cache=str(self.folder / "cache"), runs=str(self.folder / "runs"))
        config.out = str(out / "p.jsonl")
        return run_inference(config)

    def outcome(self, out: Path) -> dict[str, Any]:
        names = sorted(path.name for path in out.iterdir() if path.name != "stderr.txt")
        return {"bytes": (out / "p.jsonl").read_bytes(), "files": names}

    def kept(self, out: Path) -> Counter[str]:
        return lines(out / "p.jsonl")


class Annotation(Command):
    """Three text steps by a served model, 16 requests in flight, 0.2 s an answer."""

    def prepare(self) -> None:
        self.log = self.folder / "requests.txt"
        self.server, self.url = started_server(self.log)
        self.sounds = write_sounds(self.folder / "sounds", N_CLIPS)
        self.read_to = 0

    def run(self, out: Path) -> int:
        steps = (
            "{name: transcribe}, {name: disambiguate, needs: [transcribe]}, "
            "{name: merge, needs: [transcribe, disambiguate]}, {name: labels, needs: [merge]}"
        )
        more = ("pipeline.name=kills", f"pipeline.steps=[{steps}]", f"annotator.concurrency={IN_FLIGHT}")
        return run_annotation(compose("annotate", settings(self.sounds, out, *served(self.url, *more))))

    def outcome(self, out: Path) -> dict[str, Any]:
        rows, stored, manifest = (
            [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]
            for name in ("records.jsonl", "store/answers.jsonl", "manifest.jsonl")
        )
        return {
            "records": sorted((plain(row) for row in rows), key=lambda row: row["id"]),
            "answers": sorted((row["key"], row["text"]) for row in stored),
            "failed": (out / "failed.jsonl").read_text(encoding="utf-8"),
            "ids": sorted(row["id"] for row in manifest),
        }

    def kept(self, out: Path) -> Counter[str]:
        return lines(out / "records.jsonl") + lines(out / "store" / "answers.jsonl")

    def figures(self) -> dict[str, Any]:
        text = self.log.read_text().split()
        new, self.read_to = text[self.read_to :], len(text)
        return {"requests": len(new)}

    def close(self) -> None:
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)


COMMANDS: dict[str, Callable[[Path], Command]] = {"cache": CacheBuild, "infer": Inference, "annotate": Annotation}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A record without times."""
    found = dict(vars(record_from_row(row)))
    found["provenance"] = [(note.step, note.model, note.prompt_sha256, note.parameters) for note in found["provenance"]]
    return json.loads(json.dumps(found, default=str))


def lines(path: Path) -> Counter[str]:
    """The complete lines of a file, a look that may come between two writes."""
    text = path.read_bytes() if path.exists() else b""
    return Counter(line.decode() for line in text.split(b"\n")[:-1])


def started_server(log: Path) -> tuple[int, str]:
    """(process, URL) of a server that answers after 0.2 s and writes the hash of each request to a file."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, os.read(reading, 100).decode()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def answer(body: dict[str, Any]) -> str:
        os.write(file, hashlib.sha256(json.dumps(body).encode()).hexdigest().encode() + b"\n")
        return fill_in(body)

    with ChatServer(answer) as server:
        server.delay_s = 0.2
        os.write(writing, server.url.encode())
        while os.getppid() != 1:
            server.requests.clear()
            time.sleep(1)
    os._exit(0)


# ---- trials ----------------------------------------------------------------------------------------------------------


def campaign(command: Command, how: str, n: int, rng: random.Random) -> dict[str, Any]:
    """Trials until `n` signals have been sent, or `n` trials; returns the figures."""
    if how == "readonly":
        n = min(n, 1)
    tried = failed = trial = 0
    notes: list[str] = []
    codes: Counter[str] = Counter()
    command.figures()
    n_finished = 0
    while tried < n:
        out = command.folder / f"{how}{trial}"
        trial += 1
        sent, found = TRIALS[how](command, out, rng, min(SIGNALS_PER_TRIAL, n - tried), codes)
        tried += sent
        failed += bool(found)
        notes += [f"{out.name}: {text}" for text in found]
        n_finished += how != "readonly"
    more = command.figures()
    if how in ("kill", "term") and "requests" in more:
        needed = n_finished * len(command.expected["answers"])
        more["repeated per signal"] = round((more["requests"] - needed) / max(1, tried), 2)
    return {"tried": tried, "held": tried - failed, "failed": failed, "exit codes": dict(codes), **more, "notes": notes}


def signalled(
    command: Command, out: Path, rng: random.Random, n: int, codes: Counter[str], number: signal.Signals
) -> tuple[int, list[str]]:
    found, sent, before = [], 0, Counter[str]()
    for _ in range(n):  # until the command ends before its signal
        process = Started(command, out)
        time.sleep(rng.uniform(0, 0.8 * command.duration_s))
        process.signal(number)
        code, said = process.wait()
        if code == 0:
            break
        codes[str(code)] += 1
        sent += 1
        # Processes that decode media may complain that the killed one is gone.
        if code not in (-number, 128 + number) or (number == signal.SIGTERM and "Traceback" in said):
            found.append(f"exit code {code}: {said[-1500:]}")
        now = command.kept(out)
        if lost := before - now:
            found.append(f"{lost.total()} rows are gone after the signal: {next(iter(lost)):.200}")
        before = now
    return sent, found + finish(command, out, before)


def finish(command: Command, out: Path, before: Counter[str]) -> list[str]:
    """Repeat the command until it ends; what is then lost, doubled or different."""
    code, said = Started(command, out).wait()
    if code != 0:
        return [f"the last run ended with {code}: {said[-1500:]}"]
    now, result = command.kept(out), command.outcome(out)
    found = [f"{key} differs" for key in result if result[key] != command.expected[key]]
    if lost := before - now:
        found.append(f"{lost.total()} rows are gone")
    if doubled := [row for row, n in now.items() if n > 1]:
        found.append(f"{len(doubled)} rows are doubled")
    return found


def full(command: Command, out: Path, rng: random.Random, n: int, codes: Counter[str]) -> tuple[int, list[str]]:
    limit = rng.randrange(command.largest_bytes)
    code, said = Started(command, out, limit_bytes=limit).wait()
    codes[str(code)] += 1
    found = [] if code == 0 else one_message(code, said)
    return 1, found + finish(command, out, command.kept(out))


def readonly(command: Command, out: Path, rng: random.Random, n: int, codes: Counter[str]) -> tuple[int, list[str]]:
    code, said = Started(command, out, is_readonly=True).wait()
    codes[str(code)] += 1
    found = one_message(code, said)
    out.chmod(0o755)
    return 1, found + finish(command, out, Counter())


def two(command: Command, out: Path, rng: random.Random, n: int, codes: Counter[str]) -> tuple[int, list[str]]:
    processes = [Started(command, out)]
    time.sleep(rng.uniform(0, command.duration_s / 2))
    processes.append(Started(command, out, stderr="stderr2.txt"))
    found = []
    for process in processes:
        code, said = process.wait()
        codes[str(code)] += 1
        if code != 0:
            found += one_message(code, said)
            found += [] if "by process" in said else [f"refused without a name: {said[-300:]}"]
    (out / "stderr2.txt").unlink()
    return 1, found + finish(command, out, command.kept(out))


def one_message(code: int, said: str) -> list[str]:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == REFUSED and len(errors) == 1 and "Traceback" not in said:
        return []
    return [f"exit code {code}, {len(errors)} messages: {said[-1500:]}"]


TRIALS: dict[str, Callable[..., tuple[int, list[str]]]] = {
    "kill": lambda *arguments: signalled(*arguments, signal.SIGKILL),
    "term": lambda *arguments: signalled(*arguments, signal.SIGTERM),
    "full": full,
    "readonly": readonly,
    "two": two,
}


class Started:
    """A forked command, the leader of its process group; UserError ends it as the command line would."""

    def __init__(
        self,
        command: Command,
        out: Path,
        *,
        limit_bytes: int | None = None,
        is_readonly: bool = False,
        stderr: str = "stderr.txt",
    ) -> None:
        out.mkdir(exist_ok=True)
        self.stderr = out / stderr
        self.pid = os.fork()
        if self.pid:
            while os.getpgid(self.pid) != self.pid:  # only a moment: until the child leads its group
                time.sleep(0.001)
            return
        code = 1
        try:
            os.setpgid(0, 0)
            file = os.open(self.stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            if is_readonly:
                out.chmod(0o555)
                drop(CAP_DAC_OVERRIDE)
            if limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            set_up_logging()
            code = command.run(out)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = REFUSED
        except BaseException:  # noqa: BLE001 - a forked process must never return into the loop of its parent
            traceback.print_exc()
        finally:
            os._exit(code)

    def signal(self, number: signal.Signals) -> None:
        if number == signal.SIGKILL:
            os.kill(self.pid, number)
        else:
            os.killpg(self.pid, number)

    def wait(self) -> tuple[int, str]:
        """(exit code, or minus the number of the signal; what it wrote)."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self.stderr.read_text(encoding="utf-8", errors="replace")


def drop(capability: int) -> None:
    """Give up one of root's capabilities in this process; without root there is nothing to give up."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3; effective is first
    libc.capget(header, sets)
    sets[0] &= ~(1 << capability)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


def run_in_child(function: Callable[[], str]) -> str:
    """`function()` in a forked process, so that this one keeps no threads."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.write(writing, function().encode())
            code = 0
        except BaseException:  # noqa: BLE001 - as in `Started`
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    result = os.read(reading, 4096).decode()
    assert os.waitpid(pid, 0)[1] == 0
    return result


if __name__ == "__main__":
    sys.exit(main())
