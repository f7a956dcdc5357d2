"""Files for Label Studio: its document root, the storages below it, and copies that browsers play."""

from __future__ import annotations

import json

import pytest

from affectgpt.annotate.review.labelstudio import ReviewError
from affectgpt.annotate.review.served import Served, served_from
from tests.annotate.review.rounds import run
from tests.annotate.toy import record, write_records
from tests.media.media_files import numbered_clip, write_media


def files(folder, *names):
    return {name: folder / name for name in names}


def test_no_storage_is_the_document_root_itself_and_all_lie_below_it(tmp_path):
    copies = tmp_path / "review" / "media"
    for names, root, storages in (
        (["a/1.mp4", "a/2.mp4"], "", ["a"]),
        (["a/x/1.mp4", "a/y/2.mp4"], "", ["a"]),
        (["a/1.mp4", "review/media/2.mp4"], "", ["a", "review/media"]),
        (["review/media/2.mp4"], "review", ["review/media"]),
        (["1.mp4", "review/media/2.mp4"], "..", ["."]),
    ):
        served = served_from(files(tmp_path, *names), copies, None)
        assert served == Served((tmp_path / root).resolve(), tuple((tmp_path / one).resolve() for one in storages))


def test_with_a_media_root_that_holds_the_clips_in_folders_each_folder_is_a_storage(tmp_path):
    served = served_from(files(tmp_path, "a/1.mp4", "b/c/2.mp4"), tmp_path / "media", tmp_path)
    assert served.storages == (tmp_path / "a", tmp_path / "b")
    with pytest.raises(ReviewError, match=rf"lies directly in media_root={tmp_path}; .*media_root={tmp_path.parent}"):
        served_from(files(tmp_path, "1.mp4"), tmp_path / "media", tmp_path)
    with pytest.raises(ReviewError, match="is outside media_root="):
        served_from(files(tmp_path, "a/1.mp4"), tmp_path / "media", tmp_path / "b")


def test_clips_that_browsers_do_not_play_are_named_and_with_transcode_copies_are_shown(tmp_path, capsys):
    clips = tmp_path / "clips"
    clips.mkdir()
    media = {name.partition(".")[0]: write_media(clips / name, numbered_clip(5)) for name in ("good.mp4", "old.mkv")}
    source = write_records(
        tmp_path / "coarse", [record(name, media={"video": str(path)}) for name, path in media.items()]
    )
    fine = tmp_path / "fine"
    setting = ["review", source, f"to={fine}", "round=1", "annotators=ann", "screens=labels"]
    assert run(*setting) == 0
    said = capsys.readouterr().out
    assert "NOT PLAYED by browsers: 1 mkv" in said
    assert f"DOCUMENT_ROOT={tmp_path} " in said
    assert f"\n  {tmp_path / 'clips'}\n" in said
    assert run(*setting, "transcode=true") == 0
    said = capsys.readouterr().out
    assert "not played by browsers: 1 mkv; copies as mp4" in " ".join(said.split())
    assert f"\n  {tmp_path / 'clips'}\n  {fine / 'media'}\n" in said
    (copy,) = (fine / "media").iterdir()
    tasks = json.loads((fine / "round1" / "labels.video.ann.json").read_text())
    assert [task["data"]["clip"] for task in tasks] == [
        "/data/local-files/?d=clips/good.mp4",
        f"/data/local-files/?d=fine/media/{copy.name}",
    ]
    media["old"].write_bytes(b"damaged")
    for path in (fine / "review.json", copy):
        path.unlink()
    assert run(*setting, "transcode=true") == 0
    assert "1  left out: cannot be played: MediaError" in capsys.readouterr().out
