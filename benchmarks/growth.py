"""Memory, threads and open files over thousands of answered clips: does anything grow?

    python benchmarks/growth.py                       # 5,000 clips: infer.py, and annotation by a served model
    python benchmarks/growth.py --what infer --clips 20000

infer.py answers for clips with a tiny model in one process; annotation asks a local server two questions a clip. A row
is printed for each tenth of the clips, measured from outside (/proc), with the growth from the second tenth to the last
at the end. The clips are one file under many names; each is read, encoded and answered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="*", default=["infer", "annotate"], choices=["infer", "annotate"])
    parser.add_argument("--clips", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for what in options.what:
            folder = Path(name) / what
            folder.mkdir()
            print(f"{what}, {options.clips:,} clips")
            code = (infer if what == "infer" else annotate)(folder, options.clips)
            if code:
                return code
    return 0


def infer(folder: Path, n: int) -> int:
    from affectgpt.schema import Sample, write_jsonl
    from affectgpt.training.stages import run_stage
    from tests.conftest import make_train_config
    from tests.data.conftest import write_clip
    from tests.models import tiny

    base = tiny.write_base_models(folder / "base")
    write_clip(folder / "clip.mp4", seconds=0.3, n_frames=4)
    texts = {"labels": ("happy",), "description": "The person looks happy."}
    write_jsonl(folder / "train.jsonl", [Sample(f"t{number}", "clip.mp4", **texts) for number in range(4)])
    write_jsonl(folder / "clips.jsonl", [Sample(f"c{number:06d}", "clip.mp4") for number in range(n)])
    config = make_train_config(base, folder / "train.jsonl", folder, n_validation=0)
    config.data.coarse[0].split, config.data.test = None, []
    run = run_stage(config).run
    more = [f"checkpoint={run}", f"out={folder / 'out.jsonl'}", "device=cpu", "generate.max_new_tokens=8"]
    more += [f"paths.cache={folder / 'cache'}", "cache_features=false"]
    return watch([sys.executable, "infer.py", str(folder / "clips.jsonl"), *more], folder / "out.jsonl", n)


def annotate(folder: Path, n: int) -> int:
    from annotate import STEPS, Server, write_clips

    write_clips(folder, n)
    with Server(0.0) as server:
        settings = [
            *(f"input=['{folder / 'clips.jsonl'}']", f"out='{folder / 'out'}'", "pipeline.name=growth"),
            f"pipeline.steps=[{{name: transcribe}}, {', '.join(STEPS[:2])}]",
            *("annotator=vllm", "annotator.model=simulated", f"annotator.base_url={server.url}"),
        ]
        return watch([sys.executable, "-m", "affectgpt.annotate", *settings], folder / "out" / "records.jsonl", n)


def watch(command: list[str], out: Path, n: int) -> int:
    """Run a command, and print what it uses each time another tenth of its `n` rows is in `out`."""
    rows = []
    with (out.parent.parent / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(0.2)
            done = out.read_bytes().count(b"\n") if out.exists() else 0
            if 0 < done < n and done * 10 // n >= len(rows) + 1 and (used := usage(process.pid)):
                rows.append((done, *used))
                print("{:>8,} clips  {:>8.1f} MB  {:>4} threads  {:>4} open files".format(*rows[-1]), flush=True)
    print(f"exit code {process.returncode}")
    if process.returncode or len(rows) < 3:
        print((out.parent.parent / "log.txt").read_text()[-3000:])
        return 1
    first, last = rows[1], rows[-1]
    grown = [after - before for before, after in zip(first[1:], last[1:], strict=True)]
    per_clip = 1e6 * grown[0] / (last[0] - first[0])
    print(f"growth: {grown[0]:+.1f} MB ({per_clip:+,.0f} bytes a clip), {grown[1]:+} threads, {grown[2]:+} open files")
    print(json.dumps({"first": first, "last": last}))
    return 0


def usage(pid: int) -> tuple[float, int, int] | None:
    """(resident memory in MB, threads, open files) of a process; None if it has just ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main())
