"""The blind verifier: shown clues alone, compared with the labels."""

from __future__ import annotations

from affectgpt.annotate import verify
from affectgpt.annotate.exporters import records_in
from tests.annotate.conftest import annotate, served
from tests.chat.chat_server import ChatServer, fill_in


def test_the_blind_verifier_is_shown_clues_only_and_its_score_is_in_the_record(clips, tmp_path):
    with ChatServer(fill_in) as server:
        assert annotate(clips, tmp_path / "out", *served(server.url, "pipeline=emer_verified", "limit=1")) == 0
        texts = [str(request["body"]["messages"] if "body" in request else request) for request in server.requests]
    asked = [text for text in texts if "follows from these notes alone" in text]
    assert len(asked) == 1
    assert "something plain" in asked[0]
    assert "You told him" not in asked[0]
    (row,) = [row for row in next(records_in(tmp_path / "out")).checks if row["check"] == "blind_verifier"]
    assert (row["labels"], row["score"], row["verdict"]) == ("calm, tired", "1.000", "keep")


def test_other_or_no_labels_score_zero():
    assert verify.wheel_f(["happy"], ["sad"]) == 0.0
    assert verify.wheel_f(["happy"], []) == 0.0
