"""eval.py with LLM-based scores against a local server, which is asked once."""

import json

import pytest

from affectgpt.chat.transport import ChatError
from affectgpt.cli import compose
from affectgpt.inference.evaluate import run_evaluation
from tests.chat.chat_server import ChatServer
from tests.metrics.test_judge import by_rule


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


def test_grouping_and_extraction_by_an_llm_are_in_the_report_and_repeat_offline(
    overrides, tmp_path, capsys, monkeypatch
):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer(by_rule) as server:
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
