"""The server as its clients see it: answers are those of infer.py, alone or in company, and misuse is named."""

import asyncio
import base64
import contextlib
import copy
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from affectgpt import conf_schema as conf
from affectgpt import serve
from affectgpt.commands import run_inference
from affectgpt.llm import ChatClient, Media
from affectgpt.media import read_frames
from affectgpt.mllm import Request, load
from affectgpt.runtime import UserError
from affectgpt.serve import AffectGPT, Batcher, Chat, Prepared, Problem, Reply, Wish, bind, build_app, read_ask
from affectgpt.training.stages import run_stage

from . import tiny_chat
from .conftest import make_train_config

ROOT = Path(__file__).parent.parent
N = 6  # new tokens


@contextlib.contextmanager
def running(served, **settings):
    """(OpenAI client, address) of a server in a thread."""
    import uvicorn

    config = conf.ServeConfig(**{"max_new_tokens": N, **settings.pop("config", {})})
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = build_app(served, config, **settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=30), url
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="module")
def trained(base_models, manifest, tmp_path_factory):
    """The run folder of a finished run."""
    config = make_train_config(base_models, manifest, tmp_path_factory.mktemp("trained"), n_validation=0)
    return run_stage(copy.deepcopy(config)).run


@pytest.fixture(scope="module")
def served(trained) -> AffectGPT:
    from affectgpt.loading import load as load_checkpoint

    return AffectGPT(load_checkpoint(str(trained), trained.parent, device="cpu"), conf.ServeConfig(name="tiny"))


@pytest.fixture(scope="module")
def server(served, manifest):
    with running(served, config={"media_folder": str(manifest.parent), "max_wait_ms": 50}) as both:
        yield both


@pytest.fixture(scope="module")
def client(server):
    return server[0]


def uri(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def video(url) -> dict:
    return {"type": "video_url", "video_url": {"url": str(url)}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def frames_of(path: Path, n: int) -> list[dict]:
    return [Media.picture(image).part() for image in read_frames(path, n).images]


def ask(client, *parts, affectgpt=None, **more):
    body = {"affectgpt": affectgpt} if affectgpt else None
    messages = more.pop("messages", None) or [{"role": "user", "content": list(parts)}]
    return client.chat.completions.create(model="tiny", messages=messages, extra_body=body, **more)


def error_of(url: str, body, **headers) -> tuple[int, dict]:
    """(status, the error) that a body gets."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(
        f"{url}/v1/chat/completions", content=data, headers={"Content-Type": "application/json", **headers}
    )
    return reply.status_code, reply.json()["error"]


def asking(*parts, **more) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(parts)}], **more}


# ---------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def inferred(trained, manifest, tmp_path_factory):
    """What infer.py writes about the clips, by id."""
    out = tmp_path_factory.mktemp("inferred") / "p.jsonl"
    config = conf.InferConfig(input=[str(manifest)], checkpoint=str(trained), device="cpu", out=str(out))
    config.generate = conf.GenerateConfig(max_new_tokens=N, batch_size=3)
    run_inference(config)
    return {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}


def test_a_video_gets_the_answer_of_infer_and_is_seen_and_heard_alike(client, inferred, manifest):
    for name in ("clip0", "clip11"):  # the second has no sound
        for url in (uri(manifest.parent / f"{name}.mp4"), f"{name}.mp4", f"file://{manifest.parent / name}.mp4"):
            answer = ask(client, video(url), affectgpt={"subtitle": "I see."})
            row, told = inferred[name], answer.affectgpt
            assert answer.choices[0].message.content == row["text"]
            assert answer.choices[0].finish_reason == {"eos": "stop", "length": "length"}[row["finish"]]
            assert answer.usage.completion_tokens == row["n_tokens"]
            assert answer.usage.total_tokens == row["n_tokens"] + answer.usage.prompt_tokens
            assert told["modalities"] == row["modalities"]
            assert told["media"] == row["media"]
            assert told["labels"] == row.get("labels", [])
            assert (told["task"], told["prompt_version"]) == (row["task"], row["prompt_version"])
            assert told["left_out"] == ({} if name == "clip0" else {"audio": "not in the request"})


def test_requests_that_arrive_together_share_batches_and_get_their_answers_one_by_one(server, inferred):
    client, url = server
    before = httpx.get(f"{url}/health").json()
    with ThreadPoolExecutor(12) as pool:
        names = [f"clip{number}" for number in range(12)]
        answers = pool.map(lambda name: ask(client, video(f"{name}.mp4"), affectgpt={"subtitle": "I see."}), names)
        texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [inferred[name]["text"] for name in names]
    after = httpx.get(f"{url}/health").json()
    assert after["answered"] - before["answered"] == 12
    assert after["batches"] - before["batches"] < 12
    assert 1 < after["largest_batch"] <= 8


def test_frames_given_as_pictures_leave_the_motion_branch_out_and_the_answer_says_so(client, manifest):
    clip = manifest.parent / "clip3.mp4"
    told = ask(client, *frames_of(clip, 4), affectgpt={"task": "labels"}).affectgpt
    assert told["modalities"] == ["frames"]
    assert told["media"] == {"frames": {"pictures": [0, 2]}}
    assert told["left_out"] == {
        "audio": "not in the request",
        "motion": "the clip came as pictures, not as a video",
    }


def test_pictures_that_lose_nothing_are_what_the_video_holds(served, client, manifest):
    clip = manifest.parent / "clip4.mp4"
    pictures = []
    for image in read_frames(clip, 2).images:
        Image.fromarray(image).save(file := io.BytesIO(), "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        pictures.append({"type": "image_url", "image_url": {"url": url, "detail": "high"}})
    by_pictures = ask(client, *pictures)
    by_video = ask(client, video("clip4.mp4"), affectgpt={"modalities": ["frames"]})
    assert by_pictures.choices[0].message.content == by_video.choices[0].message.content
    assert by_pictures.usage == by_video.usage
    assert by_video.affectgpt["left_out"]["motion"] == "not asked for"
    config = conf.ServeConfig(media_folder=str(manifest.parent))
    fed = [
        serve.prepare(served, read_ask(asking(*parts), "tiny", config), config).inputs["pixel_values"]
        for parts in (pictures, pictures[::-1], [video("clip4.mp4")])
    ]
    assert (fed[0] == fed[2]).all()
    assert (fed[1] == fed[2].flip(0)).all()


def test_a_sound_is_heard_in_place_of_the_track_of_the_video(client, manifest):
    tone = (0.3 * np.sin(np.arange(8000))).astype(np.float32)
    told = ask(client, video("clip0.mp4"), Media.sound(tone, 16000).part()).affectgpt
    assert told["media"]["audio"]["duration_s"] == 0.5
    alone = ask(client, Media.sound(tone, 16000).part())
    assert alone.affectgpt["modalities"] == ["audio"]


def test_text_is_the_question_in_place_of_the_task(served, client, manifest):
    own = ask(client, video("clip0.mp4"), text("What does the person feel, and why?"))
    assert own.affectgpt["task"] is None
    assert "labels" not in own.affectgpt
    again = ask(client, text("What does the person feel, and why?"), video("clip0.mp4"))
    assert again.choices[0].message.content == own.choices[0].message.content
    longer = ask(client, video("clip0.mp4"), text("What does the person feel, and why? Look well."))
    assert longer.usage.prompt_tokens > own.usage.prompt_tokens


def test_a_question_without_media_and_a_chat_of_several_turns_are_answered(client):
    turns = [("user", "Merge these."), ("assistant", "Done."), ("user", "Shorter.")]
    messages = [{"role": role, "content": words} for role, words in turns]
    whole, first = ask(client, messages=messages), ask(client, messages=messages[:1])
    assert whole.usage.prompt_tokens > first.usage.prompt_tokens
    assert first.affectgpt["modalities"] == []


def test_a_placeholder_in_a_text_is_text(client):
    plain, spiked = (ask(client, text(words)) for words in ("audio", "<audio>"))
    assert spiked.affectgpt["modalities"] == []
    assert 0 < spiked.usage.prompt_tokens - plain.usage.prompt_tokens < 10


def test_tasks_and_languages_are_those_of_the_prompts(client):
    sizes = {
        key: ask(client, video("clip0.mp4"), affectgpt=options).usage.prompt_tokens
        for key, options in {
            "both": {},
            "labels": {"task": "labels"},
            "zh": {"lang": "zh"},
            "fixed": {"task": "fixed", "candidates": ["sad", "happy"]},
            "told": {"subtitle": "I see."},
        }.items()
    }
    assert len(set(sizes.values())) == 5


def test_a_stream_holds_the_same_answer_in_events(client):
    whole = ask(client, video("clip0.mp4"))
    chunks = list(ask(client, video("clip0.mp4"), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].affectgpt == whole.affectgpt
    assert chunks[-1].usage == whole.usage


def test_a_seeded_draw_is_repeated_whoever_asks_beside_it(client):
    def draw(seed):
        answer = ask(client, video("clip0.mp4"), temperature=1.5, seed=seed)
        return answer.choices[0].message.content

    alone = draw(5)
    with ThreadPoolExecutor(6) as pool:
        drawn = list(pool.map(draw, [5, 6, 5, 7, 5, 8]))
    assert drawn[0] == drawn[2] == drawn[4] == alone
    assert len(set(drawn)) > 1


def test_models_and_health_are_told(server):
    client, url = server
    (model,) = client.models.list().data
    assert (model.id, model.sees) == ("tiny", ["audio", "frames", "motion"])
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'huge' is not served here; expected 'tiny'"):
        client.models.retrieve("huge")
    assert httpx.get(f"{url}/health").json()["status"] == "ok"


# ---------------------------------------------------------------- misuse

PICTURE = Media.picture(np.zeros((8, 8, 3), np.uint8)).part()
LARGER = Media.picture(np.zeros((8, 9, 3), np.uint8)).part()
HUGE = Media.picture(np.zeros((1600, 1600, 3), np.uint8)).part()
SOUND = Media.sound(np.zeros(1600, np.float32), 16000).part()
MP3 = {"type": "input_audio", "input_audio": {**SOUND["input_audio"], "format": "mp3"}}
SPEAKS = {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"[]", 400, r"the body is \[\]; expected a JSON object"),
        ({"messages": []}, 400, "model is missing; expected 'tiny'"),
        ({"model": "gpt-4o"}, 404, "model 'gpt-4o' is not served here; expected 'tiny'"),
        ({"model": "tiny"}, 400, "messages is None; expected a list"),
        ({"model": "tiny", "messages": [SPEAKS]}, 400, r"messages\[0\].role is 'assistant'; expected user or system"),
        (
            {"model": "tiny", "messages": [{"role": "user", "content": 3}]},
            400,
            r"messages\[0\].content is 3; expected a",
        ),
        ({"model": "tiny", "messages": [{"role": "user", "content": "a"}, SPEAKS]}, 400, "the last message is not the"),
        (
            {"model": "tiny", "messages": [{"role": "system", "content": "a"}]},
            400,
            "the last message is not the user's",
        ),
        (
            {"model": "tiny", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
            400,
            "AffectGPT has none",
        ),
        (asking({"type": "image"}), 400, r"content\[0\]: type is 'image'; expected text, image_url"),
        (asking(video("data:,x")), 400, "the URI begins with 'data:'; expected data:<type>;base64,<data>"),
        (asking(video("data:video/mp4;base64,?")), 400, "the data are no base64"),
        (asking(video("data:video/mp4;base64,AAAA")), 400, r"content\[0\]: cannot be read .*; expected a media file"),
        (asking(video("clip0.mp4"), video("clip1.mp4")), 400, r"content\[1\]: a second video_url"),
        (asking(video("clip0.mp4"), PICTURE), 400, "image_url and video_url together"),
        (asking(video("clip77.mp4")), 400, "no file 'clip77.mp4' below the server's media folder"),
        (asking(PICTURE, LARGER), 400, "pictures of 8 x 8, 9 x 8 pixels; expected frames of one clip"),
        (asking(HUGE), 400, "1600 x 1600 pixels; expected at most 2.5 megapixels"),
        (asking(*[PICTURE] * 33), 400, "33 image_url parts; expected at most 32"),
        (asking({"type": "image_url", "image_url": {"url": "http://x/y.jpg"}}), 400, r"expected a data: URI \(nothing"),
        (
            asking({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
            400,
            "no picture to be read",
        ),
        (asking(MP3), 400, "format says mp3, found wav"),
        (asking(text("Hm?"), affectgpt={"task": "labels"}), 400, "a task has its own question"),
        (asking(affectgpt={"task": "sing"}), 400, "affectgpt.task is 'sing'; expected one of"),
        (asking(affectgpt={"tusk": "labels"}), 400, r"an object with \['tusk'\]; expected an object with some of"),
        (asking(affectgpt={"modalities": ["smell"]}), 400, r"modalities \['smell'\] asked for, but this model has"),
        (asking(), 400, "has nothing to show"),
        (asking(text("a " * 2000)), 400, "tokens, the LLM takes 512"),
        (asking(text("a"), max_tokens=0), 400, "max_tokens is 0; expected 1 to 4096"),
        (asking(text("a"), temperature="hot"), 400, "temperature is 'hot'; expected a number"),
        (asking(text("a"), n=2), 400, "n is 2; expected 1 or nothing"),
        (asking(text("a"), stop=["x"]), 400, r"stop is \['x'\]; expected \[\] or nothing"),
        (asking(text("a"), tempratur=1), 400, "tempratur is 1; expected no such field"),
        (asking(text("a"), response_format={"type": "json_object"}), 400, "cannot be enforced here"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_was_found_and_expected(server, body, status, words):
    found, error = error_of(server[1], body)
    assert found == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(error["message"])
    assert "/tmp" not in error["message"]


@pytest.mark.parametrize(
    "form", ["../{name}", "{outside}", "file://{outside}", "link.mp4", "sub/../../{name}", "a\0b", "."]
)
def test_no_path_leads_out_of_the_media_folder(server, manifest, form):
    outside = manifest.parent.parent / "outside.mp4"
    outside.write_bytes((manifest.parent / "clip0.mp4").read_bytes())
    with contextlib.suppress(FileExistsError):
        (manifest.parent / "link.mp4").symlink_to(outside)
    status, error = error_of(server[1], asking(video(form.format(name=outside.name, outside=outside))))
    assert status == 400
    assert "expected a data: URI, or a path below the server's media folder" in error["message"]


def test_addresses_are_not_fetched(server):
    for url in ("http://127.0.0.1:1/a.mp4", "https://x/y.mp4", "ftp://x/y"):
        assert "expected a data: URI, or a path below" in error_of(server[1], asking(video(url)))[1]["message"]


def test_without_a_media_folder_no_path_is_opened(served, manifest):
    with running(served) as (_, url):
        error = error_of(url, asking(video(manifest.parent / "clip0.mp4")))[1]
    assert "this server has no media_folder=" in error["message"]


@pytest.mark.parametrize("lines", ["ffconcat version 1.0\nfile clip0.mp4\n", "#EXTM3U\n#EXTINF:1,\nclip0.mp4\n"])
def test_a_file_that_names_other_files_does_not_open_them(server, manifest, lines):
    listing = manifest.parent / "list.mp4"  # beside the clip that it names: ffmpeg alone would play it
    listing.write_text(lines)
    for url in ("list.mp4", uri(listing)):
        status, error = error_of(server[1], asking(video(url)))
        assert status == 400
        assert "cannot be read" in error["message"]


def test_what_is_too_long_is_refused(served, manifest):
    with running(served, config={"max_request_mb": 0.01, "media_folder": str(manifest.parent)}) as (_, url):
        assert error_of(url, asking(text("a" * 20000)))[0] == 413
    with running(served, config={"max_media_s": 0.5, "media_folder": str(manifest.parent)}) as (_, url):
        assert "longer than 0.5 s" in error_of(url, asking(video("clip0.mp4")))[1]["message"]


def test_other_content_and_other_addresses_are_answered_in_the_same_form(server):
    status, error = error_of(server[1], asking(text("a")), **{"Content-Type": "text/plain"})
    assert (status, error["message"]) == (415, "Content-Type is 'text/plain'; expected application/json")
    reply = httpx.get(f"{server[1]}/v1/completions")
    assert reply.status_code == 404
    assert "POST /v1/chat/completions" in reply.json()["error"]["message"]


def test_with_a_key_only_those_who_send_it_are_answered(served):
    with running(served, api_key="säcret") as (_, url):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic säcret".encode()}):
            assert httpx.get(f"{url}/v1/models", headers=header).status_code == 401
        status, error = error_of(url, asking(text("a")))
        assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
        assert "AFFECTGPT_API_KEY" in error["message"]
        reply = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer säcret".encode()})
        assert reply.status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200


# ---------------------------------------------------------------- load


class Slow:
    """Answers with the question in capitals, when `go` is set; `bad` in a question is an error."""

    name, sees = "tiny", ()

    def __init__(self):
        self.go = threading.Event()
        self.batches = []

    def prepare(self, ask, files):
        return Prepared(ask.turns[0][1], ask.wish, {})

    def generate(self, items):
        assert self.go.wait(20)
        self.batches.append([item.inputs for item in items])
        if any("bad" in item.inputs for item in items):
            raise ValueError("a bad question")
        if any("broken" in item.inputs for item in items):
            raise KeyError("inside")
        return [Reply(item.inputs.upper(), 1, 1, "eos", {}) for item in items]


def wait_for(url: str, **values) -> None:
    for _ in range(500):
        if values.items() <= httpx.get(f"{url}/health").json().items():
            return
        time.sleep(0.01)
    raise AssertionError(httpx.get(f"{url}/health").json())


def test_a_full_server_says_when_to_come_again_and_the_client_does(tmp_path):
    slow = Slow()
    with running(slow, config={"max_requests": 2}) as (client, url), ThreadPoolExecutor(3) as pool:
        first = [pool.submit(ask, client, text(word)) for word in ("a", "b")]
        wait_for(url, requests=2)
        reply = httpx.post(f"{url}/v1/chat/completions", json=asking(text("c")))
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        assert reply.json()["error"]["type"] == "rate_limit_error"
        patient = ChatClient("tiny", base_url=f"{url}/v1", cache=tmp_path / "c.jsonl", backoff_s=0.05)
        third = pool.submit(patient.ask, [("user", "c")])
        time.sleep(0.2)
        slow.go.set()
        assert [item.result().choices[0].message.content for item in first] == ["A", "B"]
        assert third.result().text == "C"
        assert patient.stats.retries >= 1
        wait_for(url, requests=0)


def test_one_bad_request_of_a_batch_fails_alone():
    slow = Slow()
    with running(slow, config={"max_wait_ms": 300}) as (client, _), ThreadPoolExecutor(3) as pool:
        slow.go.set()
        answers = [pool.submit(ask, client, text(word)) for word in ("good", "bad", "broken")]
        assert answers[0].result().choices[0].message.content == "GOOD"
        with pytest.raises(openai.BadRequestError, match="a bad question"):
            answers[1].result()
        with pytest.raises(openai.InternalServerError, match="its log says why"):
            answers[2].result()
    assert max(map(len, slow.batches)) == 3


def test_a_failure_in_a_stream_is_an_error_of_the_client():
    slow = Slow()
    slow.go.set()
    with running(slow) as (client, _), pytest.raises(openai.APIError, match="a bad question"):
        list(ask(client, text("bad"), stream=True))


def test_a_request_whose_client_has_gone_is_not_generated():
    slow = Slow()
    with running(slow, config={"max_batch": 1}) as (client, url), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, client, text("first"))
        wait_for(url, requests=1, waiting=0)
        with pytest.raises(openai.APITimeoutError):
            ask(client, text("gone"), timeout=0.3)
        wait_for(url, requests=1)
        slow.go.set()
        first.result()
    assert slow.batches == [["first"]]


def test_batches_hold_equal_wishes_in_order_and_no_more_than_allowed():
    batches = []

    def generate(items):
        batches.append([item.inputs for item in items])
        return [Reply(item.inputs, 0, 0, "eos", {}) for item in items]

    async def main():
        batcher = Batcher(generate, max_batch=3, max_wait_s=0.02)
        work = asyncio.ensure_future(batcher.run())
        wishes = [Wish(8), Wish(9), Wish(8), Wish(8), Wish(8), Wish(8, 1.0, 1.0, 3), Wish(8, 1.0, 1.0, 3)]
        futures = [batcher.put(Prepared(str(place), wish, {})) for place, wish in enumerate(wishes)]
        futures[4].cancel()
        futures.append(batcher.put(Prepared("7", Wish(8), {})))
        replies = [await future for place, future in enumerate(futures) if place != 4]
        work.cancel()
        return [reply.text for reply in replies]

    assert asyncio.run(main()) == ["0", "1", "2", "3", "5", "6", "7"]
    assert sorted(batches) == [["0", "2", "3"], ["1"], ["5"], ["6"], ["7"]]


# ---------------------------------------------------------------- other models and other clients


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return load(tiny_chat.write_qwen2_5_omni(tmp_path_factory.mktemp("omni")), device="cpu")


def test_another_chat_model_answers_as_it_does_in_process(chat, manifest):
    clip = manifest.parent / "clip2.mp4"
    config = {"name": "tiny", "n_frames": 4, "media_folder": str(manifest.parent)}
    with running(Chat(chat, conf.ServeConfig(**config)), config=config) as (client, url):
        answer = ask(client, video("clip2.mp4"), text("How is she?"))
        only_text = ask(
            client, messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}]
        )
        pictures = ask(client, *frames_of(clip, 4), text("How is she?"))
        refused = error_of(url, asking(text("a"), temperature=1))[1]["message"]
        wrong = error_of(url, asking(text("a"), affectgpt={"task": "labels"}))[1]["message"]
    served = Chat(chat, conf.ServeConfig(**config))
    assert answer.affectgpt["modalities"] == ["frames", "audio"]
    assert pictures.affectgpt == {"modalities": ["frames"], "media": {"frames": {"pictures": [0, 1, 2, 3]}}}
    (alone,) = chat.answer([Request("Hm?", system="Be brief.")], N)
    assert (only_text.choices[0].message.content, only_text.usage.prompt_tokens) == (alone.text, alone.n_prompt_tokens)
    body = {"model": "tiny", "messages": [{"role": "user", "content": [video("clip2.mp4"), text("How is she?")]}]}
    prepared = serve.prepare(served, read_ask(body, "tiny", conf.ServeConfig(**config)), conf.ServeConfig(**config))
    frames = read_frames(clip, 4)
    assert (prepared.inputs.images == frames.images).all()
    assert prepared.inputs.sound.duration_s == pytest.approx(chat.max_sound_s, abs=0.1)
    (direct,) = chat.answer([prepared.inputs], N)
    assert answer.choices[0].message.content == direct.text
    assert "answers greedily here" in refused
    assert "affectgpt is for AffectGPT" in wrong


def test_the_chat_client_of_this_project_is_answered(server, manifest, tmp_path):
    client = ChatClient("tiny", base_url=f"{server[1]}/v1", cache=tmp_path / "c.jsonl", max_tokens=N)
    image = read_frames(manifest.parent / "clip0.mp4", 1).images[0]
    sound = Media.sound(np.zeros(4000, np.float32), 16000)
    answers = client.ask_all([[("user", [Media.picture(image), sound, f"Question {number}?"])] for number in range(4)])
    assert len(answers) == client.stats.calls == 4
    assert {answer.finish for answer in answers} <= {"stop", "length"}


def test_the_zero_shot_command_asks_it_like_any_server(server, manifest, tmp_path):
    from affectgpt.zeroshot.run import run

    config = conf.ZeroShotConfig(manifest=str(manifest), split="test", out=str(tmp_path / "p.jsonl"))
    config.ask = conf.AskConfig(model="tiny", base_url=f"{server[1]}/v1", max_new_tokens=N, n_frames=2)
    config.paths = conf.PathsConfig(cache=str(tmp_path))
    assert run(config) == 0
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 3


def test_the_annotation_command_asks_it_for_clues(server, manifest, tmp_path):
    from affectgpt.annotate.run import run
    from affectgpt.cli import compose

    out = tmp_path / "out"
    steps = "[{name: measure}, {name: visual, annotator: vision, needs: [measure]}]"
    settings = [f"input=['{manifest}']", f"out='{out}'", "limit=2", f"pipeline.steps={steps}", "annotator=openai"]
    settings += ["annotator.model=tiny", f"annotator.base_url={server[1]}/v1", "annotator.structured=none"]
    run(compose("annotate", [*settings, f"annotator.max_tokens={N}"]))
    answers = [json.loads(line) for line in (out / "store" / "answers.jsonl").read_text().splitlines()]
    assert {row["step"] for row in answers} >= {"visual"}
    assert all(row["answered_by"] == "tiny" and row["tokens_out"] > 0 for row in answers)
    assert "HTTP" not in "".join(path.read_text() for path in out.glob("failed.jsonl"))


# ---------------------------------------------------------------- the command


def test_sigterm_finishes_what_runs(trained, manifest):
    command = [sys.executable, "-m", "affectgpt.serve", str(trained), "port=0", "device=cpu", "name=tiny"]
    command += [f"media_folder={manifest.parent}", "max_wait_ms=1500", f"max_new_tokens={N}"]
    environment = {**os.environ, "AFFECTGPT_API_KEY": "k", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    with process, ThreadPoolExecutor(1) as pool:
        try:
            line = next(line for line in process.stderr if line.startswith("serving"))
            assert line.startswith("serving tiny (audio, frames, motion) at http://127.0.0.1:")
            url = line.split(" at ")[1].strip()
            client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
            answer = pool.submit(ask, client, video("clip0.mp4"))
            for _ in range(1000):
                if httpx.get(f"{url.removesuffix('/v1')}/health", timeout=30).json()["waiting"]:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert answer.result().choices[0].message.content
            assert process.wait(30) == 143
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_batch": 0}, "max_batch is 0; expected above 0"),
        ({"media_folder": "/no/such"}, "media_folder=/no/such: no such folder"),
        ({"model": "x", "quantization": "nf4"}, "model= serves another chat model"),
    ],
)
def test_settings_that_make_no_sense_are_explained(settings, words, monkeypatch):
    monkeypatch.delenv("AFFECTGPT_API_KEY", raising=False)
    with pytest.raises(UserError, match=words):
        serve.run_server(conf.ServeConfig(port=0, **settings))


def test_a_taken_port_and_an_empty_key_are_named_before_anything_is_loaded(monkeypatch):
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: cannot listen there"):
            serve.run_server(conf.ServeConfig(port=port))
    monkeypatch.setenv("AFFECTGPT_API_KEY", " ")
    with pytest.raises(UserError, match="AFFECTGPT_API_KEY is set but empty"):
        serve.run_server(conf.ServeConfig(port=0))


def test_without_the_extra_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"serving needs uvicorn; pip install 'affectgpt\[serve\]'"):
        serve.run_server(conf.ServeConfig(port=0))


def test_a_header_that_lies_about_its_length_does_not_get_past_the_limit(manifest):
    with pytest.raises(Problem, match=r"longer than 0\.2 s \(max_media_s\)"):
        serve.check_media(manifest.parent / "clip0.mp4", serve.Medium("x"), conf.ServeConfig(max_media_s=0.2))


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['serve', '--help']\nfrom affectgpt.cli import serve\n"
        "try: serve()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "max_wait_ms" in shown.stdout
    assert shown.stdout.endswith("False\n")
