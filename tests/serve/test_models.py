"""Answers are those of infer.py, and report which media were used."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from affectgpt import config as conf
from affectgpt.chat.local import load
from affectgpt.chat.request import Request
from affectgpt.chat.served import sound_part
from affectgpt.media import Waveform, read_frames
from affectgpt.serve.errors import APIError
from affectgpt.serve.models import ChatModel, prepare
from affectgpt.serve.request import read_request
from tests.chat import tiny_chat
from tests.serve.conftest import N, ask, asking, error_of, frames_of, running, text, uri, video


def test_a_video_gets_the_answer_of_infer_from_the_same_media(client, inferred, manifest):
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


def test_nothing_is_kept_of_a_request_whether_it_succeeds_or_fails(served, manifest):
    config, clip = conf.ServeConfig(), video(uri(manifest.parent / "clip0.mp4"))
    prepare(served, read_request(asking(clip), "tiny", config), config)
    assert not served._facts._known
    with pytest.raises(APIError, match="modalities"):
        prepare(served, read_request(asking(clip, affectgpt={"modalities": ["face"]}), "tiny", config), config)
    assert not served._facts._known


def test_the_prompt_says_whom_it_is_about(client, manifest):
    clip = video(uri(manifest.parent / "clip0.mp4"))
    asked = ({"lang": "en"}, {"person": "speaker"}, {"person": "listener"})
    n_tokens = [ask(client, clip, affectgpt=options).usage.prompt_tokens for options in asked]
    assert n_tokens[0] < n_tokens[1] < n_tokens[2]


@pytest.mark.parametrize(("short_clips", "order"), [("even", [0, 0, 1, 1]), ("last", [0, 1, 1, 1])])
def test_fewer_images_than_the_model_takes_are_filled_up_as_in_training(
    served, manifest, monkeypatch, short_clips, order
):
    branch = served._processor.branches["frames"]
    monkeypatch.setitem(branch, "n_frames", 4)
    monkeypatch.setitem(branch, "short_clips", short_clips)
    config, pictures = conf.ServeConfig(), frames_of(manifest.parent / "clip3.mp4", 2)
    prepared = prepare(served, read_request(asking(*pictures), "tiny", config), config)
    assert prepared.facts["media"]["frames"]["pictures"] == order


def test_frames_sent_as_images_leave_out_the_motion_branch_and_the_answer_reports_it(client, manifest):
    clip = manifest.parent / "clip3.mp4"
    told = ask(client, *frames_of(clip, 4), affectgpt={"task": "labels"}).affectgpt
    assert told["modalities"] == ["frames"]
    assert told["media"] == {"frames": {"pictures": [0, 2]}}
    assert told["left_out"] == {
        "audio": "not in the request",
        "motion": "the clip was sent as images, not as a video",
    }


def test_lossless_images_give_the_answer_of_the_video(served, client, manifest):
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
        prepare(served, read_request(asking(*parts), "tiny", config), config).inputs["pixel_values"]
        for parts in (pictures, pictures[::-1], [video("clip4.mp4")])
    ]
    assert (fed[0] == fed[2]).all()
    assert (fed[1] == fed[2].flip(0)).all()


def test_sound_replaces_the_audio_track_of_the_video(client, manifest):
    tone = sound_part(Waveform((0.3 * np.sin(np.arange(8000))).astype(np.float32), 16000, 0.5, 16000, 1))
    told = ask(client, video("clip0.mp4"), tone).affectgpt
    assert told["media"]["audio"]["duration_s"] == 0.5
    alone = ask(client, tone)
    assert alone.affectgpt["modalities"] == ["audio"]


def test_text_replaces_the_question_of_the_task(served, client, manifest):
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


def test_a_seeded_sample_is_reproduced_next_to_other_requests(client):
    def draw(seed):
        answer = ask(client, video("clip0.mp4"), temperature=1.5, seed=seed)
        return answer.choices[0].message.content

    alone = draw(5)
    with ThreadPoolExecutor(6) as pool:
        drawn = list(pool.map(draw, [5, 6, 5, 7, 5, 8]))
    assert drawn[0] == drawn[2] == drawn[4] == alone
    assert len(set(drawn)) > 1


def test_a_seed_is_for_its_request_alone(served, manifest):
    config, clip = conf.ServeConfig(), video(uri(manifest.parent / "clip0.mp4"))

    def draw(**more):
        body = asking(clip, temperature=1.5, max_tokens=N, **more)
        (reply,) = served.generate([prepare(served, read_request(body, "tiny", config), config)])
        return reply.text

    before = torch.get_rng_state()
    seeded = draw(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    draw()
    assert not torch.equal(torch.get_rng_state(), before)
    assert draw(seed=1) == seeded


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return load(tiny_chat.write_qwen2_5_omni(tmp_path_factory.mktemp("omni")), device="cpu")


def test_another_chat_model_answers_as_it_does_in_process(chat, manifest):
    clip = manifest.parent / "clip2.mp4"
    config = {"name": "tiny", "n_frames": 4, "media_folder": str(manifest.parent)}
    with running(ChatModel(chat, conf.ServeConfig(**config)), config=config) as (client, url):
        answer = ask(client, video("clip2.mp4"), text("How is she?"))
        only_text = ask(
            client, messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}]
        )
        pictures = ask(client, *frames_of(clip, 4), text("How is she?"))
        refused = error_of(url, asking(text("a"), temperature=1))[1]["message"]
        wrong = error_of(url, asking(text("a"), affectgpt={"task": "labels"}))[1]["message"]
    served = ChatModel(chat, conf.ServeConfig(**config))
    assert answer.affectgpt["modalities"] == ["frames", "audio"]
    assert pictures.affectgpt == {"modalities": ["frames"], "media": {"frames": {"pictures": [0, 1, 2, 3]}}}
    (alone,) = chat.answer([Request("Hm?", system="Be brief.")], N)
    assert (only_text.choices[0].message.content, only_text.usage.prompt_tokens) == (alone.text, alone.n_prompt_tokens)
    body = {"model": "tiny", "messages": [{"role": "user", "content": [video("clip2.mp4"), text("How is she?")]}]}
    prepared = prepare(served, read_request(body, "tiny", conf.ServeConfig(**config)), conf.ServeConfig(**config))
    frames = read_frames(clip, 4)
    assert (prepared.inputs.images == frames.images).all()
    assert prepared.inputs.sound.duration_s == pytest.approx(chat.max_sound_s, abs=0.1)
    (direct,) = chat.answer([prepared.inputs], N)
    assert answer.choices[0].message.content == direct.text
    assert "only decodes greedily here" in refused
    assert "affectgpt is for AffectGPT" in wrong
