import json
import shutil

import pytest

from affectgpt import cli
from affectgpt.data.sources import read_source
from affectgpt.schema import read_samples
from tests.data import layouts
from tests.data.layouts import NAMES


@pytest.fixture
def folder(tmp_path):
    layouts.openset(tmp_path, "ovmerd")
    for path in (tmp_path / "video").iterdir():
        path.unlink()
    return layouts.media(tmp_path, real=True)


def run(*arguments):
    return cli.run("data", [str(item) for item in arguments])


def test_a_good_data_set_has_no_problems(folder, capsys):
    assert run("check", "format=ovmerd", f"folder={folder}") == 0
    printed = capsys.readouterr().out
    assert "rows 3, usable 3, bad 0" in printed
    assert "labels: 2, 2 distinct, 2.00 per labelled clip" in printed
    assert "duration: 1.00 to 1.0" in printed
    assert printed.endswith("ok: no problems found\n")


def test_problems_are_counted_by_kind_and_give_exit_code_1(folder, capsys):
    video = folder / "video"
    (video / f"{NAMES[0]}.mp4").write_bytes((video / f"{NAMES[0]}.mp4").read_bytes()[:900])
    (video / f"{NAMES[1]}.mp4").unlink()
    assert run("check", "format=ovmerd", f"folder={folder}", f"out={folder / 'report'}") == 1
    printed = capsys.readouterr().out
    assert "problem: 1 truncated files" in printed
    assert "problem: 1 missing files" in printed
    report = json.loads((folder / "report" / "health.json").read_text())
    assert [row["id"] for row in report["reports"][0]["bad"]] == list(NAMES[:2])
    for name in ("health.png", "health.svg", "bad_samples.jsonl"):
        assert (folder / "report" / name).stat().st_size


def test_one_file_with_two_ids_and_a_text_in_another_language_are_problems(folder, capsys):
    shutil.copy(folder / "video" / f"{NAMES[0]}.mp4", folder / "video" / f"{NAMES[1]}.mp4")
    layouts.write_csv(folder / "track3_train_ovmerd.csv", ("name", "reason"), (NAMES[2], "她皱眉，声音低沉。"))
    assert run("check", "format=ovmerd", f"folder={folder}") == 1
    printed = capsys.readouterr().out
    assert f"1 files have several ids, for example {NAMES[0]} = {NAMES[1]}" in printed
    assert f"1 descriptions are not in their stated language, for example of '{NAMES[2]}'" in printed


def test_a_converted_data_set_has_the_same_samples(folder, capsys):
    out = folder / "made" / "manifest.jsonl"
    assert run("convert", "format=ovmerd", f"folder={folder}", f"out={out}") == 0
    from affectgpt.config import SourceConfig

    before = read_source(SourceConfig(format="ovmerd", folder=str(folder))).samples
    after, _ = read_samples(out)
    assert [sample.labels for sample in after] == [sample.labels for sample in before]
    assert [sample.subtitle for sample in after] == [sample.subtitle for sample in before]
    assert after[0].in_language("zh").subtitle == before[0].in_language("zh").subtitle == "我很好。"
    assert json.loads(out.read_text().splitlines()[0])["video"] == f"../video/{NAMES[0]}.mp4"


def test_preference_pairs_are_checked_and_converted(tmp_path, capsys):
    layouts.preferences(tmp_path)
    assert run("check", "format=preference", f"folder={tmp_path}") == 0
    assert "3 pairs of 2 clips; preferred: same 2, a1 1" in capsys.readouterr().out
    out = tmp_path / "pairs.jsonl"
    assert run("convert", "format=preference", f"folder={tmp_path}", f"out={out}") == 0
    assert json.loads(out.read_text().splitlines()[0])["preference"] == "a1"


def test_every_format_is_listed_and_errors_say_what_was_expected(tmp_path, capsys):
    assert run("formats") == 0
    assert "mercaptionplus" in capsys.readouterr().out
    assert run("check", "format=ovmerd") == 2
    assert "set the folder of the data set: folder=" in capsys.readouterr().err
    assert run("check", "formt=ovmerd") == 2
    assert "unknown setting 'formt'" in capsys.readouterr().err
    assert run("convert", "format=ovmerd", f"folder={tmp_path}", "out=x.csv") == 2
