"""`data clauses`: given clauses are kept and compared, rules or a chat model divide the rest, problems are found."""

import json

import pytest

from affectgpt.clauses import split
from affectgpt.config import DataClausesConfig, LlmConfig
from affectgpt.data.clause_report import divide, parse_answer, report_clauses
from affectgpt.runtime import InputError
from affectgpt.schema import Clause, Sample, read_samples, write_jsonl
from tests.chat.chat_server import ChatServer

TEXT = "The brows rise. The voice trembles. She seems afraid."


def sample(name="a", **values):
    return Sample(**{"id": name, "subtitle": "No.", "description": TEXT, "labels": ("afraid",), **values})


def test_rules_divide_what_has_no_clauses_and_given_clauses_stay():
    given = (Clause("The brows rise.", "visual"), Clause("The voice trembles.", "mixed", ("acoustic",)))
    text = "The brows rise. The voice trembles."
    (by_rules, kept), report = divide([sample(), sample("b", description=text, clauses=given)], "en", LlmConfig())
    assert [clause.modality for clause in by_rules.clauses] == ["visual", "acoustic", "inference"]
    assert kept.clauses == given
    assert report.agreement == {("visual", "visual"): 1, ("mixed", "acoustic"): 1}
    assert report.moved == []


def test_clauses_that_are_not_in_the_description_are_a_problem():
    _, report = divide([sample(clauses=(Clause("The chin drops.", "visual"),))], "en", LlmConfig())
    assert report.moved == ["a"]


def test_statements_about_what_a_clip_lacks_are_a_problem():
    silent, whole = sample(modalities=("frames",)), sample("b", modalities=("frames", "audio"))
    _, report = divide([silent, whole], "en", LlmConfig())
    assert (report.absent, report.n_probed) == (["a"], 2)


def test_a_chat_model_divides_and_unreadable_answers_are_counted(tmp_path):
    rows = [{"n": 1, "modality": "mixed", "needs": ["visual", "lexical"]}, {"n": 2, "modality": "acoustic"}]
    rows.append({"n": 3, "modality": "inference"})

    def answer(body):
        return f"```json\n{json.dumps(rows)}\n```" if "brows" in body["messages"][-1]["content"] else "I do not know."

    with ChatServer(answer) as server:
        llm = LlmConfig(model="m", base_url=server.url, cache=str(tmp_path / "answers.jsonl"))
        (first, second), report = divide([sample(), sample("b", description="She nods.")], "en", llm)
        assert [clause.needs for clause in first.clauses] == [("visual", "lexical"), ("acoustic",), ()]
        assert second.clauses == (Clause("She nods.", "visual"),)
        assert (report.by_llm, report.unreadable) == (1, 1)
        divide([sample(), sample("b", description="She nods.")], "en", llm)
        assert len(server.requests) == 2  # answers are kept
        refusal = {"status": 400, "value": {"error": {"message": "content check"}}}
        server.choose = lambda body: refusal if "hateful" in body["messages"][-1]["content"] else None
        (_, third), report = divide([sample(), sample("c", description="She says hateful words.")], "en", llm)
        assert third.clauses == split("She says hateful words.", "en")
        assert report.unreadable == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        '[{"n": 2, "modality": "visual"}]',
        '[{"n": 1, "modality": "smell"}]',
        '[{"n": 1}]',
        "[1]",
        '[{"n": 1, "modality": "visual"}, {"n": 2, "modality": "visual"}]',
    ],
)
def test_an_answer_of_another_shape_is_unreadable(answer):
    assert parse_answer(answer, ["She nods."]) is None


@pytest.mark.parametrize("number", ["1e999", "NaN", "9" * 5000, "[" * 5000 + "]" * 5000], ids=len)
def test_an_answer_whose_numbers_are_none_is_unreadable(number):
    assert parse_answer(f'[{{"n": {number}, "modality": "visual"}}]', ["She nods."]) is None


def test_the_written_manifest_reads_back_with_clauses(tmp_path, capsys):
    write_jsonl(tmp_path / "in.jsonl", [sample()])
    config = DataClausesConfig(manifest=str(tmp_path / "in.jsonl"), out=str(tmp_path / "out.jsonl"))
    assert report_clauses(config) == 1  # a text alone: brows and voice are about what it lacks
    out = capsys.readouterr().out
    assert "clauses: visual 1, acoustic 1, inference 1" in out
    assert "problem: 1 of 1 descriptions make a statement about a modality that the clip lacks, first 'a'" in out
    (read,), _ = read_samples(tmp_path / "out.jsonl")
    assert [clause.text for clause in read.clauses] == ["The brows rise.", "The voice trembles.", "She seems afraid."]


def test_the_output_must_be_a_manifest(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [sample()])
    with pytest.raises(InputError, match=r"expected out=manifest\.jsonl, found out='x\.csv'"):
        report_clauses(DataClausesConfig(manifest=str(tmp_path / "in.jsonl"), out="x.csv", show=0))
