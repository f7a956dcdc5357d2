"""Format and limits of media are checked before decoding."""

import pytest

from affectgpt import config as conf
from affectgpt.serve.errors import APIError
from affectgpt.serve.media import check_media
from affectgpt.serve.request import MediaPart
from tests.serve.conftest import asking, error_of, running, text, uri, video


@pytest.mark.parametrize("lines", ["ffconcat version 1.0\nfile clip0.mp4\n", "#EXTM3U\n#EXTINF:1,\nclip0.mp4\n"])
def test_a_file_that_names_other_files_does_not_open_them(server, manifest, lines):
    listing = manifest.parent / "list.mp4"  # beside the clip that it names: ffmpeg alone would play it
    listing.write_text(lines)
    for url in ("list.mp4", uri(listing)):
        status, error = error_of(server[1], asking(video(url)))
        assert status == 400
        assert "cannot be read" in error["message"]


def test_media_that_are_too_long_are_refused(served, manifest):
    with running(served, config={"max_request_mb": 0.01, "media_folder": str(manifest.parent)}) as (_, url):
        assert error_of(url, asking(text("a" * 20000)))[0] == 413
    with running(served, config={"max_media_s": 0.5, "media_folder": str(manifest.parent)}) as (_, url):
        assert "longer than 0.5 s" in error_of(url, asking(video("clip0.mp4")))[1]["message"]


def test_a_wrong_duration_in_a_header_does_not_pass_the_limit(manifest):
    with pytest.raises(APIError, match=r"longer than 0\.2 s \(max_media_s\)"):
        check_media(manifest.parent / "clip0.mp4", MediaPart("x"), conf.ServeConfig(max_media_s=0.2))
