"""Invalid requests are refused with what was found and expected; nothing outside the media folder is opened."""

import contextlib

import numpy as np
import pytest

from affectgpt.chat.served import image_part, sound_part
from affectgpt.media import Waveform
from tests.serve.conftest import asking, error_of, running, text, video

PICTURE = image_part(np.zeros((8, 8, 3), np.uint8))
LARGER = image_part(np.zeros((8, 9, 3), np.uint8))
HUGE = image_part(np.zeros((1600, 1600, 3), np.uint8))
SOUND = sound_part(Waveform(np.zeros(1600, np.float32), 16000, 0.1, 16000, 1))
MP3 = {"type": "input_audio", "input_audio": {**SOUND["input_audio"], "format": "mp3"}}
SPEAKS = {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "the body is not JSON"),
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
        (
            {"model": "tiny", "messages": [{"role": "user", "content": "a"}, SPEAKS]},
            400,
            "the last message is not from",
        ),
        (
            {"model": "tiny", "messages": [{"role": "system", "content": "a"}]},
            400,
            "the last message is not from the user",
        ),
        (
            {"model": "tiny", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
            400,
            "AffectGPT has none",
        ),
        (asking({"type": "image"}), 400, r"content\[0\]: type is 'image'; expected text, image_url"),
        (asking(video("data:,x")), 400, "the URI begins with 'data:'; expected data:<type>;base64,<data>"),
        (asking(video("data:video/mp4;base64,?")), 400, "the data is not base64"),
        (asking(video("data:video/mp4;base64,AAAA")), 400, r"content\[0\]: cannot be read .*; expected a media file"),
        (asking(video("clip0.mp4"), video("clip1.mp4")), 400, r"content\[1\]: a second video_url"),
        (asking(video("clip0.mp4"), PICTURE), 400, "image_url and video_url together"),
        (asking(video("clip77.mp4")), 400, "no file 'clip77.mp4' below the server's media folder"),
        (asking(PICTURE, LARGER), 400, "images of 8 x 8, 9 x 8 pixels; expected frames of one clip"),
        (asking(HUGE), 400, "1600 x 1600 pixels; expected at most 2.5 megapixels"),
        (asking(*[PICTURE] * 33), 400, "33 image_url parts; expected at most 32"),
        (asking({"type": "image_url", "image_url": {"url": "http://x/y.jpg"}}), 400, r"expected a data: URI \(nothing"),
        (
            asking({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
            400,
            "the image cannot be read",
        ),
        (asking(MP3), 400, "format is mp3, found wav"),
        (asking(text("Hm?"), affectgpt={"task": "labels"}), 400, "a task has its own question"),
        (asking(affectgpt={"task": "sing"}), 400, "affectgpt.task is 'sing'; expected one of"),
        (asking(affectgpt={"person": "me"}), 400, "affectgpt.person is 'me'; expected one of"),
        (asking(affectgpt={"tusk": "labels"}), 400, r"an object with \['tusk'\]; expected an object with some of"),
        (asking(affectgpt={"modalities": ["smell"]}), 400, r"modalities \['smell'\] asked for, but this model has"),
        (asking(), 400, "has nothing to show"),
        (asking(text("a " * 2000)), 400, "tokens, the LLM takes 512"),
        (asking(text("a"), max_tokens=0), 400, "max_tokens is 0; expected 1 to 4096"),
        (asking(text("a"), temperature="hot"), 400, "temperature is 'hot'; expected a number"),
        (asking(text("a"), temperature=1e-300), 400, "temperature is 1e-300; expected 0, or 0.01 to 2"),
        (asking(text("a"), temperature=10**400), 400, r"temperature is 1000.*\(401 characters\); expected 0, or 0.01"),
        (asking(text("a"), top_p=1e-300), 400, "top_p is 1e-300; expected 1e-06 to 1"),
        (asking(text("a"), top_p=10**400), 400, r"top_p is 1000.*\(401 characters\); expected 1e-06 to 1"),
        (asking(text("a"), max_tokens=10**400), 400, r"max_tokens is 1000.*\(401 characters\); expected 1 to"),
        (asking(text("a"), seed=10**400), 400, r"seed is 1000.*\(401 characters\); expected 0 to"),
        (asking(text("a"), seed=float("nan")), 400, "the body is not JSON .NaN is no JSON number"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", 400, "the body is not JSON"),
        (b"[" * 900 + b"]" * 900, 400, "the body has more than 32 levels of lists and objects"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (asking(text("\ud83d")), 400, r"messages\[0\].content\[0\].text: half of a surrogate pair; expected Unicode"),
        (asking(affectgpt={"subtitle": "a\udc80"}), 400, "affectgpt.subtitle: half of a surrogate pair"),
        ({"model": "\ud83d"}, 400, "model: half of a surrogate pair"),
        (asking(**{"\ud83d": 1}), 400, "the body: a field name with half of a surrogate pair"),
        (asking(video("a" * 300 + ".mp4")), 400, "no file 'aaa.*below the server's media folder"),
        (asking(video("a/" * 3000)), 400, "no file 'a/a/.*below the server's media folder"),
        (asking(text("a"), n=2), 400, "n is 2; expected 1 or nothing"),
        (asking(text("a"), stop=["x"]), 400, r"stop is \['x'\]; expected \[\] or nothing"),
        (asking(text("a"), tempratur=1), 400, "tempratur is 1; expected no such field"),
        (asking(text("a"), response_format={"type": "json_object"}), 400, "cannot enforce a format"),
    ],
)
def test_an_invalid_request_is_refused_with_what_was_found_and_expected(server, body, status, words):
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
