"""eval.py with LLM-based scores against a local server, which is asked once."""

import json

import numpy as np
import pytest

from affectgpt.chat.transport import ChatError
from affectgpt.cli import compose
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.runtime import UserError
from tests.chat.chat_server import ChatServer
from tests.metrics.test_judge import by_rule


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer(by_rule) as running:
        yield running


@pytest.fixture
def overrides(tmp_path):
    (tmp_path / "gt.csv").write_text("name,openset\na,[happy]\nb,[angry]\n", encoding="utf-8")
    rows = [{"id": "a", "text": "Emotions: joyful, glad"}, {"id": "b", "text": "A 'mad' man in a room with a table."}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        f"predictions={tmp_path / 'p.jsonl'}",
        f"references={tmp_path / 'gt.csv'}",
        f"out={tmp_path / 'out'}",
        "n_bootstrap=0",
        "llm.model=toy",
        "llm.extract=true",
    ]


def test_grouping_and_extraction_by_an_llm_are_in_the_report_and_repeat_offline(overrides, tmp_path, capsys, server):
    assert run_evaluation(compose("eval", [*overrides, f"llm.base_url={server.url}"])) == 0
    n_calls = len(server.requests)
    shown = capsys.readouterr().out
    assert "labels of 1 of 1 unparsed texts were read by an LLM" in shown
    assert "LLM grouping (toy): f_score 100.00" in shown
    first = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert first["extras"]["llm_grouping"]["n"] == 2
    assert n_calls == 3  # one extraction, two groupings
    assert run_evaluation(compose("eval", [*overrides, "llm.offline=true"])) == 0
    again = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert again["extras"]["llm_grouping"] == first["extras"]["llm_grouping"]


def test_offline_without_answers_is_an_error(overrides):
    with pytest.raises(ChatError, match="offline is set; run once with a server"):
        run_evaluation(compose("eval", [*overrides, "llm.offline=true"]))


def test_published_groups_are_scored_without_a_model(tmp_path, capsys):
    (tmp_path / "gt.csv").write_text("name,openset\na,\"['happy', 'don''t know']\"\nb,['sad']\n", encoding="utf-8")
    (tmp_path / "p.csv").write_text("name,openset\na,['feeling glad']\nb,[[]]\n", encoding="utf-8")
    (tmp_path / "groups").mkdir()
    np.save(tmp_path / "groups" / "a.npy", np.array("[['happy', 'feeling glad'], ['don']]"))
    options = [f"predictions={tmp_path / 'p.csv'}", f"references={tmp_path / 'gt.csv'}", "n_bootstrap=0"]
    assert run_evaluation(compose("eval", [*options, f"llm.groups={tmp_path / 'groups'}"])) == 0
    grouped = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["extras"]["llm_grouping"]
    # a: truth {happy, don, "t know"}, as the published code cuts it, prediction {happy}; b: no prediction
    assert (grouped["precision"], grouped["recall"]) == (1 / 2, 1 / 6)
    assert (grouped["n"], grouped["unparsed"], grouped["missing"], grouped["by"]) == (2, 0, 1, "groups")
    assert "LLM grouping (groups)" in capsys.readouterr().out
    own = ["benchmark=ovmerd", f"benchmark.folder={tmp_path}", "benchmark.references=gt.csv", "n_bootstrap=0"]
    own += [f"predictions={tmp_path / 'p.csv'}", f"llm.groups={tmp_path / 'groups'}"]
    assert run_evaluation(compose("eval", own)) == 0
    details = json.loads((tmp_path / "benchmark-ovmerd.json").read_text(encoding="utf-8"))["details"]
    assert details["Avg by LLM grouping (groups)"] == (1 / 2 + 1 / 6) / 2
    assert details["clips without a grouping"] == 1
    with pytest.raises(UserError, match="no such folder or file"):
        run_evaluation(compose("eval", [*options, f"llm.groups={tmp_path / 'none'}"]))
    np.save(tmp_path / "groups" / "b.npy", np.array([1, 2]))
    with pytest.raises(UserError, match=r"expected <id>\.npy files with one text each, found b\.npy holds list"):
        run_evaluation(compose("eval", [*options, f"llm.groups={tmp_path / 'groups'}"]))


def test_a_benchmark_asks_the_llm_for_labels_groups_and_sentiment(tmp_path, capsys, server):
    (tmp_path / "s.csv").write_text("name,val\na,1\nb,-1\nc,-2\nd,0\n", encoding="utf-8")
    texts = {"a": "A 'happy' man in a room.", "b": "Emotions: happy", "c": "Emotions: weary", "d": "Emotions: sad"}
    rows = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items())
    (tmp_path / "p.jsonl").write_text(rows, encoding="utf-8")
    own = [f"benchmark.folder={tmp_path}", f"predictions={tmp_path / 'p.jsonl'}", "n_bootstrap=0"]
    llm = ["llm.model=toy", f"llm.base_url={server.url}", "llm.extract=true"]
    assert run_evaluation(compose("eval", ["benchmark=cmu_mosi", "benchmark.references=s.csv", *own, *llm])) == 0
    result = json.loads((tmp_path / "benchmark-cmu_mosi.json").read_text(encoding="utf-8"))
    assert result["details"]["sentiment of the labels by"] == "toy, prompt version 1"
    assert result["details"]["labels read by the LLM"] == "1 of 1 texts without a list"
    assert result["details"]["accuracy"] == 2 / 3  # happy, happy, weary: positive, positive, negative
    (tmp_path / "gt.csv").write_text("name,openset\na,[joyful]\nb,[sad]\n", encoding="utf-8")
    assert run_evaluation(compose("eval", ["benchmark=ovmerd", "benchmark.references=gt.csv", *own, *llm])) == 0
    result = json.loads((tmp_path / "benchmark-ovmerd.json").read_text(encoding="utf-8"))
    assert result["details"]["F_S by LLM grouping (toy)"] == 0.5
    assert "Chat-UniVi" in capsys.readouterr().out
