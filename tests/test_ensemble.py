"""The command: rows tell their origin, files must be about the same clips, and submit takes the result."""

import json

import pytest

from affectgpt.cli import run
from affectgpt.metrics import read_predictions


@pytest.fixture
def files(tmp_path):
    """Prediction files by name: id -> labels."""

    def write(name: str, rows: dict[str, str]) -> str:
        path = tmp_path / f"{name}.csv"
        path.write_text("name,openset\n" + "".join(f'{key},"{cell}"\n' for key, cell in rows.items()), "utf-8")
        return str(path)

    return write


def rows_of(path) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}


def test_union_and_majority_write_labels_with_the_systems_that_gave_them(files, tmp_path, capsys):
    systems = [
        files("x", {"a": "[sad, tired]", "b": "[calm]"}),
        files("y", {"a": "[Sad]", "b": "[angry]"}),
        files("z", {"a": "[glad]", "b": "[happy]"}),
    ]
    out = tmp_path / "e.jsonl"
    assert run("ensemble", [*systems, "how=union", f"out={out}"]) == 0
    assert rows_of(out)["a"]["labels"] == ["sad", "tired", "glad"]
    assert rows_of(out)["a"]["ensemble"]["votes"] == {"sad": ["x", "y"], "tired": ["x"], "glad": ["z"]}
    assert [row.labels for row in read_predictions(out)] == [("sad", "tired", "glad"), ("calm", "angry", "happy")]
    assert run("ensemble", [*systems, "how=majority", f"out={out}"]) == 0
    assert (rows_of(out)["a"]["labels"], rows_of(out)["b"].get("labels", [])) == (["sad"], [])
    assert "2 clips, 1 without a label; labels of 2 or more of x, y, z" in capsys.readouterr().out
    facts = json.loads((tmp_path / "e.jsonl.ensemble.json").read_text())
    assert set(facts["files"]) == {"x", "y", "z"}
    assert len(facts["files"]["x"]["sha256"]) == 64
    zipped = tmp_path / "answer.zip"
    (tmp_path / "candidates.csv").write_text("name\na\nb\n", "utf-8")
    assert run("submit", ["track=2", str(out), str(zipped), f"candidates={tmp_path / 'candidates.csv'}"]) == 0
    assert "2 rows, 1 without a label" in capsys.readouterr().out


def test_a_vote_gives_one_class_a_clip(files, tmp_path, capsys):
    systems = [
        files("x", {"a": "happy", "b": "qwrx"}),
        files("y", {"a": "furious", "b": "happy"}),
        files("z", {"a": "angry", "b": "angry"}),
    ]
    out = tmp_path / "e.jsonl"
    assert run("ensemble", [*systems, "how=vote", "classes=[happy,angry]", f"out={out}"]) == 0
    assert rows_of(out)["a"]["ensemble"]["votes"] == {"angry": ["y", "z"]}
    assert rows_of(out)["b"]["ensemble"]["votes"] == {"happy": ["y"]}  # a tie: the first system that votes
    assert "clips without a vote: x 1" in capsys.readouterr().out


def test_a_vote_on_pairs_goes_by_rows(tmp_path):
    systems = []
    for name, choices in (("x", "a1,a2"), ("y", "a1,same"), ("z", "a2,a1")):
        first, second = choices.split(",")
        path = tmp_path / f"{name}.csv"
        path.write_text(f"name,a1,a2,preference\nv,X,Y,{first}\nv,Y,X,{second}\n", "utf-8")
        systems.append(str(path))
    out = tmp_path / "vote.csv"
    assert run("ensemble", [*systems, "how=vote", "pairs=true", f"out={out}"]) == 0
    assert out.read_text("utf-8").splitlines()[1:] == ["v,X,Y,a1,x + y", "v,Y,X,a2,x"]
    (tmp_path / "candidates.csv").write_text("name,a1,a2\nv,X,Y\nv,Y,X\n", "utf-8")
    words = ["track=3", str(out), str(tmp_path / "a.zip"), f"candidates={tmp_path / 'candidates.csv'}"]
    assert run("submit", words) == 0


def test_routing_takes_the_better_system_of_each_group(files, tmp_path, capsys):
    truth = {f"v{n}": "[happy]" if n % 2 else "[sad]" for n in range(12)}
    path = tmp_path / "val.csv"
    path.write_text("name,openset\n" + "".join(f"{key},{cell}\n" for key, cell in truth.items()), "utf-8")
    groups = tmp_path / "groups.csv"
    groups.write_text("name,group\n" + "".join(f"v{n},{'odd' if n % 2 else 'even'}\n" for n in range(12)), "utf-8")
    knows_odd = files("odd-val", dict.fromkeys(truth, "[happy]"))
    knows_even = files("even-val", dict.fromkeys(truth, "[sad]"))
    systems = [files("x", {"v0": "[glad]", "v1": "[glad]"}), files("y", {"v0": "[blue]", "v1": "[blue]"})]
    out = tmp_path / "e.jsonl"
    words = [*systems, "how=routing", f"references={path}", f"out={out}", f"validation=[{knows_odd},{knows_even}]"]
    assert run("ensemble", [*words, f"by={groups}", "min_clips=3"]) == 0
    rows = rows_of(out)
    assert [(rows[key]["text"], rows[key]["ensemble"]["system"]) for key in ("v0", "v1")] == [
        ("[blue]", "y"),
        ("[glad]", "x"),
    ]
    assert "100.00 routed, 50.00 by x alone, 100.00 on held-out fifths" in capsys.readouterr().out
    facts = json.loads((tmp_path / "e.jsonl.ensemble.json").read_text())
    assert facts["routing"]["routes"]["odd"]["scores"] == {"x": 1.0, "y": 0.0}
    groups.write_text(groups.read_text("utf-8").replace("v1,odd", "v1,new"), "utf-8")
    systems_of_new = [files("x2", {"v1": "[glad]"}), files("y2", {"v1": "[blue]"})]
    checks = [files(f"{name}-rest", dict.fromkeys([key for key in truth if key != "v1"], "[sad]")) for name in "xy"]
    rest = [*systems_of_new, *words[2:-1], f"validation=[{checks[0]},{checks[1]}]", f"by={groups}"]
    assert run("ensemble", rest) == 0
    assert "1 clips are in groups without a validation clip, new: x2 answers" in capsys.readouterr().out
    assert run("ensemble", [*words, "by=all"]) == 0
    assert {row["ensemble"]["system"] for row in rows_of(out).values()} == {"x"}
    words = [word for word in words if not word.startswith("references")]
    (tmp_path / "one.csv").write_text(path.read_text().replace("openset", "discrete").replace("[", "").replace("]", ""))
    words += [f"references={tmp_path / 'one.csv'}", "classes=[happy,sad]", f"by={groups}", "min_clips=3"]
    assert run("ensemble", words) == 0
    assert rows_of(out)["v0"]["ensemble"] == {"how": "routing", "system": "y", "group": "even"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["how=mean"], "how is 'mean'"),
        (["how=majority", "at_least=3"], "at_least=3; expected a number of systems, 1 to 2"),
        (["how=routing"], "needs validation="),
        (["how=union", "references=r.csv"], "are for how=routing"),
        (["how=union", "equal=M9"], "equal is 'M9'"),
        (["how=union", "pairs=true"], "pairs=true is for how=vote"),
        (["how=union"], "x and y are not about the same clips: 1 are in one of them only, such as 'b'"),
    ],
)
def test_mistakes_are_named(files, tmp_path, words, message, capsys):
    systems = [files("x", {"a": "[sad]", "b": "[sad]"}), files("y", {"a": "[sad]"})]
    assert run("ensemble", [*systems, *words, f"out={tmp_path / 'e.jsonl'}"]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
