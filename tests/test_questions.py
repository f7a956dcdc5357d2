"""The published files of benchmarks with questions of their own: what is read, and what is named when it cannot be."""

import json

import pytest

from affectgpt.questions import BadSample, emobench_m, emotion_hallucer, intent_bench, mme_emotion, usable
from affectgpt.runtime import InputError


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_only_er_lab_adds_a_suffix_and_a_text_about_the_sound_is_found_by_the_clip(tmp_path):
    for task in ("ER-Lab", "SA"):
        write(tmp_path / task / "question" / "q.json", [{"video_id": "a/x", "label": "sad", "label_set": ["sad"]}])
    write(tmp_path / "SA" / "audio_clue" / "c.json", [{"video_id": "a/x", "audio_clue": "A low voice."}])
    files = []
    lab, sentiment = mme_emotion(tmp_path, files=files)
    assert (lab.medium, sentiment.medium) == ("a/x.mp4", "a/x")
    assert (dict(lab.extra), dict(sentiment.extra)) == ({}, {"audio_clue": "A low voice."})
    assert "What sentiment" in sentiment.text
    assert [path.name for path in files] == ["q.json", "c.json", "q.json"]


def test_a_row_that_cannot_be_used_is_named_with_its_file_and_number(tmp_path):
    path = write(tmp_path / "qa.json", [{"problem": "Why?", "problem_type": "judge"}])
    (bad,) = intent_bench(path)
    assert isinstance(bad, BadSample)
    with pytest.raises(InputError, match=r"qa\.json\[0\]: no text in solution or answer, found \['problem'"):
        usable([bad])
    write(tmp_path / "h" / "a.json", ["x"])
    assert [row.reason for row in emotion_hallucer(tmp_path / "h")] == ["expected an object, found str"] * 2
    write(tmp_path / "benchmark_json" / "MOSI.json", [{"id": 1, "conversations": "x"}])
    assert [row.reason for row in emobench_m(tmp_path)] == ["no list of conversations"]


def test_a_file_that_is_no_list_or_is_missing_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"qa\.json: expected a list, found dict; see docs/question-benchmarks\.md"):
        usable(intent_bench(write(tmp_path / "qa.json", {})))
    with pytest.raises(InputError, match=r"no \.json file; expected pairs of a basic and a hallucinated question"):
        usable(emotion_hallucer(tmp_path / "none"))
    with pytest.raises(InputError, match="the files hold no question"):
        usable(intent_bench(write(tmp_path / "qa.json", [])))
