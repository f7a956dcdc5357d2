"""Runs for a page: nothing is left out without a word, and results that are kept are made once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from affectgpt.config import PagesConfig
from affectgpt.journal import append_rows
from affectgpt.runs import RunRecord
from affectgpt.runtime import InputError
from affectgpt.schema import Prediction, write_jsonl
from affectgpt.studio.app import Studio
from affectgpt.studio.clips import Kept
from affectgpt.studio.watching import MAX_POINTS, PART, Watch, _thinned
from tests.studio.conftest import running

N = PART + 3


@pytest.fixture
def watched(tmp_path):
    """A watch and the key of a run with answers to N clips, and a step of N clips with three rollouts each."""
    run = tmp_path / "reward"
    RunRecord.start(run, kind="train reward", config={})
    write_jsonl(run / "generations" / "step-000002.jsonl", [Prediction(f"clip{n}", "text") for n in range(N)])
    rows = [
        {"step": 2, "id": f"clip{n}", "answer": k, "text": f"{n} {k}", "reward": (0.5, 2.0, -1.0)[k], "truth": ["sad"]}
        for n in range(N)
        for k in range(3)
    ]
    append_rows(run / "rollouts.jsonl", rows)
    watch = Watch([tmp_path])
    (found,) = watch.runs()
    return watch, found["key"]


@pytest.mark.parametrize("what", ["answers", "rollouts"])
def test_the_parts_of_a_step_together_are_all_of_its_clips(watched, what):
    watch, key = watched
    assert watch.run(key)["rollout_steps"] == watch.run(key)["generation_steps"] == [2]
    parts = [getattr(watch, what)(key, {"step": "2", "offset": str(offset)}) for offset in (0, PART)]
    assert [(part["total"], part["part"], len(part["rows"])) for part in parts] == [(N, PART, PART), (N, PART, 3)]
    assert [row["id"] for part in parts for row in part["rows"]] == [f"clip{n}" for n in range(N)]
    with pytest.raises(InputError, match="step is 'x'; expected a whole number"):
        getattr(watch, what)(key, {"step": "x"})


def test_rollouts_of_a_clip_are_together_the_best_first(watched):
    watch, key = watched
    row = watch.rollouts(key, {"step": "2"})["rows"][1]
    assert ([one["text"] for one in row["answers"]], row["truth"]) == (["1 1", "1 0", "1 2"], ["sad"])


def test_while_the_training_data_of_a_run_is_read_the_server_answers_everything_else(watched, monkeypatch):
    watch, key = watched
    begun, go_on = threading.Event(), threading.Event()

    def clips_of(run):
        begun.set()
        go_on.wait(30)
        return {}

    monkeypatch.setattr("affectgpt.studio.watching._clips_of", clips_of)
    with running(Studio(PagesConfig(n_decoders=2), watch=watch)) as url, ThreadPoolExecutor(1) as pool:
        try:
            media = pool.submit(httpx.get, f"{url}/media/watch/{key}.clip1/file", timeout=60)
            assert begun.wait(10)
            for path in ("health", f"api/runs/{key}", f"api/runs/{key}/rollouts?step=2"):
                assert httpx.get(f"{url}/{path}", timeout=10).status_code == 200
        finally:
            go_on.set()
        assert media.result().status_code == 404


def test_media_of_an_unknown_run_are_not_found_and_an_error_of_a_user_is_told(watched, monkeypatch):
    watch, key = watched

    def damaged(run):
        raise InputError("the table is damaged")

    monkeypatch.setattr("affectgpt.studio.watching._clips_of", damaged)
    with running(Studio(PagesConfig(), watch=watch)) as url:
        unknown, told = (httpx.get(f"{url}/media/watch/{name}.clip1/file") for name in ("nobody", key))
    assert (unknown.status_code, told.status_code) == (404, 400)
    assert told.json()["error"]["message"] == "the table is damaged"


def test_a_result_is_made_once_for_all_who_ask_and_a_failure_is_not_kept():
    kept, begun, go_on = Kept(), threading.Event(), threading.Event()
    n_made, found = [], []

    def make():
        n_made.append(1)
        begun.set()
        go_on.wait()
        if len(n_made) == 1:
            raise InputError("damaged")
        return len(n_made)

    def ask():
        try:
            found.append(kept.get("key", make))
        except InputError as error:
            found.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    begun.wait()
    for thread in threads[1:]:
        thread.start()
    while len(kept._making["key"]._condition._waiters) < 2:  # both others wait for the first
        pass
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == ["damaged"] * 3
    assert kept.get("key", make) == kept.get("key", make) == 2
    assert kept._making == {}


@pytest.mark.parametrize("n", [0, 1, 2, MAX_POINTS, MAX_POINTS + 1, 3 * MAX_POINTS - 1, 300_000])
def test_a_thinned_curve_ends_where_the_run_is(n):
    steps, values = tuple(range(1, n + 1)), tuple(1 / step for step in range(1, n + 1))
    points = _thinned(steps, values)
    assert points[:1] + points[-1:] == [[step, 1 / step] for step in (*steps[:1], *steps[-1:])]
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert min(n, MAX_POINTS // 2) <= len(points) <= MAX_POINTS
