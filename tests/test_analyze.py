"""The analyses: published figures recomputed, and every command with its table, JSON, PNG and SVG."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from affectgpt.analyze import ANALYSES, correlation_matrix
from affectgpt.cli import run, table, words
from affectgpt.cli.parser import parse
from affectgpt.runtime import UserError
from tests.chat.chat_server import ChatServer

pytest.importorskip("matplotlib")

# OV-MER paper, Table 4: F_S by GPT grouping, M1, M2, M3-W1-L1, M3-W1-L2, ..., M3-W5-L2, M-avg.
TABLE_4 = {
    "Qwen-Audio": (38.13, 20.49, 23.37, 43.85, 26.60, 41.52, 26.68, 39.46, 30.65, 36.64, 27.33, 35.89, 29.66, 31.84),
    "Otter": (43.51, 22.21, 27.99, 49.75, 33.50, 49.93, 33.04, 51.03, 37.12, 47.54, 34.77, 50.51, 35.54, 39.41),
    "Video-LLaMA": (44.73, 23.56, 28.39, 52.90, 36.08, 53.60, 35.33, 47.50, 36.50, 52.97, 35.78, 46.39, 34.77, 40.31),
    "VideoChat": (45.53, 22.15, 26.24, 47.79, 32.64, 47.76, 32.14, 46.78, 34.37, 49.53, 32.82, 45.93, 32.85, 37.58),
    "SECap": (45.72, 26.52, 32.88, 52.26, 37.55, 52.11, 37.71, 50.77, 40.49, 50.43, 38.21, 49.97, 40.25, 42.43),
    "Video-LLaVA": (47.07, 25.47, 30.73, 54.65, 37.65, 54.54, 38.25, 52.29, 40.58, 52.45, 39.91, 52.97, 39.69, 43.27),
    "SALMONN": (47.96, 23.57, 28.83, 54.90, 38.93, 54.29, 37.79, 56.25, 43.01, 50.53, 38.54, 53.65, 42.09, 43.53),
    "VideoChat2": (49.07, 26.92, 31.40, 52.38, 36.44, 53.56, 36.91, 52.14, 40.57, 50.63, 39.64, 51.37, 39.89, 42.65),
    "Video-ChatGPT": (50.52, 28.99, 34.05, 57.66, 41.48, 57.37, 40.95, 55.50, 44.15, 55.24, 42.42, 52.93, 41.54, 46.02),
    "LLaMA-VID": (51.25, 28.28, 32.85, 56.59, 41.22, 57.49, 40.39, 55.12, 44.06, 56.62, 42.42, 53.03, 41.65, 45.81),
    "mPLUG-Owl": (52.73, 27.47, 32.47, 57.60, 41.32, 56.32, 40.83, 55.67, 43.71, 55.06, 40.67, 54.44, 42.00, 45.63),
    "Chat-UniVi": (53.08, 28.89, 33.23, 57.00, 42.25, 57.50, 42.43, 56.80, 45.66, 55.86, 41.97, 55.81, 43.61, 46.75),
}
PCC_ROW = (0.887, 0.857, 0.911, 0.940, 0.913, 0.942, 0.904, 0.927, 0.899, 0.922, 0.885, 0.894, 0.942)


def test_the_pcc_row_of_table_4_is_recomputed_from_its_columns():
    names, matrix = correlation_matrix({name: dict(enumerate(row)) for name, row in TABLE_4.items()})
    assert len(names) == 14
    np.testing.assert_allclose(matrix[0, 1:], PCC_ROW, atol=0.0006)
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1)


def test_m_avg_of_table_4_is_the_mean_of_its_twelve_columns():
    for name, row in TABLE_4.items():
        assert np.mean(row[1:13]) == pytest.approx(row[13], abs=0.011), name


def test_a_correlation_over_two_systems_is_an_error():
    with pytest.raises(UserError, match="three systems or more"):
        correlation_matrix({"a": {"x": 1.0}, "b": {"x": 2.0}})


@pytest.fixture
def folder(tmp_path):
    rows = [
        ("a", "happy, proud", "happy"),
        ("b", "angry", "angry"),
        ("c", "sad, tired", "sad"),
        ("d", "neutral", "neutral"),
    ]
    valences = {"a": 4, "b": -4, "c": -2, "d": -10}  # -10 = none
    lines = [f'{name},"[{labels}]",{label},"He shows it.",{valences[name]}' for name, labels, label in rows]
    (tmp_path / "gt.csv").write_text("name,openset,label,reason,valence\n" + "\n".join(lines) + "\n", encoding="utf-8")
    for system, answers in {
        "good": ["glad", "mad", "sad", "neutral"],
        "fair": ["glad, angry", "mad", "happy", "calm"],
        "poor": ["sad", "happy", "", "angry"],
    }.items():
        lines = [f'{name},"[{answer}]"' for (name, _, _), answer in zip(rows, answers, strict=True)]
        (tmp_path / f"{system}.csv").write_text("name,openset\n" + "\n".join(lines) + "\n", encoding="utf-8")
    found = zip("abcd", ("happy", "sad", "sad", "calm"), (3.0, -2.0, -3.0, 0.5), strict=True)
    records = [
        {"id": name, "text": "Her brows rise, and she nods.", "ranking": [first, "angry"], "valence": valence}
        for name, first, valence in found
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    sure = [
        {"id": name, "text": f"<answer>{word}</answer><confidence>{stated}</confidence>"}
        for name, word, stated in (("a", "happy", 0.9), ("b", "sad", 0.8), ("c", "sad", 1.0))
    ]
    (tmp_path / "sure.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sure), encoding="utf-8")
    (tmp_path / "preferences.csv").write_text(
        "name,a1,a2,preference\nv,x,y,a1\nv,x,y,a1\nw,y,x,a1\nw,y,x,tie\n", encoding="utf-8"
    )
    (tmp_path / "table.csv").write_text(
        "system,GPT,M1\n" + "".join(f"{name},{row[0]},{row[1]}\n" for name, row in TABLE_4.items()), encoding="utf-8"
    )
    return tmp_path


COMMANDS = {
    "baselines": ["references={}/gt.csv", "labels={}/gt.csv"],
    "correlation": ["references={}/gt.csv", "{}/good.csv", "{}/fair.csv", "{}/poor.csv"],
    "language": ["EE={}/good.csv", "CC={}/fair.csv", "EC={}/poor.csv"],
    "onehot": ["references={}/gt.csv"],
    "labels": ["references={}/gt.csv"],
    "subtitles": ["references={}/gt.csv", "S0={}/poor.csv", "S1={}/good.csv"],
    "modalities": ["references={}/gt.csv", "audio={}/poor.csv", "multi={}/good.csv"],
    "wheel": ["references={}/gt.csv", "{}/fair.csv", "k=2"],
    "sectors": ["references={}/gt.csv", "{}/fair.csv"],
    "confusion": ["references={}/gt.csv", "{}/fair.csv", "classes=happy,angry,sad,neutral"],
    "seeds": ["references={}/gt.csv", "{}/good.csv", "{}/fair.csv", "{}/poor.csv"],
    "texts": ["references={}/gt.csv", "{}/good.csv"],
    "discrete": ["references={}/gt.csv", "{}/records.jsonl", "classes=happy,angry,sad,neutral"],
    "valence": ["references={}/gt.csv", "{}/records.jsonl"],
    "clues": ["{}/records.jsonl"],
    "ranking": ["people={}/preferences.csv"],
    "confidence": ["references={}/gt.csv", "{}/sure.jsonl"],
    "annotations": ["human={}/good.csv", "both={0}/gt.csv,{0}/records.jsonl"],
}


@pytest.fixture
def judging_server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer(lambda body: '{"score": 7, "reason": "close"}') as server:
        yield server


def test_the_judge_rates_descriptions_without_their_label_line(folder, judging_server, capsys):
    rows = [{"id": name, "text": "He shows it.\nEmotions: sad"} for name in "abcd"]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    call = ["judge", f"references={folder / 'gt.csv'}", str(folder / "p.jsonl"), "model=toy", f"out={folder / 'out'}"]
    assert run("analyze", [*call, f"base_url={judging_server.url}"]) == 0, capsys.readouterr().err
    result = json.loads((folder / "out" / "judge.json").read_text(encoding="utf-8"))
    assert {aspect: row["mean"] for aspect, row in result.items()} == {"clue overlap": 7.0, "label overlap": 7.0}
    assert "Emotions: sad" not in json.dumps(judging_server.requests)
    assert run("analyze", call[:3]) == 2
    assert "model= is missing" in capsys.readouterr().err


@pytest.mark.parametrize("analysis", sorted(set(ANALYSES) - {"judge", "clue_texts"}))
def test_every_analysis_prints_a_table_and_writes_json_png_and_svg(analysis, folder, capsys):
    if analysis == "texts":
        pytest.importorskip("sacrebleu")
    out = folder / "out"
    arguments = [item.format(folder) for item in COMMANDS[analysis]]
    assert run("analyze", [analysis, *arguments, f"out={out}", "n_bootstrap=20"]) == 0, capsys.readouterr().err
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert json.loads((out / f"{analysis}.json").read_text(encoding="utf-8"))
    assert (out / f"{analysis}.png").read_bytes()[:4] == b"\x89PNG"
    assert ElementTree.parse(out / f"{analysis}.svg").getroot().tag.endswith("svg")


def test_results_are_right_on_the_toy_data(folder):
    out = folder / "out"
    base = [f"out={out}", f"references={folder / 'gt.csv'}", "pictures=false", "n_bootstrap=0"]
    assert run("analyze", ["onehot", *base]) == 0
    onehot = json.loads((out / "onehot.json").read_text(encoding="utf-8"))
    assert onehot["primary"]["precision"] == 1.0
    assert onehot["primary"]["n"] == 3
    assert run("analyze", ["labels", *base]) == 0
    statistics = json.loads((out / "labels.json").read_text(encoding="utf-8"))
    assert (statistics["labels"], statistics["labels_per_clip"]) == (6, {"1": 2, "2": 2})
    assert statistics["description_characters"]["mean"] == 12.0
    assert run("analyze", ["confusion", *base, str(folder / "fair.csv"), "classes=happy,angry,sad,neutral"]) == 0
    matrix = np.array(json.loads((out / "confusion.json").read_text(encoding="utf-8"))["confusion"])
    assert matrix.sum() == 4
    assert run("analyze", ["correlation", f"out={out}", f"table={folder / 'table.csv'}", "pictures=false"]) == 0
    pcc = json.loads((out / "correlation.json").read_text(encoding="utf-8"))["pcc"]
    assert pcc[0][1] == pytest.approx(0.887, abs=0.0006)
    assert not list(out.glob("*.png"))


def figures(folder, capsys, *call):
    assert run("analyze", [*call, f"out={folder / 'out'}", "pictures=false", "n_bootstrap=0"]) == 0, (
        capsys.readouterr().err
    )
    return json.loads((folder / "out" / f"{call[0]}.json").read_text(encoding="utf-8"))


def test_rankings_and_valences_of_an_annotation_are_compared_with_the_labels(folder, capsys):
    base = (f"references={folder / 'gt.csv'}", str(folder / "records.jsonl"))
    found = figures(folder, capsys, "discrete", *base, "classes=happy,angry,sad,neutral")
    # a: happy first; b: angry second; c: sad first; d: "calm" is none of the classes, "angry" is wrong.
    assert (found["top-1"]["value"], found["top-2"]["value"], found["n"]) == (0.5, 0.75, 4)
    found = figures(folder, capsys, "valence", *base)
    assert found["pcc"] == pytest.approx(np.corrcoef([4, -4, -2], [3, -2, -3])[0, 1])
    assert (found["n"], found["without_truth"]) == (3, 1)
    (folder / "flat.jsonl").write_text('{"id": "a", "valence": 1}\n{"id": "b", "valence": 1}\n', encoding="utf-8")
    assert figures(folder, capsys, "valence", base[0], str(folder / "flat.jsonl"))["pcc"] is None
    (folder / "odd.jsonl").write_text('{"id": "a", "valence": "high"}\n', encoding="utf-8")
    assert run("analyze", ["valence", base[0], str(folder / "odd.jsonl")]) == 2
    assert "the valence of 'a' must be a number, found 'high'" in capsys.readouterr().err
    found = figures(folder, capsys, "clues", str(folder / "records.jsonl"))
    assert (found["mean"], found["descriptions_by_clues"]["2"]) == (2.0, 4)
    assert run("analyze", ["discrete", *base, "classes=happy"]) == 2
    assert "true labels ['angry', 'neutral', 'sad'] are not among the classes ['happy']" in capsys.readouterr().err
    assert run("analyze", ["discrete", base[0], str(folder / "good.csv")]) == 2
    assert "model= is missing" in capsys.readouterr().err


def test_two_annotations_of_the_same_clips_are_compared_on_all_and_on_shared_clips(folder, capsys):
    (folder / "human.csv").write_text(
        'name,reason\na,"He smiles. He feels happy."\nz,"She feels sad."\n', encoding="utf-8"
    )
    found = figures(folder, capsys, "annotations", f"human={folder / 'human.csv'}", f"both={folder / 'gt.csv'}")
    assert found["all"]["human"]["clips"] == 2
    assert found["shared"]["human"] == found["shared"]["human"] | {"clips": 1, "labels_per_clip": 1.0}
    assert found["shared"]["both"]["labels_per_clip"] == 2.0
    assert found["all"]["both"]["distinct_labels"] == 6
    assert (found["more_labels"], found["jaccard"]) == (1.0, 0.5)
    assert (found["first_found_in_second"], found["second_found_in_first"]) == (1.0, 0.5)
    (folder / "other.csv").write_text("name,openset\nq,[sad]\n", encoding="utf-8")
    assert run("analyze", ["annotations", f"human={folder / 'other.csv'}", f"both={folder / 'gt.csv'}"]) == 2
    assert "human and both have no clip with labels in common" in capsys.readouterr().err


def test_models_are_ranked_by_preferences_with_and_without_ties(folder, capsys):
    found = figures(folder, capsys, "ranking", str(folder / "preferences.csv"))["preferences"]
    assert found["ties left out"]["strengths"] == pytest.approx({"x": 2 / 3, "y": 1 / 3})
    assert found["ties half a win"]["strengths"] == pytest.approx({"x": 2.5 / 4, "y": 1.5 / 4})
    (folder / "odd.csv").write_text("name,a1,a2,preference\nv,x,x,a1\n", encoding="utf-8")
    assert run("analyze", ["ranking", str(folder / "odd.csv")]) == 2
    assert "odd.csv: comparison 1: 'x' and 'x', preferred 'a1'; expected two different" in capsys.readouterr().err
    assert run("analyze", ["ranking", str(folder / "good.csv")]) == 2
    assert "good.csv:2: expected a1, a2 and preference, found ['name', 'openset']" in capsys.readouterr().err


def test_texts_of_single_modalities_are_written_asked_once_and_scored(folder, monkeypatch, capsys):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    row = 'a,"[happy, proud]","In the video, he beams. In the audio, the voice is bright.",I won!'
    (folder / "emer.csv").write_text(f"name,openset,english,subtitle\n{row}\n", encoding="utf-8")
    answers = {
        "Voice: In the audio": "He is proud.",
        "Words: ": "He is happy.",
        "beams": '["amused"]',
        "proud.": '["proud"]',
    }

    def answer(body):
        question = body["messages"][-1]["content"]
        return next((text for words, text in answers.items() if words in question), '["happy"]')

    table = folder / "emer.csv"
    with ChatServer(answer) as server:
        call = (
            "clue_texts",
            f"references={table}",
            str(table),
            f"subtitles={table}",
            "model=toy",
            f"base_url={server.url}",
        )
        found = figures(folder, capsys, *call)
        n_asked = len(server.requests)
        assert figures(folder, capsys, *call) == found
        assert len(server.requests) == n_asked  # every answer is in the log
    assert found["llm_grouping"]["CLUE-Text"] == {
        "f_score": pytest.approx(2 / 3), "avg": 0.75, "precision": 1.0, "recall": 0.5, "n": 1, "unreadable": 1,
        "intervals": {},
    }  # fmt: skip
    assert set(found["reports"]) == {"CLUE-Text", "CLUE-Audio", "CLUE-Video", "CLUE-Multi"}
    rows = {
        name: json.loads((folder / "out" / "clue_texts" / f"{name}.jsonl").read_text(encoding="utf-8"))
        for name in found["reports"]
    }
    assert (rows["CLUE-Text"]["text"], rows["CLUE-Text"]["labels"]) == ("He is happy.", ["happy"])
    assert (rows["CLUE-Audio"]["text"], rows["CLUE-Audio"]["labels"]) == ("He is proud.", ["proud"])
    assert (rows["CLUE-Video"]["text"], rows["CLUE-Video"]["labels"]) == ("In the video, he beams.", ["amused"])
    assert run("analyze", list(call[:3])) == 2
    assert "subtitles= is missing" in capsys.readouterr().err


def test_a_metric_that_is_the_same_for_all_systems_has_no_correlation_and_the_file_stays_json(folder):
    (folder / "t.csv").write_text("system,x,y\na,1,5\nb,2,5\nc,4,5\n", encoding="utf-8")
    assert run("analyze", ["correlation", f"table={folder / 't.csv'}", f"out={folder / 'out'}"]) == 0

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "out" / "correlation.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse)["pcc"] == [[1.0, None], [None, None]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"system": "c", "x": 3}, "t.jsonl:3: expected the metrics of the first row, ['x', 'y'], found ['x']"),
        ({"system": "c", "x": 3, "y": 1, "z": 1}, "found ['x', 'y', 'z']"),
        ({"system": "a", "x": 3, "y": 1}, "t.jsonl:3: system 'a' is there twice"),
        ({"system": "c", "x": "high", "y": 1}, "t.jsonl:3: expected a system and numbers"),
        ({}, "t.jsonl:3: "),
    ],
)
def test_a_table_of_systems_has_one_row_for_each_with_the_same_metrics(folder, capsys, row, message):
    rows = [{"system": name, "x": n, "y": -n} for n, name in enumerate("ab")]
    lines = [json.dumps(each) + "\n" for each in [*rows, row, {"system": "d", "y": 2, "x": 5}]]
    (folder / "t.jsonl").write_text("".join(lines), encoding="utf-8")
    assert run("analyze", ["correlation", f"table={folder / 't.jsonl'}", f"out={folder / 'out'}"]) == 2
    assert message in capsys.readouterr().err


def test_texts_are_not_scored_against_the_one_word_labels_of_a_label_npz(folder, capsys):
    corpus = {"a": {"emo": "happy", "val": 4.0}}
    np.savez(folder / "label.npz", test_corpus=np.array(corpus, dtype=object))
    call = [f"references={folder / 'label.npz'}", "array=test_corpus", f"out={folder / 'out'}"]
    assert run("analyze", ["texts", *call, str(folder / "records.jsonl")]) == 2
    assert "label.npz has emo and val only" in capsys.readouterr().err
    assert run("analyze", ["discrete", *call, str(folder / "records.jsonl"), "classes=happy,angry"]) == 0


def test_pictures_are_the_same_each_time(folder):
    for out in ("one", "two"):
        run("analyze", ["labels", f"references={folder / 'gt.csv'}", f"out={folder / out}"])
    assert (folder / "one" / "labels.svg").read_bytes() == (folder / "two" / "labels.svg").read_bytes()


def test_wrong_calls_name_what_is_missing(folder, capsys):
    assert run("analyze", []) == 2
    assert "expected an analysis, one of ['baselines'" in capsys.readouterr().err
    assert run("analyze", ["labels"]) == 2
    assert "references= is missing" in capsys.readouterr().err
    assert run("analyze", ["subtitles", f"references={folder / 'gt.csv'}", f"S0={folder / 'good.csv'}"]) == 2
    assert "two prediction files or more" in capsys.readouterr().err
    assert run("analyze", ["confusion", f"references={folder / 'gt.csv'}", str(folder / "good.csv")]) == 2
    assert "classes= is missing" in capsys.readouterr().err


def test_settings_names_and_files_are_distinguished():
    request = parse(
        table.COMMANDS["analyze"],
        words.analyze(["references=a.csv", "S0=b.jsonl", "c.npz", "seed=3", "pictures=false"]),
    )
    assert (request.references, request.named, request.files) == ("a.csv", {"S0": "b.jsonl"}, ["c.npz"])
    assert (request.seed, request.pictures) == (3, False)
