"""Checks: what each finds, what it leaves alone, and what a finding leads to."""

from __future__ import annotations

import doctest
import tracemalloc

import pytest

from affectgpt.annotate import checks
from affectgpt.annotate import duplicates as duplicates_module
from affectgpt.annotate.checks import check_record, policy_of
from affectgpt.annotate.duplicates import Duplicates, add_texts, duplicate_findings, shingle_similarity, shingles
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


def test_a_sound_record_in_either_language_has_no_finding():
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
def test_each_check_finds_its_own(expected, changes):
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
def test_quotes_measured_numbers_and_agreeing_units_are_left_alone(changes):
    assert found(record(**changes)) == []


def test_talk_of_a_voice_needs_a_sound_and_talk_of_a_face_needs_a_picture():
    assert found(record(evidence=()), None) == ["absent_modality", "absent_modality"]  # measured, and no voice in it
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


def test_a_policy_decides_and_its_mistakes_are_named():
    rows = checks.rows_of(check_record(record(clues=())), policy_of({"label_without_clue": "ask"}))
    assert rows[0]["verdict"] == "ask"
    assert "confused, puzzled" in rows[0]["reason"]
    assert checks.verdict(record(checks=rows)) == "ask"
    with pytest.raises(UserError, match=r"unknown checks \['refusals'\]; expected some of \['absent_modality'"):
        policy_of({"refusals": "ask"})
    with pytest.raises(UserError, match=r"'refusal': 'no'.*expected one of"):
        policy_of({"refusal": "no"})


def test_near_duplicates_are_those_of_the_jaccard_similarity_of_their_shingles():
    texts = [
        f"A long enough sentence that nobody else says, with number {number} in it, and a tail." for number in range(40)
    ]
    texts += [text + "!" for text in texts[:20]] + ["Quite another matter altogether: rain, wind, and a dog."]
    pieces = [shingles(text) for text in texts]
    duplicates = Duplicates(threshold=0.97)
    records = [record(f"c{number:02d}", description={"en": text}) for number, text in enumerate(texts)]
    add_texts(records, duplicates)
    for number, item in enumerate(records):
        earlier = [shingle_similarity(pieces[number], pieces[other]) for other in range(number)]
        has = any(finding.check == "near_duplicate" for finding in duplicate_findings(item, duplicates))
        assert has == (max(earlier, default=0.0) >= 0.97)
    assert sum("near_duplicate" in [f.check for f in duplicate_findings(item, duplicates)] for item in records) >= 20


def test_equal_texts_meet_even_where_hundreds_are_almost_alike(monkeypatch):
    monkeypatch.setattr(duplicates_module, "MAX_IN_BAND", 2)
    duplicates = Duplicates(threshold=0.99)
    for number in range(60):
        duplicates.add("description", f"c{number}", f"The median pitch is {number} Hz and the speech is slow and even.")
    duplicates.add("description", "again", "The median pitch is 59 Hz and the speech is slow and even.")
    assert duplicates.group("description", "again") == ("c59", 2)


def test_a_clue_of_many_clips_is_repeated_in_all_of_them_and_memory_stays_flat():
    def many(n):
        for number in range(n):
            yield record(
                f"c{number}", clues=(clue("He leans on the table."),), description={"en": f"{number:05d} " * 30}
            )

    def peak(n):
        duplicates = Duplicates()
        tracemalloc.start()
        add_texts(many(n), duplicates)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size, duplicates

    small, _ = peak(100)
    large, duplicates = peak(400)
    assert large < 1.5 * small
    assert [f.check for f in duplicate_findings(record("c0", clues=(clue("He leans on the table."),)), duplicates)] == [
        "repeated_clue"
    ]


def test_the_step_judges_what_the_pipeline_made_and_the_command_judges_the_folder(clips, tmp_path, capsys, monkeypatch):
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
    assert annotate(clips, out) == 0  # what is judged is still known to be made
    assert "(0 now, 4 before)" in capsys.readouterr().out


def test_rows_of_others_stay_when_a_folder_is_checked_anew(tmp_path, capsys, monkeypatch):
    human = {"check": "human_labels_round_1", "verdict": "keep", "reason": "2 of 2"}
    stale = {"check": "refusal", "verdict": "drop", "reason": "old"}
    folder = write_records(tmp_path / "r", [record(checks=(human, stale))])
    run_command("annotate", ["check", str(folder)])
    assert rows_of(folder / "records.jsonl")[-1]["checks"] == [human]


def test_examples_in_docstrings_hold():
    assert doctest.testmod(checks).failed == 0
