"""The plan: calls and cost, before and after some answers."""

from __future__ import annotations

from tests.annotate.conftest import annotate, served
from tests.chat.chat_server import ChatServer, fill_in


def test_a_plan_counts_calls_and_cost_without_a_call_and_knows_stored_answers(clips, tmp_path, capsys):
    with ChatServer(fill_in) as server:
        out = tmp_path / "out"
        priced = served(server.url, "annotator.price_in=2", "annotator.price_out=10")
        assert annotate(clips, out, *priced, "plan=true") == 0
        assert not server.requests
        assert not out.exists()
        said = capsys.readouterr().out
        assert "total: 20 calls" in said
        assert "~ estimated" in said
        annotate(clips, out, *priced, "limit=1")
        capsys.readouterr()
        assert annotate(clips, out, *priced, "plan=true") == 0
        said = capsys.readouterr().out
        assert "total: 15 calls, 45 tokens in, 30 out, cost 0.00" in said
        assert len(server.requests) == 5
    assert annotate(clips, out, "plan=true") == 0
    assert "answered by the local annotator" in capsys.readouterr().out
