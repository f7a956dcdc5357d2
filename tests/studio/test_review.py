"""Human review: the same answers give the same records as in Label Studio; nobody sees or answers another's tasks."""

import contextlib
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from affectgpt.annotate.review.labelstudio import ReviewAnswer, read_export
from affectgpt.config import StudioReviewConfig
from affectgpt.runtime import UserError
from affectgpt.studio.app import Studio
from affectgpt.studio.reviewing import ReviewRoom, set_up_round
from tests.annotate.review.rounds import EXPORTS, PEOPLE, RECORDS, both_rounds, review_records
from tests.annotate.toy import write_records
from tests.data.conftest import write_clip
from tests.studio.conftest import running


@pytest.fixture(scope="module")
def coarse(tmp_path_factory) -> Path:
    """The records of `rounds`, with clips that can be played."""
    folder = tmp_path_factory.mktemp("review")
    records = [
        replace(record, media={"video": str(write_clip(folder / f"{record.id}.mp4", seed=n))})
        for n, record in enumerate(RECORDS)
    ]
    return write_records(folder / "coarse", records)


def settings(coarse, folder, number, people) -> StudioReviewConfig:
    return StudioReviewConfig(records=str(coarse), to=str(folder), round=number, annotators=",".join(people))


def reviewed(room) -> contextlib.AbstractContextManager:
    return running(Studio(StudioReviewConfig(browser=False), review=room))


def test_answers_give_the_same_records_as_in_label_studio(coarse, tmp_path):
    folder = tmp_path / "fine"
    for number in (1, 2):
        set_up_round(settings(coarse, folder, number, PEOPLE[number]), coarse, folder)
        room = ReviewRoom(folder)
        with reviewed(room) as url:
            for answer in read_export(EXPORTS[number - 1]):
                assert isinstance(answer, ReviewAnswer)
                about, cookie = answer.about, {"Cookie": f"affectgpt_annotator={room.keys[answer.about['annotator']]}"}
                labels = [label for label in answer.labels if label not in answer.other]
                body = {"screen": about["screen"], "id": about["id"], "clues": answer.clues, "labels": labels}
                sent = {**body, "other": answer.other, "seconds": answer.seconds}
                assert httpx.post(f"{url}/api/review/answer", json=sent, headers=cookie).status_code == 200
            found = httpx.post(f"{url}/api/review/finish", json={}).json()
    assert found["n_finished"] == 2
    expected = {record.id: record for record in review_records(both_rounds(tmp_path / "studio"))}
    for record in review_records(folder):
        other = expected[record.id]
        assert (record.clues, record.labels, record.checks) == (other.clues, other.labels, other.checks)
    report = json.loads((folder / "review_report.json").read_text())
    assert report["told"] == json.loads((tmp_path / "studio" / "fine" / "review_report.json").read_text())["told"]


def test_an_annotator_sees_and_answers_only_their_own_tasks(coarse, tmp_path):
    people = ("ann", "bob")
    config = replace(settings(coarse, tmp_path, 1, people), per_clip=1)
    set_up_round(config, coarse, tmp_path)
    room = ReviewRoom(tmp_path)
    own = {name: [clip for _, screen, clip in room.tasks(name) if screen == "labels"] for name in people}
    assert len(own["ann"]) == len(own["bob"]) == 1
    with running(Studio(config, review=room), key="secret") as url, httpx.Client(base_url=url) as client:
        assert client.get("/api/review/overview").status_code == 401
        assert client.get("/review/wrong").status_code == 403
        assert client.get(f"/review/{room.keys['ann']}").headers["location"] == "/#/review"
        overview = client.get("/api/review/overview").json()
        assert (overview["annotator"], "people" in overview) == ("ann", False)
        assert {task["id"] for task in overview["tasks"]} == set(own["ann"])
        assert client.get(f"/media/review/{own['ann'][0]}/frame/0").status_code == 200
        assert client.get(f"/media/review/{own['bob'][0]}/frame/0").status_code == 401
        wrong = {"screen": "labels", "id": own["bob"][0], "labels": [], "other": []}
        assert "was not given to 'ann'" in client.post("/api/review/answer", json=wrong).json()["error"]["message"]
        odd = {"screen": "labels", "id": own["ann"][0], "labels": ["made up"], "other": []}
        assert (
            "expected some of the candidates" in client.post("/api/review/answer", json=odd).json()["error"]["message"]
        )
        assert client.post("/api/review/finish", json={}).status_code == 403


def test_a_saved_answer_survives_a_killed_server_and_links_stay_valid(coarse, tmp_path):
    folder = tmp_path / "fine"
    command = [sys.executable, "-m", "affectgpt.studio", "review", str(coarse), f"to={folder}", "port=0"]
    more = ["round=1", "annotators=ann,bob", "browser=false"]
    server = subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True)
    try:
        lines = [server.stderr.readline() for _ in range(4)]
        link = re.search(r"ann +(http\S+)", "".join(lines))[1]
        with httpx.Client(base_url=link.partition("/review")[0]) as client:
            client.get(link)
            body = {"screen": "labels", "id": "clip1", "labels": ["puzzled"], "other": ["很惊讶, tired"], "seconds": 3}
            assert client.post("/api/review/answer", json=body).status_code == 200
        server.send_signal(signal.SIGKILL)
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    room = ReviewRoom(folder)
    assert link.endswith(room.keys["ann"])
    assert room.task("ann", "labels", "clip1")["answer"]["labels"] == ["puzzled", "很惊讶", "tired"]
    assert [task["done"] for task in room.listed("ann") if task["id"] == "clip1"] == [False, True]


def test_the_second_round_needs_other_people(coarse, tmp_path):
    set_up_round(settings(coarse, tmp_path, 1, ["ann"]), coarse, tmp_path)
    room = ReviewRoom(tmp_path)
    for screen in ("clues", "labels"):
        room.save("ann", {"screen": screen, "id": "clip1", "clues": {}, "labels": [], "other": []})
    with pytest.raises(UserError, match=r"'ann'.*reviewed in round 1 already"):
        set_up_round(settings(coarse, tmp_path, 2, ["ann", "dan"]), coarse, tmp_path)
