"""Throughput of annotation against the lower bound of latency and concurrency: calls x latency / concurrency.

    python benchmarks/annotate.py                                            # 1,000 clips, 4 calls each
    python benchmarks/annotate.py --clips 100000 --calls 1                   # 100,000 clips, 1 call each
    python benchmarks/annotate.py --clips 1000 --profile calls.prof          # where the time goes

A server in a separate process answers every request after a fixed time, whatever its load. The clips share one sound
file and differ in their subtitles, and only text steps run, so that nothing is decoded: this measures the overhead of a
call. The command runs as a user would start it. `share` counts from the first clip to the last; `with start and end`
includes loading the program, reading the manifest and writing the outputs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    "{name: disambiguate, needs: [transcribe]}",
    "{name: merge, needs: [transcribe, disambiguate]}",
    "{name: translate, needs: [merge]}",
    "{name: labels, needs: [merge]}",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=4, choices=(1, 2, 3, 4), help="text steps per clip")
    parser.add_argument("--latency-s", type=float, default=0.2, help="of every answer")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight")
    parser.add_argument("--folder", type=Path, help="working folder; default: a temporary one")
    parser.add_argument("--profile", type=Path, help="write a profile of the command to this file")
    parser.add_argument("settings", nargs="*", help="further settings of the command, such as fsync=true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table = trial(options, folder)
    for name, value in table.items():
        print(f"{name:<34}{value}")
    return 0 if table["exit code"] == 0 else 1


def trial(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the command once; returns the rows of the table."""
    write_clips(folder, options.clips)
    with Server(options.latency_s) as server:
        arguments = [
            *(f"input=['{folder / 'clips.jsonl'}']", f"out='{folder / 'out'}'", "pipeline.name=simulated"),
            f"pipeline.steps=[{{name: transcribe}}, {', '.join(STEPS[: options.calls])}]",
            *("annotator=vllm", "annotator.model=simulated", f"annotator.base_url={server.url}"),
            *(f"annotator.concurrency={options.concurrency}", *options.settings),
        ]
        profile = ["-m", "cProfile", "-o", str(options.profile.resolve())] if options.profile else []
        command = [sys.executable, *profile, "-m", "affectgpt.annotate", *arguments]
        load, started = os.getloadavg()[0], time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        wall_s = time.monotonic() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        n_calls, busiest = server.n_calls.value, server.busiest.value
    seconds = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))["seconds"]
    ideal_s = n_calls * options.latency_s / options.concurrency
    return {
        "clips, calls": f"{options.clips:,}, {n_calls:,}",
        "latency, concurrency": f"{options.latency_s:g} s, {options.concurrency} (most in flight: {busiest})",
        "lower bound": f"{ideal_s:.1f} s",
        "taken": f"{seconds:.1f} s, with start and end {wall_s:.1f} s",
        "share of the lower bound": f"{ideal_s / seconds:.1%}, with start and end {ideal_s / wall_s:.1%}",
        "processor time per call": f"{1000 * (used.ru_utime + used.ru_stime) / max(1, n_calls):.2f} ms",
        "most memory": f"{used.ru_maxrss / 1024:.0f} MB",
        "load of the machine before, after": f"{load:.1f}, {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        "exit code": code,
    }


def write_clips(folder: Path, n: int) -> None:
    """Write clips.jsonl with `n` clips: one silent sound file, different subtitles."""
    with wave.open(str(folder / "clip.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(3200))
    with (folder / "clips.jsonl").open("w", encoding="utf-8") as rows:
        for number in range(n):
            row = {"id": f"clip{number:06d}", "audio": "clip.wav", "subtitle": f"I told him {number} times already."}
            rows.write(json.dumps(row) + "\n")


class Server:
    """A server that answers each request after the same time, following the requested JSON schema."""

    def __init__(self, latency_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.n_calls, self.busiest = context.Value("q", 0), context.Value("q", 0)
        self._port = context.Value("i", 0)
        arguments = (latency_s, self._port, self.n_calls, self.busiest)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port.value}/v1"

    def __enter__(self) -> Server:
        self._process.start()
        while not self._port.value:
            time.sleep(0.01)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(latency_s: float, port: Any, n_calls: Any, busiest: Any) -> None:
    asyncio.run(_serve_forever(latency_s, port, n_calls, busiest))


async def _serve_forever(latency_s: float, port: Any, n_calls: Any, busiest: Any) -> None:
    loop, in_flight = asyncio.get_running_loop(), 0

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.data = transport, b""

        def data_received(self, data: bytes) -> None:
            nonlocal in_flight
            self.data += data
            head, found, rest = self.data.partition(b"\r\n\r\n")
            if not found:
                return
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self.data = rest[length:]
            in_flight += 1
            busiest.value = max(busiest.value, in_flight)
            loop.call_later(latency_s, self.reply, rest[:length])

        def reply(self, body: bytes) -> None:
            nonlocal in_flight
            in_flight -= 1
            n_calls.value += 1
            schema = json.loads(body)["response_format"]["json_schema"]["schema"]
            made = {"string": f"Something plain, number {n_calls.value}.", "number": 0.5, "array": ["calm", "tired"]}
            text = json.dumps({name: made[kind["type"]] for name, kind in schema["properties"].items()})
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
            data = json.dumps({"id": "x", "model": "simulated", "choices": [choice], "usage": usage}).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            self.transport.write(head.encode() + data)

    server = await loop.create_server(Connection, "127.0.0.1", 0)
    port.value = server.sockets[0].getsockname()[1]
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
