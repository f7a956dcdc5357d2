"""What the server answers to programs: lists, clips, uploads, and what it refuses."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import affectgpt
from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.face import MOVEMENTS
from affectgpt.annotate.store import Store
from affectgpt.annotate.transcribe import Transcriber
from affectgpt.config import BenchmarkConfig, EvalConfig, GenerateConfig, InferConfig, StudioConfig
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.inference.infer import run_inference
from affectgpt.metrics import clip_scores
from affectgpt.runs import overview
from affectgpt.runtime import UserError
from affectgpt.schema import MODALITIES, TASKS, Sample
from affectgpt.studio.app import STATIC, Studio
from affectgpt.studio.command import check, make_studio
from affectgpt.studio.gallery import clip, difference, read_gallery
from affectgpt.studio.uploads import PREFIX
from tests.media.media_files import numbered_clip, sine, write_media
from tests.studio.conftest import running


def test_the_list_is_sorted_filtered_and_given_in_parts(address):
    query = {"system": "a", "sort": "f", "limit": 2, "offset": 0}
    found = httpx.get(f"{address}/api/gallery", params=query).json()
    assert found["total"] == 12
    assert found["rows"][0]["id"] == "clip3"  # the only wrong one
    assert len(found["rows"]) == 2
    wrong = httpx.get(f"{address}/api/gallery", params={**query, "state": "wrong"}).json()
    assert [row["id"] for row in wrong["rows"]] == ["clip3"]
    by_difference = {**query, "other": "b", "sort": "difference", "limit": 12}
    for descending, place in (("true", 0), ("", -1)):
        rows = httpx.get(f"{address}/api/gallery", params={**by_difference, "descending": descending}).json()["rows"]
        assert abs(rows[place]["f"] - rows[place]["other_f"]) == 1
        assert rows[-1 - place]["f"] == rows[-1 - place]["other_f"]


def test_the_matrix_counts_the_clips_and_the_difference_is_the_paired_test_of_eval(address, manifest, predictions):
    from affectgpt.metrics import load_lexicon, read_predictions, read_references
    from affectgpt.metrics.compare import compare

    matrix = httpx.get(f"{address}/api/confusion", params={"system": "a", "wheel": 1}).json()
    assert sum(map(sum, matrix["counts"])) == 12
    found = httpx.get(f"{address}/api/difference", params={"system": "a", "other": "b"}).json()
    systems = {path.stem: read_predictions(path) for path in predictions}
    result = compare(systems, read_references(manifest, lang="en"), lexicon=load_lexicon("builtin"))
    test = result.tests["a", "b"]
    assert (found["difference"], found["p_value"]) == (test.difference, test.p_value)


def test_a_statement_about_what_was_not_shown_is_marked(address):
    answers = httpx.get(f"{address}/api/clip/clip1").json()["answers"]
    assert {row["text"]: row["unsupported"] for row in answers[0]["sentences"]} == {
        "The brows rise.": [],
        "The voice trembles.": ["acoustic"],
        "他看起来很高兴。": [],
    }


def test_numbers_of_labels_and_lengths_are_those_of_the_clips_that_the_filters_leave(address):
    found = httpx.get(f"{address}/api/lengths", params={"system": "a", "other": "b"}).json()
    assert [sum(found["true"]), *map(sum, found["predicted"]), *map(sum, found["lengths"])] == [12] * 5
    assert found["predicted"][1][1] == 12  # b says one word everywhere
    assert len(found["spans"]) == len(found["lengths"][0])
    wrong = httpx.get(f"{address}/api/lengths", params={"system": "a", "state": "wrong"}).json()
    assert (sum(wrong["true"]), wrong["predicted"][0][:2]) == (1, [0, 1])


def test_scores_of_a_benchmark_are_shown_as_the_benchmark_gave_them(tmp_path):
    (tmp_path / "truth.csv").write_text("name,discrete\nx,happy\ny,sad\nz,sad\n")
    (tmp_path / "p.csv").write_text("name,discrete\nx,glad\ny,happy\n")
    benchmark = BenchmarkConfig(
        name="toy", title="Toy", kind="classes", classes=["happy", "sad"], folder=str(tmp_path), references="truth.csv"
    )
    run_evaluation(EvalConfig(predictions=str(tmp_path / "p.csv"), benchmark=benchmark, n_bootstrap=0))
    for scores in (None, str(tmp_path / "scores-toy.jsonl")):  # found next to the predictions, or named
        gallery = read_gallery(StudioConfig(predictions=str(tmp_path / "p.csv"), scores=scores), [])
        assert [(row.id, row.f, row.missing) for row in gallery.system("p").scores] == [
            ("x", 1.0, False),
            ("y", 0.0, False),
            ("z", 0.0, True),
        ]
        assert clip(gallery, "z")["true"] == ["sad"]
        assert difference(gallery, {"system": "p", "other": "p"})["equal"] == 3
    with pytest.raises(UserError, match="scores= names 2 files and predictions= 1; expected one for each"):
        read_gallery(StudioConfig(predictions=str(tmp_path / "p.csv"), scores=["a.jsonl", "b.jsonl"]), [])


def test_files_of_one_name_in_different_folders_are_different_systems(tmp_path, predictions):
    files = [tmp_path / name / "out.jsonl" for name in ("m1", "m2")]
    for file, source in zip(files, predictions, strict=True):
        file.parent.mkdir()
        file.write_bytes(source.read_bytes())
    gallery = read_gallery(StudioConfig(predictions=[str(file) for file in files]), [])
    assert list(gallery.systems) == ["m1/out", "m2/out"]
    first, second = ([row.labels for row in system.predictions.values()] for system in gallery.systems.values())
    assert first != second


def test_action_units_of_a_table_are_curves_with_gaps_where_no_face_was_tracked(address):
    found = httpx.get(f"{address}/media/gallery/clip0/units").json()
    assert (found["of"], found["most"]) == ("intensity", 5)
    curves = {one["name"]: one["points"] for one in found["curves"]}
    assert curves["AU12"] == [[0.0, 0], [0.1, 1], [0.2, 2], [0.3, None], [0.4, 4]]
    assert found["curves"][1]["words"] == {"en": "lip corners pulled up", "zh": "嘴角上拉"}
    assert httpx.get(f"{address}/media/gallery/clip2/units").json() is None
    damaged = httpx.get(f"{address}/media/gallery/clip1/units").json()["error"]
    assert damaged.startswith("clip1.csv: no columns")
    assert httpx.get(f"{address}/media/gallery/clip99/units").status_code == 404


def test_a_proposed_subtitle_is_the_transcript_of_the_annotation(trying, address, whisper, manifest, tmp_path):
    path = manifest.parent / "clip1.mp4"
    media = ClipMedia(Sample("clip1", video=str(path)), "sha256", detector="none")
    row, _ = asyncio.run(Transcriber(str(whisper), Store(tmp_path), device="cpu").answer("transcribe", media, "en"))
    assert row["text"].strip()
    assert httpx.get(f"{trying}/api/about").json()["hears"] == str(whisper)
    found = httpx.post(f"{trying}/media/gallery/clip1/transcript", json={}, timeout=60)
    assert found.json() == {"text": row["text"].strip()}
    assert httpx.post(f"{trying}/media/gallery/clip1/transcript?lang=fr", json={}).status_code == 400
    without = httpx.post(f"{address}/media/gallery/clip1/transcript", json={}).json()["error"]["message"]
    assert "start the studio with transcriber=" in without


def test_a_clip_has_frames_with_times_and_a_waveform(address):
    values = httpx.get(f"{address}/media/gallery/clip0/evidence").json()
    assert len(values["frames"]) == 8
    assert len(values["wave"]) > 100
    assert httpx.get(f"{address}/media/gallery/clip0/frame/7").headers["content-type"] == "image/jpeg"
    assert httpx.get(f"{address}/media/gallery/clip0/frame/8").status_code == 404
    assert httpx.get(f"{address}/media/gallery/clip0/thumbnail").headers["content-type"] == "image/jpeg"
    assert httpx.get(f"{address}/media/gallery/clip0/faces", timeout=60).json()["faces"] == [[]] * 8  # noise
    part = httpx.get(f"{address}/media/gallery/clip0/file", headers={"Range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/media/gallery/..%2f..%2fetc%2fpasswd/file",
        "/media/gallery/%2fetc%2fpasswd/file",
        "/media/upload/..%2fclip/file",
        "/media/nothing/clip0/file",
    ],
)
def test_no_path_reaches_a_file_that_is_not_shown(address, path):
    assert httpx.get(address + path).status_code in (400, 404)


def test_an_upload_is_kept_for_a_while_and_its_file_removed_with_it(studio_config, manifest):
    data = (manifest.parent / "clip1.mp4").read_bytes()
    with running(make_studio(replace(studio_config, max_uploads=1, max_request_mb=0.2))) as url:
        send = {"headers": {"Content-Type": "video/mp4"}}
        first = httpx.post(f"{url}/api/upload", params={"name": "<b>.mp4"}, content=data, **send).json()
        assert httpx.get(f"{url}/media/upload/{first['id']}/evidence").status_code == 200
        second = httpx.post(f"{url}/api/upload", content=data, **send).json()  # replaces the oldest: only one is kept
        assert httpx.get(f"{url}/media/upload/{first['id']}/evidence").status_code == 404
        (folder,) = Path(tempfile.gettempdir()).glob(f"{PREFIX}{os.getpid()}-*/{second['id']}")
        assert httpx.delete(f"{url}/api/upload/{second['id']}").status_code == 200
        assert not folder.exists()
        assert httpx.post(f"{url}/api/upload", content=b"0" * 300_000, **send).status_code == 413
        assert httpx.post(f"{url}/api/upload", content=b"no media", **send).status_code == 400
        assert httpx.post(f"{url}/api/upload", content=data, headers={"Content-Type": "text/html"}).status_code == 415
    assert not folder.parent.exists()


def files_of_uploads() -> dict[Path, int]:
    folders = Path(tempfile.gettempdir()).glob(f"{PREFIX}{os.getpid()}-*")
    return {path: path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_with_an_upload_its_copy_for_browsers_and_its_transcript_are_removed(trying, tmp_path):
    before = files_of_uploads()
    clip = write_media(tmp_path / "clip.avi", numbered_clip(10), video_codec="mpeg4", sound=sine(1.0))
    send = {"content": clip.read_bytes(), "headers": {"Content-Type": "video/x-msvideo"}}
    key = httpx.post(f"{trying}/api/upload", **send).json()["id"]
    played = httpx.get(f"{trying}/media/upload/{key}/file")
    assert (played.status_code, played.headers["content-type"]) == (200, "video/mp4")
    assert httpx.post(f"{trying}/media/upload/{key}/transcript", json={}, timeout=60).json()["text"]
    assert httpx.delete(f"{trying}/api/upload/{key}").status_code == 200
    assert files_of_uploads() == before


def test_without_a_key_only_this_machine_under_its_own_name_and_its_own_pages_are_answered(address):
    assert httpx.get(f"{address}/api/about", headers={"Host": "evil.example"}).status_code == 403
    other = {"Origin": "http://evil.example", "Content-Type": "application/json"}
    assert httpx.post(f"{address}/api/ask", content=b"{}", headers=other).status_code == 403
    policy = httpx.get(f"{address}/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy


def test_with_a_key_nothing_is_shown_without_it(studio_config):
    with running(make_studio(studio_config), key="secret key") as url:
        for path in ("/api/about", "/api/clip/clip0", "/media/gallery/clip0/frame/0"):
            assert httpx.get(url + path).status_code == 401
        assert httpx.get(f"{url}/api/about", headers={"Authorization": "Bearer secret key"}).status_code == 200
        with httpx.Client(base_url=url) as client:
            assert client.post("/api/login", json={"key": "wrong"}).status_code == 401
            half = {"content": b'{"key": "\\ud83d"}', "headers": {"Content-Type": "application/json"}}
            assert client.post("/api/login", **half).status_code == 400
            assert client.post("/api/login", json={"key": "secret key"}).status_code == 200
            assert "secret" not in str(dict(client.cookies))
            assert client.get("/api/about").status_code == 200


def test_other_machines_need_a_key_or_an_explicit_permission(studio_config, monkeypatch):
    monkeypatch.delenv("AFFECTGPT_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"reachable from other machines.*AFFECTGPT_API_KEY"):
        check(replace(studio_config, host="0.0.0.0"))
    assert check(replace(studio_config, host="0.0.0.0", public=True)) is None
    monkeypatch.setenv("AFFECTGPT_API_KEY", "k")
    assert check(replace(studio_config, host="0.0.0.0")) == "k"
    monkeypatch.setenv("AFFECTGPT_API_KEY", "k\n")  # as from a file; clients send no white space around it
    assert check(replace(studio_config, host="0.0.0.0")) == "k"


def test_a_studio_without_predictions_says_so(tmp_path):
    with running(Studio(StudioConfig())) as url:
        for path in ("/api/clip/x", "/api/confusion?system=a"):
            reply = httpx.get(url + path)
            assert reply.status_code == 400
            assert re.search("no predictions are shown here|no system 'a'", reply.json()["error"]["message"])


def test_an_answer_streams_and_is_that_of_infer(trying, trained, manifest, tmp_path):
    out = tmp_path / "p.jsonl"
    generate = GenerateConfig(max_new_tokens=6)
    run_inference(
        InferConfig(input=[str(manifest)], checkpoint=str(trained), device="cpu", out=str(out), generate=generate)
    )
    expected = {row["id"]: row["text"] for row in map(json.loads, out.read_text().splitlines())}
    body = {"group": "gallery", "id": "clip1", "subtitle": "I see.", "model": 1}
    reply = httpx.post(f"{trying}/api/ask", json=body, timeout=60)
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["answer"]["text"] == expected["clip1"]
    assert len(events) > 1
    assert all(expected["clip1"].startswith(event["text"]) for event in events[:-1])
    with ThreadPoolExecutor(4) as people:  # several at once get the answers to their own clips

        def ask(name):
            reply = httpx.post(f"{trying}/api/ask", json={**body, "id": name, "model": 0}, timeout=60)
            return json.loads(reply.text.splitlines()[-2].removeprefix("data: "))["answer"]["text"]

        names = ["clip1", "clip2", "clip1", "clip3"]
        assert list(people.map(ask, names)) == [expected[name] for name in names]
    wrong = httpx.post(f"{trying}/api/ask", json={**body, "modalities": ["face"]}, timeout=60).text
    assert "modalities ['face'] asked for, but this model has" in wrong
    assert str(manifest.parent) not in wrong
    assert httpx.post(f"{trying}/api/ask", json={**body, "task": "x"}).status_code == 400
    kind = {"Content-Type": "application/json"}
    for given in ({"subtitle": "\ud83d"}, {"task": "fixed", "candidates": ["\ud83d", "sad"]}):
        reply = httpx.post(f"{trying}/api/ask", content=json.dumps(body | given), headers=kind)
        assert (reply.status_code, "half of a surrogate pair" in reply.text) == (400, True)


def test_a_run_is_watched_by_its_key_with_curves_and_answers_over_steps(trying, trained):
    (run,) = [row for row in httpx.get(f"{trying}/api/runs").json() if row["name"] == trained.name]
    found = httpx.get(f"{trying}/api/runs/{run['key']}").json()
    assert len(found["curves"]["loss"]) == len({step for step, _ in found["curves"]["loss"]}) > 1
    assert httpx.get(f"{trying}/api/runs/no-such-run").status_code == 400
    assert httpx.get(f"{trying}/media/watch/{run['key']}.clip1/frame/0").status_code == 200
    assert httpx.get(f"{trying}/media/watch/{run['key']}.nobody/frame/0").status_code == 404


def test_predictions_are_shown_without_torch(studio_config):
    code = (
        "import sys; from affectgpt.config import StudioConfig; from affectgpt.studio.command import make_studio\n"
        "from affectgpt.studio.app import build_app\n"
        f"build_app(make_studio(StudioConfig(predictions={studio_config.predictions!r}, "
        f"references={studio_config.references!r})))\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_every_word_of_the_pages_has_a_chinese_one():
    scripts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
    known = set(re.findall(r'"([^"]+)": "', scripts["words.js"]))
    used = {word for text in scripts.values() for word in re.findall(r'\bt\("([^"]+)"\)', text)}
    assert len(used) > 50
    shown = {*TASKS, *MODALITIES, *clip_scores.SORT_KEYS, *clip_scores.FAULTS, *clip_scores.STATES, *overview.STATES}
    shown |= {name.replace("_", " ") for name in (*MOVEMENTS, "blink")}
    package = Path(affectgpt.__file__).parent
    starts = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    kinds = {kind for text in starts for kind in re.findall(r"RunRecord\.start\([^)]*?\bkind=f?\"(\w+)", text)}
    assert {"train", "eval", "benchmark", "annotate", "prefer", "zeroshot"} <= kinds
    assert used | shown | kinds <= known
