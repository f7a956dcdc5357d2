"""Faces of raw videos in annotation: facts, the frames that a model is shown, and the peak."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from affectgpt.annotate.clips import cropped
from affectgpt.annotate.evidence import phrase
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.face import MOVEMENTS, NOT_TOLD, as_many, movement_facts, three_times
from affectgpt.annotate.record import Fact
from affectgpt.demo.face import render_face
from affectgpt.demo.performance import Identity, Performance
from affectgpt.demo.video import write_mp4
from affectgpt.media import Frames
from affectgpt.media.faces import FaceMeasures, FaceTracks, Movement, Person
from affectgpt.media.faces.tracks import ABSENT
from affectgpt.runtime import UserError
from affectgpt.schema import Sample, write_jsonl
from tests.annotate.conftest import annotate, rows_of, served
from tests.chat.chat_server import ChatServer, fill_in

REAL = os.environ.get("AFFECTGPT_REAL_CLIPS", "")
needs_real = pytest.mark.skipif(
    not Path(REAL, "no_face.mp4").is_file(), reason="AFFECTGPT_REAL_CLIPS names no folder with no_face.mp4"
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A drawn face that begins to smile after 0.8 s, and a clip without a face; neither has sound."""
    folder = tmp_path_factory.mktemp("drawn")
    smile = {"AU12": ((0.8, 0.0), (1.1, 1.0)), "AU06": ((0.8, 0.0), (1.1, 1.0))}
    frames = render_face(Performance(2.0, Identity(3), action_units=smile), size_px=112, rate_hz=12.5)
    write_mp4(folder / "smile.mp4", frames, rate_hz=12.5)
    write_mp4(folder / "sky.mp4", np.full_like(frames, (90, 140, 220)), rate_hz=12.5)
    write_jsonl(folder / "clips.jsonl", [Sample(id=name, video=f"{name}.mp4") for name in ("smile", "sky")])
    return folder / "clips.jsonl"


def test_the_local_annotator_tells_of_a_smile_of_a_raw_video_and_of_a_clip_without_a_face(drawn, tmp_path):
    annotate(drawn, tmp_path / "out")
    smile = next(record for record in records_in(tmp_path / "out") if record.id == "smile")
    facts = {fact.name: fact for fact in smile.evidence}
    assert facts["mouth_corners_raised"].start_s == pytest.approx(0.9, abs=0.25)
    assert facts["peak_s"].value > 0.8
    assert "mouth corners raised by" in smile.clues[0].text
    assert "mouth_corners_raised" in smile.clues[0].evidence
    assert "happy" in smile.labels
    how = next(note.parameters for note in smile.provenance if note.step == "measure")
    assert how["faces"]
    assert how["movements"]
    failed = {row["id"]: row["reason"] for row in rows_of(tmp_path / "out" / "failed.jsonl")}
    assert failed["sky"].startswith("no evidence")


def test_merr_needs_nothing_but_the_video_and_a_model_sees_the_facts_and_the_frames_of_the_track(drawn, tmp_path):
    with ChatServer(fill_in) as server:
        assert annotate(drawn, tmp_path / "merr", *served(server.url), "pipeline=merr") == 3
        (record,) = records_in(tmp_path / "merr")
        assert record.clues[0].start_s == next(fact.value for fact in record.evidence if fact.name == "peak_s")
        assert {row["reason"] for row in rows_of(tmp_path / "merr" / "failed.jsonl")} == {
            "no peak frame: no face is seen, or it does not move"
        }
        for pipeline in ("emer_coarse", "s0"):
            before = len(server.requests)
            annotate(drawn, tmp_path / pipeline, *served(server.url), f"pipeline={pipeline}")
            asked = json.dumps([body["messages"] for body in server.requests[before:]])
            assert "mouth corners raised by" in asked
    record = next(record for record in records_in(tmp_path / "emer_coarse") if record.id == "smile")
    at = next(note.parameters["shows"]["images"]["at_s"] for note in record.provenance if note.step == "visual")
    assert len(at) == 3
    assert at == sorted(at)
    assert [clue.start_s for clue in record.clues if clue.modality == "visual"] == pytest.approx(at, abs=0.1)


def test_without_speech_it_is_said_that_nobody_can_be_told_and_not_that_no_face_is_seen(drawn, tmp_path):
    steps = "pipeline.steps=[{name: measure}, {name: visual, annotator: vision, needs: [measure]}]"
    annotate(drawn, tmp_path / "out", "faces.person=speaker", steps)
    smile, sky = sorted(records_in(tmp_path / "out"), key=lambda record: record.id == "sky")
    assert {fact.name: fact.value for fact in smile.evidence} == {"persons": 1, "no_speech_for_speaker": 0}
    assert smile.clues[0].text == "one person is seen, no speech is heard, so the speaker cannot be told"
    assert [(fact.name, fact.value) for fact in sky.evidence] == [("face_tracked_share", 0)]
    annotate(drawn, tmp_path / "merr", "faces.person=listener", "pipeline=merr")
    assert {row["id"]: row["reason"] for row in rows_of(tmp_path / "merr" / "failed.jsonl")} == {
        "smile": "no peak frame: no speech is heard, so the listener cannot be told",
        "sky": "no peak frame: no face is seen, or it does not move",
    }
    with pytest.raises(UserError, match=r"faces\.person=speaker is told by the speech, but with speech=none"):
        annotate(drawn, tmp_path / "none", "faces.person=speaker", "speech=none")


def test_every_reason_why_nobody_is_the_main_person_has_a_phrase_in_both_languages():
    assert {"no_face", *NOT_TOLD} == set(ABSENT)
    for name in NOT_TOLD:
        fact = Fact(name, "visual", 0, "persons")
        assert (phrase(fact), phrase(fact, "zh")) == (ABSENT[name], NOT_TOLD[name])


def tracks(start_row: int, stop_row: int) -> FaceTracks:
    rows = np.arange(start_row, stop_row)
    boxes = np.tile(np.float32([40, 30, 60, 50]), (len(rows), 1))
    one = Person(rows, boxes, np.zeros((len(rows), 0, 2), np.float32), np.ones(len(rows), np.float32))
    return FaceTracks(np.arange(20) / 10, np.arange(20), (one,), 0, 100, 80, 2.0, "toy")


def test_three_frames_are_the_start_the_peak_and_the_end_of_the_track():
    assert three_times(tracks(5, 16), 1.2) == [0.5, 1.2, 1.5]
    assert three_times(tracks(5, 16), 0.5) == [0.5, 1.0, 1.5]  # a peak at the edge: the middle takes its place
    assert three_times(tracks(5, 16), None) == [0.5, 1.0, 1.5]


def test_a_model_that_takes_another_number_of_frames_is_still_shown_all_times():
    three = [0.5, 1.25, 1.5]
    assert as_many(three, None) == as_many(three, 3) == three
    assert as_many(three, 4) == [0.5, 0.875, 1.25, 1.5]
    assert set(three) <= set(as_many(three, 8))
    assert (as_many(three, 1), as_many([1.25], 2), as_many([], 4)) == ([1.25], [1.25, 1.25], [])


def test_a_cropped_frame_holds_the_person_at_three_times_the_size_of_the_face():
    images = np.zeros((2, 160, 200, 3), np.uint8)  # twice as large as the tracker's frames
    images[:, 60:100, 80:120] = 255  # the face
    cut = cropped(Frames(images, np.zeros(2), np.arange(2), 2), tracks(0, 5)).images
    assert cut.shape == (2, 120, 120, 3)
    assert (cut == 255).sum() == (images == 255).sum()


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_phrases_of_movements_state_the_amount_and_the_time_and_no_emotion(lang):
    feelings = re.compile(r"happ|smil|sad|ang(?!e)|fear|surpris|disgust|joy|worr|喜|怒|哀|惧|惊|笑|悲|愁")
    for name in MOVEMENTS:
        said = phrase(Fact(name, "visual", 0.14, "eye distances", 0.7, 2.4), lang)
        assert not feelings.search(said), said
        assert "0.7" in said
        assert name == "eyes_closed" or "0.14" in said


def test_of_several_movements_of_a_kind_the_largest_is_told_and_the_longest_of_closed_eyes():
    moved = (
        Movement("eyes_closed", 0.6, 5.6, 3.0, 0.02, "eye widths"),  # the value is the gap that is left
        Movement("lips_apart", 1.0, 4.0, 2.0, 0.1, "eye distances"),
        Movement("lips_apart", 5.0, 6.0, 5.5, 0.3, "eye distances"),
        Movement("eyes_closed", 7.0, 8.0, 7.5, 0.06, "eye widths"),
    )
    facts = movement_facts(FaceMeasures(np.zeros(0), {}, {}, np.zeros(0), moved, None, 0))
    assert [(fact.name, fact.start_s) for fact in facts] == [
        ("eyes_closed", 0.6),
        ("lips_apart", 5.0),
        ("blinks", None),
    ]


@needs_real
def test_real_clips_are_told_as_they_are(tmp_path):
    annotate(Path(REAL), tmp_path / "out")
    told = {record.id: record for record in records_in(tmp_path / "out")}
    smile = told["single_face"]
    assert "happy" in smile.labels
    raised = next(fact for fact in smile.evidence if fact.name == "mouth_corners_raised")
    assert raised.start_s == pytest.approx(0.7, abs=0.2)
    text = smile.description["en"]
    assert "no speech is heard" in text
    assert "pitch" not in text
    weeps_then_laughs = told["WolfgangLanger_Pexels"]
    assert set(weeps_then_laughs.labels) == {"sad", "happy"}
    closed = next(fact for fact in weeps_then_laughs.evidence if fact.name == "eyes_closed")
    assert [closed.start_s, closed.end_s] == pytest.approx([0.6, 5.6], abs=0.2)
    assert "no_face" not in told
