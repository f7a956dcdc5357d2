"""Annotation under kill -9 and a faulty server: is every clip complete or failed, and every call made once?

    python benchmarks/annotate_faults.py                    # 10,000 clips, two processes, one killed every 20 s
    python benchmarks/annotate_faults.py --clips 300 --every 5

The server answers with 429 (with and without Retry-After), 500, cut connections, truncated answers, pages that are not
JSON, answers after the time-out, and, for some requests, text of the wrong form. Two processes annotate one folder;
periodically the older one is killed and replaced. At the end one process completes the rest. The table compares the
requests that the server received with the content of the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from affectgpt.annotate.record import record_from_row  # noqa: E402
from tests.annotate.conftest import rows_of, served, settings, write_clips  # noqa: E402
from tests.chat.chat_server import ChatServer, fill_in  # noqa: E402


class Counted(list):
    """Only counts: tens of thousands of requests with sound would fill the memory."""

    n = 0

    def append(self, item: object) -> None:
        self.n += 1


FAULTS = (429, ("retry-after", 0.05), 500, 503, "hang up", "cut", "no json", "no choices", "slow")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between kills")
    parser.add_argument("--rate", type=float, default=0.1, help="share of requests with a fault")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight of each process")
    parser.add_argument("--folder", type=Path, help="working folder; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return trial(options, options.folder or Path(temporary))


def trial(options: argparse.Namespace, folder: Path) -> int:
    clips = write_clips(folder / "clips", options.clips, seconds=0.4)
    out, dice = folder / "out", random.Random(0)
    asked: Counter[str] = Counter()
    requests = Counted()

    def choose(body: dict) -> object:
        return dice.choice(FAULTS) if dice.random() < options.rate else None

    def answer(body: dict) -> str:
        request = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        asked[request] += 1
        first = hashlib.sha256(json.dumps(body["messages"][0]).encode()).digest()[0]
        # 4 in 256 questions get an answer of the wrong form, one of them also the second time.
        wrong = first < 4 if len(body["messages"]) == 1 else first < 1
        return "no form at all" if wrong else fill_in(body)

    limits = (f"annotator.concurrency={options.concurrency}", "annotator.max_retries=20", "annotator.timeout_s=0.5")
    started = time.monotonic()
    with ChatServer(answer, choose) as server:
        server.requests = requests

        def start() -> subprocess.Popen:
            command = [sys.executable, "-m", "affectgpt.annotate", *settings(clips, out, *served(server.url, *limits))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            log = (folder / "log.txt").open("a")
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

        running, n_kills = [start(), start()], 0
        while all(process.poll() is None for process in running):
            time.sleep(options.every)
            if running[0].poll() is None:
                running[0].send_signal(signal.SIGKILL)
                running[0].wait()
                n_kills += 1
                running = [running[1], start()]
                print(f"{time.monotonic() - started:6.0f} s  kill {n_kills}, {sum(asked.values())} answers", flush=True)
        codes = [process.wait() for process in running]
        last = start()
        codes.append(last.wait())
        n_requests, n_answered = requests.n, server.n_answered

    answers = rows_of(out / "store" / "answers.jsonl")
    records = rows_of(out / "records.jsonl")
    failed = rows_of(out / "failed.jsonl")
    for row in records:
        record_from_row(row)  # raises if a record is incomplete
    ids = {row["id"] for row in records}
    named = {row["id"] for row in failed}
    needed = len({row["key"] for row in answers})
    table = {
        "clips": options.clips,
        "complete records": len(ids),
        "failed": len(named),
        "neither or both": options.clips - len(ids ^ named),
        "duplicate records": len(records) - len({row["key"] for row in records}),
        "calls needed": needed,
        "answers stored": len(answers),
        "answers that arrived and were requested again": len(answers) - needed,
        "answers sent by the server": n_answered,
        "of them lost (in flight at a kill, or later than the time-out)": n_answered - len(answers),
        "requests, with faults": n_requests,
        "kills": n_kills,
        "exit codes": codes,
        "seconds": round(time.monotonic() - started),
    }
    for name, value in table.items():
        print(f"{name:<66}{value}")
    passed = table["neither or both"] == 0 and len(answers) == needed and table["duplicate records"] == 0
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
