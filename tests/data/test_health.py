import json
import shutil

import pytest

from affectgpt import cli
from affectgpt.config import SourceConfig
from affectgpt.data.sources import read_source
from affectgpt.runtime import InputError
from affectgpt.schema import read_samples
from tests.data import layouts
from tests.data.layouts import NAMES
from tests.media.crashing import read_audio_or_crash
from tests.media.media_files import sine, write_media


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


def test_the_first_bad_rows_of_each_kind_are_listed_with_line_and_reason(tmp_path, capsys):
    rows = [f"c{n},,Hi,{'[[' if n % 2 else 'sad'}" for n in range(16)] + ["d,,Hi,sad,more", "c0,,Hi,sad"]
    (tmp_path / "m.csv").write_text("\n".join(["id,video,subtitle,labels", *rows]))
    assert run("check", tmp_path / "m.csv") == 1
    printed = capsys.readouterr().out
    assert "rows 18, usable 8, bad 10" in printed
    assert "problem: 8 rows with unusable labels:" in printed
    assert f"{tmp_path / 'm.csv'}:3: sample 'c1': labels must be a list of words" in printed
    assert "    ... and 3 more" in printed
    assert f"{tmp_path / 'm.csv'}:18: sample '?': expected 4 cells, found 5" in printed
    assert "problem: 1 rows with a duplicate id:" in printed


def test_own_columns_are_mapped_in_check_and_convert(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("clip;text;emotions;speaker\n00001;Hi;sad;Ann\n00002;Yes;happy, proud;Bo\n")
    columns = "columns={id: clip, subtitle: text, labels: emotions}"
    assert run("check", tmp_path / "m.csv", columns) == 0
    assert "labels: 3, 3 distinct" in capsys.readouterr().out
    assert run("convert", tmp_path / "m.csv", columns, f"out={tmp_path / 'out.jsonl'}") == 0
    samples, _ = read_samples(tmp_path / "out.jsonl")
    assert [(sample.id, sample.subtitle, sample.labels) for sample in samples] == [
        ("00001", "Hi", ("sad",)),
        ("00002", "Yes", ("happy", "proud")),
    ]


def test_own_columns_are_mapped_in_the_tables_of_a_format(folder):
    table = folder / "track2_train_ovmerd.csv"
    table.write_text(table.read_text().replace("openset", "Emotions", 1))
    source = {"format": "ovmerd", "folder": str(folder)}
    labels = [sample.labels for sample in read_source(SourceConfig(**source, columns={"openset": "Emotions"})).samples]
    assert any(labels)
    with pytest.raises(InputError, match="no column 'openset', found"):
        read_source(SourceConfig(**source))
    with pytest.raises(InputError, match="columns= names 'words', but no table has this column"):
        read_source(SourceConfig(**source, columns={"openset": "Emotions", "reason2": "words"}))


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


def test_a_decoder_that_crashes_names_the_file_and_the_check_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("affectgpt.data.clips.read_audio", read_audio_or_crash)
    for number in range(3):
        write_media(tmp_path / f"{number}.wav", sound=sine(0.2), audio_codec="pcm_s16le")
    rows = [f"c{number},{number}.wav" for number in range(3)]
    (tmp_path / "m.csv").write_text("\n".join(["id,audio", *rows]))
    assert run("check", tmp_path / "m.csv", "decode=true") == 1
    printed = capsys.readouterr().out
    assert "rows 3, usable 2, bad 1" in printed
    assert f"{tmp_path / '1.wav'}: the decoder crashed (SIGSEGV); the file is probably damaged" in printed
