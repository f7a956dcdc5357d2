"""The examples of docs/annotation-steps.md, run verbatim."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from affectgpt.annotate.exporters import records_in
from tests.annotate.conftest import write_clips
from tests.chat.chat_server import ChatServer, fill_in

ROOT = Path(__file__).parents[2]


def test_the_examples_of_the_page_work(tmp_path):
    text = (ROOT / "docs" / "annotation-steps.md").read_text(encoding="utf-8")
    (steps,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    pipeline, annotator = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    arguments = re.search(r"^    python (-m affectgpt\.annotate --config-dir .*)$", text, re.MULTILINE)[1]
    for folder in ("pipeline", "annotator"):
        (tmp_path / "my" / folder).mkdir(parents=True)
    (tmp_path / "my_steps.py").write_text(steps, encoding="utf-8")
    (tmp_path / "my" / "pipeline" / "mine.yaml").write_text(pipeline)
    write_clips(tmp_path, 2)
    with ChatServer(fill_in) as server:
        here = annotator.replace("http://localhost:8000/v1", server.url)
        (tmp_path / "my" / "annotator" / "house.yaml").write_text(here)
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "HOUSE_KEY": "secret", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments.split()]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(server.keys) == {"Bearer secret"}
    steps_asked = Counter(body["response_format"]["json_schema"]["name"] for body in server.requests)
    assert steps_asked == {"setting": 2, "merge": 2, "labels": 2}
    question = next(body for body in server.requests if body["response_format"]["json_schema"]["name"] == "merge")
    assert "peak_level" in question["messages"][0]["content"]
    for record in records_in(tmp_path / "o"):
        assert [clue.source for clue in record.clues] == ["house-model"]
        assert "peak_level" in {fact.name for fact in record.evidence}
