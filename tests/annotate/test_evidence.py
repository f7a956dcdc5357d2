"""Facts of the face against action units with known true values."""

from __future__ import annotations

import re

import numpy as np

from affectgpt.annotate.evidence import UNITS, crop_facts, face_facts, phrase
from affectgpt.media.openface import ActionUnits


def table(n=10, *, confidence=None, success=None, **units) -> ActionUnits:
    ones = np.ones(n)
    return ActionUnits(
        frame=np.arange(1, n + 1),
        timestamp_s=np.arange(n) / 10,
        confidence=ones if confidence is None else np.array(confidence),
        success=ones.astype(bool) if success is None else np.array(success, bool),
        intensity={name: np.asarray(values, float) for name, values in units.items()},
        presence={},
    )


def test_the_peak_is_not_a_blink_a_lost_track_or_a_first_frame():
    smile = np.array([5, 5, 0, 0, 2, 3, 0, 5, 0, 4.0])
    blink = np.array([0, 0, 0, 5, 0, 0, 5, 0, 0, 0.0])
    confidence = np.array([1, 1, 1, 1, 1, 1, 1, 0.5, 1, 1])
    success = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    facts = {
        fact.name: fact for fact in face_facts(table(AU12=smile, AU45=blink, confidence=confidence, success=success))
    }
    assert facts["peak_s"].value == 0.5
    assert facts["AU12"].value == 3
    assert (facts["AU12"].start_s, facts["AU12"].end_s) == (0.4, 0.5)
    assert facts["face_tracked_share"].value == 0.8
    assert "AU45" not in facts


def test_units_below_trace_and_clips_without_a_tracked_face_give_no_unit():
    assert {fact.name for fact in face_facts(table(AU12=np.full(10, 0.9)))} == {"face_tracked_share", "peak_s"}
    lost = face_facts(table(AU12=np.full(10, 3.0), success=np.zeros(10)))
    assert [(fact.name, fact.value) for fact in lost] == [("face_tracked_share", 0.0)]
    assert phrase(lost[0]) == "no face is seen"
    assert phrase(crop_facts(np.zeros((8, 4, 4, 3), np.uint8))[0]) == "a face is in the picture"


def test_phrases_of_action_units_name_no_emotion():
    feelings = re.compile(r"happ|smil|sad|ang|fear|surpris|disgust|joy|worr|sorrow|contempt|喜|怒|哀|惧|惊|笑|悲|愁")
    for english, chinese in UNITS.values():
        assert not feelings.search(english), english
        assert not feelings.search(chinese), chinese
