"""Clips about one person of a conversation: whose face is followed, whose voice counts, and what is asked."""

from dataclasses import replace

import pytest

from affectgpt.annotate import clips
from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.local import answer_by_rules
from affectgpt.annotate.prompts import render_question
from affectgpt.annotate.record import Annotation, RecordError, checked_record, said_of
from affectgpt.config import FacesConfig
from affectgpt.schema import Sample, read_samples, write_jsonl
from tests.annotate.conftest import annotate, served, write_clips
from tests.chat.chat_server import ChatServer, fill_in
from tests.models import tiny

ABOUT_LISTENER = "The question is about the person who listens; the voice and the words are those of the other person. "

WORDS = "pipeline.steps=[{name: transcribe}, {name: measure}]"
PERSONS = {"speaks": "speaker", "listens": "listener", "nobody": None}


def about_each(manifest):
    """The first three clips of a manifest, about the speaker, the listener and nobody in particular."""
    samples = read_samples(manifest)[0][:3]
    path = manifest.with_name("conversation.jsonl")
    write_jsonl(
        path, [replace(one, id=name, person=who) for one, (name, who) in zip(samples, PERSONS.items(), strict=True)]
    )
    return path


@pytest.mark.parametrize(
    ("person", "setting", "followed"),
    [("listener", "main", "listener"), (None, "main", "main"), ("listener", "largest", "largest")],
)
def test_the_face_that_is_followed_is_that_of_the_person(person, setting, followed, monkeypatch):
    asked = []
    monkeypatch.setattr(clips, "track_and_keep", lambda path, faces, *more: (asked.append(faces.person), None))
    sample = Sample("a", video="a.mp4", modalities=("frames",), person=person)
    ClipMedia(sample, "", faces=FacesConfig(person=setting)).tracks()
    assert asked == [followed]


def test_the_voice_of_the_other_person_is_no_evidence_about_the_listener(films, tmp_path):
    with ChatServer(fill_in) as server:
        assert annotate(about_each(films), tmp_path / "out", *served(server.url), "pipeline=emer") == 0
    records = {record.id: record for record in records_in(tmp_path / "out")}
    assert {name: record.person for name, record in records.items()} == PERSONS
    heard = {clue.modality for clue in records["speaks"].clues}, {clue.modality for clue in records["listens"].clues}
    assert heard == ({"visual", "acoustic", "lexical"}, {"visual", "lexical"})
    (measured,) = [note for note in records["listens"].provenance if note.step == "measure"]
    assert measured.parameters["left_out"] == ["the voice, which is the other person's"]
    samples = {sample.id: sample.person for sample in read_samples(tmp_path / "out" / "manifest.jsonl")[0]}
    assert samples == PERSONS


def test_questions_about_more_than_a_description_say_whose_emotion_is_asked_about():
    about = {"transcript": "I won.", "description": {"en": "She beams."}, "person": "listener"}
    asked = render_question("disambiguate", "en", about)
    assert "What the other person says:\nI won." in asked
    assert ABOUT_LISTENER + "Above are notes" in asked
    assert "问题针对倾听的人；声音和话语来自对方。" in render_question("visual", "zh", about)
    assert ABOUT_LISTENER not in render_question("labels", "en", about)  # the description is of this person
    nobody = {**about, "person": None}
    assert render_question("merge", "en", {**about, "person": "speaker"}) == render_question(
        "merge", "en", nobody
    ).replace("Above is", "The question is about the person who speaks. Above is")


def test_the_usual_voice_of_a_speaker_is_not_taken_from_clips_about_a_listener(tmp_path):
    clips = write_clips(tmp_path / "clips", 3, seconds=1.6)
    samples = read_samples(clips)[0]
    relative = {}
    for name, persons in (("two", (None, None, "listener")), ("one", (None, "listener", "listener"))):
        write_jsonl(clips, [replace(one, person=who) for one, who in zip(samples, persons, strict=True)])
        annotate(clips, tmp_path / name, "speaker='^(clip)'")
        records = [record for record in records_in(tmp_path / name) if record.person is None]
        relative[name] = [{fact.name for fact in record.evidence if "speaker" in fact.name} for record in records]
    assert relative == {  # a median needs two clips
        "two": [{"pitch_vs_speaker_st", "loudness_vs_speaker_db", "rate_vs_speaker"}] * 2,
        "one": [set()],
    }


def test_a_recogniser_writes_down_the_other_persons_words_and_measures_nothing_of_them(tmp_path):
    whisper = tiny.write_whisper(tmp_path / "whisper")
    tiny.write_bpe_tokenizer(whisper, ["<|endoftext|>"], eos_token="<|endoftext|>")
    clips = about_each(write_clips(tmp_path / "clips", 3, subtitle=None))
    annotate(clips, tmp_path / "out", f"transcriber='{whisper}'", WORDS)
    why = {
        record.id: next(note for note in record.provenance if note.step == "transcribe").parameters.get("why")
        for record in records_in(tmp_path / "out")
    }
    assert why["listens"] == "the other person's words"
    assert why["speaks"] == why["nobody"] != why["listens"]


def test_local_rules_describe_no_listener_by_the_voice_of_the_other_person(clips, tmp_path):
    assert annotate(about_each(clips), tmp_path / "out", "annotator=local", "pipeline=emer_coarse") == 3
    records = {record.id: record for record in records_in(tmp_path / "out")}
    assert set(records) == {"speaks", "nobody"}  # of the listener there is no evidence
    assert records["speaks"].evidence == records["nobody"].evidence != ()
    assert answer_by_rules("disambiguate", "en", {"transcript": "I won.", "person": "listener"}) == {
        "clue": 'The other person says: "I won."'
    }


def test_people_who_review_are_told_whose_emotion_it_is():
    record = Annotation("a", "0" * 64, transcript="I won.", person="listener")
    assert said_of(record) == f"{ABOUT_LISTENER}I won."
    assert said_of(replace(record, transcript=None)) == ABOUT_LISTENER.strip()
    assert said_of(replace(record, person=None, transcript=None)) is None
    with pytest.raises(RecordError, match=r"person: found 'both', expected one of \['speaker', 'listener'\], or null"):
        checked_record(replace(record, person="both"))
