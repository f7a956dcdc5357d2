"""How fast the studio answers: python benchmarks/studio.py [--run RUN] [--clip CLIP] [--rounds 5] [--clips 10000]

Starts `python -m affectgpt.studio` and opens its pages in the Chromium that is installed. Medians of the rounds:

- first page: from the server's first answer to /health until the first clips are drawn, in a new browser each round;
- a part of the list, and the matrix: the request alone;
- a list of 10,000 predictions: requests for parts and rows in the page, after scrolling from its start to its end;
- first words (with --run): from the click on "Ask" until the first letters are drawn; the model is loaded.

The aims: first page in 2 s, first words in 3 s, and a list that is not loaded whole.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, sync_playwright

from affectgpt.runtime import UserError
from affectgpt.schema import Prediction, Sample, write_jsonl
from affectgpt.tables import format_table

LABELS = ("happy", "sad", "angry", "worried", "surprised", "proud", "calm")


def write_predictions(folder: Path, n: int) -> list[str]:
    """n predictions of a made-up system, their references, and the settings that name them."""
    words = [(LABELS[k % 7], LABELS[k % 5]) for k in range(n)]
    rows = [Prediction(f"clip{k:05}", f"The brows rise {k} times.", labels=two) for k, two in enumerate(words)]
    truth = [Sample(f"clip{k:05}", video=f"{k}.mp4", labels=two[:1]) for k, two in enumerate(words)]
    write_jsonl(folder / "p.jsonl", rows)
    write_jsonl(folder / "truth.jsonl", truth)
    return [f"predictions={folder / 'p.jsonl'}", f"references={folder / 'truth.jsonl'}"]


@contextlib.contextmanager
def serving(*settings: str) -> Iterator[str]:
    """The address of a studio in a process of its own, once it answers."""
    command = [sys.executable, "-m", "affectgpt.studio", *settings, "port=0", "browser=false"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        line = next((line for line in server.stderr if "studio at http" in line), "")
        if not (found := re.search(r"http://\S+?:\d+", line)):
            raise UserError(f"{' '.join(command)} ended with status {server.wait()}")
        while True:
            with contextlib.suppress(httpx.ConnectError):
                if httpx.get(f"{found[0]}/health").status_code == 200:
                    break
        yield found[0]
    finally:
        server.terminate()
        server.communicate()


def first_page_s(browser: Browser, url: str) -> float:
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        begin = time.perf_counter()
        page.goto(url)
        page.wait_for_selector(".row, .drop")
        return time.perf_counter() - begin


def request_s(url: str, **query: Any) -> float:
    begin = time.perf_counter()
    httpx.get(url, params=query).raise_for_status()
    return time.perf_counter() - begin


def scrolled(browser: Browser, url: str) -> tuple[int, int]:
    """Requests for parts of the list, and the most rows in the page, while it is scrolled in 20 steps to its end."""
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if "/api/gallery" in request.url else None)
        page.goto(f"{url}/#/gallery?sort=id")
        page.wait_for_selector("#row-0")
        most = 0
        for step in range(1, 21):
            last = page.evaluate(
                "(share) => { const list = document.querySelector('.list'); "
                "list.scrollTop = share * (list.scrollHeight - list.clientHeight); "
                "return Math.floor((list.scrollTop + list.clientHeight) / 84) - 1; }",
                step / 20,
            )
            page.wait_for_selector(f"#row-{last}")
            most = max(most, page.locator(".row").count())
        return len(asked), most


def first_words_s(browser: Browser, url: str, clip: Path, rounds: int) -> list[float]:
    """Seconds to the first letters; the clip is uploaded anew each time, so it is decoded and encoded anew."""
    found = []
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.set_default_timeout(600_000)
        for _ in range(rounds + 1):
            page.goto(f"{url}/#/try")
            page.reload()
            page.set_input_files("input[type=file]", clip)
            page.wait_for_selector("fieldset input")
            page.wait_for_selector(".frame img")
            page.get_by_role("button", name="Ask", exact=True).click()
            page.wait_for_selector(".answer[data-first]:not([data-first=''])")
            first = page.locator(".answer[data-first]").first.get_attribute("data-first")
            found.append(int(first or 0) / 1000)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run to ask, such as runs/fine")
    parser.add_argument("--clip", type=Path, help="the clip that is asked about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=10_000)
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium is installed")
    rows: list[tuple[str, str]] = []

    def add(what: str, times_s: list[float]) -> None:
        rows.append((what, f"{statistics.median(times_s):.2f} s ({min(times_s):.2f} to {max(times_s):.2f})"))

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        rounds = range(given.rounds)
        begin = time.perf_counter()
        with serving(*write_predictions(Path(name), given.clips)) as url:
            rows.append(("start: predictions read and scored", f"{time.perf_counter() - begin:.1f} s"))
            add("first page", [first_page_s(browser, url) for _ in rounds])
            part = {"system": "p", "sort": "f", "limit": 60}
            add("a part of 60 clips", [request_s(f"{url}/api/gallery", **part, offset=600 * k) for k in rounds])
            add("the matrix", [request_s(f"{url}/api/confusion", system="p") for _ in rounds])
            n_asked, most = scrolled(browser, url)
            rows.append(("scrolled to the end of the list", f"{n_asked} parts of 60, at most {most} rows drawn"))
        if given.run and given.clip:
            with serving(given.run) as url:
                add("first page, with a model that is being loaded", [first_page_s(browser, url) for _ in rounds])
                add("first words of an answer", first_words_s(browser, url, given.clip, given.rounds))
    print(f"{given.clips} predictions, {given.rounds} rounds")
    print(format_table([("what", "median (range)"), *rows], "ll"))


if __name__ == "__main__":
    main()
