"""Checks: what each finds, what it does not, and the verdicts."""

from __future__ import annotations

import pytest

from affectgpt.annotate import checks
from affectgpt.annotate.checks import check_record, policy_of
from affectgpt.annotate.record import Clue, Fact
from affectgpt.cli import run as run_command
from affectgpt.runtime import UserError
from tests.annotate.conftest import annotate, rows_of
from tests.annotate.toy import HEARD, SEEN, VOICE, au, record, write_records

ZH = {
    "lang": "zh",
    "transcript": "我不知道。",
    "labels": ("困惑",),
    "description": {"zh": "他睁大眼睛，声音中断了两次。"},
}
ZH_CLUES = (Clue("visual", "此人睁大眼睛看着前方。", source="toy"),)


def found(item, sees=None) -> list[str]:
    return [finding.check for finding in check_record(item, sees)]


def clue(text: str, modality: str = "visual") -> Clue:
    return Clue(modality, text, source="toy")


def test_a_correct_record_has_no_finding_in_either_language():
    assert check_record(record()) == []
    assert check_record(record(**ZH, clues=ZH_CLUES)) == []


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("empty_clue", {"clues": (clue("Unclear."),)}),
        ("empty_clue", {**ZH, "clues": (clue("不清"),)}),
        ("generic_clue", {"clues": (clue("The person is talking."),)}),
        ("generic_clue", {"clues": (clue("The speaker's tone is calm and neutral. No obvious emotion can be seen."),)}),
        ("generic_clue", {**ZH, "clues": (clue("说话人的语气平静、中性。"),)}),
        ("refusal", {"clues": (clue("I'm sorry, but I can't identify people in images."),)}),
        ("refusal", {"description": {"en": "As an AI language model, I have no access to the video."}}),
        ("refusal", {**ZH, "clues": (clue("很抱歉，我无法识别图片中的人物。"),)}),
        ("wrong_language", {"description": {"en": "他睁大眼睛，声音中断了两次。"}}),
        ("wrong_language", {**ZH, "clues": (clue("The eyes are wide open in surprise."),)}),
        ("wrong_language", {"description": {"en": "Он широко раскрыл глаза."}}),
        ("wrong_language", {"labels": ("困惑", "惊讶")}),
        ("label_without_clue", {"clues": ()}),
        ("unmeasured_claim", {"description": {"en": "AU12 is strongly active."}}),
        ("unmeasured_claim", {"description": {"en": "The voice lies at 220 Hz."}}),
        ("contradicts_units", {"ranking": ("happy",), "evidence": (VOICE, *au(1, 4, 15))}),
        ("contradicts_units", {"labels": ("悲伤",), "evidence": (VOICE, *au(6, 12)), "lang": "en"}),
    ],
)
def test_each_check_finds_its_problem(expected, changes):
    assert expected in found(record(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"description": {"en": "The person says: \"I'm sorry, I can't help you.\" The voice is low."}},
        {"description": {"en": "The person sighs “我不知道” and looks away from the table."}},
        {"evidence": (VOICE, Fact("pitch_hz", "acoustic", 219.6, "Hz")), "description": {"en": "It lies at 220 Hz."}},
        {"ranking": ("happy",), "evidence": (VOICE, *au(6, 12))},
        {"ranking": ("happy",)},  # no unit was measured, so nothing is contradicted
        {"clues": (clue("The person is talking fast, and wrings both hands."),)},
    ],
)
def test_quotes_measured_numbers_and_agreeing_units_are_no_findings(changes):
    assert found(record(**changes)) == []


def test_a_described_voice_needs_sound_and_a_described_face_a_picture():
    assert found(record(evidence=()), None) == ["absent_modality", "absent_modality"]  # measured, but no voice
    assert found(record(), frozenset({"images"})) == ["absent_modality"] * 2  # the clue and the description
    silent = record(
        evidence=(Fact("voice_s", "acoustic", 0, "s"),), clues=(SEEN,), description={"en": "No voice is heard."}
    )
    assert found(silent) == []
    assert found(record(clues=(SEEN, HEARD)), frozenset({"sound"})) == ["absent_modality"] * 2
    unseen = record(evidence=(VOICE, Fact("face_tracked_share", "visual", 0.0, "of frames")), clues=(SEEN,))
    assert "absent_modality" in found(unseen)
    assert (
        found(record(media={"audio": "/clips/a.wav"}, clues=(HEARD,), description={"en": "The voice trembles."})) == []
    )


def test_a_policy_sets_the_verdict_and_its_errors_are_reported():
    rows = checks.rows_of(check_record(record(clues=())), policy_of({"label_without_clue": "ask"}))
    assert rows[0]["verdict"] == "ask"
    assert "confused, puzzled" in rows[0]["reason"]
    assert checks.verdict(record(checks=rows)) == "ask"
    with pytest.raises(UserError, match=r"unknown checks \['refusals'\]; expected some of \['absent_modality'"):
        policy_of({"refusals": "ask"})
    with pytest.raises(UserError, match=r"'refusal': 'no'.*expected one of"):
        policy_of({"refusal": "no"})


def test_the_step_checks_single_records_and_the_command_the_folder(clips, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert annotate(clips, out) == 0
    assert {step["step"] for step in rows_of(out / "records.jsonl")[0]["provenance"]} >= {"labels", "checks"}
    code = run_command("annotate", ["check", str(out), "policy.near_duplicate=drop"])
    assert code == 0
    said = capsys.readouterr().out
    assert "4 records: keep 1, ask 0, drop 3; 3 changed" in said  # the clips differ by one sample of sound
    assert "drop         3  near_duplicate" in said
    assert len(rows_of(out / "manifest.jsonl")) == 1
    run_command("annotate", ["check", str(out), "policy.near_duplicate=drop"])
    assert "0 changed" in capsys.readouterr().out
    assert annotate(clips, out) == 0  # checked records still count as complete
    assert "(0 now, 4 before)" in capsys.readouterr().out


def test_checking_again_keeps_the_rows_of_human_rounds(tmp_path, capsys, monkeypatch):
    human = {"check": "human_labels_round_1", "verdict": "keep", "reason": "2 of 2"}
    stale = {"check": "refusal", "verdict": "drop", "reason": "old"}
    folder = write_records(tmp_path / "r", [record(checks=(human, stale))])
    run_command("annotate", ["check", str(folder)])
    assert rows_of(folder / "records.jsonl")[-1]["checks"] == [human]
